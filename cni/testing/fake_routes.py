"""Routes, nexthop objects, neighbours and forwarding entries of one namespace of the fake kernel.

It refuses what Linux refuses with Linux's errno. A route through a nexthop object is kept with the object's number
alone, and has its link and gateway when somebody looks.
"""

from __future__ import annotations

import copy
from errno import EAFNOSUPPORT, EEXIST, EHOSTUNREACH, EINVAL, ENETDOWN, ENETUNREACH, ENODEV, ENOENT, ESRCH
from typing import TYPE_CHECKING, Any

from cni import addr
from cni.kernel.types import NUD_NOARP, NUD_PERMANENT, FdbEntry, Neighbour, Nexthop, Route
from cni.testing.fake_nft import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cni.kernel.types import Link

_MAIN = 254
_RTPROT_BOOT = 3
_SCOPE_LINK = 253
NUD_REACHABLE = 0x02


class Paths:
    """Where packets of one namespace go. `links` and `connected` are the namespace's: its links by index, and the
    routes that come with its addresses. `own` are the routes that somebody has made.
    """

    def __init__(self, links: Mapping[int, Link], connected: Callable[[], list[Route]]) -> None:
        self._links = links
        self._connected = connected
        self.own: list[Route] = []
        self.nexthops: dict[int, Nexthop] = {}
        self.neighbours: dict[tuple[int, bytes], Neighbour] = {}
        self.fdb: dict[tuple[int, bytes], FdbEntry] = {}

    def routes(self) -> list[Route]:
        """Copies, with the links and gateways of their nexthop objects."""
        found = [copy.copy(route) for route in self.own]
        for route in found:
            if route.nexthop:
                nexthop = self.nexthops[route.nexthop]
                route.oif, route.gateway, route.onlink = nexthop.oif, nexthop.gateway, nexthop.onlink
        return self._connected() + found

    def snapshot(self) -> dict[str, Any]:
        return {
            "routes": [_plain(route) for route in self.own],
            "nexthops": [_plain(nexthop) for _, nexthop in sorted(self.nexthops.items())],
            "neighbours": sorted(self.neighbours),
            "permanent": {key: one.mac for key, one in self.neighbours.items() if one.state == NUD_PERMANENT},
            "fdb": {key: entry.dst for key, entry in self.fdb.items()},
        }

    def drop(self, index: int, *, gone: bool) -> None:
        """What a link takes with it when it goes down, or is gone altogether."""
        for number in [number for number, nexthop in self.nexthops.items() if nexthop.oif == index]:
            self.nexthop_del(number)
        self.own = [route for route in self.own if route.nexthop or route.oif != index]
        self.neighbours = {key: one for key, one in self.neighbours.items() if key[0] != index}
        if gone:
            self.fdb = {key: entry for key, entry in self.fdb.items() if key[0] != index}

    # The operations of `apply`

    def route_add(
        self,
        *,
        index: int,
        dst: bytes,
        prefix: int,
        gateway: bytes | None,
        metric: int,
        table: int,
        scope: int,
        mtu: int,
        advmss: int,
    ) -> None:
        del advmss  # no question shows it
        if len(dst) == 4 and addr.network(dst, prefix) != dst:
            raise Refused(EINVAL)
        dst = addr.network(dst, prefix)  # of IPv6 the host bits are cleared
        self._link(index, ENETDOWN)
        if gateway is not None:
            self._near(index, gateway)
        route = _route(dst, prefix, metric, table, scope, mtu)
        route.gateway, route.oif = gateway, index
        if any(_same_path(one, route) for one in self.routes()):
            raise Refused(EEXIST)
        self.own.append(route)

    def route_replace(
        self,
        *,
        dst: bytes,
        prefix: int,
        index: int,
        gateway: bytes | None,
        nexthop: int,
        onlink: bool,
        protocol: int,
        metric: int,
        table: int,
        scope: int,
        mtu: int,
        exclusive: bool,
    ) -> None:
        if addr.network(dst, prefix) != dst:
            raise Refused(EINVAL)
        route = _route(dst, prefix, metric, table, scope, mtu)
        route.protocol = protocol or _RTPROT_BOOT
        if nexthop:
            self._passable(nexthop, dst)
            route.nexthop = nexthop
        else:
            self._hop(index, gateway, onlink=onlink, absent=ENODEV)
            route.gateway, route.oif, route.onlink = gateway, index, onlink
        same = [one for one in self.own if _same_place(one, route)]
        if exclusive and (same or any(_same_place(one, route) for one in self._connected())):
            raise Refused(EEXIST)
        if same:
            self.own[self.own.index(same[0])] = route
        else:
            self.own.append(route)

    def route_del(self, *, dst: bytes, prefix: int, protocol: int, metric: int, table: int) -> None:
        if addr.network(dst, prefix) != dst:
            raise Refused(EINVAL)
        for route in self.own:
            if (
                (route.dst, route.prefix, route.table) == (dst, prefix, table or _MAIN)
                and protocol in (0, route.protocol)
                and metric in (0, route.metric)
            ):
                self.own.remove(route)
                return
        raise Refused(ESRCH)

    def nexthop_replace(self, *, id: int, oif: int, gateway: bytes | None, onlink: bool, protocol: int) -> None:  # noqa: A002 - NHA_ID
        if not id:
            raise Refused(EINVAL)
        self._hop(oif, gateway, onlink=onlink, absent=EINVAL)
        self.nexthops[id] = Nexthop(id, oif, gateway, onlink, protocol)

    def nexthop_del(self, id: int) -> None:  # noqa: A002 - NHA_ID
        if self.nexthops.pop(id, None) is None:
            raise Refused(ENOENT)
        self.own = [route for route in self.own if route.nexthop != id]

    def neigh_replace(self, *, index: int, packed: bytes, mac: bytes) -> None:
        self._link(index)
        self.neighbours[index, packed] = Neighbour(index, packed, mac, NUD_PERMANENT)

    def neigh_del(self, index: int, packed: bytes) -> None:
        self._link(index)
        if self.neighbours.pop((index, packed), None) is None:
            raise Refused(ENOENT)

    def fdb_replace(self, *, index: int, mac: bytes, dst: bytes) -> None:
        device = self._link(index).vxlan
        if device is not None and device.local is not None and len(device.local) != len(dst):
            raise Refused(EAFNOSUPPORT)
        state = NUD_PERMANENT | NUD_NOARP
        self.fdb[index, mac] = FdbEntry(index, mac, dst if device else None, state)

    def fdb_del(self, *, index: int, mac: bytes, dst: bytes) -> None:
        self._link(index)
        found = self.fdb.get((index, mac))
        if found is None:
            raise Refused(ENOENT)
        if found.dst in (None, dst):  # of an entry with another address the kernel says nothing
            del self.fdb[index, mac]

    # What they ask

    def _link(self, index: int, down: int = 0, absent: int = ENODEV) -> Link:
        link = self._links.get(index)
        if link is None:
            raise Refused(absent)
        if down and not link.up:
            raise Refused(down)
        return link

    def _hop(self, index: int, gateway: bytes | None, *, onlink: bool, absent: int) -> None:
        self._link(index, ENETDOWN, absent)
        if gateway is None:
            return
        if not onlink:
            self._near(index, gateway)
        elif len(gateway) == 16:
            # IPv6 believes a route, unless it is the default one, more than it believes "onlink".
            found = self._lookup(gateway)
            if found is not None and found.prefix and found.oif != index:
                raise Refused(EINVAL)

    def _near(self, index: int, gateway: bytes) -> None:
        """Refuse a gateway that no route to a link leads to, which has to say so in IPv4 (scope link)."""
        near = [
            one
            for one in self.routes()
            if one.gateway is None and one.oif == index and (one.scope >= _SCOPE_LINK or len(one.dst) == 16)
        ]
        if not any(addr.inside(gateway, one.dst, one.prefix) for one in near):
            raise Refused(ENETUNREACH if len(gateway) == 4 else EHOSTUNREACH)

    def _lookup(self, packed: bytes) -> Route | None:
        """The route that a packet takes."""
        fitting = [one for one in self.routes() if one.table == _MAIN and addr.inside(packed, one.dst, one.prefix)]
        return min(fitting, key=lambda one: (-one.prefix, one.metric), default=None)

    def _passable(self, number: int, dst: bytes) -> None:
        """Refuse a nexthop that routes of this family cannot go through: IPv4 may use IPv6 gateways, not the reverse."""
        found = self.nexthops.get(number)
        if found is None or (len(dst) == 16 and len(found.gateway or b"") != 16):
            raise Refused(EINVAL)


def _route(dst: bytes, prefix: int, metric: int, table: int, scope: int, mtu: int) -> Route:
    # IPv6 gives a metric to a route without one and has no scopes.
    is_v4 = len(dst) == 4
    return Route(
        dst, prefix, None, 0, table or _MAIN, metric or (0 if is_v4 else 1024), scope if is_v4 else 0, mtu
    )  # fmt: skip


def _same_path(one: Route, other: Route) -> bool:
    return _same(one, other, "dst", "prefix", "gateway", "oif", "table", "metric", "scope")


def _same_place(one: Route, other: Route) -> bool:
    return _same(one, other, "dst", "prefix", "table", "metric")


def _same(one: Route, other: Route, *fields: str) -> bool:
    return all(getattr(one, field) == getattr(other, field) for field in fields)


def _plain(value: Any) -> dict[str, Any]:
    return {field: getattr(value, field) for field in value.__slots__}
