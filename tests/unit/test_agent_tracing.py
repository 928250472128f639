"""Spans: parents, nesting, times, and what is said of each. Exported in memory; the wire is the end-to-end tests'."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import StatusCode

from agent.steps import Steps, TimedKernel
from agent.tracing import Trace, Tracing
from cni.errors import CniError
from cni.kernel import ops
from cni.testing.fake_kernel import FakeKernel
from tests.unit.test_agent_metrics import account

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"


class World:
    """Tracing whose spans are kept, and calls to trace."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.failures: list[str] = []
        self.tracing = Tracing("", self.failures.append, SimpleSpanProcessor(self.exporter))
        self.steps = Steps(time.monotonic)

    def begin(self, traceparent: str = SAMPLED, **environ: str) -> Trace | None:
        return self.tracing.begin({"CNI_COMMAND": "ADD", "TRACEPARENT": traceparent, **environ}, "bridge", self.steps)

    def end(self, trace: Trace | None, **given: Any) -> dict[str, ReadableSpan]:
        """The call's spans by name; the last one of a name."""
        self.steps.finish()
        self.tracing(account(**given), SimpleNamespace(trace=trace, steps=self.steps))  # type: ignore[arg-type]
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.tracing.close()


def parent(span: ReadableSpan) -> str:
    return f"{span.parent.span_id:016x}" if span.parent else ""


def own(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


class TestTheCall:
    def test_its_parent_is_the_callers_span(self, world: World) -> None:
        trace = world.begin(TRACESTATE="vendor=1")
        assert trace is not None
        assert trace.trace_id == TRACE
        span = world.end(trace)["ADD bridge"]
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == TRACE
        assert parent(span) == PARENT
        assert span.kind is SpanKind.SERVER
        assert span.context.trace_state.get("vendor") == "1"

    def test_what_is_said_of_it(self, world: World) -> None:
        trace = world.begin(BAGGAGE="user=jo%20e,tier=1")
        span = world.end(trace, pod="cart-0", namespace="shop")["ADD bridge"]
        assert span.status.status_code is StatusCode.UNSET
        assert dict(span.attributes or {}) == {
            "cni.command": "ADD", "cni.plugin": "bridge", "cni.container_id": "ctr", "cni.ifname": "eth0",
            "cni.network": "net", "k8s.pod.name": "cart-0", "k8s.namespace.name": "shop", "cnikit.outcome": "ok",
            "baggage.user": "jo e", "baggage.tier": "1",
        }  # fmt: skip

    def test_an_error(self, world: World) -> None:
        span = world.end(world.begin(), outcome="error", code=11, message="no address")["ADD bridge"]
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "no address"
        assert (span.attributes or {})["cni.error.code"] == 11

    def test_its_times_are_those_of_the_steps(self, world: World) -> None:
        before = time.time_ns()
        trace = world.begin()
        span = world.end(trace)["ADD bridge"]
        assert span.start_time is not None
        assert span.end_time is not None
        length = (span.end_time - span.start_time) / 1e9
        assert length == pytest.approx(world.steps.end - world.steps.begin, abs=1e-6)
        assert before - 10**9 < span.start_time < span.end_time <= time.time_ns() + 10**6

    @pytest.mark.parametrize("traceparent", ["", "nonsense", "00-0-0-01", f"ff-{TRACE}-{PARENT}-01", "\udcff"])
    def test_without_a_parent_it_is_a_root(self, world: World, traceparent: str) -> None:
        trace = world.begin(traceparent)
        span = world.end(trace)["ADD bridge"]
        assert span.parent is None
        assert world.failures == []

    def test_a_caller_that_samples_not_gets_none(self, world: World) -> None:
        trace = world.begin(UNSAMPLED)
        assert trace is None
        assert not world.steps.detailed
        assert world.end(trace) == {}

    def test_hostile_baggage_harms_nothing(self, world: World) -> None:
        many = ",".join(f"k{number}=v" for number in range(1000))
        for baggage in (many, "=,=;;,", "\udcff=1", "x" * 100_000):
            assert world.begin(BAGGAGE=baggage) is not None
        assert [line for line in world.failures if "Error" in line] == []
        assert len(world.failures) == len(set(world.failures)), "a caller cannot fill the log with this"


def test_a_defect_of_the_sdk_costs_the_trace_and_not_the_call(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.tracing, "_begin", None)
    assert world.begin() is None
    assert world.failures == ["tracing: TypeError: 'NoneType' object is not callable"]


class TestSteps:
    def test_steps_within_steps(self, world: World) -> None:
        trace, steps = world.begin(), world.steps
        steps.mark("queue")
        with steps("ipam", "host-local ADD"):
            with steps("lock", "/a"), steps("kernel", "link"):
                pass
            with steps("kernel", "nft"):
                pass
        with steps("answer", ""):
            pass
        spans = world.end(trace)
        root, ipam = spans["ADD bridge"], spans["ipam host-local ADD"]
        assert {name: parent(span) for name, span in spans.items()} == {
            "ADD bridge": PARENT, "queue": own(root), "ipam host-local ADD": own(root), "lock": own(ipam),
            "kernel link": own(spans["lock"]), "kernel nft": own(ipam), "answer": own(root),
        }  # fmt: skip
        times = {name: (span.start_time or 0, span.end_time or 0) for name, span in spans.items()}
        for inner, outer in (("lock", "ipam host-local ADD"), ("kernel link", "lock"), ("queue", "ADD bridge")):
            assert times[outer][0] <= times[inner][0] <= times[inner][1] <= times[outer][1]
        assert times["ipam host-local ADD"][1] <= times["answer"][0]

    def test_paths_are_no_names(self, world: World) -> None:
        trace = world.begin()
        with world.steps("lock", "/run/cnikit/locks/net:a:eth0:bridge"):
            pass
        attributes = world.end(trace)["lock"].attributes or {}
        assert attributes["cnikit.about"] == "/run/cnikit/locks/net:a:eth0:bridge"

    def test_what_the_kernel_was_asked_for(self, world: World) -> None:
        kernel = FakeKernel()
        trace = world.begin()
        timed = TimedKernel(kernel, world.steps, lambda: world.steps("wait", ""))
        with timed.own() as host:
            host.apply(ops.bridge_add("cni0", None), ops.link_set("cni0", up=True))
            host.link("cni0")
        spans = world.end(trace)
        details = (spans["kernel apply"].attributes or {})["cnikit.details"]
        assert details == ("create bridge cni0", "set up of cni0")
        assert (spans["kernel link"].attributes or {})["cnikit.details"] == ("cni0",)

    def test_a_step_that_failed(self, world: World) -> None:
        trace = world.begin()
        with pytest.raises(CniError), world.steps("kernel", "apply"):
            raise CniError(999, "EBUSY")
        status = world.end(trace)["kernel apply"].status
        assert (status.status_code, status.description) == (StatusCode.ERROR, "EBUSY")

    def test_without_a_trace_nothing_is_kept_of_the_kernels_work(self) -> None:
        steps = Steps(time.monotonic)
        with steps("kernel", "apply", (ops.bridge_add("cni0", None),)):
            pass
        assert steps.done[0].arguments == ()


class TestForeignPrograms:
    def test_their_parent_is_the_calls_span(self, world: World) -> None:
        trace = world.begin(TRACESTATE="vendor=1")
        assert trace is not None
        environ = {"CNI_COMMAND": "ADD", "TRACEPARENT": SAMPLED, "TRACESTATE": "vendor=1", "BAGGAGE": "a=b"}
        given = trace.environ(environ)
        span = world.end(trace)["ADD bridge"]
        assert given == {**environ, "TRACEPARENT": f"00-{TRACE}-{own(span)}-01"}
        assert environ["TRACEPARENT"] == SAMPLED


def test_the_services_name_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "node-network")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=n1")
    world = World()
    span = world.end(world.begin())["ADD bridge"]
    assert span.resource.attributes["service.name"] == "node-network"
    assert span.resource.attributes["k8s.node.name"] == "n1"
    assert span.resource.attributes["service.version"]
    world.tracing.close()


def test_the_services_name_is_ours_otherwise(world: World) -> None:
    assert world.end(world.begin())["ADD bridge"].resource.attributes["service.name"] == "cnikit"
