"""Handing work away that the kernel makes slow: to a forked child, or to a thread.

A helper's descriptor becomes readable when it is done; then four bytes hold the work's errno, or it died.
"""

from __future__ import annotations

import posix
from errno import EAGAIN

from cni.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable
    from typing import Protocol

    class Helper(Protocol):
        """Work that was handed away. Readable once done: then four bytes hold its errno, or it died."""

        def fileno(self) -> int: ...
        def release(self) -> bool:
            """Let go of it; false while something of it has to be released again later."""

    # Called with the work and the descriptors it uses, which belong to the helper from then on.
    Background = Callable[[Callable[[], int], tuple[int, ...]], Helper]


class Child:
    """A forked helper."""

    __slots__ = ("_fd", "pid")

    def __init__(self, fd: int, pid: int) -> None:
        self._fd = fd
        self.pid = pid

    def fileno(self) -> int:
        return self._fd

    def release(self) -> bool:
        if self._fd >= 0:
            posix.close(self._fd)
            self._fd = -1
        try:
            return posix.waitpid(self.pid, posix.WNOHANG)[0] != 0
        except ChildProcessError:  # somebody else has waited for it
            return True


def fork_background(work: Callable[[], int], fds: tuple[int, ...]) -> Child:
    """Run `work` in a forked child, for a process that is about to exit.

    The child holds nothing of its parent but `fds`: with the standard streams it would keep the runtime
    waiting for the end of our output, and with a lock file's descriptor it would hold the lock. It outlives
    us, and whoever adopts it reaps it; one that ends before we do is reaped here.
    """
    reader, writer = posix.pipe2(posix.O_CLOEXEC)
    pid = posix.fork()
    if pid == 0:
        try:
            _close_all_but(writer, *fds)
            posix.write(writer, work().to_bytes(4, "little"))
        finally:
            posix._exit(0)
    posix.close(writer)
    for fd in fds:
        posix.close(fd)
    return Child(reader, pid)


def _close_all_but(*kept: int) -> None:
    low = 0
    for fd in sorted(kept):
        posix.closerange(low, fd)
        low = fd + 1
    posix.closerange(low, 1 << 20)


class _Thread:
    """A helper thread. `ended` is locked until its end."""

    __slots__ = ("_ended", "_fd")

    def __init__(self, fd: int, ended: LockType) -> None:
        self._fd = fd
        self._ended = ended

    def fileno(self) -> int:
        return self._fd

    def release(self) -> bool:
        if self._fd >= 0:
            posix.close(self._fd)
            self._fd = -1
        return not self._ended.locked()


def thread_background(work: Callable[[], int], fds: tuple[int, ...]) -> Helper:
    """Run `work` in a thread, for a process that stays."""
    import _thread

    reader, writer = posix.pipe2(posix.O_CLOEXEC)
    ended = _thread.allocate_lock()
    ended.acquire()

    def run() -> None:
        try:
            posix.write(writer, work().to_bytes(4, "little"))
        except BrokenPipeError:
            pass  # nobody waits any more
        finally:
            for fd in (writer, *fds):
                posix.close(fd)
            ended.release()

    try:
        _thread.start_new_thread(run, ())
    except RuntimeError as error:
        for fd in (reader, writer, *fds):
            posix.close(fd)
        raise KernelError("start a thread", EAGAIN, str(error)) from None
    return _Thread(reader, ended)
