"""The plot of the loop: every call's latency over the pods that were up and down before it."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, MaxNLocator, NullFormatter

from tests.bench.loop import VERBS
from tests.bench.plot import FAINT, INK, bare, write_caption

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from tests.bench.loop import Point, Trace

HEIGHT = 4.6
COLORS = {"ours": ("cnikit", "#2a9d6f"), "go": ("Go", "#8d99ae")}
WINDOW = 25  # calls of the running median


def draw(trace: Trace, caption: str, path: Path) -> None:
    """Write a PNG."""
    figure = Figure(figsize=(9, HEIGHT), dpi=160, facecolor="white")
    figure.subplots_adjust(left=0.07, right=0.93, top=0.82, bottom=0.2, wspace=0.18)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, verb in zip((left, right), VERBS, strict=True):
        for name, (label, color) in COLORS.items():
            _points(axes, trace.calls[name, verb], label, color)
        _frame(axes, verb, trace.pods)
    left.set_ylabel("ms", fontsize=8, color=FAINT)
    figure.text(
        0.02, 0.94, f"{trace.pods:,} pods up and down in a loop, with ipMasq: latency of each call", fontsize=11,
        fontweight="bold", color=INK,
    )  # fmt: skip
    begin, end = trace.usage[0][1]["resident"] / 1024, trace.usage[-1][1]["resident"] / 1024
    memory = f"the agent's resident memory: {begin:.1f} MiB before, {end:.1f} MiB after"
    figure.text(0.02, 0.885, f"Nothing is left of them; {memory}", fontsize=8.5, color=FAINT)
    write_caption(figure, caption, HEIGHT)
    figure.savefig(path)


def _points(axes: Axes, points: list[Point], label: str, color: str) -> None:
    pods, milliseconds = [point.pod for point in points], [point.milliseconds for point in points]
    axes.plot(pods, milliseconds, ".", color=color, markersize=2.5, alpha=0.45)
    window = min(WINDOW, len(points))
    medians = [statistics.median(milliseconds[at : at + window]) for at in range(len(points) - window + 1)]
    axes.plot(pods[window // 2 : window // 2 + len(medians)], medians, color=color, linewidth=1.8)
    median = statistics.median(milliseconds)
    axes.annotate(
        f"{label}\n{median:.1f}", (1, median), xycoords=("axes fraction", "data"), ha="left", va="center",
        textcoords="offset points", xytext=(4, 0), fontsize=9, fontweight="bold", color=color,
    )  # fmt: skip


def _frame(axes: Axes, verb: str, pods: int) -> None:
    bare(axes, "both")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlim(0, pods)
    axes.set_title(verb, fontsize=9, color=INK, loc="left")
    axes.set_xlabel("pods before it", fontsize=8, color=FAINT)
