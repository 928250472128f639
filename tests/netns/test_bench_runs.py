"""`make bench` works: a short run measures every row, tells it four times and leaves nothing. How fast is no test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]
README = "# cnikit\n<!-- bench -->\nold table\n<!-- /bench -->\nafter\n"
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


@pytest.mark.timeout(900)  # 60,000 leases are written twice and removed, on a disk that others may use
def test_a_short_run_tells_every_row(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README)

    status, out, err = Bench("--runs", "2", "--output", str(tmp_path), "--readme", str(readme)).end()

    assert status == 0, out + err
    report: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text())
    assert [row["row"] for row in report["rows"]] == [row.key for row in ROWS]
    for row in report["rows"]:
        assert row["title"] in out
        for side in (row["ours"], row["peer"]):
            assert side["runs"] == 2
            assert 0 < side["min"] <= side["median"] <= side["p90"]
        assert row["ratio"] == pytest.approx(row["ours"]["median"] / row["peer"]["median"], rel=0.02)
        assert row["met"] == (None if row["at_most"] is None else row["ratio"] <= row["at_most"])
    assert report["kernel"] == os.uname().release
    assert report["peer"]["plugins"] == "v1.9.1"
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    text = readme.read_text()
    assert text.startswith("# cnikit\n<!-- bench -->\n|")
    assert text.endswith("<!-- /bench -->\nafter\n")
    assert "old table" not in text
    assert text.count("\n| ") == 1 + len(ROWS)


def test_a_part_is_shown_and_not_written(tmp_path: Path) -> None:
    status, out, err = Bench("--runs", "2", "--only", "version", "--output", str(tmp_path / "docs")).end()

    assert status == 0, out + err
    assert "VERSION" in out
    assert "ADD" not in out
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(how: signal.Signals, tmp_path: Path) -> None:
    bench = Bench("--runs", "100000", "--only", "add", "--output", str(tmp_path / "docs"))
    assert bench.stdout is not None
    bench.stdout.readline()  # measuring has begun

    bench.send_signal(how)
    status, _, err = bench.end()

    assert status == 1
    assert "Traceback" not in err
    assert not (tmp_path / "docs").exists()


def test_a_failing_plugin_ends_it_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "bridge"
    plugin.write_text('#!/bin/sh\necho \'{"code":11,"msg":"no luck"}\'\nexit 1\n')
    plugin.chmod(0o755)
    monkeypatch.setenv("CNIKIT_TEST_BIN", str(tmp_path))

    status, _, err = Bench("--runs", "2", "--only", "add").end()

    assert status == 1
    assert "no luck" in err
    assert "Traceback" not in err
