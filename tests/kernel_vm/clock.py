"""Pods that come and go while the wall clock jumps by decades, for tests/e2e/test_agent_faults.py.

It sets the machine's clock, so it runs in the virtual machine alone.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.world import DUAL_STACK, Node, network
from tests.kernel_vm.vm import INIT

if TYPE_CHECKING:
    from tests.e2e.world import Way

THEN = (2_100_000_000, 900_000_000, 2_000_000_000)  # 2036, 1998, 2033


def observe(way: Way) -> dict[str, Any]:
    """The answers of all calls, and whether the node is at the end as it was."""
    assert str(INIT) in Path("/proc/cmdline").read_text(), "this would set the clock of a real machine"
    conf = network(ipam=DUAL_STACK, ipMasq=True)
    answers = []
    with Node(way) as node:
        first = node.pod()
        answers += [node.call("bridge", command, conf, first) for command in ("ADD", "DEL")]
        before = node.snapshot()
        for seconds in THEN:
            pod = node.pod()
            added = node.call("bridge", "ADD", conf, pod)
            time.clock_settime(time.CLOCK_REALTIME, seconds)
            checked = node.call("bridge", "CHECK", {**conf, "prevResult": added.document}, pod)
            answers += [added, checked, node.call("bridge", "DEL", conf, pod)]
        left = {key: value for key, value in node.snapshot().items() if value != before[key]}
    return {"answers": [[answer.status, answer.stdout.decode(), answer.stderr] for answer in answers], "left": left}
