"""The clusters and the checks themselves: with the reference's network everything is reached, and without one of its
routes exactly what needs it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.kube import matrix, reference

if TYPE_CHECKING:
    from tests.e2e.kube.cluster import Cluster


def test_the_reference_network_reaches_everything(cluster: Cluster) -> None:
    assert not any(node.ready for node in cluster.nodes()), "a node is Ready before there is a network"

    reference.install(cluster)

    cluster.wait_ready()
    assert matrix.failures(cluster) == []


@pytest.mark.parametrize("cluster", ["ipv4"], indirect=True)
def test_the_matrix_names_what_does_not_work(cluster: Cluster) -> None:
    reference.install(cluster)
    cluster.wait_ready()
    one, other = [node for node in cluster.nodes() if "worker" in node.name]
    cluster.on_node(one.name, "ip", "route", "delete", other.pod_cidrs[0])

    found = matrix.failures(cluster)

    reference.install(cluster)
    direct = [failure for failure in found if f"pod {other.pod_cidrs[0].rpartition('.')[0]}" in failure]
    assert {failure.partition(" to ")[0] for failure in direct} >= {f"pod on {one.name}", f"node {one.name}"}
    assert all(one.name in failure or "service" in failure or "Port of" in failure for failure in found), found
