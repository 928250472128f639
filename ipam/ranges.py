"""Ranges and range sets: what may be handed out, and in which order. Pure arithmetic on integers.

An address is an integer and a width in bytes (4 or 16), so IPv4 and IPv6 are one code path. The standard
library's `ipaddress` is the oracle of this module's tests and not its base: importing it takes 4 ms, as long
as half an interpreter's start, for what is here a comparison of integers.

The meaning of every key, the defaults, what is refused, and the order of allocation are those of
containernetworking's host-local.
"""

from __future__ import annotations

from cni import addr
from cni.config import Reader, Refusal, items, wrong
from cni.errors import CniError
from cni.version import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


_DISJOINT = "no address of another range"


class Range:
    """Consecutive addresses of one subnet, `first` to `last` inclusive, as integers of `width` bytes.

    `gateway` is handed out by no one; it need not lie between the two.
    """

    __slots__ = ("first", "gateway", "last", "network", "path", "prefix", "width")

    def __init__(self, reader: Reader) -> None:
        """From `{subnet, rangeStart, rangeEnd, gateway}`; CniError 7 with the key path."""
        self.path = reader.path
        self.network, self.prefix = _subnet(reader)
        self.width = len(self.network)
        low, high = self._bounds()
        start, end = self._bound(reader, "rangeStart", "RangeStart"), self._bound(reader, "rangeEnd", "RangeEnd")
        # By default the network's own address and an IPv4 network's broadcast address are left out.
        self.first = low + 1 if start is None else int.from_bytes(start, "big")
        self.last = (high - 1 if self.width == 4 else high) if end is None else int.from_bytes(end, "big")
        if self.first > self.last:
            name, key, found = (
                ("RangeStart", "rangeStart", start) if start is not None else ("RangeEnd", "rangeEnd", end)
            )
            order = f"the range would begin at {self.text(self.first)} and end at {self.text(self.last)}"
            what = f"{name} {addr.unpack(found or b'')} not in network {self.subnet()}"
            expected = f"an address not after the range's end, {self.text(self.last)}"
            reader.refuse(
                _invalid(
                    reader, key, f"{what} in this order: {order}", expected, self.text(self.first),
                    "swap rangeStart and rangeEnd",
                )
            )  # fmt: skip
        self.gateway = reader.address("gateway") or addr.following(self.network)

    def _bound(self, reader: Reader, key: str, name: str) -> bytes | None:
        """An end of the range, which must be in the subnet."""
        found = reader.address(key)
        if found is None or addr.inside(found, self.network, self.prefix):
            return found
        words = f"{name} {addr.unpack(found)} not in network {self.subnet()}"
        remedy = "use an address of the subnet, or leave it out"
        reader.refuse(_invalid(reader, key, words, f"an address in {self.subnet()}", addr.unpack(found), remedy))
        return None

    def _bounds(self) -> tuple[int, int]:
        low = int.from_bytes(self.network, "big")
        return low, low | ((1 << self.width * 8 - self.prefix) - 1)

    def __contains__(self, packed: bytes) -> bool:
        return len(packed) == self.width and self.first <= int.from_bytes(packed, "big") <= self.last

    def __str__(self) -> str:
        return f"{self.text(self.first)}-{self.text(self.last)}"

    @property
    def size(self) -> int:
        """How many addresses can be handed out."""
        return self.last - self.first + 1 - (self.gateway in self)

    def packed(self, address: int) -> bytes:
        return address.to_bytes(self.width, "big")

    def text(self, address: int) -> str:
        return addr.unpack(self.packed(address))

    def subnet(self) -> str:
        return addr.unpack_cidr(self.network, self.prefix)

    def overlaps(self, other: Range) -> bool:
        return self.width == other.width and self.first <= other.last and other.first <= self.last


class RangeSet:
    """Ranges of one family that one address is taken from. `index` is its place, and names `last_reserved_ip.N`."""

    __slots__ = ("index", "path", "ranges")

    def __init__(self, index: int, path: str, value: Any, config: Reader | None = None) -> None:
        """`value` is an array of ranges, or the reader of the one inline range. `config` is asked to refuse what is wrong."""
        self.index = index
        self.path = path
        config = config or Reader({})
        self.ranges: list[Range] = []
        entries = [(path, value)] if isinstance(value, Reader) else items(path, value)
        for where, item in entries:
            try:
                self.ranges.append(Range(value if item is value else config.entry(where, item)))
            except CniError as error:
                config.refuse(error)
        if not entries:
            config.refuse(self._fault(path, "at least one range", "none", f"empty range set: {path} holds no range"))
        if len({item.width for item in self.ranges}) > 1:
            words = f"mixed address families: {path} holds IPv4 and IPv6 ranges"
            config.refuse(self._fault(path, "one address family in a set", "both", words, "make one set per family"))
        if self.ranges and not self.size:
            expected, found = "at least one address to give", f"only the gateway's in {self}"
            words = f"{path}: expected {expected}, found {found}"
            config.refuse(self._fault(path, expected, found, words, "widen the range, or choose another gateway"))
        for at, one in enumerate(self.ranges):
            for two in self.ranges[at + 1 :]:
                if one.overlaps(two):
                    words = f"subnets {one} and {two} overlap: {one.path} and {two.path}"
                    found = f"{two} overlapping {one} ({one.path})"
                    config.refuse(self._fault(two.path, _DISJOINT, found, words, "make the ranges disjoint"))

    def _fault(self, path: str, expected: str, found: str, words: str, remedy: str = "") -> Refusal:
        return Refusal(path, expected, found, remedy, f"invalid range set {self.index}: {words}")

    def __str__(self) -> str:
        return ",".join(str(item) for item in self.ranges)

    @property
    def width(self) -> int:
        return self.ranges[0].width

    @property
    def size(self) -> int:
        """How many addresses can be handed out."""
        return sum(item.size for item in self.ranges)

    def range_for(self, packed: bytes) -> Range | None:
        """The range that holds an address."""
        for item in self.ranges:
            if packed in item:
                return item
        return None

    def round_robin(self, last: bytes | None) -> Iterator[tuple[Range, int, int]]:
        """Every address once, as spans (range, first, last) in the order of allocation.

        It begins after `last`, the address that was handed out last, so that none is used again before all
        others were; at the beginning when that one is unknown or in no range.
        """
        home = None if last is None else self.range_for(last)
        if home is None or last is None:
            for item in self.ranges:
                yield item, item.first, item.last
            return
        at = self.ranges.index(home)
        split = int.from_bytes(last, "big")
        if split < home.last:
            yield home, split + 1, home.last
        for item in self.ranges[at + 1 :] + self.ranges[:at]:
            yield item, item.first, item.last
        yield home, home.first, split


def read_sets(config: Reader) -> list[RangeSet]:
    """The range sets of a configuration: `runtimeConfig.ipRanges`, the old inline range, `ipam.ranges`."""
    ipam = config.object("ipam")
    found = config.object("runtimeConfig").array("ipRanges")
    if ipam.raw("subnet") is not None:
        found.append((ipam.path, ipam))
    found += ipam.array("ranges")
    if not found:
        config.refuse(
            Refusal(
                ipam.at("ranges"), "at least one range set", "none",
                'add "ranges": [[{"subnet": "10.1.0.0/24"}]] to "ipam"',
                "no IP ranges specified: ipam.ranges: expected at least one range set, found none",
            )
        )  # fmt: skip
    sets = []
    for index, (path, value) in enumerate(found):
        try:
            sets.append(RangeSet(index, path, value, config))
        except CniError as error:
            config.refuse(error)
    for at, one in enumerate(sets):
        for two in sets[at + 1 :]:
            if any(a.overlaps(b) for a in one.ranges for b in two.ranges):
                what = f"range set {one.index} overlaps with {two.index}: {one} ({one.path}) and {two} ({two.path})"
                where = f"{two} overlapping {one} ({one.path})"
                config.refuse(Refusal(two.path, _DISJOINT, where, "every address may be in one set only", what))
    return [one for one in sets if one.ranges]


def check_families(sets: list[RangeSet], version: str, config: Reader | None = None) -> None:
    """Refuse more than one address per family in results that have room for one (before 0.3.0)."""
    widths = [item.width for item in sets]
    if not at_least(version, "0.3.0") and len(widths) > len(set(widths)):
        words = f"CNI version {version} does not support more than 1 address per family"
        expected = f"at most one set of each family in cniVersion {version}"
        fault = Refusal("ipam.ranges", expected, f"{len(widths)} sets", 'raise cniVersion to "0.3.0" or newer', words)
        fault.details = ""  # the reference's words and no more: they say all, and scripts look for them
        (config or Reader({})).refuse(fault)


def _subnet(reader: Reader) -> tuple[bytes, int]:
    text = reader.string("subnet")
    parsed = addr.pack_cidr(text)
    if parsed is None:
        raise wrong(reader.at("subnet"), "a network such as 10.1.0.0/24", reader.raw("subnet"))
    packed, prefix = parsed
    if prefix > len(packed) * 8 - 2:
        expected = f"a prefix length of at most {len(packed) * 8 - 2}"
        words = f"Network {text} too small to allocate from"
        raise _invalid(
            reader, "subnet", words, expected, f"{text}, which has no address to give", "choose a larger subnet"
        )
    network = addr.network(packed, prefix)
    if packed != network:
        what = "Network has host bits set. For a subnet mask of length"
        words = f"{what} {prefix} the network address is {addr.unpack(network)}"
        own = addr.unpack_cidr(network, prefix)
        raise _invalid(reader, "subnet", words, f"a network's own address, {own}", text, f"write {own}")
    return network, prefix


def _invalid(reader: Reader, key: str, words: str, expected: str, found: str, remedy: str) -> Refusal:
    return Refusal(reader.at(key), expected, found, remedy, f"{reader.at(key)}: {words}")
