"""Network namespaces: the only place that enters one (setns(2)).

A namespace is entered once, to open there what keeps working from outside: netlink sockets belong to the
namespace they were opened in, and so do directories below /proc/sys/net. Nothing else runs inside.
"""

from __future__ import annotations

import fcntl
import posix
from errno import EACCES, ENOENT, ENOTDIR, ENXIO, EPERM, ESRCH

from cni.errors import KernelError, errno_text
from cni.kernel import NetnsError
from cni.paths import S_IFDIR, S_IFMT, S_IFREG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
_OTHER_TYPES = {
    0x80: "time", 0x20000: "mount", 0x2000000: "cgroup", 0x4000000: "UTS", 0x8000000: "IPC", 0x10000000: "user",
    0x20000000: "PID",
}  # fmt: skip
_FILE_TYPES = {
    S_IFREG: "a plain file", S_IFDIR: "a directory", 0o010000: "a FIFO",
    0o020000: "a character device", 0o060000: "a block device",
}  # fmt: skip


_OWN = "/proc/thread-self/ns/net"


def open_own() -> int:
    """A descriptor of the namespace that the calling thread is in."""
    try:
        return posix.open(_OWN, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"open the own network namespace {_OWN}", error.errno or EPERM) from error


def is_own(path: str) -> bool:
    """Whether the namespace at a path is the calling thread's; false when there is none there."""
    try:
        there = posix.stat(path)
    except (OSError, ValueError):
        return False
    own = posix.stat(_OWN)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def open_path(path: str) -> int:
    """A descriptor of the namespace at a path. NetnsError says what is there instead."""
    try:
        # O_NONBLOCK: a FIFO would block until somebody writes.
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    except ValueError:
        raise NetnsError(path, "a NUL character in the path", gone=False) from None
    except OSError as error:
        raise _not_opened(path, error.errno or EPERM) from None
    try:
        check(path, fd)
    except BaseException:
        posix.close(fd)
        raise
    return fd


def check(path: str, fd: int) -> None:
    """NetnsError when a descriptor, opened at a path, is not that of a network namespace."""
    try:
        found = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = posix.fstat(fd).st_mode & S_IFMT
        # A mount point without its mount is a plain file: so a namespace looks after its removal or a reboot.
        raise NetnsError(path, _FILE_TYPES.get(kind, "a special file"), gone=kind == S_IFREG) from None
    if found != CLONE_NEWNET:
        raise NetnsError(path, f"a {_OTHER_TYPES.get(found, 'different')} namespace", gone=False)


def _not_opened(path: str, errno: int) -> NetnsError:
    if errno in (ENOENT, ENOTDIR, ESRCH):  # ESRCH: below /proc of a process that has just ended
        return NetnsError(path, "nothing", gone=True)
    if errno == ENXIO:
        return NetnsError(path, "a socket", gone=False)
    if errno in (EACCES, EPERM):
        return NetnsError(path, f"what this process may not open: {errno_text(errno)}", gone=False)
    return NetnsError(path, f"what cannot be opened: {errno_text(errno)}", gone=False)


class Visitor:
    """Goes into other namespaces and comes back. setns(2) is looked for once, at the first visit.

    `own` is a descriptor of the namespace to come back to, which a process that stays may keep open for all its
    threads; -1 to open it for each visit. Any number of threads may share one visitor.
    """

    __slots__ = ("_enter", "_own")

    def __init__(self, own: int = -1) -> None:
        self._own = own
        self._enter: Callable[[int, int], object] | None = None

    def inside(self, fd: int, action: Callable[[], T]) -> T:
        """Run `action` in a namespace, and be back when it returns or raises."""
        own = self._own if self._own >= 0 else open_own()
        try:
            self._setns(fd)
            try:
                return action()
            finally:
                self._return(own)
        finally:
            if own != self._own:
                posix.close(own)

    def _return(self, own: int) -> None:
        """Go back, or end the process: in a foreign namespace every further step, undo included, would hit the
        wrong machine.
        """
        try:
            self._setns(own)
        except BaseException as error:  # noqa: BLE001 - nothing may get past here
            posix.write(2, f"cnikit: cannot return to the own network namespace: {error}\n".encode())
            posix.abort()

    def _setns(self, fd: int) -> None:
        """Move the calling thread into a network namespace. KernelError when that is refused."""
        if self._enter is None:
            self._enter = getattr(posix, "setns", None) or _setns_of_libc()  # posix has it since Python 3.12
        try:
            self._enter(fd, CLONE_NEWNET)
        except OSError as error:
            raise KernelError("enter a network namespace", error.errno or EPERM) from error


def _setns_of_libc() -> Callable[[int, int], None]:
    # The C half of ctypes: all of it takes four times as long to import.
    import _ctypes

    class Int(_ctypes._SimpleCData):  # type: ignore[type-arg]  # noqa: SLF001 - it has no other name
        _type_ = "i"

    class Function(_ctypes.CFuncPtr):
        # FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, and FUNCFLAG_PYTHONAPI: in a process of many threads it would take
        # longer to get the interpreter's lock back than to do this without letting go of it.
        _flags_ = 1 | 8 | 4
        _restype_ = Int

    function = Function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "setns"))  # type: ignore[arg-type]  # None: this program

    def setns(fd: int, kind: int) -> None:
        if function(fd, kind) != 0:
            errno = _ctypes.get_errno()
            raise OSError(errno, posix.strerror(errno))

    return setns
