"""Services on a vxlan node: what the node itself sends to one reaches a pod elsewhere, and a client's address is kept.

The services are netfilter's own DNAT, as kube-proxy has it. Both nodes check the way back of every packet (rp_filter).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.e2e.cluster_world import SOON
from tests.e2e.underlay import V4, V6, Capture, Cluster, address, address_of, subnet_of
from tests.e2e.world import datagram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.world import Node, Pod, Way

BOTH = (V4, V6)
SERVICE = {V4: "10.96.0.10", V6: "fd00:96::10"}
NEAR, FAR = 30080, 30081  # the ports of services, at pods and nodes alike

# Linux has no rp_filter for IPv6.
REVERSE_PATH = """
table inet reverse-path {
    chain prerouting {
        type filter hook prerouting priority raw;
        meta nfproto ipv6 meta l4proto { tcp, udp } fib saddr . iif oif missing drop
    }
}
"""
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


@pytest.fixture(scope="module")
def world(way: Way) -> Iterator[World]:
    with Cluster(way, 3, underlay=BOTH, pods=BOTH) as cluster:
        for node in cluster.nodes[:2]:
            for name in ("all", "default", "eth0"):
                node.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=1")
            node.run("nft", "-f", "-", stdin=REVERSE_PATH.encode())
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


@pytest.mark.parametrize("family", BOTH)
def test_the_node_itself_reaches_a_service_whose_pod_is_elsewhere(world: World, family: int) -> None:
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
            assert source == own_address(1, family), "an address that node 2 expects on its overlay device"


@pytest.mark.parametrize("family", BOTH)
def test_a_client_from_outside_keeps_its_address(world: World, family: int) -> None:
    """`externalTrafficPolicy: Local`, to a pod of this node, and forwarded through the overlay."""
    there = address_of(1, family)
    with world.client.socket(family) as client, world.near.socket(family) as listener:
        listener.bind(("", NEAR))
        assert datagram(client, listener, there) == address_of(3, family)

        capture = Capture(world.node, "cnikit.1" if family == V4 else "cnik6.1", f"udp port {FAR}", 1)
        client.sendto(b"hello", (there, FAR))
        (line,) = capture.lines()
        assert f" {address_of(3, family)}.{client.getsockname()[1]} > {address(world.far, family)}.{FAR}:" in line
