"""What goes over the wire between launcher and agent, as bytes and values; docs/agent-protocol.md has the pictures.

No I/O here but `Arriving`, which collects one request from a connection that may be slow, broken or hostile.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC = b"cnikit\0\x02"  # the last byte is the protocol's version
# A hand-over is as it was in version 1 for ever: agents of different versions take each other's place.
HAND_OVER_MAGIC = b"cnikit\0\x01"
SILENT = 1  # stdin fell silent before its end
HAND_OVER = 2  # no call: a new agent asks for the listening socket

MSG_CMSG_CLOEXEC = 0x40000000  # recvmsg(2): foreign programs must not inherit other calls' descriptors

READY = b"R"
DECLINE = b"D"
ANSWER = b"A"
LISTENER = b"L"
GO = b"G"
DONE = b"K"

# What a process may be started with, and far more than a network configuration has. A longer call runs one-shot: the
# memory that it takes would never come back.
LONGEST_STRINGS = 5 << 19
LONGEST_STDIN = 1 << 20

_HEADER = struct.Struct("=8sIII")
_FRAME = struct.Struct("=cBHII")
_CHUNK = 1 << 16
_MOST_FDS = 3
_FDS_SPACE = socket.CMSG_SPACE(_MOST_FDS * array.array("i").itemsize)
_FIXED_STRINGS = 4


class BrokenRequestError(Exception):
    """What came is no request: says what was expected and found."""


def frame(kind: bytes, status: int = 0, first: bytes = b"", second: bytes = b"") -> bytes:
    """A frame from the agent."""
    return _FRAME.pack(kind, status, 0, len(first), len(second)) + first + second


def hand_over_request() -> bytes:
    """What a new agent sends to the one that listens."""
    return _HEADER.pack(HAND_OVER_MAGIC, HAND_OVER, 0, 0)


class Request:
    """One call as the launcher sent it. Owns the descriptors of its namespaces; `pod` is -1 when there is none."""

    __slots__ = ("code", "environ", "flags", "launcher", "mounts", "net", "plugin", "pod", "stdin", "version")

    def __init__(self, flags: int, strings: bytes | bytearray, stdin: bytes, fds: list[int]) -> None:
        texts = strings.decode("utf-8", "surrogateescape").split("\0")
        if texts.pop() != "" or len(texts) < _FIXED_STRINGS:
            raise BrokenRequestError(
                f"expected {_FIXED_STRINGS} strings and an environment, found {len(texts)} strings"
            )
        self.version, self.code, self.plugin, self.launcher = texts[:_FIXED_STRINGS]
        self.environ: dict[str, str] = {}
        for entry in texts[_FIXED_STRINGS:]:
            name, separator, value = entry.partition("=")
            if separator:
                self.environ.setdefault(name, value)  # of two the first counts, as for getenv(3)
        self.flags = flags
        self.stdin = stdin
        self.net, self.mounts, self.pod = (*fds, -1, -1, -1)[:_MOST_FDS]

    def exchange_pod(self, opened_anew: Callable[[int], int]) -> None:
        """Replace the pod's descriptor by the one that `opened_anew` makes of it."""
        if self.pod >= 0:
            passed, self.pod = self.pod, opened_anew(self.pod)
            os.close(passed)

    def close(self) -> None:
        """Let go of the namespaces."""
        for fd in (self.net, self.mounts, self.pod):
            if fd >= 0:
                os.close(fd)
        self.net = self.mounts = self.pod = -1


def dismiss(peer: socket.socket) -> None:
    """End a connection of which something may be unread, with descriptors that pin a mount.

    close(2) reports the end to the other side first and lets go of what is in the queue afterwards. So nothing more
    is let in, and the queue is emptied before; the kernel drops descriptors for which recv(2) has no room.
    """
    try:
        peer.shutdown(socket.SHUT_RD)
        while peer.recv(_CHUNK):
            pass
    except OSError:
        pass  # it is gone already
    peer.close()


class Arriving:
    """A connection until its request is complete. `wants_socket` is true when it was no call but a hand-over."""

    __slots__ = ("_data", "_fds", "_header", "deadline", "peer", "wants_socket")

    def __init__(self, peer: socket.socket, deadline: float) -> None:
        self.peer = peer
        self.deadline = deadline
        self.wants_socket = False
        self._data = bytearray()
        self._fds: list[int] = []
        self._header: tuple[int, int, int] | None = None

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return len(self._data)

    def receive(self) -> Request | None:
        """Take what is there; the request when that was all of it. BrokenRequestError, or EOFError at the end."""
        try:
            chunk, control, flags, _ = self.peer.recvmsg(_CHUNK, _FDS_SPACE, MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        self._fds += _passed(control)
        if flags & socket.MSG_CTRUNC or len(self._fds) > _MOST_FDS:
            raise BrokenRequestError("its descriptors did not fit: too many were sent, or too many are open here")
        if not chunk:
            raise EOFError
        self._data += chunk
        if self._header is None and len(self._data) >= _HEADER.size:
            self._header = self._checked()
        if self._header is None or len(self._data) < _HEADER.size + sum(self._header[1:]):
            return None
        return self._complete(*self._header)

    def close(self) -> None:
        """End the connection, and with it what it brought."""
        for fd in self._fds:  # before the launcher hears of it: they may pin a mount
            os.close(fd)
        self._fds = []
        dismiss(self.peer)

    def _checked(self) -> tuple[int, int, int]:
        magic, flags, strings, stdin = _HEADER.unpack_from(self._data)
        if magic != (HAND_OVER_MAGIC if flags == HAND_OVER else MAGIC):
            what = f"expected a request that begins with {MAGIC!r}, found {magic!r}"
            if magic[:-1] == MAGIC[:-1]:
                what += ": launcher and agent are of different builds, so the call runs one-shot; install both from one"
            raise BrokenRequestError(what)
        if strings > LONGEST_STRINGS or stdin > LONGEST_STDIN:
            raise BrokenRequestError(
                f"expected at most {LONGEST_STRINGS} and {LONGEST_STDIN} bytes, found {strings}, {stdin}"
            )
        if flags & ~(SILENT | HAND_OVER):
            raise BrokenRequestError(f"expected flags {SILENT} and {HAND_OVER}, found {flags:#x}")
        return flags, strings, stdin

    def _complete(self, flags: int, strings: int, stdin: int) -> Request | None:
        if flags & HAND_OVER:
            self.wants_socket = True
            return None
        if len(self._data) > _HEADER.size + strings + stdin:
            raise BrokenRequestError("expected silence after the request, found more")
        start = _HEADER.size + strings
        request = Request(flags, self._data[_HEADER.size : start], bytes(self._data[start:]), self._fds)
        self._fds = []
        return request


def _passed(control: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came along."""
    fds = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
