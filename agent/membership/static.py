"""Membership that somebody has written down: a file of nodes, looked at again and again, or the configuration itself.

    {"nodes": [{"name": "node2", "publicIP": "192.0.2.2", "subnets": ["10.244.2.0/24"]}, ...]}

The file is asked for its status four times a second, which costs microseconds and holds wherever a file may come
from: replaced by a rename, written in place, behind a symbolic link that is exchanged (a ConfigMap's), on a file
system that notifies of nothing. While it is gone, half written or something else, the last good one is in force; an entry
that cannot be read leaves its node as it was, and costs no other node anything.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from agent.membership import Source
from agent.membership.troubles import few
from cni import jsonio
from cni.config import Reader, Refusal, mapping, wrong
from cni.errors import INVALID_CONFIG, CniError
from plugins.peers import read_written

if TYPE_CHECKING:
    from typing import Any

    from agent.membership import Listener, Network
    from plugins.peers import Node

    Status = tuple[int, ...]

_PAUSE = 0.25
# A file's times go on in steps of up to 4 ms, so two writes can leave one time. For so long after the latest it is
# read again whatever its status says.
_FRESH_NS = 500_000_000
_LARGEST = 64 << 20


class Embedded(Source):
    """The configuration's own `peers`: they change with the agent's reload only."""

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        self._nodes = nodes

    def start(self, own: Node, listener: Listener) -> None:  # noqa: ARG002 - it is one of them
        listener.replace(list(self._nodes))

    def update(self, own: Node) -> None:
        pass

    def close(self) -> None:
        pass


class File(Source):
    """A file of nodes, watched by a thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, own: Node, listener: Listener) -> None:  # noqa: ARG002 - the file says who this node is
        self._thread = threading.Thread(target=self._watch, args=(listener,), name="members", daemon=True)
        self._thread.start()

    def update(self, own: Node) -> None:
        """Nobody is told: whoever writes the file knows."""

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, listener: Listener) -> None:
        seen: Status | None = None
        content = 0
        trouble = ""
        while True:
            now = self._status()
            if now != seen or _is_fresh(now):
                seen = now
                try:
                    data = self._read()
                    if hash(data) != content or trouble:
                        found = self._take(data, listener)
                        content = hash(data)
                except CniError as error:
                    found = f"{self._path}: {error.msg}"
                except OSError as error:
                    found = f"{self._path}: expected a file of nodes, found none: {error.strerror}"
                    seen = None  # what cannot be read may be readable the next time, with the same status
                if found != trouble:
                    listener.trouble(found)
                    trouble = found
            if self._closed.wait(_PAUSE):
                return

    def _take(self, data: bytes, listener: Listener) -> str:
        """Tell the nodes; returns what is wrong with some of them."""
        found = nodes_of(data)
        listener.replace(found.nodes, found.unread)
        return f"{self._path}: {few(found.faults)}" if found.faults else ""

    def _status(self) -> Status:
        """What changes when the file does; empty when it is not there."""
        try:
            found = os.stat(self._path)
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_dev, found.st_ino

    def _read(self) -> bytes:
        fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would be waited for
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CniError(INVALID_CONFIG, "expected a file of nodes, found something that is no regular file")
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise CniError(INVALID_CONFIG, f"expected at most {_LARGEST} bytes, found more")
        return data


class Written(NamedTuple):
    """What a file says: its nodes, in its order; what is wrong with other entries; and the names of those that cannot be
    read, "" where there is no name either."""

    nodes: list[Node]
    faults: list[str]
    unread: frozenset[str]


def nodes_of(data: bytes) -> Written:
    """The nodes that a file's bytes describe. CniError when the file as a whole is no list of nodes."""
    config = Reader(mapping("the file", jsonio.decode(data)))
    if config.raw("nodes") is None:  # a file of something else, or cut off: an empty cluster says []
        raise wrong("nodes", "an array of nodes", None)
    nodes: list[Node] = []
    names: dict[str, str] = {}
    faults: list[str] = []
    unread: set[str] = set()
    for path, value in config.array("nodes"):
        try:
            node = read_written(path, value)
        except CniError as error:
            faults.append(error.msg)
            unread.add(_name(value))
            continue
        nodes.append(node)
        if names.setdefault(node.name, path) != path:
            text = f"found two of {node.name}, the other at {names[node.name]}"
            faults.append(f"{path}.name: expected a name that no other node has, {text}")
    return Written(nodes, faults, frozenset(unread))


def _name(value: Any) -> str:
    """The name in an entry that cannot be read; empty when there is none either."""
    name = Reader(value).raw("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) else ""


def make(config: Reader, network: Network) -> File:  # noqa: ARG001 - the file says it all
    """The source that `{"source": "static", "file": PATH}` describes."""
    path = config.string("file")
    if not path.startswith("/"):
        remedy = 'add "file": "/etc/cnikit/peers.json", or where the file is'
        config.refuse(Refusal(config.at("file"), "the absolute path of a file of nodes", jsonio.shown(path), remedy))
    return File(path)


def _is_fresh(status: Status) -> bool:
    return bool(status) and abs(time.time_ns() - status[0]) < _FRESH_NS
