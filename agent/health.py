"""Whether the agent is alive, and whether it takes calls: the answers of `/healthz` and `/readyz`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from agent.http import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.server import Server
    from agent.workers import Workers

# The loop goes round once a second when nothing happens.
_STILL = 10.0
# How long a thread may be awaited: with many calls at once each has its turn well within this.
_STUCK = 30.0
# How long one who asks is kept waiting for a thread.
_AWAITED = 1.0

OK = Reply(200, b"ok\n")


class Health:
    """Looks at the loop and at the threads. `ending` says how the agent is ending, empty when it is not; `unfit` why this
    process cannot serve calls (agent/rights.py), empty when it can."""

    def __init__(
        self,
        server: Server,
        workers: Sequence[Workers],
        clock: Callable[[], float],
        ending: Callable[[], str],
        unfit: str = "",
    ) -> None:
        self._server = server
        self._workers = workers
        self._clock = clock
        self._ending = ending
        self._unfit = unfit
        self._asked = 0.0
        self._done: list[threading.Event] = []

    def ready(self) -> Reply:
        """Whether new calls are taken, and can be served."""
        how = self._ending()
        if how:
            return Reply(503, f"ending: {how}\n".encode())
        return Reply(503, f"{self._unfit}\n".encode()) if self._unfit else OK

    def alive(self) -> Reply:
        """Whether the loop goes round, and a thread comes to do something. Asked by one thread at a time."""
        still = self._clock() - self._server.turned
        if still > _STILL and not self._ending():
            return Reply(503, f"the loop has stood still for {still:.0f} s\n".encode())
        if not self._done:
            self._asked = self._clock()
            for workers in self._workers:
                done = threading.Event()
                if not workers.submit(None, done.set):
                    self._done = []
                    return Reply(503, b"too many calls are under way\n")
                self._done.append(done)
        if all(done.wait(_AWAITED) for done in self._done):
            self._done = []
            return OK
        waited = self._clock() - self._asked
        if waited > _STUCK:
            return Reply(503, f"no thread has been free for {waited:.0f} s\n".encode())
        return OK
