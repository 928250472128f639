"""bridge's options: what each is when given, when not, and when wrong."""

from __future__ import annotations

from typing import Any

import pytest

from cni.config import Reader
from cni.errors import INVALID_CONFIG, CniError
from cni.request import Request
from plugins.bridge import Conf

MAC = b"\x0a\x58\x0a\x01\x00\x02"
ENVIRON = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "ctr", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/pod"}


def conf(options: dict[str, Any], args: str = "") -> Conf:
    return Conf(Reader(options), Request({**ENVIRON, "CNI_ARGS": args}))


def test_defaults() -> None:
    found = conf({})

    found.refuse_contradictions()
    assert {slot: getattr(found, slot) for slot in Conf.__slots__ if slot != "ipam"} == {
        "bridge": "cni0", "is_gateway": False, "is_default_gateway": False, "force_address": False, "ip_masq": False,
        "backend": "nftables", "mtu": 0, "hairpin": False, "promisc": False, "vlan": 0, "vlans": [], "vlan_option": "",
        "preserve_default_vlan": False, "mac_spoof_check": False, "duplicate_detection": False,
        "disable_container_interface": False, "isolated": False, "mac": None, "layer3": False, "dns": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "attribute", "value"),
    [
        ({"bridge": "br1"}, "bridge", "br1"),
        ({"isGateway": True}, "is_gateway", True),
        ({"isDefaultGateway": True}, "is_gateway", True),
        ({"isDefaultGateway": True}, "is_default_gateway", True),
        ({"forceAddress": True}, "force_address", True),
        ({"ipMasq": True}, "ip_masq", True),
        ({"ipMasqBackend": "iptables"}, "backend", "iptables"),
        ({"ipMasqBackend": ""}, "backend", "nftables"),
        ({"mtu": 1400}, "mtu", 1400),
        ({"hairpinMode": True}, "hairpin", True),
        ({"promiscMode": True}, "promisc", True),
        ({"vlan": 100}, "vlan", 100),
        ({"vlan": 100}, "vlan_option", "vlan: 100"),
        ({"vlan": 4094}, "vlan", 4094),
        ({"vlan": 0}, "vlan_option", ""),
        ({"vlanTrunk": [{"id": 7}]}, "vlan_option", "vlanTrunk: [7]"),
        ({"vlanTrunk": [{"minID": 100, "maxID": 103}, {"id": 5}, {"id": 101}]}, "vlans", [5, 100, 101, 102, 103]),
        ({"vlanTrunk": [{"minID": 10, "maxID": 10, "id": 4094}]}, "vlans", [10, 4094]),
        ({"vlanTrunk": [{}]}, "vlans", []),
        ({"preserveDefaultVlan": True}, "preserve_default_vlan", True),
        ({"macspoofchk": True}, "mac_spoof_check", True),
        ({"macSpoofChk": True}, "mac_spoof_check", True),
        ({"enabledad": True}, "duplicate_detection", True),
        ({"disableContainerInterface": True}, "disable_container_interface", True),
        ({"portIsolation": True}, "isolated", True),
        ({"ipam": {"type": "host-local"}}, "layer3", True),
        ({"ipam": {}}, "layer3", False),
        ({"ipam": {"type": ""}}, "layer3", False),
        ({"dns": {"nameservers": ["10.1.0.1"], "domain": ""}}, "dns", {"nameservers": ["10.1.0.1"]}),
    ],
)
def test_options(options: dict[str, Any], attribute: str, value: Any) -> None:
    assert getattr(conf(options), attribute) == value


@pytest.mark.parametrize(
    ("options", "args", "mac"),
    [
        ({}, "MAC=0a:58:0a:01:00:02", MAC),
        ({"args": {"cni": {"mac": "0A-58-0A-01-00-02"}}}, "MAC=02:00:00:00:00:01", MAC),
        ({"args": {"cni": {"mac": "02:00:00:00:00:01"}}, "runtimeConfig": {"mac": "0a:58:0a:01:00:02"}}, "", MAC),
        ({"runtimeConfig": {"mac": ""}}, "MAC=0a:58:0a:01:00:02", MAC),
        ({"runtimeConfig": {"mac": None}, "args": {"cni": None}}, "", None),
        ({}, "MAC=", None),
    ],
)
def test_the_later_mac_wins(options: dict[str, Any], args: str, mac: bytes | None) -> None:
    assert conf(options, args).mac == mac


@pytest.mark.parametrize(
    ("options", "args", "message"),
    [
        ({"bridge": 5}, "", "bridge: expected a string, found 5"),
        ({"isGateway": 1}, "", "isGateway: expected true or false, found 1"),
        ({"mtu": "1500"}, "", 'mtu: expected an integer, found "1500"'),
        ({"mtu": -1}, "", "mtu: expected an integer from 0 to 65535, found -1"),
        ({"mtu": True}, "", "mtu: expected an integer, found true"),
        ({"vlan": 4095}, "", "vlan: expected an integer from 0 to 4094, found 4095"),
        ({"vlan": -1}, "", "vlan: expected an integer from 0 to 4094, found -1"),
        ({"vlanTrunk": {}}, "", "vlanTrunk: expected an array"),
        ({"vlanTrunk": [5]}, "", "vlanTrunk[0]: expected an object, found 5"),
        ({"vlanTrunk": [{}, {"id": 4095}]}, "", "vlanTrunk[1].id: expected an integer from 1 to 4094, found 4095"),
        ({"vlanTrunk": [{"id": 0}]}, "", "vlanTrunk[0].id: expected an integer from 1 to 4094, found 0"),
        ({"vlanTrunk": [{"minID": 5}]}, "", "minID and maxID should be configured simultaneously, maxID is missing"),
        ({"vlanTrunk": [{"maxID": 5}]}, "", "simultaneously, minID is missing"),
        ({"vlanTrunk": [{"minID": 6, "maxID": 5}]}, "", "minID 6 is greater than maxID 5 in trunk parameter"),
        ({"ipam": "host-local"}, "", "ipam: expected an object"),
        ({"dns": {"search": "a"}}, "", "dns.search: expected an array"),
        ({}, "MAC=1:2", "CNI_ARGS MAC: expected a MAC address"),
        ({}, "MAC=01:00:5e:00:00:01", "CNI_ARGS MAC: expected a unicast MAC address"),
        ({}, "MAC=00:00:00:00:00:00", "CNI_ARGS MAC: expected a unicast MAC address"),
        ({"args": {"cni": {"mac": "x"}}}, "", "args.cni.mac: expected a MAC address"),
        ({"runtimeConfig": {"mac": "ff:ff:ff:ff:ff:ff"}}, "", "runtimeConfig.mac: expected a unicast MAC address"),
        ({"runtimeConfig": {"mac": 5}}, "", "runtimeConfig.mac: expected a string, found 5"),
    ],
)
def test_wrong_types_and_values(options: dict[str, Any], args: str, message: str) -> None:
    with pytest.raises(CniError) as caught:
        conf(options, args)

    assert caught.value.code == INVALID_CONFIG
    assert message in caught.value.msg


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bridge": "a/b"}, "bridge: expected an interface name"),
        ({"bridge": "a" * 16}, "is longer than 15 bytes"),
        ({"bridge": ""}, "bridge: expected an interface name (is empty)"),
        ({"bridge": "a\0b"}, "bridge: expected an interface name"),
        ({"bridge": "abcdefghijk", "vlan": 1234, "isGateway": True}, "abcdefghijk.1234"),
        ({"ipMasqBackend": "ipfw"}, "unknown ipmasq backend"),
        ({"hairpinMode": True, "promiscMode": True}, "cannot set hairpin mode and promiscuous mode at the same time"),
        ({"disableContainerInterface": True, "ipam": {"type": "x"}}, "cannot use IPAM when DisableContainerInterface"),
    ],
)
def test_contradictions_are_refused_but_not_by_del(options: dict[str, Any], message: str) -> None:
    found = conf(options)  # DEL and GC come this far, and must clean up

    with pytest.raises(CniError) as caught:
        found.refuse_contradictions()

    assert caught.value.code == INVALID_CONFIG
    assert message in caught.value.msg
