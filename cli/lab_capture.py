"""What is on the wire between nodes: frames as the kernel hands them to a packet socket, and what is in them.

Reads as much as it takes to show that a pod's packet travels inside a node's: addresses, the UDP port, the VNI.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from cni import addr

VXLAN_PORT = 8472
_ETH_P_ALL = 3
_BUFFER = 1 << 22
# EtherType of each IP version: the header's length (None: it says), and where protocol and source address stand.
_LAYOUT = {0x0800: (None, 9, 12, 4), 0x86DD: (40, 6, 8, 16)}
_NAMES = {
    (1, 8): "ICMP echo request",
    (1, 0): "ICMP echo reply",
    (58, 128): "ICMPv6 echo request",
    (58, 129): "ICMPv6 echo reply",
}


@dataclass(frozen=True)
class Packet:
    """An IP packet: its addresses, its protocol's number, and what it carries."""

    source: str
    target: str
    protocol: int
    data: bytes

    def text(self) -> str:
        what = _NAMES.get((self.protocol, self.data[0] if self.data else -1), f"IP protocol {self.protocol}")
        return f"{self.source} -> {self.target} {what}"


@dataclass(frozen=True)
class Tunnelled:
    """A VXLAN packet (RFC 7348): the packet on the underlay, its port and VNI, and the packet inside."""

    outer: Packet
    port: int
    vni: int
    inner: Packet

    def text(self) -> str:
        return f"{self.outer.source} -> {self.outer.target} UDP {self.port} VNI {self.vni}: {self.inner.text()}"


class Capture:
    """The frames of a link of the namespace that the caller is in, from now on."""

    def __init__(self, link: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._socket.bind((link, _ETH_P_ALL))
        self._socket.setblocking(False)

    def frames(self) -> list[bytes]:
        """What has come by since the last time."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(1 << 16))
            except BlockingIOError:
                return found


def tunnelled(frame: bytes) -> Tunnelled | None:
    """The VXLAN packet in a frame; None when there is none, or nothing about IP is in it."""
    outer = packet(frame)
    if outer is None or outer.protocol != socket.IPPROTO_UDP or len(outer.data) < 16:
        return None
    port = struct.unpack_from("!H", outer.data, 2)[0]
    inner = packet(outer.data[16:])
    if port != VXLAN_PORT or inner is None:
        return None
    return Tunnelled(outer, port, struct.unpack_from("!I", outer.data, 12)[0] >> 8, inner)


def packet(frame: bytes) -> Packet | None:
    """The IP packet in an Ethernet frame; None when there is none."""
    layout = _LAYOUT.get(int.from_bytes(frame[12:14], "big"))
    data = frame[14:]
    if layout is None or len(data) < 20:
        return None
    fixed, protocol, source, size = layout
    header = fixed or (data[0] & 15) * 4
    if len(data) < header:
        return None
    addresses = data[source : source + size], data[source + size : source + 2 * size]
    return Packet(addr.unpack(addresses[0]), addr.unpack(addresses[1]), data[protocol], data[header:])
