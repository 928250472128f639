"""macspoofchk: a pod may send only from its own MAC.

Two chains and one jump per pod in table `bridge nat`, named and commented as the Go plugin does
(pkg/link/spoofcheck.go), so that either can clean up after the other.
"""

from __future__ import annotations

from cni.errors import INTERNAL, CniError
from cni.kernel import ops
from cni.kernel.nftables import drop, ether_saddr, iifname, jump, ret
from cni.kernel.ops import NFPROTO_BRIDGE
from cni.names import file_name, host_end
from plugins.veth import ATTEMPTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.kernel import Namespace
    from cni.kernel.types import NftRule

TABLE = "nat"
BASE = "PREROUTING"
HOOK = ("filter", "prerouting", -300)

_CHAIN = "cni-br-iface-"


def add(host: Namespace, container_id: str, ifname: str, host_link: str, mac: bytes) -> None:
    """Drop what enters by `host_link` from another MAC than `mac`. One transaction, which may be repeated."""
    chain, mac_chain, comment = _names(container_id, ifname)
    made = [
        ops.nft_table_add(NFPROTO_BRIDGE, TABLE),
        ops.nft_chain_add(NFPROTO_BRIDGE, TABLE, BASE, HOOK),
        ops.nft_chain_add(NFPROTO_BRIDGE, TABLE, chain),
        ops.nft_chain_add(NFPROTO_BRIDGE, TABLE, mac_chain),
        ops.nft_chain_flush(NFPROTO_BRIDGE, TABLE, chain),
        ops.nft_chain_flush(NFPROTO_BRIDGE, TABLE, mac_chain),
    ]
    rules = (
        (BASE, [iifname(host_link), jump(chain)]),
        (chain, [jump(mac_chain)]),
        (mac_chain, [ether_saddr(mac), ret()]),
        (mac_chain, [drop()]),
    )
    made += [ops.nft_rule_add(NFPROTO_BRIDGE, TABLE, name, expressions, comment) for name, expressions in rules]
    host.nft(*made)


def remove(host: Namespace, container_id: str, ifname: str) -> None:
    """Remove an attachment's chains and jump; none is success. Table and base chain stay, they are shared."""
    chain, mac_chain, _ = _names(container_id, ifname)
    jumps = [rule for rule in host.nft_rules(NFPROTO_BRIDGE, TABLE, BASE) if chain in rule.targets]
    gone = [ops.nft_rule_del(NFPROTO_BRIDGE, TABLE, BASE, rule.handle) for rule in jumps]
    there = [name for name in (chain, mac_chain) if host.nft_has(NFPROTO_BRIDGE, TABLE, "chain", name)]
    # Rules first, in both: the one in `chain` holds a reference to `mac_chain`.
    gone += [ops.nft_chain_flush(NFPROTO_BRIDGE, TABLE, name) for name in there]
    gone += [ops.nft_chain_del(NFPROTO_BRIDGE, TABLE, name) for name in there]
    if gone:
        host.nft(*gone)


def remove_stale(host: Namespace, network: str, valid: set[tuple[str, str]]) -> None:
    """Remove the chains of a network's attachments that are not in `valid` (container ID, interface), with no record.

    Chain and comment name the attachment but not the network. The host's end in the jump does: its name follows from
    network, container and interface.
    """
    for rule in host.nft_rules(NFPROTO_BRIDGE, TABLE, BASE):
        found = _attachment(network, rule) if rule.iifname else None
        if found and found not in valid:
            remove(host, *found)


def _attachment(network: str, rule: NftRule) -> tuple[str, str] | None:
    """The attachment of the network that a jump is for; None for another network's or another program's."""
    for chain in rule.targets:
        parts = chain.removeprefix(_CHAIN).split("-")
        for at in range(1, len(parts)):
            container_id, ifname = "-".join(parts[:at]), "-".join(parts[at:])
            if rule.iifname in [host_end(network, container_id, ifname, one)[0] for one in range(ATTEMPTS)]:
                return container_id, ifname
    return None


def check(host: Namespace, container_id: str, ifname: str) -> None:
    """CniError 999 when an attachment is not guarded."""
    chain, mac_chain, _ = _names(container_id, ifname)
    guarded = any(chain in rule.targets for rule in host.nft_rules(NFPROTO_BRIDGE, TABLE, BASE))
    if not guarded or len(host.nft_rules(NFPROTO_BRIDGE, TABLE, mac_chain)) != 2:
        raise CniError(
            INTERNAL, f"macspoofchk: expected chains {chain} and {mac_chain} in nftables table bridge {TABLE}, found them broken",
            "recreate the pod: it could send from another MAC",
        )  # fmt: skip


def _names(container_id: str, ifname: str) -> tuple[str, str, str]:
    attachment = file_name(f"{container_id}-{ifname}")  # the kernel's limit for a chain's name is 255 bytes too
    return f"{_CHAIN}{attachment}", f"{_CHAIN}{attachment}-mac", f"macspoofchk-{attachment}"
