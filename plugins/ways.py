"""Which way packets to other nodes take, as the kernel's routing table says, rules and every table included."""

from __future__ import annotations

from _bisect import bisect_left, insort_right

from cni import addr
from cni.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from cni.kernel import Namespace
    from cni.kernel.types import Route
    from plugins.peers import Hop, Subnet


class Ways:
    """The hops to other nodes without a gateway, for `directRouting`. Each is asked for once, when it is needed first, so
    that what follows from it stays the same until `again`.
    """

    __slots__ = ("_found", "_order", "_way")

    def __init__(self, way: Callable[[bytes], Route | None], found: dict[bytes, Hop | None] | None = None) -> None:
        """`way` is `Namespace.way`."""
        self._way = way
        self._found = found or {}
        self._order = sorted((len(packed), packed) for packed in self._found)  # a route may be announced at any moment

    def hop(self, packed: bytes, otherwise: Hop | None) -> Hop | None:
        """The hop to a node's address; None when a gateway is on the way, and `otherwise` when no route leads there, as when
        the link is down."""
        if packed not in self._found:
            route = self._ask(packed)
            self._found[packed] = otherwise if route is None else _direct(packed, route)
            insort_right(self._order, (len(packed), packed))
        return self._found[packed]

    def again(self, kept: Collection[int]) -> Ways:
        """The ways as they are now; these when nothing has changed. What leads nowhere at the moment stays as it was,
        and so do the families `kept`, by the address's size."""
        found = {}
        for packed, before in self._found.items():
            route = None if len(packed) in kept else self._ask(packed)
            found[packed] = before if route is None else _direct(packed, route)
        return self if found == self._found else Ways(self._way, found)

    def links(self) -> set[int]:
        """The indexes of the links that they lead over."""
        return {hop[0] for hop in self._found.values() if hop is not None}

    def forget(self, addresses: Iterable[bytes]) -> None:
        for packed in addresses:
            if packed in self._found:
                del self._found[packed]
                del self._order[bisect_left(self._order, (len(packed), packed))]

    def has(self, subnet: Subnet) -> bool:
        """Whether a way to one of the addresses that were asked for may lead by a route to this network."""
        packed, prefix = subnet
        at = bisect_left(self._order, (len(packed), addr.network(packed, prefix)))
        return at < len(self._order) and self._order[at] <= (len(packed), _last(packed, prefix))

    def _ask(self, packed: bytes) -> Route | None:
        try:
            return self._way(packed)
        except KernelError:
            return None


def _last(packed: bytes, prefix: int) -> bytes:
    """A network's last address."""
    return (int.from_bytes(packed, "big") | (1 << len(packed) * 8 - prefix) - 1).to_bytes(len(packed), "big")


def _direct(packed: bytes, route: Route) -> Hop | None:
    return None if route.gateway is not None else (route.oif, packed, False)


def links_to(host: Namespace, addresses: Iterable[bytes]) -> set[int]:
    """The indexes of the links that packets to these addresses leave by.

    Of the addresses of one /24 (IPv6: /64) the lowest is asked for: routes between nodes are hardly ever finer.
    """
    samples: dict[bytes, bytes] = {}
    for packed in addresses:
        network = packed[:3] if len(packed) == 4 else packed[:8]
        samples[network] = min(packed, samples.get(network, packed))
    routes = [host.way(packed) for packed in samples.values()]
    return {route.oif for route in routes if route is not None}
