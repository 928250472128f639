"""The process that holds a test's node: a network and a mount namespace of its own, ended by end of file on stdin.

Run as a script with `--pids` for a PID namespace too (for daemons with children: when its first process
ends, the kernel ends all of them), and with `--cgroup NAME` besides for a cgroup namespace: what runs inside sees the
cgroup of that name as the root of each hierarchy, and the cgroup is removed when everything has ended. Prints the PID
whose namespaces are the node, then waits. What the tests write to /run, /var/lib/cni, /etc/cni and /opt/cni lands on
tmpfs that nobody else sees, so the machine that runs them is not touched, and nothing has to be cleaned up when a test
is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
CLONE_NEWPID = 0x20000000
CLONE_NEWCGROUP = 0x02000000
MNT_DETACH = 2
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG = 1

CGROUPS = "/sys/fs/cgroup"
REMOVAL_SECONDS = 30.0
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


def hierarchies(top: str = CGROUPS) -> list[str]:
    """Where cgroups are made: every controller's folder with cgroup v1, the only one with v2."""
    if os.path.exists(f"{top}/cgroup.procs"):
        return [top]
    folders = [entry.path for entry in os.scandir(top) if entry.is_dir(follow_symlinks=False)]
    return [folder for folder in folders if os.path.exists(f"{folder}/cgroup.procs")]


def join_cgroup(name: str) -> None:
    """Make the cgroup in every hierarchy, move there, and let it be the root of what is seen from now on."""
    for hierarchy in hierarchies():
        folder = f"{hierarchy}/{name}"
        os.makedirs(folder)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # empty in a new one, which then takes no process
            if os.path.exists(f"{hierarchy}/{setting}"):
                copy(f"{hierarchy}/{setting}", f"{folder}/{setting}")
        with open(f"{folder}/cgroup.procs", "w") as file:
            file.write("0")
    check(libc.unshare(CLONE_NEWCGROUP), "unshare the cgroup namespace")


def copy(source: str, target: str) -> None:
    with open(source) as file:
        text = file.read()
    with open(target, "w") as file:
        file.write(text)


def show_cgroup(name: str, machine: str) -> None:
    """Mount the cgroup of that name where each hierarchy is expected; the whole ones are at `machine`."""
    found = hierarchies(machine)
    if found == [machine]:
        mount(f"{machine}/{name}", CGROUPS, None, MS_BIND)
        return
    mount("tmpfs", CGROUPS, "tmpfs", data="mode=755")
    for entry in os.scandir(machine):
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), f"{CGROUPS}/{entry.name}")
    for folder in found:
        target = CGROUPS + folder.removeprefix(machine)
        os.mkdir(target)
        mount(f"{folder}/{name}", target, None, MS_BIND)


def remove_cgroup(name: str) -> bool:
    """Remove what is left of a cgroup in every hierarchy; whether that could be done, which is not while processes end."""
    for hierarchy in hierarchies():
        top = f"{hierarchy}/{name}"
        for folder, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                return False
    return True


def build(*, new_proc: bool, cgroup: str = "") -> None:
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
    mount(CGROUPS, "/run/.cgroup", None, MS_BIND | MS_REC)
    if cgroup:  # runc looks at each mount of cgroups, and is misled by those that show the machine's
        check(libc.umount2(b"/sys", MNT_DETACH), "umount /sys")
    mount("sysfs", "/sys", "sysfs")
    if cgroup:
        show_cgroup(cgroup, "/run/.cgroup")
        check(libc.umount2(b"/run/.cgroup", MNT_DETACH), "umount /run/.cgroup")
    else:
        mount("/run/.cgroup", CGROUPS, None, MS_BIND | MS_REC)


def wait_for_end_of_input() -> None:
    while os.read(0, 4096):
        pass


def hold(*, pids: bool, cgroup: str) -> None:
    """Make the node, print its PID, and return when it has ended."""
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
        if cgroup:
            join_cgroup(cgroup)
        build(new_proc=True, cgroup=cgroup)
        os.write(tell, b"1")
        wait_for_end_of_input()
        os._exit(0)
    os.close(tell)
    if not os.read(ready, 1):
        raise SystemExit("the node's first process failed")
    print(child, flush=True)
    os.waitpid(child, 0)


def main() -> None:
    pids = "--pids" in sys.argv
    if "--cgroup" not in sys.argv:
        hold(pids=pids, cgroup="")
        return
    # The cgroup is removed from outside the node, where it can be seen.
    cgroup = sys.argv[sys.argv.index("--cgroup") + 1]
    inside = os.fork()
    if inside == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        hold(pids=pids, cgroup=cgroup)
        return
    os.waitpid(inside, 0)
    deadline = time.monotonic() + REMOVAL_SECONDS
    while not remove_cgroup(cgroup) and time.monotonic() < deadline:
        time.sleep(0.05)


if __name__ == "__main__":
    main()
