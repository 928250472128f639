"""The launcher against an agent, and a stdin, that says anything: libFuzzer with the sanitizers, from a small corpus."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.launcher.conftest import compile_sanitized
from tests.launcher.test_version import ASKED, NEAR_MISSES

HERE = Path(__file__).parent


def test_a_hostile_agent(tmp_path: Path) -> None:
    fuzz("fuzz_agent.c", 50_000, 700, tmp_path, HERE / "seeds")


def test_any_stdin_of_version(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for number, asked in enumerate([ASKED, *NEAR_MISSES.values()]):
        (seeds / str(number)).write_bytes(b"\xff" + asked[:150])
    fuzz("fuzz_version.c", 20_000, 150, tmp_path, seeds)


def fuzz(source: str, runs: int, longest: int, folder: Path, seeds: Path) -> None:
    """Run a target so many times; it ends with the first finding."""
    target, corpus = folder / "fuzz", folder / "corpus"
    corpus.mkdir()
    compile_sanitized(target, "fuzzer,address,undefined", HERE / source)
    # The same numbers in every run, and no output of the launcher's own: it ends up on stdout and stderr.
    options = [
        f"-runs={runs}",
        "-seed=1",
        f"-max_len={longest}",
        "-timeout=20",
        "-close_fd_mask=3",
        f"-artifact_prefix={folder}/",
    ]
    ran = subprocess.run(
        [target, *options, corpus, seeds], capture_output=True, text=True, errors="replace", check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert f"Done {runs} runs" in ran.stderr
