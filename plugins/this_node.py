"""Who this node is in the cluster, and which of its links carry the traffic between nodes.

With `peers` it is the one that `nodeName` names, else the one with an address of this host. Without, its subnets come
from the subnet file (flannel's `subnet.env`, written by our agent or by flanneld) and its addresses from the links.
"""

from __future__ import annotations

import posix

from cni import addr
from cni.errors import INVALID_CONFIG, NOT_AVAILABLE, TRY_AGAIN, CniError
from cni.names import OWNER
from plugins.cluster_conf import LONGEST_MTU
from plugins.peers import ADDRESS_KEYS, SIZES, Node, Underlay, label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni.kernel import Namespace
    from cni.kernel.types import Address, Link, Vxlan
    from plugins.cluster_conf import ClusterConf
    from plugins.peers import Subnet

    # Addresses of the node, each with its link.
    Places = list[tuple[Link, Address]]

IFA_F_TEMPORARY = 0x01
IFA_F_DADFAILED = 0x08
IFA_F_TENTATIVE = 0x40
LOOPBACK_IFINDEX = 1
RT_TABLE_MAIN = 254
SCOPE_GLOBAL = 0
# In our agent's subnet file, beside flannel's keys: the addresses that the members know this node by, by their size.
FILE_KEYS = {4: "CNIKIT_PUBLIC_IP", 16: "CNIKIT_PUBLIC_IPV6"}
_LONGEST_FILE = 1 << 16


class SubnetFile:
    """What a subnet file says: the network's ranges, this node's subnets, the MTU (0: nothing said), and in our agent's the
    addresses that the members know this node by, by their size."""

    __slots__ = ("addresses", "mtu", "networks", "subnets")

    def __init__(self, text: str, path: str) -> None:
        values = dict(line.strip().split("=", 1) for line in text.splitlines() if "=" in line)
        self.networks = _networks(values, ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"), path)
        self.subnets = _networks(values, ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"), path)
        self.addresses: dict[int, bytes] = {}
        for size, key in FILE_KEYS.items():
            packed = addr.pack(values.get(key, ""))
            if packed is not None and len(packed) == size:
                self.addresses[size] = packed
        mtu = values.get("FLANNEL_MTU") or "0"
        if not mtu.isascii() or not mtu.isdigit():
            raise CniError(INVALID_CONFIG, f"{path}: FLANNEL_MTU: expected a number, found {mtu!r}")
        digits = mtu.lstrip("0") or "0"
        if len(digits) > 5 or int(digits) > LONGEST_MTU:
            raise CniError(INVALID_CONFIG, f"{path}: FLANNEL_MTU: expected at most {LONGEST_MTU}, found {digits[:20]}")
        self.mtu = int(digits)


def read_subnet_file(path: str) -> SubnetFile:
    """CniError 11 when there is none yet or it gives this node no subnet, 7 when it cannot be understood."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
        try:
            text = posix.read(fd, _LONGEST_FILE).decode("utf-8", "replace")
        finally:
            posix.close(fd)
    except OSError as error:
        raise no_subnet(f"{path}: {error.strerror}") from None
    found = SubnetFile(text, path)
    if not found.subnets:
        raise no_subnet(f"{path} with neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET")
    return found


def no_subnet(found: str) -> CniError:
    return CniError(
        TRY_AGAIN,
        f"this node has no subnet for pods: expected `peers` in the configuration or a subnet file, found {found}",
        "the agent (cnikit agent --network FILE) or flanneld writes the subnet file once the node has its lease",
    )


def places(host: Namespace) -> Places:
    """The node's addresses with their links. The links of pods and the devices of networks are left out, and addresses
    that another host has or may have: those whose duplicate detection has failed, or has not ended."""
    found: Places = []
    for link in host.links():
        if not link.alias.startswith(OWNER):
            found += [(link, one) for one in host.addresses(link.index) if _answers(one)]
    return found


def _answers(one: Address) -> bool:
    return one.scope == SCOPE_GLOBAL and not one.flags & (IFA_F_DADFAILED | IFA_F_TENTATIVE)


def own_devices(host: Namespace, conf: ClusterConf, names: list[str]) -> list[Vxlan]:
    """The VXLAN devices of these names that are the network's, by their label."""
    links = [link for link in map(host.link, names) if link is not None and link.alias == label(conf.name)]
    return [link.vxlan for link in links if link.vxlan is not None]


def flannel_devices(conf: ClusterConf) -> list[str]:
    """The names of flanneld's devices for the network's VNI."""
    return [f"flannel.{conf.vni}", f"flannel-v6.{conf.vni}"]


def flannelds_device(host: Namespace, conf: ClusterConf) -> Link | None:
    """flanneld's device with the network's number, where there is one."""
    for name in flannel_devices(conf):
        link = host.link(name)
        if link is not None and link.vxlan is not None and (link.vxlan.vni, link.vxlan.port) == (conf.vni, conf.port):
            return link
    return None


def places_under(host: Namespace, devices: list[Vxlan]) -> Places:
    """The addresses of the links under the network's own devices; none when a device's own is not among them any more.

    So they are the node's as long as nothing has moved. On a node with many pods this is far less to ask for than
    `places`.
    """
    links = [link for link in map(host.link, sorted({one.link for one in devices})) if link is not None]
    found = [(link, one) for link in links for one in host.addresses(link.index) if _answers(one)]
    here = {one.packed for _, one in found}
    return found if all(one.local in here for one in devices) else []


def among(conf: ClusterConf, nodes: Iterable[Node], there: Places) -> Node:
    """Which of these nodes this one is. CniError 50 when none can be found, 7 when two could be it."""
    addresses = {one.packed for _, one in there}
    ours = [node for node in nodes if not addresses.isdisjoint(node.addresses.values())]
    if conf.node_name:
        named = [node for node in nodes if node.name == conf.node_name]
        if not named:
            text = f"nodeName: expected the name of a peer, found {conf.node_name!r}, which none has"
            raise CniError(NOT_AVAILABLE, text, "add this node to the peers, or correct nodeName")
        own, *_ = named
    elif not ours:
        here = ", ".join(sorted(map(addr.unpack, addresses))) or "none"
        text = f"peers: expected one with an address of this host ({here}), found none"
        raise CniError(NOT_AVAILABLE, text, "add this node to the peers")
    else:
        own = ours[0]
    for other in ours:
        if other != own:
            taken = ", ".join(addr.unpack(one) for one in other.addresses.values() if one in addresses)
            text = f"peer {other.name}: expected an address of another host, found {taken}, which this one ({own.name}) has"
            raise CniError(INVALID_CONFIG, text, f"correct the addresses of {other.name}, or nodeName")
    return own


def of_file(conf: ClusterConf, file: SubnetFile, there: Places) -> Node | None:
    """The node by the addresses in our agent's subnet file; None when none of them is `there`."""
    if {one.packed for _, one in there}.isdisjoint(file.addresses.values()):
        return None
    return Node(conf.node_name, file.addresses, file.subnets)


def of_devices(
    host: Namespace, conf: ClusterConf, subnets: tuple[Subnet, ...], there: Places, devices: list[Vxlan]
) -> Node | None:
    """The node by the network's own `devices`; None when none has an address that is `there` and leads over `iface`.

    The links alone do not show which of several addresses the members know this node by. Who has made the devices, our
    agent or an earlier ADD, knew. An address that is away takes nothing from the other family (`underlays`).
    """
    iface = host.link(conf.iface) if conf.iface else None
    here = {one.packed for _, one in there}
    usable = [one for one in devices if not conf.iface or (iface is not None and one.link == iface.index)]
    found = {len(one.local): one.local for one in usable if one.local is not None}
    return Node(conf.node_name, found, subnets) if not here.isdisjoint(found.values()) else None


def of_links(
    host: Namespace, conf: ClusterConf, subnets: tuple[Subnet, ...], there: Places, preferred: Sequence[bytes] = ()
) -> Node:
    """The node by its links: its address of each family in which it has pods, else of whichever there is.

    It is the first of the `preferred` ones that is there, on `iface` when that is given; else that of `iface`; else that of
    the default route's link. CniError 50 when there is none.
    """
    found: dict[int, bytes] = {}
    wanted = {len(packed) for packed, _ in subnets}
    for size in sorted(SIZES, key=lambda size: size not in wanted):
        if size not in wanted and found:
            break
        usable = [(link, one) for link, one in there if len(one.packed) == size and conf.iface in ("", link.name)]
        here = {one.packed for _, one in usable}
        best = next((packed for packed in preferred if packed in here), None) or _of_link(host, conf, size, usable)
        if best is not None:
            found[size] = best
    if not found:
        where = f"iface {conf.iface}" if conf.iface else "the link of the default route"
        text = f"no underlay: expected an address on {where}, found none"
        raise CniError(
            NOT_AVAILABLE, text, "set `iface` to the link that leads to the other nodes, and give it an address"
        )
    return Node(conf.node_name, found, subnets)


def _of_link(host: Namespace, conf: ClusterConf, size: int, usable: Places) -> bytes | None:
    name = conf.iface or (_default_link(host, size) if usable else "")
    there = [one for link, one in usable if link.name == name]
    lasting = [one for one in there if not one.flags & IFA_F_TEMPORARY] or there
    return lasting[0].packed if lasting else None


def underlays(conf: ClusterConf, own: Node, there: Places) -> tuple[dict[int, Underlay], dict[int, CniError]]:
    """The link of each of the node's own addresses, by the address's size, and what is wrong with each that is on none:
    the families are independent of each other. CniError 50 when no address is on a link."""
    if not own.addresses:
        text = f"{own}: expected an address of this host, found none"
        raise CniError(NOT_AVAILABLE, text, "set `iface` to the link that leads to the other nodes")
    found: dict[int, Underlay] = {}
    lost: dict[int, CniError] = {}
    for size, packed in own.addresses.items():
        try:
            found[size] = _underlay(conf, own, size, packed, there)
        except CniError as error:
            lost[size] = error
    if not found:
        raise next(iter(lost.values()))
    return found, lost


def _underlay(conf: ClusterConf, own: Node, size: int, packed: bytes, there: Places) -> Underlay:
    holder = next((link for link, one in there if one.packed == packed), None)
    if holder is None:
        here = ", ".join(sorted(addr.unpack(one.packed) for _, one in there)) or "none"
        text = f"{own}: {ADDRESS_KEYS[size]}: expected an address of this host ({here}), found {addr.unpack(packed)}"
        raise CniError(NOT_AVAILABLE, text, "correct the address, or nodeName")
    link = next((link for link, _ in there if link.name == conf.iface), None) if conf.iface else holder
    if link is None:
        text = f"iface: expected a link with an address, found {conf.iface!r} without one"
        raise CniError(NOT_AVAILABLE, text, "leave `iface` out, or name the link that leads to the other nodes")
    networks = {
        (addr.network(one.packed, one.prefix), one.prefix)
        for other, one in there
        if other.index == link.index and len(one.packed) == size
    }
    return Underlay(link.index, link.name, link.mtu, tuple(sorted(networks)))


def narrowed(host: Namespace, underlays: dict[int, Underlay], others: Iterable[bytes]) -> dict[int, Underlay]:
    """The same with the MTU of the links that packets to the addresses of `others` leave by, where that is less.

    Those on the underlay link itself are not asked for. A loopback link carries nothing: where no other node is known,
    the default route's link counts for it.
    """
    return {size: _narrowed(host, size, underlay, others) for size, underlay in underlays.items()}


def _narrowed(host: Namespace, size: int, underlay: Underlay, others: Iterable[bytes]) -> Underlay:
    beyond = [packed for packed in others if len(packed) == size and not underlay.reaches(packed)]
    links: list[str | int] = []
    if beyond:
        from plugins.ways import links_to

        links += sorted(links_to(host, beyond) - {underlay.index})
    elif underlay.index == LOOPBACK_IFINDEX:
        links.append(_default_link(host, size))
    found = [link for link in map(host.link, links) if link is not None]
    narrowest = min(found, key=lambda link: link.mtu, default=None)
    if narrowest is None or narrowest.mtu >= underlay.mtu:
        return underlay
    return Underlay(underlay.index, underlay.name, narrowest.mtu, underlay.networks, narrowest.name)


def pods_mtu(own: Node, overhead: dict[int, int], underlays: dict[int, Underlay], given: int, source: str) -> int:
    """The MTU of pods: `given` (0: none is) by `source`, else what every underlay can carry, less the backend's
    `overhead`. CniError 7 when an underlay cannot carry it, or IPv6 not work with it.

    A family whose underlay is not known at the moment counts as being on the narrowest of the others: pods keep their
    MTU, so it must still fit when that family is back.
    """
    narrowest = min(underlays.values(), key=lambda underlay: underlay.mtu)
    underlays = dict.fromkeys(own.addresses, narrowest) | underlays
    tightest = min(underlays, key=lambda size: underlays[size].mtu - overhead[size])
    underlay = underlays[tightest]
    most = underlay.mtu - overhead[tightest]
    mtu = given or most
    if mtu > most:
        text = f"{source}: expected at most {most}, because {underlay.narrowest} has MTU {underlay.mtu}, found {mtu}"
        raise CniError(INVALID_CONFIG, text, "leave it out to have it computed, or raise the underlay's")
    remedy = f"raise the MTU of {underlay.narrowest} to {least_mtu(own) + overhead[tightest]} or more"
    refuse_narrow(own, mtu, source if given else "the MTU of pods", remedy)
    return mtu


def least_mtu(own: Node) -> int:
    """The least MTU with which pods can have addresses of the node's subnets."""
    return addr.LEAST_MTU[16 if own.subnet(16) else 4]


def refuse_narrow(own: Node, mtu: int, source: str, remedy: str) -> None:
    """CniError 7 when an MTU of pods, which `source` gives, is less."""
    least = least_mtu(own)
    if mtu < least:
        raise CniError(INVALID_CONFIG, f"{source}: expected at least {least}, found {mtu}", remedy)


def _default_link(host: Namespace, size: int) -> str:
    """The name of the link that a family's default route leads to; empty when there is none."""
    routes = [
        route
        for route in host.routes()
        if route.prefix == 0 and len(route.dst) == size and route.table == RT_TABLE_MAIN and route.oif
    ]
    if not routes:
        return ""
    link = host.link(min(routes, key=lambda route: route.metric).oif)
    return link.name if link else ""


def _networks(values: dict[str, str], keys: tuple[str, ...], path: str) -> tuple[Subnet, ...]:
    """The networks under these keys. flannel writes a subnet as its gateway's address (10.244.1.1/24)."""
    found = []
    for key in keys:
        for text in filter(None, values.get(key, "").split(",")):
            subnet = addr.pack_cidr(text)
            if subnet is None:
                raise CniError(
                    INVALID_CONFIG, f"{path}: {key}: expected a network such as 10.244.1.1/24, found {text!r}"
                )
            found.append((addr.network(*subnet), subnet[1]))
    return tuple(found)
