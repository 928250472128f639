"""Pods up and down in a loop through the agent, beside the Go plugins: latencies over time, memory, and what is left.

Ours are called as fast as they answer, also while the kernel still works on the link before; so a loop shows what
piles up. After each block of pods it is Go's turn with a few.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.bench.rows import LOOP_BLOCKS
from tests.bench.scenarios import Site
from tests.bench.world import NETWORK, PODS, RESIDENTS, CallFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.rows import Scale
    from tests.bench.scenarios import Subject
    from tests.bench.world import Attachments, Node

VERBS = ("ADD", "DEL")
GO_SHARE = 10  # one pod of Go's for so many of ours
OPTIONS = {"ipMasq": True}


class Point(NamedTuple):
    """One call: how many pods of ours had been up and down before, and the milliseconds."""

    pod: int
    milliseconds: float


class Trace(NamedTuple):
    """What the loop has found. `usage` is the agent's: resident KiB, open files, threads."""

    pods: int
    calls: dict[tuple[str, str], list[Point]]  # by contestant (ours, go) and verb
    usage: list[tuple[int, dict[str, int]]]

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"pods": self.pods, "options": OPTIONS, "left": "nothing", "agent": []}
        for pod, usage in self.usage:
            found["agent"].append({"pods": pod, **usage})
        for (name, verb), points in self.calls.items():
            times = [point.milliseconds for point in points]
            tenth = max(1, len(times) // 10)
            p99 = statistics.quantiles(times, n=100, method="inclusive")[-1]
            found.setdefault(name, {})[verb] = {
                "calls": len(times), "median": round(statistics.median(times), 3), "p99": round(p99, 3),
                "min": round(min(times), 3), "max": round(max(times), 3),
                "median of each tenth": [
                    round(statistics.median(times[at : at + tenth]), 3) for at in range(0, tenth * 10, tenth) if times[at:]
                ],
            }  # fmt: skip
        return found


def run(subject: Subject, scale: Scale, tell: Callable[[str], None]) -> Trace:
    """Take `scale.loop_pods` pods up and down. CallFailedError when something of them is left."""
    tell("measuring: loop")
    block = scale.loop_pods // LOOP_BLOCKS
    trace = Trace(block * LOOP_BLOCKS, {(name, verb): [] for name in ("ours", "go") for verb in VERBS}, [])
    with ExitStack() as nodes:
        site = Site(subject, scale, nodes)
        ours, go = site.agent(**OPTIONS), site.go(**OPTIONS)
        _block(trace, "ours", ours, PODS, 0)
        _block(trace, "go", go, 1, 0)
        for points in trace.calls.values():
            points.clear()  # that was to warm up
        before = _picture(ours.node)
        for number in range(LOOP_BLOCKS):
            begin = number * block
            trace.usage.append((begin, ours.node.ask("agent_usage")))
            _block(trace, "ours", ours, block, begin)
            _block(trace, "go", go, max(1, block // GO_SHARE), begin)
        trace.usage.append((trace.pods, ours.node.ask("agent_usage")))
        after = _picture(ours.node)
    for what, found in after.items():
        if found != before[what]:
            raise CallFailedError(f"{trace.pods} pods were up and down: expected {what} {before[what]}, found {found}")
    return trace


def _block(trace: Trace, name: str, attachments: Attachments, pods: int, begin: int) -> None:
    for turn in range(pods):
        number = turn % PODS
        for verb, call in (("ADD", attachments.attach), ("DEL", attachments.detach)):
            seconds = call(number, settle=False)[verb]
            trace.calls[name, verb].append(Point(begin + turn, 1000 * seconds))
    attachments.node.ask("await_quiet")
    attachments.inside()


def _picture(node: Node) -> dict[str, list[str]]:
    """What pods leave behind when they leave something behind, as other programs see it."""
    pods = [f"pod{number}" for number in range(PODS + RESIDENTS)]
    links = {"node": node.told("ip", "-j", "link")}
    links |= {pod: node.told("ip", "-j", "-n", pod, "link") for pod in pods}
    nft = node.told("nft", "-j", "list", "ruleset")["nftables"]
    elements = [str(entry["set"].get("elem")) for entry in nft if "set" in entry]
    return {
        "links": [f"{where}: {sorted(link['ifname'] for link in found)}" for where, found in links.items()],
        "nftables": [*elements, f"{len(nft)} objects"],
        "leases": sorted(path.name for path in (node.data_dir / NETWORK).iterdir()),
        "records and locks": sorted(node.said("find", "/run/cnikit", "-type", "f").split()),
    }
