"""A real etcd for tests, with or without certificates, and who listens to a source. etcdctl is the independent oracle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from threading import Condition
from typing import TYPE_CHECKING, Any

import pytest

from agent.membership import Network
from agent.membership.etcd import make
from cni import addr
from cni.config import Reader
from plugins.peers import Node
from tests.e2e.world import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from agent.membership.etcd import EtcdSource
    from plugins.peers import Subnet

PREFIX = "/cnikit/pods"
NETWORK: Subnet = (bytes([10, 244, 0, 0]), 16)
IPV6_NETWORK: Subnet = (bytes.fromhex("fd000244") + bytes(12), 48)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Etcd:
    """One etcd on loopback: killed, started again on the same data and port, set back to nothing."""

    def __init__(self, folder: Path, tls: Pki | None = None, *, asks: bool = True) -> None:
        self.folder = folder
        self.tls = tls
        self._asks = asks
        self._ports = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.user = ""
        folder.mkdir(exist_ok=True)

    @property
    def port(self) -> int:
        return self._ports[0]

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._ports[0]}"

    def start(self) -> Etcd:
        self.launch()
        wait_until(lambda: self.ctl("endpoint", "health", check=False) == 0, "etcd answers")
        return self

    def launch(self) -> None:
        """Start it, and do not wait."""
        if shutil.which("etcd") is None:
            pytest.fail("no program etcd: expected Debian's etcd-server (tests/setup/install-debian-packages test)")
        peer = f"http://127.0.0.1:{self._ports[1]}"
        command = [
            "etcd", "--data-dir", str(self.folder / "data"), "--listen-client-urls", self.url,
            "--advertise-client-urls", self.url, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"default={peer}", "--logger", "zap",
        ]  # fmt: skip
        if self.tls:
            command += ["--cert-file", self.tls.path("server.crt"), "--key-file", self.tls.path("server.key")]
            if self._asks:
                command += ["--client-cert-auth", "--trusted-ca-file", self.tls.path("ca.crt")]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it without a word, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """Lose all data, as a cluster set up anew has."""
        self.kill()
        shutil.rmtree(self.folder / "data")

    def elsewhere(self) -> Etcd:
        """The same data served on another port, where nobody looks for it. It must be killed before."""
        found = Etcd(self.folder)
        return found.start()

    def told(self, *arguments: str) -> str:
        """What etcdctl prints."""
        return self._ctl(*arguments).stdout

    def ctl(self, *arguments: str, check: bool = True, stdin: str = "") -> int:
        return self._ctl(*arguments, check=check, stdin=stdin).returncode

    def content(self, prefix: str = PREFIX) -> dict[str, str]:
        """Every key under a prefix with its value, as etcdctl tells."""
        found = json.loads(self._ctl("get", "--prefix", prefix, "-w", "json").stdout)
        return {_text(kv["key"]): _text(kv.get("value", "")) for kv in found.get("kvs", ())}

    def revision(self) -> int:
        return int(json.loads(self._ctl("get", "none", "-w", "json").stdout)["header"]["revision"])

    def leases(self) -> list[str]:
        return [format(one["id"], "x") for one in json.loads(self._ctl("lease", "list", "-w", "json").stdout)["leases"]]

    def _ctl(self, *arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = ["etcdctl", "--endpoints", self.url, "--command-timeout", "5s"]
        if self.tls:
            command += ["--cacert", self.tls.path("ca.crt")]
            command += ["--cert", self.tls.path("client.crt"), "--key", self.tls.path("client.key")]
        if self.user:
            command += ["--user", self.user]
        return subprocess.run(
            [*command, *arguments], env={**os.environ, "ETCDCTL_API": "3"}, check=check, capture_output=True,
            text=True, timeout=30, input=stdin,
        )  # fmt: skip


class Pki:
    """An authority and certificates of it, by openssl: `NAME.crt` and `NAME.key` in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=test authority",
                      "-days", "2", "-keyout", "ca.key", "-out", "ca.crt")  # fmt: skip
        self.issue("server", "127.0.0.1")
        self.issue("client")

    def path(self, name: str) -> str:
        return str(self._folder / name)

    def issue(self, name: str, address: str = "", *, days: int = 2) -> None:
        """A certificate that anybody may show; `days` of -1 make it an expired one."""
        self._openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                      "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=IP:{address}\n" if address else "basicConstraints=CA:FALSE\n")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                      "-days", str(days), "-extfile", str(extensions), "-out", f"{name}.crt")  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True, timeout=30)


class Ear:
    """A listener that remembers: `nodes` are the membership as it was told last, `troubles` all that was told."""

    def __init__(self) -> None:
        self._news = Condition()
        self.nodes: dict[str, Node] = {}
        self.replaced = 0
        self.unread: set[str] = set()
        self.troubles: list[str] = []

    def replace(self, nodes: list[Node], unread: Collection[str] = ()) -> None:
        with self._news:
            self.nodes = {node.name: node for node in nodes}
            self.unread = set(unread)
            self.replaced += 1
            self._news.notify_all()

    def change(self, put: list[Node], gone: list[str]) -> None:
        with self._news:
            self.nodes.update((node.name, node) for node in put)
            for name in gone:
                self.nodes.pop(name, None)  # it may have been unread
            self._news.notify_all()

    def trouble(self, text: str) -> None:
        with self._news:
            self.troubles.append(text)
            self._news.notify_all()

    @property
    def trouble_now(self) -> str:
        return self.troubles[-1] if self.troubles else ""

    def wait(self, condition: Callable[[Ear], Any], what: str, seconds: float = 30.0) -> None:
        with self._news:
            good = self._news.wait_for(lambda: condition(self), seconds)
            assert good, f"waited {seconds} s in vain: {what}; nodes {self.described()}, troubles {self.troubles}"

    def described(self) -> list[dict[str, Any]]:
        return [node.described() for node in self.nodes.values()]


class Member:
    """One node's source, started, with its ear."""

    def __init__(self, number: int, endpoints: list[str], had: str = "", name: str = "", **options: Any) -> None:
        self.number = number
        network = Network(options.pop("network", "pods"), options.pop("networks", (NETWORK,)))
        conf = {"source": "etcd", "endpoints": endpoints, "prefix": PREFIX, "ttl": 5, **options}
        self.source: EtcdSource = make(Reader(conf, "membership"), network)
        self.name = name or f"node{number}"
        self.ear = Ear()
        self._before = tuple(subnet(text) for text in had.split())

    def at(self, address: str) -> Node:
        packed = addr.pack(address)
        assert packed is not None
        return Node(self.name, {len(packed): packed}, self._before)

    def start(self, address: str = "") -> Member:
        self.source.start(self.at(address or f"192.0.2.{self.number}"), self.ear)
        return self

    def ready(self) -> Member:
        """Wait until it knows who is there, and that it is well."""
        self.ear.wait(lambda ear: self.name in ear.nodes and not ear.trouble_now, f"{self.name} is ready")
        return self

    @property
    def subnets(self) -> list[str]:
        return [addr.unpack_cidr(*one) for one in self.ear.nodes[self.name].subnets]


def subnet(text: str) -> Subnet:
    found = addr.pack_cidr(text)
    assert found is not None
    return found


def _text(encoded: str) -> str:
    from base64 import b64decode

    return b64decode(encoded).decode("utf-8", "replace")


def put_node(etcd: Etcd, name: str, address: str, subnet: str) -> None:
    """As another node's agent writes it."""
    etcd.ctl("put", f"{PREFIX}/nodes/{name}", json.dumps({"name": name, "publicIP": address, "subnets": [subnet]}))
