"""A members' file of static membership: read by the agent's own code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.membership.static import nodes_of
from agent.roster import Roster
from cni import jsonio
from cni.errors import CniError

if TYPE_CHECKING:
    from cli.findings import Report
    from plugins.cluster_conf import ClusterConf

_REMEDY = "correct the entry: until then the agent leaves this node as it was"


def is_one(value: Any) -> bool:
    """Whether a decoded file is a members' file and no network."""
    keys = {key.casefold() for key in value}
    return "nodes" in keys and keys.isdisjoint(("plugins", "type"))


def check(value: Any, report: Report, conf: ClusterConf | None = None) -> None:
    """Report what the agent would not take of a file, in this cluster if it is known."""
    try:
        found = nodes_of(jsonio.encode(value))
    except CniError as error:
        report.error("nodes", error.msg.removeprefix("nodes: "), 'write {"nodes": [{"name": ..., "publicIP": ...}]}')
        return
    for text in found.faults:
        path, _, message = text.partition(": ")
        report.error(path, message, _REMEDY)
    vni = conf.vni if conf is not None and conf.kind == "vxlan" else 0
    roster = Roster(conf.networks if conf is not None else (), vni)
    roster.replace(found.nodes)
    for name, text in sorted(roster.faults.items()):
        report.error(_path(value, name), text, _REMEDY)


def _path(value: Any, name: str) -> str:
    """Where a node stands in the file: the first entry of its name, which counts."""
    entries: list[Any] = next((item for key, item in value.items() if key.casefold() == "nodes"), [])
    found = [index for index, one in enumerate(entries) if isinstance(one, dict) and one.get("name") == name]
    return f"nodes[{found[0]}]" if found else "nodes"
