"""An ADD of `bridge` that fails leaves nothing and takes nothing, against the executables.

Rows and tests marked `ours` are those where the reference is known to do otherwise.
"""

from __future__ import annotations

import pytest

from tests.e2e.bridge_world import BACKENDS, add, dual, ours, settled
from tests.e2e.world import Node, network, wait_same


class TestFailedAdd:
    """Nothing of the pod is left behind by an ADD that failed."""

    @ours
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_bridge_has_another_address(self, node: Node, backend: dict[str, str]) -> None:
        conf = dual(ipMasq=True, macspoofchk=True, **backend)
        settled(node, conf)
        node.run("ip", "addr", "flush", "dev", "cni0")
        node.run("ip", "addr", "add", "10.1.0.77/16", "dev", "cni0")
        before = node.snapshot()
        pod = node.pod()

        error = node.call("bridge", "ADD", conf, pod).error

        assert "already has an IP address different" in error["msg"]
        assert "10.1.0.77" in error["msg"] + error["details"]
        assert set(node.links(pod)) == {"lo"}
        assert [item for item in node.leases("net").values() if pod.container_id in item] == []
        after = node.snapshot()
        assert {**after, "addresses": before["addresses"], "routes": before["routes"]} == before

    @ours
    def test_the_second_range_is_exhausted(self, node: Node) -> None:
        """The address of the first range goes back."""
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd00:1::/126", "rangeEnd": "fd00:1::2"}]],
        }
        add(node, node.pod(), network(ipam=ipam))
        before = node.snapshot()
        pod = node.pod()

        error = node.call("bridge", "ADD", network(ipam=ipam), pod).error

        assert error["code"] == 11
        assert "fd00:1::" in error["msg"]
        wait_same(node.snapshot, before, "the ADD without an address left something")
        assert set(node.links(pod)) == {"lo"}

    def test_the_interface_exists(self, node: Node) -> None:
        """Somebody's interface is neither taken nor removed."""
        pod = node.pod()
        add(node, node.pod(), network())
        node.run("ip", "-n", pod.name, "link", "add", "eth0", "type", "veth", "peer", "name", "theirs")
        mac = node.links(pod)["eth0"]["address"]
        before = node.snapshot()

        error = node.call("bridge", "ADD", network(), pod).error

        assert "eth0" in error["msg"]
        assert "already exists" in error["msg"]
        assert node.links(pod)["eth0"]["address"] == mac
        wait_same(node.snapshot, before, "the refused ADD left something")

    def test_add_again_is_refused_and_the_pod_lives_on(self, node: Node) -> None:
        """A second ADD of the same attachment, which the specification forbids a runtime to make."""
        pod = node.pod()
        first = add(node, pod, dual(ipMasq=True))
        before = node.snapshot()

        assert node.call("bridge", "ADD", dual(ipMasq=True), pod).error["msg"]

        wait_same(node.snapshot, before, "the second ADD changed something")
        assert pod.addresses() == [item["address"] for item in first["ips"]]

    @ours
    @pytest.mark.parametrize("args", ["", "IP=10.1.0.77"])
    def test_add_in_a_second_namespace_is_refused_and_the_pod_lives_on(self, node: Node, args: str) -> None:
        pod = node.pod()
        first = add(node, pod, dual(ipMasq=True))
        other = node.pod()
        before = node.snapshot()

        again: dict[str, str | None] = {"CNI_NETNS": other.path, "CNI_ARGS": args}
        error = node.call("bridge", "ADD", dual(ipMasq=True), pod, env=again).error

        assert f"container {pod.container_id} is attached as eth0 already" in error["msg"]
        wait_same(node.snapshot, before, "the second ADD changed something")
        assert pod.addresses() == [item["address"] for item in first["ips"]]
        assert set(node.links(other)) == {"lo"}

    def test_a_namespace_removed_without_del_and_made_again(self, node: Node) -> None:
        """As in `ip netns del pod; ip netns add pod`: what the kernel has not yet taken apart is in nobody's way."""
        pod = node.pod()
        conf = {"cniVersion": "1.0.0", "name": "layer2", "type": "bridge", "bridge": "cni0"}
        for _ in range(20):
            assert pod.path in [item.get("sandbox") for item in add(node, pod, conf)["interfaces"]]
            node.run("sh", "-c", f"ip netns del {pod.name} && ip netns add {pod.name}")

    @ours
    def test_a_chain_of_our_name_that_masquerades_nothing(self, node: Node) -> None:
        node.run("nft", "add table inet cnikit; add chain inet cnikit masq-net")
        before = node.snapshot()

        error = node.call("bridge", "ADD", network(ipMasq=True, isGateway=True), node.pod()).error

        assert "masq-net" in error["msg"]
        assert "nft list table inet cnikit" in error["details"]
        assert node.snapshot()["nft"] == before["nft"]

    @ours
    def test_the_bridge_is_no_bridge(self, node: Node) -> None:
        node.run("ip", "link", "add", "br9", "type", "veth", "peer", "name", "br9-peer")
        before = node.snapshot()
        pod = node.pod()

        error = node.call("bridge", "ADD", network(bridge="br9"), pod).error

        assert "already exists but is not a bridge" in error["msg"]
        wait_same(node.snapshot, before, "the refused ADD left something")
        assert set(node.links(pod)) == {"lo"}
