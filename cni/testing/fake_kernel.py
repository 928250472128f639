"""A kernel in memory, behind the interface of `cni/kernel/__init__.py`: for unit tests without root.

    kernel = FakeKernel()
    kernel.add_netns("/run/netns/pod")
    ... run a plugin with it ...
    assert kernel.snapshot() == before

It keeps links with their peers and bridges, addresses, routes, nexthop objects, neighbours, forwarding entries,
settings, VLANs and nftables, and refuses what Linux refuses with Linux's errno. It does not move packets, and time stands still in it: duplicate detection
has always ended, a port with both ends up always forwards.
"""

from __future__ import annotations

import copy
from errno import (
    EINVAL,
    ENODEV,
    ENOENT,
    EOPNOTSUPP,
    ETIMEDOUT,
)
from typing import TYPE_CHECKING, Any

from cni import addr
from cni.errors import KernelError
from cni.kernel import NetnsError
from cni.kernel.sysctl import setting
from cni.kernel.types import IFF_LOOPBACK, OPER_UP, PORT_FORWARDING, Address, Neighbour
from cni.testing.fake_links import World
from cni.testing.fake_nft import Refused
from cni.testing.fake_routes import NUD_REACHABLE
from cni.testing.faulty_kernel import FaultyKernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni.kernel.ops import Op
    from cni.kernel.types import FdbEntry, Link, Nexthop, NftChain, NftRule, NftStep, Route


class FakeKernel:
    """All namespaces of a machine. `vlan_filtering` and `ipv6` say what the kernel was built with."""

    def __init__(self, *, vlan_filtering: bool = True, ipv6: bool = True) -> None:
        self.vlan_filtering = vlan_filtering
        self.ipv6 = ipv6
        self._own = self._new_world(1)
        self._worlds: dict[str, World] = {}
        self._count = 1

    def own(self) -> FakeNamespace:
        return FakeNamespace(self._own)

    def open(self, path: str) -> FakeNamespace:
        world = self._worlds.get(path)
        if world is None:
            raise NetnsError(path, "nothing", gone=True)
        return FakeNamespace(world)

    def is_own(self, path: str) -> bool:
        return self._worlds.get(path) is self._own

    def add_netns(self, path: str, *, own: bool = False) -> None:
        """Make a namespace at a path; with `own`, let the path lead to the caller's."""
        self._count += 1
        self._worlds[path] = self._own if own else self._new_world(self._count)

    def remove_netns(self, path: str) -> None:
        """Remove a namespace with its links and their peers."""
        world = self._worlds.pop(path)
        if world is not self._own:
            for index in list(world.links):
                world.remove(index)

    def _new_world(self, ino: int) -> World:
        return World(ino, vlan_filtering=self.vlan_filtering, ipv6=self.ipv6)

    def take_udp_port(self, port: int) -> None:
        """Have a program of the own namespace take a UDP port, of both families."""
        self._own.taken_ports.add(port)

    def release_udp_port(self, port: int) -> None:
        self._own.taken_ports.remove(port)

    def add_neighbour(self, index: int, packed: bytes) -> None:
        """Let the own namespace know a neighbour, as traffic would."""
        self._own.paths.neighbours[index, packed] = Neighbour(index, packed, b"\2\0\0\0\0\1", NUD_REACHABLE)

    def failing(self, at: int) -> FaultyKernel:
        """Wrap this kernel so that it fails at its verb number `at` (1 is the first)."""
        return FaultyKernel(self, at)

    def snapshot(self) -> dict[str, Any]:
        """Everything that can be seen, as plain data that can be compared: `own` and each path."""
        return {"own": self._own.snapshot()} | {path: world.snapshot() for path, world in self._worlds.items()}


class FakeNamespace:
    """A handle of a namespace."""

    fd = -1
    dev = 4

    def __init__(self, world: World) -> None:
        self._world = world
        self.ino = world.ino

    @property
    def world(self) -> World:
        return self._world

    def __enter__(self) -> FakeNamespace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        pass

    def apply(self, *operations: Op) -> None:
        failed = self.attempt(operations)
        if failed:
            raise failed[0][1]

    def attempt(self, operations: Sequence[Op]) -> list[tuple[Op, KernelError]]:
        failed: list[tuple[Op, KernelError]] = []
        for op in operations:
            try:
                self._world.do(op)
            except Refused as refused:
                failed.append((op, KernelError(op.text, refused.errno)))
        return failed

    def link(self, which: str | int) -> Link | None:
        try:
            return self._world.seen(self._world.find(which))
        except Refused:
            return None

    def links(self) -> list[Link]:
        return [self._world.seen(link) for link in self._world.links.values()]

    def addresses(self, index: int) -> list[Address]:
        return [copy.copy(one) for one in self._world.addresses.get(index, [])]

    def routes(self, protocol: int = 0) -> list[Route]:
        return [route for route in self._world.paths.routes() if protocol in (0, route.protocol)]

    def way(self, packed: bytes) -> Route | None:
        if any(one.packed == packed for there in self._world.addresses.values() for one in there):
            return None
        routes = [
            one for one in self.routes() if len(one.dst) == len(packed) and addr.inside(packed, one.dst, one.prefix)
        ]
        return max(routes, key=lambda one: (one.prefix, -one.metric), default=None)

    def nexthops(self, protocol: int = 0) -> list[Nexthop]:
        found = [copy.copy(nexthop) for _, nexthop in sorted(self._world.paths.nexthops.items())]
        return [nexthop for nexthop in found if protocol in (0, nexthop.protocol)]

    def neighbours(self, index: int) -> list[Neighbour]:
        return [copy.copy(one) for key, one in self._world.paths.neighbours.items() if key[0] == index]

    def fdb(self, index: int) -> list[FdbEntry]:
        return [copy.copy(entry) for key, entry in self._world.paths.fdb.items() if key[0] == index]

    def has_vlan_filtering(self) -> bool:
        return self._world.vlan_filtering

    def vlans(self, index: int) -> list[int]:
        what = f"list VLANs of link {index}"
        if not self._world.vlan_filtering:
            raise KernelError(what, EOPNOTSUPP)
        link = self._world.links.get(index)
        if link is None:
            raise KernelError(what, ENODEV)
        if link.port is None and link.kind != "bridge":
            raise KernelError(what, EINVAL)
        return sorted(link.vlans)

    def wait_port(self, index: int, timeout: float) -> None:
        del timeout  # nothing changes while one waits
        link = self.link(index)
        if link is None:
            raise KernelError(f"wait for link {index}", ENODEV)
        if link.operstate != OPER_UP or (link.port is not None and link.port.state != PORT_FORWARDING):
            found = f"{link.name} has operstate {link.operstate}"
            raise KernelError(f"wait until link {index} forwards", ETIMEDOUT, found)

    def wait_gone(self, index: int, timeout: float) -> bool:
        del timeout
        return self.link(index) is None

    def wait_addresses(self, index: int, wanted: Sequence[bytes], timeout: float) -> None:
        """Return at once: duplicate detection has always ended."""

    def delete_link(self, index: int, kind: str = "") -> None:  # noqa: ARG002 - the real one saves a question
        link = self._world.links.get(index)
        if link is None:
            return
        if link.flags & IFF_LOOPBACK:
            raise KernelError(f"delete link {index}", EOPNOTSUPP)
        self._world.remove(index)

    def conf(self, family: int, link: str, key: str) -> str | None:
        return self._world.conf.get(family, {}).get(link, {}).get(key)

    def set_conf(self, family: int, link: str, key: str, value: str) -> None:
        by_link = self._world.conf.get(family, {})
        self.refuse_conf(family, link, key, value)
        # `all` of these two sets every link's, of the others it is a value of its own.
        to_all = link == "all" and key in {"forwarding", "disable_ipv6"}
        for name in by_link if to_all else [link]:
            by_link[name][key] = value
            if key == "disable_ipv6" and value == "1" and name not in {"all", "default"}:
                index = self._world.find(name).index
                self._world.addresses[index] = [one for one in self.addresses(index) if len(one.packed) == 4]

    def refuse_conf(self, family: int, link: str, key: str, value: str) -> None:
        if key not in self._world.conf.get(family, {}).get(link, {}):
            raise KernelError(f"set {setting(family, link, key)} to {value}", ENOENT)

    def udp_port_is_free(self, family: int, port: int) -> bool:
        return self._world.udp_port_is_free(4 if family == addr.AF_INET else 16, port)

    def tx_checksum(self, name: str) -> bool | None:
        try:
            return self._world.find(name).tx_checksum
        except Refused:
            return None

    def set_tx_checksum(self, name: str, on: bool) -> None:  # noqa: FBT001 - one of two plain settings
        try:
            self._world.find(name).tx_checksum = on
        except Refused as refused:
            raise KernelError(f"turn transmit checksums of {name} {'on' if on else 'off'}", refused.errno) from None

    def nft(self, *operations: Op) -> None:
        self._world.nft.transact(operations)

    def nft_has(self, family: int, table: str, kind: str = "", name: str = "") -> bool:
        found = self._world.nft.table(family, table)
        if found is None or not kind:
            return found is not None
        names = {"chain": list(found.chains), "set": list(found.sets)}
        return name in names[kind]

    def nft_rules(self, family: int, table: str, chain: str) -> list[NftRule]:
        return self._world.nft.rules(family, table, chain)

    def nft_generation(self) -> int:
        return self._world.nft.generation

    def nft_chains(self) -> list[NftChain]:
        return self._world.nft.chains()

    def nft_steps(self, family: int, table: str, chain: str) -> list[NftStep]:
        return self._world.nft.steps(family, table, chain)

    def nft_elements(self, family: int, table: str, set_name: str) -> list[bytes]:
        return self._world.nft.elements(family, table, set_name)

    def nft_comments(self, family: int, table: str, set_name: str) -> dict[bytes, str]:
        return self._world.nft.comments(family, table, set_name)

    def nft_comment(self, family: int, table: str, set_name: str, key: bytes) -> str:
        return self._world.nft.comments(family, table, set_name).get(key, "")

    def nft_has_element(self, family: int, table: str, set_name: str, key: bytes) -> bool:
        return key in self._world.nft.elements(family, table, set_name)
