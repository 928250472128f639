"""Links, addresses and settings of one namespace of the fake kernel; where its packets go is in `fake_routes.py`.

It refuses what Linux refuses with Linux's errno. What follows from other links (operational state, a bridge's MAC
and MTU, connected routes) is worked out when somebody looks, so that it cannot be out of date.
"""

from __future__ import annotations

import copy
from errno import (
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EEXIST,
    EINVAL,
    ENODEV,
    EOPNOTSUPP,
    ERANGE,
)
from typing import TYPE_CHECKING, Any

from cni import addr
from cni.kernel.types import (
    IFF_LOOPBACK,
    IFF_PROMISC,
    IFF_UP,
    OPER_UP,
    PORT_FORWARDING,
    Address,
    Link,
    Port,
    Route,
    Vxlan,
)
from cni.testing.fake_nft import FakeNft, Refused
from cni.testing.fake_routes import Paths

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.kernel import Namespace
    from cni.kernel.ops import Op

_OPER_DOWN = 2
_OPER_LOWER_LAYER_DOWN = 7
_OPER_UNKNOWN = 0
_MAIN = 254
_SCOPE_LINK = 253
_IFA_F_NODAD = 0x02
_IFA_F_PERMANENT = 0x80
_IFA_F_NOPREFIXROUTE = 0x200

# The settings that a plugin may ask for, and what a new namespace has.
_CONF = {
    addr.AF_INET: {
        "forwarding": "0", "rp_filter": "0", "arp_notify": "0", "arp_ignore": "0", "arp_announce": "0",
        "proxy_arp": "0", "route_localnet": "0", "accept_local": "0", "promote_secondaries": "0",
    },
    addr.AF_INET6: {
        "forwarding": "0", "disable_ipv6": "0", "accept_dad": "1", "accept_ra": "1", "dad_transmits": "1",
        "enhanced_dad": "1", "keep_addr_on_down": "0", "autoconf": "1", "proxy_ndp": "0", "ndisc_notify": "0",
    },
}  # fmt: skip


class FakeLink(Link):
    """A link, and what the kernel knows about it besides."""

    __slots__ = ("chose_mac", "chose_mtu", "peer_world", "tx_checksum", "vlans")

    def __init__(self, index: int, name: str) -> None:
        super().__init__(index, name)
        self.peer_world: World | None = None
        self.chose_mac = False  # a bridge takes over its ports' until somebody sets its own
        self.chose_mtu = False
        self.tx_checksum = True
        self.vlans: dict[int, bool] = {}  # VLAN ID to whether it is the port's own


class World:
    """The state of one namespace, and its operations on links, addresses and routes."""

    def __init__(self, ino: int, *, vlan_filtering: bool, ipv6: bool) -> None:
        self.vlan_filtering = vlan_filtering
        self.ipv6 = ipv6
        self.ino = ino
        self.links: dict[int, FakeLink] = {}
        self.addresses: dict[int, list[Address]] = {}
        self.paths = Paths(self.links, self.connected)
        self.nft = FakeNft()
        self.taken_ports: set[int] = set()  # UDP ports of programs
        families = _CONF if ipv6 else {addr.AF_INET: _CONF[addr.AF_INET]}
        self.conf = {family: {"all": dict(keys), "default": dict(keys)} for family, keys in families.items()}
        self._next_index = 1
        lo = self.create("lo", bytes(6), 65536, "")
        lo.flags = IFF_LOOPBACK

    # Looking

    @property
    def routes(self) -> list[Route]:
        """The routes that somebody has made."""
        return self.paths.own

    def find(self, which: str | int) -> FakeLink:
        for link in self.links.values():
            if which in (link.index, link.name):
                return link
        raise Refused(ENODEV)

    def seen(self, link: FakeLink) -> Link:
        """A copy with what follows from other links."""
        copied = copy.copy(link)
        copied.operstate = self.operstate(link)
        if link.port is not None:
            copied.port = copy.copy(link.port)
            bridge_up = self.links[link.master].up
            copied.port.state = PORT_FORWARDING if bridge_up and copied.operstate == OPER_UP else 0
        if link.kind == "bridge":
            ports = [port for port in self.links.values() if port.master == link.index]
            copied.mac = link.mac if link.chose_mac or not ports else min(port.mac for port in ports)
            copied.mtu = link.mtu if link.chose_mtu or not ports else min(port.mtu for port in ports)
        return copied

    def operstate(self, link: FakeLink) -> int:
        if link.flags & IFF_LOOPBACK:
            return _OPER_UNKNOWN
        if not link.up:
            return _OPER_DOWN
        if link.kind == "vxlan":
            return _OPER_UNKNOWN
        if link.kind == "bridge":
            ports = [port for port in self.links.values() if port.master == link.index]
            return OPER_UP if any(self.operstate(port) == OPER_UP for port in ports) else _OPER_DOWN
        if link.peer_world is not None and not link.peer_world.links[link.peer].up:
            return _OPER_LOWER_LAYER_DOWN
        return OPER_UP

    def connected(self) -> list[Route]:
        """The routes that come with addresses."""
        found: list[Route] = []
        for index, addresses in self.addresses.items():
            if not self.links[index].up:
                continue
            for one in addresses:
                is_v4 = len(one.packed) == 4
                if self.links[index].flags & IFF_LOOPBACK or (is_v4 and one.prefix == 32):
                    continue
                if one.flags & _IFA_F_NOPREFIXROUTE:
                    continue
                dst = addr.network(one.packed, one.prefix)
                metric, scope = (0, _SCOPE_LINK) if is_v4 else (256, 0)
                found.append(Route(dst, one.prefix, None, index, _MAIN, metric, scope, 0))
        return found

    def snapshot(self) -> dict[str, Any]:
        return {
            "links": {link.name: _plain(self.seen(link), "index", "peer_world") for link in self.links.values()},
            "addresses": {
                self.links[index].name: [_plain(one) for one in addresses]
                for index, addresses in self.addresses.items()
                if addresses
            },
            **self.paths.snapshot(),
            "conf": copy.deepcopy(self.conf),
            "nft": self.nft.snapshot(),
        }

    # Changing

    def create(self, name: str, mac: bytes, mtu: int, kind: str) -> FakeLink:
        link = FakeLink(self._next_index, name)
        link.kind, link.mac, link.mtu = kind, mac, mtu
        self._next_index += 1
        self.links[link.index] = link
        self.addresses[link.index] = []
        for family, by_link in self.conf.items():
            if family == addr.AF_INET or mtu >= addr.IPV6_MTU:
                by_link[name] = dict(by_link["default"])
        return link

    def remove(self, index: int) -> None:
        """Take away a link with all that hangs on it, its peer included."""
        link = self.links.pop(index)
        del self.addresses[index]
        self.paths.drop(index, gone=True)
        for by_link in self.conf.values():
            by_link.pop(link.name, None)
        for port in self.links.values():
            if port.master == index:
                self.set_master(port, 0)
        if link.peer_world is not None and link.peer in link.peer_world.links:
            link.peer_world.remove(link.peer)

    def set_master(self, link: FakeLink, master: int) -> None:
        if master:
            bridge = self.links.get(master)
            if bridge is None:
                raise Refused(EINVAL)
            if bridge.kind != "bridge":
                raise Refused(EOPNOTSUPP)
        if link.master != master:
            link.port = Port() if master else None
            link.vlans = {1: True} if master and self.vlan_filtering else {}
        link.master = master

    def new_mac(self) -> bytes:
        """Each a new one, as the kernel's random ones."""
        return b"\x02" + self.ino.to_bytes(2, "big") + self._next_index.to_bytes(3, "big")

    def check_name(self, name: str) -> None:
        if len(name.encode()) > 15:
            raise Refused(ERANGE)
        if not name or name in {".", ".."} or set(name) & set("/: \t\n"):
            raise Refused(EINVAL)
        if any(link.name == name for link in self.links.values()):
            raise Refused(EEXIST)

    # The operations of `apply`

    def _bridge_add(self, *, name: str, mac: bytes | None, mtu: int, vlan_filtering: bool) -> None:
        self.check_name(name)
        _check_link(mac, mtu or 1500)
        link = self.create(name, mac or self.new_mac(), mtu or 1500, "bridge")
        link.chose_mac, link.chose_mtu = mac is not None, mtu != 0
        if self.vlan_filtering:
            link.vlan_filtering, link.vlans = vlan_filtering, {1: True}

    def _veth_add(
        self,
        *,
        name: str,
        mac: bytes | None,
        peer_name: str,
        peer_mac: bytes | None,
        peer_netns: Namespace | None,
        mtu: int,
        master: int,
    ) -> None:
        there = self if peer_netns is None else _world_of(peer_netns)
        there.check_name(peer_name)
        self.check_name(name)
        for address in (mac, peer_mac):
            _check_link(address, mtu or 1500)
        if there is self and name == peer_name:
            raise Refused(EEXIST)
        peer = there.create(peer_name, peer_mac or there.new_mac(), mtu or 1500, "veth")
        ours = self.create(name, mac or self.new_mac(), mtu or 1500, "veth")
        ours.flags = IFF_UP
        ours.peer, ours.peer_world = peer.index, there
        peer.peer, peer.peer_world = ours.index, self
        try:
            self.set_master(ours, master)
        except Refused:
            self.remove(ours.index)
            raise

    def _vxlan_add(
        self,
        *,
        name: str,
        vni: int,
        mac: bytes | None,
        mtu: int,
        port: int,
        local: bytes,
        link: int,
        learning: bool,
        gbp: bool,
    ) -> None:
        self.check_name(name)
        if vni >= 1 << 24:
            raise Refused(ERANGE)
        if link and link not in self.links:
            raise Refused(ENODEV)
        _check_link(mac, mtu or 1500)
        settings = Vxlan(vni, port, local, link, learning=learning, gbp=gbp)
        if any(_same_tunnel(other.vxlan, settings) for other in self.links.values()):
            raise Refused(EEXIST)
        headers = 50 if len(local) == 4 else 70
        lower = self.links[link].mtu - headers if link else 1500
        made = self.create(name, mac or self.new_mac(), mtu or lower, "vxlan")
        made.vxlan = settings

    def _link_set(self, link: str | int, **changes: Any) -> None:
        found = self.find(link)
        _check_link(changes.get("mac"), changes.get("mtu", found.mtu))
        if "master" in changes:
            self.set_master(found, changes["master"])
        if "mac" in changes:
            found.mac, found.chose_mac = changes["mac"], True
        if "mtu" in changes:
            found.mtu, found.chose_mtu = changes["mtu"], True
        found.alias = changes.get("alias", found.alias)
        if "promisc" in changes:
            found.flags = found.flags & ~IFF_PROMISC | (IFF_PROMISC if changes["promisc"] else 0)
            found.promisc = int(changes["promisc"])
        if "arp_notify" in changes:
            self.conf[addr.AF_INET][found.name]["arp_notify"] = str(int(changes["arp_notify"]))
        if "up" in changes:
            self._set_up(found, up=changes["up"])

    def udp_port_is_free(self, size: int, port: int) -> bool:
        tunnels = [link.vxlan for link in self.links.values() if link.up and link.vxlan is not None]
        return port not in self.taken_ports and not any(one.port == port and size in one.sizes for one in tunnels)

    def _set_up(self, link: FakeLink, *, up: bool) -> None:
        was_up = link.up
        if up and any(other.up and _shuts_out(other.vxlan, link.vxlan) for other in self.links.values()):
            raise Refused(EADDRINUSE)
        if up and link.vxlan is not None and link.vxlan.port in self.taken_ports:
            raise Refused(EADDRINUSE)
        link.flags = link.flags & ~IFF_UP | (IFF_UP if up else 0)
        if up and link.flags & IFF_LOOPBACK and not self.addresses[link.index]:
            self.addresses[link.index] = [Address(b"\x7f\0\0\1", 8, _IFA_F_PERMANENT, 254)]
            if self.ipv6:
                self.addresses[link.index].append(Address(bytes(15) + b"\1", 128, _IFA_F_PERMANENT, 254))
        if was_up and not up:
            self.paths.drop(link.index, gone=False)

    def _port_set(self, *, link: str | int, hairpin: bool, isolated: bool) -> None:
        port = self.find(link).port
        if port is None:
            raise Refused(EOPNOTSUPP)
        port.hairpin, port.isolated = hairpin, isolated

    def _vlan_add(self, *, index: int, first: int, last: int, untagged: bool, is_self: bool) -> None:
        link = self._filtering(index, is_self=is_self)
        if not 1 <= first <= last <= 4094 or (untagged and first != last):
            raise Refused(EINVAL)
        for vid in range(first, last + 1):
            link.vlans[vid] = untagged

    def _vlan_del(self, index: int, vid: int) -> None:
        self._filtering(index, is_self=False).vlans.pop(vid, None)

    def _filtering(self, index: int, *, is_self: bool) -> FakeLink:
        link = self.find(index)
        if not self.vlan_filtering or not (link.kind == "bridge" if is_self else link.port is not None):
            raise Refused(EOPNOTSUPP)
        return link

    def _addr_add(self, *, index: int, packed: bytes, prefix: int, nodad: bool, noprefixroute: bool) -> None:
        link = self.find(index)
        if len(packed) == 16:
            if not self.ipv6:
                raise Refused(EOPNOTSUPP)
            settings = self.conf[addr.AF_INET6].get(link.name)
            if settings is None:
                raise Refused(EINVAL)
            if settings["disable_ipv6"] == "1":
                raise Refused(EACCES)
        for one in self.addresses[index]:
            # IPv6 has an address once, IPv4 once for each prefix length.
            if one.packed == packed and (len(packed) == 16 or one.prefix == prefix):
                raise Refused(EEXIST)
        flags = _IFA_F_PERMANENT | (_IFA_F_NODAD if nodad and len(packed) == 16 else 0)
        flags |= _IFA_F_NOPREFIXROUTE if noprefixroute else 0
        self.addresses[index].append(Address(packed, prefix, flags))

    def _addr_del(self, index: int, packed: bytes, prefix: int) -> None:
        addresses = self.addresses[self.find(index).index]
        kept = [one for one in addresses if (one.packed, one.prefix) != (packed, prefix)]
        if len(kept) == len(addresses):
            raise Refused(EADDRNOTAVAIL)
        addresses[:] = kept

    def do(self, op: Op) -> None:
        """Carry out an operation. Refused when Linux would refuse it."""
        verb = self._VERBS.get(op.verb)
        if verb is None:
            getattr(self.paths, op.verb)(**op.args)
            return
        verb(self, **op.args)
        if self.ipv6 and op.verb in {"link_set", "veth_add"}:
            self._follow_mtu()

    def _follow_mtu(self) -> None:
        """IPv6 goes from a link that has become too narrow for it, and comes anew to one that has grown."""
        by_link = self.conf[addr.AF_INET6]
        for link in self.links.values():
            is_wide = self.seen(link).mtu >= addr.IPV6_MTU
            if is_wide and link.name not in by_link:
                by_link[link.name] = dict(by_link["default"])
            elif not is_wide and link.name in by_link:
                del by_link[link.name]
                self.addresses[link.index] = [one for one in self.addresses[link.index] if len(one.packed) == 4]

    _VERBS: dict[str, Callable[..., None]] = {
        "bridge_add": _bridge_add,
        "veth_add": _veth_add,
        "vxlan_add": _vxlan_add,
        "link_set": _link_set,
        "port_set": _port_set,
        "vlan_add": _vlan_add,
        "vlan_del": _vlan_del,
        "addr_add": _addr_add,
        "addr_del": _addr_del,
    }


def _world_of(namespace: Namespace) -> World:
    """The state behind a handle, also behind one of FaultyKernel's."""
    world: World = namespace.world  # type: ignore[attr-defined]
    return world


def _check_link(mac: bytes | None, mtu: int) -> None:
    if mac is not None and (len(mac) != 6 or addr.is_multicast_mac(mac) or mac == bytes(6)):
        raise Refused(EADDRNOTAVAIL)
    if not 68 <= mtu <= 65536:
        raise Refused(EINVAL)


def _same_tunnel(one: Vxlan | None, other: Vxlan) -> bool:
    """Whether packets of both would look the same: the kernel makes no second such device."""
    if one is None or one.local is None or other.local is None:
        return False
    return (one.vni, one.port, one.gbp, len(one.local)) == (other.vni, other.port, other.gbp, len(other.local))


def _shuts_out(one: Vxlan | None, other: Vxlan | None) -> bool:
    """Whether one has a port's socket that the other cannot share."""
    if one is None or other is None or one.port != other.port or set(one.sizes).isdisjoint(other.sizes):
        return False
    return set(one.extensions) != set(other.extensions)


def _plain(value: Any, *without: str) -> dict[str, Any]:
    """An object's fields as a dict."""
    fields: set[str] = {slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ())}
    plain = {field: getattr(value, field) for field in sorted(fields.difference(without))}
    for field in ("port", "vxlan"):
        if plain.get(field) is not None:
            plain[field] = _plain(plain[field])
    return plain
