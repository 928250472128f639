"""bridge's CHECK: the pair (`attachment_check.py`), the bridge, and what keeps the pod reachable beside them."""

from __future__ import annotations

from cni import addr
from cni.kernel.types import PORT_DISABLED
from plugins import attachment_check, macspoof, masquerade
from plugins.attachment import in_routing
from plugins.attachment_check import unwell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.types import Link, Port
    from cni.result import IPConfig
    from plugins.bridge_conf import Conf


def check(ctx: Context, conf: Conf) -> None:
    """CniError 999 that names the first difference: where, expected, found."""
    result = attachment_check.promised(ctx)
    index, pod_link = attachment_check.pod_end(ctx, result)
    bridge = _bridge(ctx.host, conf)
    host_link = attachment_check.host_end(ctx, result, pod_link)
    port = _check_port(ctx.host, conf, host_link, bridge)
    if conf.disable_container_interface:
        return
    ips = attachment_check.addressed(ctx.sandbox, pod_link, index, result)
    if port.state == PORT_DISABLED:
        raise unwell(f"{host_link.name} on the node", "a bridge port that forwards", "it disabled")
    _check_gateways(ctx, conf, pod_link, ips)
    if in_routing(conf):
        attachment_check.alone(ctx, ips)
    if conf.ip_masq and ips:
        masquerade.check(ctx, _backend(ctx), [(ip.packed, ip.prefix) for ip in ips])
    if conf.mac_spoof_check:
        macspoof.check(ctx.host, ctx.request.container_id, ctx.request.ifname)


def _bridge(host: Namespace, conf: Conf) -> Link:
    link = host.link(conf.bridge)
    if link is None or link.kind != "bridge":
        raise unwell(f"bridge {conf.bridge}", "a bridge on the node", f"{link.kind or 'none'}" if link else "none")
    if not link.up:
        raise unwell(f"bridge {conf.bridge}", "it up", "it down")
    if conf.promisc and not link.promisc:
        raise unwell(f"bridge {conf.bridge}", "promiscuous mode", "none")
    return link


def _check_port(host: Namespace, conf: Conf, link: Link, bridge: Link) -> Port:
    """The host's end as a port of the bridge, which is as it was set."""
    where = f"{link.name} on the node"
    if link.master != bridge.index or link.port is None:
        raise unwell(where, f"it on bridge {bridge.name}", _master(host, link))
    if conf.hairpin and not link.port.hairpin:
        raise unwell(where, "hairpin mode", "none")
    if conf.isolated and not link.port.isolated:
        raise unwell(where, "it isolated from other ports", "it open to them")
    return link.port


def _check_gateways(ctx: Context, conf: Conf, pod_link: Link, ips: list[IPConfig]) -> None:
    """That pod and node have each other on the link: the pod by its subnet's route, the node by the gateway's address."""
    for ip in ips:
        if ip.prefix < len(ip.packed) * 8:
            attachment_check.has_route(ctx.sandbox, pod_link, addr.network(ip.packed, ip.prefix), ip.prefix)
    name = f"{conf.bridge}.{conf.vlan}" if conf.vlan else conf.bridge
    link = ctx.host.link(name) if conf.is_gateway else None
    if conf.is_gateway and link is None:
        raise unwell(f"{name} on the node", "the link with the gateway's address", "none")
    for ip in ips:
        if link is not None and ip.gateway:
            attachment_check.has_address(ctx.host, link, ip.gateway)


def _backend(ctx: Context) -> str:
    """The backend that ADD used, which the configuration may no longer name; empty with no record of ours."""
    record = ctx.records.read(ctx.request.container_id, ctx.request.ifname)
    return str(record["plugins"].get(ctx.plugin_type, {}).get("masquerade", "")) if record else ""


def _master(host: Namespace, link: Link) -> str:
    master = host.link(link.master) if link.master else None
    return f"it on {master.name}" if master else "it on no bridge"
