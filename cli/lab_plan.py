"""What a lab is made of, as values: its nodes, their addresses, their pods, and the network's configuration.

Everything is derived from a few numbers and names, so that it can be written into a file by one process and be
understood by the next. Nothing here touches the machine.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cni import addr
from plugins.peers import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKENDS = ("vxlan", "host-gw")
SOURCES = ("static", "etcd")
MOST_NODES = 200
MOST_PODS = 50

# The name of every lab's network, and of its nodes' link to the underlay.
NETWORK = "lab"
UPLINK = "eth0"
# The bridge that is the underlay, which is also where etcd listens.
BRIDGE = "underlay"
ETCD = "etcd"
ETCD_NUMBER = 254
ETCD_PORT = 2379
# How long etcd waits for a node that says nothing before it is gone, in seconds.
LEASE_SECONDS = 10

# By address size. Documentation's networks (RFC 5737, RFC 3849) are nobody's, so they cannot be the machine's.
UNDERLAY = {4: "192.0.2.{}", 16: "2001:db8::{:x}"}
UNDERLAY_PREFIX = {4: 24, 16: 64}
RANGE_KEYS = {4: "network", 16: "ipv6Network"}
RANGES = {4: "10.244.0.0/16", 16: "fd00:244::/48"}
SUBNETS = {4: "10.244.{}.0/24", 16: "fd00:244:0:{:x}::/64"}

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_NAME_RULE = "up to 32 small letters, digits and dashes, beginning with no dash"


class LabError(Exception):
    """What is wrong with a lab, in one line: expected, found, next step."""


@dataclass(frozen=True)
class PodPlan:
    """A pod's name, which is its network namespace's and unique in the lab, and its node."""

    name: str
    node: str


@dataclass(frozen=True)
class NodePlan:
    """One node: its number from 1, and what follows from it."""

    number: int
    families: tuple[int, ...]
    pod_count: int

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def pods(self) -> tuple[PodPlan, ...]:
        return tuple(PodPlan(f"{self.name}-pod{number}", self.name) for number in range(1, self.pod_count + 1))

    @property
    def addresses(self) -> dict[int, tuple[bytes, int]]:
        """On the underlay, with the prefix length, by address size."""
        return {size: underlay_address(size, self.number) for size in self.families}

    def member(self) -> Node:
        """What a list of members says about it."""
        subnets = [addr.pack_cidr(SUBNETS[size].format(self.number)) for size in self.families]
        addresses = {size: packed for size, (packed, _) in self.addresses.items()}
        return Node(self.name, addresses, tuple(subnet for subnet in subnets if subnet))


@dataclass(frozen=True)
class Plan:
    """A whole lab. `families` are the address sizes that it has: (4,), (16,) or (4, 16)."""

    name: str = "lab"
    node_count: int = 3
    pod_count: int = 2
    backend: str = "vxlan"
    source: str = "static"
    families: tuple[int, ...] = (4,)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LabError(f"--name: expected {_NAME_RULE}, found {self.name!r}")
        if not 1 <= self.node_count <= MOST_NODES or not 0 <= self.pod_count <= MOST_PODS:
            raise LabError(
                f"expected 1 to {MOST_NODES} nodes with up to {MOST_PODS} pods each, found {self.node_count} with {self.pod_count}"
            )

    def described(self) -> dict[str, Any]:
        """The form that `read` reads."""
        return asdict(self)

    @classmethod
    def read(cls, value: dict[str, Any]) -> Plan:
        return cls(**{**value, "families": tuple(value["families"])})

    @property
    def nodes(self) -> tuple[NodePlan, ...]:
        return tuple(NodePlan(number, self.families, self.pod_count) for number in range(1, self.node_count + 1))

    @property
    def pods(self) -> Iterator[PodPlan]:
        return (pod for node in self.nodes for pod in node.pods)

    def neighbours(self, size: int) -> int:
        """How many neighbours the kernel may have to keep for a family: the nodes know each other, they and etcd know one
        another, and so do pods and their node. With IPv6 each by its link-local address too."""
        others = self.node_count - 1 + (2 if self.source == "etcd" else 0)
        return self.node_count * (others + 2 * self.pod_count) * (2 if size == 16 else 1)

    def etcd_url(self) -> str:
        """Where etcd listens, if the lab has one."""
        address = addr.unpack(underlay_address(self.families[0], ETCD_NUMBER)[0])
        return f"http://[{address}]:{ETCD_PORT}" if ":" in address else f"http://{address}:{ETCD_PORT}"

    def network_list(self, nodes_file: str) -> dict[str, Any]:
        """The network list that every node has. `nodes_file` is where the nodes find the list of members."""
        plugin: dict[str, Any] = {"type": self.backend}
        plugin |= {RANGE_KEYS[size]: RANGES[size] for size in self.families}
        # The nodes have no default route that would show which link leads to the others.
        plugin |= {"iface": UPLINK, "ipam": {"type": "host-local"}, "membership": self._membership(nodes_file)}
        return {"cniVersion": "1.1.0", "name": NETWORK, "plugins": [plugin]}

    def _membership(self, nodes_file: str) -> dict[str, Any]:
        if self.source == "static":
            return {"source": "static", "file": nodes_file}
        return {
            "source": "etcd",
            "endpoints": [self.etcd_url()],
            "prefix": f"/cnikit/{NETWORK}",
            "subnetLen": 24,
            "ipv6SubnetLen": 64,
            "ttl": LEASE_SECONDS,
        }


def underlay_address(size: int, number: int) -> tuple[bytes, int]:
    """An address of the underlay, with its prefix length."""
    packed = addr.pack(UNDERLAY[size].format(number))
    assert packed is not None
    return packed, UNDERLAY_PREFIX[size]
