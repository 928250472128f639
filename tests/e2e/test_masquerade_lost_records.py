"""/run/cnikit is lost while pods run, or the reference makes the DEL: what is in nftables says what was whose."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.e2e.bridge_world import add, delete, dual
from tests.e2e.world import Node, Pod, Way, without_length

VALID = "cni.dev/valid-attachments"
LOST = {"everything": "/run/cnikit/networks", "holders": "/run/cnikit/networks/net/holders"}


def elements(node: Node) -> dict[str, str]:
    """The masqueraded addresses, each with its label."""
    found: dict[str, str] = {}
    for item in node.nft():
        for element in item.get("set", {}).get("elem", []) if item.get("set", {}).get("table") == "cnikit" else []:
            found[element["elem"]["val"]] = element["elem"]["comment"]
    return found


def label(pod: Pod) -> str:
    return f"cnikit net/{pod.container_id}/eth0"


def gc(node: Node, *pods: Pod) -> None:
    valid = [{"containerID": pod.container_id, "ifname": "eth0"} for pod in pods]
    node.call("bridge", "GC", dual(ipMasq=True) | {VALID: valid}).silent()


@pytest.mark.parametrize("lost", LOST)
def test_check_and_del_after_the_loss(node: Node, lost: str) -> None:
    conf, pods = dual(ipMasq=True), [node.pod(), node.pod()]
    results = [add(node, pod, conf) for pod in pods]
    node.run("rm", "-r", LOST[lost])

    for pod, result in zip(pods, results, strict=True):
        node.call("bridge", "CHECK", {**conf, "prevResult": result}, pod).silent()
    delete(node, pods[0], conf)

    assert set(elements(node).values()) == {label(pods[1])}
    assert len(elements(node)) == 2
    node.call("bridge", "CHECK", {**conf, "prevResult": results[1]}, pods[1]).silent()
    node.kill_netns(pods[1])
    delete(node, pods[1], conf)
    assert elements(node) == {}
    assert node.leases("net") == {}


@pytest.mark.parametrize("lost", LOST)
def test_gc_after_the_loss(node: Node, lost: str) -> None:
    conf, pods = dual(ipMasq=True), [node.pod(), node.pod()]
    for pod in pods:
        add(node, pod, conf)
    node.run("rm", "-r", LOST[lost])
    node.kill_netns(pods[0])

    gc(node, pods[1])

    assert set(elements(node).values()) == {label(pods[1])}
    assert len(elements(node)) == 2
    gc(node)
    assert elements(node) == {}


@pytest.mark.parametrize("lost", [*LOST, "nothing"])
def test_a_pod_without_masquerading_on_an_address_that_the_reference_released(
    node: Node, reference: Way, lost: str
) -> None:
    outside = node.outside()
    masqueraded, conf = dual(ipMasq=True), dual(runtimeConfig={"ips": ["10.1.0.2", "fd00:1::2"]})
    former, pod = node.pod(), node.pod()
    add(node, former, masqueraded)
    if lost in LOST:
        node.run("rm", "-r", LOST[lost])
    delete(node, former, masqueraded, way=reference)
    assert len(elements(node)) == 2

    result = add(node, pod, conf)

    assert elements(node) == {}
    assert [without_length(item["address"]) for item in result["ips"]] == ["10.1.0.2", "fd00:1::2"]
    for family in (socket.AF_INET, socket.AF_INET6):
        with pod.socket(family) as sender:
            assert outside.source_of(sender) != outside.node_address(family)


@pytest.mark.parametrize("lost", [*LOST, "nothing"])
def test_the_label_is_of_the_last_who_came_to_an_address(node: Node, reference: Way, lost: str) -> None:
    conf: dict[str, Any] = dual(ipMasq=True, runtimeConfig={"ips": ["10.1.0.2", "fd00:1::2"]})
    former, pod = node.pod(), node.pod()
    add(node, former, conf)
    if lost in LOST:
        node.run("rm", "-r", LOST[lost])
    delete(node, former, conf, way=reference)

    result = add(node, pod, conf)

    assert set(elements(node).values()) == {label(pod)}
    node.run("rm", "-r", "/run/cnikit/networks")
    delete(node, former, conf)
    gc(node, pod)
    assert len(elements(node)) == 2
    node.call("bridge", "CHECK", {**conf, "prevResult": result}, pod).silent()


def test_del_with_a_full_run(node: Node) -> None:
    """Nothing can be written, and the labels are enough."""
    conf, pod = dual(ipMasq=True), node.pod()
    add(node, pod, conf)
    node.run("rm", "-r", "/run/cnikit/networks")
    node.run("mkdir", "/run/cnikit/networks")
    node.run("mount", "-t", "tmpfs", "-o", "nr_inodes=3", "none", "/run/cnikit/networks")

    delete(node, pod, conf)

    assert elements(node) == {}


def guarded(node: Node) -> set[str]:
    """The container IDs of the pods whose MAC is checked, and of all chains for that."""
    jumps = {item["rule"]["comment"] for item in node.nft() if item.get("rule", {}).get("chain") == "PREROUTING"}
    chains = {item["chain"]["name"] for item in node.nft() if item.get("chain", {}).get("family") == "bridge"}
    found = {text.removeprefix("macspoofchk-").removesuffix("-eth0") for text in jumps}
    names = {text.removeprefix("cni-br-iface-").removesuffix("-mac").removesuffix("-eth0") for text in chains}
    assert names - {"PREROUTING"} == found
    return found


def test_gc_removes_the_mac_check_of_a_pod_whose_record_is_lost(node: Node) -> None:
    """That of a valid pod stays, and so does that of another network's pod, which GC knows nothing of."""
    conf, other = dual(macspoofchk=True), dual(macspoofchk=True, name="other", bridge="br-other")
    dead, valid, others = node.pod(), node.pod(), node.pod()
    for pod, its in ((dead, conf), (valid, conf), (others, other)):
        add(node, pod, its)
    node.run("rm", "-r", "/run/cnikit/networks")
    node.kill_netns(dead)
    assert guarded(node) == {pod.container_id for pod in (dead, valid, others)}

    gc(node, valid)

    assert guarded(node) == {pod.container_id for pod in (valid, others)}
    gc(node)
    assert guarded(node) == {others.container_id}
