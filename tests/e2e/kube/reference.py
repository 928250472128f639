"""A network of the reference's plugins, set up by hand as kind's default does it: the proof that a cluster and the checks
on it are sound before cnikit is on them."""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.e2e.kube.cluster import Cluster, Node

NETWORK_LIST = "/etc/cni/net.d/10-reference.conflist"


def install(cluster: Cluster) -> None:
    """ptp, host-local and portmap with each node's range, and a route to each other node's range."""
    nodes = cluster.nodes()
    for node in nodes:
        for other in nodes:
            if other.name != node.name:
                for cidr in other.pod_cidrs:
                    gateway = next(address for address in other.addresses if _version(address) == _version(cidr))
                    cluster.on_node(node.name, "ip", "route", "replace", cidr, "via", gateway)
        cluster.write(node.name, NETWORK_LIST, json.dumps(_network_list(node)))


def _network_list(node: Node) -> dict[str, Any]:
    ipam = {
        "type": "host-local",
        "dataDir": "/run/reference",
        "ranges": [[{"subnet": cidr}] for cidr in node.pod_cidrs],
        "routes": [{"dst": "0.0.0.0/0" if _version(cidr) == 4 else "::/0"} for cidr in node.pod_cidrs],
    }
    plugins = [
        {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return {"cniVersion": "1.0.0", "name": "reference", "plugins": plugins}


def _version(text: str) -> int:
    return ipaddress.ip_network(text).version
