"""bridge's VLAN options: on a kernel that filters VLANs, next to the reference, and what this machine's kernel says.

The first kernel is booted once in a small virtual machine (tests/kernel_vm), all cases run in it one after the
other, through the agent as well, and the tests here judge what was seen. Its package is in the tests' names.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.world import network
from tests.kernel_vm import vm
from tests.kernel_vm.vlan import CASES

if TYPE_CHECKING:
    from tests.e2e.world import Node

OURS = ("one-shot", "agent")
ALL = (*OURS, "reference")
OWN = ["PVID", "Egress Untagged"]

# The VLANs of a pod's port in each case, with their flags.
VLANS: dict[str, dict[int, list[str]]] = {
    "vlan": {100: OWN},
    "trunk": {1: OWN, 101: [], 102: [], 103: [], 200: []},
    "both": {100: OWN, 200: []},
    "preserve": {1: ["Egress Untagged"], 100: OWN},
    "gateway": {100: OWN},
    "layer2": {100: OWN},
}

pytestmark = pytest.mark.timeout(1200)
in_the_vm = pytest.mark.parametrize("kernel", [vm.KERNEL_PACKAGE])
each_case = pytest.mark.parametrize("case", CASES)
each_of_ours = pytest.mark.parametrize("way", OURS)


@pytest.fixture(scope="module")
def seen(seen_in_the_vm: dict[str, Any]) -> dict[str, Any]:
    """What tests/kernel_vm/vlan.py saw."""
    for case, by_way in seen_in_the_vm["cases"].items():
        assert not any("failed" in one for one in by_way.values()), (case, by_way)
    return seen_in_the_vm


def named(seen: dict[str, Any], case: str, way: str) -> dict[str, Any]:
    """One case with the veths named after what they are."""
    one = seen["cases"][case][way]
    text = json.dumps(one)
    for result, pod in zip(one["results"], ("first", "second"), strict=True):
        text = text.replace(result["interfaces"][1]["name"], pod)
    veths = [name for name in json.loads(text)["links"] if name.startswith("veth")]
    for name in veths:
        text = text.replace(name, "gateway-port")
    assert len(veths) == (case == "gateway")
    found: dict[str, Any] = json.loads(text)
    return found


@in_the_vm
@each_case
@pytest.mark.parametrize("way", ALL)
def test_ports_carry_the_vlans(seen: dict[str, Any], kernel: str, case: str, way: str) -> None:
    found = named(seen, case, way)

    vlans = {port: _by_id(entries) for port, entries in found["vlans"].items()}

    gateway = {"gateway-port": {100: OWN}} if case == "gateway" else {}
    assert vlans == {"cni0": {1: OWN}, "first": VLANS[case], "second": VLANS[case], **gateway}
    assert found["links"]["cni0"]["filters"] == 1


@in_the_vm
@each_case
@each_of_ours
def test_links_and_results_are_the_reference_s(seen: dict[str, Any], kernel: str, case: str, way: str) -> None:
    ours, reference = (named(seen, case, one) for one in (way, "reference"))

    assert ours["links"] == reference["links"]
    assert ours["pod"] == reference["pod"]
    assert ("UP" in ours["pod"]["eth0"]) == (case != "layer2")
    assert list(map(_comparable, ours["results"])) == list(map(_comparable, reference["results"]))


@in_the_vm
@each_case
@pytest.mark.parametrize("way", ALL)
def test_pods_reach_each_other_and_the_gateway_with_the_first_packet(
    seen: dict[str, Any], kernel: str, case: str, way: str
) -> None:
    pings = seen["cases"][case][way]["pings"]

    assert len(pings) == {"layer2": 0, "gateway": 4}.get(case, 1)
    assert all(pings.values()), pings


@in_the_vm
@each_case
@each_of_ours
def test_check_of_the_first_pod_after_a_second_one_joined(
    seen: dict[str, Any], kernel: str, case: str, way: str
) -> None:
    assert seen["cases"][case][way]["check"] == [[0, "", ""], [0, "", ""]]


@in_the_vm
@each_case
@each_of_ours
def test_del_leaves_what_pods_share_and_nothing_else(seen: dict[str, Any], kernel: str, case: str, way: str) -> None:
    found = named(seen, case, way)

    assert found["del"] == [[0, "", ""], [0, "", ""]]
    assert found["left"] == {}
    assert set(found["links after"]) == {"lo", "cni0"} | ({"cni0.100", "gateway-port"} if case == "gateway" else set())
    assert all(elements is None for elements in found["elements after"])


@in_the_vm
@each_of_ours
def test_a_bridge_that_does_not_filter_is_refused_and_left_as_it_is(
    seen: dict[str, Any], kernel: str, way: str
) -> None:
    refusal = seen["refusal"][way]
    status, stdout, _ = refusal["answer"]

    assert status == 1
    error = json.loads(stdout)
    assert error["code"] == 7
    assert "expected bridge cni0 to filter VLANs" in error["msg"]
    assert "ip link set cni0 type bridge vlan_filtering 1" in error["details"]
    assert refusal["unchanged"]


@pytest.mark.ours
@pytest.mark.parametrize("kernel", [os.uname().release])
@pytest.mark.parametrize(
    "options", [{"vlan": 100}, {"vlanTrunk": [{"minID": 5, "maxID": 6}]}, {"vlan": 5, "isGateway": True}], ids=str
)
def test_this_machine_s_kernel_serves_vlans_or_is_refused_before_any_effect(
    node: Node, options: dict[str, Any], kernel: str
) -> None:
    filters = kernel_filters_vlans(node)
    pod = node.pod()
    before = node.snapshot()

    answer = node.call("bridge", "ADD", network(**{"isDefaultGateway": False, **options}), pod)

    if filters:
        port = answer.result["interfaces"][1]["name"]
        (found,) = [item["vlans"] for item in node.bridge("vlan", "show") if item["ifname"] == port]
        assert found
        return
    assert answer.error["code"] == 2
    assert "expected a kernel with bridge VLAN filtering, found one without" in answer.error["msg"]
    assert "CONFIG_BRIDGE_VLAN_FILTERING" in answer.error["details"]
    assert node.snapshot() == before
    assert list(node.links(pod)) == ["lo"]


def kernel_filters_vlans(node: Node) -> bool:
    """Whether a bridge of this kernel can; every kernel shows the setting, one that cannot refuses to set it."""
    can = node.attempt("ip", "link", "add", "probe", "type", "bridge", "vlan_filtering", "1").ok
    if can:
        node.run("ip", "link", "del", "probe")
    return can


def _by_id(entries: list[dict[str, Any]]) -> dict[int, list[str]]:
    return {
        vid: entry.get("flags", [])
        for entry in entries
        for vid in range(entry["vlan"], entry.get("vlanEnd", entry["vlan"]) + 1)
    }


def _comparable(result: dict[str, Any]) -> dict[str, Any]:
    """Without what is random (MACs) and what the reference does not tell (MTU); `dns` may be an empty object."""
    interfaces = [{key: item.get(key, "") for key in ("name", "sandbox")} for item in result["interfaces"]]
    return {**result, "interfaces": interfaces, "dns": result.get("dns", {})}
