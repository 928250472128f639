"""What the kernel answers: links, addresses, routes, rules. Plain values; addresses as bytes (cni/addr.py)."""

from __future__ import annotations

OPER_UP = 6  # IF_OPER_UP
PORT_DISABLED = 0  # BR_STATE_DISABLED
PORT_FORWARDING = 3  # BR_STATE_FORWARDING

# Link flags (netdevice(7))
IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_PROMISC = 0x100

# States of neighbours and fdb entries (<linux/neighbour.h>)
NUD_NOARP = 0x40
NUD_PERMANENT = 0x80


class Link:
    """A network interface.

    `kind` is the kernel's (`bridge`, `veth`, empty for physical and loopback). `peer` is IFLA_LINK: for a
    veth the index of its other end, in that end's namespace. `master` is 0 without one. `operstate` is
    RFC 2863's number, `port` the bridge port's settings or None off a bridge (`state`, `hairpin`,
    `isolated`), `vlan_filtering` a bridge's setting or None where the kernel has none. `promisc` counts
    who asked for promiscuous mode (IFLA_PROMISCUITY). `vxlan` are a VXLAN device's settings, None for others.
    """

    __slots__ = (
        "alias", "flags", "index", "kind", "mac", "master", "mtu", "name", "operstate", "peer", "port", "promisc",
        "vlan_filtering", "vxlan",
    )  # fmt: skip

    def __init__(self, index: int, name: str) -> None:
        self.index = index
        self.name = name
        self.kind = ""
        self.mac = b""
        self.mtu = 0
        self.flags = 0
        self.peer = 0
        self.master = 0
        self.operstate = 0
        self.alias = ""
        self.promisc = 0
        self.port: Port | None = None
        self.vlan_filtering: bool | None = None
        self.vxlan: Vxlan | None = None

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & IFF_UP)


class Port:
    """A bridge port's settings."""

    __slots__ = ("hairpin", "isolated", "state")

    def __init__(self) -> None:
        self.state = 0
        self.hairpin = False
        self.isolated = False


class Vxlan:
    """A VXLAN device's settings: its number, UDP port, own underlay address (None without one), the underlay link's
    index (0 without one), whether it learns from traffic, and the group policy extension.

    `extensions` are, in ip-link(8)'s words and `gbp` among them, the settings that all devices which are up on a port
    must have alike, for they share its socket (VXLAN_F_RCV_FLAGS). `sizes` are the underlay families that it receives
    over, by the address's size.
    """

    __slots__ = ("extensions", "gbp", "learning", "link", "local", "port", "sizes", "vni")

    def __init__(
        self,
        vni: int,
        port: int,
        local: bytes | None,
        link: int,
        *,
        learning: bool,
        gbp: bool,
        extensions: tuple[str, ...] = (),
        sizes: tuple[int, ...] = (),
    ) -> None:
        self.vni = vni
        self.port = port
        self.local = local
        self.link = link
        self.learning = learning
        self.gbp = gbp
        self.extensions = (*(("gbp",) if gbp else ()), *extensions)
        self.sizes = sizes or ((len(local),) if local else (4,))


class Address:
    """An address of a link: bytes, prefix length and IFA_F_* flags."""

    __slots__ = ("flags", "packed", "prefix", "scope")

    def __init__(self, packed: bytes, prefix: int, flags: int = 0, scope: int = 0) -> None:
        self.packed = packed
        self.prefix = prefix
        self.flags = flags
        self.scope = scope


class Route:
    """A unicast route. `dst` are the network's bytes, `gateway` and `oif` (0) may be missing.

    `protocol` is the RTPROT_* number (9: from a router advertisement). A multipath route is given once for
    each of its next hops. `nexthop` is the nexthop object that it goes through (0: none), whose link and gateway
    are then the route's; `onlink` counts the gateway as on the link without an address that says so.
    """

    __slots__ = (
        "dst", "gateway", "metric", "mtu", "nexthop", "oif", "onlink", "prefix", "protocol", "scope", "table",
    )  # fmt: skip

    def __init__(
        self,
        dst: bytes,
        prefix: int,
        gateway: bytes | None,
        oif: int,
        table: int,
        metric: int,
        scope: int,
        mtu: int,
        protocol: int = 0,
        nexthop: int = 0,
        onlink: bool = False,  # noqa: FBT001, FBT002 - one field of many
    ) -> None:
        self.dst = dst
        self.prefix = prefix
        self.gateway = gateway
        self.oif = oif
        self.table = table
        self.metric = metric
        self.scope = scope
        self.mtu = mtu
        self.protocol = protocol
        self.nexthop = nexthop
        self.onlink = onlink


class Nexthop:
    """A nexthop object: what any number of routes go through. A group or a blackhole has neither link nor gateway."""

    __slots__ = ("gateway", "id", "oif", "onlink", "protocol")

    def __init__(self, id: int, oif: int, gateway: bytes | None, onlink: bool, protocol: int) -> None:  # noqa: A002, FBT001 - NHA_ID; one field of many
        self.id = id
        self.oif = oif
        self.gateway = gateway
        self.onlink = onlink
        self.protocol = protocol


class Neighbour:
    """A neighbour of a link: address, MAC (empty while it is not known), NUD_* state and NTF_* flags."""

    __slots__ = ("flags", "index", "mac", "packed", "state")

    def __init__(self, index: int, packed: bytes, mac: bytes, state: int, flags: int = 0) -> None:
        self.index = index
        self.packed = packed
        self.mac = mac
        self.state = state
        self.flags = flags


class FdbEntry:
    """Where a VXLAN device sends what is for a MAC: an underlay address (None without one), and NUD_* state."""

    __slots__ = ("dst", "index", "mac", "state")

    def __init__(self, index: int, mac: bytes, dst: bytes | None, state: int) -> None:
        self.index = index
        self.mac = mac
        self.dst = dst
        self.state = state


class NftRule:
    """A rule: its handle, its comment (empty without one) and the chains it jumps or goes to; where it does, also the
    interface that it is for (`iifname`, empty for any)."""

    __slots__ = ("comment", "handle", "iifname", "targets")

    def __init__(self, handle: int, comment: str, targets: list[str], iifname: str = "") -> None:
        self.handle = handle
        self.comment = comment
        self.targets = targets
        self.iifname = iifname


class NftChain:
    """A base chain: its table's family and name, its own, its hook, and what it does in the end: `accept` or `drop`."""

    __slots__ = ("family", "hook", "name", "policy", "table")

    def __init__(self, family: int, table: str, name: str, hook: str, policy: str) -> None:
        self.family = family
        self.table = table
        self.name = name
        self.hook = hook
        self.policy = policy


class NftStep:
    """What a rule does, and for which packets.

    `verdict` is `accept`, `drop` (a reject too), `jump` or `goto` to the chain `target`, `return`, or empty. `size` is the
    address size of its family, 0 for both. `addresses` are (saddr or daddr, network, negated), `links` (iif or oif, name,
    negated), a name with `*` at its end being what it starts with. `open`: it asks more about addresses or links, that is
    not read; `narrow`: it asks for something else (protocol, connection, mark), so that it is for some packets only.
    """

    __slots__ = ("addresses", "comment", "handle", "links", "narrow", "open", "size", "target", "verdict")

    def __init__(self, handle: int, comment: str = "") -> None:
        self.handle = handle
        self.comment = comment
        self.verdict = ""
        self.target = ""
        self.size = 0
        self.addresses: list[tuple[str, tuple[bytes, int], bool]] = []
        self.links: list[tuple[str, str, bool]] = []
        self.open = False
        self.narrow = False
