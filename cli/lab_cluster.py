"""A cluster on one machine: built, looked at, broken and taken down.

    with Lab.up(Plan(name="mine"), bin_dir) as lab:      # the tests' way: down at the end
        lab.pods[0].run("ping", "-c1", lab.pods[1].addresses[0])

    lab = Lab.find("mine")                               # the command's: each call is another process

What a node is to the programs in it: a network namespace, a mount namespace with a /run and /var/lib/cni of its own,
and a link to the underlay. Agents and plugins are the real ones and know nothing of the lab.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import os
import time
from typing import TYPE_CHECKING, Any

from cli import lab_ping, lab_process, lab_programs, lab_state, lab_underlay, sandbox
from cli.lab_places import LabNode, Pod, spoken
from cli.lab_plan import ETCD, LabError, Plan
from cli.lab_space import NODES_FILE, ROOT, Space
from cni.errors import TRY_AGAIN, CniError
from cni.lock import Lock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from cli.lab_ping import Answer, Target
    from cli.lab_state import State

# How long agents may take until pods can be attached, and the network until they reach each other.
_READY_SECONDS = 30.0
_PING_SECONDS = 0.5
_PAUSE = 0.02
# So many pairs of pods are named in an error.
_NAMED = 4


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
        command = list(command) or lab_programs.own_command()
        space = Space(plan.name)
        lab_programs.refuse(plan, bin_dir, command)
        with _alone(space):
            if space.exists():
                raise LabError(
                    f"there is a lab named {plan.name} already, whole or in part: `cnikit lab down{option(plan.name)}` "
                    "removes it; another --name makes another one beside it"
                )
            os.makedirs(space.folder)
            lab = cls(space, lab_state.State(plan, bin_dir, command))
            try:
                lab._build()
            except (CniError, LabError, OSError, sandbox.SandboxError) as error:
                where = lab._keep_log()
                space.release()
                raise LabError(
                    f"lab {plan.name} did not come up, and nothing of it is left: {error}; see {where}"
                ) from error
            except BaseException:  # somebody has asked it to end
                space.release()
                raise
        if os.path.exists(space.log):
            os.unlink(space.log)  # of an earlier try
        return lab

    @classmethod
    def find(cls, name: str) -> Lab:
        """The lab of that name. LabError when there is none, or it was left half built."""
        space = Space(name)
        if not space.exists():
            others = ", ".join(names()) or "no lab at all"
            raise LabError(f"expected a lab named {name}, found {others}: `cnikit lab up{option(name)}` makes it")
        state = _whole(space, name)
        if not os.path.ismount(space.underlay()):
            raise LabError(
                f"expected the namespaces of lab {name} to be mounted below {space.folder}, found none: it was made in a "
                f"mount namespace that this command does not share: `cnikit lab down{option(name)}` removes it"
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
            f"there are the nodes {spoken(self.nodes)} and the pods {spoken(self.pods)}"
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
        with self._changing():
            node = self.node(name)
            self._set(killed=(*(one for one in self.state.killed if one != node.name), node.name))
            self.space.end_processes(name)
            lab_underlay.disconnect(self.space, name)
            self._write_members()

    def start(self, name: str) -> None:
        """A node that was killed is there again, with new pods in place of those it had; or one whose agent has ended,
        with those that it has. Returns when it reaches all that it can reach."""
        with self._changing():
            node = self.node(name)
            if not node.killed and node.agent.runs():
                raise LabError(f"expected a node that was killed or whose agent has ended, found {name} running")
            killed = node.killed
            if killed:
                sandbox.in_child(node.detach)
                node.forget_subnet()
                lab_underlay.connect(self.space, node.plan)
                self._set(killed=tuple(one for one in self.state.killed if one != name))
                self._write_members()
            deadline = time.monotonic() + _READY_SECONDS
            self._start_agents([node], deadline)
            if killed:
                self._attach([node], deadline)
            self._await_pings(deadline, [name])

    def partition(self, one: str, two: str = "") -> list[tuple[str, str]]:
        """Let nothing pass between two nodes on the underlay, or between a node and all others; the pairs. etcd counts
        as a node here."""
        pairs = self._pairs(one, two)
        with self._changing():
            lab_underlay.cut(self.space, pairs)
        return pairs

    def heal(self, one: str = "", two: str = "") -> list[tuple[str, str]]:
        """Undo `partition`: between two nodes, of one, or all; the pairs that were cut."""
        pairs = self._pairs(one, two) if one else None
        with self._changing():
            healed = [pair for pair in self.cuts() if pairs is None or pair in pairs or pair[::-1] in pairs]
            lab_underlay.heal(self.space, healed)
        return healed

    def cuts(self) -> list[tuple[str, str]]:
        """The pairs of nodes between which nothing passes, each once."""
        return lab_underlay.cuts(self.space)

    def down(self) -> None:
        """Take it away."""
        remove(self.state.plan.name)

    def _pairs(self, one: str, two: str) -> list[tuple[str, str]]:
        others = [ETCD] if self.state.plan.source == "etcd" else []
        for name in (one, two):
            if name and name not in others:
                self.node(name)
        if one == two:
            raise LabError(f"expected two different nodes, found {one} twice")
        others += [node.name for node in self.nodes]
        return [(one, other) for other in ([two] if two else others) if other != one]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Nobody else changes it meanwhile, and what they have changed before is known."""
        with _alone(self.space):
            self.state = _whole(self.space, self.state.plan.name)
            yield

    # Building it

    def _build(self) -> None:
        plan, space = self.state.plan, self.space
        self.state.write(space.folder)
        space.prepare({node.name: [pod.name for pod in node.pods] for node in plan.nodes})
        self._write_shared()
        lab_underlay.build(plan, space)
        if plan.source == "etcd":
            self._start("etcd", lab_programs.etcd(plan, space), lambda: sandbox.enter(space.underlay()))
        space.build_nodes([node.name for node in plan.nodes])
        deadline = time.monotonic() + _READY_SECONDS
        self._start_agents(self.nodes, deadline)
        self._attach(self.nodes, deadline)
        self._await_pings(deadline)
        self._set(complete=True)

    def _write_shared(self) -> None:
        with open(f"{self.space.shared}/net.d/{os.path.basename(lab_programs.LIST_FILE)}", "w") as file:
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
        process = lab_process.start(argv, lab_programs.environment(), self.space.process_log(name), enter)
        self._set(processes={**self.state.processes, name: process})

    def _start_agents(self, nodes: Sequence[LabNode], deadline: float) -> None:
        """Return when each of them listens and has a subnet."""
        for node in nodes:
            self._start(node.name, lab_programs.agent(self.state.command, node.name), node.enter)
        for node in nodes:
            what = f"the agent of {node.name} to listen and to have a subnet"
            self._await(node.is_ready, deadline, what, [one.name for one in nodes])

    def _attach(self, nodes: Sequence[LabNode], deadline: float) -> None:
        """ADD for every pod: the nodes side by side, the pods of a node one after the other."""
        addresses = dict(self.state.addresses)
        for attached in sandbox.side_by_side(functools.partial(node.attach, deadline) for node in nodes):
            addresses |= attached
        self._set(addresses=addresses)

    def _await_pings(self, deadline: float, asked: Collection[str] = ()) -> None:
        """Return when every pod reaches every other one: of these nodes, if any are named, from and to those that are
        able to."""
        running = [node.name for node in self.nodes if not node.killed and node.agent.runs()]
        apart = {frozenset(pair) for pair in self.cuts()} if asked else set()
        node_of = {pod.name: pod.node for pod in self.pods}
        lost: list[Answer] = []

        def all_reached() -> bool:
            _, answers = self.ping(timeout=_PING_SECONDS, places=running)
            ends = [(one, {node_of[one.source], node_of[one.target]}) for one in answers if one.seconds is None]
            lost[:] = [one for one, both in ends if both not in apart and (not asked or not both.isdisjoint(asked))]
            return not lost

        self._await(
            all_reached, deadline, "every pod to reach every other one", running, lambda: f", found {_pairs_lost(lost)}"
        )

    def _await(
        self,
        condition: Callable[[], bool],
        deadline: float,
        what: str,
        nodes: Collection[str],
        found: Callable[[], str] = str,
    ) -> None:
        """Return when a condition holds. LabError when it does not in time, or an agent of these nodes, or etcd, ends."""
        while not condition():
            for name, process in self.state.processes.items():
                if (name in nodes or name == ETCD) and not process.runs():
                    raise LabError(f"expected {what}, but {name}'s process has ended")
            if time.monotonic() >= deadline:
                raise LabError(f"expected {what} within {_READY_SECONDS:g} s{found()}")
            time.sleep(_PAUSE)

    def _set(self, **changes: Any) -> None:
        self.state = self.state.changed(**changes)
        self.state.write(self.space.folder)

    def _keep_log(self) -> str:
        """Where what the lab's processes said stays, in one file; or why it does not."""
        try:
            with open(self.space.log, "w") as kept:
                for path in sorted(glob.glob(f"{self.space.folder}/*.log")):
                    with open(path, errors="replace") as file:
                        kept.write(f"== {os.path.basename(path)}\n{file.read()}\n")
        except OSError as error:  # no room, most likely; the lab has to go away nevertheless
            return f"`df {ROOT}`: the log could not be kept ({error.strerror})"
        return self.space.log


def remove(name: str) -> bool:
    """Take a lab away, also one that was left half built; whether there was one."""
    space = Space(name)
    if not any(map(os.path.lexists, (space.folder, space.log, space.lock))):
        return False
    with _alone(space):
        _end_recorded(space)
        space.release()
        if os.path.exists(space.log):
            os.unlink(space.log)
    return True


def _end_recorded(space: Space) -> None:
    """Kill the lab's agents and etcd. `release` finds them by namespaces that are pinned, and misses them where those
    were mounted in a mount namespace that is gone."""
    with contextlib.suppress(LabError):  # a state that nobody understands names no process
        state = lab_state.read(space.folder)
        for process in state.processes.values() if state else ():
            process.kill()


def names() -> list[str]:
    """The labs of this machine."""
    return sorted(entry.name for entry in os.scandir(ROOT) if entry.is_dir()) if os.path.isdir(ROOT) else []


def option(name: str) -> str:
    """What a command has to be given to be about that lab."""
    return "" if name == Plan().name else f" --name {name}"


@contextlib.contextmanager
def _alone(space: Space) -> Iterator[None]:
    """Nobody else changes the lab meanwhile."""
    try:
        lock = Lock(space.lock, time.monotonic, transient=True)
    except CniError as error:
        if error.code != TRY_AGAIN:
            raise
        raise LabError(
            f"another command is changing lab {os.path.basename(space.folder)}: wait for its end, "
            f"or look for it: fuser -v {space.lock}"
        ) from None
    try:
        with lock:
            yield
    finally:
        with contextlib.suppress(OSError):  # there are labs
            os.rmdir(ROOT)


def _whole(space: Space, name: str) -> State:
    """The state of a lab that has come up."""
    state = lab_state.read(space.folder)
    if state is None or not state.complete:
        raise LabError(
            f"lab {name} is half built: wait for its `lab up`, or remove it: `cnikit lab down{option(name)}`"
        )
    return state


def _pairs_lost(lost: Sequence[Answer]) -> str:
    """The first of them, and how many there are."""
    named = ", ".join(f"{one.source} -> {one.target} ({one.address})" for one in lost[:_NAMED])
    return f"{len(lost)} pings lost: {named}" + (", ..." if len(lost) > _NAMED else "")
