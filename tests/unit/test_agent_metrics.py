"""What is counted, and the metrics page as Prometheus' own library reads it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from agent.exposition import Page, text
from agent.metrics import BUCKETS, COMMANDS, Counters, Histogram, Vitals, process_families
from agent.report import Account

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric

ROOT = Path(__file__).resolve().parents[2]


def account(**given: Any) -> Account:
    """A successful ADD, but for what is given."""
    usual: dict[str, Any] = {
        "at": 0.0, "command": "ADD", "plugin": "bridge", "container": "ctr", "ifname": "eth0", "network": "net",
        "pod": "", "namespace": "", "outcome": "ok", "code": None, "message": "", "details": "", "seconds": 0.003,
        "steps": {"queue": 0.0001, "kernel": 0.002}, "lines": [], "trace": "",
    }  # fmt: skip
    return Account(**{**usual, **given})


def count(*accounts: Account) -> Counters:
    counters = Counters(["bridge", "host-local", "loopback"])
    for one in accounts:
        counters(one, None)  # type: ignore[arg-type]
    return counters


def read(*collectors: Callable[[], Iterable[Metric]]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples by name and labels."""
    page = Page(lambda: None, *collectors)().decode()
    families = list(text_string_to_metric_families(page))
    assert "unknown" not in {family.type for family in families}
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def labels(**given: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(given.items()))


class TestCounters:
    def test_requests_by_command_plugin_and_outcome(self) -> None:
        found = read(count(account(), account(), account(command="DEL", outcome="declined")).families)
        name = "cnikit_requests_total"
        assert found[name, labels(command="ADD", plugin="bridge", outcome="ok")] == 2
        assert found[name, labels(command="DEL", plugin="bridge", outcome="declined")] == 1

    def test_errors_by_code(self) -> None:
        found = read(count(account(outcome="error", code=11), account(outcome="error", code=999), account()).families)
        errors = {key: value for (name, key), value in found.items() if name == "cnikit_errors_total"}
        assert errors == {labels(plugin="bridge", code="11"): 1, labels(plugin="bridge", code="999"): 1}

    def test_latencies_as_histograms(self) -> None:
        found = read(count(account(seconds=0.0031), account(seconds=99.0)).families)
        name, key = "cnikit_request_duration_seconds", {"command": "ADD", "plugin": "bridge"}
        assert found[f"{name}_count", labels(**key)] == 2
        assert found[f"{name}_sum", labels(**key)] == pytest.approx(99.0031)
        assert found[f"{name}_bucket", labels(**key, le="0.002")] == 0
        assert found[f"{name}_bucket", labels(**key, le="0.004")] == 1
        assert found[f"{name}_bucket", labels(**key, le="30.0")] == 1
        assert found[f"{name}_bucket", labels(**key, le="+Inf")] == 2

    def test_steps_by_kind(self) -> None:
        found = read(count(account(), account(command="DEL")).families)
        for command in ("ADD", "DEL"):
            for step, seconds in (("queue", 0.0001), ("kernel", 0.002)):
                key = labels(command=command, step=step)
                assert found["cnikit_step_duration_seconds_sum", key] == pytest.approx(seconds)

    def test_a_value_on_a_bound_belongs_below_it(self) -> None:
        histogram = Histogram()
        for bound in BUCKETS:
            histogram.observe(bound)
        assert [value for _, value in histogram.cumulated()] == [*range(1, len(BUCKETS) + 1), len(BUCKETS)]

    def test_what_callers_make_up_does_not_make_labels(self) -> None:
        accounts = [
            account(command=f"C{number}", plugin=f"p{number}", code=number, outcome="error") for number in range(1000)
        ]
        found = read(count(*accounts).families)
        assert {dict(key)["command"] for name, key in found if name == "cnikit_requests_total"} == {"other"}
        assert {dict(key)["plugin"] for name, key in found if name == "cnikit_requests_total"} == {"other"}
        errors = {dict(key)["code"]: value for (name, key), value in found.items() if name == "cnikit_errors_total"}
        assert len(errors) == 65
        assert errors["other"] == 1000 - 64
        assert "ADD" in COMMANDS


class TestPage:
    def test_label_values_may_hold_anything(self) -> None:
        family = GaugeMetricFamily("g", 'help with \\ and\nan "end"', labels=("a",))
        hostile = 'x"y\\z\n{},=é\u2028'
        family.add_metric([hostile], 1.5)
        (sample,) = read(lambda: [family])
        assert sample == ("g", (("a", hostile),))
        (parsed,) = text_string_to_metric_families(text(family))
        assert parsed.documentation == 'help with \\ and\nan "end"'

    @pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 0.1, 1e-9, 1.8446744073709552e19, 1e300])
    def test_numbers_come_back(self, value: float) -> None:
        assert list(read(lambda: [GaugeMetricFamily("g", "h", value=value)]).values()) == [value]

    def test_calls_that_have_ended_are_counted_first(self) -> None:
        counters = count()
        page = Page(lambda: counters(account(), None), counters.families)  # type: ignore[arg-type]
        assert b'cnikit_requests_total{command="ADD",plugin="bridge",outcome="ok"} 1\n' in page()
        assert b'cnikit_requests_total{command="ADD",plugin="bridge",outcome="ok"} 2\n' in page()

    def test_vitals(self) -> None:
        found = read(Vitals([("cnikit_a", "A.", lambda: 3)], [("cnikit_b", "B.", lambda: 4)]).families)
        assert found["cnikit_a_total", ()] == 3
        assert found["cnikit_b", ()] == 4
        assert any(name == "cnikit_build_info" and value == 1 for (name, _), value in found.items())

    def test_the_process(self) -> None:
        found = read(process_families)
        assert found["cnikit_process_resident_memory_bytes", ()] > 1 << 20
        assert found["cnikit_process_open_fds", ()] >= 3


def test_names_follow_the_conventions_of_prometheus() -> None:
    vitals = Vitals([("cnikit_a", "A.", lambda: 3)], [])
    families = [*count(account(code=1)).families(), *vitals.families(), *process_families()]
    for family in families:
        assert re.fullmatch(r"cnikit_[a-z]+(_[a-z]+)*", family.name), family.name
        assert family.type != "counter" or family.samples[0].name.endswith("_total")
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_the_page_is_written_without_an_http_server_in_memory() -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from agent.exposition import Page, lean
from agent.metrics import Counters, process_families
from agent.pools import Pools
before = set(sys.modules)
assert b"cnikit_requests_total" in Page(lambda: None, Counters([]).families, Pools(lambda: 0.0).families, process_families)()
print(*sorted(set(sys.modules) - before))
import prometheus_client
print(prometheus_client.generate_latest)  # whoever wants the whole library still gets it
assert lean("metrics_core") is prometheus_client.metrics_core
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(ran.stdout.splitlines()[0].split())
    assert "prometheus_client.metrics_core" in loaded
    assert {"http.server", "ssl", "email", "http.client", "wsgiref", "asyncio"} & loaded == set()
