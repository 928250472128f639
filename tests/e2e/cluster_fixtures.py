"""The nodes that whole files of cluster tests share, for `pytest_plugins`: each test finds one whole and leaves it whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.cluster_world import ClusterNode, settled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.agent_world import AgentWay


@pytest.fixture(scope="module")
def vxlan(agent_way: AgentWay) -> Iterator[ClusterNode]:
    with settled(agent_way, "vxlan") as made:
        yield made


@pytest.fixture(scope="module")
def host_gw(agent_way: AgentWay) -> Iterator[ClusterNode]:
    with settled(agent_way, "host-gw") as made:
        yield made


@pytest.fixture(scope="module")
def whole(vxlan: ClusterNode) -> dict[str, Any]:
    """What the node holds before any damage. Looked at between two tests it might be that of the first's end."""
    return vxlan.held()


@pytest.fixture(scope="module")
def plain(host_gw: ClusterNode) -> dict[str, Any]:
    return host_gw.held()


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    """What the agents of shared nodes log during a test, which is shown when it fails."""
    before = {id(world): len(world.log()) for world in ClusterNode.shared}
    yield
    for world in ClusterNode.shared:
        print(world.log()[before.get(id(world), 0) :])
