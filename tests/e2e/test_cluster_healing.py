"""What the agent holds for a network's nodes is there again soon after somebody has deleted or altered it, nothing else
is touched, and what it does not know any more stays as it was.
"""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_world import Agent
from tests.e2e.cluster_world import (
    EVERYONE,
    MEMBERS,
    NETWORK,
    PEERS,
    SOON,
    SUBNETS,
    UNDERLAY,
    ClusterNode,
    member,
)
from tests.e2e.world import Way, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.agent_world import AgentWay

pytest_plugins = ["tests.e2e.cluster_fixtures"]

TWO = "10.244.2.0/24"


def many(count: int) -> list[dict[str, Any]]:
    """Node 1 and so many others, with one subnet each."""
    found = [member(1, subnets=["10.247.1.0/24"])]
    for number in range(2, count + 2):
        high, low = divmod(number, 250)
        subnet = f"10.{244 + (number >> 11)}.{number >> 3 & 255}.{(number & 7) << 5}/27"
        found.append(member(number, publicIP=f"192.0.{2 + high}.{low}", publicIPv6=None, subnets=[subnet]))
    return found


def test_a_vxlan_node_holds_what_leads_to_every_other_node(vxlan: ClusterNode) -> None:
    held = vxlan.held()
    assert set(held["devices"]) == {"cnikit.1", "cnik6.1"}
    assert held["routes"][TWO] == ("cnikit.1", "10.244.2.0", True, True)
    assert held["routes"]["fd00:244:0:2::/64"] == ("cnik6.1", "fd00:244:0:2::", True, True)
    assert len(held["neighbours"]) == len(held["fdb"]) == 2 * PEERS
    assert held["fdb"]["cnikit.1", held["neighbours"]["cnikit.1", "10.244.2.0"]] == "192.0.2.2"
    assert held["fdb"]["cnik6.1", held["neighbours"]["cnik6.1", "fd00:244:0:2::"]] == "2001:db8::2"
    assert "FLANNEL_SUBNET=10.244.1.1/24" in vxlan.node.path(SUBNETS).read_text().splitlines()


def test_a_host_gw_node_has_routes_and_nothing_else(host_gw: ClusterNode) -> None:
    held = host_gw.held()
    assert held["routes"][TWO] == (UNDERLAY, "192.0.2.2", False, True)
    assert held["routes"]["fd00:244:0:2::/64"] == (UNDERLAY, "2001:db8::2", False, True)
    assert held["devices"] == held["neighbours"] == held["fdb"] == {}


DAMAGE = {
    "a route deleted": ["ip route del 10.244.2.0/24"],
    "an IPv6 route deleted": ["ip -6 route del fd00:244:0:2::/64"],
    "several routes deleted": ["ip route del 10.244.2.0/24", "ip route del 10.244.3.0/24", "ip route del 10.244.4.0/24"],
    "a route replaced": ["ip route replace 10.244.2.0/24 dev lo"],
    "an IPv6 route replaced": ["ip -6 route replace fd00:244:0:2::/64 dev lo"],
    "a route replaced by a blackhole": ["ip route replace blackhole 10.244.2.0/24"],
    "an IPv6 route made unreachable": ["ip -6 route replace unreachable fd00:244:0:2::/64"],
    "a route replaced by a blackhole that looks like ours": ["ip route replace blackhole 10.244.2.0/24 proto 205"],
    "a route led elsewhere": ["ip route replace 10.244.2.0/24 via 10.244.3.0 dev cnikit.1 onlink proto 205"],
    "a route given an MTU": ["ip route replace 10.244.2.0/24 via 10.244.2.0 dev cnikit.1 onlink mtu 900 proto 205"],
    "a superfluous route": ["ip route add 10.247.9.0/24 via 10.244.3.0 dev cnikit.1 onlink proto 205"],
    "all nexthops deleted": ["ip nexthop flush proto 205"],
    "a superfluous nexthop in use": ["ip nexthop add id 7 via 10.244.9.0 dev cnikit.1 onlink proto 205",
                                     "ip route replace 10.244.2.0/24 nhid 7 proto 205"],
    "a neighbour deleted": ["ip neigh del 10.244.2.0 dev cnikit.1"],
    "a neighbour altered": ["ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:09 dev cnikit.1 nud permanent"],
    "a neighbour that ages": ["ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:09 dev cnikit.1 nud reachable"],
    "a superfluous neighbour": ["ip neigh add 10.244.9.9 lladdr 02:00:00:00:00:09 dev cnikit.1 nud permanent"],
    "all neighbours flushed": ["ip neigh flush dev cnikit.1 nud permanent"],
    "a superfluous fdb entry": ["bridge fdb add 02:00:00:00:00:09 dev cnikit.1 dst 192.0.2.9 self permanent"],
    "all fdb entries flushed": ["bridge fdb flush dev cnikit.1"],
    "the device deleted": ["ip link del cnikit.1"],
    "the device renamed": ["ip link set cnikit.1 down", "ip link set cnikit.1 name other"],
    "the device put under a bridge": ["ip link add foreign type bridge", "ip link set cnikit.1 master foreign"],
    "its label altered": ["ip link set cnikit.1 alias other"],
    "learning switched on": ["ip link set cnikit.1 type vxlan learning"],
    "IPv6 taken off it": ["sysctl -w net.ipv6.conf.cnik6/1.disable_ipv6=1"],
    "both devices deleted": ["ip link del cnikit.1", "ip link del cnik6.1"],
    "the device down": ["ip link set cnikit.1 down"],
    "the device down and up": ["ip link set cnik6.1 down", "ip link set cnik6.1 up"],
    "its address deleted": ["ip addr flush dev cnikit.1 scope global"],
    "its address altered": ["ip addr flush dev cnikit.1 scope global", "ip addr add 10.9.9.9/32 dev cnikit.1"],
    "its MTU altered": ["ip link set cnikit.1 mtu 1000"],
    "its MAC altered": ["ip link set cnikit.1 address 02:00:00:00:00:01"],
    "the underlay down and up": [f"ip link set {UNDERLAY} down", "RAISE"],
    "the underlay deleted and made again": [f"ip link del {UNDERLAY}",
                                            f"ip link add {UNDERLAY} type veth peer name wire", "ip link set wire up", "RAISE"],
    "the underlay's address gone and back": [f"ip addr flush dev {UNDERLAY} scope global", "RAISE"],
}  # fmt: skip


def damage(world: ClusterNode, steps: list[str]) -> None:
    for step in steps:
        if step == "RAISE":
            world.raise_underlay()
        else:
            world.node.run(*step.split())


@pytest.mark.parametrize("what", DAMAGE)
def test_vxlan_heals(vxlan: ClusterNode, whole: dict[str, Any], what: str) -> None:
    damage(vxlan, DAMAGE[what])

    vxlan.wait_for(whole)


def test_vxlan_heals_an_fdb_entry_that_was_deleted_or_altered(vxlan: ClusterNode, whole: dict[str, Any]) -> None:
    mac = whole["neighbours"]["cnikit.1", "10.244.2.0"]

    vxlan.node.run("bridge", "fdb", "del", mac, "dev", "cnikit.1", "dst", "192.0.2.2", "self")
    vxlan.wait_for(whole)
    vxlan.node.run("bridge", "fdb", "replace", mac, "dev", "cnikit.1", "dst", "192.0.2.77", "self", "permanent")

    vxlan.wait_for(whole)


@pytest.mark.parametrize(
    "steps",
    [
        ["ip route del 10.244.2.0/24"],
        ["ip nexthop flush proto 205"],
        ["ip route replace 10.244.2.0/24 dev lo"],
        [f"ip link set {UNDERLAY} down", "RAISE"],
        [f"ip addr flush dev {UNDERLAY} scope global", "RAISE"],
    ],
)
def test_host_gw_heals(host_gw: ClusterNode, plain: dict[str, Any], steps: list[str]) -> None:
    damage(host_gw, steps)

    host_gw.wait_for(plain)


def test_what_happened_while_the_agent_stood_still_is_healed(vxlan: ClusterNode, whole: dict[str, Any]) -> None:
    assert vxlan.agent is not None

    vxlan.agent.signal(signal.SIGSTOP)
    for steps in (DAMAGE["all nexthops deleted"], DAMAGE["the device deleted"], DAMAGE["its MTU altered"][1:]):
        damage(vxlan, steps)
    vxlan.agent.signal(signal.SIGCONT)

    vxlan.wait_for(whole)


def test_it_looks_anew_when_the_kernel_drops_notices(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE) as world:
        agent = world.start()
        world.wait_for_routes(2 * PEERS)
        whole = world.held()

        agent.signal(signal.SIGSTOP)
        # More notices than fit into the 64 MiB that a socket's buffer may have.
        lines = [
            f"neigh replace 10.99.{number >> 8}.{number & 255} lladdr 02:00:00:00:00:0{turn} dev {UNDERLAY}\n"
            for turn in range(4)
            for number in range(30_000)
        ]
        batch = "".join(lines)
        world.node.run("ip", "-batch", "-", stdin=batch.encode())
        world.node.run("ip", "route", "del", TWO)
        world.node.run("ip", "link", "del", "cnik6.1")
        agent.signal(signal.SIGCONT)

        world.wait_for(whole)
        assert world.metric("cnikit_cluster_losses_total") > 0


def test_an_underlay_that_flaps_ends_whole(vxlan: ClusterNode, whole: dict[str, Any]) -> None:
    for _ in range(5):
        damage(vxlan, DAMAGE["the underlay down and up"])

    vxlan.wait_for(whole)


def test_the_mtu_follows_the_underlay(vxlan: ClusterNode, whole: dict[str, Any]) -> None:
    vxlan.node.run("ip", "link", "set", UNDERLAY, "mtu", "1400")

    wait_until(
        lambda: (vxlan.devices()["cnikit.1"][1], vxlan.devices()["cnik6.1"][1]) == (1330, 1330), "the MTUs", SOON
    )
    wait_until(lambda: "FLANNEL_MTU=1330\n" in vxlan.node.path(SUBNETS).read_text(), "the subnet file", SOON)
    vxlan.node.run("ip", "link", "set", UNDERLAY, "mtu", "1500")
    vxlan.wait_for(whole)


def test_routes_and_devices_of_others_are_left_alone(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE) as world:
        run = world.node.run
        run("ip", "route", "add", TWO, "dev", "lo")
        run("ip", "route", "add", "blackhole", "10.244.3.0/24")
        run("ip", "-6", "route", "add", "fd00:244:0:2::/64", "dev", "lo")
        run("ip", "route", "add", "10.244.4.0/24", "dev", "lo", "metric", "7")
        run("ip", "nexthop", "add", "id", "9", "dev", "lo")
        run("ip", "link", "add", "vxlan9", "type", "vxlan", "id", "9", "dstport", "8472", "local", "192.0.2.1")
        run("bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "vxlan9", "dst", "192.0.2.9")
        before = others(world)

        agent = world.start()

        wait_until(lambda: agent.log().count("of another program, which stays") == 3, "three routes told", SOON)
        world.wait_for_routes(2 * PEERS - 3)
        assert others(world) == before
        run("ip", "route", "del", TWO, "dev", "lo")  # and ours comes when the place is free
        world.wait_for_routes(2 * PEERS - 2)


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_route_of_others_that_comes_beside_ours_stays(vxlan: ClusterNode, whole: dict[str, Any], family: str) -> None:
    run = vxlan.node.run
    subnet, half = (TWO, "10.244.2.128/25") if family == "-4" else ("fd00:244:0:2::/64", "fd00:244:0:2::/65")
    foreign = [
        f"{subnet} dev lo metric 7 proto static", f"{subnet} dev lo metric 2000 proto static",
        f"{half} dev lo proto static", f"{subnet} dev lo table 100 proto static",
    ]  # fmt: skip

    for route in foreign:
        run("ip", family, "route", "add", *route.split())
    damage(vxlan, DAMAGE["all nexthops deleted"])
    vxlan.wait_for(whole)
    run("ip", family, "route", "append", *f"{subnet} dev {UNDERLAY} proto static".split())

    vxlan.wait_for(whole)
    there = vxlan.node.ip(family, "route", "show", "proto", "static", "table", "all")
    assert len(there) == 5
    for route in (*foreign, f"{subnet} dev {UNDERLAY} proto static"):
        run("ip", family, "route", "del", *route.split())
    vxlan.wait_for(whole)


def test_thousands_of_routes_that_others_replace_are_healed(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", many(5000), ipv6Network="") as world:
        world.start()
        world.wait_for_routes(5000)
        whole = world.routes()

        batch = "".join(f"route replace {subnet} dev lo\n" for subnet in whole)
        world.node.run("ip", "-batch", "-", stdin=batch.encode())

        wait_until(lambda: world.routes() == whole, "they are ours again", SOON)


def test_what_cannot_be_made_keeps_nobody_busy(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", many(3000), ipv6Network="") as world:
        batch = "".join(f"route add {one['subnets'][0]} dev lo\n" for one in many(3000)[1:])
        world.node.run("ip", "-batch", "-", stdin=batch.encode())
        agent = world.start()
        wait_until(lambda: world.metric("cnikit_cluster_failing") == 3000, "it has tried all of them", SOON)

        began = world.metric("cnikit_cluster_resyncs_total")
        file = world.node.path(SUBNETS)
        for _ in range(4):  # it looks after the file twice a second, whatever else it does
            file.unlink()
            wait_until(file.exists, "it is there again", SOON)

        assert world.metric("cnikit_cluster_resyncs_total") - began < 10, "each try is later than the one before"
        assert agent.log().count("of another program, which stays") == 20
        world.node.run("ip", "route", "flush", "proto", "boot")
        world.wait_for_routes(3000)


def others(world: ClusterNode) -> list[str]:
    found = world.node.ip("route", "show", "type", "unicast") + world.node.ip("route", "show", "type", "blackhole")
    found += (
        world.node.ip("-6", "route", "show")
        + world.node.ip("nexthop")
        + world.node.bridge("fdb", "show", "dev", "vxlan9")
    )
    # The agent's own device brings connected routes of its own.
    return [
        json.dumps(one) for one in found if one.get("protocol") != "205" and not str(one.get("dev")).startswith("cnik")
    ]


def test_a_device_of_somebody_else_stays_and_is_told(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE) as world:
        world.node.run("ip", "link", "add", "cnikit.1", "type", "bridge")

        agent = world.start()

        wait_until(lambda: "cnikit.1 is there and not this network's" in agent.log(), "it is told", SOON)
        assert world.node.links()["cnikit.1"]["linkinfo"]["info_kind"] == "bridge"
        world.node.run("ip", "link", "del", "cnikit.1")
        world.wait_for_routes(2 * PEERS)


@pytest.mark.parametrize(
    ("name", "local", "ours", "lacking"),
    [
        ("flannel.1", "192.0.2.1", "cnikit.1", "publicIPv6"),
        ("flannel.1", "192.0.2.1", "cnikit.1", ""),
        ("flannel-v6.1", "2001:db8::1", "cnik6.1", ""),
    ],
)
def test_a_device_that_flanneld_left_is_told_and_no_pod_is_attached(
    bin_dir: Path, name: str, local: str, ours: str, lacking: str
) -> None:
    """The subnet file is the agent's, so it is not flanneld that keeps the way to the other nodes; not even where the other
    family has one."""
    members = [member(number, **({lacking: None} if lacking else {})) for number in (1, 2)]
    with ClusterNode(Way("one-shot", bin_dir), "vxlan", members) as world:
        node, agent = world.node, world.start()
        world.wait_for_routes(2)
        conf = json.loads(node.path(NETWORK).read_text())
        conf = {"cniVersion": conf["cniVersion"], "name": conf["name"], **conf["plugins"][0]}
        pod = node.pod()
        attached = {**conf, "prevResult": node.call("vxlan", "ADD", conf, pod).result}
        agent.stop()
        agent.forget()
        node.run("ip", "link", "del", ours)
        node.run(*f"ip link add {name} type vxlan id 1 local {local} dev {UNDERLAY} dstport 8472 nolearning".split())

        agent = world.start()

        wait_until(lambda: f"found {name} with it" in agent.log(), "it is logged", SOON)
        errors = [
            node.call("vxlan", "STATUS", conf).error,
            node.call("vxlan", "ADD", conf, node.pod()).error,
            node.call("vxlan", "CHECK", attached, pod).error,
        ]
        for error in errors:
            assert (error["code"], f"found {name} with it" in error["msg"]) == (50, True), error
            assert error["details"].startswith(f"stop flanneld, then: ip link delete {name}")
        node.run("ip", "link", "delete", name)
        world.wait_for_routes(2)
        node.call("vxlan", "CHECK", attached, pod).silent()


def test_members_come_go_and_return_as_others(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE) as world:
        world.start()
        world.wait_for_routes(2 * PEERS)
        whole = world.held()

        world.tell(EVERYONE[:-1])
        world.wait_for_routes(2 * PEERS - 2)
        assert len(world.neighbours()) == len(world.fdb()) == len(world.nexthops()) == 2 * PEERS - 2

        world.tell([*EVERYONE[:-1], member(4, publicIP="192.0.2.44", vtepMACv6="02:00:00:00:00:44")])
        world.wait_for_routes(2 * PEERS)
        held = world.held()
        assert held["neighbours"]["cnik6.1", "fd00:244:0:4::"] == "02:00:00:00:00:44"
        assert held["fdb"]["cnikit.1", held["neighbours"]["cnikit.1", "10.244.4.0"]] == "192.0.2.44"
        assert len(held["fdb"]) == 2 * PEERS

        world.tell(EVERYONE)
        world.wait_for(whole)


@pytest.mark.parametrize("content", [b"", b'{"nodes": [', b'{"nodes": null}', b"[]"])
def test_a_broken_file_of_members_keeps_what_is_in_force(
    vxlan: ClusterNode, whole: dict[str, Any], content: bytes
) -> None:
    assert vxlan.agent is not None
    told = vxlan.agent.log().count("membership: ")

    vxlan.node.path(MEMBERS).write_bytes(content)

    agent = vxlan.agent
    wait_until(lambda: agent.log().count("membership: ") == told + 1, "it is told", SOON)
    assert vxlan.held() == whole
    vxlan.tell(EVERYONE)
    wait_until(lambda: agent.log().count("membership: ") == told + 2, "it is over", SOON)
    assert vxlan.held() == whole


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "node9", "subnets": ["10.244.2.128/25"]}, "node9: expected a subnet that is nobody else's"),
        ({"name": "node9", "publicIP": "192.0.2.2"}, "node9: expected an address of its own, found 192.0.2.2"),
        ({"name": "node9", "subnets": ["192.0.2.0/28"]}, "node9: expected a subnet inside the network"),
        ({"name": "node9", "publicIP": "10.244.2.7"}, "node9: expected an address outside of every node's subnets"),
        ({"name": "node9", "publicIP": "127.0.0.1"}, "nodes[4].publicIP: expected an address that other nodes can reach"),
        ({"name": "node9", "vtepMAC": "00:00:00:00:00:00"}, "nodes[4].vtepMAC: expected a unicast MAC address"),
        ({"name": "node9", "publicIP": "192.0.2.1"}, "node9: expected an address of its own, found 192.0.2.1"),
        ({"name": "node4"}, "nodes[4].name: expected a name that no other node has, found two of node4"),
    ],
)  # fmt: skip
def test_who_contradicts_the_others_is_left_out_and_told(
    vxlan: ClusterNode, whole: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    agent = vxlan.agent
    assert agent is not None

    vxlan.tell([*EVERYONE, member(9, **changes)])

    wait_until(lambda: told in agent.log(), "it is told", SOON)
    assert vxlan.held() == whole
    vxlan.tell([*EVERYONE, member(9)])  # and comes in when nothing stands against it
    wait_until(lambda: len(vxlan.routes()) == 2 * PEERS + 2, "it is in", SOON)
    vxlan.tell(EVERYONE)
    vxlan.wait_for(whole)


def test_a_node_that_becomes_wrong_stays_as_it_was(vxlan: ClusterNode, whole: dict[str, Any]) -> None:
    agent = vxlan.agent
    assert agent is not None
    taken = member(3, subnets=["10.244.2.0/24"])

    vxlan.tell([EVERYONE[0], taken, EVERYONE[1], member(4, publicIP="0.0.0.0")])

    wait_until(
        lambda: "found 10.244.2.0/24, which overlaps 10.244.2.0/24 of node2; it stays as it was" in agent.log(),
        "it is told",
    )
    wait_until(lambda: "nodes[3].publicIP: expected an address that other nodes can reach" in agent.log(), "it is told")
    assert vxlan.held() == whole
    vxlan.tell(EVERYONE)


def test_a_node_that_is_in_its_own_range_of_pods_has_no_part(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", [member(1, subnets=["10.244.0.0/24"]), EVERYONE[1]]) as world:
        world.node.run("ip", "addr", "add", "10.244.0.9/32", "dev", UNDERLAY)
        world.tell([member(1, subnets=["10.244.0.0/24"], publicIP="10.244.0.9"), EVERYONE[1]])
        agent = world.start()

        told = "found node node1: expected an address outside of every node's subnets, found 10.244.0.9"
        wait_until(lambda: told in agent.log(), "it is told", SOON)
        assert world.routes() == {}
        assert not world.node.path(SUBNETS).exists()


def test_what_it_made_stays_when_the_agent_ends_and_is_taken_over(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE, ipMasq=True) as world:
        agent = world.start()
        world.wait_for_routes(2 * PEERS)
        whole = world.held()
        wait_until(lambda: "masq-pods" in str(world.node.nft()), "masquerade rules", SOON)
        before = world.node.snapshot()

        assert agent.stop() == 0
        assert world.node.snapshot() == before
        agent.forget()
        world.tell(EVERYONE[:-1])  # one leaves while there is no agent
        second = world.start()

        world.wait_for_routes(2 * PEERS - 2)
        world.tell(EVERYONE)
        world.wait_for(whole)
        second.signal(signal.SIGHUP)
        wait_until(lambda: second.log().count("listening at") == 2, "it is reloaded", SOON)
        world.node.run("ip", "route", "del", TWO)
        world.wait_for(whole)
        assert "Traceback" not in second.log()


@pytest.mark.parametrize("kind", ["vxlan", "host-gw"])
def test_what_led_to_nodes_that_left_meanwhile_goes_with_the_first_whole_list(agent_way: AgentWay, kind: str) -> None:
    with ClusterNode(agent_way, kind, EVERYONE) as world:
        agent = world.start()
        world.wait_for_routes(2 * PEERS)
        whole = world.held()
        agent.stop()
        agent.forget()
        members = world.node.path(MEMBERS)
        members.write_text("{")

        agent = world.start()

        wait_until(lambda: "membership: " in agent.log(), "it is told", SOON)
        assert world.held() == whole, "nothing goes as long as nobody knows the members"
        world.tell(EVERYONE[:-1])
        wait_until(
            lambda: len(world.routes()) == 2 * PEERS - 2, "the routes are gone", 20.0
        )  # not with the look at everything once a minute
        held = world.held()
        assert len(held["nexthops"]) == 2 * PEERS - 2
        assert len(held["neighbours"]) == len(held["fdb"]) == (2 * PEERS - 2 if kind == "vxlan" else 0)


def test_masquerade_rules_and_the_subnet_file_are_made_again(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE, ipMasq=True) as world:
        world.start()
        wait_until(lambda: "masq-pods" in str(world.node.nft()), "masquerade rules", SOON)
        rules = world.node.nft()
        assert "range 10.244.0.0/14 cnikit.1 " in str(rules), "for the node's own packets"

        world.node.run("nft", "flush", "ruleset")
        world.node.path(SUBNETS).unlink()

        wait_until(lambda: world.node.nft() == rules, "the rules are back", SOON)
        wait_until(world.node.path(SUBNETS).is_file, "the subnet file is back", SOON)


def test_a_node_without_a_subnet_has_no_subnet_file(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "host-gw", EVERYONE) as world:
        world.start()
        wait_until(world.node.path(SUBNETS).is_file, "the subnet file", SOON)

        world.tell([member(1, subnets=[]), *EVERYONE[1:]])

        wait_until(lambda: not world.node.path(SUBNETS).exists(), "it is gone", SOON)
        assert len(world.routes()) == 2 * PEERS


def test_a_peer_off_the_link_is_told_by_host_gw_and_routed_by_nobody(agent_way: AgentWay) -> None:
    far = member(5, publicIP="198.51.100.5", publicIPv6=None)
    with ClusterNode(agent_way, "host-gw", [*EVERYONE, far]) as world:
        agent = world.start()

        world.wait_for_routes(2 * PEERS)

        wait_until(lambda: "node5: 10.244.5.0/24 is unreachable" in agent.log(), "it is told", SOON)


def test_an_ipv6_underlay_carries_both_families(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", [member(number, publicIP=None) for number in range(1, PEERS + 2)]) as world:
        world.start()
        world.wait_for_routes(2 * PEERS)
        whole = world.held()
        assert set(whole["devices"]) == {"cnik6.1"}
        assert whole["routes"][TWO] == ("cnik6.1", "10.244.2.0", True, True)
        assert set(whole["fdb"].values()) == {"2001:db8::2", "2001:db8::3", "2001:db8::4"}

        damage(world, ["ip link del cnik6.1"])

        world.wait_for(whole)


def test_one_family_does_not_wait_for_the_other(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "host-gw", EVERYONE) as world:
        world.node.run("ip", "-6", "addr", "flush", "dev", UNDERLAY, "scope", "global")
        agent = world.start()

        world.wait_for_routes(PEERS)
        wait_until(lambda: "publicIPv6: expected an address of this host" in agent.log(), "it is told", SOON)
        world.raise_underlay()

        world.wait_for_routes(2 * PEERS)


def test_direct_routing_takes_the_device_only_for_those_beyond_the_link(agent_way: AgentWay) -> None:
    far = member(5, publicIP="198.51.100.5", publicIPv6="2001:db8:9::5")
    with ClusterNode(agent_way, "vxlan", [*EVERYONE, far], directRouting=True) as world:
        world.start()

        world.wait_for_routes(2 * PEERS + 2)
        assert world.routes()[TWO] == (UNDERLAY, "192.0.2.2", False, True)
        assert world.routes()["10.244.5.0/24"] == ("cnikit.1", "10.244.5.0", True, True)
        assert set(world.fdb().values()) == {"198.51.100.5", "2001:db8:9::5"}


def test_two_networks_leave_each_other_alone(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE) as world:
        peers = [member(1, subnets=["10.99.1.0/24"]), member(2, subnets=["10.99.2.0/24"])]
        other = {"name": "plain", "cniVersion": "1.1.0", "type": "host-gw", "network": "10.99.0.0/16", "peers": peers}
        world.node.path("/run/plain.conf").write_text(json.dumps(other))

        world.start("--network", "/run/plain.conf", "--node-name", "node1")

        world.wait_for_routes(2 * PEERS + 1)
        assert world.routes()["10.99.2.0/24"] == (UNDERLAY, "192.0.2.2", False, True)
        world.tell([EVERYONE[0]])
        world.wait_for_routes(1)
        assert set(world.routes()) == {"10.99.2.0/24"}


def test_a_subnet_that_changes_under_pods_is_told(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE) as world:
        agent = world.start()
        world.wait_for_routes(2 * PEERS)

        world.tell([member(1, subnets=["10.244.11.0/24", "fd00:244:0:1::/64"]), *EVERYONE[1:]])

        told = "node node1 has changed: subnets from 10.244.1.0/24 and fd00:244:0:1::/64 to 10.244.11.0/24 and fd00"
        wait_until(lambda: told in agent.log(), "it is logged", SOON)
        wait_until(lambda: world.devices()["cnikit.1"][-1] == ["10.244.11.0"], "the device's address", SOON)
        wait_until(lambda: "FLANNEL_SUBNET=10.244.11.1/24" in world.node.path(SUBNETS).read_text(), "the file", SOON)


def test_the_agent_that_takes_over_goes_on(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE) as world:
        first = world.start()
        world.wait_for_routes(2 * PEERS)
        whole = world.held()

        world.start("--replace")

        assert first.wait() == 0
        first.forget()
        assert world.held() == whole
        damage(world, DAMAGE["the device deleted"])
        world.wait_for(whole)


def test_what_an_earlier_configuration_left_is_removed(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE) as world:
        agent = world.start()
        world.wait_for_routes(2 * PEERS)
        text = world.node.path(NETWORK).read_text()

        world.node.path(NETWORK).write_text(
            text.replace('"vni": 1,', "").replace('"type": "vxlan"', '"type": "vxlan", "vni": 7')
        )
        agent.signal(signal.SIGHUP)
        wait_until(lambda: set(world.devices()) == {"cnikit.7", "cnik6.7"}, "the new devices alone", SOON)
        world.wait_for_routes(2 * PEERS)
        assert {route[0] for route in world.routes().values()} == {"cnikit.7", "cnik6.7"}

        world.node.path(NETWORK).write_text(text.replace('"type": "vxlan"', '"type": "host-gw"'))
        agent.signal(signal.SIGHUP)
        wait_until(lambda: {route[0] for route in world.routes().values()} == {UNDERLAY}, "plain routes", SOON)
        wait_until(lambda: world.devices() == {}, "no device is left", SOON)
        assert len(world.nexthops()) == 2 * PEERS


def test_a_reload_with_a_broken_network_list_is_none(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE) as world:
        agent = world.start()
        world.wait_for_routes(2 * PEERS)
        whole = world.held()
        world.node.path(NETWORK).write_text('{"cniVersion": "1.1.0", "name": "pods", "plugins": [')

        agent.signal(signal.SIGHUP)

        wait_until(lambda: f"not reloaded: {NETWORK}: " in agent.log(), "it is told", SOON)
        world.node.run("ip", "route", "del", TWO)
        world.wait_for(whole)


def test_an_agent_with_a_network_that_cannot_be_used_does_not_start(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE, vni=0) as world:
        agent = Agent(world.node, "--network", NETWORK)
        world.agent = agent

        assert agent.wait() == 1
        assert f"Error: {NETWORK}: vni: expected an integer from 1" in agent.log()
        assert "Traceback" not in agent.log()


def test_a_name_on_the_command_line_counts_more_than_the_configurations(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "host-gw", EVERYONE, nodeName="node3") as world:
        world.start("--node-name", "node1")

        world.wait_for_routes(2 * PEERS)
        assert TWO in world.routes()


def test_without_a_name_it_is_whoever_has_an_address_of_this_host(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", EVERYONE, nodeName="") as world:
        world.start()

        world.wait_for_routes(2 * PEERS)
        assert "FLANNEL_SUBNET=10.244.1.1/24" in world.node.path(SUBNETS).read_text().splitlines()


def test_a_peer_with_our_own_address_is_left_out_and_told(agent_way: AgentWay) -> None:
    twin = member(5, publicIP="203.0.113.9", publicIPv6=None)
    with ClusterNode(agent_way, "vxlan", [*EVERYONE, twin]) as world:
        world.node.run("ip", "addr", "add", "203.0.113.9/32", "dev", UNDERLAY)
        agent = world.start()

        world.wait_for_routes(2 * PEERS)

        wait_until(lambda: "peer node5: expected an address of another host" in agent.log(), "it is told", SOON)


def test_five_thousand_peers_fit_into_sixty_mebibytes(agent_way: AgentWay) -> None:
    with ClusterNode(agent_way, "vxlan", many(5000)) as world:
        world.start()

        world.wait_for_routes(5000)
        # What is given back to the system after the first round is not waited for.
        assert world.metric("cnikit_process_resident_memory_bytes") < 60 << 20
