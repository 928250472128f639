"""Links in rtnetlink's words (rtnetlink(7)): operations to requests, answers to values. Pure functions, no I/O.

Attribute numbers are those of <linux/if_link.h> and <linux/if_bridge.h>.
"""

from __future__ import annotations

import _struct
import sys

from cni import addr
from cni.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    attr,
    attr_text,
    attr_u32,
    attrs,
    each_attr,
    malformed,
    nest,
    number,
    some_attrs,
    text,
)
from cni.kernel.types import IFF_PROMISC, IFF_UP, Link, Port, Vxlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.kernel import Namespace
    from cni.kernel.netlink import Request

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_GETVLAN = 114

RTMGRP_LINK = 1
AF_UNSPEC = 0
AF_BRIDGE = 7

_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINK = 5
_IFLA_MASTER = 10
_IFLA_OPERSTATE = 16
_IFLA_LINKINFO = 18
_IFLA_IFALIAS = 20
_IFLA_AF_SPEC = 26
_IFLA_GROUP = 27
_IFLA_NET_NS_FD = 28
_IFLA_EXT_MASK = 29
_IFLA_PROMISCUITY = 30
_IFLA_NUM_TX_QUEUES = 31
_IFLA_NUM_RX_QUEUES = 32
_IFLA_INFO_KIND = 1
_IFLA_INFO_DATA = 2
_IFLA_INFO_SLAVE_KIND = 4
_IFLA_INFO_SLAVE_DATA = 5
_IFLA_BR_VLAN_FILTERING = 7
_IFLA_BR_VLAN_PROTOCOL = 8
_IFLA_BRPORT_STATE = 1
_IFLA_BRPORT_MODE = 4  # hairpin
_IFLA_BRPORT_ISOLATED = 33
_IFLA_INET_CONF = 1
_IPV4_DEVCONF_ARP_NOTIFY = 22
_VETH_INFO_PEER = 1
_IFLA_VXLAN_ID = 1
_IFLA_VXLAN_LINK = 3
_IFLA_VXLAN_LOCAL = 4
_IFLA_VXLAN_LEARNING = 7
_IFLA_VXLAN_PORT = 15
_IFLA_VXLAN_GROUP6 = 16
_IFLA_VXLAN_LOCAL6 = 17
_IFLA_VXLAN_GBP = 23
_IFLA_VXLAN_COLLECT_METADATA = 25
# By what ip-link(8) calls them. The kernel gives flags only where they are set, numbers always.
_VXLAN_EXTENSION_FLAGS = {"gpe": 27}
_VXLAN_EXTENSION_NUMBERS = {
    "external": _IFLA_VXLAN_COLLECT_METADATA,
    "udp6zerocsumrx": 20,
    "remcsumrx": 22,
    "vnifilter": 30,
}
_LINK_ATTRS = frozenset((
    _IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_IFALIAS,
    _IFLA_PROMISCUITY,
))  # fmt: skip
_BRIDGE_ATTRS = frozenset((_IFLA_BR_VLAN_FILTERING,))
_PORT_ATTRS = frozenset((_IFLA_BRPORT_STATE, _IFLA_BRPORT_MODE, _IFLA_BRPORT_ISOLATED))
_RTEXT_FILTER_SKIP_STATS = 8

_IFLA_BRIDGE_FLAGS = 0
_IFLA_BRIDGE_VLAN_INFO = 2
_BRIDGE_FLAGS_MASTER = 1
_BRIDGE_FLAGS_SELF = 2
_BRIDGE_VLAN_INFO_PVID = 2
_BRIDGE_VLAN_INFO_UNTAGGED = 4
_BRIDGE_VLAN_INFO_RANGE_BEGIN = 8
_BRIDGE_VLAN_INFO_RANGE_END = 16
_BRIDGE_VLANDB_ENTRY = 1
_BRIDGE_VLANDB_ENTRY_INFO = 1
_BRIDGE_VLANDB_ENTRY_RANGE = 2

_IFINFO = _struct.Struct("=BxHiII")  # family, type, index, flags, change
_BR_VLAN_MSG = _struct.Struct("=BxxxI")  # family, index
_VLAN_INFO = _struct.Struct("=HH")  # flags, vid


# Operations to requests


def _which(link: str | int) -> tuple[int, bytes]:
    """A link's index and the attribute that names it where it has none yet."""
    return (link, b"") if isinstance(link, int) else (0, attr_text(_IFLA_IFNAME, link))


def _described(name: str, mac: bytes | None, mtu: int) -> bytes:
    """What every new link is given."""
    return (
        attr_text(_IFLA_IFNAME, name)
        + (attr(_IFLA_ADDRESS, mac) if mac else b"")
        + (attr_u32(_IFLA_MTU, mtu) if mtu else b"")
    )


def _new_link(flags: int, attributes: bytes, kind: str, data: bytes) -> Request:
    info = nest(_IFLA_LINKINFO, attr_text(_IFLA_INFO_KIND, kind), data)
    return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _IFINFO.pack(AF_UNSPEC, 0, 0, flags, flags) + attributes + info


def _bridge_add(*, name: str, mac: bytes | None, mtu: int, vlan_filtering: bool) -> Request:
    data = nest(_IFLA_INFO_DATA, attr(_IFLA_BR_VLAN_FILTERING, b"\1")) if vlan_filtering else b""
    return _new_link(0, _described(name, mac, mtu), "bridge", data)


def _veth_add(
    *,
    name: str,
    mac: bytes | None,
    peer_name: str,
    peer_mac: bytes | None,
    peer_netns: Namespace | None,
    mtu: int,
    master: int,
) -> Request:
    # Not said, the kernel makes a queue for every processor, and then takes all but one out of use: a third of the
    # whole request's time with two processors, and six times all the rest with 64.
    queues = attr_u32(_IFLA_NUM_TX_QUEUES, 1) + attr_u32(_IFLA_NUM_RX_QUEUES, 1)
    peer = _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _described(peer_name, peer_mac, mtu) + queues
    if peer_netns is not None:
        peer += attr_u32(_IFLA_NET_NS_FD, peer_netns.fd)
    ours = _described(name, mac, mtu) + queues + (attr_u32(_IFLA_MASTER, master) if master else b"")
    return _new_link(IFF_UP, ours, "veth", nest(_IFLA_INFO_DATA, attr(_VETH_INFO_PEER, peer)))


def _vxlan_add(
    *,
    name: str,
    vni: int,
    mac: bytes | None,
    mtu: int,
    port: int,
    local: bytes,
    link: int,
    learning: bool,
    gbp: bool,
) -> Request:
    data = (
        attr_u32(_IFLA_VXLAN_ID, vni)
        + (attr_u32(_IFLA_VXLAN_LINK, link) if link else b"")
        + attr(_IFLA_VXLAN_LOCAL if len(local) == 4 else _IFLA_VXLAN_LOCAL6, local)
        + attr(_IFLA_VXLAN_LEARNING, bytes([learning]))
        + attr(_IFLA_VXLAN_PORT, port.to_bytes(2, "big"))
        + (attr(_IFLA_VXLAN_GBP, b"") if gbp else b"")
    )
    return _new_link(0, _described(name, mac, mtu), "vxlan", nest(_IFLA_INFO_DATA, data))


def _link_set(
    *,
    link: str | int,
    up: bool | None = None,
    mtu: int | None = None,
    mac: bytes | None = None,
    master: int | None = None,
    alias: str | None = None,
    promisc: bool | None = None,
    arp_notify: bool | None = None,
) -> Request:
    index, attributes = _which(link)
    flags = change = 0
    for wanted, flag in ((up, IFF_UP), (promisc, IFF_PROMISC)):
        if wanted is not None:
            change |= flag
            flags |= flag if wanted else 0
    if mtu is not None:
        attributes += attr_u32(_IFLA_MTU, mtu)
    if mac is not None:
        attributes += attr(_IFLA_ADDRESS, mac)
    if master is not None:
        attributes += attr_u32(_IFLA_MASTER, master)
    if alias is not None:
        attributes += attr(_IFLA_IFALIAS, alias.encode("utf-8", "surrogateescape"))
    if arp_notify is not None:
        conf = nest(_IFLA_INET_CONF, attr_u32(_IPV4_DEVCONF_ARP_NOTIFY, int(arp_notify)))
        attributes += nest(_IFLA_AF_SPEC, nest(addr.AF_INET, conf))
    return RTM_SETLINK, 0, _IFINFO.pack(AF_UNSPEC, 0, index, flags, change) + attributes


def _port_set(*, link: str | int, hairpin: bool, isolated: bool) -> Request:
    # Through IFLA_LINKINFO, because a PF_BRIDGE RTM_SETLINK takes an index only, and a port that is made
    # in the same batch has none that we know.
    index, name = _which(link)
    settings = attr(_IFLA_BRPORT_MODE, bytes([hairpin])) + attr(_IFLA_BRPORT_ISOLATED, bytes([isolated]))
    port = attr_text(_IFLA_INFO_SLAVE_KIND, "bridge") + nest(_IFLA_INFO_SLAVE_DATA, settings)
    return RTM_NEWLINK, 0, _IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + name + nest(_IFLA_LINKINFO, port)


def _vlans(kind: int, index: int, flags: int, infos: list[tuple[int, int]]) -> Request:
    spec = attr(_IFLA_BRIDGE_FLAGS, flags.to_bytes(2, sys.byteorder))
    for info in infos:
        spec += attr(_IFLA_BRIDGE_VLAN_INFO, _VLAN_INFO.pack(*info))
    return kind, 0, _IFINFO.pack(AF_BRIDGE, 0, index, 0, 0) + nest(_IFLA_AF_SPEC, spec)


def _vlan_add(*, index: int, first: int, last: int, untagged: bool, is_self: bool) -> Request:
    flags = _BRIDGE_VLAN_INFO_PVID | _BRIDGE_VLAN_INFO_UNTAGGED if untagged else 0
    if first == last:
        infos = [(flags, first)]
    else:
        infos = [(flags | _BRIDGE_VLAN_INFO_RANGE_BEGIN, first), (flags | _BRIDGE_VLAN_INFO_RANGE_END, last)]
    return _vlans(RTM_SETLINK, index, _BRIDGE_FLAGS_SELF if is_self else _BRIDGE_FLAGS_MASTER, infos)


def _vlan_del(index: int, vid: int) -> Request:
    return _vlans(RTM_DELLINK, index, _BRIDGE_FLAGS_MASTER, [(0, vid)])


ENCODERS: dict[str, Callable[..., Request]] = {
    "bridge_add": _bridge_add,
    "veth_add": _veth_add,
    "vxlan_add": _vxlan_add,
    "link_set": _link_set,
    "port_set": _port_set,
    "vlan_add": _vlan_add,
    "vlan_del": _vlan_del,
}


def link_del(index: int) -> Request:
    """The request behind `Namespace.delete_link`."""
    return RTM_DELLINK, 0, _IFINFO.pack(AF_UNSPEC, 0, index, 0, 0)


def link_group(index: int, group: int) -> Request:
    """The request that moves a link to a group of links."""
    return RTM_SETLINK, 0, _IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + attr_u32(_IFLA_GROUP, group)


def group_del(group: int) -> Request:
    """The request that deletes every link of a group. ENODEV when there is none."""
    return RTM_DELLINK, 0, _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + attr_u32(_IFLA_GROUP, group)


def vlan_probe() -> Request:
    """A request that no kernel carries out, but refuses with EPROTONOSUPPORT only if its bridges filter VLANs.

    It asks for a bridge with an impossible VLAN protocol and an impossible name. The first is looked at
    only by a kernel with CONFIG_BRIDGE_VLAN_FILTERING and before anything is made, the second by all.
    Unlike the RTM_GETVLAN dump, this does not mistake a bridge module that is not loaded yet for a kernel
    without the feature: the request loads it.
    """
    data = nest(_IFLA_INFO_DATA, attr(_IFLA_BR_VLAN_PROTOCOL, b"\0\0"))
    return _new_link(0, attr_text(_IFLA_IFNAME, "no/name"), "bridge", data)


# Questions: what follows the netlink header


def link_question(which: str | int | None) -> bytes:
    """For RTM_GETLINK: one link by name or index, None for all. Statistics are half of the answer and not wanted."""
    index, name = (0, b"") if which is None else _which(which)
    return _IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + name + attr_u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)


def vlan_question(index: int) -> bytes:
    return _BR_VLAN_MSG.pack(AF_BRIDGE, index)


# Answers to values


def parse_link(body: bytes) -> Link:
    """RTM_NEWLINK."""
    if len(body) < _IFINFO.size:
        raise malformed()
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = some_attrs(_LINK_ATTRS, body, _IFINFO.size)
    link = Link(index, text(found.get(_IFLA_IFNAME, b"")))
    link.flags = flags
    link.mac = found.get(_IFLA_ADDRESS, b"")
    link.mtu = number(found.get(_IFLA_MTU, b""))
    link.peer = number(found.get(_IFLA_LINK, b""))
    link.master = number(found.get(_IFLA_MASTER, b""))
    link.operstate = number(found.get(_IFLA_OPERSTATE, b""))
    link.alias = text(found.get(_IFLA_IFALIAS, b""))
    link.promisc = number(found.get(_IFLA_PROMISCUITY, b""))
    info = attrs(found.get(_IFLA_LINKINFO, b""))
    link.kind = text(info.get(_IFLA_INFO_KIND, b""))
    if link.kind == "bridge":
        filtering = some_attrs(_BRIDGE_ATTRS, info.get(_IFLA_INFO_DATA, b"")).get(_IFLA_BR_VLAN_FILTERING)
        link.vlan_filtering = None if filtering is None else bool(number(filtering))
    if link.kind == "vxlan":
        link.vxlan = _parse_vxlan(attrs(info.get(_IFLA_INFO_DATA, b"")))
    if text(info.get(_IFLA_INFO_SLAVE_KIND, b"")) == "bridge":
        link.port = _parse_port(some_attrs(_PORT_ATTRS, info.get(_IFLA_INFO_SLAVE_DATA, b"")))
    return link


def _parse_port(found: dict[int, bytes]) -> Port:
    port = Port()
    port.state = number(found.get(_IFLA_BRPORT_STATE, b""))
    port.hairpin = bool(number(found.get(_IFLA_BRPORT_MODE, b"")))
    port.isolated = bool(number(found.get(_IFLA_BRPORT_ISOLATED, b"")))
    return port


def _parse_vxlan(found: dict[int, bytes]) -> Vxlan:
    extensions = [name for name, kind in _VXLAN_EXTENSION_FLAGS.items() if kind in found]
    extensions += [name for name, kind in _VXLAN_EXTENSION_NUMBERS.items() if number(found.get(kind, b""))]
    if "external" in extensions:
        sizes: tuple[int, ...] = (4, 16)
    else:
        sizes = (16,) if _IFLA_VXLAN_LOCAL6 in found or _IFLA_VXLAN_GROUP6 in found else (4,)
    return Vxlan(
        number(found.get(_IFLA_VXLAN_ID, b"")),
        int.from_bytes(found.get(_IFLA_VXLAN_PORT, b""), "big"),
        found.get(_IFLA_VXLAN_LOCAL) or found.get(_IFLA_VXLAN_LOCAL6),
        number(found.get(_IFLA_VXLAN_LINK, b"")),
        learning=bool(number(found.get(_IFLA_VXLAN_LEARNING, b""))),
        gbp=_IFLA_VXLAN_GBP in found,
        extensions=tuple(extensions),
        sizes=sizes,
    )


def parse_gone_link(body: bytes) -> int:
    """The index of the link that an RTM_DELLINK notice says is gone; 0 when it only left its bridge."""
    if len(body) < _IFINFO.size:
        raise malformed()
    family, _, index, _, _ = _IFINFO.unpack_from(body)
    return int(index) if family == AF_UNSPEC else 0


def parse_vlans(body: bytes) -> list[int]:
    """RTM_NEWVLAN: the VLAN IDs of its entries."""
    if len(body) < _BR_VLAN_MSG.size:
        raise malformed()
    vids: list[int] = []
    for kind, data in each_attr(body, _BR_VLAN_MSG.size):
        if kind != _BRIDGE_VLANDB_ENTRY:
            continue
        entry = attrs(data)
        info = entry.get(_BRIDGE_VLANDB_ENTRY_INFO, b"")
        if len(info) < _VLAN_INFO.size:
            raise malformed()
        first = _VLAN_INFO.unpack_from(info)[1]
        last = number(entry.get(_BRIDGE_VLANDB_ENTRY_RANGE, info[2:4]))
        vids += range(first, min(last, 4095) + 1)
    return vids
