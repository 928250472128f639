"""Pods on one bridge have different MACs, whatever their addresses have in common, and reach each other (adr/022)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.bridge_world import add, delete, ours
from tests.e2e.underlay import ping
from tests.e2e.world import Node, Pod, network, without_length

pytestmark = ours
BRIDGE = "br-ext"


def on_the_bridge(name: str, *subnets: str) -> dict[str, Any]:
    ranges = [[{"subnet": subnet}] for subnet in subnets]
    return network(name, bridge=BRIDGE, ipam={"type": "host-local", "ranges": ranges})


def asked(address: str) -> dict[str, Any]:
    return {"CNI_ARGS": f"IP={address}"}


def mac(pod: Pod, ifname: str = "eth0") -> str:
    found: str = pod.ip("link", "show", "dev", ifname)[0]["address"]
    return found


def reach_each_other(one: Pod, other: Pod) -> None:
    assert mac(one) != mac(other)
    for sender, target in ((one, other), (other, one)):
        address = without_length(target.addresses()[0])
        answer = ping(sender, address)
        assert answer.ok, f"{address} does not answer: {answer}"


def test_two_networks(node: Node) -> None:
    """Both give their first pod ...::2."""
    pods = [node.pod(), node.pod()]
    for pod, conf in zip(pods, (on_the_bridge("a", "fd00:1::/64"), on_the_bridge("b", "fd00:2::/64")), strict=True):
        add(node, pod, conf)

    assert [pod.addresses() for pod in pods] == [["fd00:1::2/64"], ["fd00:2::2/64"]]
    reach_each_other(*pods)


def test_two_addresses_of_one_network(node: Node) -> None:
    conf, pods = on_the_bridge("a", "fd00:1::/64"), [node.pod(), node.pod()]
    for pod, address in zip(pods, ("fd00:1::1:0:9", "fd00:1::2:0:9"), strict=True):
        add(node, pod, conf, env=asked(address))

    reach_each_other(*pods)


def test_an_ipv4_pod_and_an_ipv6_one(node: Node) -> None:
    """10.1.0.9 is 0a01:0009. Each of them, and the node, reaches what it shares a family with."""
    conf4, conf6 = on_the_bridge("four", "10.1.0.0/24"), on_the_bridge("six", "fd00:1::/64")
    four, six, other4, other6 = (node.pod() for _ in range(4))
    add(node, four, conf4, env=asked("10.1.0.9"))
    add(node, six, conf6, env=asked("fd00:1::a01:9"))
    add(node, other4, conf4)
    add(node, other6, conf6)

    assert mac(four) == "0a:58:0a:01:00:09"
    assert len({mac(pod) for pod in (four, six, other4, other6)}) == 4
    reach_each_other(four, other4)
    reach_each_other(six, other6)


def test_a_pod_in_two_networks(node: Node) -> None:
    pod, other = node.pod(), node.pod()
    add(node, pod, on_the_bridge("a", "fd00:1::/64"))
    second = on_the_bridge("b", "fd00:2::/64") | {"isDefaultGateway": False}
    add(node, pod, second, ifname="net1")
    add(node, other, second)

    assert len({mac(pod), mac(pod, "net1"), mac(other)}) == 3
    assert ping(pod, without_length(other.addresses()[0])).ok


@pytest.mark.parametrize(
    ("subnets", "address"),
    [
        (("10.1.0.0/24",), "10.1.0.7"),
        (("fd00:1::/64",), "fd00:1::7"),
        (("fd00:1::/64", "10.1.0.0/24"), "fd00:1::7"),
    ],
    ids=["ipv4", "ipv6", "ipv6-first"],
)
def test_an_address_that_is_used_again_has_its_mac(node: Node, subnets: tuple[str, ...], address: str) -> None:
    """In another container, and another network: neighbour entries of the one before are right."""
    first, second = node.pod(), node.pod()
    add(node, first, on_the_bridge("a", *subnets), env=asked(address))
    before = mac(first)
    delete(node, first, on_the_bridge("a", *subnets))

    add(node, second, on_the_bridge("b", *subnets), env=asked(address))

    assert mac(second) == before


@pytest.mark.parametrize("record", ["kept", "lost"])
def test_check_takes_a_mac_of_the_rule_before(node: Node, record: str) -> None:
    """A pod that was made by an earlier version: 0a:58 and the last four bytes of its IPv6 address."""
    conf, pod, old = on_the_bridge("a", "fd00:1::/64"), node.pod(), "0a:58:00:00:00:02"
    result = add(node, pod, {**conf, "runtimeConfig": {"mac": old}})
    if record == "lost":
        node.run("rm", "-r", "/run/cnikit/networks")

    node.call("bridge", "CHECK", {**conf, "prevResult": result}, pod).silent()

    assert mac(pod) == old
    delete(node, pod, {**conf, "prevResult": result})
    assert set(node.links(pod)) == {"lo"}
