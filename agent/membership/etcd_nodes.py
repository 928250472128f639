"""The nodes as etcd tells them: values read, and what is none told, so that one broken value is nobody's trouble: its
node stays as it was.

Whether nodes agree with one another is judged in `plugins/contradictions.py`, for all sources. Here is only what etcd
alone knows: which of two that have one address was written later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.membership.troubles import few
from cni import addr
from cni.errors import CniError
from cni.jsonio import decode
from plugins.peers import read_described

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.membership.etcd_client import Event, KeyValue
    from plugins.peers import Node


class Nodes:
    """Every node that counts, and what is wrong with the others.

    The own node is always in and yields to nobody. Of two others that have one address the one written later is in: a
    node that was given another name is there under both until the lease of the old one ends.
    """

    def __init__(self, prefix: str, own: Node) -> None:
        self._prefix = prefix
        self._own = own
        self._nodes: dict[str, Node] = {}
        self._holders: dict[bytes, str] = {}  # of addresses
        self._faults: dict[str, str] = {}
        self._rivals: dict[str, str] = {}  # who was kept out, and because of whom
        self._touched: set[str] = set()
        self.unread: set[str] = set()  # who has a value that cannot be read, and was never known
        self._anew = False
        self._enter(own)

    def load(self, found: Iterable[KeyValue]) -> list[Node]:
        """Take all there is; returns who counts."""
        for kv in sorted(found, key=lambda kv: kv.mod):
            self._put(kv)
        self._touched.clear()
        return list(self._nodes.values())

    def apply(self, events: Iterable[Event]) -> tuple[list[Node], list[str], bool]:
        """What has changed: nodes, the names of those gone, and whether everything has to be read anew, because what
        kept somebody out may be over."""
        for event in events:
            name = event.kv.key.removeprefix(self._prefix)
            if name == self._own.name:
                continue
            self._changed(name)
            if event.gone:
                self._leave(name)
                self._absolve(name)
                self._read_again(name)
            else:
                self._put(event.kv)
        put = [self._nodes[name] for name in self._touched if name in self._nodes]
        gone = [name for name in self._touched if name not in self._nodes]
        self._touched.clear()
        anew, self._anew = self._anew, False
        return put, gone, anew

    def replace_own(self, own: Node) -> None:
        """Take the own node as it is now."""
        if own != self._own:
            self._changed(own.name)
            self._leave(own.name)
            self._own = own
            self._enter(own)

    @property
    def complaint(self) -> str:
        """What is wrong with values under the prefix, or ""."""
        return few(list(self._faults.values()))

    def _put(self, kv: KeyValue) -> None:
        name = kv.key.removeprefix(self._prefix)
        if name == self._own.name:
            return
        try:
            node = self._read(name, kv.value)
        except CniError as error:
            self._absolve(name)
            self._faults[name] = f"{kv.key}: {error}; this node stays as it was"
            if name not in self._nodes:
                self.unread.add(name)
            return
        self._leave(name)
        self._absolve(name)
        self._read_again(name)
        for address in node.addresses.values():
            if self._holders.get(address) == self._own.name:
                self._keep_out(name, self._own.name, address)
                return
        self._enter(node)

    def _read(self, name: str, value: bytes) -> Node:
        """A node from its key's value. CniError 7 with what is wrong."""
        node = read_described("", decode(value))
        if node.name != name:
            raise CniError(7, f"name: expected {name} as in the key, found {node.name}")
        return node

    def _enter(self, node: Node) -> None:
        self._nodes[node.name] = node
        self._touched.add(node.name)
        for address in node.addresses.values():
            if address in self._holders:
                self._keep_out(self._holders[address], node.name, address)
            self._holders[address] = node.name

    def _leave(self, name: str) -> None:
        node = self._nodes.pop(name, None)
        if node is not None:
            self._touched.add(name)
            for address in node.addresses.values():
                del self._holders[address]

    def _read_again(self, name: str) -> None:
        """Of a node that could not be read the listener may know more than we do."""
        if name in self.unread:
            self.unread.remove(name)
            self._touched.add(name)

    def _changed(self, name: str) -> None:
        self._anew = self._anew or name in self._rivals.values()

    def _keep_out(self, name: str, winner: str, address: bytes) -> None:
        self._leave(name)
        self._rivals[name] = winner
        self._faults[name] = f"{self._prefix}{name} is left out: {addr.unpack(address)} is {winner}'s address"

    def _absolve(self, name: str) -> None:
        self._faults.pop(name, None)
        self._rivals.pop(name, None)
