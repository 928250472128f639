"""A listener that remembers what it was told, and tests that wait for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tests.e2e.world import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from plugins.peers import Node


class Recorder:
    """The membership as it was told, and the troubles one after the other."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self.nodes: dict[str, Node] = {}
        self.replaced = 0
        self.changes: list[tuple[list[str], list[str]]] = []
        self.unread: set[str] = set()
        self.troubles: list[str] = []

    def replace(self, nodes: list[Node], unread: Collection[str] = ()) -> None:
        with self._guard:
            self.nodes = {node.name: node for node in nodes}
            self.unread = set(unread)
            self.replaced += 1

    def change(self, put: list[Node], gone: list[str]) -> None:
        with self._guard:
            self.nodes.update((node.name, node) for node in put)
            for name in gone:
                self.nodes.pop(name, None)  # it may have been unread
            self.changes.append(([node.name for node in put], gone))

    def trouble(self, text: str) -> None:
        with self._guard:
            self.troubles.append(text)

    @property
    def trouble_now(self) -> str:
        return self.troubles[-1] if self.troubles else ""

    def described(self) -> dict[str, dict[str, Any]]:
        with self._guard:
            return {name: node.described() for name, node in sorted(self.nodes.items())}

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
        try:
            return wait_until(condition, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; nodes {self.described()}, troubles {self.troubles}") from None

    def wait_for(self, *names: str) -> None:
        self.wait(lambda: sorted(self.nodes) == sorted(names), f"the nodes are {names}")

    def wait_trouble(self, *parts: str) -> str:
        """The trouble that is in force, as soon as it has all of these parts; "" alone for none."""
        self.wait(
            lambda: all(part in self.trouble_now for part in parts) if any(parts) else self.trouble_now == "",
            f"the trouble is {parts}",
        )
        return self.trouble_now
