"""A kernel that fails once, at a verb that is chosen: to test that a failed ADD leaves nothing behind.

    faulty = FaultyKernel(kernel, at=3)

Each operation of `apply` and `nft` and each other call counts as one verb, from 1. The chosen one raises
KernelError EIO instead of being done. As with Linux, the other operations of the same `apply` are done all
the same, and those of the same `nft` are not. Without `at` nothing fails and `verbs` says how many there are.
"""

from __future__ import annotations

from contextlib import suppress
from errno import EIO
from typing import TYPE_CHECKING, Any

from cni.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni.kernel import Kernel, Namespace
    from cni.kernel.ops import Op
    from cni.kernel.types import Address, FdbEntry, Link, Neighbour, Nexthop, NftChain, NftRule, NftStep, Route


class FaultyKernel:
    """Wraps a kernel, the real or the fake one. `verbs` names all verbs so far, `failed` the one that failed."""

    def __init__(self, kernel: Kernel, at: int = 0) -> None:
        self._kernel = kernel
        self._at = at
        self.verbs: list[str] = []
        self.failed = ""

    def own(self) -> FaultyNamespace:
        self.verb("own")
        return FaultyNamespace(self._kernel.own(), self)

    def open(self, path: str) -> FaultyNamespace:
        self.verb(f"open {path}")
        return FaultyNamespace(self._kernel.open(path), self)

    def is_own(self, path: str) -> bool:
        self.verb(f"is_own {path}")
        return self._kernel.is_own(path)

    def fails(self, name: str) -> bool:
        """Count a verb; whether it is the one that fails."""
        self.verbs.append(name)
        if len(self.verbs) != self._at:
            return False
        self.failed = name
        return True

    def verb(self, name: str) -> None:
        """Count a verb, and fail if it is its turn."""
        if self.fails(name):
            raise KernelError(name, EIO, f"as chosen, at verb {self._at}")


class FaultyNamespace:
    """Wraps a namespace."""

    def __init__(self, inner: Namespace, kernel: FaultyKernel) -> None:
        self._inner = inner
        self._kernel = kernel
        self.dev = inner.dev
        self.ino = inner.ino
        self.fd = inner.fd

    def __getattr__(self, name: str) -> Any:
        """What a kernel keeps on its namespaces for itself."""
        return getattr(self._inner, name)

    def __enter__(self) -> FaultyNamespace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._inner.close()

    def apply(self, *operations: Op) -> None:
        failing = [op for op in operations if self._kernel.fails(op.text)]
        if not failing:
            self._inner.apply(*operations)
            return
        at = operations.index(failing[0])
        try:
            self._inner.apply(*operations[:at])
        finally:
            # The kernel goes on after a failure, and the first one is reported.
            with suppress(KernelError):
                self._inner.apply(*operations[at + 1 :])
        raise KernelError(failing[0].text, EIO, "as chosen")

    def attempt(self, operations: Sequence[Op]) -> list[tuple[Op, KernelError]]:
        chosen = [(op, KernelError(op.text, EIO, "as chosen")) for op in operations if self._kernel.fails(op.text)]
        failing = {id(op) for op, _ in chosen}
        return chosen + self._inner.attempt([op for op in operations if id(op) not in failing])

    def nft(self, *operations: Op) -> None:
        failing = [op for op in operations if self._kernel.fails(op.text)]
        if failing:
            raise KernelError(failing[0].text, EIO, "as chosen")
        self._inner.nft(*operations)

    def link(self, which: str | int) -> Link | None:
        self._kernel.verb(f"link {which}")
        return self._inner.link(which)

    def links(self) -> list[Link]:
        self._kernel.verb("links")
        return self._inner.links()

    def addresses(self, index: int) -> list[Address]:
        self._kernel.verb(f"addresses {index}")
        return self._inner.addresses(index)

    def routes(self, protocol: int = 0) -> list[Route]:
        self._kernel.verb("routes")
        return self._inner.routes(protocol)

    def nexthops(self, protocol: int = 0) -> list[Nexthop]:
        self._kernel.verb("nexthops")
        return self._inner.nexthops(protocol)

    def neighbours(self, index: int) -> list[Neighbour]:
        self._kernel.verb(f"neighbours {index}")
        return self._inner.neighbours(index)

    def fdb(self, index: int) -> list[FdbEntry]:
        self._kernel.verb(f"fdb {index}")
        return self._inner.fdb(index)

    def has_vlan_filtering(self) -> bool:
        self._kernel.verb("has_vlan_filtering")
        return self._inner.has_vlan_filtering()

    def vlans(self, index: int) -> list[int]:
        self._kernel.verb(f"vlans {index}")
        return self._inner.vlans(index)

    def wait_gone(self, index: int, timeout: float) -> bool:
        self._kernel.verb(f"wait_gone {index}")
        return self._inner.wait_gone(index, timeout)

    def wait_port(self, index: int, timeout: float) -> None:
        self._kernel.verb(f"wait_port {index}")
        self._inner.wait_port(index, timeout)

    def wait_addresses(self, index: int, wanted: Sequence[bytes], timeout: float) -> None:
        self._kernel.verb(f"wait_addresses {index}")
        self._inner.wait_addresses(index, wanted, timeout)

    def delete_link(self, index: int, kind: str = "") -> None:
        self._kernel.verb(f"delete_link {index}")
        self._inner.delete_link(index, kind)

    def conf(self, family: int, link: str, key: str) -> str | None:
        self._kernel.verb(f"conf {link} {key}")
        return self._inner.conf(family, link, key)

    def set_conf(self, family: int, link: str, key: str, value: str) -> None:
        self._kernel.verb(f"set_conf {link} {key}")
        self._inner.set_conf(family, link, key, value)

    def refuse_conf(self, family: int, link: str, key: str, value: str) -> None:
        self._kernel.verb(f"refuse_conf {link} {key}")
        self._inner.refuse_conf(family, link, key, value)

    def udp_port_is_free(self, family: int, port: int) -> bool:
        self._kernel.verb(f"udp_port_is_free {port}")
        return self._inner.udp_port_is_free(family, port)

    def tx_checksum(self, name: str) -> bool | None:
        self._kernel.verb(f"tx_checksum {name}")
        return self._inner.tx_checksum(name)

    def set_tx_checksum(self, name: str, on: bool) -> None:  # noqa: FBT001 - one of two plain settings
        self._kernel.verb(f"set_tx_checksum {name}")
        self._inner.set_tx_checksum(name, on)

    def nft_has(self, family: int, table: str, kind: str = "", name: str = "") -> bool:
        self._kernel.verb(f"nft_has {table} {kind} {name}")
        return self._inner.nft_has(family, table, kind, name)

    def nft_rules(self, family: int, table: str, chain: str) -> list[NftRule]:
        self._kernel.verb(f"nft_rules {table} {chain}")
        return self._inner.nft_rules(family, table, chain)

    def nft_generation(self) -> int:
        self._kernel.verb("nft_generation")
        return self._inner.nft_generation()

    def nft_chains(self) -> list[NftChain]:
        self._kernel.verb("nft_chains")
        return self._inner.nft_chains()

    def nft_steps(self, family: int, table: str, chain: str) -> list[NftStep]:
        self._kernel.verb(f"nft_steps {table} {chain}")
        return self._inner.nft_steps(family, table, chain)

    def nft_elements(self, family: int, table: str, set_name: str) -> list[bytes]:
        self._kernel.verb(f"nft_elements {table} {set_name}")
        return self._inner.nft_elements(family, table, set_name)

    def nft_comments(self, family: int, table: str, set_name: str) -> dict[bytes, str]:
        self._kernel.verb(f"nft_comments {table} {set_name}")
        return self._inner.nft_comments(family, table, set_name)

    def nft_comment(self, family: int, table: str, set_name: str, key: bytes) -> str:
        self._kernel.verb(f"nft_comment {table} {set_name}")
        return self._inner.nft_comment(family, table, set_name, key)

    def nft_has_element(self, family: int, table: str, set_name: str, key: bytes) -> bool:
        self._kernel.verb(f"nft_has_element {table} {set_name}")
        return self._inner.nft_has_element(family, table, set_name, key)
