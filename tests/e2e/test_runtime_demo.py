"""`cnikit demo`: it works with our plugins and the reference's, and never touches the machine, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import wait_until

ROOT = Path(__file__).parents[2]
STARTED = "== ADD pod1"


def demo(bin_dir: Path, **options: Any) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    # What a shell starts in the background ignores SIGINT, and hands that on: `make test &` does.
    argv = ("env", "--default-signal=INT", sys.executable, "-m", "cli.main", "demo", "--bin-dir", str(bin_dir))
    return subprocess.Popen(
        argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def machine() -> dict[str, Any]:
    """What the demo could have left on the machine."""
    links = subprocess.run(("ip", "-o", "link"), capture_output=True, text=True, check=True).stdout
    return {
        "links": [line.split(": ")[1] for line in links.splitlines() if "demo0" in line or "uplink" in line],
        "tables": [line for line in nft() if "cnikit-demo" in line],
        "files": [path for path in ("/run/cnikit-demo", "/run/cnikit/networks/demo") if os.path.exists(path)],
        "namespaces": [name for name in netns() if name.startswith("cnikit-demo")],
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "cnikit-demo" in line],
    }


def nft() -> list[str]:
    return subprocess.run(("nft", "list", "ruleset"), capture_output=True, text=True, check=True).stdout.splitlines()


def netns() -> list[str]:
    return os.listdir("/run/netns") if os.path.isdir("/run/netns") else []


NOTHING: dict[str, Any] = {"links": [], "tables": [], "files": [], "namespaces": [], "mounts": []}


@pytest.fixture(params=["ours", "reference"])
def plugins(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue({"ours": "bin_dir", "reference": "peers"}[request.param])
    return folder


def test_the_demo_runs_to_its_end_and_leaves_nothing(plugins: Path) -> None:
    running = demo(plugins)
    stdout, stderr = running.communicate(timeout=120)

    assert running.returncode == 0, stdout + stderr
    assert stdout.count(" -> outside") == 4
    assert stdout.count(" -> pod") == 4
    assert "outside saw pings from 192.0.2.1, 2001:db8::1" in stdout
    # The reference has no vxlan to show.
    ours = "left out: there is no plugin vxlan" not in stdout
    assert ours == (plugins / "vxlan").exists()
    assert stdout.count(": none") == (8 if ours else 7)
    wire = [line for line in stdout.splitlines() if " UDP 8472 VNI 1: " in line]
    assert len(wire) == (4 if ours else 0)
    if ours:
        assert "192.0.2.1 -> 192.0.2.3 UDP 8472 VNI 1: 10.244.1.2 -> 10.244.3.3 ICMP echo request" in stdout
        assert stdout.count(" ms │") == 30
    assert machine() == NOTHING


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_demo_that_is_ended_early_leaves_nothing(bin_dir: Path, end: signal.Signals) -> None:
    running = demo(bin_dir)
    assert running.stdout is not None
    while STARTED not in (line := running.stdout.readline()):
        assert line, running.communicate()
    os.killpg(running.pid, end)
    running.communicate(timeout=60)

    assert running.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}[end]
    wait_until(lambda: machine() == NOTHING, "nothing left")
    again = demo(bin_dir)
    outcome = again.communicate(timeout=120)
    assert again.returncode == 0, outcome


def agents() -> list[str]:
    """The processes of a demo's lab, by what their output goes to."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/2"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(path))
    return [path for path in found if "cnikit-lab/demo/" in path]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_the_lab_of_a_demo_ends_with_it(bin_dir: Path, end: signal.Signals) -> None:
    running = demo(bin_dir)
    assert running.stdout is not None
    while "== Three nodes" not in (line := running.stdout.readline()):
        assert line, running.communicate()
    wait_until(lambda: len(agents()) == 3, "three agents run")
    os.killpg(running.pid, end)
    running.communicate(timeout=60)

    wait_until(lambda: not agents(), "no agent is left")
    assert machine() == NOTHING


def test_two_demos_at_once_do_not_meet(bin_dir: Path) -> None:
    both = [demo(bin_dir), demo(bin_dir)]
    outcomes = [running.communicate(timeout=120) for running in both]
    assert [running.returncode for running in both] == [0, 0], outcomes


def test_a_missing_plugin_is_named(tmp_path: Path) -> None:
    running = demo(tmp_path)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "failed to find plugin 'bridge'" in stderr
    assert "Traceback" not in stderr
