"""Per-link settings below /proc/sys/net/ipv{4,6}/conf, through directories that were opened inside the namespace.

A path from /proc/sys/net would lead into the namespace of the calling task, whatever is meant.
"""

from __future__ import annotations

import posix
from errno import EINVAL, ENOENT, EPERM

from cni.errors import KernelError

IPV4_CONF = "/proc/sys/net/ipv4/conf"
IPV6_CONF = "/proc/sys/net/ipv6/conf"


class Conf:
    """The settings of one namespace and family. Made in the namespace, used from anywhere."""

    __slots__ = ("_directory", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._directory = posix.open(path, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        except FileNotFoundError:
            self._directory = -1  # the kernel runs without this family
        except OSError as error:
            raise KernelError(f"open {path}", error.errno or EPERM) from error

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
            fd = self._open(link, key, posix.O_RDONLY)
            try:
                return posix.read(fd, 4096).decode("ascii", "replace").strip()
            finally:
                posix.close(fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KernelError(f"read {self._path}/{link}/{key}", error.errno or EPERM) from error

    def write(self, link: str, key: str, value: str) -> None:
        try:
            fd = self._open(link, key, posix.O_WRONLY)
            try:
                posix.write(fd, value.encode())
            finally:
                posix.close(fd)
        except OSError as error:
            raise KernelError(f"write {value!r} to {self._path}/{link}/{key}", error.errno or EPERM) from error

    def _open(self, link: str, key: str, mode: int) -> int:
        for part in (link, key):
            if part in {"", ".", ".."} or "/" in part or "\0" in part:
                raise OSError(EINVAL, "no name of a link or setting")
        if self._directory < 0:
            raise FileNotFoundError(ENOENT, "the kernel runs without this family")
        return posix.open(f"{link}/{key}", mode | posix.O_CLOEXEC, dir_fd=self._directory)
