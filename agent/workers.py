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
from typing import TYPE_CHECKING, NamedTuple, Self

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


class _Call(NamedTuple):
    """A job, and whose turn it is."""

    key: Hashable | None
    job: Job


class Workers:
    """A pool that grows while its threads wait, and shrinks again.

    A call is handed to one thread, which alone wakes up: the one that has worked last, whose caches are warm. (With
    one queue for all of them each call woke a second thread, which only went to sleep again.)
    """

    def __init__(self, most: int = MOST, most_calls: int = MOST_CALLS) -> None:
        self._most = most
        self._most_calls = most_calls
        self._guard = threading.Lock()  # of all that follows
        self._calls = 0
        self._turns: dict[Hashable, deque[Job]] = {}
        self._backlog: deque[_Call] = deque()  # calls whose turn it is, and that no thread has begun
        self._places = WORKING  # how many more threads may work
        self._threads = 0
        self._idle: list[SimpleQueue[_Call | None]] = []  # mailboxes of threads with nothing to do
        self._back: deque[SimpleQueue[None]] = deque()  # and of those that have waited and want to go on
        self._waiting = 0  # threads that wait
        self._away = 0  # of these, those that may take long
        self._closed = False
        self._quiet = threading.Condition(self._guard)
        threading.stack_size(_STACK)

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
            self._backlog.append(_Call(key, job))
            self._give_places()
        return True

    def waiting(self) -> Waiting:
        """Use it with `with` around a wait for a program, a client or a lock, which may need us meanwhile."""
        return Waiting(self, briefly=False)

    def briefly_waiting(self) -> Waiting:
        """The same around a wait for the kernel, which does not."""
        return Waiting(self, briefly=True)

    def drain(self, seconds: float) -> bool:
        """Wait until every call is answered; whether that is so."""
        with self._quiet:
            return self._quiet.wait_for(lambda: self._calls == 0, seconds)

    def close(self) -> None:
        """End the threads that have nothing to do; call it when drained."""
        with self._quiet:
            self._closed = True
            for mailbox in self._idle:
                mailbox.put(None)
            self._idle.clear()
            self._quiet.wait_for(lambda: self._threads == 0, 1.0)

    def begin_waiting(self, *, briefly: bool) -> None:
        with self._guard:
            self._waiting += 1
            self._away += not briefly
            self._places += 1
            self._give_places()

    def end_waiting(self, *, briefly: bool) -> None:
        with self._guard:
            self._waiting -= 1
            self._away -= not briefly
            if self._places:
                self._places -= 1
                return
            mailbox: SimpleQueue[None] = SimpleQueue()
            self._back.append(mailbox)
        mailbox.get()

    # With the guard held

    def _give_places(self) -> None:
        """Let threads work as long as more may: those that have begun with a call come first."""
        while self._places:
            if self._back:
                self._back.popleft().put(None)
            elif self._backlog and self._idle:
                self._idle.pop().put(self._backlog.popleft())
            elif not self._backlog or not self._start():
                return
            self._places -= 1

    def _start(self) -> bool:
        """Start a thread for the next call. Those that wait for the kernel only are not made up for without end."""
        if self._threads >= min(USUAL + self._away, self._most):
            return False
        mailbox: SimpleQueue[_Call | None] = SimpleQueue()
        try:
            threading.Thread(target=self._work, args=(mailbox,), name="worker", daemon=True).start()
        except RuntimeError:  # no room for another thread: those that are there do it, later
            return False
        mailbox.put(self._backlog.popleft())
        self._threads += 1
        return True

    def _finished(self, key: Hashable | None) -> None:
        """Note that a call is answered, and whose turn it is then."""
        self._calls -= 1
        if key is not None:
            behind = self._turns[key]
            if behind:
                self._backlog.append(_Call(key, behind.popleft()))
            else:
                del self._turns[key]
        if self._calls == 0:
            self._quiet.notify_all()

    def _next(self, mailbox: SimpleQueue[_Call | None]) -> _Call | None:
        """What the thread of a call that is answered goes on with; None for nothing yet."""
        if self._backlog and not self._back:
            return self._backlog.popleft()
        self._places += 1
        if self._closed or self._threads - self._waiting > USUAL:
            mailbox.put(None)  # one too many
        else:
            self._idle.append(mailbox)
        self._give_places()
        return None

    # In the threads

    def _work(self, mailbox: SimpleQueue[_Call | None]) -> None:
        separate_directories()
        call = mailbox.get()
        while call is not None:
            key = call.key
            try:
                call.job()
            except BaseException:  # noqa: BLE001 - a call's bug must cost no thread
                sys.excepthook(*sys.exc_info())
            del call  # what a call was given must not outlive it
            with self._guard:
                self._finished(key)
                call = self._next(mailbox)
            if call is None:
                call = mailbox.get()
        with self._quiet:
            self._threads -= 1
            self._quiet.notify_all()


class Waiting:
    """The `with` block of a thread that waits."""

    __slots__ = ("_briefly", "_workers")

    def __init__(self, workers: Workers, *, briefly: bool) -> None:
        self._workers = workers
        self._briefly = briefly

    def __enter__(self) -> Self:
        self._workers.begin_waiting(briefly=self._briefly)
        return self

    def __exit__(self, *exc: object) -> None:
        self._workers.end_waiting(briefly=self._briefly)
