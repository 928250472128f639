"""Whole agents, each in a node of its own, with members from a real etcd and a real API server: members that contradict one
another, that went while the agent was stopped, and machines that share a name."""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING, Any

import pytest

from cni import addr
from plugins.peers import vtep_mac
from tests.e2e.etcd_world import PREFIX
from tests.e2e.membership_world import PUBLIC_IP, SUBNETS, kubernetes, served, stands, ways, world
from tests.e2e.underlay import V4, add, address_of, subnet_of
from tests.e2e.world import Way, wait_until

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tests.e2e.agent_world import Agent, AgentWay
    from tests.e2e.etcd_world import Etcd
    from tests.e2e.membership_world import World
    from tests.e2e.world import Node
    from tests.kubernetes.control_plane import ControlPlane

pytest_plugins = ["tests.kubernetes.fixtures", "tests.e2e.etcd_fixtures"]

# Far less than the minute after which everything is looked at anyway, and far more than it takes.
SOON = 20.0


class InEtcd:
    """Members that other nodes' agents have written."""

    def __init__(self, server: Etcd) -> None:
        self._server = server

    def world(self, way: Way, **options: Any) -> AbstractContextManager[World]:
        self._server.ctl("put", f"{PREFIX}/subnets/10.244.2.0-24", "nobody")  # else node1 would have any
        membership = {"source": "etcd", "endpoints": [self._server.url], "subnetMin": "10.244.1.0"}
        return world(way, self._server.port, {**membership, "subnetMax": "10.244.2.0"}, **options)

    def put(self, name: str, number: int, mac: str = "", subnet: str = "") -> None:
        value = {"name": name, "publicIP": address_of(number, V4), "subnets": [subnet or subnet_of(number, V4)]}
        self._server.ctl("put", f"{PREFIX}/nodes/{name}", json.dumps({**value, **({"vtepMAC": mac} if mac else {})}))

    def delete(self, name: str) -> None:
        self._server.ctl("del", f"{PREFIX}/nodes/{name}")

    def put_stale(self, name: str, number: int, subnet: str) -> None:
        """One that yields to the next one of its address."""
        self.put(name, number, subnet=subnet)

    def give_another(self, name: str, number: int, subnet: str) -> None:  # noqa: ARG002 - it says by itself where it is
        """Have a node's claim end while it is away, and another one have the subnet."""
        key = f"{PREFIX}/subnets/"
        for command in (
            f"del {PREFIX}/nodes/{name}",
            f"put {key}{subnet.replace('/', '-')} b",
            f"del {key}10.244.2.0-24",
        ):
            self._server.ctl(*command.split())


class InKubernetes:
    """Members that kubelets have registered."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    def world(self, way: Way, **options: Any) -> AbstractContextManager[World]:
        return kubernetes(way, self._plane, **options)

    def put(self, name: str, number: int, mac: str = "", subnet: str = "") -> None:
        notes = {"cnikit.dev/vtep-mac": mac} if mac else {}
        self._plane.add_node(name, [subnet or subnet_of(number, V4)], [address_of(number, V4)], notes)

    def delete(self, name: str) -> None:
        self._plane.delete_node(name)

    def put_stale(self, name: str, number: int, subnet: str) -> None:
        self.put(name, number, subnet=subnet)
        silent = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
        self._plane.patch_node(name, {"status": silent}, "/status")

    def give_another(self, name: str, number: int, subnet: str) -> None:  # noqa: ARG002 - nobody has it
        """Have a node registered anew, with another range."""
        self.delete(name)
        self.put(name, number, subnet="10.244.2.0/24")


@pytest.fixture(params=["etcd", "plane"], ids=["etcd", "kubernetes"])
def source(request: pytest.FixtureRequest) -> InEtcd | InKubernetes:
    server = request.getfixturevalue(request.param)
    return InEtcd(server) if request.param == "etcd" else InKubernetes(server)


def derived(number: int) -> str:
    """The MAC that follows from a node's address."""
    packed = addr.pack(address_of(number, V4))
    assert packed is not None
    return addr.unpack_mac(vtep_mac(1, packed))


def receivers(node: Node) -> dict[str, str]:
    """The address behind each MAC."""
    return {entry["mac"]: entry["dst"] for entry in node.bridge("fdb", "show") if "dst" in entry}


def warnings(agent: Agent, part: str) -> list[str]:
    """What was reported with a text in it, in order."""
    entries = [json.loads(line) for line in agent.log().splitlines() if line.startswith("{")]
    return [one["message"] for one in entries if one["level"] == "warning" and part in one["message"]]


# Members that contradict one another


@pytest.mark.parametrize("number", [1, 7], ids=["of this node", "of another"])
def test_who_has_the_derived_mac_of_a_node_stays_out_and_takes_nothing_when_it_goes(
    agent_way: AgentWay, source: InEtcd | InKubernetes, number: int
) -> None:
    with source.world(agent_way) as made:
        source.put("node7", 7)
        agent, node = made.start(1, iface="eth0"), made.cluster.nodes[0]
        stands(node, "10.244.1.1/24", {"10.244.7.0/24": "198.18.0.7"}, "it knows node7")

        source.put("a-thief", 9, derived(number))

        told = f"node a-thief: expected a VTEP MAC of its own, found {derived(number)}, which is node{number}'s"
        wait_until(lambda: told in agent.log(), told, SOON)
        source.put("node8", 8)  # after which the kernel has whatever follows from the thief
        others = {"10.244.7.0/24": "198.18.0.7", "10.244.8.0/24": "198.18.0.8"}
        stands(node, "10.244.1.1/24", others, "node8 is in, and the thief is not")
        assert receivers(node) == {derived(7): "198.18.0.7", derived(8): "198.18.0.8"}

        source.delete("a-thief")

        wait_until(lambda: "members: all is well again" in agent.log(), "that it is gone", SOON)
        source.delete("node8")
        stands(node, "10.244.1.1/24", {"10.244.7.0/24": "198.18.0.7"}, "node8 has left, node7 has not")
        assert receivers(node) == {derived(7): "198.18.0.7"}


def test_the_thief_that_was_there_first_stays_out_too(agent_way: AgentWay, source: InEtcd | InKubernetes) -> None:
    with source.world(agent_way) as made:
        source.put("a-thief", 9, derived(7))
        source.put("node7", 7)

        agent, node = made.start(1, iface="eth0"), made.cluster.nodes[0]

        stands(node, "10.244.1.1/24", {"10.244.7.0/24": "198.18.0.7"}, "node7 is in")
        assert receivers(node) == {derived(7): "198.18.0.7"}
        assert "node a-thief: expected a VTEP MAC of its own" in agent.log()


def test_of_two_with_one_address_the_one_that_is_out_of_date_yields(
    agent_way: AgentWay, source: InEtcd | InKubernetes
) -> None:
    with source.world(agent_way) as made:
        source.put_stale("a-former", 7, "10.244.66.0/24")
        agent, node = made.start(1, iface="eth0"), made.cluster.nodes[0]
        stands(node, "10.244.1.1/24", {"10.244.66.0/24": "198.18.0.7"}, "nobody else is there")

        source.put("node7", 7)

        stands(node, "10.244.1.1/24", {"10.244.7.0/24": "198.18.0.7"}, "node7 is in its place")
        told = (
            "node a-former: expected an address of its own, found 198.18.0.7, which is node7's; a-former yields to it"
        )
        assert warnings(agent, "a-former") == [f"members: {told}: delete its entry, or give it an address of its own"]
        agent.stop()
        agent = made.start(1, iface="eth0")
        wait_until(lambda: told in agent.log(), "after a restart too", SOON)
        stands(node, "10.244.1.1/24", {"10.244.7.0/24": "198.18.0.7"}, "it is in")
        source.delete("node7")
        stands(node, "10.244.1.1/24", {"10.244.66.0/24": "198.18.0.7"}, "and the former one again")


def test_a_range_outside_the_network_is_reported_with_the_remedy(agent_way: AgentWay, plane: ControlPlane) -> None:
    with kubernetes(agent_way, plane) as made:
        plane.delete_node("node1")
        plane.add_node("node1", ["10.99.1.0/24"], ["198.18.0.1"])
        agent = made.start(1)

        told = "node1: expected a subnet inside the network (10.244.0.0/16), found 10.99.1.0/24"
        wait_until(lambda: told in agent.log(), told, SOON)
        assert (
            "make the network the range that nodes get their subnets from (Kubernetes: --cluster-cidr)" in agent.log()
        )
        assert served(made.cluster.nodes[0]) == ""


# Members that went while the agent was stopped


def test_routes_to_nodes_that_went_while_the_agent_was_stopped_go_with_the_first_list(
    agent_way: AgentWay, source: InEtcd | InKubernetes
) -> None:
    with source.world(agent_way, kind="host-gw") as made:
        node = made.cluster.nodes[0]
        for number in (7, 8):
            source.put(f"node{number}", number)
        agent = made.start(1, iface="eth0")
        both = {"10.244.7.0/24": "198.18.0.7", "10.244.8.0/24": "198.18.0.8"}
        wait_until(lambda: routes(node) == both, "routes to both", SOON)

        agent.stop()
        source.delete("node8")
        assert routes(node) == both, "nobody is there to take it away"
        agent = made.start(1, iface="eth0")

        wait_until(lambda: routes(node) == {"10.244.7.0/24": "198.18.0.7"}, "the route to node8 is gone", SOON)
        assert "node node8 has left" in agent.log()


def routes(node: Node) -> dict[str, str]:
    """Gateways of our routes, by subnet."""
    return {route["dst"]: route["gateway"] for route in node.ip("-4", "route", "show", "proto", "205")}


# Pods of a subnet that is lost


def test_a_subnet_that_is_lost_is_reported_once(agent_way: AgentWay, source: InEtcd | InKubernetes) -> None:
    way = Way("calls by itself", agent_way.bin_dir)  # the agents are ours
    with source.world(way) as made:
        agent, node = made.start(1, iface="eth0"), made.cluster.nodes[0]
        stands(node, "10.244.1.1/24", {}, "it has a subnet")
        pod = node.pod()
        add(pod, made.conf(iface="eth0"))

        agent.stop()
        source.give_another("node1", 1, subnet_of(1, V4))
        agent = made.start(1, iface="eth0")
        told = f"pods: {pod.container_id}: expected addresses of this node's subnets"
        wait_until(lambda: warnings(agent, told), "its pod is reported", SOON)

        assert len(warnings(agent, "10.244.1.0/24")) == 1, warnings(agent, "10.244.1.0/24")


# Machines of one name


def test_a_machine_that_etcd_refuses_for_its_name_has_no_subnet(agent_way: AgentWay, etcd: Etcd) -> None:
    """It comes back with another address, as a machine of its name is there."""
    way = Way("calls by itself", agent_way.bin_dir)  # the agents are ours
    with world(way, etcd.port, {"source": "etcd", "endpoints": [etcd.url]}, 2) as made:
        one, two = made.cluster.nodes
        made.start(2, "node1", iface="eth0")
        wait_until(lambda: served(two), "it has a subnet", SOON)
        had = served(two)
        pod = two.pod()
        add(pod, made.conf(iface="eth0"))
        made.agents[0].stop()
        etcd.ctl("del", "--prefix", PREFIX)  # as when its lease has ended
        etcd.ctl("put", f"{PREFIX}/subnets/{had.replace('.1/', '.0-')}", "node3")
        etcd.ctl("put", f"{PREFIX}/nodes/node3", json.dumps({
            "name": "node3", "publicIP": "198.18.0.3", "subnets": [str(ipaddress.ip_interface(had).network)],
        }))  # fmt: skip
        first = made.start(1, "node1", iface="eth0")
        wait_until(lambda: served(one), "the other machine has one", SOON)
        assert served(one) != had

        second = made.start(2, "node1", iface="eth0")

        wait_until(lambda: not two.path(SUBNETS).exists(), "the subnet file is gone", SOON)
        status = two.call("vxlan", "STATUS", made.conf(iface="eth0")).error
        assert status["code"] == 50, status
        wait_until(lambda: "198.18.0.2, also calls itself node1" in first.log(), "the first one reports it", SOON)
        told = "another node, with 198.18.0.1, also calls itself node1; give each a nodeName of its own; until then"
        wait_until(lambda: told in second.log(), "the second one reports it", SOON)
        wait_until(lambda: f"pods: {pod.container_id}: expected" in second.log(), "its pods are reported", SOON)
        wait_until(lambda: list(ways(two)) == [str(ipaddress.ip_interface(had).network)], "it knows node3", SOON)
        first.stop()
        wait_until(lambda: served(two), "it takes part once the name is free", 2 * SOON)
        two.call("vxlan", "STATUS", made.conf(iface="eth0")).silent()


def test_two_machines_under_one_name_of_kubernetes_are_reported_on_both(
    agent_way: AgentWay, plane: ControlPlane
) -> None:
    with kubernetes(agent_way, plane, 2) as made:
        plane.delete_node("node2")
        first = made.start(1, iface="eth0")
        wait_until(lambda: PUBLIC_IP in plane.node("node1")["metadata"].get("annotations", {}), "it is there", SOON)
        began = plane.version()

        second = made.start(2, "node1", iface="eth0")

        told = "node1: expected one machine of that name, found another one with 198.18.0."
        wait_until(lambda: f"{told}2; give each a name of its own" in first.log(), "the first one reports it", SOON)
        wait_until(lambda: f"{told}1; give each a name of its own" in second.log(), "the second one reports it", SOON)
        states = [node["metadata"]["annotations"][PUBLIC_IP] for node in plane.states("node1", began)]
        assert set(states) == {"198.18.0.1"}, "they do not write in turns"
        first.stop()
        wait_until(
            lambda: plane.node("node1")["metadata"]["annotations"][PUBLIC_IP] == "198.18.0.2",
            "the second one has the object once the first is gone", 2 * SOON,
        )  # fmt: skip
