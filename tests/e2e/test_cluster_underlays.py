"""Which of the node's addresses count as its own, which link carries the traffic between nodes, and which way it takes."""

from __future__ import annotations

import json
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.cluster_world import SOON, SUBNETS, UNDERLAY, ClusterNode, member
from tests.e2e.test_pod_network import converse
from tests.e2e.underlay import V4, V6, Cluster, add
from tests.e2e.world import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.agent_world import Agent, AgentWay
    from tests.e2e.world import Node, Way

BOTH = (V4, V6)
KEYS = {V4: "publicIP", V6: "publicIPv6"}
FAMILIES = {V4: "-4", V6: "-6"}


def loopback_of(number: int, family: int) -> str:
    """An address of node `number` that is on no underlay link."""
    return f"192.0.2.{number}" if family == V4 else f"2001:db8:1::{number}"


def host_route(one: str) -> str:
    return f"{one}/{128 if ':' in one else 32}"


@pytest.mark.parametrize("state", ["dadfailed", "tentative"])
def test_an_address_that_does_not_answer_is_nobodys_here(way: Way, state: str) -> None:
    """Node 2's address on node 1: in vain, for node 2 has it, or not for certain yet."""
    with Cluster(way, underlay=(V6,), pods=(V6,)) as cluster:
        node, conf = cluster.nodes[0], cluster.conf("vxlan")
        settings = ["accept_dad=1", "dad_transmits=1"]
        if state == "tentative":  # for ten minutes: there is nobody to answer
            cluster.switch.run("ip", "link", "set", "node2", "down")
            settings[1] = "dad_transmits=600"
        node.run("sysctl", "-qw", *(f"net.ipv6.conf.eth0.{setting}" for setting in settings))
        node.run("ip", "addr", "add", "2001:db8::2/64", "dev", "eth0")
        wait_until(lambda: node.ip("-6", "addr", "show", "dev", "eth0", state), f"it is {state}")

        add(node.pod(), conf)
        only_there = {**conf, "peers": [{**conf["peers"][1], "name": "node1"}]}
        error = node.call("vxlan", "STATUS", only_there).error

        assert [entry["dst"] for entry in node.bridge("fdb", "show", "dev", "cnik6.1") if "dst" in entry] == [
            "2001:db8::2"
        ]
        expected = "expected one with an address of this host (2001:db8::1), found none"
        assert (error["code"], expected in error["msg"]) == (50, True)


@pytest.mark.parametrize("place", ["lo", "spare"])
def test_the_mtu_is_that_of_the_link_that_packets_leave_by(way: Way, place: str) -> None:
    """The nodes' addresses are on a link that leads nowhere, with an MTU that the way between them has not."""
    with Cluster(way, underlay=BOTH, pods=BOTH) as cluster:
        conf = cluster.conf("vxlan")
        for number, node in enumerate(cluster.nodes, 1):
            if place == "spare":
                node.run(
                    "ip", "link", "add", "spare", "mtu", "9000", "type", "veth", "peer", "name", "end", "mtu", "9000"
                )
                node.run("ip", "link", "set", "end", "up")
            node.run("ip", "link", "set", place, "up")
            for family in BOTH:
                own = loopback_of(number, family)
                node.run("ip", "addr", "add", host_route(own), "dev", place, *(["nodad"] * (family == V6)))
                conf["peers"][number - 1][KEYS[family]] = own
                other = 3 - number
                gateway = f"198.18.0.{other}" if family == V4 else f"2001:db8::{other}"
                node.run("ip", "route", "add", host_route(loopback_of(other, family)), "via", gateway)

        one, two = cluster.attach(conf)

        assert one.node.links()["cnikit.1"]["mtu"] == one.ip("link", "show", "eth0")[0]["mtu"] == 1430
        for family in BOTH:
            assert len(converse(one, two, family)) == 100_000
        error = one.node.call("vxlan", "ADD", {**conf, "mtu": 1431}, one.node.pod()).error
        assert "mtu: expected at most 1430, because eth0 has MTU 1500, found 1431" in error["msg"]


@pytest.mark.parametrize("family", BOTH)
def test_direct_routing_asks_the_routing_table(way: Way, family: int) -> None:
    """Node 2 is beyond the link's network, and yet on the link; to node 3 on the link leads a gateway."""
    with Cluster(way, 3, underlay=(family,), pods=(family,)) as cluster:
        conf = cluster.conf("vxlan", directRouting=True)
        node = cluster.nodes[0]
        beyond = loopback_of(2, family)
        conf["peers"][1][KEYS[family]] = beyond
        node.run("ip", "route", "add", host_route(beyond), "dev", "eth0")
        to_third, gateway = conf["peers"][2][KEYS[family]], "198.18.0.254" if family == V4 else "2001:db8::254"
        node.run("ip", "route", "add", host_route(to_third), "via", gateway)

        pod = node.pod()
        result = add(pod, conf)

        device = "cnikit.1" if family == V4 else "cnik6.1"
        assert ways(node, family) == {2: ("eth0", beyond), 3: (device, ways(node, family)[3][1])}
        node.call("vxlan", "CHECK", {**conf, "prevResult": result}, pod).silent()


def ways(node: Node, family: int) -> dict[int, tuple[str, str]]:
    """The link and the gateway that lead to the pods of each other node."""
    found = {}
    for route in node.ip(FAMILIES[family], "route", "show", "proto", "205"):
        number = int(route["dst"].split("/")[0].split(".")[2] if family == V4 else route["dst"].split(":")[3])
        found[number] = (route["dev"], route["gateway"])
    return found


PEERS = 3
EVERYONE = [member(number) for number in range(1, PEERS + 2)]


@pytest.fixture(scope="module")
def direct(agent_way: AgentWay) -> Iterator[ClusterNode]:
    with ClusterNode(agent_way, "vxlan", EVERYONE, directRouting=True) as made:
        made.start()
        made.wait_for_routes(2 * PEERS)
        yield made


@pytest.mark.parametrize(
    ("family", "subnet", "to_peer", "gateway", "device"),
    [
        (V4, "10.244.2.0/24", "192.0.2.2/32", "192.0.2.99", "cnikit.1"),
        (V6, "fd00:244:0:2::/64", "2001:db8::2/128", "2001:db8::99", "cnik6.1"),
    ],
)  # fmt: skip
def test_the_agent_follows_the_way_to_a_node(
    direct: ClusterNode, family: int, subnet: str, to_peer: str, gateway: str, device: str
) -> None:
    before = direct.held()
    assert {route[0] for route in before["routes"].values()} == {UNDERLAY}

    direct.node.run("ip", "route", "add", to_peer, "via", gateway)

    wait_until(lambda: direct.routes()[subnet][0] == device, "the overlay is taken", SOON)
    assert sum(route[0] == UNDERLAY for route in direct.routes().values()) == 2 * PEERS - 1
    assert len(direct.fdb()) == 1
    direct.node.run("ip", "route", "del", to_peer)
    direct.wait_for(before)


def test_the_agents_device_and_file_have_the_mtu_of_the_link_that_packets_leave_by(agent_way: AgentWay) -> None:
    members: list[dict[str, Any]] = [
        member(number, publicIP=loopback_of(number + 100, V4), publicIPv6=loopback_of(number, V6)) for number in (1, 2)
    ]
    with ClusterNode(agent_way, "vxlan", members) as world:
        for family, gateway in ((V4, "192.0.2.2"), (V6, "2001:db8::2")):
            own, other = (one[KEYS[family]] for one in members)
            world.node.run("ip", "addr", "add", host_route(own), "dev", "lo", *(["nodad"] * (family == V6)))
            world.node.run("ip", "route", "add", host_route(other), "via", gateway)

        world.start()

        world.wait_for_routes(2)
        assert {device[1] for device in world.devices().values()} == {1430}
        wait_until(lambda: "FLANNEL_MTU=1430\n" in world.node.path(SUBNETS).read_text(), "the subnet file", SOON)


def test_a_device_is_made_once_its_port_is_free(agent_way: AgentWay) -> None:
    """While a program has the port the agent only asks, and makes nothing."""
    members = [member(1), member(2)]
    with ClusterNode(agent_way, "vxlan", members) as world, world.node.socket(V4) as v4, world.node.socket(V6) as v6:
        v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        v4.bind(("", 8472))
        v6.bind(("", 8472))
        before = last_index(world.node)
        agent = world.start()
        told = "UDP port 8472: expected it free for cnikit.1, found another program with it"
        wait_until(lambda: told in agent.log(), "who has the port is reported", SOON)
        for number in range(3, 6):  # each time the agent looks for its ground again
            world.tell([member(1, subnets=[f"10.244.{number + 100}.0/24"]), *members[1:], member(number)])
            joined = f"node node{number} has joined"
            wait_until(partial(says, agent, joined), joined, SOON)

        assert last_index(world.node) == before + 1, "no link was made meanwhile"
        assert agent.log().count(told) == 1
        assert world.metric("cnikit_cluster_trouble") == 1
        v4.close()
        v6.close()
        wait_until(lambda: set(world.devices()) == {"cnikit.1", "cnik6.1"}, "the devices", SOON)
        world.wait_for_routes(4)
        wait_until(lambda: world.metric("cnikit_cluster_trouble") == 0, "nothing is wrong any more", SOON)


def says(agent: Agent, text: str) -> bool:
    return text in agent.log()


def last_index(node: Node) -> int:
    """The index of a link that is made now: each link that ever was has one of its own."""
    node.run("ip", "link", "add", "probe", "type", "bridge")
    found = int(json.loads(node.run("ip", "-j", "link", "show", "probe"))[0]["ifindex"])
    node.run("ip", "link", "del", "probe")
    return found
