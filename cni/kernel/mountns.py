"""Looking at files as somebody else sees them: in another mount namespace, from another working directory. For the
agent, whose threads serve callers of all kinds."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import TYPE_CHECKING, TypeVar

from cni.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

CLONE_FS = 0x200
CLONE_NEWNS = 0x20000


def separate_directories() -> None:
    """Give the calling thread a root and a working directory that it shares with no other (unshare(2), CLONE_FS)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_FS) != 0:
        raise KernelError("stop sharing the working directory", ctypes.get_errno())


def inside(fd: int, action: Callable[[], T]) -> T:
    """What `action` gives in the mount namespace `fd`. KernelError when it cannot be entered.

    It runs in a thread of its own, which ends afterwards: to enter a mount namespace a thread must first stop
    sharing its root and working directory with the others (setns(2)).
    """
    answers: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            separate_directories()
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(fd, CLONE_NEWNS) != 0:
                raise KernelError("enter a mount namespace", ctypes.get_errno())
            answers.append(action())
        except BaseException as error:  # noqa: BLE001 - it is raised again by the caller's thread
            failures.append(error)

    thread = threading.Thread(target=run, name="mounts")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return answers[0]


def place(path: str) -> tuple[int, int, str]:
    """Which file a path leads to here: device and inode of the nearest thing that is there, and the rest of the path."""
    rest = ""
    while True:
        try:
            found = os.stat(path)
        except OSError:
            path, _, name = path.rstrip("/").rpartition("/")
            rest = f"{name}/{rest}"
            path = path or "/"
        else:
            return found.st_dev, found.st_ino, rest.rstrip("/")
