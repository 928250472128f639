"""Who is in the cluster: where the agent learns it, and what it makes of the configuration's `membership`.

A source has threads of its own and tells a listener what it learns, from whichever of them learnt it. It never gives
up: what cannot be reached is tried again with growing pauses, what is wrong is told, and what was told before stays in
force meanwhile, because pods go on talking while etcd does not.

    "membership": {"source": "static", "file": "/etc/cnikit/peers.json"}
    "membership": {"source": "etcd", "endpoints": ["https://..."], ...}
    "membership": {"source": "kubernetes", "kubeconfig": ""}

Without it the configuration's own `peers` are the cluster. A source's module is imported when it is asked for: the
clients of etcd and of Kubernetes cost memory that a node without them keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cni.config import wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cni.config import Reader
    from plugins.peers import Node, Subnet

# How long a source waits before it tries again: doubled from the first to the last.
FIRST_PAUSE, LAST_PAUSE = 0.1, 5.0

# What reads a source's part of the configuration, by its name: `make(config, network) -> Source`.
_SOURCES = {
    "static": "agent.membership.static",
    "etcd": "agent.membership.etcd",
    "kubernetes": "agent.membership.kubernetes",
}


class Listener(Protocol):
    """What a source tells to. Every method may be called from any thread of the source, and returns at once.

    A source gives all nodes that there are, each with its `rank`. Whether they agree with one another is not its business.
    """

    def replace(self, nodes: list[Node], unread: Collection[str] = ()) -> None:
        """Take this as the whole membership, the own node with its subnets included.

        `unread` are the names of members that are there and cannot be read, "" of one whose name cannot be read either:
        as they were known they stay.
        """

    def change(self, put: list[Node], gone: list[str]) -> None:
        """Take these nodes as they are now, and those names as gone."""

    def trouble(self, text: str) -> None:
        """Hear what is wrong with the source, once for each text, and "" when it is over.

        What is known stays in force.
        """


class Source(Protocol):
    """A source of membership. `start` is called once, by a thread that does not wait; `close` ends its threads."""

    @property
    def stated(self) -> tuple[bytes, ...]:
        """The addresses that this node is to be known by, as the configuration or the cluster has it, the best first.

        The listener hears something when they change. One that is not this host's counts for nothing.
        """
        return ()

    @property
    def announced(self) -> tuple[bytes, ...]:
        """What the others were told of this node's addresses last, as far as that is known from an earlier process."""
        return ()

    @property
    def claims(self) -> frozenset[str]:
        """Where nodes claim what they have, one text for each way there. Two networks with one of them would be one."""
        return frozenset()

    def locate(self, here: frozenset[Subnet]) -> None:  # noqa: ARG002 - most sources do without
        """Take these as the addresses that this host has now, each with its prefix length. Called before `start` too."""
        return

    def start(self, own: Node, listener: Listener) -> None:
        """Begin. `own.subnets` may be empty: etcd claims them, Kubernetes knows them. `own.addresses` are empty for a
        source that lists this node: `update` brings them."""

    def update(self, own: Node) -> None:
        """Tell the others that this node's address or MAC has changed. There is an address."""

    def judge(self, fault: str) -> None:  # noqa: ARG002 - most sources do without
        """Tell whoever places pods that this node can take them (""), or why it cannot. Most sources know nobody who does."""
        return

    def close(self) -> None:
        """End, and say nothing more. What this node claimed stays its own: pods go on while the agent is replaced."""


@dataclass(frozen=True)
class Network:
    """The network whose members are looked for: its name, its ranges (`network`, `ipv6Network`) and its `peers`.

    `backend` (`vxlan` or `host-gw`) and `vni` are what a source tells others about this node.
    """

    name: str
    ranges: tuple[Subnet, ...]
    peers: tuple[Node, ...] = ()
    backend: str = ""
    vni: int = 0


def source(config: Reader | None, network: Network) -> Source:
    """The source that a network's `membership` describes (None: there is none, its `peers` are it).

    CniError 7 with the path of what is wrong in it. Nothing is connected to before `start`.
    """
    if config is None:
        from agent.membership.static import Embedded

        return Embedded(network.peers)
    name = config.string("source") or ""
    if name not in _SOURCES:
        raise wrong(config.at("source"), "one of " + ", ".join(_SOURCES), name)
    from importlib import import_module

    make: Callable[[Reader, Network], Source] = import_module(_SOURCES[name]).make
    return make(config, network)
