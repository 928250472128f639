"""What a lab runs beside its pods, agents and etcd, and whether the machine has what it takes."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from cli.lab_plan import NETWORK, LabError
from cli.lab_space import LEASES, NETWORKS
from cni.kernel import neightbl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cli.lab_plan import Plan
    from cli.lab_space import Space

# The network list that every node has.
LIST_FILE = f"{NETWORKS}/10-{NETWORK}.conflist"
_INHERITED = ("PATH", "PYTHONDONTWRITEBYTECODE")
# The settings that say how many neighbours the kernel keeps. Only the machine's first network namespace has the files.
_NEIGHBOURS = {4: "net.ipv4.neigh.default.gc_thresh3", 16: "net.ipv6.neigh.default.gc_thresh3"}


def own_command() -> list[str]:
    """The command line that starts this program's `cnikit`."""
    return [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "cli.main"]


def agent(command: Sequence[str], node: str) -> list[str]:
    """The command line of a node's agent."""
    return [*command, "agent", "--network", LIST_FILE, "--node-name", node]


def etcd(plan: Plan, space: Space) -> list[str]:
    """The command line of etcd."""
    peer = "http://127.0.0.1:2380"  # of the underlay's namespace, so nobody else's
    return [
        "etcd", "--name", "lab", "--data-dir", f"{space.folder}/etcd",
        "--listen-client-urls", plan.etcd_url(), "--advertise-client-urls", plan.etcd_url(),
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"lab={peer}",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """What programs of a lab inherit: nothing that is meant for an agent or a plugin of the machine."""
    inherited = {key: os.environ[key] for key in _INHERITED if key in os.environ}
    if not getattr(sys, "frozen", False):
        inherited["PYTHONPATH"] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return inherited


def refuse(plan: Plan, bin_dir: str, command: Sequence[str]) -> None:
    """LabError when something that the lab needs is not there."""
    if os.geteuid() != 0:
        raise LabError("a lab needs root, to make network namespaces: run it with sudo")
    for program in (plan.backend, "host-local"):
        if not os.access(f"{bin_dir}/{program}", os.X_OK):
            where = bin_dir or "none beside cnikit"
            raise LabError(
                f"expected the plugin {program}, found none in {where}: `make dist` builds it, or give --bin-dir"
            )
    for path in (bin_dir, command[0]):
        if os.path.realpath(path).startswith(("/run/", f"{LEASES}/")):
            raise LabError(
                f"expected plugins and program outside of /run, which a node has for itself, found {path}: copy them elsewhere"
            )
    if plan.source == "etcd" and shutil.which("etcd") is None:
        raise LabError("--source etcd: expected the program etcd, found none on PATH: apt-get install etcd-server")
    most = neightbl.most_neighbours()
    for size in plan.families:
        refuse_crowd(plan.neighbours(size), most.get(size), _NEIGHBOURS[size])


def refuse_crowd(needed: int, most: int | None, setting: str, settings: str = "/proc/sys") -> None:
    """LabError when the nodes would know more neighbours than the kernel keeps: packets would get lost at random."""
    if most is None or needed <= most:
        return
    command = f"`sysctl -w {setting}={2 * needed}`"
    if not os.path.exists(f"{settings}/{setting.replace('.', '/')}"):
        # The limit holds in every network namespace, and can be set in the first one only.
        command = f"`nsenter -t 1 -n sysctl -w {setting}={2 * needed}` on the machine itself (this network namespace only reads it)"
    raise LabError(
        f"the nodes and pods have up to {needed} neighbours together: expected that the kernel keeps as many, found "
        f"a limit of {most} for the whole machine: take fewer nodes, or {command}"
    )
