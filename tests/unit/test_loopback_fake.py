"""loopback on the fake kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cni import errors
from cni.kernel import ops
from cni.kernel.types import IFF_UP
from cni.testing.fake_kernel import FakeKernel
from cni.testing.faulty_kernel import FaultyKernel
from tests.unit.calls import POD, Node

if TYPE_CHECKING:
    from pathlib import Path

CONF = {"cniVersion": "1.1.0", "name": "lo", "type": "loopback"}
RESULT = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "mtu": 65536, "sandbox": POD}],
    "ips": [{"interface": 0, "address": "127.0.0.1/8"}, {"interface": 0, "address": "::1/128"}],
}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def is_up(node: Node) -> bool:
    return bool(node.pod("links")["lo"]["flags"] & IFF_UP)


def test_add_sets_lo_up_and_tells_its_addresses(node: Node) -> None:
    answer = node.call("loopback", "ADD", CONF)

    assert answer.result == RESULT
    assert is_up(node)
    # A second time, as after a restart of the runtime: the same.
    assert node.call("loopback", "ADD", CONF).result == RESULT


@pytest.mark.parametrize(
    ("version", "interface"),
    [
        ("0.3.1", {"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": POD}),
        ("1.0.0", {"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": POD}),
    ],
)
def test_add_in_other_versions(node: Node, version: str, interface: dict[str, Any]) -> None:
    assert node.call("loopback", "ADD", {**CONF, "cniVersion": version}).result["interfaces"] == [interface]


def test_add_in_the_oldest_version(node: Node) -> None:
    assert node.call("loopback", "ADD", {**CONF, "cniVersion": "0.2.0"}).result == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "127.0.0.1/8"},
        "ip6": {"ip": "::1/128"},
    }


def test_add_passes_prev_result_through(node: Node) -> None:
    previous = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/24"}], "vendor": 1}

    assert node.call("loopback", "ADD", {**CONF, "prevResult": previous}).result == previous
    assert is_up(node)


def test_interface_name_and_args_do_not_matter(node: Node) -> None:
    answer = node.call("loopback", "ADD", CONF, env={"CNI_IFNAME": "eth7", "CNI_ARGS": "K8S_POD_NAME=web"})

    assert answer.result == RESULT


def test_kernel_without_ipv6(tmp_path: Path) -> None:
    node = Node(tmp_path, FakeKernel(ipv6=False))

    assert node.call("loopback", "ADD", CONF).result["ips"] == RESULT["ips"][:1]


@pytest.mark.parametrize("address", ["0a010002", "fd" + "00" * 15])
def test_foreign_address_on_lo_is_refused_before_any_effect(node: Node, address: str) -> None:
    node.kernel.open(POD).apply(ops.addr_add(1, bytes.fromhex(address), 32, nodad=True))

    error = node.call("loopback", "ADD", CONF).error

    assert error["code"] == errors.INTERNAL
    assert "non-loopback address" in error["msg"]
    assert not is_up(node)


def test_add_failing_at_every_verb_leaves_lo_down(tmp_path: Path) -> None:
    verb = 0
    while True:
        verb += 1
        (tmp_path / str(verb)).mkdir()
        node = Node(tmp_path / str(verb))
        faulty = FaultyKernel(node.kernel, verb)
        answer = node.call("loopback", "ADD", CONF, kernel=faulty)
        if not faulty.failed:
            break
        assert "EIO" in answer.error["msg"]
        assert not is_up(node), faulty.failed
    assert answer.result == RESULT
    assert verb > 5


def test_del_sets_lo_down_and_is_content_without_a_pod(node: Node) -> None:
    node.call("loopback", "ADD", CONF)

    for _ in range(2):
        node.call("loopback", "DEL", CONF).silent()
        assert not is_up(node)
    for netns in ("", "/gone"):
        node.call("loopback", "DEL", CONF, netns=netns).silent()


def test_check(node: Node) -> None:
    assert "loopback interface is down" in node.call("loopback", "CHECK", CONF).error["msg"]

    result = node.call("loopback", "ADD", CONF).result

    node.call("loopback", "CHECK", {**CONF, "prevResult": result}).silent()


def test_status_and_gc_have_nothing_to_do(node: Node) -> None:
    node.call("loopback", "ADD", CONF)
    before = node.snapshot()

    node.call("loopback", "STATUS", CONF).silent()
    node.call("loopback", "GC", {**CONF, "cni.dev/valid-attachments": []}).silent()

    assert node.snapshot() == before
