"""What networks leave in the node's kernel, beside pods: what was there before, and taking away what came since.

Devices are known by their label, routes and nexthop objects by their protocol number, the firewall by its table. A bridge
carries no mark of ours: it goes when the network list names it, nothing is on it, and it was not there before.
"""

from __future__ import annotations

import time
from errno import EBUSY, ENOENT
from typing import TYPE_CHECKING, Any

from cli.node import settings
from cli.node.record import Record, boot
from cni.errors import CniError, KernelError
from cni.kernel import ops
from cni.kernel.background import fork_background
from cni.kernel.linux import Kernel
from cni.kernel.ops import NFPROTO_BRIDGE, NFPROTO_INET
from cni.kernel.sysctl import SYSCTL_DIR
from cni.names import OWNER
from plugins import macspoof, masquerade
from plugins.reconcile import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cni.kernel import Namespace
    from cni.kernel.types import Link

BRIDGE_NAT = "bridge nat"


def note_before(record: Record, sysctl_dir: str = SYSCTL_DIR) -> None:
    """Have the record say what the node was like before cnikit wrote anything in this boot. OSError."""
    if not record.before:
        record.value["before"] = {"boot": boot(), "settings": settings.look(sysctl_dir), **_look()}
        record.save()


def _look() -> dict[str, list[str]]:
    try:
        with Kernel(time.monotonic, fork_background).own() as host:
            bridges = [link.name for link in host.links() if link.kind == "bridge"]
            tables = [BRIDGE_NAT] if host.nft_has(NFPROTO_BRIDGE, macspoof.TABLE) else []
    except CniError:  # a sandbox without netlink: nothing is taken away there later
        return {"bridges": [], "tables": []}
    return {"bridges": bridges, "tables": tables}


def remove(host: Namespace, before: dict[str, Any], bridges: Collection[str]) -> Iterator[tuple[str, CniError | None]]:
    """Take away what is ours: each thing with None, or with why it stays.

    `bridges` are those that our networks name.
    """
    links = host.links()
    for link in links:
        if link.kind == "vxlan" and link.alias.startswith(OWNER):
            yield link.name, _deleted(host, link)
    for name in sorted(set(bridges) - set(before.get("bridges", ()))):
        yield from _bridge(host, links, name)
    for nexthop in host.nexthops(PROTOCOL):
        yield f"nexthop {nexthop.id}", _tried(host, ops.nexthop_del(nexthop.id))
    for route in host.routes(PROTOCOL):
        operation = ops.route_del(route.dst, route.prefix, protocol=PROTOCOL, metric=route.metric, table=route.table)
        yield operation.text.removeprefix("delete "), _tried(host, operation)
    yield from _tables(host, before)


def _bridge(host: Namespace, links: list[Link], name: str) -> Iterator[tuple[str, CniError | None]]:
    """A bridge with the node's legs in its VLANs, when nothing else is on it."""
    bridge = next((link for link in links if link.name == name and link.kind == "bridge"), None)
    if bridge is None:
        return
    legs = {link.index: link for link in links if link.kind == "veth" and link.name.startswith(f"{name}.")}
    ports = [link for link in links if link.master == bridge.index and link.peer not in legs]
    if ports:
        used = ", ".join(port.name for port in ports)
        yield f"bridge {name}", KernelError(f"delete bridge {name}", EBUSY, f"expected nothing on it, found {used}")
        return
    for one in (*legs.values(), bridge):
        yield one.name, _deleted(host, one)


def _tables(host: Namespace, before: dict[str, Any]) -> Iterator[tuple[str, CniError | None]]:
    if host.nft_has(NFPROTO_INET, masquerade.TABLE):
        fault = _tried_nft(host, ops.nft_table_del(NFPROTO_INET, masquerade.TABLE))
        yield f"nftables table inet {masquerade.TABLE}", fault
    table, base = macspoof.TABLE, macspoof.BASE
    if not before or BRIDGE_NAT in before.get("tables", ()) or not host.nft_has(NFPROTO_BRIDGE, table):
        return
    if host.nft_rules(NFPROTO_BRIDGE, table, base):
        return  # of other programs: ours have gone with the pods
    removals = (
        [ops.nft_chain_del(NFPROTO_BRIDGE, table, base)] if host.nft_has(NFPROTO_BRIDGE, table, "chain", base) else []
    )
    fault = _tried_nft(host, *removals, ops.nft_table_del(NFPROTO_BRIDGE, table, empty=True))
    if fault is None:
        yield f"nftables table {BRIDGE_NAT}", None


def _deleted(host: Namespace, link: Link) -> CniError | None:
    try:
        host.delete_link(link.index, link.kind)
    except CniError as error:
        return error
    return None


def _tried(host: Namespace, operation: ops.Op) -> CniError | None:
    return next((error for _, error in host.attempt([operation]) if error.errno != ENOENT), None)


def _tried_nft(host: Namespace, *operations: ops.Op) -> CniError | None:
    try:
        host.nft(*operations)
    except KernelError as error:
        return None if error.errno == ENOENT else error
    return None
