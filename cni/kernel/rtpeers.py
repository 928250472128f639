"""What a node needs for its peers, in rtnetlink's words: nexthop objects, permanent neighbours and the forwarding
entries of VXLAN devices. Pure functions, no I/O.

They come by the thousand, so each request is packed in one go. Attribute numbers are those of <linux/nexthop.h> and
<linux/neighbour.h>.
"""

from __future__ import annotations

import _struct

from cni import addr
from cni.kernel.netlink import NLM_F_CREATE, NLM_F_REPLACE, attr_u32, attrs, malformed, number
from cni.kernel.rtlinks import AF_BRIDGE, AF_UNSPEC
from cni.kernel.rtnetlink import NDA_DST, NDMSG, RTM_DELNEIGH, RTNH_F_ONLINK
from cni.kernel.types import NUD_NOARP, NUD_PERMANENT, FdbEntry, Neighbour, Nexthop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.kernel.netlink import Request

RTM_NEWNEIGH = 28
RTM_GETNEIGH = 30
RTM_NEWNEXTHOP = 104
RTM_DELNEXTHOP = 105
RTM_GETNEXTHOP = 106

_NDA_LLADDR = 2
_NDA_IFINDEX = 8
_NTF_SELF = 2

_NHA_ID = 1
_NHA_OIF = 5
_NHA_GATEWAY = 6

_SET = NLM_F_CREATE | NLM_F_REPLACE
_MAC = 6

_NHMSG = _struct.Struct("=BxBxI")  # family, (scope), protocol, (reserved), flags
_U32 = _struct.Struct("=HHI")  # an attribute that holds a number
# By the size of an address: the header with all attributes. A MAC's attribute is padded by two bytes.
_NEXTHOP = {size: _struct.Struct(f"=BxBxIHHIHHIHH{size}s") for size in (4, 16)}
_NEIGHBOUR = {size: _struct.Struct(f"=BxxxiHBBHH{size}sHH6sxx") for size in (4, 16)}
_FDB = {size: _struct.Struct(f"=BxxxiHBBHH6sxxHH{size}s") for size in (4, 16)}


# Operations to requests


def _nexthop_replace(*, id: int, oif: int, gateway: bytes | None, onlink: bool, protocol: int) -> Request:  # noqa: A002 - NHA_ID
    flags = RTNH_F_ONLINK if onlink else 0
    if gateway is None:
        # Of a nexthop without a gateway the family says whose routes may go through it.
        header = _NHMSG.pack(addr.AF_INET, protocol, flags)
        return RTM_NEWNEXTHOP, _SET, header + attr_u32(_NHA_ID, id) + attr_u32(_NHA_OIF, oif)
    size = len(gateway)
    body = _NEXTHOP[size].pack(
        addr.family(gateway), protocol, flags, 8, _NHA_ID, id, 8, _NHA_OIF, oif, size + 4, _NHA_GATEWAY, gateway
    )
    return RTM_NEWNEXTHOP, _SET, body


def _nexthop_del(id: int) -> Request:  # noqa: A002 - NHA_ID
    return RTM_DELNEXTHOP, 0, _NHMSG.pack(AF_UNSPEC, 0, 0) + attr_u32(_NHA_ID, id)


def _neigh_replace(*, index: int, packed: bytes, mac: bytes) -> Request:
    size = len(packed)
    body = _NEIGHBOUR[size].pack(
        addr.family(packed), index, NUD_PERMANENT, 0, 0, size + 4, NDA_DST, packed, _MAC + 4, _NDA_LLADDR, mac
    )
    return RTM_NEWNEIGH, _SET, body


def _fdb_replace(*, index: int, mac: bytes, dst: bytes) -> Request:
    return RTM_NEWNEIGH, _SET, _fdb(index, mac, dst)


def _fdb_del(*, index: int, mac: bytes, dst: bytes) -> Request:
    return RTM_DELNEIGH, 0, _fdb(index, mac, dst)


def _fdb(index: int, mac: bytes, dst: bytes) -> bytes:
    size = len(dst)
    return _FDB[size].pack(
        AF_BRIDGE, index, NUD_PERMANENT | NUD_NOARP, _NTF_SELF, 0, _MAC + 4, _NDA_LLADDR, mac, size + 4, NDA_DST, dst
    )


ENCODERS: dict[str, Callable[..., Request]] = {
    "nexthop_replace": _nexthop_replace,
    "nexthop_del": _nexthop_del,
    "neigh_replace": _neigh_replace,
    "fdb_replace": _fdb_replace,
    "fdb_del": _fdb_del,
}


# Questions: what follows the netlink header


def nexthop_question() -> bytes:
    return _NHMSG.pack(AF_UNSPEC, 0, 0)


def neighbour_question(index: int) -> bytes:
    """For RTM_GETNEIGH: those of one link, which only an attribute can name."""
    return NDMSG.pack(AF_UNSPEC, 0, 0, 0, 0) + attr_u32(_NDA_IFINDEX, index)


def fdb_question(index: int) -> bytes:
    """For RTM_GETNEIGH: those of one link, which the header names."""
    return NDMSG.pack(AF_BRIDGE, index, 0, 0, 0)


# Answers to values


def parse_nexthop(body: bytes) -> Nexthop:
    """RTM_NEWNEXTHOP."""
    if len(body) < _NHMSG.size:
        raise malformed()
    _, protocol, flags = _NHMSG.unpack_from(body)
    found = attrs(body, _NHMSG.size)
    return Nexthop(
        number(found.get(_NHA_ID, b"")),
        number(found.get(_NHA_OIF, b"")),
        found.get(_NHA_GATEWAY),
        bool(flags & RTNH_F_ONLINK),
        protocol,
    )


def parse_neighbours(bodies: list[bytes], index: int) -> list[Neighbour]:
    """RTM_NEWNEIGH: the neighbours of a link."""
    found = map(parse_neighbour, bodies)
    return [one for one in found if isinstance(one, Neighbour) and one.index == index]


def parse_fdb(bodies: list[bytes], index: int) -> list[FdbEntry]:
    """RTM_NEWNEIGH: the forwarding entries of a link."""
    found = map(parse_neighbour, bodies)
    return [one for one in found if isinstance(one, FdbEntry) and one.index == index]


def parse_neighbour(body: bytes) -> Neighbour | FdbEntry | None:
    """RTM_NEWNEIGH: what a link knows about an address, or, when the family is AF_BRIDGE, about a MAC.

    None for a family other than these.
    """
    if len(body) < NDMSG.size:
        raise malformed()
    family, index, state, flags, _ = NDMSG.unpack_from(body)
    found = attrs(body, NDMSG.size)
    dst, mac = found.get(NDA_DST), found.get(_NDA_LLADDR, b"")
    if family == AF_BRIDGE:
        return FdbEntry(index, mac, dst, state)
    if dst is None or family not in (addr.AF_INET, addr.AF_INET6) or len(dst) not in (4, 16):
        return None
    return Neighbour(index, dst, mac, state, flags)
