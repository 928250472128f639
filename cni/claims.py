"""Which pod the node routes an address to, across networks: no two networks may lead one address to two pods.

    <run_dir>/addresses/<address>    symbolic link to `<network>/<key>`, a record's place (`cni/record.py`), or to the
                                     lease of a pod that another program attached

An attachment's record is written before its claims and removed after them, so a claim without a record is stale. So is one
whose record lists links that are all gone: another program has deleted the pod. Leases keep the pods of one network
apart, and its claims give way to each other.

Where the folder is missing, pods may have been attached by a build without claims, or by the Go plugins. It is then built
from what the node has (`cni/unclaimed.py`).
"""

from __future__ import annotations

import posix
from errno import EXDEV

from cni.names import attachment_key, call_lock, file_name
from cni.paths import base_name, exists, folder_of, make_folders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cni.context import Context

    # The leases of other networks: path (`.../<network>/<address>`), container ID and interface, empty when not known.
    Leases = Callable[[], Iterable[tuple[str, str, str]]]


class Claims:
    """The claims of one network's attachments, and what it must know of the others'.

    `leases` gives the leases of other networks, which count as claims where the folder of claims has to be built.
    """

    __slots__ = ("_ctx", "_folder", "_leases", "_lock", "_network", "_run_dir")

    def __init__(self, ctx: Context, leases: Leases = tuple) -> None:
        self._ctx = ctx
        self._leases = leases
        self._run_dir = ctx.world.run_dir
        self._folder = f"{self._run_dir}/addresses"
        self._lock = ctx.world.lock
        self._network = file_name(ctx.network)

    def other(self, address: str) -> str:
        """Whose claim of another network an address has (`shown` puts it into words); empty when it has none."""
        try:
            # /proc is another file system, so this never succeeds. Its error is one system call's answer to two
            # questions: ENOENT when the folder is missing, EEXIST when there is a claim, EXDEV when the name is free.
            posix.link("/proc", f"{self._folder}/{address}")
        except FileNotFoundError:
            self._build()
        except OSError as error:
            if error.errno == EXDEV:
                return ""
        holder = self._holder(address)
        return holder if self._is_others(holder) else ""

    def listed(self) -> list[str]:
        """The addresses that have a claim of another network, stale ones included."""
        try:
            addresses = posix.listdir(self._folder)
        except FileNotFoundError:
            return []
        return [address for address in addresses if self._network_of(self._holder(address)) not in ("", self._network)]

    def claim(self, address: str, container_id: str, ifname: str) -> str:
        """Claim an address for an attachment that has a record; the other network's that has it, empty on success."""
        own, path = self._text(container_id, ifname), f"{self._folder}/{address}"
        for _ in range(2):
            try:
                posix.symlink(own, path)
            except FileNotFoundError:
                self._build()
            except FileExistsError:
                return self._replace(address, own)
            else:
                return ""
        posix.symlink(own, path)  # the folder was removed again: say so
        return ""

    def release(self, address: str, container_id: str, ifname: str) -> None:
        """Give up an attachment's claim; one of another's is left alone."""
        if self._holder(address) == self._text(container_id, ifname):
            _unlink(f"{self._folder}/{address}")

    def forget_stale(self) -> None:
        """Remove the network's claims that have no record any more, and claims of leases that are gone."""
        try:
            addresses = posix.listdir(self._folder)
        except FileNotFoundError:
            return
        stale = [address for address in addresses if self._is_to_forget(self._holder(address))]
        if stale:
            with self._lock(f"{self._run_dir}/addresses.lock", transient=True):
                for address in stale:
                    if self._is_to_forget(self._holder(address)):
                        _unlink(f"{self._folder}/{address}")

    def _replace(self, address: str, own: str) -> str:
        """Claim an address whose claim is there. Whoever takes one away holds the lock, and looks again under it."""
        if self.other(address):
            return self.other(address)
        with self._lock(f"{self._run_dir}/addresses.lock", transient=True):
            holder = self._holder(address)
            if self._is_others(holder):
                return holder
            _unlink(f"{self._folder}/{address}")
            try:
                posix.symlink(own, f"{self._folder}/{address}")
            except FileExistsError:  # whoever finds no claim needs no lock
                return self._holder(address)
        return ""

    def _build(self) -> None:
        """Make the folder, with a claim for each address that the node leads to a pod."""
        from cni.unclaimed import holders

        with self._lock(f"{self._run_dir}/addresses.lock", transient=True):
            if exists(self._folder):
                return
            new = f"{self._folder}.new"
            make_folders(new, 0o700)
            for address in posix.listdir(new):  # of a killed builder
                posix.unlink(f"{new}/{address}")
            for address, holder in holders(self._ctx, self._leases).items():
                posix.symlink(holder, f"{new}/{address}")
            posix.rename(new, self._folder)

    def _is_others(self, holder: str) -> bool:
        return self._network_of(holder) not in ("", self._network) and self._is_alive(holder)

    def _is_to_forget(self, holder: str) -> bool:
        is_lease = holder.startswith("/")
        return (is_lease or self._network_of(holder) == self._network) and not exists(self._place(holder))

    def _is_alive(self, holder: str) -> bool:
        """Whether the attachment is there: its lease; or its record, unless all its links are gone.

        ADD writes the record before it makes the links, and holds the call's lock meanwhile.
        """
        if not exists(self._place(holder)):
            return False
        if holder.startswith("/"):
            return True
        from cni.record import Records, host_ends

        network, _, key = holder.partition("/")
        record = Records(self._run_dir, network, self._lock, self._ctx.log).at(key)
        if record is None:
            return True
        sections = record["plugins"]
        who = (record["network"], record["containerID"], record["ifname"])
        if any(exists(f"{self._run_dir}/locks/{call_lock(*who, plugin)}") for plugin in sections):
            return True
        links = [name for section in sections.values() for name in host_ends(section)]
        return not links or any(self._ctx.host.link(name) for name in links)

    def _network_of(self, holder: str) -> str:
        network = folder_of(holder)
        return file_name(base_name(network)) if network.startswith("/") else network

    def _place(self, holder: str) -> str:
        """The file without which a claim is stale."""
        if holder.startswith("/"):
            return holder
        network, _, key = holder.partition("/")
        return f"{self._run_dir}/networks/{network}/attachments/{key}"

    def _holder(self, address: str) -> str:
        try:
            return posix.readlink(f"{self._folder}/{address}")
        except OSError:  # none, or no link at all
            return ""

    def _text(self, container_id: str, ifname: str) -> str:
        return f"{self._network}/{attachment_key(container_id, ifname)}"


def shown(holder: str) -> str:
    """A holder in words: `pod1/eth0 of network a`."""
    if holder.startswith("/"):
        return f"the holder of lease {holder}"
    network, _, key = holder.partition("/")
    return f"{key.replace(':', '/')} of network {network}"


def _unlink(path: str) -> None:
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass
