"""Network lists: what an administrator writes into /etc/cni/net.d, found, read and checked as libcni does.

The order is libcni's, because a runtime must pick the same file whoever asks: every `*.conflist` by file
name, then every `*.conf` and `*.json` (one plugin each, turned into a list of one). The first that has the
wanted name counts. Keys of the list itself must be spelled exactly (libcni reads them so); keys of a plugin
match without regard to case. A broken file before the match is an error that names file and place: to
read past it might attach a pod to the wrong network.
"""

from __future__ import annotations

import os

from cni import jsonio
from cni.config import Reader, items, mapping, text, wrong
from cni.errors import DECODING_FAILURE, INVALID_CONFIG, IO_FAILURE, CniError
from cni.names import identifier_fault
from cni.version import DEFAULT, SUPPORTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Log = Callable[[str], object]

DEFAULT_FOLDER = "/etc/cni/net.d"


class NotFoundError(CniError):
    """No network of the wanted name in a folder (code 7)."""


class PluginConf:
    """One plugin of a list: its configuration as it was written, its `type` and its `capabilities`."""

    __slots__ = ("capabilities", "type", "value")

    def __init__(self, value: dict[str, Any], path: str) -> None:
        reader = Reader(value, path)
        self.value = value
        self.type = reader.string("type")
        if not self.type:
            raise CniError(
                INVALID_CONFIG,
                f"{reader.at('type')}: expected a plugin's name, found {jsonio.shown(reader.raw('type'))}",
                "each plugin of a network needs a type, for example bridge",
            )
        declared = reader.object("capabilities")
        self.capabilities = [key for key in declared.value if declared.boolean(key)]


class NetworkList:
    """A network: its name, the spec version chosen for it, and its plugins in ADD's order.

    `data` are the bytes that the result cache keeps. `appended` are the plugins among `plugins` that came
    from the folder named after the network and so are not in `data`.
    """

    __slots__ = ("appended", "data", "disable_check", "disable_gc", "inlined_only", "name", "plugins", "version")

    def __init__(self, data: bytes) -> None:
        """From a `.conflist`; the folder's plugins are added by `append`."""
        value = _object(data)
        name = _exact(value, "name")
        if not name:
            raise CniError(INVALID_CONFIG, "missing network name: the list has no `name`", 'add "name": "..."')
        fault = identifier_fault(text("name", name))
        if fault:
            raise CniError(INVALID_CONFIG, f"name: expected a network name, found {jsonio.shown(name)}: {fault}")
        self.data = data
        self.name: str = name
        self.version = choose_version(_exact(value, "cniVersion"), _exact(value, "cniVersions"))
        self.disable_check = _flag(value, "disableCheck")
        self.disable_gc = _flag(value, "disableGC")
        self.inlined_only = _flag(value, "loadOnlyInlinedPlugins")
        self.plugins = self._inlined(_exact(value, "plugins"))
        self.appended: list[PluginConf] = []

    def _inlined(self, found: Any) -> list[PluginConf]:
        if found is None:
            if self.inlined_only:
                raise CniError(
                    INVALID_CONFIG,
                    "plugins: expected a list, because loadOnlyInlinedPlugins is true; found none",
                    "add plugins, or leave loadOnlyInlinedPlugins out to load them from the network's folder",
                )
            return []
        entries = items("plugins", found)
        if not entries:
            raise wrong("plugins", "at least one plugin", found)
        return [PluginConf(mapping(path, entry), path) for path, entry in entries]

    def append(self, plugins: list[PluginConf]) -> None:
        """Add the plugins of the network's folder, unless the list wants only its own."""
        if not self.inlined_only:
            self.plugins = self.plugins + plugins
            self.appended = self.appended + plugins


def choose_version(version: Any, versions: Any) -> str:
    """The highest of `cniVersion` and `cniVersions` that we speak; the oldest spec when neither is there.

    Entries of `cniVersions` that we do not speak are for other runtimes and skipped. CniError 7 when
    nothing is left.
    """
    offered = [] if version in (None, "") else [text("cniVersion", version)]
    if versions is not None:
        offered += [_version(path, text(path, entry)) for path, entry in items("cniVersions", versions)]
    if not offered:
        return DEFAULT
    spoken = [known for known in SUPPORTED if known in offered]
    if not spoken:
        raise CniError(
            INVALID_CONFIG,
            f"cniVersion: expected one of {', '.join(SUPPORTED)}, found {', '.join(offered)}",
            f"set cniVersion to one that this runtime speaks, at best {SUPPORTED[-1]}",
        )
    return spoken[-1]


def _version(path: str, found: str) -> str:
    """One of `cniVersions`: up to three numbers, as libcni has them."""
    parts = found.split(".")
    if len(parts) > 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise wrong(path, "a version such as 1.0.0", found)
    return found


def load(folder: str, name: str, log: Log) -> NetworkList:
    """The network called `name`. A second file with the same name is not used, which is logged.

    Raises NotFoundError, or CniError with the file's path in front.
    """
    found: NetworkList | None = None
    chosen = ""
    names = []
    for path in files(folder, (".conflist",)) + files(folder, (".conf", ".json")):
        try:
            network = read(path)
        except CniError as error:
            if found is None:
                raise
            log(f"warning: {error.msg}; not needed now, because {chosen} has network {name!r}")
            continue
        names.append(network.name)
        if network.name != name:
            continue
        if found is None:
            found, chosen = network, path
        else:
            log(f"warning: {path} has network {name!r} too and is not used: {chosen} comes first")
    if found is None:
        there = f"found only {', '.join(sorted(set(names)))}" if names else "found no network configuration at all"
        raise NotFoundError(
            INVALID_CONFIG,
            f"no net configuration with name {name!r} in {folder}: {there}",
            "set NETCONFPATH to the folder with the network lists, or correct the name",
        )
    if not found.plugins:
        raise CniError(
            INVALID_CONFIG,
            f"{chosen}: plugins: expected at least one, found none here or in {os.path.join(folder, name)}/*.conf",
            "",
        )
    return found


def read(path: str) -> NetworkList:
    """The network of one file, with its folder's plugins. CniError with the file's path in front."""
    try:
        data = contents(path)
        if not path.endswith(".conflist"):
            return _single(data)
        network = NetworkList(data)
    except CniError as error:
        raise _at(path, error) from None
    network.append(folder_plugins(os.path.dirname(path), network.name))
    return network


def folder_plugins(folder: str, name: str) -> list[PluginConf]:
    """The plugins in `<folder>/<name>/*.conf`, by file name."""
    plugins = []
    for path in files(os.path.join(folder, name), (".conf",)):
        try:
            plugins.append(PluginConf(_object(contents(path)), ""))
        except CniError as error:
            raise _at(path, error) from None
    return plugins


def files(folder: str, extensions: tuple[str, ...]) -> list[str]:
    """The files of a folder with one of the extensions, by name; none when there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            wanted = [entry for entry in entries if entry.name.endswith(extensions)]
            return sorted(entry.path for entry in wanted if not entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CniError(IO_FAILURE, f"cannot list {folder}: {error.strerror}") from None


def _single(data: bytes) -> NetworkList:
    """A `.conf` or `.json`: one plugin's configuration, which also holds name and cniVersion."""
    value = _object(data)
    if "plugins" in value and Reader(value).raw("type") is None:
        raise CniError(
            INVALID_CONFIG,
            "type: expected the configuration of one plugin, found a list of plugins",
            "rename the file so that it ends in .conflist",
        )
    reader = Reader(PluginConf(value, "").value)
    wrapped = {"name": reader.string("name"), "cniVersion": reader.string("cniVersion"), "plugins": [value]}
    return NetworkList(jsonio.encode(wrapped))


def contents(path: str) -> bytes:
    """The bytes of a file. CniError 5 when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CniError(IO_FAILURE, f"cannot read: {error.strerror}") from None


def _object(data: bytes) -> dict[str, Any]:
    value = jsonio.decode(data)
    if not isinstance(value, dict):
        raise CniError(DECODING_FAILURE, f"expected a JSON object, found {jsonio.shown(value)}")
    return value


def _exact(value: dict[str, Any], key: str) -> Any:
    """A key of the list itself; None when it is absent or null."""
    found = value.get(key)
    similar = [other for other in value if other.casefold() == key.casefold()]
    if found is None and similar and similar != [key]:
        raise CniError(
            INVALID_CONFIG,
            f"{key}: expected this spelling, found {similar[0]!r}",
            f"keys of the list itself count only when spelled exactly: write {key}",
        )
    return found


def _flag(value: dict[str, Any], key: str) -> bool:
    """A flag; libcni takes the words in any case too."""
    found = _exact(value, key)
    if found is None or isinstance(found, bool):
        return bool(found)
    if not isinstance(found, str) or found.lower() not in ("true", "false"):
        raise wrong(key, "true or false", found)
    return found.lower() == "true"


def _at(path: str, error: CniError) -> CniError:
    return CniError(error.code, f"{path}: {error.msg}", error.details)
