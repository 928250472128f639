"""Where a lab lives on the machine: one folder, with the lab's namespaces pinned below it.

    /run/cnikit-lab/NAME.lock               held by whoever changes the lab
    /run/cnikit-lab/NAME.log                what the processes of a lab said that did not come up
    /run/cnikit-lab/NAME/state.json         what it is (lab_state.py)
    /run/cnikit-lab/NAME/shared/            what every node sees: nodes.json, net.d/
    /run/cnikit-lab/NAME/net/underlay       network namespaces, pinned by a bind mount as `ip netns` does it
    /run/cnikit-lab/NAME/net/node1/self     ... of a node; beside it those of its pods, which are its /run/netns
    /run/cnikit-lab/NAME/mnt/node1          a node's mount namespace, pinned the same way
    /run/cnikit-lab/NAME/node1/run/         the node's own /run
    /run/cnikit-lab/NAME/node1/var/         ... and /var/lib/cni

No process has to live for a namespace to stay, and nothing has to be remembered for it to be found: whatever is
mounted below the folder, and whatever runs in a namespace that is pinned there, is the lab's. So `release` takes
away all of it wherever its maker was killed.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from errno import EINVAL

from cli import lab_process, sandbox
from cli.sandbox import CLONE_NEWNET, CLONE_NEWNS, MS_BIND, MS_MOVE, MS_PRIVATE, MS_REC, MS_SHARED, mount, unmount

ROOT = "/run/cnikit-lab"
# Where a node finds what all nodes see.
SHARED = "/run/cnikit-lab"
NODES_FILE = f"{SHARED}/nodes.json"
NETWORKS = "/etc/cni/net.d"
LEASES = "/var/lib/cni"

_SECONDS = 10.0


class Space:
    """A lab's folder and namespaces. Making one touches nothing."""

    def __init__(self, name: str) -> None:
        self.folder = f"{ROOT}/{name}"
        self.log = f"{ROOT}/{name}.log"
        self.lock = f"{ROOT}/{name}.lock"
        self.shared = f"{self.folder}/shared"

    # Paths

    def underlay(self) -> str:
        return f"{self.folder}/net/underlay"

    def net(self, node: str) -> str:
        """A node's network namespace."""
        return f"{self.folder}/net/{node}/self"

    def mnt(self, node: str) -> str:
        """A node's mount namespace."""
        return f"{self.folder}/mnt/{node}"

    def pod(self, node: str, pod: str) -> str:
        """A pod's network namespace, as the machine sees it."""
        return f"{self.folder}/net/{node}/{pod}"

    def run(self, node: str) -> str:
        """The folder that a node has as /run, as the machine sees it."""
        return f"{self.folder}/{node}/run"

    def var(self, node: str) -> str:
        """The folder that a node has as /var/lib/cni."""
        return f"{self.folder}/{node}/var"

    def process_log(self, name: str) -> str:
        """What a process of the lab says."""
        return f"{self.folder}/{name}.log"

    # Making

    def exists(self) -> bool:
        """Whether there is anything of the lab."""
        return os.path.lexists(self.folder)

    def prepare(self, nodes: dict[str, list[str]]) -> None:
        """The folders, and the network namespaces of the underlay, the nodes and their pods (by node)."""
        for folder in (f"{self.shared}/net.d", f"{self.folder}/net", f"{self.folder}/mnt"):
            os.makedirs(folder)
        # Others may take copies of the machine's mounts while the lab is there (a container, a service that starts).
        # A shared mount is one of which unmounting reaches the copies; a mount namespace is pinned in no such one.
        for name, propagation in (("net", MS_SHARED), ("mnt", MS_PRIVATE)):
            mount("cnikit-lab", f"{self.folder}/{name}", "tmpfs", data="mode=755")
            mount("none", f"{self.folder}/{name}", flags=propagation)
        paths = [self.underlay()]
        for node, pods in nodes.items():
            for folder in (f"{self.folder}/net/{node}", f"{self.run(node)}/netns", f"{self.run(node)}/cnikit-lab"):
                os.makedirs(folder)
            os.makedirs(self.var(node))
            paths += [self.net(node), *(self.pod(node, pod) for pod in pods)]

        def pin() -> None:
            for path in paths:
                sandbox.pin_netns(path)

        sandbox.in_child(pin)

    def build_nodes(self, nodes: list[str]) -> None:
        """The nodes' mount namespaces, side by side."""
        sandbox.side_by_side(functools.partial(self._build_node, node) for node in nodes)

    def _build_node(self, node: str) -> None:
        """Become a node whose mount namespace is pinned."""
        os.close(os.open(self.mnt(node), os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        sandbox.enter(self.net(node))
        unshare_pinned(self.mnt(node))
        self._mount_node(node)

    def _mount_node(self, node: str) -> None:
        """Make this mount namespace one in which the node has its own /run, /var/lib/cni, network lists and network devices."""
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        run = self.run(node)
        mount(run, run, flags=MS_BIND)
        mount(f"{self.folder}/net/{node}", f"{run}/netns", flags=MS_BIND | MS_REC)
        mount(self.shared, f"{run}/cnikit-lab", flags=MS_BIND)
        place(f"{self.shared}/net.d", NETWORKS)
        place(self.var(node), LEASES)
        mount("sysfs", "/sys", "sysfs")
        # Whatever else is mounted below /run would be held by this namespace: others' namespaces, for example.
        for point in reversed(mount_points("/run/")):
            if point != run and not point.startswith(f"{run}/"):
                unmount(point)
        mount(run, "/run", flags=MS_MOVE)

    def enter(self, node: str, pod: str = "") -> None:
        """Move this process, which must have one thread, into a node, or into a pod's network on its node."""
        net = self.pod(node, pod) if pod else self.net(node)
        fds = [
            (os.open(path, os.O_RDONLY | os.O_CLOEXEC), kind)
            for path, kind in ((net, CLONE_NEWNET), (self.mnt(node), CLONE_NEWNS))
        ]
        for fd, kind in fds:
            sandbox.libc("setns", fd, kind)
            os.close(fd)
        os.chdir("/")

    # Taking away

    def processes(self, node: str = "") -> list[lab_process.Process]:
        """Everything that runs in one of its namespaces, or in one of a node and its pods."""
        pins = set()
        for mounted in self._mounts():
            if node and mounted != self.mnt(node) and not mounted.startswith(f"{self.folder}/net/{node}/"):
                continue
            status = os.stat(mounted)
            pins.add((status.st_dev, status.st_ino))
        return lab_process.inside(pins)

    def end_processes(self, node: str = "") -> None:
        """Kill everything that runs in the lab, or on a node and in its pods."""
        deadline = time.monotonic() + _SECONDS
        while found := self.processes(node):  # again: one may just have started another
            for process in found:
                process.kill()
            for process in found:
                process.await_end(deadline)

    def release(self) -> None:
        """End all processes of the lab and remove what it was made of; what is not there is fine."""
        self.end_processes()
        for mounted in reversed(self._mounts()):
            unmount(mounted)
        if os.path.lexists(self.folder):
            shutil.rmtree(self.folder)

    def _mounts(self) -> list[str]:
        return mount_points(f"{self.folder}/")


def mount_points(prefix: str) -> list[str]:
    """Where something is mounted below a path, in the order of mounting. Not what another mount covers."""
    with open("/proc/self/mountinfo") as file:
        fields = [line.split(" ") for line in file]
    return [point for _, _, device, _, point, *_ in fields if point.startswith(prefix) and _device(point) == device]


def _device(path: str) -> str:
    """The device of what is at a path, as mountinfo has it; empty when nothing is."""
    try:
        device = os.stat(path).st_dev
    except OSError:
        return ""
    return f"{os.major(device)}:{os.minor(device)}"


def unshare_pinned(path: str) -> None:
    """Move this process into a mount namespace of its own that stays at a path, where there is a file.

    A namespace is pinned from another one, and the kernel allows that (EINVAL) only when its ID is the higher one, so
    that no two hold each other. Linux 6.18 hands IDs out in a batch for each CPU: one that is made on the CPU of the
    other one is certain to have the higher ID, so all CPUs are tried.
    """
    pid = os.getpid()
    ask_read, ask = os.pipe()
    answer, answer_write = os.pipe()

    def pin() -> None:
        os.close(ask)
        while os.read(ask_read, 1):
            try:
                mount(lab_process.namespace(pid, "mnt"), path, flags=MS_BIND)
            except OSError as error:
                os.write(answer_write, bytes([error.errno or EINVAL]))
            else:
                os.write(answer_write, b"\0")

    outside = sandbox.Child(pin)
    os.close(answer_write)
    usable = os.sched_getaffinity(0)
    failed = EINVAL
    try:
        for cpus in (usable, *({cpu} for cpu in sorted(usable))):
            os.sched_setaffinity(0, cpus)
            sandbox.libc("unshare", CLONE_NEWNS)
            os.write(ask, b"?")
            (failed,) = os.read(answer, 1)
            if failed != EINVAL:
                break
    finally:
        os.sched_setaffinity(0, usable)
        for fd in (ask_read, ask, answer):
            os.close(fd)
        outside.result()
    if failed:
        raise OSError(failed, f"pin a mount namespace at {path}: {os.strerror(failed)}")


def place(source: str, target: str) -> None:
    """Show a folder at a path, for this mount namespace only: what is missing there is not made on the machine."""
    if not os.path.isdir(target):
        make_folder(target)
    mount(source, target, flags=MS_BIND)


def make_folder(path: str) -> None:
    """A folder that only this mount namespace sees: the one above it becomes a copy made of mounts."""
    above = os.path.dirname(path)
    if not os.path.isdir(above):
        make_folder(above)
    else:
        before = os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        names = os.listdir(above)
        mount("cnikit-lab", above, "tmpfs", data="mode=755")
        for name in names:
            graft(f"/proc/self/fd/{before}/{name}", f"{above}/{name}")
        os.close(before)
    os.mkdir(path)


def graft(source: str, target: str) -> None:
    """Show at `target` what is at `source`."""
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    mount(source, target, flags=MS_BIND | MS_REC)
