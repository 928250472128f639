"""Routes of IPAM whose destination has host bits: the kernel clears them in IPv6 and refuses them in IPv4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.bridge_world import add
from tests.e2e.world import DUAL_STACK, Node, Way, network

if TYPE_CHECKING:
    from collections.abc import Mapping

GATEWAY = "fd00:1::9"
ROUTES: list[dict[str, Any]] = [
    {"dst": "3ffe:ffff:0:1::1/64"},
    {"dst": "3ffe:ffff:0:2::1/64", "gw": GATEWAY},
    {"dst": "3ffe:ffff:0:3::1/127", "mtu": 1400},
    {"dst": "3ffe:ffff:0:4::1/64", "priority": 50},
    {"dst": "3ffe:ffff:0:5::1/64", "table": 100},
    {"dst": "3ffe:ffff:0:6::1/128"},
    {"dst": "::1/0"},
    {"dst": "fd00::5/0", "gw": GATEWAY},
    {"dst": "::ffff:192.0.2.0/120"},
]


def conf(route: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    return {**network(ipam={**DUAL_STACK, "routes": [route]}, **options), "cniVersion": "1.1.0"}


@pytest.mark.parametrize("gateway", ["isGateway", "isDefaultGateway"])
@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_check_of_a_route_that_add_made(node: Node, route: dict[str, Any], gateway: str) -> None:
    config = conf(route, **{"isDefaultGateway": False, gateway: True})
    pod = node.pod()

    result = add(node, pod, config)

    assert route["dst"] in [item["dst"] for item in result["routes"]] or route["dst"].startswith("::ffff:")
    node.call("bridge", "CHECK", {**config, "prevResult": result}, pod).silent()
    added = next(item for item in result["routes"] if item["dst"] in (route["dst"], "192.0.2.0/24"))
    table = ["table", str(added.get("table", "main"))]
    family = "-6" if ":" in added["dst"] else "-4"
    node.run("ip", "-n", pod.name, family, "route", "flush", *table, "root", added["dst"])
    missing = node.call("bridge", "CHECK", {**config, "prevResult": result}, pod).error
    assert added["dst"] in missing["msg"]
    node.call("bridge", "DEL", config, pod).silent()


def test_a_default_route_in_another_spelling_is_not_doubled(node: Node) -> None:
    pod = node.pod()

    add(node, pod, conf({"dst": "fd00::5/0"}, isDefaultGateway=True))

    assert [route["gateway"] for route in pod.ip("-6", "route", "show", "default")] == ["fd00:1::1"]


@pytest.mark.parametrize(("dst", "right"), [("192.0.2.1/24", "192.0.2.0/24"), ("10.0.0.1/0", "0.0.0.0/0")])
def test_ipv4_host_bits_are_refused(node: Node, reference: Way, dst: str, right: str) -> None:
    """The reference hands on what the kernel says of them; ours says which network was meant."""
    config = conf({"dst": dst, "gw": "10.1.0.1"}, isGateway=True, isDefaultGateway=False)

    theirs = node.call("bridge", "ADD", config, node.pod(), way=reference).error
    ours = node.call("bridge", "ADD", config, node.pod()).error

    assert "invalid argument" in theirs["msg"]
    assert ours["code"] == 7
    assert ours["msg"] == f"routes[0].dst: expected the network's own address, {right}, found {dst}"
    assert node.leases("net") == {}
