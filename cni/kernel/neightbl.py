"""How many neighbours the kernel keeps (arp(7), icmp(7): gc_thresh3), as rtnetlink reports it.

The limits hold for all network namespaces together. Only the first namespace has the files
net.ipv4.neigh.default.gc_thresh* and net.ipv6...; RTM_GETNEIGHTBL reports the same numbers in every namespace.
"""

from __future__ import annotations

from cni.kernel.netlink import NETLINK_ROUTE, Socket, attrs, malformed, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

RTM_GETNEIGHTBL = 66
_HEADER_SIZE = 4  # struct ndtmsg
_NDTA_NAME = 1
_NDTA_THRESH3 = 4
# By the size of an address.
_TABLES = {b"arp_cache\0": 4, b"ndisc_cache\0": 16}


def most_neighbours() -> dict[int, int]:
    """The limit by the size of an address, 4 or 16 bytes; a family that the kernel does not have is left out."""
    socket = Socket(NETLINK_ROUTE)
    try:
        return read_limits(socket.dump("read the neighbour tables", RTM_GETNEIGHTBL, bytes(_HEADER_SIZE)))
    finally:
        socket.close()


def read_limits(answers: Iterable[bytes]) -> dict[int, int]:
    """The same from the kernel's answers. Those about a single link have no limit."""
    found = {}
    for answer in answers:
        if len(answer) < _HEADER_SIZE:
            raise malformed()
        table = attrs(answer, _HEADER_SIZE)
        size = _TABLES.get(table.get(_NDTA_NAME, b""))
        if size is not None and _NDTA_THRESH3 in table:
            found[size] = number(table[_NDTA_THRESH3])
    return found
