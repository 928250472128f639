"""Who a node is and where it answers, with agents on a real kernel and a real API server or etcd: addresses that are
lost, exchanged, another's, or one of several."""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING

from tests.e2e.etcd_world import PREFIX, put_node
from tests.e2e.membership_world import (
    PUBLIC_IP,
    annotated,
    claim_of,
    give,
    here,
    internal_ip,
    kubernetes,
    served,
    stands,
    take,
    ways,
    world,
)
from tests.e2e.underlay import V4, add, address_of
from tests.e2e.world import Way, wait_until
from tests.kubernetes.control_plane import ELSEWHERE

if TYPE_CHECKING:
    from tests.e2e.agent_world import AgentWay
    from tests.e2e.etcd_world import Etcd
    from tests.kubernetes.control_plane import ControlPlane

pytest_plugins = ["tests.kubernetes.fixtures", "tests.e2e.etcd_fixtures"]

# A connection from an address that is gone is found dead by itself after 25 s and more.
AT_ONCE = 8.0
TAINT = {"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"}


# Who am I


def test_nodes_that_exchange_their_addresses_keep_their_ranges(agent_way: AgentWay, plane: ControlPlane) -> None:
    with kubernetes(agent_way, plane, 2) as made:
        one, two = made.cluster.nodes
        agents = [made.start(1), made.start(2)]
        stands(one, "10.244.1.1/24", {"10.244.2.0/24": "198.18.0.2"}, "node1 knows node2")
        stands(two, "10.244.2.1/24", {"10.244.1.0/24": "198.18.0.1"}, "node2 knows node1")

        take(one, "198.18.0.1")
        take(two, "198.18.0.2")
        give(one, "198.18.0.2")
        give(two, "198.18.0.1")
        internal_ip(plane, "node1", "198.18.0.2")
        internal_ip(plane, "node2", "198.18.0.1")

        stands(one, "10.244.1.1/24", {"10.244.2.0/24": "198.18.0.1"}, "node1 is node1, and knows where node2 is")
        stands(two, "10.244.2.1/24", {"10.244.1.0/24": "198.18.0.2"}, "node2 is node2")
        assert not [agent.log() for agent in agents if "subnets from" in agent.log()]
        told = ("198.18.0.2", "198.18.0.1")
        wait_until(
            lambda: (annotated(plane, "node1"), annotated(plane, "node2")) == told, "both say where they are", 20
        )


def test_a_node_with_a_dead_ones_address_has_its_own_range(agent_way: AgentWay, plane: ControlPlane) -> None:
    with kubernetes(agent_way, plane) as made:
        plane.add_node("a-dead-one", ["10.244.66.0/24"], [address_of(1, V4)])
        plane.add_node("node7", ["10.244.7.0/24"], [address_of(7, V4)])

        agent = made.start(1)

        stands(made.cluster.nodes[0], "10.244.1.1/24", {"10.244.7.0/24": "198.18.0.7"}, "it is itself")
        wait_until(lambda: "a-dead-one" in agent.log(), "the dead one is reported", 20)
        plane.delete_node("a-dead-one")
        wait_until(lambda: "members: all is well again" in agent.log(), "and that it is gone", 20)


def test_a_host_name_with_capitals_is_the_kubelets_in_lower_case(agent_way: AgentWay, plane: ControlPlane) -> None:
    with kubernetes(agent_way, plane) as made:
        made.start(1, "Node1")

        stands(made.cluster.nodes[0], "10.244.1.1/24", {}, "it is node1")


def test_in_etcd_too_a_name_decides(agent_way: AgentWay, etcd: Etcd) -> None:
    put_node(etcd, "a-dead-one", address_of(1, V4), "10.244.66.0/24")
    with world(agent_way, etcd.port, {"source": "etcd", "endpoints": [etcd.url]}) as made:
        agent = made.start(1, iface="eth0")

        node = made.cluster.nodes[0]
        wait_until(lambda: served(node), "it has a subnet", 20)
        assert served(node) != "10.244.66.1/24"
        assert etcd.content()[claim_of(served(node))] == "node1"
        wait_until(lambda: "found 198.18.0.1, which is node1's" in agent.log(), "the dead one is reported", 20)


# What is my address


def test_an_address_that_was_lost_is_offered_again(agent_way: AgentWay, plane: ControlPlane) -> None:
    with kubernetes(agent_way, plane) as made:
        node = made.cluster.nodes[0]
        agent = made.start(1)
        wait_until(lambda: annotated(plane) == "198.18.0.1", "it is announced", 20)

        take(node, "198.18.0.1")
        wait_until(lambda: "what is in force stays" in agent.log(), "it has lost its address", 20)
        assert annotated(plane) == "198.18.0.1", "no address is no news"
        give(node, "198.18.0.9")
        internal_ip(plane, "node1", "198.18.0.9")

        wait_until(lambda: (annotated(plane), here(node)) == ("198.18.0.9", "198.18.0.9"), "the new one is", 20)


def test_an_agent_that_starts_before_the_node_has_an_address(agent_way: AgentWay, plane: ControlPlane) -> None:
    with kubernetes(agent_way, plane) as made:
        node = made.cluster.nodes[0]
        take(node, "198.18.0.1")
        notes = {PUBLIC_IP: "198.18.0.5", "flannel.alpha.coreos.com/kube-subnet-manager": "true"}  # of the lease before
        plane.patch_node("node1", {"metadata": {"annotations": notes}})
        agent = made.start(1)
        wait_until(lambda: "expected an address of this host" in agent.log(), "it has none", 20)

        give(node, "198.18.0.1")

        wait_until(lambda: (annotated(plane), here(node)) == ("198.18.0.1", "198.18.0.1"), "it has this one", 20)
        stands(node, "10.244.1.1/24", {}, "and takes part")


def test_the_internal_ip_counts_more_than_the_default_route(agent_way: AgentWay, plane: ControlPlane) -> None:
    """Vagrant's NAT interface has one address on all machines, and the default route."""
    with kubernetes(agent_way, plane, 2) as made:
        for number, node in enumerate(made.cluster.nodes, 1):
            node.run("ip", "link", "add", "nat0", "type", "veth", "peer", "name", "nat1")
            node.run("ip", "link", "set", "nat0", "up")
            give(node, "10.0.2.15", "nat0")
            node.run("ip", "route", "add", "default", "via", "10.0.2.2")
            made.start(number)

        one, two = made.cluster.nodes
        stands(one, "10.244.1.1/24", {"10.244.2.0/24": "198.18.0.2"}, "node1 knows where node2 is")
        stands(two, "10.244.2.1/24", {"10.244.1.0/24": "198.18.0.1"}, "node2 knows where node1 is")
        assert annotated(plane) == here(one) == "198.18.0.1"

        take(one, "198.18.0.1")
        wait_until(lambda: "what is in force stays" in made.agents[0].log(), "node1 has lost it", 20)
        made.agents[0].stop()
        agent = made.start(1)
        wait_until(lambda: "what is in force stays" in agent.log(), "and starts without", 20)
        assert annotated(plane) == here(one) == "198.18.0.1", "the NAT's is no node's"
        give(one, "198.18.0.1")
        wait_until(lambda: "node: all is well again" in agent.log(), "it has it again", 20)
        assert annotated(plane) == here(one) == "198.18.0.1"


def test_of_several_addresses_of_a_link_the_internal_ip_counts(agent_way: AgentWay, plane: ControlPlane) -> None:
    with kubernetes(agent_way, plane) as made:
        node = made.cluster.nodes[0]
        node.run("ip", "route", "add", "default", "via", "198.18.0.254")
        give(node, "198.18.0.101")
        internal_ip(plane, "node1", "203.0.113.1", "198.18.0.101")  # the first is a router's, which translates
        made.start(1)

        wait_until(lambda: (annotated(plane), here(node)) == ("198.18.0.101", "198.18.0.101"), "it has that one", 20)
        internal_ip(plane, "node1", "198.18.0.1")
        wait_until(lambda: (annotated(plane), here(node)) == ("198.18.0.1", "198.18.0.1"), "and follows it", 20)
        plane.patch_node("node1", {"metadata": {"annotations": {"cnikit.dev/public-ip": "198.18.0.101"}}})
        wait_until(lambda: (annotated(plane), here(node)) == ("198.18.0.101", "198.18.0.101"), "people know best", 20)


def test_etcd_is_told_the_address_that_the_configuration_gives(agent_way: AgentWay, etcd: Etcd) -> None:
    told = {"source": "etcd", "endpoints": [etcd.url], "publicIP": "198.18.0.101"}
    with world(agent_way, etcd.port, told) as made:
        node = made.cluster.nodes[0]
        node.run("ip", "route", "add", "default", "via", "198.18.0.254")
        agent = made.start(1)
        wait_until(lambda: "membership.publicIP: expected an address of this host" in agent.log(), "it is not here", 20)
        assert etcd.content() == {}

        give(node, "198.18.0.101")

        wait_until(lambda: here(node) == "198.18.0.101", "it has that address", 20)
        assert json.loads(etcd.content()[f"{PREFIX}/nodes/node1"])["publicIP"] == "198.18.0.101"
        wait_until(lambda: "underlay: all is well again" in agent.log(), "that is reported", 20)


def test_news_comes_at_once_after_the_nodes_address_has_changed(agent_way: AgentWay, etcd: Etcd) -> None:
    membership = {"source": "etcd", "endpoints": [f"http://{ELSEWHERE}:{etcd.port}"]}
    with world(agent_way, etcd.port, membership) as made:
        made.start(1, iface="eth0")
        node = made.cluster.nodes[0]
        wait_until(lambda: here(node) == "198.18.0.1", "it has joined", 20)

        take(node, "198.18.0.1")
        give(node, "198.18.0.11")
        wait_until(lambda: here(node) == "198.18.0.11", "it has moved", 20)
        put_node(etcd, "node7", address_of(7, V4), "10.244.7.0/24")

        wait_until(lambda: ways(node) == {"10.244.7.0/24": "198.18.0.7"}, "it knows node7", AT_ONCE)
        assert json.loads(etcd.content()[f"{PREFIX}/nodes/node1"])["publicIP"] == "198.18.0.11"


def test_so_it_does_from_kubernetes(agent_way: AgentWay, plane: ControlPlane) -> None:
    with kubernetes(agent_way, plane, server=f"https://{ELSEWHERE}:{plane.port}") as made:
        made.start(1, iface="eth0")
        node = made.cluster.nodes[0]
        stands(node, "10.244.1.1/24", {}, "it has joined")

        take(node, "198.18.0.1")
        give(node, "198.18.0.11")
        wait_until(lambda: here(node) == "198.18.0.11", "it has moved", 20)
        plane.add_node("node7", ["10.244.7.0/24"], [address_of(7, V4)])

        wait_until(lambda: ways(node) == {"10.244.7.0/24": "198.18.0.7"}, "it knows node7", AT_ONCE)
        wait_until(lambda: annotated(plane) == "198.18.0.11", "the others know where it is", AT_ONCE)


# What it had


def test_pods_of_a_subnet_that_was_lost_while_away_are_reported(agent_way: AgentWay, etcd: Etcd) -> None:
    way = Way("calls by itself", agent_way.bin_dir)  # the agents are ours
    with world(way, etcd.port, {"source": "etcd", "endpoints": [etcd.url]}) as made:
        node = made.cluster.nodes[0]
        made.start(1, iface="eth0")
        wait_until(lambda: served(node), "it has a subnet", 20)
        had = served(node)
        conf = {**made.cluster.conf("vxlan", iface="eth0"), "membership": {"source": "etcd", "endpoints": [etcd.url]}}
        pod = node.pod()
        add(pod, conf)
        made.agents[0].stop()
        etcd.ctl("del", "--prefix", PREFIX)  # as when its lease has ended
        etcd.ctl("put", claim_of(had), "another")

        for _ in range(2):  # the second one finds the new subnet in its file already
            agent = made.start(1, iface="eth0")
            wait_until(lambda: served(node) not in ("", had), "it has another subnet", 20)
            told = f"pods: {pod.container_id}: expected addresses of this node's subnets"
            wait_until(lambda: told in agent.log(), "its pods are reported", 20)  # noqa: B023 - called in this round only
            assert f"found some of {ipaddress.ip_interface(had).network}" in agent.log()
            agent.stop()


# Whether it can take part


def condition(plane: ControlPlane) -> tuple[str, str, str]:
    """NetworkUnavailable of node1: status, reason and message."""
    conditions = plane.node("node1")["status"].get("conditions", [])
    found: dict[str, str] = next((one for one in conditions if one["type"] == "NetworkUnavailable"), {})
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")


def test_a_node_that_cannot_take_part_is_unavailable(agent_way: AgentWay, plane: ControlPlane) -> None:
    with kubernetes(agent_way, plane) as made:
        before = [{"type": "NetworkUnavailable", "status": "False", "reason": "CnikitIsUp"}]
        plane.patch_node("node1", {"status": {"conditions": before}}, "/status")
        plane.patch_node("node1", {"spec": {"taints": [TAINT]}})
        made.start(1, iface="eth1")

        wait_until(lambda: condition(plane)[:2] == ("True", "CnikitIsNotReady"), "the network is unavailable", 20)
        assert "'eth1'" in condition(plane)[2]
        assert plane.node("node1")["spec"]["taints"] == [TAINT]
        node = made.cluster.nodes[0]
        node.run("ip", "link", "set", "eth0", "name", "eth1")

        wait_until(lambda: condition(plane)[:2] == ("False", "CnikitIsUp"), "it is available", 20)
        wait_until(lambda: not plane.node("node1")["spec"].get("taints"), "the taint is gone", 20)


def test_an_mtu_that_the_underlay_cannot_carry_keeps_pods_away(agent_way: AgentWay, plane: ControlPlane) -> None:
    with kubernetes(agent_way, plane) as made:
        plane.patch_node("node1", {"spec": {"taints": [TAINT]}})
        agent = made.start(1, mtu=9000)
        wait_until(lambda: "mtu: expected at most 1450" in agent.log(), "it is reported", 20)
        wait_until(lambda: annotated(plane), "the others know where it is", 20)
        assert condition(plane)[0] != "False"
        assert plane.node("node1")["spec"]["taints"] == [TAINT]

        made.cluster.nodes[0].run("ip", "link", "set", "eth0", "mtu", "9050")

        wait_until(lambda: condition(plane)[0] == "False", "it is available", 20)
