"""cnikit on a cluster, installed as its users do it: the image and one manifest; and what its agents report."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from cni import __version__
from tests.artefacts.cache import ROOT
from tests.e2e.images import ARCHITECTURES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.kube.cluster import Cluster

# The backends, and the manifest of each.
MANIFESTS = {"vxlan": "cnikit.yaml", "host-gw": "cnikit-host-gw.yaml"}
BACKENDS = tuple(MANIFESTS)
NAMESPACE = "kube-system"
SELECTOR = "app.kubernetes.io/name=cnikit"
NETWORK_LIST = "/etc/cni/net.d/10-cnikit.conflist"


def archive() -> Path:
    """What `make image` has made for this machine."""
    folder = ROOT / "dist" / "image"
    found = [
        path
        for path in (
            folder / f"cnikit-{__version__}-{ARCHITECTURES[os.uname().machine]}.tar",
            folder / f"cnikit-{__version__}.tar",
        )
        if path.is_file()
    ]
    assert found, f"no archive of version {__version__} in {folder}: expected what make image makes"
    return found[0]


def install(cluster: Cluster, backend: str) -> None:
    """The user's commands: load, apply."""
    cluster.load(archive())
    apply(cluster, backend)


def apply(cluster: Cluster, backend: str) -> None:
    """The manifest; agents of another one start anew."""
    cluster.kubectl("apply", f"--filename={ROOT / 'conf/kubernetes' / MANIFESTS[backend]}")
    cluster.kubectl("rollout", "restart", "daemonset/cnikit", f"--namespace={NAMESPACE}")


def rolled_out(cluster: Cluster) -> None:
    cluster.rolled_out("daemonset/cnikit", NAMESPACE)


def agents(cluster: Cluster) -> list[dict[str, Any]]:
    return list(cluster.get("pods", f"--namespace={NAMESPACE}", f"--selector={SELECTOR}"))


def log(cluster: Cluster) -> list[dict[str, Any]]:
    """The lines of all agents that run, as they wrote them: JSON objects."""
    lines = []
    for agent in agents(cluster):
        name = agent["metadata"]["name"]
        text = cluster.kubectl("logs", f"--namespace={NAMESPACE}", name, "--container=agent", "--tail=-1")
        lines += [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return lines


def calls(cluster: Cluster) -> list[dict[str, Any]]:
    """The lines about calls of plugins."""
    return [line for line in log(cluster) if "outcome" in line]
