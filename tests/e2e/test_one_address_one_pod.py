"""Two networks with one subnet on one node: an address is one pod's, wherever the node routes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.bridge_world import add, delete
from tests.e2e.underlay import Cluster
from tests.e2e.underlay import delete as delete_from
from tests.e2e.world import network, wait_until, without_length

if TYPE_CHECKING:
    from tests.e2e.world import Node, Way

IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]}


def net(name: str, bridge: str = "", **options: Any) -> dict[str, Any]:
    """A network in the node's routing, with the same subnets as any other."""
    return network(name=name, bridge=bridge or f"br-{name}", **{"ipam": IPAM, **options})


def addresses(result: dict[str, Any]) -> list[str]:
    return [without_length(item["address"]) for item in result["ips"]]


@pytest.mark.parametrize("bridge", ["", "br-shared"])
def test_networks_in_the_nodes_routing_share_no_address(node: Node, bridge: str) -> None:
    one, two, three = node.pod(), node.pod(), node.pod()
    a, b = net("a", bridge), net("b", bridge)

    first = add(node, one, a)
    second = add(node, two, b)

    assert addresses(first) == ["10.1.0.2", "fd00:1::2"]
    assert addresses(second) == ["10.1.0.3", "fd00:1::3"]
    node.call("bridge", "CHECK", {**a, "prevResult": first}, one).silent()
    node.call("bridge", "CHECK", {**b, "prevResult": second}, two).silent()

    delete(node, one, a)
    add(node, three, net("c", bridge))
    assert min(three.addresses()).startswith("10.1.0.2/")
    for pod, conf in ((two, b), (three, net("c", bridge))):
        delete(node, pod, conf)
    assert node.run("ls", "/run/cnikit/addresses") == ""


def test_layer_2_networks_are_independent(node: Node) -> None:
    one, two, three = node.pod(), node.pod(), node.pod()

    assert addresses(add(node, one, net("a", isDefaultGateway=False))) == ["10.1.0.2", "fd00:1::2"]
    assert addresses(add(node, two, net("b", isDefaultGateway=False))) == ["10.1.0.2", "fd00:1::2"]
    assert addresses(add(node, three, net("c"))) == ["10.1.0.2", "fd00:1::2"]


def test_an_address_that_is_asked_for_is_refused_with_its_holder(node: Node) -> None:
    one, two = node.pod(), node.pod()
    add(node, one, net("a"))
    before = node.snapshot()

    error = node.call("bridge", "ADD", net("b", args={"cni": {"ips": ["10.1.0.2"]}}), two).error

    assert error["code"] == 11
    assert f"{one.container_id}/eth0 of network a" in error["msg"]
    assert node.leases("b") == {}
    assert "eth0" not in node.links(two)
    assert node.leases("a").keys() == {"10.1.0.2", "fd00:1::2"}
    assert {name for name in node.snapshot() if name not in before} == set()


def test_another_ipam_plugin_is_refused_its_address(node: Node, peers: Any) -> None:
    """The reference's `static` knows of no claims."""
    one, two = node.pod(), node.pod()
    add(node, one, net("a"))
    conf = net("b", ipam={"type": "static", "addresses": [{"address": "10.1.0.2/24"}]})
    env = {"CNI_PATH": f"{node.way.bin_dir}:{peers}"}

    error = node.call("bridge", "ADD", conf, two, env=env).error

    assert error["code"] == 11
    assert (
        f"address 10.1.0.2: expected no other pod with it on this node, found {one.container_id}/eth0" in error["msg"]
    )
    assert "eth0" not in node.links(two)
    node.call("bridge", "DEL", conf, two, env=env).silent()
    node.call("bridge", "DEL", net("a"), one).silent()
    assert node.call("bridge", "ADD", conf, two, env=env).ok


def test_of_many_at_once_no_two_get_one_address(node: Node) -> None:
    waiting = dict(enumerate(node.many_pods(12)))
    found: list[str] = []
    for _ in range(12):  # one of those that lose to each other has succeeded each time
        calls = {number: node.start("bridge", "ADD", net("abc"[number % 3]), pod) for number, pod in waiting.items()}
        for number, call in calls.items():
            answer = call.wait()
            if answer.ok:
                found += addresses(answer.result)
                del waiting[number]
            else:
                assert answer.error["code"] == 11
        if not waiting:
            break

    assert not waiting
    assert len(found) == len(set(found)) == 24


@pytest.mark.parametrize("backend", ["host-gw", "vxlan"])
@pytest.mark.parametrize("attachment", ["routed", "bridged"])
def test_networks_of_several_nodes(way: Way, backend: str, attachment: str) -> None:
    """A pod behind a route of its own, or on another plugin's bridge, is in the node's routing too."""
    with Cluster(way) as cluster:
        node = cluster.nodes[0]
        conf = cluster.conf(backend, attachment=attachment)
        one, two = cluster.attach(conf, 1)[0], node.pod()
        subnet = one.addresses()[0].rpartition(".")[0] + ".0/24"

        added = add(node, two, net("other", "br-other", ipam={"type": "host-local", "ranges": [[{"subnet": subnet}]]}))

        assert added["ips"][0]["address"].rpartition("/")[0] not in [
            text.rpartition("/")[0] for text in one.addresses()
        ]
        delete_from(one, conf)
        assert os.listdir(node.path("/run/cnikit/addresses")) == addresses(added)


def test_gc_gives_an_address_back_whose_pod_is_gone(node: Node) -> None:
    one, two = node.pod(), node.pod()
    add(node, one, net("a"))
    node.run("rm", "-r", "/run/cnikit/networks")  # claims without records

    node.call("bridge", "GC", {**net("a"), "cni.dev/valid-attachments": []}, one).silent()

    assert node.run("ls", "/run/cnikit/addresses") == ""
    wait_until(lambda: addresses(add(node, two, net("b")))[0] == "10.1.0.2", "the address is free")


def test_check_reports_a_pod_of_another_network_with_its_address(node: Node) -> None:
    """As a build without claims made them."""
    one, two = node.pod(), node.pod()
    first = add(node, one, net("a"))
    for address in addresses(first):
        node.run("rm", f"/run/cnikit/addresses/{address}")
    second = add(node, two, net("b"))
    assert addresses(first) == addresses(second)

    error = node.call("bridge", "CHECK", {**net("a"), "prevResult": first}, one).error

    assert f"{two.container_id}/eth0 of network b with it too" in error["msg"]
    delete(node, one, net("a"))
    node.call("bridge", "CHECK", {**net("b"), "prevResult": second}, two).silent()


def test_an_exhausted_pool_says_who_has_its_addresses(node: Node) -> None:
    small = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/30"}]]}
    one, two = node.pod(), node.pod()
    add(node, one, net("a", ipam=small))

    error = node.call("bridge", "ADD", net("b", ipam=small), two).error
    assert error["code"] == 11
    assert f"10.1.0.2 by {one.container_id}/eth0 of network a" in error["msg"]
    assert node.call("bridge", "STATUS", net("b", ipam=small), two).error["code"] == 50


@pytest.mark.parametrize("attachment", ["bridged", "routed"])
def test_pods_of_a_build_without_claims_keep_their_addresses(way: Way, attachment: str) -> None:
    with Cluster(way) as cluster:
        node = cluster.nodes[0]
        conf = cluster.conf("host-gw", attachment=attachment)
        one, second_layer, two = cluster.attach(conf, 1)[0], node.pod(), node.pod()
        subnet = one.addresses()[0].rpartition(".")[0] + ".0/24"
        ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]]}
        add(node, second_layer, net("l2", ipam=ipam, isDefaultGateway=False, runtimeConfig={"ips": [hosts(subnet, 3)]}))
        node.run("rm", "-r", "/run/cnikit/addresses")

        added = add(node, two, net("other", "br-other", ipam=ipam))

        assert addresses(added) == [hosts(subnet, 3)]
        claimed = set(os.listdir(node.path("/run/cnikit/addresses")))
        assert claimed == {without_length(text) for text in one.addresses()} | {hosts(subnet, 3)}


def hosts(subnet: str, number: int) -> str:
    return subnet.replace(".0/24", f".{number}")


@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
def test_pods_of_the_reference_keep_their_addresses(node: Node, reference: Way, plugin: str) -> None:
    """Who moves a node to our plugins has pods on it, and no claims yet."""
    one, two, second_layer = node.pod(), node.pod(), node.pod()
    theirs = net("a", "br-shared", type=plugin, cniVersion="1.0.0")
    first = node.call(plugin, "ADD", theirs, one, way=reference).result

    added = add(node, two, net("b", "br-shared"))
    beside = add(node, second_layer, net("c", isDefaultGateway=False))

    assert addresses(first) == ["10.1.0.2", "fd00:1::2"] == addresses(beside)
    assert addresses(added) == ["10.1.0.3", "fd00:1::3"]
    error = node.call("bridge", "ADD", net("d", args={"cni": {"ips": ["10.1.0.2"]}}), node.pod()).error
    assert "/var/lib/cni/networks/a/10.1.0.2" in error["msg"]
    node.call(plugin, "DEL", {**theirs, "prevResult": first}, one, way=reference).silent()
    assert addresses(add(node, node.pod(), net("d"))) == ["10.1.0.2", "fd00:1::2"]


def test_the_route_to_a_pod_that_the_reference_attached_meanwhile_stays(way: Way, reference: Way) -> None:
    with Cluster(way) as cluster:
        node, conf = cluster.nodes[0], cluster.conf("host-gw")
        cluster.attach(conf, 1)
        theirs, pod = node.pod(), node.pod()
        ipam = {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.3"}]]}
        ptp = {"cniVersion": "1.0.0", "name": "theirs", "type": "ptp", "ipam": ipam}
        assert addresses(node.call("ptp", "ADD", ptp, theirs, way=reference).result) == ["10.244.1.3"]
        route = node.ip("route", "show", "10.244.1.3")

        error = node.call("host-gw", "ADD", conf, pod).error

        assert error["code"] == 11
        assert (
            f"address 10.244.1.3: expected no route to it on this node, found one over {route[0]['dev']}"
            in error["msg"]
        )
        assert node.ip("route", "show", "10.244.1.3") == route
        assert addresses(node.call("host-gw", "ADD", conf, pod).result) == ["10.244.1.4"]


def test_an_address_is_free_when_the_reference_has_deleted_its_pod(node: Node, reference: Way) -> None:
    """Its DEL leaves our record and our claim."""
    one, two = node.pod(), node.pod()
    first = add(node, one, net("a"))
    node.call("bridge", "DEL", {**net("a"), "prevResult": first}, one, way=reference).silent()
    assert node.files("/run/cnikit/networks/a/attachments")

    second = add(node, two, net("b"))

    assert addresses(second) == ["10.1.0.2", "fd00:1::2"]
    node.call("bridge", "CHECK", {**net("b"), "prevResult": second}, two).silent()
    node.call("bridge", "GC", {**net("a"), "cni.dev/valid-attachments": []}, one).silent()
    assert node.files("/run/cnikit/addresses").keys() == {"10.1.0.2", "fd00:1::2"}


def test_the_address_of_a_pod_whose_namespace_is_gone_is_free(node: Node) -> None:
    one, two = node.pod(), node.pod()
    add(node, one, net("a"))
    node.kill_netns(one)

    wait_until(lambda: not [name for name in node.links() if name.startswith("veth")], "its link is gone")

    assert addresses(add(node, two, net("b"))) == ["10.1.0.2", "fd00:1::2"]
