"""A node in a cluster of many: all peers programmed from nothing, and one node's change, by cnikit and with `ip`.

Each contestant has a node of its own, with an underlay link and, for each call anew, a VXLAN device. Ours is a process
that does what the agent does (cluster_node.py); the other is `ip -batch FILE` and then `bridge -batch FILE`,
whose files are written beforehand. After the calls `ip` and `bridge` are asked whether all is there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import cluster_peers
from tests.bench.cluster_peers import DEVICE, PROTOCOL, Peer, State
from tests.bench.world import RUNTIME_ENV, CallFailedError, program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.world import Node

PROGRAM = [sys.executable, str(Path(__file__).with_name("cluster_node.py"))]


def lay(node: Node) -> None:
    """Give a node its underlay."""
    for name, *arguments in cluster_peers.underlay_commands():
        node.said(name, *arguments)


class Batched:
    """Peers that `ip -batch` and `bridge -batch` program."""

    def __init__(self, node: Node, count: int) -> None:
        lay(node)
        self._node = node
        self._device = Device(node)
        self._peers = cluster_peers.peers(count)
        self._calls = []
        for name, text in (
            ("ip", cluster_peers.ip_batch(self._peers)), ("bridge", cluster_peers.bridge_batch(self._peers)),
        ):  # fmt: skip
            path = node.data_dir / f"{name}.batch"
            path.write_text(text)
            self._calls.append([program(name), "-batch", str(path)])

    def call(self, verb: str, turn: int) -> dict[str, float]:  # noqa: ARG002 - every turn is the same
        self._device.renew()
        return {verb: sum(self._node.call(argv, RUNTIME_ENV)["seconds"] for argv in self._calls)}

    def inside(self) -> list[tuple[str, float]]:
        expect(self._node, self._peers)
        return []


class Reconciled:
    """Peers that our reconciler programs."""

    def __init__(self, node: Node, count: int) -> None:
        lay(node)
        self._node = node
        self._device = Device(node)
        self._peers = cluster_peers.peers(count)
        node.ask("know", described=[peer.described() for peer in self._peers])

    def call(self, verb: str, turn: int) -> dict[str, float]:  # noqa: ARG002 - every turn is the same
        self._device.renew()
        return {verb: self._node.ask("fill")}

    def inside(self) -> list[tuple[str, float]]:
        expect(self._node, self._peers)
        return []


class Changed:
    """One of the peers comes back with another address, MAC and subnet, all the others being there."""

    def __init__(self, node: Node, count: int) -> None:
        lay(node)
        self._node = node
        self._peers = cluster_peers.peers(count)
        self._number = count // 2
        self._unused = count + 1
        described = [peer.described() for peer in (cluster_peers.OWN, *self._peers)]
        node.ask("stand", file=str(network_file(node, peers=described)))

    def call(self, verb: str, turn: int) -> dict[str, float]:
        name = self._peers[self._number].name
        changed = self._peers[self._number] = Peer.at(self._unused + turn)._replace(name=name)
        return {verb: self._node.ask("change", described=changed.described())}

    def inside(self) -> list[tuple[str, float]]:
        expect(self._node, self._peers)
        return []


def network_file(node: Node, **options: Any) -> Path:
    """A file that describes our network to an agent."""
    path = node.data_dir / "network.json"
    network = {
        "cniVersion": "1.1.0", "name": "pods", "type": "vxlan", "network": cluster_peers.NETWORK,
        "vni": cluster_peers.VNI, "port": cluster_peers.PORT, "nodeName": cluster_peers.OWN.name,
        "iface": cluster_peers.UNDERLAY, "subnetFile": str(node.data_dir / "subnet.env"),
        "ipam": {"type": "host-local", "dataDir": str(node.data_dir)},
    }  # fmt: skip
    path.write_text(json.dumps(network | options))
    return path


class Device:
    """The VXLAN device of a node, for those who do not make it themselves."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._batch = str(node.data_dir / "device.batch")
        Path(self._batch).write_text(cluster_peers.vxlan_batch())
        self._is_there = False

    def renew(self) -> None:
        """Make it anew: what hung on the one before goes with it."""
        if self._is_there:
            self._node.said("ip", "link", "delete", DEVICE)
        self._node.said("ip", "-batch", self._batch)
        self._is_there = True


def expect(node: Node, those: Sequence[Peer]) -> None:
    """CallFailedError unless the kernel has what these peers need, and no more."""
    found = State.found(
        node.told("ip", "-j", "route", "show", "dev", DEVICE, "protocol", str(PROTOCOL)),
        node.told("ip", "-j", "neighbour", "show", "dev", DEVICE),
        node.told("bridge", "-j", "fdb", "show", "dev", DEVICE),
    )
    for what, wanted in State.wanted(those)._asdict().items():
        _compare(what, wanted, getattr(found, what))


def _compare(what: str, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    if found != wanted:
        differing = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        key = differing[0]
        raise CallFailedError(
            f"{what}: expected those of {len(wanted)} peers, found {len(found)}, {len(differing)} differ: "
            f"for {key} expected {wanted.get(key)}, found {found.get(key)}"
        )
