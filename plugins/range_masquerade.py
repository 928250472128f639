"""Masquerading by the node's pod ranges, for networks of several nodes: one rule for each range, and none for a pod.

    chain masq-NETWORK {
        type nat hook postrouting priority srcnat;
        ip saddr 10.244.1.0/24 ip daddr != 10.244.0.0/16 ip daddr != 192.0.2.0/24 ip daddr != 224.0.0.0/4 masquerade
            comment "range 10.244.1.0/24 1f2e3d4c5b6a7988"
    }

What goes to the cluster's own networks, to `nonMasqueradeCIDRs` and to multicast keeps its source. The comment names
the range and the rule's content by a hash, so a rule of another content is known and replaced. Every ADD looks, which
heals a ruleset that was flushed. Ranges of an earlier time, which pods that still run have their addresses from, keep
their rules.
"""

from __future__ import annotations

from cni import addr, names
from cni.errors import INTERNAL, CniError
from cni.kernel import ops
from cni.kernel.ops import NFPROTO_INET
from plugins.masquerade import FAMILIES, HOOK, TABLE, chain_name, commit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Protocol

    from cni.kernel import Namespace
    from cni.record import Records
    from plugins.peers import Subnet

    class Place(Protocol):
        """What is needed of a call's context; the agent has it without a call."""

        @property
        def network(self) -> str: ...
        @property
        def host(self) -> Namespace: ...
        @property
        def records(self) -> Records: ...


_MARK = "range "


def ensure(ctx: Place, subnets: Iterable[Subnet], exceptions: Iterable[Subnet]) -> bool:
    """Masquerade what leaves the node's `subnets`, or those of its recorded pods, for anything but `exceptions`, and
    nothing else of this network; whether anything was to be done.

    With no `subnets`, only what an earlier configuration left is taken away.
    """
    if not _changes(ctx, subnets, exceptions):
        return False
    with ctx.records.lock():  # two ADDs would both add what both found missing
        commit(ctx.host, _changes(ctx, subnets, exceptions))
    return True


def check(ctx: Place, subnets: Iterable[Subnet], exceptions: Iterable[Subnet]) -> None:
    """CniError 999 that names the first range without its rule."""
    chain = chain_name(ctx.network)
    there = {rule.comment for rule in ctx.host.nft_rules(NFPROTO_INET, TABLE, chain)}
    for comment in _rules(subnets, exceptions):
        if comment not in there:
            what = comment.split(" ")[1]
            text = f"masquerade: expected a rule for {what} in nftables chain inet {TABLE} {chain}, found none"
            raise CniError(INTERNAL, text, "the next ADD makes it")


def _changes(ctx: Place, subnets: Iterable[Subnet], exceptions: Iterable[Subnet]) -> list[ops.Op]:
    chain = chain_name(ctx.network)
    wanted = _rules(subnets, exceptions)
    found = [rule for rule in ctx.host.nft_rules(NFPROTO_INET, TABLE, chain) if rule.comment.startswith(_MARK)]
    if wanted and {rule.comment for rule in found} != wanted.keys():
        wanted = _rules((*subnets, *_recorded(ctx.records)), exceptions)
    kept: set[str] = set()
    removed = []
    for rule in found:
        if rule.comment in wanted and rule.comment not in kept:
            kept.add(rule.comment)
        else:
            removed.append(ops.nft_rule_del(NFPROTO_INET, TABLE, chain, rule.handle))
    added = [
        ops.nft_rule_add(NFPROTO_INET, TABLE, chain, expressions, comment)
        for comment, expressions in wanted.items()
        if comment not in kept
    ]
    if added:
        skeleton = [ops.nft_table_add(NFPROTO_INET, TABLE), ops.nft_chain_add(NFPROTO_INET, TABLE, chain, HOOK)]
        added = skeleton + added
    return added + removed


def _recorded(records: Records) -> list[Subnet]:
    """The ranges that the recorded pods have their addresses from."""
    from plugins.attachment import recorded_ranges

    sections = [section for record in records.all() for section in record["plugins"].values()]
    return [subnet for section in sections for subnet in recorded_ranges(section)]


def _rules(subnets: Iterable[Subnet], exceptions: Iterable[Subnet]) -> dict[str, list[tuple[Any, ...]]]:
    """The expressions of each range's rule by its comment."""
    from cni.kernel.nftables import daddr_not_in, masquerade, nfproto, saddr_in

    rules: dict[str, list[tuple[Any, ...]]] = {}
    for subnet in subnets:
        proto, _, multicast = FAMILIES[len(subnet[0])]
        own = [one for one in dict.fromkeys((*exceptions, multicast)) if len(one[0]) == len(subnet[0])]
        expressions = [nfproto(proto), saddr_in(proto, *subnet)]
        expressions += [daddr_not_in(proto, *one) for one in own] + [masquerade()]
        content = " ".join(addr.unpack_cidr(*one) for one in (subnet, *own))
        rules[f"{_MARK}{addr.unpack_cidr(*subnet)} {names.digest(content).hex()[:16]}"] = expressions
    return rules
