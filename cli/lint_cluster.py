"""The rules of `cnikit lint` for networks of several nodes (`vxlan`, `host-gw`).

What the plugins refuse is asked of their own code; the rest is what works, but hardly as meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni.errors import CniError
from cni.request import Request
from plugins import pod_network

if TYPE_CHECKING:
    from cli.findings import Report
    from cni.config import Reader

KINDS = ("vxlan", "host-gw")
_OF_BRIDGED = ("bridge", "hairpinMode")


def network(reader: Reader, report: Report) -> None:
    """One plugin's configuration, sound by its schema."""
    try:
        conf = pod_network.Conf(reader, Request({"CNI_COMMAND": "STATUS"}))
    except CniError as error:
        path, colon, message = error.msg.partition(": ")
        where = path if colon and " " not in path else reader.at("peers")
        report.error(where, message if where == path else error.msg, error.details or "correct it")
        return
    if conf.cluster is not None and not conf.cluster.networks and not reader.string("subnetFile"):
        message = "expected network or ipv6Network, found neither"
        report.warning(reader.at("network"), message, 'add the cluster\'s range, for example "10.244.0.0/16"')
    if conf.cluster is not None and conf.cluster.peers is not None and reader.raw("membership") is not None:
        message = "expected peers or membership, found both: the plugin goes by the peers, the agent by the other"
        report.warning(reader.at("peers"), message, "remove one of them")
    _without_effect(reader, report, conf)


def _without_effect(reader: Reader, report: Report, conf: pod_network.Conf) -> None:
    idle = [(key, 'attachment: "bridged"') for key in _OF_BRIDGED if conf.attachment != pod_network.BRIDGED]
    if not reader.boolean("ipMasq"):
        idle += [("nonMasqueradeCIDRs", "ipMasq"), ("ipMasqBackend", "ipMasq")]
    for key, other in idle:
        if reader.raw(key) is not None:
            message = f"expected {other} beside it, found none: it has no effect"
            report.warning(reader.at(key), message, f"add {other}, or remove it")
