"""The steps of a call, and that no verb of the kernel goes untimed."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import count

import pytest

from agent.steps import Steps, TimedKernel
from cni.kernel import ops
from cni.kernel.linux import Namespace
from cni.testing.fake_kernel import FakeKernel

NO_VERBS = {"close", "inside", "usable"}


def steps() -> Steps:
    """With a clock that is a second further at each look."""
    return Steps(map(float, count()).__next__)


def test_steps_lie_in_one_another_and_tell_failures() -> None:
    call = steps()
    with call("ipam", "host-local ADD"), pytest.raises(ZeroDivisionError), call("lock", "/run/lock"):
        raise ZeroDivisionError

    assert [(step.kind, step.about, step.depth, bool(step.failure)) for step in call.done] == [
        ("lock", "/run/lock", 1, True),
        ("ipam", "host-local ADD", 0, False),
    ]
    assert all(step.begin < step.end for step in call.done)


def test_every_verb_of_a_namespace_is_a_step() -> None:
    call = steps()
    host = TimedKernel(FakeKernel(), call, nullcontext).own()
    verbs = {name for name in vars(Namespace) if not name.startswith("_")} - NO_VERBS - {"dev", "ino", "fd"}

    assert {verb for verb in verbs if verb not in vars(type(host))} == set()

    host.apply(ops.bridge_add("cni0", b"\2\0\0\0\0\1"))
    link = host.link("cni0")
    assert link is not None
    host.delete_link(link.index)
    assert [(step.kind, step.about) for step in call.done] == [
        ("kernel", "apply"), ("kernel", "link"), ("kernel", "delete_link"),
    ]  # fmt: skip
