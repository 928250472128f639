"""The fixtures of the tests on etcd, for `pytest_plugins`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.etcd_world import Etcd, Member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    server = Etcd(tmp_path / "etcd").start()
    yield server
    server.kill()


@pytest.fixture
def member(etcd: Etcd) -> Iterator[Callable[..., Member]]:
    """Makes a node of a number, and closes its source in the end."""
    made: list[Member] = []

    def make(number: int, had: str = "", name: str = "", **options: Any) -> Member:
        found = Member(number, options.pop("endpoints", [etcd.url]), had, name, **options)
        made.append(found)
        return found

    yield make
    for one in made:
        one.source.close()
