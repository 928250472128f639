"""A lab's nodes and pods: what they are called, where they are, and how to run something there."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

from cli import sandbox
from cli.lab_plan import NETWORK
from cli.lab_programs import environment
from cli.lab_space import NETWORKS
from cni import addr, netlist
from cni.cache import Attachment
from cni.errors import TRY_AGAIN, CniError
from cni.names import digest
from cni.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cli.lab_cluster import Lab
    from cli.lab_plan import NodePlan, PodPlan
    from cli.lab_process import Process

_PAUSE = 0.02


class LabNode:
    """A node of a lab."""

    def __init__(self, lab: Lab, plan: NodePlan) -> None:
        self._lab = lab
        self.plan = plan
        self.name = plan.name
        self.pods = [Pod(lab, pod) for pod in plan.pods]

    @property
    def netns(self) -> str:
        return self._lab.space.net(self.name)

    @property
    def addresses(self) -> list[str]:
        """Those on the underlay."""
        return [addr.unpack(packed) for packed, _ in self.plan.addresses.values()]

    @property
    def killed(self) -> bool:
        return self.name in self._lab.state.killed

    @property
    def agent(self) -> Process:
        return self._lab.state.processes[self.name]

    def enter(self) -> None:
        """Move this process, which must have one thread, into the node."""
        self._lab.space.enter(self.name)

    def run(self, *argv: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a program on the node; its output."""
        return _run(self.enter, argv, timeout)

    def is_ready(self) -> bool:
        """Whether its agent listens, and has written down which subnet the node has."""
        with socket.socket(socket.AF_UNIX) as client:
            listens = client.connect_ex(f"{self._files}/agent.sock") == 0
        return listens and os.path.exists(self._subnet_file)

    def attach(self, deadline: float) -> dict[str, list[str]]:
        """ADD for each of its pods, as `cnikit add` does it; their addresses. For a child: it stays on the node."""
        runtime, network = self._runtime()
        found = {}
        for pod in self.pods:
            result = _add(runtime, network, pod.attachment, deadline)
            found[pod.name] = [ip["address"].partition("/")[0] for ip in result["ips"]]
        return found

    def forget_subnet(self) -> None:
        """Remove what an agent has written down of its subnet, so that it is not taken for the next one's."""
        if os.path.exists(self._subnet_file):
            os.unlink(self._subnet_file)

    def detach(self) -> None:
        """DEL for each of its pods. For a child: it stays on the node."""
        runtime, network = self._runtime()
        for pod in self.pods:
            runtime.delete(network, pod.attachment)

    def _runtime(self) -> tuple[Runtime, netlist.NetworkList]:
        """Of the node, which this process moves into."""
        self.enter()
        runtime = Runtime([self._lab.state.bin_dir], environment(), time.monotonic, lambda _: None)
        return runtime, netlist.load(NETWORKS, NETWORK, lambda _: None)

    @property
    def _files(self) -> str:
        """What the node has at /run/cnikit."""
        return f"{self._lab.space.run(self.name)}/cnikit"

    @property
    def _subnet_file(self) -> str:
        return f"{self._files}/subnets/{NETWORK}.env"


class Pod:
    """A pod of a lab."""

    def __init__(self, lab: Lab, plan: PodPlan) -> None:
        self._lab = lab
        self.name = plan.name
        self.node = plan.node

    @property
    def netns(self) -> str:
        return self._lab.space.pod(self.node, self.name)

    @property
    def addresses(self) -> list[str]:
        return self._lab.state.addresses[self.name]

    @property
    def attachment(self) -> Attachment:
        """As its node knows it. The container ID is what `cnikit add` gives that namespace."""
        path = f"/run/netns/{self.name}"
        return Attachment(f"cnitool-{digest(path)[:10].hex()}", "eth0", path)

    def enter(self) -> None:
        """Move this process, which must have one thread, into the pod's network, on its node."""
        self._lab.space.enter(self.node, self.name)

    def run(self, *argv: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a program in the pod's network; its output."""
        return _run(self.enter, argv, timeout)


def spoken(places: Sequence[LabNode | Pod]) -> str:
    """The first of some names."""
    shown = [place.name for place in places[:6]]
    return ", ".join(shown) + (f" and {len(places) - 6} more" if len(places) > 6 else "") or "none"


def _add(runtime: Runtime, network: netlist.NetworkList, attachment: Attachment, deadline: float) -> dict[str, Any]:
    """ADD, again while the node has no subnet yet."""
    while True:
        try:
            return runtime.add(network, attachment)
        except CniError as error:
            if error.code != TRY_AGAIN or time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE)


def _run(enter: Callable[[], None], argv: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    def run() -> tuple[int, str, str]:
        enter()
        ran = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout
        )
        return ran.returncode, ran.stdout, ran.stderr

    return subprocess.CompletedProcess(list(argv), *sandbox.in_child(run))
