"""vip: gives a pod the address of a load balancer that answers for it (direct server return).

The balancer passes a packet on with its destination, the virtual IP, unchanged. So the pod must own that address
and must not speak ARP for it, or it would take the address from the balancer: the address goes on `lo`, and the
pod's interface is set to keep quiet about it. It stands in a chain behind the plugin that makes
the interface:

    {"type": "vip", "addresses": ["203.0.113.10", "2001:db8::10"]}

This is the example of docs/plugin-guide.md, which explains it.
"""

from __future__ import annotations

from cni import addr
from cni.config import Reader, text, wrong
from cni.errors import INTERNAL, INVALID_CONFIG, NOT_AVAILABLE, CniError
from cni.kernel import ops
from cni.record import describe
from cni.request import CLEANING
from cni.result import Interface, IPConfig, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.request import Request

ARGS = None
NETNS = True
PATHS = ()

LO = 1  # the index of `lo` in every namespace

# Answer ARP only for what the asked interface has, and do not ask in the virtual IP's name.
QUIET = {"arp_ignore": "1", "arp_announce": "2"}


class Conf:
    """`vips` are the virtual IPs as bytes, 4 or 16 of them; none in DEL and GC, which work from records."""

    programs = ()

    def __init__(self, config: Reader, request: Request) -> None:
        given = [] if request.command in CLEANING else config.array("addresses")
        self.vips = [_address(path, item) for path, item in given]


def add(ctx: Context, conf: Conf) -> Result:
    pod, ifname, result = ctx.sandbox, ctx.request.ifname, ctx.prev_result
    if result is None or pod.link(ifname) is None:
        raise CniError(INVALID_CONFIG, f"vip: expected an earlier plugin to have made {ifname}, found none",
                       "put vip behind bridge in the network's `plugins`")  # fmt: skip
    common = describe(ctx.network, ctx.request.container_id, ifname, ctx.request.args.values)
    ctx.records.write(common, ctx.plugin_type, {"vips": [addr.unpack(vip) for vip in conf.vips]})
    ctx.undo.push("remove the record", lambda: _forget(ctx, ctx.request.container_id, ifname))
    for key, value in QUIET.items():
        _set(ctx, pod, key, value)
    for vip in conf.vips:
        pod.apply(ops.addr_add(LO, vip, len(vip) * 8, nodad=True))
        ctx.undo.push("remove the virtual IP", lambda vip=vip: _remove(pod, vip))  # type: ignore[misc]
    result.interfaces.append(Interface("lo", sandbox=ctx.request.netns))
    result.ips += [IPConfig(vip, len(vip) * 8, None, len(result.interfaces) - 1) for vip in conf.vips]
    return result


def delete(ctx: Context, _conf: Conf) -> None:
    record = ctx.records.read(ctx.request.container_id, ctx.request.ifname)
    ours = record["plugins"].get(ctx.plugin_type) if record else None
    if ours and ctx.pod is not None:
        for vip in ours["vips"]:
            _remove(ctx.pod, addr.pack(vip) or b"")
    _forget(ctx, ctx.request.container_id, ctx.request.ifname)


def check(ctx: Context, conf: Conf) -> None:
    there = [address.packed for address in ctx.sandbox.addresses(LO)]
    for vip in conf.vips:
        if vip not in there:
            _unwell(f"{addr.unpack(vip)} on lo", ", ".join(map(addr.unpack, there)) or "no address")
    for key, value in QUIET.items():
        found = ctx.sandbox.conf(addr.AF_INET, ctx.request.ifname, key)
        if found != value:
            _unwell(f"{key} of {ctx.request.ifname} to be {value}", str(found))


def status(ctx: Context, conf: Conf) -> None:
    if ctx.host.conf(addr.AF_INET6, "all", "forwarding") is None and any(len(vip) == 16 for vip in conf.vips):
        raise CniError(NOT_AVAILABLE, "vip: expected a kernel with IPv6, found one without", "remove IPv6 addresses")


def gc(ctx: Context, _conf: Conf) -> None:
    for record in ctx.records.all():
        if (record["containerID"], record["ifname"]) not in ctx.valid:
            _forget(ctx, record["containerID"], record["ifname"])


def _address(path: str, item: object) -> bytes:
    packed = addr.pack(text(path, item))
    if packed is None:
        raise wrong(path, "an IP address", item)
    return packed


def _set(ctx: Context, pod: Namespace, key: str, value: str) -> None:
    ifname = ctx.request.ifname
    before = pod.conf(addr.AF_INET, ifname, key) or "0"
    pod.set_conf(addr.AF_INET, ifname, key, value)
    ctx.undo.push(f"set {key} back", lambda: pod.set_conf(addr.AF_INET, ifname, key, before))


def _remove(pod: Namespace, vip: bytes) -> None:
    if vip in [address.packed for address in pod.addresses(LO)]:
        pod.apply(ops.addr_del(LO, vip, len(vip) * 8))


def _forget(ctx: Context, container_id: str, ifname: str) -> None:
    ctx.records.remove(container_id, ifname, ctx.plugin_type)


def _unwell(expected: str, found: str) -> None:
    raise CniError(INTERNAL, f"vip: expected {expected} in the pod, found {found}", "recreate the pod")
