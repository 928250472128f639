"""What is measured: nodes, pods attached to them by one set of executables, and a program that merely starts."""

from __future__ import annotations

import hashlib
import ipaddress
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE = Path(__file__).with_name("node.py")
SUBNET = "10.1.0.0/16"
NETWORK = "pods"
CNI_VERSION = "1.0.0"

# As containerd's service has it; a runtime hands its environment on.
RUNTIME_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

# Pods that take turns, so that a call does not find the traces of the one before.
PODS = 4

# Pods that stay attached: the bridge of a node at work has ports. Few, because every lease and every
# masqueraded pod makes the Go plugins slower.
RESIDENTS = 2

# On a real file system, as /var/lib/cni is on a node.
LEASES = "/var/tmp/cnikit-bench"

_GRACE_SECONDS = 60.0


class CallFailedError(Exception):
    """A program that is measured did not succeed: there is nothing to measure."""


class Contestant(Protocol):
    """Something whose calls are timed."""

    def call(self, verb: str, turn: int) -> float:
        """Make a call for the `turn`th time; the seconds it took."""


class Node:
    """A node (node.py). Use it as a context manager; at the end nothing of it is left."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(NODE), f"{LEASES}-{os.getpid()}-"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,  # Ctrl-C reaches us only, and we end it
        )  # fmt: skip
        self.data_dir = Path(self._answer())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:  # a call hangs
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            shutil.rmtree(self.data_dir)

    def make_pods(self, names: list[str]) -> None:
        self._ask("make_pods", names=names)

    def call(self, argv: list[str], env: dict[str, str], stdin: str = "") -> dict[str, Any]:
        """The answer of a program that has to succeed."""
        answer: dict[str, Any] = self._ask("call", argv=argv, env=env, stdin=stdin)
        if answer["status"] != 0:
            what = f"{env.get('CNI_COMMAND', '')} {' '.join(argv)}".strip()
            said = f"{answer['stdout']}{answer['stderr']}".strip() or "no word"
            raise CallFailedError(f"{what}: expected success, found status {answer['status']} and {said}")
        return answer

    def _ask(self, name: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise CallFailedError("the node's process has ended: what it said is above")
        return json.loads(line)


class Start:
    """A program that is started and ends."""

    def __init__(self, node: Node, argv: list[str], env: dict[str, str], stdin: str = "") -> None:
        self._node = node
        self._argv = argv
        self._env = RUNTIME_ENV | env
        self._stdin = stdin

    def call(self, verb: str, turn: int) -> float:
        assert verb == "START", (verb, turn)
        seconds: float = self._node.call(self._argv, self._env, self._stdin)["seconds"]
        return seconds


class Attachments:
    """bridge + host-local out of one folder, called for the pods of a node."""

    def __init__(self, node: Node, bin_dir: Path, leases: int = 0, **options: Any) -> None:
        self._node = node
        self._bin_dir = bin_dir
        ipam = {"type": "host-local", "dataDir": str(node.data_dir), "ranges": [[{"subnet": SUBNET}]]}
        self._conf = {
            "cniVersion": CNI_VERSION, "name": NETWORK, "type": "bridge", "bridge": "cni0", "isDefaultGateway": True,
            **options, "ipam": ipam,
        }  # fmt: skip
        self._results: dict[int, Any] = {}
        write_leases(node.data_dir / NETWORK, leases)
        node.make_pods([f"pod{turn}" for turn in range(PODS + RESIDENTS)])
        for turn in range(PODS, PODS + RESIDENTS):
            self._attach(turn)

    def call(self, verb: str, turn: int) -> float:
        number = turn % PODS
        return self._attach(number) if verb == "ADD" else self._detach(number)

    def _attach(self, number: int) -> float:
        answer = self._call("ADD", number, self._conf)
        self._results[number] = json.loads(answer["stdout"])
        return float(answer["seconds"])

    def _detach(self, number: int) -> float:
        # With ADD's result, as runtimes do from cniVersion 0.4.0 on.
        conf = {**self._conf, "prevResult": self._results.pop(number)}
        return float(self._call("DEL", number, conf)["seconds"])

    def _call(self, command: str, number: int, conf: dict[str, Any]) -> dict[str, Any]:
        container_id = container(number)
        env = {
            **RUNTIME_ENV,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container_id,
            "CNI_NETNS": f"/run/netns/pod{number}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self._bin_dir),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod{number};"
            f"K8S_POD_INFRA_CONTAINER_ID={container_id}",
        }
        return self._node.call([str(self._bin_dir / "bridge")], env, json.dumps(conf))


def container(number: int) -> str:
    """A container ID as runtimes make them: 64 hex digits."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def write_leases(folder: Path, count: int) -> None:
    """host-local's folder of a network with `count` leases, one after the other from the range's start."""
    folder.mkdir()
    addresses = list(itertools.islice(usable(SUBNET), count))
    for number, address in enumerate(addresses):
        (folder / address).write_text(f"{container(-1 - number)}\r\neth0")
    if addresses:
        (folder / "last_reserved_ip.0").write_text(addresses[-1])


def usable(subnet: str) -> Iterator[str]:
    """The addresses that host-local gives away, the gateway's left out."""
    hosts = ipaddress.ip_network(subnet).hosts()
    next(hosts)
    return map(str, hosts)
