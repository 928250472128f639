"""A made-up cluster of any size: its nodes, and what a program without cnikit would have `ip` and `bridge` do for them.

The node at number 0 is the one that is measured; its peers are numbers 1 to N. Every node has one underlay address out
of 172.16.0.0/12, a pod subnet of 256 addresses out of 10.0.0.0/8 and a VXLAN device whose MAC is told, so that
nothing here needs code of ours to be known.
"""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NETWORK = "10.0.0.0/8"
UNDERLAY_PREFIX = 12
VNI, PORT = 1, 8472
DEVICE, UNDERLAY = f"cnikit.{VNI}", "underlay0"
PROTOCOL = 205  # of our routes (docs/registry.md); theirs have it too, so that both end in one state

_FIRST_ADDRESS = int(IPv4Address("172.16.0.1"))
_FIRST_SUBNET = int(IPv4Address("10.0.0.0"))
_FIRST_MAC = 0x02_63_00_00_00_00


class Peer(NamedTuple):
    """A node. `gateway` is the address of its VXLAN device, which is the network address of its subnet."""

    name: str
    address: str
    gateway: str
    mac: str

    @classmethod
    def at(cls, number: int) -> Peer:
        octets = (_FIRST_MAC + number).to_bytes(6, "big")
        return cls(
            f"node{number}", str(IPv4Address(_FIRST_ADDRESS + number)), str(IPv4Address(_FIRST_SUBNET + number * 256)),
            octets.hex(":"),
        )  # fmt: skip

    @property
    def subnet(self) -> str:
        return f"{self.gateway}/24"

    def described(self) -> dict[str, Any]:
        """As in a configuration's `peers` and in every source of membership."""
        return {"name": self.name, "publicIP": self.address, "vtepMAC": self.mac, "subnets": [self.subnet]}


OWN = Peer.at(0)


def peers(count: int, first: int = 1) -> list[Peer]:
    return [Peer.at(number) for number in range(first, first + count)]


def membership(count: int) -> str:
    """The static source's file: this node and so many others."""
    return json.dumps({"nodes": [peer.described() for peer in (OWN, *peers(count))]})


def underlay_commands() -> list[list[str]]:
    """What makes this node's underlay: a link with its address, which is up."""
    return [
        ["ip", "link", "add", UNDERLAY, "type", "veth", "peer", "name", "underlay1"],
        ["ip", "link", "set", "underlay1", "up"],
        ["ip", "link", "set", "lo", "up"],
        ["ip", "link", "set", UNDERLAY, "up"],
        ["ip", "address", "add", f"{OWN.address}/{UNDERLAY_PREFIX}", "dev", UNDERLAY],
    ]


def vxlan_batch() -> str:
    """For `ip -batch`: a new VXLAN device in the place of the one before, whose entries go with it."""
    kind = f"vxlan id {VNI} dstport {PORT} local {OWN.address} dev {UNDERLAY} nolearning"
    return "\n".join([
        f"link add {DEVICE} address {OWN.mac} mtu 1450 type {kind}",
        f"address add {OWN.gateway}/32 dev {DEVICE}",
        f"link set {DEVICE} up",
        "",
    ])  # fmt: skip


def ip_batch(those: Iterable[Peer]) -> str:
    """For `ip -batch`: a neighbour and a route for each peer, as flannel and people with a shell make them."""
    lines = []
    for peer in those:
        lines.append(f"neighbour replace {peer.gateway} lladdr {peer.mac} dev {DEVICE} nud permanent\n")
        lines.append(f"route replace {peer.subnet} via {peer.gateway} dev {DEVICE} onlink protocol {PROTOCOL}\n")
    return "".join(lines)


def bridge_batch(those: Iterable[Peer]) -> str:
    """For `bridge -batch`: the forwarding entry of each peer."""
    return "".join(f"fdb replace {peer.mac} dev {DEVICE} dst {peer.address} self permanent\n" for peer in those)


class State(NamedTuple):
    """What stands in the kernel for a set of peers: the gateways of routes, MACs of neighbours, addresses of MACs."""

    routes: dict[str, str]
    neighbours: dict[str, str]
    fdb: dict[str, str]

    @classmethod
    def wanted(cls, those: Sequence[Peer]) -> State:
        return cls(
            {peer.subnet: peer.gateway for peer in those},
            {peer.gateway: peer.mac for peer in those},
            {peer.mac: peer.address for peer in those},
        )

    @classmethod
    def found(cls, routes: list[Any], neighbours: list[Any], fdb: list[Any]) -> State:
        """Out of what `ip -j route`, `ip -j neighbour` and `bridge -j fdb` say of the device."""
        return cls(
            {route["dst"]: route.get("gateway", "") for route in routes},
            {one["dst"]: one["lladdr"] for one in neighbours if "PERMANENT" in one["state"]},
            {one["mac"]: one["dst"] for one in fdb if "dst" in one},
        )
