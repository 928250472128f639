"""An agent that starts in a cluster of many: the time until every peer is programmed, and the memory it then takes.

Each start has a node of its own with an empty kernel, and the membership is complete before the agent starts: in a
file, in an etcd or in an API server that runs on the node. The time is from before the agent's process is started until
the kernel has announced the last peer's route, neighbour and forwarding entry, its interpreter and its device included.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.bench import cluster, cluster_peers, cluster_servers
from tests.bench.world import RUNTIME_ENV, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.bench.rows import Scale, Start
    from tests.bench.scenarios import Subject

MEBIBYTE = 1024  # in KiB, which /proc tells


class Started(NamedTuple):
    """A start with what was measured: the medians of seconds and of MiB. `peak` is the largest of all."""

    start: Start
    peers: int
    runs: int
    seconds: float
    least_seconds: float
    resident: float
    peak: float

    @property
    def verdict(self) -> str:
        if self.start.at_most is None:
            return ""
        return "met" if self.resident <= self.start.at_most else "MISSED"

    def as_json(self) -> dict[str, Any]:
        measured = self._asdict()
        del measured["start"]
        rounded = {name: round(value, 3) for name, value in measured.items()}
        met = None if self.start.at_most is None else self.verdict == "met"
        return {
            "row": self.start.key,
            "source": self.start.source,
            **rounded,
            "at_most": self.start.at_most,
            "met": met,
        }


def measure(subject: Subject, scale: Scale, starts: Sequence[Start], tell: Callable[[str], None]) -> list[Started]:
    """Start agents, one of each kind in turn."""
    if starts:
        tell("measuring: agents that start")
    found: dict[str, list[tuple[float, dict[str, int]]]] = {start.key: [] for start in starts}
    for _ in range(scale.agent_rounds):
        for start in starts:
            found[start.key].append(_started(subject, SOURCES[start.source], getattr(scale, start.peers)))
    return [_outcome(start, getattr(scale, start.peers), found[start.key]) for start in starts]


def _started(
    subject: Subject, source: Callable[[Node, int], dict[str, Any]], count: int
) -> tuple[float, dict[str, int]]:
    """One agent: the seconds that it took, and what it then uses."""
    those = cluster_peers.peers(count)
    with Node(cluster.PROGRAM) as node:
        cluster.lay(node)
        network = cluster.network_file(node, membership=source(node, count))
        seconds: float = node.ask(
            "start_in_cluster", argv=[str(subject.command), "agent", "--network", str(network)], env=RUNTIME_ENV,
            described=[peer.described() for peer in those],
        )  # fmt: skip
        usage: dict[str, int] = node.ask("agent_usage")
        cluster.expect(node, those)
        return seconds, usage


def _static(node: Node, count: int) -> dict[str, Any]:
    path = node.data_dir / "nodes.json"
    path.write_text(cluster_peers.membership(count))
    return {"source": "static", "file": str(path)}


def _etcd(node: Node, count: int) -> dict[str, Any]:
    node.ask("serve_etcd", described=[peer.described() for peer in cluster_peers.peers(count)])
    return {"source": "etcd", "endpoints": [f"http://{cluster_servers.ETCD}"], "prefix": cluster_servers.PREFIX}


def _kubernetes(node: Node, count: int) -> dict[str, Any]:
    node.ask("serve_kubernetes", count=count)
    return {"source": "kubernetes", "kubeconfig": cluster_servers.KUBECONFIG}


# What makes a membership of so many peers on a node, and the configuration that leads to it.
SOURCES: dict[str, Callable[[Node, int], dict[str, Any]]] = {
    "static": _static, "etcd": _etcd, "kubernetes": _kubernetes,
}  # fmt: skip


def _outcome(start: Start, peers: int, measured: Sequence[tuple[float, dict[str, int]]]) -> Started:
    seconds = [one for one, _ in measured]
    resident = [usage["resident"] / MEBIBYTE for _, usage in measured]
    peak = max(usage["peak"] for _, usage in measured) / MEBIBYTE
    return Started(
        start, peers, len(seconds), statistics.median(seconds), min(seconds), statistics.median(resident), peak
    )
