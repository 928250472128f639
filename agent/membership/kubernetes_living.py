"""Which of several Node objects with one address is a machine that lives.

The object of a machine that was installed anew under another name, or whose address another one has got, stays in the
cluster until somebody deletes it. The node controller marks it: nothing was heard of its kubelet (Ready is Unknown).
Such a one yields to a node of its address of which something is heard, or which is our own. Among others nobody here
knows better than the roster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.membership.troubles import few

if TYPE_CHECKING:
    from collections.abc import Collection

    from agent.membership import Listener
    from agent.membership.troubles import Troubles
    from plugins.peers import Node


class Living:
    """Tells a listener of the nodes that it is told of, without those that yield. For one thread at a time."""

    def __init__(self, own: str, listener: Listener, troubles: Troubles) -> None:
        self._own = own
        self._listener = listener
        self._troubles = troubles
        self._nodes: dict[str, Node] = {}
        self._holders: dict[bytes, tuple[str, ...]] = {}  # of addresses; there are thousands, nearly all with one
        self._silent: set[str] = set()  # whose kubelet nothing is heard of
        self._out: set[str] = set()

    def replace(self, nodes: list[Node], silent: set[str], unread: Collection[str] = ()) -> None:
        """As the listener's, and of whose kubelet nothing is heard."""
        self._nodes, self._holders, self._silent, self._out = {}, {}, silent, set()
        for node in nodes:
            self._enter(node)
        self._decide(self._nodes)
        self._listener.replace([node for node in nodes if node.name not in self._out], unread)

    def change(self, put: list[Node], gone: list[str]) -> None:
        """As the listener's."""
        out = set(self._out)
        altered = {node.name for node in put}.union(gone)
        unknown = {name for name in altered if name not in self._nodes}
        concerned = set(altered).union(*map(self._leave, altered)).union(*map(self._enter, put))
        self._silent.difference_update(gone)
        self._decide(concerned)
        back = [self._nodes[name] for name in out - self._out - altered]
        left = [name for name in self._out - out if name not in unknown]
        self._listener.change([node for node in put if node.name not in self._out] + back, gone + left)

    def hear(self, name: str, *, silent: bool) -> None:
        """Whether nothing is heard of a node's kubelet."""
        if silent == (name in self._silent):
            return
        self._silent ^= {name}
        if any(len(self._holders.get(packed, ())) > 1 for packed in self._addresses(name)):
            self.change([self._nodes[name]], [])

    def _decide(self, names: Collection[str]) -> None:
        self._out = self._out.difference(names).union(name for name in names if self._winner(name))
        texts = [
            f"{name}: its address is {self._winner(name)}'s, and nothing is heard of its kubelet: it is left out; delete its "
            "Node object, or give it an address of its own"
            for name in sorted(self._out)
        ]
        self._troubles.tell("silent", few(texts))

    def _winner(self, name: str) -> str:
        """Who has an address of a node with more right; empty when nobody."""
        if name not in self._silent or name == self._own:
            return ""
        others = {other for packed in self._addresses(name) for other in self._holders[packed]} - {name}
        return next((one for one in sorted(others) if one not in self._silent or one == self._own), "")

    def _addresses(self, name: str) -> list[bytes]:
        return list(self._nodes[name].addresses.values()) if name in self._nodes else []

    def _enter(self, node: Node) -> set[str]:
        """Take a node in; who has its addresses, itself included."""
        self._nodes[node.name] = node
        found: set[str] = set()
        for packed in node.addresses.values():
            self._holders[packed] = holders = (*self._holders.get(packed, ()), node.name)
            found.update(holders)
        return found

    def _leave(self, name: str) -> set[str]:
        """Forget a node; who else has its addresses."""
        found: set[str] = set()
        for packed in self._addresses(name):
            holders = tuple(one for one in self._holders.pop(packed) if one != name)
            if holders:
                self._holders[packed] = holders
            found.update(holders)
        self._nodes.pop(name, None)
        return found
