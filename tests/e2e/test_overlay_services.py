"""Services on a vxlan node: what the node itself sends to one reaches a pod elsewhere, and a client's address is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.services_world import BOTH, NEAR, World, own_address, services, source_of_a_client, source_of_the_node
from tests.e2e.underlay import address_of
from tests.e2e.world import datagram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.world import Way

# Linux has no rp_filter for IPv6.
REVERSE_PATH = """
table inet reverse-path {
    chain prerouting {
        type filter hook prerouting priority raw;
        meta nfproto ipv6 meta l4proto { tcp, udp } fib saddr . iif oif missing drop
    }
}
"""


@pytest.fixture(scope="module")
def world(way: Way) -> Iterator[World]:
    with services(way) as made:
        for node in made.cluster.nodes[:2]:
            node.run("nft", "-f", "-", stdin=REVERSE_PATH.encode())
        yield made


@pytest.mark.parametrize("family", BOTH)
def test_the_node_itself_reaches_a_service_whose_pod_is_elsewhere(world: World, family: int) -> None:
    source = source_of_the_node(world, family)

    assert source == own_address(1, family), "an address that node 2 expects on its overlay device"


@pytest.mark.parametrize("family", BOTH)
def test_a_client_from_outside_keeps_its_address(world: World, family: int) -> None:
    """`externalTrafficPolicy: Local`, to a pod of this node, and forwarded through the overlay."""
    with world.client.socket(family) as client, world.near.socket(family) as listener:
        listener.bind(("", NEAR))
        assert datagram(client, listener, address_of(1, family)) == address_of(3, family)

    assert source_of_a_client(world, family) == ""


@pytest.mark.timeout(1200)
def test_the_same_on_a_kernel_without_nft_fib(seen_in_the_vm: dict[str, Any]) -> None:
    seen = seen_in_the_vm["without nft_fib"]

    assert "failed" not in seen, seen
    assert "No such file or directory" in seen["fib"], "this kernel has no `fib` in rules"
    assert (seen["status"], seen["check"]) == ([0, ""], [0, ""])
    assert seen["of the node"] == [own_address(1, family) for family in BOTH]
    assert seen["of a client"] == ["", ""]
