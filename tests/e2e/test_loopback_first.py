"""loopback first in a list, as Nomad has it, before bridge and the reference's firewall and portmap."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_world import beside
from tests.e2e.test_cnitool import Cnitool, plugin
from tests.e2e.underlay import V4, V6, Cluster
from tests.e2e.world import DUAL_STACK, Answer, Node, Pod, Way, without_length

if TYPE_CHECKING:
    from pathlib import Path

FAMILIES: dict[str, dict[str, Any]] = {"ipv4": {}, "dual": {"ipam": DUAL_STACK}}


class Allocations:
    """A network list with the reference's firewall and portmap behind loopback and `main`, and calls with a port map."""

    def __init__(
        self, node: Node, peers: Path, version: str, main: dict[str, Any], program: Path | None = None
    ) -> None:
        chain = [{"type": "loopback"}, main, {"type": "firewall", "backend": "iptables"}]
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
        self._tool = Cnitool(node, peers, *chain, portmap, version=version)
        self._tool.program = str(program or self._tool.program)
        self._path = f"{node.way.bin_dir}:{peers}"

    def __call__(self, command: str, pod: Pod, port: int) -> Answer:
        ports = {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}
        return self._tool(command, pod, CNI_PATH=self._path, CAP_ARGS=json.dumps(ports))


def forwarded(node: Node) -> set[str]:
    """The addresses that the reference's firewall plugin has rules for."""
    saved = node.run("iptables-save") + node.run("ip6tables-save")
    rules = [line.split() for line in saved.splitlines() if line.startswith("-A CNI-FORWARD ")]
    return {word.partition("/")[0] for rule in rules for key, word in pairwise(rule) if key in ("-s", "-d")}


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_allocation_survives_the_end_of_another(node: Node, peers: Path, version: str, family: str) -> None:
    call = Allocations(node, peers, version, plugin(ipMasq=True, **FAMILIES[family]))
    one, two = node.pod(), node.pod()

    added = call("add", one, 8001).result
    assert call("add", two, 8002).ok

    assert [item["name"] for item in added["interfaces"]][0::3] == ["lo", "eth0"]
    assert sorted(item["address"] for item in added["ips"]) == sorted(one.addresses())
    assert {item["interface"] for item in added["ips"]} == {3}
    assert forwarded(node) == {item.partition("/")[0] for pod in (one, two) for item in pod.addresses()}
    call("check", one, 8001).silent()

    call("del", one, 8001).silent()

    call("check", two, 8002).silent()
    call("del", two, 8002).silent()
    assert forwarded(node) == set()
    assert node.leases("tooled") == {}


@pytest.mark.parametrize(
    ("runtime", "backend", "attachment"),
    [
        ("cnikit", "host-gw", "routed"),
        ("cnikit", "vxlan", "bridged"),
        ("cnitool", "host-gw", "bridged"),
        ("cnitool", "vxlan", "routed"),
    ],
)
def test_in_a_network_of_several_nodes(
    way: Way, peers: Path, bin_dir: Path, runtime: str, backend: str, attachment: str
) -> None:
    """With libcni's runtime and with ours."""
    program = peers / "cnitool" if runtime == "cnitool" else beside(bin_dir)
    with Cluster(way, underlay=(V4, V6), pods=(V4, V6)) as cluster:
        node, main = cluster.nodes[0], cluster.conf(backend, attachment=attachment, ipMasq=True)
        del main["name"], main["cniVersion"]
        _one_of_two_ends(node, Allocations(node, peers, "1.1.0", main, program))


@pytest.mark.parametrize("family", FAMILIES)
def test_through_our_runtime(node: Node, peers: Path, bin_dir: Path, family: str) -> None:
    main = plugin(ipMasq=True, **FAMILIES[family])
    _one_of_two_ends(node, Allocations(node, peers, "1.1.0", main, beside(bin_dir)))


def _one_of_two_ends(node: Node, call: Allocations) -> None:
    one, two = node.pod(), node.pod()
    results = [call("add", pod, port).result for pod, port in ((one, 8001), (two, 8002))]
    for pod, result in zip((one, two), results, strict=True):
        assert result["interfaces"][0]["name"] == "lo"
        assert sorted(item["address"] for item in result["ips"]) == sorted(pod.addresses())
        assert {result["interfaces"][item["interface"]]["name"] for item in result["ips"]} == {"eth0"}
    assert forwarded(node) == {without_length(item) for pod in (one, two) for item in pod.addresses()}

    assert call("check", one, 8001).ok
    assert call("del", one, 8001).ok

    assert call("check", two, 8002).ok
    assert call("del", two, 8002).ok
    assert forwarded(node) == set()
    assert node.leases("tooled") == {}


def test_the_reference_s_loopback_first(node: Node, peers: Path) -> None:
    """Whose loopback it is makes no difference."""
    way = node.way.with_plugins_in(peers)
    loopback = {**plugin(), "type": "loopback"}
    alone = {"cniVersion": "1.0.0", "name": "tooled", **loopback}
    pod = node.pod()
    before = node.call("loopback", "ADD", alone, pod, way=way).result
    assert [item["address"] for item in before["ips"]] == ["127.0.0.1/8", "::1/128"]

    conf = {"cniVersion": "1.0.0", "name": "tooled", **plugin(), "prevResult": before}
    result = node.call("bridge", "ADD", conf, pod).result

    assert [item["address"] for item in result["ips"]] == ["10.1.0.2/16"]
    assert result["interfaces"][0]["name"] == "lo"


@pytest.mark.parametrize("address", ["10.9.9.9/32", "2001:db8::9/128"])
def test_the_rest_of_prev_result_is_kept(node: Node, address: str) -> None:
    """Also an address on `lo` that is the pod's own, as a plugin for a load balancer puts it there."""
    pod = node.pod()
    before = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "lo", "sandbox": pod.path}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}, {"address": address, "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"domain": "example.org"},
        "example.org/kept": 1,
    }
    conf = {"cniVersion": "1.1.0", "name": "tooled", **plugin(), "prevResult": before}

    result = node.call("bridge", "ADD", conf, pod).result

    assert [(item["address"], item["interface"]) for item in result["ips"]] == [(address, 0), ("10.1.0.2/16", 3)]
    assert result["routes"][0] == {"dst": "192.0.2.0/24"}
    assert (result["dns"], result["example.org/kept"]) == ({"domain": "example.org"}, 1)


def test_loopback_alone_tells_its_addresses(node: Node) -> None:
    """containerd 1.x calls it as a network of its own and reads its result."""
    result = node.call("loopback", "ADD", {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}, node.pod()).result

    assert [item["address"] for item in result["ips"]] == ["127.0.0.1/8", "::1/128"]
