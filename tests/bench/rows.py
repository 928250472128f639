"""What is compared with what: the rows of the tables and their targets."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    # (contestant, what was timed) to seconds.
    Times = Mapping[tuple[str, str], Sequence[float]]


class Scale(NamedTuple):
    """How often and how much."""

    runs: int
    warm_up: int = 5
    at_once: int = 100
    rounds: int = 8  # of so many calls at once
    masq_rounds: int = 4
    few: int = 100
    many: int = 60_000
    shared: int = 10_000  # leases in a folder of two hosts
    go_many_runs: int = 5  # a call of the Go plugin at 60,000 leases takes about a second
    loop_pods: int = 1000
    few_peers: int = 100
    peers: int = 1000
    many_peers: int = 5000
    peer_rounds: int = 10  # of programming them all
    agent_rounds: int = 3  # of starting an agent in a cluster
    claimers: int = 5000

    @classmethod
    def of(cls, runs: int) -> Scale:
        """The real thing, shortened when there are fewer runs than usual."""
        share = min(1.0, runs / RUNS)
        return cls(runs, rounds=max(2, round(8 * share)), masq_rounds=max(2, round(4 * share)),
                   go_many_runs=min(5, runs), loop_pods=max(LOOP_BLOCKS, round(1000 * share)),
                   peer_rounds=max(2, round(10 * share)), agent_rounds=max(1, round(3 * share)))  # fmt: skip

    def of_scenario(self, name: str) -> tuple[int, int]:
        """Counted calls, and those before them."""
        special = {
            "at-once": (self.rounds, 1), "at-once-masq": (self.masq_rounds, 1), "go-leases": (self.go_many_runs, 1),
            "peers": (self.peer_rounds, 1), "many-peers": (self.peer_rounds, 1),
        }  # fmt: skip
        return special.get(name, (self.runs, self.warm_up))


RUNS = 100
LOOP_BLOCKS = 20
# To see that everything works; its numbers mean nothing.
QUICK = Scale(runs=2, warm_up=1, at_once=6, rounds=2, masq_rounds=2, many=600, shared=300, go_many_runs=2, loop_pods=LOOP_BLOCKS,
              few_peers=10, peers=20, many_peers=40, peer_rounds=2, agent_rounds=1, claimers=20)  # fmt: skip


class Row(NamedTuple):
    """One line of a table: the ratio of two medians. Without `at_most` it is there to be known only."""

    key: str
    title: str  # here and in `against` {names} stand for numbers of the scale
    scenario: str
    ours: tuple[str, str]
    peer: tuple[str, str]
    against: str
    at_most: float | None


class Group(NamedTuple):
    """One table. `timed` says what its times are those of."""

    title: str
    timed: str
    rows: tuple[Row, ...]


class Start(NamedTuple):
    """An agent that starts in a cluster: where it learns its peers, and how many MiB it may take then."""

    key: str
    source: str
    peers: str  # the scale's name for their number
    at_most: float | None = None


class Stats(NamedTuple):
    """Milliseconds of one contestant."""

    median: float
    min: float
    p90: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Stats:
        milliseconds = [1000 * one for one in seconds]
        p90 = statistics.quantiles(milliseconds, n=10, method="inclusive")[-1]
        return cls(statistics.median(milliseconds), min(milliseconds), p90, len(milliseconds))


class Outcome(NamedTuple):
    """A row with what was measured."""

    row: Row
    title: str
    against: str
    ours: Stats
    peer: Stats

    @classmethod
    def of(cls, row: Row, scale: Scale, times: Times) -> Outcome:
        title, against = (text.format(**scale._asdict()) for text in (row.title, row.against))
        return cls(row, title, against, Stats.of(times[row.ours]), Stats.of(times[row.peer]))

    @property
    def ratio(self) -> float:
        """To three decimals, as the report tells it: what is held against the limit is what a reader sees."""
        return round(self.ours.median / self.peer.median, 3)

    @property
    def verdict(self) -> str:
        if self.row.at_most is None:
            return ""
        return "met" if self.ratio <= self.row.at_most else "MISSED"


PYTHON, GO, GO_DEFAULT, GO_NFT = "python3.11 -I -S -c pass", "Go", "Go (iptables, its default)", "Go (nftables)"
EMPTY, NETLINK = "an empty static C program", "the kernel for the same netlink"
IP = "ip -batch, bridge -batch"
MANY = "ADD at {many:,} leases"

ONE_SHOT = Group("one-shot executables", "whole processes", (
    Row("version", "VERSION", "start", ("ours", "START"), ("python", "START"), PYTHON, 1.8),
    Row("add", "ADD", "plain", ("ours", "ADD"), ("go", "ADD"), GO, 1.4),
    Row("add-masq", "ADD with ipMasq", "masquerade", ("ours", "ADD"), ("go", "ADD"), GO_DEFAULT, 0.6),
    Row("add-masq-nft", "ADD with ipMasq", "masquerade", ("ours", "ADD"), ("go-nft", "ADD"), GO_NFT, None),
    Row("del", "DEL", "plain", ("ours", "DEL"), ("go", "DEL"), GO, 0.8),
    Row("del-masq", "DEL with ipMasq", "masquerade", ("ours", "DEL"), ("go", "DEL"), GO_DEFAULT, 0.25),
    Row("del-masq-nft", "DEL with ipMasq", "masquerade", ("ours", "DEL"), ("go-nft", "DEL"), GO_NFT, None),
    Row("leases", MANY, "leases", ("ours-many", "ADD"), ("ours-few", "ADD"), "cnikit at {few} leases", 1.1),
    Row("shared-leases", "ADD at {shared:,} leases of two hosts in turn", "shared-leases", ("two-hosts", "ADD"),
        ("one-host", "ADD"), "the same of one host", 1.2),
    Row("go-leases", f"Go: {MANY}", "go-leases", ("go-many", "ADD"), ("go-few", "ADD"), "Go at {few} leases", None),
))  # fmt: skip

AGENT = Group("through the launcher and the agent", "whole processes", (
    Row("agent-version", "VERSION", "launcher", ("agent", "START"), ("empty", "START"), EMPTY, 1.3),
    Row("agent-add", "ADD", "plain", ("agent", "ADD"), ("go", "ADD"), GO, 0.25),
    Row("agent-add-masq", "ADD with ipMasq", "masquerade", ("agent", "ADD"), ("go", "ADD"), GO_DEFAULT, 0.12),
    Row("agent-add-masq-nft", "ADD with ipMasq", "masquerade", ("agent", "ADD"), ("go-nft", "ADD"), GO_NFT, 0.08),
    Row("agent-del", "DEL", "plain", ("agent", "DEL"), ("go", "DEL"), GO, 0.2),
    Row("agent-del-masq", "DEL with ipMasq", "masquerade", ("agent", "DEL"), ("go", "DEL"), GO_DEFAULT, 0.08),
    Row("agent-del-masq-nft", "DEL with ipMasq", "masquerade", ("agent", "DEL"), ("go-nft", "DEL"), GO_NFT, None),
    Row("at-once-add", "{at_once} ADDs at once: all", "at-once", ("agent", "ADD wall"), ("go", "ADD wall"), GO, 0.25),
    Row("at-once-p99", "{at_once} ADDs at once: p99", "at-once", ("agent", "ADD p99"), ("go", "ADD p99"), GO, 0.35),
    Row("at-once-masq", "{at_once} ADDs with ipMasq at once: all", "at-once-masq", ("agent", "ADD wall"),
        ("go", "ADD wall"), GO_DEFAULT, 0.2),
    Row("at-once-del", "{at_once} DELs at once: all", "at-once", ("agent", "DEL wall"), ("go", "DEL wall"), GO, 0.2),
    Row("in-process", "ADD in the agent's process", "in-process", ("in-process", "ADD"),
        ("in-process", "ADD netlink"), NETLINK, 2.5),
    Row("agent-leases", MANY, "agent-leases", ("agent-many", "ADD"), ("agent-few", "ADD"), "cnikit at {few} leases", 1.1),
    Row("agent-leases-del", "DEL at {many:,} leases", "agent-leases", ("agent-many", "DEL"), ("agent-few", "DEL"),
        "cnikit at {few} leases", 1.1),
))  # fmt: skip

CLUSTER = Group("a node's peers in a VXLAN", "in the agent's process", (
    Row("peers", "{peers:,} peers from nothing", "peers", ("ours", "FILL"), ("ip", "FILL"), IP, 0.6),
    Row("many-peers", "{many_peers:,} peers from nothing", "many-peers", ("ours", "FILL"), ("ip", "FILL"), IP, 0.3),
    Row("peer-change", "one peer changes among {many_peers:,}", "peer-change", ("ours-many", "CHANGE"),
        ("ours-few", "CHANGE"), "cnikit among {few_peers}", 1.3),
))  # fmt: skip

GROUPS = (AGENT, ONE_SHOT, CLUSTER)
ROWS = tuple(row for group in GROUPS for row in group.rows)

STARTS = (
    Start("start-static-few", "static", "few_peers"),
    Start("start-static", "static", "peers"),
    Start("start-static-many", "static", "many_peers", 60),
    Start("start-etcd-few", "etcd", "few_peers"),
    Start("start-etcd", "etcd", "peers"),
    Start("start-etcd-many", "etcd", "many_peers", 60),
    Start("start-kubernetes-many", "kubernetes", "many_peers"),
)
