"""The one error type, and the codes it may carry.

Codes 1 to 99 are reserved by the CNI specification (section 5, "Error"); 8 and 999 are what the Go
reference uses for a bad network namespace and for everything unexpected. A plugin's own codes start at 100.
"""

from __future__ import annotations

INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
INVALID_NETNS = 8
TRY_AGAIN = 11
NOT_AVAILABLE = 50
LIMITED_CONNECTIVITY = 51
INTERNAL = 999


class CniError(Exception):
    """A refusal or failure that is reported to the runtime.

    `msg` is one line with what was found and what was expected; `details` is the next step for whoever
    reads it, or empty. Only `cni/dispatch.py` turns it into JSON.
    """

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details

    def __str__(self) -> str:
        return f"{self.msg}; {self.details}" if self.details else self.msg


class KernelError(CniError):
    """The kernel refused one verb: `enslave veth3f2a to cni0: EBUSY (Device or resource busy)`.

    `errno` is the kernel's positive error number, `hint` what was found, `details` the next step.
    """

    def __init__(self, what: str, errno: int, hint: str = "", code: int = INTERNAL, details: str = "") -> None:
        super().__init__(code, f"{what}: {errno_text(errno)}{f': {hint}' if hint else ''}", details or remedy(errno))
        self.errno = errno


def errno_text(number: int) -> str:
    """`EBUSY (Device or resource busy)` for 16."""
    # Both are built into the interpreter; imported here because most calls never fail.
    import errno
    import posix

    return f"{errno.errorcode.get(number, number)} ({posix.strerror(number)})"


def remedy(number: int) -> str:
    """The next step for an error number that says what the node lacks; empty for the others."""
    import errno

    remedies = {
        errno.E2BIG: "a limit of the kernel is reached, which `dmesg` may name: delete pods, or raise it",
        errno.EDQUOT: "raise the quota, or remove files",
        errno.EMFILE: "raise the limit of open files of this process (LimitNOFILE in its systemd unit, `ulimit -n`)",
        errno.ENFILE: "raise the node's limit of open files: sysctl fs.file-max",
        errno.ENOBUFS: "free memory on the node, or raise the limit that `dmesg` names",
        errno.ENOMEM: "free memory on the node, or raise the memory limit of the cgroup",
        errno.ENOSPC: "a limit of the kernel is reached, which `dmesg` may name: delete pods, or raise it",
        errno.EROFS: "mount it writable",
    }
    return remedies.get(number, "")


def io_failure(error: OSError, about: str = "I/O failure", code: int = IO_FAILURE) -> CniError:
    """A failed call about a file, in words: `I/O failure at /run/cnikit/locks/x: ENOSPC (No space left on device)`.

    `filename2` is where a link or a renamed file was to be; `filename` is then the link's text or the old name.
    """
    import errno
    import posix

    path = error.filename2 or error.filename
    path = path.decode("utf-8", "backslashreplace") if isinstance(path, bytes) else path
    number = error.errno or 0
    if number != errno.ENOSPC or not isinstance(path, str):
        place = f" at {path}" if path else ""
        details = "make room on its file system" if number == errno.ENOSPC else remedy(number)
        return CniError(code, f"{about}{place}: {errno_text(number) if number else error}", details)
    folder = path.rpartition("/")[0] or "/"
    try:
        # Whichever is scarcer: what was made before the failure may have been taken back by now.
        room = posix.statvfs(folder)
        inodes = room.f_ffree * (room.f_blocks or 1) < room.f_files * (room.f_bfree if room.f_blocks else 1)
    except OSError:
        inodes = False
    what = f"{about} at {path}: expected room in {folder}, found no {'inodes' if inodes else 'space'} left (ENOSPC)"
    return CniError(code, what, f"make room: `df {'-i ' if inodes else ''}{folder}` shows the file system")


def merge_errors(errors: list[CniError]) -> CniError | None:
    """One error that reports all of `errors` (DEL and GC collect and go on); None when there are none.

    The first error's code is kept, because it is the one that the caller's next step depends on.
    """
    if not errors:
        return None
    if len(errors) == 1:
        return errors[0]
    details = [e.details for e in errors if e.details]
    return CniError(errors[0].code, "; ".join(e.msg for e in errors), "; ".join(details))
