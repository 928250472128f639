"""The plot of one ADD's steps through the agent, beside Go's whole ADD on the same scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tests.bench.plot import FAINT, INK, bare, write_caption
from tests.bench.steps import BETWEEN, ORDER, OUTSIDE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from tests.bench.steps import Breakdown

COLORS = ("#8d99ae", "#f4d35e", "#c9a227", "#e8871e", "#b56576", "#6d597a", "#2a9d6f", "#264653", "#457b9d")
GO = "#cfd6de"
HEIGHT = 4.6
EXPLAINED = {
    OUTSIDE: "launcher: start, request, exit",
    "queue": "queue: request read, a thread found",
    "prepare": "prepare: configuration checked",
    "handshake": "handshake: READY, GO",
    "lock": "lock of the attachment",
    "ipam": "ipam: the lease",
    "kernel": "kernel: links, addresses, routes",
    BETWEEN: "plugin: its own code, the record",
    "answer": "answer, until the launcher has written it",
}


def draw(breakdowns: Sequence[Breakdown], caption: str, path: Path) -> None:
    """Write a PNG."""
    figure = Figure(figsize=(9, HEIGHT), dpi=160, facecolor="white")
    axes = figure.add_subplot()
    figure.subplots_adjust(left=0.2, right=0.985, top=0.86, bottom=0.36)
    names = list(dict.fromkeys([*ORDER, *(name for one in breakdowns for name in one.steps)]))
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}
    labels: list[str] = []
    for one in breakdowns:
        _ours(axes, len(labels), one, colors)
        labels += [f"{one.title}\ncnikit", f"{one.title}\nGo"]
        axes.barh(len(labels) - 1, one.go, height=0.55, color=GO)
        _note(axes, one.go, len(labels) - 1, f"{one.go:.1f} ms")
    bare(axes, "x")
    axes.set_yticks(range(len(labels)), labels, fontsize=8.5, color=INK)
    axes.set_ylim(len(labels) - 0.5, -0.6)
    axes.set_xlim(0, 1.1 * max(one.go for one in breakdowns))
    axes.set_xlabel("ms, medians", fontsize=8, color=FAINT)
    title = "The steps of one ADD through launcher and agent, beside Go's"
    figure.text(0.02, 0.94, title, fontsize=11, fontweight="bold", color=INK)
    figure.legend(
        handles=[Patch(color=colors[name], label=EXPLAINED.get(name, name)) for name in names],
        loc="lower center", bbox_to_anchor=(0.5, 0.08), ncols=3, frameon=False, fontsize=7.5, labelcolor=INK,
    )  # fmt: skip
    write_caption(figure, caption, HEIGHT)
    figure.savefig(path)


def _ours(axes: Axes, place: int, one: Breakdown, colors: dict[str, str]) -> None:
    left = 0.0
    for name, milliseconds in one.steps.items():
        axes.barh(place, milliseconds, left=left, height=0.55, color=colors[name])
        left += milliseconds
    _note(axes, left, place, f"{one.whole:.1f} ms")


def _note(axes: Axes, at: float, place: int, text: str) -> None:
    style: dict[str, Any] = {"va": "center", "fontsize": 9, "fontweight": "bold", "color": INK}
    axes.annotate(text, (at, place), textcoords="offset points", xytext=(5, 0), **style)
