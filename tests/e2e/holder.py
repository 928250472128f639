"""The process that holds a test's node: a network and a mount namespace of its own, ended by end of file on stdin.

Run as a script with `--pids` for a PID namespace too (for daemons with children: when its first process
ends, the kernel ends all of them). Prints the PID whose namespaces are the node, then waits. What the tests
write to /run, /var/lib/cni, /etc/cni and /opt/cni lands on tmpfs that nobody else sees, so the machine that runs
them is not touched, and nothing has to be cleaned up when a test is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
CLONE_NEWPID = 0x20000000
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG = 1

PRIVATE = ("/run", "/var/lib/cni", "/etc/cni", "/opt/cni")

libc = ctypes.CDLL(None, use_errno=True)


def check(status: int, doing: str) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), f"{doing}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    check(libc.mount(*encoded, flags, data.encode() if data else None), f"mount {source} on {target}")


def private_folder(path: str, hold: str) -> None:
    """An empty tmpfs at `path`. When nothing is there to mount on, its parent is replaced by a copy made of mounts."""
    if not os.path.isdir(path):
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            private_folder(parent, hold)
        else:
            before = f"{hold}/{parent.strip('/').replace('/', '-')}"
            os.mkdir(before)
            mount(parent, before, None, MS_BIND | MS_REC)
            mount("tmpfs", parent, "tmpfs", data="mode=755")
            for entry in os.scandir(before):
                graft(entry, os.path.join(parent, entry.name))
        os.mkdir(path)
    mount("tmpfs", path, "tmpfs", data="mode=755")


def graft(entry: os.DirEntry[str], target: str) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), target)
        return
    if entry.is_dir():
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    mount(entry.path, target, None, MS_BIND | MS_REC)


def build(*, new_proc: bool) -> None:
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/run", "tmpfs", data="mode=755")
    os.makedirs("/run/netns")
    os.makedirs("/run/lock")
    os.mkdir("/run/.before")
    for path in PRIVATE[1:]:
        private_folder(path, "/run/.before")
    if new_proc:
        mount("proc", "/proc", "proc")
    # sysfs shows the network devices of the namespace it was mounted in. The cgroups stay the machine's.
    os.mkdir("/run/.cgroup")
    mount("/sys/fs/cgroup", "/run/.cgroup", None, MS_BIND | MS_REC)
    mount("sysfs", "/sys", "sysfs")
    mount("/run/.cgroup", "/sys/fs/cgroup", None, MS_BIND | MS_REC)


def wait_for_end_of_input() -> None:
    while os.read(0, 4096):
        pass


def main() -> None:
    pids = "--pids" in sys.argv
    check(libc.unshare(CLONE_NEWNS | CLONE_NEWNET | (CLONE_NEWPID if pids else 0)), "unshare")
    if not pids:
        build(new_proc=False)
        print(os.getpid(), flush=True)
        wait_for_end_of_input()
        return
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as the namespace's init it inherits orphans
        build(new_proc=True)
        os.write(tell, b"1")
        wait_for_end_of_input()
        os._exit(0)
    os.close(tell)
    if not os.read(ready, 1):
        raise SystemExit("the node's first process failed")
    print(child, flush=True)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
