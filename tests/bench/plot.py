"""The plot for the README: a bar per row, its length the ratio, the target a mark across it; a block per table."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tests.bench.rows import GROUPS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from tests.bench.rows import Outcome

COLORS = {"met": "#2a9d6f", "MISSED": "#d1495b", "": "#8d99ae"}
INK, FAINT, GRID = "#22303c", "#6b7785", "#e6eaee"
WIDEST = 2.6  # a longer bar is cut there; its number tells
ROW_INCHES, HEAD_INCHES, FOOT_INCHES = 0.44, 0.85, 1.0


def draw(outcomes: Sequence[Outcome], caption: str, path: Path) -> None:
    """Write a PNG."""
    blocks = [(group.title, [one for one in outcomes if one.row in group.rows]) for group in GROUPS]
    lines = sum(len(block) + 1 for _, block in blocks if block)
    height = HEAD_INCHES + ROW_INCHES * lines + FOOT_INCHES
    figure = Figure(figsize=(9, height), dpi=160, facecolor="white")
    axes = figure.add_subplot()
    figure.subplots_adjust(left=0.29, right=0.985, top=1 - HEAD_INCHES / height, bottom=FOOT_INCHES / height)
    places: dict[int, str] = {}
    place = 0
    for title, block in blocks:
        if not block:
            continue
        _heading(axes, place, title)
        for outcome in block:
            place += 1
            places[place] = _label(outcome)
            _bar(axes, place, outcome)
        place += 1
    _frame(axes, places, place)
    figure.text(
        0.02, 1 - 0.32 / height, "cnikit: its time as a multiple of its peer's (shorter is better)",
        fontsize=11, fontweight="bold", color=INK, va="center",
    )  # fmt: skip
    figure.legend(
        handles=[
            Line2D([], [], color=INK, linewidth=2.2, label="target, at most"),
            Patch(color=COLORS["met"], label="met"),
            Patch(color=COLORS["MISSED"], label="missed"),
            Patch(color=COLORS[""], label="no target"),
        ],
        loc="center", bbox_to_anchor=(0.6, 0.58 / height), ncols=4, frameon=False, fontsize=8, labelcolor=INK,
    )  # fmt: skip
    write_caption(figure, caption, height)
    figure.savefig(path)


def write_caption(figure: Figure, caption: str, height: float) -> None:
    """Small print at the lower edge of a figure of 9 inches in width."""
    wrapped = "\n".join(textwrap.wrap(caption, 160))
    figure.text(0.02, 0.08 / height, wrapped, fontsize=6.5, color=FAINT, va="bottom")


def bare(axes: Axes, grid: str) -> None:
    """No box and no ticks, a faint grid."""
    axes.tick_params(length=0, labelsize=8, labelcolor=FAINT)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]  # x, y or both
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def times(ratio: float) -> str:
    return f"{ratio:.3f}x" if ratio < 0.1 else f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def _frame(axes: Axes, places: dict[int, str], lines: int) -> None:
    bare(axes, "x")
    axes.set_yticks(list(places), list(places.values()), fontsize=8, color=INK)
    axes.set_ylim(lines - 0.5, -0.5)
    axes.set_xlim(0, WIDEST * 1.3)
    axes.set_xticks([0, 0.5, 1, 1.5, 2, 2.5], ["0", "0.5x", "1x", "1.5x", "2x", "2.5x"])
    axes.axvline(1, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.text(1, -0.55, "as fast as the peer", ha="center", va="bottom", color=FAINT, fontsize=8)


def _heading(axes: Axes, place: int, title: str) -> None:
    style: dict[str, Any] = {"va": "center", "fontsize": 9, "fontweight": "bold", "color": INK}
    axes.annotate(title, (0, place), textcoords="offset points", xytext=(-180, 0), **style)


def _bar(axes: Axes, place: int, outcome: Outcome) -> None:
    color, limit = COLORS[outcome.verdict], outcome.row.at_most
    length = min(outcome.ratio, WIDEST)
    axes.barh(place, length, height=0.5, color=color, zorder=2)
    if outcome.ratio > WIDEST:
        axes.text(WIDEST - 0.08, place, "//", fontsize=14, color="white", va="center", ha="center", zorder=3)
    if limit is not None:
        axes.plot([limit, limit], [place - 0.34, place + 0.34], color=INK, linewidth=2.2, zorder=4)
    beside: dict[str, Any] = {"va": "center", "textcoords": "offset points", "xytext": (6, 0), "zorder": 3}
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    ratio = axes.annotate(
        times(outcome.ratio), (max(length, limit or 0), place),
        fontsize=9, fontweight="bold", color=color, bbox=ground, **beside,
    )  # fmt: skip
    milliseconds = f"{_short(outcome.ours.median)} / {_short(outcome.peer.median)} ms"
    axes.annotate(milliseconds, (1, 0.5), xycoords=ratio, fontsize=8, color=FAINT, bbox=ground, **beside)


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.2f}"


def _label(outcome: Outcome) -> str:
    return f"{outcome.title}\nagainst {outcome.against}"
