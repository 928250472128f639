"""Deletes links of the node for many callers at once. Each is answered when its link is gone; nobody waits for
the grace period that follows.

Deleting a link takes the kernel well below a millisecond, then it announces that the link is gone, and then it
blocks the deleting thread until every processor has forgotten it (6 to 40 ms). So threads are kept to be blocked,
and a monitor wakes the callers. Up to its announcement a deletion has the kernel's one lock for links, so there is
one at a time: what is asked for meanwhile waits and is deleted next, all in one go and with one grace period. The
links are moved to a group, and the group is deleted.

The group's number is picked anew each time out of 2^24 (docs/registry.md), so that it cannot meet what a killed
process left behind, nor a link that somebody else put into our range. Moving and deleting is one system call,
which a signal does not cut in two. Only veths are deleted in a group, because they always can be: one link that
cannot makes the kernel leave all of them, and would stay in the group.
"""

from __future__ import annotations

import posix
import threading
from _queue import Empty, SimpleQueue
from errno import EAGAIN, EBADF, EIO, ENODEV, ETIMEDOUT

from cni.errors import KernelError
from cni.kernel import rtlinks
from cni.kernel.monitor import Monitor
from cni.kernel.netlink import NETLINK_ROUTE, Socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.kernel.netlink import Answer

    _Turns = SimpleQueue[bool]  # True: take all jobs and delete them; False: end

GROUPS = 0x63000000  # the first of 2^24 link groups
THREADS = 32  # at most; as many as have ever been blocked at once
_NOTICE_SECONDS = 1.0  # without a notice for so long, ask
_BEGIN_SECONDS = 5.0
_DELETE_SECONDS = 30.0


class _Batch:
    """Links that are deleted together. `pending` counts those not announced yet."""

    __slots__ = ("jobs", "pending")

    def __init__(self, jobs: list[_Job]) -> None:
        self.jobs = jobs
        self.pending = len(jobs)


class _Job:
    """A link to delete, and the mailbox of who waits for that: an answer, or None when it should ask the kernel."""

    __slots__ = ("alone", "batch", "index", "mail")

    def __init__(self, index: int, *, alone: bool) -> None:
        self.index = index
        self.alone = alone
        self.batch: _Batch | None = None  # until a thread takes it
        self.mail: SimpleQueue[Answer | None] = SimpleQueue()


class Deleter:
    """Made in the node's namespace. Threads are started when they are first needed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._mutex = threading.Lock()  # of all that follows
        self._jobs: list[_Job] = []
        self._announcing: _Batch | None = None  # the one that deletes now
        self._threads: dict[threading.Thread, _Turns] = {}
        self._idle: list[_Turns] = []  # of threads that are not blocked; one of its own for each, so that one wakes up
        self._overdue = False  # a turn that no thread was free for
        self._monitor: Monitor | None = None
        self._closed = False

    def close(self) -> None:
        """End the threads, after what they are doing."""
        with self._mutex:
            self._closed = True
            threads, monitor = self._threads, self._monitor
            self._threads, self._monitor = {}, None
        for turns in threads.values():
            turns.put(False)
        for thread in threads:
            thread.join()
        if monitor is not None:
            monitor.close()

    def delete(self, index: int, is_there: Callable[[], bool], *, alone: bool) -> bool:
        """Delete a link and return when the kernel has announced that it is gone, or `is_there` says so.

        `alone`: not in a group. False when no thread was free to begin with it for 5 s, which is so when the kernel
        cannot let go of earlier links: then the caller has to do it in another way.
        """
        job = _Job(index, alone=alone)
        listener = lambda gone: self._hear(job, gone)  # noqa: E731 - the same object is forgotten
        monitor = self._started()
        monitor.listen(index, listener)
        try:
            with self._mutex:
                self._jobs.append(job)
                self._give_turn()
            return self._wait(job, is_there)
        finally:
            monitor.forget(index, listener)
            with self._mutex:
                if job in self._jobs:
                    self._jobs.remove(job)

    def _wait(self, job: _Job, is_there: Callable[[], bool]) -> bool:
        begin = self._clock()
        while self._clock() < begin + _DELETE_SECONDS:
            try:
                answer = job.mail.get(timeout=_NOTICE_SECONDS)
            except Empty:
                answer = None
            if answer is not None:
                if answer[0]:
                    raise KernelError(f"delete link {job.index}", *answer)
                return True
            if not is_there():
                return True
            if job.batch is None and self._clock() >= begin + _BEGIN_SECONDS:
                return False
        what = f"it is still there after {_DELETE_SECONDS:.0f} seconds"
        raise KernelError(f"delete link {job.index}", ETIMEDOUT, what)

    def _started(self) -> Monitor:
        with self._mutex:
            if self._closed:
                raise KernelError("use a kernel that was closed", EBADF)
            try:
                if self._monitor is None:
                    self._monitor = Monitor()
                if not self._threads:
                    self._start_thread()
            except RuntimeError as error:
                raise KernelError("start a thread", EAGAIN, str(error)) from None
            return self._monitor

    # With the mutex held

    def _start_thread(self) -> None:
        turns: _Turns = SimpleQueue()
        name = f"link deleter {len(self._threads)}"
        thread = threading.Thread(target=self._run, args=(turns,), name=name, daemon=True)
        thread.start()
        self._threads[thread] = turns
        self._idle.append(turns)

    def _give_turn(self) -> None:
        """Let a thread begin, when there is something to do and nothing is being deleted."""
        if not self._jobs or self._announcing is not None or self._closed:
            return
        self._announcing = _Batch([])
        if not self._idle and len(self._threads) < THREADS:
            try:
                self._start_thread()
            except RuntimeError:
                pass  # one of those that there are will take it
        if self._idle:
            self._idle.pop().put(True)
        else:
            self._overdue = True

    def _announced(self, batch: _Batch) -> None:
        """The next one may begin."""
        if self._announcing is batch:
            self._announcing = None
            self._give_turn()

    # In the monitor's thread

    def _hear(self, job: _Job, gone: bool) -> None:  # noqa: FBT001 - what a monitor says
        if not gone:
            job.mail.put(None)
            return
        job.mail.put((0, ""))
        with self._mutex:
            batch = job.batch
            if batch is not None:
                batch.pending -= 1
                if batch.pending == 0:
                    self._announced(batch)

    # In the deleting threads

    def _run(self, turns: _Turns) -> None:
        socket: Socket | None = None
        while turns.get():
            with self._mutex:
                jobs, self._jobs = self._jobs, []
                batch = self._announcing = _Batch(jobs)
                for job in jobs:
                    job.batch = batch
            try:
                if socket is not None and not socket.usable:
                    socket.close()
                    socket = None
                if socket is None:
                    socket = Socket(NETLINK_ROUTE)
                _delete(socket, jobs)
            except Exception as error:  # noqa: BLE001 - whatever it is, this thread must go on
                errno = error.errno if isinstance(error, KernelError) else EIO
                for job in jobs:
                    job.mail.put((errno, str(error)))
            with self._mutex:
                if self._overdue:
                    self._overdue = False
                    turns.put(True)
                else:
                    self._idle.append(turns)
                self._announced(batch)
        if socket is not None:
            socket.close()


def _delete(socket: Socket, jobs: list[_Job]) -> None:
    """Delete links and send each one's answer."""
    veths = [job for job in jobs if not job.alone]
    if len(veths) > 1:
        jobs = [job for job in jobs if job.alone] + _delete_group(socket, veths)
    answers = socket.execute([rtlinks.link_del(job.index) for job in jobs])
    for job, (errno, hint) in zip(jobs, answers, strict=True):
        job.mail.put((0 if errno == ENODEV else errno, hint))


def _delete_group(socket: Socket, jobs: list[_Job]) -> list[_Job]:
    """Delete links as a group; returns those that it did not work for."""
    group = GROUPS | int.from_bytes(posix.urandom(3), "little")
    moves = [rtlinks.link_group(job.index, group) for job in jobs]
    *moved, (errno, _) = socket.execute([*moves, rtlinks.group_del(group)])
    refused = []
    for job, (move_errno, _) in zip(jobs, moved, strict=True):
        if move_errno == ENODEV or (not move_errno and errno in (0, ENODEV)):
            job.mail.put((0, ""))
        else:
            refused.append(job)
    return refused
