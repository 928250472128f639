"""Which API server a pod of this node can ask while nothing forwards services, and a kubeconfig that says so.

A pod knows the address of the service `kubernetes`. It leads nowhere before kube-proxy runs, and never where there is
none (`kubeProxyMode: none`). The kubelet of the node reaches the API server all the same; its kubeconfig says where. So the
agent is given a kubeconfig with the server that answered and with the credentials of its service account.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import yaml  # type: ignore[import-untyped]  # for its errors
from lightkube.config.kubeconfig import KubeConfig
from lightkube.core.exceptions import ConfigError

from agent.membership import FIRST_PAUSE, LAST_PAUSE
from agent.membership.kubernetes_api import ApiError
from cli.node.pod_ranges import NAME, NAMESPACE, ConfigMapView

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from cli.node.pod_ranges import Cluster
    from cli.node.root import NodeRoot

# Where kubeadm (and kind), systemd distributions, k3s and rke2 have it.
KUBELET_KUBECONFIGS = (
    "/etc/kubernetes/kubelet.conf",
    "/var/lib/kubelet/kubeconfig",
    "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
)


def servers(named: str, root: NodeRoot, environ: Mapping[str, str]) -> list[str]:
    """The URLs to try, in this order: the one that was named, and then no other; the kubelet's; the service's."""
    if named:
        return [named]
    found = [server for path in KUBELET_KUBECONFIGS if (server := _server(root, path))]
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host:
        found.append(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")
    return list(dict.fromkeys(found))


def _server(root: NodeRoot, path: str) -> str:
    """The server of a kubeconfig of the node; empty when there is none, or none that can be read."""
    try:
        config = KubeConfig.from_file(root.place(path)).get()
    except (
        ConfigError,
        OSError,
        yaml.YAMLError,
        msgspec.MsgspecError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
    ):
        return ""
    server = config.cluster.server if config is not None else ""
    return server if server.startswith(("http://", "https://")) else ""


def answering(clusters: Sequence[Cluster], log: Callable[[str], None], pause: Callable[[float], object]) -> Cluster:
    """The first of these ways to the API server that leads to one. Waits for it, with a line in the log for each cause.

    An answer that refuses is one too: whoever asks next reports it. NodeError for credentials that cannot be used.
    """
    before, seconds = "", FIRST_PAUSE
    while True:
        faults = []
        for cluster in clusters:
            fault = _fault(cluster)
            if not fault:
                return cluster
            faults.append(fault)
        found = "; ".join(faults)
        if found != before:
            log(f"waiting for an API server: {found}")
        before = found
        pause(seconds)
        seconds = min(2 * seconds, LAST_PAUSE)


def _fault(cluster: Cluster) -> str:
    """Why no API server answers there; empty when one does."""
    api = cluster.connect()
    try:
        api.read(ConfigMapView, NAME, NAMESPACE)
    except ApiError as error:
        return "" if error.status else str(error)
    finally:
        api.close()
    return ""


def write_kubeconfig(place: Path, cluster: Cluster) -> None:
    """Write a kubeconfig for a pod of this service account, in one step. Its token is read anew when it has changed. OSError."""
    account = cluster.service_account
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "cluster", "cluster": {"server": cluster.server, "certificate-authority": f"{account}/ca.crt"}}
        ],
        "users": [{"name": "agent", "user": {"tokenFile": f"{account}/token"}}],
        "contexts": [{"name": "agent", "context": {"cluster": "cluster", "user": "agent"}}],
        "current-context": "agent",
    }
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.new")
    new.write_text(json.dumps(value, indent=2) + "\n")
    new.replace(place)
