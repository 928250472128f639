"""Spans of calls, sent over OTLP/HTTP: the call itself, and in it what `agent/steps.py` has timed.

Imported only when an endpoint is configured: the OpenTelemetry SDK takes as much memory as the agent itself. The
call's own span begins with the call, because its ID is passed on to a foreign program that it runs. Everything else is made
when the call has been answered, from the times that were noted.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from opentelemetry.baggage import get_all
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import Status, StatusCode

from cni import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

    from agent.report import Account
    from agent.service import Served
    from agent.steps import Done, Steps

# The variables of the environment that carry a trace, and the headers whose form they have.
VARIABLES = {"TRACEPARENT": "traceparent", "TRACESTATE": "tracestate", "BAGGAGE": "baggage"}

_MOST_BAGGAGE = 32
_MOST_DETAILS = 64
_CLOSING_SECONDS = 5.0
_AGAIN_SECONDS = 60.0

_sdk = logging.getLogger("opentelemetry")
_parent = TraceContextTextMapPropagator()
_baggage = W3CBaggagePropagator()


class Tracing:
    """Makes and sends spans. `endpoint` is the URL that takes them; empty for what the environment says.

    `failed` is given a line when spans cannot be sent.
    """

    def __init__(self, endpoint: str, failed: Callable[[str], None], processor: SpanProcessor | None = None) -> None:
        self._failed = failed
        self._lines = _Lines(failed)
        _sdk.addHandler(self._lines)
        _sdk.propagate = False
        # Of the two the second counts: a name that the environment gives.
        defaults = Resource({"service.name": "cnikit", "service.version": __version__})
        found = Resource.create()
        named = {key: value for key, value in found.attributes.items() if not str(value).startswith("unknown_service")}
        self._provider = TracerProvider(resource=defaults.merge(Resource(named)), shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint or None)))
        self._tracer = self._provider.get_tracer("cnikit", __version__)

    def begin(self, environ: Mapping[str, str], plugin: str, steps: Steps) -> Trace | None:
        """The trace of a call; None when its caller, or the sampler, wants none."""
        try:
            return self._begin(environ, plugin, steps)
        except Exception as error:  # noqa: BLE001 - the call comes first
            self._failed(f"tracing: {type(error).__name__}: {error}")
            return None

    def _begin(self, environ: Mapping[str, str], plugin: str, steps: Steps) -> Trace | None:
        given = {header: environ.get(name, "") for name, header in VARIABLES.items()}
        carrier = {header: value for header, value in given.items() if value and value.isascii()}
        context = _baggage.extract(carrier, _parent.extract(carrier))
        offset = time.time_ns() - time.monotonic_ns()
        command = environ.get("CNI_COMMAND", "")
        span = self._tracer.start_span(
            f"{command} {plugin}"[:128],
            context,
            SpanKind.SERVER,
            start_time=offset + round(steps.begin * 1e9),
            attributes=_baggage_attributes(context),
        )
        if not span.is_recording():
            return None
        steps.detailed = True
        return Trace(self._tracer, span, offset)

    def __call__(self, account: Account, served: Served) -> None:
        """Finish the trace of a call that has ended (`agent/report.py`)."""
        if isinstance(served.trace, Trace):
            served.trace.finish(account, served.steps)

    def close(self) -> None:
        """Send what is left, in a few seconds or not at all."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSING_SECONDS)
        _sdk.removeHandler(self._lines)


class Trace:
    """One call's span while the call runs."""

    def __init__(self, tracer: Any, span: Span, offset: int) -> None:
        self._tracer = tracer
        self._span = span
        self._offset = offset  # from the monotonic clock to the time of day, in nanoseconds
        self.trace_id = f"{span.get_span_context().trace_id:032x}"

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment for a foreign program that the call runs: its parent is the call's span."""
        carrier: dict[str, str] = {}
        _parent.inject(carrier, set_span_in_context(self._span))
        own = {name: carrier[header] for name, header in VARIABLES.items() if header in carrier}
        return {**environ, **own}

    def finish(self, account: Account, steps: Steps) -> None:
        """Make the spans of the steps, and end the call's."""
        self._span.set_attributes(_attributes(account))
        if account.code is not None:
            self._span.set_attribute("cni.error.code", account.code)
        if account.outcome in ("error", "undelivered", "lost"):
            self._span.set_status(Status(StatusCode.ERROR, account.message or account.outcome))
        self._add(steps.done)
        self._span.end(self._time(steps.end))

    def _add(self, done: Sequence[Done]) -> None:
        # Steps are noted at their ends; by their beginnings, and outer ones first, a step's parent is the last one
        # that was one less deep.
        outer = [self._span]
        for step in sorted(done, key=lambda one: (one.begin, one.depth)):
            del outer[step.depth + 1 :]
            span = self._tracer.start_span(
                " ".join(part for part in (step.kind, step.about if step.kind in _NAMED else "") if part),
                set_span_in_context(outer[-1]),
                start_time=self._time(step.begin),
                attributes=_step_attributes(step),
            )
            if step.failure:
                span.set_status(Status(StatusCode.ERROR, step.failure))
            span.end(self._time(step.end))
            outer.append(span)

    def _time(self, monotonic: float) -> int:
        return self._offset + round(monotonic * 1e9)


# Kinds whose subject has few values, so that it belongs into the span's name.
_NAMED = ("kernel", "ipam")


class _Lines(logging.Handler):
    """What the SDK has to say, as lines of the agent's log; the same again only after a while."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._write = write
        self._said: dict[tuple[str, int], float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        place = (record.pathname, record.lineno)
        if record.created - self._said.get(place, 0.0) >= _AGAIN_SECONDS:
            self._said[place] = record.created
            self._write(f"tracing: {record.getMessage()}")


def _attributes(account: Account) -> dict[str, str]:
    found = {
        "cni.command": account.command,
        "cni.plugin": account.plugin,
        "cni.container_id": account.container,
        "cni.ifname": account.ifname,
        "cni.network": account.network,
        "k8s.pod.name": account.pod,
        "k8s.namespace.name": account.namespace,
        "cnikit.outcome": account.outcome,
    }
    return {key: value for key, value in found.items() if value}


def _step_attributes(step: Done) -> dict[str, Any]:
    found: dict[str, Any] = {"cnikit.step": step.kind}
    if step.kind not in _NAMED and step.about:
        found["cnikit.about"] = step.about
    if step.arguments:
        found["cnikit.details"] = [_shown(one) for one in step.arguments[:_MOST_DETAILS]]
    return found


def _shown(argument: object) -> str:
    """An operation's text; other arguments of the kernel's verbs as they are."""
    text = getattr(argument, "text", None)
    if isinstance(text, str):
        return text
    if isinstance(argument, (list, tuple)):
        return " ".join(map(_shown, argument))
    return argument.hex() if isinstance(argument, bytes) else str(argument)


def _baggage_attributes(context: Context) -> dict[str, str]:
    return {f"baggage.{key}": str(value) for key, value in list(get_all(context).items())[:_MOST_BAGGAGE]}
