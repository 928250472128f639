"""The fake kernel refuses what Linux refuses, and the faulty one fails where it is told to."""

from __future__ import annotations

from errno import (
    EADDRNOTAVAIL,
    EBUSY,
    EEXIST,
    EHOSTUNREACH,
    EINVAL,
    EIO,
    ENETDOWN,
    ENETUNREACH,
    ENODEV,
    ENOENT,
    EOPNOTSUPP,
)
from typing import TYPE_CHECKING

import pytest

from cni import addr
from cni.errors import KernelError
from cni.kernel import NetnsError, nftables, ops
from cni.kernel.types import OPER_UP, PORT_FORWARDING
from cni.testing.fake_kernel import FakeKernel
from cni.testing.faulty_kernel import FaultyKernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.kernel import Kernel, Namespace

POD = "/run/netns/pod"
INET = ops.NFPROTO_INET
GATEWAY, ADDRESS = b"\x0a\x01\x00\x01", b"\x0a\x01\x00\x02"
DEFAULT = bytes(4)
PEER, PEER_MAC = b"\x0a\xf4\2\0", b"\2\0\0\0\0\2"


@pytest.fixture
def kernel() -> FakeKernel:
    kernel = FakeKernel()
    kernel.add_netns(POD)
    return kernel


def attach(kernel: Kernel) -> tuple[Namespace, Namespace, int]:
    """A small ADD: bridge, veth, address, route. Host, pod and the host end's index."""
    host, pod = kernel.own(), kernel.open(POD)
    host.apply(ops.bridge_add("cni0", None), ops.link_set("cni0", up=True))
    cni0 = host.link("cni0")
    assert cni0 is not None
    host.apply(ops.veth_add("veth1", None, "eth0", None, pod, master=cni0.index), ops.link_set("veth1", alias="owner"))
    eth0, veth1 = pod.link("eth0"), host.link("veth1")
    assert eth0 is not None
    assert veth1 is not None
    pod.apply(
        ops.link_set("lo", up=True),
        ops.link_set(eth0.index, up=True),
        ops.addr_add(eth0.index, ADDRESS, 24, nodad=True),
        ops.route_add(eth0.index, DEFAULT, 0, GATEWAY),
    )
    return host, pod, veth1.index


def test_attached_pod_looks_as_on_linux(kernel: FakeKernel) -> None:
    host, pod, veth = attach(kernel)

    link, eth0 = host.link(veth), pod.link("eth0")
    assert link is not None
    assert eth0 is not None
    assert (link.operstate, link.alias, link.peer) == (OPER_UP, "owner", eth0.index)
    assert link.port is not None
    assert link.port.state == PORT_FORWARDING
    assert [(r.dst, r.prefix, r.gateway) for r in pod.routes()] == [
        (addr.network(ADDRESS, 24), 24, None),
        (DEFAULT, 0, GATEWAY),
    ]
    assert host.vlans(veth) == [1]


def test_deleting_one_end_takes_the_other_with_all_that_hangs_on_it(kernel: FakeKernel) -> None:
    host, pod, veth = attach(kernel)

    host.delete_link(veth)

    assert [link.name for link in pod.links()] == ["lo"]
    assert pod.routes() == []
    assert pod.conf(addr.AF_INET, "eth0", "forwarding") is None
    host.delete_link(veth)  # gone already: success


REFUSALS: list[tuple[str, ops.Op, int]] = [
    ("host", ops.bridge_add("cni0", None), EEXIST),
    ("host", ops.bridge_add("a/b", None), EINVAL),
    ("host", ops.veth_add("veth1", None, "x", None, None), EEXIST),
    ("host", ops.veth_add("y", None, "x", None, None, master=99), EINVAL),
    ("host", ops.veth_add("y", b"\x01\0\0\0\0\1", "x", None, None), EADDRNOTAVAIL),
    ("host", ops.link_set("nope", up=True), ENODEV),
    ("host", ops.link_set("veth1", master=1), EOPNOTSUPP),
    ("host", ops.port_set("cni0", hairpin=True), EOPNOTSUPP),
    ("host", ops.vlan_add(2, 5, 5), EOPNOTSUPP),
    ("host", ops.neigh_del(2, ADDRESS), ENOENT),
    ("pod", ops.addr_add(2, ADDRESS, 24, nodad=True), EEXIST),
    ("pod", ops.addr_del(2, GATEWAY, 24), EADDRNOTAVAIL),
    ("pod", ops.route_add(2, DEFAULT, 0, GATEWAY), EEXIST),
    ("pod", ops.route_add(2, ADDRESS, 24, None), EINVAL),
    ("pod", ops.route_add(2, DEFAULT, 0, b"\x0a\x09\x00\x01"), ENETUNREACH),
    ("pod", ops.route_add(2, bytes(16), 0, b"\xfd" + bytes(15)), EHOSTUNREACH),
]


@pytest.mark.parametrize(("where", "op", "errno"), REFUSALS, ids=[repr(refusal[1]) for refusal in REFUSALS])
def test_refuses_what_linux_refuses(kernel: FakeKernel, where: str, op: ops.Op, errno: int) -> None:
    host, pod, _ = attach(kernel)
    before = kernel.snapshot()

    with pytest.raises(KernelError) as caught:
        (host if where == "host" else pod).apply(op)

    assert caught.value.errno == errno
    assert op.text in caught.value.msg
    assert kernel.snapshot() == before


def test_no_route_through_a_link_that_is_down(kernel: FakeKernel) -> None:
    _, pod, _ = attach(kernel)
    pod.apply(ops.link_set("eth0", up=False))

    with pytest.raises(KernelError) as caught:
        pod.apply(ops.route_add(2, DEFAULT, 0, None))

    assert caught.value.errno == ENETDOWN


def test_kernel_without_vlan_filtering_refuses_vlans() -> None:
    kernel = FakeKernel(vlan_filtering=False)
    kernel.add_netns(POD)
    host, _, veth = attach(kernel)

    assert not host.has_vlan_filtering()
    with pytest.raises(KernelError) as caught:
        host.apply(ops.vlan_add(veth, 5, 5))
    assert caught.value.errno == EOPNOTSUPP


def test_missing_namespace_is_gone(kernel: FakeKernel) -> None:
    with pytest.raises(NetnsError) as caught:
        kernel.open("/run/netns/other")

    assert caught.value.gone


def masquerade(host: Namespace) -> None:
    host.nft(
        ops.nft_table_add(INET, "t"),
        ops.nft_chain_add(INET, "t", "post", ("nat", "postrouting", 100)),
        ops.nft_chain_add(INET, "t", "net1"),
        ops.nft_set_add(INET, "t", "pods", "ipv4_addr"),
        ops.nft_rule_add(INET, "t", "post", [nftables.goto("net1")]),
        ops.nft_rule_add(INET, "t", "net1", [nftables.saddr_in_set(2, "pods"), nftables.masquerade()], "all"),
        ops.nft_element_add(INET, "t", "pods", ADDRESS, "first"),
        ops.nft_element_add(INET, "t", "pods", ADDRESS, "second"),
    )


def test_nftables_is_answered_as_it_was_made(kernel: FakeKernel) -> None:
    host = kernel.own()
    masquerade(host)

    assert host.nft_has(INET, "t", "chain", "net1")
    assert not host.nft_has(INET, "t", "set", "net1")
    assert [rule.targets for rule in host.nft_rules(INET, "t", "post")] == [["net1"]]
    assert host.nft_elements(INET, "t", "pods") == [ADDRESS]
    assert host.nft_has_element(INET, "t", "pods", ADDRESS)
    assert kernel.snapshot()["own"]["nft"]["1 t"]["sets"]["pods"]["elements"] == {ADDRESS: "first"}


def test_a_table_goes_with_all_that_is_in_it(kernel: FakeKernel) -> None:
    host = kernel.own()
    masquerade(host)
    host.nft(ops.nft_table_add(INET, "other"))

    host.nft(ops.nft_table_del(INET, "t"), ops.nft_table_del(INET, "other", empty=True))

    assert kernel.snapshot()["own"]["nft"] == {}


@pytest.mark.parametrize(
    ("op", "errno"),
    [
        (ops.nft_table_del(INET, "t", empty=True), EBUSY),
        (ops.nft_table_del(INET, "none"), ENOENT),
        (ops.nft_chain_del(INET, "t", "net1"), EBUSY),
        (ops.nft_set_del(INET, "t", "pods"), EBUSY),
        (ops.nft_chain_add(INET, "none", "c"), ENOENT),
        (ops.nft_rule_add(INET, "t", "net1", [nftables.jump("none")]), ENOENT),
        (ops.nft_rule_del(INET, "t", "net1", 99), ENOENT),
        (ops.nft_element_del(INET, "t", "pods", DEFAULT), ENOENT),
        (ops.nft_element_add(INET, "t", "pods", bytes(16)), EINVAL),
    ],
)
def test_refused_transaction_changes_nothing(kernel: FakeKernel, op: ops.Op, errno: int) -> None:
    host = kernel.own()
    masquerade(host)
    before = kernel.snapshot()

    with pytest.raises(KernelError) as caught:
        host.nft(ops.nft_element_add(INET, "t", "pods", GATEWAY), op)

    assert caught.value.errno == errno
    assert kernel.snapshot() == before


def test_chosen_operation_fails_and_the_rest_of_its_batch_is_done(kernel: FakeKernel) -> None:
    faulty = FaultyKernel(kernel, at=3)
    host = faulty.own()  # verb 1

    with pytest.raises(KernelError) as caught:
        host.apply(ops.bridge_add("a", None), ops.bridge_add("b", None), ops.bridge_add("c", None))

    assert caught.value.errno == EIO
    assert caught.value.msg.startswith("create bridge b: EIO")
    assert [link.name for link in kernel.own().links()] == ["lo", "a", "c"]


def test_chosen_operation_fails_its_whole_transaction(kernel: FakeKernel) -> None:
    faulty = kernel.failing(at=5)
    before = kernel.snapshot()

    with pytest.raises(KernelError):
        masquerade(faulty.own())

    assert faulty.failed == "add nftables set t pods"
    assert kernel.snapshot() == before


def add_peer(host: Namespace) -> int:
    """A VXLAN device with a route to a peer through a nexthop object; the device's index."""
    host.apply(ops.vxlan_add("cnikit.1", 1, mac=None, mtu=1450, port=8472, local=ADDRESS, link=0))
    device = host.link("cnikit.1")
    assert device is not None
    host.apply(
        ops.link_set(device.index, up=True),
        ops.neigh_replace(device.index, PEER, PEER_MAC),
        ops.fdb_replace(device.index, PEER_MAC, b"\xc0\0\2\2"),
        ops.nexthop_replace(9, device.index, PEER, onlink=True, protocol=205),
        ops.route_replace(PEER, 24, nexthop=9, protocol=205),
    )
    return device.index


def test_peer_looks_as_on_linux(kernel: FakeKernel) -> None:
    host = kernel.own()

    device = add_peer(host)

    link = host.link(device)
    assert link is not None
    assert link.vxlan is not None
    assert (link.kind, link.vxlan.vni, link.vxlan.port, link.vxlan.local) == ("vxlan", 1, 8472, ADDRESS)
    assert [(r.dst, r.oif, r.gateway, r.nexthop) for r in host.routes(205)] == [(PEER, device, PEER, 9)]
    assert [(n.id, n.oif, n.gateway, n.onlink) for n in host.nexthops(205)] == [(9, device, PEER, True)]
    assert (host.nexthops(4), host.routes(4)) == ([], [])
    assert [(n.packed, n.mac) for n in host.neighbours(device)] == [(PEER, PEER_MAC)]
    assert [(e.mac, e.dst) for e in host.fdb(device)] == [(PEER_MAC, b"\xc0\0\2\2")]


def test_device_takes_what_leads_through_it(kernel: FakeKernel) -> None:
    before = kernel.snapshot()
    host = kernel.own()
    device = add_peer(host)

    host.apply(ops.link_set(device, up=False))
    assert (host.routes(), host.nexthops(), host.neighbours(device)) == ([], [], [])
    assert len(host.fdb(device)) == 1

    host.delete_link(device)
    assert kernel.snapshot() == before


def test_checksums_are_a_setting_of_a_link(kernel: FakeKernel) -> None:
    host = kernel.own()

    host.set_tx_checksum("lo", False)

    assert host.tx_checksum("lo") is False
    assert host.tx_checksum("nope") is None
    with pytest.raises(KernelError) as caught:
        host.set_tx_checksum("nope", False)
    assert caught.value.errno == ENODEV


def test_attempt_tells_every_failure_and_the_chosen_one(kernel: FakeKernel) -> None:
    batch = [ops.nexthop_del(1), ops.bridge_add("a", None), ops.bridge_add("b", None), ops.nexthop_del(2)]
    host = kernel.failing(at=3).own()  # verb 1

    failed = host.attempt(batch)

    assert {(op.text, error.errno) for op, error in failed} == {
        ("delete nexthop 1", ENOENT), ("create bridge a", EIO), ("delete nexthop 2", ENOENT),
    }  # fmt: skip
    assert [link.name for link in host.links()] == ["lo", "b"]


def test_every_question_about_peers_is_a_verb_that_can_fail(kernel: FakeKernel) -> None:
    faulty = FaultyKernel(kernel)
    host = faulty.own()

    assert (host.nexthops(), host.neighbours(1), host.fdb(1), host.tx_checksum("lo")) == ([], [], [], True)
    host.set_tx_checksum("lo", True)

    assert faulty.verbs == ["own", "nexthops", "neighbours 1", "fdb 1", "tx_checksum lo", "set_tx_checksum lo"]


def count_verbs(work: Callable[[Kernel], object]) -> int:
    kernel = FakeKernel()
    kernel.add_netns(POD)
    faulty = FaultyKernel(kernel)
    work(faulty)
    return len(faulty.verbs)


def test_every_verb_can_fail_and_none_twice() -> None:
    verbs = count_verbs(attach)
    assert verbs > 10

    for at in range(1, verbs + 1):
        kernel = FakeKernel()
        kernel.add_netns(POD)
        faulty = kernel.failing(at)
        with pytest.raises(KernelError):
            attach(faulty)
        assert faulty.failed
