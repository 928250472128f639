"""What the kernel holds of the clusters' networks, kept in step with its notices.

The notices say what changed; `Mirror` keeps the state that they add up to (`Held` in plugins/reconcile.py) and which keys
have to be compared with what is wanted. It looks at everything at the start, when notices were lost, once a minute,
and when the kernel has taken away what it does not announce: routes go silently with a link that goes down and with a
nexthop object.

A look finds only what is ours. A route of ours that it misses may have been deleted, or replaced by another program's
while nobody listened; which of the two, the kernel says when it refuses ours for standing in its way (`replaced`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.pod_links import Returned
from cni.errors import KernelError
from cni.kernel.watch import (
    AddressEvent,
    FdbEvent,
    LinkEvent,
    LostError,
    NeighbourEvent,
    NexthopEvent,
    RouteEvent,
    Watch,
)
from plugins.reconcile import PROTOCOL, Held, look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from cni.kernel.linux import Namespace
    from cni.kernel.ops import Op
    from cni.kernel.types import Route
    from cni.kernel.watch import Event
    from plugins.peers import Entries, Subnet
    from plugins.reconcile import Difference, Key

# Of what a burst of changes announces so much is taken before anything is put right.
_MOST_READS = 64


class Changed:
    """What has to be compared: keys of the entries, or everything."""

    def __init__(self) -> None:
        self.everything = False
        self.routes: set[Subnet] = set()
        self.neighbours: set[Key] = set()
        self.fdb: set[Key] = set()

    def __bool__(self) -> bool:
        return bool(self.everything or self.routes or self.neighbours or self.fdb)

    def add(self, entries: Entries) -> None:
        self.routes.update(entries.routes)
        self.neighbours.update(entries.neighbours)
        self.fdb.update(entries.fdb)

    def update(self, other: Changed) -> None:
        self.everything = self.everything or other.everything
        self.routes |= other.routes
        self.neighbours |= other.neighbours
        self.fdb |= other.fdb

    def add_key(self, op: Op) -> None:
        """What an operation was about. Nexthops follow from routes."""
        place = self._place(op)
        if place is not None:
            place[0].add(place[1])

    def covers(self, op: Op) -> bool:
        """Whether an operation is about one of these keys. A nexthop's is, with whatever there is."""
        place = self._place(op)
        return place[1] in place[0] if place is not None else bool(self)

    def _place(self, op: Op) -> tuple[set[Any], Any] | None:
        """The keys of the operation's kind, and its own."""
        args = op.args
        match op.verb:
            case "route_replace" | "route_del":
                return self.routes, (args["dst"], args["prefix"])
            case "neigh_replace" | "neigh_del":
                return self.neighbours, (args["index"], args["packed"])
            case "fdb_replace" | "fdb_del":
                return self.fdb, (args["index"], args["mac"])
        return None

    def compare(self, difference: Difference) -> None:
        if self.everything:
            difference.everything()
            return
        for key in self.fdb:
            difference.fdb(key)
        for key in self.neighbours:
            difference.neighbour(key)
        for subnet in self.routes:
            difference.route(subnet)


class Mirror:
    """For one thread. `wanted` are the entries that are to be held. `stand_on` says what the networks stand on, whose
    changes `moved` names: the indexes of their devices and underlays, the node's own addresses there, and routes of
    others to the networks that it `goes_by`. `returned` are
    the other links that may have lost something.
    """

    def __init__(self, host: Namespace, wanted: Entries) -> None:
        self._host = host
        self._wanted = wanted
        self._watch: Watch | None = None
        self._links: frozenset[int] = frozenset()
        self._addresses: frozenset[bytes] = frozenset()
        self._goes_by: Callable[[Subnet], bool] = lambda _: False
        self.devices: frozenset[int] = frozenset()
        self.held = Held()
        self._missed: set[Subnet] = set()
        self.changed = Changed()
        self.moved = True
        self.returned = Returned()
        self.looks = 0
        self.losses = 0

    def close(self) -> None:
        """Stop following, until the next look."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def fileno(self) -> int | None:
        """Readable when the kernel has something to say; None before the first look and after `close`."""
        return self._watch.fileno() if self._watch is not None else None

    def stand_on(self, links: Iterable[int], addresses: Iterable[bytes], goes_by: Callable[[Subnet], bool]) -> None:
        self._links = frozenset(links)
        self._addresses = frozenset(addresses)
        self._goes_by = goes_by

    def look(self, devices: frozenset[int]) -> None:
        """Look at everything, these devices included, and follow it from there."""
        self.devices = devices
        if self._watch is None:
            self._watch = Watch(self._host)
            self.moved = True
        before, self.held = self.held.routes, look(self._host, devices)
        for subnet in before.keys() - self.held.routes.keys():
            if before[subnet]:
                self._missed.add(subnet)
            else:  # it was known to have been replaced
                self.held.set_route(subnet, 0)
        self.changed.everything = self.returned.everything = True
        self.looks += 1

    def replaced(self, operations: Iterable[Op]) -> set[Op]:
        """Those of these blocked operations whose place was ours when it was looked at last. What stands there now is
        taken for damage, and replaced next time.
        """
        found = {op for op in operations if (op.args["dst"], op.args["prefix"]) in self._missed}
        for op in found:
            subnet = (op.args["dst"], op.args["prefix"])
            self.held.set_route(subnet, 0)
            self.changed.routes.add(subnet)
        self._missed.clear()
        return found

    def read(self) -> None:
        """Take what the kernel has announced."""
        if self._watch is None:
            return
        stale = False
        try:
            for _ in range(_MOST_READS):
                events = self._watch.read()
                if not events:
                    break
                stale = self._take(events) or stale
        except LostError:
            self.losses += 1
            self.moved = stale = True
        except KernelError:
            self.close()
            raise
        if stale:
            self.look(self.devices)

    def _take(self, events: list[Event]) -> bool:
        """Whether more has changed than they say."""
        stale = False
        altered: set[int] = set()
        for event in events:
            self.returned.see(event)
            match event:
                case RouteEvent(value=route):
                    self._take_route(route, gone=event.gone)
                case NeighbourEvent(value=neighbour) if neighbour.index in self.devices:
                    self.changed.neighbours.add(self.held.neighbour(neighbour, gone=event.gone))
                case FdbEvent(value=entry) if entry.index in self.devices:
                    self.changed.fdb.add(self.held.fdb_entry(entry, gone=event.gone))
                case NexthopEvent(value=nexthop):
                    before = self.held.hops.get(nexthop.id)
                    self.held.nexthop(nexthop, gone=event.gone)
                    if self.held.hops.get(nexthop.id) != before and nexthop.id in self.held.uses:
                        altered.add(nexthop.id)
                case LinkEvent(value=link) if link.index in self._links:
                    self.moved = True
                    stale = stale or event.gone or not link.up
                case AddressEvent(index=index, value=address):
                    if index in self._links or address.packed in self._addresses or not self._links:
                        self.moved = True
        if altered:
            self._lead_elsewhere(altered)
        return stale

    def _take_route(self, route: Route, *, gone: bool) -> None:
        subnet = self.held.route(route, gone=gone)
        if subnet is not None and (route.protocol == PROTOCOL or subnet in self._wanted.routes):
            self.changed.routes.add(subnet)
        if route.protocol != PROTOCOL and self._goes_by((route.dst, route.prefix)):
            self.moved = True

    def _lead_elsewhere(self, nexthops: set[int]) -> None:
        """Have the routes through these compared. Those of one that is gone went with it."""
        for subnet, number in list(self.held.routes.items()):
            if number in nexthops:
                self.changed.routes.add(subnet)
                if number not in self.held.hops:
                    self.held.set_route(subnet, None)
