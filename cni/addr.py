"""IP and MAC addresses as bytes: 4 for IPv4, 16 for IPv6, so the length is the family and code needs no branches.

`ipaddress` costs 3.6 ms to import; it serves where ranges are computed (`ipam/ranges.py`). Here is what
every ADD and DEL needs: text to bytes and back, and the network of an address.
"""

from __future__ import annotations

import _socket

AF_INET = 2
AF_INET6 = 10

# The least MTU that a link works with, by the size of an address (RFC 791, RFC 8200). Linux takes IPv6 off a link of less.
LEAST_MTU = {4: 68, 16: 1280}
IPV6_MTU = LEAST_MTU[16]


_NO_HOSTS = (
    (b"\x7f\0\0\0", 8, "loopback addresses"),
    (b"\xe0\0\0\0", 4, "multicast addresses"),
    (b"\xff" + bytes(15), 8, "multicast addresses"),
)
_V4_COMPATIBLE = bytes(12)
_V4_MAPPED = bytes(10) + b"\xff\xff"


def pack(text: str) -> bytes | None:
    """Bytes of an address's text; None when it is none. An IPv4-mapped IPv6 address is the IPv4 one, as in Go."""
    try:
        if ":" not in text:
            return _socket.inet_pton(AF_INET, text)
        packed = _socket.inet_pton(AF_INET6, text)
    except (OSError, ValueError):  # ValueError: a NUL or a surrogate in the text
        return None
    return packed[12:] if packed.startswith(_V4_MAPPED) else packed


def unpack(packed: bytes) -> str:
    """`10.1.0.2`, `fd00::2`."""
    if packed.startswith(_V4_COMPATIBLE) and len(packed) == 16 and packed[12:14] != bytes(2):
        # libc writes these as `::0.1.0.2`, Go and RFC 5952 as `::1:2`. Lease files are named by this text.
        return f"::{packed[12:14].hex().lstrip('0')}:{int.from_bytes(packed[14:], 'big'):x}"
    return _socket.inet_ntop(family(packed), packed)


def family(packed: bytes) -> int:
    """AF_INET or AF_INET6."""
    return AF_INET if len(packed) == 4 else AF_INET6


def pack_cidr(text: str) -> tuple[bytes, int] | None:
    """`10.1.0.2/24` as (bytes of the whole address, prefix length); None when it is no CIDR."""
    address, slash, length = text.partition("/")
    packed = pack(address)
    if packed is None or not slash or not length.isascii() or not length.isdigit() or len(length) > 3:
        return None
    bits = int(length)
    if ":" in address and len(packed) == 4:  # ::ffff:10.0.0.1/120 is 10.0.0.1/24
        bits -= 96
    return (packed, bits) if 0 <= bits <= len(packed) * 8 else None


def unpack_cidr(packed: bytes, prefix: int) -> str:
    """`10.1.0.2/24`."""
    return f"{unpack(packed)}/{prefix}"


def network(packed: bytes, prefix: int) -> bytes:
    """The address with its host bits cleared."""
    host_bits = len(packed) * 8 - prefix
    value = int.from_bytes(packed, "big") >> host_bits << host_bits
    return value.to_bytes(len(packed), "big")


def following(packed: bytes) -> bytes:
    """The next address: what the reference takes as the gateway of a network (network address + 1)."""
    return ((int.from_bytes(packed, "big") + 1) % (1 << len(packed) * 8)).to_bytes(len(packed), "big")


def inside(packed: bytes, net: bytes, prefix: int) -> bool:
    """Whether an address lies in `net/prefix`; never for another family."""
    return len(packed) == len(net) and network(packed, prefix) == network(net, prefix)


def is_loopback(packed: bytes) -> bool:
    """Whether an address is of 127.0.0.0/8, or ::1."""
    return packed[0] == 127 if len(packed) == 4 else packed == bytes(15) + b"\1"


def overlap(one: tuple[bytes, int], other: tuple[bytes, int]) -> bool:
    """Whether two networks have an address in common."""
    return inside(one[0], *other) or inside(other[0], *one)


def no_hosts(subnet: tuple[bytes, int]) -> str:
    """What a network's addresses are instead of hosts'; empty when hosts can have them and be reached there.

    Linux refuses these addresses or drops what goes to them, whatever the plugin. 0.0.0.0/8, 169.254.0.0/16 and
    240.0.0.0/4 are not among them: they work.
    """
    for network, prefix, what in _NO_HOSTS:
        if inside(subnet[0], network, prefix) and subnet[1] >= prefix:
            return what
    return "loopback addresses" if subnet[1] and overlap(subnet, (bytes(15) + b"\1", 128)) else ""


def is_link_local(subnet: tuple[bytes, int]) -> bool:
    """Whether a network is of IPv6's link-local addresses, which mean nothing beyond their link."""
    return subnet[1] >= 10 and inside(subnet[0], b"\xfe\x80" + bytes(14), 10)


def pack_mac(text: str) -> bytes | None:
    """Six bytes of a MAC's text; None when it is none. The forms are Go's: `0a:58:0a:01:00:02`,
    `0a-58-0a-01-00-02`, `0a58.0a01.0002` and `0a580a010002`."""
    separator = next((char for char in ":-." if char in text), "")
    groups = text.split(separator) if separator else [text]
    digits = {":": 2, "-": 2, ".": 4}.get(separator, 12)
    joined = "".join(groups)
    if len(joined) != 12 or any(len(group) != digits for group in groups):
        return None
    if not joined.isascii() or not joined.isalnum():  # fromhex would take blanks
        return None
    try:
        return bytes.fromhex(joined)
    except ValueError:
        return None


def unpack_mac(packed: bytes) -> str:
    """`0a:58:0a:01:00:02`."""
    return packed.hex(":")


def is_multicast_mac(packed: bytes) -> bool:
    """Whether the group bit is set: no interface may have such an address."""
    return bool(packed[0] & 1)
