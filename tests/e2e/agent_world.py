"""The second way to the plugins: a resident agent in the node, which the launchers in the CNI bin directory find.

`AgentWay` runs any test of this folder through it, and says at the end when calls were not served by it. `Agent` is
one agent's process, for the tests that disturb it, and `Client` speaks its protocol (docs/agent-protocol.md) as a
launcher would, or as one never would.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cni import __version__
from cni.start import Stamp
from tests.e2e.world import GENEROUS, SEARCH_PATH, Way, network, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.e2e.world import Node, Pod, Running

SOCKET = "/run/cnikit/agent.sock"
MARK = "test-mark-"

_marks = itertools.count(1)


class Agent:
    """An agent that was started in a node. Its stderr, the log, is kept."""

    def __init__(
        self,
        node: Node,
        *options: str,
        program: Path | None = None,
        env: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        path: str = SOCKET,
        **spawning: Any,
    ) -> None:
        self.node = node
        self.path = path
        self.was_killed = False
        self._is_stopped = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `forget`
        argv = (*prefix, str(program or command(node)), "agent", *options)
        environ = {"PATH": SEARCH_PATH, **({} if path == SOCKET else {"CNIKIT_SOCKET": path}), **(env or {})}
        self.process = node.spawn(*argv, env=environ, stdin=-3, stdout=self._log, stderr=self._log, **spawning)

    # Its life

    def ready(self) -> Agent:
        """Wait until it accepts."""
        wait_until(self._listens, "the agent listens", GENEROUS)
        return self

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)
        self._is_stopped = number == signal.SIGSTOP

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """kill -9."""
        if self.process.poll() is None:
            self.was_killed = True
            self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout: float = GENEROUS) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"the agent did not end within {timeout} s; its log: {self.log()[-3000:]}") from None

    def forget(self) -> None:
        """Let go of it and its log."""
        self.kill()
        self._log.close()

    # Looking at it

    @property
    def pid(self) -> int:
        """The agent itself: where the node has its own PID namespace, nsenter stays as its parent."""
        pid = self.process.pid
        if not self.node.has_pids:
            return pid
        children = wait_until(
            lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text().split(), "nsenter has a child"
        )
        return int(children[0])

    def log(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "replace")

    def requests(self, *outcomes: str) -> list[dict[str, Any]]:
        """The log's lines about all calls that have ended, those with one of the outcomes if any is given."""
        if self.process.poll() is None and not self._is_stopped:
            # Lines come a little later, in the order in which calls ended: wait for that of a call of our own.
            mark = f"{MARK}{next(_marks)}"
            with Client(self) as client:
                answer = client.call(Request(self.node, "loopback", "VERSION", {}, env={"CNI_CONTAINERID": mark}))
                assert answer.kind == "A", answer
            wait_until(lambda: f'"{mark}"' in self.log(), "the agent logs a call")
        return self.logged(*outcomes)

    def logged(self, *outcomes: str) -> list[dict[str, Any]]:
        """Those that are there by now."""
        lines = (line for line in self.log().splitlines() if line.startswith("{") and line.endswith("}"))
        found = [one for one in map(json.loads, lines) if "outcome" in one and not one["container"].startswith(MARK)]
        return [one for one in found if not outcomes or one["outcome"] in outcomes]

    def status(self, key: str) -> int:
        """A figure of /proc/PID/status: `VmRSS` (in KiB), `Threads`."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return int(value.split()[0])
        raise AssertionError(f"no {key} in /proc/{self.pid}/status")

    def descriptors(self) -> list[str]:
        """What its open descriptors are of."""
        found = []
        for path in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(path))
        return sorted(found)

    def connect(self) -> socket.socket:
        """A connection to its socket."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(GENEROUS)
        try:
            client.connect(str(self.node.path(self.path)))
        except OSError:
            client.close()
            raise
        return client

    def _listens(self) -> bool:
        assert self.process.poll() is None, f"the agent ended with {self.process.returncode}: {self.log()}"
        return f"listening at {self.path}" in self.log()

    def looks_well(self) -> None:
        """It has said nothing that a maintainer would have to look at."""
        assert "Traceback" not in self.log(), self.log()
        assert "please report" not in self.log(), self.log()


class AgentWay(Way):
    """Through launcher and agent."""

    def __init__(self, name: str, bin_dir: Path, program: Path) -> None:
        super().__init__(name, bin_dir)
        self.program = program

    def with_plugins_in(self, bin_dir: Path) -> AgentWay:
        return AgentWay(self.name, bin_dir, self.program)

    def enter(self, node: Node) -> None:
        node.agent = Agent(node, program=self.program).ready()

    def leave(self, node: Node) -> None:
        """The agent ends well, and what was called was served by it."""
        agent = node.agent
        if agent is None:
            return  # it did not start, and `enter` has failed
        try:
            status = agent.stop()
            if not agent.was_killed:
                assert status == 0, f"the agent ended with {status}: {agent.log()[-3000:]}"
                assert not node.path(SOCKET).exists(), "the agent left its socket behind"
            agent.looks_well()
            declined = agent.requests("declined")
            assert len(declined) <= node.may_decline, declined
            heard = len(agent.requests())
            assert heard >= node.answered - node.may_pass_by, f"{node.answered} calls, the agent heard of {heard}"
        finally:
            agent.forget()


def start_again(node: Node, **options: Any) -> Agent:
    """Another agent in the place of one that was killed."""
    if node.agent is not None:
        node.agent.looks_well()
        node.agent.forget()
    node.agent = Agent(node, **options).ready()
    return node.agent


class Frame(NamedTuple):
    """What the agent sends: R (READY), D (DECLINE) or A (ANSWER)."""

    kind: str
    code: int
    first: bytes
    second: bytes


class Client:
    """One connection to the agent. Use it as a context manager."""

    def __init__(self, agent: Agent) -> None:
        self.socket = agent.connect()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Bytes, with descriptors that go with the first of them."""
        if fds:
            sent = socket.send_fds(self.socket, [data], fds)
            data = data[sent:]
        if data:
            self.socket.sendall(data)

    def receive(self) -> Frame | None:
        """The next frame; None at the connection's end."""
        head = self._exactly(12)
        if head is None:
            return None
        kind, code, zero, first, second = struct.unpack("=cBHII", head)
        assert zero == 0
        texts = self._exactly(first + second)
        assert texts is not None, "the agent sent half a frame"
        return Frame(kind.decode(), code, texts[:first], texts[first:])

    def call(self, request: Request) -> Frame:
        """A whole call, as a launcher makes it; the answer."""
        with request.descriptors() as fds:
            self.send(request.data, fds)
        frame = self.receive()
        assert frame is not None
        if frame.kind == "R":
            self.send(b"G")
            frame = self.receive()
            assert frame is not None
            if request.command == "ADD" and frame.code == 0:
                self.send(b"K")
        return frame

    def ended(self) -> bool:
        """Wait for the connection's end."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            chunk = self.socket.recv(size - len(data))
            if not chunk:
                assert not data, f"the connection ended in the middle of a frame: {data!r}"
                return None
            data += chunk
        return data


class Request:
    """One call as a launcher would send it."""

    def __init__(
        self,
        node: Node,
        plugin: str,
        command: str,
        conf: Mapping[str, Any] | bytes,
        pod: Pod | None = None,
        *,
        version: str = __version__,
        env: Mapping[str, str | None] | None = None,
        flags: int = 0,
    ) -> None:
        self.command = command
        executable = node.executable(plugin)
        stamp = Stamp.read(Path(executable).read_bytes())
        assert stamp is not None
        variables = [f"{name}={value}" for name, value in node.environ(command, pod, env=env).items()]
        strings = b"".join(os.fsencode(text) + b"\0" for text in (version, stamp.code, plugin, executable, *variables))
        stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
        self.data = header(len(strings), len(stdin), flags) + strings + stdin
        self._paths = [f"/proc/{node.pid}/ns/net", f"/proc/{node.pid}/ns/mnt"] if command != "VERSION" else []
        if pod is not None and self._paths:
            self._paths.append(str(node.path(pod.path)))

    @contextlib.contextmanager
    def descriptors(self) -> Iterator[list[int]]:
        """What goes with the first byte; closed at the end."""
        with contextlib.ExitStack() as stack:
            opened = []
            for path in self._paths:
                with contextlib.suppress(FileNotFoundError):
                    opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                    stack.callback(os.close, opened[-1])
            yield opened


def header(strings: int, stdin: int, flags: int = 0, magic: bytes = b"cnikit\0\x02") -> bytes:
    return struct.pack("=8sIII", magic, flags, strings, stdin)


class SlowIpam:
    """A third party's IPAM plugin whose ADD ends when it is told to."""

    ADDRESS = "10.1.9.9/16"

    # Its ADD lasts until somebody has opened /run/gate to write.
    SCRIPT = """#!/bin/sh
case $CNI_COMMAND in
  ADD) echo >> /run/began; cat /run/gate; echo '{"cniVersion":"1.1.0","ips":[{"address":"%s","gateway":"10.1.0.1"}]}' ;;
  DEL) [ ! -e /run/no-del ] || { echo '{"cniVersion":"1.1.0","code":100,"msg":"not now"}'; exit 1; } ;;
esac
"""

    def __init__(self, node: Node) -> None:
        self.node = node
        folder = node.path("/run/third-party")
        folder.mkdir()
        script = folder / "slow"
        script.write_text(self.SCRIPT % self.ADDRESS)
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        os.mkfifo(node.path("/run/gate"))
        self.conf = network(ipam={"type": "slow"})
        self.env: dict[str, str | None] = {"CNI_PATH": f"/run/third-party:{node.way.bin_dir}"}

    def start(self, pod: Pod) -> Running:
        """An ADD that is in the middle when this returns."""
        began = self._began()
        running = self.node.start("bridge", "ADD", self.conf, pod, env=self.env)
        wait_until(lambda: self._began() > began, "the IPAM plugin runs")
        return running

    def go_on(self) -> None:
        """Let those that wait go on."""
        with self.node.path("/run/gate").open("w"):
            pass

    def refuse_del(self) -> None:
        """Let its DEL fail."""
        self.node.path("/run/no-del").touch()

    def allow_del(self) -> None:
        self.node.path("/run/no-del").unlink()

    def delete(self, pod: Pod) -> None:
        self.node.call("bridge", "DEL", self.conf, pod, env=self.env).silent()

    def _began(self) -> int:
        path = self.node.path("/run/began")
        return len(path.read_text()) if path.exists() else 0


def command(node: Node) -> Path:
    """The `cnikit` beside the executables under test."""
    return beside(node.way.bin_dir)


def beside(bin_dir: Path) -> Path:
    return bin_dir.parent / "cnikit"
