"""The node's VXLAN devices: made once, checked at every use, and put right as long as they are ours.

A device is ours by its label, `cnikit NETWORK`. Ours is made anew when it cannot be changed into what is wanted; what
somebody else has made under its name stays, and is told. Its MAC is set when it is made, because the other nodes
derive it (`peers.vtep_mac`) and udev would give it another. Its address is the node's subnet's own one, which the
node's traffic to pods elsewhere leaves from.
"""

from __future__ import annotations

import posix
from errno import EADDRINUSE, EADDRNOTAVAIL, EEXIST, EOPNOTSUPP, ERANGE

from cni import addr
from cni.errors import INTERNAL, NOT_AVAILABLE, CniError, KernelError
from cni.kernel import ops
from cni.names import OWNER
from cni.paths import base_name
from plugins.peers import device_name, label
from plugins.settings import enable_ipv6, set_known

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni.kernel import Namespace
    from cni.kernel.types import Link
    from cni.world import Log
    from plugins.cluster_conf import ClusterConf
    from plugins.peers import Node, Subnet, Underlay

# Drivers that promise to finish checksums inside VXLAN packets on any UDP port, and do so on the IANA's only: what they
# send is dropped by the receiver. Linux itself finishes them where a driver makes no such promise.
BREAKING_DRIVERS = ("vmxnet3",)

_SCOPE_GLOBAL = 0
_TOO_LARGE_VNI = 1 << 24
_TRIES = 3


class Wanted:
    """What a device has to be."""

    __slots__ = (
        "addresses",
        "alias",
        "gbp",
        "ipv6",
        "learning",
        "local",
        "mac",
        "mtu",
        "name",
        "port",
        "underlay",
        "vni",
    )

    def __init__(self, conf: ClusterConf, own: Node, size: int, underlay: Underlay, mtu: int) -> None:
        self.name = device_name(size, conf.vni)
        self.vni, self.port, self.learning, self.gbp = conf.vni, conf.port, conf.learning, conf.gbp
        self.local = own.addresses[size]
        self.underlay = underlay
        self.mac = own.vtep_mac(size, conf.vni)
        self.mtu = mtu
        self.alias = label(conf.name)
        # A family's address is on the device that carries the family by preference.
        carried = [s for s in own.subnets if len(s[0]) == size or len(s[0]) not in own.addresses]
        self.addresses: list[Subnet] = [(packed, len(packed) * 8) for packed, _ in carried]
        self.ipv6 = any(len(packed) == 16 for packed, _ in (*own.subnets, *conf.networks))


def ensure(host: Namespace, wanted: Wanted, log: Log) -> int:
    """Make sure of a device; its link index. CniError 50 when that cannot be, with what was found."""
    link = _usable(host, wanted)
    if link is not None and (found := _differences(link, wanted)):
        conflict = _conflict(host, wanted)
        if conflict is not None:
            raise conflict  # what there is still serves
        log(f"making {wanted.name} anew: expected {found[0][0]}, found {found[0][1]}")
        host.delete_link(link.index, link.kind)
        link = None
    is_new = link is None
    if link is None:
        link = _make(host, wanted, log)
    for attempt in range(1, _TRIES + 1):
        try:
            _settle(host, link, wanted)
            break
        except KernelError as error:
            if error.errno != EADDRINUSE:
                raise _unmade(error) from None
            conflict = _conflict(host, wanted)
            if conflict is None and attempt < _TRIES:
                continue  # somebody else has only looked whether the port is free
            if is_new:
                host.delete_link(link.index, link.kind)
            raise conflict or _unshared(wanted) from None
    return link.index


def refuse(host: Namespace, wanted: Wanted) -> None:
    """CniError 50 when `ensure` could not succeed. Changes nothing."""
    link = _usable(host, wanted)
    if link is not None and link.up:
        return
    conflict = _conflict(host, wanted)
    if conflict is not None:
        raise conflict
    if link is not None:
        return
    try:
        # No VNI is as large. A kernel that knows VXLAN says so, before it makes anything.
        host.apply(_addition(wanted, _TOO_LARGE_VNI))
    except KernelError as error:
        if error.errno != ERANGE:
            raise _unmade(error) from None


def remove_former(host: Namespace, network: str, kept: Iterable[int], log: Log) -> str:
    """Remove a network's devices but those `kept`: what an earlier VNI, backend or underlay has left.

    Gives what could not be removed and why; empty when nothing is left. The network works all the same.
    """
    kept = frozenset(kept)
    try:
        links = [link for link in host.links() if link.vxlan is not None and link.alias == label(network)]
    except KernelError as error:
        return error.msg
    left = []
    for link in links:
        if link.index in kept:
            continue
        try:
            host.delete_link(link.index, link.kind)
            log(f"{link.name} is not needed any more and is removed")
        except KernelError as error:
            left.append(f"{link.name} is still there: {error.msg}; ip link delete {link.name} removes it")
    return "; ".join(left)


def check(host: Namespace, wanted: Wanted) -> int:
    """A device's link index. CniError 999 that names the first difference between it and what it has to be."""
    try:
        link = _usable(host, wanted)
    except CniError as error:
        raise CniError(INTERNAL, error.msg, error.details) from None
    if link is None:
        raise _conflict(host, wanted) or CniError(
            INTERNAL, f"{wanted.name}: expected the network's VXLAN device, found none", "ADD of any pod makes it"
        )
    there = _addresses(host, link)
    found = _differences(link, wanted)
    found += [("it up", "it down")] * (not link.up) + _small_differences(link, wanted)
    found += [(f"address {addr.unpack_cidr(*one)}", "none") for one in wanted.addresses if one not in there]
    found += [("no other address", addr.unpack_cidr(*one)) for one in there if one not in wanted.addresses]
    if found:
        expected, instead = found[0]
        raise CniError(INTERNAL, f"{wanted.name}: expected {expected}, found {instead}", "ADD of any pod puts it right")
    return link.index


def _usable(host: Namespace, wanted: Wanted) -> Link | None:
    """The link of the device's name; None when there is none. CniError 50 when it is none of ours and not what we want."""
    link = host.link(wanted.name)
    if link is None:
        return None
    found = _differences(link, wanted)
    if link.alias != wanted.alias and (found or link.alias.startswith(OWNER)):
        expected, instead = found[0] if found else (f"label {wanted.alias!r}", repr(link.alias))
        text = f"{wanted.name} is there and not this network's: expected {expected}, found {instead}"
        raise CniError(NOT_AVAILABLE, text, f"ip link del {wanted.name}, or choose another `vni`")
    return link


def _differences(link: Link, wanted: Wanted) -> list[tuple[str, str]]:
    """What cannot be changed and is not as it has to be, as pairs of expected and found."""
    there = link.vxlan
    if there is None:
        return [("a VXLAN device", f"a {link.kind or 'physical or loopback'} interface")]
    local = addr.unpack(there.local) if there.local else "none"
    pairs = [
        (f"VNI {wanted.vni}", f"VNI {there.vni}"),
        (f"UDP port {wanted.port}", f"UDP port {there.port}"),
        (f"local address {addr.unpack(wanted.local)}", f"local address {local}"),
        (f"underlay link {wanted.underlay.index}", f"underlay link {there.link}"),
        (f"learning {wanted.learning}", f"learning {there.learning}"),
        (f"gbp {wanted.gbp}", f"gbp {there.gbp}"),
    ]
    return [(expected, found) for expected, found in pairs if expected != found]


def _small_differences(link: Link, wanted: Wanted) -> list[tuple[str, str]]:
    """What can be changed, in the same form."""
    pairs = [
        (f"MAC {addr.unpack_mac(wanted.mac)}", f"MAC {addr.unpack_mac(link.mac)}"),
        (f"MTU {wanted.mtu}", f"MTU {link.mtu}"),
        (f"label {wanted.alias!r}", f"label {link.alias!r}"),
        ("it on no bridge", "it on one" if link.master else "it on no bridge"),
    ]
    return [(expected, found) for expected, found in pairs if expected != found]


def _addition(wanted: Wanted, vni: int) -> ops.Op:
    return ops.vxlan_add(
        wanted.name, vni, mac=wanted.mac, mtu=wanted.mtu, port=wanted.port, local=wanted.local,
        link=wanted.underlay.index, learning=wanted.learning, gbp=wanted.gbp,
    )  # fmt: skip


def _make(host: Namespace, wanted: Wanted, log: Log) -> Link:
    conflict = _conflict(host, wanted)
    if conflict is not None:
        raise conflict
    for former in _on_port(host, wanted):
        if former.alias == wanted.alias and _keeps_port(former, wanted):
            log(f"{former.name} is not needed any more and is removed")
            host.delete_link(former.index, former.kind)
    try:
        _add(host, wanted)
    except KernelError as error:
        if error.errno != EEXIST:
            raise _unmade(error) from None
        holder = next((one for one in _on_port(host, wanted) if _has_number(one, wanted)), None)
        if holder is not None:
            log(f"{holder.name} has another name than this network's device has, and is removed")
            host.delete_link(holder.index, holder.kind)
            _add(host, wanted)
    link = _usable(host, wanted)  # or another pod's ADD was faster
    if link is None:
        raise CniError(NOT_AVAILABLE, f"{wanted.name}: expected the device just made, found none", "try again")
    return link


def _add(host: Namespace, wanted: Wanted) -> None:
    host.apply(_addition(wanted, wanted.vni))
    _stop_breaking_offload(host, wanted)


def _unmade(error: KernelError) -> CniError:
    help_ = "load the module: modprobe vxlan" if error.errno == EOPNOTSUPP else "see the kernel's log"
    return CniError(NOT_AVAILABLE, f"the VXLAN device cannot be made: {error.msg}", help_)


def _on_port(host: Namespace, wanted: Wanted) -> list[Link]:
    """The other VXLAN devices on the port, over the same family."""
    found = [link for link in host.links() if link.vxlan is not None and link.name != wanted.name]
    return [link for link in found if _receives(link, wanted)]


def _receives(link: Link, wanted: Wanted) -> bool:
    there = link.vxlan
    return there is not None and there.port == wanted.port and len(wanted.local) in there.sizes


def _has_number(link: Link, wanted: Wanted) -> bool:
    """Whether a device on the port has the VNI: the kernel gives it to one of those that can share the port (EEXIST)."""
    there = link.vxlan
    return there is not None and there.vni == wanted.vni and set(there.extensions) == set(_extensions(wanted))


def _extensions(wanted: Wanted) -> tuple[str, ...]:
    return ("gbp",) if wanted.gbp else ()


def _conflict(host: Namespace, wanted: Wanted) -> CniError | None:
    """Another device that has the VNI, or has the port and cannot share it, or a program that has the port; None when there
    is none that is not ours."""
    on_port = _on_port(host, wanted)
    for link in on_port:
        if link.alias != wanted.alias and _has_number(link, wanted):
            return taken(wanted, link)
        if link.alias != wanted.alias and _keeps_port(link, wanted):
            return _unshared(wanted, link)
    return None if _is_free(host, wanted, on_port) else _unshared(wanted)


def _is_free(host: Namespace, wanted: Wanted, on_port: Iterable[Link]) -> bool:
    """Whether no program has the port. It is known only where no device has it: of one kind, they share it."""
    own = host.link(wanted.name)
    if any(link.up for link in on_port) or (own is not None and own.up and _receives(own, wanted)):
        return True
    return host.udp_port_is_free(addr.family(wanted.local), wanted.port)


def _keeps_port(link: Link, wanted: Wanted) -> bool:
    """Whether a device on the port has its socket, and cannot share it (EADDRINUSE)."""
    there = link.vxlan
    return link.up and there is not None and set(there.extensions) != set(_extensions(wanted))


def taken(conf: ClusterConf | Wanted, holder: Link) -> CniError:
    """CniError 50: another device has the number of the network, or of its device."""
    text = f"VNI {conf.vni} on UDP port {conf.port}: expected it free for this network, found {holder.name} with it"
    maker = "stop flanneld" if holder.name.startswith("flannel") else "stop what made it"
    return CniError(
        NOT_AVAILABLE, text, f"{maker}, then: ip link delete {holder.name}; or choose another `vni` or `port`"
    )


def _unshared(wanted: Wanted, holder: Link | None = None) -> CniError:
    """The kernel receives for a port with one socket, in one way (VXLAN_F_RCV_FLAGS)."""
    if holder is None or holder.vxlan is None:
        text = f"UDP port {wanted.port}: expected it free for {wanted.name}, found another program with it"
        return CniError(NOT_AVAILABLE, text, f"ss -lunp 'sport = :{wanted.port}' names it; or choose another `port`")
    mine, others = _listed(_extensions(wanted)), _listed(holder.vxlan.extensions)
    text = (
        f"UDP port {wanted.port}: expected only VXLAN devices {mine}, as {wanted.name} is to be, found {holder.name} "
        f"{others}"
    )
    return CniError(NOT_AVAILABLE, text, f"choose another `port` (the same on every node), or remove {holder.name}")


def _listed(extensions: tuple[str, ...]) -> str:
    return f"with {', '.join(extensions)}" if extensions else "without extensions"


def _settle(host: Namespace, link: Link, wanted: Wanted) -> None:
    """Give a device what can be changed: addresses, MAC, MTU, label; free it from a bridge and set it up. KernelError,
    EADDRINUSE when its port is another's."""
    there = _addresses(host, link)
    missing = [one for one in wanted.addresses if one not in there]
    if wanted.ipv6 and (not link.up or missing):
        enable_ipv6(host, wanted.name)
        set_known(host, wanted.name, "accept_ra", "0")
    changes = [ops.addr_add(link.index, *one, nodad=True) for one in missing]
    changes += [ops.addr_del(link.index, *one) for one in there if one not in wanted.addresses]
    if not link.up or _small_differences(link, wanted):
        mac = wanted.mac if link.mac != wanted.mac else None
        mtu = wanted.mtu if link.mtu != wanted.mtu else None
        master = 0 if link.master else None
        changes.append(ops.link_set(link.index, up=True, mac=mac, mtu=mtu, alias=wanted.alias, master=master))
    try:
        host.apply(*changes)
    except KernelError as error:
        if error.errno not in (EEXIST, EADDRNOTAVAIL):  # another ADD did the same at this moment
            raise


def _addresses(host: Namespace, link: Link) -> list[Subnet]:
    return [(one.packed, one.prefix) for one in host.addresses(link.index) if one.scope == _SCOPE_GLOBAL]


def _stop_breaking_offload(host: Namespace, wanted: Wanted) -> None:
    if _driver(wanted.underlay.name) in BREAKING_DRIVERS and host.tx_checksum(wanted.name):
        host.set_tx_checksum(wanted.name, False)


def _driver(name: str) -> str:
    """The driver of a physical link; empty for others."""
    try:
        return base_name(posix.readlink(f"/sys/class/net/{name}/device/driver"))
    except OSError:
        return ""
