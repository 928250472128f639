"""Addresses, routes and neighbours in rtnetlink's words (rtnetlink(7)): operations to requests, answers to values.
Pure functions, no I/O. Links are in `rtlinks.py`; what only nodes with peers need, in `rtpeers.py`.

Attribute numbers are those of <linux/if_addr.h>, <linux/rtnetlink.h> and <linux/neighbour.h>.
"""

from __future__ import annotations

import _struct

from cni import addr
from cni.kernel import rtlinks
from cni.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    attr,
    attr_u32,
    attrs,
    malformed,
    nest,
    number,
)
from cni.kernel.types import Address, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from cni.kernel.netlink import Request
    from cni.kernel.ops import Op

RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26
RTM_DELNEIGH = 29

AF_UNSPEC = 0

_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_BROADCAST = 4
_IFA_FLAGS = 8
_IFA_F_NODAD = 2
_IFA_F_NOPREFIXROUTE = 0x200

_RTA_DST = 1
_RTA_OIF = 4
_RTA_GATEWAY = 5
_RTA_PRIORITY = 6
_RTA_METRICS = 8
_RTA_MULTIPATH = 9
_RTA_TABLE = 15
_RTA_VIA = 18
_RTA_NH_ID = 30
RTNH_F_ONLINK = 4
_RTAX_MTU = 2
_RTAX_ADVMSS = 8
_RT_TABLE_MAIN = 254
_RT_TABLE_LOCAL = 255
_RTN_UNICAST = 1
# What may stand in a unicast route's place: itself, blackhole, unreachable, prohibit, throw.
ANY_KIND = frozenset((_RTN_UNICAST, 6, 7, 8, 9))
_RTN_LOCAL = 2
_RTPROT_BOOT = 3
_RT_SCOPE_NOWHERE = 255

NDA_DST = 1

_IFADDR = _struct.Struct("=BBBBI")  # family, prefix, flags, scope, index
_RTMSG = _struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
NDMSG = _struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_RTNEXTHOP = _struct.Struct("=HBBi")  # length, flags, hops, index
# The attributes of a route through a nexthop object, by the size of its address.
_DST_AND_NEXTHOP = {size: _struct.Struct(f"=HH{size}sHHI") for size in (4, 16)}


# Operations to requests


def encode(operations: Sequence[Op]) -> list[Request]:
    """The requests that carry out operations of `ops.py`."""
    encoders = _ENCODERS
    if any(op.verb not in encoders for op in operations):
        # Imported here: a node without peers does without.
        from cni.kernel import rtpeers

        encoders = encoders | rtpeers.ENCODERS
    return [encoders[op.verb](**op.args) for op in operations]


def _address(index: int, packed: bytes, prefix: int, flags: int) -> bytes:
    header = _IFADDR.pack(addr.family(packed), prefix, flags, 0, index)
    return header + attr(_IFA_LOCAL, packed) + attr(_IFA_ADDRESS, packed)


def _addr_add(*, index: int, packed: bytes, prefix: int, nodad: bool, noprefixroute: bool) -> Request:
    is_v6 = len(packed) == 16
    # IPv4 would store and show the flag, though it detects no duplicates.
    flags = _IFA_F_NODAD if nodad and is_v6 else 0
    # Not in the header, which has room for eight flags only.
    more = attr_u32(_IFA_FLAGS, flags | _IFA_F_NOPREFIXROUTE) if noprefixroute else b""
    if not is_v6 and prefix < 31:  # RFC 3021: a /31 has none
        host = (1 << (32 - prefix)) - 1
        more += attr(_IFA_BROADCAST, (int.from_bytes(packed, "big") | host).to_bytes(4, "big"))
    return RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, _address(index, packed, prefix, flags) + more


def _addr_del(index: int, packed: bytes, prefix: int) -> Request:
    return RTM_DELADDR, 0, _address(index, packed, prefix, 0)


def _route_add(
    *,
    index: int,
    dst: bytes,
    prefix: int,
    gateway: bytes | None,
    metric: int,
    table: int,
    scope: int,
    mtu: int,
    advmss: int,
) -> Request:
    body = _route(dst, prefix, _RTPROT_BOOT, scope, table) + attr_u32(_RTA_OIF, index)
    return RTM_NEWROUTE, NLM_F_CREATE, body + _via(gateway, dst) + _more(metric, table, mtu, advmss)


def _route_replace(
    *,
    dst: bytes,
    prefix: int,
    index: int,
    gateway: bytes | None,
    nexthop: int,
    onlink: bool,
    protocol: int,
    metric: int,
    table: int,
    scope: int,
    mtu: int,
    exclusive: bool,
) -> Request:
    protocol = protocol or _RTPROT_BOOT
    if nexthop:
        size = len(dst)
        header = _RTMSG.pack(addr.family(dst), prefix, 0, 0, _low(table), protocol, scope, _RTN_UNICAST, 0)
        body = header + _DST_AND_NEXTHOP[size].pack(size + 4, _RTA_DST, dst, 8, _RTA_NH_ID, nexthop)
    else:
        flags = RTNH_F_ONLINK if onlink else 0
        body = _route(dst, prefix, protocol, scope, table, flags) + attr_u32(_RTA_OIF, index) + _via(gateway, dst)
    kind = NLM_F_EXCL if exclusive else NLM_F_REPLACE
    return RTM_NEWROUTE, NLM_F_CREATE | kind, body + _more(metric, table, mtu, 0)


def _route_del(*, dst: bytes, prefix: int, protocol: int, metric: int, table: int) -> Request:
    # This scope and type 0 are any.
    header = _RTMSG.pack(addr.family(dst), prefix, 0, 0, _low(table), protocol, _RT_SCOPE_NOWHERE, 0, 0)
    return RTM_DELROUTE, 0, header + attr(_RTA_DST, dst) + _more(metric, table, 0, 0)


def _low(table: int) -> int:
    """A table's number as far as the header has room; `_more` has the rest."""
    return (table or _RT_TABLE_MAIN) if table < 256 else 0


def _route(dst: bytes, prefix: int, protocol: int, scope: int, table: int, flags: int = 0) -> bytes:
    header = _RTMSG.pack(addr.family(dst), prefix, 0, 0, _low(table), protocol, scope, _RTN_UNICAST, flags)
    return header + attr(_RTA_DST, dst)


def _via(gateway: bytes | None, dst: bytes) -> bytes:
    if not gateway:
        return b""
    if len(gateway) == len(dst):
        return attr(_RTA_GATEWAY, gateway)
    # IPv4 through an IPv6 router (RFC 5549)
    return attr(_RTA_VIA, _struct.pack("=H", addr.family(gateway)) + gateway)


def _more(metric: int, table: int, mtu: int, advmss: int) -> bytes:
    """What most routes have none of."""
    body = attr_u32(_RTA_TABLE, table) if table >= 256 else b""
    if metric:
        body += attr_u32(_RTA_PRIORITY, metric)
    if mtu or advmss:
        metrics = [attr_u32(kind, value) for kind, value in ((_RTAX_MTU, mtu), (_RTAX_ADVMSS, advmss)) if value]
        body += nest(_RTA_METRICS, *metrics)
    return body


def _neigh_del(index: int, packed: bytes) -> Request:
    return RTM_DELNEIGH, 0, NDMSG.pack(addr.family(packed), index, 0, 0, 0) + attr(NDA_DST, packed)


_ENCODERS: dict[str, Callable[..., Request]] = {
    **rtlinks.ENCODERS,
    "addr_add": _addr_add,
    "addr_del": _addr_del,
    "route_add": _route_add,
    "route_replace": _route_replace,
    "route_del": _route_del,
    "neigh_del": _neigh_del,
}


# Questions: what follows the netlink header


def addr_question(index: int) -> bytes:
    return _IFADDR.pack(AF_UNSPEC, 0, 0, 0, index)


def route_question(family: int, protocol: int) -> bytes:
    return _RTMSG.pack(family, 0, 0, 0, 0, protocol, 0, _RTN_UNICAST, 0)


def lookup_question(packed: bytes) -> bytes:
    """RTM_GETROUTE about one destination."""
    header = _RTMSG.pack(addr.family(packed), len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    return header + attr(_RTA_DST, packed)


# Answers to values


def parse_address(body: bytes) -> tuple[int, Address] | None:
    """RTM_NEWADDR: the link's index and the address; None for a family other than IP."""
    if len(body) < _IFADDR.size:
        raise malformed()
    family, prefix, flags, scope, index = _IFADDR.unpack_from(body)
    found = attrs(body, _IFADDR.size)
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    if len(packed) != _LENGTHS.get(family):
        return None
    # The header holds only the low eight flags.
    return index, Address(packed, prefix, number(found.get(_IFA_FLAGS, bytes([flags]))), scope)


_LENGTHS = {addr.AF_INET: 4, addr.AF_INET6: 16}


def is_local_route(body: bytes) -> bool:
    """RTM_NEWROUTE: whether the route delivers to this node itself."""
    if len(body) < _RTMSG.size:
        raise malformed()
    return bool(_RTMSG.unpack_from(body)[7] == _RTN_LOCAL)


def parse_routes(body: bytes, kinds: Collection[int] = (_RTN_UNICAST,)) -> list[Route]:
    """RTM_NEWROUTE: one route for each next hop; none for what is not a route of these kinds outside table `local`."""
    if len(body) < _RTMSG.size:
        raise malformed()
    family, prefix, _, _, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    found = attrs(body, _RTMSG.size)
    table = number(found.get(_RTA_TABLE, bytes([table])))
    dst = found.get(_RTA_DST, bytes(_LENGTHS.get(family, 0)))
    if kind not in kinds or table == _RT_TABLE_LOCAL or len(dst) != _LENGTHS.get(family):
        return []
    metric = number(found.get(_RTA_PRIORITY, b""))
    mtu = number(attrs(found.get(_RTA_METRICS, b"")).get(_RTAX_MTU, b""))
    nexthop = number(found.get(_RTA_NH_ID, b""))
    if _RTA_MULTIPATH in found:
        hops = _parse_hops(found[_RTA_MULTIPATH])
    else:
        hops = [(number(found.get(_RTA_OIF, b"")), _gateway(found), flags)]
    return [
        Route(dst, prefix, gateway, oif, table, metric, scope, mtu, protocol, nexthop, bool(flags & RTNH_F_ONLINK))
        for oif, gateway, flags in hops
    ]


def _gateway(found: dict[int, bytes]) -> bytes | None:
    gateway = found.get(_RTA_GATEWAY) or found.get(_RTA_VIA, b"")[2:]
    return gateway if len(gateway) in (4, 16) else None


def _parse_hops(data: bytes) -> list[tuple[int, bytes | None, int]]:
    hops: list[tuple[int, bytes | None, int]] = []
    offset = 0
    while len(data) - offset >= _RTNEXTHOP.size:
        size, flags, _, oif = _RTNEXTHOP.unpack_from(data, offset)
        if size < _RTNEXTHOP.size or offset + size > len(data):
            raise malformed()
        hops.append((oif, _gateway(attrs(data[offset : offset + size], _RTNEXTHOP.size)), flags))
        offset += size + (-size & 3)
    return hops
