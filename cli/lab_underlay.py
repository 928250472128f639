"""A lab's underlay: a bridge in a namespace of its own, a veth to each node, and what cuts two nodes apart.

Nothing leads from here to the machine's network: the only links are those between the lab's own namespaces.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from cli import sandbox
from cli.lab_plan import BRIDGE, ETCD, ETCD_NUMBER, UPLINK, LabError, underlay_address
from cni.addr import AF_INET6
from cni.kernel import ops
from cni.kernel.background import fork_background
from cni.kernel.linux import Kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cli.lab_plan import NodePlan, Plan
    from cli.lab_space import Space
    from cni.kernel import Namespace

# The pairs of bridge ports between which nothing passes. Ports, not addresses: ARP and neighbour discovery are cut too.
# What comes to the bridge itself is for etcd.
TABLE = "cnikit-lab"
_RULES = f"""
table bridge {TABLE} {{
  set cut {{ type ifname . ifname; }}
  set etcd {{ type ifname; }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    meta iifname . meta oifname @cut counter drop
  }}
  chain input {{
    type filter hook input priority 0; policy accept;
    meta iifname @etcd counter drop
  }}
  chain output {{
    type filter hook output priority 0; policy accept;
    meta oifname @etcd counter drop
  }}
}}
"""


def build(plan: Plan, space: Space) -> None:
    """The bridge, with an address for etcd, and each node's link to it. The nodes' end is `eth0`, the other end has
    the node's name."""
    kernel = Kernel(time.monotonic, fork_background)
    with kernel.open(space.underlay()) as underlay:
        underlay.apply(ops.bridge_add(BRIDGE, None), ops.link_set(BRIDGE, up=True), ops.link_set("lo", up=True))
        bridge = _index(underlay, BRIDGE)
        underlay.apply(*(_address(bridge, size, ETCD_NUMBER) for size in plan.families))
        for node in plan.nodes:
            with kernel.open(space.net(node.name)) as own:
                _connect(underlay, bridge, node, own)
            for pod in node.pods:
                with kernel.open(space.pod(node.name, pod.name)) as namespace:
                    namespace.apply(ops.link_set("lo", up=True))  # what a runtime's network `loopback` does


def connect(space: Space, node: NodePlan) -> None:
    """Give a node a link to the underlay again."""
    disconnect(space, node.name)
    kernel = Kernel(time.monotonic, fork_background)
    with kernel.open(space.underlay()) as underlay, kernel.open(space.net(node.name)) as own:
        _connect(underlay, _index(underlay, BRIDGE), node, own)


def _connect(underlay: Namespace, bridge: int, node: NodePlan, own: Namespace) -> None:
    # The same MAC after `lab start`, as a machine has it that was off: others may know it by that one for half a minute.
    mac = bytes((2, 0, 0, 0, 0, node.number))
    underlay.apply(ops.veth_add(node.name, None, UPLINK, mac, own, master=bridge))
    if 16 in node.families:
        # The link-local address, which asks for the neighbours of forwarded packets, is of use after 2 s otherwise.
        own.set_conf(AF_INET6, UPLINK, "accept_dad", "0")
    own.apply(ops.link_set("lo", up=True), ops.link_set(UPLINK, up=True))
    uplink = _index(own, UPLINK)
    own.apply(*(_address(uplink, size, node.number) for size in node.families))
    underlay.wait_port(_index(underlay, node.name), 5.0)


def _address(index: int, size: int, number: int) -> ops.Op:
    return ops.addr_add(index, *underlay_address(size, number), nodad=True)


def _index(namespace: Namespace, name: str) -> int:
    link = namespace.link(name)
    if link is None:
        raise LabError(f"link {name} has vanished while the lab was made")
    return link.index


def disconnect(space: Space, node: str) -> None:
    """Take a node's link to the underlay away; it is fine when it has none."""
    with Kernel(time.monotonic, fork_background).open(space.underlay()) as underlay:
        link = underlay.link(node)
        if link is not None:
            underlay.delete_link(link.index)


def cut(space: Space, pairs: Sequence[tuple[str, str]]) -> None:
    """Let nothing pass between the nodes of each pair."""
    rules = "" if _has_table(space) else _RULES
    _nft(space, "-f", "-", commands=rules + _for_elements("add", pairs))


def heal(space: Space, pairs: Sequence[tuple[str, str]]) -> None:
    """Let everything pass again between those of each pair, which are cut."""
    _nft(space, "-f", "-", commands=_for_elements("delete", pairs))


def cuts(space: Space) -> list[tuple[str, str]]:
    """The pairs that are cut, as the kernel has them, each once. Without nft nobody can have cut anything."""
    if _program() is None or not _has_table(space):
        return []
    listed = json.loads(_nft(space, "-j", "list", "table", "bridge", TABLE))["nftables"]
    elements = {item["set"]["name"]: item["set"].get("elem", []) for item in listed if "set" in item}
    between = [element["concat"] for element in elements["cut"]]
    return sorted([(ETCD, node) for node in elements["etcd"]] + [(one, two) for one, two in between if one < two])


def _for_elements(verb: str, pairs: Sequence[tuple[str, str]]) -> str:
    """nft's commands about some pairs, in both directions. A node's port has its name."""
    lines = []
    for one, two in pairs:
        if ETCD in (one, two):
            lines.append(f'{verb} element bridge {TABLE} etcd {{ "{two if one == ETCD else one}" }}\n')
        else:
            lines.append(f'{verb} element bridge {TABLE} cut {{ "{one}" . "{two}", "{two}" . "{one}" }}\n')
    return "".join(lines)


def _has_table(space: Space) -> bool:
    return f"table bridge {TABLE}" in _nft(space, "list", "tables", "bridge").splitlines()


def _program() -> str | None:
    return shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin")


def _nft(space: Space, *args: str, commands: str = "") -> str:
    """Run nft in the underlay's namespace; what it answers."""
    program = _program()
    if program is None:
        raise LabError("expected the program nft, found none: apt-get install nftables")

    def run() -> tuple[int, str, str]:
        sandbox.enter(space.underlay())
        ran = subprocess.run([program, *args], input=commands, text=True, capture_output=True, check=False)
        return ran.returncode, ran.stdout, ran.stderr

    status, output, errors = sandbox.in_child(run)
    if status != 0:
        raise LabError(f"nft failed: {' '.join(errors.split())}")
    return str(output)
