"""What was measured, told four times: a table on the terminal, JSON, a plot and the README's table."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
import subprocess
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cni import __version__
from tests.bench import plot
from tests.bench.rows import FEW_LEASES, GO_MANY_RUNS, MANY_LEASES, WARM_UP
from tests.bench.world import CNI_VERSION, RESIDENTS, SUBNET

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from tests.bench.rows import Outcome, Stats, Subject

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
COLORS = {"met": "green", "MISSED": "bold red", "": "dim"}


def facts(subject: Subject) -> dict[str, Any]:
    """On what and of what this was measured."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),  # at the end; much more than one means that others were at work
        "cnikit": __version__,
        "python": {"executable": subject.python, "version": _python_version(subject.python)},
        "peer": _peer_version(subject.peers / "bridge"),
        "configuration": f"cniVersion {CNI_VERSION}, isDefaultGateway, one IPv4 range {SUBNET}; "
        f"{RESIDENTS} other pods on the bridge; DEL is given prevResult",
        "leases": f"{FEW_LEASES} and {MANY_LEASES:,} consecutive lease files on disk; Go at most {GO_MANY_RUNS} times",
        "time": "from before the start of the process until its output has ended and it has exited; what the "
        "kernel frees later, as of a deleted link, is not in it",
        "warm_up": WARM_UP,
        "unit": "ms",
    }


def show(console: Console, outcomes: Sequence[Outcome], about: dict[str, Any]) -> None:
    table = Table(title="one-shot executables: whole processes, median (min - p90) in ms", caption=_caption(about))
    for heading in ("", "cnikit", "against", "its", "ratio", "at most", ""):
        numeric = heading in {"ratio", "at most", "cnikit"}
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "against")
    for outcome in outcomes:
        color = COLORS[outcome.verdict]
        table.add_row(
            outcome.row.title, _spread(outcome.ours), outcome.row.against, _spread(outcome.peer),
            f"[{color}]{_times(outcome.ratio)}", _limit(outcome), f"[{color}]{outcome.verdict}",
        )  # fmt: skip
    console.print(table)


def write(outcomes: Sequence[Outcome], about: dict[str, Any], folder: Path, readme: Path) -> list[Path]:
    """The files that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    data, picture = folder / "bench.json", folder / "bench.png"
    data.write_text(json.dumps(about | {"rows": [_as_json(one) for one in outcomes]}, indent=2) + "\n")
    plot.draw(outcomes, _caption(about), picture)
    written = [data, picture]
    text = readme.read_text() if readme.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        readme.write_text(f"{before}{BEGIN}\n{_markdown(outcomes, about)}\n{END}{after}")
        written.append(readme)
    return written


def _as_json(outcome: Outcome) -> dict[str, Any]:
    row = outcome.row
    return {
        "row": row.key,
        "title": row.title,
        "ours": _rounded(outcome.ours),
        "against": row.against,
        "peer": _rounded(outcome.peer),
        "ratio": round(outcome.ratio, 3),
        "at_most": row.at_most,
        "met": None if row.at_most is None else outcome.verdict == "met",
    }


def _rounded(stats: Stats) -> dict[str, float]:
    return {name: round(value, 3) for name, value in stats._asdict().items()}


def _markdown(outcomes: Sequence[Outcome], about: dict[str, Any]) -> str:
    lines = [
        "| median of whole calls, ms | cnikit | against | its | ratio | at most | |",
        "|---|--:|---|--:|--:|--:|---|",
    ]
    for one in outcomes:
        cells = [
            one.row.title, f"{one.ours.median:.1f}", one.row.against, f"{one.peer.median:.1f}",
            f"**{_times(one.ratio)}**", _limit(one), one.verdict,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _caption(about)])


def _caption(about: dict[str, Any]) -> str:
    peer, python = about["peer"], about["python"]
    return (
        f"Against containernetworking/plugins {peer['plugins']} ({peer['go']}) and Python {python['version']}, "
        f"in turn in one run; {about['cpus']} CPUs, Linux {about['kernel']}, {about['date'][:10]}. "
        f"Each: {about['configuration']}."
    )


def _spread(stats: Stats) -> str:
    return f"{stats.median:.1f} ({stats.min:.1f} - {stats.p90:.1f})"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def _limit(outcome: Outcome) -> str:
    return "" if outcome.row.at_most is None else f"{outcome.row.at_most:g}x"


def _python_version(executable: str) -> str:
    return subprocess.run([executable, "-V"], check=True, capture_output=True, text=True).stdout.split()[-1]


def _peer_version(executable: Path) -> dict[str, str]:
    """What a Go program's build information says; it stands in the file as text."""
    data = executable.read_bytes()
    found = {}
    for key, pattern in {
        "plugins": rb"github\.com/containernetworking/plugins\t(v[\w.+-]+)",
        "go": rb"\bgo(1\.\d+(?:\.\d+)?)\b",
    }.items():
        match = re.search(pattern, data)
        found[key] = match[1].decode() if match else "of unknown version"
    found["go"] = f"Go {found['go']}"
    return found
