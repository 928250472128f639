"""A real Kubernetes API server on loopback, with Debian's etcd behind it and RBAC in force. No kubelet, no controllers:
Node objects are what the tests make them.

It is looked at with urllib3 and an administrator's certificate, never with what is under test.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any, Self

import urllib3

from tests.e2e.world import wait_until
from tests.kubernetes.pki import Authority, Pair

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Where a test may have a relay to the server listen.
ELSEWHERE = "198.18.0.254"
_START_SECONDS = 90.0
_MERGE = "application/merge-patch+json"


class ControlPlane:
    """etcd and kube-apiserver, from `__enter__` to `__exit__`."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self.folder = folder
        self.authority = Authority(folder / "pki")
        self.admin = self.authority.issue("admin", "/O=system:masters/CN=admin")
        names = f"IP:127.0.0.1,IP:{ELSEWHERE}"
        self._server_pair = self.authority.issue("server", "/CN=kube-apiserver", names=names)
        accounts = folder / "pki" / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", accounts, "2048"], capture_output=True, check=True)
        self._accounts = accounts
        self._etcd_port, self._etcd_peer_port, self.port = free_ports(3)
        self.server = f"https://127.0.0.1:{self.port}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._start_etcd()
            self.start_api_server()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("kube-apiserver", "etcd"):
            self._stop(name)

    def start_api_server(self) -> None:
        pair, accounts = self._server_pair, self._accounts
        self._start(
            "kube-apiserver", str(self._program),
            "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", f"--secure-port={self.port}",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}", f"--client-ca-file={self.authority.certificate}",
            f"--tls-cert-file={pair.certificate}", f"--tls-private-key-file={pair.key}",
            f"--service-account-key-file={accounts}", f"--service-account-signing-key-file={accounts}",
            "--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC", "--endpoint-reconciler-type=none",
        )  # fmt: skip
        wait_until(lambda: self._ready("kube-apiserver"), "the API server is ready", _START_SECONDS)

    def stop_api_server(self) -> None:
        self._stop("kube-apiserver")

    def call(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", expected: tuple[int, ...] = ()
    ) -> Any:
        """One request as the administrator; its answer, which must be one of the expected (any 2xx)."""
        with self._pool() as pool:
            data = None if body is None else json.dumps(body).encode()
            answer = pool.request(
                method, self.server + path, body=data, headers={"Content-Type": kind}, retries=False, timeout=20.0
            )
        good = answer.status in expected if expected else 200 <= answer.status < 300
        assert good, f"{method} {path}: {answer.status} {answer.data.decode()[:1000]}"
        return json.loads(answer.data)

    # Node objects

    def add_node(
        self, name: str, cidrs: list[str], addresses: list[str], annotations: Mapping[str, str] | None = None
    ) -> None:
        """Register a node, as a kubelet and the controller that gives ranges do together."""
        self.call("POST", "/api/v1/nodes", node_object(name, cidrs, addresses, annotations))

    def node(self, name: str) -> Any:
        return self.call("GET", f"/api/v1/nodes/{name}")

    def version(self) -> str:
        """The version of all nodes as they are now."""
        return str(self.call("GET", "/api/v1/nodes?limit=1")["metadata"]["resourceVersion"])

    def states(self, name: str, version: str) -> list[Any]:
        """Each state that a node has been in since a version of the list, up to now."""
        now = int(self.node(name)["metadata"]["resourceVersion"])
        query = f"watch=1&resourceVersion={version}&timeoutSeconds=1&fieldSelector=metadata.name={name}"
        with self._pool() as pool:
            answer = pool.request("GET", f"{self.server}/api/v1/nodes?{query}", retries=False, timeout=20.0)
        states = [json.loads(line)["object"] for line in answer.data.splitlines()]
        assert states, f"no state of {name} since {version}"
        assert int(states[-1]["metadata"]["resourceVersion"]) >= now, "a watch that lacks the latest state"
        return states

    def patch_node(self, name: str, patch: Any, subresource: str = "") -> None:
        self.call("PATCH", f"/api/v1/nodes/{name}{subresource}", patch, _MERGE)

    def delete_node(self, name: str) -> None:
        self.call("DELETE", f"/api/v1/nodes/{name}", expected=(200, 404))

    def clear(self) -> None:
        """No node at all."""
        self.call("DELETE", "/api/v1/nodes")

    # Who calls

    def kubeconfig(self, file: str, pair: Pair | None = None, *, token: str = "", server: str = "") -> Path:
        """A kubeconfig for whom a certificate or a token names."""
        if pair is None:
            user = {"token": token}
        else:
            user = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
        path = self.folder / file
        path.write_text(json.dumps(kubeconfig(server or self.server, user, self.authority.certificate)))
        return path

    def service_account(self, namespace: str, name: str) -> Path:
        """The folder that a pod of a service account finds its token in."""
        folder = self.folder / f"account-{name}"
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(self.token(namespace, name))
        (folder / "namespace").write_text(namespace)
        shutil.copy(self.authority.certificate, folder / "ca.crt")
        return folder

    def token(self, namespace: str, name: str, seconds: int = 3600) -> str:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        answer = self.call("POST", path, {**kind, "spec": {"expirationSeconds": seconds}})
        return str(answer["status"]["token"])

    def _pool(self) -> urllib3.PoolManager:
        return urllib3.PoolManager(
            cert_file=str(self.admin.certificate),
            key_file=str(self.admin.key),
            ca_certs=str(self.authority.certificate),
        )

    def _ready(self, name: str) -> bool:
        assert self._processes[name].poll() is None, self._log(name)
        try:
            with self._pool() as pool:
                return pool.request("GET", f"{self.server}/readyz", retries=False, timeout=5.0).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def _start_etcd(self) -> None:
        program = shutil.which("etcd")
        assert program, "no etcd: expected Debian's package etcd-server"
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._etcd_peer_port))
        self._start(
            "etcd", program, "--data-dir", str(self.folder / "etcd"), "--listen-client-urls", client,
            "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"default={peer}", "--unsafe-no-fsync",
        )  # fmt: skip

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _stop(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-3000:]


def node_object(
    name: str, cidrs: list[str], addresses: list[str], annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    spec = {"podCIDR": cidrs[0], "podCIDRs": cidrs} if cidrs else {}
    internal = [{"type": "InternalIP", "address": address} for address in addresses]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": dict(annotations or {})},
        "spec": spec,
        "status": {"addresses": [{"type": "Hostname", "address": name}, *internal]},
    }


def kubeconfig(server: str, user: Mapping[str, str], ca: Path | None) -> dict[str, Any]:
    """A kubeconfig's document. JSON is YAML."""
    cluster = {"server": server, **({"certificate-authority": str(ca)} if ca else {})}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": dict(user)}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens at."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
