"""A connection to a Kubernetes API server, and what we ask of it: pages of Node objects, a watch of them, patches.

The library (lightkube; docs/adr/014 has the others with their memory) knows kubeconfigs, service accounts and how
objects are decoded into the few fields of `NodeView`. The requests are sent here one by one rather than by its
`Client`, because a watch needs bookmarks, timeouts and an end from another thread, and because every failure has to
become a sentence that tells people what to do (`ApiError`).
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2
import msgspec
import yaml  # type: ignore[import-untyped]  # for its errors
from lightkube.config.client_adapter import ConnectionParams, verify_cluster
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User
from lightkube.core import decoders
from lightkube.core.exceptions import ConfigError
from lightkube.core.generic_client import GenericSyncClient
from lightkube.types import PatchType

from agent.membership.kubernetes_node import NodeStatusView, NodeView
from cni import __version__, addr

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from lightkube.config.kubeconfig import SingleConfig
    from lightkube.core.generic_client import BasicRequest
    from lightkube.core.resource import NamespacedResource, Resource

# Where a pod finds its own.
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
PAGE = 500
_CONNECT_SECONDS, _READ_SECONDS = 5.0, 30.0
# A server that has gone without a word is noticed after so long: idle time, time between probes, probes.
_KEEPALIVE = (20, 5, 4)
_LONGEST_EVENT = 16 << 20
_LONGEST_RETRY = 60.0
_RBAC = "apply conf/kubernetes/base/rbac.yaml, or give its rights to whom this agent calls as"


_Kind = TypeVar("_Kind", bound=BaseException)
_View = TypeVar("_View", bound="NamespacedResource")


class ApiError(Exception):
    """The API server cannot be reached, refuses, or answers what is no answer. The text says what to do.

    `status` is HTTP's, 0 for none; `retry_after` what the server has asked for, in seconds; `spoilt` says that a
    watch was answered and then went wrong.
    """

    def __init__(self, text: str, *, status: int = 0, retry_after: float = 0.0, spoilt: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after
        self.spoilt = spoilt


class GoneError(ApiError):
    """The server does not know that version of the list any more (410): list anew."""


class _CutError(Exception):
    """A watch was cut off, which is no harm: the next one goes on where it stood."""


class Api:
    """One thread's connection, made from the configuration's files as they are now. ApiError when they are wrong."""

    def __init__(self, kubeconfig: str, service_account: str = SERVICE_ACCOUNT, server: str = "") -> None:
        """`server` is the URL to ask at, in the place of the configuration's own."""
        self._source = f"kubeconfig {kubeconfig}" if kubeconfig else f"service account {service_account}"
        self._socket: socket.socket | None = None
        config = _config(kubeconfig, service_account, server)
        self.server = config.cluster.server
        try:
            # The proxies and certificate stores of the environment are for other servers than the cluster's own.
            tls = verify_cluster(config.cluster, config.user, config.abs_file, trust_env=False)  # type: ignore[arg-type]
            transport = httpx2.HTTPTransport(verify=tls, trust_env=False, socket_options=_socket_options())
            timeout = httpx2.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
            parameters = ConnectionParams(timeout=timeout, trust_env=False, transport=transport)
            self._client = GenericSyncClient(parameters, config)
        except (ConfigError, OSError, ValueError, TypeError) as error:  # certificates: none, or garbage
            raise ApiError(f"{self._source}: expected readable certificates and a user, found: {error}") from error

    def close(self) -> None:
        self._client.close()  # type: ignore[no-untyped-call]

    def pages(self) -> Iterator[tuple[str, list[NodeView]]]:
        """Each page of the list of nodes, with the list's version."""
        request = self._request("list", NodeView, params={"limit": str(PAGE)})
        following: str | None = ""
        while following is not None:
            if following:
                request.params["continue"] = following
            following, version, views = self._page(request)
            following = following or None
            yield version or "", views

    def watch(self, version: str, seconds: int) -> Iterator[tuple[str, NodeView]]:
        """Each change since a version: its type (ADDED, MODIFIED, DELETED, BOOKMARK) and the object.

        Ends when the server ends it, `seconds` from now at the latest, or when it is cut off. The first item, of type
        "", says that the server has begun to answer.
        """
        params = {"resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        request = self._request("list", NodeView, watch=True, params=params)
        request.timeout = httpx2.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS, read=seconds + _READ_SECONDS)
        response = self._answer(request, stream=True)
        try:
            yield "", NodeView()
            with self._failures("an event of the watch", spoilt=True):
                for line in _lines(response):
                    yield _event(line)
        except _CutError:
            return
        finally:
            response.close()

    def interrupt(self) -> None:
        """End what another thread waits for."""
        found = self._socket
        if found is not None:
            try:
                socket.socket.shutdown(found, socket.SHUT_RDWR)  # the TLS above it is the reader's
            except OSError:
                pass  # it has ended by itself

    def leave(self, addresses: Container[bytes]) -> None:
        """End what goes from one of these addresses, which this host has no more: nothing comes back on it."""
        found = self._socket
        try:
            source = addr.pack(found.getsockname()[0]) if found is not None else None
        except OSError:
            return  # it has ended by itself
        if source in addresses:
            self.interrupt()

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Know the connection from its beginning: an answer that does not come has no stream yet."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            found = info["return_value"].get_extra_info("socket")
            self._socket = found if isinstance(found, socket.socket) else None

    def read(self, what: type[_View], name: str, namespace: str) -> _View:
        """One object of a namespace."""
        content = self._answer(self._request("get", what, name=name, namespace=namespace)).content
        with self._failures(f"the object {name}"):
            return msgspec.json.decode(content, type=what)

    def patch_status(self, name: str, patch: dict[str, Any]) -> NodeView:
        """Patch a node's status (and annotations); the node as it is then."""
        return self._patch(NodeStatusView, name, patch, PatchType.STRATEGIC)

    def patch_spec(self, name: str, patch: list[dict[str, Any]]) -> NodeView:
        """Patch a node by a JSON patch."""
        return self._patch(NodeView, name, patch, PatchType.JSON)

    def _patch(self, what: type[NodeView], name: str, patch: Any, kind: PatchType) -> NodeView:
        headers = {"Content-Type": kind.value}
        content = self._answer(self._request("patch", what, name=name, obj=patch, headers=headers)).content
        with self._failures("a node"):
            return msgspec.json.decode(content, type=NodeView)

    def _page(self, request: BasicRequest) -> tuple[str | None, str | None, list[NodeView]]:
        # Megabytes: httpx would keep them twice, and a caller until the next are there.
        response = self._answer(request, stream=True)
        with self._failures("the list of nodes"):
            try:
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
            finally:
                response.close()
            return decoders.decode_list(content, NodeView)  # type: ignore[arg-type]

    def _request(self, method: str, what: type[Resource], **options: Any) -> BasicRequest:
        request = self._client.prepare_request(method, what, **options)
        request.headers = {**(request.headers or {}), "User-Agent": f"cnikit/{__version__}"}
        return request

    def _answer(self, request: BasicRequest, *, stream: bool = False) -> httpx2.Response:
        with self._failures("an answer"):
            asked = self._client.build_adapter_request(request)
            asked.extensions = {**asked.extensions, "trace": self._trace}
            response: httpx2.Response = self._client.send(asked, stream=stream)
            if response.status_code == 200:
                return response
            try:
                response.read()
            finally:
                response.close()
        raise self._refusal(response)

    def _refusal(self, response: httpx2.Response) -> ApiError:
        status, said = response.status_code, _said(response.content)
        text = f"the API server at {self.server} answers {status} {response.reason_phrase}: {said}"
        if status == 410:
            return GoneError(text, status=status)
        if status == 401:
            text += (
                f"; expected a token or client certificate that is valid now, found that of the {self._source}, which "
                "has expired or is another cluster's: renew it, it is read again"
            )
        elif status == 403:
            text += f"; {_RBAC}"
        asked = response.headers.get("Retry-After", "")
        wait = min(float(asked), _LONGEST_RETRY) if asked.isascii() and asked.isdigit() else 0.0
        return ApiError(text, status=status, retry_after=wait)

    @contextmanager
    def _failures(self, expected: str, *, spoilt: bool = False) -> Iterator[None]:
        """Whatever the layers below raise, as ApiError."""
        at = f"the API server at {self.server}"
        try:
            yield
        except (msgspec.MsgspecError, UnicodeDecodeError, httpx2.DecodingError) as error:
            raise ApiError(f"{at}: expected {expected}, found something else: {error}", spoilt=spoilt) from error
        except (httpx2.HTTPError, OSError, ValueError) as error:
            untrusted = _cause(error, ssl.SSLCertVerificationError)
            if untrusted is not None:
                text = (
                    f"{at}: expected a certificate that the CA of the {self._source} has signed and that is valid now, "
                    f"found: {untrusted.verify_message}; renew the server's, or correct the CA"
                )
                raise ApiError(text) from error
            raise ApiError(f"cannot reach {at}: {_reason(error)}") from error
        except ConfigError as error:  # the token's file has gone, or the program that makes tokens fails
            raise ApiError(f"{self._source}: {error}") from error


def _config(kubeconfig: str, service_account: str, server: str = "") -> SingleConfig:
    """What the files say. ApiError when they cannot be used."""
    if not kubeconfig and not server and "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise ApiError(
            "membership.kubeconfig: expected a path, found none, and this is no pod of a cluster "
            "(KUBERNETES_SERVICE_HOST is not set), where the service account would do"
        )
    where = kubeconfig or service_account
    try:
        if not kubeconfig:
            config = _of_service_account(service_account, server).get()
        else:
            config = KubeConfig.from_file(kubeconfig).get()
        if config is None:
            raise ConfigError("expected a current-context, found none")
    except (ConfigError, OSError) as error:
        raise ApiError(f"{where}: {error}") from error
    except (yaml.YAMLError, msgspec.MsgspecError, KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise ApiError(f"{where}: expected a kubeconfig with a current-context, found {problem}") from error
    if server:
        config = config._replace(cluster=msgspec.structs.replace(config.cluster, server=server))
    if not config.cluster.server.startswith(("http://", "https://")):
        raise ApiError(f"{where}: expected a server such as https://192.0.2.1:6443, found {config.cluster.server!r}")
    return config if config.user is not None else config._replace(user=User())


def _of_service_account(folder: str, server: str) -> KubeConfig:
    """The same as `KubeConfig.from_service_account`, which has no server but that of the environment."""
    if not server:
        return KubeConfig.from_service_account(folder)
    token = os.path.join(folder, "token")
    with open(token, encoding="utf-8") as file:
        user = User(token=file.read(), token_file=token)
    cluster = Cluster(server=server, certificate_auth=os.path.join(folder, "ca.crt"))
    return KubeConfig.from_one(cluster=cluster, user=user)


def _socket_options() -> list[tuple[int, int, int]]:
    idle, interval, probes = _KEEPALIVE
    return [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * (idle + interval * probes)),
    ]


def _lines(response: httpx2.Response) -> Iterator[bytes]:
    """The lines of a stream. Not httpx's own: it splits at every character that Unicode calls a line's end."""
    rest = b""
    chunks = response.iter_bytes()
    while True:
        try:
            *lines, rest = (rest + next(chunks)).split(b"\n")
        except StopIteration:
            return
        except httpx2.TransportError as error:
            raise _CutError from error
        yield from (line for line in lines if line.strip())
        if len(rest) > _LONGEST_EVENT:
            raise msgspec.DecodeError(f"a line of more than {_LONGEST_EVENT >> 20} MiB")


def _event(line: bytes) -> tuple[str, NodeView]:
    event = decoders.decode_watch_event(line)
    if event.type == "ERROR":
        status = decoders.decode_status(bytes(event.object))
        text = f"the API server ends the watch with {status.code}: {status.message}"
        kind = GoneError if status.code == 410 else ApiError
        raise kind(text, status=status.code or 0, spoilt=True)
    return event.type, decoders.decode_object(bytes(event.object), NodeView)


class _Said(msgspec.Struct):
    message: str


def _said(content: bytes) -> str:
    """The message of a Status object, or the beginning of what was sent instead."""
    try:
        return msgspec.json.decode(content, type=_Said).message
    except msgspec.MsgspecError:
        return " ".join(content[:200].decode(errors="replace").split()) or "nothing else"


def _reason(error: BaseException) -> str:
    found = _cause(error, OSError) or error
    text = str(getattr(found, "strerror", None) or found)
    return text or type(error).__name__


def _cause(error: BaseException | None, kind: type[_Kind]) -> _Kind | None:
    """The first of a chain of errors that is of a kind."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error
