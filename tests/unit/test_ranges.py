"""Range arithmetic against the standard library's `ipaddress`, and what a configuration is refused for."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.config import Reader
from cni.errors import CniError
from ipam.ranges import Range, RangeSet, check_families, read_sets

Address = IPv4Address | IPv6Address


def sets_of(*sets: Any, **top: Any) -> list[RangeSet]:
    return read_sets(Reader({**top, "ipam": {"ranges": list(sets), **top.get("ipam", {})}}))


def one(**keys: str) -> Range:
    return sets_of([keys])[0].ranges[0]


@st.composite
def networks(draw: st.DrawFn) -> Any:
    """A network that is big enough."""
    bits = draw(st.sampled_from([32, 128]))
    prefix = draw(st.integers(0, bits - 2))
    kind = IPv4Address if bits == 32 else IPv6Address
    # A mapped address is IPv4's, and has no prefix below 96: not what is meant here.
    address = kind(draw(st.integers(0, (1 << bits) - 1)))
    return ip_network((address, prefix), strict=False)


@given(networks())
def test_defaults_are_the_references(network: Any) -> None:
    found = one(subnet=str(network))
    assert found.text(found.first) == str(network.network_address + 1)
    last = network.broadcast_address - (1 if network.version == 4 else 0)
    assert found.text(found.last) == str(last)
    assert ip_address(found.gateway) == network.network_address + 1
    assert found.size == int(last) - int(network.network_address + 1)
    assert found.subnet() == str(network)


@given(networks(), st.data())
def test_membership_agrees_with_ipaddress(network: Any, data: st.DataObject) -> None:
    low, high = int(network.network_address), int(network.broadcast_address)
    first = data.draw(st.integers(low, high))
    last = data.draw(st.integers(first, high))
    kind = type(network.network_address)
    outside = first - 1 if first > low else min(high, last + 1)  # a range of its gateway alone is refused
    found = one(subnet=str(network), rangeStart=str(kind(first)), rangeEnd=str(kind(last)), gateway=str(kind(outside)))
    for probe in {first, last, max(low, first - 1), min(high, last + 1), data.draw(st.integers(low, high))}:
        assert (kind(probe).packed in found) == (first <= probe <= last)
    assert bytes(4 if network.version == 6 else 16) not in found


def walk(ranges: list[tuple[int, int]], last: int | None) -> list[int]:
    """The order of allocation by one step at a time, as the reference's iterator goes."""
    everything = [number for low, high in ranges for number in range(low, high + 1)]
    if last not in everything:
        return everything
    at = everything.index(last) + 1
    return everything[at:] + everything[:at]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), min_size=1, max_size=5), st.integers(0, 255))
def test_round_robin_visits_every_address_once_beginning_after_the_last(
    pieces: list[tuple[int, int]], last: int
) -> None:
    spans: list[tuple[int, int]] = []
    for start, length in pieces:
        if all(start > high or start + length < low for low, high in spans):
            spans.append((start, start + length))
    keys = [
        {"subnet": "10.0.0.0/24", "rangeStart": f"10.0.0.{a}", "rangeEnd": f"10.0.0.{b}", "gateway": "10.0.0.255"}
        for a, b in spans
    ]
    (item,) = sets_of(keys)
    base = int(IPv4Address("10.0.0.0"))
    found = [
        number - base
        for _, first, final in item.round_robin(IPv4Address(base + last).packed)
        for number in range(first, final + 1)
    ]
    assert found == walk(spans, last)


def test_round_robin_begins_at_the_beginning_when_the_last_is_unknown() -> None:
    (item,) = sets_of([{"subnet": "10.0.0.0/30"}])
    for last in (None, IPv4Address("10.9.0.1").packed, IPv6Address("::1").packed):
        assert [(first, final) for _, first, final in item.round_robin(last)] == [(167772161, 167772162)]


def test_a_set_counts_what_it_can_hand_out() -> None:
    (item,) = sets_of([
        {"subnet": "10.0.0.0/29"},
        {"subnet": "10.1.0.0/29", "gateway": "10.9.0.1"},
        {"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.10", "rangeEnd": "10.2.0.11"},
    ])  # fmt: skip
    assert item.size == 5 + 6 + 2
    assert str(item) == "10.0.0.1-10.0.0.6,10.1.0.1-10.1.0.6,10.2.0.10-10.2.0.11"
    (huge,) = sets_of([{"subnet": "fd00::/64"}])
    assert huge.size == (1 << 64) - 2


def test_sets_come_in_the_references_order_and_keep_their_places() -> None:
    found = sets_of(
        [{"subnet": "10.3.0.0/24"}],
        ipam={"subnet": "10.2.0.0/24", "ranges": [[{"subnet": "10.3.0.0/24"}]]},
        runtimeConfig={"ipRanges": [[{"subnet": "10.1.0.0/24"}]]},
    )
    assert [(item.index, item.path) for item in found] == [
        (0, "runtimeConfig.ipRanges[0]"),
        (1, "ipam"),
        (2, "ipam.ranges[0]"),
    ]
    assert [item.ranges[0].subnet() for item in found] == ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"]


NET = "10.0.0.0/24"
REFUSED = [
    ([], "no IP ranges specified"),
    ([[]], "invalid range set 0: empty range set"),
    ([{}], "ipam.ranges[0]: expected an array"),
    ([[[]]], "ipam.ranges[0][0]: expected an object"),
    ([[{}]], "ipam.ranges[0][0].subnet: expected a network such as 10.1.0.0/24, found null"),
    ([[{"subnet": 5}]], "ipam.ranges[0][0].subnet: expected a string"),
    ([[{"subnet": "10.0.0.0"}]], "ipam.ranges[0][0].subnet: expected a network"),
    ([[{"subnet": "10.0.0.0/33"}]], "ipam.ranges[0][0].subnet: expected a network"),
    ([[{"subnet": "10.0.0.0/31"}]], "ipam.ranges[0][0].subnet: Network 10.0.0.0/31 too small to allocate from"),
    ([[{"subnet": "10.0.0.5/24"}]], "the network address is 10.0.0.0"),
    ([[{"subnet": NET, "rangeStart": "x"}]], "ipam.ranges[0][0].rangeStart: expected an IP address"),
    ([[{"subnet": NET, "rangeStart": "fd00::1"}]], "RangeStart fd00::1 not in network 10.0.0.0/24"),
    ([[{"subnet": NET, "rangeEnd": "10.0.1.1"}]], "ipam.ranges[0][0].rangeEnd: RangeEnd 10.0.1.1 not in network"),
    ([[{"subnet": NET, "rangeEnd": "10.0.0.0"}]], "RangeEnd 10.0.0.0 not in network 10.0.0.0/24"),
    ([[{"subnet": NET, "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}]], "RangeStart 10.0.0.9 not in network"),
    ([[{"subnet": NET, "gateway": "gw"}]], "ipam.ranges[0][0].gateway: expected an IP address"),
    ([[{"subnet": NET}, {"subnet": "fd00::/64"}]], "invalid range set 0: mixed address families"),
    ([[{"subnet": NET}, {"subnet": NET}]], "invalid range set 0: subnets 10.0.0.1-10.0.0.254 and 10.0.0.1-10.0.0.254"),
    ([[{"subnet": NET}], [{"subnet": "10.0.0.0/16"}]], "range set 0 overlaps with 1"),
]


@pytest.mark.parametrize(("ranges", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused_with_code_7(ranges: list[Any], message: str) -> None:
    with pytest.raises(CniError) as refused:
        sets_of(*ranges)
    assert refused.value.code == 7
    assert message in refused.value.msg


def test_old_versions_have_room_for_one_address_per_family() -> None:
    dual = sets_of([{"subnet": NET}], [{"subnet": "fd00::/64"}])
    two = sets_of([{"subnet": NET}], [{"subnet": "10.1.0.0/24"}])
    check_families(dual, "0.2.0")
    check_families(two, "0.3.0")
    with pytest.raises(CniError, match="does not support more than 1 address per family") as refused:
        check_families(two, "0.2.0")
    assert refused.value.code == 7
