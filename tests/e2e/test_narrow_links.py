"""Links of an MTU below 1280, on which Linux has no IPv6: IPv4 and layer 2 work on them, IPv6 is refused in time.

Such an MTU comes with tunnels: an underlay that is one itself, or flanneld's FLANNEL_MTU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.bridge_world import add, delete, dual, host_end, ours, settled
from tests.e2e.underlay import V4, V6, Cluster, ping
from tests.e2e.underlay import address as address_in
from tests.e2e.world import DUAL_STACK, Node, Pod, network

if TYPE_CHECKING:
    from tests.e2e.world import Way

NARROW = 1230
TUNNEL = {
    "cniVersion": "1.0.0", "name": "b", "type": "bridge", "bridge": "br0", "isGateway": True, "mtu": NARROW,
    "ipam": {"type": "host-local", "subnet": "10.42.2.0/24"},
}  # fmt: skip


def reaches(pod: Pod, target: str) -> bool:
    """Whether a packet as large as the pod's MTU gets there, in one piece, with its answer."""
    size = pod.node.links(pod)["eth0"]["mtu"] - 28
    return ping(pod, target, "-M", "do", "-s", str(size)).ok


class TestBridge:
    def test_the_first_pod_of_a_new_bridge(self, node: Node) -> None:
        pod = node.pod()

        result = add(node, pod, TUNNEL)

        assert [node.links()[name]["mtu"] for name in ("br0", host_end(node, result))] == [NARROW, NARROW]
        assert node.links(pod)["eth0"]["mtu"] == NARROW
        assert reaches(pod, "10.42.2.1")
        node.call("bridge", "CHECK", {**TUNNEL, "prevResult": result}, pod).silent()
        node.call("bridge", "STATUS", {**TUNNEL, "cniVersion": "1.1.0"}).silent()
        delete(node, pod, {**TUNNEL, "prevResult": result})
        assert set(node.links(pod)) == {"lo"}

    @pytest.mark.parametrize("mtu", [68, 576, 1279])
    def test_layer_2(self, node: Node, mtu: int) -> None:
        conf, pod = network(ipam={}, mtu=mtu), node.pod()

        result = add(node, pod, conf)

        assert node.links(pod)["eth0"]["mtu"] == mtu
        node.call("bridge", "CHECK", {**conf, "prevResult": result}, pod).silent()

    @pytest.mark.parametrize("options", [{"ipMasq": True}, {"enabledad": True}, {"promiscMode": True}])
    def test_beside_other_options(self, node: Node, options: dict[str, Any]) -> None:
        conf, pod = network(mtu=NARROW, **options), node.pod()

        result = add(node, pod, conf)

        assert reaches(pod, "10.1.0.1")
        node.call("bridge", "CHECK", {**conf, "prevResult": result}, pod).silent()

    def test_a_bridge_whose_mtu_falls(self, node: Node) -> None:
        """By the first narrow port, and by the operator's hand."""
        wide, narrow, third = node.pod(), node.pod(), node.pod()
        add(node, wide, network())

        add(node, narrow, network(mtu=NARROW))
        assert node.links()["cni0"]["mtu"] == NARROW
        node.run("ip", "link", "set", "cni0", "mtu", "900")
        result = add(node, third, network(mtu=900))

        assert reaches(third, "10.1.0.1")
        node.call("bridge", "CHECK", {**network(mtu=900), "prevResult": result}, third).silent()

    @ours
    def test_a_bridge_with_ipv6_addresses_keeps_them(self, node: Node) -> None:
        """The kernel would take them away with the first narrow port, and with them the gateway of other pods."""
        both, narrow = node.pod(), node.pod()
        add(node, both, dual())
        ipv4 = network(mtu=NARROW, ipam={**DUAL_STACK, "ranges": DUAL_STACK["ranges"][:1]})

        add(node, narrow, ipv4)

        assert ping(both, "fd00:1::1").ok
        assert reaches(narrow, "10.1.0.1")
        assert node.links()["cni0"]["mtu"] == 1500


@ours
class TestIPv6IsRefused:
    """With what was expected and found and the next step, and nothing is made."""

    @pytest.mark.parametrize("mtu", [68, NARROW, 1279])
    @pytest.mark.parametrize("way_of_saying", ["ranges", "asked for"])
    def test_on_a_bridge(self, node: Node, mtu: int, way_of_saying: str) -> None:
        conf = dual(mtu=mtu)
        if way_of_saying == "asked for":
            conf = network(
                mtu=mtu,
                ipam={"type": "host-local"},
                runtimeConfig={"ipRanges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd00:1::/64"}]]},
            )
        pod, before = node.pod(), node.snapshot()

        error = node.call("bridge", "ADD", conf, pod).error

        assert error["code"] == 7
        assert error["msg"] == f"mtu: expected at least 1280, because the pods get IPv6 addresses, found {mtu}"
        assert "1280" in error["details"]
        assert node.snapshot() == before
        node.call("bridge", "DEL", conf, pod).silent()

    def test_by_status(self, node: Node) -> None:
        error = node.call("bridge", "STATUS", dual(mtu=NARROW)).error

        assert "mtu: expected at least 1280" in error["msg"]

    def test_at_the_gateway(self, node: Node) -> None:
        """The bridge has become narrow meanwhile: the pod's own link would have carried IPv6."""
        settled(node, network())
        node.run("ip", "link", "set", "cni0", "mtu", str(NARROW))
        before = node.snapshot()

        error = node.call("bridge", "ADD", dual(), node.pod()).error

        assert f"cni0: expected an MTU of at least 1280 for the gateway fd00:1::1, found {NARROW}" in error["msg"]
        assert "ip link set cni0 mtu" in error["details"]
        assert node.snapshot() == before

    def test_at_the_gateway_by_status(self, node: Node) -> None:
        settled(node, network())
        node.run("ip", "link", "set", "cni0", "mtu", str(NARROW))

        error = node.call("bridge", "STATUS", dual()).error

        assert error["code"] == 50
        assert f"expected an MTU of at least 1280 for the gateway fd00:1::1, found {NARROW}" in error["msg"]


@pytest.mark.parametrize("attachment", ["routed", "bridged"])
class TestPodNetworks:
    @pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
    def test_ipv4_over_a_tunnel(self, way: Way, backend: str, attachment: str) -> None:
        with Cluster(way, mtu=NARROW) as cluster:
            conf = cluster.conf(backend, attachment=attachment, ipMasq=True)

            one, two = cluster.attach(conf)

            assert reaches(one, address_in(two, V4))
            for pod in (one, two):
                node = pod.node
                node.call(backend, "STATUS", conf).silent()
                second = node.pod()
                result = node.call(backend, "ADD", conf, second).result
                node.call(backend, "CHECK", {**conf, "prevResult": result}, second).silent()
                node.call(backend, "DEL", {**conf, "prevResult": result}, second).silent()

    @pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
    @pytest.mark.parametrize("flanneld", [True, False])
    def test_flannels_file(self, way: Way, backend: str, attachment: str, flanneld: bool) -> None:  # noqa: FBT001
        with Cluster(way, 1) as cluster:
            node, pod = cluster.nodes[0], cluster.nodes[0].pod()
            conf = {"cniVersion": "1.1.0", "name": "pods", "type": backend, "attachment": attachment}
            node.run("ip", "route", "add", "default", "dev", "eth0")
            if flanneld and backend == "vxlan":
                device = ("type", "vxlan", "id", "1", "dev", "eth0", "local", "198.18.0.1", "dstport", "8472")
                node.run("ip", "link", "add", "flannel.1", "mtu", str(NARROW), *device)
            write(node, FLANNEL_SUBNET="10.244.1.1/24", FLANNEL_NETWORK="10.244.0.0/16", FLANNEL_MTU=str(NARROW))

            result = node.call(backend, "ADD", conf, pod).result

            assert node.links(pod)["eth0"]["mtu"] == NARROW
            assert reaches(pod, "10.244.1.1")
            node.call(backend, "CHECK", {**conf, "prevResult": result}, pod).silent()

    @ours
    @pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
    @pytest.mark.parametrize("source", ["underlay", "file"])
    def test_ipv6_is_refused(self, way: Way, backend: str, attachment: str, source: str) -> None:
        with Cluster(way, 1, pods=(V4, V6), mtu=NARROW) as cluster:
            node, pod = cluster.nodes[0], cluster.nodes[0].pod()
            conf = cluster.conf(backend, attachment=attachment, ipMasq=True)
            if source == "file":
                del conf["peers"]
                conf["iface"] = "eth0"
                write(
                    node, FLANNEL_NETWORK="10.244.0.0/16", FLANNEL_SUBNET="10.244.1.1/24", FLANNEL_MTU="1180",
                    FLANNEL_IPV6_NETWORK="fd00:244::/48", FLANNEL_IPV6_SUBNET="fd00:244:0:1::1/64",
                )  # fmt: skip
            before = node.snapshot()

            error = node.call(backend, "ADD", conf, pod).error

            assert error["code"] == 7
            assert "expected at least 1280, found 1" in error["msg"]
            assert error["details"]
            assert node.snapshot() == before
            assert "expected at least 1280" in node.call(backend, "STATUS", conf).error["msg"]

    @ours
    def test_a_peers_ipv6_does_not_hinder_ipv4(self, way: Way, attachment: str) -> None:
        with Cluster(way, mtu=NARROW) as cluster:
            conf = cluster.conf("vxlan", attachment=attachment, ipv6Network="fd00:244::/48")
            conf["peers"][1]["subnets"].append("fd00:244:0:2::/64")
            node, pod = cluster.nodes[0], cluster.nodes[0].pod()
            node.call("vxlan", "STATUS", conf).silent()

            answer = node.call("vxlan", "ADD", conf, pod)

            assert "fd00:244:0:2::/64 is unreachable: expected an MTU of at least 1280" in answer.stderr
            node.call("vxlan", "CHECK", {**conf, "prevResult": answer.result}, pod).silent()


def write(node: Node, **values: str) -> None:
    file = node.path("/run/flannel/subnet.env")
    for path in (file, node.path("/run/cnikit/subnets/pods.env")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
