"""What the kernel answers: links, addresses, routes, rules. Plain values; addresses as bytes (cni/addr.py)."""

from __future__ import annotations

OPER_UP = 6  # IF_OPER_UP
PORT_FORWARDING = 3  # BR_STATE_FORWARDING

# Link flags (netdevice(7))
IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_PROMISC = 0x100


class Link:
    """A network interface.

    `kind` is the kernel's (`bridge`, `veth`, empty for physical and loopback). `peer` is IFLA_LINK: for a
    veth the index of its other end, in that end's namespace. `master` is 0 without one. `operstate` is
    RFC 2863's number, `port` the bridge port's settings or None off a bridge (`state`, `hairpin`,
    `isolated`), `vlan_filtering` a bridge's setting or None where the kernel has none. `promisc` counts
    who asked for promiscuous mode (IFLA_PROMISCUITY).
    """

    __slots__ = (
        "alias", "flags", "index", "kind", "mac", "master", "mtu", "name", "operstate", "peer", "port", "promisc",
        "vlan_filtering",
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
    each of its next hops.
    """

    __slots__ = ("dst", "gateway", "metric", "mtu", "oif", "prefix", "protocol", "scope", "table")

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


class NftRule:
    """A rule: its handle, its comment (empty without one) and the chains it jumps or goes to."""

    __slots__ = ("comment", "handle", "targets")

    def __init__(self, handle: int, comment: str, targets: list[str]) -> None:
        self.handle = handle
        self.comment = comment
        self.targets = targets
