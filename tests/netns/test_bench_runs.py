"""`make bench` works: a short run measures every row, reports it four times and leaves nothing. How fast is no test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench.report import HEADLINES
from tests.bench.rows import CLUSTER, GROUPS, QUICK, ROWS, STARTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = "# cnikit\n<!-- bench -->\nold table\n<!-- /bench -->\nafter\n"
DATA_DIRS = Path("/var/tmp")


class Bench(subprocess.Popen[str]):
    """The benchmark as a process, started as the Makefile does it."""

    def __init__(self, *arguments: str) -> None:
        for variable in ("CNIKIT_TEST_BIN", "CNIKIT_TEST_PEERS"):
            assert os.environ.get(variable), (
                f"{variable} is not set: expected a folder of executables (see `make test`)"
            )
        super().__init__(
            [sys.executable, str(ROOT / "tests/bench/run.py"), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def end(self) -> tuple[int, str, str]:
        """Exit status, stdout and stderr, after a look at whether the leases are gone."""
        out, err = self.communicate(timeout=840)
        assert not list(DATA_DIRS.glob(f"cnikit-bench-{self.pid}-*"))
        return self.returncode, out, err


def test_a_short_run_tells_every_row(tmp_path: Path) -> None:
    readme, tables, scale = (tmp_path / name for name in ("README.md", "bench.md", "scale.md"))
    for page in (readme, tables, scale):
        page.write_text(PAGE)

    status, out, err = Bench("--quick", "--output", str(tmp_path), "--readme", str(readme)).end()

    assert status == 0, out + err
    report: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text())
    assert [row["row"] for row in report["rows"]] == [row.key for row in ROWS]
    for row in report["rows"]:
        assert row["title"] in out
        for side in (row["ours"], row["peer"]):
            assert side["runs"] == QUICK.runs
            assert 0 < side["min"] <= side["median"] <= side["p90"]
        assert row["ratio"] == pytest.approx(row["ours"]["median"] / row["peer"]["median"], rel=0.02, abs=0.001)
        assert row["met"] == (None if row["at_most"] is None else row["ratio"] <= row["at_most"])
    assert report["kernel"] == os.uname().release.partition("-")[0]
    assert report["peer"]["plugins"] == "v1.9.1"
    for picture in ("bench.png", "bench-steps.png", "bench-loop.png", "bench-claimers.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG"), picture
    assert filled_in(readme).count("\n| ") == 1 + len(HEADLINES)
    assert filled_in(tables).count("\n| ") == len(GROUPS) + len(ROWS) + 1 + len(STARTS)
    assert filled_in(scale).count("\n| ") > 1 + len(CLUSTER.rows) + 1 + len(STARTS) + 1
    assert_inside(report)
    assert_cluster(report)


def filled_in(page: Path) -> str:
    """A page whose tables are new, and which is as it was around them."""
    text = page.read_text()
    assert text.startswith("# cnikit\n<!-- bench -->\n")
    assert text.endswith("<!-- /bench -->\nafter\n")
    assert "old table" not in text
    return text


def assert_cluster(report: dict[str, Any]) -> None:
    """Agents have started in clusters of the size asked for, and every claimer came to its subnet."""
    starts = {one["row"]: one for one in report["agents that start"]}
    assert list(starts) == [start.key for start in STARTS]
    for start in STARTS:
        found = starts[start.key]
        assert found["peers"] == getattr(QUICK, start.peers)
        assert found["runs"] == QUICK.agent_rounds
        assert found["seconds"] > 0
        assert found["peak"] >= found["resident"] > 0
        assert found["met"] == (None if start.at_most is None else found["resident"] <= start.at_most)
    assert report["claimers"]["nodes"] == QUICK.claimers


def assert_inside(report: dict[str, Any]) -> None:
    """What the agent told: the steps make up the whole, and the loop ended as it began."""
    for breakdown in report["steps"].values():
        assert {"launcher", "ipam", "kernel", "answer"} <= set(breakdown["steps"])
        assert all(value >= 0 for value in breakdown["steps"].values())
    assert set(report["steps"]) == {"ADD", "ADD with ipMasq"}
    loop = report["loop"]
    assert loop["pods"] == QUICK.loop_pods
    for verb in ("ADD", "DEL"):
        assert loop["ours"][verb]["calls"] == QUICK.loop_pods
        assert loop["go"][verb]["calls"] > 0
    first, last = loop["agent"][0], loop["agent"][-1]
    assert last["files"] < first["files"] + QUICK.loop_pods  # threads bring sockets, pods leave nothing open
    assert first["resident"] > 0


def test_a_part_is_shown_and_not_written(tmp_path: Path) -> None:
    status, out, err = Bench("--runs", "2", "--only", "version", "--output", str(tmp_path / "docs")).end()

    assert status == 0, out + err
    assert "VERSION" in out
    assert "ADD" not in out
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(how: signal.Signals, tmp_path: Path) -> None:
    bench = Bench("--runs", "100000", "--only", "agent-add", "--output", str(tmp_path / "docs"))
    assert bench.stdout is not None
    bench.stdout.readline()  # measuring has begun
    agent = wait_for_agent_below(bench.pid)

    bench.send_signal(how)
    status, _, err = bench.end()

    assert status == 1
    assert "Traceback" not in err
    assert not agent.exists()
    assert not (tmp_path / "docs").exists()


def wait_for_agent_below(pid: int) -> Path:
    """/proc of the agent that a child of the benchmark has started."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for node in children(pid):
            for agent in children(node):
                if b"\0agent\0" in Path(f"/proc/{agent}/cmdline").read_bytes():
                    return Path(f"/proc/{agent}")
        time.sleep(0.01)
    raise AssertionError("expected an agent below the benchmark, found none")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_an_agent_that_does_not_start_ends_it_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "bridge").symlink_to(Path(os.environ["CNIKIT_TEST_BIN"]).resolve() / "bridge")
    command = tmp_path / "cnikit"
    command.write_text("#!/bin/sh\necho 'no luck' >&2\nexit 1\n")
    command.chmod(0o755)
    monkeypatch.setenv("CNIKIT_TEST_BIN", str(bin_dir))

    status, _, err = Bench("--runs", "2", "--only", "agent-add").end()

    assert status == 1
    assert "no luck" in err
    assert "Traceback" not in err


def test_calls_that_the_agent_did_not_serve_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Go plugins in the place of ours: they know of no agent."""
    bin_dir = tmp_path / "bin"
    shutil.copytree(os.environ["CNIKIT_TEST_PEERS"], bin_dir, symlinks=True)
    (tmp_path / "cnikit").symlink_to(Path(os.environ["CNIKIT_TEST_BIN"]).resolve().parent / "cnikit")
    monkeypatch.setenv("CNIKIT_TEST_BIN", str(bin_dir))

    status, _, err = Bench("--runs", "2", "--only", "agent-add").end()

    assert status == 1
    assert "calls served by the agent, found 0" in err
    assert "Traceback" not in err


def test_a_failing_plugin_ends_it_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "bridge"
    plugin.write_text('#!/bin/sh\necho \'{"code":11,"msg":"no luck"}\'\nexit 1\n')
    plugin.chmod(0o755)
    monkeypatch.setenv("CNIKIT_TEST_BIN", str(tmp_path))

    status, _, err = Bench("--runs", "2", "--only", "add").end()

    assert status == 1
    assert "no luck" in err
    assert "Traceback" not in err
