"""Links, addresses, routes and settings on the real kernel, as ip and bridge see them."""

from __future__ import annotations

import subprocess
import time
from errno import EEXIST, ENODEV, ENOENT
from typing import TYPE_CHECKING, Any

import pytest

from cni import addr
from cni.errors import KernelError
from cni.kernel import ops
from cni.kernel.background import thread_background
from cni.kernel.linux import Kernel, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.conftest import Netns

MAC, PEER_MAC, BRIDGE_MAC = b"\x0a\x58\0\0\0\1", b"\x0a\x58\x0a\x01\x00\x02", b"\x0a\x58\x0a\x01\x00\x01"
GATEWAY, ADDRESS = b"\x0a\x01\x00\x01", b"\x0a\x01\x00\x02"
NET6 = b"\xfd" + bytes(15)
GATEWAY6, ADDRESS6 = NET6[:15] + b"\1", NET6[:15] + b"\2"


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(time.monotonic, thread_background)


@pytest.fixture
def host(kernel: Kernel, host_ns: Netns) -> Iterator[Namespace]:
    with kernel.open(host_ns.path) as namespace:
        yield namespace


@pytest.fixture
def pod(kernel: Kernel, pod_ns: Netns) -> Iterator[Namespace]:
    with kernel.open(pod_ns.path) as namespace:
        yield namespace


def index_of(namespace: Namespace, name: str) -> int:
    link = namespace.link(name)
    assert link is not None
    return link.index


def add_bridge(host: Namespace) -> int:
    host.apply(ops.bridge_add("cni0", BRIDGE_MAC), ops.link_set("cni0", up=True))
    return index_of(host, "cni0")


def add_pair(host: Namespace, pod: Namespace, master: int = 0) -> tuple[int, int]:
    host.apply(ops.veth_add("veth1", MAC, "eth0", PEER_MAC, pod, 1400, master))
    pod.apply(ops.link_set("eth0", up=True))
    return index_of(host, "veth1"), index_of(pod, "eth0")


def test_bridge_is_made_with_its_mac_and_mtu(host: Namespace, host_ns: Netns) -> None:
    host.apply(ops.bridge_add("cni0", BRIDGE_MAC, 1300), ops.link_set("cni0", up=True, promisc=True))

    (link,) = host_ns.ip("link", "show", "cni0")
    assert (link["address"], link["mtu"], link["linkinfo"]["info_kind"]) == ("0a:58:0a:01:00:01", 1300, "bridge")
    assert {"UP", "PROMISC"} <= set(link["flags"])


def test_one_batch_makes_a_veth_with_its_peer_in_the_pod(
    host: Namespace, pod: Namespace, host_ns: Netns, pod_ns: Netns
) -> None:
    bridge = add_bridge(host)

    host.apply(
        ops.veth_add("veth1", MAC, "eth0", PEER_MAC, pod, 1400, bridge),
        ops.link_set("veth1", alias="cnikit: net1/pod"),
        ops.port_set("veth1", hairpin=True, isolated=True),
    )

    (ours,) = host_ns.ip("link", "show", "veth1")
    (theirs,) = pod_ns.ip("link", "show", "eth0")
    assert (ours["address"], ours["mtu"], ours["master"]) == ("0a:58:00:00:00:01", 1400, "cni0")
    assert ours["ifalias"] == "cnikit: net1/pod"
    assert "UP" in ours["flags"]
    assert ours["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert ours["linkinfo"]["info_slave_data"]["isolated"] is True
    assert (theirs["address"], theirs["mtu"], theirs["link_index"]) == ("0a:58:0a:01:00:02", 1400, ours["ifindex"])
    assert "UP" not in theirs["flags"]
    queues = [link[key] for link in (ours, theirs) for key in ("num_tx_queues", "num_rx_queues")]
    assert queues == [1, 1, 1, 1]


def test_veth_within_one_namespace(host: Namespace, host_ns: Netns) -> None:
    host.apply(ops.veth_add("one", None, "two", None, None))

    assert {link["ifname"] for link in host_ns.ip("link")} == {"lo", "one", "two"}


def test_link_is_read_as_ip_reads_it(host: Namespace, pod: Namespace, host_ns: Netns) -> None:
    bridge = add_bridge(host)
    veth, _ = add_pair(host, pod, bridge)
    host.apply(ops.link_set(veth, alias="x"), ops.port_set(veth, hairpin=True))
    host.wait_port(veth, 1)

    link = host.link("veth1")

    (seen,) = host_ns.ip("link", "show", "veth1")
    assert link is not None
    assert (link.index, link.name, link.kind) == (seen["ifindex"], "veth1", seen["linkinfo"]["info_kind"])
    assert (link.mac.hex(":"), link.mtu, link.alias) == (seen["address"], seen["mtu"], seen["ifalias"])
    assert (link.master, link.peer, link.promisc) == (bridge, seen["link_index"], seen["promiscuity"])
    assert (link.operstate, seen["operstate"]) == (6, "UP")
    assert link.port is not None
    assert (link.port.state, link.port.hairpin, link.port.isolated) == (3, True, False)
    assert host.link(veth) is not None
    assert {one.name for one in host.links()} == {one["ifname"] for one in host_ns.ip("link")}


def test_what_is_not_there_is_none(host: Namespace) -> None:
    assert host.link("nope") is None
    assert host.link(4711) is None
    assert host.link("a-name-that-is-too-long") is None
    assert host.link("lo\0") is None
    assert host.link("") is None
    assert [host.link(index) for index in (0, -1, 1 << 31, 1 << 40)] == [None] * 4
    assert host.addresses(4711) == []


def test_failure_in_a_batch_names_its_operation_and_the_rest_is_done(host: Namespace, host_ns: Netns) -> None:
    with pytest.raises(KernelError) as caught:
        host.apply(
            ops.bridge_add("b1", None),
            ops.link_set("nope", up=True),
            ops.bridge_add("b1", None),
            ops.bridge_add("b2", None),
        )

    assert caught.value.errno == ENODEV
    assert caught.value.msg.startswith("set up of nope: ENODEV (No such device)")
    assert {link["ifname"] for link in host_ns.ip("link")} == {"lo", "b1", "b2"}


def test_refusal_carries_the_kernels_words(host: Namespace) -> None:
    with pytest.raises(KernelError) as caught:
        host.apply(ops.bridge_add("b1", None, 70000))

    assert caught.value.msg == "create bridge b1: EINVAL (Invalid argument): mtu greater than device maximum"


def test_a_batch_of_thousands_is_answered_one_by_one(host: Namespace, host_ns: Netns) -> None:
    bridge = add_bridge(host)
    wanted = [(0x0A020000 + number).to_bytes(4, "big") for number in range(3000)]

    host.apply(*[ops.route_add(bridge, dst, 32, None) for dst in wanted])

    assert len(host_ns.ip("route", "show", "root", "10.2.0.0/16")) == 3000
    assert len([route for route in host.routes() if route.prefix == 32]) == 3000


def test_addresses_come_and_go(host: Namespace, host_ns: Netns) -> None:
    bridge = add_bridge(host)
    add_two = [ops.addr_add(bridge, GATEWAY, 24, nodad=True), ops.addr_add(bridge, GATEWAY6, 64, nodad=True)]
    host.apply(*add_two)

    seen = [one for one in host_ns.ip("addr", "show", "cni0")[0]["addr_info"] if one["scope"] == "global"]
    assert [(one["local"], one["prefixlen"]) for one in seen] == [("10.1.0.1", 24), ("fd00::1", 64)]
    assert seen[0]["broadcast"] == "10.1.0.255"
    assert "nodad" not in seen[0]
    assert seen[1]["nodad"] is True
    ours = [(one.packed, one.prefix, one.scope) for one in host.addresses(bridge)]
    assert {(GATEWAY, 24, 0), (GATEWAY6, 64, 0)} <= set(ours)
    for again in add_two:
        with pytest.raises(KernelError) as caught:
            host.apply(again)
        assert caught.value.errno == EEXIST

    host.apply(ops.addr_del(bridge, GATEWAY, 24), ops.addr_del(bridge, GATEWAY6, 64))

    left = host_ns.ip("addr", "show", "cni0")[0]["addr_info"]
    assert [one for one in left if one["scope"] == "global"] == []


def test_routes_are_those_that_ip_shows(pod: Namespace, host: Namespace, pod_ns: Netns) -> None:
    _, eth0 = add_pair(host, pod)
    pod.apply(
        ops.addr_add(eth0, ADDRESS, 24, nodad=True),
        ops.addr_add(eth0, ADDRESS6, 64, nodad=True),
        ops.route_add(eth0, bytes(4), 0, GATEWAY),
        ops.route_add(eth0, bytes(16), 0, GATEWAY6, metric=7, mtu=1300, advmss=1200),
        ops.route_add(eth0, b"\x0a\x05\0\0", 16, None, table=1000, scope=253, mtu=1280),
        ops.route_add(eth0, b"\x0a\x06\0\0", 16, GATEWAY, metric=5, table=100),
    )

    (default,) = pod_ns.ip("-4", "route", "show", "default")
    assert (default["gateway"], default["dev"], default.get("metric")) == ("10.1.0.1", "eth0", None)
    assert default["protocol"] == "boot"
    (default6,) = pod_ns.ip("-6", "route", "show", "default")
    assert (default6["gateway"], default6["metric"]) == ("fd00::1", 7)
    assert {k: v for metrics in default6["metrics"] for k, v in metrics.items()} == {"mtu": 1300, "advmss": 1200}
    (far,) = pod_ns.ip("route", "show", "table", "1000")
    assert (far["dst"], far["scope"], far["metrics"]) == ("10.5.0.0/16", "link", [{"mtu": 1280}])
    ours = {(r.dst, r.prefix, r.gateway, r.oif, r.table, r.metric, r.scope, r.mtu) for r in pod.routes()}
    assert {
        (bytes(4), 0, GATEWAY, eth0, 254, 0, 0, 0),
        (bytes(16), 0, GATEWAY6, eth0, 254, 7, 0, 1300),
        (b"\x0a\x05\0\0", 16, None, eth0, 1000, 0, 253, 1280),
        (b"\x0a\x06\0\0", 16, GATEWAY, eth0, 100, 5, 0, 0),
        (b"\x0a\x01\0\0", 24, None, eth0, 254, 0, 253, 0),
    } <= ours
    shown = [
        route
        for family in ("-4", "-6")
        for route in pod_ns.ip(family, "route", "show", "table", "all")
        if route.get("table") != "local" and route["type"] == "unicast"
    ]
    assert len(ours) == len(shown)


def test_second_path_to_one_network_is_no_error(pod: Namespace, host: Namespace, pod_ns: Netns) -> None:
    _, eth0 = add_pair(host, pod)
    other, other6 = GATEWAY[:3] + b"\x09", GATEWAY6[:15] + b"\x09"
    pod.apply(ops.addr_add(eth0, ADDRESS, 24, nodad=True), ops.addr_add(eth0, ADDRESS6, 64, nodad=True))

    pod.apply(ops.route_add(eth0, bytes(4), 0, GATEWAY), ops.route_add(eth0, bytes(4), 0, other))
    pod.apply(ops.route_add(eth0, bytes(16), 0, GATEWAY6), ops.route_add(eth0, bytes(16), 0, other6))

    # IPv4 keeps two routes and uses the later, IPv6 joins them into one with two next hops.
    assert [route["gateway"] for route in pod_ns.ip("-4", "route", "show", "default")] == ["10.1.0.9", "10.1.0.1"]
    (default6,) = pod_ns.ip("-6", "route", "show", "default")
    assert [hop["gateway"] for hop in default6["nexthops"]] == ["fd00::1", "fd00::9"]
    assert [r.gateway for r in pod.routes() if r.prefix == 0] == [other, GATEWAY, GATEWAY6, other6]
    with pytest.raises(KernelError) as caught:
        pod.apply(ops.route_add(eth0, bytes(4), 0, other))
    assert caught.value.errno == EEXIST


def test_ipv4_route_through_an_ipv6_router(pod: Namespace, host: Namespace, pod_ns: Netns) -> None:
    _, eth0 = add_pair(host, pod)
    pod.apply(ops.addr_add(eth0, ADDRESS6, 64, nodad=True), ops.route_add(eth0, bytes(4), 0, GATEWAY6))

    (default,) = pod_ns.ip("-4", "route", "show", "default")
    assert default["via"] == {"family": "inet6", "host": "fd00::1"}
    assert [r.gateway for r in pod.routes() if r.prefix == 0] == [GATEWAY6]


@pytest.mark.parametrize("neighbour", [ADDRESS, ADDRESS6], ids=["ipv4", "ipv6"])
def test_neighbour_is_forgotten(host: Namespace, host_ns: Netns, neighbour: bytes) -> None:
    bridge = add_bridge(host)
    text = addr.unpack(neighbour)
    host_ns.run("ip", "neigh", "add", text, "lladdr", "0a:58:00:00:00:09", "dev", "cni0", "nud", "reachable")

    host.apply(ops.neigh_del(bridge, neighbour))

    left = {one["dst"] for one in host_ns.ip("neigh") if "FAILED" not in one["state"]}
    assert text not in left


def test_unknown_neighbour_is_enoent(host: Namespace) -> None:
    with pytest.raises(KernelError) as caught:
        host.apply(ops.neigh_del(add_bridge(host), ADDRESS))

    assert caught.value.errno == ENOENT


def test_link_is_changed_only_where_told(host: Namespace, pod: Namespace, host_ns: Netns) -> None:
    bridge = add_bridge(host)
    veth, _ = add_pair(host, pod, bridge)

    host.apply(ops.link_set(veth, mtu=1280, mac=b"\x02\0\0\0\0\7", master=0))

    (link,) = host_ns.ip("link", "show", "veth1")
    assert (link["mtu"], link["address"], link.get("master")) == (1280, "02:00:00:00:00:07", None)
    assert "UP" in link["flags"]

    host.apply(ops.link_set(veth, up=False, promisc=True))

    (link,) = host_ns.ip("link", "show", "veth1")
    assert "UP" not in link["flags"]
    assert "PROMISC" in link["flags"]


def test_arp_notify_is_set_and_cleared(host: Namespace, pod: Namespace, pod_ns: Netns) -> None:
    _, eth0 = add_pair(host, pod)
    for wanted in (True, False):
        pod.apply(ops.link_set(eth0, up=True, arp_notify=wanted))

        seen = pod_ns.run("cat", "/proc/sys/net/ipv4/conf/eth0/arp_notify", "/proc/sys/net/ipv4/conf/lo/arp_notify")
        assert seen.split() == [str(int(wanted)), "0"]


def test_settings_go_to_the_namespace_that_is_meant(
    host: Namespace, pod: Namespace, host_ns: Netns, pod_ns: Netns
) -> None:
    add_pair(host, pod)
    here = subprocess.run(["cat", "/proc/sys/net/ipv4/ip_forward"], capture_output=True, text=True, check=True).stdout
    for namespace, value in ((host, "0"), (pod, "1")):
        namespace.set_conf(addr.AF_INET, "all", "forwarding", value)
    pod.set_conf(addr.AF_INET6, "eth0", "accept_dad", "0")

    assert host_ns.run("cat", "/proc/sys/net/ipv4/ip_forward") == "0\n"
    assert pod_ns.run("cat", "/proc/sys/net/ipv4/ip_forward") == "1\n"
    assert pod_ns.run("cat", "/proc/sys/net/ipv6/conf/eth0/accept_dad") == "0\n"
    assert (host.conf(addr.AF_INET, "all", "forwarding"), pod.conf(addr.AF_INET, "all", "forwarding")) == ("0", "1")
    with open("/proc/sys/net/ipv4/ip_forward") as file:
        assert file.read() == here


def test_settings_of_a_link_with_a_dot(host: Namespace, host_ns: Netns) -> None:
    host.apply(ops.bridge_add("br.100", None))

    host.set_conf(addr.AF_INET6, "br.100", "accept_ra", "0")

    assert host_ns.run("cat", "/proc/sys/net/ipv6/conf/br.100/accept_ra") == "0\n"


@pytest.mark.parametrize("link", ["..", ".", "", "../all", "a/b"])
def test_settings_do_not_leave_their_directory(host: Namespace, link: str) -> None:
    with pytest.raises(KernelError):
        host.conf(addr.AF_INET, link, "forwarding")
    with pytest.raises(KernelError):
        host.set_conf(addr.AF_INET, link, "forwarding", "1")


def test_missing_setting_is_none_to_read_and_enoent_to_write(host: Namespace) -> None:
    assert host.conf(addr.AF_INET, "nope", "forwarding") is None
    with pytest.raises(KernelError) as caught:
        host.set_conf(addr.AF_INET, "lo", "no_such_setting", "1")
    assert caught.value.errno == ENOENT


def test_own_namespace_is_the_callers(kernel: Kernel) -> None:
    with kernel.own() as own:
        lo = own.link("lo")
        assert lo is not None
        assert (lo.index, lo.mac) == (1, bytes(6))
        with open("/proc/sys/net/ipv4/ip_forward") as file:
            assert own.conf(addr.AF_INET, "all", "forwarding") == file.read().strip()


def test_bridge_vlans_are_refused_or_done(host: Namespace, pod: Namespace, host_ns: Netns) -> None:
    """What `has_vlan_filtering` says is what the kernel does."""
    bridge = add_bridge(host)
    veth, _ = add_pair(host, pod, bridge)
    links: list[dict[str, Any]] = host_ns.ip("link", "show", "cni0")
    # The kernel tells a bridge's VLAN protocol only if it was built to filter.
    built = "vlan_protocol" in links[0]["linkinfo"]["info_data"]

    assert host.has_vlan_filtering() == built
    assert [link["ifname"] for link in host_ns.ip("link", "show", "type", "bridge")] == ["cni0"]
    if not built:
        with pytest.raises(KernelError):
            host.apply(ops.vlan_add(veth, 100, 100, untagged=True))
        return
    host.apply(ops.vlan_add(veth, 100, 100, untagged=True), ops.vlan_add(veth, 200, 202), ops.vlan_del(veth, 1))
    host.apply(ops.vlan_add(bridge, 300, 300, is_self=True))
    shown = {port["ifname"]: port["vlans"] for port in host_ns.bridge("vlan", "show")}
    assert [(v["vlan"], v.get("vlanEnd"), v.get("flags")) for v in shown["veth1"]] == [
        (100, None, ["PVID", "Egress Untagged"]),
        (200, 202, None),
    ]
    assert host.vlans(veth) == [100, 200, 201, 202]
    assert host.vlans(bridge) == [1, 300]
