"""A node of the benchmark that serves calls itself, as the agent does, without launcher and socket.

    python in_process.py PREFIX

It is a node like node.py, and `call` answers like that one's. But the plugin runs here, through `dispatch.serve`,
with the agent's kernel and locks. Beside the time of the whole call it tells the part in which the kernel worked on
netlink messages.

That part is measured in the very same call: the netlink sockets take the time around each system call that sends
to the kernel or receives its answer, and the sum counts. (The kernel does its work inside `send`; what is received
lies ready then.) Sending the recorded messages once more for another pod would need other numbers in them, and
would measure a kernel that has just done the same, with nothing between its messages. What the plugin does beside
netlink is no part of the sum, even when it is the kernel's time too: opening sockets in the pod's namespace,
settings below /proc/sys, locks, the lease and the record on disk.
"""

from __future__ import annotations

import _socket
import gc
import os
import sys
import threading
import time
import types
from contextlib import nullcontext
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from agent.locks import InTurn, SharedLocks
from agent.main import boot_id, preload
from cli.registry import PLUGINS
from cni import dispatch
from cni.kernel import netlink
from cni.kernel.resident import ResidentKernel
from cni.main import host_id
from cni.world import World
from tests.bench import node

MAIN = threading.get_ident()


class TimedSocket(_socket.socket):
    """A socket that adds up the nanoseconds which the main thread spends in system calls to send and receive."""

    nanoseconds = 0
    calls = 0

    def send(self, *args: Any) -> int:
        begin = time.perf_counter_ns()
        sent = super().send(*args)
        add_up(time.perf_counter_ns() - begin)
        return sent

    def recvfrom(self, *args: Any) -> Any:
        begin = time.perf_counter_ns()
        received = super().recvfrom(*args)
        add_up(time.perf_counter_ns() - begin)
        return received


def add_up(nanoseconds: int) -> None:
    if threading.get_ident() == MAIN:  # not the thread that hears of deleted links
        TimedSocket.nanoseconds += nanoseconds
        TimedSocket.calls += 1


class Stdin:
    """`dispatch.Stdin` of what is there already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def all(self) -> bytes:
        return self._data

    def probe(self) -> bytes:
        return self._data


class Plugins:
    """What the agent keeps from call to call."""

    def __init__(self) -> None:
        self._kernel = ResidentKernel(time.monotonic)
        self._locks = SharedLocks(time.monotonic)
        self._boot_id = boot_id()

    def _take_lock(self, path: str, *, transient: bool = False, mode: int = 0o600) -> InTurn:
        return self._locks.take(path, nullcontext, transient=transient, mode=mode)

    def call(self, argv: list[str], env: dict[str, str], stdin: str, *, settle: bool = True) -> dict[str, Any]:
        """Serve a call. `netlink_seconds` is the part of `seconds` that the kernel spent on its `netlink_calls`."""
        said: list[str] = []
        answers: list[bytes] = []
        world = World(
            PLUGINS, self._kernel, time.monotonic, said.append,
            own_plugin=_own_plugin, boot_id=lambda: self._boot_id, host_id=host_id, lock=self._take_lock,
        )  # fmt: skip
        TimedSocket.nanoseconds = TimedSocket.calls = 0
        begin = time.perf_counter_ns()
        status = dispatch.serve(
            world, os.path.basename(argv[0]), env, Stdin(stdin.encode()), lambda _, data: answers.append(data)
        )
        taken = time.perf_counter_ns() - begin
        netlink_seconds, calls = TimedSocket.nanoseconds / 1e9, TimedSocket.calls
        if settle:
            node.await_idle(os.getpid())
        return {
            "seconds": taken / 1e9, "netlink_seconds": netlink_seconds, "netlink_calls": calls,
            "status": status, "stdout": b"".join(answers).decode(), "stderr": "\n".join(said),
        }  # fmt: skip


def _own_plugin(executable: str) -> str | None:
    name = os.path.basename(executable)
    return name if name in PLUGINS else None


def start_plugins() -> None:
    """Do what the agent does before it serves."""
    preload(PLUGINS)
    node.ANSWERS["call"] = Plugins().call
    gc.collect()
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    netlink._socket = types.SimpleNamespace(**{**vars(_socket), "socket": TimedSocket})  # type: ignore[assignment, attr-defined]
    node.ANSWERS["start_plugins"] = start_plugins
    node.serve(node.ANSWERS)
