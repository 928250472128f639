"""Services on a vxlan node: two nodes with a pod each and a client beside them.

The services are netfilter's own DNAT, as kube-proxy has it. Both nodes check the way back of every IPv4 packet (rp_filter).
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.e2e.cluster_world import SOON
from tests.e2e.underlay import V4, V6, Capture, Cluster, address, address_of, subnet_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.world import Node, Pod, Way

BOTH = (V4, V6)
DEVICES = {V4: "cnikit.1", V6: "cnik6.1"}
SERVICE = {V4: "10.96.0.10", V6: "fd00:96::10"}
NEAR, FAR = 30080, 30081  # the ports of services, at pods and nodes alike

# A ClusterIP's and two NodePorts' way; those with `externalTrafficPolicy: Local` are not masqueraded by kube-proxy either.
SERVICES = """
table inet services {{
    chain output {{
        type nat hook output priority -100;
        ip daddr {service4} meta l4proto {{ tcp, udp }} dnat ip to {far4}
        ip6 daddr {service6} meta l4proto {{ tcp, udp }} dnat ip6 to {far6}
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        udp dport {near_port} dnat ip to {near4}
        udp dport {near_port} dnat ip6 to {near6}
        udp dport {far_port} dnat ip to {far4}
        udp dport {far_port} dnat ip6 to {far6}
    }}
}}
"""


class World(NamedTuple):
    cluster: Cluster
    conf: dict[str, Any]
    near: Pod
    far: Pod

    @property
    def node(self) -> Node:
        """Node 1, which has the services."""
        return self.cluster.nodes[0]

    @property
    def client(self) -> Node:
        """A host beside the nodes, which is none."""
        return self.cluster.nodes[2]


@contextlib.contextmanager
def services(way: Way) -> Iterator[World]:
    with Cluster(way, 3, underlay=BOTH, pods=BOTH) as cluster:
        for node in cluster.nodes[:2]:
            for name in ("all", "default", "eth0"):
                node.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=1")
        conf = cluster.conf("vxlan", ipMasq=True)
        conf["peers"] = conf["peers"][:2]
        near, far = cluster.attach(conf, 1, 2)
        for family in BOTH:  # service addresses are on no link
            cluster.nodes[0].run("ip", f"-{4 if family == V4 else 6}", "route", "add", "default", "dev", "eth0")
        rules = SERVICES.format(
            service4=SERVICE[V4], service6=SERVICE[V6], near_port=NEAR, far_port=FAR,
            near4=address(near, V4), near6=address(near, V6), far4=address(far, V4), far6=address(far, V6),
        )  # fmt: skip
        cluster.nodes[0].run("nft", "-f", "-", stdin=rules.encode())
        yield World(cluster, conf, near, far)


def own_address(number: int, family: int) -> str:
    """A node's own in the network of pods, which its overlay device has."""
    return subnet_of(number, family).partition("/")[0]


def source_of_the_node(world: World, family: int) -> str:
    """The address that a pod elsewhere sees of a TCP connection from node 1 to the service; both sides have talked."""
    with (
        world.node.socket(family, socket.SOCK_STREAM) as client,
        world.far.socket(family, socket.SOCK_STREAM) as server,
    ):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", FAR))
        server.listen()
        server.settimeout(SOON)
        client.settimeout(SOON)
        client.connect((SERVICE[family], FAR))
        connection, (source, *_) = server.accept()
        with connection:
            connection.sendall(b"hello")
            assert client.recv(16) == b"hello"
            return str(source)


def source_of_a_client(world: World, family: int) -> str:
    """The address and port that a client's datagram has on the overlay, when node 1 forwards it to a pod elsewhere, less the
    client's own: empty when they are the same."""
    with world.client.socket(family) as client:
        capture = Capture(world.node, DEVICES[family], f"udp port {FAR}", 1)
        client.sendto(b"hello", (address_of(1, family), FAR))
        (line,) = capture.lines()
        sent = f" {address_of(3, family)}.{client.getsockname()[1]} > {address(world.far, family)}.{FAR}:"
        return "" if sent in line else line
