"""Settings below /proc/sys: the one place that writes them, and only what is not there already.

Those of links, below net/ipv{4,6}/conf, go through directories that were opened inside the namespace: a path from
/proc/sys/net leads into the namespace of the calling task, whatever is meant. That holds for every mount of it, so a
container whose own /proc/sys is read-only may have the node's at another place (CNIKIT_SYSCTL_DIR).
"""

from __future__ import annotations

import posix
from errno import EACCES, EINVAL, ENOENT, EPERM, EROFS

from cni.addr import AF_INET
from cni.errors import INVALID_ENVIRONMENT, CniError, KernelError

SYSCTL_DIR = "/proc/sys"

# What opening a file for writing fails with where it can only be read.
READ_ONLY = (EROFS, EACCES, EPERM)
_WRITABLE = (
    "mount /proc/sys so that it can be written, or name another mount of it with CNIKIT_SYSCTL_DIR (the agent's "
    "--sysctl-dir)"
)
_MISPLACED = "name a mount of /proc/sys with CNIKIT_SYSCTL_DIR (the agent's --sysctl-dir), or leave it out"


class Conf:
    """The settings of links in one namespace and family, below `sysctl_dir`. Made in the namespace, used from anywhere.

    CniError when nothing is mounted there: here and not at the start, because DEL and GC need no setting.
    """

    __slots__ = ("_directory", "_family")

    def __init__(self, sysctl_dir: str, family: int) -> None:
        self._family = family
        _refuse_relative(sysctl_dir)
        path = f"{sysctl_dir}/net/{_name(family)}/conf"
        try:
            self._directory = posix.open(path, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        except OSError as error:
            errno = error.errno or EPERM
            if errno != ENOENT or family == AF_INET or not _is_there(f"{sysctl_dir}/net/{_name(AF_INET)}/conf"):
                raise KernelError(f"open the settings of links at {path}", errno, details=_MISPLACED) from None
            self._directory = -1  # the kernel runs without this family

    @property
    def is_there(self) -> bool:
        """False when the kernel ran without this family as it was made."""
        return self._directory >= 0

    def close(self) -> None:
        if self._directory >= 0:
            posix.close(self._directory)
            self._directory = -1

    def read(self, link: str, key: str) -> str | None:
        """A setting's text without the newline; None when there is no such file."""
        try:
            return _read(self._path(link, key), self._directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KernelError(f"read {setting(self._family, link, key)}", error.errno or EPERM) from error

    def write(self, link: str, key: str, value: str) -> None:
        """Have a setting hold a value. KernelError with what it holds when that cannot be."""
        what = f"set {setting(self._family, link, key)} to {value}"
        try:
            put(self._path(link, key), value, self._directory)
        except OSError as error:
            raise self._refused(what, link, key, error.errno or EPERM) from None

    def refuse(self, link: str, key: str, value: str) -> None:
        """The same KernelError when `write` could not write; changes nothing."""
        what = f"set {setting(self._family, link, key)} to {value}"
        try:
            flags = posix.O_WRONLY | posix.O_CLOEXEC
            posix.close(posix.open(self._path(link, key), flags, dir_fd=self._directory))
        except OSError as error:
            raise self._refused(what, link, key, error.errno or EPERM) from None

    def _refused(self, what: str, link: str, key: str, errno: int) -> KernelError:
        try:
            found = self.read(link, key)
        except KernelError:
            found = None
        hint = "there is no such setting here" if errno == ENOENT else f"found {found}" if found is not None else ""
        return KernelError(what, errno, hint, details=_WRITABLE if errno in READ_ONLY else "")

    def _path(self, link: str, key: str) -> str:
        """Below the directory. OSError when there is none."""
        for part in (link, key):
            if part in {"", ".", ".."} or "/" in part or "\0" in part:
                raise OSError(EINVAL, "no name of a link or setting")
        if self._directory < 0:
            raise FileNotFoundError(ENOENT, "the kernel runs without this family")
        return f"{link}/{key}"


def put(path: str, value: str, directory: int | None = None) -> None:
    """Have the file of a setting hold a value: it is read first, and written only when it holds another one.

    A relative path begins at `directory`. OSError when it cannot be written and holds another.
    """
    try:
        fd = posix.open(path, posix.O_RDWR | posix.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno in READ_ONLY and _read(path, directory) == value:
            return
        raise
    try:
        if posix.pread(fd, 4096, 0).decode("ascii", "replace").strip() != value:
            posix.pwrite(fd, value.encode(), 0)
    finally:
        posix.close(fd)


def setting(family: int, link: str, key: str) -> str:
    """A link's setting as sysctl(8) names it, where a dot in a link's name is a slash."""
    return f"net.{_name(family)}.conf.{link.replace('.', '/')}.{key}"


def _refuse_relative(sysctl_dir: str) -> None:
    if not sysctl_dir.startswith("/"):
        text = f"CNIKIT_SYSCTL_DIR: expected an absolute path, found {sysctl_dir!r}"
        raise CniError(INVALID_ENVIRONMENT, text, _MISPLACED)


def _name(family: int) -> str:
    return "ipv4" if family == AF_INET else "ipv6"


def _is_there(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def _read(path: str, directory: int | None) -> str:
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=directory)
    try:
        return posix.read(fd, 4096).decode("ascii", "replace").strip()
    finally:
        posix.close(fd)
