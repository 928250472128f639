"""What is reported of a call that has come to its end: a line of the log, the metrics, the spans.

The thread that served the call only hands it over. A thread of the reporter's own takes what has come together
a moment later, so that reporting one call does not delay the next.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from agent.log import ERROR, INFO, WARNING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent.log import Log
    from agent.service import Served
    from agent.steps import Done

    Teller = Callable[["Account", Served], None]

# How long calls are collected. A line in the log is this late, and lost when the agent is killed before.
_PAUSE = 0.1
# Calls that wait to be reported. A thread that finds more reports them itself.
_MOST_WAITING = 32
# Characters of a text that somebody else chose the length of.
_LONGEST = 4096

LEVELS = {"ok": INFO, "declined": INFO, "error": ERROR, "undelivered": WARNING, "lost": WARNING}


class Account(NamedTuple):
    """One call in plain values. Times are in seconds; `at` is the time of day at its end."""

    at: float
    command: str
    plugin: str
    container: str
    ifname: str
    network: str
    pod: str
    namespace: str
    outcome: str
    code: int | None
    message: str
    details: str
    seconds: float
    steps: dict[str, float]
    lines: Sequence[str]
    trace: str


class Reporter:
    """Given each call by the thread that served it. `tellers` are given each account with its call, in order of ends."""

    def __init__(self, tellers: Sequence[Teller], failed: Callable[[str], None]) -> None:
        self._tellers = tellers
        self._failed = failed
        self._waiting: deque[Served] = deque()
        self._something = threading.Event()
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._tell_on, name="reporter", daemon=True)
        self._thread.start()

    def __call__(self, served: Served) -> None:
        self._waiting.append(served)
        if not self._something.is_set():
            self._something.set()
        elif len(self._waiting) > _MOST_WAITING:
            self.settle()

    def settle(self) -> None:
        """Tell of every call that has ended by now."""
        with self._guard:
            while self._waiting:
                self._tell(self._waiting.popleft())

    def close(self) -> None:
        """Tell of the last ones."""
        self._stop.set()
        self._something.set()
        self._thread.join(5.0)
        self.settle()

    def _tell_on(self) -> None:
        while not self._stop.is_set():
            self._something.wait()
            self._stop.wait(_PAUSE)
            self._something.clear()
            self.settle()

    def _tell(self, served: Served) -> None:
        try:
            account = account_of(served)
            for teller in self._tellers:
                teller(account, served)
        except Exception as error:  # noqa: BLE001 - the next call is reported in any case
            self._failed(f"report: {type(error).__name__}: {error}")
        served.forget()


def account_of(served: Served) -> Account:
    """What is to be reported of a call."""
    environ, steps, call = served.environ, served.steps, served.call
    error = _error(served.error)
    arguments = _arguments(environ.get("CNI_ARGS", ""))
    return Account(
        time.time() - (steps.now() - steps.end),
        environ.get("CNI_COMMAND", "")[:_LONGEST],
        served.plugin[:_LONGEST],
        environ.get("CNI_CONTAINERID", "")[:_LONGEST],
        environ.get("CNI_IFNAME", "")[:_LONGEST],
        call.context.network if call else "",
        arguments.get("K8S_POD_NAME", "")[:_LONGEST],
        arguments.get("K8S_POD_NAMESPACE", "")[:_LONGEST],
        served.outcome,
        *error,
        steps.end - steps.begin,
        durations(steps.done),
        [line[:_LONGEST] for line in served.lines[:16]],
        served.trace.trace_id if served.trace else "",
    )


def durations(done: Sequence[Done]) -> dict[str, float]:
    """Seconds by kind of step. A step within another one counts as that one."""
    seconds: dict[str, float] = {}
    for step in done:
        if step.depth == 0:
            seconds[step.kind] = seconds.get(step.kind, 0.0) + step.end - step.begin
    return seconds


# The fields of a line that are there whether they say something or not.
_ALWAYS = {"command", "plugin", "container", "ifname", "network", "outcome"}


class Logger:
    """Writes the line of a call."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def __call__(self, account: Account, served: Served) -> None:  # noqa: ARG002 - the account says it all
        given = account._asdict()
        at, steps, seconds = given.pop("at"), given.pop("steps"), given.pop("seconds")
        self._log.write(
            LEVELS.get(account.outcome, WARNING),
            at,
            **{name: value for name, value in given.items() if name in _ALWAYS or value not in ("", None, [])},
            seconds=round(seconds, 6),
            steps={kind: round(value, 6) for kind, value in steps.items()},
        )


def _error(answer: bytes) -> tuple[int | None, str, str]:
    """Code, message and details of an error object; None and empty for no error."""
    if not answer:
        return None, "", ""
    try:
        found = json.loads(answer)
        return int(found["code"]), str(found["msg"])[:_LONGEST], str(found.get("details", ""))[:_LONGEST]
    except (ValueError, KeyError, TypeError):
        return None, answer[:_LONGEST].decode("utf-8", "replace"), ""


def _arguments(text: str) -> Mapping[str, str]:
    """CNI_ARGS, well formed or not."""
    return dict(pair.split("=", 1) for pair in text.split(";") if "=" in pair)
