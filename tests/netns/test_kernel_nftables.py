"""nftables on the real kernel: nft shows what we made as if it had been written by hand, and we read what it made."""

from __future__ import annotations

import time
from errno import EBUSY, ENOENT
from typing import TYPE_CHECKING

import pytest

from cni.errors import KernelError
from cni.kernel import nftables, ops
from cni.kernel.background import thread_background
from cni.kernel.linux import Kernel, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.conftest import Netns

INET, BRIDGE = ops.NFPROTO_INET, ops.NFPROTO_BRIDGE
V4, V6 = 2, 10
ADDRESS = b"\x0a\x01\x00\x02"
NET6 = b"\xfd" + bytes(15)


@pytest.fixture
def host(host_ns: Netns) -> Iterator[Namespace]:
    with Kernel(time.monotonic, thread_background).open(host_ns.path) as namespace:
        yield namespace


def skeleton(host: Namespace) -> None:
    host.nft(
        ops.nft_table_add(INET, "t"),
        ops.nft_chain_add(INET, "t", "post", ("nat", "postrouting", 100)),
        ops.nft_chain_add(INET, "t", "net1"),
        ops.nft_set_add(INET, "t", "pods4", "ipv4_addr"),
        ops.nft_set_add(INET, "t", "pods6", "ipv6_addr"),
    )


def test_ruleset_reads_as_written_by_hand(host: Namespace, host_ns: Netns) -> None:
    skeleton(host)
    host.nft(
        ops.nft_rule_add(INET, "t", "post", [nftables.goto("net1")], "network net1"),
        ops.nft_rule_add(
            INET, "t", "net1", [nftables.nfproto(V4), nftables.daddr_in(V4, b"\xe0\0\0\0", 4), nftables.ret()]
        ),
        ops.nft_rule_add(
            INET, "t", "net1", [nftables.nfproto(V6), nftables.daddr_in(V6, b"\xff" + bytes(15), 8), nftables.ret()]
        ),
        ops.nft_rule_add(
            INET,
            "t",
            "net1",
            [
                nftables.nfproto(V4),
                nftables.saddr_in_set(V4, "pods4"),
                nftables.daddr_not_in(V4, b"\x0a\x01\x00\x00", 24),
                nftables.masquerade(),
            ],
            "masquerade net1",
        ),
        ops.nft_rule_add(
            INET,
            "t",
            "net1",
            [
                nftables.nfproto(V6),
                nftables.saddr_in_set(V6, "pods6"),
                nftables.daddr_not_in(V6, NET6, 61),
                nftables.masquerade(),
            ],
        ),
        ops.nft_rule_add(
            INET,
            "t",
            "net1",
            [
                nftables.oifname("cnikit.1"),
                nftables.nfproto(V4),
                nftables.saddr_not_in(V4, ADDRESS, 16),
                nftables.sent_here(),
                nftables.daddr_in(V4, ADDRESS, 16),
                nftables.masquerade(),
            ],
        ),
        ops.nft_element_add(INET, "t", "pods4", ADDRESS, "pod a/eth0"),
        ops.nft_element_add(INET, "t", "pods6", NET6[:15] + b"\x02"),
    )

    assert (
        lines(host_ns)
        == """\
table inet t {
set pods4 {
type ipv4_addr
elements = { 10.1.0.2 comment "pod a/eth0" }
}
set pods6 {
type ipv6_addr
elements = { fd00::2 }
}
chain post {
type nat hook postrouting priority srcnat; policy accept;
goto net1 comment "network net1"
}
chain net1 {
ip daddr 224.0.0.0/4 return
ip6 daddr ff00::/8 return
ip saddr @pods4 ip daddr != 10.1.0.0/24 masquerade comment "masquerade net1"
ip6 saddr @pods6 ip6 daddr != fd00::/61 masquerade
oifname "cnikit.1" ip saddr != 10.1.0.0/16 iif 0 ip daddr 10.1.0.0/16 masquerade
}
}
"""
    )
    assert_nft_would_write_the_same(host_ns)


def test_bridge_ruleset_reads_as_written_by_hand(host: Namespace, host_ns: Netns) -> None:
    host.nft(
        ops.nft_table_add(BRIDGE, "t"),
        ops.nft_chain_add(BRIDGE, "t", "pre", ("filter", "prerouting", -300)),
        ops.nft_chain_add(BRIDGE, "t", "mac"),
        ops.nft_set_add(BRIDGE, "t", "macs", "ether_addr"),
        ops.nft_rule_add(BRIDGE, "t", "pre", [nftables.iifname("veth1"), nftables.jump("mac")]),
        ops.nft_rule_add(BRIDGE, "t", "mac", [nftables.ether_saddr(b"\x0a\x58\0\0\0\1"), nftables.ret()]),
        ops.nft_rule_add(BRIDGE, "t", "mac", [nftables.drop()]),
        ops.nft_element_add(BRIDGE, "t", "macs", b"\x0a\x58\0\0\0\1"),
    )

    assert (
        lines(host_ns)
        == """\
table bridge t {
set macs {
type ether_addr
elements = { 0a:58:00:00:00:01 }
}
chain pre {
type filter hook prerouting priority dstnat; policy accept;
iifname "veth1" jump mac
}
chain mac {
ether saddr 0a:58:00:00:00:01 return
drop
}
}
"""
    )
    assert_nft_would_write_the_same(host_ns)


def lines(netns: Netns) -> str:
    """The ruleset without blank lines and indentation."""
    text = netns.run("nft", "list", "ruleset")
    return "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip())


def assert_nft_would_write_the_same(netns: Netns) -> None:
    """Let nft read its own listing back into an empty ruleset: it must list the same again."""
    before = netns.run("nft", "list", "ruleset")
    with_flush = f"flush ruleset; {before}".replace("flush ruleset; ", "flush ruleset\n", 1)
    netns.run("sh", "-c", 'printf "%s" "$0" | nft -f -', with_flush)
    assert netns.run("nft", "list", "ruleset") == before


def test_what_nft_made_is_read(host: Namespace, host_ns: Netns) -> None:
    host_ns.run("nft", "add table inet x; add chain inet x c; add chain inet x d; add set inet x s { type ipv6_addr; }")
    host_ns.run("nft", 'add rule inet x c ip saddr 10.0.0.0/8 jump d comment "with words"')
    host_ns.run("nft", "add rule inet x c counter accept; add element inet x s { fd00::2, fd00::3 }")

    first, second = host.nft_rules(INET, "x", "c")

    handles = [entry["rule"]["handle"] for entry in host_ns.nft() if "rule" in entry]
    assert [first.handle, second.handle] == handles
    assert (first.comment, first.targets) == ("with words", ["d"])
    assert (second.comment, second.targets) == ("", [])
    assert sorted(host.nft_elements(INET, "x", "s")) == [NET6[:15] + b"\x02", NET6[:15] + b"\x03"]
    host.nft(ops.nft_rule_del(INET, "x", "c", first.handle))
    assert [rule.handle for rule in host.nft_rules(INET, "x", "c")] == [second.handle]


def test_questions_about_what_is_and_is_not(host: Namespace) -> None:
    skeleton(host)
    host.nft(ops.nft_element_add(INET, "t", "pods4", ADDRESS))

    assert host.nft_has(INET, "t")
    assert host.nft_has(INET, "t", "chain", "net1")
    assert host.nft_has(INET, "t", "set", "pods6")
    assert not host.nft_has(BRIDGE, "t")
    assert not host.nft_has(INET, "t", "chain", "pods6")
    assert not host.nft_has(INET, "t", "set", "net1")
    assert host.nft_has_element(INET, "t", "pods4", ADDRESS)
    assert not host.nft_has_element(INET, "t", "pods4", bytes(4))
    assert not host.nft_has_element(INET, "t", "none", ADDRESS)
    assert not host.nft_has_element(INET, "none", "pods4", ADDRESS)
    assert host.nft_comments(INET, "t", "pods4")[ADDRESS] == host.nft_comment(INET, "t", "pods4", ADDRESS)
    assert host.nft_comments(INET, "t", "none") == {}
    assert host.nft_comment(INET, "t", "pods4", bytes(4)) == host.nft_comment(INET, "none", "pods4", ADDRESS) == ""
    assert host.nft_rules(INET, "t", "none") == []
    assert host.nft_elements(INET, "t", "none") == []
    assert host.nft_elements(INET, "t", "pods6") == []


def test_everything_can_be_added_again(host: Namespace, host_ns: Netns) -> None:
    skeleton(host)
    host.nft(ops.nft_element_add(INET, "t", "pods4", ADDRESS, "first"))
    before = host_ns.run("nft", "list", "ruleset")

    skeleton(host)
    host.nft(ops.nft_element_add(INET, "t", "pods4", ADDRESS, "second"))

    assert host_ns.run("nft", "list", "ruleset") == before


def test_everything_can_be_taken_away(host: Namespace, host_ns: Netns) -> None:
    skeleton(host)
    match = [nftables.nfproto(V4), nftables.saddr_in_set(V4, "pods4"), nftables.masquerade()]
    host.nft(
        ops.nft_rule_add(INET, "t", "post", [nftables.jump("net1")]),
        ops.nft_rule_add(INET, "t", "net1", match),
        ops.nft_element_add(INET, "t", "pods4", ADDRESS),
    )

    host.nft(
        ops.nft_chain_flush(INET, "t", "post"),
        ops.nft_chain_del(INET, "t", "net1"),
        ops.nft_element_del(INET, "t", "pods4", ADDRESS),
        ops.nft_set_del(INET, "t", "pods4"),
    )

    left = host_ns.nft()
    assert [entry["chain"]["name"] for entry in left if "chain" in entry] == ["post"]
    assert [entry["set"]["name"] for entry in left if "set" in entry] == ["pods6"]
    assert [entry for entry in left if "rule" in entry] == []


def test_a_table_goes_with_all_that_is_in_it(host: Namespace, host_ns: Netns) -> None:
    skeleton(host)
    host.nft(ops.nft_rule_add(INET, "t", "post", [nftables.jump("net1")]), ops.nft_table_add(INET, "other"))

    host.nft(ops.nft_table_del(INET, "t"), ops.nft_table_del(INET, "other", empty=True))

    assert [entry for entry in host_ns.nft() if "metainfo" not in entry] == []
    with pytest.raises(KernelError, match="delete nftables table t: ENOENT"):
        host.nft(ops.nft_table_del(INET, "t"))


@pytest.mark.parametrize(
    ("op", "errno"),
    [
        (ops.nft_table_del(INET, "t", empty=True), EBUSY),
        (ops.nft_element_del(INET, "t", "pods4", bytes(4)), ENOENT),
        (ops.nft_chain_del(INET, "t", "net1"), EBUSY),
        (ops.nft_chain_flush(INET, "t", "none"), ENOENT),
        (ops.nft_rule_add(INET, "t", "net1", [nftables.jump("none")]), ENOENT),
        (ops.nft_rule_del(INET, "t", "net1", 4711), ENOENT),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_refused_transaction_names_its_operation_and_changes_nothing(
    host: Namespace, host_ns: Netns, op: ops.Op, errno: int, place: int
) -> None:
    skeleton(host)
    host.nft(ops.nft_rule_add(INET, "t", "post", [nftables.goto("net1")]))
    before = host_ns.run("nft", "list", "ruleset")
    others = [ops.nft_element_add(INET, "t", "pods4", ADDRESS), ops.nft_table_add(INET, "other")]

    with pytest.raises(KernelError) as caught:
        host.nft(*others[:place], op, *others[place:])

    assert caught.value.errno == errno
    assert caught.value.msg.startswith(op.text)
    assert host_ns.run("nft", "list", "ruleset") == before
    host.nft(*others)  # the socket is as good as before


def test_five_thousand_elements_are_all_read(host: Namespace) -> None:
    skeleton(host)
    keys = [(0x0A010000 + number).to_bytes(4, "big") for number in range(5000)]

    host.nft(*[ops.nft_element_add(INET, "t", "pods4", key, f"pod {key.hex()}/eth0") for key in keys])

    assert sorted(host.nft_elements(INET, "t", "pods4")) == keys
    assert host.nft_has_element(INET, "t", "pods4", keys[4999])


def test_two_namespaces_at_once_do_not_meet(host: Namespace, host_ns: Netns, pod_ns: Netns) -> None:
    with Kernel(time.monotonic, thread_background).open(pod_ns.path) as pod:
        host.nft(ops.nft_table_add(INET, "one"))
        pod.nft(ops.nft_table_add(INET, "two"))

        assert [entry["table"]["name"] for entry in host_ns.nft()] == ["one"]
        assert [entry["table"]["name"] for entry in pod_ns.nft()] == ["two"]
