"""cnikit installed by its own manifest alone: nodes become Ready, and every pod reaches every other."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from tests.e2e.kube import cnikit, matrix

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.kube.cluster import Cluster


def test_nodes_are_ready_once_the_agents_have_started(
    cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    assert not any(node.ready for node in cluster.nodes()), "a node is Ready before there is a network"

    cnikit.install(cluster, cnikit.BACKENDS[0])

    cluster.wait_ready()
    cnikit.rolled_out(cluster)
    record_property("seconds from the agents' start to Ready, by node", seconds_to_ready(cluster))


@pytest.mark.parametrize("backend", cnikit.BACKENDS)
def test_every_pod_reaches_every_other(cluster: Cluster, backend: str) -> None:
    cnikit.install(cluster, backend)
    cnikit.rolled_out(cluster)
    cluster.kubectl("delete", "pods", "--selector=app in (web, client)", "--wait=true")

    assert matrix.failures(cluster) == []

    # STATUS is an error until the agent knows its node.
    calls = [call for call in cnikit.calls(cluster) if call["command"] != "STATUS" or call["outcome"] == "declined"]
    assert {call["plugin"] for call in calls if call["command"] == "ADD"} >= {backend}
    assert [call for call in calls if call["outcome"] != "ok"] == []


def seconds_to_ready(cluster: Cluster) -> dict[str, float]:
    """By the API server's times, which have no fractions."""
    started = {
        agent["spec"]["nodeName"]: status["state"]["running"]["startedAt"]
        for agent in cnikit.agents(cluster)
        for status in agent["status"]["containerStatuses"]
    }
    ready = {
        item["metadata"]["name"]: entry["lastTransitionTime"]
        for item in cluster.get("nodes")
        for entry in item["status"]["conditions"]
        if entry["type"] == "Ready"
    }
    return {
        node: (datetime.fromisoformat(ready[node]) - datetime.fromisoformat(began)).total_seconds()
        for node, began in started.items()
    }
