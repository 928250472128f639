"""CHECK of a routed attachment: the pair (`attachment_check.py`), and the node's way to the pod and the pod's to it."""

from __future__ import annotations

from cni import addr
from plugins import attachment_check
from plugins.attachment_check import unwell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context


def check(ctx: Context) -> None:
    """CniError 999 that names the first difference: where, expected, found."""
    result = attachment_check.promised(ctx)
    index, pod_link = attachment_check.pod_end(ctx, result)
    host_link = attachment_check.host_end(ctx, result, pod_link)
    if host_link.port is not None:
        raise unwell(f"{host_link.name} on the node", "it on no bridge", "it on one")
    ips = attachment_check.addressed(ctx.sandbox, pod_link, index, result)
    attachment_check.alone(ctx, ips)
    routes = {(route.dst, route.prefix, route.oif) for route in ctx.host.routes()}
    for ip in ips:
        full = len(ip.packed) * 8
        if ip.gateway:
            attachment_check.has_address(ctx.host, host_link, ip.gateway)
            attachment_check.has_route(ctx.sandbox, pod_link, ip.gateway, full)
        if (ip.packed, full, host_link.index) not in routes:
            raise unwell("the node's routes", f"{addr.unpack(ip.packed)} dev {host_link.name}", "none")
