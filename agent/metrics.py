"""What the agent counts, and its metrics page.

Counting costs a few microseconds for each call: plain numbers, which become prometheus_client's families only when
somebody asks for the page. Every label's values are bounded: what others have named is "other" beyond a bound.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from typing import TYPE_CHECKING

from agent.exposition import lean
from cni import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from agent.report import Account
    from agent.service import Served

COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")
OTHER = "other"

# Upper bounds in seconds. A veth pair takes the kernel about 1 ms; a launcher waits for 60 s at most.
BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.007, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_MOST_CODES = 64


class Histogram:
    """Observations of seconds by bucket; the last one is above all bounds."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def cumulated(self) -> list[tuple[str, float]]:
        """Pairs of bound and count as HistogramMetricFamily takes them."""
        total = 0
        pairs = []
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self.counts, strict=True):
            total += count
            pairs.append((bound, float(total)))
        return pairs


class Counters:
    """What was counted of calls (`agent/report.py`). Used by one thread at a time: whoever settles the reporter."""

    def __init__(self, plugins: Collection[str]) -> None:
        self._plugins = plugins
        self.requests: dict[tuple[str, str, str], int] = {}
        self.errors: dict[tuple[str, str], int] = {}
        self.durations: dict[tuple[str, str], Histogram] = {}
        self.steps: dict[tuple[str, str], Histogram] = {}
        self._codes: set[str] = set()

    def __call__(self, account: Account, served: Served) -> None:  # noqa: ARG002 - the account says it all
        command = account.command if account.command in COMMANDS else OTHER
        plugin = account.plugin if account.plugin in self._plugins else OTHER
        request = (command, plugin, account.outcome)
        self.requests[request] = self.requests.get(request, 0) + 1
        if account.code is not None:
            error = (plugin, self._code(str(account.code)))
            self.errors[error] = self.errors.get(error, 0) + 1
        _observe(self.durations, (command, plugin), account.seconds)
        for kind, seconds in account.steps.items():
            _observe(self.steps, (command, kind), seconds)

    def _code(self, code: str) -> str:
        if len(self._codes) < _MOST_CODES:
            self._codes.add(code)
        return code if code in self._codes else OTHER

    def families(self) -> Iterator[Metric]:
        core = lean("metrics_core")
        requests = core.CounterMetricFamily(
            "cnikit_requests",
            "Calls that came to an end. Outcome: ok, error, declined (run one-shot), undelivered, lost.",
            labels=("command", "plugin", "outcome"),
        )
        for request, count in sorted(self.requests.items()):
            requests.add_metric(request, count)
        yield requests
        errors = core.CounterMetricFamily(
            "cnikit_errors", "Calls that were answered with an error, by its code.", labels=("plugin", "code")
        )
        for error, count in sorted(self.errors.items()):
            errors.add_metric(error, count)
        yield errors
        for name, text, labels, histograms in (
            (
                "cnikit_request_duration_seconds",
                "From a complete request to the end of its connection.",
                ("command", "plugin"),
                self.durations,
            ),
            (
                "cnikit_step_duration_seconds",
                "What the steps of one kind took in one call. A step within another counts as that one.",
                ("command", "step"),
                self.steps,
            ),
        ):
            family = core.HistogramMetricFamily(name, text, labels=labels)
            for key, histogram in sorted(histograms.items()):
                family.add_metric(key, histogram.cumulated(), histogram.sum)
            yield family


class Vitals:
    """What can be read off the agent at any time: each a name, a help text and how to get the value."""

    def __init__(
        self, counts: Iterable[tuple[str, str, Callable[[], int]]], gauges: Iterable[tuple[str, str, Callable[[], int]]]
    ) -> None:
        self._counts = tuple(counts)
        self._gauges = tuple(gauges)

    def families(self) -> Iterator[Metric]:
        core = lean("metrics_core")
        for name, text, count in self._counts:
            yield core.CounterMetricFamily(name, text, value=count())
        for name, text, gauge in self._gauges:
            yield core.GaugeMetricFamily(name, text, value=gauge())
        build = core.GaugeMetricFamily("cnikit_build_info", "Always 1.", labels=("version", "python"))
        build.add_metric((__version__, platform.python_version()), 1)
        yield build


def process_families() -> Iterable[Metric]:
    """Memory, descriptors and time of this process."""
    families: Iterable[Metric] = lean("process_collector").ProcessCollector(namespace="cnikit", registry=None).collect()
    return families


def _observe(histograms: dict[tuple[str, str], Histogram], key: tuple[str, str], seconds: float) -> None:
    histogram = histograms.get(key)
    if histogram is None:
        histogram = histograms[key] = Histogram()
    histogram.observe(seconds)
