"""The members of one network, as far as they agree with one another.

Two nodes cannot have one address, one MAC or overlapping subnets. Who was here first keeps what it has; who
contradicts is left out whole, told about, and taken in as soon as nothing stands against it any more. So a wrong entry
costs the node that it is about, and no other, whatever the order in which changes arrive.

A change costs the same with 100 members and with 5,000: subnets are found by bisection.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from cni import addr
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
        self._refused: dict[str, Node] = {}
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
        put = list(put)
        gone = set(gone).difference(node.name for node in put)
        # Whatever stood against those may be gone now.
        pending = {name: node for name, node in self._refused.items() if name not in gone}
        pending.update((node.name, node) for node in put if self._nodes.get(node.name) != node)
        for name in (*gone, *pending):
            self._refused.pop(name, None)
            self.faults.pop(name, None)
            node = self._nodes.pop(name, None)
            if node is not None:
                left[name] = node
                self._forget(node)
        came = [node for node in pending.values() if self._admit(node)]
        return list(left.values()), came

    def _admit(self, node: Node) -> bool:
        wrong = self._fault(node)
        fault = wrong or self._contradiction(node)
        if fault:
            if not wrong:
                self._refused[node.name] = node
            self.faults[node.name] = fault
            return False
        self._nodes[node.name] = node
        for key in (*node.addresses.values(), *node.macs.values()):
            self._holders[key] = node.name
        for packed, prefix in node.subnets:
            first, last = span(packed, prefix)
            at = bisect_left(self._firsts[len(packed)], first)
            self._firsts[len(packed)].insert(at, first)
            self._spans[len(packed)].insert(at, (last, node.name))
        return True

    def _forget(self, node: Node) -> None:
        for key in (*node.addresses.values(), *node.macs.values()):
            self._holders.pop(key, None)
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
        for packed, prefix in node.subnets:
            first, last = span(packed, prefix)
            if (
                sum(len(other) == len(packed) and _overlap((first, last), span(other, n)) for other, n in node.subnets)
                > 1
            ):
                return f"node {node.name}: expected subnets that do not overlap, found two that do, one of them {addr.unpack_cidr(packed, prefix)}"
            # Those here do not overlap, so the one before and the one after are all that can.
            at = bisect_right(self._firsts[len(packed)], last) - 1
            if at >= 0 and self._spans[len(packed)][at][0] >= first:
                holder = self._spans[len(packed)][at][1]
                return (
                    f"node {node.name}: expected a subnet that is nobody else's, found {addr.unpack_cidr(packed, prefix)}, "
                    f"which overlaps one of {holder}"
                )
        return ""


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]
