"""The kernel interface over netlink: what `cni/kernel/__init__.py` promises, on a running Linux (6.1 or later).

A `Namespace` opens each socket and directory when it is first needed, inside its namespace, and keeps it.
Deleting a link is the one slow verb, because the kernel ends it with a grace period of 6 to 20 ms after the
link is gone. A helper waits for that; `background` says what the helper is: a forked child for an executable
that is about to exit (`fork_background`), a thread for a resident process (`thread_background`).
"""

from __future__ import annotations

import posix
import select
from errno import (
    EACCES,
    EADDRNOTAVAIL,
    EBADF,
    EHOSTUNREACH,
    EINVAL,
    EIO,
    ENETUNREACH,
    ENOBUFS,
    ENODEV,
    EOPNOTSUPP,
    EPROTONOSUPPORT,
    ETIMEDOUT,
)

from cni import addr
from cni.errors import KernelError
from cni.kernel import netns, rtlinks, rtnetlink
from cni.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Socket, acknowledgement, message, messages
from cni.kernel.sysctl import SYSCTL_DIR, Conf
from cni.kernel.types import OPER_UP, PORT_FORWARDING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from cni.kernel.background import Background, Helper
    from cni.kernel.nfnetlink import Nftables
    from cni.kernel.ops import Op
    from cni.kernel.types import Address, FdbEntry, Link, Neighbour, Nexthop, NftChain, NftRule, NftStep, Route

    T = TypeVar("T")
    Clock = Callable[[], float]

IFA_F_DADFAILED = 0x08
IFA_F_TENTATIVE = 0x40

# What looking up a route says when there is none.
_UNREACHABLE = (ENETUNREACH, EHOSTUNREACH)
_FORBIDDEN = (EACCES, EINVAL)  # by a prohibiting route, by a blackhole

_NOTICE_SECONDS = 1.0  # without a notice for so long, ask
_DELETE_SECONDS = 30.0
_LONGEST_PAUSE = 0.01


class Kernel:
    """Where namespaces come from. `clock` is `time.monotonic`, `sysctl_dir` where the settings are mounted."""

    __slots__ = ("_background", "_clock", "_helpers", "sysctl_dir", "visitor")

    def __init__(self, clock: Clock, background: Background, sysctl_dir: str = SYSCTL_DIR) -> None:
        self.sysctl_dir = sysctl_dir
        self.visitor = netns.Visitor()
        self._clock = clock
        self._background = background
        self._helpers: list[Helper] = []

    def own(self) -> Namespace:
        return Namespace(netns.open_own(), self, own=True)

    def open(self, path: str) -> Namespace:
        return Namespace(netns.open_path(path), self, own=False)

    def is_own(self, path: str) -> bool:
        return netns.is_own(path)

    def now(self) -> float:
        return self._clock()

    def hand_away(self, work: Callable[[], int], fds: tuple[int, ...]) -> Helper:
        """Run `work` in a helper, after letting go of earlier ones that have ended by now."""
        self.release_helpers()
        return self._background(work, fds)

    def release_helpers(self) -> bool:
        """Let go of the helpers that have ended; whether none is left."""
        self._helpers = [helper for helper in self._helpers if not helper.release()]
        return not self._helpers

    def let_go(self, helper: Helper) -> None:
        if not helper.release():
            self._helpers.append(helper)


class Namespace:
    """One network namespace. `fd` is its file, `dev` and `ino` tell it from others."""

    __slots__ = ("_conf", "_kernel", "_nft", "_own", "_route", "dev", "fd", "ino")

    def __init__(self, fd: int, kernel: Kernel, *, own: bool) -> None:
        self.fd = fd
        self._kernel = kernel
        self._own = own
        self._route: Socket | None = None
        self._nft: Socket | None = None
        self._conf: dict[int, Conf] = {}
        try:
            status = posix.fstat(fd)
            self.dev, self.ino = status.st_dev, status.st_ino
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close everything; a second time does nothing."""
        opened = [self._route, self._nft, *self._conf.values()]
        self._route = self._nft = None
        self._conf = {}
        for one in opened:
            if one is not None:
                one.close()
        if self.fd >= 0:
            posix.close(self.fd)
            self.fd = -1

    # Links, addresses, routes

    def apply(self, *operations: Op) -> None:
        failed = self.attempt(operations)
        if failed:
            raise failed[0][1]

    def attempt(self, operations: Sequence[Op]) -> list[tuple[Op, KernelError]]:
        answers = self._rtnetlink().execute(rtnetlink.encode(operations))
        return [
            (op, KernelError(op.text, errno, hint))
            for op, (errno, hint) in zip(operations, answers, strict=True)
            if errno
        ]

    def link(self, which: str | int) -> Link | None:
        if not _can_be_link(which):
            return None  # the kernel would call it a malformed question
        question = rtlinks.link_question(which)
        answer = self._rtnetlink().ask(f"look up link {which}", rtlinks.RTM_GETLINK, question, absent=(ENODEV,))
        return None if answer is None else rtlinks.parse_link(answer)

    def links(self) -> list[Link]:
        answers = self._rtnetlink().dump("list links", rtlinks.RTM_GETLINK, rtlinks.link_question(None))
        return [rtlinks.parse_link(answer) for answer in answers]

    def addresses(self, index: int) -> list[Address]:
        question = rtnetlink.addr_question(index)
        what = f"list addresses of link {index}"
        answers = self._rtnetlink().dump(what, rtnetlink.RTM_GETADDR, question, absent=(ENODEV,))
        parsed = [rtnetlink.parse_address(answer) for answer in answers]
        return [found[1] for found in parsed if found is not None and found[0] == index]

    def routes(self, protocol: int = 0) -> list[Route]:
        routes: list[Route] = []
        for family in (addr.AF_INET, addr.AF_INET6):
            question = rtnetlink.route_question(family, protocol)
            for answer in self._rtnetlink().dump("list routes", rtnetlink.RTM_GETROUTE, question):
                if answer[0] == family:  # a kernel without IPv6 answers with what it has
                    routes += rtnetlink.parse_routes(answer)
        return routes

    def way(self, packed: bytes) -> Route | None:
        question = rtnetlink.lookup_question(packed)
        what = f"look up the route to {addr.unpack(packed)}"
        absent = (*_UNREACHABLE, *_FORBIDDEN)
        answer = self._rtnetlink().ask(what, rtnetlink.RTM_GETROUTE, question, absent=absent)
        return None if answer is None else next(iter(rtnetlink.parse_routes(answer)), None)

    def nexthops(self, protocol: int = 0) -> list[Nexthop]:
        # Imported here and below: a node without peers does without.
        from cni.kernel import rtpeers

        answers = self._rtnetlink().dump("list nexthops", rtpeers.RTM_GETNEXTHOP, rtpeers.nexthop_question())
        found = [rtpeers.parse_nexthop(answer) for answer in answers]
        return [nexthop for nexthop in found if protocol in (0, nexthop.protocol)]

    def neighbours(self, index: int) -> list[Neighbour]:
        from cni.kernel import rtpeers

        question = rtpeers.neighbour_question(index)
        what = f"list neighbours of link {index}"
        answers = self._rtnetlink().dump(what, rtpeers.RTM_GETNEIGH, question, absent=(ENODEV,))
        return rtpeers.parse_neighbours(answers, index)

    def fdb(self, index: int) -> list[FdbEntry]:
        from cni.kernel import rtpeers

        question = rtpeers.fdb_question(index)
        what = f"list fdb entries of link {index}"
        answers = self._rtnetlink().dump(what, rtpeers.RTM_GETNEIGH, question, absent=(ENODEV,))
        return rtpeers.parse_fdb(answers, index)

    def has_vlan_filtering(self) -> bool:
        ((errno, hint),) = self._rtnetlink().execute([rtlinks.vlan_probe()])
        if errno not in (EPROTONOSUPPORT, EINVAL, EOPNOTSUPP):  # EOPNOTSUPP: no bridges at all
            raise KernelError("ask whether bridges filter VLANs", errno or EIO, hint)
        return errno == EPROTONOSUPPORT

    def vlans(self, index: int) -> list[int]:
        question = rtlinks.vlan_question(index)
        answers = self._rtnetlink().dump(f"list VLANs of link {index}", rtlinks.RTM_GETVLAN, question)
        return [vid for answer in answers for vid in rtlinks.parse_vlans(answer)]

    # Waiting

    def wait_port(self, index: int, timeout: float) -> None:
        def state() -> str:
            link = self.link(index)
            if link is None:
                raise KernelError(f"wait for link {index}", ENODEV)
            if link.operstate == OPER_UP and (link.port is None or link.port.state == PORT_FORWARDING):
                return ""
            port = f", bridge port state {link.port.state} (expected {PORT_FORWARDING})" if link.port else ""
            return f"{link.name} has operstate {link.operstate} (expected {OPER_UP}){port}"

        self._wait(f"wait until link {index} forwards", state, timeout)

    def wait_gone(self, index: int, timeout: float) -> bool:
        try:
            self._wait(f"wait until link {index} is gone", lambda: "it is there" if self.link(index) else "", timeout)
        except KernelError as error:
            if error.errno != ETIMEDOUT:
                raise
            return False
        return True

    def wait_addresses(self, index: int, wanted: Sequence[bytes], timeout: float) -> None:
        def state() -> str:
            found = [one for one in self.addresses(index) if one.packed in wanted]
            for one in found:
                if one.flags & IFA_F_DADFAILED:
                    what = f"use address {addr.unpack_cidr(one.packed, one.prefix)}"
                    raise KernelError(what, EADDRNOTAVAIL, "another host on the network holds it")
            tentative = [addr.unpack(one.packed) for one in found if one.flags & IFA_F_TENTATIVE]
            if tentative:
                return f"still tentative: {', '.join(tentative)}"
            silent = [addr.unpack(packed) for packed in wanted if not self._is_local(packed)]
            return f"no local route yet: {', '.join(silent)}" if silent else ""

        self._wait(f"wait for the addresses of link {index}", state, timeout)

    def _is_local(self, packed: bytes) -> bool:
        """Whether a packet to an address would be delivered here."""
        question = rtnetlink.lookup_question(packed)
        what = f"look up the route to {addr.unpack(packed)}"
        answer = self._rtnetlink().ask(what, rtnetlink.RTM_GETROUTE, question, absent=_UNREACHABLE)
        return answer is not None and rtnetlink.is_local_route(answer)

    def _wait(self, what: str, state: Callable[[], str], timeout: float) -> None:
        """Return when `state` says nothing more; ETIMEDOUT with what it said last."""
        deadline = self._kernel.now() + timeout
        pause = 0.00005
        while found := state():
            if self._kernel.now() >= deadline:
                raise KernelError(what, ETIMEDOUT, found)
            select.select((), (), (), pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    # Deleting

    def delete_link(self, index: int, kind: str = "") -> None:
        what = f"delete link {index}"
        if not kind and self.link(index) is None:
            return
        watch = self._open(NETLINK_ROUTE, rtlinks.RTMGRP_LINK)
        try:
            fd = self._open(NETLINK_ROUTE).detach()
            helper = self._kernel.hand_away(lambda: _delete(fd, index), (fd, *self._shared_nft()))
            try:
                self._wait_gone(what, index, watch, helper)
            finally:
                self._kernel.let_go(helper)
        finally:
            watch.close()

    def _wait_gone(self, what: str, index: int, watch: Socket, helper: Helper) -> None:
        deadline = self._kernel.now() + _DELETE_SECONDS
        poll = select.poll()
        poll.register(watch.fileno(), select.POLLIN)
        poll.register(helper.fileno(), select.POLLIN)
        ask_at = self._kernel.now() + _NOTICE_SECONDS
        while self._kernel.now() < deadline:
            ready = [fd for fd, _ in poll.poll(max(0.0, ask_at - self._kernel.now()) * 1000)]
            if watch.fileno() in ready:
                gone = _announced(watch, index)
                if gone:
                    return
                if gone is None:  # notices were lost
                    ask_at = self._kernel.now()
            if helper.fileno() in ready:
                result = posix.read(helper.fileno(), 4)
                errno = int.from_bytes(result, "little") if result else EIO
                if errno not in (0, ENODEV):
                    raise KernelError(what, errno, "" if result else "the helper that deletes it has died")
                return
            if self._kernel.now() >= ask_at:
                if self.link(index) is None:
                    return
                ask_at = self._kernel.now() + _NOTICE_SECONDS
        raise KernelError(what, ETIMEDOUT, f"it is still there after {_DELETE_SECONDS:.0f} seconds")

    # Settings

    def conf(self, family: int, link: str, key: str) -> str | None:
        return self._conf_of(family).read(link, key)

    def set_conf(self, family: int, link: str, key: str, value: str) -> None:
        self._conf_of(family).write(link, key, value)

    def refuse_conf(self, family: int, link: str, key: str, value: str) -> None:
        self._conf_of(family).refuse(link, key, value)

    def udp_port_is_free(self, family: int, port: int) -> bool:
        # Imported here: only who makes a tunnel asks.
        from cni.kernel import udp

        return self.inside(lambda: udp.is_free(family, port))

    def tx_checksum(self, name: str) -> bool | None:
        from cni.kernel import ethtool

        return ethtool.tx_checksum(self._rtnetlink().fileno(), name)

    def set_tx_checksum(self, name: str, on: bool) -> None:  # noqa: FBT001 - one of two plain settings
        from cni.kernel import ethtool

        ethtool.set_tx_checksum(self._rtnetlink().fileno(), name, on=on)

    # nftables

    def nft(self, *operations: Op) -> None:
        if operations:
            self._nftables().change(operations)

    def nft_has(self, family: int, table: str, kind: str = "", name: str = "") -> bool:
        return self._nftables().has(family, table, kind, name)

    def nft_rules(self, family: int, table: str, chain: str) -> list[NftRule]:
        return self._nftables().rules(family, table, chain)

    def nft_generation(self) -> int:
        return self._nftables().generation()

    def nft_chains(self) -> list[NftChain]:
        return self._nftables().chains()

    def nft_steps(self, family: int, table: str, chain: str) -> list[NftStep]:
        return self._nftables().steps(family, table, chain)

    def nft_elements(self, family: int, table: str, set_name: str) -> list[bytes]:
        return self._nftables().elements(family, table, set_name)

    def nft_comments(self, family: int, table: str, set_name: str) -> dict[bytes, str]:
        return self._nftables().comments(family, table, set_name)

    def nft_comment(self, family: int, table: str, set_name: str, key: bytes) -> str:
        return self._nftables().comment(family, table, set_name, key)

    def nft_has_element(self, family: int, table: str, set_name: str, key: bytes) -> bool:
        return self._nftables().has_element(family, table, set_name, key)

    # What has to be opened inside

    def _open(self, protocol: int, groups: int = 0) -> Socket:
        return self.inside(lambda: Socket(protocol, groups))

    def inside(self, action: Callable[[], T]) -> T:
        """Run what opens something in this namespace."""
        if self.fd < 0:
            raise KernelError("use a network namespace that was closed", EBADF)
        return action() if self._own else self._kernel.visitor.inside(self.fd, action)

    def _rtnetlink(self) -> Socket:
        if self._route is not None and not self._route.usable:
            self._route.close()
            self._route = None
        if self._route is None:
            self._route = self._open(NETLINK_ROUTE)
        return self._route

    def _nftables(self) -> Nftables:
        # Imported here: a call without firewall changes does without the codec.
        from cni.kernel.nfnetlink import Nftables

        return Nftables(self._nft_socket())

    def _nft_socket(self) -> Socket:
        if self._nft is not None and not self._nft.usable:
            self._nft.close()
            self._nft = None
        if self._nft is None:
            self._nft = self._open(NETLINK_NETFILTER)
        return self._nft

    def _shared_nft(self) -> tuple[int, ...]:
        """The nftables socket for a helper to hold as well.

        A teardown that deletes links goes on to delete set elements. Closing the last reference to a socket
        of nfnetlink waits until the kernel has freed what was deleted, a grace period of 6 to 20 ms; the
        helper waits for one anyway.
        """
        try:
            return (posix.dup(self._nft_socket().fileno()),) if self._own else ()
        except (KernelError, OSError):
            return ()  # a kernel without nftables, or no descriptor left

    def _conf_of(self, family: int) -> Conf:
        found = self._conf.get(family)
        if found is None:
            # Each alone: the first visit to /proc/sys of a new namespace costs 0.05 ms for a family.
            found = self._conf[family] = self.inside(lambda: Conf(self._kernel.sysctl_dir, family))
        return found


def _can_be_link(which: str | int) -> bool:
    """Whether a link can have this name or index at all."""
    if isinstance(which, int):
        return 0 < which < 1 << 31
    return "\0" not in which and len(which.encode("utf-8", "surrogateescape")) <= 15


def _announced(watch: Socket, index: int) -> bool | None:
    """Whether the next notice says that the link is gone; None when notices were lost."""
    try:
        notices = watch.notices()
    except KernelError as error:
        if error.errno == ENOBUFS:
            return None
        raise
    return any(kind == rtlinks.RTM_DELLINK and rtlinks.parse_gone_link(body) == index for kind, body in notices)


def _delete(fd: int, index: int) -> int:
    """Delete a link through a netlink socket and give the errno: the work of a helper."""
    kind, flags, body = rtlinks.link_del(index)
    try:
        posix.write(fd, message(kind, flags | 5, 1, body))  # NLM_F_REQUEST | NLM_F_ACK
        for _, flags, _, answer in messages(posix.read(fd, 1 << 14)):
            return acknowledgement(flags, answer)[0]
    except OSError as error:
        return error.errno or EIO
    return EIO
