"""The nodes of a cluster as values: who they are, where they answer, which pods they hold, and what one of them
needs in the kernel to reach another.

Membership comes from the configuration's `peers`, a file, etcd or Kubernetes; all of them speak of a node in one
form, the object that `read_node` reads and `Node.described` gives back:

    {"name": "node2", "publicIP": "192.0.2.2", "publicIPv6": "2001:db8::2", "subnets": ["10.244.2.0/24"],
     "vtepMAC": "...", "vtepMACv6": "..."}

A backend (`host_gw.py`, `vxlan.py`) is a pure function from this node and another one to `Entries`;
`reconcile.py` makes the kernel hold the entries of all of them and nothing else of ours.
"""

from __future__ import annotations

from cni import addr
from cni.config import Reader, Refusal, mapping, wrong
from cni.errors import CniError
from cni.names import OWNER, digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from plugins.ways import Ways

    Subnet = tuple[bytes, int]  # a network's address and its prefix length
    # What a route goes through: link index, gateway (None: the link itself), and whether the gateway counts as on the
    # link without an address of ours that says so.
    Hop = tuple[int, bytes | None, bool]

# Sizes of an address, by which the families are told apart.
SIZES = (4, 16)
# What the addresses and MACs of a family are called in a node object.
ADDRESS_KEYS = {4: "publicIP", 16: "publicIPv6"}
MAC_KEYS = {4: "vtepMAC", 16: "vtepMACv6"}
# All keys of a node object, by themselves in lower case.
_KEYS = {key.lower(): key for key in ("name", *ADDRESS_KEYS.values(), "subnets", *MAC_KEYS.values())}

# Networks whose addresses are no host's, or not the same one's on every node: "this", loopback, multicast and broadcast,
# and IPv6's link-local ones, which mean nothing without a link (IANA's special-purpose registries).
_NO_HOSTS = (
    (bytes(4), 8), (b"\x7f\0\0\0", 8), (b"\xe0\0\0\0", 4), (b"\xff" * 4, 32),
    (bytes(16), 127), (b"\xfe\x80" + bytes(14), 10), (b"\xff" + bytes(15), 8),
)  # fmt: skip


class Node:
    """One node. Immutable by custom; equal when everything is.

    `addresses` are its addresses on the underlay, at most one of each family, and `macs` the MACs of its VXLAN
    devices, in both cases by the address's size (4 or 16). A MAC that is missing is the derived one (`vtep_mac`).
    `subnets` are the ranges of its pods, of either family.

    `rank` is what its source knows beside: of two nodes with one address the one of the higher rank has it
    (`contradictions.py`). It is no part of what a node is, so nodes that differ in it alone are equal.
    """

    __slots__ = ("addresses", "macs", "name", "rank", "subnets")

    def __init__(
        self,
        name: str,
        addresses: dict[int, bytes],
        subnets: tuple[Subnet, ...],
        macs: dict[int, bytes] | None = None,
        rank: int = 0,
    ) -> None:
        self.name = name
        self.addresses = addresses
        self.subnets = subnets
        self.macs = macs or {}
        self.rank = rank

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and (self.name, self.addresses, self.subnets, self.macs) == (
            other.name, other.addresses, other.subnets, other.macs,
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash((self.name, self.subnets))

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        return f"node {self.name}" if self.name else "this node"

    def ranked(self, rank: int) -> Node:
        """The same node with this rank."""
        return Node(self.name, self.addresses, self.subnets, self.macs, rank)

    def subnet(self, size: int) -> Subnet | None:
        """The first range of a family."""
        for subnet in self.subnets:
            if len(subnet[0]) == size:
                return subnet
        return None

    def vtep_mac(self, size: int, vni: int) -> bytes:
        """The MAC of its VXLAN device over the underlay of a family."""
        return self.macs.get(size) or vtep_mac(vni, self.addresses[size])

    def described(self) -> dict[str, Any]:
        """The form that `read_node` reads."""
        found: dict[str, Any] = {"name": self.name}
        for size in SIZES:
            if size in self.addresses:
                found[ADDRESS_KEYS[size]] = addr.unpack(self.addresses[size])
            if size in self.macs:
                found[MAC_KEYS[size]] = addr.unpack_mac(self.macs[size])
        found["subnets"] = [addr.unpack_cidr(*subnet) for subnet in self.subnets]
        return found


class Entries:
    """What one node has in its kernel for another one.

    `routes` are the hops to networks, `neighbours` the MAC of each gateway, `fdb` the underlay address behind each
    MAC, keyed by the link that they belong to. `faults` tell people which of the peer's subnets cannot be reached,
    and why.
    """

    __slots__ = ("faults", "fdb", "neighbours", "routes")

    def __init__(self) -> None:
        self.routes: dict[Subnet, Hop] = {}
        self.neighbours: dict[tuple[int, bytes], bytes] = {}
        self.fdb: dict[tuple[int, bytes], bytes] = {}
        self.faults: list[str] = []


class Underlay:
    """The link that carries a family's traffic between the nodes.

    `networks` are those of its own addresses of that family: whoever has an address in one of them is on the link.
    `mtu` is what fits through it and through the other links that packets to nodes leave by, and `narrowest` the name of
    the one that decides.
    """

    __slots__ = ("index", "mtu", "name", "narrowest", "networks")

    def __init__(self, index: int, name: str, mtu: int, networks: tuple[Subnet, ...], narrowest: str = "") -> None:
        self.index = index
        self.name = name
        self.mtu = mtu
        self.networks = networks
        self.narrowest = narrowest or name

    def __repr__(self) -> str:
        return f"<underlay {self.name}>"

    def reaches(self, packed: bytes) -> bool:
        """Whether an address is a host's on the link, so that no other node has to forward to it."""
        on_link = [one for one in self.networks if len(one[0]) == len(packed) and addr.inside(packed, *one)]
        return bool(on_link) and not any(is_broadcast(packed, *one) for one in on_link)


class Local:
    """What a backend knows of the node that it runs on: by address family (4 or 16) the underlay links and, for vxlan,
    the devices' link indexes; the VNI, the devices' MTU, and the ways to peers that are reached without the device (None
    but with `directRouting`)."""

    __slots__ = ("devices", "direct", "mtu", "underlays", "vni")

    def __init__(
        self,
        underlays: dict[int, Underlay],
        devices: dict[int, int] | None = None,
        *,
        vni: int = 0,
        mtu: int = addr.IPV6_MTU,
        direct: Ways | None = None,
    ) -> None:
        self.mtu = mtu
        self.underlays = underlays
        self.devices = devices or {}
        self.vni = vni
        self.direct = direct


def is_broadcast(packed: bytes, network: bytes, prefix: int) -> bool:
    """Whether an address is an IPv4 network's last one, which is all of its hosts'. A /31 has none (RFC 3021)."""
    last = span(network, prefix)[1]
    return len(packed) == 4 and prefix < 31 and int.from_bytes(packed, "big") == last


def direct_hop(peer: Node, size: int, local: Local) -> Hop | None:
    """The hop to a peer's subnet of a family over the underlay itself; None when the peer is not on its link."""
    underlay, address = local.underlays.get(size), peer.addresses.get(size)
    if underlay is None or address is None or not underlay.reaches(address):
        return None
    return underlay.index, address, False


def device_name(size: int, vni: int) -> str:
    """A VXLAN device: `cnikit.1` over an IPv4 underlay, `cnik6.1` over an IPv6 one."""
    return f"cnikit.{vni}" if size == 4 else f"cnik6.{vni}"


def label(network: str) -> str:
    """The alias of a network's own devices."""
    return f"{OWNER}{network}"


def vtep_mac(vni: int, address: bytes) -> bytes:
    """The MAC of the VXLAN device of whoever has an underlay address: derived, so that nobody has to ask for it."""
    found = digest(f"vtep/{vni}/{addr.unpack(address)}")
    return bytes([found[0] & 0xFC | 0x02]) + found[1:6]


def read_nodes(config: Reader, key: str, networks: tuple[Subnet, ...] = (), vni: int = 0) -> tuple[Node, ...]:
    """The nodes of an array, which must agree with one another and with the network (`contradictions.py`)."""
    from plugins.contradictions import refuse_contradictions

    nodes = []
    for item in config.objects(key):
        try:
            nodes.append(read_node(item))
        except CniError as error:
            config.refuse(error)
    try:
        refuse_contradictions(nodes, networks, vni)
    except CniError as error:
        config.refuse(error)
    return tuple(nodes)


def read_node(config: Reader) -> Node:
    """One node. CniError 7 with the path of what is wrong."""
    name = config.string("name")
    if not name:
        raise wrong(config.at("name"), "a node's name", name)
    addresses, macs = {}, {}
    for size in SIZES:
        address_key, mac_key = ADDRESS_KEYS[size], MAC_KEYS[size]
        packed = config.address(address_key)
        if packed is not None and len(packed) != size:
            raise wrong(config.at(address_key), f"an IPv{4 if size == 4 else 6} address", addr.unpack(packed))
        if packed is not None and any(addr.inside(packed, *one) for one in _NO_HOSTS):
            raise wrong(config.at(address_key), "an address that other nodes can reach", addr.unpack(packed))
        if packed is not None:
            addresses[size] = packed
        mac = config.mac(mac_key)
        if mac is not None and (addr.is_multicast_mac(mac) or not any(mac)):
            raise wrong(config.at(mac_key), "a unicast MAC address", addr.unpack_mac(mac))
        if mac is not None:
            macs[size] = mac
    if not addresses:
        raise Refusal(config.at("publicIP"), "publicIP or publicIPv6", "neither", "add the node's own address")
    return Node(name, addresses, _subnets(config), macs)


def read_described(path: str, value: Any) -> Node:
    """A node from decoded JSON; `path` says in errors where it was found."""
    return read_node(Reader(mapping(path, value), path))


def read_written(path: str, value: Any) -> Node:
    """A node that somebody has written down. CniError 7 also for a key that no node has and for no `subnets`: what is
    misspelt would take from the node what it stands for.
    """
    config = Reader(mapping(path, value), path)
    for key in config.value:
        if key.casefold() not in _KEYS:
            raise wrong(config.at(key), f"one of {', '.join(_KEYS.values())}", key)
    node = read_node(config)
    if config.raw("subnets") is None:
        raise wrong(config.at("subnets"), "an array of subnets ([] for none)", None)
    return node


def refuse_no_hosts(path: str, subnet: Subnet) -> None:
    """CniError 7 for a network whose addresses no pod can be reached at from another node."""
    what = addr.no_hosts(subnet) or ("link-local addresses" if addr.is_link_local(subnet) else "")
    if what:
        text = f"{addr.unpack_cidr(*subnet)}, which has {what}"
        raise Refusal(path, "a network of addresses that pods can have", text, "choose a private network")


def _subnets(config: Reader) -> tuple[Subnet, ...]:
    found = []
    for index, text in enumerate(config.strings("subnets")):
        subnet = addr.pack_cidr(text)
        if subnet is None:
            raise wrong(f"{config.at('subnets')}[{index}]", "a subnet such as 10.244.1.0/24", text)
        if addr.network(*subnet) != subnet[0]:
            right = addr.unpack_cidr(addr.network(*subnet), subnet[1])
            raise wrong(f"{config.at('subnets')}[{index}]", f"the network's own address, {right}", text)
        refuse_no_hosts(f"{config.at('subnets')}[{index}]", subnet)
        found.append(subnet)
    return tuple(found)


def outside(node: Node, networks: tuple[Subnet, ...]) -> str:
    """Which subnet of a node is not part of the network; empty when all are."""
    for subnet in node.subnets:
        if not within(subnet, networks):
            ranges = " and ".join(addr.unpack_cidr(*network) for network in networks) or "none"
            return f"{node}: expected a subnet inside the network ({ranges}), found {addr.unpack_cidr(*subnet)}"
    return ""


def self_contradiction(node: Node) -> str:
    """What of a node contradicts another part of it; empty when nothing. Others: `contradictions.py`."""
    for index, subnet in enumerate(node.subnets):
        for other in node.subnets[:index]:
            if addr.overlap(subnet, other):
                found = f"{addr.unpack_cidr(*other)} and {addr.unpack_cidr(*subnet)}"
                return f"{node}: expected subnets that do not overlap, found {found}"
        for address in node.addresses.values():
            if len(address) == len(subnet[0]) and addr.inside(address, *subnet):
                found = f"{addr.unpack(address)} in {addr.unpack_cidr(*subnet)} of {node.name or node}"
                return f"{node}: expected an address outside of every node's subnets, found {found}"
    return ""


def span(packed: bytes, prefix: int) -> tuple[int, int]:
    """A network's first and last address, as numbers."""
    first = int.from_bytes(packed, "big")
    return first, first + (1 << len(packed) * 8 - prefix) - 1


def within(subnet: Subnet, networks: Iterable[Subnet]) -> bool:
    """Whether a subnet lies as a whole in one of these networks."""
    return any(subnet[1] >= network[1] and addr.inside(subnet[0], *network) for network in networks)
