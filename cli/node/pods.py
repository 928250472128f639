"""The pods that are attached on a node by plugins of ours, by whatever still says so: nobody can make their DEL without us."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cli.install import launchers
from cli.node.root import NodeError, NodeRoot
from cli.registry import PLUGINS
from cni import names
from cni.cache import Cache
from cni.config import Reader
from cni.errors import CniError
from cni.kernel.background import fork_background
from cni.kernel.linux import Kernel
from cni.netlist import NetworkList
from cni.start import BUNDLES

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from cni.cache import Cached

    # By container ID: the pod's namespace and name, empty where nothing says them.
    Pods = Mapping[str, str]

RECORDS = Path("/run/cnikit/networks")
RESULTS = Path("/var/lib/cni")
_MOST_NAMED = 10


def attached(records: Path, plugins: Path, root: NodeRoot, log: Callable[[str], None]) -> dict[str, Pods]:
    """The attached pods by how they are known. NodeError when that cannot be seen."""
    try:
        return {
            f"records in {records}": by_record(
                records, root, {one.attachment.container_id for one in cached(RESULTS, log)}
            ),
            "labels of links": by_label(),
            f"results in {RESULTS}/results": by_result(RESULTS, plugins, root, log),
        }
    except OSError as error:
        raise NodeError(f"cannot see whether pods are attached: {error.filename}: {error.strerror}") from error
    except CniError as error:
        raise NodeError(f"cannot see whether pods are attached: {error.msg}") from error


def refuse(found: Mapping[str, Pods], force: str) -> None:
    """NodeError when there are any; `force` is how to go on all the same."""
    pods: dict[str, str] = {}
    for some in found.values():
        pods |= {container: name for container, name in some.items() if name or container not in pods}
    if not pods:
        return
    where = ", ".join(f"{len(some)} by {how}" for how, some in found.items() if some)
    named = sorted(name or f"container {container}" for container, name in pods.items())
    shown = ", ".join(named[:_MOST_NAMED]) + (f" and {len(named) - _MOST_NAMED} more" if named[_MOST_NAMED:] else "")
    raise NodeError(
        f"expected no attached pods, found {len(pods)} ({where}): {shown}; remove them from the node first, or force it "
        f"({force}), after which their links and leases stay"
    )


def by_record(records: Path, root: NodeRoot, known: Container[str] = ()) -> Pods:
    """Those that the records in this folder are about, KEY being CONTAINER:IFNAME. OSError when it cannot be read.

    `known` are the containers of which a runtime has a result, and so will call DEL. Of another one whose namespaces are gone
    nobody will: the network list was exchanged for one of another plugin before its DEL, which then did not find it.
    """
    found = [file for folder in records.glob("*/attachments") for file in folder.iterdir()]
    pods = {}
    for file in found:
        container = file.name.rpartition(":")[0]
        name, namespaces = _content(file)
        is_gone = namespaces and not any(path == "" or _is_there(path, root) for path in namespaces)
        if not file.name.startswith(".") and (container in known or not is_gone):
            pods[container] = name
    return pods


def _content(record: Path) -> tuple[str, list[str]]:
    """The pod's name and its namespaces' paths in a record."""
    try:
        found = json.loads(record.read_bytes())
        return _name(found["args"]), [plugin["netns"]["path"] for plugin in found["plugins"].values()]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # it has just gone, or is torn: a pod all the same
        return "", []


def _name(args: Mapping[str, str]) -> str:
    names_of_pod = (args.get("K8S_POD_NAMESPACE"), args.get("K8S_POD_NAME"))
    return "/".join(one for one in names_of_pod if one)


def by_label() -> Pods:
    """Those that links of the node are labelled with: a record may be lost."""
    with Kernel(time.monotonic, fork_background).own() as host:
        return {holder[0]: "" for link in host.links() if (holder := names.holder(link.alias))}


def by_result(folder: Path, plugins: Path, root: NodeRoot, log: Callable[[str], None]) -> Pods:
    """Those that a runtime has in its cache, where one of our plugins in this folder is in their network and their
    namespace is there: of `loopback`, and of an IPAM plugin that serves another maker's, nothing else is left."""
    ours = {launcher.path.name for launcher in launchers(plugins, BUNDLES) if launcher.plugin in PLUGINS}
    return {
        entry.attachment.container_id: _name(dict(entry.attachment.args))
        for entry in cached(folder, log)
        if _is_there(entry.attachment.netns, root) and not ours.isdisjoint(_types(entry))
    }


def cached(folder: Path, log: Callable[[str], None]) -> Sequence[Cached]:
    """The attachments that a runtime has in its cache."""
    return list(Cache(str(folder), log).all())


def _is_there(netns: str, root: NodeRoot) -> bool:
    """Whether a namespace's file is there, here or (where here is a container) on the node."""
    return bool(netns) and (os.path.exists(netns) or (not root.is_own and root.place(netns).exists()))


def _types(entry: Cached) -> set[str]:
    """The plugins of a cached attachment's network, IPAM's among them."""
    try:
        plugins = NetworkList(entry.config or b"{}").plugins
        return {kind for one in plugins for kind in (one.type, Reader(one.value).object("ipam").string("type"))}
    except CniError:
        return set()
