"""How long the steps of a call take: kept for the log line, the metrics and the spans.

A step has a kind (`queue`, `prepare`, `handshake`, `lock`, `ipam`, `kernel`, `answer`) and what it is about. Steps
lie within one another: IPAM's include its locks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from cni.kernel import Kernel, Namespace


class Done(NamedTuple):
    """One step, in seconds of the monotonic clock. `depth` is 0 for what lies in no other step.

    `failure` is what it raised, empty when it did not. `arguments` are the kernel verb's, and kept only when the steps are `detailed`.
    """

    kind: str
    about: str
    begin: float
    end: float
    depth: int
    failure: str
    arguments: tuple[Any, ...] = ()


class Steps:
    """The steps of one call. Calling it gives the `with` block of a step (`World.step`)."""

    __slots__ = ("_clock", "begin", "depth", "detailed", "done", "end")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.begin = self.end = clock()
        self.depth = 0
        self.detailed = False
        self.done: list[Done] = []

    def __call__(self, kind: str, about: str, arguments: tuple[Any, ...] = ()) -> Running:
        return Running(self, kind, about, arguments if self.detailed else ())

    def now(self) -> float:
        return self._clock()

    def mark(self, kind: str) -> None:
        """A step that began with the call and ends now."""
        self.done.append(Done(kind, "", self.begin, self._clock(), 0, ""))

    def finish(self) -> None:
        """The call has come to its end."""
        self.end = self._clock()


class Running:
    """The `with` block of one step (`World.step`)."""

    __slots__ = ("_about", "_arguments", "_begin", "_kind", "_steps")

    def __init__(self, steps: Steps, kind: str, about: str, arguments: tuple[Any, ...]) -> None:
        self._steps = steps
        self._kind = kind
        self._about = about
        self._arguments = arguments

    def __enter__(self) -> None:
        self._steps.depth += 1
        self._begin = self._steps.now()

    def __exit__(self, *exc: object) -> None:
        steps = self._steps
        steps.depth -= 1
        failure = (str(exc[1]) or repr(exc[1])) if exc[0] else ""
        steps.done.append(
            Done(self._kind, self._about, self._begin, steps.now(), steps.depth, failure, self._arguments)
        )


# The verbs that talk to the kernel (`cni/kernel/__init__.py`).
_VERBS = (
    "addresses", "apply", "attempt", "conf", "fdb", "has_vlan_filtering", "link", "links", "neighbours", "nexthops",
    "nft", "nft_chains", "nft_comment", "nft_comments", "nft_elements", "nft_generation", "nft_has", "nft_has_element",
    "nft_rules", "nft_steps", "refuse_conf", "routes", "set_conf", "set_tx_checksum", "tx_checksum", "udp_port_is_free", "vlans", "wait_port", "way",
)  # fmt: skip
# Those that wait for something, in which another thread may work.
_WAITING = ("delete_link", "wait_addresses", "wait_gone")


class TimedKernel:
    """A kernel whose verbs are steps."""

    __slots__ = ("_kernel", "_steps", "_waiting")

    def __init__(self, kernel: Kernel, steps: Steps, waiting: Callable[[], AbstractContextManager[object]]) -> None:
        self._kernel = kernel
        self._steps = steps
        self._waiting = waiting

    def own(self) -> Namespace:
        return _TimedNamespace(self._kernel.own(), self._steps, self._waiting)

    def open(self, path: str) -> Namespace:
        with self._steps("kernel", "open"):
            return _TimedNamespace(self._kernel.open(path), self._steps, self._waiting)

    def is_own(self, path: str) -> bool:
        return self._kernel.is_own(path)


class _TimedNamespace:
    """A namespace whose verbs are steps; everything else is the namespace's own."""

    def __init__(
        self, namespace: Namespace, steps: Steps, waiting: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self._namespace = namespace
        self._steps = steps
        self._waiting = waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._namespace, name)

    def __enter__(self) -> _TimedNamespace:
        return self

    def __exit__(self, *exc: object) -> None:
        self._namespace.close()


def _timed(verb: str) -> Callable[..., Any]:
    def call(self: _TimedNamespace, *args: Any, **options: Any) -> Any:
        with self._steps("kernel", verb, args):
            return getattr(self._namespace, verb)(*args, **options)

    return call


def _timed_wait(verb: str) -> Callable[..., Any]:
    def call(self: _TimedNamespace, *args: Any, **options: Any) -> Any:
        with self._steps("kernel", verb, args), self._waiting():
            return getattr(self._namespace, verb)(*args, **options)

    return call


for _verb in _VERBS:
    setattr(_TimedNamespace, _verb, _timed(_verb))
for _verb in _WAITING:
    setattr(_TimedNamespace, _verb, _timed_wait(_verb))
