"""The threads that serve calls, and whose turn it is.

Calls with one key (attachment and plugin) follow one another in the order in which they came, without holding
a thread while they wait. Few threads work at a time: the interpreter runs one of them while the others are in the
kernel, and more would only fight for both. A thread that waits for somebody else (a foreign program, a link that
goes, a client) does so inside `waiting()`, which lets another one work: a program that calls us back through
another launcher never waits for the thread that started it. Each thread has a working directory of its own, which
is its caller's while it starts a program.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from cni.kernel.mountns import separate_directories

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    Job = Callable[[], None]

# Threads that work at a time.
WORKING = 2
# Threads that there are, and stay, for work and for waiting until the kernel has done something.
USUAL = 16
# Threads with those that wait for a foreign program or a client. Beyond, calls wait, and a launcher that has waited
# for too long runs its call one-shot.
MOST = 160
# Calls that were taken and not answered yet.
MOST_CALLS = 2000

_STACK = 512 << 10


class Workers:
    """A pool that grows while its threads wait, and shrinks again."""

    def __init__(self, most: int = MOST, most_calls: int = MOST_CALLS) -> None:
        self._most = most
        self._most_calls = most_calls
        self._queue: SimpleQueue[tuple[Hashable | None, Job] | None] = SimpleQueue()
        self._guard = threading.Lock()
        # A thread works while it holds one of these.
        self._slots: SimpleQueue[None] = SimpleQueue()
        self._turns: dict[Hashable, deque[Job]] = {}
        self._calls = 0
        self._threads = 0
        self._waiting = 0
        self._quiet = threading.Condition(self._guard)
        threading.stack_size(_STACK)
        with self._guard:
            for _ in range(WORKING):
                self._slots.put(None)
                self._start()

    @property
    def calls(self) -> int:
        """Calls that were taken and are not answered yet."""
        return self._calls

    @property
    def threads(self) -> int:
        return self._threads

    def submit(self, key: Hashable | None, job: Job) -> bool:
        """Have a job done; those with one key one after the other. False when there are too many already."""
        with self._guard:
            if self._calls >= self._most_calls:
                return False
            self._calls += 1
            if key is not None:
                behind = self._turns.get(key)
                if behind is not None:
                    behind.append(job)
                    return True
                self._turns[key] = deque()
        self._queue.put((key, job))
        return True

    def waiting(self) -> Waiting:
        """Use it with `with` around a wait for a program, a client or a lock, which may need us meanwhile."""
        return Waiting(self, self._most)

    def briefly_waiting(self) -> Waiting:
        """The same around a wait for the kernel, which does not."""
        return Waiting(self, min(USUAL, self._most))

    def drain(self, seconds: float) -> bool:
        """Wait until every call is answered; whether that is so."""
        with self._quiet:
            return self._quiet.wait_for(lambda: self._calls == 0, seconds)

    def close(self) -> None:
        """End the threads that have nothing to do; call it when drained."""
        with self._guard:
            for _ in range(self._threads):
                self._queue.put(None)
            self._quiet.wait_for(lambda: self._threads == 0, 1.0)

    def begin_waiting(self, most: int) -> None:
        self._slots.put(None)
        with self._guard:
            self._waiting += 1
            if self._threads - self._waiting < WORKING and self._threads < most:
                self._start()

    def end_waiting(self) -> None:
        with self._guard:
            self._waiting -= 1
        self._slots.get()

    def _start(self) -> None:
        self._threads += 1
        try:
            threading.Thread(target=self._work, name="worker", daemon=True).start()
        except RuntimeError:  # no room for another thread: those that are there do it, later
            self._threads -= 1

    def _work(self) -> None:
        separate_directories()
        while (taken := self._queue.get()) is not None:
            key, job = taken
            self._slots.get()
            try:
                job()
            except Exception:  # noqa: BLE001 - a call's bug must cost no thread
                sys.excepthook(*sys.exc_info())
            finally:
                self._slots.put(None)
                surplus = self._finished(key)
            del taken, job  # what a call was given must not outlive it
            if surplus:
                break
        with self._quiet:
            self._threads -= 1
            self._quiet.notify_all()

    def _finished(self, key: Hashable | None) -> bool:
        """Note that a call is answered; whether its thread is one too many."""
        with self._quiet:
            self._calls -= 1
            if key is not None:
                behind = self._turns[key]
                if behind:
                    self._queue.put((key, behind.popleft()))
                else:
                    del self._turns[key]
            if self._calls == 0:
                self._quiet.notify_all()
            return self._threads - self._waiting > USUAL


class Waiting:
    """The `with` block of a thread that waits."""

    __slots__ = ("_most", "_workers")

    def __init__(self, workers: Workers, most: int) -> None:
        self._workers = workers
        self._most = most

    def __enter__(self) -> Self:
        self._workers.begin_waiting(self._most)
        return self

    def __exit__(self, *exc: object) -> None:
        self._workers.end_waiting()
