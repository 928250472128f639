"""One list of rules: what `cnikit lint` calls an error, ADD or the agent refuses, and the other way round."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster import networks_of
from cli import lint
from cli.lint_refusals import place
from cni.config import Reader
from cni.errors import CniError
from cni.request import Request
from cni.result import IPConfig, Result
from ipam import host_local, ranges
from plugins import attachment, bridge, pod_network

if TYPE_CHECKING:
    from pathlib import Path

NET = "10.1.0.0/24"


def local(subnet: str = NET, **more: Any) -> dict[str, Any]:
    return {"type": "host-local", "subnet": subnet, **more}


def on_bridge(ipam: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "bridge", **({"ipam": ipam} if ipam is not None else {}), **more}


def nodes(**more: Any) -> dict[str, Any]:
    return {"type": "vxlan", "network": "10.244.0.0/16", **more}


def sets(*found: Any) -> dict[str, Any]:
    return {"type": "host-local", "ranges": list(found)}


def members(source: str, **more: Any) -> dict[str, Any]:
    return nodes(membership={"source": source, **more})


PEER = {"name": "a", "publicIP": "192.0.2.1", "subnets": ["10.244.1.0/24"]}
URL = "https://192.0.2.1:2379"

# A configuration, and the paths of what is wrong with it; of each ADD or the agent refuses the first one.
BAD: list[tuple[dict[str, Any], list[str]]] = [
    (on_bridge(bridge="far too long for a link"), ["bridge"]),
    (on_bridge(bridge=""), ["bridge"]),
    (on_bridge(isGateway=1, mtu="1500", vlan=4095), ["isGateway", "vlan", "mtu"]),
    (on_bridge(mtu=-1), ["mtu"]),
    (on_bridge(hairpinMode=True, promiscMode=True), ["promiscMode"]),
    (on_bridge(local(), disableContainerInterface=True), ["ipam"]),
    (on_bridge(ipMasqBackend="ipchains"), ["ipMasqBackend"]),
    (on_bridge(vlanTrunk=[{"minID": 5}, {"minID": 9, "maxID": 8}]), ["vlanTrunk[0].maxID", "vlanTrunk[1].maxID"]),
    (on_bridge(vlanTrunk=[7]), ["vlanTrunk[0]"]),
    (on_bridge(args={"cni": {"mac": "01:00:5e:00:00:01"}}), ["args.cni.mac"]),
    (on_bridge(dns={"search": "example.org"}), ["dns.search"]),
    (on_bridge(bridge="longbridgename", vlan=100, isGateway=True), ["bridge"]),
    (on_bridge({"type": "host-local"}), ["ipam.ranges"]),
    (on_bridge({"type": "host-local"}, capabilities={"ipRanges": False}), ["ipam.ranges"]),
    (on_bridge(local("10.1.0.5/24")), ["ipam.subnet"]),
    (on_bridge(local("10.1.0.0/31")), ["ipam.subnet"]),
    (on_bridge(local("10.1.0.0")), ["ipam.subnet"]),
    (on_bridge(local(rangeStart="10.2.0.1", rangeEnd="10.3.0.1")), ["ipam.rangeStart", "ipam.rangeEnd"]),
    (on_bridge(local(rangeStart="10.1.0.9", rangeEnd="10.1.0.5")), ["ipam.rangeStart"]),
    (on_bridge(sets([])), ["ipam.ranges[0]"]),
    (on_bridge(sets({"subnet": NET})), ["ipam.ranges[0]"]),
    (on_bridge(sets([{"subnet": NET}, {"subnet": "fd00::/64"}])), ["ipam.ranges[0]"]),
    (on_bridge(sets([{"subnet": NET}, {"subnet": NET}])), ["ipam.ranges[0][1]"]),
    (on_bridge(sets([{"subnet": NET}], [{"subnet": NET}])), ["ipam.ranges[1]"]),
    (on_bridge(sets([{"subnet": "x"}], [{"rangeStart": "y"}])), ["ipam.ranges[0][0].subnet", "ipam.ranges[1][0].subnet"]),
    (on_bridge(local(routes=[{"gw": "10.1.0.1"}, {"dst": "default"}])), ["ipam.routes[0].dst", "ipam.routes[1].dst"]),
    (on_bridge(local(statusOnExhausted="no", dataDir=5)), ["ipam.dataDir", "ipam.statusOnExhausted"]),
    (on_bridge(local(resolvConf="/nonexistent/resolv.conf")), ["ipam.resolvConf"]),
    # What IPAM gives and no pod can use; Go's host-local gives it too, so it is refused where the pod is attached.
    *((on_bridge(local(net)), ["ipam.subnet"]) for net in ("224.0.0.0/16", "127.0.0.0/16", "ff00::/64", "ff02::/16")),
    (on_bridge(local("fe80::/64"), isGateway=True), ["ipam.subnet"]),
    (on_bridge(local("::/64"), isGateway=True), ["ipam.subnet"]),
    (on_bridge(local(gateway="10.9.0.1"), isDefaultGateway=True), ["ipam.gateway"]),
    (on_bridge(local("fd00:1::/64", gateway="fd00:9::1"), isDefaultGateway=True), ["ipam.gateway"]),
    (on_bridge(local(gateway="10.9.0.1", routes=[{"dst": "10.5.0.0/16"}])), ["ipam.gateway"]),
    (on_bridge(local(routes=[{"dst": "10.5.0.0/16", "gw": "10.7.0.1"}])), ["ipam.routes[0].gw"]),
    (on_bridge(local("fd00:1::/64", routes=[{"dst": "fd00:5::/64", "gw": "fd00:7::1"}])), ["ipam.routes[0].gw"]),
    (on_bridge(local(routes=[{"dst": "10.5.0.1/16"}])), ["ipam.routes[0].dst"]),
    (on_bridge(local(routes=[{"dst": "10.5.0.0/16", "gw": "fe80::1"}])), ["ipam.routes[0].gw"]),
    (on_bridge(local(rangeStart="fe80::1", rangeEnd="10.3.0.1")), ["ipam.rangeStart", "ipam.rangeEnd"]),
    (nodes(attachment="flat"), ["attachment"]),
    (nodes(ipam=local()), ["ipam.subnet"]),
    (nodes(iface="a/b", vni=0, port=-1), ["vni", "port", "iface"]),
    (nodes(network="10.244.0.1/16"), ["network"]),
    *((nodes(network=net), ["network"]) for net in ("224.0.0.0/8", "127.0.0.0/16")),
    *((nodes(ipv6Network=net), ["ipv6Network"]) for net in ("fe80::/64", "ff00::/48", "::/64")),
    (nodes(nonMasqueradeCIDRs=["10/8"]), ["nonMasqueradeCIDRs[0]"]),
    (nodes(peers=[{"name": "a"}, {**PEER, "name": "b", "publicIP": "x"}]), ["peers[0].publicIP", "peers[1].publicIP"]),
    (nodes(peers=[{**PEER, "publicIP": "10.244.1.9"}]), ["peers"]),
    (nodes(peers=[{**PEER, "subnets": ["10.9.0.0/24"]}]), ["peers"]),
    (nodes(peers=[{**PEER, "subnets": ["127.0.0.0/24"]}]), ["peers[0].subnets[0]"]),
    (members("static"), ["membership.file"]),
    (members("static", file="peers.json"), ["membership.file"]),
    (members("consul"), ["membership.source"]),
    (members("etcd"), ["membership.endpoints"]),
    (members("etcd", endpoints=["192.0.2.1:2379"], certFile="/c"), ["membership.endpoints[0]", "membership.certFile"]),
    (members("etcd", endpoints=[URL], subnetLen=17), ["membership.subnetLen"]),
    (members("kubernetes", kubeconfig="admin.conf"), ["membership.kubeconfig"]),
    ({"type": "host-gw", "membership": {"source": "kubernetes"}}, ["network"]),
]  # fmt: skip

GOOD: list[dict[str, Any]] = [
    on_bridge(),
    on_bridge({}),
    on_bridge(dns={"nameservers": ["not an address"]}),
    on_bridge(args={"cni": {"ips": ["none"]}}),
    on_bridge({"type": "host-local"}, capabilities={"ipRanges": True}),
    *(on_bridge(local(net), isGateway=True) for net in ("0.5.0.0/16", "240.0.0.0/4", "169.254.0.0/16", "fc00::/64")),
    on_bridge(local("fe80::/64")),
    on_bridge(local(gateway="10.9.0.1"), isGateway=True),
    on_bridge(local("fd00:1::/64", routes=[{"dst": "fd00:5::/64", "gw": "fe80::1"}])),
    on_bridge(local("fd00:1::/64", routes=[{"dst": "fd00:5::1/64"}])),
    nodes(),
    nodes(peers=[PEER]),
    nodes(peers=[PEER], membership={"source": "kubernetes"}),
    nodes(peers=[{**PEER, "publicIP": "10.244.200.1"}]),
    members("etcd", endpoints=[URL]),
]


@pytest.fixture
def plugin_path(tmp_path: Path) -> list[str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bridge", "host-gw", "host-local", "loopback", "portmap", "vxlan"):
        (folder / name).touch()
    return [str(folder)]


def refusal(plugin: dict[str, Any], tmp_path: Path) -> CniError | None:
    """What ADD says, or the agent at its start when the network is one for it."""
    given = {"ipRanges": [[{"subnet": NET}]]} if plugin.get("capabilities", {}).get("ipRanges") else {}
    reader = Reader({"cniVersion": "1.1.0", "name": "net", "runtimeConfig": given, **plugin})
    request = Request({"CNI_COMMAND": "STATUS"})
    try:
        if plugin["type"] == "bridge":
            _refuse_on_bridge(reader, request)
        else:
            pod_network.Conf(reader, request)
            if "membership" in plugin or "peers" in plugin:
                file = tmp_path / "agent.conflist"
                file.write_text(json.dumps({"cniVersion": "1.1.0", "name": "net", "plugins": [plugin]}))
                networks_of([str(file)])
    except CniError as error:
        return error
    return None


def _refuse_on_bridge(reader: Reader, request: Request) -> None:
    conf = bridge.Conf(reader, request)
    conf.refuse_contradictions()
    if not conf.layer3:
        return
    ipam = host_local.Conf(reader, request)
    ranges.check_families(ipam.sets, "1.1.0")
    if ipam.resolv_conf:
        host_local.read_resolv_conf(ipam.resolv_conf)
    lease = Result()
    first = [one.ranges[0] for one in ipam.sets]
    lease.ips = [IPConfig(one.packed(one.first + 1), one.prefix, one.gateway) for one in first]
    lease.routes = ipam.routes
    attachment.complete(lease, conf)
    for fault in attachment.unusable(lease, conf):
        raise fault


def errors(plugin: dict[str, Any], tmp_path: Path, plugin_path: list[str]) -> dict[str, str]:
    file = tmp_path / "net.conflist"
    file.write_text(json.dumps({"cniVersion": "1.1.0", "name": "net", "plugins": [plugin]}))
    findings, _ = lint.lint_paths([str(file)], plugin_path)
    assert all(one.message and one.remedy for one in findings)
    return {one.path.removeprefix("plugins[0]."): one.message for one in findings if one.error}


@pytest.mark.parametrize(("plugin", "paths"), BAD, ids=lambda value: json.dumps(value)[:70])
def test_an_error_of_lint_is_a_refusal_of_add_or_the_agent(
    plugin: dict[str, Any], paths: list[str], tmp_path: Path, plugin_path: list[str]
) -> None:
    told = errors(plugin, tmp_path, plugin_path)
    refused = refusal(plugin, tmp_path)
    assert sorted(told) == sorted(paths)
    assert refused is not None
    assert refused.code == 7
    where, _, _ = place(refused, "peers")
    if not where.startswith(("ips[", "routes[", str(tmp_path))):  # IPAM's result, and the agent's file
        assert where in paths


@pytest.mark.parametrize("plugin", GOOD, ids=lambda value: json.dumps(value)[:70])
def test_what_add_and_the_agent_take_is_no_error(
    plugin: dict[str, Any], tmp_path: Path, plugin_path: list[str]
) -> None:
    assert refusal(plugin, tmp_path) is None
    assert errors(plugin, tmp_path, plugin_path) == {}


def test_whatever_is_written_is_reported(tmp_path: Path, plugin_path: list[str]) -> None:
    """Values of every kind in every place: lint ends with findings, not with an exception."""
    file = tmp_path / "net.conflist"
    for plugin in [plugin for plugin, _ in BAD] + GOOD:
        values: tuple[Any, ...] = (
            None,
            0,
            -1,
            True,
            5.5,
            "",
            "x",
            "\0",
            [],
            [[{}]],
            {"a": 1},
            "fe80::1",
            "10.9.0.0/24",
            10**30,
        )
        for value in values:
            for changed in _changed(plugin, value):
                file.write_text(json.dumps({"cniVersion": "1.1.0", "name": "net", "plugins": [changed]}))
                lint.lint_paths([str(file)], plugin_path)


def _changed(found: Any, value: Any) -> list[Any]:
    """`found` with another value in one place, for each place."""
    places = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    changed: list[Any] = []
    for key, inner in places:
        for other in (value, *_changed(inner, value)):
            copied = found.copy()
            copied[key] = other
            changed.append(copied)
    return changed
