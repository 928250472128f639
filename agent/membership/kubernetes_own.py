"""Telling the cluster about this node: its annotations, the NetworkUnavailable condition, and the taint that goes with it.

A thread of its own compares what our Node object says with what it is to say, whenever either has changed, and
patches the difference. Two that want the same annotation differently would write in turns for ever (two networks of
one node, flannel's agent beside ours): each time it is needed again, it is done later. Two machines of one name do not get
that far (`kubernetes_name.py`).
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

from agent.membership import FIRST_PAUSE, LAST_PAUSE
from agent.membership.kubernetes_api import ApiError
from agent.membership.kubernetes_name import Name
from agent.membership.kubernetes_node import status_patch, taint_patch

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from agent.membership import Network
    from agent.membership.kubernetes_api import Api
    from agent.membership.kubernetes_node import NodeView
    from agent.membership.troubles import Troubles
    from plugins.peers import Node

# Between patches that undo somebody else's: at most so long. After so long without one the next is done at once.
_LONGEST_REST = 60.0
_CLOSE_SECONDS = 1.0
# A fault that is over sooner moves no pods. An agent that has just started may need as long to find its ground.
_GRACE_SECONDS = 5.0
# The taint is the node controller's to remove once the condition says that the network is there. We do it at once
# where we may; a refusal for rights is no trouble, and one for another change leads to another try.
_MAY_NOT = 403
_CHANGED = (404, 409, 422)


class Announcer:
    """Keeps our own Node object saying what it is to say, while it is ours. `clock` is the time of day."""

    def __init__(
        self,
        own: Node,
        network: Network,
        connect: Callable[[], Api],
        troubles: Troubles,
        clock: Callable[[], float],
        machine: str = "",
    ) -> None:
        """`machine` is what `kubernetes_name.this_machine` says; empty leaves it out which one writes."""
        self._own = own
        self._view: NodeView | None = None
        self._network = network
        self._connect = connect
        self._troubles = troubles
        self._clock = clock
        self._name = Name(own.name, machine)
        self._news = threading.Condition()
        self._due = False
        self._fault: str | None = None  # why no pod can be attached, "" when one can; None until it is known
        self._fault_at = 0.0  # when a fault is told, on the monotonic clock
        self._closed = threading.Event()
        self._untaint_at = 0.0  # when it may be tried again, on the monotonic clock
        self._pace = Pace()
        self._look_at = math.inf  # when to compare again, though nothing has been heard by then, on the monotonic clock
        self.api: Api | None = None  # while something is asked
        self._thread = threading.Thread(target=self._run, name="kubernetes-own", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def know(self, own: Node, view: NodeView | None) -> None:
        """What this node is, and what its object says (None: there is none)."""
        with self._news:
            self._own, self._view, self._due = own, view, True
            if view is not None:
                self._name.see(view.metadata.annotations or {}, time.monotonic())
            self._news.notify()

    def judge(self, fault: str) -> None:
        """Why no pod can be attached on this node, "" when one can."""
        with self._news:
            if fault and not self._fault:
                self._fault_at = time.monotonic() + _GRACE_SECONDS
            self._fault, self._due = fault, True
            self._news.notify()

    def close(self) -> None:
        self._closed.set()
        with self._news:
            self._news.notify()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while self._wait():
            try:
                self._announce()
                self._troubles.tell("announce", "")
                pause = FIRST_PAUSE
                continue
            except ApiError as failure:
                # That there is no connection is told by who watches.
                text, least, told = str(failure), failure.retry_after, failure.status != 0
            except Exception as error:  # noqa: BLE001 - this thread must not end
                text, least, told = f"{type(error).__name__}: {error}", 0.0, True
            if told:
                self._troubles.tell("announce", f"cannot tell the cluster about this node: {text}")
            self._closed.wait(max(pause, least))
            pause = min(2 * pause, LAST_PAUSE)
            with self._news:
                self._due = True

    def _wait(self) -> bool:
        """Wait until there is something to compare; False when this is closed."""
        with self._news:
            wait = max(0.0, self._look_at - time.monotonic()) if self._look_at < math.inf else None
            self._news.wait_for(lambda: self._due or self._closed.is_set(), wait)
            self._due = False
        return not self._closed.is_set()

    def _announce(self) -> None:
        with self._news:
            own, view, fault, now = self._own, self._view, self._fault, time.monotonic()
            if fault and now < self._fault_at:
                fault = None
            for_name = self._name.changes(own, now) if view is not None else {}
            is_ours, twin = self._name.is_ours, self._name.fault(now)
            self._look_at = min(self._fault_at if fault is None and self._fault else math.inf, self._name.due(now))
        self._troubles.tell("name", twin)
        if view is None:
            return
        if for_name:  # somebody waits for it
            self._patch(own.name, {"metadata": {"annotations": for_name}})
        if not is_ours:
            return
        patch = status_patch(own, view, self._network, self._clock(), fault, self._name.annotations())
        taint = taint_patch(view) if own.subnets and fault == "" and time.monotonic() >= self._untaint_at else []
        if patch or taint:
            at = self._pace.next(now)
            if at <= now:
                self._patch(own.name, patch, taint)
            else:
                self._look_at = min(self._look_at, at)

    def _patch(self, name: str, patch: dict[str, Any], taint: list[dict[str, Any]] | None = None) -> None:
        api = self.api = self._connect()
        try:
            if patch:
                api.patch_status(name, patch)
            if taint:
                self._untaint(api, name, taint)
        finally:
            self.api = None
            api.close()

    def _untaint(self, api: Api, name: str, patch: list[dict[str, object]]) -> None:
        try:
            api.patch_spec(name, patch)
        except ApiError as failure:
            if failure.status == _MAY_NOT:
                self._untaint_at = time.monotonic() + _LONGEST_REST
            elif failure.status not in _CHANGED:
                raise


class Pace:
    """When patches may be written: each one that is needed soon after another is likely to undo somebody else's."""

    def __init__(self) -> None:
        self._last = -2 * _LONGEST_REST
        self._rest = FIRST_PAUSE

    def next(self, now: float) -> float:
        """When the next one may be: now, which is then taken to be done, or later."""
        if now - self._last >= 2 * _LONGEST_REST:
            self._rest = FIRST_PAUSE
        elif now < self._last + self._rest:
            return self._last + self._rest
        else:
            self._rest = min(2 * self._rest, _LONGEST_REST)
        self._last = now
        return now
