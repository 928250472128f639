"""Whether the nodes of a cluster agree with one another: the one place that judges it, for the configuration's `peers`,
for every source of membership (`agent/roster.py`) and for `cnikit lint`.

Two nodes cannot have one name, one underlay address, one MAC of a VXLAN device or subnets that overlap; no subnet is
outside the network; and no node has its address in a range of pods, because the way to it would lead into the overlay.
A MAC that a node does not give is the derived one, and is its own like a given one. Who came first keeps what it has; only
for an address a node of a lower rank (`Node.rank`) yields to one of a higher: its source knows that it is out of date.

`Agreed` holds nodes that agree. A node is judged against them and costs the same with 100 and with 5,000: subnets and
addresses are found by bisection.
"""

from __future__ import annotations

from _bisect import bisect_left, bisect_right, insort_right

from cni import addr
from cni.errors import INVALID_CONFIG, CniError
from plugins.peers import SIZES, outside, self_contradiction, span, vtep_mac

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from plugins.peers import Node, Subnet


class Agreed:
    """Nodes that agree with one another and with a network: its ranges (`networks`, none: any), and its `vni` (0: there
    are no VXLAN devices, so no MAC is derived)."""

    __slots__ = ("_addresses", "_firsts", "_holders", "_latest", "_macs", "_networks", "_ranks", "_spans", "_vni")

    def __init__(self, networks: tuple[Subnet, ...] = (), vni: int = 0) -> None:
        self._networks = networks
        self._vni = vni
        self._ranks: dict[str, int] = {}  # by the names of those that are in
        self._latest: tuple[Node | None, list[tuple[int, bytes]]] = (None, [])
        self._holders: dict[bytes, str] = {}  # of addresses
        self._macs: dict[int, dict[bytes, str]] = {size: {} for size in SIZES}  # their holders, by the device's family
        self._addresses: dict[int, list[int]] = {size: [] for size in SIZES}  # in order
        # By family: the first addresses of all subnets in order, and beside them the last ones with their holders.
        self._firsts: dict[int, list[int]] = {size: [] for size in SIZES}
        self._spans: dict[int, list[tuple[int, str]]] = {size: [] for size in SIZES}

    def holder(self, address: bytes) -> str:
        """The name of the node with an underlay address; empty when nobody has it."""
        return self._holders.get(address, "")

    def rivals(self, node: Node, sizes: Collection[int]) -> set[str]:
        """The names of other nodes that have its address or its MAC of one of these families."""
        found = {self.holder(address) for size, address in node.addresses.items() if size in sizes}
        found.update(self._macs[size].get(mac, "") for size, mac in self._macs_of(node) if size in sizes)
        return found.difference(("", node.name))

    def outranked(self, node: Node) -> set[str]:
        """The names of other nodes that have an address of a node and yield to it."""
        found = {self.holder(address) for address in node.addresses.values()}.difference(("", node.name))
        return {name for name in found if self._ranks[name] < node.rank}

    def rank(self, node: Node) -> None:
        """Take note of the rank that a node which is in has now."""
        self._ranks[node.name] = node.rank

    def enter(self, node: Node) -> None:
        """Take in a node that contradicts none."""
        self.rank(node)
        for size, mac in self._macs_of(node):
            self._macs[size][mac] = node.name
        for size, address in node.addresses.items():
            self._holders[address] = node.name
            insort_right(self._addresses[size], int.from_bytes(address, "big"))
        for packed, prefix in node.subnets:
            first, last = span(packed, prefix)
            at = bisect_left(self._firsts[len(packed)], first)
            self._firsts[len(packed)].insert(at, first)
            self._spans[len(packed)].insert(at, (last, node.name))

    def forget(self, node: Node) -> None:
        """Let go of a node that is in."""
        del self._ranks[node.name]
        for size, mac in self._macs_of(node):
            del self._macs[size][mac]
        for size, address in node.addresses.items():
            del self._holders[address]
            del self._addresses[size][bisect_left(self._addresses[size], int.from_bytes(address, "big"))]
        for packed, prefix in node.subnets:
            at = bisect_left(self._firsts[len(packed)], span(packed, prefix)[0])
            del self._firsts[len(packed)][at]
            del self._spans[len(packed)][at]

    def contradiction(self, node: Node) -> str:
        """What of a node cannot be, and because of whom; empty when it may come in."""
        if node.name in self._ranks:
            return f"{node}: expected a name that no other node has, found two of it"
        for address in node.addresses.values():
            holder = self.holder(address)
            if holder:
                yields = f"; {node.name} yields to it: delete its entry, or give it an address of its own"
                found = (
                    f"{addr.unpack(address)}, which is {holder}'s{yields if node.rank < self._ranks[holder] else ''}"
                )
                return f"{node}: expected an address of its own, found {found}"
        for size, mac in self._macs_of(node):
            if mac in self._macs[size]:
                found = f"{addr.unpack_mac(mac)}, which is {self._macs[size][mac]}'s"
                return f"{node}: expected a VTEP MAC of its own, found {found}"
        fault = outside(node, self._networks) if self._networks else ""
        if fault:
            return f"{fault}; make the network the range that nodes get their subnets from (Kubernetes: --cluster-cidr)"
        return self_contradiction(node) or self._overlapping(node) or self._address_among_pods(node)

    def borrows(self, node: Node) -> bool:
        """Whether a node gives a MAC that is not the one derived from its address: such a one may be another's."""
        return bool(self._vni) and any(
            mac != vtep_mac(self._vni, node.addresses[size])
            for size, mac in node.macs.items()
            if size in node.addresses
        )

    def _macs_of(self, node: Node) -> list[tuple[int, bytes]]:
        """The MACs of its VXLAN devices, each with the device's family. To derive one costs as much as all else here."""
        if self._latest[0] is not node:
            sizes = [size for size in SIZES if size in node.macs or (self._vni and size in node.addresses)]
            self._latest = node, [(size, node.vtep_mac(size, self._vni)) for size in sizes]
        return self._latest[1]

    def _overlapping(self, node: Node) -> str:
        for packed, prefix in node.subnets:
            found = self._with_one_of(len(packed), *span(packed, prefix))
            if found:
                text = f"{addr.unpack_cidr(packed, prefix)}, which overlaps {found}"
                return f"{node}: expected a subnet that is nobody else's, found {text}"
        return ""

    def _with_one_of(self, size: int, first: int, last: int) -> str:
        """The subnet with one of these addresses, and whose it is; empty when there is none."""
        # Those here do not overlap, so the last one that begins before the end is all that can have any.
        at = bisect_right(self._firsts[size], last) - 1
        if at < 0 or self._spans[size][at][0] < first:
            return ""
        begin, (end, name) = self._firsts[size][at], self._spans[size][at]
        subnet = addr.unpack_cidr(begin.to_bytes(size, "big"), size * 8 - (end - begin).bit_length())
        return f"{subnet} of {name}"

    def _address_among_pods(self, node: Node) -> str:
        for size, address in node.addresses.items():
            number = int.from_bytes(address, "big")
            found = self._with_one_of(size, number, number)
            if found:
                text = f"{addr.unpack(address)} in {found}"
                return f"{node}: expected an address outside of every node's subnets, found {text}"
        for packed, prefix in node.subnets:
            first, last = span(packed, prefix)
            addresses = self._addresses[len(packed)]
            at = bisect_left(addresses, first)
            if at < len(addresses) and addresses[at] <= last:
                address = addresses[at].to_bytes(len(packed), "big")
                text = f"{addr.unpack_cidr(packed, prefix)} with {self._holders[address]}'s {addr.unpack(address)}"
                return f"{node}: expected subnets without the address of any node, found {text}"
        return ""


def refuse_contradictions(nodes: Iterable[Node], networks: tuple[Subnet, ...] = (), vni: int = 0) -> None:
    """CniError 7 for the first node that contradicts one before it, or the network."""
    agreed = Agreed(networks, vni)
    for node in nodes:
        fault = agreed.contradiction(node)
        if fault:
            raise CniError(INVALID_CONFIG, fault, "correct it, or what it contradicts")
        agreed.enter(node)
