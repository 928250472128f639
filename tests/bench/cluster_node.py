"""A node of the benchmark in a cluster: it programs peers itself, as the agent does, or hears when an agent has.

    python cluster_node.py PREFIX

It is a node like node.py, with more answers:

- `know` nodes, then `fill`: the time from the nodes to the kernel's holding all of their entries, with whatever is
  read from the kernel for it. The process stands for an agent that has just learnt who is in the cluster.
- `stand` in a cluster as the agent's own thread does, then `change` a peer: the time from the news to the end of the
  round that it leads to.
- `start_in_cluster` starts an agent and tells the time from before its start until the kernel has announced a route, a
  neighbour and a forwarding entry for every peer. The announcements are read by a thread, beside the agent.
"""

from __future__ import annotations

import gc
import os
import struct
import sys
import threading
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import socket

from agent.cluster import Cluster, networks_of
from cni import addr
from cni.kernel.resident import ResidentKernel
from plugins import reconcile, vxlan
from plugins.peers import Local, Underlay, read_described
from tests.bench import cluster_servers, node
from tests.bench.cluster_peers import DEVICE, NETWORK, OWN, UNDERLAY, VNI

AF_BRIDGE = 7
RTM_NEWNEIGH, RTM_NEWROUTE = 28, 24
RTMGRP_NEIGH, RTMGRP_IPV4_ROUTE = 0x4, 0x40
RTA_DST, NDA_DST, NDA_LLADDR = 1, 1, 2
SO_RCVBUFFORCE = 33
CONVERGE_SECONDS = 120.0
# After so many the cluster has looked, stood up, programmed and heard of it.
ROUNDS = 4


class Peers:
    """The peers of this process, and its own hands in the kernel."""

    def __init__(self, described: list[dict[str, Any]]) -> None:
        self._namespace = ResidentKernel(time.monotonic).own()
        self._own = read_described("own", OWN.described())
        network = addr.pack_cidr(NETWORK)
        assert network is not None
        self._ranges = (network,)
        self._nodes = [read_described("peers", one) for one in described]

    def fill(self) -> float:
        """Program them all: the seconds from their values to the last answer of the kernel."""
        local = self._local()
        said: list[str] = []
        begin = time.perf_counter_ns()
        wanted = [vxlan.entries(self._own, peer, local) for peer in self._nodes]
        reconcile.sync(self._namespace, wanted, local.devices.values(), self._ranges, said.append)
        taken = time.perf_counter_ns() - begin
        if said:
            raise SystemExit(f"the reconciler: expected no word, found {said}")
        return taken / 1e9

    def _local(self) -> Local:
        underlay, device = self._namespace.link(UNDERLAY), self._namespace.link(DEVICE)
        assert underlay is not None
        assert device is not None
        return Local({4: Underlay(underlay.index, UNDERLAY, underlay.mtu, ())}, {4: device.index}, vni=VNI)


class Standing:
    """The agent's cluster, its rounds made by us."""

    def __init__(self, file: str) -> None:
        self._complaints: list[str] = []
        self._cluster = Cluster(networks_of([file]), ResidentKernel(time.monotonic).own(), "", self)  # type: ignore[arg-type]
        ((reconciler, _),) = self._cluster._networks
        self._inbox = reconciler._inbox
        for _ in range(ROUNDS):
            self._round()

    def change(self, described: dict[str, Any]) -> float:
        """Hear that a node is as it is described now: the seconds until the kernel has it so."""
        changed = read_described("peer", described)
        begin = time.perf_counter_ns()
        self._inbox.change([changed], [])
        self._round()
        taken = time.perf_counter_ns() - begin
        self._round()  # it hears of what it has done
        return taken / 1e9

    def _round(self) -> None:
        self._cluster._round()
        if self._complaints:
            raise SystemExit(f"the cluster: expected no complaint, found {self._complaints}")

    # What it logs to.

    def info(self, text: str, **_: str) -> None:
        pass

    def note(self, kind: str, text: object, **_: str) -> None:
        pass

    def warning(self, text: str, **_: str) -> None:
        self._complaints.append(text)

    error = warning


class Announcements(threading.Thread):
    """Hears the kernel announce routes, neighbours and forwarding entries until those of all peers were there."""

    def __init__(self, described: list[dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self.complete_at = 0
        self._missing = {
            (kind, key)
            for one in described
            for kind, key in (
                ("route", socket.inet_aton(one["subnets"][0].partition("/")[0])),
                ("neighbour", socket.inet_aton(one["subnets"][0].partition("/")[0])),
                ("fdb", bytes.fromhex(one["vtepMAC"].replace(":", ""))),
            )
        }
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((0, RTMGRP_NEIGH | RTMGRP_IPV4_ROUTE))

    def run(self) -> None:
        with self._socket:
            while self._missing:
                self._missing.difference_update(announced(self._socket.recv(1 << 16)))
            self.complete_at = time.perf_counter_ns()

    def missing(self) -> str:
        """What has not come yet, in a few words."""
        kinds = [kind for kind, _ in self._missing]
        return ", ".join(f"{kinds.count(kind)} of kind {kind}" for kind in sorted(set(kinds)))


def announced(data: bytes) -> list[tuple[str, bytes]]:
    """(kind, key) of what messages of the kernel tell to be there: a route's network, a neighbour's address, a
    forwarding entry's MAC."""
    found = []
    at = 0
    while at < len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        body = memoryview(data)[at + 16 : at + length]
        at += length + 3 & ~3
        if kind == RTM_NEWROUTE:
            found.append(("route", attribute(body, RTA_DST)))
        elif kind == RTM_NEWNEIGH and body[0] == AF_BRIDGE:
            found.append(("fdb", attribute(body, NDA_LLADDR)))
        elif kind == RTM_NEWNEIGH:
            found.append(("neighbour", attribute(body, NDA_DST)))
    return found


def attribute(body: memoryview, wanted: int) -> bytes:
    """An attribute behind a header of 12 bytes, which rtmsg and ndmsg have; empty without it."""
    at = 12
    while at < len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if kind == wanted:
            return bytes(body[at + 4 : at + length])
        at += length + 3 & ~3
    return b""


def start_in_cluster(argv: list[str], env: dict[str, str], described: list[dict[str, Any]]) -> float:
    """Start an agent: the seconds until all that these peers need was announced."""
    announcements = Announcements(described)
    announcements.start()
    begin = time.perf_counter_ns()
    node.agent.start(argv, env)
    announcements.join(CONVERGE_SECONDS)
    if announcements.is_alive():
        said = " ".join(node.agent.lines(0)[-3:])
        raise SystemExit(
            f"expected all peers to be programmed within {CONVERGE_SECONDS:g} s, missing: {announcements.missing()}; {said}"
        )
    node.agent.await_idle()
    return (announcements.complete_at - begin) / 1e9


def know(described: list[dict[str, Any]]) -> None:
    """Be an agent that has read its cluster."""
    node.ANSWERS["fill"] = Peers(described).fill
    as_resident()


def stand(file: str) -> None:
    """Be an agent that has programmed the cluster of a network list."""
    node.ANSWERS["change"] = Standing(file).change
    as_resident()


def as_resident() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    node.ANSWERS |= {
        "know": know,
        "stand": stand,
        "serve_etcd": cluster_servers.serve_etcd,
        "serve_kubernetes": cluster_servers.serve_kubernetes,
        "start_in_cluster": start_in_cluster,
    }
    node.serve(node.ANSWERS)
