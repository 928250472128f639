"""Nodes with agents on a real kernel, whose members come from a real API server or etcd, and independent eyes on them."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from typing import TYPE_CHECKING, Any

from tests.e2e.agent_world import Agent
from tests.e2e.etcd_world import PREFIX
from tests.e2e.relay import Relay
from tests.e2e.underlay import V4, Cluster, address_of, subnet_of
from tests.e2e.world import wait_until
from tests.kubernetes.control_plane import ELSEWHERE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.world import Node, Way
    from tests.kubernetes.control_plane import ControlPlane

NETWORK = "/run/net.conflist"
SUBNETS = "/run/cnikit/subnets/pods.env"
PUBLIC_IP = "flannel.alpha.coreos.com/public-ip"


class World:
    """Nodes with agents, whose membership is a server of the test at a port of loopback, and of `ELSEWHERE` on the underlay."""

    def __init__(
        self, cluster: Cluster, port: int, membership: dict[str, Any], stack: contextlib.ExitStack, kind: str
    ) -> None:
        self.cluster = cluster
        self.kind = kind
        self._membership = membership
        self._stack = stack
        self.agents: list[Agent] = []
        give(cluster.switch, ELSEWHERE, "switch")
        stack.enter_context(Relay(cluster.switch, port, ELSEWHERE))
        for node in cluster.nodes:
            stack.enter_context(Relay(node, port))

    def start(self, number: int, host_name: str = "", **options: Any) -> Agent:
        """Start the agent of node `number`, which calls its host so (`nodeN` without)."""
        node = self.cluster.nodes[number - 1]
        conf = self.conf(**options)
        plugins = [{key: value for key, value in conf.items() if key not in ("cniVersion", "name")}]
        node.path(NETWORK).write_text(json.dumps({"cniVersion": "1.1.0", "name": "pods", "plugins": plugins}))
        name = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host_name or f"node{number}")
        agent = Agent(node, "--network", NETWORK, prefix=name)
        self._stack.callback(agent.forget)
        self.agents.append(agent)
        return agent.ready()

    def conf(self, **options: Any) -> dict[str, Any]:
        """The network's configuration, as a runtime gives it to the plugin too."""
        conf = self.cluster.conf(self.kind, membership=self._membership, **options)
        del conf["peers"]
        return conf


@contextlib.contextmanager
def world(
    way: Way, port: int, membership: dict[str, Any], count: int = 1, *, kind: str = "vxlan", **options: Any
) -> Iterator[World]:
    with Cluster(way, count, **options) as cluster, contextlib.ExitStack() as stack:
        made = World(cluster, port, membership, stack, kind)
        try:
            yield made
        except BaseException:
            for agent in made.agents:
                print(agent.log()[-4000:])
            raise


@contextlib.contextmanager
def kubernetes(way: Way, plane: ControlPlane, count: int = 1, server: str = "", **options: Any) -> Iterator[World]:
    """Nodes whose kubelets have registered them."""
    kubeconfig = str(plane.kubeconfig("identity.conf", plane.admin, server=server))
    membership = {"source": "kubernetes", "kubeconfig": kubeconfig}
    for number in range(1, count + 1):
        plane.add_node(f"node{number}", [subnet_of(number, V4)], [address_of(number, V4)])
    with world(way, plane.port, membership, count, **options) as made:
        yield made


def give(node: Node, address: str, link: str = "eth0") -> None:
    node.run("ip", "addr", "add", f"{address}/24", "dev", link)


def take(node: Node, address: str, link: str = "eth0") -> None:
    node.run("ip", "addr", "del", f"{address}/24", "dev", link)


def served(node: Node) -> str:
    """The subnet that pods of the node get their addresses from."""
    file = node.path(SUBNETS)
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition("=")[2] for line in lines if line.startswith("FLANNEL_SUBNET=")), "")


def ways(node: Node) -> dict[str, str]:
    """Where the node sends what is for the pods of others: the address on the underlay, by subnet."""
    hosts = {entry["dst"]: entry["lladdr"] for entry in node.ip("neigh", "show", "nud", "permanent")}
    receivers = {entry["mac"]: entry["dst"] for entry in node.bridge("fdb", "show") if "dst" in entry}
    routes = node.ip("-4", "route", "show", "proto", "205")
    return {route["dst"]: receivers.get(hosts.get(route["gateway"], ""), "") for route in routes}


def here(node: Node) -> str:
    """Which address the node's own device sends from."""
    return next((one["linkinfo"]["info_data"]["local"] for one in node.ip("link", "show", "type", "vxlan") if one), "")


def claim_of(gateway: str) -> str:
    """The key in etcd that says whose the subnet of a gateway is."""
    return f"{PREFIX}/subnets/{ipaddress.ip_interface(gateway).network}".replace("/24", "-24")


def stands(node: Node, subnet: str, others: dict[str, str], what: str) -> None:
    wait_until(lambda: (served(node), ways(node)) == (subnet, others), what, 20)


def internal_ip(plane: ControlPlane, name: str, *addresses: str) -> None:
    """As the kubelet reports it."""
    found = [{"type": "InternalIP", "address": address} for address in addresses]
    plane.patch_node(name, {"status": {"addresses": found}}, "/status")


def annotated(plane: ControlPlane, name: str = "node1") -> str:
    """Where the node's agent tells the others that it is."""
    found: str = plane.node(name)["metadata"].get("annotations", {}).get(PUBLIC_IP, "")
    return found
