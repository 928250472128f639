"""vip: gives a pod the address of a load balancer that answers for it (direct server return).

The balancer hands a packet to the pod with its destination, the virtual IP, unchanged, so the pod must own that
address, and must not answer ARP for it, or it would steal the address from the balancer. So the address goes
on `lo`, and the pod's interface is told to answer only for its own. It stands in a chain after a plugin that makes
the interface:

    {"type": "vip", "addresses": ["203.0.113.10", "2001:db8::10"]}

This is the example of docs/plugin-guide.md, which goes through it line by line.
"""

from __future__ import annotations

from cni import addr
from cni.addr import AF_INET, AF_INET6
from cni.config import Reader, text, wrong
from cni.errors import INTERNAL, INVALID_CONFIG, NOT_AVAILABLE, CniError
from cni.kernel import ops
from cni.record import describe
from cni.result import Interface, IPConfig, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.types import Link
    from cni.request import Request

ARGS = None
NETNS = True

# Answer ARP only for addresses of the asked interface, and never ask with the virtual IP as the sender.
QUIET = (("arp_ignore", "1"), ("arp_announce", "2"))


class Conf:
    """`addresses`: the virtual IPs, as bytes."""

    def __init__(self, config: Reader, _request: Request) -> None:
        self.vips = [_address(path, item) for path, item in config.array("addresses")]


def add(ctx: Context, conf: Conf) -> Result:
    pod, request, result = ctx.sandbox, ctx.request, ctx.prev_result
    if result is None or pod.link(request.ifname) is None:
        found = "no prevResult" if result is None else "no such interface in the pod"
        raise CniError(INVALID_CONFIG, f"vip: expected {request.ifname} made by an earlier plugin, found {found}",
                       "put vip behind bridge in the network's `plugins`")  # fmt: skip
    attachment = describe(ctx.network, request.container_id, request.ifname, request.args.values)
    ctx.records.write(attachment, ctx.plugin_type, {"addresses": [addr.unpack(vip) for vip in conf.vips]})
    ctx.undo.push("remove the record", lambda: ctx.records.remove(request.container_id, request.ifname, ctx.plugin_type))
    for key, value in QUIET:
        _set(ctx, pod, key, value)
    lo = _lo(pod)
    for vip in conf.vips:
        pod.apply(ops.addr_add(lo.index, vip, len(vip) * 8, nodad=True))
        ctx.undo.push("remove the virtual IP", lambda vip=vip: _remove(pod, vip))  # type: ignore[misc]
    result.interfaces.append(Interface(lo.name, mtu=lo.mtu, sandbox=request.netns))
    result.ips += [IPConfig(vip, len(vip) * 8, None, len(result.interfaces) - 1) for vip in conf.vips]
    return result


def delete(ctx: Context, _conf: Conf) -> None:
    request = ctx.request
    record = ctx.records.read(request.container_id, request.ifname)
    ours = record["plugins"].get(ctx.plugin_type) if record else None
    for vip in ours["addresses"] if ours and ctx.pod else []:
        _remove(ctx.sandbox, addr.pack(vip) or b"")
    ctx.records.remove(request.container_id, request.ifname, ctx.plugin_type)


def check(ctx: Context, conf: Conf) -> None:
    pod, ifname = ctx.sandbox, ctx.request.ifname
    there = [address.packed for address in pod.addresses(_lo(pod).index)]
    for vip in conf.vips:
        if vip not in there:
            raise _unwell(f"{addr.unpack(vip)} on lo", ", ".join(map(addr.unpack, there)) or "no address")
    for key, value in QUIET:
        found = pod.conf(AF_INET, ifname, key)
        if found != value:
            raise _unwell(f"net.ipv4.conf.{ifname}.{key} = {value}", found or "no such setting")


def status(ctx: Context, conf: Conf) -> None:
    if any(len(vip) == 16 for vip in conf.vips) and ctx.host.conf(AF_INET6, "all", "forwarding") is None:
        raise CniError(NOT_AVAILABLE, "vip: expected a kernel with IPv6, found none", "remove the IPv6 `addresses`")


def gc(ctx: Context, _conf: Conf) -> None:
    for record in ctx.records.all():
        attachment = record["containerID"], record["ifname"]
        if attachment not in ctx.valid:
            ctx.records.remove(*attachment, ctx.plugin_type)


def _address(path: str, item: object) -> bytes:
    packed = addr.pack(text(path, item))
    if packed is None:
        raise wrong(path, "an IP address", item)
    return packed


def _lo(pod: Namespace) -> Link:
    lo = pod.link("lo")
    if lo is None:
        raise _unwell("an interface lo", "none")
    return lo


def _set(ctx: Context, pod: Namespace, key: str, value: str) -> None:
    ifname = ctx.request.ifname
    before = pod.conf(AF_INET, ifname, key)
    pod.set_conf(AF_INET, ifname, key, value)
    ctx.undo.push(f"set {key} back", lambda: pod.set_conf(AF_INET, ifname, key, before or "0"))


def _remove(pod: Namespace, vip: bytes) -> None:
    lo = _lo(pod)
    if vip in [address.packed for address in pod.addresses(lo.index)]:
        pod.apply(ops.addr_del(lo.index, vip, len(vip) * 8))


def _unwell(expected: str, found: str) -> CniError:
    return CniError(INTERNAL, f"vip: expected {expected} in the pod, found {found}", "recreate the pod")
