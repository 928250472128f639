"""Settings of the node (sysctl) that the traffic of pods needs: forwarding above all."""

from __future__ import annotations

from errno import EACCES, ENOENT, EPERM, EROFS

from cni.addr import AF_INET, AF_INET6
from cni.errors import INTERNAL, CniError, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni.context import Context
    from cni.kernel import Namespace

RTPROT_RA = 9  # a route from a router advertisement


def enable_forwarding(ctx: Context, family: int) -> None:
    """Switch forwarding on for a family; warn when that cuts an uplink off from router advertisements."""
    host = ctx.host
    found = host.conf(family, "all", "forwarding")
    if found == "1":
        return
    if found is None:
        name = "IPv4" if family == AF_INET else "IPv6"
        text = f"expected a kernel with {name}, because the pod gets such an address; found one without"
        raise CniError(INTERNAL, text, f"switch {name} on for this node, or leave it out of the network's ranges")
    host.set_conf(family, "all", "forwarding", "1")
    if family == AF_INET6:
        for name in _uplinks_from_advertisements(host):
            ctx.log(
                f"IPv6 forwarding is on now: {name} has its default route from router advertisements, which the kernel "
                f"ignores from now on; set net.ipv6.conf.{name}.accept_ra=2 to keep it"
            )


def refuse_forwarding(host: Namespace) -> None:
    """KernelError when no family can be forwarded; changes nothing. IPAM decides which are used, and a kernel may lack
    IPv6."""
    families = [family for family in (AF_INET, AF_INET6) if host.conf(family, "all", "forwarding") is not None]
    faults: list[KernelError] = []
    for family in families:
        try:
            _refuse_family(host, family)
        except KernelError as error:
            faults.append(error)
    if families and len(faults) == len(families):
        raise faults[0]


def check_forwarding(host: Namespace, families: Iterable[int]) -> None:
    """CniError 999 when one of these families is not forwarded."""
    for family in families:
        found = host.conf(family, "all", "forwarding")
        if found != "1":
            name = f"net.ipv{4 if family == AF_INET else 6}.conf.all.forwarding"
            text = f"the node: expected {name} 1, found {found or 'none'}"
            raise CniError(INTERNAL, text, f"sysctl -w {name}=1; ADD of any pod sets it too")


def set_known(host: Namespace, name: str, key: str, value: str) -> None:
    """Set an IPv6 setting of a link that can be done without: a kernel without IPv6 has none, an older one not this
    one, and the /proc/sys of a container may be read-only."""
    try:
        host.set_conf(AF_INET6, name, key, value)
    except KernelError as error:
        if error.errno not in (ENOENT, EROFS, EACCES, EPERM):
            raise


def enable_ipv6(namespace: Namespace, name: str) -> None:
    """Let a link have IPv6 addresses, which the node's or the pod's defaults may forbid."""
    if namespace.conf(AF_INET6, name, "disable_ipv6") == "1":
        namespace.set_conf(AF_INET6, name, "disable_ipv6", "0")


def _refuse_family(host: Namespace, family: int) -> None:
    """The same for one family."""
    if host.conf(family, "all", "forwarding") != "1":
        host.refuse_conf(family, "all", "forwarding", "1")


def _uplinks_from_advertisements(host: Namespace) -> list[str]:
    found = []
    for route in host.routes():
        if route.prefix == 0 and len(route.dst) == 16 and route.protocol == RTPROT_RA:
            link = host.link(route.oif)
            if link is not None and host.conf(AF_INET6, link.name, "accept_ra") == "1":
                found.append(link.name)
    return found
