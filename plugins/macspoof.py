"""macspoofchk: a pod may send only from its own MAC.

Two chains and one jump per pod in table `bridge nat`, named and commented as the Go plugin does
(pkg/link/spoofcheck.go), so that either can clean up after the other.
"""

from __future__ import annotations

from cni.errors import INTERNAL, CniError
from cni.kernel import ops
from cni.kernel.nftables import drop, ether_saddr, iifname, jump, ret
from cni.kernel.ops import NFPROTO_BRIDGE
from cni.names import file_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.kernel import Namespace

TABLE = "nat"
BASE = "PREROUTING"
HOOK = ("filter", "prerouting", -300)


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
    return f"cni-br-iface-{attachment}", f"cni-br-iface-{attachment}-mac", f"macspoofchk-{attachment}"
