"""The table of `cnikit top`."""

from __future__ import annotations

import math
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from agent.exposition import Page as Exposition
from agent.http import HttpServer, Reply
from agent.metrics import Vitals, process_families
from cli.live import Page, parsed, quantile, render, rows
from cli.top import top
from tests.unit.test_agent_metrics import account, count

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from agent.report import Account

VITALS = Vitals([], [("cnikit_threads", "T.", lambda: 5), ("cnikit_requests_in_flight", "F.", lambda: 2)])


def page_of(accounts: Iterable[Account], at: float = 0.0) -> Page:
    counters = count(*accounts)
    page = parsed(Exposition(lambda: None, counters.families, VITALS.families, process_families)().decode())
    page.at = at
    return page


def shown(page: Page, before: Page) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(render(page, before, "/x"))
    return console.export_text()


class TestQuantile:
    def test_within_a_bucket_evenly(self) -> None:
        buckets = [(1.0, 0.0), (2.0, 10.0), (math.inf, 10.0)]
        assert quantile(0.5, buckets) == pytest.approx(1.5)
        assert quantile(0.99, buckets) == pytest.approx(1.99)

    def test_above_all_bounds(self) -> None:
        assert quantile(0.5, [(1.0, 0.0), (2.0, 0.0), (math.inf, 3.0)]) == 2.0

    def test_of_nothing(self) -> None:
        assert math.isnan(quantile(0.5, []))
        assert math.isnan(quantile(0.5, [(1.0, 0.0), (math.inf, 0.0)]))


class TestRows:
    def test_only_what_came_since(self) -> None:
        slow = [account(seconds=0.2)] * 100
        before = page_of(slow, at=100.0)
        page = page_of([*slow, *[account(seconds=0.003)] * 10, account(outcome="error", code=11)], at=105.0)
        (row,) = rows(page, before)
        assert row.command == "ADD"
        assert row.rate == pytest.approx(11 / 5)
        assert 0.002 < row.median < 0.004
        assert (row.errors, row.total) == (1, 111)

    def test_plugins_count_together(self) -> None:
        page = page_of([account(), account(plugin="host-local")], at=1.0)
        assert [row.total for row in rows(page, Page({}, 0.0))] == [2]

    def test_nothing_yet(self) -> None:
        assert rows(page_of([]), Page({}, 0.0)) == []
        assert "cnikit" in shown(page_of([]), Page({}, 0.0))

    def test_a_quiet_interval(self) -> None:
        page = page_of([account()], at=1.0)
        assert "-" in shown(page, page)


class TestCommand:
    @staticmethod
    def run(*argv: str, **environ: str) -> Any:
        return CliRunner().invoke(top, argv, env=environ)

    def test_once(self, tmp_path: Path) -> None:
        page = Exposition(
            lambda: None, count(account(), account(command="DEL")).families, VITALS.families, process_families
        )
        server = HttpServer(str(tmp_path / "a-http.sock"), {"/metrics": lambda: Reply(200, page())}, print)
        try:
            answer = self.run("--once", CNIKIT_SOCKET=str(tmp_path / "a.sock"))
        finally:
            server.close()
        assert answer.exit_code == 0, answer.output
        assert "in flight 2" in answer.output
        assert "ADD" in answer.output
        assert "DEL" in answer.output

    def test_no_agent(self, tmp_path: Path) -> None:
        answer = self.run("--once", "--http", str(tmp_path / "none.sock"))
        assert answer.exit_code == 1
        assert "none.sock: No such file or directory" in answer.output
        assert "cnikit agent" in answer.output

    def test_no_address(self) -> None:
        answer = self.run("--once", "--http", "example.org:80")
        assert answer.exit_code == 1
        assert "expected a path" in answer.output

    def test_something_else_answers(self, tmp_path: Path) -> None:
        where = str(tmp_path / "other.sock")
        server = HttpServer(where, {"/metrics": lambda: Reply(503, b"no")}, print)
        try:
            answer = self.run("--once", "--http", where)
        finally:
            server.close()
        assert answer.exit_code == 1
        assert "found HTTP status 503" in answer.output
