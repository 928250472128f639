"""The network list of an installation: a template with the cluster's ranges filled in, checked, and put in place last.

As soon as a list is in /etc/cni/net.d a runtime calls the node ready. So it is written after everything that it needs,
beside its place under a name that no runtime reads, synced, and renamed.

Ours is the file that the record names (`record.py`), and any with the same network in it, because no runtime can use
two of one name: such a file under another name is removed when ours is there. Everything else is another maker's and
stays. Runtimes take the first file by name, whatever its ending, so what sorts before ours is reported.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.lint import lint_content
from cli.lint_refusals import CLUSTER
from cli.node.root import NodeError
from cni import addr, jsonio, netlist
from cni.config import Reader
from cni.errors import CniError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from plugins.peers import Subnet

ENDINGS = (".conf", ".conflist", ".json")  # what runtimes read
ENDING = ".conflist"
UNREAD = ".unread"
KEYS = {4: "network", 16: "ipv6Network"}


def template(file: Path) -> dict[str, Any]:
    """The network list to install. NodeError when it is none."""
    try:
        value = jsonio.decode(file.read_bytes())
    except OSError as error:
        raise NodeError(f"{file}: {error.strerror}; name a network list with --list") from error
    except CniError as error:
        raise NodeError(f"{file}: {error.msg}") from error
    if not isinstance(value, dict) or not isinstance(value.get("plugins"), list):
        raise NodeError(f"{file}: expected a network list, an object with plugins; cnikit lint {file} says more")
    return value


def lacks_ranges(value: dict[str, Any]) -> bool:
    """Whether its network of several nodes needs ranges that it does not have."""
    return bool(list(_open(value)))


def fill(value: dict[str, Any], ranges: Iterable[Subnet]) -> None:
    """Give its network of several nodes these ranges, if that has none of its own."""
    for plugin in _open(value):
        plugin.update({KEYS[len(packed)]: addr.unpack_cidr(packed, prefix) for packed, prefix in ranges})


def _open(value: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for plugin in value["plugins"]:
        if isinstance(plugin, dict):
            reader = Reader(plugin)
            has = any(reader.raw(key) is not None for key in (*KEYS.values(), "subnetFile", "peers"))
            if reader.raw("type") in CLUSTER and not has:
                yield plugin


def encoded(value: dict[str, Any]) -> bytes:
    """The list as it is written."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def refuse(place: Path, data: bytes, plugin_path: list[str]) -> list[str]:
    """NodeError when `cnikit lint` finds an error in a list that is to be at `place`; its warnings otherwise."""
    if place.suffix != ENDING:
        raise NodeError(f"{place.name}: expected a file name that ends in {ENDING}; give one with --list-name")
    findings = lint_content(str(place), data, plugin_path)
    errors = [one for one in findings if one.error]
    if errors:
        raise NodeError("; ".join(" remedy: ".join(one.text().split("\n    remedy: ")) for one in errors))
    return [" remedy: ".join(one.text().split("\n    remedy: ")) for one in findings]


def others(folder: Path) -> list[Path]:
    """The files of a folder that a runtime reads, in its order."""
    return [Path(file) for file in netlist.files(str(folder), ENDINGS)]


def network_of(file: Path) -> str:
    """The name of the network in a file; empty for what is none."""
    try:
        return netlist.read(str(file)).name
    except CniError:
        return ""


def names_plugins(file: Path, names: Container[str]) -> bool:
    """Whether a network list calls one of these plugins. A file that is no network list calls none."""
    try:
        return any(plugin.type in names for plugin in netlist.read(str(file)).plugins)
    except CniError:
        return False


def refuse_place(place: Path, name: str, recorded: Path | None) -> None:
    """NodeError when somebody else's file is where ours would be."""
    if os.path.lexists(place) and place != recorded and network_of(place) != name:
        raise NodeError(
            f"{place}: expected no file or one with the network {name}, found another maker's "
            f"({network_of(place) or 'no network'}); remove it, or choose another name with --list-name"
        )


def unread(place: Path) -> Path:
    """The name beside a list's under which no runtime reads it."""
    return place.with_name(f".{place.name}{UNREAD}")


def put(place: Path, data: bytes, recorded: Path | None) -> list[str]:
    """Put a list in place and take those of ours away that are under other names; these. OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    name = json.loads(data)["name"]
    if not place.is_file() or place.is_symlink() or place.read_bytes() != data:
        new = unread(place)
        with new.open("wb") as writing:
            writing.write(data)
            writing.flush()
            os.fsync(writing.fileno())
        new.chmod(0o644)
        new.replace(place)
    earlier = [
        file for file in others(place.parent) if file != place and (file == recorded or network_of(file) == name)
    ]
    for file in earlier:
        file.unlink()
    fd = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return [str(file) for file in earlier]


def conflicts(place: Path) -> list[str]:
    """What a person has to know of the other lists beside ours."""
    there = others(place.parent)
    first = [file for file in there if file != place and file.name < place.name]
    return [
        f"{file} (network {network_of(file) or 'unknown'}) sorts before {place.name}, and containerd attaches pods to the "
        "first list only: remove it, or give ours a name that comes first with --list-name"
        for file in first
    ]
