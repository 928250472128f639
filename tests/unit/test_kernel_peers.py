"""What a node needs for its peers, as requests: byte for byte what pyroute2 makes where it knows the message, and the
parsers survive any bytes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cni import addr
from cni.errors import KernelError
from cni.kernel import ops, rtlinks, rtnetlink, rtpeers
from cni.kernel.ops import Op
from cni.kernel.types import FdbEntry, Neighbour
from tests.unit.test_kernel_rtnetlink import (
    ANY_BODY,
    CREATE,
    DELNEIGH,
    EXCL,
    MAC,
    MAC_TEXT,
    NEWADDR,
    NEWLINK,
    NEWROUTE,
    address,
    nested,
    packed,
    theirs,
)

REPLACE = 0x100
DELROUTE, NEWNEIGH, NEWNEXTHOP, DELNEXTHOP = 25, 28, 104, 105
PERMANENT, NOARP, SELF, ONLINK = 0x80, 0x40, 2, 4
BRIDGE = 7
NEXTHOP = 0x63000001
NH_ID = bytes.fromhex("08001e00 01000063")  # which pyroute2 does not know either
GATEWAY, GATEWAY6 = packed("10.244.2.0"), packed("fd00:244:2::")


def vxlan(*settings: tuple[str, Any], mtu: int = 1450) -> bytes:
    info = nested(("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", nested(*settings)))
    named = [("IFLA_IFNAME", "cnikit.7"), ("IFLA_ADDRESS", MAC_TEXT), ("IFLA_MTU", mtu)]
    return theirs(ifinfmsg, {}, [*named, ("IFLA_LINKINFO", info)])


def path(dst: str, prefix: int, *attributes: tuple[str, Any], protocol: int = 205, **fields: int) -> bytes:
    """A route's message."""
    family = addr.AF_INET6 if ":" in dst else addr.AF_INET
    header = {"family": family, "dst_len": prefix, "table": 254, "proto": protocol, "type": 1} | fields
    return theirs(rtmsg, header, [("RTA_DST", dst), *attributes])


def neighbour(family: int, state: int, flags: int, *attributes: tuple[str, Any]) -> bytes:
    return theirs(ndmsg, {"family": family, "ifindex": 5, "state": state, "flags": flags}, list(attributes))


CASES: list[tuple[Op, int, int, bytes]] = [
    (
        ops.vxlan_add("cnikit.7", 7, mac=MAC, mtu=1450, port=8472, local=packed("192.0.2.1"), link=3),
        NEWLINK,
        CREATE | EXCL,
        vxlan(
            ("IFLA_VXLAN_ID", 7), ("IFLA_VXLAN_LINK", 3), ("IFLA_VXLAN_LOCAL", "192.0.2.1"),
            ("IFLA_VXLAN_LEARNING", 0), ("IFLA_VXLAN_PORT", 8472),
        ),
    ),
    (
        ops.vxlan_add(
            "cnikit.7", 7, mac=MAC, mtu=1430, port=4789, local=packed("2001:db8::1"), link=0, learning=True, gbp=True
        ),
        NEWLINK,
        CREATE | EXCL,
        vxlan(
            ("IFLA_VXLAN_ID", 7), ("IFLA_VXLAN_LOCAL6", "2001:db8::1"), ("IFLA_VXLAN_LEARNING", 1),
            ("IFLA_VXLAN_PORT", 4789), ("IFLA_VXLAN_GBP", None),
            mtu=1430,
        ),
    ),
    (
        ops.addr_add(5, packed("10.244.1.0"), 32, nodad=True, noprefixroute=True),
        NEWADDR,
        CREATE | EXCL,
        address("10.244.1.0", 32, 0, IFA_FLAGS=0x200),  # type: ignore[arg-type]  # a number
    ),
    (
        ops.route_replace(GATEWAY, 24, nexthop=NEXTHOP, protocol=205),
        NEWROUTE,
        CREATE | REPLACE,
        path("10.244.2.0", 24) + NH_ID,
    ),
    (
        ops.route_replace(GATEWAY6, 64, nexthop=NEXTHOP, protocol=205, metric=9, exclusive=True),
        NEWROUTE,
        CREATE | EXCL,
        path("fd00:244:2::", 64) + NH_ID + bytes.fromhex("08000600 09000000"),
    ),
    (
        ops.route_replace(GATEWAY, 24, index=5, gateway=packed("192.0.2.2"), onlink=True, table=1000, mtu=1300),
        NEWROUTE,
        CREATE | REPLACE,
        path(
            "10.244.2.0", 24, ("RTA_OIF", 5), ("RTA_GATEWAY", "192.0.2.2"), ("RTA_TABLE", 1000),
            ("RTA_METRICS", nested(("RTAX_MTU", 1300))),
            protocol=3, table=0, flags=ONLINK,
        ),
    ),
    (
        ops.route_del(GATEWAY, 24, protocol=205, metric=7),
        DELROUTE,
        0,
        path("10.244.2.0", 24, ("RTA_PRIORITY", 7), scope=255, type=0),
    ),
    (
        ops.neigh_replace(5, GATEWAY, MAC),
        NEWNEIGH,
        CREATE | REPLACE,
        neighbour(2, PERMANENT, 0, ("NDA_DST", "10.244.2.0"), ("NDA_LLADDR", MAC_TEXT)),
    ),
    (
        ops.neigh_replace(5, GATEWAY6, MAC),
        NEWNEIGH,
        CREATE | REPLACE,
        neighbour(10, PERMANENT, 0, ("NDA_DST", "fd00:244:2::"), ("NDA_LLADDR", MAC_TEXT)),
    ),
    (
        ops.fdb_replace(5, MAC, packed("192.0.2.2")),
        NEWNEIGH,
        CREATE | REPLACE,
        neighbour(BRIDGE, PERMANENT | NOARP, SELF, ("NDA_LLADDR", MAC_TEXT), ("NDA_DST", "192.0.2.2")),
    ),
    (
        ops.fdb_del(5, MAC, packed("2001:db8::2")),
        DELNEIGH,
        0,
        neighbour(BRIDGE, PERMANENT | NOARP, SELF, ("NDA_LLADDR", MAC_TEXT), ("NDA_DST", "2001:db8::2")),
    ),
    # pyroute2 does not know these messages. Family, scope, protocol, reserved, flags; NHA_ID, NHA_OIF, NHA_GATEWAY.
    (
        ops.nexthop_replace(NEXTHOP, 5, GATEWAY, onlink=True, protocol=205),
        NEWNEXTHOP,
        CREATE | REPLACE,
        bytes.fromhex("0200cd0004000000 0800010001000063 0800050005000000 080006000af40200"),
    ),
    (
        ops.nexthop_replace(NEXTHOP, 5, GATEWAY6),
        NEWNEXTHOP,
        CREATE | REPLACE,
        bytes.fromhex("0a00000000000000 0800010001000063 0800050005000000")
        + bytes.fromhex("14000600fd000244000200000000000000000000"),
    ),
    (
        ops.nexthop_replace(NEXTHOP, 5, None),
        NEWNEXTHOP,
        CREATE | REPLACE,
        bytes.fromhex("0200000000000000 0800010001000063 0800050005000000"),
    ),
    (ops.nexthop_del(NEXTHOP), DELNEXTHOP, 0, bytes.fromhex("0000000000000000 0800010001000063")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "kind", "flags", "body"), CASES, ids=[f"{case[0].verb}-{n}" for n, case in enumerate(CASES)]
)
def test_request_is_what_pyroute2_sends(op: Op, kind: int, flags: int, body: bytes) -> None:
    (ours,) = rtnetlink.encode([op])

    assert ours[:2] == (kind, flags)
    assert ours[2].hex() == body.hex()


TEXTS = [
    (ops.vxlan_add("cnikit.7", 7, mac=None, mtu=0, port=1, local=GATEWAY, link=0), "create vxlan cnikit.7 with VNI 7"),
    (ops.route_add(5, GATEWAY, 24, GATEWAY), "add route 10.244.2.0/24 via 10.244.2.0 dev 5"),
    (ops.route_replace(GATEWAY, 24, nexthop=9), "set route 10.244.2.0/24 through nexthop 9"),
    (ops.route_replace(GATEWAY6, 64, index=5), "set route fd00:244:2::/64 dev 5"),
    (ops.route_del(GATEWAY, 24), "delete route 10.244.2.0/24"),
    (ops.nexthop_replace(9, 5, GATEWAY), "set nexthop 9 via 10.244.2.0 dev 5"),
    (ops.nexthop_replace(9, 5, None), "set nexthop 9 dev 5"),
    (ops.nexthop_del(9), "delete nexthop 9"),
    (ops.neigh_replace(5, GATEWAY, MAC), f"set neighbour 10.244.2.0 of link 5 to {MAC_TEXT}"),
    (ops.neigh_del(5, GATEWAY), "forget neighbour 10.244.2.0 of link 5"),
    (ops.fdb_replace(5, MAC, GATEWAY), f"set fdb entry {MAC_TEXT} of link 5 to 10.244.2.0"),
    (ops.fdb_del(5, MAC, GATEWAY), f"delete fdb entry {MAC_TEXT} to 10.244.2.0 of link 5"),
]


@pytest.mark.parametrize(("op", "text"), TEXTS, ids=[case[1] for case in TEXTS])
def test_an_error_can_name_the_operation(op: Op, text: str) -> None:
    assert op.text == text
    assert repr(op) == f"<{text}>"


@pytest.mark.parametrize(
    ("setting", "local"),
    [(("IFLA_VXLAN_LOCAL", "192.0.2.1"), "192.0.2.1"), (("IFLA_VXLAN_LOCAL6", "2001:db8::1"), "2001:db8::1")],
)
def test_vxlan_settings_are_read(setting: tuple[str, str], local: str) -> None:
    body = vxlan(
        ("IFLA_VXLAN_ID", 7), ("IFLA_VXLAN_LINK", 3), setting, ("IFLA_VXLAN_LEARNING", 1), ("IFLA_VXLAN_PORT", 8472),
        ("IFLA_VXLAN_GBP", None),
    )  # fmt: skip

    found = rtlinks.parse_link(body).vxlan

    assert found is not None
    assert (found.vni, found.link, found.port, found.local) == (7, 3, 8472, packed(local))
    assert (found.learning, found.gbp) == (True, True)


def test_route_through_a_nexthop_object_is_read() -> None:
    body = path("10.244.2.0", 24, ("RTA_OIF", 5), ("RTA_GATEWAY", "10.244.2.0"), flags=ONLINK) + NH_ID

    (found,) = rtnetlink.parse_routes(body)

    assert (found.nexthop, found.oif, found.gateway, found.onlink) == (NEXTHOP, 5, GATEWAY, True)
    assert found.protocol == 205


def test_nexthop_group_has_neither_link_nor_gateway() -> None:
    # NHA_ID and NHA_GROUP with one member, nexthop 7 of weight 1.
    body = bytes.fromhex("0000cd000000000008000100090000000c0002000700000000000000")

    found = rtpeers.parse_nexthop(body)

    assert (found.id, found.oif, found.gateway, found.onlink, found.protocol) == (9, 0, None, False, 205)


def test_neighbours_and_forwarding_entries_are_told_apart() -> None:
    known = neighbour(2, PERMANENT, 0, ("NDA_DST", "10.244.2.0"), ("NDA_LLADDR", MAC_TEXT))
    unknown = neighbour(2, 1, 0, ("NDA_DST", "10.244.3.0"))
    entry = neighbour(BRIDGE, PERMANENT, SELF, ("NDA_LLADDR", MAC_TEXT), ("NDA_DST", "192.0.2.2"))
    bodies = [known, unknown, entry]

    neighbours, fdb = rtpeers.parse_neighbours(bodies, 5), rtpeers.parse_fdb(bodies, 5)

    assert [(one.packed, one.mac, one.state) for one in neighbours] == [
        (GATEWAY, MAC, PERMANENT), (packed("10.244.3.0"), b"", 1),
    ]  # fmt: skip
    assert [(one.mac, one.dst) for one in fdb] == [(MAC, packed("192.0.2.2"))]
    assert rtpeers.parse_neighbours(bodies, 6) == []
    assert rtpeers.parse_fdb(bodies, 6) == []


def test_neighbour_of_a_family_without_addresses_is_none() -> None:
    assert rtpeers.parse_neighbour(neighbour(28, PERMANENT, 0, ("NDA_LLADDR", MAC_TEXT))) is None


@pytest.mark.parametrize("parse", [rtpeers.parse_nexthop, rtpeers.parse_neighbour], ids=["nexthop", "neighbour"])
@given(body=ANY_BODY)
def test_any_bytes_give_a_value_or_the_one_error(parse: Any, body: bytes) -> None:
    with suppress(KernelError):
        found = parse(body)
        assert isinstance(found, Neighbour) <= (len(getattr(found, "packed", b"")) in (4, 16))
        assert not isinstance(found, FdbEntry) or isinstance(found.mac, bytes)
