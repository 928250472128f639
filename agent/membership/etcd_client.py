"""etcd's v3 API over its JSON gateway: reads, transactions, leases and watches, on one of several endpoints.

This is a client of its own because the ones there are cost an agent 20 MiB and more (docs/adr/013), and because the one
that speaks to the gateway does not tell when a watch was cancelled, which is how etcd announces that the
revisions asked for are compacted. What is left of a client is this file: the gateway takes protobuf messages as
JSON, keys and values in base64, and answers a watch with one JSON object a line.

Field names are those of etcd's rpc.proto; 64-bit numbers are strings, as protobuf's JSON has them.
"""

from __future__ import annotations

import http.client
import json
import socket
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from agent.membership.etcd_faults import (
    PERMISSION_DENIED,
    UNAUTHENTICATED,
    CompactedError,
    EtcdError,
    RefusedError,
    UnreachableError,
    connection_fault,
)
from cni import __version__, addr

if TYPE_CHECKING:
    from collections.abc import Container, Generator, Sequence
    from typing import Any

    from agent.membership.etcd_credentials import Credentials

# Seconds for one exchange. etcd itself gives up on a request that finds no leader after 7.
_PATIENCE = 8.0
# A server that has vanished without a word is noticed after 10 + 3 * 5 seconds.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
# Keys of one answer when many are read: about 400 KiB of JSON.
PAGE = 1000
# gRPC's numbers for what another endpoint, or a later try, may answer: deadline exceeded, unavailable.
_PASSING = (4, 14)


class KeyValue(NamedTuple):
    """A key as etcd holds it. `lease` is 0 for none."""

    key: str
    value: bytes
    mod: int
    lease: int


class Event(NamedTuple):
    """One change of a key; `gone`: it was deleted, or its lease ended."""

    kv: KeyValue
    gone: bool


class Answer(NamedTuple):
    """What a watch tells: the changes, which of the watched keys they are of (1 is the first; an answer without any says
    that there were none up to `revision`), and which cluster says so. The first answer of each is `created`."""

    watch: int
    created: bool
    revision: int
    cluster: str
    events: list[Event]


class Outcome(NamedTuple):
    """A transaction's: whether its comparisons held, and what its branch read, a list for each `get`."""

    succeeded: bool
    revision: int
    found: list[list[KeyValue]]


class Client:
    """One thread's connection to etcd, made when it is needed. Another thread may call `interrupt`.

    Every endpoint is tried once before UnreachableError is raised; `start` says with which to begin.
    """

    def __init__(self, endpoints: Sequence[str], credentials: Credentials, start: int = 0) -> None:
        self._endpoints = endpoints
        self._credentials = credentials
        self._at = start % len(endpoints)
        self._token = ""
        self._connection: http.client.HTTPConnection | None = None
        self._closed = False
        self.requests = 0

    def read(self, keys: Sequence[str]) -> list[KeyValue | None]:
        """Single keys, all at one revision."""
        found = self.transact([], [get(key) for key in keys]).found
        return [one[0] if one else None for one in found]

    def read_all(self, prefix: str, *, values: bool = True) -> tuple[list[KeyValue], int, str]:
        """Every key that begins with `prefix`, the revision at which that is so, and the cluster's identity."""
        found: list[KeyValue] = []
        start, revision, cluster = prefix, 0, ""
        while True:
            asked: dict[str, Any] = {"key": encoded(start), "range_end": encoded(after(prefix)), "limit": str(PAGE)}
            answer = self.call("kv/range", {**asked, "revision": str(revision), "keys_only": not values})
            if not revision:  # the following pages are of the same moment
                revision, cluster = int(answer["header"]["revision"]), answer["header"]["cluster_id"]
            page = [_key_value(kv) for kv in answer.get("kvs", ())]
            found += page
            if not answer.get("more"):
                return found, revision, cluster
            start = page[-1].key + "\0"

    def transact(
        self, compare: list[dict[str, Any]], success: list[dict[str, Any]], failure: Sequence[dict[str, Any]] = ()
    ) -> Outcome:
        """One transaction of what `held`, `absent`, ... compare and `put`, `get`, `delete` do."""
        answer = self.call("kv/txn", {"compare": compare, "success": success, "failure": list(failure)})
        ranges = [one["response_range"] for one in answer.get("responses", ()) if "response_range" in one]
        found = [[_key_value(kv) for kv in one.get("kvs", ())] for one in ranges]
        return Outcome(bool(answer.get("succeeded")), int(answer["header"]["revision"]), found)

    def grant(self, ttl: int) -> int:
        """A new lease of `ttl` seconds."""
        return int(self.call("lease/grant", {"TTL": str(ttl)})["ID"])

    def keep_alive(self, lease: int) -> int:
        """Renew a lease; returns its seconds, 0 when it is no more."""
        answer = self.call("lease/keepalive", {"ID": str(lease)})
        return int(answer["result"].get("TTL", 0))

    def watch(self, watched: Sequence[tuple[str, str]], revision: int) -> Generator[Answer]:
        """Changes of keys (each with the end of its range, or "") from a revision on, as they come.

        Ends with an EtcdError: CompactedError when the revision is compacted, UnreachableError when the connection
        is lost.
        """
        requests = b"".join(
            json.dumps({"create_request": {
                "key": encoded(key), **({"range_end": encoded(end)} if end else {}), "watch_id": str(number),
                "start_revision": str(revision), "progress_notify": True,
            }}).encode() for number, (key, end) in enumerate(watched, 1)
        )  # fmt: skip
        with self._asked("watch", requests) as response:
            self._stay()
            try:
                while line := response.readline():
                    answer = _watched(line)
                    if answer is not None:
                        yield answer
                raise ConnectionResetError("it ended the watch")
            except RefusedError as error:
                if error.code != UNAUTHENTICATED or not self._token:
                    raise
                self._token = ""  # it was of an etcd before this one; the next watch has a new one
                raise UnreachableError(str(error)) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise self._moved_on(error) from error
            finally:
                self.close()  # what comes on it after this is no answer to another request

    def interrupt(self) -> None:
        """Have the call that waits in another thread, and every later one, end with UnreachableError."""
        self._closed = True
        self.disturb()

    def disturb(self) -> None:
        """Have the call that waits in another thread end with UnreachableError."""
        sock = self._sock()
        if sock is not None:
            try:
                # Not SSLSocket's own shutdown, which takes the TLS layer from under the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass  # it is gone already

    def leave(self, addresses: Container[bytes]) -> None:
        """Have a connection end that was made from one of these addresses, which this host has no more: nothing comes back
        on it, and the kernel would find that out after half a minute only."""
        sock = self._sock()
        if sock is not None and _source(sock) in addresses:
            self.disturb()

    def _sock(self) -> socket.socket | None:
        """The connection's, to be asked for once by another thread: the connection's own lets go of it at any moment."""
        connection = self._connection
        return connection.sock if connection is not None else None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def call(self, path: str, message: dict[str, Any]) -> Any:
        """The answer to one request."""
        with self._asked(path, json.dumps(message).encode()) as response:
            try:
                return json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise self._moved_on(error) from error

    def _asked(self, path: str, body: bytes) -> http.client.HTTPResponse:
        """The response to a request, of the first endpoint that serves it, with a token that holds."""
        try:
            return self._served(path, body)
        except RefusedError as error:
            if error.code != UNAUTHENTICATED or not self._token:
                raise
            self._token = ""  # tokens end after some minutes, and with etcd's process
            return self._served(path, body)

    def _served(self, path: str, body: bytes) -> http.client.HTTPResponse:
        faults: dict[str, str] = {}  # of each endpoint, the last one
        for _ in range(len(self._endpoints) + 1):  # once more: a connection that was kept may be dead
            endpoint = self._endpoints[self._at]
            try:
                return self._exchanged(path, body)
            except (OSError, http.client.HTTPException) as error:
                fault = connection_fault(endpoint, error, self._credentials)
            except UnreachableError as error:
                fault = str(error)
            self._move_on()
            faults[endpoint] = fault
        raise UnreachableError("; ".join(faults.values()))

    def _exchanged(self, path: str, body: bytes) -> http.client.HTTPResponse:
        if self._closed:
            raise UnreachableError("closed")
        connection = self._connected()
        if self._credentials.user and not self._token and path != "auth/authenticate":
            self._token = self._authenticated()
        headers = {"User-Agent": f"cnikit/{__version__}", "Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = self._token
        if path == "watch":  # a member that has lost the others ends it, and does not go on saying nothing
            headers["Grpc-Metadata-hasleader"] = "true"
        self.requests += 1
        connection.request("POST", f"/v3/{path}", body, headers)
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise _refusal(self._endpoints[self._at], response.status, response.read())
        return response

    def _authenticated(self) -> str:
        credentials = self._credentials
        name = {"name": credentials.user, "password": credentials.secret()}
        with self._exchanged("auth/authenticate", json.dumps(name).encode()) as response:
            return str(json.loads(response.read())["token"])

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            url = urlsplit(self._endpoints[self._at])
            host, port = url.hostname or "", url.port or 2379
            connection: http.client.HTTPConnection
            if url.scheme == "https":
                context = self._credentials.context()
                connection = http.client.HTTPSConnection(host, port, timeout=_PATIENCE, context=context)
            else:
                connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
            connection.connect()
            self._connection = connection
        return self._connection

    def _stay(self) -> None:
        """A watch may say nothing for hours: the kernel finds out whether the other side is there."""
        assert self._connection is not None
        if self._closed:  # by another thread, which has found nothing to shut down
            raise UnreachableError("closed")
        connection = self._connection.sock
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in _KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, seconds)

    def _moved_on(self, error: Exception) -> UnreachableError:
        """The error for a connection that broke within an answer; the next request goes to the next endpoint."""
        fault = UnreachableError(connection_fault(self._endpoints[self._at], error, self._credentials))
        self._move_on()
        return fault

    def _move_on(self) -> None:
        self.close()
        self._at = (self._at + 1) % len(self._endpoints)


def _source(sock: socket.socket) -> bytes | None:
    """The address that a connection was made from."""
    try:
        return addr.pack(sock.getsockname()[0])
    except OSError:  # it has just been closed
        return None


def encoded(text: str | bytes) -> str:
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def after(prefix: str) -> str:
    """The end of the range of all keys with a prefix, which ends in a character of ASCII."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def get(key: str, end: str = "") -> dict[str, Any]:
    return {"request_range": {"key": encoded(key), **({"range_end": encoded(end)} if end else {})}}


def put(key: str, value: bytes, lease: int = 0) -> dict[str, Any]:
    return {"request_put": {"key": encoded(key), "value": encoded(value), "lease": str(lease)}}


def delete(key: str) -> dict[str, Any]:
    return {"request_delete_range": {"key": encoded(key)}}


def absent(key: str) -> dict[str, Any]:
    """Compares: the key is not there."""
    return {"key": encoded(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}


def holds(key: str, value: bytes) -> dict[str, Any]:
    """Compares: the key has this value."""
    return {"key": encoded(key), "target": "VALUE", "result": "EQUAL", "value": encoded(value)}


def leased(key: str, lease: int) -> dict[str, Any]:
    """Compares: the key is there under this lease."""
    return {"key": encoded(key), "target": "LEASE", "result": "EQUAL", "lease": str(lease)}


def unchanged(key: str, revision: int, end: str = "") -> dict[str, Any]:
    """Compares: the key, or none of a range, was written after a revision."""
    ending = {"range_end": encoded(end)} if end else {}
    return {
        "key": encoded(key), **ending, "target": "MOD", "result": "LESS", "mod_revision": str(revision + 1),
    }  # fmt: skip


def _key_value(kv: dict[str, Any]) -> KeyValue:
    key = b64decode(kv["key"]).decode("utf-8", "replace")
    return KeyValue(key, b64decode(kv.get("value", "")), int(kv.get("mod_revision", 0)), int(kv.get("lease", 0)))


def _watched(line: bytes) -> Answer | None:
    """One line of a watch; None for an empty one."""
    message = json.loads(line) if line.strip() else None
    if message is None:
        return None
    if "error" in message:
        error = message["error"]
        raise UnreachableError(f"etcd ended the watch: {error.get('message', error)}")
    result = message["result"]
    if result.get("canceled"):
        if "compact_revision" in result:
            raise CompactedError("the revision asked for is compacted")
        reason = str(result.get("cancel_reason", "no reason given"))
        code = UNAUTHENTICATED if _is_about_token(reason) else PERMISSION_DENIED if "PermissionDenied" in reason else 0
        raise RefusedError(f"etcd refused to watch: {reason}", code)
    events = [Event(_key_value(event["kv"]), event.get("type") == "DELETE") for event in result.get("events", ())]
    header = result["header"]
    watch, created = int(result.get("watch_id", 0)), bool(result.get("created"))
    return Answer(watch, created, int(header.get("revision", 0)), header["cluster_id"], events)


def _refusal(endpoint: str, status: int, body: bytes) -> EtcdError:
    """The error that an answer other than 200 is."""
    try:
        found = json.loads(body)
        if isinstance(found.get("error"), dict):  # how streams say it
            found = found["error"]
        text, code = str(found.get("message") or found["error"]), int(found.get("grpc_code") or found["code"])
    except (ValueError, KeyError, TypeError, AttributeError):
        text, code = body[:200].decode("utf-8", "replace").strip(), 0
    if "compacted" in text:
        return CompactedError(text)
    if code in _PASSING or (not code and status >= http.client.INTERNAL_SERVER_ERROR):
        return UnreachableError(f"etcd at {endpoint} is not ready: {text} (HTTP {status})")
    if _is_about_token(text):
        code = UNAUTHENTICATED
    return RefusedError(f"etcd at {endpoint} refused: {text} (HTTP {status})", code)


def _is_about_token(text: str) -> bool:
    return "revision of auth store is old" in text or "invalid auth token" in text
