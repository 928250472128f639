"""Keeps `forwardAccept` of a network in force: looked at again when the ruleset has changed, and legacy iptables, which
announces nothing, every few seconds.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cni.errors import CniError
from plugins import forward_accept, legacy_iptables
from plugins.iptables import FAMILIES, SBIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.upkeep import Firewall
    from plugins.pod_network import Site

# Between two looks: where there are tens of thousands of chains one takes much of a processor's time, and then it is not
# taken as often.
_SHORTEST = 0.4
_TIMES = 50
_LEGACY_SECONDS = 2.0


class Forwarding:
    """One network's. For the cluster's thread."""

    def __init__(self) -> None:
        self._programs = forward_accept.Programs({"PATH": SBIN})
        self._seen: tuple[object, ...] = ()
        self._next = self._legacy_at = 0.0
        self._unread: list[str] = []
        self.trouble = ""

    def keep_up(self, firewall: Firewall, site: Site, devices: Sequence[str]) -> list[str]:
        """Have the accepts that the network asks for; what was done, and once what cannot be looked at. `trouble` says what others drop."""
        now = time.monotonic()
        if now < self._next:
            return []
        network = forward_accept.Network(site, devices)
        ruleset = firewall.host.nft_generation()
        found = (ruleset, network.is_accepted, network.ranges, network.wires, network.pods)
        begun = time.thread_time()
        has_legacy = now >= self._legacy_at and any(map(legacy_iptables.is_used, FAMILIES))
        if found == self._seen and not has_legacy:
            return []
        try:
            with firewall.records.lock():
                done, view = forward_accept.settle(firewall.host, network, self._programs)
            refusals = view.refusals(network)
        except CniError as error:  # pods are attached all the same
            self._seen, self.trouble = (), f"{error}; tried again"
            return []
        finally:
            self._next = time.monotonic() + max(_SHORTEST, _TIMES * (time.thread_time() - begun))
        self._seen = found
        self._legacy_at = now + _LEGACY_SECONDS
        self.trouble = "; ".join(f"{one.msg}; {one.details}" for one in refusals)
        unread = view.unread if network.is_accepted else []
        new = [text for text in unread if text not in self._unread]
        self._unread = unread
        return done + new
