"""The members of one network, as far as they agree with one another (`plugins/contradictions.py`).

Who is in keeps what it has: a newcomer that contradicts a member stays out, is reported, and comes in as soon as nothing
stands against it any more. A member that becomes another and contradicts then stays as it was, as long as nobody else
needs what it had and does not want any more. A member that is there and cannot be read (`unread`) stays as it was, and
what it has is its own, because nobody knows that it wants to give it up. So a wrong entry costs the node that it is
about, and no other, whatever the order in which changes arrive.

Two do not wait. Of nodes with one address the one of the highest rank has it, whoever came first. And this node itself
(`own`) yields to nobody: when its address is this host's (`here`), whoever else is said to have it is out of date.

`remember` brings the members of an earlier process, so that a restart decides nothing anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugins.contradictions import Agreed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from plugins.peers import Node, Subnet


class Roster:
    """The members of a network with these ranges (none: any), and with VXLAN devices of this VNI (0: without)."""

    def __init__(self, networks: tuple[Subnet, ...] = (), vni: int = 0) -> None:
        self._agreed = Agreed(networks, vni)
        self._nodes: dict[str, Node] = {}
        self._refused: dict[str, Node] = {}
        self.own = ""  # the name of this node, if it has one
        self.here: frozenset[bytes] = frozenset()  # the addresses of this host
        self.faults: dict[str, str] = {}
        self.unread: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def holder(self, address: bytes) -> Node | None:
        """Who has an underlay address."""
        return self._nodes.get(self._agreed.holder(address))

    def may_be_in(self, name: str, addresses: frozenset[bytes]) -> bool:
        """Whether a node that is not in was named all the same, or may have been. `name` is empty where the addresses
        tell who it is."""
        if self.unread & {"", name} if name else self.unread:
            return True
        return any(
            node.name == name or not addresses.isdisjoint(node.addresses.values()) for node in self._refused.values()
        )

    def remember(self, nodes: Iterable[Node]) -> None:
        """Take the members that an earlier process went by, before the first list."""
        self.change(nodes, ())
        self._refused.clear()
        self.faults.clear()

    def replace(self, nodes: Iterable[Node], unread: Collection[str] = ()) -> tuple[list[Node], list[Node]]:
        """Take this as the whole membership; as `change`.

        `unread` are the names of members that are there and cannot be read, "" of one whose name cannot be read either:
        then whoever is missing may be that one.
        """
        self.unread = frozenset(unread)
        wanted: dict[str, Node] = {}
        for node in nodes:
            if wanted.setdefault(node.name, node) is not node and node.name in self._nodes:
                wanted[node.name] = self._nodes[node.name]  # of two with one name nobody knows which is meant
        for name in self.unread & self._nodes.keys():  # what it was to become is not known any more
            self._refused.pop(name, None)
            self.faults.pop(name, None)
        missing = [name for name in (*self._nodes, *self.faults) if name not in wanted]
        gone = [name for name in missing if name not in self._nodes or self.unread.isdisjoint(("", name))]
        return self._take(wanted, gone)

    def change(self, put: Iterable[Node], gone: Iterable[str]) -> tuple[list[Node], list[Node]]:
        """Take nodes as they are now, and other names as gone; what left (as it was) and what came in (as it is)."""
        latest, names = {node.name: node for node in put}, set(gone)
        self.unread = self.unread.difference(latest, names)
        return self._take(latest, names)

    def _take(self, latest: dict[str, Node], names: Iterable[str]) -> tuple[list[Node], list[Node]]:
        """As `change`."""
        left: dict[str, Node] = {}
        gone = set(names).difference(latest)
        pending = self._pending(latest, gone)
        own = pending.get(self.own)
        sizes = [size for size, address in own.addresses.items() if address in self.here] if own is not None else []
        if own is not None and sizes:  # whoever else has its address or its MAC there is out of date, and yields
            rivals = self._agreed.rivals(own, sizes).difference(gone, pending)
            pending.update((name, self._nodes[name]) for name in rivals)
        known = set(self._refused)
        for name in (*gone, *pending):
            self._refused.pop(name, None)
            self.faults.pop(name, None)
            if name in self._nodes:
                left[name] = self._leave(name)

        def turn(node: Node) -> tuple[int, bool]:
            """The own node, then members before newcomers, and of these last who may have taken its MAC from another."""
            if node is own and sizes:
                return 0, False
            return (1 if node.name in left else 2 if node.name in known else 3), self._agreed.borrows(node)

        came: dict[str, Node] = {}
        waiting = sorted(pending.values(), key=turn)
        while waiting:  # who yields makes room, maybe for one that was asked before
            waiting, has_room = self._admit(waiting, left, came)
            if not has_room:
                break
        for node in waiting:
            self._refused[node.name] = node
            before = left.get(node.name)
            if before is not None and not self._agreed.contradiction(before):
                self._enter(before)  # it yields, as all that are refused are asked first, to whoever needs it
                came[node.name] = before
                self.faults[node.name] += "; it stays as it was"
        return list(left.values()), list(came.values())

    def _pending(self, latest: dict[str, Node], gone: set[str]) -> dict[str, Node]:
        """Those to be judged, by name. Of one that is as it was only the rank is noted."""
        # Whatever stood against those that are refused may be gone now.
        pending = {name: node for name, node in self._refused.items() if name not in gone}
        for name, node in latest.items():
            if self._nodes.get(name) != node or name in self._refused:
                pending[name] = node
            else:
                self._nodes[name] = node
                self._agreed.rank(node)
        return pending

    def _admit(self, waiting: list[Node], left: dict[str, Node], came: dict[str, Node]) -> tuple[list[Node], bool]:
        """Let in whoever can come in, and out who yields to one of them, and take note of both; returns who is refused, and
        whether somebody has yielded."""
        refused: list[Node] = []
        has_room = False
        for node in waiting:
            yielding = [self._leave(name) for name in self._agreed.outranked(node) - {self.own}]
            fault = self._agreed.contradiction(node)
            if fault:
                self.faults[node.name] = fault
                refused.append(node)
                for other in yielding:
                    self._enter(other)
                continue
            self.faults.pop(node.name, None)
            self._enter(node)
            came[node.name] = node
            for other in yielding:
                if came.pop(other.name, None) is None:
                    left[other.name] = other
                refused.append(other)
                has_room = True
        return refused, has_room

    def _enter(self, node: Node) -> None:
        self._nodes[node.name] = node
        self._agreed.enter(node)

    def _leave(self, name: str) -> Node:
        node = self._nodes.pop(name)
        self._agreed.forget(node)
        return node
