"""The plugin of docs/plugin-guide.md on the fake kernel: the way that the guide recommends for one's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cni import addr, dispatch
from cni.kernel import ops
from cni.testing.fake_kernel import FakeKernel
from cni.world import World

if TYPE_CHECKING:
    from pathlib import Path

POD = "/run/netns/pod"
VIPS = ["203.0.113.10", "2001:db8::10"]
MADE_BY_BRIDGE = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "mac": "0a:58:0a:01:00:02", "sandbox": POD}],
    "ips": [{"address": "10.1.0.2/24", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
    "dns": {"nameservers": ["10.1.0.1"]},
    "example.org/kept": [1, 2],
}
VALID = "cni.dev/valid-attachments"


class Stdin:
    """A configuration where the executable has its stdin."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._data = json.dumps(config).encode()

    def all(self) -> bytes:
        return self._data

    def probe(self) -> bytes:
        return self._data


class Node:
    """A node with one pod, whose eth0 is there already, and calls of the plugin on it."""

    def __init__(self, run_dir: Path, *, ipv6: bool = True) -> None:
        self.kernel = FakeKernel(ipv6=ipv6)
        self.run_dir = run_dir
        self.notes: list[str] = []
        self.kernel.add_netns(POD)
        self.pod = self.kernel.open(POD)
        self.kernel.own().apply(ops.veth_add("veth1", None, "eth0", None, self.pod))

    def call(self, command: str, kernel: Any = None, **config: Any) -> tuple[int, Any]:
        """Exit code and answer of one call, as a runtime would make it."""
        environ = {"CNI_CONTAINERID": "pod1", "CNI_NETNS": POD, "CNI_IFNAME": "eth0", "CNI_PATH": "/"}
        stdin = Stdin({"cniVersion": "1.1.0", "name": "net", "type": "vip", "addresses": VIPS, **config})
        world = World(
            {"vip": "docs.example_plugin"}, kernel or self.kernel, lambda: 0.0, self.note,
            own_plugin=lambda _path: None, boot_id=lambda: "boot", run_dir=str(self.run_dir),
        )  # fmt: skip
        written: list[bytes] = []
        status = dispatch.serve(
            world,
            "vip",
            {**environ, "CNI_COMMAND": command},
            stdin,
            lambda _, data: written.extend([data] if data else []),
        )
        return status, json.loads(written[0]) if written else None

    def note(self, line: str) -> None:
        self.notes.append(line)

    def records(self) -> list[str]:
        return [path.name for path in self.run_dir.rglob("attachments/*")]

    def on_lo(self) -> list[str]:
        return [addr.unpack(address.packed) for address in self.pod.addresses(1)]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_add_passes_the_result_on_and_extends_it(node: Node) -> None:
    status, result = node.call("ADD", prevResult=MADE_BY_BRIDGE)

    assert status == 0
    assert result == {
        **MADE_BY_BRIDGE,
        "interfaces": [*MADE_BY_BRIDGE["interfaces"], {"name": "lo", "sandbox": POD}],
        "ips": [
            *MADE_BY_BRIDGE["ips"],
            {"address": "203.0.113.10/32", "interface": 1},
            {"address": "2001:db8::10/128", "interface": 1},
        ],
    }
    assert node.on_lo() == VIPS
    assert [node.pod.conf(addr.AF_INET, "eth0", key) for key in ("arp_ignore", "arp_announce")] == ["1", "2"]


def test_del_gives_back_the_pod_and_may_be_repeated(node: Node) -> None:
    node.call("ADD", prevResult=MADE_BY_BRIDGE)

    assert node.call("DEL") == (0, None)
    assert node.on_lo() == []
    assert node.records() == []
    assert node.call("DEL") == (0, None)


def test_del_after_the_pod(node: Node) -> None:
    node.call("ADD", prevResult=MADE_BY_BRIDGE)
    node.kernel.remove_netns(POD)

    assert node.call("DEL") == (0, None)
    assert node.records() == []


def test_del_leaves_an_address_of_somebody_else(node: Node) -> None:
    node.pod.apply(ops.addr_add(1, addr.pack(VIPS[1]) or b"", 128, nodad=True))

    status, error = node.call("ADD", prevResult=MADE_BY_BRIDGE)
    assert status == 1
    assert error["code"] == 999
    assert "2001:db8::10/128" in error["msg"]
    node.call("DEL")

    assert node.on_lo() == [VIPS[1]]


def test_check_names_expected_and_found(node: Node) -> None:
    _, result = node.call("ADD", prevResult=MADE_BY_BRIDGE)
    assert node.call("CHECK", prevResult=result) == (0, None)

    node.pod.apply(ops.addr_del(1, addr.pack(VIPS[0]) or b"", 32))
    _, error = node.call("CHECK", prevResult=result)
    assert error["msg"] == "vip: expected 203.0.113.10 on lo in the pod, found 2001:db8::10"

    node.call("DEL")
    node.call("ADD", prevResult=MADE_BY_BRIDGE)
    node.pod.set_conf(addr.AF_INET, "eth0", "arp_announce", "0")
    _, error = node.call("CHECK", prevResult=result)
    assert error["msg"] == "vip: expected arp_announce of eth0 to be 2 in the pod, found 0"


def test_status(tmp_path: Path) -> None:
    assert Node(tmp_path).call("STATUS") == (0, None)

    _, error = Node(tmp_path, ipv6=False).call("STATUS")
    assert error["code"] == 50
    assert Node(tmp_path, ipv6=False).call("STATUS", addresses=VIPS[:1]) == (0, None)


def test_gc_forgets_what_is_not_valid(node: Node) -> None:
    node.call("ADD", prevResult=MADE_BY_BRIDGE)

    assert node.call("GC", **{VALID: [{"containerID": "pod1", "ifname": "eth0"}]}) == (0, None)
    assert node.records() == ["pod1:eth0"]
    assert node.call("GC", **{VALID: []}) == (0, None)
    assert node.records() == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "vip: expected an earlier plugin to have made eth0, found none"),
        ({"addresses": ["10.1.0.300"]}, 'addresses[0]: expected an IP address, found "10.1.0.300"'),
        ({"addresses": "10.1.0.3"}, 'addresses: expected an array, found "10.1.0.3"'),
        ({"addresses": [1]}, "addresses[0]: expected a string, found 1"),
    ],
)
def test_bad_configuration_is_refused_before_any_effect(node: Node, config: dict[str, Any], expected: str) -> None:
    before = node.kernel.snapshot()

    status, error = node.call("ADD", **config)

    assert (status, error["code"], error["msg"]) == (1, 7, expected)
    assert node.kernel.snapshot() == before
    assert node.records() == []


@pytest.mark.parametrize("wrong", ["x", 5, {}, [5], ["10.1.0.300"]])
def test_del_and_gc_do_not_mind_what_became_of_the_configuration(node: Node, wrong: Any) -> None:
    for verb in ("DEL", "GC"):
        assert node.call("ADD", prevResult=MADE_BY_BRIDGE)[0] == 0

        assert node.call(verb, **{VALID: []}, addresses=wrong)[0] == 0

        assert node.records() == []


def test_add_that_fails_at_any_verb_leaves_nothing(node: Node) -> None:
    before = node.kernel.snapshot()
    counting = node.kernel.failing(0)
    node.call("ADD", counting, prevResult=MADE_BY_BRIDGE)
    node.call("DEL")
    # The settings of eth0 stay with eth0, which the plugin before ours removes.
    for key in ("arp_ignore", "arp_announce"):
        node.pod.set_conf(addr.AF_INET, "eth0", key, "0")
    assert node.kernel.snapshot() == before

    for verb in range(1, len(counting.verbs) + 1):
        faulty = node.kernel.failing(verb)
        status, error = node.call("ADD", faulty, prevResult=MADE_BY_BRIDGE)
        assert (status, error["code"]) == (1, 999), faulty.failed
        assert node.kernel.snapshot() == before, f"ADD that failed at {faulty.failed} left something"
        assert node.records() == [], faulty.failed
    assert node.notes == []
