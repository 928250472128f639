"""What `watch.py` tells of a namespace while ip and bridge change it."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, TypeVar

import pytest

from cni import addr
from cni.kernel import ops
from cni.kernel.background import thread_background
from cni.kernel.linux import Kernel, Namespace
from cni.kernel.watch import (
    AddressEvent,
    FdbEvent,
    LinkEvent,
    LostError,
    NeighbourEvent,
    NexthopEvent,
    RouteEvent,
    Watch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni.kernel.watch import Event
    from tests.netns.conftest import Netns

E = TypeVar("E", LinkEvent, AddressEvent, RouteEvent, NexthopEvent, NeighbourEvent, FdbEvent)
DEADLINE_SECONDS = 10


def packed(text: str) -> bytes:
    value = addr.pack(text)
    assert value is not None
    return value


@pytest.fixture
def host(host_ns: Netns) -> Iterator[Namespace]:
    """A namespace with a link of known address and a VXLAN device on it, both up, which do nothing by themselves."""
    for command in (
        "link add under0 type veth peer name under1",
        "link set under0 addrgenmode none up",
        "link set under1 addrgenmode none up",
        "address add 192.0.2.1/24 dev under0",
        "link add vx type vxlan id 1 dstport 8472 local 192.0.2.1 nolearning",
        "link set vx addrgenmode none up",
    ):
        host_ns.run("ip", *command.split())
    with Kernel(time.monotonic, thread_background).open(host_ns.path) as namespace:
        yield namespace


@pytest.fixture
def told(host: Namespace) -> Iterator[Told]:
    with Watch(host) as watch:
        yield Told(watch)


class Told:
    """What a watch tells, event by event."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._waiting: deque[Event] = deque()

    def until(self, kind: type[E], wanted: Callable[[E], object] = lambda _: True) -> tuple[list[Event], E]:
        """The next event of a kind that is wanted, with all before it."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        passed: list[Event] = []
        while True:
            while not self._waiting:
                assert time.monotonic() < deadline, f"not told, but {passed}"
                select.select([self.watch], (), (), max(0.0, deadline - time.monotonic()))
                self._waiting += self.watch.read()
            event = self._waiting.popleft()
            if isinstance(event, kind) and wanted(event):
                return passed, event
            passed.append(event)

    def next(self, kind: type[E], wanted: Callable[[E], object] = lambda _: True) -> E:
        """The next event of a kind that is wanted."""
        return self.until(kind, wanted)[1]


def index_of(namespace: Namespace, name: str) -> int:
    link = namespace.link(name)
    assert link is not None
    return link.index


def test_nothing_to_read_is_no_event_and_no_wait(told: Told, host_ns: Netns) -> None:
    host_ns.run("ip", "link", "add", "last", "type", "bridge")
    told.next(LinkEvent, lambda e: e.value.name == "last")

    assert told.watch.read() == []


def test_link_comes_changes_and_goes(told: Told, host_ns: Netns) -> None:
    host_ns.run("ip", "link", "add", "new", "mtu", "1400", "type", "bridge")
    event = told.next(LinkEvent, lambda e: e.value.name == "new")
    assert (event.gone, event.value.mtu, event.value.kind) == (False, 1400, "bridge")

    host_ns.run("ip", "link", "set", "new", "mtu", "1300", "up")
    told.next(LinkEvent, lambda e: e.value.mtu == 1300 and e.value.up)

    host_ns.run("ip", "link", "del", "new")
    gone = told.next(LinkEvent, lambda e: e.gone)
    assert gone.value.index == event.value.index


def test_link_that_leaves_its_bridge_is_not_gone(told: Told, host_ns: Netns) -> None:
    for command in (
        "link add br0 type bridge",
        "link set under0 master br0",
        "link set under0 nomaster",
        "link del br0",
    ):
        host_ns.run("ip", *command.split())

    before, _ = told.until(LinkEvent, lambda e: e.gone and e.value.name == "br0")

    assert [e.value.name for e in before if isinstance(e, LinkEvent) and e.gone] == []


@pytest.mark.parametrize("address", ["198.51.100.7/24", "2001:db8::7/64"])
def test_address_comes_and_goes(told: Told, host: Namespace, host_ns: Netns, address: str) -> None:
    ip, _, prefix = address.partition("/")
    for verb, gone in (("add", False), ("del", True)):
        host_ns.run("ip", "address", verb, address, "dev", "under0")

        event = told.next(AddressEvent, lambda e: e.value.packed == packed(ip) and e.gone is gone)  # noqa: B023 - called at once

        assert (event.index, event.value.prefix) == (index_of(host, "under0"), int(prefix))


@pytest.mark.parametrize(
    ("gateway", "prefix"), [("10.244.2.0", 24), ("fd00:244:2::", 64)], ids=["ipv4", "ipv6"]
)  # fmt: skip
def test_nexthop_and_its_route(told: Told, host: Namespace, host_ns: Netns, gateway: str, prefix: int) -> None:
    device = index_of(host, "vx")
    host_ns.run(*f"ip nexthop add id 9 via {gateway} dev vx onlink proto 205".split())
    host_ns.run(*f"ip route add {gateway}/{prefix} nhid 9 proto 205".split())

    nexthop = told.next(NexthopEvent).value
    route = told.next(RouteEvent, lambda e: e.value.protocol == 205).value

    assert (nexthop.id, nexthop.oif, nexthop.gateway) == (9, device, packed(gateway))
    assert (nexthop.onlink, nexthop.protocol) == (True, 205)
    assert (route.dst, route.prefix, route.nexthop) == (packed(gateway), prefix, 9)
    assert (route.oif, route.gateway) == (device, packed(gateway))

    host_ns.run("ip", "route", "del", f"{gateway}/{prefix}")
    told.next(RouteEvent, lambda e: e.gone and e.value.nexthop == 9)
    host_ns.run("ip", "nexthop", "del", "id", "9")
    told.next(NexthopEvent, lambda e: e.gone and e.value.id == 9)


def test_route_that_replaces_another_is_told(told: Told, host_ns: Netns) -> None:
    for command in ("add 10.9.0.0/16 via 192.0.2.2 proto 205", "replace 10.9.0.0/16 via 192.0.2.3 proto 4"):
        host_ns.run("ip", "route", *command.split())

    told.next(RouteEvent, lambda e: e.value.protocol == 205)
    event = told.next(RouteEvent, lambda e: e.value.protocol == 4)

    assert (event.gone, event.value.gateway) == (False, packed("192.0.2.3"))


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit", "throw"])
def test_a_route_to_nowhere_that_replaces_another_is_told(told: Told, host_ns: Netns, kind: str) -> None:
    host_ns.run(*["ip", "route", "add", "10.9.0.0/16", "via", "192.0.2.2", "proto", "205"])
    host_ns.run("ip", "route", "replace", kind, "10.9.0.0/16")

    told.next(RouteEvent, lambda e: e.value.protocol == 205)
    event = told.next(RouteEvent, lambda e: e.value.protocol != 205)

    assert (event.gone, event.value.dst, event.value.oif) == (False, packed("10.9.0.0"), 0)


@pytest.mark.parametrize("gateway", ["10.244.2.0", "fd00:244:2::"], ids=["ipv4", "ipv6"])
def test_neighbour_comes_changes_and_goes(told: Told, host: Namespace, host_ns: Netns, gateway: str) -> None:
    def is_it(e: NeighbourEvent) -> bool:
        return e.value.packed == packed(gateway)

    for mac in ("02:00:00:00:00:02", "02:00:00:00:00:03"):
        host_ns.run(*f"ip neigh replace {gateway} lladdr {mac} dev vx nud permanent".split())
        event = told.next(NeighbourEvent, is_it)
        assert (event.gone, event.value.mac.hex(":"), event.value.state) == (False, mac, 0x80)
        assert event.value.index == index_of(host, "vx")

    host_ns.run("ip", "neigh", "del", gateway, "dev", "vx")
    told.next(NeighbourEvent, lambda e: is_it(e) and e.gone)


def test_forwarding_entry_comes_changes_and_goes(told: Told, host: Namespace, host_ns: Netns) -> None:
    mac = "02:00:00:00:00:02"
    for dst in ("192.0.2.2", "192.0.2.3"):
        host_ns.run(*f"bridge fdb replace {mac} dev vx dst {dst} self permanent".split())
        event = told.next(FdbEvent, lambda e: e.value.mac.hex(":") == mac)
        assert (event.gone, event.value.index, event.value.dst) == (False, index_of(host, "vx"), packed(dst))

    host_ns.run(*f"bridge fdb del {mac} dev vx dst 192.0.2.3 self".split())
    told.next(FdbEvent, lambda e: e.gone and e.value.mac.hex(":") == mac)


def test_other_namespaces_are_not_heard(told: Told, host_ns: Netns, make_netns: Callable[[], Netns]) -> None:
    make_netns().run("ip", "link", "add", "elsewhere", "type", "bridge")
    host_ns.run("ip", "link", "add", "here", "type", "bridge")

    before, _ = told.until(LinkEvent, lambda e: e.value.name == "here")

    assert "elsewhere" not in {event.value.name for event in before if isinstance(event, LinkEvent)}


def fill(host: Namespace, gateway: str, prefix: int) -> None:
    """A route through a nexthop object on the VXLAN device."""
    host.apply(
        ops.nexthop_replace(9, index_of(host, "vx"), packed(gateway), onlink=True, protocol=205),
        ops.route_replace(packed(gateway), prefix, nexthop=9, protocol=205),
    )


class TestWhatTheKernelNeverAnnounces:
    """The reader has to conclude it. Should a kernel begin to announce it, nothing is lost; but the docs say it."""

    def test_a_nexthop_that_is_gone_takes_its_routes(self, told: Told, host: Namespace) -> None:
        fill(host, "10.244.2.0", 24)

        host.apply(ops.nexthop_del(9))

        told.next(NexthopEvent, lambda e: e.gone)
        assert host.routes(205) == []

    @pytest.mark.parametrize("command", ["set vx down", "del vx"])
    def test_a_link_takes_its_nexthops_and_routes(
        self, told: Told, host: Namespace, host_ns: Netns, command: str
    ) -> None:
        fill(host, "10.244.2.0", 24)
        device = index_of(host, "vx")

        host_ns.run("ip", "link", *command.split())

        told.next(LinkEvent, lambda e: e.value.index == device and (e.gone or not e.value.up))
        assert (host.nexthops(205), host.routes(205)) == ([], [])

    def test_the_last_address_takes_the_routes_that_use_no_nexthop_object(
        self, told: Told, host: Namespace, host_ns: Netns
    ) -> None:
        under = index_of(host, "under0")
        fill(host, "10.244.2.0", 24)
        host.apply(ops.route_replace(packed("10.9.0.0"), 16, index=under, gateway=packed("192.0.2.2"), protocol=205))
        host.apply(ops.nexthop_replace(8, under, packed("192.0.2.2"), protocol=205))
        host.apply(ops.route_replace(packed("10.8.0.0"), 16, nexthop=8, protocol=205))

        host_ns.run("ip", "address", "del", "192.0.2.1/24", "dev", "under0")

        told.next(AddressEvent, lambda e: e.gone)
        assert {route.dst for route in host.routes(205)} == {packed("10.244.2.0"), packed("10.8.0.0")}


class TestTooSlowAReader:
    def set_buffer(self, watch: Watch, size: int) -> None:
        watch._notices._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def flood(self, host: Namespace, watch: Watch) -> None:
        """More notices than fit."""
        self.set_buffer(watch, 1)
        device = index_of(host, "vx")
        host.apply(*[ops.neigh_replace(device, packed(f"10.1.2.{n}"), b"\2\0\0\0\0\2") for n in range(200)])

    def test_is_told_once_and_goes_on(self, told: Told, host: Namespace, host_ns: Netns) -> None:
        self.flood(host, told.watch)

        with pytest.raises(LostError):
            told.watch.read()

        assert told.watch.read() == []  # what was older than the dump that comes now is thrown away
        self.set_buffer(told.watch, 1 << 20)
        host_ns.run("ip", "link", "add", "later", "type", "bridge")
        told.next(LinkEvent, lambda e: e.value.name == "later")

    def test_a_burst_of_twenty_thousand_is_not_too_much(self, told: Told, host: Namespace) -> None:
        device, count = index_of(host, "vx"), 20000
        addresses = [(0x0A000000 + number).to_bytes(4, "big") for number in range(count)]

        host.apply(*[ops.neigh_replace(device, packed, b"\2\0\0\0\0\2") for packed in addresses])

        found: list[bytes] = []
        while events := told.watch.read():
            found += [event.value.packed for event in events if isinstance(event, NeighbourEvent)]
        assert [one for one in found if len(one) == 4] == addresses
