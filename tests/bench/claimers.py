"""A cluster of thousands of nodes that start at once, simulated on a real etcd: every node has its own subnet in the end.

    python -m tests.bench.claimers 5000

Each claimer is the agent's own code (agent/membership/etcd_claim.py) with a connection of its own; many of them share
a process, because a process for each would measure Python's start. An observer, in a process of its own, is the
agent's whole source: it claims, reads and watches, and says what it sees and how much memory it takes.

What one claim costs is thus measured with thousands. What every node's watch costs etcd is measured with some
hundred watchers, by the change: with N nodes starting at once it is N * N changes told, and no 2 cores tell
25 million of them, so that figure is computed from the measured one and called so.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.membership import Network
from agent.membership.etcd import make, read_settings
from agent.membership.etcd_claim import Claimer
from agent.membership.etcd_client import Client, after, put
from agent.membership.etcd_faults import EtcdError
from cni import addr
from cni.config import Reader
from cni.jsonio import encode
from plugins.peers import Node

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import IO

    from agent.membership.etcd import Settings

ROOT = Path(__file__).parents[2]
PREFIX = "/cnikit/bench"
NETWORK = "10.0.0.0/11"  # 8,190 subnets: 5,000 nodes fill it to 61 %
PROCESSES = 2
AT_ONCE = 64  # claimers in each process
WATCHERS = 100
CHANGES = 50
OBSERVER = "observer"
_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE = 0.1
_PATIENCE = 600.0


class Sample(NamedTuple):
    """One moment: seconds since the start, nodes that the observer knows, CPU seconds of etcd, its memory in KiB."""

    at: float
    seen: int
    etcd_cpu: float
    etcd_kib: int


def run(nodes: int) -> dict[str, Any]:
    """Have so many nodes claim at once; what came of it, and when (times in seconds, memory in KiB)."""
    with tempfile.TemporaryDirectory(prefix="cnikit-claimers-") as folder:
        etcd, url = _etcd(Path(folder))
        observer = _Child("observe", url, str(nodes))
        workers = [_Child("claim", url, str(first), str(nodes), str(PROCESSES)) for first in range(PROCESSES)]
        try:
            for child in (observer, *workers):
                child.ready()
            start = time.monotonic()
            before = _cpu(etcd.pid)
            for child in workers:
                child.go()
            samples = _samples(etcd.pid, observer, start, nodes + 1)
            cpu = _cpu(etcd.pid) - before
            found = [child.result() for child in workers]
            seen = observer.finish()
            return {
                **_joined(found, start, nodes),
                **_observed(seen, start, nodes),
                "samples": [sample._asdict() for sample in samples],
                "etcd_cpu_s": cpu,
                "etcd_kib": _kib(etcd.pid),
                "watching": _watching(etcd.pid, url, nodes),
            }
        finally:
            for child in (observer, *workers):
                child.end()
            etcd.kill()
            etcd.wait()


def _joined(found: list[dict[str, Any]], start: float, nodes: int) -> dict[str, Any]:
    """The claims of all processes, which must be all there are, and none twice."""
    claims = sorted((at - start, took, subnet) for part in found for at, took, subnet in part["claims"])
    took = sorted(one[1] for one in claims)
    distinct = len({one[2] for one in claims})
    if distinct != nodes:
        raise AssertionError(f"{nodes} nodes: expected as many subnets, found {len(claims)} claims of {distinct}")
    return {
        "nodes": nodes,
        "at_once": PROCESSES * AT_ONCE,
        "claimed_at": [round(one[0], 4) for one in claims],
        "all_claimed_s": claims[-1][0],
        "claim_median_s": took[len(took) // 2],
        "claim_p99_s": took[len(took) * 99 // 100],
        "conflicts": sum(part["conflicts"] for part in found),
        "requests": sum(part["requests"] for part in found),
        "claimers_cpu_s": sum(part["cpu"] for part in found),
    }


def _observed(seen: dict[str, Any], start: float, nodes: int) -> dict[str, Any]:
    """What the observer says: it must know every node, each with a subnet that no other has."""
    if seen["nodes"] != nodes + 1 or seen["subnets"] != nodes + 1:
        raise AssertionError(f"observer: expected {nodes + 1} nodes and subnets, found {seen}")
    return {
        "all_seen_s": seen["at"] - start,
        "observer_cpu_s": seen["cpu"],
        "observer_kib": seen["kib"],
        "observer_kib_before": seen["kib_before"],
        "read_all_s": seen["read"],
        "read_all_kib": seen["read_kib"],
    }


def _samples(etcd: int, observer: _Child, start: float, all_of_them: int) -> list[Sample]:
    """How it goes, until the observer knows all."""
    samples: list[Sample] = []
    tick = threading.Event()
    while time.monotonic() < start + _PATIENCE:
        at = time.monotonic() - start
        samples.append(Sample(round(at, 3), observer.asked(), _cpu(etcd), _kib(etcd)))
        if samples[-1].seen >= all_of_them:
            return samples
        tick.wait(_SAMPLE)
    raise AssertionError(f"the observer knows {samples[-1].seen} of {all_of_them} nodes after {_PATIENCE} s")


def _watching(etcd: int, url: str, nodes: int) -> dict[str, float]:
    """What watches cost etcd: CPU of each change sent to one of them."""
    settings = _settings(url)
    keys = settings.keys
    told = threading.Semaphore(0)
    clients = [Client(settings.endpoints, settings.credentials) for _ in range(WATCHERS)]

    def watch(client: Client) -> None:
        try:
            for answer in client.watch([(keys.nodes, after(keys.nodes))], 0):
                for _ in answer.events if not answer.created else (None,):
                    told.release()
        except EtcdError:
            pass  # the end

    threads = [threading.Thread(target=watch, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    _take(told, WATCHERS)
    cpu, start = _cpu(etcd), time.monotonic()
    writer = Client(settings.endpoints, settings.credentials)
    for number in range(CHANGES):
        writer.transact([], [put(keys.node("node0"), encode(_node(number, "node0").described()))])
    _take(told, WATCHERS * CHANGES)
    seconds, cpu = time.monotonic() - start, _cpu(etcd) - cpu
    for client in (*clients, writer):
        client.interrupt()
    for thread in threads:
        thread.join()
    each = cpu / (WATCHERS * CHANGES)
    return {
        "watchers": WATCHERS, "changes": CHANGES, "seconds": seconds, "etcd_cpu_each_s": each,
        "computed_etcd_cpu_s": each * nodes * nodes,
    }  # fmt: skip


def _take(semaphore: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        if not semaphore.acquire(timeout=60):
            raise AssertionError("a watcher was not told within 60 s")


class _Child:
    """A process of this module; it says a line when it is ready, begins when it is told to, and says its result."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.bench.claimers", *arguments]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, cwd=ROOT, text=True
        )

    def ready(self) -> None:
        self._line()

    def go(self) -> None:
        self._say()

    def asked(self) -> int:
        self._say()
        return int(self._line())

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = self._line()
        return found

    def finish(self) -> dict[str, Any]:
        self._say("end")
        return self.result()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _say(self, text: str = "") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def _claim(url: str, first: int, nodes: int, step: int) -> None:
    """A process of claimers: every `step`th node from `first` on."""
    settings = _settings(url)
    numbers: Iterator[int] = iter(range(first, nodes, step))
    claims: list[tuple[float, float, str]] = []
    counts = {"conflicts": 0, "requests": 0}
    guard = threading.Lock()

    def work() -> None:
        while True:
            with guard:
                number = next(numbers, None)
            if number is None:
                return
            node = _node(number)
            client = Client(settings.endpoints, settings.credentials)
            claimer = Claimer(client, settings, threading.Event())
            begin = time.monotonic()
            claim = claimer.claim(node)
            end = time.monotonic()
            client.close()
            with guard:
                claims.append((end, end - begin, addr.unpack_cidr(*claim.node.subnets[0])))
                counts["conflicts"] += claimer.conflicts
                counts["requests"] += client.requests

    _tell("ready")
    sys.stdin.readline()
    threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _tell({"claims": claims, **counts, "cpu": _own_cpu()})


class _Counter:
    """What the observer's source tells to."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.at = 0.0
        self.known = threading.Event()

    def replace(self, nodes: list[Node], unread: Collection[str] = ()) -> None:  # noqa: ARG002
        self.nodes = {node.name: node for node in nodes}
        self.at = time.monotonic()
        self.known.set()

    def change(self, put: list[Node], gone: list[str]) -> None:
        self.nodes.update((node.name, node) for node in put)
        for name in gone:
            self.nodes.pop(name, None)
        self.at = time.monotonic()

    def trouble(self, text: str) -> None:
        if text:
            print(text, file=sys.stderr)


def _observe(url: str, nodes: int) -> None:
    """The agent's source, with what an agent has imported; then another one, which finds all nodes there."""
    import agent.main
    from cli.registry import PLUGINS

    agent.main.use_one_arena()
    agent.main.preload(PLUGINS)
    before = _kib(os.getpid())
    counter, source = _Counter(), make(_conf(url), _network())
    source.start(_node(nodes, OBSERVER), counter)
    if not counter.known.wait(60):
        raise SystemExit("the observer has no subnet after 60 s")
    _tell("ready")
    while sys.stdin.readline() == "\n":
        _tell(len(counter.nodes))
    cpu, kib = _own_cpu(), _kib(os.getpid())
    known = len(counter.nodes), len({node.subnets for node in counter.nodes.values() if node.subnets})
    at = counter.at
    source.close()
    counter.nodes.clear()
    again, source = _Counter(), make(_conf(url), _network())
    begin = time.monotonic()
    source.start(_node(nodes, OBSERVER), again)
    again.known.wait(60)
    read = time.monotonic() - begin
    _tell({"nodes": known[0], "subnets": known[1], "at": at, "cpu": cpu, "kib": kib, "kib_before": before, "read": read,
           "read_kib": _kib(os.getpid())})  # fmt: skip
    source.close()


def _conf(url: str) -> Reader:
    return Reader({"endpoints": [url], "prefix": PREFIX, "ttl": 3600}, "membership")


def _network() -> Network:
    network = addr.pack_cidr(NETWORK)
    assert network is not None
    return Network("bench", (network,))


def _settings(url: str) -> Settings:
    return read_settings(_conf(url), _network())


def _node(number: int, name: str = "") -> Node:
    return Node(name or f"node{number}", {4: (0xC612_0000 + number).to_bytes(4, "big")}, ())


def _tell(value: Any) -> None:
    print(json.dumps(value), flush=True)


def _etcd(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A real etcd, as Debian has it."""
    program = shutil.which("etcd")
    if program is None:
        raise SystemExit("no program etcd: install Debian's etcd-server (tests/setup/install-debian-packages test)")
    url, peer = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
    command = [
        program, "--data-dir", str(folder / "data"), "--listen-client-urls", url, "--advertise-client-urls", url,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
    ]  # fmt: skip
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:  # noqa: S310 - http, as written above
                if b"true" in answer.read():
                    return process, url
        except OSError:
            pass
        if time.monotonic() > deadline:
            process.send_signal(signal.SIGKILL)
            raise SystemExit("etcd does not answer: " + (folder / "log").read_text()[-1000:])
        threading.Event().wait(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _cpu(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _kib(pid: int) -> int:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def main(arguments: list[str], out: IO[str]) -> None:
    if arguments[0] == "claim":
        _claim(arguments[1], *(int(one) for one in arguments[2:]))
    elif arguments[0] == "observe":
        _observe(arguments[1], int(arguments[2]))
    else:
        found = run(int(arguments[0]))
        found["claimed_at"], found["samples"] = (
            len(found["claimed_at"]),
            found["samples"][:: len(found["samples"]) // 20 or 1],
        )
        json.dump(found, out, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:], sys.stdout)
