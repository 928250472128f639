"""Which nftables rules and set elements mention an address: the demo's proof that nothing is left.

It asks the kernel for everything and searches the answers for the address's bytes, so it holds for any
plugin and backend (also `iptables-nft`), and shares no code with what it is to prove.
"""

from __future__ import annotations

import os
import socket
import struct

NETLINK_NETFILTER = 12
NLM_F_REQUEST_DUMP = 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
NFT_GETRULE, NFT_GETSET, NFT_GETSETELEM = 0xA07, 0xA0A, 0xA0D
TABLE, NAME = 1, 2  # NFTA_SET_TABLE, NFTA_SET_NAME; NFTA_SET_ELEM_LIST_TABLE, ..._SET


def mentions(addresses: list[bytes]) -> int:
    """How many rules and elements of this network namespace hold one of the addresses."""
    bodies = [body for _, body in _dump(NFT_GETRULE)]
    for family, body in _dump(NFT_GETSET):
        attributes = _attributes(body)
        which = _pack(TABLE, attributes) + _pack(NAME, attributes)
        bodies += [answer for _, answer in _dump(NFT_GETSETELEM, family, which)]
    return sum(body.count(address) for body in bodies for address in addresses)


def _dump(kind: int, family: int = 0, payload: bytes = b"") -> list[tuple[int, bytes]]:
    """Family and attributes of each object that the kernel lists."""
    found: list[tuple[int, bytes]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        body = struct.pack("=BBH", family, 0, 0) + payload
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST_DUMP, 1, 0) + body)
        while True:
            data = sock.recv(1 << 20)
            while data:
                length, answer = struct.unpack_from("=IH", data)
                if answer == NLMSG_DONE:
                    return found
                if answer == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", data, 16)[0]
                    raise OSError(number, f"nftables dump: {os.strerror(number)}")
                found.append((data[16], data[20:length]))
                data = data[(length + 3) & ~3 :]


def _attributes(body: bytes) -> dict[int, bytes]:
    found = {}
    while len(body) >= 4:
        length, kind = struct.unpack_from("=HH", body)
        found[kind & 0x3FFF] = body[4:length]
        body = body[(length + 3) & ~3 :]
    return found


def _pack(kind: int, attributes: dict[int, bytes]) -> bytes:
    value = attributes[kind]
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
