"""A world that lasts as long as this process: namespaces that no other process sees, and pings within.

`isolate` moves the process into a network and a mount namespace of its own and hides /run behind an empty
tmpfs. Whatever is made afterwards (links, rules, records, named namespaces) is seen by nobody else and ends
with the process, also after kill -9. The plugins know nothing of it. No program is called: a machine with
Python and a kernel is enough.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, NoReturn

from cni.kernel import sysctl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MS_REC = 16384
MS_MOVE = 8192
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1

NETNS_FOLDER = "/run/netns"

# Echo request and reply, by address family.
ECHO: dict[int, tuple[int, int]] = {socket.AF_INET: (8, 0), socket.AF_INET6: (128, 129)}
PROTOCOL: dict[int, int] = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}


class SandboxError(Exception):
    """What went wrong in the small world, in one line."""


def isolate() -> None:
    """Leave the machine's network and mounts behind; /run is empty from here on."""
    libc("unshare", CLONE_NEWNET | CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("cnikit-demo", "/run", "tmpfs", data="mode=755")
    os.mkdir(NETNS_FOLDER)
    enable_ipv6()


def enable_ipv6() -> None:
    """A new namespace may have inherited a machine-wide switch-off."""
    for link in ("all", "default"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            sysctl.put(f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6", "0")


def new_netns(name: str) -> str:
    """Make a named network namespace; returns its path."""
    path = os.path.join(NETNS_FOLDER, name)
    in_child(lambda: pin_netns(path))
    return path


def pin_netns(path: str) -> None:
    """Move this process into a new network namespace that stays at a path."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    libc("unshare", CLONE_NEWNET)
    enable_ipv6()
    mount("/proc/self/ns/net", path, flags=MS_BIND)


def within(netns: str, function: Callable[..., Any], *args: Any) -> Any:
    """What `function` answers inside a namespace; it runs in a child, so this process never leaves its own."""

    def call() -> Any:
        enter(netns)
        return function(*args)

    return in_child(call)


def enter(netns: str) -> None:
    """Move this process into a namespace."""
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    libc("setns", fd, CLONE_NEWNET)
    os.close(fd)


def in_child(function: Callable[[], Any]) -> Any:
    """Run a function in a child process; its answer must be JSON. Its failure becomes a SandboxError."""
    return Child(function).result()


class Child:
    """A function that runs in a child process, beside this one; whoever made it asks once for its `result`. It ends with
    this process, also after kill -9: it would go on with what somebody else may be taking away by then."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._reader, writer = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            libc("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() not in (parent, 0):  # it had ended before; 0: it is in another PID namespace
                os._exit(1)
            os.close(self._reader)
            _answer(writer, function)
        os.close(writer)

    def result(self) -> Any:
        """What the function answers, when it has. Its failure becomes a SandboxError."""
        try:
            with os.fdopen(self._reader, "rb") as file:
                answer = json.loads(file.read() or b'{"error": "the child died"}')
        except BaseException:
            os.kill(self._pid, signal.SIGKILL)
            raise
        finally:
            os.waitpid(self._pid, 0)
        if "error" in answer:
            raise SandboxError(answer["error"])
        return answer["value"]


def side_by_side(functions: Iterable[Callable[[], Any]]) -> list[Any]:
    """What functions answer that run in a child process each, when all have ended; the first failure is a SandboxError."""
    children = [Child(function) for function in functions]
    answers, failures = [], []
    for child in children:
        try:
            answers.append(child.result())
        except SandboxError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return answers


def contained(function: Callable[[], Any]) -> Any:
    """Like `in_child`, and whatever the function has started ends with the child: daemons too, also after kill -9."""

    def first() -> Any:
        """The first process of a PID namespace: when it ends, the kernel ends all others."""
        mount("proc", "/proc", "proc")
        return function()

    def outside() -> Any:
        libc("unshare", CLONE_NEWPID | CLONE_NEWNS)
        return in_child(first)

    return in_child(outside)


def _answer(writer: int, function: Callable[[], Any]) -> NoReturn:
    try:
        answer = {"value": function()}
    except KeyboardInterrupt:
        answer = {"error": "interrupted"}
    except Exception as error:  # noqa: BLE001 - the parent reports what it was
        answer = {"error": f"{type(error).__name__}: {error}"}
    try:
        os.write(writer, json.dumps(answer).encode())
    finally:
        os._exit(0)


def ping(target: str, count: int, timeout: float) -> list[float]:
    """Round-trip times in milliseconds of `count` pings from the namespace the caller is in.

    SandboxError when one is not answered within `timeout` seconds.
    """
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    request, reply = ECHO[family]
    times = []
    with socket.socket(family, socket.SOCK_RAW, PROTOCOL[family]) as sock:
        for sequence in range(1, count + 1):
            head = struct.pack("!HH", os.getpid() & 0xFFFF, sequence)
            start = time.monotonic()
            sock.sendto(echo(request, head), (target, 0))
            _await_reply(sock, target, bytes([reply, 0]), head, start + timeout)
            times.append((time.monotonic() - start) * 1000)
    return times


def echo(kind: int, head: bytes, data: bytes = b"cnikit demo") -> bytes:
    """An ICMP echo message; `head` is its identifier and sequence number."""
    body = head + data
    packet = bytes([kind, 0, 0, 0]) + body + bytes(len(body) % 2)
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    # The kernel overwrites the checksum for IPv6, where it covers addresses as well.
    return packet[:2] + struct.pack("!H", ~total & 0xFFFF) + packet[4:]


def _await_reply(sock: socket.socket, target: str, kind: bytes, head: bytes, deadline: float) -> None:
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([sock], [], [], left)[0]:
            raise SandboxError(f"{target} did not answer a ping in time")
        message, sender = sock.recvfrom(2048)
        message = icmp(sock.family, message)
        if message[:2] == kind and message[4:8] == head and sender[0] == target:
            return


def icmp(family: int, packet: bytes) -> bytes:
    """The ICMP message in what a raw socket delivers: IPv4 puts its header in front, IPv6 does not."""
    return packet[(packet[0] & 15) * 4 :] if family == socket.AF_INET else packet


class Witness:
    """Sits in a namespace and notes who sends it pings, until asked."""

    def __init__(self, netns: str) -> None:
        ask_read, self._ask = os.pipe()
        self._answer, answer_write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._ask)
            os.close(self._answer)
            _answer(answer_write, lambda: _watch(netns, ask_read, answer_write))
        os.close(ask_read)
        os.close(answer_write)
        if os.read(self._answer, 1) != b"\n":
            raise SandboxError(f"cannot listen in {netns}")

    def sources(self) -> list[str]:
        """The addresses that pings came from; ends the watch."""
        self.close()
        with os.fdopen(self._answer, "rb") as file:
            answer = json.loads(file.read() or b'{"error": "the witness died"}')
        if "error" in answer:
            raise SandboxError(answer["error"])
        found: list[str] = answer["value"]
        return found

    def close(self) -> None:
        """End the watch; it ends by itself too when this process does."""
        if self._ask >= 0:
            os.close(self._ask)
            self._ask = -1
            os.waitpid(self._pid, 0)


def _watch(netns: str, ask: int, ready: int) -> list[str]:
    enter(netns)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    sockets = [socket.socket(family, socket.SOCK_RAW, PROTOCOL[family]) for family in ECHO]
    os.write(ready, b"\n")
    sources: set[str] = set()
    while True:
        readable = select.select([ask, *(sock.fileno() for sock in sockets)], [], [])[0]
        for sock in sockets:
            if sock.fileno() in readable:
                packet, sender = sock.recvfrom(2048)
                if icmp(sock.family, packet)[0] == ECHO[sock.family][0]:
                    sources.add(sender[0])
        if readable == [ask]:  # asked, and no packet is waiting any more
            return sorted(sources)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Put something at a path; the parameters are those of the system call."""
    texts = [text.encode() if text else None for text in (source, target, kind)]
    libc("mount", *texts, ctypes.c_ulong(flags), data.encode() if data else None)


def unmount(target: str) -> None:
    """Take a mount away from a path, with all that is mounted below it; who has it open keeps it."""
    libc("umount2", target.encode(), MNT_DETACH)


def libc(name: str, *args: Any) -> None:
    """Call a function of the C library that answers 0. OSError when it does not."""
    call = getattr(ctypes.CDLL(None, use_errno=True), name)
    if call(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
