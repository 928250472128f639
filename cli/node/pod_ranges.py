"""The ranges of a cluster's pods: from the command line, or from what kubeadm (and so kind) has written into the cluster.

    ConfigMap kube-system/kubeadm-config, ClusterConfiguration: networking.podSubnet: 10.244.0.0/16,fd00:10:244::/56

While the API server cannot be reached the question is asked again: on a node that starts it is often there later. What
only a person can change (no such object, no right to read it) is an error.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import yaml  # type: ignore[import-untyped]  # for its errors
from lightkube.core.resource import ApiInfo, NamespacedResource, ResourceDef

from agent.membership import FIRST_PAUSE, LAST_PAUSE
from agent.membership.kubernetes_api import SERVICE_ACCOUNT, Api, ApiError
from cli.node.root import NodeError
from cni import addr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from plugins.peers import Subnet

    Ranges = list[Subnet]  # one of each family at most

NAMESPACE, NAME, KEY = "kube-system", "kubeadm-config", "ClusterConfiguration"
WAYS = (
    "give the pods' ranges with --pod-cidr 10.244.0.0/16[,fd00:10:244::/56], write network and ipv6Network into the "
    f"list, or have them in ConfigMap {NAMESPACE}/{NAME} ({KEY}: networking.podSubnet), as kubeadm and kind do"
)
# Answers that stay the same until somebody changes the cluster.
_FINAL = (403, 404)


class ConfigMapView(NamespacedResource, msgspec.Struct):
    """What we use of a ConfigMap."""

    data: dict[str, str] = msgspec.field(default_factory=dict)

    _api_info = ApiInfo(ResourceDef("", "v1", "ConfigMap"), "configmaps", ["get"])


class Cluster(NamedTuple):
    """How the API server is reached: a kubeconfig's path, else the pod's service account; `server` is another URL."""

    kubeconfig: str = ""
    server: str = ""
    service_account: str = SERVICE_ACCOUNT

    def is_known(self, environ: Mapping[str, str]) -> bool:
        """Whether there is anything to ask with."""
        return bool(self.kubeconfig or self.server or "KUBERNETES_SERVICE_HOST" in environ)

    def has_account(self) -> bool:
        """Whether it is the service account of a pod that asks."""
        return not self.kubeconfig and os.path.exists(f"{self.service_account}/token")

    def connect(self) -> Api:
        """NodeError for files or a URL that only a person can correct: no reason to wait."""
        try:
            return Api(self.kubeconfig, self.service_account, self.server)
        except ApiError as error:
            raise NodeError(f"{error}; correct it, or give another with --kubeconfig or --apiserver") from error


def parse(text: str, where: str) -> Ranges:
    """One range, or one of each family, separated by a comma. NodeError."""
    found: Ranges = []
    for part in text.split(","):
        subnet = addr.pack_cidr(part.strip())
        if subnet is None or addr.network(*subnet) != subnet[0]:
            raise NodeError(f"{where}: expected a range such as 10.244.0.0/16 or fd00:10:244::/56, found {part!r}")
        if any(len(earlier[0]) == len(subnet[0]) for earlier in found):
            raise NodeError(f"{where}: expected one range of each family at most, found {text!r}")
        found.append(subnet)
    return found


def of_cluster(cluster: Cluster, log: Callable[[str], None], pause: Callable[[float], object]) -> Ranges:
    """What kubeadm was given. Waits until the API server answers, with one line in the log for each cause.

    NodeError when it has none, or must not tell.
    """
    before, seconds = "", FIRST_PAUSE
    while True:
        try:
            return _read(cluster)
        except ApiError as error:
            if error.status in _FINAL:
                raise NodeError(f"{error}; or else {WAYS}") from error
            if str(error) != before:
                log(f"waiting for the pods' ranges in ConfigMap {NAMESPACE}/{NAME}: {error}")
            before = str(error)
            pause(max(seconds, error.retry_after))
            seconds = min(2 * seconds, LAST_PAUSE)


def _read(cluster: Cluster) -> Ranges:
    where = f"ConfigMap {NAMESPACE}/{NAME}"
    api = cluster.connect()
    try:
        data = api.read(ConfigMapView, NAME, NAMESPACE).data
    finally:
        api.close()
    try:
        text = yaml.safe_load(data[KEY])["networking"]["podSubnet"]
    except (yaml.YAMLError, KeyError, TypeError):
        text = None
    if not isinstance(text, str) or not text:
        raise NodeError(f"{where}: expected {KEY} with networking.podSubnet, found none; {WAYS}")
    return parse(text, f"{where}, networking.podSubnet")
