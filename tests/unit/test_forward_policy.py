"""Who drops a pod's packets: rulesets as iptables-save(8) writes them, and where accepts go among their rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import addr
from cni.kernel import ops
from cni.kernel.nftables import counter, drop, jump, ret, saddr_in
from plugins.forward_accept import Network, Programs, settle
from plugins.forward_policy import Packet, dropped_at, left_at
from plugins.legacy_iptables import Table, words
from plugins.peers import Node as PeerNode
from plugins.peers import Underlay
from plugins.pod_network import Site
from tests.unit.test_pod_network_fake import cluster, conf
from tests.unit.test_pod_network_fake import node as node  # noqa: PLC0414 - a fixture

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.calls import Node

PODS = (addr.pack("10.244.0.0") or b"", 16)
PACKETS = [Packet(PODS, ("cnikit.1",), ("veth", "cni0")), Packet(PODS, ("veth", "cni0"), ("cnikit.1",))]


def judged(policy: str, *rules: str) -> int | None:
    text = "\n".join((f":FORWARD {policy} [0:0]", ":other - [0:0]", *rules, "COMMIT"))
    table = Table(text, 4)
    return dropped_at(table.steps, "FORWARD", table.policies["FORWARD"] or "", PACKETS)


@pytest.mark.parametrize(
    ("rules", "at"),
    [
        ([], 0),
        (["-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"], 1),
        (["-A FORWARD -i docker0 ! -o docker0 -j ACCEPT"], 1),
        (["-A FORWARD -i veth+ -j ACCEPT"], 1),
        (["-A FORWARD -i veth+ -j ACCEPT", "-A FORWARD -o veth+ -j ACCEPT"], None),
        (["-A FORWARD -i lo -j ACCEPT", "-A FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT"], 2),
        (["-A FORWARD ! -i eth0 -j ACCEPT"], None),
        (["-A FORWARD -s 10.0.0.0/8 -j ACCEPT"], None),
        (["-A FORWARD -s 10.244.3.0/24 -j ACCEPT"], None),
        (["-A FORWARD -s 10.245.0.0/16 -j ACCEPT"], 1),
        (["-A FORWARD ! -s 10.244.0.0/15 -j ACCEPT"], 1),
        (["-A FORWARD ! -d 192.0.2.0/24 -j ACCEPT"], None),
        (["-A FORWARD -s 10.244.0.0/16 -m mark --mark 0x1 -j ACCEPT"], None),
        (["-A FORWARD -j other", "-A other -j ACCEPT"], None),
        (["-A FORWARD -g other", "-A FORWARD -j ACCEPT"], 2),
        (["-A FORWARD -j other", "-A other -j RETURN", "-A other -j ACCEPT"], 1),
        (['-A FORWARD -j LOG --log-prefix "a -j ACCEPT"', "-A FORWARD -j other", "-A other -j other"], 2),
        (["-A FORWARD -j RETURN", "-A FORWARD -j ACCEPT"], 2),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_policy_of_drop_leaves(rules: list[str], at: int | None) -> None:
    assert judged("DROP", *rules) == at


@pytest.mark.parametrize(
    ("rules", "at"),
    [
        ([], 0),
        (["-A FORWARD -i docker0 -j DROP", "-A FORWARD -d 10.244.0.0/16 -j RETURN"], 1),
        (["-A FORWARD -i docker0 -j DROP", "-A FORWARD -g other", "-A FORWARD -j ACCEPT"], 1),
        (["-A FORWARD -p tcp -j RETURN", "-A FORWARD -i veth+ -j ACCEPT", "-A FORWARD -j DROP"], 2),
    ],
    ids=str,
)
def test_where_a_chain_lets_go_of_packets(rules: list[str], at: int) -> None:
    table = Table("\n".join((":FORWARD DROP [0:0]", ":other - [0:0]", *rules, "COMMIT")), 4)
    assert left_at(table.steps, "FORWARD", PACKETS) == at


@pytest.mark.parametrize(
    ("rules", "at"),
    [
        (["-A FORWARD -j REJECT --reject-with icmp-host-prohibited"], 0),
        (["-A FORWARD -p icmp -j ACCEPT", "-A FORWARD -j other", "-A other -j DROP"], 1),
        (["-A FORWARD -i cnikit.1 -j DROP"], 0),
        (["-A FORWARD -i eth0 -j DROP"], None),
        (["-A FORWARD -m conntrack --ctstate INVALID -j DROP"], None),
        (["-A FORWARD -s 10.244.3.0/24 -j DROP"], None),
        (["-A FORWARD -s 10.244.0.0/16 -m conntrack --ctstate INVALID -j DROP"], None),
        (["-A FORWARD -i cnikit.1 -j other", "-A other -j DROP"], 0),
        (["-A FORWARD -p tcp -j other", "-A other -j DROP"], None),
    ],
    ids=str,
)
def test_what_drops_under_a_policy_of_accept(rules: list[str], at: int | None) -> None:
    assert judged("ACCEPT", *rules) == at


OWN = {4: b"\xc0\0\2\1", 16: bytes(15) + b"\1"}
UNDERLAYS = {4: Underlay(2, "eth0", 1500, ()), 16: Underlay(3, "eth1", 1500, ())}


def network_of(sizes: tuple[int, ...], kind: str, **options: Any) -> Network:
    """The one of a node with underlays of these families."""
    chosen = cluster(ipMasq=True, **options)
    own = PeerNode("n1", {size: OWN[size] for size in sizes}, ())
    site = Site(chosen, own, {size: UNDERLAYS[size] for size in sizes}, chosen.networks, 1400)
    return Network(site, {"vxlan": ["cnikit.1", "cnik6.1"], "flannel": ["flannel.1", "flannel-v6.1"]}.get(kind, ()))


@pytest.mark.parametrize(
    ("network", "names", "is_dropped"),
    [
        (network_of((4, 16), "vxlan"), "cnikit.1 veth+ cnik+ +", True),
        (network_of((4, 16), "vxlan"), "cnik6.1 eth0 eth1 cni0 veth12 flannel.1 docker0", False),
        (network_of((16,), "vxlan"), "cnik6.1", True),
        (network_of((16,), "vxlan"), "cnikit.1", False),
        (network_of((4,), "vxlan", attachment="bridged", bridge="pods0"), "cnikit.1 pods0", True),
        (network_of((4,), "vxlan", attachment="bridged", bridge="pods0"), "veth+ cni0", False),
        (network_of((4, 16), "host-gw"), "eth0 veth+", True),
        (network_of((4, 16), "host-gw"), "eth1 cnikit.1", False),
        (network_of((), "flannel"), "flannel.1", True),
        (network_of((), "flannel"), "flannel-v6.1 cnikit.1", False),
        (network_of((4,), "vxlan", directRouting=True), "cnikit.1 eth0", False),  # only packets of some nodes
        (network_of((4,), "vxlan", directRouting=True), "veth+", True),
    ],
)  # fmt: skip
def test_a_drop_by_a_link_counts_when_the_pods_packets_are_sure_to_take_it(
    network: Network, names: str, *, is_dropped: bool
) -> None:
    for name in names.split():
        for option in ("-i", "-o"):
            table = Table(f":FORWARD ACCEPT [0:0]\n-A FORWARD {option} {name} -j DROP\n", 4)
            at = dropped_at(table.steps, "FORWARD", "accept", network.packets(4))
            assert (at == 0) is is_dropped, (name, option)


def test_words_of_a_line() -> None:
    line = '-A DOCKER-USER -m comment --comment "say \\"no\\" \\\\ -j" -j DROP'
    assert words(line) == ["-A", "DOCKER-USER", "-m", "comment", "--comment", 'say "no" \\ -j', "-j", "DROP"]


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    Table(text, 4)


class TestOneShot:
    """What ADD asks the kernel, without an agent."""

    @pytest.fixture
    def walled(self, node: Node) -> Node:
        """iptables drops what is forwarded, with Docker's chain."""
        with node.kernel.own() as host:
            for proto in (ops.NFPROTO_IPV4, ops.NFPROTO_IPV6):
                host.nft(
                    ops.nft_table_add(proto, "filter"),
                    ops.nft_chain_add(proto, "filter", "FORWARD", ("filter", "forward", 0)),
                    ops.nft_chain_add(proto, "filter", "DOCKER-USER"),
                    ops.nft_rule_add(proto, "filter", "FORWARD", [counter(), jump("DOCKER-USER")]),
                    ops.nft_rule_add(proto, "filter", "FORWARD", [counter(), drop()]),
                )
        return node

    def comments(self, node: Node, proto: int = ops.NFPROTO_IPV4) -> list[str]:
        with node.kernel.own() as host:
            return [rule.comment for rule in host.nft_rules(proto, "filter", "DOCKER-USER")]

    def test_accepts_are_put_once_and_no_later_pod_asks(self, walled: Node) -> None:
        network: dict[str, Any] = conf(walled, ipMasq=True)
        assert walled.call("vxlan", "ADD", network).status == 0
        assert self.comments(walled) == [f"cnikit net {way} 10.244.0.0/16" for way in ("from", "to")]
        assert self.comments(walled, ops.NFPROTO_IPV6) == [f"cnikit net {way} fd00:244::/48" for way in ("from", "to")]
        assert walled.call("vxlan", "DEL", network).status == 0
        with walled.kernel.own() as host:
            host.nft(ops.nft_chain_flush(ops.NFPROTO_IPV4, "filter", "DOCKER-USER"))

        assert walled.call("vxlan", "ADD", network).status == 0

        assert self.comments(walled) == [], "it was not looked at, which costs each pod nothing"
        error = walled.call("vxlan", "STATUS", network).error
        text = "expected accepts for the pods in iptables, found its FORWARD chain (rule 2) to drop them"
        assert (error["code"], text in error["msg"]) == (50, True)
        assert "iptables -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT; iptables -I DOCKER-USER -d" in error["details"]

    def test_status_is_silent_about_what_the_next_add_puts_right(self, walled: Node) -> None:
        for kind, options in (("vxlan", {"ipMasq": True}), ("host-gw", {"forwardAccept": True})):
            walled.call(kind, "STATUS", conf(walled, kind, **options)).silent()

    def test_the_option_alone_and_off(self, walled: Node) -> None:
        for options, count in (({"ipMasq": True, "forwardAccept": False}, 0), ({"ipMasq": True}, 2), ({}, 0)):
            network = {**conf(walled), **options}
            assert walled.call("vxlan", "ADD", network).status == 0
            assert walled.call("vxlan", "DEL", network).status == 0
            assert len(self.comments(walled)) == count, options
        only = conf(walled, forwardAccept=True)
        assert walled.call("host-gw", "ADD", {**only, "type": "host-gw"}).status == 0
        assert len(self.comments(walled)) == 2

    @pytest.mark.parametrize(("chain", "verdict"), [("DOCKER-USER", drop), ("DOCKER-USER", ret), ("FORWARD", drop)])
    def test_accepts_come_before_what_keeps_the_pods_from_them_and_then_stay(
        self, walled: Node, chain: str, verdict: Callable[[], Any]
    ) -> None:
        rule = [saddr_in(ops.NFPROTO_IPV4, bytes([10, 0, 0, 0]), 8), counter(), verdict()]
        with walled.kernel.own() as host:
            if chain == "FORWARD":
                host.nft(ops.nft_chain_flush(ops.NFPROTO_IPV4, "filter", "FORWARD"))
            host.nft(ops.nft_rule_add(ops.NFPROTO_IPV4, "filter", chain, rule, "others"))
        network: dict[str, Any] = conf(walled, ipMasq=True)

        assert walled.call("vxlan", "ADD", network).status == 0

        with walled.kernel.own() as host:
            comments = [rule.comment for rule in host.nft_rules(ops.NFPROTO_IPV4, "filter", chain)]
            assert comments[:3] == ["cnikit net from 10.244.0.0/16", "cnikit net to 10.244.0.0/16", "others"]
            options = cluster(ipMasq=True)
            site = Site(options, PeerNode("n1", {}, ()), {}, options.networks, 1450)
            assert settle(host, Network(site, ["cnikit.1", "cnik6.1"]), Programs({}))[0] == []
