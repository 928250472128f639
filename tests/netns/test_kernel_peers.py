"""VXLAN devices, nexthop objects, routes, neighbours and forwarding entries on the real kernel, as ip and bridge see them."""

from __future__ import annotations

import socket
import time
from errno import EADDRINUSE, EAFNOSUPPORT, EEXIST, EINVAL, ENETDOWN, ENODEV, ENOENT, EOPNOTSUPP, ERANGE, ESRCH
from typing import TYPE_CHECKING, Any

import pytest

from cni import addr
from cni.errors import KernelError
from cni.kernel import ops
from cni.kernel.background import thread_background
from cni.kernel.linux import Kernel, Namespace
from cni.kernel.types import NUD_NOARP, NUD_PERMANENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni.kernel.ops import Op
    from tests.netns.conftest import Netns


def packed(text: str) -> bytes:
    value = addr.pack(text)
    assert value is not None
    return value


PROTOCOL = 205
ONE, TWO = 0x63000001, 0x63000002
MAC, PEER_MAC = b"\x02\x63\0\0\0\1", b"\x02\x63\0\0\0\2"
LOCAL, LOCAL6, PEER, PEER6 = packed("192.0.2.1"), packed("2001:db8::1"), packed("192.0.2.2"), packed("2001:db8::2")
GATEWAY, GATEWAY6 = packed("10.244.2.0"), packed("fd00:244:2::")


@pytest.fixture
def host(host_ns: Netns) -> Iterator[Namespace]:
    """A namespace with an underlay of both families."""
    with Kernel(time.monotonic, thread_background).open(host_ns.path) as namespace:
        namespace.apply(ops.veth_add("under0", None, "under1", None, None), ops.link_set("under1", up=True))
        under = index_of(namespace, "under0")
        namespace.apply(ops.addr_add(under, LOCAL, 24, nodad=True), ops.addr_add(under, LOCAL6, 64, nodad=True))
        yield namespace


def index_of(namespace: Namespace, name: str) -> int:
    link = namespace.link(name)
    assert link is not None
    return link.index


def vxlan(host: Namespace, name: str = "cnikit.1", vni: int = 1, **changes: Any) -> Op:
    wanted: dict[str, Any] = {
        "mac": MAC,
        "mtu": 1450,
        "port": 8472,
        "local": LOCAL,
        "link": index_of(host, "under0"),
    } | changes
    return ops.vxlan_add(name, vni, **wanted)


def add_device(host: Namespace, name: str = "cnikit.1", **changes: Any) -> int:
    host.apply(vxlan(host, name, **changes), ops.link_set(name, up=True))
    return index_of(host, name)


def refusal(host: Namespace, op: Op) -> int:
    """The errno that an operation fails with."""
    with pytest.raises(KernelError) as caught:
        host.apply(op)
    assert caught.value.msg.startswith(op.text)
    return caught.value.errno


class TestVxlanDevice:
    def test_is_made_as_told(self, host: Namespace, host_ns: Netns) -> None:
        host.apply(vxlan(host, vni=7, gbp=True))

        (link,) = host_ns.ip("link", "show", "cnikit.1")
        settings = link["linkinfo"]["info_data"]
        assert (link["address"], link["mtu"], link["linkinfo"]["info_kind"]) == ("02:63:00:00:00:01", 1450, "vxlan")
        assert "UP" not in link["flags"]
        assert (settings["id"], settings["port"], settings["local"]) == (7, 8472, "192.0.2.1")
        assert (settings["link"], settings["learning"], settings["gbp"]) == ("under0", False, True)
        # What is not told stays as the kernel has it, and as other programs leave it.
        assert (settings["udp_csum"], settings["udp_zero_csum6_tx"], settings["udp_zero_csum6_rx"]) == (
            True, False, False,
        )  # fmt: skip

    def test_over_ipv6(self, host: Namespace, host_ns: Netns) -> None:
        host.apply(vxlan(host, "cnik6.1", local=LOCAL6, learning=True, mtu=0, mac=None))

        (link,) = host_ns.ip("link", "show", "cnik6.1")
        settings = link["linkinfo"]["info_data"]
        assert (settings["local6"], settings["learning"], "gbp" in settings) == ("2001:db8::1", True, False)
        assert link["mtu"] == 1430

    @pytest.mark.parametrize("local", [LOCAL, LOCAL6], ids=["ipv4", "ipv6"])
    def test_is_read_as_it_was_made(self, host: Namespace, local: bytes) -> None:
        host.apply(vxlan(host, vni=9, local=local, port=4789, learning=True, gbp=True))

        link = host.link("cnikit.1")

        assert link is not None
        assert link.kind == "vxlan"
        found = link.vxlan
        assert found is not None
        assert (found.vni, found.port, found.local) == (9, 4789, local)
        assert (found.link, found.learning, found.gbp) == (index_of(host, "under0"), True, True)

    def test_other_links_have_no_such_settings(self, host: Namespace) -> None:
        assert [link.vxlan for link in host.links()] == [None, None, None]

    def test_one_that_ip_made_is_read(self, host: Namespace, host_ns: Netns) -> None:
        host_ns.run("ip", "link", "add", "plain", "type", "vxlan", "id", "6", "dstport", "4790", "nolearning")

        plain = host.link("plain")

        assert plain is not None
        found = plain.vxlan
        assert found is not None
        assert (found.vni, found.port, found.local, found.link) == (6, 4790, None, 0)
        assert (found.learning, found.gbp) == (False, False)

    def test_refusals(self, host: Namespace) -> None:
        host.apply(vxlan(host))

        assert refusal(host, vxlan(host)) == EEXIST
        assert refusal(host, vxlan(host, "other")) == EEXIST  # the VNI is taken on this port
        assert refusal(host, vxlan(host, "other", 1 << 24)) == ERANGE
        assert refusal(host, vxlan(host, "other", 2, link=4711)) == ENODEV
        host.apply(vxlan(host, "other", port=8473))

    def test_checksums_are_switched_off_and_on(self, host: Namespace, host_ns: Netns) -> None:
        add_device(host)
        for on in (False, True):
            host.set_tx_checksum("cnikit.1", on)

            (seen,) = [
                line for line in host_ns.run("ethtool", "-k", "cnikit.1").splitlines() if "tx-checksumming:" in line
            ]
            assert seen == f"tx-checksumming: {'on' if on else 'off'}"
            assert host.tx_checksum("cnikit.1") is on

    def test_checksums_of_no_link(self, host: Namespace) -> None:
        assert [host.tx_checksum(name) for name in ("nope", "", "lo\0", "a-name-that-is-too-long")] == [None] * 4
        with pytest.raises(KernelError) as caught:
            host.set_tx_checksum("nope", False)
        assert (caught.value.errno, caught.value.msg.partition(":")[0]) == (
            ENODEV, "turn transmit checksums of nope off",
        )  # fmt: skip

    def test_checksums_of_a_link_without_the_setting(self, host: Namespace) -> None:
        with pytest.raises(KernelError) as caught:
            host.set_tx_checksum("lo", False)
        assert caught.value.errno == EOPNOTSUPP


@pytest.mark.parametrize(("gateway", "prefix"), [(GATEWAY, 24), (GATEWAY6, 64)], ids=["ipv4", "ipv6"])
class TestOnePeer:
    def test_has_route_neighbour_and_nexthop(
        self, host: Namespace, host_ns: Netns, gateway: bytes, prefix: int
    ) -> None:
        device = add_device(host)
        family = "-4" if len(gateway) == 4 else "-6"

        host.apply(
            ops.neigh_replace(device, gateway, PEER_MAC),
            ops.nexthop_replace(ONE, device, gateway, onlink=True, protocol=PROTOCOL),
            ops.route_replace(gateway, prefix, nexthop=ONE, protocol=PROTOCOL),
        )

        text = addr.unpack(gateway)
        (nexthop,) = host_ns.ip("nexthop")
        assert (nexthop["id"], nexthop["gateway"], nexthop["dev"]) == (ONE, text, "cnikit.1")
        assert (nexthop["protocol"], nexthop["flags"]) == ("205", ["onlink"])
        (route,) = host_ns.ip(family, "route", "show", "proto", "205")
        assert (route["dst"], route["nhid"], route["gateway"]) == (f"{text}/{prefix}", ONE, text)
        (neighbour,) = [one for one in host_ns.ip(family, "neigh") if one["dst"] == text]
        assert (neighbour["lladdr"], neighbour["state"]) == ("02:63:00:00:00:02", ["PERMANENT"])

    def test_is_read(self, host: Namespace, gateway: bytes, prefix: int) -> None:
        device = add_device(host)
        host.apply(
            ops.neigh_replace(device, gateway, PEER_MAC),
            ops.nexthop_replace(ONE, device, gateway, onlink=True, protocol=PROTOCOL),
            ops.nexthop_replace(TWO, device, gateway, onlink=True),
            ops.route_replace(gateway, prefix, nexthop=ONE, protocol=PROTOCOL),
        )

        (nexthop,) = host.nexthops(PROTOCOL)
        assert (nexthop.id, nexthop.oif, nexthop.gateway) == (ONE, device, gateway)
        assert (nexthop.onlink, nexthop.protocol) == (True, PROTOCOL)
        assert {one.id for one in host.nexthops()} == {ONE, TWO}
        (route,) = host.routes(PROTOCOL)
        assert (route.dst, route.prefix, route.nexthop, route.protocol) == (gateway, prefix, ONE, PROTOCOL)
        assert (route.oif, route.gateway, route.onlink) == (device, gateway, True)
        (neighbour,) = [one for one in host.neighbours(device) if one.packed == gateway]
        assert (neighbour.index, neighbour.mac, neighbour.state) == (device, PEER_MAC, NUD_PERMANENT)
        assert [one for one in host.neighbours(index_of(host, "under0")) if one.packed == gateway] == []

    def test_goes_and_what_is_gone_is_told(self, host: Namespace, gateway: bytes, prefix: int) -> None:
        device = add_device(host)
        host.apply(
            ops.neigh_replace(device, gateway, PEER_MAC),
            ops.nexthop_replace(ONE, device, gateway, onlink=True, protocol=PROTOCOL),
            ops.route_replace(gateway, prefix, nexthop=ONE, protocol=PROTOCOL),
        )
        removals = [
            ops.route_del(gateway, prefix, protocol=PROTOCOL),
            ops.nexthop_del(ONE),
            ops.neigh_del(device, gateway),
        ]

        host.apply(*removals)

        there = [one for one in host.neighbours(device) if one.packed == gateway]  # the kernel adds groups' of its own
        assert (host.routes(PROTOCOL), host.nexthops(), there) == ([], [], [])
        assert [refusal(host, op) for op in removals] == [ESRCH, ENOENT, ENOENT]

    def test_changes_in_place(self, host: Namespace, host_ns: Netns, gateway: bytes, prefix: int) -> None:
        device, other = add_device(host), addr.following(gateway)
        host.apply(
            ops.neigh_replace(device, gateway, PEER_MAC),
            ops.nexthop_replace(ONE, device, gateway, onlink=True, protocol=PROTOCOL),
            ops.route_replace(gateway, prefix, nexthop=ONE, protocol=PROTOCOL),
        )

        host.apply(
            ops.neigh_replace(device, gateway, MAC),
            ops.nexthop_replace(ONE, device, other, onlink=True, protocol=PROTOCOL),
        )

        (nexthop,) = host_ns.ip("nexthop")
        assert nexthop["gateway"] == addr.unpack(other)
        (route,) = host.routes(PROTOCOL)
        assert (route.nexthop, route.gateway) == (ONE, other)
        assert [one.mac for one in host.neighbours(device) if one.packed == gateway] == [MAC]

    def test_route_of_another_protocol_is_replaced_only_when_told(
        self, host: Namespace, gateway: bytes, prefix: int
    ) -> None:
        device = add_device(host)
        host.apply(
            ops.nexthop_replace(ONE, device, gateway, onlink=True),
            ops.route_replace(gateway, prefix, nexthop=ONE, protocol=4),
        )

        assert refusal(host, ops.route_del(gateway, prefix, protocol=PROTOCOL)) == ESRCH
        ours = ops.route_replace(gateway, prefix, nexthop=ONE, protocol=PROTOCOL, exclusive=True)
        assert refusal(host, ours) == EEXIST
        assert [route.protocol for route in host.routes() if route.dst == gateway] == [4]

        host.apply(ops.route_replace(gateway, prefix, nexthop=ONE, protocol=PROTOCOL))
        assert [route.protocol for route in host.routes() if route.dst == gateway] == [PROTOCOL]

    def test_route_without_nexthop_object(self, host: Namespace, host_ns: Netns, gateway: bytes, prefix: int) -> None:
        under = index_of(host, "under0")
        via = PEER if len(gateway) == 4 else PEER6

        host.apply(
            ops.route_replace(
                gateway, prefix, index=under, gateway=via, protocol=PROTOCOL, metric=9, table=1000, mtu=1300
            )
        )

        family = "-4" if len(gateway) == 4 else "-6"
        (route,) = host_ns.ip(family, "route", "show", "table", "1000")
        assert (route["gateway"], route["dev"], route["metric"]) == (addr.unpack(via), "under0", 9)
        assert (route["protocol"], route["metrics"], route["flags"]) == ("205", [{"mtu": 1300}], [])
        host.apply(ops.route_del(gateway, prefix, protocol=PROTOCOL, metric=9, table=1000))
        assert host.routes(PROTOCOL) == []

    def test_refusals(self, host: Namespace, gateway: bytes, prefix: int) -> None:
        device = add_device(host)

        assert refusal(host, ops.route_replace(gateway, prefix, nexthop=4711)) == EINVAL
        assert refusal(host, ops.route_replace(gateway, prefix, index=4711)) == ENODEV
        assert refusal(host, ops.nexthop_replace(ONE, 4711, gateway, onlink=True)) == EINVAL
        assert refusal(host, ops.nexthop_replace(0, device, gateway, onlink=True)) == EINVAL
        assert refusal(host, ops.neigh_replace(4711, gateway, MAC)) == ENODEV
        host.apply(ops.link_set(device, up=False))
        assert refusal(host, ops.nexthop_replace(ONE, device, gateway, onlink=True)) == ENETDOWN
        assert refusal(host, ops.route_replace(gateway, prefix, index=device)) == ENETDOWN


@pytest.mark.parametrize(("local", "peer", "other"), [(LOCAL, PEER, PEER6), (LOCAL6, PEER6, PEER)], ids=["v4", "v6"])
class TestForwardingEntry:
    def test_leads_to_the_peer(self, host: Namespace, host_ns: Netns, local: bytes, peer: bytes, other: bytes) -> None:
        device = add_device(host, local=local)

        host.apply(ops.fdb_replace(device, PEER_MAC, peer))

        (entry,) = host_ns.bridge("fdb", "show", "dev", "cnikit.1")
        assert (entry["mac"], entry["dst"]) == ("02:63:00:00:00:02", addr.unpack(peer))
        assert (entry["state"], entry["flags"]) == ("permanent", ["self"])
        (found,) = host.fdb(device)
        assert (found.index, found.mac, found.dst) == (device, PEER_MAC, peer)
        assert found.state == NUD_PERMANENT | NUD_NOARP
        assert refusal(host, ops.fdb_replace(device, PEER_MAC, other)) == EAFNOSUPPORT

    def test_moves_and_goes(self, host: Namespace, local: bytes, peer: bytes, other: bytes) -> None:
        del other
        device, moved = add_device(host, local=local), addr.following(peer)
        host.apply(ops.fdb_replace(device, PEER_MAC, peer))

        host.apply(ops.fdb_replace(device, PEER_MAC, moved))
        assert [entry.dst for entry in host.fdb(device)] == [moved]

        host.apply(ops.fdb_del(device, PEER_MAC, moved))
        assert host.fdb(device) == []
        assert refusal(host, ops.fdb_del(device, PEER_MAC, moved)) == ENOENT

    def test_of_one_device_is_not_the_others(self, host: Namespace, local: bytes, peer: bytes, other: bytes) -> None:
        del other
        first = add_device(host, local=local)
        second = add_device(host, "cnikit.2", vni=2, local=local)
        host.apply(ops.fdb_replace(first, PEER_MAC, peer), ops.fdb_replace(second, MAC, peer))

        assert [entry.mac for entry in host.fdb(first)] == [PEER_MAC]
        assert [entry.mac for entry in host.fdb(second)] == [MAC]


def test_nothing_is_there_of_a_link_that_is_not(host: Namespace) -> None:
    assert (host.neighbours(4711), host.fdb(4711)) == ([], [])
    assert refusal(host, ops.fdb_replace(4711, MAC, PEER)) == ENODEV
    assert refusal(host, ops.fdb_del(4711, MAC, PEER)) == ENODEV


def test_address_without_a_route_to_its_network(host: Namespace, host_ns: Netns) -> None:
    device = add_device(host)

    host.apply(
        ops.addr_add(device, packed("10.244.1.0"), 24, nodad=True, noprefixroute=True),
        ops.addr_add(device, packed("fd00:244:1::"), 64, nodad=True, noprefixroute=True),
    )

    addresses = host_ns.ip("addr", "show", "cnikit.1")[0]["addr_info"]
    ours = {one["local"]: one for one in addresses if one["scope"] == "global"}
    assert ours["10.244.1.0"]["noprefixroute"] is ours["fd00:244:1::"]["noprefixroute"] is True
    assert ours["fd00:244:1::"]["nodad"] is True
    assert {route["dst"] for route in host_ns.ip("route")} == {"192.0.2.0/24"}
    assert "fd00:244:1::/64" not in {route["dst"] for route in host_ns.ip("-6", "route")}


def test_onlink_gateway_needs_no_address(host: Namespace, host_ns: Netns) -> None:
    under, far = index_of(host, "under0"), packed("198.51.100.1")

    host.apply(ops.route_replace(GATEWAY, 24, index=under, gateway=far, onlink=True, protocol=PROTOCOL))

    (route,) = host_ns.ip("route", "show", "proto", "205")
    assert (route["gateway"], route["flags"]) == ("198.51.100.1", ["onlink"])
    (found,) = host.routes(PROTOCOL)
    assert (found.gateway, found.onlink, found.nexthop) == (far, True, 0)


def test_ipv4_route_through_an_ipv6_nexthop(host: Namespace, host_ns: Netns) -> None:
    under = index_of(host, "under0")

    host.apply(
        ops.nexthop_replace(ONE, under, PEER6, protocol=PROTOCOL),
        ops.route_replace(GATEWAY, 24, nexthop=ONE, protocol=PROTOCOL),
    )

    (route,) = host_ns.ip("route", "show", "proto", "205")
    assert route["via"] == {"family": "inet6", "host": "2001:db8::2"}
    assert [one.gateway for one in host.routes(PROTOCOL)] == [PEER6]


def test_routes_of_one_protocol_only(host: Namespace) -> None:
    under = index_of(host, "under0")
    host.apply(
        ops.route_replace(GATEWAY, 24, index=under, protocol=PROTOCOL),
        ops.route_replace(GATEWAY6, 64, index=under, protocol=PROTOCOL),
        ops.route_replace(packed("10.9.0.0"), 16, index=under, protocol=4),
    )

    assert {route.dst for route in host.routes(PROTOCOL)} == {GATEWAY, GATEWAY6}
    assert packed("10.9.0.0") in {route.dst for route in host.routes()}


def test_groups_and_blackholes_are_listed_so_that_nobody_takes_their_numbers(host: Namespace, host_ns: Netns) -> None:
    host.apply(ops.link_set("lo", up=True))
    for arguments in (
        ["id", "7", "blackhole"],
        ["id", "8", "via", "192.0.2.2", "dev", "under0"],
        ["id", "9", "group", "8"],
    ):
        host_ns.run("ip", "nexthop", "add", *arguments)

    assert [(one.id, one.oif, one.gateway) for one in host.nexthops()] == [
        (7, 0, None), (8, index_of(host, "under0"), PEER), (9, 0, None),
    ]  # fmt: skip


def peer(number: int) -> tuple[int, bytes, bytes, bytes]:
    """A peer's nexthop, gateway, MAC and underlay address."""
    return (
        0x63000000 + number,
        (0x0A000000 + number * 256).to_bytes(4, "big"),
        (0x026300000000 + number).to_bytes(6, "big"),
        (0xAC100000 + number).to_bytes(4, "big"),
    )


def test_twenty_thousand_operations_in_one_batch(host: Namespace, host_ns: Netns) -> None:
    device, count = add_device(host), 5000
    batch = []
    for nexthop, gateway, mac, underlay in map(peer, range(1, count + 1)):
        batch += [
            ops.fdb_replace(device, mac, underlay),
            ops.neigh_replace(device, gateway, mac),
            ops.nexthop_replace(nexthop, device, gateway, onlink=True, protocol=PROTOCOL),
            ops.route_replace(gateway, 24, nexthop=nexthop, protocol=PROTOCOL),
        ]

    host.apply(*batch)

    seen = [
        host_ns.ip("route", "show", "proto", "205"),
        host_ns.ip("nexthop", "show", "proto", "205"),
        host_ns.ip("-4", "neigh", "show", "dev", "cnikit.1", "nud", "permanent"),
        host_ns.bridge("fdb", "show", "dev", "cnikit.1"),
    ]
    assert [len(one) for one in seen] == [count] * 4
    found = (len(host.routes(PROTOCOL)), len(host.nexthops(PROTOCOL)), len(host.fdb(device)))
    assert found == (count, count, count)


def test_each_refusal_of_a_large_batch_is_told(host: Namespace) -> None:
    device, count = add_device(host), 20000
    batch = [ops.nexthop_del(number) for number in range(1, count)]
    batch.insert(count // 2, ops.nexthop_replace(ONE, device, GATEWAY, onlink=True))

    failed = host.attempt(batch)

    assert [op for op, _ in failed] == [op for op in batch if op.verb == "nexthop_del"]
    assert {error.errno for _, error in failed} == {ENOENT}
    assert [one.id for one in host.nexthops()] == [ONE]
    assert host.attempt([]) == []


@pytest.mark.parametrize(
    ("family", "address", "only", "free"),
    [
        (socket.AF_INET, "", 0, [False, True]),
        (socket.AF_INET, "127.0.0.1", 0, [False, True]),
        (socket.AF_INET6, "::", 1, [True, False]),
        (socket.AF_INET6, "::", 0, [False, False]),
        (socket.AF_INET6, "::1", 0, [True, False]),
    ],
)
def test_a_port_is_free_where_a_device_could_be_set_up(
    host: Namespace, family: int, address: str, only: int, free: list[bool]
) -> None:
    host.apply(ops.link_set("lo", up=True))
    host.apply(vxlan(host), vxlan(host, "cnik6.1", local=LOCAL6))
    program = host.inside(lambda: socket.socket(family, socket.SOCK_DGRAM))
    with program:
        if family == socket.AF_INET6:
            program.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        program.bind((address, 8472))

        said = [host.udp_port_is_free(one, 8472) for one in (socket.AF_INET, socket.AF_INET6)]
        failed = host.attempt([ops.link_set(name, up=True) for name in ("cnikit.1", "cnik6.1")])

        assert said == free
        refused = {op.args["link"]: error.errno for op, error in failed}
        assert [name not in refused for name in ("cnikit.1", "cnik6.1")] == free
        assert set(refused.values()) == {EADDRINUSE}
