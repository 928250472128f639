"""How it is measured: the contestants of each scenario, and their calls in turn.

In a scenario every contestant makes its call in turn (A B C, B C A, ...), so that whatever else the machine does meets
all of them alike; machines have been seen whose speed changes by the minute. Each contestant has a node of its
own. An ADD is followed by its DEL.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.bench import cluster
from tests.bench.world import (
    CNI_VERSION,
    IN_PROCESS,
    NETWORK,
    PODS,
    RESIDENTS,
    AtOnce,
    Attachments,
    Contestant,
    InTurn,
    Leases,
    Node,
    Start,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from tests.bench.rows import Row, Scale

    # Makes a contestant: only those are made that the rows need.
    Contestants = Mapping[str, Callable[[], Contestant]]


class Subject(NamedTuple):
    """The programs that are measured."""

    ours: Path
    command: Path  # cnikit
    peers: Path
    python: str


class Site:
    """Where contestants are made. Their nodes live as long as `nodes`."""

    def __init__(self, subject: Subject, scale: Scale, nodes: ExitStack) -> None:
        self.subject = subject
        self.scale = scale
        self._nodes = nodes
        self._leases: Leases | None = None

    def node(self, *, agent: bool = False) -> Node:
        node = self._nodes.enter_context(Node())
        if agent:
            node.start_agent(self.subject.command)
        return node

    def one_shot(self, **options: Any) -> Attachments:
        return self._attachments(self.node(), self.subject.ours, **options)

    def agent(self, **options: Any) -> Attachments:
        return self._attachments(self.node(agent=True), self.subject.ours, **options)

    def go(self, **options: Any) -> Attachments:
        return self._attachments(self.node(), self.subject.peers, **options)

    def clustered(self) -> Node:
        return self._nodes.enter_context(Node(cluster.PROGRAM))

    def in_process(self) -> Attachments:
        node = self._nodes.enter_context(Node(IN_PROCESS))
        node.ask("start_plugins")
        return Attachments(node, self.subject.ours)

    def hosts(self, count: int, leases: int) -> InTurn:
        """Several hosts with one folder of leases."""
        nodes = [self.node() for _ in range(count)]
        self._fill(nodes[0], leases)
        for number, node in enumerate(nodes):
            node.ask("be_host", host_name=f"host{number + 1}")
        return InTurn(
            [
                Attachments(node, self.subject.ours, data_dir=nodes[0].data_dir, first_id=number * (PODS + RESIDENTS))
                for number, node in enumerate(nodes)
            ]
        )

    def _attachments(self, node: Node, bin_dir: Path, leases: int = 0, **options: Any) -> Attachments:
        if leases:
            self._fill(node, leases)
        return Attachments(node, bin_dir, **options)

    def _fill(self, node: Node, leases: int) -> None:
        self._leases = self._leases or Leases(self.node().data_dir / "made", self.scale.many)
        self._leases.fill(node.data_dir / NETWORK, leases)

    def empty(self) -> Path:
        """An executable of nothing, built as the launcher is."""
        path = self.node().data_dir / "empty"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{platform.machine()}-linux-musl"]
        command += ["-Os", "-static", "-s", "-o", str(path), "-x", "c", "-"]
        subprocess.run(command, input=b"int main(void) { return 0; }\n", check=True)
        return path


def measure(
    subject: Subject, scale: Scale, rows: Sequence[Row], tell: Callable[[str], None]
) -> dict[str, dict[tuple[str, str], list[float]]]:
    """Measure what the rows need: the times of each scenario.

    All nodes are there until the end: for hundreds of namespaces and thousands of files that are removed, the kernel
    has work to do afterwards, and ext4 is slower for minutes (node.py, `spread_below`).
    """
    times = {}
    with ExitStack() as nodes:
        site = Site(subject, scale, nodes)
        for name in (name for name in SCENARIOS if any(row.scenario == name for row in rows)):
            tell(f"measuring: {name}")
            needed = {side[0] for row in rows if row.scenario == name for side in (row.ours, row.peer)}
            contestants = {one: make() for one, make in SCENARIOS[name](site).items() if one in needed}
            times[name] = _in_turn(contestants, VERBS.get(name, ("ADD", "DEL")), *scale.of_scenario(name))
        tell("cleaning up")
    return times


def _in_turn(
    contestants: Mapping[str, Contestant], verbs: tuple[str, ...], runs: int, warm_up: int
) -> dict[tuple[str, str], list[float]]:
    times: dict[tuple[str, str], list[float]] = {}

    def note(name: str, timed: Iterable[tuple[str, float]]) -> None:
        for what, seconds in timed:
            times.setdefault((name, what), []).append(seconds)

    names = list(contestants)
    for turn in range(warm_up + runs):
        first = turn % len(names)  # another one each time: who comes first finds other traces than who comes second
        for verb in verbs:
            for name in (*names[first:], *names[:first]):
                note(name, contestants[name].call(verb, turn).items())
        if turn == warm_up - 1:
            for contestant in contestants.values():
                contestant.inside()
            times.clear()
    for name, contestant in contestants.items():
        note(name, contestant.inside())
    return times


def _start(site: Site) -> Contestants:
    return {"ours": lambda: _version(site.node(), site), "python": lambda: _interpreter(site)}


def _launcher(site: Site) -> Contestants:
    return {
        "agent": lambda: _version(site.node(agent=True), site),
        "empty": lambda: Start(site.node(), [str(site.empty())], *_VERSION),
    }


_VERSION = {"CNI_COMMAND": "VERSION"}, f'{{"cniVersion":"{CNI_VERSION}"}}'


def _version(node: Node, site: Site) -> Start:
    return Start(node, [str(site.subject.ours / "bridge")], *_VERSION)


def _interpreter(site: Site) -> Start:
    return Start(site.node(), [site.subject.python, "-I", "-S", "-c", "pass"], {})


def _plain(site: Site) -> Contestants:
    return {"ours": site.one_shot, "agent": site.agent, "go": site.go}


def _masquerade(site: Site) -> Contestants:
    return {
        "ours": lambda: site.one_shot(ipMasq=True),
        "agent": lambda: site.agent(ipMasq=True),
        "go": lambda: site.go(ipMasq=True),
        "go-nft": lambda: site.go(ipMasq=True, ipMasqBackend="nftables"),
    }


def _at_once(site: Site) -> Contestants:
    pods = site.scale.at_once
    return {"agent": lambda: AtOnce(site.agent(pods=pods)), "go": lambda: AtOnce(site.go(pods=pods))}


def _at_once_masquerade(site: Site) -> Contestants:
    pods = site.scale.at_once
    return {
        "agent": lambda: AtOnce(site.agent(pods=pods, ipMasq=True)),
        "go": lambda: AtOnce(site.go(pods=pods, ipMasq=True)),
    }


def _in_process(site: Site) -> Contestants:
    return {"in-process": site.in_process}


def _leases(site: Site) -> Contestants:
    return _few_and_many("ours", site.one_shot, site.scale)


def _shared_leases(site: Site) -> Contestants:
    leases = site.scale.shared
    return {"two-hosts": lambda: site.hosts(2, leases), "one-host": lambda: site.hosts(1, leases)}


def _agent_leases(site: Site) -> Contestants:
    return _few_and_many("agent", site.agent, site.scale)


def _go_leases(site: Site) -> Contestants:
    return _few_and_many("go", site.go, site.scale)


def _few_and_many(name: str, make: Callable[..., Attachments], scale: Scale) -> Contestants:
    return {f"{name}-many": lambda: make(leases=scale.many), f"{name}-few": lambda: make(leases=scale.few)}


def _peers(site: Site) -> Contestants:
    return _reconciled_and_batched(site, site.scale.peers)


def _many_peers(site: Site) -> Contestants:
    return _reconciled_and_batched(site, site.scale.many_peers)


def _reconciled_and_batched(site: Site, count: int) -> Contestants:
    return {
        "ours": lambda: cluster.Reconciled(site.clustered(), count),
        "ip": lambda: cluster.Batched(site.node(), count),
    }


def _peer_change(site: Site) -> Contestants:
    return {
        "ours-many": lambda: cluster.Changed(site.clustered(), site.scale.many_peers),
        "ours-few": lambda: cluster.Changed(site.clustered(), site.scale.few_peers),
    }


# In the order in which they are measured. Last what makes hundreds of namespaces and many thousand files.
SCENARIOS: dict[str, Callable[[Site], Contestants]] = {
    "start": _start,
    "launcher": _launcher,
    "plain": _plain,
    "masquerade": _masquerade,
    "in-process": _in_process,
    "peers": _peers,
    "many-peers": _many_peers,
    "peer-change": _peer_change,
    "at-once": _at_once,
    "at-once-masq": _at_once_masquerade,
    "agent-leases": _agent_leases,
    "leases": _leases,
    "shared-leases": _shared_leases,
    "go-leases": _go_leases,
}
VERBS = {
    "start": ("START",), "launcher": ("START",),
    "peers": ("FILL",), "many-peers": ("FILL",), "peer-change": ("CHANGE",),
}  # fmt: skip
