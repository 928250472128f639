"""What can be wrong with etcd, told so that it can be put right: found, and the next step."""

from __future__ import annotations

import errno
import os
from http.client import RemoteDisconnected
from typing import TYPE_CHECKING

from cni import addr

if TYPE_CHECKING:
    from agent.membership.etcd_credentials import Credentials
    from plugins.peers import Node

# gRPC's numbers.
INVALID_ARGUMENT, PERMISSION_DENIED, UNAUTHENTICATED = 3, 7, 16
# X509_V_ERR_* of OpenSSL, and what to do about each.
_CERTIFICATE_STEPS = {
    9: "it is valid from a later time: compare the clocks",
    10: "it has expired: renew etcd's certificate",
    18: "caFile must hold the authority that signed it",
    19: "caFile must hold the authority that signed it",
    20: "caFile must hold the authority that signed it",
    21: "caFile must hold the authority that signed it",
    62: "endpoints must name etcd as its certificate does",
    64: "endpoints must name etcd as its certificate does",
}


class EtcdError(Exception):
    """etcd cannot be used now; the text says why and what to do."""


class UnreachableError(EtcdError):
    """Another endpoint, or a later try, may answer."""


class CompactedError(EtcdError):
    """What was asked for is no longer kept: read everything anew."""


class LostError(EtcdError):
    """What this node held in etcd is not there any more."""


class NameTakenError(EtcdError):
    """Another machine is there under this node's name."""

    def __init__(self, other: Node) -> None:
        super().__init__(f"{name_fault(other)}; until then this one has no subnet")


def name_fault(other: Node) -> str:
    """What to tell on both machines of one name."""
    addresses = ", ".join(map(addr.unpack, other.addresses.values()))
    return f"another node, with {addresses}, also calls itself {other.name}; give each a nodeName of its own"


class RefusedError(EtcdError):
    """etcd does not do it, with gRPC's number for why."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(f"{text}; {step}" if (step := _step(text, code)) else text)
        self.code = code


def _step(text: str, code: int) -> str:
    """What to do when etcd refuses."""
    if code == UNAUTHENTICATED or "user name is empty" in text:
        return "etcd asks for a user: give username and passwordFile, and see whether they are right"
    if code == PERMISSION_DENIED:
        return "grant the user's role readwrite on prefix"
    if code == INVALID_ARGUMENT and "authentication failed" in text:
        return "username and passwordFile must be those of an etcd user"
    if "authentication is not enabled" in text:
        return "leave username and passwordFile out, or have etcd ask for users"
    if "database space exceeded" in text:
        return "etcd is full: compact and defragment it, then etcdctl alarm disarm"
    return ""


def connection_fault(endpoint: str, error: Exception, credentials: Credentials) -> str:
    """What a connection's error means."""
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        step = _CERTIFICATE_STEPS.get(error.verify_code, "look at it with openssl s_client")
        return f"etcd at {endpoint}: its certificate is not accepted ({error.verify_message}); {step}"
    if isinstance(error, ssl.SSLError):
        return _tls_fault(endpoint, error, credentials)
    if isinstance(error, OSError) and error.filename in credentials.files:
        return f"{error.filename}: cannot be read: {error.strerror}"
    if isinstance(error, RemoteDisconnected) and endpoint.startswith("http:"):
        return f"etcd at {endpoint} ended the connection; where it speaks TLS, endpoints must say https:// there"
    number = error.errno if isinstance(error, OSError) else None
    what = os.strerror(number) if number in errno.errorcode and number is not None else str(error)
    return f"etcd at {endpoint} cannot be reached: {what or type(error).__name__}"


def _tls_fault(endpoint: str, error: Exception, credentials: Credentials) -> str:
    reason = getattr(error, "reason", None) or str(error)
    said = reason.lower().replace("_", " ")
    if "CERTIFICATE_REQUIRED" in reason or ("ALERT" in reason and not credentials.cert):
        return f"etcd at {endpoint} asks for a client certificate ({said}); give certFile and keyFile"
    if "ALERT" in reason:
        look = f"openssl x509 -noout -dates -issuer -in {credentials.cert}"
        return (
            f"etcd at {endpoint} does not accept the certificate {credentials.cert} ({said}); "
            f"see whether it has expired or another authority signed it: {look}"
        )
    if "EOF" in reason:
        return (
            f"etcd at {endpoint} ended the TLS handshake; where it does not speak TLS, endpoints must say http:// there"
        )
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return f"etcd at {endpoint} does not speak TLS ({said}); endpoints must say http:// there"
    if reason in ("KEY_VALUES_MISMATCH", "NO_START_LINE", "BAD_PASSWORD_READ") or "PEM" in reason:
        return f"caFile, certFile or keyFile is wrong ({said}); certFile and keyFile must be PEM and belong together"
    return f"etcd at {endpoint} cannot be reached: TLS: {said}"
