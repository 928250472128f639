"""A small world for one test: a node, its pods, an outside host, and independent eyes on all of them.

A node is a network and a mount namespace (holder.py). Executables are called inside it exactly as a CNI
runtime calls them; the kernel is looked at with `ip -j`, `bridge -j` and `nft -j`, never with cnikit's code.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from tests.e2e.agent_world import Agent

HOLDER = Path(__file__).with_name("holder.py")
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LEASES = "/var/lib/cni/networks"
RECORDS = "/run/cnikit"
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
GENEROUS = 60.0  # seconds: no call that works takes nearly as long, also on a busy machine
CLONE_NEWNET = 0x40000000
# The commands that a launcher may answer with no agent: VERSION by itself, and the text about itself without any.
NO_AGENT = ("VERSION", "", None)

_libc = ctypes.CDLL(None, use_errno=True)
_names = itertools.count(1)


class Way:
    """How a plugin is reached: what stands in the CNI bin directory, and what it needs in the node.

    This one needs nothing there: every call is a process of its own. `agent_world.py` has another.
    """

    def __init__(self, name: str, bin_dir: Path) -> None:
        self.name = name
        self.bin_dir = bin_dir

    def with_plugins_in(self, bin_dir: Path) -> Way:
        """The same with other executables."""
        return Way(self.name, bin_dir)

    def enter(self, node: Node) -> None:
        """Called once for each node before its first call."""

    def leave(self, node: Node) -> None:
        """Called once for each node after its last call."""


@dataclass(frozen=True)
class Answer:
    """What one call of an executable gave."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            raise AssertionError(f"not exactly one JSON document on stdout: {self}") from error

    @property
    def result(self) -> dict[str, Any]:
        """The result of a successful ADD (or VERSION)."""
        assert self.status == 0, self
        found: dict[str, Any] = self.document
        assert isinstance(found, dict), self
        return found

    @property
    def error(self) -> dict[str, Any]:
        """The error object of a refused call."""
        assert self.status == 1, self
        found: dict[str, Any] = self.document
        assert isinstance(found, dict), self
        assert type(found.get("code")) is int, self
        assert isinstance(found.get("msg"), str), self
        assert found["msg"], self
        assert "Traceback" not in self.stderr, self
        return found

    def silent(self) -> None:
        """A success of DEL, CHECK, GC or STATUS: nothing on stdout."""
        assert self.status == 0, self
        assert self.stdout == b"", self


@dataclass(frozen=True)
class Pod:
    """A network namespace that stands for a pod, and the container ID that goes with it."""

    node: Node
    name: str
    container_id: str

    @property
    def path(self) -> str:
        """CNI_NETNS, as seen inside the node."""
        return f"/run/netns/{self.name}"

    def ip(self, *argv: str) -> Any:
        return self.node.ip(*argv, pod=self)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        return self.node.socket_at(self.path, family, kind)

    def addresses(self, ifname: str = "eth0") -> list[str]:
        """`10.1.0.2/24`, without link-local ones."""
        found = self.ip("addr", "show", "dev", ifname)
        return [
            f"{item['local']}/{item['prefixlen']}"
            for item in found[0]["addr_info"]
            if not item["local"].startswith("fe80:")
        ]


class Node:
    """A node of a test. Use it as a context manager; at the end nothing of it is left."""

    def __init__(self, way: Way, *, pids: bool = False) -> None:
        argv = [sys.executable, "-I", "-S", str(HOLDER)] + (["--pids"] if pids else [])
        self._holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        first = self._holder.stdout.readline()
        assert first, "the node's holder ended at once: are the tests run as root?"
        self.pid = int(first)
        self.way = way
        self.has_pids = pids
        self._entered = False
        # For a way through an agent: the agent; calls for it that ended by themselves; and how many of them it may
        # decline, and may never hear of.
        self.agent: Agent | None = None
        self.answered = 0
        self.may_decline = 0
        self.may_pass_by = 0
        self.pods: list[Pod] = []
        self.run("ip", "link", "set", "lo", "up")

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        try:
            if self._entered:
                self.way.leave(self)
        finally:
            self._holder.stdin.close()
            self._holder.stdout.close()
            self._holder.wait(GENEROUS)

    # Running things inside

    def inside(self, *argv: str) -> list[str]:
        """The command line that runs `argv` inside the node; it execs, so a PID stays the program's own."""
        proc = f"/proc/{self.pid}/ns"
        enter = ["/usr/bin/nsenter", f"--mount={proc}/mnt", f"--net={proc}/net", f"--wd=/proc/{self.pid}/root/run"]
        return [*enter, *([f"--pid={proc}/pid"] if self.has_pids else []), "--", *argv]

    def spawn(self, *argv: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program inside; the caller waits for it."""
        environ = {"PATH": SEARCH_PATH} if env is None else dict(env)
        return subprocess.Popen(self.inside(*argv), env=environ, **options)

    def attempt(
        self, *argv: str, env: Mapping[str, str] | None = None, stdin: bytes = b"", timeout: float = GENEROUS
    ) -> Answer:
        """Run a program inside to its end, whatever that is."""
        pipe = subprocess.PIPE
        process = self.spawn(*argv, env=env, stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{argv} did not end within {timeout} s; stdout {out!r}, stderr {err!r}") from None
        return Answer(process.returncode, out, err.decode("utf-8", "replace"))

    def run(self, *argv: str, **options: Any) -> str:
        """Run a program inside that has to succeed; its stdout."""
        answer = self.attempt(*argv, **options)
        assert answer.status == 0, f"{' '.join(argv)}: {answer}"
        return answer.stdout.decode()

    # Calling plugins

    def prepare(self) -> None:
        """What the way needs in this node, once."""
        if not self._entered:
            self._entered = True
            self.way.enter(self)

    def executable(self, plugin: str, way: Way | None = None) -> str:
        return str((way or self.way).bin_dir / plugin)

    def environ(
        self,
        command: str,
        pod: Pod | None = None,
        ifname: str = "eth0",
        env: Mapping[str, str | None] | None = None,
        way: Way | None = None,
    ) -> dict[str, str]:
        """The environment a runtime gives; `env` overrides, None takes a variable away."""
        found: dict[str, str | None] = {
            "PATH": SEARCH_PATH,
            "CNI_COMMAND": command,
            "CNI_PATH": str((way or self.way).bin_dir),
        }
        if pod is not None:
            found |= {"CNI_CONTAINERID": pod.container_id, "CNI_NETNS": pod.path, "CNI_IFNAME": ifname}
        found |= env or {}
        return {key: value for key, value in found.items() if value is not None}

    def call(
        self,
        plugin: str,
        command: str,
        conf: Mapping[str, Any] | bytes,
        pod: Pod | None = None,
        *,
        ifname: str = "eth0",
        env: Mapping[str, str | None] | None = None,
        timeout: float = GENEROUS,
        way: Way | None = None,
    ) -> Answer:
        """One call of a plugin, as a runtime makes it. `way` calls another party's executable on this node."""
        self.prepare()
        stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
        environ = self.environ(command, pod, ifname, env, way)
        answer = self.attempt(self.executable(plugin, way), env=environ, stdin=stdin, timeout=timeout)
        self.answered += way is None and environ.get("CNI_COMMAND") not in NO_AGENT
        return answer

    def start(
        self,
        plugin: str,
        command: str,
        conf: Mapping[str, Any],
        pod: Pod | None = None,
        ifname: str = "eth0",
        env: Mapping[str, str | None] | None = None,
    ) -> Running:
        """The same without waiting: for calls side by side and for calls that get killed."""
        self.prepare()
        environ = self.environ(command, pod, ifname, env)
        return Running(self, self.executable(plugin), environ, json.dumps(conf).encode())

    # Pods

    def pod(self, name: str = "") -> Pod:
        """A new pod: an empty network namespace."""
        number = next(_names)
        pod = Pod(self, name or f"pod{number}", f"ctr-{number}-{os.getpid()}")
        self.run("ip", "netns", "add", pod.name)
        self.pods.append(pod)
        return pod

    def many_pods(self, count: int) -> list[Pod]:
        """The same for many, in one process."""
        numbers = [next(_names) for _ in range(count)]
        made = [Pod(self, f"pod{number}", f"ctr-{number}-{os.getpid()}") for number in numbers]
        self.run("ip", "-batch", "-", stdin="".join(f"netns add {pod.name}\n" for pod in made).encode())
        self.pods += made
        return made

    def kill_netns(self, pod: Pod) -> None:
        """The pod's namespace goes, as a runtime or a crash removes it."""
        self.run("ip", "netns", "del", pod.name)
        self.pods.remove(pod)

    def socket_at(self, netns: str, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        """A socket of the namespace at a path of the node."""
        path = netns.replace("/var/run/", "/run/")  # an absolute link would lead out of the node
        return socket_in(f"/proc/{self.pid}/root{path}", family, kind)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        """A socket of the node."""
        return socket_in(f"/proc/{self.pid}/ns/net", family, kind)

    # Looking

    def path(self, inside: str) -> Path:
        """A file of the node, as seen from the test."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def ip(self, *argv: str, pod: Pod | None = None) -> Any:
        """`ip -j -d ...` in the node, or in a pod."""
        target = ["-n", pod.name] if pod else []
        return json.loads(self.run("ip", *target, "-j", "-d", *argv) or "[]")

    def bridge(self, *argv: str) -> Any:
        return json.loads(self.run("bridge", "-j", "-d", *argv) or "[]")

    def links(self, pod: Pod | None = None) -> dict[str, dict[str, Any]]:
        return {link["ifname"]: link for link in self.ip("link", pod=pod) if link}

    def nft(self) -> list[dict[str, Any]]:
        """The whole ruleset of every family, without handles and counters, which change with no change of meaning."""
        found = json.loads(self.run("nft", "-j", "list", "ruleset"))["nftables"]
        return [_without(item, ("handle", "index", "packets", "bytes")) for item in found if "metainfo" not in item]

    def files(self, folder: str) -> dict[str, str]:
        """Path below `folder` and content of every file there; a symbolic link's content is its target."""
        root = self.path(folder)
        found = {}
        for path in sorted(root.rglob("*")) if root.is_dir() else []:
            name = str(path.relative_to(root))
            if path.is_symlink():
                found[name] = f"-> {path.readlink()}"
            elif path.is_file():
                found[name] = path.read_bytes().decode("utf-8", "backslashreplace")
        return found

    def leases(self, network: str, data_dir: str = LEASES) -> dict[str, str]:
        """The address files of a network, by address."""
        files = self.files(f"{data_dir}/{network}")
        return {name: text for name, text in files.items() if name != "lock" and not name.startswith("last_reserved")}

    def snapshot(self, data_dir: str = LEASES) -> dict[str, Any]:
        """All that attachments leave on the node, as plain data to compare.

        Left out is what is shared and stays by design: locks, `last_reserved_ip.N`, indexes below
        `.cnikit`; and what the kernel changes by itself: statistics, link-local and multicast entries,
        and states that follow the carrier.
        """
        return {
            "links": {name: _link(link) for name, link in self.links().items()},
            "addresses": self._addresses(),
            "routes": self._routes(),
            "neighbours": self.neighbours(),
            "nft": self.nft(),
            "leases": {
                name: text
                for name, text in self.files(data_dir).items()
                if not name.startswith(".cnikit/")
                and name.rpartition("/")[2].split(".")[0] not in {"lock", "last_reserved_ip"}
            },
            "records": {name: text for name, text in self.files(RECORDS).items() if not _is_network_lock(name)},
        }

    def neighbours(self) -> list[tuple[str, str, str]]:
        """Usable entries for global addresses: device, address, MAC."""
        return sorted(
            (item["dev"], item["dst"], item["lladdr"])
            for item in self.ip("neigh")
            if "lladdr" in item and not item["dst"].startswith(("fe80:", "ff"))
        )

    def _addresses(self) -> list[tuple[str, str, bool]]:
        found = []
        for link in self.ip("addr"):
            for item in link.get("addr_info", []):
                if item.get("local") and not item["local"].startswith("fe80:"):
                    found.append((link["ifname"], f"{item['local']}/{item['prefixlen']}", bool(item.get("nodad"))))
        return sorted(found)

    def _routes(self) -> list[str]:
        found = self.ip("-4", "route", "show", "table", "all") + self.ip("-6", "route", "show", "table", "all")
        kept = []
        for route in found:
            if route.get("table") == "local" or route["dst"].startswith(("fe80:", "ff00:", "multicast")):
                continue
            kept.append(json.dumps(_without(route, ("flags", "pref", "metric")), sort_keys=True))
        return sorted(kept)

    def outside(self) -> Outside:
        """A host beyond the node, which knows no route to the pods."""
        return Outside(self)


class Running:
    """A call under way."""

    def __init__(self, node: Node, executable: str, environ: Mapping[str, str], stdin: bytes) -> None:
        pipe = subprocess.PIPE
        self._node = node
        self.process = node.spawn(executable, env=environ, stdin=pipe, stdout=pipe, stderr=pipe)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(stdin)
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it ended before it read everything, and its answer will tell why
        self.process.stdin = None

    def wait(self, timeout: float = GENEROUS) -> Answer:
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"did not end within {timeout} s: {out!r}, {err!r}") from None
        self._node.answered += self.process.returncode >= 0
        return Answer(self.process.returncode, out, err.decode("utf-8", "replace"))


class Outside:
    """A network namespace behind an uplink of the node. It reports the source address of what reaches it."""

    NODE4, HOST4 = "192.0.2.1", "192.0.2.2"
    NODE6, HOST6 = "2001:db8:ffff::1", "2001:db8:ffff::2"

    def __init__(self, node: Node) -> None:
        self.node = node
        self.pod = node.pod("outside")
        node.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", self.pod.name)
        for args in (
            ["addr", "add", f"{self.NODE4}/24", "dev", "uplink"],
            ["addr", "add", f"{self.NODE6}/64", "dev", "uplink", "nodad"],
            ["link", "set", "uplink", "up"],
            ["-n", self.pod.name, "addr", "add", f"{self.HOST4}/24", "dev", "eth0"],
            ["-n", self.pod.name, "addr", "add", f"{self.HOST6}/64", "dev", "eth0", "nodad"],
            ["-n", self.pod.name, "link", "set", "lo", "up"],
            ["-n", self.pod.name, "link", "set", "eth0", "up"],
        ):
            node.run("ip", *args)
        # What arrives is reported whatever its source is, although no route leads back.
        for key in ("all", "eth0"):
            node.run("ip", "netns", "exec", self.pod.name, "sysctl", "-qw", f"net.ipv4.conf.{key}.rp_filter=0")

    def address(self, family: int) -> str:
        return self.HOST4 if family == socket.AF_INET else self.HOST6

    def node_address(self, family: int) -> str:
        return self.NODE4 if family == socket.AF_INET else self.NODE6

    def source_of(self, sender: socket.socket) -> str:
        """The address that a datagram of `sender` has when it arrives outside."""
        with self.pod.socket(sender.family) as listener:
            listener.bind(("", 0))
            return datagram(sender, listener, self.address(sender.family))


def datagram(sender: socket.socket, listener: socket.socket, address: str, timeout: float = 10.0) -> str:
    """Send until one arrives (a neighbour may still be unknown at the first); the source address that was seen."""
    listener.settimeout(0.2)
    deadline = time.monotonic() + timeout
    while True:
        try:
            sender.sendto(b"hello", (address, listener.getsockname()[1]))
            source: str = listener.recvfrom(64)[1][0]
        except (TimeoutError, OSError) as error:
            assert time.monotonic() < deadline, f"no datagram reached {address} within {timeout} s: {error}"
        else:
            return source


def socket_in(netns: str, family: int, kind: int) -> socket.socket:
    """A socket of another network namespace: made by a thread that enters it, usable from every thread."""
    made: list[socket.socket | Exception] = []

    def make() -> None:
        try:
            fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"setns {netns}: {os.strerror(ctypes.get_errno())}")
                made.append(socket.socket(family, kind))
            finally:
                os.close(fd)
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], Exception):
        raise made[0]
    return made[0]


def cgroup() -> str:
    """The cgroup below which a test's containers go; cgroups are the machine's, whatever namespaces a node has."""
    return f"/cnikit-test-{os.getpid()}"


@contextlib.contextmanager
def cgroups_removed() -> Iterator[None]:
    """Remove, at the end, what `cgroup` names and what runtimes make beside it, in every hierarchy."""
    names = (cgroup()[1:], "libpod_parent", "default")
    hierarchies = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]
    ours = [path for folder in hierarchies for name in names if not (path := folder / name).exists()]
    yield

    def removed() -> bool:
        try:
            for root in filter(Path.exists, ours):
                for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
                    folder.rmdir()
                root.rmdir()
        except OSError:  # busy until the kernel has buried the last process
            return False
        return True

    wait_until(removed, f"the cgroups {names} are empty")


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """The condition's value as soon as it is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        pause.wait(0.01)


def wait_same(look: Callable[[], dict[str, Any]], expected: dict[str, Any], what: str, seconds: float = 10.0) -> None:
    """Wait until `look()` equals `expected`; the failure shows what differs."""
    last: list[dict[str, Any]] = []

    def same() -> bool:
        last[:] = [look()]
        return last[0] == expected

    try:
        wait_until(same, what, seconds)
    except AssertionError:
        raise AssertionError(f"{what}:\n{difference(expected, last[0])}") from None


def difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Which parts of two snapshots differ, entry by entry."""
    lines = []
    for key in sorted({*expected, *found}):
        before, after = (_entries(side.get(key, {})) for side in (expected, found))
        lines += [f"  {key}: gone {entry}" for entry in before if entry not in after]
        lines += [f"  {key}: new  {entry}" for entry in after if entry not in before]
    return "\n".join(lines)


def network(name: str = "net", version: str = "1.1.0", **options: Any) -> dict[str, Any]:
    """A bridge + host-local configuration of one IPv4 range; `options` override or add."""
    return {
        "cniVersion": version,
        "name": name,
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/16"}]]},
        **options,
    }


DUAL_STACK = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd00:1::/64"}]]}


def without_length(cidr: str) -> str:
    return cidr.partition("/")[0]


def _entries(side: Any) -> list[str]:
    if isinstance(side, dict):
        return [f"{key}: {value}" for key, value in side.items()]
    return [str(item) for item in side]


def _is_network_lock(name: str) -> bool:
    """`networks/<network>/lock`: one per network, stays."""
    parts = name.split("/")
    return parts[0] == "networks" and parts[2:] == ["lock"]


def _link(link: Mapping[str, Any]) -> dict[str, Any]:
    """What was configured of a link, without statistics and without what follows the carrier."""
    info = link.get("linkinfo", {})
    slave = info.get("info_slave_data", {})
    return {
        "kind": info.get("info_kind", ""),
        "mtu": link["mtu"],
        "mac": link.get("address", ""),
        "up": "UP" in link["flags"],
        "promisc": link.get("promiscuity", 0),
        "master": link.get("master", ""),
        "alias": link.get("ifalias", ""),
        "hairpin": slave.get("hairpin", False),
        "isolated": slave.get("isolated", False),
    }


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys}
    if isinstance(value, list):
        return [_without(item, keys) for item in value]
    return value
