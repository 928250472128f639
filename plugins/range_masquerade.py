"""Masquerading by the node's pod ranges, for networks of several nodes: rules of the node's, and none for a pod.

    chain masq-NETWORK {
        type nat hook postrouting priority srcnat;
        ip saddr 10.244.1.0/24 ip daddr != 10.244.0.0/16 ip daddr != 192.0.2.0/24 ip daddr != 224.0.0.0/4 masquerade
            comment "range 10.244.1.0/24 1f2e3d4c5b6a7988"
        oifname "cnikit.1" ip saddr != 10.244.0.0/16 iif 0 ip daddr 10.244.0.0/16 masquerade
            comment "range 10.244.0.0/16 cnikit.1 8f7e6d5c4b3a2918"
    }

What pods send to the cluster's own networks, to `nonMasqueradeCIDRs` and to multicast keeps its source.

What the node itself sends to a pod elsewhere leaves with its overlay device's address, as a rule by the choice of
the kernel. Where a service's DNAT has led it there the source was chosen for another way: the other node, which
expects that address on its underlay, drops it by its rp_filter. `iif 0` (no link has brought the packet) keeps all that is
forwarded out of this, as a client's address that `externalTrafficPolicy: Local` is to keep. `fib saddr type local` would say
the same, but a kernel may lack nft_fib.

The comment names the range, with a device for the node's own packets, and the rule's content by a hash, so a rule of
another content is known and replaced. Every ADD looks, which heals a ruleset that was flushed. Ranges of an earlier
time, which pods that still run have their addresses from, keep their rules.
"""

from __future__ import annotations

from cni import addr, names
from cni.errors import INTERNAL, CniError
from cni.kernel import ops
from cni.kernel.ops import NFPROTO_INET
from plugins.masquerade import FAMILIES, HOOK, TABLE, chain_name, commit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Protocol

    from cni.kernel import Namespace
    from cni.record import Records
    from plugins.peers import Subnet
    from plugins.pod_network import Site

    Expression = tuple[Any, ...]
    Rule = tuple[Any, ...]  # what makes the expressions, and of what

    class Place(Protocol):
        """What is needed of a call's context; the agent has it without a call."""

        @property
        def network(self) -> str: ...
        @property
        def host(self) -> Namespace: ...
        @property
        def records(self) -> Records: ...


_MARK = "range "


def is_settled(ctx: Place, site: Site, devices: Sequence[str]) -> bool:
    """Whether `ensure` has nothing to do. It has when `forwardAccept` is another than at its last time."""
    return not _changes(ctx, site, devices)


def ensure(ctx: Place, site: Site, devices: Sequence[str]) -> bool:
    """With the network's `ipMasq`, masquerade what leaves the subnets of the node and of its recorded pods for outside of
    the network, and what the node itself sends through the overlay's `devices`. Nothing else of this network; whether
    anything was to be done.

    Without `ipMasq`, only what an earlier configuration left is taken away.
    """
    if is_settled(ctx, site, devices):
        return False
    with ctx.records.lock():  # two ADDs would both add what both found missing
        commit(ctx.host, _changes(ctx, site, devices))
    return True


def check(ctx: Place, site: Site, devices: Sequence[str]) -> None:
    """CniError 999 that names the first range without its rule."""
    chain = chain_name(ctx.network)
    there = {rule.comment for rule in ctx.host.nft_rules(NFPROTO_INET, TABLE, chain)}
    for comment in _wanted(site, devices, ()):
        if comment not in there:
            what = comment.removeprefix(_MARK).rpartition(" ")[0]
            text = f"masquerade: expected a rule for {what} in nftables chain inet {TABLE} {chain}, found none"
            raise CniError(INTERNAL, text, "the next ADD makes it")


def _changes(ctx: Place, site: Site, devices: Sequence[str]) -> list[ops.Op]:
    chain = chain_name(ctx.network)
    wanted = _wanted(site, devices, ())
    found = [rule for rule in ctx.host.nft_rules(NFPROTO_INET, TABLE, chain) if rule.comment.startswith(_MARK)]
    if wanted and {rule.comment for rule in found} != wanted.keys():
        wanted = _wanted(site, devices, _recorded(ctx.records))
    kept: set[str] = set()
    removed = []
    for rule in found:
        if rule.comment in wanted and rule.comment not in kept:
            kept.add(rule.comment)
        else:
            removed.append(ops.nft_rule_del(NFPROTO_INET, TABLE, chain, rule.handle))
    added = [
        ops.nft_rule_add(NFPROTO_INET, TABLE, chain, make(*about), comment)
        for comment, (make, *about) in wanted.items()
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


def _wanted(site: Site, devices: Sequence[str], earlier: Iterable[Subnet]) -> dict[str, Rule]:
    """Each rule by its comment; `earlier` are subnets beside the node's own."""
    if not site.conf.ip_masq:
        return {}
    networks = site.networks or site.own.subnets
    # ADD, which looks at these rules only, knows by the hash that something else was switched on or off.
    also = "forwardAccept" if site.conf.forward_accept else ""
    rules: dict[str, Rule] = {}
    for subnet in (*site.own.subnets, *earlier):
        exceptions = _of_family(subnet, (*networks, *site.conf.exceptions, FAMILIES[len(subnet[0])][2]))
        rules[_comment(addr.unpack_cidr(*subnet), exceptions, also)] = (_of_pods, subnet, exceptions)
    for network in networks if devices else ():
        family = _of_family(network, networks)
        others = [one for one in family if one != network]  # none as a rule
        text = addr.unpack_cidr(*network)
        for device in devices:
            rules[_comment(f"{text} {device}", others, f"iif 0 {also}")] = (_of_the_node, network, family, device)
    return rules


def _of_family(subnet: Subnet, others: Iterable[Subnet]) -> list[Subnet]:
    return [one for one in dict.fromkeys(others) if len(one[0]) == len(subnet[0])]


def _comment(what: str, others: Sequence[Subnet], also: str) -> str:
    text = " ".join([what, *(addr.unpack_cidr(*one) for one in others), also])
    return f"{_MARK}{what} {names.digest(text).hex()[:16]}"


def _of_pods(subnet: Subnet, exceptions: Sequence[Subnet]) -> list[Expression]:
    """What leaves a subnet for anything but the `exceptions`."""
    from cni.kernel.nftables import daddr_not_in, masquerade, nfproto, saddr_in

    proto = FAMILIES[len(subnet[0])][0]
    others = [daddr_not_in(proto, *one) for one in exceptions]
    return [nfproto(proto), saddr_in(proto, *subnet), *others, masquerade()]


def _of_the_node(network: Subnet, family: Sequence[Subnet], device: str) -> list[Expression]:
    """What the node sends to a network through a device, from an address in none of the `family`."""
    from cni.kernel.nftables import daddr_in, masquerade, nfproto, oifname, saddr_not_in, sent_here

    proto = FAMILIES[len(network[0])][0]
    others = [saddr_not_in(proto, *one) for one in family]
    return [oifname(device), nfproto(proto), *others, sent_here(), daddr_in(proto, *network), masquerade()]
