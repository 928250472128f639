"""A pod with a link of its own and a route to it, as the Go plugin ptp has it.

Nothing is shared between pods but the node's routing table: the host's end of each pair has the gateway's address, and
a route for the pod's address leads to it; in the pod everything goes through the gateway. So traffic between two pods
of one node is forwarded, and passes the hooks at which policy and services sit.
"""

from __future__ import annotations

from errno import EEXIST

from cni.addr import family, unpack
from cni.errors import INTERNAL, TRY_AGAIN, CniError
from cni.kernel import ops
from cni.names import OWNER
from plugins import attachment, veth
from plugins.settings import enable_forwarding, enable_ipv6, set_known

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.ops import Op
    from cni.kernel.types import Link
    from cni.result import Result
    from plugins.bridge_conf import Conf

PROTOCOL = 3  # of the routes to pods: RTPROT_BOOT, as those made by hand

# Seconds an ADD waits until the host's end can send; it takes less than 0.1 ms.
LINK_TIMEOUT = 1.0


def add(ctx: Context, conf: Conf) -> Result:
    """The whole of ADD, once the configuration is known to be sound."""
    host_end = veth.free_host_end(ctx)
    lease = attachment.lease(ctx, conf, ctx.ipam)
    pair = veth.Pair(ctx, host_end, conf.mac or attachment.default_mac(lease), conf.mtu)
    attachment.record(ctx, conf, pair, lease)
    for configured in sorted({family(ip.packed) for ip in lease.ips}):
        enable_forwarding(ctx, configured)
    veth.create(ctx, pair, 0)
    host_link = ctx.host.link(pair.host_name)
    if host_link is None:
        raise CniError(INTERNAL, f"expected {pair.host_name} after making it, found it gone", "try again")
    pod_link = veth.pod_end(pair, host_link)
    lead(ctx.host, host_link, [ip.packed for ip in lease.ips], attachment.gateways_of(lease))
    veth.configure(
        ctx.sandbox, pod_link, lease.ips, lease.routes, duplicate_detection=conf.duplicate_detection, routed=True
    )
    ctx.host.wait_port(host_link.index, LINK_TIMEOUT)
    veth.wait_usable(ctx.sandbox, pod_link, [ip.packed for ip in lease.ips])
    veth.wait_usable(ctx.host, host_link, [ip.gateway for ip in lease.ips if ip.gateway])
    return attachment.result(ctx, conf, [host_link], pod_link, lease)


def lead(host: Namespace, link: Link, pods: list[bytes], gateways: list[bytes]) -> None:
    """Give the host's end the gateways' addresses, and lead the pod's addresses to it; what is there stays."""
    if any(len(packed) == 16 for packed in pods):
        enable_ipv6(host, link.name)
        set_known(host, link.name, "accept_dad", "0")
        veth.add_link_local(host, link)
    changes: list[Op] = [ops.addr_add(link.index, one, len(one) * 8, nodad=True) for one in gateways]
    changes += [_route(link, one, exclusive=True) for one in pods]
    for op, error in host.attempt(changes):
        if error.errno != EEXIST or op.verb not in ("addr_add", "route_replace"):
            raise error
        if op.verb == "route_replace":
            _refuse_anothers(host, op.args["dst"])
            host.apply(_route(link, op.args["dst"], exclusive=False))


def _route(link: Link, packed: bytes, *, exclusive: bool) -> Op:
    full = len(packed) * 8
    return ops.route_replace(packed, full, index=link.index, scope=veth.SCOPE_LINK, exclusive=exclusive)


def _refuse_anothers(host: Namespace, packed: bytes) -> None:
    """CniError 11 when the node leads an address to a link that is not ours: the pod of another program (the Go ptp). A
    route over a link of ours was left by an earlier holder of the address, whose link is about to go."""
    for route in host.routes():
        link = host.link(route.oif) if (route.dst, route.prefix) == (packed, len(packed) * 8) and route.oif else None
        if link is not None and not link.alias.startswith(OWNER):
            what = f"address {unpack(packed)}: expected no route to it on this node, found one over {link.name}"
            remedy = "try again for another address; `ip route get` and the link's other end show whose it is"
            raise CniError(TRY_AGAIN, what, remedy)
