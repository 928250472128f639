"""DEL whose CNI_NETNS is by now another pod's: a process ID, or a name below /run/netns, is used again. That pod keeps
its interfaces, and what the attachment left on the node goes all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.bridge_world import add, delete, dual
from tests.e2e.underlay import Cluster
from tests.e2e.world import Node, Pod, Way, network

if TYPE_CHECKING:
    from collections.abc import Callable

RECORDS = "/run/cnikit/networks"


@pytest.fixture(params=["ours", "reference"])
def maker(request: pytest.FixtureRequest, reference: Way) -> Way | None:
    """Whose bridge plugin made the attachment that goes."""
    return reference if request.param == "reference" else None


@pytest.fixture(params=["ours", "reference"])
def neighbour(request: pytest.FixtureRequest, reference: Way) -> Way | None:
    """Whose bridge plugin made the pod that has the namespace now."""
    return reference if request.param == "reference" else None


def moved_into(node: Node, old: Pod, way: Way | None, conf: dict[str, Any]) -> Pod:
    """A pod in the place of one that died with no DEL."""
    node.kill_netns(old)
    new = node.pod(old.name)
    add(node, new, conf, way=way)
    return new


def forget(node: Node) -> None:
    """The node's records are lost."""
    node.run("rm", "-rf", RECORDS)


def inside(pod: Pod, ifname: str = "eth0") -> tuple[str, list[str], bool]:
    """MAC and addresses of a pod's interface, and whether its lo is up."""
    return pod.node.links(pod)[ifname]["address"], pod.addresses(ifname), "UP" in pod.node.links(pod)["lo"]["flags"]


class TestTheOtherPodStays:
    @pytest.mark.parametrize("family", [network, dual], ids=["ipv4", "dual"])
    def test_by_prev_result(
        self, node: Node, maker: Way | None, neighbour: Way | None, family: Callable[..., dict[str, Any]]
    ) -> None:
        """Also where labels and records say nothing: prevResult has another MAC."""
        conf = family(ipMasq=True)
        old = node.pod("reused")
        result = add(node, old, conf, way=maker)
        new = moved_into(node, old, neighbour, conf)
        forget(node)
        before = inside(new)

        answer = node.call("bridge", "DEL", {**conf, "prevResult": result}, old)

        answer.silent()
        assert answer.stderr.count("leaving eth0") == 1
        assert inside(new) == before
        assert {text.split()[0] for text in node.leases("net").values()} == {new.container_id}

    def test_with_its_addresses_only(self, node: Node, maker: Way | None, reference: Way) -> None:
        """A prevResult without MACs, as a runtime of another make may keep it."""
        conf = network()
        old = node.pod("reused")
        result = add(node, old, conf, way=maker)
        new = moved_into(node, old, reference, conf)
        forget(node)
        for interface in result["interfaces"]:
            del interface["mac"]
        before = inside(new)

        node.call("bridge", "DEL", {**conf, "prevResult": result}, old).silent()

        assert inside(new) == before

    def test_in_another_namespace_than_the_records(self, node: Node, reference: Way) -> None:
        conf = network()
        old = node.pod("reused")
        result = add(node, old, conf)
        new = moved_into(node, old, reference, conf)
        before = inside(new)

        for _ in range(2):
            delete(node, old, {**conf, "prevResult": result})

        assert inside(new) == before
        assert len(node.leases("net")) == 1

    @pytest.mark.parametrize("attachment", ["routed", "bridged"])
    @pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
    def test_in_networks_that_span_nodes(self, way: Way, reference: Way, backend: str, attachment: str) -> None:
        with Cluster(way) as cluster:
            conf, node = cluster.conf(backend, attachment=attachment), cluster.nodes[0]
            old = node.pod("reused")
            result = node.call(backend, "ADD", conf, old).result
            new = moved_into(node, old, reference, network("other", bridge="other0"))
            forget(node)
            before = inside(new)

            node.call(backend, "DEL", {**conf, "prevResult": result}, old).silent()

            assert inside(new) == before
            assert node.leases("pods") == {}

    @pytest.mark.parametrize("version", ["0.2.0", "0.3.1"])
    def test_with_no_prev_result_by_record_or_label(self, node: Node, version: str) -> None:
        """Lists before 0.4.0 give none."""
        conf = network(version=version)
        old = node.pod("reused")
        add(node, old, conf)
        new = moved_into(node, old, None, conf)
        before = inside(new)

        delete(node, old, conf)
        forget(node)
        delete(node, old, conf)

        assert inside(new) == before

    def test_when_another_maker_connects_pods_otherwise(self, node: Node) -> None:
        """No bridge plugin makes an interface that is no veth of this node."""
        conf = network()
        pod = node.pod()
        node.run("ip", "-n", pod.name, "link", "add", "eth0", "type", "bridge")

        answer = node.call("bridge", "DEL", conf, pod)

        answer.silent()
        assert "leaving eth0" in answer.stderr
        assert "eth0" in node.links(pod)

    def test_its_lo_by_label(self, node: Node) -> None:
        conf = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}
        old = node.pod("reused")
        node.call("loopback", "ADD", conf, old)
        node.kill_netns(old)
        new = node.pod("reused")
        node.call("loopback", "ADD", conf, new)
        add(node, new, network())
        before = inside(new)

        answer = node.call("loopback", "DEL", conf, old)

        answer.silent()
        assert "leaving lo" in answer.stderr
        assert inside(new) == before
        assert before[2]

    def test_its_lo_by_prev_result(self, node: Node, maker: Way | None, reference: Way) -> None:
        conf = network()
        lo = {"cniVersion": conf["cniVersion"], "name": "net", "type": "loopback"}
        old = node.pod("reused")
        result = add(node, old, conf, way=maker)
        new = moved_into(node, old, reference, conf)
        node.call("loopback", "ADD", lo, new)
        before = inside(new)

        node.call("loopback", "DEL", {**lo, "prevResult": result}, old).silent()

        assert inside(new) == before
        assert before[2]


class TestItsOwnGoes:
    """Whatever says whose it is."""

    @pytest.mark.parametrize("prev_result", [True, False])
    def test_without_a_record(self, node: Node, maker: Way | None, prev_result: bool) -> None:  # noqa: FBT001
        conf = dual(ipMasq=True)
        pod = node.pod()
        result = add(node, pod, conf, way=maker)
        forget(node)

        delete(node, pod, {**conf, "prevResult": result} if prev_result else conf)

        assert set(node.links(pod)) == {"lo"}
        assert node.leases("net") == {}

    def test_with_a_mac_that_tuning_gave(self, node: Node, reference: Way, maker: Way | None) -> None:
        conf = network()
        pod = node.pod()
        first = add(node, pod, conf, way=maker)
        tuning = {"cniVersion": "1.1.0", "name": "net", "type": "tuning", "mac": "c2:11:22:33:44:55"}
        result = node.call("tuning", "ADD", {**tuning, "prevResult": first}, pod, way=reference).result
        forget(node)
        for name, link in node.links().items():
            if link.get("ifalias"):  # so that neither name nor label says whose it is
                node.run("ip", "link", "set", name, "alias", "")
                node.run("ip", "link", "set", name, "address", "c2:00:00:00:00:01")

        delete(node, pod, {**conf, "prevResult": result})

        assert "c2:11:22:33:44:55" in str(result)
        assert set(node.links(pod)) == {"lo"}

    @pytest.mark.parametrize("record", ["kept", "gone"])
    def test_with_a_host_end_that_was_renamed(self, node: Node, record: str) -> None:
        conf = network()
        pod = node.pod()
        result = add(node, pod, conf)
        host_end = result["interfaces"][1]["name"]
        node.run("ip", "link", "set", host_end, "down")
        node.run("ip", "link", "set", host_end, "name", "renamed0", "up")
        if record == "gone":
            forget(node)

        delete(node, pod, {**conf, "prevResult": result})

        assert set(node.links(pod)) == {"lo"}
        assert "renamed0" not in node.links()

    def test_lo_of_its_own_pod_goes_down(self, node: Node, maker: Way | None) -> None:
        conf = network()
        lo = {"cniVersion": conf["cniVersion"], "name": "net", "type": "loopback"}
        pod = node.pod()
        first = node.call("loopback", "ADD", lo, pod).result
        result = add(node, pod, {**conf, "prevResult": first}, way=maker)
        alone = node.pod()
        node.call("loopback", "ADD", lo, alone)

        node.call("loopback", "DEL", {**lo, "prevResult": result}, pod).silent()
        node.call("loopback", "DEL", {**lo, "prevResult": first}, alone).silent()

        assert "UP" not in node.links(alone)["lo"]["flags"]
        assert "UP" not in node.links(pod)["lo"]["flags"]
