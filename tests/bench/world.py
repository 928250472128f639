"""What is measured: nodes, pods attached to them by one set of executables, and a program that merely starts."""

from __future__ import annotations

import hashlib
import ipaddress
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NODE = [sys.executable, "-I", "-S", str(Path(__file__).with_name("node.py"))]
IN_PROCESS = [sys.executable, str(Path(__file__).with_name("in_process.py"))]
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

    def call(self, verb: str, turn: int) -> dict[str, float]:
        """Make a call for the `turn`th time; the seconds of whatever was timed, by its name."""

    def inside(self) -> list[tuple[str, float]]:
        """The same for what an agent tells of its part in the calls since the last time."""


class Node:
    """A node (node.py or in_process.py). Use it as a context manager; at the end nothing of it is left."""

    def __init__(self, program: list[str] = NODE) -> None:
        self.has_agent = False
        self._process = subprocess.Popen(
            [*program, f"{LEASES}-{os.getpid()}-"],
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
            shutil.rmtree(self.data_dir.parent)

    def make_pods(self, names: list[str]) -> None:
        self.ask("make_pods", names=names)

    def start_agent(self, command: Path) -> None:
        """Have an agent serve this node's calls, from `cnikit` at a path."""
        self.ask("start_agent", argv=[str(command), "agent"], env=RUNTIME_ENV)
        self.has_agent = True

    def call(self, argv: list[str], env: dict[str, str], stdin: str = "", *, settle: bool = True) -> dict[str, Any]:
        """The answer of a program that has to succeed."""
        answer: dict[str, Any] = self.ask("call", argv=argv, env=env, stdin=stdin, settle=settle)
        return succeeded(answer, argv, env)

    def call_at_once(self, calls: list[tuple[list[str], dict[str, str], str]]) -> dict[str, Any]:
        """The answers of programs that all have to succeed, and the time of all."""
        answer: dict[str, Any] = self.ask("call_at_once", calls=calls)
        for one, (argv, env, _) in zip(answer["answers"], calls, strict=True):
            succeeded(one, argv, env)
        return answer

    def said(self, name: str, *arguments: str) -> str:
        """What a program on PATH says here."""
        return str(self.call([program(name), *arguments], RUNTIME_ENV)["stdout"])

    def told(self, name: str, *arguments: str) -> Any:
        """The same for one that speaks JSON; nothing counts as an empty list."""
        return json.loads(self.said(name, *arguments) or "[]")

    def served(self, calls: int) -> list[dict[str, Any]]:
        """What the agent, if there is one, says of the calls since the last time: it has served them all, and well."""
        if not self.has_agent:
            return []
        said: list[str] = self.ask("agent_lines", calls=calls)
        served = [json.loads(line) for line in said if '"outcome":' in line and '"ok"' in line]
        if len(served) != calls:
            others = [line for line in said if '"ok"' not in line]
            words = " ".join(others[-3:]) or "no word about the others"
            raise CallFailedError(f"expected {calls} calls served by the agent, found {len(served)}; {words}")
        return served

    def ask(self, name: str, **arguments: Any) -> Any:
        """Have a function of node.py's `ANSWERS` called."""
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


def program(name: str) -> str:
    """The path of a program that the benchmark needs."""
    found = shutil.which(name, path=RUNTIME_ENV["PATH"])
    if found is None:
        raise CallFailedError(f"expected the program {name}, found none")
    return found


def succeeded(answer: dict[str, Any], argv: list[str], env: dict[str, str]) -> dict[str, Any]:
    if answer["status"] != 0:
        what = f"{env.get('CNI_COMMAND', '')} {' '.join(argv)}".strip()
        said = f"{answer['stdout']}{answer['stderr']}".strip() or "no word"
        raise CallFailedError(f"{what}: expected success, found status {answer['status']} and {said}")
    return answer


class Start:
    """A program that is started and ends."""

    def __init__(self, node: Node, argv: list[str], env: dict[str, str], stdin: str = "") -> None:
        self._node = node
        self._argv = argv
        self._env = RUNTIME_ENV | env
        self._stdin = stdin

    def call(self, verb: str, turn: int) -> dict[str, float]:
        assert verb == "START", (verb, turn)
        return {"START": self._node.call(self._argv, self._env, self._stdin)["seconds"]}

    def inside(self) -> list[tuple[str, float]]:
        """Nothing: VERSION is answered by the launcher itself, also beside an agent."""
        return []


class Attachments:
    """bridge + host-local out of one folder, called for the pods of a node; by its agent, if it has one.

    The leases are in the node's own folder, or in a `data_dir` that other nodes share: the container IDs of each of
    them begin with another number, `first_id`.
    """

    def __init__(
        self,
        node: Node,
        bin_dir: Path,
        pods: int = PODS,
        data_dir: Path | None = None,
        first_id: int = 0,
        **options: Any,
    ) -> None:
        self.node = node
        self._bin_dir = bin_dir
        self._first_id = first_id
        ipam = {"type": "host-local", "dataDir": str(data_dir or node.data_dir), "ranges": [[{"subnet": SUBNET}]]}
        self._conf = {
            "cniVersion": CNI_VERSION, "name": NETWORK, "type": "bridge", "bridge": "cni0", "isDefaultGateway": True,
            **options, "ipam": ipam,
        }  # fmt: skip
        self.pods = pods
        self.results: dict[int, Any] = {}
        self._calls = 0  # since `inside`
        node.make_pods([f"pod{number}" for number in range(pods + RESIDENTS)])
        for number in range(pods, pods + RESIDENTS):
            self.attach(number)

    def call(self, verb: str, turn: int) -> dict[str, float]:
        number = turn % self.pods
        return self.attach(number) if verb == "ADD" else self.detach(number)

    def inside(self) -> list[tuple[str, float]]:
        calls, self._calls = self._calls, 0
        found = []
        for line in self.node.served(calls):
            verb = line["command"]
            found.append((f"{verb} agent", line["seconds"]))
            found += [(f"{verb} agent: {step}", seconds) for step, seconds in line["steps"].items()]
        return found

    def attach(self, number: int, *, settle: bool = True) -> dict[str, float]:
        answer = self._answer("ADD", number, settle=settle)
        self.results[number] = json.loads(answer["stdout"])
        return _timed("ADD", answer)

    def detach(self, number: int, *, settle: bool = True) -> dict[str, float]:
        answer = self._answer("DEL", number, settle=settle)
        del self.results[number]
        return _timed("DEL", answer)

    def at_once(self, verb: str) -> dict[str, float]:
        """ADD or DEL of all pods at once: the time of all, and that in which 99 of 100 calls were answered."""
        answer = self.node.call_at_once([self._call(verb, number) for number in range(self.pods)])
        self._calls += self.pods
        for number, one in enumerate(answer["answers"]):
            if verb == "ADD":
                self.results[number] = json.loads(one["stdout"])
            else:
                del self.results[number]
        p99 = statistics.quantiles([one["seconds"] for one in answer["answers"]], n=100, method="inclusive")[-1]
        return {f"{verb} wall": answer["seconds"], f"{verb} p99": p99}

    def _answer(self, verb: str, number: int, *, settle: bool) -> dict[str, Any]:
        self._calls += 1
        return self.node.call(*self._call(verb, number), settle=settle)

    def _call(self, command: str, number: int) -> tuple[list[str], dict[str, str], str]:
        container_id = container(self._first_id + number)
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
        # DEL is given ADD's result, as runtimes do from cniVersion 0.4.0 on.
        previous = {"prevResult": self.results[number]} if command == "DEL" else {}
        return [str(self._bin_dir / "bridge")], env, json.dumps({**self._conf, **previous})


class AtOnce:
    """Attachments of which a call is one of every pod."""

    def __init__(self, attachments: Attachments) -> None:
        self._attachments = attachments

    def call(self, verb: str, turn: int) -> dict[str, float]:  # noqa: ARG002 - every turn is the same
        return self._attachments.at_once(verb)

    def inside(self) -> list[tuple[str, float]]:
        return self._attachments.inside()


class InTurn:
    """Attachments of several hosts, of which every call is another one's."""

    def __init__(self, hosts: Sequence[Attachments]) -> None:
        self._hosts = hosts

    def call(self, verb: str, turn: int) -> dict[str, float]:
        number, host = divmod(turn, len(self._hosts))
        return self._hosts[host].call(verb, number)

    def inside(self) -> list[tuple[str, float]]:
        return [found for host in self._hosts for found in host.inside()]


def _timed(verb: str, answer: dict[str, Any]) -> dict[str, float]:
    """What was timed in a call: all of it, and its part in the kernel where the node knows that (in_process.py)."""
    times: dict[str, float] = {verb: answer["seconds"]}
    if "netlink_seconds" in answer:
        times[f"{verb} netlink"] = answer["netlink_seconds"]
    return times


def container(number: int) -> str:
    """A container ID as runtimes make them: 64 hex digits."""
    return hashlib.sha256(str(number).encode()).hexdigest()


class Leases:
    """Lease files of host-local, one address after the other from the range's start.

    They are made once and then linked to where they are needed: the disk is slower for a while after many files were
    made or removed (node.py, `spread_below`).
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._addresses = list(itertools.islice(usable(SUBNET), most))
        folder.mkdir()
        for number, address in enumerate(self._addresses):
            (folder / address).write_text(f"{container(-1 - number)}\r\neth0")
        os.sync()  # or the disk is still at it when calls are measured

    def fill(self, folder: Path, count: int) -> None:
        """Make a network's folder with so many leases."""
        folder.mkdir()
        addresses = self._addresses[:count]
        for address in addresses:
            os.link(self._folder / address, folder / address)
        (folder / "last_reserved_ip.0").write_text(addresses[-1])


def usable(subnet: str) -> Iterator[str]:
    """The addresses that host-local gives away, the gateway's left out."""
    hosts = ipaddress.ip_network(subnet).hosts()
    next(hosts)
    return map(str, hosts)
