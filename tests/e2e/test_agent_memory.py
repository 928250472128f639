"""Ten thousand calls: the agent is as small as it was, with as many descriptors and threads."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_world import Agent, Client, Frame, Request, header
from tests.e2e.world import DUAL_STACK, Node, Pod, network, wait_same, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1024  # /proc counts in KiB
MOST = 30 * MIB
# What the figure may differ by between two looks at a process that does the same all the time: the allocator gives
# pages back or does not, and interned texts and caches of the interpreter fill up. A leak of 120 bytes a call shows.
NOISE = 1 * MIB
CLIENTS = 4
# What a call on the node's own namespace has open, and leaves open for the next one: two sockets, two folders.
SET = 4

pytestmark = pytest.mark.timeout(900)


def conf(**options: Any) -> dict[str, Any]:
    return network(**{"ipam": DUAL_STACK, "ipMasq": True, **options})


class Mix:
    """Ten calls of one client: a pod's life, questions, and refusals of several kinds."""

    def __init__(self, node: Node, agent: Agent, pod: Pod) -> None:
        self._node = node
        self._agent = agent
        self._pod = pod
        self._rounds = 0

    def __call__(self) -> None:
        self._rounds += 1
        added = self._good("ADD", conf())
        result = json.loads(added)
        self._good("CHECK", conf(prevResult=result))
        self._good("STATUS", conf())
        self._good("VERSION", {"cniVersion": "1.1.0"})
        self._bad("ADD", b'{"cniVersion": "1.1.0", "name": ', 6)
        self._bad("CHECK", conf(prevResult=result, mtu="x" * 1000), 7)
        self._bad("ADD", conf(), 999)  # the interface is there
        self._good("DEL", conf(prevResult=result))
        self._bad("ADD", conf(ipam={"type": "host-local", "subnet": f"10.1.0.0/{33 + self._rounds}"}), 7)
        self._good("DEL", conf())

    def _good(self, command: str, stdin: Any) -> bytes:
        frame = self._call(command, stdin)
        assert frame.code == 0, frame
        return frame.first

    def _bad(self, command: str, stdin: Any, code: int) -> None:
        frame = self._call(command, stdin)
        assert frame.code == 1, frame
        assert json.loads(frame.first)["code"] == code, frame

    def _call(self, command: str, stdin: Any) -> Frame:
        with Client(self._agent) as client:
            frame = client.call(Request(self._node, "bridge", command, stdin, self._pod))
            assert frame.kind == "A", frame
            assert client.ended()
        return frame


def side_by_side(mixes: list[Mix], calls: int) -> None:
    """So many calls, from several clients at once."""
    failures: list[BaseException] = []

    def work(mix: Callable[[], None]) -> None:
        try:
            for _ in range(calls // 10 // len(mixes)):
                mix()
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            failures.append(error)

    threads = [threading.Thread(target=work, args=(mix,)) for mix in mixes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def burst(node: Node, size: int) -> None:
    """So many pods come at once and go at once."""
    pods = node.many_pods(size)
    for command in ("ADD", "DEL"):
        for running in [node.start("bridge", command, conf(), pod) for pod in pods]:
            assert running.wait(300.0).ok


def test_ten_thousand_calls(agent_node: Node) -> None:
    agent = agent_node.agent
    assert agent is not None
    burst(agent_node, 50)
    mixes = [Mix(agent_node, agent, pod) for pod in agent_node.many_pods(CLIENTS)]
    side_by_side(mixes, 120)
    agent.requests()
    before, files, threads = agent_node.snapshot(), agent.descriptors(), agent.status("Threads")
    assert agent.status("VmRSS") <= MOST

    side_by_side(mixes, 880)
    agent.requests()
    early = agent.status("VmRSS")
    side_by_side(mixes, 9000)
    agent.requests()
    late = agent.status("VmRSS")

    assert len(agent.logged()) == 100 + 10_000
    assert late <= MOST, f"{late} KiB after 10,000 calls"
    assert late - early <= NOISE, f"{early} KiB after 1,000 calls, {late} KiB after 10,000"
    assert agent.status("VmHWM") <= MOST
    most = len(files) + SET * CLIENTS  # as chance has it, more of the clients are served at a time than before
    wait_until(lambda: len(agent.descriptors()) <= most, f"open files: {agent.descriptors()} not {files}")
    assert agent.status("Threads") <= 64, f"{threads} after the first hundred"  # workers, and who deletes links
    wait_same(agent_node.snapshot, before, "ten thousand calls left something")


def test_after_a_hundred_at_once(agent_node: Node) -> None:
    """A burst may need more threads and sockets than the one before, as chance has it; beyond that nothing stays."""
    agent = agent_node.agent
    assert agent is not None
    found = []
    for _ in range(6):
        burst(agent_node, 100)
        agent.requests()
        found.append((agent.status("VmRSS"), len(agent.descriptors()), agent.status("Threads")))

    assert found[-1][0] <= MOST, found
    assert found[-1][0] - found[2][0] <= NOISE, found
    assert max(files for _, files, _ in found) <= 150, found
    assert max(threads for _, _, threads in found) <= 60, found


def test_huge_requests(agent_node: Node) -> None:
    """A configuration of many megabytes is served, whoever does it; and clients that send as much, all at once, do
    not make the agent grow."""
    agent = agent_node.agent
    assert agent is not None
    burst(agent_node, 20)
    pod = agent_node.pod()
    names = ["x" * 1000] * 8000
    huge = conf(prevResult={"cniVersion": "1.1.0", "dns": {"search": names}})
    assert agent_node.call("bridge", "ADD", huge, pod).result["dns"]["search"] == names
    agent_node.call("bridge", "DEL", huge, pod).silent()
    assert agent.status("VmRSS") <= MOST

    with contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(Client(agent))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.send(header(8 << 20, 16 << 20) + bytes(20 << 20))
        for _ in range(100):
            client = stack.enter_context(Client(agent))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.send(header(1 << 20, 1 << 20) + bytes(1 << 20))
        agent.requests()
        assert agent.status("VmHWM") <= 3 * MOST
        burst(agent_node, 1)
