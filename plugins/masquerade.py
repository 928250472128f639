"""Masquerading of a pod's traffic to the outside, for every plugin with `ipMasq`.

nftables (the default) is one table of ours. A network has a chain in it, and in the chain one rule for each
of its subnets; a pod is an element of that subnet's set, so the number of rules does not grow with pods:

    table inet cnikit {
        set pods-lab-0a010000/24 { type ipv4_addr; elements = { 10.1.0.2 comment "cnikit lab/pod1/eth0" } }
        chain masq-lab {
            type nat hook postrouting priority srcnat;
            ip saddr @pods-lab-0a010000/24 ip daddr != 10.1.0.0/24 ip daddr != 224.0.0.0/4 masquerade
                comment "10.1.0.0/24"
        }
    }

The network's `holders` (cni/record.py) say who an element belongs to, and both change together under the network's
lock. So when two attachments came to the same address one after the other, the DEL of the first leaves the second
alone. The element's comment is the owner's label; it decides where there is no holder, and the holders are made anew
from the labels when /run was lost (`adopt`).

iptables (`ipMasqBackend`) makes the very chains that the Go plugin makes (plugins/iptables.py).
"""

from __future__ import annotations

from errno import EAFNOSUPPORT, EEXIST, EOPNOTSUPP, EPROTONOSUPPORT

from cni import addr, names
from cni.errors import INTERNAL, CniError, KernelError, io_failure
from cni.kernel import ops
from cni.kernel.ops import NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.ops import Op

    Subnet = tuple[bytes, int]  # an address's bytes and its prefix length

TABLE = "cnikit"
NFTABLES = "nftables"
IPTABLES = "iptables"
BACKENDS = (NFTABLES, IPTABLES)

# NF_IP_PRI_NAT_SRC, which nft prints as `srcnat`.
HOOK = ("nat", "postrouting", 100)

# By address size: the nfproto, the set's key type and what multicast is.
FAMILIES = {
    4: (NFPROTO_IPV4, "ipv4_addr", (b"\xe0\0\0\0", 4)),
    16: (NFPROTO_IPV6, "ipv6_addr", (b"\xff" + bytes(15), 8)),
}

# What a kernel without nftables says.
NO_NFTABLES = (EAFNOSUPPORT, EOPNOTSUPP, EPROTONOSUPPORT)

# nft's own limit for names is 256 bytes.
_LONGEST_NETWORK = 128


def add(ctx: Context, backend: str, addresses: list[Subnet]) -> None:
    """Masquerade what comes from these addresses and leaves their subnets. Pushes its own undo."""
    container_id, ifname = ctx.request.container_id, ctx.request.ifname
    # Pushed first: half of it may have been done when it fails, and taking back what is not there is nothing.
    ctx.undo.push("stop masquerading", lambda: remove(ctx, backend, addresses, container_id, ifname))
    if backend == IPTABLES:
        _iptables().masquerade(ctx, addresses)
        return
    adopt(ctx)
    own = holder_texts(ctx.network, container_id, ifname)
    comment = names.owner(ctx.network, container_id, ifname)
    with ctx.records.lock():
        # An element that is added again keeps its first comment, which would be the former holder's.
        former = [s for s in addresses if ctx.records.holder(addr.unpack_cidr(*s)) not in ("", *own) and _has(ctx, s)]
        for packed, prefix in addresses:
            ctx.records.hold(addr.unpack_cidr(packed, prefix), container_id, ifname)
        elements = [
            ops.nft_element_add(NFPROTO_INET, TABLE, set_name(ctx.network, subnet), subnet[0], comment)
            for subnet in addresses
        ]
        commit(ctx.host, [*_missing(ctx, addresses), *_removals(ctx, former), *elements])


def remove_former(ctx: Context, addresses: list[Subnet]) -> None:
    """Stop masquerading for whoever had these addresses before a pod that is not masqueraded. Costs no question to the
    kernel where every former holder's DEL has done its work."""
    adopt(ctx)
    if any(ctx.records.holder(addr.unpack_cidr(*subnet)) for subnet in addresses):
        with ctx.records.lock():
            _take_out(ctx, [subnet for subnet in addresses if ctx.records.holder(addr.unpack_cidr(*subnet))])


def remove(ctx: Context, backend: str, addresses: list[Subnet], container_id: str, ifname: str) -> None:
    """Stop masquerading for an attachment, as far as it still holds the addresses. What is gone is fine."""
    if backend == IPTABLES:
        _iptables().unmasquerade(ctx, container_id)
    else:
        adopt(ctx)
        remove_held(ctx, addresses, holder_texts(ctx.network, container_id, ifname))


def remove_held(ctx: Context, addresses: list[Subnet], owners: tuple[str, ...]) -> None:
    """The same for nftables, by what the holder's link may say (`holder_texts`)."""
    with ctx.records.lock():
        _take_out(ctx, [subnet for subnet in addresses if _owner(ctx, subnet) in owners])


def adopt(ctx: Context, *, again: bool = False) -> None:
    """Make holders for the elements that have none, from their labels: once after /run was lost, or `again`.

    /run may be gone while pods run, and the next call of the network comes here first. One that cannot write there
    goes on: whoever needs a holder will say so.
    """
    if ctx.records.has_holders and not again:
        return
    try:
        with ctx.records.lock():
            held = dict(ctx.records.held(lambda _: True))
            labels = _labels(ctx)
            ctx.records.adopt({cidr: label for cidr, label in labels.items() if cidr not in held})
    except OSError as error:
        ctx.log(f"{io_failure(error, 'cannot say who holds the masqueraded addresses')}; going on without")
    except KernelError as error:
        if error.errno not in NO_NFTABLES:
            raise


def holder_texts(network: str, container_id: str, ifname: str) -> tuple[str, str]:
    """What the link of a holder says: the attachment's key, or its label."""
    return names.attachment_key(container_id, ifname), names.owner(network, container_id, ifname)


def check(ctx: Context, backend: str, addresses: list[Subnet]) -> None:
    """CniError 999 that names the first thing missing. With no backend known (empty) the Go plugin's will do."""
    if backend == IPTABLES:
        _iptables().check(ctx, addresses)
        return
    if not backend and _iptables().has_reference(ctx, addresses):
        return
    chain = chain_name(ctx.network)
    comments = {rule.comment for rule in ctx.host.nft_rules(NFPROTO_INET, TABLE, chain)}
    own = holder_texts(ctx.network, ctx.request.container_id, ctx.request.ifname)
    for subnet in addresses:
        text = addr.unpack_cidr(*subnet)
        if _subnet_text(subnet) not in comments:
            raise _unwell(f"a rule for {_subnet_text(subnet)} in nftables chain inet {TABLE} {chain}, found none")
        if not _has(ctx, subnet):
            raise _unwell(f"{text} in nftables set inet {TABLE} {set_name(ctx.network, subnet)}, found it missing")
        holder = _owner(ctx, subnet)
        if holder not in own:
            raise _unwell(f"{text} masqueraded for {own[0]}, found it held by {holder or 'nobody'}")


def remove_reference(ctx: Context, container_id: str, ifname: str) -> None:
    """Remove what the Go plugin made for a pod that we have no record of."""
    _iptables().remove_reference(ctx, container_id, ifname)


def status(ctx: Context, backend: str) -> None:
    """CniError when no ADD could masquerade."""
    if backend == IPTABLES:
        _iptables().find_restore(ctx, 4)
    else:
        ctx.host.nft_has(NFPROTO_INET, TABLE)


def commit(host: Namespace, operations: list[Op]) -> None:
    """Carry out operations on our table. CniError 999 when something else has a name that they need."""
    try:
        host.nft(*operations)
    except KernelError as error:
        if error.errno != EEXIST:
            raise
        text = f"{error.msg}: expected nothing of that name in nftables table inet {TABLE}, or what cnikit makes"
        raise CniError(
            INTERNAL, text, f"look at it: nft list table inet {TABLE}; what is deleted there the next ADD makes"
        ) from None


def chain_name(network: str) -> str:
    """The chain of a network."""
    return f"masq-{_short(network)}"


def set_name(network: str, subnet: Subnet) -> str:
    """The set of a network's pods in one subnet; its address in hex, because nft's names know no colon."""
    packed, prefix = subnet
    return f"pods-{_short(network)}-{addr.network(packed, prefix).hex()}/{prefix}"


def _missing(ctx: Context, addresses: list[Subnet]) -> list[Op]:
    """What makes table, chain, sets and rules complete; nothing on all but a network's first ADD.

    A rule cannot be there without its set and chain, so asking for the rules is asking for all.
    """
    from cni.kernel.nftables import daddr_not_in, masquerade, nfproto, saddr_in_set

    chain = chain_name(ctx.network)
    comments = {rule.comment for rule in ctx.host.nft_rules(NFPROTO_INET, TABLE, chain)}
    missing = {_subnet_text(subnet): subnet for subnet in addresses if _subnet_text(subnet) not in comments}
    if not missing:
        return []
    made = [ops.nft_table_add(NFPROTO_INET, TABLE), ops.nft_chain_add(NFPROTO_INET, TABLE, chain, HOOK)]
    for text, subnet in missing.items():
        packed, prefix = subnet
        proto, key, multicast = FAMILIES[len(packed)]
        made.append(ops.nft_set_add(NFPROTO_INET, TABLE, set_name(ctx.network, subnet), key))
        expressions = [
            nfproto(proto),
            saddr_in_set(proto, set_name(ctx.network, subnet)),
            daddr_not_in(proto, addr.network(packed, prefix), prefix),
            daddr_not_in(proto, *multicast),
            masquerade(),
        ]
        made.append(ops.nft_rule_add(NFPROTO_INET, TABLE, chain, expressions, text))
    return made


def _iptables() -> ModuleType:
    # Imported here: the nftables backend needs it only where the Go plugin was before.
    from plugins import iptables

    return iptables


def _has(ctx: Context, subnet: Subnet) -> bool:
    return ctx.host.nft_has_element(NFPROTO_INET, TABLE, set_name(ctx.network, subnet), subnet[0])


def _owner(ctx: Context, subnet: Subnet) -> str:
    """The holder of an address; with none, the label of its element."""
    holder = ctx.records.holder(addr.unpack_cidr(*subnet))
    return holder or ctx.host.nft_comment(NFPROTO_INET, TABLE, set_name(ctx.network, subnet), subnet[0])


def _labels(ctx: Context) -> dict[str, str]:
    """The label of every element of the network, by its address (`10.1.0.2/24`)."""
    found: dict[str, str] = {}
    for rule in ctx.host.nft_rules(NFPROTO_INET, TABLE, chain_name(ctx.network)):
        subnet = addr.pack_cidr(rule.comment)
        if subnet is None:
            continue  # a range's
        comments = ctx.host.nft_comments(NFPROTO_INET, TABLE, set_name(ctx.network, subnet))
        for packed, comment in comments.items():
            if comment.startswith(names.owner_of_all(ctx.network)):
                found[addr.unpack_cidr(packed, subnet[1])] = comment
    return found


def _take_out(ctx: Context, addresses: list[Subnet]) -> None:
    """Remove the elements and holders of addresses. Call under the lock."""
    there = [subnet for subnet in addresses if _has(ctx, subnet)]
    if there:
        ctx.host.nft(*_removals(ctx, there))
    for subnet in addresses:
        ctx.records.release(addr.unpack_cidr(*subnet))


def _removals(ctx: Context, addresses: list[Subnet]) -> list[Op]:
    return [ops.nft_element_del(NFPROTO_INET, TABLE, set_name(ctx.network, s), s[0]) for s in addresses]


def _subnet_text(subnet: Subnet) -> str:
    packed, prefix = subnet
    return addr.unpack_cidr(addr.network(packed, prefix), prefix)


def _short(network: str) -> str:
    return network if len(network) <= _LONGEST_NETWORK else f"sha512-{names.digest(network).hex()[:64]}"


def _unwell(what: str) -> CniError:
    return CniError(INTERNAL, f"masquerade: expected {what}", "recreate the pod: its traffic to the outside is lost")
