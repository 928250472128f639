"""The MAC that follows from a pod's address (adr/022)."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from plugins.veth import mac_of_address

OLD_BEGINNING = b"\x0a\x58"


@given(st.binary(min_size=4, max_size=4))
def test_of_an_ipv4_address(packed: bytes) -> None:
    assert mac_of_address(packed) == OLD_BEGINNING + packed


@given(st.binary(min_size=16, max_size=16))
def test_of_an_ipv6_address(packed: bytes) -> None:
    mac = mac_of_address(packed)

    assert len(mac) == 6
    assert mac[0] & 0x01 == 0, "a group address"
    assert mac[0] & 0x02, "not locally administered"
    assert not mac.startswith(OLD_BEGINNING)
    assert mac == mac_of_address(packed)


def test_of_many_ipv6_addresses() -> None:
    """Enough of them that some digests begin as an IPv4 pod's MAC does (one in 16,384)."""
    networks = (bytes([0xFD, 0, 0, number]) + bytes(10) for number in range(2))
    packed = (prefix + last.to_bytes(2, "big") for prefix, last in itertools.product(networks, range(1 << 15)))
    macs = {mac_of_address(one) for one in packed}

    assert len(macs) == 2 << 15
    assert all(mac[0] & 0x03 == 0x02 and not mac.startswith(OLD_BEGINNING) for mac in macs)
