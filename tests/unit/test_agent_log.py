"""The agent's log: JSON lines, and nobody who logs ever waits."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

import pytest

from agent.log import Log, rfc3339

SECONDS = 20.0


class Pipe:
    """A pipe in the place of stderr."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def read_all(self) -> list[dict[str, Any]]:
        """Everything up to the end, which closes it."""
        os.close(self.writer)
        with os.fdopen(self.reader, "rb") as file:
            return [json.loads(line) for line in file]


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


def test_a_line_is_one_json_object_with_time_and_level(pipe: Pipe) -> None:
    log = Log(pipe.writer)
    before = datetime.now(UTC)
    log.info("listening", path="/run/x")
    log.warning("sent a client away")
    log.close(SECONDS)
    first, second = pipe.read_all()
    assert (first["level"], first["message"], first["path"]) == ("info", "listening", "/run/x")
    assert before <= datetime.fromisoformat(first["time"]) <= datetime.now(UTC)
    assert (second["level"], second["message"]) == ("warning", "sent a client away")


def test_times_are_those_of_rfc_3339() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000000Z"
    assert rfc3339(1_700_000_000.9999999) == "2023-11-14T22:13:21.000000Z"


def test_what_is_no_text_is_escaped(pipe: Pipe) -> None:
    log = Log(pipe.writer)
    log.info("a\nb\x1b[31m\udcff\u2028")
    log.close(SECONDS)
    (line,) = pipe.read_all()
    assert line["message"] == "a\nb\x1b[31m\udcff\u2028"


class TestAFullPipe:
    """Nobody reads stderr."""

    @pytest.fixture
    def stuck(self, pipe: Pipe) -> Log:
        os.set_blocking(pipe.writer, False)
        try:
            while True:
                os.write(pipe.writer, b'{"filler":1}\n' * 100)
        except BlockingIOError:
            os.set_blocking(pipe.writer, True)
        return Log(pipe.writer, room=10_000)

    def test_lines_are_dropped_and_counted_and_that_is_told_later(self, stuck: Log, pipe: Pipe) -> None:
        for number in range(1000):
            stuck.info("a line", number=number)
        dropped = stuck.dropped
        assert 0 < dropped < 1000
        kept: list[dict[str, Any]] = []
        with os.fdopen(os.dup(pipe.reader), "rb") as file:
            while not (kept and "missing" in kept[-1].get("message", "")):
                kept.append(json.loads(file.readline()))
        numbers = [line["number"] for line in kept if "number" in line]
        assert numbers == list(range(1000 - dropped))
        assert kept[-1]["level"] == "warning"
        assert kept[-1]["message"].startswith(f"{dropped} lines are missing")
        stuck.close(SECONDS)
        assert pipe.read_all() == []

    def test_closing_does_not_wait_for_ever(self, stuck: Log, pipe: Pipe) -> None:
        stuck.info("late")
        stuck.close(0.05)
        with os.fdopen(os.dup(pipe.reader), "rb") as file:
            while json.loads(file.readline()) == {"filler": 1}:
                pass
        stuck.close(SECONDS)
        assert pipe.read_all() == [], "it came when somebody read after all"


def test_stderr_that_is_closed_costs_lines_and_no_more(pipe: Pipe) -> None:
    os.close(pipe.reader)
    log = Log(pipe.writer)
    log.info("lost")
    log.close(SECONDS)
    assert log.dropped == 1
    os.close(pipe.writer)


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    log = Log(pipe.writer)
    for _ in range(100):
        log.info("x" * 3000)
    reader = os.dup(pipe.reader)
    with os.fdopen(reader, "rb") as file:
        lines = [json.loads(file.readline()) for _ in range(100)]
    assert {line["message"] for line in lines} == {"x" * 3000}
    log.close(SECONDS)
    assert log.dropped == 0
    assert pipe.read_all() == []


def test_of_what_happens_often_ten_lines_a_second_are_written_and_the_rest_is_counted(pipe: Pipe) -> None:
    now = 100.0
    log = Log(pipe.writer, monotonic=lambda: now)

    for number in range(14):
        log.note("repairs" if number % 2 else "members", lambda number=number: f"note {number}", network="pods")  # type: ignore[misc]
    now = 101.5
    log.note("members", lambda: "the next second")
    for _ in range(12):
        log.note("repairs", lambda: "more")
    log.close(SECONDS)

    lines = [line["message"] for line in pipe.read_all()]
    assert lines[:10] == [f"note {number}" for number in range(10)]
    assert lines[10:12] == ["and more within a second: 2 members, 2 repairs", "the next second"]
    assert lines[12:] == ["more"] * 9 + ["and more within a second: 3 repairs"]


def test_what_is_counted_is_written_when_the_second_is_over(pipe: Pipe) -> None:
    log = Log(pipe.writer)

    for _ in range(12):
        log.note("repairs", lambda: "note")

    with os.fdopen(os.dup(pipe.reader), "rb") as file:
        lines = [json.loads(file.readline())["message"] for _ in range(11)]
    assert lines == ["note"] * 10 + ["and more within a second: 2 repairs"]
    log.close(SECONDS)
