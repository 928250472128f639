"""The locks of `cni/lock.py` for a process with many threads: first in line here, then the file's own.

Every lock is still the flock that the one-shot executables take. But among our own threads a file's lock would
be polled; here a thread is woken when its turn comes. Most locks are free within a moment, for which a thread
keeps its place; while it waits for longer another one works.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from cni.errors import TRY_AGAIN, CniError
from cni.lock import WAIT, Lock

if TYPE_CHECKING:
    from collections.abc import Callable

    Waiting = Callable[[], AbstractContextManager[object]]


_MOMENT = 0.005  # seconds


class _Turn:
    """The threads at one path: a mutex and how many use it."""

    __slots__ = ("mutex", "users")

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.users = 0


class SharedLocks:
    """Where the threads' locks come from (`World.lock`)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._turns: dict[str, _Turn] = {}

    def take(self, path: str, waiting: Waiting, *, transient: bool = False, mode: int = 0o600) -> InTurn:
        """The lock of a file; CniError 11 when it takes more than 10 s. `waiting` gives the `with` block of a long wait."""
        with self._guard:
            turn = self._turns.get(path)
            if turn is None:
                turn = self._turns[path] = _Turn()
            turn.users += 1
        try:
            self._acquire(turn.mutex, path, waiting)
            try:
                return InTurn(self, path, self._lock(path, waiting, transient=transient, mode=mode))
            except BaseException:
                turn.mutex.release()
                raise
        except BaseException:
            self._leave(path)
            raise

    def _acquire(self, mutex: threading.Lock, path: str, waiting: Waiting) -> None:
        if mutex.acquire(timeout=_MOMENT):
            return
        with waiting():
            if not mutex.acquire(timeout=WAIT):
                raise CniError(
                    TRY_AGAIN,
                    f"lock {path}: expected to get it within {WAIT:g} s, found it held by another call to the agent",
                    "try again",
                )

    def _lock(self, path: str, waiting: Waiting, *, transient: bool, mode: int) -> Lock:
        try:
            return Lock(path, self._clock, transient=transient, mode=mode, wait=_MOMENT)
        except CniError as error:
            if error.code != TRY_AGAIN:
                raise
        with waiting():
            return Lock(path, self._clock, transient=transient, mode=mode)

    def paths(self) -> int:
        """How many files' locks are in use or waited for."""
        return len(self._turns)

    def release(self, path: str) -> None:
        """The next one's turn."""
        self._turns[path].mutex.release()
        self._leave(path)

    def _leave(self, path: str) -> None:
        with self._guard:
            turn = self._turns[path]
            turn.users -= 1
            if turn.users == 0:
                del self._turns[path]


class InTurn:
    """A file's lock with the turn that led to it."""

    __slots__ = ("_lock", "_locks", "_path")

    def __init__(self, locks: SharedLocks, path: str, lock: Lock) -> None:
        self._locks = locks
        self._path = path
        self._lock: Lock | None = lock

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release both; closing twice is harmless."""
        lock, self._lock = self._lock, None
        if lock is not None:
            try:
                lock.close()
            finally:
                self._locks.release(self._path)
