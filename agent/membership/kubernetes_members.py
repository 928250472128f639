"""What is known of the cluster's nodes, and telling it: only what has changed, and what is wrong with it in one text.

A Node object changes every few minutes with no change for us (its heartbeat), so the nodes that were told are kept
and compared; they are the listener's own objects.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from agent.membership.kubernetes_node import NodeError, announced, peer, stated, subnets
from plugins.peers import Node

if TYPE_CHECKING:
    from agent.membership import Listener, Network
    from agent.membership.kubernetes_node import NodeView
    from agent.membership.kubernetes_own import Announcer
    from agent.membership.troubles import Troubles
    from plugins.peers import Subnet

_MOST_NAMES = 3
# The rank of this node itself, whatever its object says (`kubernetes_node.rank`).
_ALIVE = 1


class Members:
    """The nodes as they were told last, our own among them."""

    def __init__(
        self, own: Node, network: Network, listener: Listener, troubles: Troubles, announcer: Announcer
    ) -> None:
        self._own = own  # with the subnets that were told last, or that were in force before we began
        self._given = own.addresses  # none until this node has found one of those that are `stated`, or another
        self.stated: tuple[bytes, ...] = ()  # where its object wants it to answer
        self.announced: tuple[bytes, ...] = ()  # where its agent has said that it answers
        self._view: NodeView | None = None
        self._network = network
        self._listener = listener
        self._troubles = troubles
        self._announcer = announcer
        self._nodes: dict[str, Node] = {}
        self._unread: set[str] = set()  # whose objects cannot be read, and never could
        self._guard = threading.RLock()  # a listener may answer with an update
        self._closed = False

    def read(self) -> Reading:
        """A list that is to be taken one by one."""
        return Reading(self._own.name, self._network, self._nodes)

    def replace(self, reading: Reading) -> None:
        """The whole list has been read."""
        with self._guard:
            self._nodes, self._unread = reading.nodes, reading.unread
            self._troubles.nodes(reading.problems)
            own = self._see(reading.own, reading.names)
            if not self._closed:
                self._nodes[own.name] = own
                self._listener.replace(list(self._nodes.values()), self._unread)

    def put(self, view: NodeView) -> None:
        """A node has come or changed."""
        name = view.metadata.name
        if name == self._own.name:
            with self._guard:
                before = self.stated
                self._tell(self._see(view, []), anew=self.stated != before)
            return
        try:
            node = peer(view, self._network)
        except NodeError as problem:  # as it was known, it stays
            self._troubles.node(name, str(problem))
            return
        if node is None:
            self.gone(name)
            return
        self._troubles.node(name, "")
        with self._guard:
            self._tell(node)

    def gone(self, name: str) -> None:
        """A node is no more, or has no range for pods any more."""
        self._troubles.node(name, "")
        with self._guard:
            if name == self._own.name:
                self._tell(self._see(None, []))
                return
            was_known = self._nodes.pop(name, None) is not None
            if (was_known or name in self._unread) and not self._closed:
                self._unread.discard(name)
                self._listener.change([], [name])

    def update(self, own: Node) -> None:
        """Tell that this node answers at another address, or its device has another MAC."""
        with self._guard:
            self._given = own.addresses
            self._own = Node(own.name, own.addresses, self._own.subnets, own.macs, _ALIVE)
            if own.name in self._nodes:  # else the list that is under way tells
                self._tell(self._own, anew=True)  # it is known to be right now, which decides against others
            self._announcer.know(self._own, self._view)

    def close(self) -> None:
        with self._guard:
            self._closed = True

    def _tell(self, node: Node, *, anew: bool = False) -> None:
        known = self._nodes.get(node.name)
        is_same = known is not None and (known, known.rank) == (node, node.rank)
        if (anew or not is_same) and not self._closed:
            self._nodes[node.name] = node
            self._unread.discard(node.name)
            self._listener.change([node], [])

    def _see(self, view: NodeView | None, names: list[str]) -> Node:
        """Our own node's object, None when there is none: ourselves with the subnets that it gives us."""
        ranges: tuple[Subnet, ...] = ()
        trouble = ""
        name, macs = self._own.name, self._own.macs
        if view is None:
            trouble = f"{name}: expected a node of that name in the cluster, found none"
            trouble += f" among {', '.join(names)}" if names else ""
            trouble += "; the kubelet registers it; if it goes by another name, give that one with --node-name"
        else:
            try:
                self.stated, self.announced = stated(view), announced(view)
                ranges = subnets(view, self._network)
                trouble = "" if ranges else self._no_range(view)
            except NodeError as problem:  # as it was known, it stays
                trouble = f"{name}: {problem}"
                ranges = self._own.subnets
        self._troubles.tell("own", trouble)
        answers = self._given or {len(packed): packed for packed in reversed(self.stated)}
        self._own, self._view = Node(name, answers, ranges, macs, _ALIVE), view
        self._announcer.know(Node(name, self._given, ranges, macs), view)
        return self._own

    def _no_range(self, view: NodeView) -> str:
        given = view.spec.podCIDRs or ([view.spec.podCIDR] if view.spec.podCIDR else [])
        if given:
            return f"{self._own.name}: expected a podCIDR of a family that the network has, found {', '.join(given)}"
        return (
            f"{self._own.name}: expected a podCIDR in its Node object, found none: no pod can be added. "
            "kube-controller-manager gives one with --allocate-node-cidrs and --cluster-cidr"
        )


class Reading:
    """A list of nodes while its pages come. A node that cannot be read stays as it was known, here (`nodes`) or by the
    listener (`unread`)."""

    def __init__(self, own: str, network: Network, known: dict[str, Node]) -> None:
        self.nodes: dict[str, Node] = {}
        self.problems: dict[str, str] = {}
        self.unread: set[str] = set()
        self.own: NodeView | None = None
        self.names: list[str] = []  # of the first ones, to show
        self._own_name = own
        self._network = network
        self._known = known

    def take(self, view: NodeView) -> None:
        name = view.metadata.name
        if len(self.names) < _MOST_NAMES:
            self.names.append(name)
        if name == self._own_name:
            self.own = view
            return
        try:
            node = peer(view, self._network)
        except NodeError as problem:
            self.problems[name] = str(problem)
            node = self._known.get(name)
            if node is None:
                self.unread.add(name)
        if node is not None:
            self.nodes[name] = node
