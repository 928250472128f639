"""What is told of a call: the account, the line of the log, and that telling harms nobody."""

from __future__ import annotations

import json
import os
import time
from itertools import chain, repeat
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from agent.log import Log
from agent.report import Account, Logger, Reporter, account_of, durations
from agent.steps import Done, Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "ctr",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0",
}
ERROR = b'{"cniVersion":"1.1.0","code":11,"msg":"no address","details":"delete pods"}'


def served(outcome: str = "ok", error: bytes = b"", lines: tuple[str, ...] = (), **environ: str) -> Any:
    """A call that has ended, as far as it is looked at."""
    steps = Steps(chain([10.0, 10.001], repeat(10.5)).__next__)
    steps.mark("queue")
    steps.finish()
    call = SimpleNamespace(context=SimpleNamespace(network="net"))
    return SimpleNamespace(forget=lambda: None,
        environ={**ENVIRON, **environ}, steps=steps, call=call, outcome=outcome, error=error, plugin="bridge",
        lines=lines, trace=None,
    )  # fmt: skip


def reporter(*tellers: Any) -> tuple[Reporter, list[str]]:
    failures: list[str] = []
    return Reporter(tellers, failures.append), failures


class TestAccount:
    def test_of_a_success(self) -> None:
        before = time.time()
        account = account_of(served())
        assert account.command == "ADD"
        assert (account.plugin, account.container, account.ifname, account.network) == ("bridge", "ctr", "eth0", "net")
        assert (account.pod, account.namespace) == ("cart-0", "shop")
        assert (account.outcome, account.code, account.message) == ("ok", None, "")
        assert account.seconds == pytest.approx(0.5)
        assert account.steps == {"queue": pytest.approx(0.001)}
        assert before <= account.at <= time.time()

    def test_of_an_error(self) -> None:
        account = account_of(served("error", ERROR))
        assert (account.code, account.message, account.details) == (11, "no address", "delete pods")

    @pytest.mark.parametrize("answer", [b"no JSON", b"[]", b'{"code": "x", "msg": 1}', b"\xff", b"null"])
    def test_of_an_answer_that_is_no_error_object(self, answer: bytes) -> None:
        account = account_of(served("error", answer))
        assert account.code is None
        assert account.message == answer.decode("utf-8", "replace")

    @pytest.mark.parametrize("arguments", ["", "K8S_POD_NAME", "=;;=;a=b=c", "K8S_POD_NAME="])
    def test_of_arguments_that_name_no_pod(self, arguments: str) -> None:
        account = account_of(served(CNI_ARGS=arguments))
        assert (account.pod, account.namespace) == ("", "")

    def test_long_texts_are_cut(self) -> None:
        account = account_of(served(lines=("x" * 10_000,) * 100, CNI_CONTAINERID="c" * 100_000))
        assert len(account.container) == 4096
        assert len(account.lines) == 16
        assert {len(line) for line in account.lines} == {4096}

    def test_of_a_call_that_was_refused_before_it_was_read(self) -> None:
        call = served("declined")
        call.call, call.environ = None, {}
        account = account_of(call)
        assert (account.command, account.network) == ("", "")


def test_a_step_within_another_counts_as_that_one() -> None:
    done = [
        Done("lock", "b", 1.0, 2.0, 1, ""),
        Done("ipam", "a", 0.0, 3.0, 0, ""),
        Done("lock", "c", 3.0, 3.5, 0, ""),
        Done("lock", "c", 4.0, 4.5, 0, ""),
    ]
    assert durations(done) == {"ipam": 3.0, "lock": 1.0}


class TestReporter:
    def test_every_call_is_told_of_in_order(self) -> None:
        told: list[str] = []
        report, _ = reporter(lambda account, _: told.append(account.container))
        for number in range(100):
            report(served(CNI_CONTAINERID=str(number)))
        report.settle()
        assert told == [str(number) for number in range(100)]

    def test_what_was_told_last_before_the_end_is_told(self) -> None:
        told: list[Account] = []
        report, _ = reporter(lambda account, _: told.append(account))
        report(served())
        report.close()
        assert len(told) == 1

    def test_nobody_has_to_ask(self) -> None:
        reader, writer = os.pipe()
        report, _ = reporter(lambda account, _: os.write(writer, account.container.encode()))
        report(served())
        assert os.read(reader, 16) == b"ctr"
        report.close()
        os.close(reader)
        os.close(writer)

    def test_few_are_kept_in_memory(self) -> None:
        told: list[Account] = []
        report, _ = reporter(lambda account, _: told.append(account))
        report._stop.set()  # its thread does nothing more
        for _ in range(1000):
            report(served())
        assert len(report._waiting) <= 33
        report.close()
        assert len(told) == 1000

    def test_one_that_fails_does_not_stop_the_others(self) -> None:
        told: list[str] = []

        def fail(account: Account, _: Any) -> None:
            if account.container == "bad":
                raise RuntimeError("no")
            told.append(account.container)

        report, failures = reporter(fail)
        for container in ("a", "bad", "b"):
            report(served(CNI_CONTAINERID=container))
        report.close()
        assert told == ["a", "b"]
        assert failures == ["report: RuntimeError: no"]


class TestLine:
    @pytest.fixture
    def lines(self) -> Iterator[Any]:
        reader, writer = os.pipe()
        log = Log(writer)

        def written(call: Any) -> dict[str, Any]:
            Logger(log)(account_of(call), call)
            with os.fdopen(os.dup(reader), "rb") as file:
                found: dict[str, Any] = json.loads(file.readline())
            return found

        yield written
        log.close(20.0)
        os.close(reader)
        os.close(writer)

    def test_of_a_success(self, lines: Any) -> None:
        line = lines(served())
        del line["time"]
        assert line == {
            "level": "info", "command": "ADD", "plugin": "bridge", "container": "ctr", "ifname": "eth0",
            "network": "net", "pod": "cart-0", "namespace": "shop", "outcome": "ok", "seconds": 0.5,
            "steps": {"queue": 0.001},
        }  # fmt: skip

    def test_of_an_error(self, lines: Any) -> None:
        line = lines(served("error", ERROR, ("released 10.1.0.2",)))
        assert (line["level"], line["outcome"], line["code"], line["message"]) == ("error", "error", 11, "no address")
        assert line["details"] == "delete pods"
        assert line["lines"] == ["released 10.1.0.2"]

    @pytest.mark.parametrize("outcome", ["undelivered", "lost", "something new"])
    def test_of_a_client_that_went(self, lines: Any, outcome: str) -> None:
        assert lines(served(outcome))["level"] == "warning"

    def test_of_a_name_that_is_no_utf_8(self, lines: Any) -> None:
        assert lines(served(CNI_CONTAINERID="\udcff\0"))["container"] == "\udcff\0"
