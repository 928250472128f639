"""flock with a bounded wait; a transient lock leaves no file and still excludes whoever waited for it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from cni.errors import TRY_AGAIN, CniError
from cni.lock import WAIT, Lock

if TYPE_CHECKING:
    from pathlib import Path


def frozen() -> float:
    """A clock by which no wait ever ends."""
    return 0.0


def locked(path: Path) -> bool:
    """Whether somebody holds the lock on the file that is at `path` now."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_holds_and_releases(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "lock"

    with Lock(str(path), frozen) as lock:
        assert locked(path)

    assert not locked(path)
    lock.close()  # a second time is harmless
    assert path.stat().st_mode & 0o777 == 0o600


def test_transient_lock_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    with Lock(str(path), frozen, transient=True):
        assert path.exists()

    assert not path.exists()


def test_transient_lock_whose_folder_was_cleared(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with Lock(str(path), frozen, transient=True):
        path.unlink()

    assert list(tmp_path.iterdir()) == []


def test_waiting_too_long_is_code_11_and_names_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    # Each look at the clock is half a wait later.
    clock = iter([0.0, WAIT / 2, WAIT, 2 * WAIT]).__next__

    with Lock(str(path), frozen), pytest.raises(CniError) as caught:
        Lock(str(path), clock)

    assert caught.value.code == TRY_AGAIN
    assert str(path) in caught.value.msg
    assert "within 10 s" in caught.value.msg
    assert clock() == 2 * WAIT  # it was asked three times, and not once more
    with Lock(str(path), frozen):
        pass


def test_other_failures_leave_no_open_file(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")

    with pytest.raises(OSError, match="Is a directory"):
        Lock(str(tmp_path), frozen)

    assert os.listdir("/proc/self/fd") == before


def test_a_waiting_process_gets_the_lock_that_is_at_the_path(tmp_path: Path) -> None:
    """It waited for a file that its holder then unlinked: it must lock the new one, or a third would get it too."""
    path = tmp_path / "lock"
    program = (
        "import sys\nfrom cni.lock import Lock\nprint('waiting', flush=True)\n"
        "lock = Lock(sys.argv[1], lambda: 0.0, transient=True)\nprint('got it', flush=True)\nsys.stdin.read()\nlock.close()"
    )
    first = Lock(str(path), frozen, transient=True)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        first.close()
        assert process.stdout.readline() == "got it\n"
        assert locked(path)
        process.stdin.close()
    assert process.returncode == 0
    assert not path.exists()


def test_many_transient_holders_one_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            with Lock(path, frozen, transient=True):
                inside.append(number)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == [1] * 160
    assert os.listdir(tmp_path) == []
