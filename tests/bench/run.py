"""Measure cnikit's executables against the Go plugins and write what came out; `make bench` calls it.

    CNIKIT_TEST_BIN=dist/bin CNIKIT_TEST_PEERS=.cache/peers python tests/bench/run.py

It needs root, and `cnikit` beside the folder of executables. It writes bench.json, bench.png, bench-steps.png,
bench-loop.png and bench-claimers.png into --output, and tables between the marks `<!-- bench -->` and `<!-- /bench -->`
of README.md, docs/bench.md and docs/scale.md (the latter two in --output), where they exist. With --only it writes
nothing. A missed target is shown in the table and is no failure.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tests.bench import claimers, cluster_agent, loop, report
from tests.bench.rows import QUICK, ROWS, RUNS, STARTS, Outcome, Scale
from tests.bench.scenarios import Subject, measure
from tests.bench.steps import breakdowns
from tests.bench.world import CallFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.cluster_report import Claims

ROOT = Path(__file__).resolve().parents[2]
DEBIAN_PYTHON = "/usr/bin/python3.11"
LOOP, CLAIMERS = "loop", "claimers"
REPORT_WIDTH = 130  # where no terminal tells one


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell has switched it off
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    console = Console(width=None if sys.stdout.isatty() else REPORT_WIDTH)
    bin_dir = _folder("CNIKIT_TEST_BIN")
    subject = Subject(bin_dir, bin_dir.parent / "cnikit", _folder("CNIKIT_TEST_PEERS"), _python())
    if os.geteuid() != 0:
        sys.exit("the benchmark makes network namespaces: call it as root")
    try:
        findings = _measure(subject, arguments, lambda text: console.print(f"[dim]{text}"))
    except CallFailedError as error:
        sys.exit(f"the benchmark cannot go on: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing is written, and the nodes are gone")
    report.show(console, findings)
    if arguments.only:
        console.print("[dim]only a part was measured: no file is written")
        return
    written = report.write(findings, arguments.output, arguments.readme)
    console.print(f"[dim]written: {', '.join(map(str, written))}")


def _measure(subject: Subject, arguments: argparse.Namespace, tell: Callable[[str], None]) -> report.Findings:
    scale = QUICK if arguments.quick else Scale.of(arguments.runs)

    def is_wanted(key: str) -> bool:
        return not arguments.only or key in arguments.only

    rows = [row for row in ROWS if is_wanted(row.key)]
    times = measure(subject, scale, rows, tell)
    starts = cluster_agent.measure(subject, scale, [start for start in STARTS if is_wanted(start.key)], tell)
    trace = loop.run(subject, scale, tell) if is_wanted(LOOP) else None
    claims = _claims(scale, tell) if is_wanted(CLAIMERS) else None
    outcomes = [Outcome.of(row, scale, times[row.scenario]) for row in rows]
    return report.Findings(report.facts(subject, scale), outcomes, breakdowns(times), trace, starts, claims)


def _claims(scale: Scale, tell: Callable[[str], None]) -> Claims:
    tell("measuring: claimers")
    try:
        return claimers.run(scale.claimers)
    except AssertionError as error:
        raise CallFailedError(str(error)) from None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    keys = [*(row.key for row in ROWS), *(start.key for start in STARTS), LOOP, CLAIMERS]
    parser.add_argument("--runs", type=_runs, default=RUNS, metavar="N", help=f"counted calls of each kind ({RUNS})")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    only = f"this row, and write no file; repeatable; one of {', '.join(keys)}"
    parser.add_argument("--only", action="append", choices=keys, metavar="ROW", help=only)
    parser.add_argument("--output", type=Path, default=ROOT / "docs", metavar="DIR", help="where the files go (docs)")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE", help="where the table goes")
    return parser.parse_args()


def _runs(value: str) -> int:
    number = int(value)
    if number < 2:
        raise argparse.ArgumentTypeError(f"expected at least 2, found {number}")
    return number


def _folder(variable: str) -> Path:
    """A folder of plugins, as an absolute path: a node calls them from another place."""
    value = os.environ.get(variable, "")
    folder = Path(value).resolve()
    if not value or not os.access(folder / "bridge", os.X_OK):
        sys.exit(f"{variable}={value}: expected a folder with the executables bridge and host-local (see `make bench`)")
    return folder


def _python() -> str:
    """Debian's interpreter, which is the faster build, or the one that runs this."""
    return DEBIAN_PYTHON if os.access(DEBIAN_PYTHON, os.X_OK) else os.path.realpath(sys.executable)


if __name__ == "__main__":
    main()
