"""Gives the host's ends of routed pods back what they have lost: the kernel takes the route to the pod, and IPv6 addresses,
from a link that goes down, and gives nothing back when it comes up.

What each has to have is in the pod's record. Bridges keep their addresses themselves (`node_bridge.ensure`).
"""

from __future__ import annotations

import fcntl
import os
from errno import ENETDOWN, ENODEV
from typing import TYPE_CHECKING, Any, NamedTuple

from cni import addr
from cni.errors import CniError, KernelError
from cni.kernel.watch import AddressEvent, LinkEvent, RouteEvent
from cni.names import OWNER, call_lock
from plugins import routed
from plugins.attachment import is_whole, recorded_gateways

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.log import Log
    from cni.kernel.linux import Namespace
    from cni.kernel.types import Link
    from cni.kernel.watch import Event
    from cni.record import Records

# A link that is deleted meanwhile, or goes down again, after which it is announced again.
_GONE = (ENODEV, ENETDOWN)


class Returned:
    """Which links may have lost something, by what the kernel announces: those that came up again, and those that lost an
    address or a route while they were up. What a link loses by going down is not announced one by one.
    """

    def __init__(self) -> None:
        self._down: set[int] = set()
        self._links: set[int] = set()
        self.everything = True

    def see(self, event: Event) -> None:
        match event:
            case LinkEvent(gone=False, value=link) if link.up:
                if link.index in self._down:
                    self._links.add(link.index)
                self._down.discard(link.index)
            case LinkEvent(gone=False, value=link):
                self._links.discard(link.index)
                if link.alias.startswith(OWNER):  # one that is being made has no label yet
                    self._down.add(link.index)
            case LinkEvent(value=link):
                self._links.discard(link.index)
                self._down.discard(link.index)
            case AddressEvent(gone=True, index=index):
                self._lost(index)
            case RouteEvent(gone=True, value=route) if route.prefix == len(route.dst) * 8:
                self._lost(route.oif)

    def take(self) -> set[int] | None:
        """Which they are, for once; None when it may be any."""
        found = None if self.everything else self._links
        self.everything, self._links = False, set()
        return found

    def _lost(self, index: int) -> None:
        if index not in self._down:
            self._links.add(index)


class End(NamedTuple):
    """The host's end of a routed pod: the pod's addresses, its gateways', and the name of the attachment's lock."""

    link: Link
    pods: list[bytes]
    gateways: list[bytes]
    lock: str


class PodLinks:
    """For the cluster's thread. `records` are those of its networks, below `run_dir`. `pending` are links that lack
    something while a call of a plugin is at work on them, to be looked at again.
    """

    def __init__(self, host: Namespace, records: Iterable[Records], run_dir: str, log: Log) -> None:
        self._host = host
        self._run_dir = run_dir
        self.pending: set[int] = set()
        self._records = list(records)
        self._log = log
        self._told: set[str] = set()

    def restore(self, only: set[int] | None) -> list[str]:
        """Give these links, or all (None), what they lack; the names of those that lacked something."""
        self.pending = set()
        there = self._host.links() if only is None else filter(None, map(self._host.link, only))
        links = {link.name: link for link in there if link.alias.startswith(OWNER)}
        found = [one for one in self._ends(links) if one.link.up]
        if not found:
            return []
        routes = {(route.dst, route.prefix, route.oif) for route in self._host.routes(routed.PROTOCOL)}
        restored = []
        for link, pods, gateways, lock in found:
            led = all((packed, len(packed) * 8, link.index) in routes for packed in pods)
            if led and (only is None or self._has(link, gateways)):  # of all, routes are enough: both go together
                continue
            if is_held(f"{self._run_dir}/locks/{lock}"):
                self.pending.add(link.index)
                continue
            try:
                routed.lead(self._host, link, pods, gateways)
                restored.append(link.name)
            except CniError as error:
                self._tell(link, error)
        return restored

    def _has(self, link: Link, addresses: list[bytes]) -> bool:
        return {one.packed for one in self._host.addresses(link.index)}.issuperset(addresses)

    def _tell(self, link: Link, error: CniError) -> None:
        """Once; the other pods are none the worse for it."""
        text = f"{link.name}: {error.msg}"
        is_gone = isinstance(error, KernelError) and error.errno in _GONE
        if not is_gone and text not in self._told:
            self._told.add(text)
            self._log.warning(f"{text}; its pod is not reached")

    def _ends(self, links: dict[str, Link]) -> Iterator[End]:
        """Those of routed pods."""
        for records in self._records if links else ():
            for record in records.all():
                for plugin, section in record["plugins"].items():
                    link = _host_end(section, links)
                    if link is not None:
                        pods = [one[0] for one in map(addr.pack_cidr, section["addresses"]) if one]
                        lock = call_lock(records.network, record["containerID"], record["ifname"], plugin)
                        yield End(link, pods, recorded_gateways(section), lock)


def _host_end(section: dict[str, Any], links: dict[str, Link]) -> Link | None:
    """The link of a section about a routed pod, when it is the one that was made."""
    if not is_whole(section) or section["bridge"] or not section["links"]:
        return None
    described = section["links"][0]
    link = links.get(described["name"])
    return link if link is not None and link.mac == addr.pack_mac(described["mac"]) else None


def is_held(lock: str) -> bool:
    """Whether somebody holds the lock of this file."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
