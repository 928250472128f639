"""What only several networks together show, or the machine that they are for.

ADD sees one network at a time and takes each of these; the agent refuses some of them, by the function that is called here.
"""

from __future__ import annotations

import time
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from cni import addr
from cni.addr import overlap
from cni.errors import CniError
from cni.names import OWNER
from plugins import bridge_conf
from plugins.node_bridge import conflict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cli.findings import Report
    from cli.lint_refusals import Found
    from cni.kernel.types import Address, Link
    from plugins.cluster_conf import ClusterConf
    from plugins.peers import Subnet

SCOPE_GLOBAL = 0


class Plugin(NamedTuple):
    """One plugin of a network: where it is configured and what was read there."""

    report: Report
    network: str
    path: str
    found: Found

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    @property
    def where(self) -> str:
        return f"{self.report.file}{f' ({self.path})' if self.path else ''}"

    @property
    def bridge(self) -> str:
        """The node's interface with the gateways, if it is a bridge's."""
        conf = self.found.bridge
        if conf is None and self.found.cluster and self.found.cluster.attachment == bridge_conf.BRIDGED:
            conf = self.found.cluster.link()
        if conf is None or not conf.is_gateway:
            return ""
        return f"{conf.bridge}.{conf.vlan}" if conf.vlan else conf.bridge

    def pods(self) -> Iterator[tuple[str, Subnet]]:
        """The ranges that the node routes to this network's pods, each with its path."""
        if self.found.bridge and self.found.bridge.is_gateway:
            for one in self.found.sets:
                for item in one.ranges:
                    yield f"{item.path}.subnet", (item.network, item.prefix)
        conf = self.found.cluster.cluster if self.found.cluster else None
        for subnet in conf.networks if conf else ():
            yield "network" if len(subnet[0]) == 4 else "ipv6Network", subnet

    def gateways(self) -> Iterator[tuple[str, Subnet]]:
        """What its bridge is given, each with its path."""
        if self.found.bridge and self.found.bridge.layer3:
            for one in self.found.sets:
                first = one.ranges[0]
                yield f"{first.path}.gateway", (first.gateway, first.prefix)


class Place(NamedTuple):
    """A network that this machine has an address in."""

    link: str
    address: bytes
    prefix: int

    @property
    def subnet(self) -> Subnet:
        return addr.network(self.address, self.prefix), self.prefix


def places() -> list[Place]:
    """The networks of this machine, without those of our own links; empty where the kernel does not say."""
    from cni.kernel.background import fork_background
    from cni.kernel.linux import Kernel

    found = []
    try:
        with Kernel(time.monotonic, fork_background).own() as host:
            for link in host.links():
                if not link.alias.startswith(OWNER):
                    found += [
                        Place(link.name, one.packed, one.prefix)
                        for one in host.addresses(link.index)
                        if one.scope == SCOPE_GLOBAL and not _is_of_pods(link, one)
                    ]
    except (OSError, CniError):  # a sandbox without netlink: as on another machine
        return []
    return found


def _is_of_pods(link: Link, found: Address) -> bool:
    """Whether an address is a gateway's on a pod's own link (the Go plugin ptp) or of flanneld's device."""
    return link.kind in ("veth", "vxlan") and found.prefix == len(found.packed) * 8


def compare(plugins: Sequence[Plugin]) -> None:
    """Report what networks of one folder would take from one another."""
    _clusters(plugins)
    for one, two in combinations(plugins, 2):
        if one.bridge and one.bridge == two.bridge:
            _one_bridge(one, two)
        elif not (one.found.cluster and two.found.cluster):
            _one_range(one, two)


def compare_with_node(plugins: Iterable[Plugin], there: Sequence[Place]) -> None:
    """Report ranges of pods that this machine uses otherwise."""
    for plugin in plugins:
        for path, subnet in plugin.pods():
            for place in there:
                if place.link != plugin.bridge and overlap(subnet, place.subnet):
                    _taken(plugin, path, subnet, place)


def _taken(plugin: Plugin, path: str, subnet: Subnet, place: Place) -> None:
    found = f"{addr.unpack_cidr(*subnet)}, which overlaps {addr.unpack_cidr(*place.subnet)} of {place.link}"
    message = f"expected a range that this node does not use otherwise, found {found}"
    if subnet[1] > place.prefix and not addr.inside(place.address, *subnet):
        remedy = f"choose another range, unless nothing on {place.link} has an address in it"
        plugin.report.warning(plugin.at(path), message, remedy)
    else:
        plugin.report.error(plugin.at(path), message, "choose a range of addresses that nothing else has")


def _clusters(plugins: Sequence[Plugin]) -> None:
    from agent.cluster import claims_of, twins

    there = {id(conf): plugin for plugin in plugins if (conf := _conf(plugin))}
    claims = claims_of(plugin.found.options for plugin in plugins if plugin.found.options)
    for one, two, what in twins([conf for plugin in plugins if (conf := _conf(plugin))], claims):
        mine, other = there[id(two)], there[id(one)]
        of_etcd = "membership.prefix"
        key = "vni" if "VNI" in what else "network" if "range" in what else of_etcd if of_etcd in what else "subnetFile"
        if one.name != two.name:  # said of the file already
            mine.report.error(mine.at(key), f"{what} ({other.where})", "give each network its own")


def _conf(plugin: Plugin) -> ClusterConf | None:
    return plugin.found.cluster.cluster if plugin.found.cluster else None


def _one_bridge(one: Plugin, two: Plugin) -> None:
    """A bridge has one IPv4 gateway, and IPv6 ones of networks that do not overlap."""
    if one.found.cluster or two.found.cluster:
        message = f"expected a bridge of its own, found {two.bridge}, whose gateways {one.where} sets"
        two.report.error(two.at("bridge"), message, "name another bridge")
        return
    for path, mine in two.gateways():
        for _, other in one.gateways():
            if mine != other and len(mine[0]) == len(other[0]) and conflict(other, mine):
                found = f"{addr.unpack_cidr(*mine)} beside {addr.unpack_cidr(*other)} of {one.where}"
                message = f"expected one gateway on bridge {two.bridge}, found {found}"
                two.report.error(two.at(path), message, "name another bridge, or use the same subnet and gateway")
            elif mine == other and one.network != two.network:
                message = f"expected a subnet of its own, found that of {one.where} on the same bridge"
                remedy = "give each network its own subnet, or ranges in it that do not overlap"
                two.report.warning(two.at(path.rpartition(".")[0] + ".subnet"), message, remedy)


def _one_range(one: Plugin, two: Plugin) -> None:
    for path, mine in two.pods():
        for _, other in one.pods():
            if overlap(mine, other):
                found = f"{addr.unpack_cidr(*mine)}, which overlaps {addr.unpack_cidr(*other)} of {one.where}"
                two.report.error(two.at(path), f"expected ranges of its own, found {found}", "choose another range")
