"""What we made for each attachment, on disk: DEL, GC and later features work from it, with nothing to guess.

    <run_dir>/networks/<network>/lock                    held while masquerade elements and holders change
    <run_dir>/networks/<network>/attachments/<key>       the record, JSON, one per attachment
    <run_dir>/networks/<network>/holders/<address>_<n>   symbolic link to the key of who holds an address now, or to
                                                         the owner's label where only that was left (`adopt`)

`<key>` is `names.attachment_key`. A record is written before the first effect that it describes, so a
killed ADD leaves a record of what may be there, never an effect with no record. It is replaced by rename;
no fsync, because /run and every network namespace end with the boot. Several of our plugins may serve one
attachment (a chain): each has a section of its own, and the last one to go takes the file with it.
"""

from __future__ import annotations

import posix
from errno import ENOSPC

from cni import addr, jsonio
from cni.errors import CniError, io_failure
from cni.names import attachment_key, file_name
from cni.paths import is_folder, make_folders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cni.world import HeldLock, Log, TakeLock

# Readers accept this version and the one before it.
VERSION = 1

K8S_ARGS = ("K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID")


class Records:
    """The records of one network. Its folders are made when something is first written."""

    __slots__ = ("_attachments", "_holders", "_lock", "_log", "folder", "network")

    def __init__(self, run_dir: str, network: str, lock: TakeLock, log: Log) -> None:
        self.network = network
        self.folder = f"{run_dir}/networks/{file_name(network)}"
        self._attachments = f"{self.folder}/attachments"
        self._holders = f"{self.folder}/holders"
        self._lock = lock
        self._log = log

    def lock(self) -> HeldLock:
        """The network's lock, bounded (CniError 11)."""
        return self._lock(f"{self.folder}/lock")

    def read(self, container_id: str, ifname: str) -> dict[str, Any] | None:
        """An attachment's record; None when there is none, or one that cannot be read (which is logged)."""
        return self.at(attachment_key(container_id, ifname))

    def at(self, key: str) -> dict[str, Any] | None:
        """The same by the record's file name."""
        return self._read(key)

    def all(self) -> list[dict[str, Any]]:
        """Every readable record of the network."""
        try:
            keys = posix.listdir(self._attachments)
        except FileNotFoundError:
            return []
        found = [self._read(key) for key in sorted(keys) if not key.startswith(".")]
        return [record for record in found if record is not None]

    def write(self, record: dict[str, Any], plugin: str, section: dict[str, Any]) -> None:
        """Put one plugin's section into the attachment's record; `record` gives the common part (`describe`)."""
        key = attachment_key(record["containerID"], record["ifname"])
        before = self._read(key) or {}
        plugins = {**before.get("plugins", {}), plugin: section}
        self._replace(key, {**record, "version": VERSION, "plugins": plugins})

    def remove(self, container_id: str, ifname: str, plugin: str) -> None:
        """Take one plugin's section out, and the file when it was the last. None there is success."""
        key = attachment_key(container_id, ifname)
        record = self._read(key)
        rest = {name: part for name, part in record["plugins"].items() if name != plugin} if record else {}
        if record and rest:
            self._replace(key, {**record, "plugins": rest})
        else:
            _unlink(f"{self._attachments}/{key}")
            _unlink(self._temporary(key))

    def holder(self, cidr: str) -> str:
        """The key of the attachment that holds an address (`10.1.0.2/24`); empty when none does.
        Ask under the lock."""
        try:
            return posix.readlink(self._holder(cidr))
        except OSError:
            return ""

    @property
    def has_holders(self) -> bool:
        """Whether the folder of holders is there. When it is not, /run is new, or was lost while pods ran."""
        return is_folder(self._holders)

    def adopt(self, labels: dict[str, str]) -> None:
        """Make owners, known by no more than their labels, the holders of addresses. Call under the lock."""
        if not self.has_holders:
            make_folders(self._holders, 0o700)
        for cidr, label in labels.items():
            posix.symlink(label, self._holder(cidr))

    def hold(self, cidr: str, container_id: str, ifname: str) -> None:
        """Make an attachment the holder of an address, whoever was before. Call under the lock."""
        path = self._holder(cidr)
        _unlink(path)
        _make(lambda: posix.symlink(attachment_key(container_id, ifname), path), self._holders)

    def release(self, cidr: str) -> None:
        """Nobody holds the address any more. Call under the lock."""
        _unlink(self._holder(cidr))

    def held(self, keys: Callable[[str], bool]) -> list[tuple[str, str]]:
        """(address, holder's key) of every held address whose holder's key satisfies `keys`."""
        try:
            names = sorted(posix.listdir(self._holders))
        except FileNotFoundError:
            return []
        pairs = [(name.replace("_", "/"), self.holder(name)) for name in names]
        return [(cidr, key) for cidr, key in pairs if keys(key)]

    def _holder(self, cidr: str) -> str:
        return f"{self._holders}/{cidr.replace('/', '_')}"

    def _replace(self, key: str, record: dict[str, Any]) -> None:
        temporary = self._temporary(key)
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC
        fd = _make(lambda: posix.open(temporary, flags, 0o600), self._attachments)
        data = jsonio.encode(record)
        try:
            if posix.write(fd, data) != len(data):
                raise OSError(ENOSPC, posix.strerror(ENOSPC))
        except OSError as error:
            error.filename = temporary  # write(2) knows no path
            _unlink(temporary)
            raise
        finally:
            posix.close(fd)
        posix.rename(temporary, f"{self._attachments}/{key}")

    def _temporary(self, key: str) -> str:
        """Where a record is written. The leading dot keeps what a killed writer left out of `all`."""
        return f"{self._attachments}/.{key}"

    def _read(self, key: str) -> dict[str, Any] | None:
        path = f"{self._attachments}/{key}"
        try:
            # Never wait for the writer of a pipe.
            fd = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
            try:
                data = posix.read(fd, posix.fstat(fd).st_size)
            finally:
                posix.close(fd)
            return _checked(jsonio.decode(data))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._log(f"{io_failure(error, 'cannot read a record')}; going on without it")
        except CniError as error:
            self._log(f"record {path}: {error}; going on without it")
        return None


def describe(network: str, container_id: str, ifname: str, args: dict[str, str]) -> dict[str, Any]:
    """The part of a record that all plugins share. Of CNI_ARGS the pod's name is kept, which policy will need."""
    pod = {key: args[key] for key in K8S_ARGS if key in args}
    return {"version": VERSION, "network": network, "containerID": container_id, "ifname": ifname, "args": pod}


def host_ends(section: dict[str, Any]) -> list[str]:
    """The names of the links on the node that a plugin's section lists."""
    links = section.get("links")
    names = [link.get("name") for link in links if isinstance(link, dict)] if isinstance(links, list) else []
    return [name for name in names if isinstance(name, str)]


def addresses(section: dict[str, Any]) -> list[tuple[bytes, int]]:
    """The pod's addresses that a plugin's section lists: bytes and prefix length."""
    texts = section.get("addresses")
    found = [addr.pack_cidr(text) for text in texts if isinstance(text, str)] if isinstance(texts, list) else []
    return [one for one in found if one]


def _checked(record: Any) -> dict[str, Any]:
    """A record of this version or the one before, brought to this one's form. CniError says what is wrong."""
    if not isinstance(record, dict) or record.get("version") not in (VERSION, VERSION - 1):
        found = record.get("version") if isinstance(record, dict) else record
        raise CniError(6, f"expected a record of version {VERSION - 1} or {VERSION}, found {jsonio.shown(found)}")
    texts = ("network", "containerID", "ifname")
    plugins = record.get("plugins")
    sections = plugins.values() if isinstance(plugins, dict) else [None]
    if not all(isinstance(record.get(key), str) for key in texts) or not all(isinstance(s, dict) for s in sections):
        raise CniError(6, f"expected {', '.join(texts)} and plugins, found {jsonio.shown(record)}")
    return {"args": {}, **record, "version": VERSION}


def _make(create: Callable[[], Any], folder: str) -> Any:
    try:
        return create()
    except FileNotFoundError:
        make_folders(folder, 0o700)
        return create()


def _unlink(path: str) -> None:
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass
