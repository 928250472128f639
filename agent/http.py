"""Health and metrics over HTTP, on a Unix socket or a loopback port. One thread, and never more than a few clients.

The standard library's server would take 7 MiB of memory and a thread for each client. What is needed here is the
answer to GET of three paths, on connections that end with it.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from cni.paths import make_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SECONDS = 5.0  # for a whole exchange
MOST_CLIENTS = 16
_LONGEST_HEAD = 8192
_BACKLOG = 128
_FULL_PAUSE = 0.1
_PATIENCE = 3.0  # for an agent that gives its place up

_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


class AddressError(Exception):
    """The address cannot be listened at: says what was expected, found, and what to do."""


class Reply(NamedTuple):
    """What a path answers."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


def beside(agent_socket: str) -> str:
    """Where an agent answers HTTP when no other place is given: `agent-http.sock` for `agent.sock`."""
    return f"{agent_socket.removesuffix('.sock')}-http.sock"


def parse(where: str) -> str | tuple[str, int]:
    """A path, or a loopback address with its port: `127.0.0.1:20500`, `[::1]:20500`, `localhost:20500`."""
    if where.startswith("/"):
        return where
    host, _, port = where.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    expected = "a path, or a loopback address and port such as 127.0.0.1:20500"
    try:
        packed = socket.inet_pton(family, host)
    except (OSError, ValueError):
        raise AddressError(f"--http: expected {expected}, found {where!r}") from None
    if not (packed[0] == 127 if len(packed) == 4 else packed == socket.inet_pton(socket.AF_INET6, "::1")):
        raise AddressError(f"--http: expected {expected}, found {where!r}: other users must not see this node's pods")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise AddressError(f"--http: expected {expected}, found the port {port!r}")
    return host, int(port)


class HttpServer:
    """Answers GET at `where`, in a thread, from its construction to `close`. `replies` maps paths to their answers."""

    def __init__(self, where: str, replies: Mapping[str, Callable[[], Reply]], failed: Callable[[str], None]) -> None:
        self.where = where
        self._replies = replies
        self._failed = failed
        self._listener = _listen(where)
        self._file = _identity(where)
        self._clients: dict[int, _Client] = {}
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._stopped, self._stopping = socket.socketpair()
        self._epoll.register(self._stopped, select.EPOLLIN)
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and remove the socket file if it is ours still. Closing twice is harmless."""
        if self._listener.fileno() < 0:
            return
        self._stopping.send(b"\0")
        self._thread.join(SECONDS)
        if self._file is not None and _identity(self.where) == self._file:
            os.unlink(self.where)
        for client in list(self._clients.values()):
            self._forget(client)
        for one in (self._listener, self._epoll, self._stopped, self._stopping):
            one.close()

    def _serve(self) -> None:
        while True:
            for fd, _ in self._epoll.poll(1.0 if self._clients else -1):
                if fd == self._stopped.fileno():
                    return
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._clients:
                    self._go_on(self._clients[fd])
            now = time.monotonic()
            for client in [one for one in self._clients.values() if one.deadline < now]:
                self._forget(client)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor left: it stays in the queue, and is no reason to spin
            time.sleep(_FULL_PAUSE)
            return
        if len(self._clients) >= MOST_CLIENTS:  # the one that has been here for the longest is the slowest
            self._forget(next(iter(self._clients.values())))
        client = _Client(peer, time.monotonic() + SECONDS)
        self._clients[peer.fileno()] = client
        self._epoll.register(peer, select.EPOLLIN)

    def _go_on(self, client: _Client) -> None:
        try:
            if not client.answer and client.hear():
                client.answer = self._answer(client.head)
                self._epoll.modify(client.peer, select.EPOLLOUT)
            if client.answer:
                client.tell()
        except BlockingIOError:
            return
        except OSError:
            client.ended = True
        if client.ended:
            self._forget(client)

    def _forget(self, client: _Client) -> None:
        self._clients.pop(client.peer.fileno(), None)
        client.peer.close()

    def _answer(self, head: bytes) -> bytes:
        if len(head) >= _LONGEST_HEAD:
            return _response(Reply(431, b"the request's head is too long\n"))
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        path, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return _response(Reply(400, b"expected an HTTP/1.1 request\n"))
        if method not in ("GET", "HEAD"):
            return _response(Reply(405, b"only GET and HEAD are answered here\n"))
        reply = self._replies.get(path.partition("?")[0])
        if reply is None:
            found = Reply(404, f"try one of {' '.join(self._replies)}\n".encode())
        else:
            try:
                found = reply()
            except Exception as error:  # noqa: BLE001 - the next request is answered in any case
                self._failed(f"{path}: {type(error).__name__}: {error}")
                found = Reply(500, b"this failed; the agent's log says why\n")
        return _response(found, body=method == "GET")


class _Client:
    """One connection: it sends its request, is sent the reply, and ends."""

    __slots__ = ("answer", "deadline", "ended", "head", "peer")

    def __init__(self, peer: socket.socket, deadline: float) -> None:
        peer.setblocking(False)
        self.peer = peer
        self.deadline = deadline
        self.head = b""
        self.answer = b""
        self.ended = False

    def hear(self) -> bool:
        """Whether its request is there."""
        chunk = self.peer.recv(_LONGEST_HEAD)
        self.head += chunk
        self.ended = not chunk
        return not self.ended and (b"\r\n\r\n" in self.head or len(self.head) >= _LONGEST_HEAD)

    def tell(self) -> None:
        self.answer = self.answer[self.peer.send(self.answer, socket.MSG_NOSIGNAL) :]
        self.ended = not self.answer


def _response(reply: Reply, *, body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {reply.status} {_REASONS[reply.status]}\r\nContent-Type: {reply.content_type}\r\n"
        f"Content-Length: {len(reply.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (reply.body if body else b"")


def _listen(where: str) -> socket.socket:
    """A socket that listens there. Another agent that does so may need a moment to give its place up."""
    address = parse(where)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return _listen_at_path(address) if isinstance(address, str) else _listen_at_port(address)
        except FileExistsError as error:
            found = str(error)
        except OSError as error:
            found = error.strerror or str(error)
            if isinstance(address, str):
                deadline = 0.0
        if time.monotonic() > deadline:
            raise AddressError(f"cannot listen at {where}: {found}; choose another place with --http")
        time.sleep(0.05)


def _listen_at_path(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_way(path)
        make_folders(os.path.dirname(path), 0o700)
        os.fchmod(listener.fileno(), 0o600)  # before it is there; a umask would be that of threads that start now
        listener.bind(path)
        return _listening(listener)
    except OSError:
        listener.close()
        raise


def _make_way(path: str) -> None:
    """Remove the socket file of an agent that was killed. FileExistsError when somebody answers there."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError("there is a file that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
    raise FileExistsError("another program answers there")


def _listen_at_port(address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return _listening(listener)
    except OSError:
        listener.close()
        raise


def _listening(listener: socket.socket) -> socket.socket:
    listener.setblocking(False)
    listener.listen(_BACKLOG)
    return listener


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
