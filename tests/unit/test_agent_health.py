"""What `/healthz` and `/readyz` say."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from agent import health
from agent.health import OK, Health
from agent.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator


class World:
    """A loop, threads, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.server = SimpleNamespace(turned=100.0)
        self.workers = Workers()
        self.ending = ""
        self.health = Health(self.server, [self.workers], lambda: self.now, lambda: self.ending)  # type: ignore[arg-type]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.workers.drain(20.0)
    made.workers.close()


def test_alive_and_ready(world: World) -> None:
    assert world.health.ready() == OK
    assert world.health.alive() == OK
    assert world.health.alive() == OK


def test_ending(world: World) -> None:
    world.ending = "stop"
    world.server.turned = 0.0
    assert world.health.ready().status == 503
    assert b"stop" in world.health.ready().body
    assert world.health.alive() == OK, "whoever ends is not to be killed for that"


def test_a_loop_that_stands_still(world: World) -> None:
    world.now += 11.0
    found = world.health.alive()
    assert (found.status, found.body) == (503, b"the loop has stood still for 11 s\n")


def test_threads_that_are_stuck(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_AWAITED", 0.05)
    over = threading.Event()

    def stuck() -> None:
        over.wait(20.0)

    while world.workers.threads > world.workers.calls:
        assert world.workers.submit(None, stuck)
    for _ in range(50):
        world.workers.submit(None, stuck)
    try:
        assert world.health.alive() == OK, "they may be busy"
        world.now += 31.0
        world.server.turned = world.now
        assert world.health.alive().status == 503
    finally:
        over.set()
    monkeypatch.setattr(health, "_AWAITED", 20.0)
    assert world.health.alive() == OK


def test_too_many_calls(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.workers, "submit", lambda *_: False)
    assert world.health.alive().status == 503
