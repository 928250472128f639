"""The launcher against an agent that says anything: libFuzzer with the sanitizers, from a small corpus."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.launcher.conftest import compile_sanitized

HERE = Path(__file__).parent
RUNS = 50_000


def test_a_hostile_agent(tmp_path: Path) -> None:
    target, corpus = tmp_path / "fuzz", tmp_path / "corpus"
    corpus.mkdir()
    compile_sanitized(target, "fuzzer,address,undefined", HERE / "fuzz_agent.c")
    # The same numbers in every run, and no output of the launcher's own: it ends up on stdout and stderr.
    options = [
        f"-runs={RUNS}",
        "-seed=1",
        "-max_len=700",
        "-timeout=20",
        "-close_fd_mask=3",
        f"-artifact_prefix={tmp_path}/",
    ]
    ran = subprocess.run(
        [target, *options, corpus, HERE / "seeds"], capture_output=True, text=True, errors="replace", check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert f"Done {RUNS} runs" in ran.stderr
