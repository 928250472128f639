"""A member that cannot be read stays as it was, and one that contradicts another comes not in: on the node's own kernel, from
a file of members, at a change and at the agent's start.
"""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from cni import addr
from plugins.peers import vtep_mac
from tests.e2e.cluster_world import EVERYONE, MEMBERS, PEERS, SOON, SUBNETS, ClusterNode, member
from tests.e2e.world import wait_until

if TYPE_CHECKING:
    from tests.e2e.agent_world import AgentWay

pytest_plugins = ["tests.e2e.cluster_fixtures"]


@pytest.fixture(scope="module")
def whole(vxlan: ClusterNode) -> dict[str, Any]:
    return everything(vxlan)


def everything(world: ClusterNode) -> dict[str, Any]:
    """What the kernel holds, and the subnet file."""
    path = world.node.path(SUBNETS)
    return {**world.held(), "file": path.read_text() if path.exists() else None}


def contains(held: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Whether nothing of the whole is missing or another."""
    tables = all(whole[kind].items() <= held[kind].items() for kind in ("routes", "neighbours", "fdb", "devices"))
    return tables and whole["nexthops"] <= held["nexthops"] and whole["file"] == held["file"]


def without(entry: dict[str, Any], key: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key} | more


def derived(number: int) -> str:
    """The MAC that follows from a member's IPv4 address."""
    packed = addr.pack(member(number)["publicIP"])
    assert packed is not None
    return addr.unpack_mac(vtep_mac(1, packed))


# What may be wrong with the entry of a node, and what is logged.
UNREADABLE: dict[str, tuple[Any, str]] = {
    "a misspelt key": (lambda one: without(one, "subnets", subnet=one["subnets"]), "].subnet: expected one of"),
    "a misspelt address": (lambda one: without(one, "publicIPv6", publicIP6=one["publicIPv6"]), "].publicIP6: "),
    "no subnets": (lambda one: without(one, "subnets"), "].subnets: expected an array"),
    "no array of subnets": (lambda one: {**one, "subnets": one["subnets"][0]}, "].subnets: expected an array"),
    "a misspelt name": (lambda one: without(one, "name", nam=one["name"]), "].nam: expected one of"),
    "no object": (lambda one: one["name"], "]: expected an object"),
}  # fmt: skip


@pytest.mark.parametrize("index", [0, 1], ids=["own", "peer"])
@pytest.mark.parametrize("what", UNREADABLE)
def test_a_member_that_cannot_be_read_stays_as_it_was(
    vxlan: ClusterNode, whole: dict[str, Any], what: str, index: int
) -> None:
    agent = vxlan.agent
    assert agent is not None
    spoil, complaint = UNREADABLE[what]
    told = f"nodes[{index}{complaint}"
    before = agent.log().count(told)

    spoilt = [spoil(one) if at == index else one for at, one in enumerate(EVERYONE)]
    vxlan.tell([*spoilt, member(5)])  # and the others' changes count

    vxlan.wait_for_routes(2 * PEERS + 2)
    wait_until(lambda: agent.log().count(told) > before, f"{told} in the log", SOON)
    assert vxlan.metric("cnikit_cluster_trouble") > 0
    vxlan.node.run("ip", "route", "del", "10.244.2.0/24")
    vxlan.wait_for_routes(2 * PEERS + 2)  # healed as any other's
    assert contains(everything(vxlan), whole)
    vxlan.tell(EVERYONE)
    vxlan.wait_for_routes(2 * PEERS)
    wait_until(lambda: vxlan.metric("cnikit_cluster_trouble") == 0, "all is well again", SOON)
    assert everything(vxlan) == whole


# Members that contradict one that is in, and what is logged.
THIEVES: dict[str, tuple[dict[str, Any], str]] = {
    "the derived MAC of another": ({"vtepMAC": derived(2)}, f"found {derived(2)}, which is node2's"),
    "the derived MAC of this node": ({"vtepMAC": derived(1)}, f"found {derived(1)}, which is node1's"),
    "the name of another": ({"name": "node2"}, "].name: expected a name that no other node has, found two of node2"),
    "the address of another": ({"publicIP": "192.0.2.2"}, "found 192.0.2.2, which is node2's"),
    "a part of another's subnet": ({"subnets": ["10.244.2.128/25"]}, "10.244.2.128/25, which overlaps 10.244.2.0/24 of node2"),
}  # fmt: skip


@pytest.mark.parametrize("what", THIEVES)
def test_who_contradicts_a_member_stays_out_and_takes_nothing_when_it_goes(
    vxlan: ClusterNode, whole: dict[str, Any], what: str
) -> None:
    agent = vxlan.agent
    assert agent is not None
    changes, told = THIEVES[what]
    before = agent.log().count(told)

    vxlan.tell([member(9, **changes), *EVERYONE])  # wherever it stands in the file

    wait_until(lambda: agent.log().count(told) > before, f"{told} in the log", SOON)
    assert everything(vxlan) == whole
    vxlan.tell(EVERYONE)
    wait_until(lambda: vxlan.metric("cnikit_cluster_trouble") == 0, "all is well again", SOON)
    assert everything(vxlan) == whole


def test_what_is_wrong_at_the_start_costs_nobody_what_there_was(agent_way: AgentWay) -> None:
    spoil, _ = UNREADABLE["a misspelt key"]
    thief = member(9, vtepMAC=derived(3), publicIPv6=None, subnets=["10.244.9.0/24"])
    rival = member(8, subnets=EVERYONE[3]["subnets"])
    with ClusterNode(agent_way, "vxlan", EVERYONE) as world:
        agent = world.start()
        world.wait_for_routes(2 * PEERS)
        before = everything(world)

        assert agent.stop() == 0
        agent.forget()
        world.tell([thief, rival, spoil(EVERYONE[0]), spoil(EVERYONE[1]), *EVERYONE[2:], member(5)])
        agent = world.start()

        world.wait_for_routes(2 * PEERS + 2)  # node5 is in
        for told in ("nodes[2].subnet: ", "nodes[3].subnet: ", "which is node3's", "10.244.4.0/24 of node4"):
            wait_until(lambda told=told: told in agent.log(), f"{told} in the log", SOON)  # type: ignore[misc]
        world.tell([thief, rival, spoil(EVERYONE[0]), spoil(EVERYONE[1]), *EVERYONE[2:]])
        world.wait_for_routes(2 * PEERS)
        assert everything(world) == before
        assert lines(world, "repaired: ") == []
        agent.signal(signal.SIGHUP)
        wait_until(lambda: agent.log().count("listening at") == 2, "it is reloaded", SOON)
        world.node.run("ip", "route", "del", "10.244.2.0/24")
        world.wait_for(without(before, "file"))
        assert everything(world) == before


def test_without_a_memory_what_there_is_stays_while_a_member_cannot_be_read(agent_way: AgentWay) -> None:
    spoil, _ = UNREADABLE["a misspelt key"]
    with ClusterNode(agent_way, "vxlan", EVERYONE) as world:
        agent = world.start()
        world.wait_for_routes(2 * PEERS)
        before = everything(world)
        assert agent.stop() == 0
        agent.forget()

        world.node.run("rm", "-r", "/run/cnikit/agent")
        world.node.path(MEMBERS).write_text('{"nodes": [')
        agent = world.start()
        wait_until(lambda: "not valid JSON" in agent.log(), "it is logged", SOON)
        assert everything(world) == before
        world.tell([EVERYONE[0], spoil(EVERYONE[1]), *EVERYONE[2:], member(5)])

        world.wait_for_routes(2 * PEERS + 2)
        assert before["routes"].items() <= world.routes().items()
        world.tell([EVERYONE[0], *EVERYONE[2:], member(5)])  # now it is certain that it is gone
        world.wait_for_routes(2 * PEERS)
        assert "10.244.2.0/24" not in world.routes()


def test_a_file_that_is_away_for_a_moment_or_torn_costs_nothing(vxlan: ClusterNode, whole: dict[str, Any]) -> None:
    agent = vxlan.agent
    assert agent is not None
    file = vxlan.node.path(MEMBERS)
    text = file.read_text()

    file.unlink()
    wait_until(lambda: "expected a file of nodes, found none" in agent.log(), "it is logged", SOON)
    assert everything(vxlan) == whole
    file.write_text(text[: len(text) // 2])
    wait_until(lambda: "not valid JSON" in agent.log(), "it is logged", SOON)
    assert everything(vxlan) == whole

    vxlan.tell(EVERYONE)
    wait_until(lambda: vxlan.metric("cnikit_cluster_trouble") == 0, "all is well again", SOON)
    assert everything(vxlan) == whole


def test_an_empty_list_is_taken_at_its_word(vxlan: ClusterNode, whole: dict[str, Any]) -> None:
    vxlan.tell([])

    vxlan.wait_for_routes(0)
    wait_until(lambda: not vxlan.node.path(SUBNETS).exists(), "this node has no subnet", SOON)
    vxlan.tell(EVERYONE)
    wait_until(lambda: everything(vxlan) == whole, "all is back", SOON)


def lines(world: ClusterNode, begin: str) -> list[str]:
    """What the log says of one kind, in order."""
    assert world.agent is not None
    entries = [json.loads(line) for line in world.agent.log().splitlines() if line.startswith("{")]
    return [one["message"] for one in entries if str(one.get("message")).startswith(begin)]


def test_each_node_that_joins_changes_or_leaves_has_a_line(vxlan: ClusterNode) -> None:
    before = len(lines(vxlan, "node node6"))

    vxlan.tell([*EVERYONE, member(6, publicIPv6=None, subnets=["10.244.6.0/24"])])
    vxlan.wait_for_routes(2 * PEERS + 1)
    vxlan.tell([*EVERYONE, member(6, publicIP="192.0.2.66", publicIPv6=None, subnets=["10.244.6.0/24"])])
    wait_until(lambda: "192.0.2.66" in vxlan.fdb().values(), "it is elsewhere", SOON)
    vxlan.tell(EVERYONE)
    vxlan.wait_for_routes(2 * PEERS)

    assert lines(vxlan, "node node6")[before:] == [
        "node node6 has joined: publicIP 192.0.2.6, subnets 10.244.6.0/24",
        "node node6 has changed: publicIP from 192.0.2.6 to 192.0.2.66",
        "node node6 has left",
    ]


MAC = derived(2)
DAMAGE = {
    "ip route del 10.244.2.0/24": "route to 10.244.2.0/24: it was missing",
    "ip route replace 10.244.2.0/24 dev lo": "route to 10.244.2.0/24: it was another one",
    "ip route replace 10.244.2.0/24 via 10.244.3.0 dev cnikit.1 onlink proto 205":
        "route to 10.244.2.0/24: it was another one",
    "ip route add 10.247.9.0/24 via 10.244.3.0 dev cnikit.1 onlink proto 205":
        "route to 10.247.9.0/24: expected none, found another one",
    "ip neigh del 10.244.2.0 dev cnikit.1": "neighbour 10.244.2.0 on cnikit.1: it was missing",
    "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:09 dev cnikit.1 nud permanent":
        "neighbour 10.244.2.0 on cnikit.1: it was 02:00:00:00:00:09",
    f"bridge fdb del {MAC} dev cnikit.1 dst 192.0.2.2 self": f"forwarding entry of {MAC} on cnikit.1: it was missing",
    "bridge fdb add 02:00:00:00:00:09 dev cnikit.1 dst 192.0.2.9 self permanent":
        "forwarding entry of 02:00:00:00:00:09 on cnikit.1: expected none, found 192.0.2.9",
    "ip link set cnik6.1 down": "route to fd00:244:0:2::/64: it was missing",
    "ip link set cnikit.1 mtu 1000": "cnikit.1: expected MTU 1430, found MTU 1000",
    "ip link del cnik6.1": "cnik6.1: expected the network's VXLAN device, found none",
}  # fmt: skip


@pytest.mark.parametrize("command", DAMAGE)
def test_each_repair_has_a_line(vxlan: ClusterNode, whole: dict[str, Any], command: str) -> None:
    text = f"repaired: {DAMAGE[command]}"
    before = lines(vxlan, "repaired: ").count(text)

    def is_repaired() -> bool:
        vxlan.node.run(*command.split())
        vxlan.wait_for(without(whole, "file"))
        return lines(vxlan, "repaired: ").count(text) > before

    wait_until(is_repaired, text, SOON)  # again while it is one of those that are only counted


def test_of_many_that_join_at_once_ten_have_lines_and_the_rest_is_counted(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "host-gw", [member(number) for number in range(1, 101)]) as world:
        world.start()
        world.wait_for_routes(2 * 99)

        wait_until(lambda: lines(world, "and more within a second: "), "the count", SOON)
        assert len(lines(world, "node ")) == 10
        assert lines(world, "and more within a second: ") == ["and more within a second: 90 members"]
