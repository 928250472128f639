"""The clusters of these tests: one after the other, each made once for all tests of its family.

The artefacts (tests/artefacts) must have been built by `make test-setup`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.artefacts.node import NODE_IMAGE
from tests.artefacts.programs import KUBERNETES, NODE_PROGRAMS
from tests.e2e.kube.cluster import FAMILIES, Cluster
from tests.e2e.kube.place import Place

if TYPE_CHECKING:
    from collections.abc import Iterator


def make_place() -> Place:
    return Place(NODE_IMAGE.found() / "storage", NODE_PROGRAMS.found(), KUBERNETES.found())


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    with make_place() as made:
        yield made


@pytest.fixture(scope="session", params=FAMILIES)
def cluster(place: Place, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three nodes with no network. A test that needs one family only says so with an indirect parameter."""
    with Cluster(place, request.param) as made:
        yield made
