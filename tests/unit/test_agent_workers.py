"""The agent's threads: turns by key, places that are lent while somebody waits, and their bounds."""

from __future__ import annotations

import sys
import threading
import weakref
from typing import TYPE_CHECKING

import pytest

from agent.locks import SharedLocks
from agent.workers import MOST, USUAL, WORKING, Workers
from cni.errors import TRY_AGAIN, CniError
from cni.lock import Lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 20.0


@pytest.fixture
def pool() -> Iterator[Workers]:
    made = Workers()
    yield made
    assert made.drain(SECONDS)
    made.close()
    assert made.threads == 0


def test_calls_of_one_key_keep_their_order(pool: Workers) -> None:
    done: list[int] = []
    gate = threading.Event()

    def first() -> None:
        with pool.waiting():
            gate.wait(SECONDS)
        done.append(0)

    pool.submit("a", first)
    for number in range(1, 200):
        pool.submit("a", lambda number=number: done.append(number))  # type: ignore[misc]
    gate.set()

    assert pool.drain(SECONDS)
    assert done == list(range(200))


def test_others_pass_a_call_that_waits_for_its_turn(pool: Workers) -> None:
    gate, passed = threading.Event(), threading.Event()

    def wait() -> None:
        with pool.waiting():
            gate.wait(SECONDS)

    for _ in range(WORKING * 3):
        pool.submit("a", wait)
    pool.submit("b", passed.set)

    assert passed.wait(SECONDS)
    gate.set()


def test_never_more_than_a_few_work_at_a_time(pool: Workers) -> None:
    guard, working, most = threading.Lock(), [0], [0]

    def work() -> None:
        for _ in range(5):
            with guard:
                working[0] += 1
                most[0] = max(most[0], working[0])
            with guard:
                working[0] -= 1
            with pool.waiting():
                pass

    for number in range(300):
        pool.submit(number, work)

    assert pool.drain(SECONDS)
    assert 0 < most[0] <= WORKING


def test_a_call_that_needs_another_one_never_waits_in_vain(pool: Workers) -> None:
    """As a delegate that calls our host-local through a launcher, while its parent holds a thread."""
    answers = []

    def parent(number: int) -> None:
        child = threading.Event()
        with pool.waiting():
            pool.submit(("child", number), child.set)
            answers.append(child.wait(SECONDS))

    count = MOST // 2
    for number in range(count):
        pool.submit(("parent", number), lambda number=number: parent(number))  # type: ignore[misc]

    assert pool.drain(SECONDS)
    assert answers == [True] * count


def test_threads_end_when_they_are_too_many(pool: Workers) -> None:
    barrier = threading.Barrier(USUAL * 3)

    def meet() -> None:
        with pool.waiting():
            barrier.wait(SECONDS)

    for number in range(USUAL * 3):
        pool.submit(number, meet)
    assert pool.drain(SECONDS)
    for number in range(USUAL * 3):
        pool.submit(number, lambda: None)
    assert pool.drain(SECONDS)

    assert pool.threads <= USUAL + WORKING


def test_too_many_calls_are_refused() -> None:
    pool = Workers(most_calls=3)
    gate = threading.Event()

    def wait() -> None:
        with pool.waiting():
            gate.wait(SECONDS)

    assert [pool.submit(None, wait) for _ in range(5)] == [True] * 3 + [False] * 2
    gate.set()
    assert pool.drain(SECONDS)
    assert pool.submit(None, lambda: None)
    assert pool.drain(SECONDS)
    pool.close()


def test_a_call_that_is_answered_is_forgotten(pool: Workers) -> None:
    """Its thread goes on living, and a request may be megabytes."""

    class Job:
        def __call__(self) -> None:
            pass

    jobs = [Job() for _ in range(3)]
    held = [weakref.ref(job) for job in jobs]
    while jobs:
        pool.submit(None, jobs.pop())
    assert pool.drain(SECONDS)

    assert [one() for one in held] == [None] * 3
    assert pool.threads > 0


def test_an_exception_costs_no_thread(pool: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: seen.append(kind))

    def fail() -> None:
        raise ZeroDivisionError

    for number in range(WORKING * 5):
        pool.submit(number, fail)
    assert pool.drain(SECONDS)
    answered = threading.Event()
    pool.submit("a", answered.set)

    assert answered.wait(SECONDS)
    assert seen == [ZeroDivisionError] * WORKING * 5


class TestLocks:
    def test_threads_take_turns(self, tmp_path: Path, pool: Workers) -> None:
        locks = SharedLocks(lambda: 0.0)
        path = str(tmp_path / "lock")
        inside, most = [0], [0]

        def work() -> None:
            for _ in range(50):
                with locks.take(path, pool.waiting):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    inside[0] -= 1

        for number in range(8):
            pool.submit(number, work)
        assert pool.drain(SECONDS)

        assert most == [1]
        assert locks.paths() == 0

    def test_another_process_is_waited_for_without_a_place(self, tmp_path: Path, pool: Workers) -> None:
        locks = SharedLocks(lambda: 0.0)
        path = str(tmp_path / "lock")
        taken, passed = threading.Event(), threading.Event()

        def take() -> None:
            with locks.take(path, pool.waiting):
                taken.set()

        with Lock(path, lambda: 0.0):  # a file of its own, as another process has one
            for number in range(WORKING * 2):
                pool.submit(number, take)
            pool.submit("other", passed.set)
            assert passed.wait(SECONDS)
            assert not taken.is_set()
        assert taken.wait(SECONDS)

    def test_a_lock_that_stays_taken_is_code_11(self, tmp_path: Path, pool: Workers) -> None:
        clock = iter(range(1 << 30)).__next__  # a second further at each look
        locks = SharedLocks(clock)
        path = str(tmp_path / "lock")
        with Lock(path, lambda: 0.0), pytest.raises(CniError) as caught:
            pool_waiting(pool, lambda: locks.take(path, pool.waiting))

        assert caught.value.code == TRY_AGAIN
        assert locks.paths() == 0

    def test_a_path_that_cannot_be_made_leaves_nothing(self, tmp_path: Path, pool: Workers) -> None:
        locks = SharedLocks(lambda: 0.0)
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="Not a directory"):
            locks.take(str(tmp_path / "file" / "lock"), pool.waiting)
        assert locks.paths() == 0

    def test_a_transient_lock_leaves_no_file(self, tmp_path: Path, pool: Workers) -> None:
        locks = SharedLocks(lambda: 0.0)
        taken = locks.take(str(tmp_path / "locks" / "x"), pool.waiting, transient=True)
        assert [file.name for file in (tmp_path / "locks").iterdir()] == ["x"]
        taken.close()
        taken.close()
        assert list((tmp_path / "locks").iterdir()) == []


def pool_waiting(pool: Workers, action: object) -> None:
    """Run an action in a worker, and raise here what it raised there."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    pool.submit(None, run)
    assert pool.drain(SECONDS)
    if failures:
        raise failures[0]
