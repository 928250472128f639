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
from cli.lab_plan import BRIDGE, ETCD_NUMBER, UPLINK, LabError, underlay_address
from cni.kernel import ops
from cni.kernel.background import fork_background
from cni.kernel.linux import Kernel

if TYPE_CHECKING:
    from cli.lab_plan import NodePlan, Plan
    from cli.lab_space import Space
    from cni.kernel import Namespace

# The pairs of bridge ports between which nothing passes. Ports, not addresses: ARP and neighbour discovery are cut too.
TABLE = "cnikit-lab"
_RULES = f"""
table bridge {TABLE} {{
  set cut {{ type ifname . ifname; }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    meta iifname . meta oifname @cut counter drop
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


def _connect(underlay: Namespace, bridge: int, node: NodePlan, own: Namespace) -> None:
    underlay.apply(ops.veth_add(node.name, None, UPLINK, None, own, master=bridge))
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


def cut(space: Space, one: str, two: str) -> None:
    """Let nothing pass between two nodes."""
    rules = "" if _has_table(space) else _RULES
    _nft(space, "-f", "-", commands=f"{rules}\nadd element bridge {TABLE} cut {{ {_pairs(one, two)} }}\n")


def heal(space: Space, one: str, two: str) -> None:
    """Let everything pass again."""
    if (one, two) in cuts(space):
        _nft(space, "-f", "-", commands=f"delete element bridge {TABLE} cut {{ {_pairs(one, two)} }}\n")


def cuts(space: Space) -> set[tuple[str, str]]:
    """The pairs that are cut, in both orders, as the kernel has them. Without nft nobody can have cut anything."""
    if _program() is None or not _has_table(space):
        return set()
    listed = json.loads(_nft(space, "-j", "list", "set", "bridge", TABLE, "cut"))["nftables"]
    elements = [element for item in listed if "set" in item for element in item["set"].get("elem", [])]
    return {tuple(element["concat"]) for element in elements}


def _pairs(one: str, two: str) -> str:
    return f'"{one}" . "{two}", "{two}" . "{one}"'


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
