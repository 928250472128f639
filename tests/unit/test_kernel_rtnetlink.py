"""Our rtnetlink requests are byte for byte those that pyroute2 makes, and our parsers survive any bytes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cni import addr
from cni.errors import KernelError
from cni.kernel import netlink, ops, rtlinks, rtnetlink
from cni.kernel.ops import Op

NEWLINK, DELLINK, SETLINK, NEWADDR, DELADDR, NEWROUTE, DELNEIGH = 16, 17, 19, 20, 21, 24, 29
CREATE, EXCL = 0x400, 0x200
MAC, PEER_MAC = b"\x0a\x58\x0a\x01\x00\x01", b"\x0a\x58\x0a\x01\x00\x02"
MAC_TEXT, PEER_MAC_TEXT = "0a:58:0a:01:00:01", "0a:58:0a:01:00:02"


class Netns:
    """All that an operation takes from a namespace."""

    fd = 7


def theirs(message_class: Any, fields: dict[str, int], attributes: list[tuple[str, Any]]) -> bytes:
    """What pyroute2 sends, without the netlink header."""
    message = message_class()
    for field, value in fields.items():
        message[field] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data[16:])


def nested(*attributes: tuple[str, Any]) -> dict[str, Any]:
    return {"attrs": list(attributes)}


def vlan(index: int, flags: int, *infos: tuple[int, int]) -> bytes:
    spec: list[tuple[str, Any]] = [("IFLA_BRIDGE_FLAGS", flags)]
    spec += [("IFLA_BRIDGE_VLAN_INFO", {"flags": info_flags, "vid": vid}) for info_flags, vid in infos]
    return theirs(ifinfmsg, {"family": 7, "index": index}, [("IFLA_AF_SPEC", nested(*spec))])


def address(packed: str, prefix: int, flags: int, **more: str) -> bytes:
    family = addr.AF_INET6 if ":" in packed else addr.AF_INET
    fields = {"family": family, "prefixlen": prefix, "flags": flags, "index": 5}
    attributes = [("IFA_LOCAL", packed), ("IFA_ADDRESS", packed), *more.items()]
    return theirs(ifaddrmsg, fields, attributes)


def route(dst: str, prefix: int, attributes: list[tuple[str, Any]], table: int = 254, scope: int = 0) -> bytes:
    family = addr.AF_INET6 if ":" in dst else addr.AF_INET
    fields = {"family": family, "dst_len": prefix, "table": table, "proto": 3, "scope": scope, "type": 1}
    return theirs(rtmsg, fields, [("RTA_DST", dst), ("RTA_OIF", 5), *attributes])


def packed(text: str) -> bytes:
    value = addr.pack(text)
    assert value is not None
    return value


NETNS: Any = Netns()
CASES: list[tuple[Op, int, int, bytes]] = [
    (
        ops.bridge_add("cni0", MAC, 1400, vlan_filtering=True),
        NEWLINK,
        CREATE | EXCL,
        theirs(
            ifinfmsg,
            {},
            [
                ("IFLA_IFNAME", "cni0"),
                ("IFLA_ADDRESS", MAC_TEXT),
                ("IFLA_MTU", 1400),
                (
                    "IFLA_LINKINFO",
                    nested(("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", nested(("IFLA_BR_VLAN_FILTERING", 1)))),
                ),
            ],
        ),
    ),
    (
        ops.bridge_add("cni0", None),
        NEWLINK,
        CREATE | EXCL,
        theirs(ifinfmsg, {}, [("IFLA_IFNAME", "cni0"), ("IFLA_LINKINFO", nested(("IFLA_INFO_KIND", "bridge")))]),
    ),
    (
        ops.veth_add("veth1", MAC, "eth0", PEER_MAC, NETNS, 1400, 2),
        NEWLINK,
        CREATE | EXCL,
        theirs(
            ifinfmsg,
            {"flags": 1, "change": 1},
            [
                ("IFLA_IFNAME", "veth1"),
                ("IFLA_ADDRESS", MAC_TEXT),
                ("IFLA_MTU", 1400),
                ("IFLA_NUM_TX_QUEUES", 1),
                ("IFLA_NUM_RX_QUEUES", 1),
                ("IFLA_MASTER", 2),
                (
                    "IFLA_LINKINFO",
                    nested(
                        ("IFLA_INFO_KIND", "veth"),
                        (
                            "IFLA_INFO_DATA",
                            nested(
                                (
                                    "VETH_INFO_PEER",
                                    nested(
                                        ("IFLA_IFNAME", "eth0"),
                                        ("IFLA_ADDRESS", PEER_MAC_TEXT),
                                        ("IFLA_MTU", 1400),
                                        ("IFLA_NUM_TX_QUEUES", 1),
                                        ("IFLA_NUM_RX_QUEUES", 1),
                                        ("IFLA_NET_NS_FD", 7),
                                    ),
                                )
                            ),
                        ),
                    ),
                ),
            ],
        ),
    ),
    (
        ops.link_set("veth1", up=True, alias="cnikit:net"),
        SETLINK,
        0,
        # Kernel and ip(8) take an alias with or without its NUL; pyroute2 sends one.
        theirs(ifinfmsg, {"flags": 1, "change": 1}, [("IFLA_IFNAME", "veth1")]) + b"\x0e\x00\x14\x00cnikit:net\x00\x00",
    ),
    (
        ops.link_set(5, up=False, promisc=True),
        SETLINK,
        0,
        theirs(ifinfmsg, {"index": 5, "flags": 0x100, "change": 0x101}, []),
    ),
    (
        ops.link_set(5, mtu=1300, mac=MAC, master=0),
        SETLINK,
        0,
        theirs(ifinfmsg, {"index": 5}, [("IFLA_MTU", 1300), ("IFLA_ADDRESS", MAC_TEXT), ("IFLA_MASTER", 0)]),
    ),
    (ops.vlan_add(5, 100, 100, untagged=True), SETLINK, 0, vlan(5, 1, (6, 100))),
    (ops.vlan_add(5, 100, 200), SETLINK, 0, vlan(5, 1, (8, 100), (16, 200))),
    (ops.vlan_add(5, 7, 7, is_self=True), SETLINK, 0, vlan(5, 2, (0, 7))),
    (ops.vlan_del(5, 1), DELLINK, 0, vlan(5, 1, (0, 1))),
    (
        ops.addr_add(5, packed("10.1.0.2"), 24, nodad=True),
        NEWADDR,
        CREATE | EXCL,
        address("10.1.0.2", 24, 0, IFA_BROADCAST="10.1.0.255"),
    ),
    (ops.addr_add(5, packed("10.1.0.2"), 31, nodad=True), NEWADDR, CREATE | EXCL, address("10.1.0.2", 31, 0)),
    (ops.addr_add(5, packed("fd00::2"), 64, nodad=True), NEWADDR, CREATE | EXCL, address("fd00::2", 64, 2)),
    (ops.addr_add(5, packed("fd00::2"), 64, nodad=False), NEWADDR, CREATE | EXCL, address("fd00::2", 64, 0)),
    (ops.addr_del(5, packed("fd00::2"), 64), DELADDR, 0, address("fd00::2", 64, 0)),
    (
        ops.route_add(5, bytes(4), 0, packed("10.1.0.1")),
        NEWROUTE,
        CREATE,
        route(addr.unpack(bytes(4)), 0, [("RTA_GATEWAY", "10.1.0.1")]),
    ),
    (
        ops.route_add(5, packed("fd01::"), 64, packed("fd00::1"), metric=9, table=1000, mtu=1300, advmss=1200),
        NEWROUTE,
        CREATE,
        route(
            "fd01::",
            64,
            [
                ("RTA_GATEWAY", "fd00::1"),
                ("RTA_TABLE", 1000),
                ("RTA_PRIORITY", 9),
                ("RTA_METRICS", nested(("RTAX_MTU", 1300), ("RTAX_ADVMSS", 1200))),
            ],
            table=0,
        ),
    ),
    (
        ops.route_add(5, packed("10.2.0.0"), 16, None, table=100, scope=253),
        NEWROUTE,
        CREATE,
        route("10.2.0.0", 16, [], 100, 253),
    ),
    (
        ops.neigh_del(5, packed("10.1.0.2")),
        DELNEIGH,
        0,
        theirs(ndmsg, {"family": 2, "ifindex": 5}, [("NDA_DST", "10.1.0.2")]),
    ),
]


@pytest.mark.parametrize(
    ("op", "kind", "flags", "body"), CASES, ids=[f"{case[0].verb}-{n}" for n, case in enumerate(CASES)]
)
def test_request_is_what_pyroute2_sends(op: Op, kind: int, flags: int, body: bytes) -> None:
    (ours,) = rtnetlink.encode([op])

    assert ours[:2] == (kind, flags)
    assert ours[2].hex() == body.hex()


def test_port_settings_are_understood_by_pyroute2() -> None:
    ((_, _, body),) = rtnetlink.encode([ops.port_set("veth1", hairpin=True, isolated=True)])

    message = ifinfmsg(netlink.message(NEWLINK, 0, 1, body))
    message.decode()

    info = message.get_attr("IFLA_LINKINFO")
    assert message.get_attr("IFLA_IFNAME") == "veth1"
    assert info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge"
    settings = info.get_attr("IFLA_INFO_SLAVE_DATA")
    assert settings.get_attr("IFLA_BRPORT_MODE") == 1
    assert settings.get_attr("IFLA_BRPORT_ISOLATED") == 1


def test_link_answer_of_pyroute2_is_read() -> None:
    body = theirs(
        ifinfmsg,
        {"index": 9, "flags": 0x1043},
        [
            ("IFLA_IFNAME", "veth1"),
            ("IFLA_ADDRESS", MAC_TEXT),
            ("IFLA_MTU", 1400),
            ("IFLA_LINK", 3),
            ("IFLA_MASTER", 2),
            ("IFLA_OPERSTATE", "UP"),
            ("IFLA_PROMISCUITY", 1),
            ("IFLA_IFALIAS", "owner"),
            (
                "IFLA_LINKINFO",
                nested(
                    ("IFLA_INFO_KIND", "veth"),
                    ("IFLA_INFO_SLAVE_KIND", "bridge"),
                    ("IFLA_INFO_SLAVE_DATA", nested(("IFLA_BRPORT_STATE", 3), ("IFLA_BRPORT_MODE", 1))),
                ),
            ),
        ],
    )

    link = rtlinks.parse_link(body)

    assert (link.index, link.name, link.kind, link.mac, link.mtu) == (9, "veth1", "veth", MAC, 1400)
    assert (link.peer, link.master, link.operstate, link.promisc, link.alias) == (3, 2, 6, 1, "owner")
    assert link.up
    assert link.port is not None
    assert (link.port.state, link.port.hairpin, link.port.isolated) == (3, True, False)


def test_multipath_route_is_given_once_for_each_next_hop() -> None:
    hops = [
        {"oif": 3, "hops": 0, "flags": 0, "attrs": [("RTA_GATEWAY", "10.1.0.1")]},
        {"oif": 4, "hops": 0, "flags": 0, "attrs": [("RTA_GATEWAY", "10.2.0.1")]},
    ]
    body = theirs(
        rtmsg,
        {"family": 2, "dst_len": 8, "table": 254, "type": 1},
        [("RTA_DST", "10.0.0.0"), ("RTA_MULTIPATH", hops)],
    )

    routes = rtnetlink.parse_routes(body)

    assert [(r.oif, r.gateway) for r in routes] == [(3, packed("10.1.0.1")), (4, packed("10.2.0.1"))]


def test_vlan_ranges_are_spelled_out() -> None:
    # One entry for VLAN 5 (PVID, untagged) and one for the range 10-12, as RTM_NEWVLAN has them.
    one = b"\x0c\x00\x01\x80" + b"\x08\x00\x01\x00\x06\x00\x05\x00"
    many = b"\x14\x00\x01\x80" + b"\x08\x00\x01\x00\x00\x00\x0a\x00" + b"\x06\x00\x02\x00\x0c\x00\x00\x00"

    assert rtlinks.parse_vlans(b"\x07\0\0\0\x03\0\0\0" + one + many) == [5, 10, 11, 12]


PARSERS = [
    rtlinks.parse_link,
    rtlinks.parse_gone_link,
    rtnetlink.parse_address,
    rtnetlink.parse_routes,
    rtlinks.parse_vlans,
]


def attributes_of(children: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes that look like attributes, most of them well-formed."""
    one = st.builds(
        lambda kind, data, lie: (
            (len(data) + 4 + lie).to_bytes(2, "little") + kind.to_bytes(2, "little") + data + bytes(-len(data) % 4)
        ),
        st.integers(0, 40),
        children,
        st.sampled_from([0, 0, 0, 0, 0, 1, 30]),
    )
    return st.lists(one, max_size=5).map(b"".join)


ANY_BODY = st.builds(
    bytes.__add__,
    st.binary(max_size=16),
    st.binary(max_size=60) | st.recursive(st.binary(max_size=20), attributes_of, max_leaves=8),
)


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(body=ANY_BODY)
def test_any_bytes_give_a_value_or_the_one_error(parse: Any, body: bytes) -> None:
    with suppress(KernelError):
        parse(body)
