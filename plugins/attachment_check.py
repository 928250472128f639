"""CHECK of a pod's veth pair: what prevResult promises, compared with the kernel.

A later plugin of the chain may have changed things on ADD; it then changed the result too, and routes may
have moved to another table. What is compared is what keeps the pod reachable.
"""

from __future__ import annotations

from cni import addr
from cni.claims import Claims, shown
from cni.errors import INTERNAL, INVALID_CONFIG, CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.types import Link
    from cni.result import Interface, IPConfig, Result, Route


def promised(ctx: Context) -> Result:
    """prevResult, which CHECK cannot do without."""
    if ctx.prev_result is None:
        raise CniError(
            INVALID_CONFIG, "required prevResult missing", "pass ADD's result: CHECK compares the pod with it"
        )
    return ctx.prev_result


def pod_end(ctx: Context, result: Result) -> tuple[int, Link]:
    """The pod's interface: its place in the result, and the link."""
    index, expected = _pod_interface(ctx, result)
    return index, _link(ctx.sandbox, expected, "in the pod")


def pod_ips(ctx: Context, result: Result) -> list[IPConfig]:
    """The addresses that prevResult promises on the pod's interface; other plugins of the chain have their own."""
    index, _ = _pod_interface(ctx, result)
    return _ips_of(index, result)


def host_end(ctx: Context, result: Result, pod_link: Link) -> Link:
    """The interface on the host whose peer is the pod's, as prevResult promises it, and up."""
    for item in result.interfaces:
        if item.sandbox:
            continue
        link = ctx.host.link(item.name)
        if link is None:
            raise unwell(f"{item.name} on the node", "a link", "none")
        if link.kind != "veth" or link.index != pod_link.peer:
            continue  # not made for this pod: the interface of a VLAN, or a later plugin's
        _compare(item, link, "on the node")
        if not link.up:
            raise unwell(f"{item.name} on the node", "it up", "it down")
        return link
    raise unwell(f"{pod_link.name} in the pod", "its peer among prevResult's interfaces", "no such veth on the node")


def addressed(pod: Namespace, link: Link, index: int, result: Result) -> list[IPConfig]:
    """The addresses of the pod's end, once it is known to be up and to have them and its routes."""
    if not link.up:
        raise unwell(f"{link.name} in the pod", "it up", "it down")
    ips = _ips_of(index, result)
    _check_addresses(pod, link, ips)
    _check_routes(pod, result.routes)
    return ips


def has_route(pod: Namespace, link: Link, dst: bytes, prefix: int) -> None:
    """CniError 999 when no route of the pod leads to a network over its link. A later plugin may have moved it to another
    table."""
    if not any((route.dst, route.prefix, route.oif) == (dst, prefix, link.index) for route in pod.routes()):
        raise unwell("the pod's routes", f"{addr.unpack_cidr(dst, prefix)} dev {link.name}", "none")


def has_address(host: Namespace, link: Link, packed: bytes) -> None:
    """CniError 999 when a link of the node lacks a gateway's address."""
    addresses = [one.packed for one in host.addresses(link.index)]
    if packed not in addresses:
        there = ", ".join(map(addr.unpack, addresses)) or "none"
        raise unwell(f"{link.name} on the node", f"the gateway's address {addr.unpack(packed)}", there)


def alone(ctx: Context, ips: list[IPConfig]) -> None:
    """CniError 999 when the node routes an address of the pod to a pod of another network."""
    claims = Claims(ctx)
    for text in [addr.unpack(ip.packed) for ip in ips]:
        holder = claims.other(text)
        if holder:
            raise unwell(f"address {text} on the node", "this pod alone to have it", f"{shown(holder)} with it too")


def _ips_of(index: int, result: Result) -> list[IPConfig]:
    return [ip for ip in result.ips if ip.interface in (None, index)]


def _pod_interface(ctx: Context, result: Result) -> tuple[int, Interface]:
    request = ctx.request
    named = [(i, item) for i, item in enumerate(result.interfaces) if item.name == request.ifname and item.sandbox]
    if not named:
        raise unwell("prevResult", f"interface {request.ifname} with its sandbox", "none")
    for index, item in named:
        if item.sandbox == request.netns:
            return index, item
    raise CniError(
        INTERNAL, f"Sandbox in prevResult {named[0][1].sandbox} doesn't match configured netns: {request.netns}",
        "pass the CNI_NETNS of ADD",
    )  # fmt: skip


def _link(namespace: Namespace, item: Interface, where: str) -> Link:
    link = namespace.link(item.name)
    if link is None:
        raise unwell(f"{item.name} {where}", "a link", "none")
    if link.kind != "veth":
        raise unwell(f"{item.name} {where}", "a veth", link.kind or "a physical or loopback interface")
    _compare(item, link, where)
    return link


def _compare(item: Interface, link: Link, where: str) -> None:
    found = addr.unpack_mac(link.mac)
    if item.mac and addr.pack_mac(item.mac) != link.mac:
        raise unwell(f"{item.name} {where}", f"MAC {item.mac}", found)
    if item.mtu and item.mtu != link.mtu:
        raise unwell(f"{item.name} {where}", f"MTU {item.mtu}", str(link.mtu))


def _check_addresses(pod: Namespace, link: Link, ips: list[IPConfig]) -> None:
    found = [(a.packed, a.prefix) for a in pod.addresses(link.index)]
    for ip in ips:
        if (ip.packed, ip.prefix) not in found:
            there = ", ".join(addr.unpack_cidr(*a) for a in found) or "none"
            raise unwell(f"{link.name} in the pod", f"address {addr.unpack_cidr(ip.packed, ip.prefix)}", there)


def _check_routes(pod: Namespace, routes: list[Route]) -> None:
    found = pod.routes() if routes else []
    for route in routes:
        # The kernel clears the host bits of an IPv6 destination.
        dst = addr.network(route.dst, route.prefix)
        same = [f for f in found if (f.dst, f.prefix) == (dst, route.prefix)]
        if not any(route.gateway in (None, f.gateway) for f in same):
            text = addr.unpack_cidr(route.dst, route.prefix)
            via = f" via {addr.unpack(route.gateway)}" if route.gateway else ""
            there = ", ".join(f"via {addr.unpack(f.gateway)}" if f.gateway else "without gateway" for f in same)
            raise unwell("the pod's routes", f"{text}{via}", there or "none")


def unwell(where: str, expected: str, found: str) -> CniError:
    return CniError(INTERNAL, f"{where}: expected {expected}, found {found}", "recreate the pod")
