"""An agent that starts while its source of members is away, or the node's address: what the agent before it knew stays in force,
and is restored as if nothing had happened; nothing is taken away before somebody says who is in.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.cluster_world import MEMBERS, SOON, SUBNETS, UNDERLAY, ClusterNode, member
from tests.e2e.etcd_world import put_node
from tests.e2e.relay import Relay
from tests.e2e.world import wait_same, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.e2e.agent_world import AgentWay
    from tests.e2e.etcd_world import Etcd
    from tests.kubernetes.control_plane import ControlPlane

pytest_plugins = ["tests.kubernetes.fixtures", "tests.e2e.etcd_fixtures"]

# IPv4 alone, so that all sources can be told in one way.
V4: dict[str, Any] = {"ipv6Network": "", "ipMasq": True, "iface": UNDERLAY}
PEERS = (2, 3, 4)
DAMAGE = {
    "a route": ["ip route del 10.244.2.0/24"],
    "a neighbour": ["ip neigh del 10.244.3.0 dev cnikit.1"],
    "all fdb entries": ["bridge fdb flush dev cnikit.1"],
    "the device": ["ip link del cnikit.1"],
    "the masquerade rules": ["nft flush ruleset"],
    "the subnet file": [f"rm {SUBNETS}"],
}
UNKNOWN = [
    "ip route add 10.244.9.0/24 via 10.244.9.0 dev cnikit.1 onlink proto 205",
    "ip neigh add 10.244.9.0 lladdr 02:00:00:00:00:09 dev cnikit.1 nud permanent",
    f"ip link add old type vxlan id 9 dstport 8472 local 192.0.2.1 dev {UNDERLAY}",
]


class Source:
    """Where members come from: `options` of the network, `there` while it can be reached, `drop` takes node 4 out of it."""

    def __init__(
        self,
        options: dict[str, Any],
        there: Callable[[ClusterNode], AbstractContextManager[Any]],
        drop: Callable[[], Any],
    ) -> None:
        self.options = {**V4, **options}
        self.there = there
        self.drop = drop


def only_v4(number: int) -> dict[str, Any]:
    return member(number, publicIPv6=None, subnets=[f"10.244.{number}.0/24"])


@pytest.fixture
def file() -> Source:
    members = [only_v4(number) for number in (1, *PEERS)]

    @contextlib.contextmanager
    def there(world: ClusterNode) -> Iterator[None]:
        world.tell(members)
        yield
        world.node.path(MEMBERS).unlink()

    return Source({}, there, members.pop)


@pytest.fixture
def in_etcd(etcd: Etcd) -> Source:
    for number in PEERS:
        put_node(etcd, f"node{number}", f"192.0.2.{number}", f"10.244.{number}.0/24")
    conf = {"source": "etcd", "endpoints": [etcd.url], "subnetMin": "10.244.10.0"}
    return Source(
        {"membership": conf},
        lambda world: Relay(world.node, etcd.port),
        lambda: etcd.ctl("del", "/cnikit/pods/nodes/node4"),
    )


@pytest.fixture
def in_kubernetes(plane: ControlPlane) -> Source:
    for number in (1, *PEERS):
        plane.add_node(f"node{number}", [f"10.244.{number}.0/24"], [f"192.0.2.{number}"])
    conf = {"source": "kubernetes", "kubeconfig": str(plane.kubeconfig("away.conf", plane.admin))}
    return Source(
        {"membership": conf},
        lambda world: Relay(world.node, plane.port),
        lambda: plane.delete_node("node4"),
    )


def everything(world: ClusterNode) -> dict[str, Any]:
    """What the kernel holds, the firewall and the subnet file."""
    path = world.node.path(SUBNETS)
    return {**world.held(), "nft": world.node.nft(), "file": path.read_text() if path.exists() else ""}


@pytest.mark.parametrize("name", ["file", "in_etcd", "in_kubernetes"])
def test_what_is_remembered_is_restored_and_nothing_else_is_taken_away(
    agent_way: AgentWay, request: pytest.FixtureRequest, name: str
) -> None:
    source: Source = request.getfixturevalue(name)
    with ClusterNode(agent_way, "vxlan", [], **source.options) as world:
        run = world.node.run
        with source.there(world):
            agent = world.start("--node-name", "node1")
            world.wait_for_routes(len(PEERS))
            wait_until(lambda: "masq-pods" in str(world.node.nft()), "masquerade rules", SOON)
            wait_until(world.node.path(SUBNETS).exists, "the subnet file", SOON)
            whole = everything(world)
            agent.stop()
            agent.forget()

        agent = world.start("--node-name", "node1")
        wait_until(lambda: "membership: " in agent.log(), "the source is reported", SOON)
        for what, steps in DAMAGE.items():
            for step in steps:
                run(*step.split())
            wait_same(lambda: everything(world), whole, f"{what} restored", SOON)
        # Of a node that nobody remembers, but which whoever comes to be heard of may know.
        for step in UNKNOWN:
            run(*step.split())
        run("ip", "link", "set", "old", "alias", "cnikit pods")
        run("ip", "route", "del", "10.244.2.0/24")
        world.wait_for_routes(len(PEERS) + 1)
        assert ("cnikit.1", "10.244.9.0") in world.neighbours()
        assert "old" in world.node.links(), "a device of an earlier configuration, which members may be reached by"

        source.drop()
        with source.there(world):
            world.wait_for_routes(len(PEERS) - 1)
            wait_until(lambda: len(world.neighbours()) == len(world.fdb()) == len(PEERS) - 1, "no more", SOON)
            wait_until(lambda: "old" not in world.node.links(), "the earlier device is gone", SOON)
            assert everything(world)["file"] == whole["file"]
        agent.looks_well()


def test_without_a_name_the_subnet_stays_while_the_address_that_tells_it_is_away(agent_way: AgentWay) -> None:
    members = [only_v4(number) for number in (1, *PEERS)]
    with ClusterNode(agent_way, "vxlan", members, **{**V4, "nodeName": ""}) as world:
        agent = world.start()
        world.wait_for_routes(len(PEERS))
        file = world.node.path(SUBNETS)
        wait_until(file.exists, "the subnet file", SOON)
        whole = everything(world)
        agent.stop()
        agent.forget()
        world.node.run("ip", "addr", "flush", "dev", UNDERLAY, "scope", "global")

        agent = world.start()
        told = "expected an address of this host (none), found 192.0.2.1"
        wait_until(lambda: told in agent.log(), "what is away is reported", SOON)
        rounds = agent.log().count("has joined")
        world.tell([*members, only_v4(5)])  # several rounds later
        wait_until(lambda: agent.log().count("has joined") > rounds, "a member has joined", SOON)
        assert file.read_text() == whole["file"]

        world.tell(members)
        world.raise_underlay()
        wait_same(lambda: everything(world), whole, "all is as it was", SOON)
        world.node.run("ip", "addr", "flush", "dev", UNDERLAY, "scope", "global")
        agent.stop()
        agent.forget()
        world.tell(members[1:])
        world.start()
        wait_until(lambda: not file.exists(), "the members say that this node has left", SOON)
