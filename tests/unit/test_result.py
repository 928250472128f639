"""One result inside, one form for each spec version outside (tests/golden/results/<version>.json), and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import addr
from cni.config import Reader
from cni.errors import INTERNAL, INVALID_CONFIG, CniError
from cni.result import Interface, IPConfig, Result, Route, read_dns, read_routes
from cni.version import SUPPORTED

GOLDEN = Path(__file__).parent.parent / "golden" / "results"
MODERN = SUPPORTED[2:]
FULL = "1.1.0"


def pack(text: str) -> bytes:
    packed = addr.pack(text)
    assert packed is not None
    return packed


def dual_stack() -> Result:
    """What bridge answers for a dual-stack pod, with everything that a result can hold."""
    result = Result()
    result.interfaces = [
        Interface("cni0", "0a:00:00:00:00:01", 1400),
        Interface("veth1a2b3c4d5e6", "0a:00:00:00:00:02", 1400),
        Interface("eth0", "0a:58:0a:01:00:02", 1400, "/run/netns/pod"),
    ]
    result.ips = [
        IPConfig(pack("10.1.0.2"), 16, pack("10.1.0.1"), 2),
        IPConfig(pack("fd00:1::2"), 64, pack("fd00:1::1"), 2),
        IPConfig(pack("10.2.0.2"), 24, None, 0),
    ]
    full = Route(pack("192.0.2.0"), 24, pack("10.1.0.9"))
    full.mtu, full.advmss, full.priority, full.table, full.scope = 1300, 1260, 100, 0, 253
    result.routes = [Route(pack("0.0.0.0"), 0, pack("10.1.0.1")), full, Route(pack("::"), 0, None)]  # noqa: S104 - any
    result.dns = {"nameservers": ["10.96.0.10"], "domain": "example", "search": ["svc.example"], "options": ["ndots:5"]}
    return result


def golden(version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{version}.json").read_text())
    return found


@pytest.mark.parametrize("version", SUPPORTED)
def test_result_in_each_version(version: str) -> None:
    assert dual_stack().json(version) == golden(version)


@pytest.mark.parametrize("version", SUPPORTED)
def test_prev_result_of_each_version_is_read_back(version: str) -> None:
    assert Result.read(Reader(golden(version))).json(version) == golden(version)


@pytest.mark.parametrize("version", MODERN)
def test_what_a_version_can_tell_survives_the_way_through_it(version: str) -> None:
    expected = dual_stack().json(FULL)
    if version != FULL:  # the only thing that 1.1.0 added and older ones cannot tell
        for interface in expected["interfaces"]:
            del interface["mtu"]

    assert _without_version(Result.read(Reader(dual_stack().json(version))).json(FULL)) == expected


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions_keep_one_address_of_each_family_and_its_routes(version: str) -> None:
    found = Result.read(Reader(golden(version))).json(FULL)

    assert found["ips"] == [
        {"address": "10.1.0.2/16", "gateway": "10.1.0.1"},
        {"address": "fd00:1::2/64", "gateway": "fd00:1::1"},
    ]
    assert [route["dst"] for route in found["routes"]] == ["0.0.0.0/0", "192.0.2.0/24", "::/0"]
    assert found["dns"] == dual_stack().dns


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions_cannot_tell_of_an_attachment_without_addresses(version: str) -> None:
    result = Result()
    result.interfaces.append(Interface("eth0"))

    with pytest.raises(CniError, match="no valid IP addresses") as caught:
        result.json(version)

    assert caught.value.code == INTERNAL


def test_empty_result() -> None:
    assert Result.read(Reader({})).json(FULL) == {"cniVersion": FULL}
    assert Result.read(Reader({"ips": None, "dns": {}})).json("0.3.0") == {"cniVersion": "0.3.0"}


def test_unknown_keys_are_carried_at_every_level() -> None:
    given = {
        "cniVersion": FULL,
        "interfaces": [{"name": "eth0", "socketPath": "/run/x", "pciID": "0000:00:1f.6"}],
        "ips": [{"address": "10.1.0.2/24", "label": "a"}],
        "routes": [{"dst": "0.0.0.0/0", "encap": {"type": "mpls"}}],
        "example.com/extra": [1, None],
    }

    assert Result.read(Reader(given)).json(FULL) == given


def test_keys_of_any_case_are_read() -> None:
    given = {"IPs": [{"Address": "10.1.0.2/24", "GATEWAY": "10.1.0.1"}], "Interfaces": [{"NAME": "eth0"}]}

    assert Result.read(Reader(given)).json(FULL) == {
        "cniVersion": FULL,
        "interfaces": [{"name": "eth0"}],
        "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}],
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"ips": {}}, "prevResult.ips: expected an array, found {}"),
        ({"ips": [{}]}, "prevResult.ips[0].address: expected an address with prefix length"),
        ({"ips": [{"address": "10.1.0.2"}]}, 'prevResult.ips[0].address: expected an address with prefix length such as 10.1.0.2/24, found "10.1.0.2"'),
        ({"ips": [{"address": "10.1.0.2/24", "interface": True}]}, "prevResult.ips[0].interface: expected an integer"),
        ({"ips": [{"address": "10.1.0.2/24", "interface": -1}]}, "prevResult.ips[0].interface: expected an integer of"),
        ({"interfaces": [1]}, "prevResult.interfaces[0]: expected an object"),
        ({"interfaces": [{"name": 1}]}, "prevResult.interfaces[0].name: expected a string"),
        ({"routes": [{"dst": "10.0.0.0/8"}, {"dst": 5}]}, "prevResult.routes[1].dst: expected an address"),
        ({"routes": [{"dst": "10.0.0.0/8", "gw": "x"}]}, "prevResult.routes[0].gw: expected an IP address"),
        ({"routes": [{"dst": "10.0.0.0/8", "scope": 256}]}, "prevResult.routes[0].scope: expected an integer from 0 to 255"),
        ({"dns": {"nameservers": "10.0.0.1"}}, "prevResult.dns.nameservers: expected an array"),
        ({"dns": {"search": [1]}}, "prevResult.dns.search[0]: expected a string"),
        ({"ip4": {"ip": "x"}}, "prevResult.ip4.ip: expected an address"),
        ({"ip6": []}, "prevResult.ip6: expected an object"),
    ],
)  # fmt: skip
def test_wrong_types_are_refused_with_their_path(value: dict[str, Any], message: str) -> None:
    with pytest.raises(CniError) as caught:
        Result.read(Reader({"prevResult": value}).object("prevResult"))

    assert caught.value.code == INVALID_CONFIG
    assert caught.value.msg.startswith(message)


def test_zero_means_not_said_but_table_and_scope_zero_are_said() -> None:
    route = Route.read(Reader({"dst": "10.0.0.0/8", "mtu": 0, "table": 0, "scope": 0}))

    assert route.json() == {"dst": "10.0.0.0/8", "table": 0, "scope": 0}


def test_routes_and_dns_of_a_configuration() -> None:
    ipam = Reader({"routes": [{"dst": "10.0.0.0/8", "gw": "10.1.0.1"}]}, "ipam")

    assert [route.json() for route in read_routes(ipam, "routes")] == [{"dst": "10.0.0.0/8", "gw": "10.1.0.1"}]
    assert read_dns(Reader({"domain": "", "search": ["a"]})) == {"search": ["a"]}


# ::ffff:10.0.0.1/64 is no IPv4 network, and as in Go no IPv6 one: see test_addr.
addresses = st.ip_addresses().filter(lambda address: getattr(address, "ipv4_mapped", None) is None)
cidrs = st.builds(lambda address, share: f"{address}/{int(share * address.max_prefixlen)}", addresses, st.floats(0, 1))
gateways = st.none() | addresses.map(str)
results = st.fixed_dictionaries(
    {},
    optional={
        "interfaces": st.lists(
            st.fixed_dictionaries({"name": st.text(max_size=5)}, optional={"mtu": st.integers(0, 9000)})
        ),
        "ips": st.lists(
            st.fixed_dictionaries({"address": cidrs}, optional={"gateway": gateways, "interface": st.integers(0, 3)})
        ),
        "routes": st.lists(
            st.fixed_dictionaries({"dst": cidrs}, optional={"gw": gateways, "table": st.integers(0, 9)})
        ),
        "dns": st.fixed_dictionaries({}, optional={"search": st.lists(st.text(max_size=5))}),
        "vendor": st.integers(),
    },
)


@given(results, st.sampled_from(MODERN))
def test_writing_and_reading_again_changes_nothing(value: dict[str, Any], version: str) -> None:
    once = Result.read(Reader(value)).json(version)

    assert Result.read(Reader(once)).json(version) == once
    json.dumps(once)


def _without_version(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "cniVersion": FULL}
