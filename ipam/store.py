r"""The lease store: the folder of the Go host-local, to the byte, with no walk on the usual path.

    <dataDir>/<network>/<address>           `<containerID>\r\n<ifname>`; files of old versions hold the ID only
                        last_reserved_ip.N  the address handed out last from range set N
                        lock                flock, taken for every change

The lease file decides, and `link(2)` of a complete file makes it, so that two never hold one address and
nobody sees half a lease. The index (`ipam/index.py`) only says where to look. Its entry is written before
the lease and removed after it; its bit for the address is set after and cleared before. So a writer killed
anywhere leaves what the next call sees through: an entry with no lease behind it, or a lease with no bit.

No fsync: no namespace survives a power loss, and leases of ours from before the last boot are released. Hosts may
share the folder, so *ours* means this host's: those of another host are kept, whatever boot they are of.
"""

from __future__ import annotations

import errno
import posix

from cni import addr
from cni.names import identifier_fault, interface_fault
from cni.paths import is_folder, make_folders
from ipam.index import FOREIGN, FULL, Entry, Index, Unwritten, foreign, key_of, origin_of, time_tag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni.world import HeldLock, Log, TakeLock
    from ipam.index import Holder

DEFAULT_DATA_DIR = "/var/lib/cni/networks"
OWN_FOLDER = ".cnikit"

# A container ID is as long as an environment variable may be.
_USUAL_LEASE = 1024
_LONGEST_LEASE = 1 << 18

# Bytes that no text has. After a power loss a file may be all zeros.
_CONTROL = bytes(byte for byte in range(32) if byte not in b"\t\r\n")

# Another file system, or one without hard links.
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)


class Lease:
    """A lease file: whose it is (None: not in the format, left alone), and its time as the index keeps it."""

    __slots__ = ("holder", "mtime", "torn")

    def __init__(self, data: bytes, mtime_ns: int) -> None:
        self.mtime = time_tag(mtime_ns)
        self.torn = _is_torn(data)
        self.holder = None if self.torn else _holder(data)


class Store:
    """One network's leases, from `with` on under its lock; CniError 11 when that takes too long.

    `make` creates the folder, otherwise `exists` says whether there is one to work on.
    """

    __slots__ = (
        "_held",
        "_index",
        "_leasing",
        "_lock",
        "_log",
        "_origin",
        "_own",
        "_walked",
        "exists",
        "folder",
        "leases",
    )

    def __init__(
        self, data_dir: str, network: str, lock: TakeLock, log: Log, host_id: str, boot_id: str, *, make: bool = False
    ) -> None:
        self.folder = f"{data_dir}/{network}"
        self._own = f"{data_dir}/{OWN_FOLDER}/{network}"
        self._lock = lock
        self._log = log
        self._origin = origin_of(host_id, boot_id)
        self._index = Index(self._own, self.folder)
        self._leasing = make
        self._held: HeldLock | None = None
        self._walked = False
        # What the last walk found, by address: for messages and GC.
        self.leases: dict[str, Holder] = {}
        self.exists = is_folder(self.folder)
        if make and not self.exists:
            make_folders(self.folder, 0o755)
            self.exists = True

    def __enter__(self) -> Store:
        if not self.exists:
            return self
        try:
            # Go's host-local creates the file with this mode.
            self._held = self._lock(f"{self.folder}/lock", mode=0o750)
        except OSError as error:
            # The file is not there and cannot be made, so nobody works here.
            if self._leasing or error.errno not in FULL:
                raise
        try:
            if not self._index.load() or not self._index.was_read(self._origin):
                self.walk()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._held is not None:
            self._held.close()

    def held(self, holder: Holder, *, search: bool = False) -> list[str]:
        """The addresses that an attachment holds: its own leases and the old format's of its container.

        `search` looks in the folder for an attachment that the index does not know.
        """
        found = self._known(holder) + self._known(_old(holder))
        if search and not found and self.walk():
            return self._verified(holder) + self._verified(_old(holder))
        return found

    def _known(self, holder: Holder) -> list[str]:
        """What the index knows a holder to have.

        When it lists leases that are not there, a writer died or somebody else released them: then we walk.
        """
        entry = self._index.get(key_of(holder))
        found = self._verified(holder)
        if entry and len(found) < len(entry.addresses) and self.walk():
            return self._verified(holder)
        return found

    def _verified(self, holder: Holder) -> list[str]:
        entry = self._index.get(key_of(holder))
        return [text for text in entry.addresses if self.holder_of(text) == holder] if entry else []

    def lease(self, address: str) -> Lease | None:
        """The lease file of an address; None when there is none."""
        return _lease(f"{self.folder}/{address}")

    def holder_of(self, address: str) -> Holder | None:
        """Who holds an address; None also when its file is nobody's lease."""
        lease = self.lease(address)
        return lease.holder if lease else None

    def last_reserved(self, index: int) -> bytes | None:
        """The address that was handed out last from range set `index`; None when that is not known."""
        return self._index.last_reserved(index)

    def next_free(self, width: int, first: int, last: int) -> int | None:
        """The first free address from `first` to `last`, as integers of `width` bytes."""
        at = first
        while True:
            found = self._index.first_unmarked(width, at, last)
            if found is None or self.is_free(found.to_bytes(width, "big")):
                return found
            at = found + 1

    def is_free(self, packed: bytes) -> bool:
        """Whether nobody holds an address; a torn file and a dead lease of ours are taken away."""
        address = addr.unpack(packed)
        lease = self.lease(address)
        if lease is None:
            return True
        if lease.torn:
            self._set_aside(address)
            return True
        entry = self._entry_of(lease)
        known = entry is not None and address in entry.addresses
        if not known and not self._walked:
            self.walk()  # somebody else's, and the index knew nothing of it
            return self.lease(address) is None
        self._index.mark(packed, used=True)
        return False

    def take(self, holder: Holder, wanted: list[tuple[int, str]]) -> bool:
        """Lease addresses (range set's index and text), all or none; False when one was taken meanwhile."""
        taken: list[str] = []
        temporary, mtime = self._write_lease(holder)
        try:
            self._announce(holder, temporary, mtime, [address for _, address in wanted])
            for _, address in wanted:
                self._place(temporary, address, holder)
                taken.append(address)
            for index, address in wanted:
                self._index.mark(_packed(address), used=True)
                self._index.reserved(index, address)
        except FileExistsError:
            # Only somebody who does not take the lock can have done this.
            self.release(holder, taken)
            return False
        except BaseException:
            self.release(holder, taken)
            raise
        finally:
            posix.unlink(temporary)
        return True

    def _write_lease(self, holder: Holder) -> tuple[str, str]:
        """A complete lease file that is not at its place yet: its path and time."""
        path = f"{self._own}/new"
        try:
            return path, _create(path, _text(holder))
        except FileExistsError:
            posix.unlink(path)  # of a killed writer, and maybe a name of its lease: never write into it
            return path, _create(path, _text(holder))

    def _place(self, temporary: str, address: str, holder: Holder) -> None:
        """Put the lease at its address; FileExistsError when there is one."""
        path = f"{self.folder}/{address}"
        try:
            posix.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            # The network's folder is a mount of its own. The index then takes the lease for a foreign one.
            _create(path, _text(holder))

    def _announce(self, holder: Holder, temporary: str, mtime: str, addresses: list[str]) -> None:
        """Tell the index which leases will be there, beside those that are there."""
        key = key_of(holder)
        entry = self._index.get(key)
        before = self._verified(holder)
        if not entry or not before:
            origin = self._origin
            self._index.put(key, foreign(addresses) if origin == FOREIGN else Entry(origin, mtime, addresses))
        elif entry.origin == self._origin != FOREIGN:
            # An entry has room for one time, so the new lease gets that of the ones before.
            time = posix.stat(f"{self.folder}/{before[0]}").st_mtime_ns
            posix.utime(temporary, ns=(time, time))
            self._index.put(key, Entry(entry.origin, entry.mtime, before + addresses))
        else:
            self._index.put(key, foreign(before + addresses))

    def release(self, holder: Holder, addresses: list[str]) -> None:
        """Free those of `addresses` that `holder` holds; others are left alone."""
        for address in addresses:
            lease = self.lease(address)
            if lease is None or lease.holder == holder:
                self._free(address)
        self._forget(holder, addresses)

    def _free(self, address: str) -> None:
        self._index.mark(_packed(address), used=False)
        _unlink(f"{self.folder}/{address}")

    def _forget(self, holder: Holder, addresses: list[str]) -> None:
        key = key_of(holder)
        entry = self._index.get(key)
        rest = [text for text in entry.addresses if text not in addresses] if entry else []
        if entry and rest:
            self._index.put(key, Entry(entry.origin, entry.mtime, rest))
        else:
            self._index.drop(key)

    def release_all(self, holder: Holder) -> None:
        """Free all that an attachment holds; files of the old format only when it has no other, as Go does."""
        if self._release_known(holder) or self._index.remembers(key_of(holder)):
            return
        self.walk()
        if not self._release_known(holder):
            self._index.remember(key_of(holder))

    def _release_known(self, holder: Holder) -> bool:
        for who in (holder, _old(holder)):
            held = self._known(who)
            for address in held:
                self._free(address)
            if held:
                self._forget(who, held)
                return True
        return False

    def walk(self) -> bool:
        """Read every lease and rebuild the index, once per call of the plugin; whether it did."""
        if self._walked:
            return False
        self._walked = True
        found: dict[str, list[tuple[str, Lease]]] = {}
        used: list[bytes] = []
        for address, packed, lease in self._read_all():
            key = key_of(lease.holder) if lease.holder else ""
            entry = self._index.get(key) if key else None
            if self._is_dead(entry, address, lease):
                _unlink(f"{self.folder}/{address}")
                self._log(f"released {address}, a lease of {key} from before the last boot")
                continue
            used.append(packed)
            if lease.holder:
                self.leases[address] = lease.holder
                found.setdefault(key, []).append((address, lease))
        entries = {key: _entry(self._index.get(key), leases) for key, leases in found.items()}
        try:
            self._index.rebuild(self._origin, entries, used)
        except OSError as error:
            # Releasing makes room, so it must work without.
            if self._leasing or error.errno not in FULL:
                raise
            self._index = Unwritten(entries)
        return True

    def _read_all(self) -> Iterator[tuple[str, bytes, Lease]]:
        """Every address that has a file, and the file; torn ones are set aside."""
        for address in posix.listdir(self.folder):
            packed = addr.pack(address)
            lease = self.lease(address) if packed else None
            if not packed or not lease or addr.unpack(packed) != address:
                continue
            if lease.torn:
                self._set_aside(address)
            else:
                yield address, packed, lease

    def leases_beside(self) -> Iterator[tuple[str, str, str]]:
        """The leases of the other networks in the same `dataDir`: path, container ID, interface."""
        data_dir, _, own = self.folder.rpartition("/")
        for network in sorted(posix.listdir(data_dir)):
            folder = f"{data_dir}/{network}"
            if network in (own, OWN_FOLDER) or not is_folder(folder):
                continue
            for address in sorted(posix.listdir(folder)):
                lease = _lease(f"{folder}/{address}") if addr.pack(address) else None
                if lease and lease.holder:
                    yield f"{folder}/{address}", *lease.holder

    def names(self) -> list[str]:
        """What lies in the folder; read without the lock, for counting."""
        return posix.listdir(self.folder) if self.exists else []

    def is_reclaimable(self, address: str) -> bool:
        """Whether an ADD would take an address in spite of its file."""
        lease = self.lease(address)
        return lease is None or lease.torn or self._is_dead(self._entry_of(lease), address, lease)

    def is_another_hosts(self, holder: Holder) -> bool:
        """Whether the leases of an attachment are known to be made by another host. Call after `walk`."""
        entry = self._index.get(key_of(holder))
        return entry is not None and entry.origin != FOREIGN and not entry.is_of_host(self._origin)

    def _is_dead(self, entry: Entry | None, address: str, lease: Lease) -> bool:
        """Whether a lease is of this host and of an earlier boot: no namespace has outlived that."""
        if entry is None or entry.origin == self._origin or not entry.is_of_host(self._origin):
            return False
        return entry.vouches(address, lease.mtime)

    def _entry_of(self, lease: Lease) -> Entry | None:
        return self._index.get(key_of(lease.holder)) if lease.holder else None

    def _set_aside(self, address: str) -> None:
        """Move an empty or torn file out of the way: we hold the lock, so its writer is dead."""
        quarantine = f"{self._own}/quarantine"
        make_folders(quarantine, 0o700)
        try:
            posix.rename(f"{self.folder}/{address}", f"{quarantine}/{address}")
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            posix.unlink(f"{self.folder}/{address}")
        self._log(
            f"{self.folder}/{address}: expected `containerID CR LF ifname`, found an empty or torn file of a writer "
            f"that died; moved to {quarantine}, the address is free"
        )


def _entry(before: Entry | None, leases: list[tuple[str, Lease]]) -> Entry:
    """What the index shall say of these leases of one attachment: `before` itself when that still holds."""
    addresses = sorted(address for address, _ in leases)
    if before is None or not all(before.vouches(address, lease.mtime) for address, lease in leases):
        before = before if before and before.origin == FOREIGN else foreign(addresses)
    return before if sorted(before.addresses) == addresses else Entry(before.origin, before.mtime, addresses)


def _lease(path: str) -> Lease | None:
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        data = posix.read(fd, _USUAL_LEASE)
        if len(data) == _USUAL_LEASE:
            data += posix.read(fd, _LONGEST_LEASE)
        return Lease(data, posix.fstat(fd).st_mtime_ns)
    except IsADirectoryError:
        return Lease(b"(a folder)", 0)
    finally:
        posix.close(fd)


def _create(path: str, data: bytes) -> str:
    """Make a file, which must not be there yet; its time as the index keeps it."""
    fd = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600)
    try:
        posix.write(fd, data)
        return time_tag(posix.fstat(fd).st_mtime_ns)
    finally:
        posix.close(fd)


def _old(holder: Holder) -> Holder:
    """Who holds the leases of the old format, which name no interface."""
    return holder[0], ""


def _text(holder: Holder) -> bytes:
    return f"{holder[0]}\r\n{holder[1]}".encode("utf-8", "surrogateescape")


def _holder(data: bytes) -> Holder | None:
    """Container ID and interface of a lease, the latter empty in the old format; None for other text."""
    container_id, separator, ifname = data.strip().decode("utf-8", "surrogateescape").partition("\r\n")
    if identifier_fault(container_id) or (separator and interface_fault(ifname)):
        return None
    return container_id, ifname


def _is_torn(data: bytes) -> bool:
    """Whether a lease was cut short or lost its bytes in a power loss.

    Text that is no lease is not torn: an operator keeps an address out of use by writing why.
    """
    text = data.strip()
    cut = b"\r\n" not in text and data.endswith((b"\r", b"\r\n"))
    return not text or cut or len(text.translate(None, _CONTROL)) < len(text)


def _packed(address: str) -> bytes:
    packed = addr.pack(address)
    if packed is None:
        raise ValueError(address)
    return packed


def _unlink(path: str) -> None:
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass
