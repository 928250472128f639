"""What was measured, reported four times: tables on the terminal, JSON, plots, and tables in README and docs/."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from cni import __version__
from tests.bench import cluster_report, plot, plot_claimers, plot_loop, plot_steps
from tests.bench.cluster_agent import Started
from tests.bench.rows import AGENT, CLUSTER, GROUPS, ROWS, STARTS, Outcome, Stats
from tests.bench.steps import Breakdown
from tests.bench.world import CNI_VERSION, RESIDENTS, SUBNET

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from tests.bench.cluster_report import Claims
    from tests.bench.loop import Trace
    from tests.bench.rows import Group, Scale
    from tests.bench.scenarios import Subject

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
# What README.md shows: the calls that a node makes all day. The last one is the slowest comparison there is.
HEADLINES = ("agent-add", "agent-add-masq", "agent-del", "agent-del-masq", "add")
MEASURES = ("seconds", "least_seconds", "resident", "peak")
COLORS = {"met": "green", "MISSED": "bold red", "": "dim"}


class Findings(NamedTuple):
    """All of a run."""

    about: dict[str, Any]
    outcomes: list[Outcome]
    breakdowns: list[Breakdown]
    trace: Trace | None
    starts: list[Started]
    claims: Claims | None


def facts(subject: Subject, scale: Scale) -> dict[str, Any]:
    """On what and of what this was measured."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release().partition("-")[0],
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),  # at the end; it counts those that wait for the kernel as well
        "cnikit": __version__,
        "python": {"executable": subject.python, "version": _python_version(subject.python)},
        "peer": _peer_version(subject.peers / "bridge"),
        "configuration": f"cniVersion {CNI_VERSION}, isDefaultGateway, one IPv4 range {SUBNET}; "
        f"{RESIDENTS} other pods on the bridge; DEL is given prevResult",
        "leases": f"{scale.few} and {scale.many:,} consecutive lease files on disk; Go at most {scale.go_many_runs} times",
        "time": "from before the start of the process until its output has ended and it has exited; what the "
        "kernel frees later, as of a deleted link, is not in it",
        "at once": f"{scale.at_once} processes for as many pods, started as fast as one process can; all: from before the "
        "first start until the last has exited; p99: of the calls of a round, each from its own start; the medians are "
        "those of the rounds",
        "in process": "dispatch with the agent's kernel and locks, without launcher, socket and threads; the "
        "kernel's time is the sum of the times around the system calls that send the netlink messages of the very same "
        "calls and receive the answers",
        "peers": cluster_report.PEERS,
        "starts": cluster_report.STARTING,
        "scale": scale._asdict(),
        "unit": "ms",
    }


def show(console: Console, findings: Findings) -> None:
    for group in GROUPS:
        outcomes = [one for one in findings.outcomes if one.row in group.rows]
        if outcomes:
            console.print(_table(f"{group.title}: {group.timed}, median (min - p90) in ms", outcomes))
    if findings.starts:
        console.print(cluster_report.table(findings.starts))
    if findings.claims is not None:
        console.print("\n".join(cluster_report.claims_lines(findings.claims)), markup=False)
    for breakdown in findings.breakdowns:
        console.print(f"{breakdown.title} through the agent, ms: {breakdown}")
    if findings.trace is not None:
        begin, end = findings.trace.usage[0][1], findings.trace.usage[-1][1]
        pods = findings.trace.pods
        console.print(f"{pods} pods up and down: nothing left; the agent before {begin} and after {end}, memory in KiB")
    console.print(_caption(findings.about), style="dim")


def write(findings: Findings, folder: Path, readme: Path) -> list[Path]:
    """Write all of them, from numbers that are rounded once; returns the files that were written."""
    findings = _rounded(findings)
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "bench.json"
    steps = {one.title: one.as_json() for one in findings.breakdowns}
    loop = {} if findings.trace is None else findings.trace.as_json()
    rows = [_as_json(one) for one in findings.outcomes]
    starts = [one.as_json() for one in findings.starts]
    claims = {} if findings.claims is None else cluster_report.claims_json(findings.claims)
    measured = {"rows": rows, "agents that start": starts, "claimers": claims, "steps": steps, "loop": loop}
    data.write_text(json.dumps(findings.about | measured, indent=2) + "\n")
    caption = _caption(findings.about)
    written = [data, folder / "bench.png"]
    plot.draw(findings.outcomes, caption, written[-1])
    if findings.breakdowns:
        written.append(folder / "bench-steps.png")
        plot_steps.draw(findings.breakdowns, caption, written[-1])
    if findings.trace is not None:
        written.append(folder / "bench-loop.png")
        plot_loop.draw(findings.trace, caption, written[-1])
    if findings.claims is not None:
        written.append(folder / "bench-claimers.png")
        plot_claimers.draw(findings.claims, _machine(findings.about), written[-1])
    # From the file, so that the pages have its numbers to the last digit.
    return written + [page for page, text in pages(read(data), folder, readme).items() if _fill_in(page, text)]


def read(data: Path) -> Findings:
    """What bench.json has for the pages: all but the plots."""
    found = json.loads(data.read_text())
    rows, starts = {row.key: row for row in ROWS}, {start.key: start for start in STARTS}
    outcomes = [
        Outcome(rows[one["row"]], one["title"], one["against"], Stats(**one["ours"]), Stats(**one["peer"]))
        for one in found["rows"]
    ]
    started = [
        Started(starts[one["row"]], **{name: one[name] for name in Started._fields[1:]})
        for one in found["agents that start"]
    ]
    return Findings(found, outcomes, [], None, started, found["claimers"] or None)


def pages(findings: Findings, folder: Path, readme: Path) -> dict[Path, str]:
    """What stands between the marks of each page."""
    return {readme: _headlines(findings), folder / "bench.md": _all(findings), folder / "scale.md": _scale(findings)}


def _fill_in(page: Path, new: str) -> bool:
    """Write text between a page's marks, if it has them."""
    text = page.read_text() if page.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return False
    page.write_text(f"{before}{BEGIN}\n{new}\n{END}{after}")
    return True


def _table(title: str, outcomes: Sequence[Outcome]) -> Table:
    table = Table(title=title)
    for heading in ("", "cnikit", "against", "its", "ratio", "at most", ""):
        numeric = heading in {"ratio", "at most", "cnikit"}
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "against")
    for outcome in outcomes:
        color = COLORS[outcome.verdict]
        table.add_row(
            outcome.title, _spread(outcome.ours), outcome.against, _spread(outcome.peer),
            f"[{color}]{plot.times(outcome.ratio)}", _limit(outcome), f"[{color}]{outcome.verdict}",
        )  # fmt: skip
    return table


def _as_json(outcome: Outcome) -> dict[str, Any]:
    row = outcome.row
    (group,) = [group.title for group in GROUPS if row in group.rows]
    return {
        "row": row.key,
        "group": group,
        "title": outcome.title,
        "ours": outcome.ours._asdict(),
        "against": outcome.against,
        "peer": outcome.peer._asdict(),
        "ratio": outcome.ratio,
        "ratio of minima": round(outcome.ours.min / outcome.peer.min, 3),
        "at_most": row.at_most,
        "met": None if row.at_most is None else outcome.verdict == "met",
    }


def _rounded(findings: Findings) -> Findings:
    """With whole microseconds, so that the ratios are those of the numbers that a reader sees."""

    def stats(one: Stats) -> Stats:
        return Stats(round(one.median, 3), round(one.min, 3), round(one.p90, 3), one.runs)

    outcomes = [one._replace(ours=stats(one.ours), peer=stats(one.peer)) for one in findings.outcomes]
    starts = [one._replace(**{name: round(getattr(one, name), 3) for name in MEASURES}) for one in findings.starts]
    return findings._replace(outcomes=outcomes, starts=starts)


def _headlines(findings: Findings) -> str:
    """What README.md has of it: a sentence, and the rows that it is about."""
    by_key = {one.row.key: one for one in findings.outcomes}
    add, masq, delete, _, one_shot = (by_key[key] for key in HEADLINES)
    sentence = (
        f"With the agent, an ADD takes {plot.times(add.ratio)} as long as the Go plugin's ({plot.times(masq.ratio)} with "
        f"masquerading), and a DEL {plot.times(delete.ratio)}. Without the agent, an ADD takes {plot.times(one_shot.ratio)}."
    )
    return "\n".join([
        sentence,
        "",
        "| a whole call, ms | cnikit | against | its | ratio |",
        "|---|--:|---|--:|--:|",
        *(f"| {' | '.join(_headline(by_key[key]))} |" for key in HEADLINES),
        "",
        f"Medians, {_machine(findings.about)}",
    ])  # fmt: skip


def _headline(outcome: Outcome) -> list[str]:
    title, *others = _cells(outcome)[:5]
    return [title if outcome.row in AGENT.rows else f"{title}, without the agent", *others]


def _all(findings: Findings) -> str:
    """What docs/bench.md has of it: every table."""
    about = findings.about
    return "\n".join([
        *(line for group in GROUPS for line in _group(findings, group)),
        *cluster_report.markdown(findings.starts),
        f"Medians. {_caption(about)}",
        f"At once: {about['at once']}. In the agent's process: {about['in process']}.",
        f"{about['peers']} {about['starts']}.",
    ])  # fmt: skip


def _scale(findings: Findings) -> str:
    """What docs/scale.md has of it."""
    about = findings.about
    claims = [] if findings.claims is None else cluster_report.claims_lines(findings.claims)
    return "\n".join([
        *_group(findings, CLUSTER),
        *cluster_report.markdown(findings.starts),
        *claims,
        f"{_machine(about)} {about['peers']}",
        f"{about['starts']}. {cluster_report.FLANNEL}",
    ])  # fmt: skip


def _group(findings: Findings, group: Group) -> list[str]:
    return [
        f"| {group.title}, ms | cnikit | against | its | ratio | at most | |",
        "|---|--:|---|--:|--:|--:|---|",
        *(f"| {' | '.join(_cells(one))} |" for one in findings.outcomes if one.row in group.rows),
        "",
    ]


def _cells(one: Outcome) -> list[str]:
    ratio = f"**{plot.times(one.ratio)}**"
    return [
        one.title, _milliseconds(one.ours.median), one.against, _milliseconds(one.peer.median), ratio, _limit(one),
        one.verdict,
    ]  # fmt: skip


def _caption(about: dict[str, Any]) -> str:
    peer, python = about["peer"], about["python"]
    return (
        f"Against containernetworking/plugins {peer['plugins']} ({peer['go']}) and Python {python['version']}, "
        f"in turn in one run; {_machine(about)} "
        f"Each: {about['configuration']}."
    )


def _machine(about: dict[str, Any]) -> str:
    return f"{about['cpus']} CPUs, Linux {about['kernel']}, {about['date'][:10]}."


def _spread(stats: Stats) -> str:
    return f"{_milliseconds(stats.median)} ({_milliseconds(stats.min)} - {_milliseconds(stats.p90)})"


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


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
