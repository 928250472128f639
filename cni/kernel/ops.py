"""Changes to the kernel's state, as data.

Each function names one change and returns it as an `Op`; `Namespace.apply` (links, addresses, routes) or
`Namespace.nft` (firewall) carries it out. Being data, they can be put in one batch, faked in memory,
printed in an error and compared with what another program would send.

Links are given by name or index, addresses as bytes (cni/addr.py), MACs as 6 bytes.
"""

from __future__ import annotations

from cni import addr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cni.kernel import Namespace

NFPROTO_INET = 1
NFPROTO_IPV4 = 2
NFPROTO_BRIDGE = 7
NFPROTO_IPV6 = 10


class Op:
    """One change: the verb, its arguments by name, and how an error names it (`enslave veth3f2a to cni0`).

    Of changes that come by the thousand the text is a function of the arguments, which costs nothing until an
    error asks for it.
    """

    __slots__ = ("_text", "args", "verb")

    def __init__(self, verb: str, text: str | Callable[[dict[str, Any]], str], **args: Any) -> None:
        self.verb = verb
        self._text = text
        self.args = args

    @property
    def text(self) -> str:
        """How an error names it."""
        return self._text if isinstance(self._text, str) else self._text(self.args)

    def __repr__(self) -> str:
        return f"<{self.text}>"


# Links (RTM_NEWLINK, RTM_SETLINK)


def bridge_add(name: str, mac: bytes | None, mtu: int = 0, *, vlan_filtering: bool = False) -> Op:
    """Create a bridge. MTU 0 leaves the kernel's choice. EEXIST when the name is taken."""
    return Op("bridge_add", f"create bridge {name}", name=name, mac=mac, mtu=mtu, vlan_filtering=vlan_filtering)


def veth_add(
    name: str,
    mac: bytes | None,
    peer_name: str,
    peer_mac: bytes | None,
    peer_netns: Namespace | None,
    mtu: int = 0,
    master: int = 0,
) -> Op:
    """Create a veth pair, this end up and on bridge `master` (0 for none), the peer already in its namespace
    (None for this one), named and with its MAC. EEXIST when either name is taken.
    """
    return Op(
        "veth_add", f"create veth {name} with peer {peer_name}",
        name=name, mac=mac, peer_name=peer_name, peer_mac=peer_mac, peer_netns=peer_netns, mtu=mtu, master=master,
    )  # fmt: skip


def vxlan_add(
    name: str,
    vni: int,
    *,
    mac: bytes | None,
    mtu: int,
    port: int,
    local: bytes,
    link: int,
    learning: bool = False,
    gbp: bool = False,
) -> Op:
    """Create a VXLAN device that is down. `local` is the address packets leave from, and its family that of the
    underlay; `link` the underlay's index (0: whatever the routes say); `gbp` the group policy extension. MTU 0 leaves
    the kernel's choice. EEXIST when the name is taken, or the VNI on this port.
    """
    return Op(
        "vxlan_add", f"create vxlan {name} with VNI {vni}",
        name=name, vni=vni, mac=mac, mtu=mtu, port=port, local=local, link=link, learning=learning, gbp=gbp,
    )  # fmt: skip


def link_set(
    link: str | int,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    mac: bytes | None = None,
    master: int | None = None,
    alias: str | None = None,
    promisc: bool | None = None,
    arp_notify: bool | None = None,
) -> Op:
    """Change what is given of a link and leave the rest. `master` 0 takes it off its bridge. `arp_notify` is the
    setting of that name, which takes effect after the others (IPv4 only; through /proc/sys it would cost 0.2 ms in a
    new namespace).
    """
    given = {
        "up": up, "mtu": mtu, "mac": mac, "master": master, "alias": alias, "promisc": promisc,
        "arp_notify": arp_notify,
    }  # fmt: skip
    changes = {key: value for key, value in given.items() if value is not None}
    if changes.keys() == {"master"}:
        text = f"enslave {link} to {master}" if master else f"free {link} from its bridge"
    else:
        text = f"set {', '.join(sorted(changes))} of {link}"
    return Op("link_set", text, link=link, **changes)


def port_set(link: str | int, *, hairpin: bool = False, isolated: bool = False) -> Op:
    """Settings of a bridge port."""
    return Op("port_set", f"set bridge port {link}", link=link, hairpin=hairpin, isolated=isolated)


def vlan_add(index: int, first: int, last: int, *, untagged: bool = False, is_self: bool = False) -> Op:
    """Let a bridge port carry VLANs `first` to `last`; `untagged` makes it the port's own (PVID, untagged)."""
    return Op(
        "vlan_add", f"add VLAN {first}-{last} to port {index}",
        index=index, first=first, last=last, untagged=untagged, is_self=is_self,
    )  # fmt: skip


def vlan_del(index: int, vid: int) -> Op:
    return Op("vlan_del", f"remove VLAN {vid} from port {index}", index=index, vid=vid)


# Addresses


def addr_add(index: int, packed: bytes, prefix: int, *, nodad: bool, noprefixroute: bool = False) -> Op:
    """Add an address. `nodad` skips IPv6 duplicate detection (IFA_F_NODAD), `noprefixroute` leaves out the route to
    its network. EEXIST when it is there.
    """
    text = f"add address {addr.unpack_cidr(packed, prefix)} to link {index}"
    return Op("addr_add", text, index=index, packed=packed, prefix=prefix, nodad=nodad, noprefixroute=noprefixroute)


def addr_del(index: int, packed: bytes, prefix: int) -> Op:
    text = f"remove address {addr.unpack_cidr(packed, prefix)} from link {index}"
    return Op("addr_del", text, index=index, packed=packed, prefix=prefix)


# Routes and the nexthop objects that they share (ip-nexthop(8))


def route_add(
    index: int,
    dst: bytes,
    prefix: int,
    gateway: bytes | None,
    *,
    metric: int = 0,
    table: int = 0,
    scope: int = 0,
    mtu: int = 0,
    advmss: int = 0,
) -> Op:
    """Add a route through a link. A second path to one network is no error, as with the reference: IPv6 uses
    both, IPv4 the later one. EEXIST for the same path. `table` 0 is `main`; 0 also leaves out metric, MTU and
    advertised MSS.
    """
    return Op(
        "route_add", lambda args: f"add route {_route_text(args)}",
        index=index, dst=dst, prefix=prefix, gateway=gateway, metric=metric, table=table, scope=scope, mtu=mtu,
        advmss=advmss,
    )  # fmt: skip


def route_replace(
    dst: bytes,
    prefix: int,
    *,
    index: int = 0,
    gateway: bytes | None = None,
    nexthop: int = 0,
    onlink: bool = False,
    protocol: int = 0,
    metric: int = 0,
    table: int = 0,
    scope: int = 0,
    mtu: int = 0,
    exclusive: bool = False,
) -> Op:
    """Make a route to a network, in place of any with this metric, whoever made it; `exclusive`: EEXIST instead.

    It goes through a nexthop object, or through link `index` and a gateway. `onlink`: the gateway is on the link
    even where no address of ours says so. `protocol` 0 is RTPROT_BOOT, `table` 0 `main`. EINVAL when there is no
    such nexthop, ENODEV when there is no such link, ENETDOWN when it is down.
    """
    return Op(
        "route_replace", _route_replace_text,
        dst=dst, prefix=prefix, index=index, gateway=gateway, nexthop=nexthop, onlink=onlink, protocol=protocol,
        metric=metric, table=table, scope=scope, mtu=mtu, exclusive=exclusive,
    )  # fmt: skip


def route_del(dst: bytes, prefix: int, *, protocol: int = 0, metric: int = 0, table: int = 0) -> Op:
    """Delete the first route to a network, of this protocol and metric unless they are 0. ESRCH when there is none."""
    return Op("route_del", _route_del_text, dst=dst, prefix=prefix, protocol=protocol, metric=metric, table=table)


def nexthop_replace(id: int, oif: int, gateway: bytes | None, *, onlink: bool = False, protocol: int = 0) -> Op:  # noqa: A002 - NHA_ID
    """Make or change nexthop object `id` (from 1): a link, and a gateway on it.

    `onlink`: the gateway is on the link even where no address of ours says so. IPv6 refuses that (EINVAL) as long as a
    route other than the default one leads to the gateway over another link. ENETDOWN when the link is down.
    """
    return Op(
        "nexthop_replace", _nexthop_replace_text, id=id, oif=oif, gateway=gateway, onlink=onlink, protocol=protocol
    )


def nexthop_del(id: int) -> Op:  # noqa: A002 - NHA_ID
    """Delete a nexthop object and every route through it. ENOENT when there is none."""
    return Op("nexthop_del", lambda args: f"delete nexthop {args['id']}", id=id)


def _route_text(args: dict[str, Any]) -> str:
    via = f" via {addr.unpack(args['gateway'])}" if args["gateway"] else ""
    return f"{addr.unpack_cidr(args['dst'], args['prefix'])}{via} dev {args['index']}"


def _route_replace_text(args: dict[str, Any]) -> str:
    if args["nexthop"]:
        return f"set route {addr.unpack_cidr(args['dst'], args['prefix'])} through nexthop {args['nexthop']}"
    return f"set route {_route_text(args)}"


def _route_del_text(args: dict[str, Any]) -> str:
    return f"delete route {addr.unpack_cidr(args['dst'], args['prefix'])}"


def _nexthop_replace_text(args: dict[str, Any]) -> str:
    via = f" via {addr.unpack(args['gateway'])}" if args["gateway"] else ""
    return f"set nexthop {args['id']}{via} dev {args['oif']}"


# Neighbours, and the forwarding entries of VXLAN devices


def neigh_replace(index: int, packed: bytes, mac: bytes) -> Op:
    """Let a neighbour have this MAC for good (NUD_PERMANENT). ENODEV when there is no such link."""
    return Op("neigh_replace", _neigh_replace_text, index=index, packed=packed, mac=mac)


def neigh_del(index: int, packed: bytes) -> Op:
    """Forget a neighbour. ENOENT when it is not known."""
    return Op("neigh_del", _neigh_del_text, index=index, packed=packed)


def fdb_replace(index: int, mac: bytes, dst: bytes) -> Op:
    """Let a VXLAN device send what is for a MAC to one underlay address, for good. EAFNOSUPPORT when the address is
    of another family than the device's.
    """
    return Op("fdb_replace", _fdb_replace_text, index=index, mac=mac, dst=dst)


def fdb_del(index: int, mac: bytes, dst: bytes) -> Op:
    """Take that away. ENOENT when the MAC is not there; nothing happens when it leads elsewhere."""
    return Op("fdb_del", _fdb_del_text, index=index, mac=mac, dst=dst)


def _neigh_replace_text(args: dict[str, Any]) -> str:
    return f"set neighbour {addr.unpack(args['packed'])} of link {args['index']} to {addr.unpack_mac(args['mac'])}"


def _neigh_del_text(args: dict[str, Any]) -> str:
    return f"forget neighbour {addr.unpack(args['packed'])} of link {args['index']}"


def _fdb_replace_text(args: dict[str, Any]) -> str:
    return f"set fdb entry {addr.unpack_mac(args['mac'])} of link {args['index']} to {addr.unpack(args['dst'])}"


def _fdb_del_text(args: dict[str, Any]) -> str:
    return f"delete fdb entry {addr.unpack_mac(args['mac'])} to {addr.unpack(args['dst'])} of link {args['index']}"


# nftables. `family` is an NFPROTO_* number.


def nft_table_add(family: int, table: str) -> Op:
    """Make sure a table is there."""
    return Op("nft_table_add", f"add nftables table {table}", family=family, table=table)


def nft_table_del(family: int, table: str, *, empty: bool = False) -> Op:
    """Delete a table with all that is in it; with `empty` only one without chains and sets (else EBUSY)."""
    return Op("nft_table_del", f"delete nftables table {table}", family=family, table=table, empty=empty)


def nft_chain_add(family: int, table: str, chain: str, hook: tuple[str, str, int] | None = None) -> Op:
    """Make sure a chain is there; `hook` is (type, hook, priority), for example ("nat", "postrouting", 100)."""
    return Op(
        "nft_chain_add", f"add nftables chain {table} {chain}", family=family, table=table, chain=chain, hook=hook
    )


def nft_chain_flush(family: int, table: str, chain: str) -> Op:
    """Remove all rules of a chain."""
    return Op("nft_chain_flush", f"flush nftables chain {table} {chain}", family=family, table=table, chain=chain)


def nft_chain_del(family: int, table: str, chain: str) -> Op:
    return Op("nft_chain_del", f"delete nftables chain {table} {chain}", family=family, table=table, chain=chain)


def nft_set_add(family: int, table: str, name: str, key: str) -> Op:
    """Make sure a set is there; `key` is `ipv4_addr`, `ipv6_addr` or `ether_addr`."""
    return Op("nft_set_add", f"add nftables set {table} {name}", family=family, table=table, name=name, key=key)


def nft_set_del(family: int, table: str, name: str) -> Op:
    return Op("nft_set_del", f"delete nftables set {table} {name}", family=family, table=table, name=name)


def nft_rule_add(
    family: int, table: str, chain: str, expressions: list[tuple[Any, ...]], comment: str = "", before: int = 0
) -> Op:
    """Append a rule, or insert it before the one with the handle `before` (ENOENT when there is none).

    `expressions` come from the functions in `cni/kernel/nftables.py` (`saddr_in_set`, ...).
    """
    return Op(
        "nft_rule_add", f"add rule to nftables chain {table} {chain}",
        family=family, table=table, chain=chain, expressions=expressions, comment=comment, before=before,
    )  # fmt: skip


def nft_rule_del(family: int, table: str, chain: str, handle: int) -> Op:
    return Op(
        "nft_rule_del", f"delete rule {handle} of nftables chain {table} {chain}",
        family=family, table=table, chain=chain, handle=handle,
    )  # fmt: skip


def nft_element_add(family: int, table: str, name: str, key: bytes, comment: str = "") -> Op:
    """Make sure a set holds a key. A key that is there keeps its old comment: it is a label, not an owner."""
    return Op(
        "nft_element_add", f"add element {key.hex()} to nftables set {table} {name}",
        family=family, table=table, name=name, key=key, comment=comment,
    )  # fmt: skip


def nft_element_del(family: int, table: str, name: str, key: bytes) -> Op:
    """Take a key out of a set. ENOENT when it is not there: ask first (`nft_has_element`), a failed
    transaction costs 6 ms.
    """
    return Op(
        "nft_element_del", f"delete element {key.hex()} of nftables set {table} {name}",
        family=family, table=table, name=name, key=key,
    )  # fmt: skip
