"""What a runtime remembers of each ADD until its DEL, in libcni's own format (kind `cniCacheV1`).

    <folder>/results/<network>-<containerID>-<ifname>    JSON, mode 0600 in a folder of mode 0700

The format and the place are libcni's, so that cnitool, containerd and podman can delete what we added and
the other way round. A file is written beside its place and renamed: after a crash there is the old one or
the new one, never half of one.
"""

from __future__ import annotations

import binascii
import os

from cni import jsonio
from cni.config import Reader
from cni.errors import INTERNAL, IO_FAILURE, CniError
from cni.result import Result
from cni.version import DEFAULT, SUPPORTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Log = Callable[[str], object]

KIND = "cniCacheV1"
DEFAULT_FOLDER = "/var/lib/cni"


class Attachment:
    """One interface of one container, as the runtime names it (spec section 3, "Attachment Parameters").

    `args` are CNI_ARGS as pairs in their order; `capability_args` what the runtime offers to plugins that
    declare the capability.
    """

    __slots__ = ("args", "capability_args", "container_id", "ifname", "netns")

    def __init__(
        self,
        container_id: str,
        ifname: str,
        netns: str = "",
        args: list[tuple[str, str]] | None = None,
        capability_args: dict[str, Any] | None = None,
    ) -> None:
        self.container_id = container_id
        self.ifname = ifname
        self.netns = netns
        self.args = args or []
        self.capability_args = capability_args or {}


class Cached:
    """One file of the cache: the network list as ADD had it (`config`) and ADD's final result.

    Both may be missing in files of old runtimes.
    """

    __slots__ = ("attachment", "config", "network", "result")

    def __init__(
        self, network: str, attachment: Attachment, config: bytes | None, result: dict[str, Any] | None
    ) -> None:
        self.network = network
        self.attachment = attachment
        self.config = config
        self.result = result

    def result_as(self, version: str) -> dict[str, Any] | None:
        """ADD's result in the form of one spec version, because the list may have changed since."""
        if self.result is None or self.result.get("cniVersion", DEFAULT) == version:
            return self.result
        return Result.read(Reader(self.result, "result")).json(version)


class Cache:
    """The cache below one folder. `log` gets a line for each file that cannot be used."""

    __slots__ = ("_log", "_results")

    def __init__(self, folder: str, log: Log) -> None:
        self._results = os.path.join(folder, "results")
        self._log = log

    def path(self, network: str, attachment: Attachment) -> str:
        """Where an attachment's file is."""
        return os.path.join(self._results, f"{network}-{attachment.container_id}-{attachment.ifname}")

    def write(self, entry: Cached) -> None:
        """Remember a successful ADD."""
        attachment = entry.attachment
        value: dict[str, Any] = {
            "kind": KIND,
            "containerId": attachment.container_id,
            "config": binascii.b2a_base64(entry.config or b"", newline=False).decode("ascii"),
            "ifName": attachment.ifname,
            "networkName": entry.network,
        }
        optional = {
            "netns": attachment.netns,
            "cniArgs": [list(pair) for pair in attachment.args],
            "capabilityArgs": attachment.capability_args,
            "result": entry.result,
        }
        value.update({key: found for key, found in optional.items() if found})
        self._replace(self.path(entry.network, attachment), jsonio.encode(value))

    def read(self, network: str, attachment: Attachment) -> Cached | None:
        """What is remembered of an attachment; None when nothing is, or nothing that can be read."""
        path = self.path(network, attachment)
        entry = self._read(path, legacy=Cached(network, attachment, None, None))
        if entry is not None and (entry.network, entry.attachment.container_id, entry.attachment.ifname) != (
            network, attachment.container_id, attachment.ifname,
        ):  # fmt: skip
            # Dashes make file names ambiguous: a-b + c and a + b-c share one.
            self._log(f"{path} belongs to network {entry.network!r}, container {entry.attachment.container_id!r}")
            return None
        return entry

    def all(self) -> list[Cached]:
        """Every attachment of every network, by file name; files that are none are left out."""
        try:
            names = sorted(os.listdir(self._results))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CniError(IO_FAILURE, f"cannot list {self._results}: {error.strerror}") from None
        entries = [self._read(os.path.join(self._results, name)) for name in names if not name.startswith(".")]
        return [entry for entry in entries if entry is not None]

    def remove(self, network: str, attachment: Attachment) -> None:
        """Forget an attachment; success when nothing was remembered."""
        try:
            os.unlink(self.path(network, attachment))
        except FileNotFoundError:
            pass
        except OSError as error:
            self._log(f"cannot remove {self.path(network, attachment)}: {error.strerror}")

    def _replace(self, path: str, data: bytes) -> None:
        temporary = os.path.join(self._results, f".{os.path.basename(path)}")
        try:
            os.makedirs(self._results, 0o700, exist_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)  # or a power loss could leave an empty file at the new name
            os.rename(temporary, path)
        except OSError as error:
            raise CniError(INTERNAL, f"cannot write the result cache {path}: {error.strerror}") from None

    def _read(self, path: str, legacy: Cached | None = None) -> Cached | None:
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._log(f"cannot read {path}: {error.strerror}; going on without it")
            return None
        try:
            value = jsonio.decode(data)
            if legacy is not None and _is_result(value):
                legacy.result = value
                return legacy
            return _entry(value)
        except (CniError, binascii.Error) as error:
            self._log(f"cannot use {path}: {error}; going on without it")
            return None


def _is_result(value: Any) -> bool:
    """Whether it is what runtimes wrote before `cniCacheV1`: the result itself."""
    return isinstance(value, dict) and "kind" not in value and value.get("cniVersion") in SUPPORTED


def _entry(value: Any) -> Cached:
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise CniError(INTERNAL, f"expected a file of kind {KIND}, found {jsonio.shown(value)}")
    reader = Reader(value)
    attachment = Attachment(
        reader.string("containerId"),
        reader.string("ifName"),
        reader.string("netns"),
        [_pair(path, pair) for path, pair in reader.array("cniArgs")],
        reader.object("capabilityArgs").value,
    )
    network = reader.string("networkName")
    if not network or not attachment.ifname or not attachment.container_id:
        raise CniError(INTERNAL, "expected networkName, containerId and ifName")
    config = binascii.a2b_base64(reader.string("config"))
    result = reader.object("result").value if reader.raw("result") is not None else None
    return Cached(network, attachment, config or None, result)


def _pair(path: str, pair: Any) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise CniError(INTERNAL, f"{path}: expected a pair of strings, found {jsonio.shown(pair)}")
    return pair[0], pair[1]
