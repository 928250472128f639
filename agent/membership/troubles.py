"""What is wrong with a source, of several kinds, as one text that is told when it changes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Faults of nodes told at once; there may be thousands.
_MOST_TOLD = 3


def few(texts: Sequence[str]) -> str:
    """Some of these as one text, and how many more there are; "" for none."""
    more = len(texts) - _MOST_TOLD
    return "; ".join([*texts[:_MOST_TOLD], *([f"and {more} more"] if more > 0 else [])])


class Troubles:
    """What is wrong now, told to a listener whenever it changes, and "" when nothing is. Any thread may tell.

    `follows` names subjects that are not told while another one is, because they follow from it.
    """

    def __init__(self, listener: Callable[[str], None], follows: Mapping[str, str] | None = None) -> None:
        self._listener = listener
        self._follows = follows or {}
        self._guard = threading.Lock()
        self._texts: dict[str, str] = {}
        self._nodes: dict[str, str] = {}
        self._told = ""
        self._closed = False

    def tell(self, subject: str, text: str) -> None:
        """Note what is wrong with a subject, "" for nothing."""
        with self._guard:
            self._texts[subject] = text
            self._say(self._text())

    def node(self, name: str, text: str) -> None:
        """Note what is wrong with a node, "" for nothing."""
        with self._guard:
            if text:
                self._nodes[name] = text
            else:
                self._nodes.pop(name, None)
            self._say(self._text())

    def nodes(self, texts: dict[str, str]) -> None:
        """Note all the nodes that something is wrong with."""
        with self._guard:
            self._nodes = texts
            self._say(self._text())

    def close(self) -> None:
        """Say nothing more."""
        with self._guard:
            self._closed = True

    def _text(self) -> str:
        hidden = {subject for subject, cause in self._follows.items() if self._texts.get(cause)}
        texts = [text for subject, text in self._texts.items() if text and subject not in hidden]
        texts.append(few([f"{name}: {self._nodes[name]}" for name in sorted(self._nodes)]))
        return "; ".join(dict.fromkeys(filter(None, texts)))

    def _say(self, text: str) -> None:
        if text != self._told and not self._closed:
            self._told = text
            self._listener(text)
