"""A node of the benchmark: a network and a mount namespace with pods in it, and the process that calls plugins there.

    python -I -S node.py PREFIX

It makes a folder for leases whose path begins with PREFIX and tells the path in a line of JSON. Then it reads one
request a line and answers with one line; what it can do are the functions in `ANSWERS`.
A call is made as a CNI runtime makes it: the configuration through a pipe, stdout and stderr read to their
ends, the exit awaited. The time is that of the whole process. It is started with posix_spawn (vfork), so
that the size of this process does not count. An agent is started here too, so that it is in these namespaces.

At the end of its input, which is also the end of whoever started it, it stops the agent, removes the folder
and ends. Nothing else of it is outside its namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG = 1
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_TOPDIR_FL = 0x00020000
PR_SET_CHILD_SUBREAPER = 36

AGENT_LOG = "/run/agent.log"
AGENT_NOTIFY = "/run/agent.notify"
START_SECONDS = 20.0
QUIET_SECONDS = 60.0
LINES_SECONDS = 5.0
# A thread with something to do: it runs, or the kernel has it wait for a grace period.
BUSY = (b"R", b"D")

libc = ctypes.CDLL(None, use_errno=True)


def check(status: int, doing: str) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), f"{doing}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    names = [None if text is None else text.encode() for text in (source, target, kind)]
    check(libc.mount(*names, flags, None), f"mount {source} on {target}")


def become_node() -> None:
    """Namespaces of its own. /run is empty: our records, the pods' namespaces and xtables' lock live there."""
    check(libc.unshare(CLONE_NEWNS | CLONE_NEWNET), "unshare")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/run", "tmpfs", 0)
    os.mkdir("/run/netns")
    check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def spread_below(folder: str) -> None:
    """Have ext4 put a new folder in here anywhere on the disk.

    ext4 leaves inodes alone that were freed in the last minutes, and making a file steps over each of them in its
    part of the disk. After thousands of files are removed, by another benchmark or by tests, that takes 1 ms.
    """
    fd = os.open(folder, os.O_RDONLY)
    try:
        flags = int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)), sys.byteorder)
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, (flags | FS_TOPDIR_FL).to_bytes(8, sys.byteorder))
    except OSError:
        pass  # another file system
    finally:
        os.close(fd)


def make_pods(names: list[str]) -> None:
    """Network namespaces at /run/netns/NAME."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    for name in names:
        path = f"/run/netns/{name}"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        check(libc.unshare(CLONE_NEWNET), "unshare")
        mount("/proc/self/ns/net", path, None, MS_BIND)
        check(libc.setns(own, CLONE_NEWNET), "setns")
    os.close(own)


def be_host(host_name: str) -> None:
    """Be another host than this machine: it has another name."""
    check(libc.unshare(CLONE_NEWUTS), "unshare")
    socket.sethostname(host_name)


# Calls


class Program:
    """A program that was started, with its input in a pipe and the pipes of its output."""

    def __init__(self, argv: list[str], env: Mapping[str, str], stdin: str) -> None:
        ours, theirs = [], []
        for inheritable in (0, 1, 1):
            ends = os.pipe()
            theirs.append(ends[inheritable])
            ours.append(ends[1 - inheritable])
        # The pipe holds 64 KiB, so the configuration can be there before the clock starts.
        os.write(ours[0], stdin.encode())
        os.close(ours[0])
        self._out, self._err = ours[1:]
        actions = [(os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate(theirs)]
        self.start = self.end = time.perf_counter_ns()
        self.status = -1
        self.pid = os.posix_spawn(argv[0], argv, env, file_actions=actions)
        for end in theirs:
            os.close(end)

    def ended(self, status: int) -> None:
        """It was waited for, just now."""
        self.end = time.perf_counter_ns()
        self.status = os.waitstatus_to_exitcode(status)

    def output(self) -> tuple[str, str]:
        return read_all(self._out), read_all(self._err)

    def answer(self, stdout: str, stderr: str) -> dict[str, Any]:
        return {"seconds": (self.end - self.start) / 1e9, "status": self.status, "stdout": stdout, "stderr": stderr}


def call(argv: list[str], env: dict[str, str], stdin: str, *, settle: bool = True) -> dict[str, Any]:
    """Run a program; its time is from before its start until its output has ended and it has exited.

    `settle`: then wait for what it has left running, here or in the agent: that must not slow the next one.
    """
    program = Program(argv, env, stdin)
    output = program.output()
    program.ended(os.waitpid(program.pid, 0)[1])
    if settle:
        await_quiet()
    return program.answer(*output)


def call_at_once(calls: list[tuple[list[str], dict[str, str], str]]) -> dict[str, Any]:
    """Start all as fast as this process can: the time until the last has exited, and the answer of each."""
    running: dict[int, Program] = {}
    programs = []
    begin = time.perf_counter_ns()
    for argv, env, stdin in calls:
        programs.append(Program(argv, env, stdin))
        running[programs[-1].pid] = programs[-1]
        while reap(running, os.WNOHANG):
            pass
    while running:
        reap(running, 0)
    seconds = (max(program.end for program in programs) - begin) / 1e9
    answers = [program.answer(*program.output()) for program in programs]
    await_quiet()
    return {"seconds": seconds, "answers": answers}


def reap(running: dict[int, Program], options: int) -> bool:
    """Wait for the next of our programs to exit; false when `options` say not to wait."""
    pid, status = os.waitpid(0, options)
    if pid in running:
        running.pop(pid).ended(status)
    return pid != 0


def read_all(fd: int) -> str:
    data = b""
    while chunk := os.read(fd, 65536):
        data += chunk
    os.close(fd)
    return data.decode("utf-8", "replace")


def await_quiet() -> None:
    """Wait until nothing runs here any more but ourselves, and in the agent nothing has anything to do."""
    try:
        while True:
            os.waitpid(0, 0)  # of our process group, which the agent is not in
    except ChildProcessError:
        agent.await_idle()


def await_idle(pid: int) -> None:
    """Wait until none of a process's threads has anything to do, this one left out."""
    deadline = time.monotonic() + QUIET_SECONDS
    while any(state in BUSY for state in states(pid)):
        if time.monotonic() > deadline:
            raise SystemExit(f"process {pid}: expected it to be done within {QUIET_SECONDS:g} s")
        time.sleep(0.0005)


def states(pid: int) -> list[bytes]:
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/stat", "rb", buffering=0) as file:
                state = file.read(512).rpartition(b")")[2][1:2]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if int(thread) != os.getpid():
            found.append(state)
    return found


# The agent


class Agent:
    """The node's agent, while there is one."""

    def __init__(self) -> None:
        self._pid = 0
        self._log = -1
        self._read = 0  # bytes of the log

    def start(self, argv: list[str], env: dict[str, str]) -> None:
        """Start it and return when it is ready."""
        self._log = os.open(AGENT_LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind(AGENT_NOTIFY)
            self._pid = os.fork()
            if self._pid == 0:
                self._become(argv, {**env, "NOTIFY_SOCKET": AGENT_NOTIFY})
            ended = os.pidfd_open(self._pid)
            ready, _, _ = select.select([notices.fileno(), ended], [], [], START_SECONDS)
            os.close(ended)
            if notices.fileno() not in ready or notices.recv(64) != b"READY=1":
                said = " ".join(self._more_lines()) or "no word"
                raise SystemExit(f"{' '.join(argv)}: expected it to be ready, found {said}")

    def _become(self, argv: list[str], env: dict[str, str]) -> None:
        """In the child."""
        try:
            os.setpgid(0, 0)
            check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0), "prctl")
            null = os.open(os.devnull, os.O_RDWR)
            for fd, number in ((null, 0), (null, 1), (self._log, 2)):
                os.dup2(fd, number)
            os.execve(argv[0], argv, env)  # noqa: S606 - no shell is wanted
        finally:
            os._exit(127)

    def stop(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def lines(self, calls: int) -> list[str]:
        """What it has said since the last time: all lines, once those of so many calls are there, or will never be."""
        deadline = time.monotonic() + LINES_SECONDS
        said = self._more_lines()
        while sum('"outcome"' in line for line in said) < calls and time.monotonic() < deadline:
            time.sleep(0.01)
            said += self._more_lines()
        return said

    def _more_lines(self) -> list[str]:
        data = os.pread(self._log, 1 << 24, self._read)
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode("utf-8", "replace").splitlines()

    def await_idle(self) -> None:
        if self._pid:
            await_idle(self._pid)

    def usage(self) -> dict[str, int]:
        """KiB of resident memory now and at most, open files, threads."""
        with open(f"/proc/{self._pid}/status") as file:
            status = dict(line.split(":", 1) for line in file)
        memory, peak, threads = (int(status[name].split()[0]) for name in ("VmRSS", "VmHWM", "Threads"))
        return {"resident": memory, "peak": peak, "files": len(os.listdir(f"/proc/{self._pid}/fd")), "threads": threads}


agent = Agent()


ANSWERS: dict[str, Callable[..., Any]] = {
    "make_pods": make_pods,
    "be_host": be_host,
    "call": call,
    "call_at_once": call_at_once,
    "await_quiet": await_quiet,
    "start_agent": agent.start,
    "agent_lines": agent.lines,
    "agent_usage": agent.usage,
}


def serve(answers: dict[str, Callable[..., Any]]) -> None:
    """Be a node until the end of stdin."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    gc.disable()
    folder, prefix = os.path.split(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as own:
        spread_below(own)
        data_dir = f"{own}/leases"
        os.mkdir(data_dir)
        become_node()
        try:
            answer(data_dir)
            for line in sys.stdin:
                name, arguments = json.loads(line)
                answer(answers[name](**arguments))
        except BrokenPipeError:
            pass  # the benchmark was killed
        finally:
            agent.stop()


def answer(value: Any) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")


if __name__ == "__main__":
    serve(ANSWERS)
