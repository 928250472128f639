"""The kernel interface for a process that stays and serves calls from many threads (the agent).

The same verbs as `linux.py`, with what a long life makes possible. The sockets and directories of the node's
namespace are kept from call to call, because opening them costs more than most of what is done with them, and
closing a socket of nfnetlink after something was deleted blocks for 6 to 16 ms. And links of the node are
deleted by a few threads that share the kernel's grace periods (`deleter.py`).

Each handle that `own` gives has sockets of its own until it is closed, so any number of threads may have one at
a time; then they serve the next handle. Nothing belongs to a thread, and a thread may end as it likes. A handle
itself is for one thread at a time, as everywhere.
"""

from __future__ import annotations

import posix
import select
import threading
from errno import EBADF

from cni.errors import KernelError
from cni.kernel import linux, netns
from cni.kernel.background import thread_background
from cni.kernel.deleter import Deleter
from cni.kernel.sysctl import SYSCTL_DIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.kernel.background import Helper
    from cni.kernel.linux import Clock
    from cni.kernel.netlink import Socket
    from cni.kernel.sysctl import Conf

    Kept = tuple[Socket | None, Socket | None, dict[int, Conf]]


_MOST_IDLE = 16


class ResidentKernel(linux.Kernel):
    """Made in the node's namespace. The arguments are the base's."""

    __slots__ = ("_fd", "_idle", "_mutex", "deleter", "dev", "ino")

    def __init__(self, clock: Clock, sysctl_dir: str = SYSCTL_DIR) -> None:
        super().__init__(clock, thread_background, sysctl_dir)
        self._idle: list[Kept] = []
        self._mutex = threading.Lock()  # of the helpers
        self._fd = netns.open_own()
        status = posix.fstat(self._fd)
        self.dev, self.ino = status.st_dev, status.st_ino
        self.visitor = netns.Visitor(self._fd)
        self.deleter = Deleter(clock)

    def close(self) -> None:
        """End the threads and close everything, when no call is under way. A second time does nothing."""
        self.deleter.close()
        while not self.release_helpers():
            select.select((), (), (), 0.002)
        fd, self._fd = self._fd, -1
        self._close_idle()
        if fd >= 0:
            posix.close(fd)

    def own(self) -> NodeNamespace:
        """The node's namespace. Closing the handle keeps its sockets for the next one."""
        return NodeNamespace(self._open_fd(), self)

    def open(self, path: str) -> linux.Namespace:
        self._open_fd()
        return super().open(path)

    def adopt(self, path: str, fd: int) -> linux.Namespace:
        """The namespace of a descriptor that somebody has opened at `path` and passed to us.

        The descriptor is taken over: the handle closes it, and a refusal (NetnsError, as from `open`) does.
        """
        try:
            self._open_fd()
            netns.check(path, fd)
        except BaseException:
            posix.close(fd)
            raise
        return linux.Namespace(fd, self, own=False)

    def opened_anew(self, fd: int) -> int:
        """A second descriptor of the network namespace `fd`; KernelError when it is none.

        One that was opened at a bind mount (/run/netns/NAME) pins this mount, so that it cannot be unmounted; one that
        was opened inside the namespace does not.
        """
        return self.visitor.inside(fd, netns.open_own)

    def is_own(self, path: str) -> bool:
        try:
            there = posix.stat(path)
        except (OSError, ValueError):
            return False
        return (there.st_dev, there.st_ino) == (self.dev, self.ino)

    def hand_away(self, work: Callable[[], int], fds: tuple[int, ...]) -> Helper:
        with self._mutex:
            return super().hand_away(work, fds)

    def let_go(self, helper: Helper) -> None:
        with self._mutex:
            super().let_go(helper)

    def take(self) -> Kept:
        """Sockets and directories for a handle of the node's namespace, as far as there are any."""
        try:
            return self._idle.pop()
        except IndexError:
            return None, None, {}

    def keep(self, kept: Kept) -> None:
        """Take them back, for the next handle."""
        self._idle.append(kept)
        if self._fd < 0:
            self._close_idle()

    def trim(self) -> None:
        """Close what a burst of calls has left beyond what an ordinary load needs. It may take long (nftables)."""
        self._close_idle(_MOST_IDLE)

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise KernelError("use a kernel that was closed", EBADF)
        return self._fd

    def _close_idle(self, kept: int = 0) -> None:
        while len(self._idle) > kept:
            route, nft, conf = self.take()
            for one in (route, nft, *conf.values()):
                if one is not None:
                    one.close()


class NodeNamespace(linux.Namespace):
    """The node's namespace, with sockets on loan from the kernel. `fd` is the kernel's own."""

    __slots__ = ("_lender",)

    def __init__(self, fd: int, kernel: ResidentKernel) -> None:
        # Not the base's, which opens nothing but asks what is known here.
        self.fd, self.dev, self.ino = fd, kernel.dev, kernel.ino
        self._own = True
        self._kernel = kernel
        self._lender = kernel
        self._route, self._nft, self._conf = kernel.take()

    def close(self) -> None:
        """Give the sockets back, but for those that may be out of step; a second time does nothing."""
        if self.fd < 0:
            return
        self.fd = -1
        route, nft, conf = self._route, self._nft, self._conf
        self._route = self._nft = None
        self._conf = {}
        if route is not None and not route.usable:
            route.close()
            route = None
        if nft is not None and not nft.usable:
            nft.close()
            nft = None
        # A family that the kernel runs without may be loaded later.
        self._lender.keep((route, nft, {family: one for family, one in conf.items() if one.is_there}))

    def delete_link(self, index: int, kind: str = "") -> None:
        if not kind:
            link = self.link(index)
            if link is None:
                return
            kind = link.kind
        if not self._lender.deleter.delete(index, lambda: self.link(index) is not None, alone=kind != "veth"):
            super().delete_link(index, kind)
