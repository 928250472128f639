"""What a source of membership says, from its threads to the cluster's."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from plugins.peers import Node


class News(NamedTuple):
    """Nodes that are there and names that are gone (None: all others, but for those that are there and `unread`)."""

    put: list[Node]
    gone: list[str] | None
    unread: frozenset[str] = frozenset()


class Inbox:
    """The listener of a source. `next` is for the thread that `wake` wakes."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._mutex = threading.Lock()
        self._news: deque[News] = deque()
        self.trouble_text = ""

    def replace(self, nodes: list[Node], unread: Collection[str] = ()) -> None:
        with self._mutex:
            self._news.clear()  # it says it all
            self._news.append(News(nodes, None, frozenset(unread)))
        self._wake()

    def change(self, put: list[Node], gone: list[str]) -> None:
        with self._mutex:
            self._news.append(News(put, gone))
        self._wake()

    def trouble(self, text: str) -> None:
        self.trouble_text = text
        self._wake()

    def next(self) -> News | None:
        """None when there is no more news."""
        with self._mutex:
            return self._news.popleft() if self._news else None
