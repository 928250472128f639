"""The plot of a simulated cluster: how thousands of nodes come to their subnets, and what etcd does meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from tests.bench.plot import FAINT, INK, bare, write_caption

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from tests.bench.cluster_report import Claims

HEIGHT = 4.6
CLAIMED, SEEN, ETCD = "#2a9d6f", "#3d6fb4", "#8d99ae"


def draw(claims: Claims, caption: str, path: Path) -> None:
    """Write a PNG."""
    figure = Figure(figsize=(9, HEIGHT), dpi=160, facecolor="white")
    figure.subplots_adjust(left=0.07, right=0.97, top=0.78, bottom=0.2, wspace=0.16)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    times = [sample["at"] for sample in claims["samples"]]
    end = max(times[-1], claims["all_claimed_s"], claims["all_seen_s"])
    left.plot(claims["claimed_at"], range(1, claims["nodes"] + 1), color=CLAIMED, linewidth=2)
    seen = [sample["seen"] for sample in claims["samples"]]
    left.plot(times, seen, color=SEEN, linewidth=1.6, linestyle=(0, (4, 2)))
    middle = claims["nodes"] / 2
    style = {"fontsize": 9, "fontweight": "bold", "textcoords": "offset points"}
    at = claims["claimed_at"][claims["nodes"] // 2]
    left.annotate("hold a subnet", (at, middle), xytext=(-8, 4), ha="right", color=CLAIMED, **style)
    late = next((sample["at"] for sample in claims["samples"] if sample["seen"] >= middle), end)
    left.annotate("known to a node that watches", (late, middle), xytext=(8, -12), ha="left", color=SEEN, **style)
    _frame(left, "nodes", end)
    right.plot(times, [sample["etcd_kib"] / 1024 for sample in claims["samples"]], color=ETCD, linewidth=2)
    right.set_ylim(bottom=0)
    _frame(right, "resident memory of etcd, MiB", end)
    figure.text(
        0.02, 0.94, f"{claims['nodes']:,} nodes claim a subnet of one etcd at once", fontsize=11, fontweight="bold", color=INK
    )  # fmt: skip
    text = (
        f"All hold one after {claims['all_claimed_s']:.1f} s, no subnet twice; {claims['conflicts']:,} tries found one "
        f"taken and went on; all are known to a node that watches after {claims['all_seen_s']:.1f} s"
    )
    figure.text(0.02, 0.885, text, fontsize=8.5, color=FAINT)
    write_caption(figure, caption, HEIGHT)
    figure.savefig(path)


def _frame(axes: Axes, title: str, end: float) -> None:
    bare(axes, "both")
    axes.tick_params(which="both", length=0, labelsize=8)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlim(0, end * 1.02)
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel("seconds", fontsize=8, color=FAINT)
