"""The agent's log: JSON lines on stderr, one object each, written by a thread of their own.

Whoever logs never waits. When stderr is a pipe that nobody reads, lines pile up to a bound, and those that come
after are dropped and counted. What may happen thousands of times at once is noted: a few lines in a second, and then one
that counts the rest.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

INFO = "info"
WARNING = "warning"
ERROR = "error"

_ROOM = 1 << 20  # bytes that wait to be written
_AT_ONCE = 1 << 16
MOST_NOTES = 10  # in a second

# ensure_ascii: what is no UTF-8 (surrogate escapes) and what would disturb a terminal comes out as \uXXXX.
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), default=str).encode


class Log:
    """Writes lines to a file descriptor. `clock` gives the time of day in seconds, `monotonic` the time since any moment."""

    def __init__(
        self,
        fd: int,
        clock: Callable[[], float] = time.time,
        room: int = _ROOM,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fd = fd
        self._clock = clock
        self._monotonic = monotonic
        self._room = room
        self._second_ends = 0.0
        self._notes = 0  # in this second
        self._unsaid: Counter[str] = Counter()  # those that came after the most, by kind
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._closing = False
        self._changed = threading.Condition()
        self.dropped = 0
        threading.Thread(target=self._write_on, name="log", daemon=True).start()

    def info(self, message: str, **fields: Any) -> None:
        self.write(INFO, message=message, **fields)

    def warning(self, message: str, **fields: Any) -> None:
        self.write(WARNING, message=message, **fields)

    def error(self, message: str, **fields: Any) -> None:
        self.write(ERROR, message=message, **fields)

    def note(self, kind: str, text: Callable[[], str], **fields: Any) -> None:
        """One line of what happened, unless this second has too many: then it is counted by its kind (a plural noun)."""
        with self._changed:
            if self._monotonic() >= self._second_ends:
                self._count_unsaid()
                self._second_ends, self._notes = self._monotonic() + 1, 0
            self._notes += 1
            if self._notes <= MOST_NOTES:
                self.info(text(), **fields)
            else:
                self._unsaid[kind] += 1
                self._changed.notify_all()

    def write(self, level: str, at: float = 0.0, **fields: Any) -> None:
        """One line, about now or the time of day `at`."""
        self._put(f"{_encode({'time': rfc3339(at or self._clock()), 'level': level, **fields})}\n".encode())

    def close(self, seconds: float) -> None:
        """Wait until all is written, but no longer than `seconds`."""
        with self._changed:
            self._count_unsaid()
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._bytes == 0, seconds)

    def _put(self, line: bytes) -> None:
        with self._changed:
            if self._bytes + len(line) > self._room:
                self.dropped += 1
                return
            self._bytes += len(line)
            self._lines.append(line)
            if len(self._lines) == 1:
                self._changed.notify_all()

    def _write_on(self) -> None:
        told = 0
        while True:
            with self._changed:
                self._wait_for_lines()
                if not self._lines:
                    return
                count, size = self._batch()
                data = b"".join(self._lines[index] for index in range(count))
            written = self._write_all(data)
            with self._changed:
                for _ in range(count):
                    self._lines.popleft()
                self._bytes -= size
                self.dropped += 0 if written else count
                self._changed.notify_all()
                lost = self.dropped - told
            if written and lost:
                told += lost
                self.warning(f"{lost} lines are missing here: stderr did not take them in time")

    def _wait_for_lines(self) -> None:
        """Until there are some, or none will come any more."""
        while not self._lines and not self._closing:
            left = self._second_ends - self._monotonic() if self._unsaid else None
            if left is not None and left <= 0:
                self._count_unsaid()
            else:
                self._changed.wait(left)

    def _count_unsaid(self) -> None:
        if self._unsaid:
            counts = ", ".join(f"{count} {kind}" for kind, count in self._unsaid.items())
            self.info(f"and more within a second: {counts}")
            self._unsaid.clear()

    def _batch(self) -> tuple[int, int]:
        """How many lines to write at once, and their bytes."""
        count = size = 0
        for line in self._lines:
            if count and size + len(line) > _AT_ONCE:
                break
            count += 1
            size += len(line)
        return count, size

    def _write_all(self, data: bytes) -> bool:
        """Whether the descriptor took it; waits for as long as that takes."""
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody who has the same pipe has made it so
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll(1000)
            except OSError:
                return False
        return True


def rfc3339(seconds: float) -> str:
    """A time of day as in RFC 3339, in UTC with microseconds."""
    whole, micro = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{micro:06d}Z"
