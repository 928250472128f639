"""The pod that `bridge` has attached, against the executables: traffic, masquerade, the bridge itself.

Rows and tests marked `ours` are those where the reference is known to do otherwise.
"""

from __future__ import annotations

import socket

import pytest

from tests.e2e.bridge_world import BACKENDS, add, address, delete, dual, host_end, ours, settled
from tests.e2e.world import LEASES, Node, datagram, network, wait_same, wait_until

FAMILIES = [pytest.param(socket.AF_INET, id="IPv4"), pytest.param(socket.AF_INET6, id="IPv6")]
SUBNET_HOST: dict[int, str] = {socket.AF_INET: "10.1.9.9", socket.AF_INET6: "fd00:1::9:9"}
GATEWAY: dict[int, str] = {socket.AF_INET: "10.1.0.1", socket.AF_INET6: "fd00:1::1"}


class TestTraffic:
    """The pod's network works the moment ADD returns."""

    @ours
    def test_the_first_datagram_of_200_pods_arrives(self, node: Node) -> None:
        """The node asks for a pod's MAC once: without the waits for the port and the bridge some are lost."""
        settled(node, dual())
        node.run("sysctl", "-qw", "net.ipv4.neigh.cni0.mcast_solicit=1", "net.ipv6.neigh.cni0.mcast_solicit=1")
        lost: list[str] = []
        for number in range(200):
            pod = node.pod()
            family = (socket.AF_INET, socket.AF_INET6)[number % 2]
            with pod.socket(family) as listener, node.socket(family) as sender:
                listener.bind(("", 0))
                listener.settimeout(5)
                result = add(node, pod, dual())
                sender.sendto(b"first", (address(result, family), listener.getsockname()[1]))
                try:
                    listener.recv(16)
                except TimeoutError:
                    lost.append(f"pod {number}, {family.name}")
            delete(node, pod, dual())
            node.kill_netns(pod)

        assert lost == []

    @pytest.mark.parametrize("family", FAMILIES)
    def test_pod_to_pod_and_pod_to_node(self, node: Node, family: int) -> None:
        first, second = node.pod(), node.pod()
        one, two = add(node, first, dual()), add(node, second, dual())

        with first.socket(family) as sender, second.socket(family) as listener, node.socket(family) as node_listener:
            listener.bind(("", 0))
            node_listener.bind(("", 0))
            assert datagram(sender, listener, address(two, family)) == address(one, family)
            assert datagram(sender, node_listener, GATEWAY[family]) == address(one, family)

    @ours
    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_reused_address_is_reachable_at_once(self, node: Node, family: int) -> None:
        """The node still has the neighbour entry of the pod that had the address before."""
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": "10.1.0.0/30"}], [{"subnet": "fd00:1::/126", "rangeEnd": "fd00:1::2"}]],
        }
        conf = network(ipam=ipam)
        first, second = node.pod(), node.pod()
        before = add(node, first, conf)
        with node.socket(family) as sender, first.socket(family) as listener:
            listener.bind(("", 0))
            datagram(sender, listener, address(before, family))
        delete(node, first, conf)

        after = add(node, second, conf)

        assert address(after, family) == address(before, family)
        with node.socket(family) as sender, second.socket(family) as listener:
            listener.bind(("", 0))
            listener.settimeout(5)
            sender.sendto(b"hello", (address(after, family), listener.getsockname()[1]))
            assert listener.recv(16) == b"hello"

    @ours
    def test_the_default_mac_follows_the_address(self, node: Node) -> None:
        pod = node.pod()

        result = add(node, pod, dual())

        assert result["interfaces"][2]["mac"] == "0a:58:0a:01:00:02"
        assert node.links(pod)["eth0"]["address"] == "0a:58:0a:01:00:02"

    @pytest.mark.parametrize("enabledad", [False, True])
    def test_no_address_is_tentative_when_add_returns(self, node: Node, enabledad: bool) -> None:  # noqa: FBT001
        pod = node.pod()

        add(node, pod, dual(enabledad=enabledad))

        flags = [item for item in pod.ip("addr", "show", "dev", "eth0")[0]["addr_info"] if item["scope"] == "global"]
        assert len(flags) == 2
        assert not any(item.get("tentative") for item in flags)


class TestMasquerade:
    """`ipMasq`, seen by a host outside that knows no route to the pods."""

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_outside_sees_the_node(self, node: Node, family: int, backend: dict[str, str]) -> None:
        outside, pod = node.outside(), node.pod()
        add(node, pod, dual(ipMasq=True, **backend))

        with pod.socket(family) as sender:
            assert outside.source_of(sender) == outside.node_address(family)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_it_outside_sees_the_pod(self, node: Node, family: int) -> None:
        outside, pod = node.outside(), node.pod()
        result = add(node, pod, dual())

        with pod.socket(family) as sender:
            assert outside.source_of(sender) == address(result, family)

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_not_within_the_pods_subnet(self, node: Node, family: int, backend: dict[str, str]) -> None:
        """A part of the subnet lies beyond the uplink, as another node's pods would."""
        outside, pod = node.outside(), node.pod()
        result = add(node, pod, dual(ipMasq=True, **backend))
        there, length = SUBNET_HOST[family], 32 if family == socket.AF_INET else 128
        node.run("ip", "-n", outside.pod.name, "addr", "add", f"{there}/{length}", "dev", "lo")
        node.run("ip", "route", "add", f"{there}/{length}", "via", outside.address(family))
        node.run("ip", "-n", pod.name, "route", "add", f"{there}/{length}", "via", GATEWAY[family])

        with pod.socket(family) as sender, outside.pod.socket(family) as listener:
            listener.bind(("", 0))
            assert datagram(sender, listener, there) == address(result, family)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_not_for_multicast(self, node: Node, backend: dict[str, str]) -> None:
        """Nobody routes multicast here, so this looks at the rules."""
        add(node, node.pod(), dual(ipMasq=True, **backend))

        rules = node.run("nft", "list", "ruleset")

        assert "224.0.0.0/4" in rules
        assert "ff00::/8" in rules

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("netns_of_a", ["gone", "there"])
    def test_two_holders_of_one_address(self, node: Node, backend: dict[str, str], netns_of_a: str) -> None:
        """ADD A, ADD B with the same address, late DEL A: B is still masqueraded."""
        conf = network(ipMasq=True, **backend)
        outside, pod_a, pod_b = node.outside(), node.pod(), node.pod()
        add(node, pod_a, conf)
        node.path(f"{LEASES}/net/10.1.0.2").unlink()  # as after a restore of an old store
        if netns_of_a == "gone":
            node.kill_netns(pod_a)
        else:
            node.run("ip", "-n", pod_a.name, "link", "set", "eth0", "down")
        result = add(node, pod_b, conf, env={"CNI_ARGS": "IP=10.1.0.2;IgnoreUnknown=1"})
        assert address(result, socket.AF_INET) == "10.1.0.2"

        delete(node, pod_a, conf)

        with pod_b.socket() as sender:
            assert outside.source_of(sender) == outside.NODE4
        assert list(node.leases("net")) == ["10.1.0.2"]

    @ours
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_two_holders_both_leave(self, node: Node, backend: dict[str, str]) -> None:
        conf = network(ipMasq=True, **backend)
        before = settled(node, conf)
        pod_a, pod_b = node.pod(), node.pod()
        result = add(node, pod_a, conf)
        taken = address(result, socket.AF_INET)
        node.path(f"{LEASES}/net/{taken}").unlink()
        node.kill_netns(pod_a)
        add(node, pod_b, conf, env={"CNI_ARGS": f"IP={taken};IgnoreUnknown=1"})

        delete(node, pod_a, conf)
        delete(node, pod_b, conf)

        wait_same(node.snapshot, before, "two holders of one address left something")


def test_a_bridge_of_the_operator_that_lost_its_last_port(node: Node) -> None:
    """With no MAC of its own it has none then, and the next pod must be reachable all the same."""
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.run("ip", "link", "add", "port", "master", "cni0", "type", "veth", "peer", "other")
    node.run("ip", "link", "del", "port")
    node.run("ip", "link", "set", "cni0", "up")
    pod = node.pod()

    result = add(node, pod, network())

    with node.socket() as sender, pod.socket() as listener:
        listener.bind(("", 0))
        assert datagram(sender, listener, address(result, socket.AF_INET)) == "10.1.0.1"


def test_forwarding_of_a_new_port(node: Node) -> None:
    """Each port forwards when its ADD returns; asked right away, and the port is never seen otherwise."""
    for _ in range(10):
        result = add(node, node.pod(), network())
        states = {port["ifname"]: port["state"] for port in node.bridge("link")}
        assert states[result["interfaces"][1]["name"]] == "forwarding"


@ours
def test_link_local_of_the_host_end(node: Node) -> None:
    """The node's end needs no address: it is a port."""
    result = add(node, node.pod(), dual())
    name = host_end(node, result)

    wait_until(lambda: node.links()[name]["operstate"] == "UP", "the port is up")

    assert [item for item in node.ip("addr", "show", "dev", name)[0]["addr_info"] if item["scope"] == "global"] == []
