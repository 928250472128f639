"""A node of both families that loses its underlay address of one: the other family's pods notice nothing, and all is right
soon after its return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.cluster_world import SOON, UNDERLAY, ClusterNode, settled
from tests.e2e.underlay import V4, V6, Cluster, add, address, address_of, ping
from tests.e2e.world import wait_same, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.agent_world import AgentWay
    from tests.e2e.world import Way

pytest_plugins = ["tests.e2e.cluster_fixtures"]

PATIENT = ("-w", "15")  # seconds until the one answer
ADDRESSES = {"-4": "192.0.2.1/22", "-6": "2001:db8::1/64"}
DEVICES = {"-4": "cnikit.1", "-6": "cnik6.1"}
OTHER = {"-4": "-6", "-6": "-4"}
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vxlan": ("vxlan", {}),
    "host-gw": ("host-gw", {}),
    "direct": ("vxlan", {"directRouting": True}),
}


@pytest.fixture(scope="module", params=BACKENDS)
def world(request: pytest.FixtureRequest, agent_way: AgentWay) -> Iterator[ClusterNode]:
    kind, options = BACKENDS[request.param]
    with settled(agent_way, kind, **options) as made:
        yield made


@pytest.fixture(scope="module")
def whole(world: ClusterNode) -> dict[str, Any]:
    """What the node holds before any damage."""
    return world.held()


def part(held: dict[str, Any], family: str) -> dict[str, Any]:
    """What of it belongs to one family."""
    size = (".", ":")[family == "-6"]
    device = DEVICES[family]
    return {
        "routes": {dst: route for dst, route in held["routes"].items() if size in dst},
        "nexthops": {hop for hop in held["nexthops"] if size in hop[1]},
        **{
            kind: {key: found for key, found in held[kind].items() if key[0] == device}
            for kind in ("neighbours", "fdb")
        },
        "devices": {name: found for name, found in held["devices"].items() if name == device},
    }


def give(world: ClusterNode, family: str) -> None:
    world.node.run("ip", "addr", "add", ADDRESSES[family], "dev", UNDERLAY, *(["nodad"] * (family == "-6")))


def lose(world: ClusterNode, family: str) -> None:
    world.node.run("ip", family, "addr", "flush", "dev", UNDERLAY, "scope", "global")


def make_again(world: ClusterNode, family: str) -> None:
    """The underlay under another index, without the family's address."""
    world.node.run("ip", "link", "del", UNDERLAY)
    world.node.run("ip", "link", "add", UNDERLAY, "type", "veth", "peer", "name", "wire")
    for link in ("wire", UNDERLAY):
        world.node.run("ip", "link", "set", link, "up")
    give(world, OTHER[family])


def flap(world: ClusterNode, family: str) -> None:
    """The link down and up, which takes IPv6 addresses away and leaves IPv4's."""
    assert family == "-6"
    for state in ("down", "up"):
        world.node.run("ip", "link", "set", UNDERLAY, state)


@pytest.mark.parametrize(
    ("family", "loss"), [("-4", lose), ("-4", make_again), ("-6", lose), ("-6", make_again), ("-6", flap)]
)
def test_the_loss_of_one_family_costs_the_other_nothing(
    world: ClusterNode, whole: dict[str, Any], family: str, loss: Any
) -> None:
    assert world.agent is not None
    agent, other = world.agent, OTHER[family]
    expected = part(whole, other)
    key = "publicIPv6" if family == "-6" else "publicIP"

    loss(world, family)

    remaining = ADDRESSES[other].partition("/")[0]
    told = f"{key}: expected an address of this host ({remaining}), found"
    wait_until(lambda: told in agent.log(), "the loss is logged", SOON)  # repairs may follow at once
    wait_until(lambda: world.metric("cnikit_cluster_trouble") == 1, "the loss is in the metrics", SOON)
    wait_same(lambda: part(world.held(), other), expected, "the other family is whole", SOON)

    for device in expected["devices"]:
        world.node.run("ip", "link", "del", device)
    wait_same(lambda: part(world.held(), other), expected, "the device of the other family is back", SOON)
    world.node.run("ip", other, "nexthop", "flush", "proto", "205")
    wait_same(lambda: part(world.held(), other), expected, "the routes of the other family are back", SOON)
    for device in part(world.held(), family)["devices"]:
        world.node.run("ip", "link", "del", device)

    give(world, family)

    wait_same(world.held, whole, "all is as it was", SOON)
    wait_until(lambda: world.metric("cnikit_cluster_trouble") == 0, "nothing is wrong any more", SOON)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["-4", "-6"])
def test_pods_are_attached_while_one_family_is_away(way: Way, backend: str, family: str) -> None:
    """With a list of peers, where no agent of the network heals anything."""
    (lost, key), other = {"-4": ((V4, "publicIP"), V6), "-6": ((V6, "publicIPv6"), V4)}[family]
    kind, options = BACKENDS[backend]
    both = (V4, V6)
    with Cluster(way, underlay=both, pods=both) as cluster:
        conf = cluster.conf(kind, nodeName="", **options)
        there, _ = cluster.attach(conf, 2, 1)
        node = cluster.nodes[0]
        node.run("ip", family, "addr", "flush", "dev", "eth0", "scope", "global")
        before = node.ip("route", "show", "proto", "205"), node.ip("-6", "route", "show", "proto", "205")

        node.call(kind, "STATUS", conf).silent()
        pod = node.pod()
        answer = node.call(kind, "ADD", conf, pod)

        assert answer.ok
        assert f"{key}: expected an address of this host" in answer.stderr
        assert (node.ip("route", "show", "proto", "205"), node.ip("-6", "route", "show", "proto", "205")) == before
        assert ping(pod, address(there, other), *PATIENT).ok
        mtu = pod.ip("link", "show", "eth0")[0]["mtu"]
        assert mtu == (1500 if kind == "host-gw" else 1430), "it still fits when the family is back"
        error = node.call(kind, "CHECK", {**conf, "prevResult": answer.result}, pod).error
        assert (error["code"], f"{key}: expected an address of this host" in error["msg"]) == (999, True)

        length = "24" if lost == V4 else "64"
        node.run("ip", "addr", "add", f"{address_of(1, lost)}/{length}", "dev", "eth0")
        add(node.pod(), conf)

        for one in (V4, V6):
            assert ping(pod, address(there, one), *PATIENT).ok
        node.call(kind, "CHECK", {**conf, "prevResult": answer.result}, pod).silent()
