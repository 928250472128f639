"""What a running agent tells about itself: metrics, health, log, spans, and what that may cost.

The page is read with prometheus_client's parser, spans by a collector that decodes OTLP.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.agent_world import Agent, Client, Request
from tests.e2e.world import DUAL_STACK, GENEROUS, SEARCH_PATH, Node, Way, network, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

HTTP = "/run/cnikit/agent-http.sock"
PAGE = Path(__file__).resolve().parents[2] / "docs/observability.md"
# A call without effects that the agent serves.
PLAIN = {"cniVersion": "1.1.0", "name": "net", "type": "loopback"}
CONF = network(ipMasq=True, ipam=DUAL_STACK)
MEBI = 1 << 20

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture
def node(bin_dir: Path) -> Iterator[Node]:
    """A node whose agents the test starts itself."""
    with Node(Way("agent", bin_dir)) as made:
        yield made


@pytest.fixture
def start(node: Node) -> Iterator[Callable[..., Agent]]:
    """Starts an agent in the node; all are ended."""
    agents: list[Agent] = []

    def started(*options: str, **more: Any) -> Agent:
        agents.append(Agent(node, *options, **more))
        return agents[-1].ready()

    yield started
    for agent in agents:
        agent.looks_well()
        agent.forget()


class _OverUnix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=GENEROUS)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(GENEROUS)
        self.sock.connect(self._path)


def get(node: Node, path: str) -> tuple[int, str]:
    """Status and body of an answer over the agent's Unix socket."""
    connection = _OverUnix(node.path(HTTP))
    try:
        connection.request("GET", path)
        with connection.getresponse() as answer:
            return answer.status, answer.read().decode()
    finally:
        connection.close()


class Metrics:
    """The page, parsed. A call is counted when it is over, which may be after its answer, so ask when none is left."""

    def __init__(self, node: Node, *, idle: bool = True) -> None:
        self._node = node
        wait_until(lambda: self._read() or not idle, "no call is in flight")

    def _read(self) -> bool:
        status, text = get(self._node, "/metrics")
        assert status == 200
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        return self.value("cnikit_requests_in_flight") == 0

    def value(self, name: str, **labels: str) -> float:
        """A sample's value; of several with these labels their sum."""
        samples = (sample for family in self.families.values() for sample in family.samples)
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())


class TestMetrics:
    def test_calls_are_counted_by_what_they_were_and_became(self, node: Node, start: Any) -> None:
        start()
        pod = node.pod()
        assert node.call("bridge", "ADD", CONF, pod).ok
        assert node.call("bridge", "ADD", CONF, pod).error["code"] == 999
        node.call("bridge", "DEL", CONF, pod).silent()
        assert node.call("loopback", "STATUS", PLAIN).ok

        found = Metrics(node)
        requests = "cnikit_requests_total"
        assert found.value(requests, command="ADD", plugin="bridge", outcome="ok") == 1
        assert found.value(requests, command="ADD", plugin="bridge", outcome="error") == 1
        assert found.value(requests, command="DEL", plugin="bridge", outcome="ok") == 1
        assert found.value(requests, command="STATUS", plugin="loopback", outcome="ok") == 1
        assert found.value(requests) == 4
        assert found.value("cnikit_errors_total", plugin="bridge", code="999") == 1
        assert found.value("cnikit_request_duration_seconds_count", command="ADD") == 2
        seconds = found.value("cnikit_request_duration_seconds_sum", command="ADD")
        steps = found.value("cnikit_step_duration_seconds_sum", command="ADD")
        assert 0 < steps <= seconds
        for step in ("queue", "prepare", "handshake", "lock", "ipam", "kernel", "answer"):
            assert found.value("cnikit_step_duration_seconds_count", command="ADD", step=step) > 0, step

    def test_leases_of_every_hand_count(self, node: Node, start: Any, reference: Way) -> None:
        start()
        pods = [node.pod() for _ in range(3)]
        for pod in pods[:2]:
            assert node.call("bridge", "ADD", CONF, pod).ok
        assert node.call("host-local", "ADD", CONF, pods[2], way=reference).ok, "the Go plugin leases one too"
        found = Metrics(node)
        for range_set, size in (("0", 65533), ("1", 2**64 - 2)):
            used = found.value("cnikit_leases_used", network="net", range_set=range_set)
            free = found.value("cnikit_leases_free", network="net", range_set=range_set)
            assert used == 3
            assert used + free == pytest.approx(size)
        node.call("bridge", "DEL", CONF, pods[0]).silent()
        assert node.call("host-local", "DEL", CONF, pods[2], way=reference).ok
        assert Metrics(node).value("cnikit_leases_used", network="net", range_set="0") == 1

    def test_the_page_has_what_the_documentation_says(self, node: Node, start: Any) -> None:
        start()
        pod = node.pod()
        assert node.call("bridge", "ADD", CONF, pod).ok
        assert not node.call("bridge", "ADD", CONF, pod).ok
        found = Metrics(node).families
        documented = {name.removesuffix("_total") for name in re.findall(r"`(cnikit_[a-z_]+)`", PAGE.read_text())}
        of_networks = {name for name in documented if name.startswith("cnikit_cluster_")}
        assert of_networks  # which an agent without networks does not have
        assert set(found) == documented - of_networks
        for family in found.values():
            assert family.documentation
            assert family.type in ("counter", "gauge", "histogram")

    def test_the_process_is_this_one(self, node: Node, start: Any) -> None:
        agent = start()
        found = Metrics(node)
        memory = found.value("cnikit_process_resident_memory_bytes") / 1024
        assert memory == pytest.approx(agent.status("VmRSS"), rel=0.1)
        assert found.value("cnikit_threads") == pytest.approx(agent.status("Threads"), abs=1)
        assert found.value("cnikit_process_open_fds") == pytest.approx(len(agent.descriptors()), abs=4)
        assert found.value("cnikit_build_info") == 1

    def test_a_client_that_is_none_is_counted(self, node: Node, start: Any) -> None:
        agent = start()
        with Client(agent) as client:
            client.send(b"GET / HTTP/1.1\r\n\r\n....")
            assert client.ended()
        assert Metrics(node).value("cnikit_clients_sent_away_total") == 1
        assert "sent a client away" in agent.log()


class TestHealth:
    def test_well(self, node: Node, start: Any) -> None:
        start()
        assert get(node, "/healthz") == (200, "ok\n")
        assert get(node, "/readyz") == (200, "ok\n")
        assert get(node, "/")[0] == 404
        assert node.path(HTTP).stat().st_mode & 0o777 == 0o600

    def test_not_ready_while_it_drains(self, node: Node, start: Any) -> None:
        agent = start()
        pod = node.pod()
        request = Request(node, "bridge", "ADD", CONF, pod)
        with Client(agent) as client, request.descriptors() as fds:
            client.send(request.data, fds)
            ready = client.receive()
            assert ready is not None
            assert ready.kind == "R"
            agent.signal(signal.SIGTERM)
            wait_until(lambda: get(node, "/readyz")[0] == 503, "the agent says that it is ending")
            assert get(node, "/healthz")[0] == 200, "and is not to be killed for it"
            assert Metrics(node, idle=False).value("cnikit_requests_in_flight") >= 1
            client.send(b"G")
            answer = client.receive()
            assert answer is not None
            assert answer.code == 0, answer
            client.send(b"K")
        assert agent.wait() == 0
        assert not node.path(HTTP).exists()
        assert pod.addresses()

    @pytest.mark.parametrize("lost", ["sys_chroot", "sys_admin", "net_admin"])
    def test_not_ready_without_a_capability(self, node: Node, start: Any, lost: str) -> None:
        """As a container that was given too few; calls are served all the same, by processes of their own."""
        agent = start(prefix=("setpriv", f"--bounding-set=-{lost}", f"--inh-caps=-{lost}"))
        status, text = get(node, "/readyz")
        assert status == 503
        assert f"found none of {lost.upper()} (" in text
        assert get(node, "/healthz") == (200, "ok\n"), "another start would not help"
        wait_until(lambda: f"found none of {lost.upper()}" in agent.log(), "the log says it too")

    def test_the_next_agent_takes_the_place(self, node: Node, start: Any) -> None:
        first = start()
        assert node.call("loopback", "STATUS", PLAIN).ok
        wait_until(lambda: Metrics(node).value("cnikit_requests_total") == 1, "the call is counted")
        start("--replace")
        assert first.wait() == 0
        assert Metrics(node).value("cnikit_requests_total") == 0, "it counts anew"
        assert get(node, "/readyz")[0] == 200

    def test_after_a_reload(self, node: Node, start: Any) -> None:
        agent = start()
        assert node.call("loopback", "STATUS", PLAIN).ok
        agent.signal(signal.SIGHUP)
        wait_until(lambda: agent.log().count("listening at") == 2, "it has started anew")
        assert node.call("loopback", "STATUS", PLAIN).ok
        assert Metrics(node).value("cnikit_requests_total") == 1


class TestPlace:
    def test_a_loopback_port(self, node: Node, start: Any) -> None:
        start("--http", "127.0.0.1:20500")
        with node.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(GENEROUS)
            client.connect(("127.0.0.1", 20500))
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(64).startswith(b"HTTP/1.1 200 OK\r\n")
        assert not node.path(HTTP).exists()

    def test_nowhere(self, node: Node, start: Any) -> None:
        start("--http", "")
        assert not node.path(HTTP).exists()
        assert node.call("loopback", "STATUS", PLAIN).ok

    @pytest.mark.parametrize("where", ["0.0.0.0:20500", "192.0.2.1:20500", "relative.sock"])
    def test_what_others_could_reach_is_refused(self, node: Node, bin_dir: Path, where: str) -> None:
        answer = node.attempt(str(bin_dir.parent / "cnikit"), "agent", "--http", where)
        assert answer.status == 1
        assert (
            f"expected a path, or a loopback address and port such as 127.0.0.1:20500, found '{where}'" in answer.stderr
        )
        assert not node.path("/run/cnikit/agent.sock").exists(), "it had not begun"

    def test_a_place_that_is_taken_costs_the_metrics_and_not_the_pods(self, node: Node, start: Any) -> None:
        with node.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
            taken.bind(("127.0.0.1", 20500))
            taken.listen()
            agent = start("--http", "127.0.0.1:20500")
            assert node.call("loopback", "STATUS", PLAIN).ok
        assert "no metrics: cannot listen at 127.0.0.1:20500: Address already in use" in agent.log()


class TestLog:
    def test_one_line_for_each_call(self, node: Node, start: Any) -> None:
        agent = start()
        pod = node.pod()
        args = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0"}
        assert node.call("bridge", "ADD", CONF, pod, env=args).ok
        refused = node.call("bridge", "ADD", CONF, pod).error
        assert agent.stop() == 0
        first, second = agent.requests()
        assert first["level"] == "info"
        assert first | {
            "command": "ADD", "plugin": "bridge", "container": pod.container_id, "ifname": "eth0", "network": "net",
            "pod": "cart-0", "namespace": "shop", "outcome": "ok",
        } == first  # fmt: skip
        assert 0 < sum(first["steps"].values()) <= first["seconds"]
        assert (second["outcome"], second["code"], second["message"]) == ("error", refused["code"], refused["msg"])
        assert second["details"] == refused["details"]
        others = [json.loads(line) for line in agent.log().splitlines() if '"outcome"' not in line]
        assert [one["message"].split()[0] for one in others] == ["listening", "stop"]
        assert first["time"] < second["time"]

    def test_a_stderr_that_nobody_reads_holds_up_nobody(self, node: Node, bin_dir: Path) -> None:
        argv = (str(bin_dir.parent / "cnikit"), "agent")
        process = node.spawn(*argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            wait_until(lambda: node.path(HTTP).exists() and get(node, "/readyz")[0] == 200, "the agent is ready")
            long = {"CNI_CONTAINERID": "c" * 5000}
            listening = wait_until(lambda: _connected(node), "the agent accepts")
            listening.close()
            for _ in range(400):
                with _connected(node) as client:
                    client.sendall(Request(node, "bridge", "VERSION", CONF, env=long).data)
                    assert client.recv(1 << 16)[:1] == b"A"
            dropped = wait_until(lambda: Metrics(node).value("cnikit_log_lines_dropped_total"), "lines are dropped")
            assert dropped < 400
            assert Metrics(node).value("cnikit_requests_total") == 400
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(GENEROUS) == 0
            assert process.stderr is not None
            process.stderr.close()


def _connected(node: Node) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(GENEROUS)
    client.connect(str(node.path("/run/cnikit/agent.sock")))
    return client


class Told(NamedTuple):
    """One span as the collector was told of it."""

    name: str
    trace: str
    own: str
    parent: str
    begin: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    state: str


class Collector:
    """Takes OTLP/HTTP on a port of the node's loopback."""

    def __init__(self, node: Node) -> None:
        self.spans: list[Told] = []
        self.resources: list[dict[str, Any]] = []
        listening = node.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.bind(("127.0.0.1", 4318))
        listening.listen()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 4318), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listening
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            self.resources.append({one.key: _value(one.value) for one in resource.resource.attributes})
            self.spans += [_told(span) for scope in resource.scope_spans for span in scope.spans]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def trace(self, trace: str) -> dict[str, Told]:
        """A trace's spans by name; the last one of a name."""
        return {span.name: span for span in self.spans if span.trace == trace}


def _told(span: Span) -> Told:
    return Told(
        span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.start_time_unix_nano,
        span.end_time_unix_nano, span.status.code == 2, {one.key: _value(one.value) for one in span.attributes},
        span.trace_state,
    )  # fmt: skip


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, str(kind))


@pytest.fixture
def collector(node: Node) -> Iterator[Collector]:
    made = Collector(node)
    yield made
    made.close()


def traced(flags: str = "01", trace: str = TRACE) -> dict[str, str | None]:
    """The environment of a caller that traces."""
    return {
        "TRACEPARENT": f"00-{trace}-{PARENT}-{flags}", "TRACESTATE": "vendor=1", "BAGGAGE": "tenant=blue",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0",
    }  # fmt: skip


FOREIGN_IPAM = """#!/bin/sh
case $CNI_COMMAND in
ADD) env > /run/environ; cat > /dev/null; echo '{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.7/16"}]}' ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.1.0"]}' ;;
esac
"""


class TestTraces:
    def test_a_call_is_a_part_of_its_callers_trace(self, node: Node, start: Any, collector: Collector) -> None:
        agent = start("--otlp", "http://127.0.0.1:4318")
        pod = node.pod()
        assert node.call("bridge", "ADD", CONF, pod, env=traced()).ok
        assert agent.stop() == 0

        spans = collector.trace(TRACE)
        call, ipam = spans["ADD bridge"], spans["ipam host-local ADD"]
        assert call.parent == PARENT
        assert call.state == "vendor=1"
        assert not call.failed
        assert call.attributes == {
            "cni.command": "ADD", "cni.plugin": "bridge", "cni.container_id": pod.container_id, "cni.ifname": "eth0",
            "cni.network": "net", "k8s.pod.name": "cart-0", "k8s.namespace.name": "shop", "cnikit.outcome": "ok",
            "baggage.tenant": "blue",
        }  # fmt: skip
        for name in ("queue", "prepare", "handshake", "answer", "ipam host-local ADD", "kernel apply", "kernel nft"):
            assert spans[name].parent == call.own, name
        by_id = {span.own: span for span in collector.spans}
        locks = [span for span in collector.spans if span.parent == ipam.own]
        assert {span.attributes["cnikit.about"] for span in locks} >= {"/var/lib/cni/networks/net/lock"}
        for span in collector.spans:
            assert span.begin <= span.end
            if span.parent != PARENT:
                outer = by_id[span.parent]
                assert outer.begin <= span.begin, (span, outer)
                assert span.end <= outer.end, (span, outer)
        assert {resource["service.name"] for resource in collector.resources} == {"cnikit"}
        (line,) = agent.requests()
        assert line["trace"] == TRACE
        assert (call.end - call.begin) / 1e9 == pytest.approx(line["seconds"], abs=0.000002)

    def test_spans_say_what_the_kernel_was_asked_for(self, node: Node, start: Any, collector: Collector) -> None:
        agent = start("--otlp", "http://127.0.0.1:4318")
        assert node.call("bridge", "ADD", CONF, node.pod(), env=traced()).ok
        assert agent.stop() == 0
        details = {
            name: [text for span in collector.spans if span.name == name for text in span.attributes["cnikit.details"]]
            for name in ("kernel apply", "kernel nft")
        }
        assert "create bridge cni0" in details["kernel apply"]
        assert "add address 10.1.0.2/16 to link 2" in details["kernel apply"]
        assert "add nftables table cnikit" in details["kernel nft"]

    def test_an_error_is_one_in_the_trace(self, node: Node, start: Any, collector: Collector) -> None:
        agent = start("--otlp", "http://127.0.0.1:4318")
        refused = node.call("bridge", "ADD", {**CONF, "vlan": -1}, node.pod(), env=traced()).error
        assert agent.stop() == 0
        call = collector.trace(TRACE)["ADD bridge"]
        assert call.failed
        assert call.attributes["cni.error.code"] == refused["code"]

    def test_a_caller_that_samples_not_and_one_that_traces_not(
        self, node: Node, start: Any, collector: Collector
    ) -> None:
        agent = start(env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
        pod = node.pod()
        assert node.call("bridge", "ADD", CONF, pod, env=traced("00")).ok
        node.call("bridge", "DEL", CONF, pod).silent()
        assert agent.stop() == 0
        assert collector.trace(TRACE) == {}
        (call,) = [span for span in collector.spans if span.parent == ""]
        assert call.name == "DEL bridge"

    def test_a_sampler_that_wants_none(self, node: Node, start: Any, collector: Collector) -> None:
        agent = start("--otlp", "http://127.0.0.1:4318", env={"OTEL_TRACES_SAMPLER": "parentbased_always_off"})
        pod = node.pod()
        assert node.call("bridge", "ADD", CONF, pod).ok
        node.call("bridge", "DEL", CONF, pod, env=traced()).silent()
        assert agent.stop() == 0
        assert {span.trace for span in collector.spans} == {TRACE}

    def test_a_foreign_program_is_given_the_calls_span(
        self, node: Node, start: Any, collector: Collector, tmp_path: Path
    ) -> None:
        plugin = tmp_path / "foreign-ipam"
        plugin.write_text(FOREIGN_IPAM)
        plugin.chmod(0o755)
        agent = start("--otlp", "http://127.0.0.1:4318")
        path = {"CNI_PATH": f"{node.way.bin_dir}:{tmp_path}"}
        conf = network(ipam={"type": "foreign-ipam"})
        assert node.call("bridge", "ADD", conf, node.pod(), env={**traced(), **path}).ok
        assert agent.stop() == 0
        given = dict(line.split("=", 1) for line in node.path("/run/environ").read_text().splitlines())
        spans = collector.trace(TRACE)
        assert given["TRACEPARENT"] == f"00-{TRACE}-{spans['ADD bridge'].own}-01"
        assert given["TRACESTATE"] == "vendor=1"
        assert given["BAGGAGE"] == "tenant=blue"
        assert spans["ipam foreign-ipam ADD"].parent == spans["ADD bridge"].own

    def test_a_collector_that_is_away_costs_the_spans_only(self, node: Node, start: Any) -> None:
        agent = start("--otlp", "http://127.0.0.1:4318")
        pod = node.pod()
        assert node.call("bridge", "ADD", CONF, pod, env=traced()).ok
        node.call("bridge", "DEL", CONF, pod, env=traced()).silent()
        assert agent.stop() == 0

    def test_a_collector_that_is_no_url_is_refused(self, node: Node, bin_dir: Path) -> None:
        answer = node.attempt(str(bin_dir.parent / "cnikit"), "agent", "--otlp", "127.0.0.1:4318")
        assert answer.status == 1
        assert "--otlp: expected a URL such as http://127.0.0.1:4318, found '127.0.0.1:4318'" in answer.stderr

    def test_a_protocol_that_is_not_spoken_is_told(self, start: Any) -> None:
        agent = start("--otlp", "http://127.0.0.1:4318", env={"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
        assert "expected the OTLP protocol http/protobuf, found grpc" in agent.log()

    def test_without_a_collector_nothing_of_it_is_loaded(self, node: Node, start: Any) -> None:
        agent = start()
        assert node.call("bridge", "ADD", CONF, node.pod(), env=traced()).ok
        maps = Path(f"/proc/{agent.pid}/maps").read_text()
        assert "google" not in maps
        assert "protobuf" not in maps
        assert agent.status("VmRSS") < 25 * 1024


class TestTop:
    def test_once(self, node: Node, start: Any, bin_dir: Path) -> None:
        start()
        assert node.call("bridge", "ADD", CONF, node.pod()).ok
        shown = node.run(str(bin_dir.parent / "cnikit"), "top", "--once")
        (calls,) = [line for line in shown.splitlines() if line.startswith("│ ADD")]
        assert calls.split("│")[-2].strip() == "1"
        (pool,) = [line for line in shown.splitlines() if line.startswith("│ net     │ 0 ")]
        assert [cell.strip() for cell in pool.split("│")[3:5]] == ["1", "65532"]

    def test_no_agent(self, node: Node, bin_dir: Path) -> None:
        answer = node.attempt(str(bin_dir.parent / "cnikit"), "top", "--once")
        assert answer.status == 1
        assert "no agent answers at /run/cnikit/agent-http.sock" in answer.stderr

    def test_it_follows_an_agent_that_starts_anew(self, node: Node, start: Any, bin_dir: Path) -> None:
        agent = start()
        screen, terminal = os.openpty()
        argv = (str(bin_dir.parent / "cnikit"), "top", "--interval", "0.1")
        env = {"PATH": SEARCH_PATH, "TERM": "xterm", "COLUMNS": "150"}
        process = node.spawn(*argv, env=env, stdin=terminal, stdout=terminal, stderr=terminal)
        os.close(terminal)
        try:
            _read_until(screen, b"calls in all")
            agent.signal(signal.SIGHUP)
            wait_until(lambda: agent.log().count("listening at") == 2, "it has started anew")
            assert node.call("loopback", "STATUS", PLAIN).ok
            _read_until(screen, b"STATUS")
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(GENEROUS) == 0
            os.close(screen)


def _read_until(screen: int, text: bytes) -> None:
    """Read what a terminal shows until it shows this."""
    shown = b""
    while text not in shown:
        ready, _, _ = select.select([screen], [], [], GENEROUS)
        assert ready, f"waited {GENEROUS} s for {text!r} in {shown[-2000:]!r}"
        shown += os.read(screen, 1 << 16)


def test_ten_thousand_calls_with_metrics_read_stay_in_thirty_mebibytes(node: Node, start: Any) -> None:
    agent = start()
    pods = node.many_pods(8)

    def call(command: str, number: int) -> None:
        with Client(agent) as client:
            frame = client.call(Request(node, "bridge", command, CONF, pods[number % len(pods)]))
            assert frame.code == 0, frame

    def counted(wanted: int) -> bool:
        return Metrics(node).value("cnikit_requests_total", outcome="ok") == wanted

    with ThreadPoolExecutor(8) as callers:
        for _ in range(60):
            for command in ("ADD", "DEL"):
                list(callers.map(call, repeat(command), range(len(pods))))
        after_a_thousand = 0
        for thousand in range(9):
            list(callers.map(call, repeat("STATUS"), range(1000)))
            wait_until(partial(counted, 960 + 1000 * (thousand + 1)), "all calls are counted")
            after_a_thousand = after_a_thousand or agent.status("VmRSS")
    found = agent.status("VmRSS")
    assert found <= 30 * 1024, f"{found} KiB"
    assert found - after_a_thousand < 1024, f"{after_a_thousand} KiB, then {found} KiB"
