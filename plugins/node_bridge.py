"""The bridge on the node: shared by all pods of a network, so it is made once, checked each time, and stays."""

from __future__ import annotations

from errno import EEXIST

from cni import addr
from cni.addr import IPV6_MTU
from cni.errors import INTERNAL, INVALID_CONFIG, TRY_AGAIN, UNSUPPORTED_FIELD, CniError, KernelError
from cni.kernel import ops
from cni.kernel.types import IFF_PROMISC
from plugins.settings import enable_ipv6, set_known
from plugins.veth import LINK_LOCAL, add_link_local, random_mac

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.config import Reader
    from cni.kernel import Namespace
    from cni.kernel.types import Link
    from cni.world import Log

    Subnet = tuple[bytes, int]


MOST_PORTS = 1023  # of one bridge: BR_MAX_PORTS without port 0


def find(host: Namespace, name: str, *, vlan: str) -> Link | None:
    """The bridge, None when it is not there yet. CniError when it can never be what is asked for; changes nothing.

    `vlan` is the option that needs VLAN filtering, with its value; empty when none does.
    """
    link = host.link(name)
    if link is not None and link.kind != "bridge":
        kind = link.kind or "physical or loopback"
        raise CniError(
            INVALID_CONFIG,
            f"{name!r} already exists but is not a bridge: expected a bridge, found a {kind} interface",
            "choose another `bridge` in the network configuration",
        )
    if vlan and not host.has_vlan_filtering():
        raise CniError(
            UNSUPPORTED_FIELD,
            f"{vlan} is not supported here: expected a kernel with bridge VLAN filtering, found one without",
            "use a kernel built with CONFIG_BRIDGE_VLAN_FILTERING, or remove the VLAN options",
        )
    if vlan and link is not None and not link.vlan_filtering:
        raise CniError(
            INVALID_CONFIG,
            f"{vlan}: expected bridge {name} to filter VLANs, found it without vlan_filtering",
            f"ip link set {name} type bridge vlan_filtering 1, or choose another `bridge`",
        )
    return link


def ensure(host: Namespace, found: Link | None, name: str, mtu: int, *, promisc: bool, vlan_filtering: bool) -> Link:
    """The bridge, made if need be (`found` is what `find` has given), and up.

    Its MAC is set when it is made: a bridge without one of its own takes that of a port and changes it as
    pods come and go. It begins with 02, lower than nearly every port's (`after_joining`).
    """
    link = found
    if link is None:
        try:
            host.apply(ops.bridge_add(name, b"\x02" + random_mac()[1:], mtu, vlan_filtering=vlan_filtering))
        except KernelError as error:
            if error.errno != EEXIST:  # another pod's ADD was faster
                raise
        link = _existing(host, name)
        # When it goes down and up again: with its gateways, and a link-local address that answers at once.
        set_known(host, name, "keep_addr_on_down", "1")
        set_known(host, name, "accept_dad", "0")
        add_link_local(host, link)
    set_known(host, name, "accept_ra", "0")
    if not link.up or (promisc and not link.flags & IFF_PROMISC):
        host.apply(ops.link_set(name, up=True, promisc=True if promisc else None))
    return link


def after_joining(host: Namespace, bridge: Link, port: Link) -> Link:
    """The bridge as it is with a new port. One without a MAC or an MTU of its own takes the lowest of its ports'."""
    if any(bridge.mac) and bridge.mac < port.mac and bridge.mtu <= port.mtu:
        return bridge
    return _existing(host, bridge.name)


def refuse_narrow(link: Link, gateways: list[bytes]) -> None:
    """CniError 999 when a link of the node is too narrow for one of these, which is an IPv6 address."""
    for packed in gateways:
        if len(packed) == 16 and link.mtu < IPV6_MTU:
            raise CniError(
                INTERNAL,
                f"{link.name}: expected an MTU of at least {IPV6_MTU} for the gateway {addr.unpack(packed)}, found {link.mtu}",
                f"ip link set {link.name} mtu {IPV6_MTU} or more: Linux has no IPv6 on a link of less",
            )


def refuse_full(host: Namespace, bridge: Link, ipam: Reader) -> None:
    """CniError 11 when the bridge has no port left, unless `ipam.statusOnExhausted` says that a full node is no fault."""
    if ipam.raw("statusOnExhausted") is False:
        return
    if sum(link.master == bridge.index for link in host.links()) >= MOST_PORTS:
        raise no_port(bridge)


def no_port(bridge: Link, reason: str = "") -> CniError:
    """What ADD and STATUS say of a full bridge."""
    what = f"bridge {bridge.name}: expected a free port, found all {MOST_PORTS} in use{reason}"
    return CniError(TRY_AGAIN, what, "delete pods, or give the network another `bridge`")


def keep_ipv6(host: Namespace, bridge: Link, mtu: int, log: Log) -> None:
    """Have a bridge keep its IPv6 addresses when a port of this MTU (0: the kernel's) joins.

    A bridge without an MTU of its own takes the lowest of its ports', and below 1280 the kernel takes IPv6 off it,
    which other pods may have their gateway from. Setting what is there changes nothing, so it is set twice.
    """
    if not 0 < mtu < IPV6_MTU <= bridge.mtu:
        return
    if any(len(one.packed) == 16 and not one.packed.startswith(LINK_LOCAL) for one in host.addresses(bridge.index)):
        other = bridge.mtu - 1 if bridge.mtu > IPV6_MTU else bridge.mtu + 1
        log(f"{bridge.name} keeps its MTU of {bridge.mtu}, because it has IPv6 addresses: the pod's is {mtu}")
        host.apply(*(ops.link_set(bridge.index, mtu=one) for one in (other, bridge.mtu)))


def set_gateway(
    host: Namespace, link: Link, gateway: Subnet, ours: list[Subnet], kept: tuple[Subnet, ...] = (), *, force: bool
) -> None:
    """Make sure the bridge has a gateway address.

    `ours` are all gateway addresses of this network, and those in `kept` may stay beside them. Another IPv4 address, or
    an IPv6 one of an overlapping network, is refused, or removed with `force` (`forceAddress`).
    """
    packed, prefix = gateway
    there = _addresses(host, link, gateway)
    if gateway in there:
        return
    refuse_narrow(link, [packed])
    for other in _in_the_way(there, gateway, ours, kept):
        if not force:
            raise _taken(link, gateway, other)
        host.apply(ops.addr_del(link.index, *other))
    if len(packed) == 16:
        enable_ipv6(host, link.name)
    try:
        # NODAD: the first port makes the address tentative for 50 ms, in which the gateway does not answer.
        # A bridge that takes its MAC from its ports, and has lost them all, has none: that must not be kept.
        mac = link.mac if any(link.mac) else random_mac()
        host.apply(ops.addr_add(link.index, packed, prefix, nodad=True), ops.link_set(link.index, mac=mac))
    except KernelError as error:
        if error.errno != EEXIST:
            raise


def refuse_gateways(host: Namespace, link: Link, gateways: list[Subnet], kept: tuple[Subnet, ...]) -> None:
    """CniError 999 when `set_gateway` would refuse one of these; changes nothing."""
    for gateway in gateways:
        there = _addresses(host, link, gateway)
        if gateway not in there:
            refuse_narrow(link, [gateway[0]])
        others = [] if gateway in there else _in_the_way(there, gateway, gateways, kept)
        if others:
            raise _taken(link, gateway, others[0])


def _addresses(host: Namespace, link: Link, gateway: Subnet) -> list[Subnet]:
    """The link's addresses of a gateway's family."""
    return [(a.packed, a.prefix) for a in host.addresses(link.index) if len(a.packed) == len(gateway[0])]


def _in_the_way(there: list[Subnet], gateway: Subnet, ours: list[Subnet], kept: tuple[Subnet, ...]) -> list[Subnet]:
    foreign = [one for one in there if one not in ours and not any(addr.inside(one[0], *network) for network in kept)]
    return [one for one in foreign if conflict(one, gateway)]


def _taken(link: Link, gateway: Subnet, other: Subnet) -> CniError:
    return CniError(
        INTERNAL,
        f'"{link.name}" already has an IP address different from {addr.unpack_cidr(*gateway)}: '
        f"found {addr.unpack_cidr(*other)}",
        f"ip address del {addr.unpack_cidr(*other)} dev {link.name}, or set forceAddress to true",
    )


def _existing(host: Namespace, name: str) -> Link:
    link = host.link(name)
    if link is None or link.kind != "bridge":
        found = "nothing" if link is None else f"a {link.kind} interface"
        raise CniError(
            INTERNAL, f"could not lookup {name!r}: expected the bridge just made, found {found}", "try again"
        )
    return link


def conflict(other: Subnet, gateway: Subnet) -> bool:
    """Whether a bridge cannot have two gateway addresses of one family."""
    if len(gateway[0]) == 4:
        return True  # the reference allows one IPv4 address on a bridge
    return addr.inside(gateway[0], *other) or addr.inside(other[0], *gateway)
