"""bridge's CHECK: the pair (`attachment_check.py`), the bridge, and what keeps the pod reachable beside them."""

from __future__ import annotations

from plugins import attachment_check, macspoof, masquerade
from plugins.attachment_check import unwell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.types import Link
    from plugins.bridge_conf import Conf


def check(ctx: Context, conf: Conf) -> None:
    """CniError 999 that names the first difference: where, expected, found."""
    result = attachment_check.promised(ctx)
    index, pod_link = attachment_check.pod_end(ctx, result)
    bridge = ctx.host.link(conf.bridge)
    if bridge is None or bridge.kind != "bridge":
        raise unwell(f"bridge {conf.bridge}", "a bridge on the node", f"{bridge.kind or 'none'}" if bridge else "none")
    if conf.promisc and not bridge.promisc:
        raise unwell(f"bridge {conf.bridge}", "promiscuous mode", "none")
    host_link = attachment_check.host_end(ctx, result, pod_link)
    if host_link.master != bridge.index:
        found = _master(ctx.host, host_link)
        raise unwell(f"{host_link.name} on the node", f"it on bridge {bridge.name}", found)
    if conf.disable_container_interface:
        return
    ips = attachment_check.addressed(ctx.sandbox, pod_link, index, result)
    if conf.ip_masq and ips:
        masquerade.check(ctx, _backend(ctx), [(ip.packed, ip.prefix) for ip in ips])
    if conf.mac_spoof_check:
        macspoof.check(ctx.host, ctx.request.container_id, ctx.request.ifname)


def _backend(ctx: Context) -> str:
    """The backend that ADD used, which the configuration may no longer name; empty with no record of ours."""
    record = ctx.records.read(ctx.request.container_id, ctx.request.ifname)
    return str(record["plugins"].get(ctx.plugin_type, {}).get("masquerade", "")) if record else ""


def _master(host: Namespace, link: Link) -> str:
    master = host.link(link.master) if link.master else None
    return f"it on {master.name}" if master else "it on no bridge"
