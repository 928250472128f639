"""The nodes as etcd tells them: values read, and what is none told, so that one broken value is nobody's trouble: its
node stays as it was.

Whether nodes agree with one another is judged in `plugins/contradictions.py`, for all sources. What etcd alone knows goes
with each node as its rank: each node writes where it is itself, so of two that have one address the key that was written
later is right. A node that was given another name is there under both until the lease of the old one ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.membership.troubles import few
from cni.errors import CniError
from cni.jsonio import decode
from plugins.peers import read_described

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.membership.etcd_client import Event, KeyValue
    from plugins.peers import Node


class Nodes:
    """What the keys of nodes say, all of which begin with `prefix`, and what is wrong with some of them."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._faults: dict[str, str] = {}

    def load(self, found: Iterable[KeyValue]) -> tuple[list[Node], set[str]]:
        """Take all there is: the nodes, and the names of those that cannot be read."""
        self._faults.clear()
        # In the order of time: who came first keeps what it has, but for its address.
        nodes = [self._read(kv) for kv in sorted(found, key=lambda kv: kv.mod)]
        return [node for node in nodes if node is not None], set(self._faults)

    def apply(self, events: Iterable[Event]) -> tuple[list[Node], list[str]]:
        """What has changed: nodes, and the names of those gone. One that cannot be read any more is neither."""
        put: dict[str, Node] = {}
        gone: set[str] = set()
        for event in events:
            name = event.kv.key.removeprefix(self._prefix)
            if event.gone:
                self._faults.pop(name, None)
                put.pop(name, None)
                gone.add(name)
            elif (node := self._read(event.kv)) is not None:
                put[name] = node
                gone.discard(name)
        return list(put.values()), list(gone)

    @property
    def complaint(self) -> str:
        """What is wrong with values under the prefix, or ""."""
        return few(list(self._faults.values()))

    def _read(self, kv: KeyValue) -> Node | None:
        """A node from its key's value; None, and a fault, when there is none in it."""
        name = kv.key.removeprefix(self._prefix)
        try:
            node = read_described("", decode(kv.value))
            if node.name != name:
                raise CniError(7, f"name: expected {name} as in the key, found {node.name}")
        except CniError as error:
            self._faults[name] = f"{kv.key}: {error}; this node stays as it was"
            return None
        self._faults.pop(name, None)
        return node.ranked(kv.mod)
