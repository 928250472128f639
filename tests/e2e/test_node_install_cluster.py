"""`cnikit install` asks a real API server for the pods' ranges: kubeadm's ConfigMap."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.membership.kubernetes_api import Api
from cli.node.pod_ranges import ConfigMapView
from tests.e2e.node_world import COMMAND, ENVIRON, NAME, conflist, template
from tests.e2e.world import Answer, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kubernetes.control_plane import ControlPlane

pytest_plugins = ["tests.kubernetes.fixtures"]

RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system"
MAP = "/api/v1/namespaces/kube-system/configmaps"
RANGES = {"network": "10.244.0.0/16", "ipv6Network": "fd00:10:244::/56"}
# As kubeadm writes it.
CONFIGURATION = """apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
clusterName: kind
networking:
  dnsDomain: cluster.local
  podSubnet: {}
  serviceSubnet: 10.96.0.0/16
"""


@pytest.fixture
def cluster(plane: ControlPlane) -> Iterator[ControlPlane]:
    """The API server without kubeadm's object."""
    wait_until(
        lambda: plane.call("GET", "/api/v1/namespaces/kube-system", expected=(200, 404)).get("status", {}).get("phase"),
        "kube-system",
    )
    yield plane
    for path in (f"{MAP}/kubeadm-config", f"{RBAC}/rolebindings/installer", f"{RBAC}/roles/installer"):
        plane.call("DELETE", path, expected=(200, 404))


def write(plane: ControlPlane, data: dict[str, str]) -> None:
    metadata = {"name": "kubeadm-config", "namespace": "kube-system"}
    plane.call("POST", MAP, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


class Installing:
    """An installation in folders of its own, in the namespace of the API server."""

    def __init__(self, folder: Path, bin_dir: Path) -> None:
        self.lists = folder / "net.d"
        self._words = [
            "install", "--from", str(bin_dir), "--list", template(folder), "--cni-bin-dir", str(folder / "bin"),
            "--cni-conf-dir", str(self.lists),
        ]  # fmt: skip
        # The settings and the record of the machine that runs the tests stay as they are.
        settings = folder / "sys/net/bridge"
        settings.mkdir(parents=True)
        for family in ("iptables", "ip6tables"):
            (settings / f"bridge-nf-call-{family}").write_text("0")
        self._words += ["--sysctl-dir", str(folder / "sys")]
        self.bin = folder / "bin"
        self._first = "mount -t tmpfs tmpfs /var/lib"

    def inside(self, script: str) -> None:
        """Do this first, in a mount namespace of its own."""
        self._first += f" && {script}"

    def start(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        inside = ["unshare", "--mount", "sh", "-c", f'{self._first} && exec "$@"', "sh"]
        command = [*inside, *COMMAND, *self._words, *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env={**ENVIRON, **(env or {})}, stdout=pipe, stderr=pipe)

    def __call__(self, *words: str, env: dict[str, str] | None = None) -> Answer:
        return self.ended(self.start(*words, env=env))

    def ended(self, process: subprocess.Popen[bytes]) -> Answer:
        out, err = process.communicate(timeout=120)
        return Answer(process.returncode, out, err.decode())

    @property
    def list(self) -> Any:
        """The network list that is there; None for none."""
        file = self.lists / NAME
        return json.loads(file.read_text()) if file.exists() else None


@pytest.fixture
def installing(tmp_path: Path, bin_dir: Path) -> Installing:
    return Installing(tmp_path, bin_dir)


@pytest.mark.parametrize(
    ("subnet", "ranges"),
    [
        ("10.244.0.0/16", {"network": "10.244.0.0/16"}),
        ("fd00:10:244::/56", {"ipv6Network": "fd00:10:244::/56"}),
        ("10.244.0.0/16,fd00:10:244::/56", RANGES),
    ],
)
def test_the_ranges_are_kubeadm_s(
    cluster: ControlPlane, installing: Installing, kubeconfig: str, subnet: str, ranges: dict[str, str]
) -> None:
    write(cluster, {"ClusterConfiguration": CONFIGURATION.format(subnet)})

    answer = installing("--kubeconfig", kubeconfig)

    assert answer.status == 0, answer
    assert installing.list == conflist(**ranges)


def test_a_pod_asks_as_its_service_account(cluster: ControlPlane, installing: Installing) -> None:
    write(cluster, {"ClusterConfiguration": CONFIGURATION.format("10.244.0.0/16")})
    as_pod(cluster, installing)

    refused = installing("--apiserver", cluster.server)
    assert refused.status == 1
    last = refused.stderr.splitlines()[-1]
    assert "answers 403 Forbidden" in last
    assert "--pod-cidr" in last
    assert installing.list is None

    allow(cluster)
    host, _, port = cluster.server.removeprefix("https://").partition(":")
    for words, env in (
        (["--apiserver", cluster.server], {}),
        ([], {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}),
    ):
        shutil.rmtree(installing.lists, ignore_errors=True)
        answer = installing(*words, env=env)
        assert answer.status == 0, answer
        assert installing.list == conflist(network="10.244.0.0/16")


DEAD = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}  # a service that nothing forwards


def test_a_pod_finds_the_api_server_where_the_kubelet_does(
    cluster: ControlPlane, installing: Installing, kubeconfig: str, tmp_path: Path
) -> None:
    """And says in a kubeconfig for the agent where that is."""
    write(cluster, {"ClusterConfiguration": CONFIGURATION.format("10.244.0.0/16")})
    folder = as_pod(cluster, installing)
    allow(cluster)
    installing.inside(f"mkdir -p /var/lib/kubelet && cp {kubeconfig} /var/lib/kubelet/kubeconfig")
    for_agent = tmp_path / "run" / "kubeconfig"

    answer = installing("--agent-kubeconfig", str(for_agent), env=DEAD)

    assert answer.status == 0, answer
    assert installing.list == conflist(network="10.244.0.0/16")
    written = json.loads(for_agent.read_text())
    assert written["clusters"][0]["cluster"]["server"] == cluster.server
    # Where the pod has them; here the same files are elsewhere.
    text = for_agent.read_text().replace("/var/run/secrets/kubernetes.io/serviceaccount", str(folder))
    for_agent.write_text(text)
    api = Api(str(for_agent))
    assert api.read(ConfigMapView, "kubeadm-config", "kube-system").data["ClusterConfiguration"]
    api.close()


def test_a_pod_waits_for_an_api_server_wherever_it_may_be(cluster: ControlPlane, installing: Installing) -> None:
    as_pod(cluster, installing)
    installing.inside("mkdir -p /var/lib/kubelet && echo nonsense > /var/lib/kubelet/kubeconfig")
    process = installing.start("--pod-cidr", "10.9.0.0/16", env=DEAD)
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    process.terminate()
    assert installing.ended(process).status == 143
    assert "waiting for an API server: cannot reach the API server at https://127.0.0.1:1: " in line
    assert installing.list is None


def test_an_agent_s_kubeconfig_outside_of_a_pod_is_refused(installing: Installing, tmp_path: Path) -> None:
    answer = installing("--pod-cidr", "10.9.0.0/16", "--agent-kubeconfig", str(tmp_path / "kubeconfig"))
    assert answer.status == 1, answer
    assert "--agent-kubeconfig: expected the service account of a pod" in answer.stderr
    assert not installing.bin.exists()


def test_a_kubeconfig_that_is_not_there_is_not_waited_for(installing: Installing, tmp_path: Path) -> None:
    answer = installing("--kubeconfig", str(tmp_path / "none"))
    assert answer.status == 1, answer
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("cnikit install: not installed: ")
    assert str(tmp_path / "none") in last
    assert not installing.bin.exists()


def test_a_url_that_is_none_is_not_waited_for(cluster: ControlPlane, installing: Installing) -> None:
    as_pod(cluster, installing)
    answer = installing("--apiserver", "cluster:6443")
    assert answer.status == 1, answer
    last = answer.stderr.splitlines()[-1]
    assert "expected a server such as https://192.0.2.1:6443, found 'cluster:6443'" in last
    assert "--apiserver" in last
    assert not installing.bin.exists()


def test_it_waits_for_an_api_server_that_is_away(
    cluster: ControlPlane, installing: Installing, kubeconfig: str
) -> None:
    write(cluster, {"ClusterConfiguration": CONFIGURATION.format("10.244.0.0/16")})
    cluster.stop_api_server()
    try:
        process = installing.start("--kubeconfig", kubeconfig)
        assert process.stderr is not None
        first = process.stderr.readline().decode()
        assert (
            "waiting for the pods' ranges in ConfigMap kube-system/kubeadm-config: cannot reach the API server" in first
        )
        assert process.poll() is None
        assert not installing.bin.exists(), "something was replaced before it was known to be well"
    finally:
        cluster.start_api_server()

    answer = installing.ended(process)

    assert answer.status == 0, answer
    assert installing.list == conflist(network="10.244.0.0/16")
    waiting = [line for line in answer.stderr.splitlines() if "waiting" in line]
    assert len(waiting) == len(set(waiting)), "a line for each try and not for each cause"
    assert first.strip() not in waiting


def test_sigterm_ends_the_wait(cluster: ControlPlane, installing: Installing, kubeconfig: str) -> None:
    cluster.stop_api_server()
    try:
        process = installing.start("--kubeconfig", kubeconfig)
        assert process.stderr is not None
        assert b"waiting" in process.stderr.readline()
        process.terminate()
        assert installing.ended(process).status == 143
    finally:
        cluster.start_api_server()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (None, "answers 404 Not Found"),
        ({}, "expected ClusterConfiguration with networking.podSubnet, found none"),
        ({"ClusterConfiguration": "{"}, "expected ClusterConfiguration with networking.podSubnet, found none"),
        ({"ClusterConfiguration": "networking: {dnsDomain: x}"}, "networking.podSubnet, found none"),
        ({"ClusterConfiguration": CONFIGURATION.format("10.244.0.0")}, "expected a range such as"),
    ],
)
def test_a_cluster_that_does_not_say(
    cluster: ControlPlane, installing: Installing, kubeconfig: str, data: dict[str, str] | None, text: str
) -> None:
    if data is not None:
        write(cluster, data)

    answer = installing("--kubeconfig", kubeconfig)

    assert answer.status == 1, answer
    last = answer.stderr.splitlines()[-1]
    assert text in last
    assert "10.244.0.0/16" in last, "how it is done"
    assert installing.list is None
    assert installing("--kubeconfig", kubeconfig, "--pod-cidr", "10.9.0.0/16").status == 0
    assert installing.list == conflist(network="10.9.0.0/16")


def as_pod(cluster: ControlPlane, installing: Installing) -> Path:
    """Let it run where a pod has its service account; returns where that folder is."""
    account = {
        "kind": "ServiceAccount",
        "apiVersion": "v1",
        "metadata": {"name": "installer", "namespace": "kube-system"},
    }
    cluster.call("POST", "/api/v1/namespaces/kube-system/serviceaccounts", account, expected=(201, 409))
    folder = cluster.service_account("kube-system", "installer")
    bind = f"mkdir -p /var/run/secrets/kubernetes.io/serviceaccount && mount --bind {folder} /var/run/secrets/kubernetes.io/serviceaccount"
    installing.inside(f"mount -t tmpfs tmpfs /run && {bind}")
    return folder


def allow(plane: ControlPlane) -> None:
    """The right to read the one object."""
    metadata = {"name": "installer", "namespace": "kube-system"}
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["kubeadm-config"], "verbs": ["get"]}]
    role = {"kind": "Role", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": metadata, "rules": rules}
    plane.call("POST", f"{RBAC}/roles", role)
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "installer"}
    subjects = [{"kind": "ServiceAccount", "name": "installer", "namespace": "kube-system"}]
    binding = {"kind": "RoleBinding", "metadata": metadata, "roleRef": reference, "subjects": subjects}
    plane.call("POST", f"{RBAC}/rolebindings", {"apiVersion": "rbac.authorization.k8s.io/v1", **binding})
