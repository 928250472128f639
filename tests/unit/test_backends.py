"""What a backend wants in the kernel for a peer: pure, so every case is a line here."""

from __future__ import annotations

from typing import Any

import pytest

from cni import addr
from cni.config import Reader
from cni.errors import CniError
from cni.kernel.types import Route
from plugins import host_gw, vxlan
from plugins.cluster_conf import ClusterConf
from plugins.peers import Entries, Local, Node, Underlay, read_node, read_nodes, vtep_mac
from plugins.ways import Ways

UNDERLAY4, UNDERLAY6, DEVICE4, DEVICE6 = 2, 3, 10, 11


def node(name: str, **keys: Any) -> Node:
    return read_node(Reader({"name": name, **keys}))


def packed(text: str) -> bytes:
    found = addr.pack(text)
    assert found is not None
    return found


def cidr(text: str) -> tuple[bytes, int]:
    found = addr.pack_cidr(text)
    assert found is not None
    return found


def way(address: bytes) -> Route:
    """The routing table's answer: on the link of its family, or through a gateway."""
    near = any(addr.inside(address, *cidr(network)) for network in ("192.0.2.0/24", "2001:db8::/64"))
    link = UNDERLAY4 if len(address) == 4 else UNDERLAY6
    return Route(address, len(address) * 8, None if near else bytes(len(address)), link, 254, 0, 0, 0)


def local(*, direct: bool = False, sizes: tuple[int, ...] = (4, 16)) -> Local:
    """A node with an underlay link for each family, 192.0.2.0/24 and 2001:db8::/64 on them."""
    links = {
        4: Underlay(UNDERLAY4, "eth0", 1500, (cidr("192.0.2.0/24"),)),
        16: Underlay(UNDERLAY6, "eth1", 1500, (cidr("2001:db8::/64"),)),
    }
    devices = {4: DEVICE4, 16: DEVICE6}
    ways = Ways(way) if direct else None
    return Local({size: links[size] for size in sizes}, {size: devices[size] for size in sizes}, vni=1, direct=ways)


OWN = node("a", publicIP="192.0.2.1", publicIPv6="2001:db8::1", subnets=["10.244.1.0/24", "fd00:244:1::/64"])
DUAL = node("b", publicIP="192.0.2.2", publicIPv6="2001:db8::2", subnets=["10.244.2.0/24", "fd00:244:2::/64"])
FAR = node("far", publicIP="198.51.100.9", publicIPv6="2001:db8:9::9", subnets=["10.244.9.0/24", "fd00:244:9::/64"])


def routes(entries: Entries) -> dict[str, tuple[int, str, bool]]:
    """The routes as text: network to (link, gateway, onlink)."""
    found = {}
    for subnet, (index, gateway, onlink) in entries.routes.items():
        assert gateway is not None
        found[addr.unpack_cidr(*subnet)] = (index, addr.unpack(gateway), onlink)
    return found


class TestVxlan:
    def test_each_family_travels_over_its_own_underlay(self) -> None:
        entries = vxlan.entries(OWN, DUAL, local())

        assert routes(entries) == {
            "10.244.2.0/24": (DEVICE4, "10.244.2.0", True),
            "fd00:244:2::/64": (DEVICE6, "fd00:244:2::", True),
        }
        mac4, mac6 = vtep_mac(1, packed("192.0.2.2")), vtep_mac(1, packed("2001:db8::2"))
        assert entries.neighbours == {
            (DEVICE4, packed("10.244.2.0")): mac4,
            (DEVICE6, packed("fd00:244:2::")): mac6,
        }
        assert entries.fdb == {(DEVICE4, mac4): packed("192.0.2.2"), (DEVICE6, mac6): packed("2001:db8::2")}
        assert entries.faults == []

    def test_both_families_travel_over_the_one_underlay_that_two_nodes_share(self) -> None:
        """Dual-stack pods over an IPv4 underlay, and IPv4 pods over an IPv6 underlay."""
        only4 = node("b", publicIP="192.0.2.2", subnets=["10.244.2.0/24", "fd00:244:2::/64"])
        only6 = node("c", publicIPv6="2001:db8::3", subnets=["10.244.3.0/24"])

        over4, over6 = (vxlan.entries(OWN, peer, local()) for peer in (only4, only6))

        assert {hop[0] for hop in over4.routes.values()} == {DEVICE4}
        assert list(over4.neighbours) == [(DEVICE4, packed("10.244.2.0")), (DEVICE4, packed("fd00:244:2::"))]
        assert list(over4.fdb.values()) == [packed("192.0.2.2")]
        assert routes(over6) == {"10.244.3.0/24": (DEVICE6, "10.244.3.0", True)}
        assert list(over6.fdb.values()) == [packed("2001:db8::3")]

    def test_a_peer_that_tells_its_mac_is_believed(self) -> None:
        told = node("b", publicIP="192.0.2.2", vtepMAC="02:11:22:33:44:55", subnets=["10.244.2.0/24"])

        entries = vxlan.entries(OWN, told, local())

        assert entries.fdb == {(DEVICE4, bytes.fromhex("021122334455")): packed("192.0.2.2")}

    def test_a_peer_with_several_subnets_of_a_family(self) -> None:
        peer = node("b", publicIP="192.0.2.2", subnets=["10.244.2.0/24", "10.244.3.0/24"])

        entries = vxlan.entries(OWN, peer, local())

        assert len(entries.routes) == len(entries.neighbours) == 2
        assert len(entries.fdb) == 1

    def test_no_common_underlay_is_told(self) -> None:
        own = node("a", publicIP="192.0.2.1", subnets=["10.244.1.0/24"])
        only6 = node("b", publicIPv6="2001:db8::2", subnets=["10.244.2.0/24"])

        entries = vxlan.entries(own, only6, local(sizes=(4,)))

        assert (entries.routes, entries.neighbours, entries.fdb) == ({}, {}, {})
        (fault,) = entries.faults
        assert "b: 10.244.2.0/24 is unreachable" in fault
        assert "2001:db8::2" in fault

    def test_a_family_that_is_away_is_neither_carried_by_the_other_nor_told_for_each_peer(self) -> None:
        for backend in (vxlan, host_gw):
            entries = backend.entries(OWN, DUAL, local(sizes=(4,)))

            assert [addr.unpack_cidr(*subnet) for subnet in entries.routes] == ["10.244.2.0/24"]
            assert entries.faults == []

    def test_direct_routing_leaves_the_device_out_for_peers_on_the_link(self) -> None:
        near, far = (vxlan.entries(OWN, peer, local(direct=True)) for peer in (DUAL, FAR))

        assert routes(near) == {
            "10.244.2.0/24": (UNDERLAY4, "192.0.2.2", False),
            "fd00:244:2::/64": (UNDERLAY6, "2001:db8::2", False),
        }
        assert (near.neighbours, near.fdb) == ({}, {})
        assert {hop[0] for hop in far.routes.values()} == {DEVICE4, DEVICE6}

    def test_direct_routing_is_by_the_family_of_the_subnet(self) -> None:
        """IPv6 pods over an IPv4 underlay cannot be routed on it, so they go through the device."""
        peer = node("b", publicIP="192.0.2.2", subnets=["10.244.2.0/24", "fd00:244:2::/64"])

        entries = vxlan.entries(OWN, peer, local(direct=True))

        assert routes(entries) == {
            "10.244.2.0/24": (UNDERLAY4, "192.0.2.2", False),
            "fd00:244:2::/64": (DEVICE4, "fd00:244:2::", True),
        }


class TestWays:
    def test_they_stay_until_they_are_asked_for_again(self) -> None:
        near, far = packed("192.0.2.2"), packed("198.51.100.9")
        answers: dict[bytes, Route | None] = {near: way(near), far: way(far)}
        ways = Ways(answers.get)
        before = (ways.hop(near, None), ways.hop(far, None))
        assert before == ((UNDERLAY4, near, False), None)

        answers[near], answers[far] = way(far), Route(far, 32, None, 7, 254, 0, 0, 0)

        assert (ways.hop(near, None), ways.hop(far, None)) == before
        assert ways.again((4,)) is ways
        now = ways.again(())
        assert (now.hop(near, None), now.hop(far, None)) == (None, (7, far, False))
        assert now.again(()) is now

    def test_what_leads_nowhere_at_the_moment_stays_as_it_was(self) -> None:
        near = packed("192.0.2.2")
        answers: dict[bytes, Route | None] = {near: way(near)}
        ways = Ways(answers.get)
        assert ways.hop(near, None) is not None
        answers[near] = None

        assert ways.again(()) is ways
        assert Ways(answers.get).hop(near, (UNDERLAY4, near, False)) == (UNDERLAY4, near, False)

    def test_they_follow_routes_to_what_was_asked_for(self) -> None:
        ways = Ways(way)
        ways.hop(packed("192.0.2.2"), None)

        concerned = ["192.0.2.2/32", "192.0.2.0/24", "0.0.0.0/0"]
        assert all(ways.has(cidr(one)) for one in concerned)
        assert not any(ways.has(cidr(one)) for one in ("192.0.2.3/32", "192.0.3.0/24", "::/0"))
        ways.forget([packed("192.0.2.2")])
        assert not any(ways.has(cidr(one)) for one in concerned)


class TestHostGw:
    def test_routes_lead_to_the_peers_address_of_the_same_family(self) -> None:
        entries = host_gw.entries(OWN, DUAL, local())

        assert routes(entries) == {
            "10.244.2.0/24": (UNDERLAY4, "192.0.2.2", False),
            "fd00:244:2::/64": (UNDERLAY6, "2001:db8::2", False),
        }
        assert (entries.neighbours, entries.fdb, entries.faults) == ({}, {}, [])

    def test_a_peer_that_is_not_on_the_link_is_told_and_gets_no_route(self) -> None:
        entries = host_gw.entries(OWN, FAR, local())

        assert entries.routes == {}
        first, second = entries.faults
        assert "far: 10.244.9.0/24 is unreachable" in first
        assert "192.0.2.0/24" in first
        assert "198.51.100.9" in first
        assert "2001:db8:9::9" in second

    @pytest.mark.parametrize("key", ["publicIP", "publicIPv6"])
    def test_a_subnet_without_an_address_of_its_family_is_told(self, key: str) -> None:
        address = {"publicIP": "192.0.2.2", "publicIPv6": "2001:db8::2"}[key]
        peer = node("b", subnets=["10.244.2.0/24", "fd00:244:2::/64"], **{key: address})

        entries = host_gw.entries(OWN, peer, local())

        assert len(entries.routes) == 1
        (fault,) = entries.faults
        assert {"publicIP": "publicIPv6", "publicIPv6": "publicIP"}[key] in fault


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("publicIP", "0.1.2.3"), ("publicIP", "127.0.0.1"), ("publicIP", "224.0.0.1"), ("publicIP", "255.255.255.255"),
        ("publicIPv6", "::"), ("publicIPv6", "::1"), ("publicIPv6", "fe80::1"), ("publicIPv6", "ff02::1"),
        ("vtepMAC", "00:00:00:00:00:00"), ("vtepMACv6", "01:00:5e:00:00:01"),
    ],
)  # fmt: skip
def test_what_no_node_can_be_reached_at_is_refused(key: str, value: str) -> None:
    with pytest.raises(CniError) as caught:
        node("b", **{"publicIP": "192.0.2.2", key: value})

    assert caught.value.code == 7
    assert caught.value.msg.startswith(f"{key}: expected ")
    assert f"found {value!r}" in caught.value.msg or f'found "{value}"' in caught.value.msg


def test_two_nodes_with_one_mac_are_refused() -> None:
    mac = "02:00:00:00:00:01"
    peers = [{"name": name, "publicIP": f"192.0.2.{n}", "vtepMAC": mac} for n, name in enumerate("ab", 1)]

    with pytest.raises(CniError, match=f"node b: expected a VTEP MAC of its own, found {mac}, which is a's"):
        read_nodes(Reader({"peers": peers}), "peers")


def test_a_peer_with_the_mac_that_another_derives_is_refused_on_vxlan() -> None:
    mac = addr.unpack_mac(vtep_mac(7, bytes([192, 0, 2, 1])))
    peers = [{"name": "a", "publicIP": "192.0.2.1"}, {"name": "b", "publicIP": "192.0.2.2", "vtepMAC": mac}]
    conf = {"name": "pods", "network": "10.244.0.0/16", "vni": 7, "peers": peers}

    with pytest.raises(CniError, match=f"node b: expected a VTEP MAC of its own, found {mac}, which is a's"):
        ClusterConf(Reader({**conf, "type": "vxlan"}))
    assert ClusterConf(Reader({**conf, "type": "host-gw"})).peers


def test_a_node_inside_a_range_of_pods_is_refused() -> None:
    peers = [
        {"name": "a", "publicIP": "192.0.2.1", "subnets": ["10.244.1.0/24"]},
        {"name": "b", "publicIP": "198.51.100.2", "subnets": ["192.0.2.0/25"]},
    ]

    with pytest.raises(CniError, match="found 192.0.2.0/25 with a's 192.0.2.1"):
        read_nodes(Reader({"peers": peers}), "peers")
