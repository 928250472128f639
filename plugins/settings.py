"""Settings of the node (sysctl) that the traffic of pods needs: forwarding above all."""

from __future__ import annotations

from errno import ENOENT, EROFS

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
    if host.conf(family, "all", "forwarding") == "1":
        return
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
    """Write an IPv6 setting of a link, where it is there and may be written: a kernel without IPv6 has none,
    and the /proc/sys of a container may be read-only."""
    try:
        host.set_conf(AF_INET6, name, key, value)
    except KernelError as error:
        if error.errno not in (ENOENT, EROFS):
            raise


def _refuse_family(host: Namespace, family: int) -> None:
    """The same for one family."""
    if host.conf(family, "all", "forwarding") == "1":
        return
    # What is there is written again. Not IPv6's forwarding: that would set every link's, whatever it was.
    key = "accept_ra" if family == AF_INET6 else "forwarding"
    host.set_conf(family, "all", key, host.conf(family, "all", key) or "0")


def _uplinks_from_advertisements(host: Namespace) -> list[str]:
    found = []
    for route in host.routes():
        if route.prefix == 0 and len(route.dst) == 16 and route.protocol == RTPROT_RA:
            link = host.link(route.oif)
            if link is not None and host.conf(AF_INET6, link.name, "accept_ra") == "1":
                found.append(link.name)
    return found
