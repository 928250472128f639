"""flock(2) with a bounded wait and no file left behind.

flock has no timeout, and a signal would disturb a process that hosts many calls, so the lock is tried
again in growing steps. A lock that belongs to one attachment is unlinked before it is released; whoever
waited for the old file notices that it is no longer the one at the path, and starts over.
"""

from __future__ import annotations

import fcntl
import posix
import select

from cni.errors import TRY_AGAIN, CniError
from cni.paths import folder_of, make_folders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WAIT = 10.0  # seconds until a lock that somebody else holds becomes code 11
_LONGEST_STEP = 0.005


class Locks:
    """`World.lock` of a process that serves one call: every lock is the file's."""

    __slots__ = ("_clock",)

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def take(self, path: str, *, transient: bool = False, mode: int = 0o600) -> Lock:
        return Lock(path, self._clock, transient=transient, mode=mode)


class Lock:
    """An exclusive lock on a file, taken when made and released by `close` or the end of the `with` block.

    `transient` removes the file on release. Raises CniError 11 after `wait` seconds.
    """

    __slots__ = ("_fd", "_path", "_transient")

    def __init__(
        self,
        path: str,
        clock: Callable[[], float],
        *,
        transient: bool = False,
        mode: int = 0o600,
        wait: float = WAIT,
    ) -> None:
        self._path = path
        self._transient = transient
        deadline = clock() + wait
        while True:
            self._fd = _open(path, mode)
            try:
                _wait(self._fd, path, clock, deadline)
                if _is_at(self._fd, path):
                    return
            except BaseException:
                posix.close(self._fd)
                raise
            posix.close(self._fd)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release it; closing twice is harmless."""
        if self._fd < 0:
            return
        try:
            if self._transient:
                posix.unlink(self._path)
        except FileNotFoundError:
            pass  # somebody cleared the folder: the lock is gone, which is what we want
        finally:
            posix.close(self._fd)
            self._fd = -1


def _open(path: str, mode: int) -> int:
    try:
        return posix.open(path, posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC, mode)
    except FileNotFoundError:
        make_folders(folder_of(path), 0o700)
        return posix.open(path, posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC, mode)


def _wait(fd: int, path: str, clock: Callable[[], float], deadline: float) -> None:
    step = 0.0001
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock() >= deadline:
                raise CniError(
                    TRY_AGAIN,
                    f"lock {path}: expected to get it within {WAIT:g} s, found it held by another process",
                    f"try again; `fuser -v {path}` names the holder",
                ) from None
            select.select((), (), (), step)
            step = min(step * 1.5, _LONGEST_STEP)
        except OSError as error:
            error.filename = path  # flock(2) knows no path
            raise
        else:
            return


def _is_at(fd: int, path: str) -> bool:
    try:
        there = posix.stat(path)
    except FileNotFoundError:
        return False
    ours = posix.fstat(fd)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
