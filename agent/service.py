"""One call through the agent: from a launcher's request to the end of its connection.

A call runs the code of the one-shot executables: `dispatch.Exchange`, with a `World` that differs in where things
come from. The namespace was opened by the launcher, stdin and environment came over the wire, lines for people go
back with the answer. Whether it may run here at all is decided before its first effect (`Service.refusal`,
`agent/mounts.py`).
"""

from __future__ import annotations

import os
import select
import socket
import sys
from typing import TYPE_CHECKING, Protocol

from agent import mounts, wire
from agent.steps import Steps, TimedKernel
from cni import __version__, execute
from cni.dispatch import Exchange
from cni.errors import IO_FAILURE, CniError, KernelError
from cni.kernel import mountns
from cni.main import SILENCE, host_id, silence_error
from cni.start import stamp_of
from cni.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from agent.locks import SharedLocks
    from agent.workers import Workers
    from cni.dispatch import Call
    from cni.kernel import Namespace
    from cni.kernel.resident import ResidentKernel
    from cni.start import Stamp
    from cni.world import HeldLock

GO_SECONDS = 5.0
DONE_SECONDS = 20.0
_SOON = 0.002  # seconds that a thread waits for a client before it lets another one take its place
_LONGEST_STDERR = 1 << 16
_LITTLE = 4096  # bytes of stdin
_MOST_STAMPS = 64


class ForeignProgramError(BaseException):
    """A call that is not an ADD needs a program of another mount namespace: it has to run again, one-shot.

    Not an Exception: nothing between here and the plugin may make an answer of it.
    """


class Service:
    """Serves requests. `report` is given every call that came to its end, `trace` each that begins.

    `workers` are the threads, `kernel` and `locks` what they share; `registry` maps plugins to modules, as in the
    one-shot bundle, and `codes` to digests of what their calls run, as in the launchers' stamps. `boot_id` is this
    boot's. Calls of IPAM plugins have threads of their own, `ipam_workers`: when all others wait for foreign programs
    that call us back, there is one for what they ask.
    """

    def __init__(
        self,
        registry: Mapping[str, str],
        codes: Mapping[str, str],
        kernel: ResidentKernel,
        locks: SharedLocks,
        workers: Workers,
        ipam_workers: Workers,
        clock: Callable[[], float],
        boot_id: str,
        report: Callable[[Served], None],
        trace: Callable[[Mapping[str, str], str, Steps], Trace | None] | None = None,
        run_dir: str = "/run/cnikit",
    ) -> None:
        self.registry = registry
        self._codes = codes
        self.kernel = kernel
        self.locks = locks
        self._workers = workers
        self._ipam_workers = ipam_workers
        self.clock = clock
        self.boot_id = boot_id
        self.report = report
        self.trace = trace
        self.run_dir = run_dir
        self._stamps: dict[tuple[str, str], tuple[tuple[tuple[int, ...], ...], Stamp | None]] = {}
        self._net = _identity(os.stat("/proc/self/ns/net"))
        self._mounts = _identity(os.stat("/proc/self/ns/mnt"))

    def take(self, peer: socket.socket, request: wire.Request) -> None:
        """Serve a request, here when that takes no time, else in a thread when its turn comes."""
        try:
            request.exchange_pod(self.kernel.opened_anew)
        except KernelError:
            pass  # it is no network namespace, or may not be entered: the call will report that, and closes it first
        served = Served(self, peer, request)
        if request.environ.get("CNI_COMMAND") == "VERSION" and len(request.stdin) <= _LITTLE:
            served.run()  # its answer fits into the socket
        elif not served.workers.submit(served.key(), served.run):
            served.decline("too many calls are under way")

    def workers_of(self, plugin: str) -> Workers:
        """The threads that serve a plugin's calls."""
        module = self.registry.get(plugin)
        is_ipam = module is not None and not __import__(module, fromlist=["*"]).NETNS
        return self._ipam_workers if is_ipam else self._workers

    def runs(self, plugin: str, code: str) -> bool:
        """Whether a launcher with this stamp would run, one-shot, the very code that runs here."""
        return plugin in self.registry and self._codes.get(plugin) == code

    def stamp_of(self, executable: str, launcher: str) -> Stamp | None:
        """`cni.start.stamp_of`, which reads 90 KB: again only when one of the files is not what it was."""
        files = _version(os.stat(executable)), _version(os.stat(launcher))
        known = self._stamps.get((executable, launcher))
        if known is None or known[0] != files:
            if len(self._stamps) >= _MOST_STAMPS:
                self._stamps.clear()
            known = self._stamps[executable, launcher] = files, stamp_of(executable, launcher)
        return known[1]

    def refusal(self, request: wire.Request) -> str:
        """Why a request cannot be served here whatever it says; empty when it can."""
        if request.version != __version__:
            return f"the launcher is of version {request.version}, this agent of {__version__}"
        if request.plugin not in self.registry:
            return f"no plugin {request.plugin!r} here; start the agent with --plugin {request.plugin}=FILE"
        if not self.runs(request.plugin, request.code):
            return (
                f"the launcher's code of {request.plugin!r} is {request.code or 'unknown'}, this agent's is "
                f"{self._codes.get(request.plugin, 'unknown')}; install both from one build"
            )
        command = request.environ.get("CNI_COMMAND")
        if not command:
            return "no CNI_COMMAND: the one-shot executable describes itself to people"
        if command == "VERSION":
            return ""
        if request.net < 0 or _identity(os.fstat(request.net)) != self._net:
            return "the launcher's network namespace is not the agent's"
        if request.mounts < 0:
            return "the launcher sent no mount namespace"
        return ""

    def has_another_root(self, peer: socket.socket) -> bool:
        """Whether the launcher has changed its root directory (chroot), so that its paths are others.

        One that is gone, or in a PID namespace that we do not see, counts as not.
        """
        try:
            return os.readlink(f"/proc/{_pid(peer)}/root") != "/"
        except OSError:
            return False

    def is_elsewhere(self, request: wire.Request) -> bool:
        """Whether the launcher sees other mounts than we do."""
        return _identity(os.fstat(request.mounts)) != self._mounts


class Trace(Protocol):
    """What following a call (`tracing.py`) has to say here: its name for the log, and what its programs are given."""

    trace_id: str

    def environ(self, environ: Mapping[str, str]) -> Mapping[str, str]: ...


class Served:
    """One request being served. `outcome` says how it ended, for the log and the metrics."""

    def __init__(self, service: Service, peer: socket.socket, request: wire.Request) -> None:
        self._service = service
        self._peer = peer
        self._request = request
        self._lines: list[str] = []
        self._programs_said: list[bytes] = []
        self._went = False
        self._elsewhere = False
        self.steps = Steps(service.clock)
        self.plugin = request.plugin
        self.workers = service.workers_of(self.plugin)
        self.call: Call | None = None
        self.trace: Trace | None = None
        self.outcome = "lost"  # ok, error, declined, undelivered, lost
        self.error: bytes = b""

    @property
    def environ(self) -> Mapping[str, str]:
        return self._request.environ

    @property
    def lines(self) -> Sequence[str]:
        """The lines for people that went to the launcher's stderr."""
        return self._lines

    def key(self) -> Hashable:
        """What follows one another: calls for one attachment and plugin. None for calls without an attachment."""
        environ = self._request.environ
        container = environ.get("CNI_CONTAINERID")
        return (container, environ.get("CNI_IFNAME"), self.plugin) if container else None

    def decline(self, why: str) -> None:
        """Have the launcher do it."""
        self.outcome = "declined"
        self._lines.append(why)
        self._request.close()
        self._send(wire.frame(wire.DECLINE))
        self._end()

    def forget(self) -> None:
        """Let go of what refers back to this, when all is reported: memory is free at once, not at the next collection."""
        self.call = None

    def run(self) -> None:
        """Serve the request to its end."""
        self.steps.mark("queue")
        if self._service.trace is not None:
            self.trace = self._service.trace(self.environ, self.plugin, self.steps)
        try:
            why = self._service.refusal(self._request)
            if why:
                self.decline(why)
                return
            self._exchange()
        except ForeignProgramError:
            self.outcome = "declined"
        except OSError as error:  # the client is gone
            self._lines.append(f"client: {error.strerror or error}")
        except Exception as error:  # noqa: BLE001 - whatever is wrong with this call, the next one is served
            self._lines.append(f"unexpected: {type(error).__name__}: {error}")
        finally:
            self._end()

    def _exchange(self) -> None:
        exchange = Exchange(self._world(), self.plugin, self._request.environ, self, self._deliver)
        with self.steps("prepare", ""):
            prepared = exchange.prepare()
        if not prepared:
            return
        self.call = exchange.call
        assert self.call is not None
        why = self._obstacle(self.call)
        if why:
            self.decline(why)
            return
        with self.steps("handshake", ""):
            self._send(wire.frame(wire.READY, 0, exchange.version.encode("utf-8", "replace")))
            if self._hear(GO_SECONDS) != wire.GO:
                return
        self._went = True
        exchange.perform()

    def _obstacle(self, call: Call) -> str:
        """Why a prepared call cannot be served among the files that we see; empty when it can."""
        self._elsewhere = self._service.is_elsewhere(self._request)
        if self._service.has_another_root(self._peer):
            return "the launcher's root directory is not the agent's"
        if not self._elsewhere:
            return ""
        try:
            return mounts.obstacle(self._request.mounts, call, self._own_plugin, self._service.run_dir)
        except CniError as error:
            return error.msg

    def _world(self) -> World:
        service, request, steps = self._service, self._request, self.steps

        def lock(path: str, *, transient: bool = False, mode: int = 0o600) -> HeldLock:
            with steps("lock", path):
                return service.locks.take(path, self.workers.waiting, transient=transient, mode=mode)

        return World(
            service.registry, TimedKernel(_Passed(service.kernel, request), steps, self.workers.briefly_waiting),
            service.clock, self._log, own_plugin=self._own_plugin, boot_id=lambda: service.boot_id,
            host_id=self._host_id, lock=lock, communicate=self._communicate, step=steps, resolve=self._resolve,
            run_dir=service.run_dir,
        )  # fmt: skip

    def _host_id(self) -> str:
        """As a one-shot call computes it: the machine ID is the launcher's, for an agent's image has none, or its own."""
        try:
            return mountns.inside(self._request.mounts, host_id) if self._elsewhere else host_id()
        except KernelError:
            return ""

    # dispatch.Stdin

    def all(self) -> bytes:
        """stdin, which the launcher has read."""
        if self._request.flags & wire.SILENT:
            raise silence_error(SILENCE)
        return self._request.stdin

    def probe(self) -> bytes:
        return self._request.stdin

    # The answer

    def _deliver(self, status: int, stdout: bytes) -> None:
        """dispatch.Deliver: for a successful ADD, also hear that its result has arrived."""
        if self.outcome == "undelivered":
            return  # dispatch reports that the ADD was taken back, to nobody
        self._request.close()
        with self.steps("answer", ""):
            self._send(wire.frame(wire.ANSWER, status, stdout, self._stderr()))
            confirmed = status != 0 or not self._went or self._request.environ.get("CNI_COMMAND") != "ADD"
            if not confirmed and self._hear(DONE_SECONDS) != wire.DONE:
                self.outcome = "undelivered"
                raise BrokenPipeError("the launcher could not deliver the result")
        self.outcome = "error" if status else "ok"
        self.error = stdout if status else b""

    def _stderr(self) -> bytes:
        lines = "".join(f"cnikit {self.plugin}: {line}\n" for line in self._lines)
        return b"".join(self._programs_said) + lines.encode("utf-8", "backslashreplace")

    def _log(self, line: str) -> None:
        self._lines.append(line)

    def _send(self, data: bytes) -> None:
        sent = self._peer.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        if sent < len(data):
            with self.workers.waiting():
                self._peer.settimeout(DONE_SECONDS)
                self._peer.sendall(data[sent:], socket.MSG_NOSIGNAL)

    def _hear(self, seconds: float) -> bytes:
        """The launcher's next byte; none at the connection's end, or when it takes too long."""
        poll = select.poll()
        poll.register(self._peer, select.POLLIN)
        if not poll.poll(_SOON * 1000):
            with self.workers.waiting():
                if not poll.poll(seconds * 1000):
                    return b""
        return self._peer.recv(1)

    def _end(self) -> None:
        if self._peer.fileno() < 0:
            return
        self._request.close()
        self._peer.close()
        if self.call is not None:
            self.call.context.close()  # the launcher may have left before it was entered
        self.steps.finish()
        self._service.report(self)

    # What the plugin's world is made of

    def _own_plugin(self, executable: str) -> str | None:
        """The plugin that executing a file would start, when that is a launcher and its code the one that runs here."""
        try:
            stamp = self._service.stamp_of(executable, self._request.launcher)
        except OSError:
            return None  # whatever is wrong with it, executing it will show
        return stamp.plugin if stamp is not None and self._service.runs(stamp.plugin, stamp.code) else None

    def _communicate(self, argv: Sequence[str], environ: Mapping[str, str], stdin: bytes) -> tuple[int, bytes]:
        """Run a foreign program. What it says on stderr goes back with the answer."""
        if self._elsewhere:
            raise ForeignProgramError(argv[0])
        if self.trace is not None:
            environ = self.trace.environ(environ)
        said = os.memfd_create("stderr", os.MFD_CLOEXEC)
        try:
            with self.workers.waiting():
                answer = self._run_there(argv, environ, stdin, said)
            self._programs_said.append(os.pread(said, _LONGEST_STDERR, 0))
            return answer
        finally:
            os.close(said)

    def _run_there(
        self, argv: Sequence[str], environ: Mapping[str, str], stdin: bytes, stderr: int
    ) -> tuple[int, bytes]:
        """Run a program in the caller's working directory, where that can be entered."""
        try:
            os.chdir(self._caller_directory())  # of this thread (agent/workers.py)
        except OSError:
            pass
        try:
            return execute.communicate(argv, environ, stdin, stderr)
        finally:
            os.chdir("/")

    def _caller_directory(self) -> str:
        return f"/proc/{_pid(self._peer)}/cwd"

    def _resolve(self, path: str) -> str:
        if path.startswith("/"):
            return path
        try:
            return os.path.join(os.readlink(self._caller_directory()), path)
        except OSError as error:
            what = f"{path!r} begins at the caller's working directory, which cannot be found out: {error.strerror}"
            raise CniError(IO_FAILURE, what, "use an absolute path") from None


class _Passed:
    """The kernel as one call sees it: the namespace at CNI_NETNS is the one that the launcher opened."""

    __slots__ = ("_kernel", "_request")

    def __init__(self, kernel: ResidentKernel, request: wire.Request) -> None:
        self._kernel = kernel
        self._request = request

    def own(self) -> Namespace:
        return self._kernel.own()

    def open(self, path: str) -> Namespace:
        if self._request.pod < 0:
            return self._kernel.open(path)
        return self._kernel.adopt(path, os.dup(self._request.pod))

    def is_own(self, path: str) -> bool:
        if self._request.pod < 0:
            return self._kernel.is_own(path)
        return _identity(os.fstat(self._request.pod)) == _identity(os.fstat(self._request.net))


def _pid(peer: socket.socket) -> int:
    """The process at the other end, which waits for us; 0 when it is in another PID namespace."""
    return int.from_bytes(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)


def _version(status: os.stat_result) -> tuple[int, ...]:
    """What is another when a file has changed, its permissions too."""
    return *_identity(status), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
