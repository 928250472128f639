"""What the difference makes of the real kernel, where the order of its operations counts; `ip` tells what came of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from cni import addr
from cni.kernel import ops
from cni.kernel.background import thread_background
from cni.kernel.linux import Kernel
from plugins import vxlan
from plugins.peers import Local, Node, Underlay
from plugins.reconcile import sync
from plugins.ways import Ways

if TYPE_CHECKING:
    from cni.kernel.linux import Namespace
    from tests.netns.conftest import Netns


def packed(text: str) -> bytes:
    value = addr.pack(text)
    assert value is not None
    return value


OWN = Node("node1", {16: packed("2001:db8::1")}, ((packed("fd00:244:0:1::"), 64),))
PEER = Node("node2", {16: packed("2001:db8::2")}, ((packed("fd00:244:0:2::"), 64),))
RANGES = [(packed("fd00:244::"), 48)]


def make_links(host: Namespace) -> tuple[int, int]:
    """An underlay link and a VXLAN device on it."""
    host.apply(ops.veth_add("under0", None, "under1", None, None), ops.link_set("under1", up=True))
    under = host.link("under0")
    assert under is not None
    host.apply(
        ops.addr_add(under.index, OWN.addresses[16], 64, nodad=True),
        ops.vxlan_add(
            "cnik6.1", 1, mac=OWN.vtep_mac(16, 1), mtu=1430, port=8472, local=OWN.addresses[16], link=under.index
        ),
        ops.link_set("cnik6.1", up=True),
    )
    device = host.link("cnik6.1")
    assert device is not None
    return under.index, device.index


@pytest.mark.parametrize("way_back", [False, True])
def test_an_ipv6_peer_changes_between_the_link_and_the_overlay(host_ns: Netns, way_back: bool) -> None:  # noqa: FBT001
    with Kernel(time.monotonic, thread_background).open(host_ns.path) as host:
        under, device = make_links(host)
        underlays = {16: Underlay(under, "under0", 1500, ((packed("2001:db8::"), 64),))}
        direct, overlay = (Local(underlays, {16: device}, vni=1, direct=ways) for ways in (Ways(host.way), None))

        for local in (direct, overlay, direct) if way_back else (direct, overlay):
            sync(host, [vxlan.entries(OWN, PEER, local)], [device], RANGES, pytest.fail)

        (route,) = host_ns.ip("-6", "route", "show", "fd00:244:0:2::/64")
        expected = ("2001:db8::2", "under0") if way_back else ("fd00:244:0:2::", "cnik6.1")
        assert (route["gateway"], route["dev"]) == expected
