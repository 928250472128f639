"""The agent's process: put together, started, and brought to one of its ends.

- stop (SIGTERM, SIGINT): the socket file goes, so that new calls run one-shot; what has connected is answered.
- reload (SIGHUP): no new call is taken, those under way are answered, then this process becomes the program anew
  (which may have been replaced by another version) on the same socket. Meanwhile launchers wait in its queue.
- hand-over (a new agent with --replace): the new one is given the socket and answers from now on, while this one
  answers what it has taken.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, ClassVar

from agent import rights
from agent.exposition import CONTENT_TYPE, Page, lean
from agent.health import Health
from agent.http import AddressError, HttpServer, Reply, beside, parse
from agent.limits import Limits, descriptor_limit
from agent.listener import Listener, ListenError
from agent.locks import SharedLocks
from agent.log import Log
from agent.metrics import Counters, Vitals, process_families
from agent.notify import Notifier
from agent.pools import Pools
from agent.report import Logger, Reporter
from agent.server import Server
from agent.service import Service
from agent.workers import Workers
from cni import __version__
from cni.addr import AF_INET
from cni.errors import CniError
from cni.kernel.resident import ResidentKernel
from cni.kernel.sysctl import SYSCTL_DIR, Conf

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, MutableMapping, Sequence

    from agent.cluster import Cluster, Options
    from agent.report import Teller
    from agent.tracing import Tracing

SOCKET = "/run/cnikit/agent.sock"

# Longer than a launcher waits for an answer.
_DRAIN_SECONDS = 65.0
# The form of OTLP that we speak.
_OTLP = "http/protobuf"
_M_ARENA_MAX = -8
# How long the program may take to start when it is tried out. Launchers wait for READY meanwhile.
_START_SECONDS = 3.0
# How long the last lines may take to be written.
_LOG_SECONDS = 2.0


class Signals:
    """SIGTERM, SIGINT and SIGHUP, from the first moment on: none of them is lost, whatever this process is doing.

    Made by the main thread before others are started.
    """

    ENDINGS: ClassVar = {signal.SIGTERM: "stop", signal.SIGINT: "stop", signal.SIGHUP: "reload"}

    def __init__(self) -> None:
        self._early: list[str] = []
        self._tell: Callable[[str], None] = self._early.append
        set_usual_signals()
        for number in self.ENDINGS:
            signal.signal(number, self._handle)

    def tell(self, end: Callable[[str], None]) -> None:
        """Who is called with the way to end, also for signals that have come already."""
        self._tell = end
        for ending in self._early:
            end(ending)

    def hold(self) -> None:
        """Keep what comes from now on for the program that this process becomes."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self.ENDINGS)

    def _handle(self, number: int, _: object) -> None:
        self._tell(self.ENDINGS[signal.Signals(number)])


def set_usual_signals() -> None:
    """Undo what the caller ignored or blocked (nohup, some init systems), for us and the programs that we start.

    SIGPIPE and SIGXFSZ stay as the interpreter wants them; `execute.communicate` sets them for programs.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Agent:
    """One agent, from its listening socket to its end. `http` says where it answers about itself, empty for nowhere;
    `networks` are those that span nodes, and `node_name` who this one is in them; `sysctl_dir` is where /proc/sys is.
    """

    def __init__(
        self,
        registry: Mapping[str, str],
        codes: Mapping[str, str],
        listener: Listener,
        log: Log,
        tracing: Tracing | None,
        http: str,
        networks: Sequence[Options] = (),
        node_name: str = "",
        sysctl_dir: str = SYSCTL_DIR,
    ) -> None:
        self._listener = listener
        self._log = log
        self._tracing = tracing
        self.ending = ""
        self._stop_asked = False
        self._sent_away = 0
        self._unfit = rights.of_this_process()
        if self._unfit:  # every call runs one-shot then, which works
            what = f"calls cannot be served: {self._unfit}"
            log.error(what)
        self.kernel = ResidentKernel(time.monotonic, sysctl_dir)
        limits = Limits(descriptor_limit())
        self.workers = Workers(limits.threads, limits.calls)
        self.ipam_workers = Workers(limits.threads, limits.calls)
        self.counters, self.pools = Counters(registry), Pools(time.monotonic)
        tellers: list[Teller] = [self.counters, self.pools, Logger(log), *([tracing] if tracing else [])]
        tellers.append(lambda *_: self.kernel.trim())  # here nobody waits for it
        self.reporter = Reporter(tellers, log.error)
        self.service = Service(
            registry,
            codes,
            self.kernel,
            SharedLocks(time.monotonic),
            self.workers,
            self.ipam_workers,
            time.monotonic,
            boot_id(),
            self.reporter,
            tracing.begin if tracing else None,
        )
        self.server = Server(
            listener.socket, self.service.take, self._hand_over, time.monotonic, self._send_away, limits.arriving
        )
        self.cluster = self._cluster(networks, node_name)
        self._http = self._tell_at(http)

    def end(self, how: str) -> None:
        """Begin to end: `stop`, `reload` or `handed over`. What has begun goes on, but a reload can become a stop."""
        self._stop_asked = self._stop_asked or how == "stop"
        if not self.ending or (self.ending == "reload" and how == "stop"):
            self.ending = how
        self.server.stop()

    def run(self, can_reload: Callable[[], bool], ending: Callable[[str], None]) -> None:
        """Serve, and return when it has ended and every call is answered; `ending` is called when that begins.

        A reload that cannot succeed is none: it goes on as it was.
        """
        self.server.run()
        while self.ending == "reload" and not can_reload():
            self.ending = ""
            if self._stop_asked:  # meanwhile
                self.ending = "stop"
                break
            self.server.run()
        ending(self.ending)
        if self.cluster is not None:
            self.cluster.close()
        stopping = self.ending == "stop"
        if stopping:
            self._listener.remove()
        self.server.finish(accept=stopping)
        self.workers.drain(_DRAIN_SECONDS)
        self.ipam_workers.drain(_DRAIN_SECONDS)
        self._close_http()
        self.reporter.close()
        if self._tracing is not None:
            self._tracing.close()
        self.server.close()
        self.workers.close()
        self.ipam_workers.close()
        self.kernel.close()

    def _hand_over(self, peer: socket.socket) -> None:
        with peer:
            try:
                self._listener.give_away(peer)
            except OSError:
                return  # the new one is gone already: nothing has changed
        self.end("handed over")
        self._close_http()  # it is the new one's place

    def _tell_at(self, where: str) -> HttpServer | None:
        try:
            return HttpServer(where, self._replies(), self._log.error) if where else None
        except AddressError as error:  # pods come first
            self._log.error("no metrics: " + str(error))
            return None

    def _cluster(self, networks: Sequence[Options], node_name: str) -> Cluster | None:
        if not networks:
            return None
        from agent.cluster import Cluster

        cluster = Cluster(networks, self.kernel.own(), node_name, self._log)
        cluster.start()
        return cluster

    def _close_http(self) -> None:
        if self._http is not None:
            self._http.close()

    def _send_away(self, line: str) -> None:
        self._sent_away += 1
        self._log.warning(line)

    def _replies(self) -> dict[str, Callable[[], Reply]]:
        health = Health(
            self.server, [self.workers, self.ipam_workers], time.monotonic, lambda: self.ending, self._unfit
        )
        collectors = [self.counters.families, self._vitals().families, self.pools.families, process_families]
        if self.cluster is not None:
            collectors.append(self.cluster.families)
        page = Page(self.reporter.settle, *collectors)
        return {
            "/metrics": lambda: Reply(200, page(), CONTENT_TYPE),
            "/healthz": health.alive,
            "/readyz": health.ready,
        }

    def _vitals(self) -> Vitals:
        return Vitals(
            counts=[
                ("cnikit_clients_sent_away", "Connections that brought no request.", lambda: self._sent_away),
                ("cnikit_log_lines_dropped", "Lines that stderr did not take in time.", lambda: self._log.dropped),
            ],
            gauges=[
                (
                    "cnikit_requests_in_flight",
                    "Calls that are not answered yet.",
                    lambda: self.workers.calls + self.ipam_workers.calls,
                ),
                (
                    "cnikit_workers",
                    "Threads that serve calls.",
                    lambda: self.workers.threads + self.ipam_workers.threads,
                ),
                ("cnikit_threads", "Threads in all.", threading.active_count),
            ],
        )


def run(
    registry: Mapping[str, str],
    codes: Mapping[str, str],
    argv: list[str],
    environ: MutableMapping[str, str],
    *,
    replace: bool,
    http: str | None,
    otlp: str,
    files: Sequence[str] = (),
    node_name: str = "",
    sysctl_dir: str = "",
    plugin_path: Sequence[str] = (),
) -> None:
    """Run an agent in the foreground until its end. `argv` is what this process was started with.

    `codes` are digests of what the plugins of `registry` run (`Service`). `http` is where it answers about itself (None for
    a socket beside its own), `otlp` where spans go, `files` are the network lists of the networks that span nodes,
    `sysctl_dir` is where /proc/sys is mounted (empty: CNIKIT_SYSCTL_DIR says it, else there), `plugin_path` where the
    plugins that the lists name are. CniError for one of these that cannot be used.
    """
    signals = Signals()
    use_one_arena()
    if os.geteuid() != 0:
        raise ListenError(f"the agent needs root: expected user 0, found {os.geteuid()}")
    path = environ.get("CNIKIT_SOCKET") or SOCKET
    if not path.startswith("/"):
        raise ListenError(f"CNIKIT_SOCKET: expected an absolute path, found {path!r}: launchers run in other folders")
    http = beside(path) if http is None else http
    if http:
        parse(http)
    networks = networks_of(files, plugin_path)
    sysctl_dir = sysctl_dir or environ.get("CNIKIT_SYSCTL_DIR") or SYSCTL_DIR
    Conf(sysctl_dir, AF_INET).close()
    preload(registry)
    log = Log(2)
    sys.excepthook = lambda *what: log.error("unexpected", traceback="".join(traceback.format_exception(*what)))
    threading.excepthook = lambda what: sys.excepthook(what.exc_type, what.exc_value, what.exc_traceback)  # type: ignore[arg-type]  # exc_value: None only for a thread that exits, which is not reported
    traces = tracing(environ, otlp, log)
    listener = Listener.inherited(environ, path) or Listener.make(path, time.monotonic, replace=replace)
    close_folder(path, log)
    notifier = Notifier(environ)
    agent = Agent(registry, codes, listener, log, traces, http, networks, node_name, sysctl_dir)
    signals.tell(agent.end)
    gc.collect()
    gc.freeze()
    notifier.tell("READY=1")
    where = f"listening at {path}"
    log.info(where, version=__version__, pid=os.getpid())
    agent.run(lambda: starts(argv, environ, log) and are_usable(files, plugin_path, log), notifier.tell_ending)
    signals.hold()
    if agent.ending == "reload":
        log.info(agent.ending)
        log.close(_LOG_SECONDS)
        os.execve(argv[0], argv, listener.passed_on(environ))
    if agent.ending == "stop":
        listener.remove()
    log.info(agent.ending)
    log.close(_LOG_SECONDS)


def close_folder(path: str, log: Log) -> None:
    """See that nobody but root gets at the socket through its folder: our own is closed, another is logged."""
    folder = os.path.dirname(path)
    if path == SOCKET:
        os.chmod(folder, 0o700)
    elif os.stat(folder).st_mode & 0o022:
        what = (
            f"{folder}: expected a folder that only root can write, found that others can: they can replace the socket"
        )
        log.warning(what)


def starts(argv: list[str], environ: Mapping[str, str], log: Log) -> bool:
    """Whether this program, as it lies there now, starts: it may have been replaced, or be gone."""
    import subprocess  # only here

    nowhere = subprocess.DEVNULL
    try:
        status = subprocess.run(
            [*argv, "--help"],
            env=environ,
            stdin=nowhere,
            stdout=nowhere,
            stderr=nowhere,
            timeout=_START_SECONDS,
            check=False,
        ).returncode
        found = f"it exits with {status}"
    except (OSError, subprocess.TimeoutExpired) as error:
        status, found = -1, str(error)
    if status != 0:
        what = f"not reloaded: expected {argv[0]} to start, but {found}; install it again"
        log.error(what)
    return status == 0


def networks_of(files: Sequence[str], plugin_path: Sequence[str]) -> Sequence[Options]:
    """The networks of these files. An agent without any keeps the memory that they cost."""
    if not files:
        return ()
    from agent import cluster

    return cluster.networks_of(files, plugin_path)


def are_usable(files: Sequence[str], plugin_path: Sequence[str], log: Log) -> bool:
    """Whether the network lists, as they lie there now, can be used."""
    try:
        networks_of(files, plugin_path)
    except CniError as error:
        fault = error.msg
    else:
        return True
    what = f"not reloaded: {fault}"
    log.error(what)
    return False


def tracing(environ: Mapping[str, str], otlp: str, log: Log) -> Tracing | None:
    """What makes spans, when there is somebody to send them to."""
    named = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or not (otlp or named):
        return None
    if otlp and not otlp.startswith(("http://", "https://")):
        raise AddressError(f"--otlp: expected a URL such as http://127.0.0.1:4318, found {otlp!r}")
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or _OTLP
    if protocol != _OTLP:
        what = f"tracing: expected the OTLP protocol {_OTLP}, found {protocol}; give the collector's HTTP port"
        log.warning(what)
    from agent.tracing import Tracing

    return Tracing(f"{otlp.rstrip('/')}/v1/traces" if otlp else "", log.warning)


def preload(registry: Mapping[str, str]) -> None:
    """Import now what would be imported when it is first needed: the files may be another version's by then."""
    for module in (
        *registry.values(), "cni.delegate", "cni.kernel.ethtool", "cni.kernel.nfnetlink", "cni.kernel.nftables",
        "cni.kernel.nftsteps", "cni.kernel.rtpeers", "cni.kernel.udp", "cni.result", "cni.unclaimed", "ipam.ranges",
        "plugins.attachment", "plugins.bridge_check", "plugins.bridge_vlan", "plugins.bridged",
        "plugins.cluster_conf", "plugins.contradictions", "plugins.forward_accept", "plugins.iptables",
        "plugins.macspoof", "plugins.range_masquerade", "plugins.reconcile", "plugins.routed", "plugins.routed_check",
        "plugins.this_node", "plugins.vxlan_device", "plugins.ways",
    ):  # fmt: skip
        __import__(module)
    for part in ("metrics_core", "process_collector"):
        lean(part)


def use_one_arena() -> None:
    """Have all threads share the C library's heap. Each would get one of its own, and keep what it is not using."""
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
