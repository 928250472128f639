"""What a network of several nodes is configured by: the part that `vxlan`, `host-gw` and the agent read alike.

Names and defaults are flannel's where flannel has one (`VNI`, `Port`, `GBP`, `Learning`, `DirectRouting`; keys match
without regard to case). Everything here is about the network; how one pod is attached is `pod_network.Conf`.
"""

from __future__ import annotations

from cni import addr
from cni.config import Reader, wrong
from cni.errors import INVALID_CONFIG, CniError
from cni.names import interface_fault
from plugins.bridge_conf import BRIDGED, DEFAULT_BRIDGE
from plugins.peers import Node, outside, read_nodes, refuse_no_hosts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from plugins.peers import Subnet

LAST_VNI = (1 << 24) - 1
LAST_PORT = (1 << 16) - 1
LONGEST_MTU = (1 << 16) - 1


class ClusterConf:
    """The network's options, typed. CniError 7 with the path of what is wrong.

    `networks` are `network` and `ipv6Network`; `exceptions` what else is not masqueraded; `peers` the nodes when the
    configuration lists them and has no `membership`, else None; `has_agent` whether it has one, so that our agent
    follows the members and writes the subnet file; `subnet_file` the path as it was given, empty for the default
    (`subnet_file_of`). `bridge` is where bridged pods are, empty for routed ones.
    """

    __slots__ = (
        "bridge", "direct", "exceptions", "forward_accept", "gbp", "has_agent", "iface", "ip_masq", "kind", "learning", "mtu", "name", "networks", "node_name",
        "peers", "port", "subnet_file", "vni",
    )  # fmt: skip

    def __init__(self, config: Reader) -> None:
        self.name = config.string("name")
        self.kind = config.string("type")
        self.networks = _networks(config)
        self.mtu = config.integer("mtu", low=0, high=LONGEST_MTU)
        self.iface = config.string("iface")
        self.node_name = config.string("nodeName")
        self.subnet_file = config.string("subnetFile")
        self.ip_masq = config.boolean("ipMasq")
        self.forward_accept = config.boolean("forwardAccept", self.ip_masq)
        self.exceptions = _exceptions(config)
        self.vni = config.integer("vni", 1, 1, LAST_VNI)
        self.port = config.integer("port", 8472, 1, LAST_PORT)
        self.learning = config.boolean("learning")
        self.gbp = config.boolean("gbp")
        self.direct = config.boolean("directRouting")
        fault = interface_fault(self.iface) if self.iface else ""
        if fault:
            config.refuse(wrong(config.at("iface"), f"an interface name ({fault})", self.iface))
        self.has_agent = config.raw("membership") is not None
        bridge = config.raw("bridge")  # a wrong one is refused where pods are attached to it
        named = bridge if isinstance(bridge, str) and bridge else DEFAULT_BRIDGE
        self.bridge = named if config.raw("attachment") == BRIDGED else ""
        self.peers: tuple[Node, ...] | None = None
        if config.raw("peers") is not None:
            if not self.networks:
                config.refuse(wrong(config.at("network"), "network or ipv6Network beside `peers`", None))
            peers = read_nodes(config, "peers", self.networks, self.vni if self.kind == "vxlan" else 0)
            # With another source of membership the agent decides who is in the cluster.
            self.peers = None if self.has_agent else peers


def refuse_outside(node: Node, networks: tuple[Subnet, ...]) -> None:
    """CniError 7 when a node's subnet is not part of the network."""
    fault = outside(node, networks)
    if fault:
        raise CniError(INVALID_CONFIG, fault, "correct the subnet, or `network` and `ipv6Network`")


def subnet_file_of(conf: ClusterConf, run_dir: str) -> str:
    """Where the node's subnets are written down when the configuration lists no peers."""
    return conf.subnet_file or f"{run_dir}/subnets/{conf.name}.env"


def _networks(config: Reader) -> tuple[Subnet, ...]:
    found = []
    for key, size in (("network", 4), ("ipv6Network", 16)):
        text = config.string(key)
        if not text:
            continue
        subnet = addr.pack_cidr(text)
        if subnet is None or len(subnet[0]) != size:
            example = "10.244.0.0/16" if size == 4 else "fd00:244::/48"
            config.refuse(wrong(config.at(key), f"a network such as {example}", text))
            continue
        own = addr.network(*subnet)
        if own != subnet[0]:
            config.refuse(wrong(config.at(key), f"the network's own address, {addr.unpack_cidr(own, subnet[1])}", text))
            continue
        try:
            refuse_no_hosts(config.at(key), subnet)
        except CniError as error:
            config.refuse(error)
        found.append(subnet)
    return tuple(found)


def _exceptions(config: Reader) -> tuple[Subnet, ...]:
    found = []
    for index, text in enumerate(config.strings("nonMasqueradeCIDRs")):
        subnet = addr.pack_cidr(text)
        if subnet is None:
            config.refuse(wrong(f"{config.at('nonMasqueradeCIDRs')}[{index}]", "a network such as 10.0.0.0/8", text))
            continue
        found.append((addr.network(*subnet), subnet[1]))
    return tuple(found)
