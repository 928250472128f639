"""What is compared with what, and how often: the scenarios, the rows of the table, their targets.

In a scenario every contestant makes its call in turn (A B C A B C ...), so that whatever else the machine
does meets all of them alike. Each contestant has a node of its own. An ADD is followed by its DEL.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from tests.bench.world import CNI_VERSION, Attachments, Contestant, Node, Start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

WARM_UP = 5
FEW_LEASES = 100
MANY_LEASES = 60_000

# At 60,000 leases a call of the Go plugin takes about a second.
GO_MANY_RUNS = 5

# (contestant, verb) to seconds.
Times = dict[tuple[str, str], list[float]]


class Subject(NamedTuple):
    """The programs that are measured."""

    ours: Path
    peers: Path
    python: str


class Row(NamedTuple):
    """One line of the table: the ratio of two medians. Without `at_most` it is there to be known only."""

    key: str
    title: str
    scenario: str
    ours: tuple[str, str]
    peer: tuple[str, str]
    against: str
    at_most: float | None


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
    ours: Stats
    peer: Stats

    @property
    def ratio(self) -> float:
        return self.ours.median / self.peer.median

    @property
    def verdict(self) -> str:
        if self.row.at_most is None:
            return ""
        return "met" if self.ratio <= self.row.at_most else "MISSED"


PYTHON, GO, GO_DEFAULT, GO_NFT = "python3.11 -I -S -c pass", "Go", "Go (iptables, its default)", "Go (nftables)"
MANY = "ADD at 60,000 leases"

ROWS = (
    Row("version", "VERSION", "start", ("ours", "START"), ("python", "START"), PYTHON, 1.8),
    Row("add", "ADD", "plain", ("ours", "ADD"), ("go", "ADD"), GO, 1.4),
    Row("add-masq", "ADD with ipMasq", "masquerade", ("ours", "ADD"), ("go", "ADD"), GO_DEFAULT, 0.6),
    Row("add-masq-nft", "ADD with ipMasq", "masquerade", ("ours", "ADD"), ("go-nft", "ADD"), GO_NFT, None),
    Row("del", "DEL", "plain", ("ours", "DEL"), ("go", "DEL"), GO, 0.8),
    Row("del-masq", "DEL with ipMasq", "masquerade", ("ours", "DEL"), ("go", "DEL"), GO_DEFAULT, 0.25),
    Row("del-masq-nft", "DEL with ipMasq", "masquerade", ("ours", "DEL"), ("go-nft", "DEL"), GO_NFT, None),
    Row("leases", MANY, "leases", ("ours-many", "ADD"), ("ours-few", "ADD"), "cnikit at 100 leases", 1.1),
    Row("go-leases", f"Go: {MANY}", "go-leases", ("go-many", "ADD"), ("go-few", "ADD"), "Go at 100 leases", None),
)


def measure(subject: Subject, rows: Sequence[Row], runs: int, tell: Callable[[str], None]) -> list[Outcome]:
    """Measure what the rows need. A row comes as soon as its scenario is done."""
    times = {}
    for name in dict.fromkeys(row.scenario for row in rows):
        tell(f"measuring: {name}")
        times[name] = SCENARIOS[name](subject, runs)
    return [
        Outcome(row, Stats.of(times[row.scenario][row.ours]), Stats.of(times[row.scenario][row.peer])) for row in rows
    ]


def _start(subject: Subject, runs: int) -> Times:
    with Node() as node:
        contestants = {
            "ours": Start(
                node, [str(subject.ours / "bridge")], {"CNI_COMMAND": "VERSION"}, f'{{"cniVersion":"{CNI_VERSION}"}}'
            ),
            "python": Start(node, [subject.python, "-I", "-S", "-c", "pass"], {}),
        }
        return _in_turn(contestants, ("START",), runs)


def _plain(subject: Subject, runs: int) -> Times:
    with ExitStack() as nodes:
        contestants = {
            "ours": Attachments(nodes.enter_context(Node()), subject.ours),
            "go": Attachments(nodes.enter_context(Node()), subject.peers),
        }
        return _in_turn(contestants, ("ADD", "DEL"), runs)


def _masquerade(subject: Subject, runs: int) -> Times:
    with ExitStack() as nodes:
        contestants = {
            "ours": Attachments(nodes.enter_context(Node()), subject.ours, ipMasq=True),
            "go": Attachments(nodes.enter_context(Node()), subject.peers, ipMasq=True),
            "go-nft": Attachments(nodes.enter_context(Node()), subject.peers, ipMasq=True, ipMasqBackend="nftables"),
        }
        return _in_turn(contestants, ("ADD", "DEL"), runs)


def _leases(subject: Subject, runs: int) -> Times:
    return _few_and_many("ours", subject.ours, runs)


def _go_leases(subject: Subject, runs: int) -> Times:
    return _few_and_many("go", subject.peers, min(runs, GO_MANY_RUNS), warm_up=1)


def _few_and_many(name: str, bin_dir: Path, runs: int, warm_up: int = WARM_UP) -> Times:
    with ExitStack() as nodes:
        contestants = {
            f"{name}-many": Attachments(nodes.enter_context(Node()), bin_dir, MANY_LEASES),
            f"{name}-few": Attachments(nodes.enter_context(Node()), bin_dir, FEW_LEASES),
        }
        return _in_turn(contestants, ("ADD", "DEL"), runs, warm_up)


SCENARIOS = {
    "start": _start,
    "plain": _plain,
    "masquerade": _masquerade,
    "leases": _leases,
    "go-leases": _go_leases,
}


def _in_turn(contestants: Mapping[str, Contestant], verbs: tuple[str, ...], runs: int, warm_up: int = WARM_UP) -> Times:
    times: Times = {(name, verb): [] for name in contestants for verb in verbs}
    for turn in range(warm_up + runs):
        for verb in verbs:
            for name, contestant in contestants.items():
                seconds = contestant.call(verb, turn)
                if turn >= warm_up:
                    times[name, verb].append(seconds)
    return times
