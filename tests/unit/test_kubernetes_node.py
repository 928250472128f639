"""Node objects as nodes of ours, and the patches of our own one: pure functions, so no server is needed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.membership import Network
from agent.membership.kubernetes_node import (
    NodeError,
    NodeView,
    own_annotations,
    peer,
    stated,
    status_patch,
    taint_patch,
)
from cni import addr
from plugins.peers import Node

VXLAN = Network("pods", ((bytes([10, 244, 0, 0]), 16),), (), "vxlan", 1)
HOST_GW = Network("pods", VXLAN.ranges, (), "host-gw", 0)
OURS, FLANNEL = "cnikit.dev/", "flannel.alpha.coreos.com/"
OWN = Node("node1", {4: bytes([192, 0, 2, 1])}, ((bytes([10, 244, 1, 0]), 24),), {4: bytes.fromhex("0a0000000001")})
FLANNEL_NODE = {
    FLANNEL + "kube-subnet-manager": "true",
    FLANNEL + "backend-data": '{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}',
    FLANNEL + "public-ip": "198.51.100.2",
}


def view(notes: dict[str, str] | None = None, **fields: Any) -> NodeView:
    document = {
        "metadata": {"name": "node2", "annotations": notes or {}},
        "spec": {"podCIDR": "10.244.2.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]},
        **fields,
    }
    return msgspec.convert(document, NodeView)


def described(notes: dict[str, str] | None = None, network: Network = VXLAN, **fields: Any) -> dict[str, Any]:
    node = peer(view(notes, **fields), network)
    assert node is not None
    return node.described()


def test_the_first_internal_address_of_each_family() -> None:
    texts = [
        ("Hostname", "node2"), ("ExternalIP", "203.0.113.2"), ("InternalIP", "192.0.2.2"), ("InternalIP", "2001:db8::2"),
        ("InternalIP", "192.0.2.3"),
    ]  # fmt: skip
    status = {"addresses": [{"type": kind, "address": text} for kind, text in texts]}

    found = described(status=status)

    assert (found["publicIP"], found["publicIPv6"]) == ("192.0.2.2", "2001:db8::2")


def test_what_our_own_agent_wrote_earlier_does_not_say_where_this_node_is() -> None:
    internal = [{"type": "InternalIP", "address": text} for text in ("192.0.2.2", "192.0.2.3", "2001:db8::2")]
    notes = {**FLANNEL_NODE, OURS + "public-ipv6": "2001:db8::9"}

    found = stated(view(notes, status={"addresses": internal}))

    assert list(map(addr.unpack, found)) == ["2001:db8::9", "192.0.2.2", "192.0.2.3", "2001:db8::2"]


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({}, "192.0.2.2"),
        ({FLANNEL + "public-ip": "198.51.100.2"}, "192.0.2.2"),  # nobody manages it: a left-over
        (FLANNEL_NODE, "198.51.100.2"),
        ({**FLANNEL_NODE, FLANNEL + "public-ip-overwrite": "203.0.113.1"}, "203.0.113.1"),
        ({FLANNEL + "node-public-ip": "203.0.113.7"}, "203.0.113.7"),
        ({**FLANNEL_NODE, FLANNEL + "node-public-ip": "203.0.113.7"}, "203.0.113.7"),
        ({FLANNEL + "node-public-ip": "203.0.113.7", FLANNEL + "public-ip-overwrite": "203.0.113.1"}, "203.0.113.1"),
        ({FLANNEL + "public-ip-overwrite": "203.0.113.1", OURS + "public-ip": "203.0.113.9"}, "203.0.113.9"),
    ],
)
def test_whose_address_wins(notes: dict[str, str], expected: str) -> None:
    assert described(notes)["publicIP"] == expected


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({}, None),
        ({OURS + "vtep-mac": "0a:00:00:00:00:09"}, "0a:00:00:00:00:09"),
        (FLANNEL_NODE, "0a:00:00:00:00:02"),
        # flannel up to 0.13.0
        ({**FLANNEL_NODE, FLANNEL + "backend-data": '{"VtepMAC":"0a:00:00:00:00:02"}'}, "0a:00:00:00:00:02"),
        # Ours stands there still, but flannel's agent has written since.
        ({**FLANNEL_NODE, OURS + "vtep-mac": "0a:00:00:00:00:09"}, "0a:00:00:00:00:02"),
        ({**FLANNEL_NODE, FLANNEL + "backend-data": "null"}, None),
    ],
)
def test_whose_mac_wins(notes: dict[str, str], expected: str | None) -> None:
    assert described(notes).get("vtepMAC") == expected


def test_macs_mean_nothing_to_host_gw() -> None:
    assert "vtepMAC" not in described({OURS + "vtep-mac": "0a:00:00:00:00:09"}, HOST_GW)


@pytest.mark.parametrize(
    ("notes", "spec", "expected"),
    [
        ({**FLANNEL_NODE, FLANNEL + "backend-data": '{"VNI":2,"VtepMAC":"0a:00:00:00:00:02"}'}, {}, "expected VNI 1"),
        ({**FLANNEL_NODE, FLANNEL + "backend-data": "{"}, {}, "backend-data"),
        ({**FLANNEL_NODE, FLANNEL + "backend-data": "{}"}, {}, "backend-data"),
        ({FLANNEL + "node-public-ip": "here"}, {}, "public-ip: expected an IPv4 address"),
        ({OURS + "vtep-mac": "0b:00:00:00:00:02"}, {}, "MAC of a device"),  # a group's
        ({OURS + "public-ip": "2001:db8::1"}, {}, "an IPv4 address"),
        ({OURS + "public-ipv6": "192.0.2.1"}, {}, "an IPv6 address"),
        ({}, {"podCIDR": "10.244.2.1/24"}, "podCIDR"),
        ({}, {"podCIDRs": ["10.244.2.0/24", "fd00::/200"]}, "podCIDR"),
        ({OURS + "vtep-mac": "00:00:00:00:00:00"}, {}, "vtepMAC: expected a unicast MAC"),
        ({OURS + "public-ip": "127.0.0.1"}, {}, "publicIP: expected an address that other nodes can reach"),
        ({OURS + "public-ipv6": "fe80::1"}, {}, "publicIPv6: expected an address that other nodes can reach"),
    ],
)
def test_what_is_wrong_is_told(notes: dict[str, str], spec: dict[str, Any], expected: str) -> None:
    with pytest.raises(NodeError, match=expected):
        peer(view(notes, spec=spec or {"podCIDR": "10.244.2.0/24"}), VXLAN)


def test_no_range_is_no_peer_yet() -> None:
    assert peer(view(spec={}), VXLAN) is None


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.1", "224.0.0.1", "::1", "::", "fe80::1", "ff02::1"])
def test_an_address_that_no_other_node_can_reach_is_wrong(address: str) -> None:
    with pytest.raises(NodeError, match=f"other nodes can reach, found .*{address}"):
        peer(view(status={"addresses": [{"type": "InternalIP", "address": address}]}), VXLAN)


def test_no_address_is_wrong() -> None:
    with pytest.raises(NodeError, match="InternalIP"):
        peer(view(status={}), VXLAN)


def test_nothing_to_patch_when_all_is_said() -> None:
    message = "cnikit is running on this node"
    conditions = [{"type": "NetworkUnavailable", "status": "False", "reason": "CnikitIsUp", "message": message}]
    notes = {key: value for key, value in own_annotations(OWN, {}, VXLAN).items() if value is not None}

    assert status_patch(OWN, view(notes, status={"conditions": conditions}), VXLAN, 0.0, "") == {}


def test_a_condition_that_was_false_already_has_not_changed() -> None:
    conditions = [{"type": "NetworkUnavailable", "status": "False", "reason": "FlannelIsUp"}]

    found = status_patch(OWN, view(status={"conditions": conditions}), VXLAN, 0.0, "")["status"]["conditions"]

    assert [(one["reason"], "lastTransitionTime" in one) for one in found] == [("CnikitIsUp", False)]


def test_an_address_that_people_gave_is_told_to_flannel() -> None:
    found = own_annotations(OWN, {OURS + "public-ip": "203.0.113.1"}, VXLAN)

    assert found[FLANNEL + "public-ip"] == "203.0.113.1"


def test_what_we_write_is_what_others_read() -> None:
    notes = {key: value for key, value in own_annotations(OWN, {}, VXLAN).items() if value is not None}

    found = described(notes)

    assert (found["publicIP"], found["vtepMAC"]) == ("192.0.2.1", "0a:00:00:00:00:01")


def test_only_the_taint_of_the_network_goes() -> None:
    keep = {"key": "example.com/keep", "effect": "NoSchedule"}
    mine = {
        "key": "node.kubernetes.io/network-unavailable",
        "effect": "NoSchedule",
        "timeAdded": "2026-01-01T00:00:00Z",
    }

    patch = taint_patch(view(spec={"taints": [keep, mine]}))

    assert patch == [
        {"op": "test", "path": "/spec/taints/1", "value": mine},
        {"op": "remove", "path": "/spec/taints/1"},
    ]
    assert taint_patch(view(spec={"taints": [keep]})) == []


@given(
    st.dictionaries(
        st.sampled_from(
            [*FLANNEL_NODE, OURS + "vtep-mac", OURS + "vtep-mac-v6", OURS + "public-ip", OURS + "public-ipv6"]
        ),
        st.one_of(
            st.text(max_size=40), st.sampled_from(["true", "null", "::1", "{}", '{"VNI":1,"VtepMAC":"\\ud800"}'])
        ),
    ),
    st.lists(st.one_of(st.text(max_size=20), st.sampled_from(["10.0.0.0/8", "::/0", "::ffff:10.0.0.0/104"]))),
)
def test_any_text_is_read_or_told(notes: dict[str, str], ranges: list[str]) -> None:
    try:
        found = peer(view(notes, spec={"podCIDRs": ranges}), VXLAN)
    except NodeError:
        return
    assert found is None or found.described()["subnets"]
