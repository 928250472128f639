"""How one network of the agent finds out where its node stands, on the fake kernel: what it tells its source, and whom it
leaves out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent.mirror import Changed
from agent.reconciler import Reconciler
from cni import addr
from cni.config import Reader
from cni.kernel import ops
from cni.testing.fake_kernel import FakeKernel
from plugins import host_gw
from plugins.cluster_conf import ClusterConf
from plugins.peers import Entries, Node

if TYPE_CHECKING:
    from pathlib import Path

    from agent.membership import Listener

V4, V6 = "192.0.2.1/24", "2001:db8::1/64"


class Source:
    """Hears where the node is."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def start(self, own: Node, listener: Listener) -> None:
        self.listener = listener
        self.told.append(own.described())

    def update(self, own: Node) -> None:
        self.told.append(own.described())

    def close(self) -> None:
        pass


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, text: str, **_: object) -> None:
        self.lines.append(text)

    info = error = warning


class World:
    """A node with one link, and a host-gw network of both families whose source does not know where the node is."""

    def __init__(self, folder: Path) -> None:
        self.host = FakeKernel().own()
        self.host.apply(ops.bridge_add("eth0", None))
        link = self.host.link("eth0")
        assert link is not None
        self.index = link.index
        self.host.apply(ops.link_set(link.index, up=True))
        self.source, self.log = Source(), Log()
        self.wanted = Entries()
        networks = {"network": "10.244.0.0/16", "ipv6Network": "fd00:244::/48", "iface": "eth0", "nodeName": "n1"}
        conf = ClusterConf(Reader({"type": "host-gw", "name": "pods", **networks}))
        self.network = Reconciler(
            conf, self.source, host_gw.BACKEND, "n1", str(folder), lambda: None, self.log, lists_us=False,  # type: ignore[arg-type]
        )  # fmt: skip

    def give(self, cidr: str) -> None:
        found = addr.pack_cidr(cidr)
        assert found is not None
        self.host.apply(ops.addr_add(self.index, *found, nodad=True))

    def take(self, cidr: str) -> None:
        found = addr.pack_cidr(cidr)
        assert found is not None
        self.host.apply(ops.addr_del(self.index, *found))

    def stand(self) -> None:
        self.network.stand(self.host, self.wanted, Changed())  # type: ignore[arg-type]

    def hear(self, *nodes: Node) -> None:
        self.source.listener.replace(list(nodes))
        self.network.hear(self.wanted, Changed())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def node(name: str, *addresses: str, subnet: str = "") -> Node:
    packed = [found for found in map(addr.pack, addresses) if found]
    found = addr.pack_cidr(subnet) if subnet else None
    return Node(name, {len(one): one for one in packed}, (found,) if found else ())


def test_an_address_of_a_family_that_comes_later_is_told_as_well(world: World) -> None:
    world.give(V4)
    world.stand()

    world.give(V6)
    world.stand()
    world.stand()

    assert [(one.get("publicIP"), one.get("publicIPv6")) for one in world.source.told] == [
        ("192.0.2.1", None), ("192.0.2.1", "2001:db8::1"),
    ]  # fmt: skip


def test_an_address_that_becomes_another_is_told(world: World) -> None:
    world.give(V4)
    world.stand()

    world.take(V4)
    world.stand()
    world.give("192.0.2.7/24")
    world.stand()

    assert [one["publicIP"] for one in world.source.told] == ["192.0.2.1", "192.0.2.7"]


def test_addresses_that_come_beside_it_change_nothing(world: World) -> None:
    world.give(V4)
    world.give(V6)
    world.stand()

    world.give("192.0.2.9/24")
    world.give("2001:db8::9/64")
    world.stand()

    assert len(world.source.told) == 1


def test_what_leads_to_nodes_is_superfluous_only_once_a_family_is_known(world: World) -> None:
    world.give(V4)
    world.stand()
    own = node("n1", "192.0.2.1", "2001:db8::1", subnet="10.244.1.0/24")
    world.hear(own, node("n2", "192.0.2.2", "2001:db8::2", subnet="fd00:244:0:2::/64"))
    assert world.network.ranges == []

    world.stand()

    assert [len(packed) for packed, _ in world.network.ranges] == [4]
    assert (world.network.is_sure, world.network.troubles, world.wanted.routes) == (False, 1, {})
    world.give(V6)
    world.stand()
    assert [len(packed) for packed, _ in world.network.ranges] == [4, 16]
    assert (world.network.is_sure, world.network.troubles, len(world.wanted.routes)) == (True, 0, 1)
    world.take(V6)
    world.stand()
    assert (world.network.troubles, len(world.wanted.routes)) == (1, 1), "what is in force stays"


def test_everything_is_compared_once_the_whole_list_is_known(world: World) -> None:
    """Whatever source it is from: etcd and Kubernetes may announce nodes before."""
    world.give(V4)
    world.give(V6)
    world.stand()
    own = node("n1", "192.0.2.1", "2001:db8::1", subnet="10.244.1.0/24")

    def compared() -> bool:
        changed = Changed()
        world.network.hear(world.wanted, changed)
        world.network.stand(world.host, world.wanted, changed)  # type: ignore[arg-type]
        return changed.everything

    world.source.listener.change([own], [])
    assert (compared(), world.network.ranges) == (False, [])
    world.source.listener.replace([own])
    assert (compared(), len(world.network.ranges)) == (True, 2)
    assert not compared()


def test_a_peer_with_an_address_that_comes_to_this_host_is_left_out_until_it_goes(world: World) -> None:
    world.give(V4)
    world.stand()
    world.hear(node("n1", "192.0.2.1", subnet="10.244.1.0/24"), node("n2", "192.0.2.2", subnet="10.244.2.0/24"))
    world.stand()
    assert len(world.wanted.routes) == 1

    world.give("192.0.2.2/24")
    world.stand()

    assert world.wanted.routes == {}
    assert world.log.lines[-1] == "peer n2: expected an address of another host, found one that this one has"
    world.take("192.0.2.2/24")
    world.stand()
    assert len(world.wanted.routes) == 1


def test_what_is_wrong_with_a_peer_is_told_once(world: World) -> None:
    world.give(V4)
    world.stand()
    own, far = node("n1", "192.0.2.1", subnet="10.244.1.0/24"), node("n2", "198.51.100.2", subnet="10.244.2.0/24")
    world.hear(own, far, node("n3", "192.0.2.3", subnet="10.244.3.0/24"))
    world.stand()

    world.give("192.0.2.3/24")  # everything is planned anew
    world.stand()

    assert sum("n2: 10.244.2.0/24 is unreachable" in line for line in world.log.lines) == 1
    assert world.network.troubles == 2
    world.hear(own)
    assert world.network.troubles == 0
