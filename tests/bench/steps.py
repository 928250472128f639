"""Where the time of an ADD through the agent goes: its steps, as the agent's own log tells them, beside Go's whole."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.rows import Times

OUTSIDE = "launcher"  # what is not the agent's: the launcher's start, its request, its exit
BETWEEN = "plugin"  # what is in no step: the plugin's own code, its record
# In the order in which they happen, as far as they follow one another.
ORDER = (OUTSIDE, "queue", "prepare", "handshake", "lock", "ipam", "kernel", BETWEEN, "answer")

SCENARIOS = {"plain": "ADD", "masquerade": "ADD with ipMasq"}


class Breakdown(NamedTuple):
    """Medians in milliseconds: of every step, of the whole, and of Go's whole."""

    title: str
    steps: dict[str, float]
    whole: float
    go: float

    @classmethod
    def of(cls, title: str, times: Times) -> Breakdown:
        prefix = "ADD agent: "
        steps = {what.removeprefix(prefix): _median(all_of) for (_, what), all_of in times.items() if prefix in what}
        whole, agent = _median(times["agent", "ADD"]), _median(times["agent", "ADD agent"])
        steps[BETWEEN] = max(0.0, agent - sum(steps.values()))
        steps[OUTSIDE] = max(0.0, whole - agent)
        place = {name: number for number, name in enumerate(ORDER)}
        ordered = dict(sorted(steps.items(), key=lambda item: place.get(item[0], len(ORDER))))
        return cls(title, ordered, whole, _median(times["go", "ADD"]))

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in self.steps.items()) + f"; whole {self.whole:.2f}"

    def as_json(self) -> dict[str, Any]:
        steps = {name: round(value, 3) for name, value in self.steps.items()}
        return {"steps": steps, "whole": round(self.whole, 3), "go": round(self.go, 3)}


def breakdowns(times: Mapping[str, Times]) -> list[Breakdown]:
    """Of the scenarios in which both the agent and Go were called."""
    return [
        Breakdown.of(title, times[name])
        for name, title in SCENARIOS.items()
        if {("agent", "ADD"), ("go", "ADD")} <= set(times.get(name, {}))
    ]


def _median(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)
