"""Which pod the node routes an address to, across networks: no two networks may lead one address to two pods.

    <run_dir>/addresses/<address>    symbolic link to `<network>/<key>`, a record's place (`cni/record.py`)

An attachment's record is written before its claims and removed after them, so a claim without a record is stale. Leases
keep the pods of one network apart, and its claims give way to each other.
"""

from __future__ import annotations

import posix

from cni.names import attachment_key, file_name
from cni.paths import exists, folder_of, make_folders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.world import World


class Claims:
    """The claims of one network's attachments, and what it must know of the others'."""

    __slots__ = ("_folder", "_lock", "_network", "_run_dir")

    def __init__(self, world: World, network: str) -> None:
        self._run_dir = world.run_dir
        self._folder = f"{world.run_dir}/addresses"
        self._lock = world.lock
        self._network = file_name(network)

    def other(self, address: str) -> str:
        """`<network>/<key>` of another network's attachment that an address is routed to; empty when there is none."""
        holder = self._holder(address)
        return holder if self._is_others(holder) else ""

    def others(self) -> list[str]:
        """The addresses that are routed to pods of other networks."""
        try:
            return [address for address in posix.listdir(self._folder) if self.other(address)]
        except FileNotFoundError:
            return []

    def claim(self, address: str, container_id: str, ifname: str) -> str:
        """Claim an address for an attachment that has a record; the other network's that has it, empty on success."""
        own, path = self._text(container_id, ifname), f"{self._folder}/{address}"
        for _ in range(2):
            try:
                posix.symlink(own, path)
            except FileNotFoundError:
                make_folders(self._folder, 0o700)
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
        """Remove the network's claims that have no record any more."""
        try:
            addresses = posix.listdir(self._folder)
        except FileNotFoundError:
            return
        stale = [address for address in addresses if self._is_own_stale(self._holder(address))]
        if stale:
            with self._lock(f"{self._run_dir}/addresses.lock", transient=True):
                for address in stale:
                    if self._is_own_stale(self._holder(address)):
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

    def _is_others(self, holder: str) -> bool:
        return bool(holder) and folder_of(holder) != self._network and self._has_record(holder)

    def _is_own_stale(self, holder: str) -> bool:
        return folder_of(holder) == self._network and not self._has_record(holder)

    def _has_record(self, holder: str) -> bool:
        network, _, key = holder.partition("/")
        return exists(f"{self._run_dir}/networks/{network}/attachments/{key}")

    def _holder(self, address: str) -> str:
        try:
            return posix.readlink(f"{self._folder}/{address}")
        except OSError:  # none, or no link at all
            return ""

    def _text(self, container_id: str, ifname: str) -> str:
        return f"{self._network}/{attachment_key(container_id, ifname)}"


def shown(holder: str) -> str:
    """A holder in words: `pod1/eth0 of network a`."""
    network, _, key = holder.partition("/")
    return f"{key.replace(':', '/')} of network {network}"


def _unlink(path: str) -> None:
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass
