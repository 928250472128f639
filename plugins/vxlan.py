"""vxlan: pods of different nodes reach each other through an overlay, over any network that lets the nodes' UDP pass.

The node has a VXLAN device for each family of its underlay (`vxlan_device.py`). A packet for a peer's subnet is routed
into the device, the neighbour entry gives it the MAC of the peer's device, and the forwarding entry of that MAC the
peer's underlay address; nothing is asked of the network, so nothing has to be answered. With `directRouting` a peer
to which no gateway leads is reached by a plain route, as host-gw does it.

Configuration and verbs are those of every cluster network (`cluster_conf.py`, `pod_network.py`).
"""

from __future__ import annotations

from cni import addr
from plugins import pod_network
from plugins.peers import SIZES, Entries, Local, device_name, direct_hop
from plugins.pod_network import ARGS, NETNS, PATHS, Backend, Conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.result import Result
    from cni.world import Log
    from plugins.cluster_conf import ClusterConf
    from plugins.peers import Hop, Node, Subnet
    from plugins.pod_network import Site
    from plugins.vxlan_device import Wanted

__all__ = ("ARGS", "NETNS", "PATHS", "Conf", "add", "check", "delete", "entries", "gc", "prepare", "status")

# Bytes that a packet grows by on the underlay, by the underlay's address size: IP, UDP and VXLAN headers and the
# inner Ethernet header.
OVERHEAD = {4: 50, 16: 70}


def entries(own: Node, peer: Node, local: Local) -> Entries:
    """What `own` has in its kernel for `peer`."""
    found = Entries()
    for subnet in peer.subnets:
        size = len(subnet[0])
        hop = _direct_hop(peer, size, local)
        if hop is not None:
            found.routes[subnet] = hop
            continue
        carrier = _carrier(own, peer, size)
        if carrier is None or (size == 16 and local.mtu < addr.IPV6_MTU):
            found.faults.append(_fault(own, peer, subnet, local.mtu))
            continue
        if carrier not in local.devices:
            continue  # the family is away from this node, which is reported once and not for each peer
        # The gateway is the subnet's own address, which no pod ever has.
        device, gateway, mac = local.devices[carrier], subnet[0], peer.vtep_mac(carrier, local.vni)
        found.routes[subnet] = (device, gateway, True)
        found.neighbours[device, gateway] = mac
        found.fdb[device, mac] = peer.addresses[carrier]
    return found


def _direct_hop(peer: Node, size: int, local: Local) -> Hop | None:
    """The hop to a peer's subnet past the device; None when a gateway is on the way, as flannel decides it. While no route
    leads to the peer, its address tells."""
    address = peer.addresses.get(size)
    if local.direct is None or address is None or size not in local.underlays:
        return None
    return local.direct.hop(address, direct_hop(peer, size, local))


def _carrier(own: Node, peer: Node, size: int) -> int | None:
    """The underlay family that carries a subnet: its own one if both nodes have it, else one that both have. The other
    node chooses likewise, so a family that is away for a moment is not replaced."""
    for candidate in sorted(SIZES, key=size.__ne__):
        if candidate in own.addresses and candidate in peer.addresses:
            return candidate
    return None


def _fault(own: Node, peer: Node, subnet: Subnet, mtu: int) -> str:
    here, there = (", ".join(map(addr.unpack, node.addresses.values())) for node in (own, peer))
    what = f"{peer.name}: {addr.unpack_cidr(*subnet)} is unreachable"
    if len(subnet[0]) == 16 and mtu < addr.IPV6_MTU:
        return f"{what}: expected an MTU of at least {addr.IPV6_MTU} for IPv6, found {mtu}"
    expected = "an underlay address of a family that both nodes have"
    return f"{what}: expected {expected}, found {here or 'none'} here and {there} there"


def prepare(host: Namespace, site: Site, log: Log) -> Local:
    """Make sure of the devices. CniError 50 when one cannot be made or belongs to somebody else."""
    from plugins import vxlan_device

    return _local(host, site, {size: vxlan_device.ensure(host, wanted, log) for size, wanted in _devices(site).items()})


def _refuse(host: Namespace, site: Site) -> None:
    from plugins import vxlan_device

    for wanted in _devices(site).values():
        vxlan_device.refuse(host, wanted)
    if site.conf.direct:
        pod_network.refuse_underlay_down(host, site)


def _check(host: Namespace, site: Site) -> Local:
    from plugins import vxlan_device

    return _local(host, site, {size: vxlan_device.check(host, wanted) for size, wanted in _devices(site).items()})


def _local(host: Namespace, site: Site, devices: dict[int, int]) -> Local:
    direct = None
    if site.conf.direct:
        from plugins.ways import Ways

        direct = Ways(host.way)
    return Local(site.underlays, devices, vni=site.conf.vni, mtu=site.mtu, direct=direct)


def _devices(site: Site) -> dict[int, Wanted]:
    from plugins.vxlan_device import Wanted

    return {size: Wanted(site.conf, site.own, size, underlay, site.mtu) for size, underlay in site.underlays.items()}


def _device_names(conf: ClusterConf) -> list[str]:
    return [device_name(size, conf.vni) for size in SIZES]


BACKEND = Backend(OVERHEAD, entries, prepare, _refuse, _check, _device_names)


def add(ctx: Context, conf: Conf) -> Result:
    return pod_network.add(ctx, conf, BACKEND)


def delete(ctx: Context, conf: Conf) -> None:
    pod_network.delete(ctx, conf)


def check(ctx: Context, conf: Conf) -> None:
    pod_network.check(ctx, conf, BACKEND)


def status(ctx: Context, conf: Conf) -> None:
    pod_network.status(ctx, conf, BACKEND)


def gc(ctx: Context, conf: Conf) -> None:
    pod_network.gc(ctx, conf)
