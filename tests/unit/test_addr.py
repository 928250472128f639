"""Addresses as bytes: `ipaddress` is the oracle."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import addr

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
addresses = st.ip_addresses()
# Text made of what addresses are made of.
nearly = st.text("0123456789abcdefABCDEF:./%g \0", max_size=24)


def mapped(address: Address) -> Address:
    """::ffff:10.0.0.1 is 10.0.0.1, as in Go."""
    return (address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None) or address


@given(addresses)
def test_pack_and_unpack_agree_with_ipaddress(address: Address) -> None:
    address = mapped(address)

    packed = addr.pack(str(address))

    assert packed == address.packed
    assert ipaddress.ip_address(addr.unpack(packed)) == address
    assert addr.family(packed) == (addr.AF_INET if address.version == 4 else addr.AF_INET6)


@given(nearly | st.text())
def test_pack_takes_what_ipaddress_takes_and_nothing_else(text: str) -> None:
    try:
        expected = ipaddress.ip_address(text)
    except ValueError:
        assert addr.pack(text) is None
        return
    if getattr(expected, "scope_id", None):
        assert addr.pack(text) is None  # Go's ParseIP takes no zone
        return
    assert addr.pack(text) == mapped(expected).packed


@given(nearly)
def test_pack_cidr_takes_what_ipaddress_takes(text: str) -> None:
    found = addr.pack_cidr(text)
    try:
        expected = ipaddress.ip_interface(text)
    except ValueError:
        assert found is None
        return
    if found is not None and getattr(expected.ip, "ipv4_mapped", None) is None:
        assert (found[0], found[1]) == (expected.ip.packed, expected.network.prefixlen)


@given(addresses, st.data())
def test_network_and_inside_agree_with_ipaddress(address: Address, data: st.DataObject) -> None:
    packed = address.packed
    prefix = data.draw(st.integers(0, len(packed) * 8))
    expected = ipaddress.ip_network((packed, prefix), strict=False)
    other = data.draw(addresses)

    net = addr.network(packed, prefix)

    assert net == expected.network_address.packed
    assert addr.pack_cidr(str(expected)) in ((net, prefix), (mapped(expected.network_address).packed, prefix - 96))
    assert addr.inside(other.packed, packed, prefix) == (other in expected)


@given(addresses)
def test_following_wraps_around(address: Address) -> None:
    size = len(address.packed)
    expected = (int(address) + 1) % (1 << size * 8)
    assert int.from_bytes(addr.following(address.packed), "big") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.0.2/24", (b"\x0a\x01\x00\x02", 24)),
        ("10.1.0.2/0", (b"\x0a\x01\x00\x02", 0)),
        ("::ffff:10.0.0.1/120", (b"\x0a\x00\x00\x01", 24)),
        ("::ffff:10.0.0.1/64", None),
        ("10.1.0.2", None),
        ("10.1.0.2/", None),
        ("10.1.0.2/33", None),
        ("10.1.0.2/-1", None),
        ("10.1.0.2/+1", None),
        ("10.1.0.2/٣", None),
        ("10.1.0.2/1/1", None),
        ("10.1.0.2/255.255.255.0", None),
        ("10.01.0.2/24", None),
        ("fe80::1%eth0/64", None),
        ("/24", None),
        ("", None),
        ("1.2.3.4\0/24", None),
        ("\ud800/24", None),
    ],
)
def test_pack_cidr(text: str, expected: tuple[bytes, int] | None) -> None:
    assert addr.pack_cidr(text) == expected


@given(st.binary(min_size=6, max_size=6))
def test_mac_round_trip(packed: bytes) -> None:
    text = addr.unpack_mac(packed)

    assert addr.pack_mac(text) == packed
    assert addr.pack_mac(text.upper().replace(":", "-")) == packed
    assert addr.pack_mac(packed.hex(".", 2)) == packed
    assert addr.pack_mac(packed.hex()) == packed
    assert addr.is_multicast_mac(packed) == (packed[0] % 2 == 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0a:58",
        "0a:58:0a:01:00:2",
        "0a:58:0a-01:00:02",
        "a58.00a01.0002",
        " a580a010002",
        "0a:58:0a:01:00:zz",
        "0a:58:0a:01:00:02:03",
        "0a:58:0a:01:00:+2",
        "0a:58:0a:01:00:²²",
    ],
)
def test_no_mac(text: str) -> None:
    assert addr.pack_mac(text) is None
