"""The subnets that nodes may claim in etcd, of each family: what the configuration says of them. Pure arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni import addr
from cni.config import wrong
from plugins.peers import span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni.config import Reader
    from plugins.peers import Subnet

# Keys of the configuration, by the size of the family's addresses.
KEYS = {
    4: ("subnetLen", "subnetMin", "subnetMax", 24, 30),
    16: ("ipv6SubnetLen", "ipv6SubnetMin", "ipv6SubnetMax", 64, 126),
}


class Pool:
    """The subnets of one family that nodes may have: those of one length from `first` to `last`."""

    __slots__ = ("_first", "_shift", "count", "length", "network", "size")

    def __init__(self, network: Subnet, length: int, low: bytes, high: bytes) -> None:
        self.network = network
        self.size = len(network[0])
        self.length = length
        self._shift = self.size * 8 - length
        self._first = int.from_bytes(low, "big") >> self._shift
        self.count = (int.from_bytes(high, "big") >> self._shift) - self._first + 1

    def at(self, index: int) -> Subnet:
        return (self._first + index << self._shift).to_bytes(self.size, "big"), self.length

    def __contains__(self, subnet: Subnet) -> bool:
        packed, length = subnet
        if len(packed) != self.size or length != self.length:
            return False
        return 0 <= (int.from_bytes(packed, "big") >> self._shift) - self._first < self.count

    def __str__(self) -> str:
        ends = " to ".join(addr.unpack_cidr(*self.at(index)) for index in (0, self.count - 1))
        return f"{self.count} subnets, {ends}"


def read_pools(config: Reader, ranges: Iterable[Subnet]) -> dict[int, Pool]:
    """The pools of the networks, by the size of their addresses. The rules and defaults are flannel's: the first subnet
    is left out, because its own address is the network's, and at least four must fit."""
    pools = {}
    for network, prefix in ranges:
        size = len(network)
        len_key, min_key, max_key, usual, longest = KEYS[size]
        length = config.integer(len_key, max(usual, prefix + 2))
        if not prefix + 2 <= length <= longest:
            expected = f"a length from {prefix + 2} (four subnets in {addr.unpack_cidr(network, prefix)}) to {longest}"
            raise wrong(config.at(len_key), expected, length)
        first, last = span(network, prefix)
        step = 1 << size * 8 - length
        low = config.address(min_key) or (first + step).to_bytes(size, "big")
        high = config.address(max_key) or (last + 1 - step).to_bytes(size, "big")
        for key, found in ((min_key, low), (max_key, high)):
            if not addr.inside(found, network, prefix) or addr.network(found, length) != found:
                expected = f"a subnet's own address (/{length}) in {addr.unpack_cidr(network, prefix)}"
                raise wrong(config.at(key), expected, addr.unpack(found))
        if low > high:
            raise wrong(config.at(max_key), f"an address not before {addr.unpack(low)}", addr.unpack(high))
        pools[size] = Pool((network, prefix), length, low, high)
    return pools
