"""bridge's CHECK: what prevResult promises, compared with the kernel.

A later plugin of the chain may have changed things on ADD; it then changed the result too, and routes may
have moved to another table. What is compared is what keeps the pod reachable.
"""

from __future__ import annotations

from cni import addr
from cni.errors import INTERNAL, INVALID_CONFIG, CniError
from plugins import macspoof, masquerade

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.types import Link
    from cni.result import Interface, IPConfig, Result, Route
    from plugins.bridge_conf import Conf


def check(ctx: Context, conf: Conf) -> None:
    """CniError 999 that names the first difference: where, expected, found."""
    result = ctx.prev_result
    if result is None:
        raise CniError(
            INVALID_CONFIG, "required prevResult missing", "pass ADD's result: CHECK compares the pod with it"
        )
    index, expected = _pod_interface(ctx, result)
    pod_link = _link(ctx.sandbox, expected, "in the pod")
    bridge = ctx.host.link(conf.bridge)
    if bridge is None or bridge.kind != "bridge":
        raise _unwell(f"bridge {conf.bridge}", "a bridge on the node", f"{bridge.kind or 'none'}" if bridge else "none")
    if conf.promisc and not bridge.promisc:
        raise _unwell(f"bridge {conf.bridge}", "promiscuous mode", "none")
    _check_host_end(ctx, result, bridge, pod_link)
    if conf.disable_container_interface:
        return
    if not pod_link.up:
        raise _unwell(f"{expected.name} in the pod", "it up", "it down")
    ips = [ip for ip in result.ips if ip.interface in (None, index)]
    _check_addresses(ctx.sandbox, pod_link, ips)
    _check_routes(ctx.sandbox, result.routes)
    if conf.ip_masq and ips:
        masquerade.check(ctx, _backend(ctx), [(ip.packed, ip.prefix) for ip in ips])
    if conf.mac_spoof_check:
        macspoof.check(ctx.host, ctx.request.container_id, ctx.request.ifname)


def _backend(ctx: Context) -> str:
    """The backend that ADD used, which the configuration may no longer name; empty with no record of ours."""
    record = ctx.records.read(ctx.request.container_id, ctx.request.ifname)
    return str(record["plugins"].get(ctx.plugin_type, {}).get("masquerade", "")) if record else ""


def _pod_interface(ctx: Context, result: Result) -> tuple[int, Interface]:
    request = ctx.request
    named = [(i, item) for i, item in enumerate(result.interfaces) if item.name == request.ifname and item.sandbox]
    if not named:
        raise _unwell("prevResult", f"interface {request.ifname} with its sandbox", "none")
    for index, item in named:
        if item.sandbox == request.netns:
            return index, item
    raise CniError(
        INTERNAL, f"Sandbox in prevResult {named[0][1].sandbox} doesn't match configured netns: {request.netns}",
        "pass the CNI_NETNS of ADD",
    )  # fmt: skip


def _check_host_end(ctx: Context, result: Result, bridge: Link, pod_link: Link) -> None:
    """The host's end is the interface on the host whose peer is the pod's."""
    for item in result.interfaces:
        if item.sandbox or item.name == bridge.name:
            continue
        link = ctx.host.link(item.name)
        if link is None:
            raise _unwell(f"{item.name} on the node", "a link", "none")
        if link.kind != "veth" or link.index != pod_link.peer:
            continue  # not made for this pod: the interface of a VLAN, or a later plugin's
        _compare(item, link, "on the node")
        if link.master != bridge.index:
            raise _unwell(f"{item.name} on the node", f"it on bridge {bridge.name}", _master(ctx.host, link))
        if not link.up:
            raise _unwell(f"{item.name} on the node", "it up", "it down")
        return
    raise _unwell(f"{pod_link.name} in the pod", "its peer among prevResult's interfaces", "no such veth on the node")


def _link(namespace: Namespace, item: Interface, where: str) -> Link:
    link = namespace.link(item.name)
    if link is None:
        raise _unwell(f"{item.name} {where}", "a link", "none")
    if link.kind != "veth":
        raise _unwell(f"{item.name} {where}", "a veth", link.kind or "a physical or loopback interface")
    _compare(item, link, where)
    return link


def _compare(item: Interface, link: Link, where: str) -> None:
    found = addr.unpack_mac(link.mac)
    if item.mac and addr.pack_mac(item.mac) != link.mac:
        raise _unwell(f"{item.name} {where}", f"MAC {item.mac}", found)
    if item.mtu and item.mtu != link.mtu:
        raise _unwell(f"{item.name} {where}", f"MTU {item.mtu}", str(link.mtu))


def _check_addresses(pod: Namespace, link: Link, ips: list[IPConfig]) -> None:
    found = [(a.packed, a.prefix) for a in pod.addresses(link.index)]
    for ip in ips:
        if (ip.packed, ip.prefix) not in found:
            there = ", ".join(addr.unpack_cidr(*a) for a in found) or "none"
            raise _unwell(f"{link.name} in the pod", f"address {addr.unpack_cidr(ip.packed, ip.prefix)}", there)


def _check_routes(pod: Namespace, routes: list[Route]) -> None:
    found = pod.routes() if routes else []
    for route in routes:
        same = [f for f in found if (f.dst, f.prefix) == (route.dst, route.prefix)]
        if not any(route.gateway in (None, f.gateway) for f in same):
            text = addr.unpack_cidr(route.dst, route.prefix)
            via = f" via {addr.unpack(route.gateway)}" if route.gateway else ""
            there = ", ".join(f"via {addr.unpack(f.gateway)}" if f.gateway else "without gateway" for f in same)
            raise _unwell("the pod's routes", f"{text}{via}", there or "none")


def _master(host: Namespace, link: Link) -> str:
    master = host.link(link.master) if link.master else None
    return f"it on {master.name}" if master else "it on no bridge"


def _unwell(where: str, expected: str, found: str) -> CniError:
    return CniError(INTERNAL, f"{where}: expected {expected}, found {found}", "recreate the pod")
