"""A small API server for what a real one does not do on demand: it cuts, stalls, refuses and talks nonsense.

It serves nodes as Kubernetes does (pages, watches, bookmarks, patches) over a real socket, with TLS when it is given
a certificate. `next` says what the next request of a kind gets instead.
"""

from __future__ import annotations

import json
import queue
import ssl
import threading
from collections import defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.kubernetes.control_plane import kubeconfig, node_object

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kubernetes.pki import Pair

    # What a request gets: it is given the handler, and answers all by itself.
    Action = Callable[["Handler"], None]


class StandIn:
    """The server, from its construction to `close`."""

    def __init__(self, pair: Pair | None = None) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.version = 100
        self.requests: list[tuple[str, dict[str, str]]] = []  # kind (list, watch, patch) and query
        self.patches: list[Any] = []
        self._actions: dict[str, deque[Action]] = defaultdict(deque)
        self._watches: set[queue.SimpleQueue[bytes | None]] = set()
        self.streaming = 0  # which of the watches that were asked for is the last to have begun
        self._guard = threading.Lock()
        self.released = threading.Event()  # what stalls waits for this
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.stand_in = self
        scheme = "http"
        if pair is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair.certificate, pair.key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.address = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.released.set()
        self.end_watches()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def kubeconfig(self, path: Path, ca: Path | None = None) -> str:
        path.write_text(json.dumps(kubeconfig(self.address, {"token": "secret"}, ca)))
        return str(path)

    def next(self, kind: str, *actions: Action) -> None:
        """What the next requests of a kind get: one each."""
        self._actions[kind].extend(actions)

    def count(self, kind: str) -> int:
        return sum(1 for one, _ in self.requests if one == kind)

    def add(self, number: int, **fields: Any) -> dict[str, Any]:
        """A node, listed from now on; nobody who watches is told."""
        node = node_object(f"node{number}", [f"10.244.{number}.0/24"], [f"192.0.2.{number}"])
        node.update(fields)
        self.version += 1
        node["metadata"]["resourceVersion"] = str(self.version)
        self.nodes[f"node{number}"] = node
        return node

    def push(self, kind: str, node: dict[str, Any]) -> None:
        """An event for who watches."""
        self.send(json.dumps({"type": kind, "object": node}).encode() + b"\n")

    def bookmark(self, version: int) -> None:
        self.push("BOOKMARK", {"kind": "Node", "metadata": {"resourceVersion": str(version)}})

    def error(self, code: int, message: str) -> None:
        self.push("ERROR", {"kind": "Status", "code": code, "message": message, "status": "Failure"})

    def send(self, data: bytes | None) -> None:
        """These bytes to who watches; None ends the watches."""
        with self._guard:
            for watch in self._watches:
                watch.put(data)

    def end_watches(self) -> None:
        self.send(None)

    @property
    def watching(self) -> int:
        return len(self._watches)

    # For the handler

    def action(self, kind: str) -> Action | None:
        return self._actions[kind].popleft() if self._actions[kind] else None

    def watch(self, handler: Handler) -> None:
        """Stream what is sent, until None."""
        events: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        handler.begin_chunks()
        with self._guard:
            for other in self._watches:  # there is one client, which has left that one
                other.put(None)
            self._watches.add(events)
            self.streaming = self.count("watch")
        try:
            while (data := events.get()) is not None:
                handler.chunk(data)
            handler.chunk(b"")
        finally:
            with self._guard:
                self._watches.discard(events)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    stand_in: StandIn

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        kind = "watch" if query.get("watch") == "true" else "list"
        if self._taken(kind, query):
            return
        if kind == "watch":
            self.server.stand_in.watch(self)
        else:
            self._list(query)

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = urlsplit(self.path).path.split("/")[4]
        if self._taken("patch", {}):
            return
        stand_in = self.server.stand_in
        stand_in.patches.append(body)
        node = stand_in.nodes[name]
        if isinstance(body, dict):
            notes = node["metadata"].setdefault("annotations", {})
            notes.update(body.get("metadata", {}).get("annotations", {}))
            if "status" in body:
                node["status"]["conditions"] = body["status"]["conditions"]
        self.answer(200, node)

    def answer(self, status: int, body: Any, **headers: str) -> None:
        """A whole answer. Bytes go as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", headers.pop("content_type", "application/json"))
        self.send_header("Content-Length", str(len(data)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def begin_chunks(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        """One chunk; an empty one is the last."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def cut(self) -> None:
        """End the connection in the middle of what is being said."""
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass

    def _taken(self, kind: str, query: dict[str, str]) -> bool:
        stand_in = self.server.stand_in
        stand_in.requests.append((kind, query))
        action = stand_in.action(kind)
        if action is not None:
            action(self)
        return action is not None

    def _list(self, query: dict[str, str]) -> None:
        stand_in = self.server.stand_in
        begin, limit = int(query.get("continue", "0")), int(query["limit"])
        nodes = list(stand_in.nodes.values())
        meta = {"resourceVersion": str(stand_in.version)}
        if begin + limit < len(nodes):
            meta["continue"] = str(begin + limit)
        self.answer(200, {"kind": "NodeList", "metadata": meta, "items": nodes[begin : begin + limit]})


def refuse(status: int, message: str, **headers: str) -> Action:
    """A refusal in the form of Kubernetes."""
    body = {"kind": "Status", "status": "Failure", "message": message, "code": status}
    return lambda handler: handler.answer(status, body, **headers)


def say(data: bytes, status: int = 200, content_type: str = "application/json") -> Action:
    """Any bytes."""
    return lambda handler: handler.answer(status, data, content_type=content_type)


def begin_and_cut(data: bytes) -> Action:
    """The beginning of a stream, and then nothing more."""

    def action(handler: Handler) -> None:
        handler.begin_chunks()
        if data:
            handler.chunk(data)
        handler.cut()

    return action
