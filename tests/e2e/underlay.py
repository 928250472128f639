"""Nodes on one underlay: each is a `Node` with a link `eth0` into a switch, a bridge in a namespace of its own.

Node N has 198.18.0.N/24 and 2001:db8::N/64 on its `eth0`, as far as the cluster has the family, and holds the pods of
10.244.N.0/24 and fd00:244:0:N::/64.
"""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING, Any

from tests.e2e.world import SEARCH_PATH, Node, without_length

if TYPE_CHECKING:
    from types import TracebackType

    from tests.e2e.world import Answer, Pod, Way

V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)
IPV6_MTU = 1280  # Linux has no IPv6 on a narrower link
NETWORK, NETWORK6 = "10.244.0.0/16", "fd00:244::/48"


class Cluster:
    """Use it as a context manager. `underlay` and `pods` say which families nodes and pods have."""

    def __init__(
        self,
        way: Way,
        count: int = 2,
        *,
        underlay: tuple[int, ...] = (V4,),
        pods: tuple[int, ...] = (V4,),
        mtu: int = 1500,
    ) -> None:
        self.underlay, self.families = underlay, pods
        self.switch = Node(way)
        self.nodes: list[Node] = []
        self.switch.run("ip", "link", "add", "switch", "type", "bridge")
        self.switch.run("ip", "link", "set", "switch", "up", "mtu", str(mtu))
        for number in range(1, count + 1):
            self._join(Node(way), number, mtu)

    def _join(self, node: Node, number: int, mtu: int) -> None:
        self.nodes.append(node)
        end = f"node{number}"
        self.switch.run(
            *("ip", "link", "add", end, "mtu", str(mtu), "type", "veth"),
            *("peer", "name", "eth0", "mtu", str(mtu), "netns", str(node.pid)),
        )
        self.switch.run("ip", "link", "set", end, "master", "switch", "up")
        if mtu >= IPV6_MTU:
            node.run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
        for family in self.underlay:
            length = "24" if family == V4 else "64"
            node.run("ip", "addr", "add", f"{address_of(number, family)}/{length}", "dev", "eth0")
        node.run("ip", "link", "set", "eth0", "up")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        for node in (*self.nodes, self.switch):
            node.close()

    def peer(self, number: int) -> dict[str, Any]:
        """The node object of node `number`."""
        keys = {V4: "publicIP", V6: "publicIPv6"}
        return {
            "name": f"node{number}",
            **{keys[family]: address_of(number, family) for family in self.underlay},
            "subnets": [subnet_of(number, family) for family in self.families],
        }

    def conf(self, backend: str, **options: Any) -> dict[str, Any]:
        """The network's configuration, the same on every node."""
        networks = {V4: {"network": NETWORK}, V6: {"ipv6Network": NETWORK6}}
        found: dict[str, Any] = {"cniVersion": "1.1.0", "name": "pods", "type": backend}
        for family in self.families:
            found |= networks[family]
        found |= {"peers": [self.peer(number) for number in range(1, len(self.nodes) + 1)]}
        return {**found, "ipam": {"type": "host-local"}, **options}

    def attach(self, conf: dict[str, Any], *numbers: int) -> list[Pod]:
        """A new pod on each of these nodes (all when none is named), in this order."""
        pods = []
        for number in numbers or range(1, len(self.nodes) + 1):
            node = self.nodes[number - 1]
            pods.append(node.pod())
            add(pods[-1], conf)
        return pods


def address_of(number: int, family: int) -> str:
    return f"198.18.0.{number}" if family == V4 else f"2001:db8::{number}"


def subnet_of(number: int, family: int) -> str:
    return f"10.244.{number}.0/24" if family == V4 else f"fd00:244:0:{number}::/64"


def add(pod: Pod, conf: dict[str, Any]) -> dict[str, Any]:
    return pod.node.call(conf["type"], "ADD", conf, pod).result


def delete(pod: Pod, conf: dict[str, Any]) -> None:
    pod.node.call(conf["type"], "DEL", conf, pod).silent()


def address(pod: Pod, family: int) -> str:
    """The pod's address of a family."""
    return next(without_length(cidr) for cidr in pod.addresses() if (":" in cidr) == (family == V6))


def ping(pod: Pod, target: str, *options: str) -> Answer:
    """One packet, with an answer within a second or none."""
    return pod.node.attempt("ip", "netns", "exec", pod.name, "ping", "-n", "-c1", "-W1", *options, target)


class Capture:
    """tcpdump on a link of a node, of `count` packets, or with 0 of what comes until it is asked."""

    def __init__(self, node: Node, link: str, expression: str, count: int = 0) -> None:
        argv = ["/usr/bin/tcpdump", "-i", link, "-nn", "--immediate-mode", *(["-c", str(count)] if count else [])]
        pipe = subprocess.PIPE
        environ = {"PATH": SEARCH_PATH}
        self._process = subprocess.Popen(
            node.inside(*argv, expression), env=environ, stdout=pipe, stderr=pipe, text=True
        )
        self._count = count
        assert self._process.stderr is not None
        while "listening on" not in (line := self._process.stderr.readline()):
            assert line, "tcpdump ended before it listened"

    def lines(self) -> list[str]:
        """What it has printed: a line for each packet, and one for the packet inside of VXLAN."""
        if not self._count:
            self._process.terminate()
        try:
            out, _ = self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            out, _ = self._process.communicate()
            raise AssertionError(f"expected {self._count} packets, found only: {out}") from None
        return [line for line in out.splitlines() if line]
