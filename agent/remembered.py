"""The members that the agent goes by, written down for the process that comes after it: who is in is a matter of what was
before, and a member that cannot be read stays as it was.

The file is a list of nodes as `membership.file` has it. It is lost with the kernel's state, at the next boot.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agent.membership.static import nodes_of
from cni import jsonio
from cni.errors import CniError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from plugins.peers import Node


class Memory:
    """The file of one network. `tell` is given a subject and what is wrong with it."""

    def __init__(self, run_dir: str, network: str, tell: Callable[[str, str], None]) -> None:
        self._path = path_of(run_dir, network)
        self._tell = tell
        self.is_outdated = False

    def recall(self) -> list[Node]:
        return read(self._path)

    def keep(self, nodes: Iterable[Node]) -> None:
        """Write down who is in, when that has changed. Without the file this process serves all the same."""
        if not self.is_outdated:
            return
        try:
            write(self._path, nodes)
        except OSError as error:
            self._tell("memory", f"{self._path}: {error.strerror}; written as soon as that is possible")
        else:
            self.is_outdated = False
            self._tell("memory", "")


def path_of(run_dir: str, network: str) -> str:
    return f"{run_dir}/agent/members/{network}.json"


def read(path: str) -> list[Node]:
    """None where there is no file, or one that cannot be understood: then the first list decides."""
    try:
        with open(path, "rb") as file:
            return nodes_of(file.read()).nodes
    except (OSError, CniError):
        return []


def write(path: str, nodes: Iterable[Node]) -> None:
    """OSError. A reader sees the old file or the new one, never a half."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new")
    with open(new, "wb") as file:
        file.write(jsonio.encode({"nodes": [node.described() for node in nodes]}))
    os.replace(new, path)
