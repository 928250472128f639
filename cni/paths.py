"""The few path functions that calls need. `os` takes 0.8 ms to import, more than everything else from the standard
library; what it adds to `posix`, the interpreter's own module, is this.
"""

from __future__ import annotations

import posix

S_IFMT = 0o170000
S_IFDIR = 0o040000
S_IFREG = 0o100000
S_IFLNK = 0o120000


def base_name(path: str) -> str:
    """What comes after the last slash."""
    return path.rpartition("/")[2]


def folder_of(path: str) -> str:
    """What comes before the last slash; `/` for what stands in the root, empty without a slash."""
    head, slash, _ = path.rpartition("/")
    return head or slash


def is_file(path: str) -> bool:
    """Whether a regular file is there, also through a symbolic link."""
    return _kind(path) == S_IFREG


def is_folder(path: str) -> bool:
    """Whether a folder is there, also through a symbolic link."""
    return _kind(path) == S_IFDIR


def is_link(status: posix.stat_result) -> bool:
    """Whether lstat found a symbolic link."""
    return status.st_mode & S_IFMT == S_IFLNK


def exists(path: str) -> bool:
    """Whether anything is there, a dangling symbolic link included."""
    try:
        posix.lstat(path)
    except (OSError, ValueError):
        return False
    return True


def real_path(path: str) -> str:
    """The path of what is there with no symbolic link in it."""
    fd = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
    try:
        return posix.readlink(f"/proc/self/fd/{fd}")
    finally:
        posix.close(fd)


def make_folders(path: str, mode: int) -> None:
    """Make a folder and those above it; one that is there is fine."""
    try:
        posix.mkdir(path, mode)
    except FileNotFoundError:
        above = folder_of(path)
        if above in ("", path):
            raise
        make_folders(above, mode)
        make_folders(path, mode)
    except FileExistsError:
        if not is_folder(path):
            raise


def folder_fault(folder: str) -> str:
    """Why no file can be made in a folder or, while it is not there, in the one above; empty when it can."""
    there = folder
    while not exists(there) and there not in ("/", ""):
        there = folder_of(there)
    if not is_folder(there or "."):
        return f"expected a folder at {there}, found something else"
    if not posix.access(there or ".", posix.W_OK | posix.X_OK):
        return f"expected to be allowed to write in {there}, found a read-only file system or no permission"
    room = posix.statvfs(there or ".")
    if (room.f_blocks and not room.f_bfree) or (room.f_files and not room.f_ffree):
        return f"expected room for a file in {there}, found the file system full"
    return ""


def _kind(path: str) -> int:
    try:
        return posix.stat(path).st_mode & S_IFMT
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return 0
