"""vxlan and host-gw on the fake kernel: what the verbs ask of a node, and how a node finds itself in its cluster.

What passes between nodes is tested in tests/e2e/test_pod_network.py.
"""

from __future__ import annotations

from errno import EADDRINUSE
from typing import TYPE_CHECKING, Any

import pytest

from cni import addr
from cni.config import Reader
from cni.errors import CniError, KernelError
from cni.kernel import ops
from cni.result import Result
from cni.testing.fake_kernel import FakeKernel
from plugins import cluster_conf, host_gw, node_bridge, peers, this_node, vxlan, vxlan_device
from plugins.cluster_conf import ClusterConf
from plugins.peers import Underlay, vtep_mac
from plugins.pod_network import site_of
from tests.unit.calls import OTHER, POD, Node

if TYPE_CHECKING:
    from pathlib import Path

    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.types import Link

REGISTRY = {
    "vxlan": "plugins.vxlan",
    "host-gw": "plugins.host_gw",
    "fake-ipam": "tests.unit.fake_ipam",
}
PEERS = [
    {
        "name": "a",
        "publicIP": "192.0.2.1",
        "publicIPv6": "2001:db8::1",
        "subnets": ["10.244.1.0/24", "fd00:244:0:1::/64"],
    },
    {
        "name": "b",
        "publicIP": "192.0.2.2",
        "publicIPv6": "2001:db8::2",
        "subnets": ["10.244.2.0/24", "fd00:244:0:2::/64"],
    },
]


def packed(text: str) -> bytes:
    found = addr.pack(text)
    assert found is not None
    return found


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node with an underlay link, 192.0.2.1 and 2001:db8::1 on it."""
    made = Node(tmp_path, registry=REGISTRY)
    with made.kernel.own() as host:
        give_underlay(host)
    return made


def give_underlay(host: Namespace, name: str = "eth0", mtu: int = 1500) -> int:
    host.apply(ops.bridge_add(name, b"\x02\0\0\0\0\x01", mtu), ops.link_set(name, up=True))
    link = host.link(name)
    assert link is not None
    host.apply(
        ops.addr_add(link.index, packed("192.0.2.1"), 24, nodad=True),
        ops.addr_add(link.index, packed("2001:db8::1"), 64, nodad=True),
    )
    return link.index


def conf(node: Node, backend: str = "vxlan", **options: Any) -> dict[str, Any]:
    found = node.network("10.244.1.2/24", "fd00:244:0:1::2/64", peers=PEERS, **options)
    networks = {"network": "10.244.0.0/16", "ipv6Network": "fd00:244::/48"}
    return {**networks, **found, "type": backend}


def cluster(**options: Any) -> ClusterConf:
    networks = {"network": "10.244.0.0/16", "ipv6Network": "fd00:244::/48"}
    return ClusterConf(Reader({"name": "net", "type": "vxlan", **networks, **options}))


class TestVerbs:
    @pytest.mark.parametrize("attachment", ["routed", "bridged"])
    @pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
    def test_a_pod_comes_and_goes(self, node: Node, backend: str, attachment: str) -> None:
        network = conf(node, backend, attachment=attachment, ipMasq=True)
        node.call(backend, "STATUS", network).silent()
        assert node.call(backend, "ADD", network).status == 0
        node.call(backend, "DEL", network).silent()
        before = node.snapshot()

        result = node.call(backend, "ADD", network, "two", OTHER).result
        node.call(backend, "CHECK", {**network, "prevResult": result}, "two", OTHER).silent()
        node.call(backend, "GC", {**network, "cni.dev/valid-attachments": []}).silent()

        assert node.snapshot() == before

    def test_ipam_is_given_the_nodes_subnets(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        from tests.unit import fake_ipam

        seen: list[Any] = []

        def noted(ctx: Context, own: Any) -> Result:
            seen.append(ctx.config.value["ipam"])
            return Result.read(own.result)

        monkeypatch.setattr(fake_ipam, "add", noted)

        node.call("vxlan", "ADD", conf(node))

        assert seen[0]["ranges"] == [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:0:1::/64"}]]

    def test_devices_routes_and_neighbours(self, node: Node) -> None:
        node.call("vxlan", "ADD", conf(node)).result  # noqa: B018 - it has succeeded

        links = node.own("links")
        assert [links[name]["mac"] for name in ("cnikit.1", "cnik6.1")] == [
            vtep_mac(1, packed(address)) for address in ("192.0.2.1", "2001:db8::1")
        ]
        assert [links[name]["mtu"] for name in ("cnikit.1", "cnik6.1")] == [1430, 1430]
        assert node.pod("links")["eth0"]["mtu"] == 1430
        with node.kernel.own() as host:
            device = host.link("cnikit.1")
            assert device is not None
            ours = {addr.unpack_cidr(r.dst, r.prefix) for r in host.routes(205)}
            assert [n.mac for n in host.neighbours(device.index)] == [vtep_mac(1, packed("192.0.2.2"))]
            assert [entry.dst for entry in host.fdb(device.index)] == [packed("192.0.2.2")]
        assert ours == {"10.244.2.0/24", "fd00:244:0:2::/64"}

    @pytest.mark.parametrize("verb", ["DEL", "GC"])
    def test_what_is_attached_can_be_detached_whatever_the_network_has_become(self, node: Node, verb: str) -> None:
        network = conf(node)
        assert node.call("vxlan", "ADD", network).status == 0

        broken = {**network, "peers": "none", "vni": -1, "mtu": 9, "cni.dev/valid-attachments": []}
        node.call("vxlan", verb, broken).silent()

        assert [name for name in node.own("links") if name.startswith("veth")] == []

    def test_status_tells_why(self, node: Node) -> None:
        network = {**conf(node), "peers": PEERS[1:]}

        error = node.call("vxlan", "STATUS", network).error

        assert error["code"] == 50
        assert error["msg"].startswith("vxlan net cannot serve ADD: peers: expected one with an address of this host")

    @pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
    def test_status_of_a_full_bridge(self, node: Node, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        network = conf(node, backend, attachment="bridged")
        assert node.call(backend, "ADD", network).status == 0
        monkeypatch.setattr(node_bridge, "MOST_PORTS", 1)

        error = node.call(backend, "STATUS", network).error

        assert error["code"] == 50
        assert "bridge cni0: expected a free port, found all 1 in use" in error["msg"]
        node.call(backend, "STATUS", conf(node, backend)).silent()  # a routed pod needs no port

    def test_a_failing_ipam_is_told_by_status(self, node: Node) -> None:
        network = conf(node)
        network["ipam"]["fails"] = {"STATUS": 51}

        assert node.call("vxlan", "STATUS", network).error["code"] == 51

    def test_a_port_that_a_program_has_is_named_before_anything_is_made(self, node: Node) -> None:
        network = conf(node)
        node.kernel.take_udp_port(8472)
        before = node.snapshot()

        errors = [node.call("vxlan", verb, network).error for verb in ("STATUS", "ADD")]

        text = "UDP port 8472: expected it free for cnikit.1, found another program with it"
        assert [(error["code"], text in error["msg"]) for error in errors] == [(50, True), (50, True)]
        assert node.snapshot() == before
        node.kernel.release_udp_port(8472)
        result = node.call("vxlan", "ADD", network).result
        node.kernel.take_udp_port(4789)
        moved = {**network, "port": 4789}
        assert "UDP port 4789" in node.call("vxlan", "ADD", moved, "two", OTHER).error["msg"]
        node.call("vxlan", "CHECK", {**network, "prevResult": result}).silent()  # what there is still serves

    def test_a_port_that_is_only_tried_by_somebody_else_is_tried_again(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refusals = [KernelError("set cnikit.1 up", EADDRINUSE)] * 2
        settle = vxlan_device._settle

        def tried(host: Namespace, link: Link, wanted: vxlan_device.Wanted) -> None:
            if refusals:
                raise refusals.pop()
            settle(host, link, wanted)

        monkeypatch.setattr(vxlan_device, "_settle", tried)

        assert node.call("vxlan", "ADD", conf(node)).status == 0


class TestThisNode:
    """Who this node is, and which links carry its traffic."""

    @pytest.fixture
    def host(self) -> Namespace:
        host = FakeKernel().own()
        give_underlay(host)
        return host

    def test_by_its_address_or_its_name(self, host: Namespace) -> None:
        there = this_node.places(host)
        assert this_node.among(cluster(peers=PEERS), cluster(peers=PEERS).peers or (), there).name == "a"
        named = cluster(peers=PEERS, nodeName="a")
        assert this_node.among(named, named.peers or (), there).name == "a"

    def test_the_underlay_of_each_family(self, host: Namespace) -> None:
        link = host.link("eth0")
        assert link is not None

        site = site_of(host, cluster(peers=PEERS), vxlan.BACKEND, "/nowhere")

        assert {size: found.index for size, found in site.underlays.items()} == {4: link.index, 16: link.index}
        assert site.underlays[4].networks == ((packed("192.0.2.0"), 24),)
        assert site.mtu == 1430

    def test_a_named_node_whose_address_is_elsewhere(self, host: Namespace) -> None:
        peers = [{**PEERS[0], "publicIP": "192.0.2.99", "publicIPv6": "2001:db8::99"}]

        with pytest.raises(CniError, match="node a: publicIP: expected an address of this host .*, found 192.0.2.99"):
            site_of(host, cluster(peers=peers, nodeName="a"), vxlan.BACKEND, "/nowhere")

    def test_a_node_without_subnets(self, host: Namespace) -> None:
        with pytest.raises(CniError, match="node a among the peers without `subnets`") as raised:
            site_of(host, cluster(peers=[{**PEERS[0], "subnets": []}]), vxlan.BACKEND, "/nowhere")
        assert raised.value.code == 11

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("FLANNEL_SUBNET=10.244.1.1\n", "FLANNEL_SUBNET: expected a network such as 10.244.1.1/24"),
            ("FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=big\n", "FLANNEL_MTU: expected a number, found 'big'"),
            ("FLANNEL_NETWORK=10.244.0.0/16\n", "neither FLANNEL_SUBNET nor"),
            ("FLANNEL_SUBNET=10.9.1.1/24\n", r"inside the network \(10.244.0.0/16"),
            (
                "FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1500\n",
                "FLANNEL_MTU of the subnet file: expected at most 1450",
            ),
        ],
    )
    def test_a_subnet_file_that_cannot_serve(self, host: Namespace, tmp_path: Path, text: str, told: str) -> None:
        file = tmp_path / "net.env"
        file.write_text(text)

        with pytest.raises(CniError, match=told):
            site_of(host, cluster(iface="eth0"), vxlan.BACKEND, str(file))

    def test_neither_the_file_nor_the_configuration_tells_the_network(self, host: Namespace, tmp_path: Path) -> None:
        file = tmp_path / "net.env"
        file.write_text("FLANNEL_SUBNET=10.244.1.1/24\n")

        with pytest.raises(CniError, match="network: expected network or ipv6Network, or FLANNEL_NETWORK"):
            site_of(host, ClusterConf(Reader({"name": "net", "iface": "eth0"})), vxlan.BACKEND, str(file))

    def test_a_subnet_file_gives_the_networks_too(self, host: Namespace, tmp_path: Path) -> None:
        file = tmp_path / "net.env"
        file.write_text(
            "FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:9::/48\n"
            "FLANNEL_IPV6_SUBNET=fd00:9:0:1::1/64\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n"
        )
        plain = ClusterConf(Reader({"name": "net", "iface": "eth0"}))

        site = site_of(host, plain, vxlan.BACKEND, str(file))

        assert [addr.unpack_cidr(*one) for one in site.networks] == ["10.9.0.0/16", "fd00:9::/48"]
        assert [addr.unpack_cidr(*one) for one in site.own.subnets] == ["10.9.1.0/24", "fd00:9:0:1::/64"]
        assert site.mtu == 1400

    def test_the_default_route_leads_to_the_underlay(self, host: Namespace, tmp_path: Path) -> None:
        link = host.link("eth0")
        assert link is not None
        host.apply(ops.route_add(link.index, bytes(4), 0, packed("192.0.2.254")))
        file = tmp_path / "net.env"
        file.write_text("FLANNEL_SUBNET=10.244.1.1/24\n")

        site = site_of(host, cluster(), vxlan.BACKEND, str(file))

        assert site.own.addresses == {4: packed("192.0.2.1")}

    def test_host_gw_needs_no_link_when_the_file_says_the_mtu(self, tmp_path: Path) -> None:
        file = tmp_path / "net.env"
        file.write_text("FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1400\n")

        site = site_of(FakeKernel().own(), cluster(), host_gw.BACKEND, str(file))

        assert (site.mtu, site.underlays) == (1400, {})

    def test_the_device_tells_the_underlay_until_the_address_has_moved(self, host: Namespace) -> None:
        conf = cluster(peers=PEERS)
        site = site_of(host, conf, vxlan.BACKEND, "/nowhere")
        vxlan.prepare(host, site, print)
        assert this_node.places_under(host, this_node.own_devices(host, conf, vxlan.BACKEND.devices(conf)))
        eth0, eth1 = site.underlays[4].index, give_underlay(host, "eth1")
        for cidr in (("192.0.2.1", 24), ("2001:db8::1", 64)):
            host.apply(ops.addr_del(eth0, packed(cidr[0]), cidr[1]))

        moved = site_of(host, conf, vxlan.BACKEND, "/nowhere")

        assert moved.underlays[4].index == moved.underlays[16].index == eth1

    @pytest.mark.parametrize("local", ["192.0.2.1", "192.0.2.101", "192.0.2.201"])
    def test_the_device_tells_which_of_the_addresses_is_the_nodes(
        self, host: Namespace, tmp_path: Path, local: str
    ) -> None:
        """Of two on the link and one on another; and that it has none of the other family."""
        under = host.link("eth0")
        assert under is not None
        host.apply(ops.bridge_add("other", b"\x02\0\0\0\0\x02", 1500), ops.link_set("other", up=True))
        other = host.link("other")
        assert other is not None
        host.apply(
            ops.addr_add(under.index, packed("192.0.2.101"), 24, nodad=True),
            ops.addr_add(other.index, packed("192.0.2.201"), 32, nodad=True),
            ops.vxlan_add("cnikit.1", 1, mac=None, mtu=1450, port=8472, local=packed(local), link=under.index),
            ops.link_set("cnikit.1", up=True, alias="cnikit net"),
        )
        file = tmp_path / "subnet.env"
        file.write_text("FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\nFLANNEL_MTU=1450\n")

        site = site_of(host, cluster(iface="eth0"), vxlan.BACKEND, str(file))

        assert site.own.addresses == {4: packed(local)}
        assert site.underlays[4].name == "eth0"
        assert site.mtu == 1450

    def test_our_agents_file_tells_which_of_the_addresses_is_the_nodes(self, host: Namespace, tmp_path: Path) -> None:
        """Without a default route and devices, of two on the link, and although the link has the other family too."""
        under = host.link("eth0")
        assert under is not None
        host.apply(ops.addr_add(under.index, packed("192.0.2.101"), 24, nodad=True))
        file = tmp_path / "subnet.env"
        file.write_text("FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nCNIKIT_PUBLIC_IP=192.0.2.101\n")

        site = site_of(host, cluster(), vxlan.BACKEND, str(file))

        assert (site.own.addresses, site.lost) == ({4: packed("192.0.2.101")}, {})
        assert site.underlays[4].name == "eth0"

    def test_an_address_of_the_file_that_is_away_costs_its_family_only(self, host: Namespace, tmp_path: Path) -> None:
        file = tmp_path / "subnet.env"
        file.write_text(
            "FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1430\nCNIKIT_PUBLIC_IP=192.0.2.1\nCNIKIT_PUBLIC_IPV6=2001:db8::77\n"
        )

        site = site_of(host, cluster(), vxlan.BACKEND, str(file))

        assert (list(site.underlays), list(site.lost)) == ([4], [16])

    def test_no_underlay_is_told(self, tmp_path: Path) -> None:
        file = tmp_path / "net.env"
        file.write_text("FLANNEL_SUBNET=10.244.1.1/24\n")

        with pytest.raises(CniError, match="expected an address on the link of the default route, found none"):
            site_of(FakeKernel().own(), cluster(), vxlan.BACKEND, str(file))


class TestMtu:
    @pytest.mark.parametrize(
        ("mtus", "overhead", "expected"),
        [
            ({4: 1500}, vxlan.OVERHEAD, 1450),
            ({16: 1500}, vxlan.OVERHEAD, 1430),
            ({4: 9000, 16: 1500}, vxlan.OVERHEAD, 1430),
            ({4: 1400, 16: 1500}, vxlan.OVERHEAD, 1350),
            ({4: 1500, 16: 9000}, host_gw.OVERHEAD, 1500),
        ],
    )
    def test_the_tightest_underlay_decides(self, mtus: dict[int, int], overhead: dict[int, int], expected: int) -> None:
        underlays = {size: Underlay(size, f"eth{size}", mtu, ()) for size, mtu in mtus.items()}
        own = peers.Node("a", {size: bytes(size) for size in mtus}, ())

        assert this_node.pods_mtu(own, overhead, underlays, 0, "mtu") == expected

    def test_a_family_that_is_away_still_counts(self) -> None:
        own = peers.Node("a", {4: bytes(4), 16: bytes(16)}, ())

        assert this_node.pods_mtu(own, vxlan.OVERHEAD, {4: Underlay(1, "eth0", 1500, ())}, 0, "mtu") == 1430

    def test_too_small_for_ipv6(self) -> None:
        own = peers.Node("a", {4: bytes(4)}, ((packed("fd00:244::"), 64),))

        with pytest.raises(CniError, match="expected at least 1280, found 1250") as raised:
            this_node.pods_mtu(own, vxlan.OVERHEAD, {4: Underlay(1, "eth0", 1300, ())}, 0, "mtu")
        assert "1330" in raised.value.details


def test_with_membership_the_agent_decides_who_is_in_the_cluster() -> None:
    assert cluster(peers=PEERS, membership={"source": "kubernetes"}).peers is None


def test_peers_need_a_network() -> None:
    with pytest.raises(CniError, match="network: expected network or ipv6Network beside `peers`"):
        ClusterConf(Reader({"name": "net", "peers": PEERS}))


def test_where_the_subnet_file_is() -> None:
    assert cluster_conf.subnet_file_of(cluster(), "/run/cnikit") == "/run/cnikit/subnets/net.env"
    assert cluster_conf.subnet_file_of(cluster(subnetFile="/x"), "/run/cnikit") == "/x"


def test_the_pods_namespace_is_the_one_that_was_asked_for(node: Node) -> None:
    result = node.call("host-gw", "ADD", conf(node, "host-gw")).result

    assert [item.get("sandbox") for item in result["interfaces"]] == [None, POD]
