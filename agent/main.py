"""The agent's process: put together, started, and brought to one of its ends.

- stop (SIGTERM, SIGINT): the socket file goes, so that new calls run one-shot; what has connected is answered.
- reload (SIGHUP): no new call is taken, those under way are answered, then this process becomes the program anew
  (which may have been replaced by another version) on the same socket. Meanwhile launchers wait in its queue.
- hand-over (a new agent with --replace): the new one is given the socket and answers from now on, while this one
  answers what it has taken.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from agent.listener import Listener
from agent.locks import SharedLocks
from agent.notify import Notifier
from agent.report import Reporter
from agent.server import Server
from agent.service import Service
from agent.workers import Workers
from cni.kernel.resident import ResidentKernel

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, MutableMapping

SOCKET = "/run/cnikit/agent.sock"

# Longer than a launcher waits for an answer.
_DRAIN_SECONDS = 65.0


class Agent:
    """One agent, from its listening socket to its end."""

    def __init__(self, registry: Mapping[str, str], listener: Listener, log: Callable[[str], None]) -> None:
        self._listener = listener
        self._ending = ""
        self.kernel = ResidentKernel(time.monotonic)
        self.workers = Workers()
        self.reporter = Reporter()
        self.service = Service(
            registry, self.kernel, SharedLocks(time.monotonic), self.workers, time.monotonic, boot_id(), self.reporter
        )
        self.server = Server(listener.socket, self.service.take, self._hand_over, time.monotonic, log)

    def end(self, how: str) -> None:
        """Begin to end: `stop`, `reload` or `handed over`."""
        self._ending = self._ending or how
        self.server.stop()

    def run(self) -> str:
        """Serve, and return how it ended once every call is answered."""
        self.server.run()
        stopping = self._ending == "stop"
        if stopping:
            self._listener.remove()
        self.server.finish(accept=stopping)
        self.workers.drain(_DRAIN_SECONDS)
        self.server.close()
        self.workers.close()
        self.kernel.close()
        return self._ending

    def _hand_over(self, peer: socket.socket) -> None:
        with peer:
            try:
                self._listener.give_away(peer)
            except OSError:
                return  # the new one is gone already: nothing has changed
        self.end("handed over")


def run(registry: Mapping[str, str], argv: list[str], environ: MutableMapping[str, str], *, replace: bool) -> None:
    """Run an agent in the foreground until its end. `argv` is what this process was started with."""
    path = environ.get("CNIKIT_SOCKET") or SOCKET
    listener = Listener.inherited(environ, path) or Listener.make(path, time.monotonic, replace=replace)
    notifier = Notifier(environ)
    agent = Agent(registry, listener, _say)
    signal.signal(signal.SIGTERM, lambda *_: agent.end("stop"))
    signal.signal(signal.SIGINT, lambda *_: agent.end("stop"))
    signal.signal(signal.SIGHUP, lambda *_: agent.end("reload"))
    preload(registry)
    gc.collect()
    gc.freeze()
    notifier.tell("READY=1")
    _say(f"listening at {path}")
    ending = agent.run()
    if ending == "reload":
        monotonic = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.tell(f"RELOADING=1\nMONOTONIC_USEC={monotonic}")
        os.execve(argv[0], argv, listener.passed_on(environ))
    notifier.tell("STOPPING=1")
    _say(ending)


def preload(registry: Mapping[str, str]) -> None:
    """Import now what calls would import when they first need it."""
    for module in (
        *registry.values(), "cni.delegate", "cni.kernel.nfnetlink", "cni.kernel.nftables", "cni.result",
        "ipam.ranges", "plugins.bridge_check", "plugins.iptables",
    ):  # fmt: skip
        __import__(module)


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _say(line: str) -> None:
    print(f"cnikit agent: {line}", file=sys.stderr, flush=True)
