"""The kernel as cnikit sees it: a namespace is a handle, changes are data, questions are methods.

This page is the whole interface. `linux.py` implements it over netlink, `cni/testing/fake_kernel.py` in
memory; a plugin is given one of them and cannot tell which.

    with kernel.own() as host, kernel.open(netns_path) as pod:
        host.apply(ops.bridge_add("cni0", mac), ops.link_set("cni0", up=True))
        cni0 = host.link("cni0")

`apply` sends any number of operations (`ops.py`) in one system call and checks the answer to each. The
kernel goes on after a failed one, so a failure names its operation, and what the others did is for the
caller's undo.
"""

from __future__ import annotations

from cni.errors import INVALID_NETNS, CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from cni.errors import KernelError
    from cni.kernel.ops import Op
    from cni.kernel.types import Address, FdbEntry, Link, Neighbour, Nexthop, NftChain, NftRule, NftStep, Route

    class Namespace(Protocol):
        """One network namespace, entered once and then used from outside. Use it from one thread at a time."""

        dev: int  # device and inode of the namespace file: what tells two namespaces apart
        ino: int
        fd: int  # that file, for operations which name a namespace (-1 in a fake)

        def __enter__(self) -> Namespace: ...
        def __exit__(self, *exc: object) -> None: ...
        def close(self) -> None: ...

        def apply(self, *operations: Op) -> None:
            """Do all of them. KernelError for the first that failed, after all have been tried."""

        def attempt(self, operations: Sequence[Op]) -> list[tuple[Op, KernelError]]:
            """Do all of them, in order, and give those that failed."""

        def link(self, which: str | int) -> Link | None:
            """A link by name or index; None when there is none."""

        def links(self) -> list[Link]: ...
        def addresses(self, index: int) -> list[Address]: ...
        def routes(self, protocol: int = 0) -> list[Route]:
            """Unicast routes of both families in every table but `local`, of one protocol (0: of all)."""

        def way(self, packed: bytes) -> Route | None:
            """The route that a packet of this node to an address takes (ip-route(8), `get`); None when there is none, or
            the address is the node's own.
            """

        def nexthops(self, protocol: int = 0) -> list[Nexthop]:
            """Nexthop objects of one protocol (0: of all)."""

        def neighbours(self, index: int) -> list[Neighbour]:
            """The neighbours of a link, of both families."""

        def fdb(self, index: int) -> list[FdbEntry]:
            """The forwarding entries of a VXLAN device."""

        def has_vlan_filtering(self) -> bool:
            """Whether this kernel's bridges can filter VLANs."""

        def vlans(self, index: int) -> list[int]:
            """VLAN IDs of a bridge port, or of a bridge itself."""

        def wait_port(self, index: int, timeout: float) -> None:
            """Return when the link is operationally UP and, on a bridge, its port forwards.

            KernelError ETIMEDOUT after `timeout` seconds, with the state that was found.
            """

        def wait_gone(self, index: int, timeout: float) -> bool:
            """Whether a link goes within `timeout` seconds: at once when there is none."""

        def wait_addresses(self, index: int, wanted: Sequence[bytes], timeout: float) -> None:
            """Return when these addresses of the link answer: duplicate detection has ended and they have
            their local routes (which the kernel adds from a work queue, also for NODAD addresses).

            KernelError EADDRNOTAVAIL when duplicate detection found another holder, ETIMEDOUT after
            `timeout` seconds.
            """

        def delete_link(self, index: int, kind: str = "") -> None:
            """Delete a link and return when the kernel has announced that it is gone; success when it is none.

            Who has just asked about the link gives its `kind`, and it is not asked again.
            The grace period that follows blocks a helper, not the caller (docs/adr/012).
            """

        def conf(self, family: int, link: str, key: str) -> str | None:
            """`/proc/sys/net/ipv{4,6}/conf/LINK/KEY` of this namespace (`family` is AF_INET or AF_INET6).

            None when the kernel has no such file.
            """

        def set_conf(self, family: int, link: str, key: str, value: str) -> None:
            """Have it hold this value: written only when it holds another. KernelError when that fails, ENOENT when the
            kernel has no such file."""

        def refuse_conf(self, family: int, link: str, key: str, value: str) -> None:
            """KernelError when `set_conf` could not write this. Changes nothing."""

        def udp_port_is_free(self, family: int, port: int) -> bool:
            """Whether a tunnel could receive on a UDP port (`family` is AF_INET or AF_INET6): no program has it on any
            address, and no tunnel that is up."""

        def tx_checksum(self, name: str) -> bool | None:
            """Whether a link leaves the checksums of what it sends to the hardware (`ethtool -k`).

            None when there is no such link, or it has no such setting.
            """

        def set_tx_checksum(self, name: str, on: bool) -> None:  # noqa: FBT001 - one of two plain settings
            """Set it. KernelError EOPNOTSUPP when the link has no such setting, ENODEV when there is none."""

        def nft(self, *operations: Op) -> None:
            """One nftables transaction: all of it or nothing. KernelError names the operation that failed."""

        def nft_has(self, family: int, table: str, kind: str = "", name: str = "") -> bool:
            """Whether a table, or in it a `chain` or `set`, exists."""

        def nft_rules(self, family: int, table: str, chain: str) -> list[NftRule]:
            """The rules of a chain in order; empty when there is no such chain."""

        def nft_generation(self) -> int:
            """A number that every change of the ruleset makes another."""

        def nft_chains(self) -> list[NftChain]:
            """The base chains of the tables that see forwarded packets (ip, ip6, inet)."""

        def nft_steps(self, family: int, table: str, chain: str) -> list[NftStep]:
            """What the rules of a chain do, in order; empty when there is no such chain."""

        def nft_elements(self, family: int, table: str, set_name: str) -> list[bytes]:
            """The keys in a set; empty when there is no such set."""

        def nft_comments(self, family: int, table: str, set_name: str) -> dict[bytes, str]:
            """The same with the comment of each, empty for none."""

        def nft_comment(self, family: int, table: str, set_name: str, key: bytes) -> str:
            """The comment of one key, without reading the whole set; empty when there is none."""

        def nft_has_element(self, family: int, table: str, set_name: str, key: bytes) -> bool:
            """Whether a set holds a key, without reading the whole set."""

    class Kernel(Protocol):
        """Where namespaces come from."""

        def own(self) -> Namespace:
            """The namespace the caller runs in."""

        def open(self, path: str) -> Namespace:
            """The namespace at a path. NetnsError when there is none there."""

        def is_own(self, path: str) -> bool:
            """Whether the namespace at a path is the one the caller runs in; false when there is none there."""

    __all__ = ["Kernel", "Namespace", "NetnsError", "Sequence"]


class NetnsError(CniError):
    """No network namespace at a path (code 8). `gone` is true when that is what a dead pod leaves behind:
    nothing at the path, or a plain file whose mount is no more.
    """

    def __init__(self, path: str, found: str, gone: bool) -> None:  # noqa: FBT001 - one of two plain facts
        super().__init__(
            INVALID_NETNS,
            f"CNI_NETNS: expected a network namespace at {path!r}, found {found}",
            "create the namespace before ADD, for example with: ip netns add NAME",
        )
        self.gone = gone
