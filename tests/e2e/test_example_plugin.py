"""The plugin of docs/plugin-guide.md, built as the guide says and run by cnitool in a chain behind bridge."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.world import Answer, Node, Pod, Way, datagram, difference, wait_same, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
NETWORK = {
    "cniVersion": "1.1.0",
    "name": "balanced",
    "plugins": [
        {
            "type": "bridge",
            "isDefaultGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd00:1::/64"}]]},
        },
        {"type": "loopback"},
        {"type": "vip", "addresses": ["203.0.113.10", "2001:db8::10"]},
    ],
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CNI bin directory with the example beside our own plugins."""
    folder = tmp_path_factory.mktemp("bin")
    plugin = ROOT / "docs" / "example_plugin.py"
    command = [sys.executable, "-m", "cli.bundle", "--output", str(folder), "--plugin", f"vip={plugin}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def node(built: Path, way: Way) -> Iterator[Node]:
    """The agent is the one beside our own plugins: it has no `vip`, which runs one-shot between the others."""
    with Node(way.with_plugins_in(built)) as made:
        made.prepare()
        made.may_decline = 8  # calls of a story
        folder = made.path("/etc/cni/net.d")
        folder.mkdir(parents=True)
        (folder / "10-balanced.conflist").write_text(json.dumps(NETWORK))
        yield made


@pytest.fixture
def cnitool(node: Node, peers: Path) -> Any:
    def call(command: str, pod: Pod) -> Answer:
        environ = {"CNI_PATH": str(node.way.bin_dir), "NETCONFPATH": "/etc/cni/net.d"}
        return node.attempt(str(peers / "cnitool"), command, "balanced", pod.path, env=environ)

    return call


def on_lo(pod: Pod) -> list[str]:
    return [address for address in pod.addresses("lo") if address not in ("127.0.0.1/8", "::1/128")]


def test_the_chain_gives_the_pod_the_virtual_addresses(node: Node, cnitool: Any) -> None:
    pod = node.pod()

    result = cnitool("add", pod).result

    assert [(item["name"], item.get("sandbox")) for item in result["interfaces"]][2:] == [
        ("eth0", pod.path),
        ("lo", pod.path),
    ]
    assert [(item["address"], item["interface"]) for item in result["ips"]] == [
        ("10.1.0.2/16", 2),
        ("fd00:1::2/64", 2),
        ("203.0.113.10/32", 3),
        ("2001:db8::10/128", 3),
    ]
    assert sorted(on_lo(pod)) == ["2001:db8::10/128", "203.0.113.10/32"]
    cnitool("check", pod).silent()
    cnitool("status", pod).silent()


def test_a_packet_for_the_virtual_address_arrives_and_arp_stays_unanswered(node: Node, cnitool: Any) -> None:
    pod = node.pod()
    assert cnitool("add", pod).ok

    # The balancer's way: the pod's own address as the next hop.
    for family, virtual, own, gateway in (
        (socket.AF_INET, "203.0.113.10", "10.1.0.2", "10.1.0.1"),
        (socket.AF_INET6, "2001:db8::10", "fd00:1::2", "fd00:1::1"),
    ):
        node.run("ip", "route", "add", virtual, "via", own)
        with node.socket(family) as balancer, pod.socket(family) as server:
            server.bind((virtual, 0))
            assert datagram(balancer, server, virtual) == gateway

    # A neighbour's way: who has it?
    node.run("ip", "route", "replace", "203.0.113.10", "dev", "cni0")
    with node.socket() as neighbour:
        neighbour.sendto(b"anybody?", ("203.0.113.10", 9))

    def verdict() -> list[str]:
        states = [state for item in node.ip("neigh", "show", "203.0.113.10") for state in item["state"]]
        return [state for state in states if state not in ("NONE", "INCOMPLETE")]

    assert wait_until(verdict, "an end of the questions") == ["FAILED"]


def test_del_leaves_nothing_and_may_be_repeated(node: Node, cnitool: Any) -> None:
    first, second = node.pod(), node.pod()
    assert cnitool("add", first).ok
    cnitool("del", first).silent()
    before = node.snapshot()

    assert cnitool("add", second).ok
    assert difference(before, node.snapshot())
    cnitool("del", second).silent()
    assert on_lo(second) == []
    cnitool("del", second).silent()

    wait_same(node.snapshot, before, "ADD and DEL of the chain left something")


def test_check_tells_what_is_missing(node: Node, cnitool: Any) -> None:
    pod = node.pod()
    assert cnitool("add", pod).ok
    node.run("ip", "-n", pod.name, "addr", "del", "203.0.113.10/32", "dev", "lo")

    found = cnitool("check", pod)

    assert found.status == 1
    assert "vip: expected 203.0.113.10 on lo in the pod, found" in found.stderr


def test_gc_takes_the_records_of_dead_pods(node: Node, cnitool: Any) -> None:
    pod = node.pod()
    assert cnitool("add", pod).ok
    conf = {"cniVersion": "1.1.0", "name": "balanced", **NETWORK["plugins"][2]}  # type: ignore[dict-item]
    records = "/run/cnikit/networks/balanced/attachments"
    record = next(iter(node.files(records)))
    assert "vip" in json.loads(node.files(records)[record])["plugins"]

    node.call("vip", "GC", {**conf, "cni.dev/valid-attachments": []}).silent()

    assert set(json.loads(node.files(records)[record])["plugins"]) == {"bridge"}
    cnitool("del", pod).silent()
    assert node.files(records) == {}


def test_the_executable_answers_version(node: Node) -> None:
    assert "1.1.0" in node.call("vip", "VERSION", {"cniVersion": "1.1.0"}).result["supportedVersions"]
