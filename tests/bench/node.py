"""A node of the benchmark: a network and a mount namespace with pods in it, and the process that calls plugins there.

    python -I -S node.py PREFIX

It makes a data directory whose path begins with PREFIX and tells the path in a line of JSON. Then it reads one
request a line and answers with one line; what it can do are the functions in `ANSWERS`.
A call is made as a CNI runtime makes it: the configuration through a pipe, stdout and stderr read to their
ends, the exit awaited. The time is that of the whole process. It is started with posix_spawn (vfork), so
that the size of this process does not count.

At the end of its input, which is also the end of whoever started it, it removes the directory and ends.
Nothing else of it is outside its namespaces.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
PR_SET_CHILD_SUBREAPER = 36

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


def call(argv: list[str], env: dict[str, str], stdin: str) -> dict[str, Any]:
    """Run a program; its time is from before its start until its output has ended and it has exited."""
    ours, theirs = [], []
    for inheritable in (0, 1, 1):
        ends = os.pipe()
        theirs.append(ends[inheritable])
        ours.append(ends[1 - inheritable])
    # The pipe holds 64 KiB, so the configuration can be there before the clock starts.
    os.write(ours[0], stdin.encode())
    os.close(ours[0])
    actions = [(os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate(theirs)]
    start = time.perf_counter_ns()
    pid = os.posix_spawn(argv[0], argv, env, file_actions=actions)
    for end in theirs:
        os.close(end)
    out, err = read_all(ours[1]), read_all(ours[2])
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    taken = time.perf_counter_ns() - start
    await_helpers()
    return {"seconds": taken / 1e9, "status": status, "stdout": out, "stderr": err}


def read_all(fd: int) -> str:
    data = b""
    while chunk := os.read(fd, 65536):
        data += chunk
    os.close(fd)
    return data.decode("utf-8", "replace")


def await_helpers() -> None:
    """What a call has left running in the background must not slow the next one."""
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass


ANSWERS: dict[str, Callable[..., Any]] = {"make_pods": make_pods, "call": call}


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    gc.disable()
    folder, prefix = os.path.split(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as data_dir:
        become_node()
        try:
            answer(data_dir)
            for line in sys.stdin:
                name, arguments = json.loads(line)
                answer(ANSWERS[name](**arguments))
        except BrokenPipeError:
            pass  # the benchmark was killed


def answer(value: Any) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")


if __name__ == "__main__":
    main()
