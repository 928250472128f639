"""bridge on the fake kernel: what each verb and each option does, and that a refused or failed call leaves nothing.

What the real kernel makes of it is tested in tests/netns and tests/e2e.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cni import addr, errors
from cni.kernel import ops
from cni.kernel.types import IFF_PROMISC, IFF_UP
from cni.names import host_end
from cni.testing.fake_kernel import FakeKernel
from cni.testing.faulty_kernel import FaultyKernel
from tests.unit.calls import OTHER, POD, Node

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VALID = "cni.dev/valid-attachments"
DUAL = ("10.1.0.2/24", "fd00:1::2/64")
MAC = "0a:58:0a:01:00:02"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def pack(text: str) -> bytes:
    packed = addr.pack(text)
    assert packed is not None
    return packed


def cidrs(addresses: dict[str, Any], link: str) -> list[str]:
    """The addresses of a link but its link-local one."""
    found = [addr.unpack_cidr(one["packed"], one["prefix"]) for one in addresses.get(link, [])]
    return [cidr for cidr in found if not cidr.startswith("fe80:")]


def make_bridge(node: Node, name: str = "cni0", *, vlan_filtering: bool = False) -> int:
    """A bridge that somebody else made; its index."""
    host = node.kernel.own()
    host.apply(ops.bridge_add(name, None, vlan_filtering=vlan_filtering))
    link = host.link(name)
    assert link is not None
    return link.index


# ADD


def test_add_makes_the_pair_and_tells_of_it(node: Node) -> None:
    conf = node.network(*DUAL, isDefaultGateway=True)

    answer = node.call("bridge", "ADD", conf)

    links, veth = node.own("links"), node.host_end()
    assert answer.result == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "cni0", "mac": links["cni0"]["mac"].hex(":"), "mtu": 1500},
            {"name": veth, "mac": links[veth]["mac"].hex(":"), "mtu": 1500},
            {"name": "eth0", "mac": MAC, "mtu": 1500, "sandbox": POD},
        ],
        "ips": [
            {"interface": 2, "address": "10.1.0.2/24", "gateway": "10.1.0.1"},
            {"interface": 2, "address": "fd00:1::2/64", "gateway": "fd00:1::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd00:1::1"}],
    }
    assert node.ipam_calls() == ["ADD ctr"]


def test_add_configures_both_ends(node: Node) -> None:
    node.call("bridge", "ADD", node.network(*DUAL, isDefaultGateway=True))

    links, pod = node.own("links"), node.pod("links")
    veth = links[node.host_end()]
    assert (veth["name"], veth["mac"]) == host_end("net", "ctr", "eth0")
    assert veth["alias"] == "cnikit net/ctr/eth0"
    assert veth["flags"] & links["cni0"]["flags"] & pod["eth0"]["flags"] & IFF_UP
    assert pod["eth0"]["mac"].hex(":") == MAC
    assert cidrs(node.pod("addresses"), "eth0") == list(DUAL)
    assert cidrs(node.own("addresses"), "cni0") == ["10.1.0.1/24", "fd00:1::1/64"]
    assert [(r["dst"], r["gateway"]) for r in node.pod("routes")] == [
        (bytes(4), pack("10.1.0.1")),
        (bytes(16), pack("fd00:1::1")),
    ]
    conf = node.own("conf")
    assert [conf[family]["all"]["forwarding"] for family in conf] == ["1", "1"]
    assert conf[addr.AF_INET6]["cni0"]["accept_ra"] == "0"


def test_second_pod_shares_the_bridge_and_leaves_it_as_it_is(node: Node) -> None:
    node.call("bridge", "ADD", node.network(isGateway=True))
    before = node.own("links")["cni0"], node.own("addresses")["cni0"]

    assert node.call("bridge", "ADD", node.network("10.1.0.3/24", isGateway=True), "two", OTHER).status == 0

    assert (node.own("links")["cni0"], node.own("addresses")["cni0"]) == before
    assert len([name for name in node.own("links") if name.startswith("veth")]) == 2


def test_without_ipam_the_pod_gets_a_link_and_nothing_else(node: Node) -> None:
    answer = node.call("bridge", "ADD", node.network(ipam={}, isGateway=True, ipMasq=True))

    assert "ips" not in answer.result
    assert node.pod("links")["eth0"]["flags"] & IFF_UP
    assert node.pod("addresses") == {}
    assert node.own("nft") == {}
    assert cidrs(node.own("addresses"), "cni0") == []


def test_gateway_is_the_first_address_when_ipam_names_none(node: Node) -> None:
    conf = node.network(isDefaultGateway=True)
    conf["ipam"]["result"] = {"ips": [{"address": "10.1.7.9/16"}, {"address": "fd00:1:0:0:5::9/64"}]}

    result = node.call("bridge", "ADD", conf).result

    assert [ip["gateway"] for ip in result["ips"]] == ["10.1.0.1", "fd00:1::1"]
    assert [route["gw"] for route in result["routes"]] == ["10.1.0.1", "fd00:1::1"]


def test_default_route_of_ipam_is_not_doubled(node: Node) -> None:
    conf = node.network(isDefaultGateway=True)
    conf["ipam"]["result"]["routes"] = [{"dst": "0.0.0.0/0", "gw": "10.1.0.9"}, {"dst": "192.0.2.0/24"}]

    routes = node.call("bridge", "ADD", conf).result["routes"]

    assert routes == [{"dst": "0.0.0.0/0", "gw": "10.1.0.9"}, {"dst": "192.0.2.0/24"}]
    assert [r["gateway"] for r in node.pod("routes")] == [pack("10.1.0.9"), pack("10.1.0.1")]


def test_prev_result_is_extended(node: Node) -> None:
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "net1"}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}],
    }

    result = node.call("bridge", "ADD", node.network(prevResult=previous)).result

    assert [item["name"] for item in result["interfaces"]] == ["net1", "cni0", node.host_end(), "eth0"]
    assert [(ip["address"], ip["interface"]) for ip in result["ips"]] == [("192.0.2.9/24", 0), ("10.1.0.2/24", 3)]


# Each option's effect


def port(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.own("links")[node.host_end()]["port"]
    return found


def chains(node: Node) -> list[str]:
    return chains_of({"nft": node.own("nft")})


def chains_of(own: dict[str, Any]) -> list[str]:
    return [chain for table in own["nft"].values() for chain in table["chains"]]


OPTIONS: list[tuple[dict[str, Any], Callable[[Node], Any], Any, Any]] = [
    # option, what to look at, what it is with the option, what without
    ({"bridge": "br1"}, lambda n: "br1" in n.own("links"), True, False),
    ({"isGateway": True}, lambda n: cidrs(n.own("addresses"), "cni0"), ["10.1.0.1/24", "fd00:1::1/64"], []),
    ({"isGateway": True}, lambda n: n.own("conf")[addr.AF_INET]["all"]["forwarding"], "1", "0"),
    ({"isGateway": True}, lambda n: len(n.pod("routes")), 0, 0),
    ({"isDefaultGateway": True}, lambda n: len(n.pod("routes")), 2, 0),
    ({"ipMasq": True}, chains, ["masq-net"], []),
    ({"mtu": 1400}, lambda n: n.pod("links")["eth0"]["mtu"], 1400, 1500),
    ({"mtu": 1400}, lambda n: n.own("links")["cni0"]["mtu"], 1400, 1500),
    ({"hairpinMode": True}, lambda n: port(n)["hairpin"], True, False),
    ({"portIsolation": True}, lambda n: port(n)["isolated"], True, False),
    ({"promiscMode": True}, lambda n: n.own("links")["cni0"]["flags"] & IFF_PROMISC, IFF_PROMISC, 0),
    ({"macspoofchk": True}, lambda n: [c for c in chains(n) if c.endswith("-mac")], ["cni-br-iface-ctr-eth0-mac"], []),
    ({"enabledad": True}, lambda n: n.pod("conf")[addr.AF_INET6]["eth0"]["accept_dad"], "1", "0"),
    ({"vlan": 100}, lambda n: n.own("links")["cni0"]["vlan_filtering"], True, False),
    ({"vlan": 100}, lambda n: n.own("links")[n.host_end()]["vlans"], {100: True}, {1: True}),
    ({"runtimeConfig": {"mac": "02:00:00:00:00:09"}}, lambda n: n.pod("links")["eth0"]["mac"].hex(), "020000000009", "0a580a010002"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "look", "given", "without"), OPTIONS, ids=[str(case[0]) for case in OPTIONS])
def test_option(tmp_path: Path, option: dict[str, Any], look: Callable[[Node], Any], given: Any, without: Any) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = Node(tmp_path / "a"), Node(tmp_path / "b")

    assert one.call("bridge", "ADD", one.network(*DUAL, **option)).status == 0
    assert other.call("bridge", "ADD", other.network(*DUAL)).status == 0

    assert (look(one), look(other)) == (given, without)


def test_disabled_container_interface_stays_down(node: Node) -> None:
    answer = node.call("bridge", "ADD", node.network(ipam={}, disableContainerInterface=True))

    assert [item["name"] for item in answer.result["interfaces"]] == ["cni0", node.host_end(), "eth0"]
    assert not node.pod("links")["eth0"]["flags"] & IFF_UP
    node.call(
        "bridge", "CHECK", node.network(ipam={}, disableContainerInterface=True, prevResult=answer.result)
    ).silent()


def test_an_existing_gateway_of_another_address_is_refused_or_with_force_replaced(node: Node) -> None:
    index = make_bridge(node)
    node.kernel.own().apply(ops.addr_add(index, pack("10.9.0.1"), 24, nodad=True))
    before = node.snapshot()

    error = node.call("bridge", "ADD", node.network(isGateway=True)).error
    assert '"cni0" already has an IP address different from 10.1.0.1/24: found 10.9.0.1/24' in error["msg"]
    assert "forceAddress" in error["details"]
    assert without_shared(node.snapshot()) == without_shared(before)

    assert node.call("bridge", "ADD", node.network(isGateway=True, forceAddress=True)).status == 0
    assert cidrs(node.own("addresses"), "cni0") == ["10.1.0.1/24"]


def test_a_bridge_that_lost_its_ports_and_its_mac_gets_one(node: Node) -> None:
    """The kernel gives a bridge with no MAC of its own that of a port, and zeros after the last one left."""
    host = node.kernel.own()
    host.apply(ops.bridge_add("cni0", None))
    node.kernel._own.find("cni0").mac = bytes(6)

    answer = node.call("bridge", "ADD", node.network(isGateway=True))

    assert answer.status == 0
    bridge = host.link("cni0")
    assert bridge is not None
    assert any(bridge.mac)


def test_gateways_of_several_ipv6_networks_share_a_bridge(node: Node) -> None:
    assert node.call("bridge", "ADD", node.network("fd00:1::2/64", isGateway=True)).status == 0
    assert node.call("bridge", "ADD", node.network("fd00:2::2/64", isGateway=True), "two", OTHER).status == 0

    assert cidrs(node.own("addresses"), "cni0") == ["fd00:1::1/64", "fd00:2::1/64"]


def test_forwarding_warns_when_an_uplink_lives_from_router_advertisements(node: Node) -> None:
    host = node.kernel.own()
    host.apply(ops.bridge_add("up0", None), ops.link_set("up0", up=True))
    uplink = host.link("up0")
    assert uplink is not None
    host.apply(ops.addr_add(uplink.index, pack("fe80::5"), 64, nodad=True))
    host.apply(ops.route_add(uplink.index, bytes(16), 0, pack("fe80::1")))
    node.kernel._own.routes[-1].protocol = 9  # as the kernel itself would have made it

    answer = node.call("bridge", "ADD", node.network("fd00:1::2/64", isGateway=True))

    assert answer.status == 0
    (line,) = [line for line in answer.log if "router advertisements" in line]
    assert "net.ipv6.conf.up0.accept_ra=2" in line


# Refusals before any effect


def spoil_name(node: Node) -> None:
    node.kernel.open(POD).apply(ops.veth_add("other", None, "eth0", None, None))


def spoil_bridge(node: Node) -> None:
    node.kernel.own().apply(ops.veth_add("cni0", None, "cni0-peer", None, None))


def spoil_filtering(node: Node) -> None:
    make_bridge(node, vlan_filtering=False)


REFUSED: list[tuple[str, dict[str, Any], Callable[[Node], object], int, str]] = [
    ("interface there", {}, spoil_name, errors.INTERNAL, "container veth name ('eth0') already exists in"),
    ("no bridge", {}, spoil_bridge, errors.INVALID_CONFIG, "'cni0' already exists but is not a bridge: expected a bridge, found a veth"),
    ("loopback", {"bridge": "lo"}, lambda _: None, errors.INVALID_CONFIG, "found a physical or loopback interface"),
    ("bridge without filtering", {"vlan": 100}, spoil_filtering, errors.INVALID_CONFIG, "expected bridge cni0 to filter VLANs"),
    ("trunk without filtering", {"vlanTrunk": [{"id": 5}]}, spoil_filtering, errors.INVALID_CONFIG, "vlanTrunk: [5]"),
    ("no IPAM plugin", {"ipam": {"type": "none"}}, lambda _: None, errors.INVALID_CONFIG, "failed to find plugin 'none'"),
    ("contradiction", {"hairpinMode": True, "promiscMode": True}, lambda _: None, errors.INVALID_CONFIG, "hairpin mode"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "spoil", "code", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused_before_any_effect(
    node: Node, options: dict[str, Any], spoil: Callable[[Node], object], code: int, message: str
) -> None:
    spoil(node)
    before = node.snapshot()

    answer = node.call("bridge", "ADD", node.network(**options))

    assert answer.error["code"] == code
    assert message in answer.error["msg"]
    assert node.snapshot() == before
    assert node.ipam_calls() == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"vlan": 100}, "vlan: 100"),
        ({"vlanTrunk": [{"minID": 5, "maxID": 6}]}, "vlanTrunk: [5, 6]"),
        ({"vlan": 100, "isGateway": True, "preserveDefaultVlan": True}, "vlan: 100"),
    ],
)
@pytest.mark.parametrize("command", ["ADD", "STATUS"])
def test_kernel_without_vlan_filtering_is_refused_before_any_effect(
    tmp_path: Path, command: str, options: dict[str, Any], told: str
) -> None:
    node = Node(tmp_path, FakeKernel(vlan_filtering=False))
    before = node.snapshot()

    error = node.call("bridge", command, node.network(**options)).error

    assert error["code"] == (errors.UNSUPPORTED_FIELD if command == "ADD" else errors.NOT_AVAILABLE)
    assert f"{told} is not supported here: expected a kernel with bridge VLAN filtering" in error["msg"]
    assert "CONFIG_BRIDGE_VLAN_FILTERING" in error["details"]
    assert node.snapshot() == before
    assert [call for call in node.ipam_calls() if call.startswith("ADD")] == []
    # The same without VLAN works.
    assert node.call("bridge", "ADD", node.network()).status == 0


def test_kernel_without_ipv6_serves_ipv4(tmp_path: Path) -> None:
    node = Node(tmp_path, FakeKernel(ipv6=False))

    assert node.call("bridge", "ADD", node.network(isDefaultGateway=True, ipMasq=True)).status == 0
    node.call("bridge", "STATUS", node.network(isGateway=True, ipMasq=True)).silent()


# VLAN


@pytest.mark.parametrize(
    ("options", "vlans"),
    [
        ({"vlan": 100}, {100: True}),
        ({"vlan": 100, "preserveDefaultVlan": True}, {1: True, 100: True}),
        ({"vlanTrunk": [{"minID": 101, "maxID": 103}, {"id": 200}]}, {1: True, 101: False, 102: False, 103: False, 200: False}),
        ({"vlan": 100, "vlanTrunk": [{"id": 101}]}, {100: True, 101: False}),
        ({"vlan": 100, "vlanTrunk": [{"minID": 99, "maxID": 101}]}, {99: False, 100: True, 101: False}),
        ({"vlanTrunk": [{"id": 101}], "preserveDefaultVlan": True}, {1: True, 101: False}),
    ],
)  # fmt: skip
def test_vlans_of_the_port(node: Node, options: dict[str, Any], vlans: dict[int, bool]) -> None:
    assert node.call("bridge", "ADD", node.network(**options)).status == 0

    assert node.own("links")["cni0"]["vlan_filtering"] is True
    assert node.own("links")[node.host_end()]["vlans"] == vlans


def test_an_existing_filtering_bridge_is_used(node: Node) -> None:
    make_bridge(node, vlan_filtering=True)

    assert node.call("bridge", "ADD", node.network(vlan=100)).status == 0

    assert node.own("links")[node.host_end()]["master"]


def test_vlan_gateway_is_an_interface_of_its_own(node: Node) -> None:
    conf = node.network(*DUAL, vlan=100, isDefaultGateway=True)

    answer = node.call("bridge", "ADD", conf)

    assert [item["name"] for item in answer.result["interfaces"]] == ["cni0", node.host_end(), "eth0", "cni0.100"]
    assert answer.result["ips"][0]["interface"] == 2
    assert cidrs(node.own("addresses"), "cni0") == []
    assert cidrs(node.own("addresses"), "cni0.100") == ["10.1.0.1/24", "fd00:1::1/64"]
    links = node.own("links")
    assert links["cni0.100"]["flags"] & IFF_UP
    assert links["cni0.100"]["master"] == 0
    (port_of_gateway,) = [link for link in links.values() if link["peer"] and link["master"] and not link["alias"]]
    assert port_of_gateway["vlans"] == {100: True}
    node.call("bridge", "CHECK", {**conf, "prevResult": answer.result}).silent()


def test_vlan_gateway_is_shared_and_stays(node: Node) -> None:
    conf = node.network(vlan=100, isGateway=True)
    assert node.call("bridge", "ADD", conf).status == 0
    node.call("bridge", "DEL", conf).silent()
    before = node.snapshot()
    assert "cni0.100" in before["own"]["links"]

    first = node.call("bridge", "ADD", conf).result
    assert node.call("bridge", "ADD", node.network("10.1.0.3/24", vlan=100, isGateway=True), "two", OTHER).status == 0

    node.call("bridge", "CHECK", {**conf, "prevResult": first}).silent()
    node.call("bridge", "DEL", conf).silent()
    node.call("bridge", "DEL", conf, "two", OTHER).silent()
    assert node.snapshot() == before


def test_two_vlans_on_one_bridge_may_have_the_same_gateway(node: Node) -> None:
    assert node.call("bridge", "ADD", node.network(vlan=100, isGateway=True)).status == 0
    second = node.network("10.1.0.3/24", vlan=200, isGateway=True, name="net2")
    assert node.call("bridge", "ADD", second, "two", OTHER).status == 0

    assert cidrs(node.own("addresses"), "cni0.100") == cidrs(node.own("addresses"), "cni0.200") == ["10.1.0.1/24"]


# A failed ADD leaves nothing

CASES: dict[str, dict[str, Any]] = {
    "nftables": {"isDefaultGateway": True, "ipMasq": True, "hairpinMode": True, "macspoofchk": True},
    "layer 2": {"ipam": {}, "portIsolation": True, "promiscMode": True},
    "vlan": {"vlan": 100, "vlanTrunk": [{"id": 101}], "isDefaultGateway": True, "ipMasq": True},
    "dad": {"enabledad": True, "isGateway": True, "forceAddress": True, "mtu": 1400},
}


def without_shared(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Without what all pods share and what stays by design: bridge, its addresses, forwarding, nftables' skeleton."""
    own = snapshot["own"]
    links = {name: link for name, link in own["links"].items() if not name.startswith("cni0") and link["alias"]}
    elements = {
        name: one["elements"] for table in own["nft"].values() for name, one in table["sets"].items() if one["elements"]
    }
    guards = [chain for chain in chains_of(own) if chain.startswith("cni-br-iface")]
    pods = {path: {**snapshot[path], "conf": None} for path in (POD, OTHER)}
    return {"links": links, "elements": elements, "guards": guards, "files": snapshot["files"], **pods}


@pytest.mark.parametrize("first", [False, True], ids=["warm", "first pod of the node"])
@pytest.mark.parametrize("case", CASES)
def test_add_failing_at_every_verb_leaves_nothing_of_the_pod(tmp_path: Path, case: str, first: bool) -> None:  # noqa: FBT001
    verb = 0
    while True:
        verb += 1
        (tmp_path / str(verb)).mkdir()
        node = Node(tmp_path / str(verb))
        conf = node.network(*DUAL, **CASES[case])
        if not first:
            node.call("bridge", "ADD", conf, "before", OTHER)
            node.call("bridge", "DEL", conf, "before", OTHER).silent()
        before = node.snapshot()
        look: Callable[[dict[str, Any]], Any] = without_shared if first else dict

        faulty = FaultyKernel(node.kernel, verb)
        answer = node.call("bridge", "ADD", conf, kernel=faulty)

        if not faulty.failed:
            break
        if answer.status == 0:  # a verb whose failure an ADD can bear; DEL must then take all of it
            node.call("bridge", "DEL", conf).silent()
        else:
            assert "EIO" in answer.error["msg"], (faulty.failed, answer)
        assert look(node.snapshot()) == look(before), faulty.failed
        held = [line.split()[0] for line in node.ipam_calls() if line.endswith(" ctr")]
        assert held.count("DEL") >= held.count("ADD"), faulty.failed
    assert answer.status == 0
    assert verb > 12


def test_ipam_failing_leaves_nothing(node: Node) -> None:
    conf = node.network(isGateway=True)
    conf["ipam"]["fails"] = {"ADD": 11}
    assert node.call("bridge", "ADD", node.network(isGateway=True), "first", OTHER).status == 0
    before = node.snapshot()

    assert node.call("bridge", "ADD", conf).error["code"] == errors.TRY_AGAIN

    assert node.ipam_calls()[-2:] == ["ADD ctr", "DEL ctr"]
    assert node.snapshot() == before


def test_ipam_that_is_not_there_is_found_out_before_anything_is_made(node: Node) -> None:
    conf = node.network()
    conf["ipam"]["type"] = "missing"
    before = node.snapshot()

    assert "failed to find plugin 'missing'" in node.call("bridge", "ADD", conf).error["msg"]

    assert node.snapshot() == before


@pytest.mark.parametrize("result", [{}, {"ips": []}])
def test_ipam_that_gives_no_address_is_refused(node: Node, result: dict[str, Any]) -> None:
    conf = node.network()
    conf["ipam"]["result"] = result

    assert "IPAM plugin returned missing IP config" in node.call("bridge", "ADD", conf).error["msg"]
    assert node.ipam_calls() == ["ADD ctr", "DEL ctr"]


@pytest.mark.parametrize(
    ("options", "ips", "routes", "path"),
    [
        ({}, [{"address": "127.0.0.2/16"}], [], "ips[0].address"),
        ({}, [{"address": "ff02::2/64"}], [], "ips[0].address"),
        ({"isGateway": True}, [{"address": "::2/64", "gateway": "::1"}], [], "ips[0].gateway"),
        ({"isDefaultGateway": True}, [{"address": "10.1.0.2/24", "gateway": "10.9.0.1"}], [], "ips[0].gateway"),
        ({}, [{"address": "10.1.0.2/24"}], [{"dst": "10.5.0.0/16", "gw": "10.7.0.1"}], "routes[0].gw"),
        ({}, [{"address": "10.1.0.2/24"}], [{"dst": "10.5.0.0/16", "gw": "fe80::1"}], "routes[0].gw"),
    ],
)
def test_ipam_that_gives_what_no_pod_can_use_is_refused_before_the_pod_is_touched(
    node: Node, options: dict[str, Any], ips: list[Any], routes: list[Any], path: str
) -> None:
    conf = node.network(**options)
    conf["ipam"]["result"] = {"cniVersion": "1.0.0", "ips": ips, "routes": routes}

    error = node.call("bridge", "ADD", conf).error

    assert error["code"] == 7
    assert error["msg"].startswith(f"{path}: expected ")
    assert node.ipam_calls() == ["ADD ctr", "DEL ctr"]


# DEL


@pytest.fixture
def attached(node: Node) -> dict[str, Any]:
    """The configuration of a pod that was attached with everything."""
    conf = node.network(*DUAL, isDefaultGateway=True, ipMasq=True, macspoofchk=True)
    node.call("bridge", "ADD", conf, "warm", OTHER)
    node.call("bridge", "DEL", conf, "warm", OTHER).silent()
    node.ipam_log.unlink()
    return conf


def test_del_takes_all_of_it_and_the_lease_last(node: Node, attached: dict[str, Any]) -> None:
    before = node.snapshot()
    node.call("bridge", "ADD", attached)
    bridge = node.kernel.own().link("cni0")
    assert bridge is not None
    node.kernel.add_neighbour(bridge.index, pack("10.1.0.2"))
    faulty = FaultyKernel(node.kernel)

    node.call("bridge", "DEL", attached, kernel=faulty).silent()

    assert node.snapshot() == before
    kinds = [verb.split()[0] for verb in faulty.verbs if verb.split()[0] in {"delete_link", "forget", "delete"}]
    assert kinds[:3] == ["delete_link", "forget", "forget"]
    assert kinds[3] == "delete"
    assert node.ipam_calls() == ["ADD ctr", "DEL ctr"]


@pytest.mark.parametrize("netns", ["", "/gone", OTHER])
def test_del_needs_neither_namespace_nor_prev_result(node: Node, attached: dict[str, Any], netns: str) -> None:
    before = node.snapshot()
    node.call("bridge", "ADD", attached)

    for _ in range(3):
        node.call("bridge", "DEL", attached, netns=netns).silent()

    assert node.snapshot() == before


def test_del_after_the_namespace_died(node: Node, attached: dict[str, Any]) -> None:
    node.call("bridge", "ADD", attached)
    node.kernel.remove_netns(POD)

    node.call("bridge", "DEL", attached).silent()

    assert [name for name in node.own("links") if name.startswith("veth")] == []
    assert elements(node) == []


def test_del_after_the_bridge_is_gone(node: Node, attached: dict[str, Any]) -> None:
    node.call("bridge", "ADD", attached)
    bridge = node.kernel.own().link("cni0")
    assert bridge is not None
    node.kernel.own().delete_link(bridge.index)

    node.call("bridge", "DEL", attached).silent()

    assert list(node.own("links")) == ["lo"]


SPOILT = [
    {"links": 5},
    {"links": None},
    {"links": [{}]},
    {"links": [{"name": 5, "mac": 7}]},
    {"addresses": "10.1.0.2/16"},
    {"addresses": [5]},
    {"bridge": None},
    {"vlan": "x"},
    {"masquerade": 5},
    {"macspoofchk": []},
]


@pytest.mark.parametrize("wrong", SPOILT, ids=str)
def test_del_with_a_record_of_wrong_types(node: Node, attached: dict[str, Any], wrong: dict[str, Any]) -> None:
    before = node.snapshot()
    result = node.call("bridge", "ADD", attached).result
    path = node.run_dir / "networks/net/attachments/ctr:eth0"
    record = json.loads(path.read_text())
    record["plugins"]["bridge"] |= wrong
    path.write_text(json.dumps(record))

    node.call("bridge", "DEL", {**attached, "prevResult": result}).silent()

    assert node.snapshot() == before


@pytest.mark.parametrize("what", ["gone", "torn", "sections", "foreign"])
def test_del_with_no_usable_record(node: Node, attached: dict[str, Any], what: str) -> None:
    before = node.snapshot()
    result = node.call("bridge", "ADD", attached).result
    record = node.run_dir / "networks/net/attachments/ctr:eth0"
    if what == "gone":
        record.unlink()
    else:
        text = {"torn": record.read_text()[:60], "sections": '"bridge": {}', "foreign": "[]"}[what]
        whole = '{"version": 1, "network": "net", "containerID": "ctr", "ifname": "eth0", "plugins": {%s}}'
        record.write_text(whole % text if what == "sections" else text)

    node.call("bridge", "DEL", {**attached, "prevResult": result}).silent()

    assert node.snapshot() == before


def test_del_leaves_a_link_that_is_not_ours(node: Node, attached: dict[str, Any]) -> None:
    node.call("bridge", "ADD", attached)
    veth = node.host_end()
    host = node.kernel.own()
    host.apply(ops.link_set(veth, mac=bytes.fromhex("020000000077")))  # the name was taken by somebody else

    node.call("bridge", "DEL", attached, netns="").silent()

    assert veth in node.own("links")


def test_del_goes_on_when_steps_fail_and_the_next_one_finishes(node: Node, attached: dict[str, Any]) -> None:
    before = node.snapshot()
    failed = 0
    for verb in range(1, 100):
        assert node.call("bridge", "ADD", attached).status == 0
        faulty = FaultyKernel(node.kernel, verb)
        answer = node.call("bridge", "DEL", attached, kernel=faulty)
        if not faulty.failed:
            break
        if answer.status:
            failed += 1
            assert "EIO" in answer.error["msg"], faulty.failed
        node.call("bridge", "DEL", attached).silent()
        assert node.snapshot() == before, faulty.failed
    assert failed > 5


def test_failing_lease_keeps_the_record_for_the_next_del(node: Node, attached: dict[str, Any]) -> None:
    before = node.snapshot()
    node.call("bridge", "ADD", attached)
    attached["ipam"]["fails"] = {"DEL": 11}

    assert node.call("bridge", "DEL", attached).error["code"] == errors.TRY_AGAIN
    assert [name for name in node.own("links") if name.startswith("veth")] == []
    assert (node.run_dir / "networks/net/attachments/ctr:eth0").exists()

    del attached["ipam"]["fails"]
    node.call("bridge", "DEL", attached).silent()
    assert node.snapshot() == before


def elements(node: Node) -> list[bytes]:
    return [key for table in node.own("nft").values() for one in table["sets"].values() for key in one["elements"]]


def test_a_pod_that_took_over_an_address_keeps_it_when_the_first_is_deleted(
    node: Node, attached: dict[str, Any]
) -> None:
    conf = node.network(isGateway=True, ipMasq=True)
    node.call("bridge", "ADD", conf, "first", POD)
    second = node.call("bridge", "ADD", conf, "second", OTHER).result
    bridge = node.kernel.own().link("cni0")
    assert bridge is not None
    node.kernel.add_neighbour(bridge.index, pack("10.1.0.2"))

    node.call("bridge", "DEL", conf, "first", POD).silent()

    assert elements(node) == [pack("10.1.0.2")]
    assert node.own("neighbours") == [(bridge.index, pack("10.1.0.2"))]
    node.call("bridge", "CHECK", {**conf, "prevResult": second}, "second", OTHER).silent()
    node.call("bridge", "DEL", conf, "second", OTHER).silent()
    assert elements(node) == []


# CHECK


def check(node: Node, conf: dict[str, Any], result: dict[str, Any]) -> str:
    """CHECK's complaint."""
    error = node.call("bridge", "CHECK", {**conf, "prevResult": result}).error
    assert error["code"] == errors.INTERNAL
    return str(error["msg"])


def test_check_of_a_well_pod(node: Node, attached: dict[str, Any]) -> None:
    result = node.call("bridge", "ADD", attached).result

    node.call("bridge", "CHECK", {**attached, "prevResult": result}).silent()

    assert node.ipam_calls()[-1] == "CHECK ctr"


def test_check_needs_prev_result(node: Node, attached: dict[str, Any]) -> None:
    node.call("bridge", "ADD", attached)

    assert node.call("bridge", "CHECK", attached).error["code"] == errors.INVALID_CONFIG


def test_check_fails_when_ipam_says_so(node: Node, attached: dict[str, Any]) -> None:
    result = node.call("bridge", "ADD", attached).result
    attached["ipam"]["fails"] = {"CHECK": 3}

    assert node.call("bridge", "CHECK", {**attached, "prevResult": result}).error["code"] == 3


def eth0(node: Node) -> Any:
    link = node.kernel.open(POD).link("eth0")
    assert link is not None
    return link.index


ILL: list[tuple[str, Callable[[Node], object], str]] = [
    ("no pod link", lambda n: n.kernel.open(POD).delete_link(eth0(n)), "eth0 in the pod: expected a link, found none"),
    ("pod link down", lambda n: n.kernel.open(POD).apply(ops.link_set("eth0", up=False)), "eth0 in the pod: expected it up, found it down"),
    ("MAC", lambda n: n.kernel.open(POD).apply(ops.link_set("eth0", mac=b"\2\0\0\0\0\1")), f"eth0 in the pod: expected MAC {MAC}, found 02:00:00:00:00:01"),
    ("MTU", lambda n: n.kernel.open(POD).apply(ops.link_set("eth0", mtu=1400)), "eth0 in the pod: expected MTU 1500, found 1400"),
    ("address", lambda n: n.kernel.open(POD).apply(ops.addr_del(eth0(n), pack("10.1.0.2"), 24)), "expected address 10.1.0.2/24, found fd00:1::2/64"),
    ("route", lambda n: n.kernel.open(POD).world.routes.clear(), "the pod's routes: expected 0.0.0.0/0 via 10.1.0.1, found none"),
    ("bridge down", lambda n: n.kernel.own().apply(ops.link_set("cni0", up=False)), "bridge cni0: expected it up, found it down"),
    ("off the bridge", lambda n: n.kernel.own().apply(ops.link_set(n.host_end(), master=0)), "expected it on bridge cni0, found it on no bridge"),
    ("host end down", lambda n: n.kernel.own().apply(ops.link_set(n.host_end(), up=False)), "on the node: expected it up, found it down"),
    ("no bridge", lambda n: n.kernel.own().delete_link(n.kernel.own().link("cni0").index), "bridge cni0: expected a bridge on the node, found none"),  # type: ignore[union-attr]
    ("element", lambda n: n.kernel.own().nft(ops.nft_element_del(1, "cnikit", "pods-net-0a010000/24", pack("10.1.0.2"))), "expected 10.1.0.2/24 in nftables set"),
    ("chain", lambda n: n.kernel.own().nft(ops.nft_chain_flush(1, "cnikit", "masq-net")), "expected a rule for 10.1.0.0/24"),
    ("macspoofchk", lambda n: n.kernel.own().nft(ops.nft_chain_flush(7, "nat", "PREROUTING")), "macspoofchk: expected chains"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "complaint"), [case[1:] for case in ILL], ids=[case[0] for case in ILL])
def test_check_names_what_is_wrong(
    node: Node, attached: dict[str, Any], spoil: Callable[[Node], object], complaint: str
) -> None:
    result = node.call("bridge", "ADD", attached).result

    spoil(node)

    assert complaint in check(node, attached, result)


def test_check_finds_an_address_that_another_pod_took_over(node: Node) -> None:
    conf = node.network(ipMasq=True)
    first = node.call("bridge", "ADD", conf).result
    node.call("bridge", "ADD", conf, "second", OTHER)

    assert "expected 10.1.0.2/24 masqueraded for ctr:eth0, found it held by second:eth0" in check(node, conf, first)


def test_check_accepts_what_a_later_plugin_did(node: Node) -> None:
    conf = node.network(isDefaultGateway=True)
    result = node.call("bridge", "ADD", conf).result
    pod = node.kernel.open(POD)
    # sbr moves routes to another table, tuning sets MAC and MTU and says so, a later plugin adds an interface.
    pod.world.routes[0].table = 100
    pod.apply(ops.link_set("eth0", mac=b"\2\0\0\0\0\1", mtu=1400))
    result["interfaces"][2] |= {"mac": "02:00:00:00:00:01", "mtu": 1400}
    result["interfaces"].append({"name": "lo"})

    node.call("bridge", "CHECK", {**conf, "prevResult": result}).silent()


def test_check_in_another_namespace(node: Node, attached: dict[str, Any]) -> None:
    result = node.call("bridge", "ADD", attached).result

    error = node.call("bridge", "CHECK", {**attached, "prevResult": result}, netns=OTHER).error

    assert f"Sandbox in prevResult {POD} doesn't match configured netns: {OTHER}" in error["msg"]


# STATUS and GC


def test_status(node: Node) -> None:
    before = node.snapshot()

    node.call("bridge", "STATUS", node.network(isGateway=True, ipMasq=True)).silent()

    assert node.ipam_calls()[0].startswith("STATUS")
    assert node.snapshot() == before


@pytest.mark.parametrize(
    ("fails", "code"),
    [(50, 50), (51, 51), (11, 50), (999, 50), (101, 101)],
)
def test_status_passes_on_what_ipam_says(node: Node, fails: int, code: int) -> None:
    conf = node.network()
    conf["ipam"]["fails"] = {"STATUS": fails}

    error = node.call("bridge", "STATUS", conf).error

    assert error["code"] == code
    assert error["msg"] == "bridge cni0 cannot serve ADD: fake-ipam fails at STATUS"


def test_status_leaves_the_forwarding_of_every_link_alone(node: Node) -> None:
    node.kernel.own().apply(ops.bridge_add("up0", None))
    node.kernel.own().set_conf(addr.AF_INET6, "all", "forwarding", "0")
    node.kernel.own().set_conf(addr.AF_INET6, "up0", "forwarding", "1")

    node.call("bridge", "STATUS", node.network(isGateway=True)).silent()

    assert node.kernel.own().conf(addr.AF_INET6, "up0", "forwarding") == "1"


def test_status_needs_a_place_for_records(node: Node) -> None:
    node.run_dir.write_text("no folder")

    error = node.call("bridge", "STATUS", node.network()).error

    assert error["code"] == errors.NOT_AVAILABLE
    assert str(node.run_dir) in error["msg"]


def test_status_says_what_add_would(node: Node) -> None:
    spoil_bridge(node)

    error = node.call("bridge", "STATUS", node.network()).error

    assert error["code"] == errors.NOT_AVAILABLE
    assert "is not a bridge" in error["msg"]


def test_gc_removes_what_is_not_listed_and_nothing_of_another_network(node: Node, attached: dict[str, Any]) -> None:
    node.kernel.add_netns("/run/netns/third")
    other = {**node.network("10.2.0.2/24", ipMasq=True), "name": "net2", "bridge": "cni2"}
    keep = {**attached, "ipam": node.network("10.1.0.3/24")["ipam"]}
    assert node.call("bridge", "ADD", other, "foreign", OTHER).status == 0
    assert node.call("bridge", "ADD", keep, "keep", "/run/netns/third").status == 0
    before = node.snapshot()
    assert node.call("bridge", "ADD", attached).status == 0

    node.call("bridge", "GC", {**attached, VALID: [{"containerID": "keep", "ifname": "eth0"}]}).silent()

    assert node.snapshot() == before
    assert node.ipam_calls()[-1].startswith("GC")


@pytest.mark.parametrize(
    "content",
    [None, "{", '{"version": 1, "network": "net", "containerID": "ctr", "ifname": "eth0", "plugins": {"bridge": {}}}'],
)
def test_gc_with_no_usable_record_goes_by_labels_and_holders(node: Node, content: str | None) -> None:
    conf = node.network(isGateway=True, ipMasq=True)
    node.call("bridge", "ADD", conf, "keep", OTHER)
    node.call("bridge", "ADD", node.network("10.1.0.3/24", isGateway=True, ipMasq=True))
    record = node.run_dir / "networks/net/attachments/ctr:eth0"
    record.unlink()
    if content is not None:
        record.write_text(content)

    node.call("bridge", "GC", {**conf, VALID: [{"containerID": "keep", "ifname": "eth0"}]}).silent()

    assert node.own("links")[node.host_end()]["alias"] == "cnikit net/keep/eth0"
    assert elements(node) == [pack("10.1.0.2")]


def test_gc_with_everything_listed_changes_nothing(node: Node, attached: dict[str, Any]) -> None:
    node.call("bridge", "ADD", attached)
    before = node.snapshot()

    node.call("bridge", "GC", {**attached, VALID: [{"containerID": "ctr", "ifname": "eth0"}]}).silent()

    assert node.snapshot() == before


@pytest.mark.parametrize("valid", [None, []])
def test_gc_with_nothing_listed_removes_all(node: Node, attached: dict[str, Any], valid: Any) -> None:
    before = node.snapshot()
    node.call("bridge", "ADD", attached)

    node.call("bridge", "GC", {**attached, VALID: valid}).silent()

    assert node.snapshot() == before


# Things that went wrong before


def test_add_that_comes_twice(node: Node) -> None:
    """In a second namespace: the pod that runs loses nothing, and nothing is begun."""
    conf = node.network(isGateway=True, ipMasq=True)
    assert node.call("bridge", "ADD", conf).status == 0
    before = node.snapshot()

    error = node.call("bridge", "ADD", conf, netns=OTHER).error

    assert error["code"] == 999
    assert "container ctr is attached as eth0 already" in error["msg"]
    assert node.snapshot() == before


def test_host_end_s_name_taken_by_another(node: Node) -> None:
    name, _ = host_end("net", "ctr", "eth0")
    node.kernel.own().apply(ops.veth_add(name, None, "x", None, None))
    before = node.snapshot()

    answer = node.call("bridge", "ADD", node.network())

    assert answer.result["interfaces"][1]["name"] == host_end("net", "ctr", "eth0", 1)[0]
    node.call("bridge", "DEL", node.network()).silent()
    assert without_shared(node.snapshot()) == without_shared(before)
    assert name in node.own("links")


def test_two_interfaces_of_one_pod(node: Node) -> None:
    conf = node.network(isGateway=True, ipMasq=True)
    second = {**conf, "ipam": node.network("10.1.0.3/24")["ipam"]}
    assert node.call("bridge", "ADD", conf).status == 0
    before = node.snapshot()

    assert node.call("bridge", "ADD", second, env={"CNI_IFNAME": "net1"}).status == 0
    node.call("bridge", "DEL", second, env={"CNI_IFNAME": "net1"}).silent()

    assert node.snapshot() == before


@pytest.mark.parametrize(
    ("network", "container"),
    [("n" * 200, "c" * 64), ("n" * 400, "c"), ("n", "c" * 400)],
    ids=["both", "network", "container"],
)
def test_names_longer_than_a_file_name_may_be(node: Node, network: str, container: str) -> None:
    conf = node.network(isGateway=True, ipMasq=True, name=network)
    first = node.call("bridge", "ADD", conf, container)

    node.call("bridge", "CHECK", {**conf, "prevResult": first.result}, container).silent()
    node.call("bridge", "DEL", conf, container).silent()

    assert elements(node) == []
    assert [name for name, link in node.own("links").items() if link["alias"]] == []


def test_gc_goes_on_when_a_record_cannot_be_removed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = node.network()
    assert node.call("bridge", "ADD", conf).status == 0
    assert node.call("bridge", "ADD", node.network("10.1.0.3/24"), "two", OTHER).status == 0

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("cni.record.Records.remove", refuse)
    answer = node.call("bridge", "GC", {**conf, "cni.dev/valid-attachments": []})

    assert "Read-only file system" in answer.error["msg"]
    assert [name for name in node.own("links") if name.startswith("veth")] == []
