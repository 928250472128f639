"""A hint beside the leases, so that no call has to walk them: who holds what, and which addresses are used.

    <dataDir>/.cnikit/<network>/state         the index's version, the seals
                                host-<host>   a symbolic link to the origin with which this host read every lease last
                                <key>         per attachment (`CONTAINER:IFNAME`) a symbolic link to
                                              `ORIGIN MTIME ADDRESS ADDRESS...`
                                used-<page>   bitmaps of 32,768 addresses each, one bit per address
                                released      hashes of attachments released lately

Nothing here is believed: `ipam/store.py` opens the lease file behind every answer. What has to be noticed is
that somebody else (the Go host-local) has leased in between. He then has written `last_reserved_ip.N`, maybe
with the text that was there, maybe within one tick of the file system's clock. So that file is *sealed*
whenever we write it: its modification time is set to a moment in the past that never was, and recorded in
`state`. Every other write puts the present there. Other times prove nothing: a folder's misses changes.

ORIGIN and MTIME say that a lease is cnikit's, and of which host and boot, because hosts may share the folder. A
foreign lease has `-`, and so has one of a host that cannot be distinguished from others. MTIME is the low part of the lease
file's modification time: a lease that Go has made again with the very same text is Go's.

Version 1 had no host in its entries, which are foreign here. Ours are foreign there: their MTIME has another length.
"""

from __future__ import annotations

import posix
from errno import EDQUOT, ENOENT, ENOSPC

from cni import addr
from cni.names import attachment_key, digest
from cni.paths import make_folders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Holder = tuple[str, str]  # container ID and interface; the latter is empty in files of the old format

# A FIFO in the place of one of our files must not block.
_SAFE = posix.O_CLOEXEC | posix.O_NONBLOCK

# No room: a hint that cannot be written is left away.
FULL = (ENOSPC, EDQUOT)

LAST_RESERVED = "last_reserved_ip."

_HEADER = b"cnikit host-local index 2\n"
_SEAL = b"%016x\n"
_SEAL_SIZE = 17
# ext4 keeps 59 bytes of a symbolic link in the inode and takes a block for more, so these are short. A host must not be
# taken for another. Where two boots or times look alike, a dead lease is kept.
_HOST_SIZE = 7
_ORIGIN_SIZE = _HOST_SIZE + 4
_TIME_SIZE = 5
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
_SECOND = 1_000_000_000
_PAGE = "used-"
_PAGE_BITS = 15
_PAGE_SIZE = 1 << _PAGE_BITS >> 3
_RELEASED_SLOTS = 4096
_RELEASED_SIZE = 8
FOREIGN = "-"


class Entry:
    """What the index says an attachment holds: address texts, and for leases of ours their origin and time."""

    __slots__ = ("addresses", "mtime", "origin")

    def __init__(self, origin: str, mtime: str, addresses: list[str]) -> None:
        self.origin = origin
        self.mtime = mtime
        self.addresses = addresses

    def __str__(self) -> str:
        return " ".join([self.origin, self.mtime, *self.addresses])

    def vouches(self, address: str, mtime: str) -> bool:
        """Whether the lease file of `address`, with that time, is one that we wrote."""
        return self.origin != FOREIGN and self.mtime == mtime and address in self.addresses

    def is_of_host(self, origin: str) -> bool:
        """Whether the leases are known to be of the host of `origin`, in whatever boot."""
        return self.origin != FOREIGN and self.origin[:_HOST_SIZE] == origin[:_HOST_SIZE]


def foreign(addresses: list[str]) -> Entry:
    """An entry for leases of which it is not known where they were made."""
    return Entry(FOREIGN, FOREIGN, addresses)


class Index:
    """The index of one network. Call everything under the network's lock; writers are killed at any line.

    An object lives no longer than the lock is held. So nobody else changes an entry that it has read.
    """

    __slots__ = ("_entries", "_leases", "_seals", "folder")

    def __init__(self, folder: str, leases: str) -> None:
        self.folder = folder
        self._leases = leases
        self._seals: list[int] = []
        self._entries: dict[str, Entry | None] = {}

    def load(self) -> bool:
        """Whether the index knows of every lease: it is whole, and nobody else has leased since."""
        data = _read(f"{self.folder}/state")
        start = len(_HEADER)
        if not data.startswith(_HEADER) or (len(data) - start) % _SEAL_SIZE:
            return False
        try:
            seals = [int(data[at : at + _SEAL_SIZE - 1], 16) for at in range(start, len(data), _SEAL_SIZE)]
        except ValueError:
            return False
        self._seals = seals
        # The one after the last must still be absent: Go releases the lock between two range sets.
        return all(_mtime(self._last(n)) == seal for n, seal in enumerate([*seals, 0]))

    def was_read(self, origin: str) -> bool:
        """Whether this host has read every lease since it was started, so that none of its earlier boots is left.

        Nothing can be known to be of an earlier boot of a host that is not known.
        """
        return origin == FOREIGN or _target(self._host(origin)) == origin

    def rebuild(self, origin: str, entries: Mapping[str, Entry], used: list[bytes]) -> None:
        """Make the index say exactly this; `entries` by `key_of`, `used` every address that has a file.

        An entry that is the very one from `get` is there already.
        """
        _unlink(f"{self.folder}/state")
        make_folders(self.folder, 0o700)
        self._rebuild_entries(entries)
        self._rebuild_pages(used)
        if not self.was_read(origin):
            self._link(self._host(origin), origin)
        self._seals = []
        while _mtime(self._last(len(self._seals))):
            fd = posix.open(self._last(len(self._seals)), posix.O_RDWR | _SAFE)
            try:
                self._seals.append(_seal(fd, posix.fstat(fd)))
            finally:
                posix.close(fd)
        lines = b"".join(_SEAL % seal for seal in self._seals)
        _write(f"{self.folder}/state", _HEADER + lines)

    def _rebuild_entries(self, entries: Mapping[str, Entry]) -> None:
        for name in posix.listdir(self.folder):
            if ":" in name and name not in entries:
                self._remove(name)
        for key, entry in entries.items():
            if entry is not self.get(key):
                self.put(key, entry)

    def _rebuild_pages(self, used: list[bytes]) -> None:
        pages: dict[str, bytearray] = {}
        for packed in used:
            name, bit = _place(packed)
            page = pages.setdefault(name, bytearray(_PAGE_SIZE))
            page[bit >> 3] |= 1 << (bit & 7)
        for name in posix.listdir(self.folder):
            if name.startswith(_PAGE) and name not in pages:
                _unlink(f"{self.folder}/{name}")
        for name, page in pages.items():
            _write(f"{self.folder}/{name}", page)

    def get(self, key: str) -> Entry | None:
        """The entry under a key (`key_of`); None when there is none or one that makes no sense."""
        if key not in self._entries:
            self._entries[key] = _read_entry(f"{self.folder}/{key}")
        return self._entries[key]

    def put(self, key: str, entry: Entry) -> None:
        """Replace an entry, at once and whole."""
        self._link(f"{self.folder}/{key}", str(entry))
        self._entries[key] = entry

    def _link(self, path: str, target: str) -> None:
        temporary = f"{self.folder}/entry"
        try:
            posix.symlink(target, path)
        except FileExistsError:
            _unlink(temporary)
            posix.symlink(target, temporary)
            posix.rename(temporary, path)

    def drop(self, key: str) -> None:
        """Forget an attachment, and remember for a while that it was released."""
        self.remember(key)
        self._remove(key)

    def _remove(self, key: str) -> None:
        _unlink(f"{self.folder}/{key}")
        self._entries[key] = None

    def first_unmarked(self, width: int, first: int, last: int) -> int | None:
        """The first address from `first` to `last` that is not marked as used."""
        at = first
        while at <= last:
            name, bit = _place(at.to_bytes(width, "big"))
            page = _read(f"{self.folder}/{name}")[:_PAGE_SIZE]
            free = ~int.from_bytes(page, "little") >> bit
            at += (free & -free).bit_length() - 1
            # A full page gives the first bit after it, which is the next page's first.
            if at <= last and _place(at.to_bytes(width, "big"))[0] == name:
                return at
        return None

    def marked(self, width: int, first: int, last: int) -> int:
        """How many addresses from `first` to `last` are marked as used."""
        count = 0
        at = first
        while at <= last:
            name, bit = _place(at.to_bytes(width, "big"))
            length = min(_PAGE_SIZE * 8 - bit, last - at + 1)
            page = int.from_bytes(_read(f"{self.folder}/{name}")[:_PAGE_SIZE], "little")
            count += (page >> bit & ((1 << length) - 1)).bit_count()
            at += length
        return count

    def mark(self, packed: bytes, *, used: bool) -> None:
        """Set or clear an address's bit. One that cannot be cleared for want of room is left to the next walk."""
        try:
            self._set_bit(packed, used=used)
        except OSError as error:
            if used or error.errno not in (ENOENT, *FULL):
                raise

    def _set_bit(self, packed: bytes, *, used: bool) -> None:
        name, bit = _place(packed)
        fd = posix.open(f"{self.folder}/{name}", posix.O_RDWR | (posix.O_CREAT if used else 0) | _SAFE, 0o600)
        try:
            before = (posix.pread(fd, 1, bit >> 3) or b"\0")[0]
            mask = 1 << (bit & 7)
            after = before | mask if used else before & ~mask
            if after != before:
                posix.pwrite(fd, bytes([after]), bit >> 3)
        finally:
            posix.close(fd)

    def last_reserved(self, index: int) -> bytes | None:
        """The address that was last handed out from range set `index`."""
        return addr.pack(_read(self._last(index)).decode("ascii", "replace"))

    def reserved(self, index: int, address: str) -> None:
        """Write `last_reserved_ip.N` as Go does, and seal it."""
        text = address.encode("ascii")
        # No O_TRUNC: on ext4 it makes close() wait for the disk.
        fd = posix.open(self._last(index), posix.O_RDWR | posix.O_CREAT | _SAFE, 0o600)
        try:
            posix.pwrite(fd, text, 0)
            status = posix.fstat(fd)
            if status.st_size > len(text):
                posix.ftruncate(fd, len(text))
            seal = _seal(fd, status)
        finally:
            posix.close(fd)
        self._seals += [0] * (index + 1 - len(self._seals))
        self._seals[index] = seal
        fd = posix.open(f"{self.folder}/state", posix.O_WRONLY | _SAFE)
        try:
            posix.pwrite(fd, _SEAL % seal, len(_HEADER) + index * _SEAL_SIZE)
        finally:
            posix.close(fd)

    def remember(self, key: str) -> None:
        """Note that an attachment holds nothing, so that its next DEL need not look for it."""
        slot, mark = _released(key)
        try:
            fd = posix.open(f"{self.folder}/released", posix.O_WRONLY | posix.O_CREAT | _SAFE, 0o600)
            try:
                posix.pwrite(fd, mark, slot)
            finally:
                posix.close(fd)
        except OSError as error:
            if error.errno not in FULL:
                raise

    def remembers(self, key: str) -> bool:
        slot, mark = _released(key)
        try:
            fd = posix.open(f"{self.folder}/released", posix.O_RDONLY | _SAFE)
        except FileNotFoundError:
            return False
        try:
            return posix.pread(fd, _RELEASED_SIZE, slot) == mark
        finally:
            posix.close(fd)

    def _host(self, origin: str) -> str:
        return f"{self.folder}/host-{origin[:_HOST_SIZE]}"

    def _last(self, index: int) -> str:
        return f"{self._leases}/{LAST_RESERVED}{index}"


class Unwritten(Index):
    """What a walk has found when there is no room to write it down, kept for the rest of the call: leases can be
    released with it. The file `state` is gone, so the next call walks again."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        super().__init__("", "")
        self._entries.update(entries)

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        self._entries[key] = entry

    def mark(self, packed: bytes, *, used: bool) -> None: ...

    def remember(self, key: str) -> None: ...

    def remembers(self, key: str) -> bool:  # noqa: ARG002 - nothing is written down
        return False

    def _remove(self, key: str) -> None:
        self._entries[key] = None


def key_of(holder: Holder) -> str:
    """The file name that stands for a holder; an old lease's, which has no interface, ends in a colon."""
    return attachment_key(*holder)


def origin_of(host_id: str, boot_id: str) -> str:
    """Where leases are made now: a host and a boot of it. FOREIGN for a host that is not known, an empty `host_id`."""
    if not host_id:
        return FOREIGN
    return _digits(digest(host_id), _HOST_SIZE) + _digits(digest(boot_id), _ORIGIN_SIZE - _HOST_SIZE)


def time_tag(mtime_ns: int) -> str:
    return _digits(mtime_ns.to_bytes(16, "big", signed=True), _TIME_SIZE)


def _digits(data: bytes, count: int) -> str:
    """The last bits of `data` as that many digits of six bits."""
    number = int.from_bytes(data[-8:], "big")
    return "".join([_DIGITS[number >> 6 * at & 63] for at in range(count)])


def _place(packed: bytes) -> tuple[str, int]:
    """An address's page and its bit there."""
    number = int.from_bytes(packed, "big")
    return f"{_PAGE}{len(packed)}-{number >> _PAGE_BITS:x}", number & ((1 << _PAGE_BITS) - 1)


def _released(key: str) -> tuple[int, bytes]:
    found = digest(key)
    return int.from_bytes(found[:4], "big") % _RELEASED_SLOTS * _RELEASED_SIZE, found[4 : 4 + _RELEASED_SIZE]


def _seal(fd: int, status: posix.stat_result) -> int:
    """Set a file's modification time to one that no write can give it: some nanosecond of the second before."""
    second = status.st_mtime_ns // _SECOND - 1
    seal = second * _SECOND + int.from_bytes(posix.urandom(4), "big") % _SECOND
    posix.utime(fd, ns=(seal, seal))
    return seal


def _read_entry(path: str) -> Entry | None:
    origin, *rest = _target(path).split(" ")
    if len(rest) < 2:
        return None
    return Entry(origin, rest[0], rest[1:]) if len(origin) == _ORIGIN_SIZE else foreign(rest[1:])


def _target(path: str) -> str:
    """What a symbolic link says; nothing when it is absent or no link at all."""
    try:
        return posix.readlink(path)
    except OSError:
        return ""


def _mtime(path: str) -> int:
    """A file's modification time; 0 when it is not there."""
    try:
        return posix.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def _read(path: str) -> bytes:
    """A small file's bytes; none when it is not there."""
    try:
        fd = posix.open(path, posix.O_RDONLY | _SAFE)
    except FileNotFoundError:
        return b""
    try:
        return posix.read(fd, 65536)
    finally:
        posix.close(fd)


def _write(path: str, data: bytes | bytearray) -> None:
    fd = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | _SAFE, 0o600)
    try:
        posix.write(fd, data)
    finally:
        posix.close(fd)


def _unlink(path: str) -> None:
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass
