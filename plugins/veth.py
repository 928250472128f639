"""A pod's veth pair: made, given its addresses and routes, found again and removed. Shared by every plugin
that connects a pod with one.

The host's end has a name and MAC derived from the attachment (`names.host_end`): a link with both is ours.
"""

from __future__ import annotations

import posix
from errno import EACCES, EEXIST, EINVAL, EOPNOTSUPP

from cni import addr, names
from cni.addr import AF_INET, AF_INET6
from cni.errors import INTERNAL, CniError, KernelError
from cni.kernel import ops
from cni.kernel.types import Link
from plugins.settings import enable_ipv6, set_known

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.ops import Op
    from cni.result import IPConfig, Route

    Subnet = tuple[bytes, int]

# What the MAC of a pod with an IPv4 address begins with, and no other's.
IPV4_MAC = b"\x0a\x58"

# How many names are tried for the host's end; each is 44 bits of hash.
ATTEMPTS = 4

# Seconds for an earlier attachment to vanish that nobody deletes: the kernel takes a removed namespace apart
# in the background, most often within 0.1 s.
GONE_TIMEOUT = 1.0

# Seconds until an address must answer. Without duplicate detection it takes less than a millisecond, with it
# (`enabledad`) 1 to 2 s by the kernel's defaults.
ADDRESS_TIMEOUT = 10.0

LO = "lo"
SCOPE_LINK = 253  # RT_SCOPE_LINK: no gateway is asked
LINK_LOCAL = b"\xfe\x80"


class Pair:
    """What a pair will be, decided before the first effect so that the record can list it."""

    __slots__ = ("alias", "host_mac", "host_name", "ifname", "mac", "mtu")

    def __init__(self, ctx: Context, host_end: tuple[str, bytes], mac: bytes | None, mtu: int) -> None:
        """`host_end` is `free_host_end`'s. `mac` is the pod's (None: random, made here so that it is known beforehand);
        MTU 0 is the kernel's."""
        request = ctx.request
        self.ifname = request.ifname
        self.mac = mac or random_mac()
        self.mtu = mtu
        self.alias = names.owner(ctx.network, request.container_id, request.ifname)
        self.host_name, self.host_mac = host_end


def random_mac() -> bytes:
    """Six random bytes as a MAC."""
    return names.local_mac(posix.urandom(6))


def mac_of_address(packed: bytes) -> bytes:
    """0a:58 and an IPv4 address; of an IPv6 address a hash that never begins so (adr/022).

    The same address always has the same MAC, so neighbour entries of a former holder are right for the next one.
    """
    if len(packed) == 4:
        return IPV4_MAC + packed
    found = names.digest(packed.hex())
    while (mac := names.local_mac(found)).startswith(IPV4_MAC):
        found = found[1:]
    return mac


def free_host_end(ctx: Context) -> tuple[str, bytes]:
    """Name and MAC for the host's end of a new attachment. CniError when it has one, or the pod such an interface.

    An earlier one whose namespace was just removed goes by itself and is waited for. Asked before IPAM: a failure after it
    gives the lease back, and that of an ADD that comes twice is the running pod's.
    """
    _refuse_taken_name(ctx)
    request = ctx.request
    for attempt in range(ATTEMPTS):
        name, mac = names.host_end(ctx.network, request.container_id, request.ifname, attempt)
        found = ctx.host.link(name)
        if found is None:
            return name, mac
        if found.mac == mac:
            if ctx.host.wait_gone(found.index, GONE_TIMEOUT):
                return name, mac
            raise CniError(
                INTERNAL,
                f"container {request.container_id} is attached as {request.ifname} already, in another namespace or under "
                f"another name: expected no {name} on the node, found it",
                "DEL the earlier attachment first",
            )
    raise CniError(INTERNAL, f"failed to find a unique veth name: {ATTEMPTS} candidates are taken", "")


def _refuse_taken_name(ctx: Context) -> None:
    ifname = ctx.request.ifname
    if ctx.sandbox.link(ifname) is not None:
        raise CniError(
            INTERNAL,
            f"container veth name ({ifname!r}) already exists in {ctx.request.netns}: expected a free CNI_IFNAME",
            "DEL the earlier attachment first, or choose another CNI_IFNAME",
        )


def create(ctx: Context, pair: Pair, master: int, *port: Op) -> None:
    """Make the pair with the host's end up and on bridge `master` (0 for none), and apply `port`, operations
    on the host's end that go in the same send. Pushes its undo."""
    ctx.undo.push(f"delete {pair.host_name}", lambda: remove_host_end(ctx.host, pair.host_name, pair.host_mac))
    ctx.host.apply(
        ops.veth_add(pair.host_name, pair.host_mac, pair.ifname, pair.mac, ctx.sandbox, pair.mtu, master),
        ops.link_set(pair.host_name, alias=pair.alias),
        *port,
    )


def pod_end(pair: Pair, host_link: Link) -> Link:
    """The pod's end as it was just made: the other end has its index, and the rest is known."""
    link = Link(host_link.peer, pair.ifname)
    link.kind, link.mac, link.mtu = host_link.kind, pair.mac, host_link.mtu
    return link


def configure(
    pod: Namespace,
    link: Link,
    ips: list[IPConfig],
    routes: list[Route],
    *,
    duplicate_detection: bool,
    routed: bool = False,
) -> None:
    """Give the pod's end its addresses and routes and set it up; with detection, wait for its verdict.

    `routed`: nobody but the gateway is on the link, so the pod's subnet lies behind the gateway too.
    """
    families = {addr.family(ip.packed) for ip in ips}
    _prepare(pod, link.name, families, duplicate_detection=duplicate_detection)
    first: list[Op] = [
        ops.addr_add(link.index, ip.packed, ip.prefix, nodad=not duplicate_detection, noprefixroute=routed)
        for ip in ips
    ]
    # arp_notify this way and not through /proc/sys, which the kernel would first have to build for a new namespace.
    first.append(ops.link_set(link.index, up=True, arp_notify=True if AF_INET in families else None))
    then = (_gateway_routes(link.index, ips) if routed else []) + _routes(link.index, ips, routes)
    if duplicate_detection:
        pod.apply(*first)
        wait_usable(pod, link, [ip.packed for ip in ips])
        pod.apply(*then)
    else:
        pod.apply(*first, *then)


def wait_usable(namespace: Namespace, link: Link, addresses: list[bytes]) -> None:
    """Return when a link answers at its new addresses. An IPv4 address does at once."""
    new = [packed for packed in addresses if addr.family(packed) == AF_INET6]
    if new:
        namespace.wait_addresses(link.index, new, ADDRESS_TIMEOUT)


def announce(pod: Namespace, link: Link) -> None:
    """Tell the segment where the pod's addresses are now: gratuitous ARP and unsolicited neighbour advertisement.

    The kernel sends both when the MAC is set (also to what it was), given arp_notify and ndisc_notify. A
    packet socket of our own would cost a grace period when it is closed.
    """
    pod.apply(ops.link_set(link.index, mac=link.mac))


def add_link_local(host: Namespace, link: Link) -> None:
    """Give a link of the node the link-local address of its MAC (RFC 4291, appendix A).

    The kernel would add it when the link gets its carrier, and hold it tentative for 1 to 2 s in which the node cannot
    look for a pod to which it forwards. Nothing needs it: where IPv6 is off, or the link too narrow for it, there is none.
    """
    if link.mtu < addr.IPV6_MTU:
        return
    mac = link.mac
    packed = LINK_LOCAL + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    try:
        host.apply(ops.addr_add(link.index, packed, 64, nodad=True))
    except KernelError as error:
        # IPv6 is off here, it is there already, or the MTU has just fallen.
        if error.errno not in (EACCES, EEXIST, EOPNOTSUPP, EINVAL):
            raise


def remove_host_end(host: Namespace, name: str, mac: bytes) -> Link | None:
    """Delete the host's end if the link of that name is ours; the link as it was, None when it was not there."""
    link = host.link(name)
    if link is None or link.mac != mac:
        return None
    host.delete_link(link.index, link.kind)
    return link


def remove_unrecorded(ctx: Context, inside: Link | None) -> None:
    """Delete the pair of an attachment without a record: ours by its derived name, else `inside`, its interface in the
    pod (the reference made it)."""
    request = ctx.request
    for attempt in range(ATTEMPTS):
        name, mac = names.host_end(ctx.network, request.container_id, request.ifname, attempt)
        if remove_host_end(ctx.host, name, mac):
            return
    remove_pod_end(ctx, inside)


def remove_pod_end(ctx: Context, inside: Link | None) -> None:
    """Delete the attachment's interface in the pod (`ownership.own_link`), if there is one."""
    if inside is not None and ctx.pod is not None:
        ctx.pod.delete_link(inside.index, inside.kind)


def pod_addresses(ctx: Context, inside: Link) -> list[Subnet]:
    """The global addresses that this interface has in the pod now."""
    found = ctx.pod.addresses(inside.index) if ctx.pod is not None else []
    return [(a.packed, a.prefix) for a in found if not a.packed.startswith(LINK_LOCAL)]


def _prepare(pod: Namespace, ifname: str, families: set[int], *, duplicate_detection: bool) -> None:
    if AF_INET6 not in families:
        return
    for name in (LO, ifname):
        enable_ipv6(pod, name)
    # accept_dad also covers the link-local address, which no IFA_F_NODAD of ours reaches.
    pod.set_conf(AF_INET6, ifname, "accept_dad", "1" if duplicate_detection else "0")
    if duplicate_detection:
        set_known(pod, ifname, "enhanced_dad", "1")
    set_known(pod, ifname, "keep_addr_on_down", "1")
    set_known(pod, ifname, "ndisc_notify", "1")


def _gateway_routes(index: int, ips: list[IPConfig]) -> list[Op]:
    """To each gateway straight, and to the rest of its subnet through it; once where two addresses share them."""
    links = {ip.gateway for ip in ips if ip.gateway}
    subnets = {(addr.network(ip.packed, ip.prefix), ip.prefix): ip.gateway for ip in ips if ip.gateway}
    straight = [ops.route_add(index, gateway, len(gateway) * 8, None, scope=SCOPE_LINK) for gateway in sorted(links)]
    return straight + [ops.route_add(index, *subnet, gateway) for subnet, gateway in subnets.items()]


def _routes(index: int, ips: list[IPConfig], routes: list[Route]) -> list[Op]:
    """A route without a gateway takes the first one of its family, as the reference does."""
    gateways: dict[int, bytes] = {}
    for ip in ips:
        if ip.gateway:
            gateways.setdefault(len(ip.gateway), ip.gateway)
    return [
        ops.route_add(
            index, route.dst, route.prefix, route.gateway or gateways.get(len(route.dst)),
            metric=route.priority, table=route.table or 0, scope=route.scope or 0, mtu=route.mtu, advmss=route.advmss,
        )
        for route in routes
    ]  # fmt: skip
