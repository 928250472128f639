"""The agent's process: put together, started, and brought to one of its ends.

- stop (SIGTERM, SIGINT): the socket file goes, so that new calls run one-shot; what has connected is answered.
- reload (SIGHUP): no new call is taken, those under way are answered, then this process becomes the program anew
  (which may have been replaced by another version) on the same socket. Meanwhile launchers wait in its queue.
- hand-over (a new agent with --replace): the new one is given the socket and answers from now on, while this one
  answers what it has taken.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from agent.exposition import CONTENT_TYPE, Page, lean
from agent.health import Health
from agent.http import AddressError, HttpServer, Reply, beside, parse
from agent.limits import Limits, descriptor_limit
from agent.listener import Listener
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
from cni.kernel.resident import ResidentKernel

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, MutableMapping

    from agent.report import Teller
    from agent.tracing import Tracing

SOCKET = "/run/cnikit/agent.sock"

# Longer than a launcher waits for an answer.
_DRAIN_SECONDS = 65.0
# The form of OTLP that we speak.
_OTLP = "http/protobuf"
# How long the last lines may take to be written.
_LOG_SECONDS = 2.0


class Agent:
    """One agent, from its listening socket to its end. `http` says where it tells about itself, empty for nowhere."""

    def __init__(
        self, registry: Mapping[str, str], listener: Listener, log: Log, tracing: Tracing | None, http: str
    ) -> None:
        self._listener = listener
        self._log = log
        self._tracing = tracing
        self._ending = ""
        self._sent_away = 0
        self.kernel = ResidentKernel(time.monotonic)
        limits = Limits(descriptor_limit())
        self.workers = Workers(limits.threads, limits.calls)
        self.counters, self.pools = Counters(registry), Pools(time.monotonic)
        tellers: list[Teller] = [self.counters, self.pools, Logger(log), *([tracing] if tracing else [])]
        self.reporter = Reporter(tellers, log.error)
        self.service = Service(
            registry,
            self.kernel,
            SharedLocks(time.monotonic, self.workers.waiting),
            self.workers,
            time.monotonic,
            boot_id(),
            self.reporter,
            tracing.begin if tracing else None,
        )
        self.server = Server(
            listener.socket, self.service.take, self._hand_over, time.monotonic, self._send_away, limits.arriving
        )
        self._http = self._tell_at(http)

    def end(self, how: str) -> None:
        """Begin to end: `stop`, `reload` or `handed over`."""
        self._ending = self._ending or how
        self.server.stop()

    def run(self, ending: Callable[[str], None]) -> str:
        """Serve, and return how it ended once every call is answered; `ending` is told when that begins."""
        self.server.run()
        ending(self._ending)
        stopping = self._ending == "stop"
        if stopping:
            self._listener.remove()
        self.server.finish(accept=stopping)
        self.workers.drain(_DRAIN_SECONDS)
        self._close_http()
        self.reporter.close()
        if self._tracing is not None:
            self._tracing.close()
        self.server.close()
        self.workers.close()
        self.kernel.close()
        return self._ending

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

    def _close_http(self) -> None:
        if self._http is not None:
            self._http.close()

    def _send_away(self, line: str) -> None:
        self._sent_away += 1
        self._log.warning(line)

    def _replies(self) -> dict[str, Callable[[], Reply]]:
        health = Health(self.server, self.workers, time.monotonic, lambda: self._ending)
        page = Page(
            self.reporter.settle, self.counters.families, self._vitals().families, self.pools.families, process_families
        )
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
                ("cnikit_requests_in_flight", "Calls that are not answered yet.", lambda: self.workers.calls),
                ("cnikit_workers", "Threads that serve calls.", lambda: self.workers.threads),
                ("cnikit_threads", "Threads in all.", threading.active_count),
            ],
        )


def run(
    registry: Mapping[str, str],
    argv: list[str],
    environ: MutableMapping[str, str],
    *,
    replace: bool,
    http: str | None,
    otlp: str,
) -> None:
    """Run an agent in the foreground until its end. `argv` is what this process was started with.

    `http` is where it tells about itself (None for a socket beside its own), `otlp` where spans go.
    """
    path = environ.get("CNIKIT_SOCKET") or SOCKET
    http = beside(path) if http is None else http
    if http:
        parse(http)
    preload(registry)
    log = Log(2)
    sys.excepthook = lambda *what: log.error("unexpected", traceback="".join(traceback.format_exception(*what)))
    threading.excepthook = lambda what: sys.excepthook(what.exc_type, what.exc_value, what.exc_traceback)  # type: ignore[arg-type]
    traces = tracing(environ, otlp, log)
    listener = Listener.inherited(environ, path) or Listener.make(path, time.monotonic, replace=replace)
    notifier = Notifier(environ)
    agent = Agent(registry, listener, log, traces, http)
    signal.signal(signal.SIGTERM, lambda *_: agent.end("stop"))
    signal.signal(signal.SIGINT, lambda *_: agent.end("stop"))
    signal.signal(signal.SIGHUP, lambda *_: agent.end("reload"))
    gc.collect()
    gc.freeze()
    notifier.tell("READY=1")
    where = f"listening at {path}"
    log.info(where, version=__version__, pid=os.getpid())
    ending = agent.run(notifier.tell_ending)
    if ending == "reload":
        log.info(ending)
        log.close(_LOG_SECONDS)
        os.execve(argv[0], argv, listener.passed_on(environ))
    log.info(ending)
    log.close(_LOG_SECONDS)


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
        *registry.values(), "cni.delegate", "cni.kernel.nfnetlink", "cni.kernel.nftables", "cni.result",
        "ipam.ranges", "plugins.bridge_check", "plugins.iptables",
    ):  # fmt: skip
        __import__(module)
    for part in ("metrics_core", "process_collector"):
        lean(part)


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
