"""Whose an interface in a pod's namespace is, as far as that can be known. What is not this attachment's stays.

A runtime repeats DEL until it succeeds. By then the path may lead to another pod: /proc/PID/ns/net when the process ID
is used again, or a name below /run/netns. That pod's interface has the same name, so the name alone says nothing.
"""

from __future__ import annotations

from cni import addr, names
from cni.kernel.types import IFF_LOOPBACK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.types import Link
    from cni.result import Result

    Place = tuple[object, object]


def own_link(ctx: Context, made_in: Place | None = None) -> Link | None:
    """The pod's interface CNI_IFNAME if this attachment may have made it; one that it did not make is logged.

    `made_in` is the namespace that the attachment was made in, device and inode, where a record says so.
    """
    pod, ifname = ctx.pod, ctx.request.ifname
    link = pod.link(ifname) if pod is not None else None
    if pod is None or link is None:
        return None
    reason = _why_not_ours(ctx, pod, link, made_in)
    if reason:
        ctx.log(f"leaving {link.name} in {ctx.request.netns} alone: {reason}")
        return None
    return link


def anothers_pod(ctx: Context, pod: Namespace) -> str:
    """Why a namespace is certainly another container's; empty when nothing in it says so."""
    found = ""
    for link in pod.links():
        if link.flags & IFF_LOOPBACK:  # every pod has the same
            continue
        host_end = _host_end(ctx, link)
        holder = names.holder(host_end.alias) if host_end is not None else None
        if holder and holder[0] == ctx.request.container_id:
            return ""
        if holder and host_end is not None:
            found = f"{link.name} belongs to {host_end.alias}"
        elif not found:
            found = _other_mac(ctx.prev_result, link)
    return found


def _why_not_ours(ctx: Context, pod: Namespace, link: Link, made_in: Place | None) -> str:
    host_end = _host_end(ctx, link)
    if host_end is None:
        return "it is no veth with its other end on this node, and so none of ours"
    # Compared without the network, which may have been renamed.
    holder = names.holder(host_end.alias)
    if holder:
        ours = holder == (ctx.request.container_id, ctx.request.ifname)
        return "" if ours else f"it belongs to {host_end.alias}"
    if made_in is not None and made_in != (pod.dev, pod.ino):
        return "the attachment was made in another namespace"
    return _other_mac(ctx.prev_result, link) or _other_addresses(ctx.prev_result, pod, link)


def _host_end(ctx: Context, link: Link) -> Link | None:
    """A veth's other end on the node. An index alone may be that of an unrelated link: the two must name each other."""
    if link.kind != "veth" or not link.peer:
        return None
    found = ctx.host.link(link.peer)
    return found if found is not None and found.kind == "veth" and found.peer == link.index else None


def _macs(result: Result, ifname: str) -> set[bytes]:
    """Those that prevResult has for a pod's interface, also one that a later plugin gave it."""
    texts = [one.mac for one in result.interfaces if one.sandbox and one.name == ifname]
    return {mac for mac in map(addr.pack_mac, texts) if mac}


def _other_mac(result: Result | None, link: Link) -> str:
    macs = _macs(result, link.name) if result is not None else set()
    if not macs or link.mac in macs:
        return ""
    listed = ", ".join(map(addr.unpack_mac, sorted(macs)))
    return f"prevResult has MAC {listed}, found {addr.unpack_mac(link.mac)}"


def _other_addresses(result: Result | None, pod: Namespace, link: Link) -> str:
    """The same by addresses, where prevResult has no MAC. An interface that has none contradicts nothing."""
    if result is None or _macs(result, link.name):
        return ""
    wanted = {ip.packed for ip in result.ips if not addr.is_loopback(ip.packed)}
    found = [one for one in pod.addresses(link.index) if not addr.is_link_local((one.packed, one.prefix))]
    if not wanted or not found or any(one.packed in wanted for one in found):
        return ""
    listed, there = (", ".join(map(addr.unpack, side)) for side in (sorted(wanted), [one.packed for one in found]))
    return f"prevResult has {listed}, found {there}"
