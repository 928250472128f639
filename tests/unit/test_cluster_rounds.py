"""How often the cluster's thread looks for the ground of a network that is not sure of it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster import Cluster
from agent.mirror import Changed

if TYPE_CHECKING:
    from collections.abc import Callable

ONCE = 0.5  # seconds between two rounds


class Lost:
    """A network that has lost an address."""

    is_done = False
    devices = links = addresses = frozenset[int]()

    def __init__(self, pass_time: Callable[[], None]) -> None:
        self.stands = 0
        self._pass_time = pass_time

    def hear(self, *_: object) -> bool:
        return False

    def stand(self, *_: object) -> None:
        self.stands += 1
        self._pass_time()

    def keep_up(self, _: object) -> None:
        pass


@pytest.mark.parametrize(
    ("seconds", "stands"), [(0.0, 20), (0.12, 7), (5.0, 2)], ids=["few nodes", "thousands", "more"]
)
def test_where_it_takes_long_the_ground_is_not_looked_for_as_often(
    monkeypatch: pytest.MonkeyPatch, seconds: float, stands: int
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    host: Any = SimpleNamespace(close=lambda: None)
    log: Any = SimpleNamespace(warning=lambda *_: None)
    cluster = Cluster([], host, "", log)
    network = Lost(lambda: now.__setitem__(0, now[0] + seconds))
    cluster._networks = [(network, None)]  # type: ignore[list-item]
    cluster._look_at = 1e9
    returned = SimpleNamespace(take=set)
    cluster._mirror = SimpleNamespace(  # type: ignore[assignment]
        moved=False,
        read=lambda: None,
        returned=returned,
        changed=Changed(),
        devices=frozenset(),
        stand_on=lambda *_: None,
    )

    end = now[0] + 20 * ONCE
    while now[0] < end:
        cluster._round()
        now[0] += ONCE

    assert network.stands == stands
