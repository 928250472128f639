"""The table of `cnikit top`: what the agent of this node is doing, from its metrics page."""

from __future__ import annotations

import http.client
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

import click
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from agent.http import AddressError, parse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.samples import Sample

_SECONDS = 5.0
_MEBI = 1 << 20

Labels = tuple[tuple[str, str], ...]


def show_once(where: str) -> None:
    """Print one table, with everything since the agent's start."""
    page = look(where)
    Console(soft_wrap=True).print(render(page, Page({}, page.started), where))


def show(where: str, interval: float) -> None:
    """Show a live table until KeyboardInterrupt."""
    page = look(where)
    before = Page({}, page.started)
    with Live(render(page, before, where), auto_refresh=False, screen=Console().is_terminal) as live:
        while True:
            time.sleep(interval)
            try:
                before, page = page, look(where)
            except click.ClickException as error:  # it may be starting anew
                live.update(Text(error.message), refresh=True)
                continue
            if before.started != page.started:
                before = Page({}, page.started)
            live.update(render(page, before, where), refresh=True)


def look(where: str) -> Page:
    """The agent's page as it is now; ClickException when there is none."""
    try:
        return scrape(where)
    except AddressError as error:
        raise click.ClickException(str(error)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise click.ClickException(
            f"no agent answers at {where}: {what}; start one with `cnikit agent`, or give --http the place "
            "that the agent was given"
        ) from None


class Page:
    """One look at the metrics page. `at` is when that was, in seconds since the epoch."""

    def __init__(self, samples: dict[str, dict[Labels, float]], at: float) -> None:
        self.samples = samples
        self.at = at

    @property
    def started(self) -> float:
        """When the agent was started."""
        return self.value("cnikit_process_start_time_seconds")

    def value(self, name: str, **labels: str) -> float:
        """A sample's value; of several with these labels their sum."""
        wanted = labels.items()
        return sum(value for key, value in self.samples.get(name, {}).items() if wanted <= set(key))

    def labels(self, name: str, label: str) -> list[str]:
        """The values that a label has."""
        return sorted({dict(key)[label] for key in self.samples.get(name, {})})


def scrape(where: str) -> Page:
    """Ask the agent."""
    connection = _Connection(where)
    try:
        connection.request("GET", "/metrics")
        with connection.getresponse() as answer:
            if answer.status != 200:
                raise ValueError(f"expected its metrics, found HTTP status {answer.status}")
            return parsed(answer.read().decode())
    finally:
        connection.close()


def parsed(text: str) -> Page:
    """A page from its text."""
    samples: dict[str, dict[Labels, float]] = {}
    found: Iterable[Sample] = (one for family in text_string_to_metric_families(text) for one in family.samples)
    for one in found:
        samples.setdefault(one.name, {})[tuple(one.labels.items())] = one.value
    return Page(samples, time.time())


class _Connection(http.client.HTTPConnection):
    def __init__(self, where: str) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._where = parse(where)

    def connect(self) -> None:
        if isinstance(self._where, tuple):
            self.sock = socket.create_connection(self._where, _SECONDS)
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(self._where)


class Row(NamedTuple):
    """The calls of one command between two looks."""

    command: str
    rate: float
    median: float
    slowest: float  # the 99th of 100
    errors: float
    total: float


def rows(page: Page, before: Page) -> list[Row]:
    """One row for each command that was ever called."""
    name = "cnikit_request_duration_seconds"
    seconds = max(page.at - before.at, 0.001)
    found = []
    for command in page.labels(f"{name}_count", "command"):
        buckets = [
            (float(bound), _since(page, before, f"{name}_bucket", command=command, le=bound))
            for bound in page.labels(f"{name}_bucket", "le")
        ]
        buckets.sort()
        failed = sum(
            _since(page, before, "cnikit_requests_total", command=command, outcome=outcome)
            for outcome in ("error", "undelivered", "lost")
        )
        calls = _since(page, before, f"{name}_count", command=command)
        total = page.value(f"{name}_count", command=command)
        found.append(Row(command, calls / seconds, quantile(0.5, buckets), quantile(0.99, buckets), failed, total))
    return found


def quantile(rank: float, buckets: list[tuple[float, float]]) -> float:
    """The value below which `rank` of the observations lie, from pairs of upper bound and count up to it.

    Within a bucket observations are taken for evenly spread, as Prometheus' histogram_quantile does. NaN for none.
    """
    if not buckets or not buckets[-1][1]:
        return float("nan")
    wanted = rank * buckets[-1][1]
    lower = below = 0.0
    for bound, count in buckets:
        if count >= wanted:
            inside = count - below
            return (
                lower
                if bound == float("inf")
                else lower + (bound - lower) * ((wanted - below) / inside if inside else 1)
            )
        lower, below = bound, count
    return lower


def render(page: Page, before: Page, where: str) -> Group:
    """All that is shown."""
    return Group(_title(page, where), _calls(page, before), _pools(page))


def _title(page: Page, where: str) -> str:
    uptime = max(0, round(page.at - page.started))
    hours, rest = divmod(uptime, 3600)
    memory = page.value("cnikit_process_resident_memory_bytes") / _MEBI
    (version,) = page.labels("cnikit_build_info", "version") or ["?"]
    return (
        f"cnikit {version} at {where}  up {hours}:{rest // 60:02d}:{rest % 60:02d}  memory {memory:.1f} MiB  "
        f"threads {page.value('cnikit_threads'):.0f}  descriptors {page.value('cnikit_process_open_fds'):.0f}  "
        f"in flight {page.value('cnikit_requests_in_flight'):.0f}"
    )


def _calls(page: Page, before: Page) -> Table:
    table = Table("command", *_right("calls/s", "p50 ms", "p99 ms", "errors", "calls in all"))
    for row in rows(page, before):
        cells = (f"{row.rate:.1f}", _ms(row.median), _ms(row.slowest), f"{row.errors:.0f}", f"{row.total:.0f}")
        table.add_row(row.command, *cells)
    return table


def _pools(page: Page) -> Table:
    table = Table("network", "range set", *_right("used", "free", "used %"))
    free = page.samples.get("cnikit_leases_free", {})
    for key, used in sorted(page.samples.get("cnikit_leases_used", {}).items()):
        labels, size = dict(key), used + free.get(key, 0.0)
        share = 100 * used / size if size else 100.0
        table.add_row(labels["network"], labels["range_set"], f"{used:.0f}", _count(free.get(key, 0.0)), f"{share:.1f}")
    return table


def _right(*names: str) -> list[Column]:
    return [Column(name, justify="right") for name in names]


def _ms(seconds: float) -> str:
    return "-" if seconds != seconds else f"{1000 * seconds:.2f}"  # noqa: PLR0124 - NaN is what differs from itself


def _count(value: float) -> str:
    return f"{value:.0f}" if value < 1e9 else f"{value:.1e}"


def _since(page: Page, before: Page, name: str, **labels: str) -> float:
    return max(0.0, page.value(name, **labels) - before.value(name, **labels))
