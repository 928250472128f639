"""Pods that this node has left behind: their addresses are of a subnet that it had and has no more.

Their traffic leaves the node, but what comes back goes to whoever has the subnet now. It is the records that say so, not
what the agent happened to see: a subnet may be lost while it is stopped, or etcd is away for longer than a lease lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.membership.troubles import few
from cni import addr
from plugins.attachment import recorded_ranges
from plugins.peers import within

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni.record import Records
    from plugins.peers import Subnet

# Each look reads all records: one is taken when the node's subnets have changed, and as long as there are such pods
# once in so many calls, of which there are two in a second.
_CALLS = 20


class Stranded:
    """For one network. `look` is cheap enough to be called at any time."""

    def __init__(self) -> None:
        self._subnets: Sequence[Subnet] | None = None
        self._calls = 0
        self._text = ""

    def look(self, records: Records, subnets: Sequence[Subnet]) -> str:
        """What to tell of such pods of a node that has these subnets; "" when there are none."""
        self._calls += 1
        if subnets != self._subnets or (self._text and self._calls >= _CALLS):
            self._subnets, self._calls = subnets, 0
            self._text = _text(records, subnets)
        return self._text


def _text(records: Records, subnets: Sequence[Subnet]) -> str:
    lost: set[Subnet] = set()
    pods = []
    for record in records.all():
        ranges = [one for section in record["plugins"].values() for one in recorded_ranges(section)]
        strange = [one for one in ranges if not within(one, subnets)]
        if strange:
            lost.update(strange)
            pods.append(record["args"].get("K8S_POD_NAME") or record["containerID"])
    if not pods:
        return ""
    return (
        f"{few(pods)}: expected addresses of this node's subnets ({_listed(subnets)}), found some of {_listed(lost)}, "
        "which it had before: no other node reaches these pods; recreate them"
    )


def _listed(subnets: Iterable[Subnet]) -> str:
    return ", ".join(addr.unpack_cidr(*one) for one in sorted(subnets)) or "none"
