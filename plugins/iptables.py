"""Masquerading with iptables: the chains and rules that the Go reference makes, so that either can clean up
after the other (pkg/ip/ipmasq_iptables_linux.go, ipmasq_nftables_linux.go name them).

A pod has a chain `CNI-<hash>` in table nat and a jump to it from POSTROUTING for each address. It is made by
one `iptables-restore` per family. It is removed with no program where iptables is the nftables kind (its
tables are ordinary nftables tables), and with `iptables-restore` where the legacy tables are in use.
"""

from __future__ import annotations

import posix

from cni import addr, names
from cni.errors import INTERNAL, NOT_AVAILABLE, CniError
from cni.execute import command
from cni.kernel import ops
from cni.kernel.ops import NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni.context import Context

    Subnet = tuple[bytes, int]

# By address size: nfproto, program prefix, the file that lists the legacy tables in use, multicast.
FAMILIES = {
    4: (NFPROTO_IPV4, "iptables", "/proc/net/ip_tables_names", "224.0.0.0/4"),
    16: (NFPROTO_IPV6, "ip6tables", "/proc/net/ip6_tables_names", "ff00::/8"),
}

NAT = "nat"
POSTROUTING = "POSTROUTING"

# Where distributions put them; an empty environment has no PATH.
SBIN = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"

# What the reference's nftables backend makes: a rule for each pod, with a comment that starts with a hash.
GO_TABLE = "cni_plugins_masquerade"
GO_CHAIN = "masq_checks"


def masquerade(ctx: Context, addresses: list[Subnet]) -> None:
    """Make the pod's chains, one `iptables-restore` per family."""
    chain = chain_name(ctx.network, ctx.request.container_id)
    comment = f'name: "{ctx.network}" id: "{ctx.request.container_id}"'.replace('"', '\\"')
    tail = f'-m comment --comment "{comment}"'
    for size in (4, 16):
        ours = [subnet for subnet in addresses if len(subnet[0]) == size]
        if not ours:
            continue
        lines = [f"*{NAT}", f":{chain} - [0:0]"]
        for packed, prefix in ours:
            net = addr.unpack_cidr(addr.network(packed, prefix), prefix)
            lines += [
                f"-A {chain} -d {net} {tail} -j ACCEPT",
                f"-A {chain} ! -d {FAMILIES[size][3]} {tail} -j MASQUERADE",
                f"-A {POSTROUTING} -s {addr.unpack(packed)} {tail} -j {chain}",
            ]
        _restore(ctx, find_restore(ctx, size), lines)


def unmasquerade(ctx: Context, container_id: str) -> None:
    """Remove a pod's chains in both families, wherever they are; none is success."""
    chain = chain_name(ctx.network, container_id)
    for size, (proto, program, tables, _) in FAMILIES.items():
        _remove_nft(ctx, proto, chain)
        if NAT in lines_of(tables):
            _remove_legacy(ctx, f"{program}-legacy", size, chain)


def remove_reference(ctx: Context, container_id: str, ifname: str) -> None:
    """Remove what the Go plugin made for a pod that we have no record of, with either of its backends."""
    unmasquerade(ctx, container_id)
    start = _reference_comment(ctx.network, container_id, ifname)
    stale = [r for r in ctx.host.nft_rules(NFPROTO_INET, GO_TABLE, GO_CHAIN) if r.comment.startswith(start)]
    if stale:
        ctx.host.nft(*[ops.nft_rule_del(NFPROTO_INET, GO_TABLE, GO_CHAIN, rule.handle) for rule in stale])


def has_reference(ctx: Context, addresses: list[Subnet]) -> bool:
    """Whether the Go plugin masquerades for the pod, with either of its backends."""
    start = _reference_comment(ctx.network, ctx.request.container_id, ctx.request.ifname)
    rules = [r for r in ctx.host.nft_rules(NFPROTO_INET, GO_TABLE, GO_CHAIN) if r.comment.startswith(start)]
    return len(rules) >= len(addresses) or all(
        _has_jump(ctx, size) for size in {len(packed) for packed, _ in addresses}
    )


def check(ctx: Context, addresses: list[Subnet]) -> None:
    """CniError 999 when a family of the pod's addresses has no jump to its chain."""
    for size in {len(packed) for packed, _ in addresses}:
        if not _has_jump(ctx, size):
            raise CniError(
                INTERNAL,
                f"masquerade: expected a jump from {FAMILIES[size][1]} {NAT} {POSTROUTING} to "
                f"{chain_name(ctx.network, ctx.request.container_id)}, found none",
                "recreate the pod: its traffic to the outside is lost",
            )


def _has_jump(ctx: Context, size: int) -> bool:
    """Whether POSTROUTING of a family leads to the pod's chain, in the nftables kind of iptables or the legacy one."""
    chain = chain_name(ctx.network, ctx.request.container_id)
    proto, program, tables, _ = FAMILIES[size]
    if any(chain in rule.targets for rule in ctx.host.nft_rules(proto, NAT, POSTROUTING)):
        return True
    return NAT in lines_of(tables) and any(line.endswith(f"-j {chain}") for line in _save(ctx, f"{program}-legacy"))


def chain_name(network: str, container_id: str) -> str:
    """The reference's name for a pod's chain: `CNI-` and a hash, 28 characters."""
    return "CNI-" + names.digest(network + container_id).hex()[:24]


def find_restore(ctx: Context, size: int) -> str:
    """The `iptables-restore` of a family; CniError 50 when it is not installed."""
    program = f"{FAMILIES[size][1]}-restore"
    found = find_program(program, ctx.request.environ)
    if not found:
        raise CniError(
            NOT_AVAILABLE, f'ipMasqBackend "iptables": expected the program {program}, found none',
            'install iptables, or set ipMasqBackend to "nftables", which needs no program',
        )  # fmt: skip
    return found


def _remove_nft(ctx: Context, proto: int, chain: str) -> None:
    jumps = [rule for rule in ctx.host.nft_rules(proto, NAT, POSTROUTING) if chain in rule.targets]
    gone = [ops.nft_rule_del(proto, NAT, POSTROUTING, rule.handle) for rule in jumps]
    if ctx.host.nft_has(proto, NAT, "chain", chain):
        gone += [ops.nft_chain_flush(proto, NAT, chain), ops.nft_chain_del(proto, NAT, chain)]
    if gone:
        ctx.host.nft(*gone)


def _remove_legacy(ctx: Context, program: str, size: int, chain: str) -> None:
    if not find_program(f"{program}-save", ctx.request.environ):
        program = FAMILIES[size][1]  # a distribution with the legacy kind only
    saved = _save(ctx, program)
    if not any(line.startswith(f":{chain} ") for line in saved):
        return
    jumps = [f"-D{line[2:]}" for line in saved if line.startswith("-A ") and line.endswith(f"-j {chain}")]
    _restore(
        ctx, find_program(f"{program}-restore", ctx.request.environ), [f"*{NAT}", *jumps, f"-F {chain}", f"-X {chain}"]
    )


def _restore(ctx: Context, program: str, lines: list[str]) -> None:
    script = "\n".join([*lines, "COMMIT", ""]).encode()
    command([program, "--noflush", "--wait", "10"], ctx.request.environ, script, ctx.world.communicate)


def _save(ctx: Context, program: str) -> list[str]:
    found = find_program(f"{program}-save", ctx.request.environ)
    return (
        command([found, "-t", NAT], ctx.request.environ, b"", ctx.world.communicate).decode().splitlines()
        if found
        else []
    )


def find_program(program: str, environ: Mapping[str, str]) -> str:
    """The path of a program; empty when it is not installed."""
    folders = f"{environ.get('PATH', '')}:{SBIN}".split(":")
    paths = (f"{folder}/{program}" for folder in folders if folder.startswith("/"))
    return next((path for path in paths if posix.access(path, posix.X_OK)), "")


def lines_of(path: str) -> list[str]:
    """The words of a file that lists the legacy tables in use, one on a line; none when there is no such file."""
    try:
        with open(path) as file:
            return file.read().split()
    except OSError:
        return []  # this kernel has no legacy tables


def _reference_comment(network: str, container_id: str, ifname: str) -> str:
    """What the comment of the Go plugin's nftables rules starts with."""
    return f"{_hash16(network)}-{_hash16(f'{ifname}:{container_id}')}"


def _hash16(text: str) -> str:
    return names.digest(text).hex()[:16]
