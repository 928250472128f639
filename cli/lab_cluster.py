"""A cluster on one machine: built, looked at, broken and taken down.

    with Lab.up(Plan(name="mine"), bin_dir) as lab:      # the tests' way: down at the end
        lab.pods[0].run("ping", "-c1", lab.pods[1].addresses[0])

    lab = Lab.find("mine")                               # the command's: each call is another process

What a node is to the programs in it: a network namespace, a mount namespace with a /run and /var/lib/cni of its own,
and a link to the underlay. Agents and plugins are the real ones and know nothing of the lab.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from cli import lab_ping, lab_process, lab_state, lab_underlay, sandbox
from cli.lab_plan import NETWORK, LabError, Plan
from cli.lab_space import LEASES, NETWORKS, NODES_FILE, ROOT, Space
from cni import addr, netlist
from cni.cache import Attachment
from cni.errors import TRY_AGAIN, CniError
from cni.lock import Lock
from cni.names import digest
from cni.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cli.lab_ping import Answer, Target
    from cli.lab_plan import NodePlan, PodPlan
    from cli.lab_state import State

LIST_FILE = f"{NETWORKS}/10-{NETWORK}.conflist"
# How long agents may take until pods can be attached, and the network until they reach each other.
_READY_SECONDS = 30.0
_PING_SECONDS = 0.5
_PAUSE = 0.02
_INHERITED = ("PATH", "PYTHONDONTWRITEBYTECODE")


class Lab:
    """One lab. `nodes` and `pods` are what is in it."""

    def __init__(self, space: Space, state: State) -> None:
        self.space = space
        self.state = state
        self.nodes = [LabNode(self, node) for node in state.plan.nodes]
        self.pods = [pod for node in self.nodes for pod in node.pods]

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exc: object) -> None:
        self.down()

    @classmethod
    def up(cls, plan: Plan, bin_dir: str, command: Sequence[str] = ()) -> Lab:
        """Build it, with the plugins in a folder and the agent of the program `command` (this one). It is there when
        every pod reaches every other one; else nothing of it is left, and the error says where the log is."""
        command = list(command) or own_command()
        space = Space(plan.name)
        refuse(plan, bin_dir, command)
        with Lock(space.lock, time.monotonic, transient=True):
            if space.exists():
                raise LabError(
                    f"lab {plan.name} is there already, whole or in part: `cnikit lab down --name {plan.name}` removes "
                    "it; another --name makes another one beside it"
                )
            os.makedirs(space.folder)
            lab = cls(space, lab_state.State(plan, bin_dir))
            try:
                lab._build(command)
            except BaseException as error:
                where = lab._keep_log()
                space.release()
                if isinstance(error, CniError | LabError | OSError | sandbox.SandboxError):
                    raise LabError(
                        f"lab {plan.name} did not come up, and nothing of it is left: {error}; see {where}"
                    ) from error
                raise
        if os.path.exists(space.log):
            os.unlink(space.log)  # of an earlier try
        return lab

    @classmethod
    def find(cls, name: str) -> Lab:
        """The lab of that name. LabError when there is none, or it was left half built."""
        space = Space(name)
        if not space.exists():
            others = ", ".join(names()) or "none at all"
            raise LabError(f"expected a lab {name}, found {others}: `cnikit lab up --name {name}` makes it")
        state = lab_state.read(space.folder)
        if state is None or not state.complete:
            raise LabError(
                f"lab {name} is half built: wait for its `lab up`, or remove it: `cnikit lab down --name {name}`"
            )
        return cls(space, state)

    def node(self, name: str) -> LabNode:
        """The node of that name. LabError names those that there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise LabError(f"expected a node of lab {self.state.plan.name}, found {name!r}; there are {spoken(self.nodes)}")

    def place(self, name: str) -> LabNode | Pod:
        """The node or pod of that name."""
        places: list[LabNode | Pod] = [*self.nodes, *self.pods]
        for place in places:
            if place.name == name:
                return place
        raise LabError(
            f"expected a node or pod of lab {self.state.plan.name}, found {name!r}; "
            f"there are {spoken(self.nodes)} and {spoken(self.pods)}"
        )

    def ping(
        self, size: int = 56, timeout: float = 2.0, places: Sequence[str] = ()
    ) -> tuple[list[Target], list[Answer]]:
        """Every pod asks every other one, of these nodes and pods if any are named."""
        for name in places:
            self.place(name)
        pods = [pod for pod in self.pods if not places or pod.name in places or pod.node in places]
        targets = [lab_ping.Target(pod.name, pod.node, pod.netns, tuple(pod.addresses)) for pod in pods]
        return targets, lab_ping.ask_all(targets, size, timeout)

    # Breaking it

    def kill(self, name: str) -> None:
        """A node is gone: what ran on it, and its link to the underlay. The list of members loses it, if there is one;
        etcd notices by the lease."""
        node = self.node(name)
        with self._changing():
            deadline = time.monotonic() + 10.0
            for process in self.space.processes(name):
                process.kill()
                process.await_end(deadline)
            lab_underlay.disconnect(self.space, name)
            self._set(killed=(*(one for one in self.state.killed if one != node.name), node.name))
            self._write_members()

    def partition(self, one: str, two: str) -> None:
        """Let nothing pass between two nodes on the underlay."""
        if self.node(one).name == self.node(two).name:
            raise LabError(f"expected two different nodes, found {one} twice")
        with self._changing():
            lab_underlay.cut(self.space, one, two)

    def heal(self, one: str, two: str) -> None:
        """Undo `partition`."""
        self.node(one), self.node(two)
        with self._changing():
            lab_underlay.heal(self.space, one, two)

    def down(self) -> None:
        """Take it away."""
        remove(self.state.plan.name)

    def _changing(self) -> Lock:
        return Lock(self.space.lock, time.monotonic, transient=True)

    # Building it

    def _build(self, command: Sequence[str]) -> None:
        plan, space = self.state.plan, self.space
        self.state.write(space.folder)
        space.prepare({node.name: [pod.name for pod in node.pods] for node in plan.nodes})
        self._write_shared()
        lab_underlay.build(plan, space)
        if plan.source == "etcd":
            self._start("etcd", _etcd(plan, space), lambda: sandbox.enter(space.underlay()))
        space.build_nodes([node.name for node in plan.nodes])
        for node in plan.nodes:
            argv = [*command, "agent", "--network", LIST_FILE, "--node-name", node.name]
            self._start(node.name, argv, lambda name=node.name: space.enter(name))  # type: ignore[misc]
        deadline = time.monotonic() + _READY_SECONDS
        for lab_node in self.nodes:
            self._await(lab_node.is_ready, deadline, f"the agent of {lab_node.name} to listen and to have a subnet")
        self._attach(deadline)
        self._await(lambda: not self._lost(), deadline, "every pod to reach every other one", self._lost)
        self._set(complete=True)

    def _write_shared(self) -> None:
        with open(f"{self.space.shared}/net.d/{os.path.basename(LIST_FILE)}", "w") as file:
            json.dump(self.state.plan.network_list(NODES_FILE), file, indent=2)
        self._write_members()

    def _write_members(self) -> None:
        if self.state.plan.source != "static":
            return
        members = [node.member().described() for node in self.state.plan.nodes if node.name not in self.state.killed]
        path = f"{self.space.shared}/{os.path.basename(NODES_FILE)}"
        with open(f"{path}.new", "w") as file:
            json.dump({"nodes": members}, file, indent=2)
        os.replace(f"{path}.new", path)

    def _start(self, name: str, argv: Sequence[str], enter: Callable[[], object]) -> None:
        process = lab_process.start(argv, environment(), self.space.process_log(name), enter)
        self._set(processes={**self.state.processes, name: process})

    def _attach(self, deadline: float) -> None:
        """ADD for every pod: the nodes side by side, the pods of a node one after the other."""
        children = [sandbox.Child(lambda node=node: node.attach(deadline)) for node in self.nodes]  # type: ignore[misc]
        addresses: dict[str, list[str]] = {}
        for child in children:
            addresses |= child.result()
        self._set(addresses=addresses)

    def _lost(self) -> str:
        """The pairs of pods that do not reach each other; empty when all do."""
        _, answers = self.ping(timeout=_PING_SECONDS)
        return ", ".join(f"{one.source} -> {one.target} ({one.address})" for one in answers if one.seconds is None)

    def _await(
        self, condition: Callable[[], bool], deadline: float, what: str, found: Callable[[], str] | None = None
    ) -> None:
        while not condition():
            for name, process in self.state.processes.items():
                if not process.runs():
                    raise LabError(f"expected {what}, but {name}'s process has ended")
            if time.monotonic() >= deadline:
                raise LabError(
                    f"expected {what} within {_READY_SECONDS:g} s" + (f", found lost: {found()}" if found else "")
                )
            time.sleep(_PAUSE)

    def _set(self, **changes: Any) -> None:
        self.state = self.state.changed(**changes)
        self.state.write(self.space.folder)

    def _keep_log(self) -> str:
        """What the lab's processes said, in one file that stays."""
        with open(self.space.log, "w") as kept:
            for path in sorted(glob.glob(f"{self.space.folder}/*.log")):
                with open(path, errors="replace") as file:
                    kept.write(f"== {os.path.basename(path)}\n{file.read()}\n")
        return self.space.log


class LabNode:
    """A node of a lab."""

    def __init__(self, lab: Lab, plan: NodePlan) -> None:
        self._lab = lab
        self.plan = plan
        self.name = plan.name
        self.pods = [Pod(lab, pod) for pod in plan.pods]

    @property
    def netns(self) -> str:
        return self._lab.space.net(self.name)

    @property
    def addresses(self) -> list[str]:
        """Those on the underlay."""
        return [addr.unpack(packed) for packed, _ in self.plan.addresses.values()]

    @property
    def killed(self) -> bool:
        return self.name in self._lab.state.killed

    @property
    def agent(self) -> lab_process.Process:
        return self._lab.state.processes[self.name]

    def enter(self) -> None:
        """Move this process, which must have one thread, into the node."""
        self._lab.space.enter(self.name)

    def run(self, *argv: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a program on the node; its output."""
        return _run(self.enter, argv, timeout)

    def is_ready(self) -> bool:
        """Whether its agent listens, and has written down which subnet the node has."""
        run = f"{self._lab.space.run(self.name)}/cnikit"
        with socket.socket(socket.AF_UNIX) as client:
            listens = client.connect_ex(f"{run}/agent.sock") == 0
        return listens and os.path.exists(f"{run}/subnets/{NETWORK}.env")

    def attach(self, deadline: float) -> dict[str, list[str]]:
        """ADD for each of its pods, as `cnikit add` does it; their addresses. For a child: it stays on the node."""
        self.enter()
        runtime = Runtime([self._lab.state.bin_dir], environment(), time.monotonic, lambda _: None)
        network = netlist.load(NETWORKS, NETWORK, lambda _: None)
        found = {}
        for pod in self.pods:
            result = _add(runtime, network, f"/run/netns/{pod.name}", deadline)
            found[pod.name] = [ip["address"].partition("/")[0] for ip in result["ips"]]
        return found


class Pod:
    """A pod of a lab."""

    def __init__(self, lab: Lab, plan: PodPlan) -> None:
        self._lab = lab
        self.name = plan.name
        self.node = plan.node

    @property
    def netns(self) -> str:
        return self._lab.space.pod(self.node, self.name)

    @property
    def addresses(self) -> list[str]:
        return self._lab.state.addresses[self.name]

    def enter(self) -> None:
        """Move this process, which must have one thread, into the pod's network, on its node."""
        self._lab.space.enter(self.node, self.name)

    def run(self, *argv: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a program in the pod's network; its output."""
        return _run(self.enter, argv, timeout)


def remove(name: str) -> bool:
    """Take a lab away, also one that was left half built; whether there was one."""
    space = Space(name)
    if not any(map(os.path.lexists, (space.folder, space.log, space.lock))):
        return False
    with Lock(space.lock, time.monotonic, transient=True):
        space.release()
        if os.path.exists(space.log):
            os.unlink(space.log)
    try:
        os.rmdir(ROOT)
    except OSError:
        pass  # there are others
    return True


def names() -> list[str]:
    """The labs of this machine."""
    return sorted(entry.name for entry in os.scandir(ROOT) if entry.is_dir()) if os.path.isdir(ROOT) else []


def refuse(plan: Plan, bin_dir: str, command: Sequence[str]) -> None:
    """LabError when something that the lab needs is not there."""
    if os.geteuid() != 0:
        raise LabError("a lab needs root, to make network namespaces: run it with sudo")
    for program in (plan.backend, "host-local"):
        if not os.access(f"{bin_dir}/{program}", os.X_OK):
            where = bin_dir or "none beside cnikit"
            raise LabError(
                f"expected the plugin {program}, found none in {where}: `make dist` builds it, or give --bin-dir"
            )
    for path in (bin_dir, command[0]):
        if os.path.realpath(path).startswith(("/run/", f"{LEASES}/")):
            raise LabError(
                f"expected plugins and program outside of /run, which a node has for itself, found {path}: copy them elsewhere"
            )
    if plan.source == "etcd" and shutil.which("etcd") is None:
        raise LabError("--source etcd: expected the program etcd, found none on PATH: apt-get install etcd-server")


def own_command() -> list[str]:
    """The command line that starts this program's `cnikit`."""
    return [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "cli.main"]


def environment() -> dict[str, str]:
    """What programs of a lab inherit: nothing that is meant for an agent or a plugin of the machine."""
    inherited = {key: os.environ[key] for key in _INHERITED if key in os.environ}
    if not getattr(sys, "frozen", False):
        inherited["PYTHONPATH"] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return inherited


def spoken(places: Sequence[LabNode | Pod]) -> str:
    """The first of some names."""
    shown = [place.name for place in places[:6]]
    return ", ".join(shown) + (f" and {len(places) - 6} more" if len(places) > 6 else "")


def _add(runtime: Runtime, network: netlist.NetworkList, netns: str, deadline: float) -> dict[str, Any]:
    """ADD, again while the node has no subnet yet. The container ID is what `cnikit add` gives that namespace."""
    attachment = Attachment(f"cnitool-{digest(netns)[:10].hex()}", "eth0", netns)
    while True:
        try:
            return runtime.add(network, attachment)
        except CniError as error:
            if error.code != TRY_AGAIN or time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE)


def _etcd(plan: Plan, space: Space) -> list[str]:
    peer = "http://127.0.0.1:2380"  # of the underlay's namespace, so nobody else's
    return [
        "etcd", "--name", "lab", "--data-dir", f"{space.folder}/etcd",
        "--listen-client-urls", plan.etcd_url(), "--advertise-client-urls", plan.etcd_url(),
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"lab={peer}",
    ]  # fmt: skip


def _run(enter: Callable[[], None], argv: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    def run() -> tuple[int, str, str]:
        enter()
        ran = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout
        )
        return ran.returncode, ran.stdout, ran.stderr

    return subprocess.CompletedProcess(list(argv), *sandbox.in_child(run))
