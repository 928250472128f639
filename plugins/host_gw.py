"""host-gw: pods of different nodes reach each other by plain routes over the network that the nodes share.

Nothing is encapsulated, so every node has to be on the others' link. Configuration and verbs are those of every
cluster network (`cluster_conf.py`, `pod_network.py`); this file says what is this backend's own.
"""

from __future__ import annotations

from cni import addr
from plugins import pod_network
from plugins.peers import ADDRESS_KEYS, Entries, Local, direct_hop
from plugins.pod_network import ARGS, NETNS, PATHS, Backend, Conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.result import Result
    from plugins.cluster_conf import ClusterConf
    from plugins.peers import Node, Subnet
    from plugins.pod_network import Site

__all__ = ("ARGS", "NETNS", "PATHS", "Conf", "add", "check", "delete", "entries", "gc", "prepare", "status")

OVERHEAD = {4: 0, 16: 0}  # bytes that a packet grows by on the underlay, by the underlay's address size


def entries(own: Node, peer: Node, local: Local) -> Entries:
    """What `own` has in its kernel for `peer`: a route for each subnet through the peer's address of its family."""
    found = Entries()
    for subnet in peer.subnets:
        size = len(subnet[0])
        if size in own.addresses and size not in local.underlays:
            continue  # the family is away from this node, which is reported once and not for each peer
        hop = direct_hop(peer, size, local)
        if hop is None:
            found.faults.append(_fault(peer, subnet, local))
        else:
            found.routes[subnet] = hop
    return found


def _fault(peer: Node, subnet: Subnet, local: Local) -> str:
    size = len(subnet[0])
    what = f"{peer.name}: {addr.unpack_cidr(*subnet)} is unreachable"
    underlay, address = local.underlays.get(size), peer.addresses.get(size)
    if address is None:
        return f"{what}: host-gw needs the peer's {ADDRESS_KEYS[size]}, found none"
    if underlay is None:
        return f"{what}: expected an underlay link with an IPv{4 if size == 4 else 6} address here, found none"
    networks = ", ".join(addr.unpack_cidr(*network) for network in underlay.networks)
    found = addr.unpack(address)
    return f"{what}: expected its address on {underlay.name} ({networks}), found {found}; vxlan can cross routers"


def prepare(host: Namespace, site: Site, log: object) -> Local:
    """What `entries` needs; there is nothing to make."""
    del host, log
    return Local(site.underlays)


def _refuse(host: Namespace, site: Site) -> None:
    """There is no device that could not be made, but there are routes."""
    pod_network.refuse_underlay_down(host, site)


def _check(host: Namespace, site: Site) -> Local:
    del host
    return Local(site.underlays)


def _no_devices(conf: ClusterConf) -> list[str]:
    del conf
    return []


BACKEND = Backend(OVERHEAD, entries, prepare, refuse=_refuse, check=_check, devices=_no_devices)


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
