"""The rules of `cnikit lint` for networks of several nodes (`vxlan`, `host-gw`).

What the plugins and the agent refuse is asked of their own code (`lint_refusals.py`); this is what works, but hardly
as meant.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cli import lint_members
from cli.findings import Report
from cli.lint_files import parse
from cni import addr
from plugins import bridge_conf, pod_network
from plugins.peers import ADDRESS_KEYS

if TYPE_CHECKING:
    from cli.lint_refusals import Found
    from cni.config import Reader
    from plugins.cluster_conf import ClusterConf

_OF_BRIDGED = ("bridge", "hairpinMode")


def network(reader: Reader, report: Report, found: Found) -> None:
    """One plugin's configuration, of which its own code refuses nothing."""
    conf = found.cluster
    if conf is None or conf.cluster is None:
        return
    is_refused = not (report.sound(reader.at("network")) and report.sound(reader.at("ipv6Network")))
    if not conf.cluster.networks and not reader.string("subnetFile") and not is_refused:
        message = "expected network or ipv6Network, found neither"
        report.warning(reader.at("network"), message, 'add the cluster\'s range, for example "10.244.0.0/16"')
    if reader.raw("peers") is not None and reader.raw("membership") is not None:
        message = "expected peers or membership, found both: with membership the peers have no effect"
        report.warning(reader.at("peers"), message, "remove one of them")
    _addresses(reader, report, conf.cluster)
    _files(reader.object("membership"), report, conf.cluster)
    _without_effect(reader, report, conf)


def _addresses(reader: Reader, report: Report, conf: ClusterConf) -> None:
    """Nodes are better not among the pods, even where no node has that subnet yet."""
    nodes = reader.objects("peers")
    for key in ADDRESS_KEYS.values():
        for node in nodes:
            packed = node.address(key)
            if packed is not None and any(addr.inside(packed, *one) for one in conf.networks):
                message = f"expected an address outside of the pods' range, found {addr.unpack(packed)}"
                remedy = "choose a range of pods without the nodes' addresses"
                report.warning(node.at(key), message, remedy)


def _files(membership: Reader, report: Report, conf: ClusterConf) -> None:
    """Files that the agent reads later: it waits for one that is not there."""
    for key in ("file", "kubeconfig", "caFile", "certFile", "keyFile", "passwordFile"):
        path = membership.string(key)
        if path and not os.path.exists(path):
            message = f"expected a file, found none at {path}: the agent waits for it"
            report.warning(membership.at(key), message, "make the file, or correct the path")
        elif path and key == "file":
            own = Report(path)
            value = parse(path, own)
            if value is not None:
                lint_members.check(value, own, conf)
            report.findings += own.findings


def _without_effect(reader: Reader, report: Report, conf: pod_network.Conf) -> None:
    idle = [(key, 'attachment: "bridged"') for key in _OF_BRIDGED if conf.attachment != bridge_conf.BRIDGED]
    if not reader.boolean("ipMasq"):
        idle += [("nonMasqueradeCIDRs", "ipMasq"), ("ipMasqBackend", "ipMasq")]
    for key, other in idle:
        if reader.raw(key) is not None:
            message = f"expected {other} beside it, found none: it has no effect"
            report.warning(reader.at(key), message, f"add {other}, or remove it")
