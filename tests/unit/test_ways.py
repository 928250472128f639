"""Whether a route that is announced may lead to a node, with thousands of nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import addr
from plugins.ways import Ways

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plugins.peers import Hop

addresses = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))


@st.composite
def networks(draw: st.DrawFn) -> tuple[bytes, int]:
    packed = draw(addresses)
    prefix = draw(st.integers(0, len(packed) * 8))
    return addr.network(packed, prefix), prefix


@given(st.lists(addresses), st.lists(addresses), st.lists(addresses), networks())
def test_a_route_to_a_network_with_one_of_the_addresses_may_lead_there(
    before: list[bytes], asked: list[bytes], forgotten: list[bytes], network: tuple[bytes, int]
) -> None:
    ways = Ways(lambda _: None, dict.fromkeys(before))
    for packed in asked:
        ways.hop(packed, None)
    ways.forget(forgotten)

    there = {*before, *asked}.difference(forgotten)
    assert ways.has(network) == any(len(one) == len(network[0]) and addr.inside(one, *network) for one in there)


class Unlisted(dict[bytes, "Hop | None"]):
    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("all addresses were looked at for one route")


@pytest.mark.parametrize("network", ["192.0.2.0/24", "203.0.113.0/24", "192.0.2.7/32"])
def test_it_costs_the_same_with_any_number_of_nodes(network: str) -> None:
    subnet = addr.pack_cidr(network)
    assert subnet is not None
    ways = Ways(lambda _: None, {bytes([192, 0, 2, 7]): None})
    ways._found = Unlisted(ways._found)

    assert ways.has(subnet) == (network != "203.0.113.0/24")
