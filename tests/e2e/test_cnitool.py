"""cnitool, libcni's own command line, drives bridge + host-local in every version of the specification."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.world import DUAL_STACK, VERSIONS, Answer, Node, Pod, network, wait_same

if TYPE_CHECKING:
    from pathlib import Path

CONF_DIR = "/etc/cni/net.d"


class Cnitool:
    """cnitool inside a node, with one network list installed."""

    def __init__(self, node: Node, peers: Path, *plugins: dict[str, Any], version: str, **top: Any) -> None:
        node.prepare()
        self.node = node
        self.program = str(peers / "cnitool")
        conflist = {"cniVersion": version, "name": "tooled", **top, "plugins": list(plugins)}
        node.path(CONF_DIR).mkdir(parents=True, exist_ok=True)
        (node.path(CONF_DIR) / "10-tooled.conflist").write_text(json.dumps(conflist))

    def __call__(self, command: str, pod: Pod, **env: str) -> Answer:
        environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_PATH": str(self.node.way.bin_dir),
            "NETCONFPATH": CONF_DIR,
        }
        return self.node.attempt(self.program, command, "tooled", pod.path, env={**environ, **env})


def plugin(**options: Any) -> dict[str, Any]:
    """A plugin's entry in a network list: name and version come from the list."""
    found = network(**options)
    return {key: value for key, value in found.items() if key not in ("name", "cniVersion")}


def addresses(result: dict[str, Any]) -> list[str]:
    """The addresses of a result of any version."""
    if "ips" in result:
        return [item["address"] for item in result["ips"]]
    return [result[key]["ip"] for key in ("ip4", "ip6") if key in result]


def check_form(result: dict[str, Any], version: str, pod: Pod) -> None:
    """That a result has the form of its version (the specification's section 5 of each)."""
    assert result["cniVersion"] == version
    if version in ("0.1.0", "0.2.0"):
        assert "ips" not in result
        assert "interfaces" not in result
        assert result["ip4"]["gateway"] == "10.1.0.1"
        assert result["ip6"]["gateway"] == "fd00:1::1"
        assert result["ip4"]["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]
        return
    assert "ip4" not in result
    assert [item["name"] for item in result["interfaces"]][0::2] == ["cni0", "eth0"]
    assert result["interfaces"][2]["sandbox"] == pod.path
    assert [item.get("sandbox", "") for item in result["interfaces"][:2]] == ["", ""]
    assert [item["interface"] for item in result["ips"]] == [2, 2]
    assert [item.get("version") for item in result["ips"]] == (["4", "6"] if version < "1.0.0" else [None, None])
    assert {"dst": "0.0.0.0/0", "gw": "10.1.0.1"} in result["routes"]
    assert {"dst": "::/0", "gw": "fd00:1::1"} in result["routes"]


@pytest.mark.parametrize("version", VERSIONS)
def test_add_and_del(node: Node, peers: Path, version: str) -> None:
    pod = node.pod()
    tool = Cnitool(node, peers, plugin(ipam=DUAL_STACK), version=version)

    added = tool("add", pod)

    check_form(added.result, version, pod)
    assert sorted(addresses(added.result)) == sorted(pod.addresses())
    assert {route["gateway"] for route in pod.ip("-4", "route", "show", "default")} == {"10.1.0.1"}
    assert {route["gateway"] for route in pod.ip("-6", "route", "show", "default")} == {"fd00:1::1"}
    eth0 = node.links(pod)["eth0"]
    host_end = next(
        link for link in node.links().values() if link.get("link_index") == eth0["ifindex"] and "master" in link
    )
    assert host_end["master"] == "cni0"
    assert host_end["operstate"] == eth0["operstate"] == "UP"
    if "interfaces" in added.result:
        macs = [item["mac"] for item in added.result["interfaces"]]
        assert macs == [node.links()["cni0"]["address"], host_end["address"], eth0["address"]]
        assert added.result["interfaces"][1]["name"] == host_end["ifname"]
    assert set(node.leases("tooled")) == {"10.1.0.2", "fd00:1::2"}

    tool("del", pod).silent()

    assert "eth0" not in node.links(pod)
    assert host_end["ifname"] not in node.links()
    assert node.leases("tooled") == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_second_round_leaves_nothing(node: Node, peers: Path, version: str) -> None:
    """After the first pod the shared bridge stays; from then on ADD and DEL give back the same node."""
    tool = Cnitool(node, peers, plugin(ipam=DUAL_STACK, ipMasq=True), version=version)
    first, second = node.pod(), node.pod()
    assert tool("add", first).ok
    tool("del", first).silent()
    before = node.snapshot()

    assert tool("add", second).ok
    tool("del", second).silent()

    wait_same(node.snapshot, before, "ADD and DEL of a second pod left something")


@pytest.mark.parametrize("version", [version for version in VERSIONS if version >= "0.4.0"])
def test_check(node: Node, peers: Path, version: str) -> None:
    pod = node.pod()
    tool = Cnitool(node, peers, plugin(ipam=DUAL_STACK, ipMasq=True), version=version)
    assert tool("add", pod).ok

    tool("check", pod).silent()

    node.run("ip", "-n", pod.name, "addr", "del", "10.1.0.2/16", "dev", "eth0")
    broken = tool("check", pod)
    assert broken.status == 1
    assert "10.1.0.2" in broken.stderr


@pytest.mark.parametrize("version", [version for version in VERSIONS if version < "0.4.0"])
def test_check_is_refused_before_0_4_0(node: Node, peers: Path, version: str) -> None:
    pod = node.pod()
    tool = Cnitool(node, peers, plugin(), version=version)
    assert tool("add", pod).ok

    refused = tool("check", pod)

    assert refused.status == 1
    assert version in refused.stderr


def test_status(node: Node, peers: Path) -> None:
    tool = Cnitool(node, peers, plugin(), version="1.1.0")

    tool("status", node.pod()).silent()


@pytest.mark.ours
def test_status_says_no_when_every_address_is_leased(node: Node, peers: Path) -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/30"}]]}
    tool = Cnitool(node, peers, plugin(ipam=ipam), version="1.1.0")
    pod = node.pod()
    assert tool("add", pod).ok

    said = tool("status", pod)

    assert said.status == 1
    assert "10.1.0.2" in said.stderr
    assert "leased" in said.stderr


def test_gc_of_cnitool_removes_every_attachment(node: Node, peers: Path) -> None:
    """cnitool passes no list of valid attachments: libcni then deletes whatever its cache holds.

    The GC that it sends to the plugin afterwards lacks the list too. A plugin may refuse that, as the specification
    requires the list; the reference's bridge has no GC and says nothing.
    """
    tool = Cnitool(node, peers, plugin(ipMasq=True), version="1.1.0")
    first = node.pod()
    assert tool("add", first).ok
    tool("del", first).silent()
    before = node.snapshot()
    pods = [node.pod(), node.pod()]
    for pod in pods:
        assert tool("add", pod).ok

    answer = tool("gc", pods[0])

    assert answer.ok or "cni.dev/valid-attachments" in answer.stderr
    wait_same(node.snapshot, before, "GC left something of the pods")


def test_loopback_and_bridge_in_one_chain(node: Node, peers: Path) -> None:
    """prevResult travels from bridge through loopback and is still there at the end."""
    pod = node.pod()
    tool = Cnitool(node, peers, plugin(), {"type": "loopback"}, version="1.0.0")

    added = tool("add", pod)

    names = [item["name"] for item in added.result["interfaces"]]
    assert names[0] == "cni0"
    assert names[2] == "eth0"
    assert addresses(added.result)[0] == "10.1.0.2/16"
    assert "UP" in node.links(pod)["lo"]["flags"]
    tool("check", pod).silent()
    tool("del", pod).silent()
    assert "eth0" not in node.links(pod)


def test_capabilities_reach_the_plugins(node: Node, peers: Path) -> None:
    """A requested address and MAC, given by the runtime as capabilities."""
    pod = node.pod()
    tool = Cnitool(node, peers, plugin(capabilities={"ips": True, "mac": True}), version="1.0.0")

    added = tool("add", pod, CAP_ARGS=json.dumps({"ips": ["10.1.7.7"], "mac": "02:11:22:33:44:55"}))

    assert addresses(added.result) == ["10.1.7.7/16"]
    assert node.links(pod)["eth0"]["address"] == "02:11:22:33:44:55"
    assert set(node.leases("tooled")) == {"10.1.7.7"}


def test_cni_args_reach_the_plugins(node: Node, peers: Path) -> None:
    pod = node.pod()
    tool = Cnitool(node, peers, plugin(), version="1.0.0")

    added = tool("add", pod, CNI_ARGS="IgnoreUnknown=1;IP=10.1.8.8;MAC=02:11:22:33:44:56;K8S_POD_NAME=web-0")

    assert addresses(added.result) == ["10.1.8.8/16"]
    assert node.links(pod)["eth0"]["address"] == "02:11:22:33:44:56"


def test_a_second_interface(node: Node, peers: Path) -> None:
    """One pod, one network, two interfaces: two attachments, removed one by one."""
    pod = node.pod()
    tool = Cnitool(node, peers, plugin(isDefaultGateway=False, isGateway=True), version="1.0.0")
    assert tool("add", pod).ok

    assert tool("add", pod, CNI_IFNAME="net1").ok
    tool("del", pod).silent()

    assert set(node.links(pod)) >= {"net1"}
    assert "eth0" not in node.links(pod)
    assert list(node.leases("tooled").values()) == [
        text for text in node.leases("tooled").values() if text.endswith("net1")
    ]
    assert len(node.leases("tooled")) == 1
