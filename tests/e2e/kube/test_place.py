"""A place leaves the machine as it was, also when the tests that opened it are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e import images
from tests.e2e.kube.place import Place
from tests.e2e.world import wait_same, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "localhost/cnikit-test:1"
MARK = "1234567"  # seconds that no other process sleeps
ROOT = Path(__file__).parents[3]
# Opens a place, starts a container in it, says so, and waits to be killed.
OPEN = """
import signal, sys
from pathlib import Path
from tests.e2e.kube.test_place import Place, start_container
with Place(Path(sys.argv[1])) as place:
    start_container(place)
    print(place.run("podman", "ps", "--format={{.Names}}"), flush=True)
    signal.pause()
"""


def machine(storage: Path) -> dict[str, Any]:
    """What a place could leave behind."""
    links = json.loads(subprocess.run(["ip", "-j", "link"], check=True, capture_output=True, text=True).stdout)
    cgroups = [
        str(folder)
        for pattern in ("*cnikit-kube*", "*/*cnikit-kube*")
        for folder in Path("/sys/fs/cgroup").glob(pattern)
    ]
    commands = {entry.name: _text(Path(entry.path, "cmdline")) for entry in os.scandir("/proc") if entry.name.isdigit()}
    return {
        "links": [link["ifname"] for link in links],
        "cgroups": cgroups,
        "mounts": Path("/proc/self/mountinfo").read_text().splitlines(),
        "processes": [pid for pid, command in commands.items() if str(storage) in command or MARK in command],
        "inotify": Path("/proc/sys/fs/inotify/max_user_instances").read_text(),
        "modules": os.path.lexists("/lib/modules"),
    }


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # the process has ended
        return ""


def start_container(place: Place) -> None:
    archive = place.path("/run/lab/busybox.tar")
    images.save(archive, IMAGE, "/bin/sh", "-c")
    place.run("podman", "load", "--signature-policy=/run/lab/policy.json", "--input=/run/lab/busybox.tar")
    place.run("podman", "network", "create", "lab")
    place.run("podman", "run", "--detach", "--name=one", "--net=lab", "--volume=data:/data", IMAGE, f"sleep {MARK}")


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    """Of a podman; its layers must not be mounted any more when the folder is removed."""
    yield tmp_path / "storage"
    subprocess.run(["rm", "-rf", tmp_path / "storage"], check=True)


def test_a_place_leaves_the_machine_as_it_was(storage: Path) -> None:
    before = machine(storage)
    with Place(storage) as place:
        start_container(place)
        assert place.run("podman", "ps", "--format={{.Names}}").split() == ["one"]
    wait_same(lambda: machine(storage), before, "the place left something")


def test_a_killed_run_leaves_nothing(storage: Path) -> None:
    before = machine(storage)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", OPEN, storage], env=environ, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        started = run.stdout.readline()
        run.send_signal(signal.SIGKILL)
    assert started == "one\n"

    wait_same(lambda: machine(storage), before, "the killed run left something", 60.0)
    with Place(storage) as place:
        assert place.run("podman", "ps", "--all", "--format={{.Names}}") == ""
        assert place.run("podman", "volume", "ls", "--format={{.Name}}") == ""


def test_the_cgroups_of_a_killed_holder_are_removed_by_the_next_place(storage: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    stale = Path("/sys/fs/cgroup") / ("" if Path("/sys/fs/cgroup/cgroup.procs").exists() else "memory")
    stale = stale / f"cnikit-kube-{gone.pid}"
    (stale / "libpod_parent").mkdir(parents=True)

    with Place(storage):
        wait_until(lambda: not stale.exists(), f"{stale} is removed")
