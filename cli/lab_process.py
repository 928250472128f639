"""A lab's processes: started apart from whoever starts them, and known by process ID and start time together, because
the ID alone may be another process's by the time somebody looks.
"""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli import sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PROC = "/proc"
_ZOMBIE = "Z"


@dataclass(frozen=True)
class Process:
    """A process: its ID, and its start in the kernel's ticks since boot; 0 when it had ended before anybody looked."""

    pid: int
    started: int

    def runs(self) -> bool:
        return self.started != 0 and _started(self.pid) == self.started

    def kill(self) -> None:
        """SIGKILL; one that has ended is fine."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.runs():  # so the descriptor is of this one
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)

    def await_end(self, deadline: float) -> None:
        """Return when it has ended. TimeoutError at the deadline."""
        while self.runs():
            if time.monotonic() >= deadline:
                raise TimeoutError(f"process {self.pid}: expected it to end after SIGKILL, found it still there")
            select.select((), (), (), 0.002)


def start(argv: Sequence[str], environ: Mapping[str, str], log: str, enter: Callable[[], object]) -> Process:
    """Start a program in the place that `enter` moves to, its output in `log`. It outlives this process and is nobody's
    child here. SandboxError when it cannot be executed."""

    def spawn() -> tuple[int, int]:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        enter()
        actions = [(os.POSIX_SPAWN_DUP2, *pair) for pair in ((null, 0), (fd, 1), (fd, 2))]
        defaults = (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP)
        pid = os.posix_spawnp(argv[0], list(argv), environ, file_actions=actions, setsid=True, setsigdef=defaults)
        return pid, _started(pid)

    return Process(*sandbox.in_child(spawn))


def inside(namespaces: set[tuple[int, int]]) -> list[Process]:
    """The processes, but this one, whose network or mount namespace is one of these (device and inode)."""
    pids = [int(name) for name in os.listdir(_PROC) if name.isdigit()]
    there = [pid for pid in pids if pid != os.getpid() and not namespaces.isdisjoint(_namespaces(pid))]
    return [process for process in (Process(pid, _started(pid)) for pid in there) if process.started]


def namespace(pid: int, kind: str) -> str:
    """The file that stands for a process's namespace of a kind (`net`, `mnt`)."""
    return f"{_PROC}/{pid}/ns/{kind}"


def join_parents_mounts() -> None:
    """Leave a mount namespace that was made for this command alone, as `ip netns exec` makes one: what is mounted in it
    ends with the command. Its network namespace stays the one that the command was called in."""
    mounts = namespace(os.getppid(), "mnt")
    try:
        if os.path.samefile(mounts, namespace(os.getpid(), "mnt")):
            return
        fd = os.open(mounts, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # the parent has ended, or is out of sight
        return
    folder = os.getcwd()
    sandbox.libc("setns", fd, sandbox.CLONE_NEWNS)
    os.close(fd)
    os.chdir(folder)


def _namespaces(pid: int) -> set[tuple[int, int]]:
    try:
        both = [os.stat(namespace(pid, kind)) for kind in ("net", "mnt")]
    except OSError:  # it has ended
        return set()
    return {(status.st_dev, status.st_ino) for status in both}


def _started(pid: int) -> int:
    """When a process started; 0 when it has ended, also when nobody has asked for its exit code yet."""
    try:
        with open(f"{_PROC}/{pid}/stat") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if state == _ZOMBIE else int(fields[18])
