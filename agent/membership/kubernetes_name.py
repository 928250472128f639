"""Whether the Node object of our name is this machine's. Kubernetes has one object for a name, whoever registers it: of two
machines that do, both agents would write their addresses into it, in turns for ever.

    cnikit.dev/machine: 3f1c9a...              whose agent writes the annotations
    cnikit.dev/knock:   b27d04... 192.0.2.9    another one that has come, and asks whether that one is alive

As in etcd, whoever is there first stays, and both report it. Who finds another machine's annotation knocks, and the holder
deletes that. Nobody does when it was this machine before its last boot, or one that it replaces: then the object is ours.
While it is another's, nothing but a knock is written.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from cni import addr
from cni.names import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plugins.peers import Node

MACHINE, KNOCK = "cnikit.dev/machine", "cnikit.dev/knock"
_PUBLIC_IP = "flannel.alpha.coreos.com/public-ip"
# Seconds that the holder has to answer a knock, until the next one, and without one until its end is believed.
ANSWER_SECONDS, _REPEAT_SECONDS, _OVER_SECONDS = 5.0, 20.0, 60.0


def this_machine() -> str:
    """What tells this machine from every other, cloned ones too, and from itself before its last boot; with containers as
    nodes (kind) each is one. OSError without a /proc."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return digest(f"{boot}/{os.stat('/proc/self/ns/net').st_ino}")[:8].hex()


class Name:
    """What the object says of it. Times are of the monotonic clock. `machine` empty: nothing is said of it."""

    def __init__(self, name: str, machine: str) -> None:
        self._name = name
        self._machine = machine
        self.is_ours = True
        self._knock = ""  # that is there, whoever's
        self._knocked_at = math.inf  # when ours was seen there first
        self._knock_at = 0.0  # when ours is due
        self._over_at = -math.inf  # until when another machine is believed to be there
        self._where = ""  # that is

    def see(self, notes: Mapping[str, str], now: float) -> None:
        """Take the annotations as they are now; each state of them in order, because a knock that has gone is an answer."""
        if not self._machine:
            return
        holder, before, self._knock = notes.get(MACHINE, ""), self._knock, notes.get(KNOCK, "")
        was_ours, self.is_ours = self.is_ours, holder in ("", self._machine)
        if self.is_ours:
            self._knocked_at = math.inf
            if not was_ours:  # nobody has answered
                self._over_at = -math.inf
            if self._is_others(self._knock):
                self._believe(self._knock.partition(" ")[2], now)
        elif self._is_others(self._knock):
            if self._knock != before:  # it has its turn first
                self._knocked_at, self._knock_at = math.inf, now + 2 * ANSWER_SECONDS
        elif self._knock:
            self._knocked_at = min(self._knocked_at, now)
        elif self._knocked_at < math.inf:
            self._knocked_at, self._knock_at = math.inf, now + _REPEAT_SECONDS
            self._believe(notes.get(_PUBLIC_IP, ""), now)

    def changes(self, own: Node, now: float) -> dict[str, str | None]:
        """The annotations to be written for the name's sake, at once: an answer, or when nobody answers what makes the object
        ours, or a knock."""
        if self.is_ours:
            return {KNOCK: None} if self._knock else {}
        if now >= self._knocked_at + ANSWER_SECONDS:
            return {MACHINE: self._machine, KNOCK: None}
        if now < self._knock_at or self._knocked_at < math.inf or not own.addresses:
            return {}  # without an address there would be nothing to write
        return {KNOCK: " ".join([self._machine, *map(addr.unpack, own.addresses.values())])}

    def due(self, now: float) -> float:
        """When to look again, though nothing has been seen by then; infinite for never."""
        times = [self._over_at]
        if not self.is_ours:
            times += [self._knocked_at + ANSWER_SECONDS, self._knock_at]
        return min((one for one in times if one > now), default=math.inf)

    def fault(self, now: float) -> str:
        """What to report of another machine of our name; "" when there is none, as far as is known."""
        if now >= self._over_at:
            return ""
        where = f" with {self._where}" if self._where else ""
        return (
            f"{self._name}: expected one machine of that name, found another one{where}; give each a name of its own "
            "(--hostname-override of the kubelet, --node-name of the agent)"
        )

    def annotations(self) -> dict[str, str | None]:
        """What the object says of its holder."""
        return {MACHINE: self._machine} if self._machine else {}

    def _is_others(self, knock: str) -> bool:
        return bool(knock) and knock.partition(" ")[0] != self._machine

    def _believe(self, where: str, now: float) -> None:
        self._where, self._over_at = where, now + _OVER_SECONDS
