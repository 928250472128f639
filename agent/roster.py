"""The members of one network, as far as they agree with one another.

Two nodes cannot have one address, one MAC or overlapping subnets, and no node an address in a range of pods: the way
to it would lead into the overlay. Who was here first keeps what it has; who contradicts is told about, and taken in as
soon as nothing stands against it any more. Until then it is left out, or stays as it was before, as long as nobody
else needs what it had. So a wrong entry costs the node that it is about, and no other, whatever the order in which
changes arrive.

A change costs the same with 100 members and with 5,000: subnets and addresses are found by bisection.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING

from cni import addr
from cni.addr import overlap
from plugins.peers import SIZES, span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from plugins.peers import Node


class Roster:
    """`fault` says what else is wrong with a node by itself (its subnets are not of the network), empty for nothing."""

    def __init__(self, fault: Callable[[Node], str]) -> None:
        self._fault = fault
        self._nodes: dict[str, Node] = {}
        self._holders: dict[bytes, str] = {}  # of addresses, and of MACs where they are given
        # By family: the first addresses of all subnets in order, and beside them the last ones with their holders.
        self._firsts: dict[int, list[int]] = {size: [] for size in SIZES}
        self._spans: dict[int, list[tuple[int, str]]] = {size: [] for size in SIZES}
        self._addresses: dict[int, list[int]] = {size: [] for size in SIZES}  # of nodes, in order
        self._refused: dict[str, Node] = {}
        self.own = ""  # the name of this node, if it has one; its addresses are nobody else's
        self.faults: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def holder(self, address: bytes) -> Node | None:
        """Who has an underlay address."""
        return self._nodes.get(self._holders.get(address, ""))

    def replace(self, nodes: Iterable[Node]) -> tuple[list[Node], list[Node]]:
        """Take this as the whole membership; as `change`."""
        wanted = {node.name: node for node in nodes}
        gone = [name for name in (*self._nodes, *self.faults) if name not in wanted]
        return self.change(list(wanted.values()), gone)

    def change(self, put: Iterable[Node], gone: Iterable[str]) -> tuple[list[Node], list[Node]]:
        """Take nodes as they are now, and other names as gone; what left (as it was) and what came in (as it is)."""
        left: dict[str, Node] = {}
        latest = {node.name: node for node in put}
        gone = set(gone).difference(latest)
        # Whatever stood against those may be gone now.
        pending = {name: node for name, node in self._refused.items() if name not in gone}
        pending.update(
            (name, node) for name, node in latest.items() if self._nodes.get(name) != node or name in self._refused
        )
        own = pending.pop(self.own, None)
        if own is not None:  # whoever has its addresses still is out of date, and yields
            outdated = {self._holders.get(address, "") for address in own.addresses.values()}.difference(
                ("", own.name, *gone)
            )
            pending = {own.name: own, **{name: self._nodes[name] for name in outdated}, **pending}
        for name in (*gone, *pending):
            self._refused.pop(name, None)
            self.faults.pop(name, None)
            node = self._nodes.pop(name, None)
            if node is not None:
                left[name] = node
                self._forget(node)
        came = [node for node in pending.values() if self._admit(node)]
        for name, node in pending.items():
            before = left.get(name)
            if name in self.faults and before is not None and not self._contradiction(before):
                self._enter(before)
                came.append(before)
                self._refused[name] = node  # so that what it was yields to whoever needs it
                self.faults[name] += "; it stays as it was"
        return list(left.values()), came

    def _admit(self, node: Node) -> bool:
        wrong = self._fault(node)
        fault = wrong or self._contradiction(node)
        if fault:
            if not wrong:
                self._refused[node.name] = node
            self.faults[node.name] = fault
            return False
        self._enter(node)
        return True

    def _enter(self, node: Node) -> None:
        self._nodes[node.name] = node
        for key in (*node.addresses.values(), *node.macs.values()):
            self._holders[key] = node.name
        for size, address in node.addresses.items():
            insort(self._addresses[size], int.from_bytes(address, "big"))
        for packed, prefix in node.subnets:
            first, last = span(packed, prefix)
            at = bisect_left(self._firsts[len(packed)], first)
            self._firsts[len(packed)].insert(at, first)
            self._spans[len(packed)].insert(at, (last, node.name))

    def _forget(self, node: Node) -> None:
        for key in (*node.addresses.values(), *node.macs.values()):
            self._holders.pop(key, None)
        for size, address in node.addresses.items():
            del self._addresses[size][bisect_left(self._addresses[size], int.from_bytes(address, "big"))]
        for packed, prefix in node.subnets:
            at = bisect_left(self._firsts[len(packed)], span(packed, prefix)[0])
            del self._firsts[len(packed)][at]
            del self._spans[len(packed)][at]

    def _contradiction(self, node: Node) -> str:
        """What of a node another one has; empty when nothing."""
        for address in node.addresses.values():
            if address in self._holders:
                return (
                    f"node {node.name}: expected an address of its own, found {addr.unpack(address)}, "
                    f"which is {self._holders[address]}'s"
                )
        for mac in node.macs.values():
            if mac in self._holders:
                return (
                    f"node {node.name}: expected a VTEP MAC of its own, found {addr.unpack_mac(mac)}, "
                    f"which is {self._holders[mac]}'s"
                )
        return self._overlapping(node) or self._address_among_pods(node)

    def _overlapping(self, node: Node) -> str:
        for packed, prefix in node.subnets:
            text = addr.unpack_cidr(packed, prefix)
            if sum(overlap((packed, prefix), other) for other in node.subnets) > 1:
                return f"node {node.name}: expected subnets that do not overlap, found two that do, one of them {text}"
            first, last = span(packed, prefix)
            holder = self._holder_of_one(len(packed), first, last)
            if holder:
                return (
                    f"node {node.name}: expected a subnet that is nobody else's, found {text}, which overlaps one of "
                    f"{holder}"
                )
        return ""

    def _holder_of_one(self, size: int, first: int, last: int) -> str:
        """Whose subnets have one of these addresses; empty when nobody's."""
        # Those here do not overlap, so the last one that begins before the end is all that can have any.
        at = bisect_right(self._firsts[size], last) - 1
        return self._spans[size][at][1] if at >= 0 and self._spans[size][at][0] >= first else ""

    def _address_among_pods(self, node: Node) -> str:
        for size, address in node.addresses.items():
            number = int.from_bytes(address, "big")
            inside = any(len(one[0]) == size and addr.inside(address, *one) for one in node.subnets)
            holder = node.name if inside else self._holder_of_one(size, number, number)
            if holder:
                return (
                    f"node {node.name}: expected an address outside of every node's subnets, found "
                    f"{addr.unpack(address)}, which is in one of {holder}"
                )
        for packed, prefix in node.subnets:
            first, last = span(packed, prefix)
            addresses = self._addresses[len(packed)]
            at = bisect_left(addresses, first)
            if at < len(addresses) and addresses[at] <= last:
                found = addresses[at].to_bytes(len(packed), "big")
                return (
                    f"node {node.name}: expected subnets without the address of any node, found "
                    f"{addr.unpack_cidr(packed, prefix)}, which has {self._holders[found]}'s {addr.unpack(found)}"
                )
        return ""
