"""Tells waiting threads when links of the node are gone: one socket and one thread for the whole process."""

from __future__ import annotations

import _socket
import _struct
import posix
import select
import threading
from array import array
from errno import ENOBUFS

from cni.errors import KernelError
from cni.kernel import rtlinks
from cni.kernel.netlink import NETLINK_ROUTE, Socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    # Called with True when the link is gone, and with False when notices were lost: then its caller has to ask.
    Listener = Callable[[bool], object]

_SO_ATTACH_FILTER = 26
_BUFFER = 1 << 24  # a few thousand links that go at once
_PAUSE = 1.0  # seconds until a failed socket is opened again

# Classic BPF: code, how far to jump when true and when false, operand.
_LOAD_HALF, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x28, 0x30, 0x15, 0x06
_INSTRUCTION = _struct.Struct("=HBBI")


class Monitor:
    """Made in the node's namespace, where its thread starts at once."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._listeners: dict[int, list[Listener]] = {}
        self._socket = _Notices()
        try:
            self._stop = posix.eventfd(0, posix.EFD_CLOEXEC)
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._run, name="link monitor", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._socket.close()
            posix.close(self._stop)
            raise

    def close(self) -> None:
        """End the thread."""
        posix.eventfd_write(self._stop, 1)
        self._thread.join()
        self._socket.close()
        posix.close(self._stop)

    def listen(self, index: int, listener: Listener) -> None:
        """Call `listener` when the link is gone. It must not block."""
        with self._mutex:
            self._listeners.setdefault(index, []).append(listener)

    def forget(self, index: int, listener: Listener) -> None:
        """Call it no more; it may have been called."""
        with self._mutex:
            listeners = self._listeners.get(index, [])
            if listener in listeners:
                listeners.remove(listener)
            if not listeners:
                self._listeners.pop(index, None)

    def _run(self) -> None:
        poll = self._poll()
        while True:
            ready = poll.poll()
            if any(fd == self._stop for fd, _ in ready):
                return
            try:
                self._tell(self._socket.gone())
            except Exception as error:  # noqa: BLE001 - whatever it is, this thread must go on
                self._ask()
                if not isinstance(error, KernelError) or error.errno != ENOBUFS:
                    if self._is_stopped_within(_PAUSE):
                        return
                    self._reopen()
                    poll = self._poll()

    def _poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        poll.register(self._socket.fileno(), select.POLLIN)
        return poll

    def _tell(self, gone: list[int]) -> None:
        for index in gone:
            with self._mutex:
                listeners = self._listeners.pop(index, ())
            for listener in listeners:
                listener(True)

    def _ask(self) -> None:
        with self._mutex:
            listeners = [listener for some in self._listeners.values() for listener in some]
        for listener in listeners:
            listener(False)

    def _is_stopped_within(self, seconds: float) -> bool:
        return bool(select.select([self._stop], (), (), seconds)[0])

    def _reopen(self) -> None:
        """Try a new socket; while none is to be had, the old one fails again and callers ask."""
        try:
            new = _Notices()
        except KernelError:
            return
        self._socket.close()
        self._socket = new


class _Notices(Socket):
    """Announcements that links are gone, and nothing else.

    Without the filter every link that is added, changed or joins a bridge would wake the reader several times.
    """

    def __init__(self) -> None:
        super().__init__(NETLINK_ROUTE, rtlinks.RTMGRP_LINK, _BUFFER)
        try:
            program = array("B", _filter(rtlinks.RTM_DELLINK, rtlinks.AF_UNSPEC))
            address, size = program.buffer_info()
            described = _struct.pack("@HP", size // _INSTRUCTION.size, address)
            self._socket.setsockopt(_socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
        except OSError as error:
            self.close()
            raise KernelError("filter the notices about links", error.errno or ENOBUFS) from error

    def gone(self) -> list[int]:
        """The indices of the links of the next notice."""
        notices = self.notices()
        return [rtlinks.parse_gone_link(body) for kind, body in notices if kind == rtlinks.RTM_DELLINK]


def _filter(kind: int, family: int) -> bytes:
    """A program that passes messages with this type in the netlink header and this family behind it."""
    # The load is big-endian, as on the wire, but netlink is not.
    (swapped,) = _struct.unpack(">H", _struct.pack("=H", kind))
    program = (
        (_LOAD_HALF, 0, 0, 4),
        (_JUMP_EQUAL, 0, 3, swapped),
        (_LOAD_BYTE, 0, 0, 16),
        (_JUMP_EQUAL, 0, 1, family),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    )
    return b"".join([_INSTRUCTION.pack(*instruction) for instruction in program])
