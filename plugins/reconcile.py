"""What is wanted against what is there: the difference as operations, and nothing else.

`Held` is what the kernel holds that is ours: routes and nexthop objects of protocol 205, and what is on our own
devices. `Difference` compares it with the wanted entries key by key, so it costs what the keys cost that it is given:
all of them after a look at everything (`sync`, and the agent's each minute), or the few of one node.

The operations are ordered so that nothing is without its path meanwhile: MACs and nexthops before the routes that
need them, and what is superseded last. A route of somebody else is never replaced: ours are made so that the kernel
refuses them where another one stands (EEXIST).

Routes go through nexthop objects because the kernel checks a gateway once for an object, and not for each route.
"""

from __future__ import annotations

from errno import EEXIST, ENOENT, ESRCH

from cni import addr
from cni.kernel import ops
from cni.kernel.types import NUD_PERMANENT, Nexthop
from plugins.peers import Entries, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TypeVar

    from cni.errors import KernelError
    from cni.kernel import Namespace
    from cni.kernel.ops import Op
    from cni.kernel.types import FdbEntry, Neighbour, Route
    from plugins.peers import Hop, Subnet

    Key = tuple[int, bytes]  # a link's index, and an address or a MAC on it
    Log = Callable[[str], object]
    K = TypeVar("K")
    W = TypeVar("W")
    H = TypeVar("H")
    Failed = list[tuple[Op, KernelError]]

# What marks our routes and nexthops, and where our nexthops' numbers begin (docs/registry.md).
PROTOCOL = 205
FIRST_ID = 0x63000000
LAST_ID = 0x63FFFFFF
_PRIME = (1 << 24) - 3  # the largest one below 2**24: regular gateways get different numbers by it

_MAIN = 254
# The metric that the kernel gives a route which asks for none, by the address's size.
_METRICS = {4: 0, 16: 1024}

# What an operation may fail with because it is done already.
_DONE = {"route_del": ESRCH, "nexthop_del": ENOENT, "neigh_del": ENOENT, "fdb_del": ENOENT}


class Scope:
    """What may be taken away when nobody wants it: whatever is on our own `links`, and routes into our `ranges`."""

    __slots__ = ("links", "ranges")

    def __init__(self, links: Iterable[int], ranges: Sequence[Subnet]) -> None:
        self.links = frozenset(links)
        self.ranges = ranges

    def has_route(self, subnet: Subnet, hop: Hop | None) -> bool:
        return (hop is not None and hop[0] in self.links) or within(subnet, self.ranges)


class Held:
    """What the kernel holds of ours.

    `routes` give the nexthop's id for each network, 0 where a route stands in the place of ours that is not as we make
    them. `hops` are all nexthops by id, None for those that are no hop of ours, and `uses` counts our routes through
    each. `neighbours` and `fdb` are those of our devices, empty where an entry is not permanent.
    """

    __slots__ = ("fdb", "hops", "ids", "neighbours", "routes", "uses")

    def __init__(self) -> None:
        self.routes: dict[Subnet, int] = {}
        self.hops: dict[int, Hop | None] = {}
        self.ids: dict[Hop, int] = {}
        self.uses: dict[int, int] = {}
        self.neighbours: dict[Key, bytes] = {}
        self.fdb: dict[Key, bytes] = {}

    def nexthop(self, found: Nexthop, *, gone: bool = False) -> None:
        before = self.hops.pop(found.id, None)
        if before is not None and self.ids.get(before) == found.id:
            del self.ids[before]
        if gone:
            return
        hop = (found.oif, found.gateway, found.onlink) if found.protocol == PROTOCOL and found.oif else None
        self.hops[found.id] = hop
        if hop is not None:
            self.ids[hop] = found.id

    def route(self, found: Route, *, gone: bool = False) -> Subnet | None:
        """Gives its network when the route is one of ours, or stands in the place for one.

        Routes to single pods are not: they lead straight to a link.
        """
        subnet = (found.dst, found.prefix)
        if found.table != _MAIN or found.metric != _METRICS[len(found.dst)]:
            return None
        if found.protocol != PROTOCOL:
            # What replaces ours is put right again; who has come first is left alone.
            if not gone and subnet in self.routes:
                self.set_route(subnet, 0)
            return subnet
        if found.gateway is None and not found.nexthop and found.prefix == len(found.dst) * 8:
            return None
        if gone:
            self.set_route(subnet, None)
        else:
            self.set_route(subnet, 0 if found.mtu else found.nexthop)  # 0 also for a blackhole with our protocol
        return subnet

    def set_route(self, subnet: Subnet, nexthop: int | None) -> None:
        before = self.routes.pop(subnet, 0)
        if before:
            self.uses[before] -= 1
            if not self.uses[before]:
                del self.uses[before]
        if nexthop is not None:
            self.routes[subnet] = nexthop
        if nexthop:
            self.uses[nexthop] = self.uses.get(nexthop, 0) + 1

    def neighbour(self, found: Neighbour, *, gone: bool = False) -> Key:
        key = (found.index, found.packed)
        if gone:
            self.neighbours.pop(key, None)
        else:
            self.neighbours[key] = found.mac if found.state & NUD_PERMANENT else b""
        return key

    def fdb_entry(self, found: FdbEntry, *, gone: bool = False) -> Key:
        """Entries for many receivers, which may have several destinations, are never ours."""
        key = (found.index, found.mac)
        if gone:
            self.fdb.pop(key, None)
        elif found.mac and not found.mac[0] & 1 and any(found.mac):
            self.fdb[key] = (found.dst or b"") if found.state & NUD_PERMANENT else b""
        return key

    def did(self, op: Op) -> None:
        """Take an operation of ours as done."""
        args = op.args
        match op.verb:
            case "route_replace":
                self.set_route((args["dst"], args["prefix"]), args["nexthop"])
            case "route_del":
                self.set_route((args["dst"], args["prefix"]), None)
            case "nexthop_replace":
                self.nexthop(Nexthop(args["id"], args["oif"], args["gateway"], args["onlink"], PROTOCOL))
            case "nexthop_del":
                self.nexthop(Nexthop(args["id"], 0, None, False, 0), gone=True)
            case "neigh_replace":
                self.neighbours[args["index"], args["packed"]] = args["mac"]
            case "neigh_del":
                self.neighbours.pop((args["index"], args["packed"]), None)
            case "fdb_replace":
                self.fdb[args["index"], args["mac"]] = args["dst"]
            case "fdb_del":
                self.fdb.pop((args["index"], args["mac"]), None)


class Difference:
    """What has to be done so that the kernel holds what is wanted, gathered key by key."""

    __slots__ = (
        "_joined", "_left", "_new", "_new_ids", "_paths", "_removals", "_routes", "_scope", "_wanted", "held",
    )  # fmt: skip

    def __init__(self, wanted: Entries, held: Held, scope: Scope) -> None:
        self._wanted = wanted
        self.held = held
        self._scope = scope
        self._paths: list[Op] = []
        self._routes: list[Op] = []
        self._removals: list[Op] = []
        self._new: dict[Hop, int] = {}
        self._new_ids: set[int] = set()
        self._joined: dict[int, int] = {}
        self._left: dict[int, int] = {}

    def everything(self) -> None:
        """Compare all that is wanted with all that is held."""
        wanted, held = self._wanted, self.held
        _each(self.fdb, wanted.fdb, held.fdb)
        _each(self.neighbour, wanted.neighbours, held.neighbours)
        _each(self.route, wanted.routes, held.routes)
        for number, hop in held.hops.items():
            if hop is not None and FIRST_ID <= number <= LAST_ID and number not in held.uses:
                self._left.setdefault(number, 0)

    def route(self, subnet: Subnet) -> None:
        wanted, found = self._wanted.routes.get(subnet), self.held.routes.get(subnet)
        hop = self.held.hops.get(found) if found else None
        exclusive = found is None
        if wanted is None:
            if found is None or not self._scope.has_route(subnet, hop):
                return
            metric = _METRICS[len(subnet[0])]
            self._removals.append(ops.route_del(*subnet, protocol=PROTOCOL, metric=metric))
        else:
            if hop == wanted:
                return
            if hop is not None and hop[0] != wanted[0] and wanted[2] and len(subnet[0]) == 16:
                # IPv6 refuses a gateway on the link (EINVAL) while a route leads to it over another link: ours, here.
                self._paths.append(ops.route_del(*subnet, protocol=PROTOCOL, metric=_METRICS[16]))
                exclusive = True
            number = self._id(wanted)
            self._joined[number] = self._joined.get(number, 0) + 1
            self._routes.append(ops.route_replace(*subnet, nexthop=number, protocol=PROTOCOL, exclusive=exclusive))
        if found:
            self._left[found] = self._left.get(found, 0) + 1

    def neighbour(self, key: Key) -> None:
        wanted, found = self._wanted.neighbours.get(key), self.held.neighbours.get(key)
        if wanted is None:
            if found and key[0] in self._scope.links:
                self._removals.append(ops.neigh_del(*key))
        elif wanted != found:
            self._paths.append(ops.neigh_replace(*key, wanted))

    def fdb(self, key: Key) -> None:
        wanted, found = self._wanted.fdb.get(key), self.held.fdb.get(key)
        if wanted is None:
            if found and key[0] in self._scope.links:
                self._removals.append(ops.fdb_del(*key, found))
        elif wanted != found:
            self._paths.append(ops.fdb_replace(*key, wanted))

    def additions(self) -> list[Op]:
        """Those that make what is missing or not as it has to be, in the order in which they are to be done."""
        return self._paths + self._routes

    def operations(self) -> list[Op]:
        """All of them, in the order in which they are to be done."""
        superfluous = [
            ops.nexthop_del(number)
            for number, count in self._left.items()
            if self.held.uses.get(number, 0) + self._joined.get(number, 0) == count
            and (self.held.hops.get(number) is not None or FIRST_ID <= number <= LAST_ID)
        ]
        return self.additions() + self._removals + superfluous

    def _id(self, hop: Hop) -> int:
        """The nexthop object for a hop: the one that there is, or a new one."""
        number = self.held.ids.get(hop) or self._new.get(hop)
        if number is None:
            index, gateway, onlink = hop
            number = FIRST_ID + int.from_bytes(gateway or b"", "big") % _PRIME
            while number in self.held.hops or number in self._new_ids:
                number = number + 1 if number < LAST_ID else FIRST_ID
            self._new[hop] = number
            self._new_ids.add(number)
            self._paths.append(ops.nexthop_replace(number, index, gateway, onlink=onlink, protocol=PROTOCOL))
        return number


def _each(compare: Callable[[K], None], wanted: dict[K, W], held: dict[K, H]) -> None:
    for key in wanted:
        compare(key)
    for key in [key for key in held if key not in wanted]:
        compare(key)


class Wanted(Entries):
    """The entries of several peers as one. Where two want the same key the first has it, and when it goes the other one:
    to take a peer's entries out never takes away what another one still wants."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[tuple[int, Any], list[Any]] = {}

    def add(self, entries: Entries) -> None:
        for kind, (have, more) in enumerate(self._beside(entries)):
            for key, value in more.items():
                if key not in have:
                    have[key] = value
                else:
                    self._waiting.setdefault((kind, key), []).append(value)

    def remove(self, entries: Entries) -> None:
        for kind, (have, less) in enumerate(self._beside(entries)):
            for key, value in less.items():
                waiting = self._waiting.get((kind, key), [])
                if value in waiting:
                    waiting.remove(value)
                elif have.get(key) != value:
                    continue
                elif waiting:
                    have[key] = waiting.pop(0)
                else:
                    del have[key]
                if not waiting:
                    self._waiting.pop((kind, key), None)

    def _beside(self, other: Entries) -> tuple[tuple[dict[Any, Any], dict[Any, Any]], ...]:
        return (self.routes, other.routes), (self.neighbours, other.neighbours), (self.fdb, other.fdb)


def merged(wanted: Iterable[Entries]) -> Wanted:
    """The entries of all peers as one."""
    found = Wanted()
    for entries in wanted:
        found.add(entries)
    return found


def look(namespace: Namespace, links: Iterable[int]) -> Held:
    """What the kernel holds of ours, with all that is on these devices."""
    held = Held()
    for nexthop in namespace.nexthops():
        held.nexthop(nexthop)
    for route in namespace.routes(PROTOCOL):
        held.route(route)
    for link in links:
        for neighbour in namespace.neighbours(link):
            held.neighbour(neighbour)
        for entry in namespace.fdb(link):
            held.fdb_entry(entry)
    return held


def attempt(namespace: Namespace, operations: Sequence[Op], held: Held) -> Failed:
    """Do them, keep in `held` what they did, and give those that failed although there was something to do."""
    failed = namespace.attempt(operations)
    failures = {id(op) for op, error in failed if _DONE.get(op.verb) != error.errno}
    for op in operations:
        if id(op) not in failures:
            held.did(op)
    return [(op, error) for op, error in failed if id(op) in failures]


def repair_text(op: Op, held: Held, name: Callable[[int], str]) -> str:
    """What an operation puts right, before it is done: what was wrong and where. `name` gives a link's by its index."""
    args = op.args
    match op.verb:
        case "route_replace" | "route_del":
            subnet = (args["dst"], args["prefix"])
            found = held.routes.get(subnet)
            hop = held.hops.get(found) if found else None
            what = f"route to {addr.unpack_cidr(*subnet)}"
            was = "missing" if found is None else _hop_text(hop, name) if hop else "another one"
        case "neigh_replace" | "neigh_del":
            found_mac = held.neighbours.get((args["index"], args["packed"]))
            what = f"neighbour {addr.unpack(args['packed'])} on {name(args['index'])}"
            was = "missing" if found_mac is None else addr.unpack_mac(found_mac) if found_mac else "one that ages"
        case "fdb_replace" | "fdb_del":
            found_dst = held.fdb.get((args["index"], args["mac"]))
            what = f"forwarding entry of {addr.unpack_mac(args['mac'])} on {name(args['index'])}"
            was = "missing" if found_dst is None else addr.unpack(found_dst) if found_dst else "one that ages"
        case _:
            what, was = f"nexthop {args['id']}", "there" if op.verb == "nexthop_del" else "missing"
    return f"repaired: {what}: " + (f"expected none, found {was}" if op.verb.endswith("_del") else f"it was {was}")


def _hop_text(hop: Hop, name: Callable[[int], str]) -> str:
    index, gateway, _ = hop
    return f"one to {addr.unpack(gateway)} on {name(index)}" if gateway else f"one to {name(index)}"


def is_blocked(op: Op, error: KernelError) -> bool:
    """Whether a route of somebody else has the place of one of ours."""
    return op.verb == "route_replace" and error.errno == EEXIST


def blocked_text(op: Op) -> str:
    """What to tell then."""
    network = addr.unpack_cidr(op.args["dst"], op.args["prefix"])
    return f"route to {network}: expected none but ours, found one of another program, which stays: pods there are unreachable"


def compared(
    namespace: Namespace, wanted: Iterable[Entries], links: Iterable[int], ranges: Sequence[Subnet]
) -> Difference:
    """These entries against what the kernel holds of ours on our own `links` and into these `ranges`."""
    links = list(links)
    difference = Difference(merged(wanted), look(namespace, links), Scope(links, ranges))
    difference.everything()
    return difference


def sync(
    namespace: Namespace, wanted: Iterable[Entries], links: Iterable[int], ranges: Sequence[Subnet], log: Log
) -> bool:
    """Make the kernel hold these entries, and nothing else of ours on our own `links` or into these `ranges`; whether
    anything was to be done.

    KernelError for the first operation that failed; `log` is told of routes that are somebody else's.
    """
    difference = compared(namespace, wanted, links, ranges)
    operations = difference.operations()
    first: KernelError | None = None
    for op, error in attempt(namespace, operations, difference.held):
        if is_blocked(op, error):
            log(blocked_text(op))
        else:
            first = first or error
    if first is not None:
        raise first
    return bool(operations)
