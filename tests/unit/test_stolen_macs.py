"""A member with the MAC that another one derives, as each source of membership tells it: it stays out, by one judgement."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agent.membership import Network
from agent.membership.etcd_client import KeyValue
from agent.membership.etcd_nodes import Nodes
from agent.membership.kubernetes_node import NodeView, peer
from agent.membership.static import nodes_of
from agent.roster import Roster
from cni import addr
from cni.jsonio import encode
from plugins.peers import Node, vtep_mac

if TYPE_CHECKING:
    from collections.abc import Callable

VNI = 1
NETWORK = Network("pods", ((bytes([10, 244, 0, 0]), 16),), (), "vxlan", VNI)
STOLEN = addr.unpack_mac(vtep_mac(VNI, bytes([192, 0, 2, 1])))
VICTIM = {"name": "n1", "publicIP": "192.0.2.1", "subnets": ["10.244.1.0/24"]}
THIEF = {"name": "a-thief", "publicIP": "192.0.2.2", "subnets": ["10.244.2.0/24"], "vtepMAC": STOLEN}


def static(described: list[dict[str, Any]]) -> list[Node]:
    return nodes_of(json.dumps({"nodes": described}).encode()).nodes


def etcd(described: list[dict[str, Any]]) -> list[Node]:
    values = [KeyValue(f"/p/nodes/{one['name']}", encode(one), mod, 0) for mod, one in enumerate(described, 1)]
    return Nodes("/p/nodes/").load(values)[0]


def kubernetes(described: list[dict[str, Any]]) -> list[Node]:
    found = []
    for one in described:
        notes = {"cnikit.dev/vtep-mac": one["vtepMAC"]} if "vtepMAC" in one else {}
        document = {
            "metadata": {"name": one["name"], "annotations": notes},
            "spec": {"podCIDRs": one["subnets"]},
            "status": {"addresses": [{"type": "InternalIP", "address": one["publicIP"]}]},
        }
        found.append(peer(msgspec.convert(document, NodeView), NETWORK))
    return [node for node in found if node is not None]


@pytest.mark.parametrize("source", [static, etcd, kubernetes])
def test_the_thief_of_a_derived_mac_stays_out_and_its_end_changes_nothing(
    source: Callable[[list[dict[str, Any]]], list[Node]],
) -> None:
    roster = Roster(NETWORK.ranges, VNI)

    roster.replace(source([THIEF, VICTIM]))

    assert {node.name for node in roster} == {"n1"}
    assert roster.faults == {"a-thief": f"node a-thief: expected a VTEP MAC of its own, found {STOLEN}, which is n1's"}
    left, came = roster.replace(source([VICTIM]))
    assert (left, came) == ([], [])
