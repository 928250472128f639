"""A pod on a Linux bridge of the node, as `bridge` has it and a cluster network with `attachment: "bridged"`."""

from __future__ import annotations

from errno import ETIMEDOUT, EXFULL

from cni.addr import family
from cni.errors import INTERNAL, CniError, KernelError
from cni.kernel import ops
from cni.kernel.types import OPER_UP
from plugins import attachment, masquerade, node_bridge, veth
from plugins.settings import enable_forwarding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel.types import Link
    from cni.result import Result
    from plugins.bridge_conf import Conf

    Subnet = tuple[bytes, int]

# Seconds an ADD waits for the bridge port to forward; it takes about 0.1 ms.
PORT_TIMEOUT = 1.0


def add(ctx: Context, conf: Conf, kept: tuple[Subnet, ...] = ()) -> Result:
    """The whole of ADD, once the configuration is known to be sound.

    Gateway addresses in the networks `kept` may stay on the bridge: earlier ones of a network whose subnet has changed.
    """
    host_end = veth.free_host_end(ctx)
    found = node_bridge.find(ctx.host, conf.bridge, vlan=conf.vlan_option)
    ipam = ctx.ipam if conf.layer3 else None  # a missing executable is found out before the first effect
    lease = attachment.lease(ctx, conf, ipam)
    if found is not None and conf.is_gateway and not conf.vlan:
        node_bridge.refuse_narrow(found, [ip.gateway for ip in lease.ips if ip.gateway])
    bridge = node_bridge.ensure(
        ctx.host, found, conf.bridge, conf.mtu, promisc=conf.promisc, vlan_filtering=bool(conf.vlan_option)
    )
    pair = veth.Pair(ctx, host_end, conf.mac or attachment.default_mac(lease), conf.mtu)
    attachment.record(ctx, conf, pair, lease)
    gateway_link = _set_gateways(ctx, conf, bridge, lease, kept)
    node_bridge.keep_ipv6(ctx.host, bridge, conf.mtu, ctx.log)
    host_link, pod_link = _attach(ctx, conf, pair, bridge)
    if not conf.disable_container_interface:
        _bring_up(ctx, conf, host_link, pod_link, gateway_link or bridge, lease)
        _wait_until_reachable(ctx, pod_link, gateway_link, lease)
    if conf.ip_masq and lease.ips:
        masquerade.add(ctx, conf.backend, attachment.subnets(lease))
    elif lease.ips:
        masquerade.remove_former(ctx, attachment.subnets(lease))
    bridge = node_bridge.after_joining(ctx.host, bridge, host_link)
    others = (gateway_link,) if gateway_link and conf.vlan else ()
    return attachment.result(ctx, conf, [bridge, host_link], pod_link, lease, others)


def _set_gateways(ctx: Context, conf: Conf, bridge: Link, lease: Result, kept: tuple[Subnet, ...]) -> Link | None:
    """Put the gateway addresses on the bridge, or with `vlan` on an interface of its own; which one is returned."""
    if not conf.is_gateway or not lease.ips:
        return None
    link = bridge
    if conf.vlan:
        from plugins import bridge_vlan

        link = bridge_vlan.ensure_gateway_interface(ctx, conf, bridge)
    gateways = [(ip.gateway, ip.prefix) for ip in lease.ips if ip.gateway]
    for gateway in gateways:
        node_bridge.set_gateway(ctx.host, link, gateway, gateways, kept, force=conf.force_address)
    for configured in sorted({family(packed) for packed, _ in gateways}):
        enable_forwarding(ctx, configured)
    return link


def _attach(ctx: Context, conf: Conf, pair: veth.Pair, bridge: Link) -> tuple[Link, Link]:
    """Make the pair; returns its host's and its pod's end."""
    port = []
    if conf.hairpin or conf.isolated:
        port.append(ops.port_set(pair.host_name, hairpin=conf.hairpin, isolated=conf.isolated))
    try:
        veth.create(ctx, pair, bridge.index, *port)
    except KernelError as error:
        if error.errno != EXFULL:
            raise
        raise node_bridge.no_port(bridge, f" ({error.msg})") from None
    if conf.vlan_option:
        from plugins import bridge_vlan

        bridge_vlan.set_port(ctx, conf, pair.host_name, conf.vlans)
    if conf.mac_spoof_check:
        from plugins import macspoof

        request = ctx.request
        ctx.undo.push("macspoofchk", lambda: macspoof.remove(ctx.host, request.container_id, request.ifname))
        macspoof.add(ctx.host, request.container_id, request.ifname, pair.host_name, pair.mac)
    host_link = ctx.host.link(pair.host_name)
    if host_link is None:
        raise CniError(INTERNAL, f"expected {pair.host_name} after making it, found it gone", "try again")
    return host_link, veth.pod_end(pair, host_link)


def _bring_up(ctx: Context, conf: Conf, host_link: Link, pod_link: Link, near: Link, lease: Result) -> None:
    """Set the pod's end up and return when packets pass: a port that does not forward yet lost the first
    packet of one pod in ten. `near` is the node's own interface in the pod's network, as it was before."""
    pod = ctx.sandbox
    if lease.ips:
        veth.configure(pod, pod_link, lease.ips, lease.routes, duplicate_detection=conf.duplicate_detection)
    else:
        pod.apply(ops.link_set(pod_link.index, up=True))
    try:
        ctx.host.wait_port(host_link.index, PORT_TIMEOUT)
        if near.operstate != OPER_UP:
            # It gets its carrier from its first port, a moment after it; what the node sends before is dropped.
            ctx.host.wait_port(near.index, PORT_TIMEOUT)
    except KernelError as error:
        found = ctx.host.link(host_link.index)
        if error.errno != ETIMEDOUT or found is None or found.operstate != OPER_UP:
            raise
        # Up, but not forwarding: a bridge with spanning tree takes 30 s, which no pod start waits for.
        ctx.log(f"{host_link.name} is up but packets do not pass yet: {error.msg}")


def _wait_until_reachable(ctx: Context, pod_link: Link, gateway_link: Link | None, lease: Result) -> None:
    """Return when pod and gateway answer at their addresses, and announce the pod's on the segment."""
    if not lease.ips:
        return
    veth.wait_usable(ctx.sandbox, pod_link, [ip.packed for ip in lease.ips])
    if gateway_link is not None:
        veth.wait_usable(ctx.host, gateway_link, [ip.gateway for ip in lease.ips if ip.gateway])
    veth.announce(ctx.sandbox, pod_link)
