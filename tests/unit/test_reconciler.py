"""How one network of the agent finds out where its node stands, on the fake kernel: what it tells its source, and whom it
leaves out.
"""

from __future__ import annotations

import json
import time
from errno import EBUSY
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from agent.membership import Source
from agent.mirror import Changed
from agent.reconciler import Reconciler
from agent.upkeep import Firewall
from cni import addr
from cni.config import Reader
from cni.errors import INTERNAL, NOT_AVAILABLE, CniError, KernelError
from cni.kernel import ops
from cni.kernel.types import Route
from cni.lock import Lock
from cni.record import Records
from cni.testing.fake_kernel import FakeKernel
from plugins import host_gw, vxlan
from plugins.cluster_conf import ClusterConf
from plugins.peers import Local, Node
from plugins.pod_network import Backend
from plugins.reconcile import Wanted
from plugins.ways import Ways

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.membership import Listener
    from cni.kernel import Namespace
    from plugins.pod_network import Site

V4, V6 = "192.0.2.1/24", "2001:db8::1/64"


class Told(Source):
    """Hears where the node is."""

    stated = ()

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

    def note(self, kind: str, text: Callable[[], str], **_: object) -> None:
        self.lines.append(f"{kind}: {text()}")


class World:
    """A node with one link, and a host-gw network of both families whose source does not know where the node is."""

    def __init__(self, folder: Path, backend: Backend = host_gw.BACKEND) -> None:
        self.host = FakeKernel().own()
        self.host.apply(ops.bridge_add("eth0", None))
        link = self.host.link("eth0")
        assert link is not None
        self.index = link.index
        self.host.apply(ops.link_set(link.index, up=True))
        self._backend = backend
        self.start_again(folder)

    def start_again(self, folder: Path) -> None:
        """Another process in the place of the one before."""
        self.source, self.log = Told(), Log()
        self.wanted = Wanted()
        networks = {"network": "10.244.0.0/16", "ipv6Network": "fd00:244::/48", "iface": "eth0", "nodeName": "n1"}
        conf = ClusterConf(Reader({"type": "host-gw", "name": "pods", **networks}))
        self.network = Reconciler(
            conf, self.source, self._backend, "n1", str(folder), lambda: None, self.log, lists_us=False,  # type: ignore[arg-type]
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

    def fault_now(self) -> str | None:
        self.stand()
        return self.network.fault

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


def test_no_address_is_no_news(world: World) -> None:
    world.give(V4)
    world.stand()
    world.take(V4)
    world.stand()
    assert world.log.lines[-1].startswith("underlay: no underlay")

    world.give(V4)
    world.stand()

    assert len(world.source.told) == 1
    assert world.log.lines[-1] == "underlay: all is well again"


def test_it_says_whether_pods_can_be_attached(world: World) -> None:
    world.give(V4)
    faults = [world.fault_now()]
    world.hear(node("n1", "192.0.2.1"))
    faults.append(world.fault_now())
    world.hear(node("n1", "192.0.2.1", subnet="10.244.1.0/24"))
    faults.append(world.fault_now())
    world.network.conf.mtu = 9000
    text = world.fault_now()

    assert faults == [None, "node n1: expected a subnet for its pods, found none", ""]
    assert "mtu: expected at most 1500" in str(text)


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


def test_pods_are_kept_away_by_a_device_that_cannot_be_made_and_not_by_an_address_that_is_away(tmp_path: Path) -> None:
    def prepare(host: Namespace, site: Site, log: Any) -> Local:
        if 16 in site.underlays:
            raise CniError(NOT_AVAILABLE, "the number is taken")
        return host_gw.prepare(host, site, log)

    kind = host_gw.BACKEND
    world = World(tmp_path, Backend(kind.overhead, kind.entries, prepare, kind.refuse, kind.check, kind.devices))
    world.give(V4)
    world.give(V6)
    world.stand()
    world.hear(node("n1", "192.0.2.1", "2001:db8::1", subnet="10.244.1.0/24"))

    assert world.fault_now() == "the number is taken"
    world.take(V6)
    assert world.fault_now() == ""


def test_a_network_stands_on_the_links_that_lead_to_nodes_without_its_device(tmp_path: Path) -> None:
    """Routes go silently with a link that goes down."""
    led = Route(bytes(4), 0, None, 77, 254, 0, 0, 0, 3, 0, False)

    def prepare(host: Namespace, site: Site, log: Any) -> Local:
        return Local(host_gw.prepare(host, site, log).underlays, direct=Ways(lambda _: led))

    kind = host_gw.BACKEND
    world = World(tmp_path, Backend(kind.overhead, vxlan.entries, prepare, kind.refuse, kind.check, kind.devices))
    world.give(V4)
    world.stand()
    world.hear(node("n1", "192.0.2.1", subnet="10.244.1.0/24"), node("n2", "192.0.2.2", subnet="10.244.2.0/24"))
    world.stand()

    assert world.network.links == {world.index, 77}


def test_what_changes_with_this_node_is_no_repair(tmp_path: Path) -> None:
    made: list[Node] = []

    def prepare(host: Namespace, site: Site, log: Any) -> Local:
        made[:] = [site.own]
        return host_gw.prepare(host, site, log)

    def check(host: Namespace, site: Site) -> Local:
        if made != [site.own]:
            raise CniError(INTERNAL, "the device is another one")
        return host_gw.prepare(host, site, None)

    kind = host_gw.BACKEND
    world = World(tmp_path, Backend(kind.overhead, kind.entries, prepare, kind.refuse, check, kind.devices))
    world.give(V4)
    world.stand()
    for subnet in ("10.244.1.0/24", "10.244.9.0/24"):
        world.hear(node("n1", "192.0.2.1", subnet=subnet))
        world.stand()
    before = list(world.log.lines)
    made.clear()
    world.stand()

    assert [line for line in before if line.startswith("repairs")] == []
    assert world.log.lines[len(before) :] == ["repairs: repaired: the device is another one"]


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


@pytest.mark.parametrize("there", [True, False])
def test_what_nobody_wants_is_taken_away_once_a_member_that_could_not_be_read_is_known_or_gone(
    world: World, *, there: bool
) -> None:
    world.give(V4)
    world.stand()
    own, two = node("n1", "192.0.2.1", subnet="10.244.1.0/24"), node("n2", "192.0.2.2", subnet="10.244.2.0/24")
    world.source.listener.replace([own], ["n2"])
    world.network.hear(world.wanted, Changed())
    world.stand()
    assert not world.network.knows_all

    world.source.listener.change([two] if there else [], [] if there else ["n2"])
    changed = Changed()
    world.network.hear(world.wanted, changed)

    assert (world.network.knows_all, changed.everything) == (True, True)


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


def test_members_that_cannot_be_written_down_are_a_trouble_of_their_own(world: World, tmp_path: Path) -> None:
    (tmp_path / "agent").write_text("no folder")
    world.give(V4)
    world.stand()
    world.hear(node("n1", "192.0.2.1"))
    world.stand()
    file = tmp_path / "agent" / "members" / "pods.json"

    records = Records(str(tmp_path / "run"), "pods", partial(Lock, clock=time.monotonic), world.log.lines.append)
    world.network.keep_up(Firewall("pods", world.host, records))  # type: ignore[arg-type]
    told = f"memory: {file}: Not a directory; written as soon as that is possible"
    assert told in world.log.lines
    (tmp_path / "agent").unlink()
    world.network.close()

    assert world.log.lines[-1] == "memory: all is well again"
    assert json.loads(file.read_text())["nodes"][0]["name"] == "n1"


def test_who_joins_changes_and_leaves_is_logged_a_line_each(world: World) -> None:
    world.give(V4)
    world.stand()
    one, two = node("n1", "192.0.2.1", subnet="10.244.1.0/24"), node("n2", "192.0.2.2", subnet="10.244.2.0/24")

    world.hear(one, two)
    world.hear(one, node("n2", "192.0.2.22", subnet="10.244.2.0/24"))
    world.hear(one)
    world.hear(one)

    assert [line for line in world.log.lines if line.startswith("members: ")] == [
        "members: node n1 has joined: publicIP 192.0.2.1, subnets 10.244.1.0/24",
        "members: node n2 has joined: publicIP 192.0.2.2, subnets 10.244.2.0/24",
        "members: node n2 has changed: publicIP from 192.0.2.2 to 192.0.2.22",
        "members: node n2 has left",
    ]


def test_iptables_that_cannot_be_looked_at_is_told_once_and_keeps_no_pods_away(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settle(*_: object) -> None:
        raise CniError(INTERNAL, "iptables-legacy-save failed with status 4")

    monkeypatch.setattr("agent.forwarding.forward_accept.settle", settle)
    world.give(V4)
    world.stand()
    world.hear(node("n1", "192.0.2.1", subnet="10.244.1.0/24"))
    world.stand()
    records = Records(str(tmp_path / "run"), "pods", partial(Lock, clock=time.monotonic), world.log.lines.append)

    for _ in range(3):
        world.network.keep_up(Firewall("pods", world.host, records))  # type: ignore[arg-type]

    assert world.network.fault == ""
    assert [line for line in world.log.lines if line.startswith(("forwarding", "upkeep"))] == [
        "forwarding: iptables-legacy-save failed with status 4; tried again"
    ]


def records_in(folder: Path, world: World) -> Firewall:
    records = Records(str(folder / "run"), "pods", partial(Lock, clock=time.monotonic), world.log.lines.append)
    return Firewall("pods", world.host, records)  # type: ignore[arg-type]


def test_what_an_earlier_process_knew_counts_until_the_whole_list_is_known(world: World, tmp_path: Path) -> None:
    world.give(V4)
    world.stand()
    own, two = node("n1", "192.0.2.1", subnet="10.244.1.0/24"), node("n2", "192.0.2.2", subnet="10.244.2.0/24")
    world.hear(own, two)
    world.stand()
    world.network.keep_up(records_in(tmp_path, world))
    wanted, file = dict(world.wanted.routes), tmp_path / "subnets" / "pods.env"

    world.start_again(tmp_path)
    file.unlink()
    world.network.recall()
    world.stand()
    world.network.keep_up(records_in(tmp_path, world))

    assert world.wanted.routes == wanted != {}
    assert (world.network.knows_all, world.network.is_sure, world.network.is_done) == (False, True, True)
    assert "FLANNEL_SUBNET=10.244.1.1/24" in file.read_text()
    faults = [world.network.fault]
    world.hear(own)
    faults.append(world.fault_now())
    assert (world.wanted.routes, world.network.knows_all) == ({}, True)
    assert faults == [None, ""], "nobody is told that pods can be attached before the members have said so"


def test_a_node_that_is_not_remembered_waits_for_the_members(world: World, tmp_path: Path) -> None:
    world.give(V4)
    world.stand()
    world.hear(node("n2", "192.0.2.2", subnet="10.244.2.0/24"))
    world.network.close()

    world.start_again(tmp_path)
    world.network.recall()
    world.stand()
    world.network.keep_up(records_in(tmp_path, world))

    assert (world.wanted.routes, world.network.troubles, world.network.is_sure) == ({}, 0, False)


def test_an_earlier_device_that_cannot_be_removed_is_reported_once_and_tried_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.give(V4)
    world.host.apply(
        ops.vxlan_add("old", 9, mac=None, mtu=1400, port=8472, local=bytes([192, 0, 2, 1]), link=world.index),
        ops.link_set("old", alias="cnikit pods"),
    )
    delete, refusals = world.host.delete_link, [KernelError("delete link 7", EBUSY)] * 2

    def delete_link(index: int, kind: str = "") -> None:
        if refusals:
            raise refusals.pop()
        delete(index, kind)

    world.host.delete_link = delete_link  # type: ignore[method-assign]
    world.stand()
    world.hear(node("n1", "192.0.2.1", subnet="10.244.1.0/24"))

    states = []
    for _ in range(3):
        world.stand()
        states.append((world.network.is_done, world.network.troubles, world.host.link("old") is not None))

    assert states == [(False, 1, True), (False, 1, True), (True, 0, False)]
    told = [line for line in world.log.lines if line.startswith("former: ")]
    assert told == [
        "former: old is still there: delete link 7: EBUSY (Device or resource busy); ip link delete old removes it",
        "former: all is well again",
    ]


def test_the_subnet_file_stays_while_the_address_that_tells_who_this_node_is_is_away(
    world: World, tmp_path: Path
) -> None:
    world.network.conf.node_name = ""
    world.give(V4)
    world.stand()
    world.hear(node("one", "192.0.2.1", subnet="10.244.1.0/24"), node("two", "192.0.2.2", subnet="10.244.2.0/24"))
    world.stand()
    records = Records(str(tmp_path / "run"), "pods", partial(Lock, clock=time.monotonic), world.log.lines.append)
    firewall = Firewall("pods", world.host, records)  # type: ignore[arg-type]
    world.network.keep_up(firewall)
    file = tmp_path / "subnets" / "pods.env"
    before = file.read_text()

    world.take(V4)
    world.stand()
    world.network.keep_up(firewall)

    assert file.read_text() == before
    assert world.network.fault != ""
    world.hear(node("two", "192.0.2.2", subnet="10.244.2.0/24"))
    world.network.keep_up(firewall)
    assert not file.exists(), "the members say that this node has left"
