"""What changes in a namespace, as it happens: links, addresses, routes, neighbours, forwarding entries, nexthops.

    with Watch(host) as watch:
        ... dump everything ...
        poll.register(watch, POLLIN)
        for event in watch.read():
            match event:
                case RouteEvent(gone=True, value=route): ...

Open it before the dump: then whatever the dump misses is in the events. They come in order, so what both have ends
right. The kernel drops notices when the reader is too slow (`LostError`): then everything has to be dumped anew.

What the kernel never announces, so that the reader of the other events has to conclude it:
- a link that goes down or is gone takes its nexthop objects and its IPv4 routes with it,
- a nexthop object that is gone takes its IPv4 routes with it,
- the last IPv4 address that a link loses takes the link's IPv4 routes with it, but for those through nexthop objects.
"""

from __future__ import annotations

import _socket
from errno import EAGAIN, EINTR, ENOBUFS, EPERM
from typing import TYPE_CHECKING, Any

from cni.errors import KernelError
from cni.kernel import rtlinks, rtnetlink, rtpeers
from cni.kernel.netlink import NETLINK_ROUTE, Socket, messages
from cni.kernel.types import FdbEntry

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.kernel.linux import Namespace
    from cni.kernel.types import Address, Link, Neighbour, Nexthop, Route

# <linux/rtnetlink.h>: links, neighbours with forwarding entries, addresses and routes of both families, nexthops.
_GROUPS = sum(1 << number - 1 for number in (1, 3, 5, 7, 9, 11, 32))
_BUFFER = 1 << 25  # of the kernel's memory, used only as notices wait: some 30,000 of them
_MOST = 1000  # notices at a time
_RECEIVE = 1 << 16


class LostError(Exception):
    """The kernel has dropped notices, and those that still waited have been thrown away: look at everything anew."""


class _Event:
    """Something is there, new or changed; or it is `gone`."""

    __slots__ = ("gone", "value")

    def __init__(self, value: Any, *, gone: bool) -> None:
        self.value = value
        self.gone = gone


class LinkEvent(_Event):
    """Of a link that is gone only name and index count."""

    __slots__ = ()
    value: Link


class AddressEvent(_Event):
    """`index` is the link's."""

    __slots__ = ("index",)
    value: Address

    def __init__(self, index: int, value: Address, *, gone: bool) -> None:
        super().__init__(value, gone=gone)
        self.index = index


class RouteEvent(_Event):
    """A route outside table `local`, a blackhole and its like included. One that replaces another is announced alone."""

    __slots__ = ()
    value: Route


class NexthopEvent(_Event):
    __slots__ = ()
    value: Nexthop


class NeighbourEvent(_Event):
    __slots__ = ()
    value: Neighbour


class FdbEvent(_Event):
    """A forwarding entry, of a VXLAN device or of a bridge's port. One that replaces another is announced alone."""

    __slots__ = ()
    value: FdbEntry


Event = LinkEvent | AddressEvent | RouteEvent | NexthopEvent | NeighbourEvent | FdbEvent


class Watch:
    """The notices of a namespace from now on. For one thread."""

    def __init__(self, namespace: Namespace) -> None:
        self._notices = namespace.inside(_Notices)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._notices.close()

    def fileno(self) -> int:
        """Readable when there is something to read."""
        return self._notices.fileno()

    def read(self) -> list[Event]:
        """The next events that are there, in order; none when there are none. Never waits.

        LostError when notices were dropped. KernelError when the socket fails: then open another Watch.
        """
        events: list[Event] = []
        for _ in range(_MOST):
            notice = self._notices.next()
            if notice is None:
                break
            for kind, _, _, body in messages(notice):
                parse = _PARSERS.get(kind)
                if parse is not None:
                    events += parse(body, kind in _GONE)
        return events


class _Notices(Socket):
    def __init__(self) -> None:
        super().__init__(NETLINK_ROUTE, _GROUPS, _BUFFER)

    def next(self) -> bytes | None:
        """The next notice; None when there is none."""
        try:
            return self._next()
        except OSError as error:
            if error.errno != ENOBUFS:
                raise KernelError("read the kernel's notices", error.errno or EPERM) from error
        # What still waits is older than the dump that comes now, and what made up for it may be among the dropped.
        while True:
            try:
                if self._next() is None:
                    raise LostError
            except OSError as error:
                if error.errno != ENOBUFS:
                    raise KernelError("read the kernel's notices", error.errno or EPERM) from error

    def _next(self) -> bytes | None:
        while True:
            try:
                data, (sender, _) = self._socket.recvfrom(_RECEIVE, _socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno == EAGAIN:
                    return None
                if error.errno != EINTR:
                    raise
            else:
                if sender == 0:  # from another process it is ignored
                    return data


# Notices to events


def _links(body: bytes, gone: bool) -> list[Event]:  # noqa: FBT001 - what every parser is given
    # A bridge announces its ports with less, in a family of its own; one that leaves it is not gone.
    return [LinkEvent(rtlinks.parse_link(body), gone=gone)] if body[:1] == b"\0" else []


def _addresses(body: bytes, gone: bool) -> list[Event]:  # noqa: FBT001
    found = rtnetlink.parse_address(body)
    return [] if found is None else [AddressEvent(*found, gone=gone)]


def _routes(body: bytes, gone: bool) -> list[Event]:  # noqa: FBT001
    return [RouteEvent(route, gone=gone) for route in rtnetlink.parse_routes(body, rtnetlink.ANY_KIND)]


def _neighbours(body: bytes, gone: bool) -> list[Event]:  # noqa: FBT001
    found = rtpeers.parse_neighbour(body)
    if found is None:
        return []
    return [FdbEvent(found, gone=gone) if isinstance(found, FdbEntry) else NeighbourEvent(found, gone=gone)]


def _nexthops(body: bytes, gone: bool) -> list[Event]:  # noqa: FBT001
    return [NexthopEvent(rtpeers.parse_nexthop(body), gone=gone)]


_PARSERS: dict[int, Callable[[bytes, bool], list[Event]]] = {
    rtlinks.RTM_NEWLINK: _links,
    rtlinks.RTM_DELLINK: _links,
    rtnetlink.RTM_NEWADDR: _addresses,
    rtnetlink.RTM_DELADDR: _addresses,
    rtnetlink.RTM_NEWROUTE: _routes,
    rtnetlink.RTM_DELROUTE: _routes,
    rtpeers.RTM_NEWNEIGH: _neighbours,
    rtnetlink.RTM_DELNEIGH: _neighbours,
    rtpeers.RTM_NEWNEXTHOP: _nexthops,
    rtpeers.RTM_DELNEXTHOP: _nexthops,
}
_GONE = frozenset((
    rtlinks.RTM_DELLINK, rtnetlink.RTM_DELADDR, rtnetlink.RTM_DELROUTE, rtnetlink.RTM_DELNEIGH, rtpeers.RTM_DELNEXTHOP,
))  # fmt: skip
