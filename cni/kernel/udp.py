"""Whether a UDP port is free, for a tunnel of the kernel: else that is known only once a device is made and set up."""

from __future__ import annotations

import _socket
from errno import EADDRINUSE, EAFNOSUPPORT

from cni.addr import AF_INET6
from cni.errors import KernelError


def is_free(family: int, port: int) -> bool:
    """Call it in the namespace. True without this family: there is nobody then.

    A socket of our own tries the port for a moment, in the way in which the kernel's tunnels take it: with all addresses of
    the family. Lists of sockets (/proc/net/udp6) do not show who has IPv4's with an IPv6 socket.
    """
    try:
        probe = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno == EAFNOSUPPORT:
            return True
        raise KernelError("open a UDP socket", error.errno or EAFNOSUPPORT) from None
    try:
        if family == AF_INET6:
            probe.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        probe.bind(("", port))
    except OSError as error:
        if error.errno == EADDRINUSE:
            return False
        raise KernelError(f"try UDP port {port}", error.errno or EADDRINUSE) from None
    finally:
        probe.close()
    return True
