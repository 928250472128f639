"""The agent keeps no pod's namespace file busy: a runtime unmounts it (without MNT_DETACH) as soon as it has an answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_world import Agent, Client, Request
from tests.e2e.world import network

if TYPE_CHECKING:
    from tests.e2e.world import Node

REFUSED = network(mtu="many")
ALL_GONE: dict[str, Any] = {"cni.dev/valid-attachments": []}


@pytest.mark.parametrize(
    ("command", "conf", "version", "kind"),
    [
        ("ADD", network(), "", "R"),
        ("DEL", network(), "", "R"),
        ("STATUS", network(), "", "R"),
        ("GC", network(**ALL_GONE), "", "R"),
        ("ADD", REFUSED, "", "A"),
        ("ADD", network(), "0.0.1", "D"),
        ("VERSION", {"cniVersion": "1.0.0"}, "", "A"),
    ],
)
def test_from_the_first_frame_on(agent_node: Node, command: str, conf: dict[str, Any], version: str, kind: str) -> None:
    """The agent has read CNI_NETNS, and waits for us: the file can be unmounted."""
    agent, pod = agent_node.agent, agent_node.pod()
    assert agent is not None
    agent_node.may_decline = 1
    request = Request(agent_node, "bridge", command, conf, pod, **({"version": version} if version else {}))  # type: ignore[arg-type]

    with Client(agent) as client:
        with request.descriptors() as fds:
            client.send(request.data, fds)
        frame = client.receive()
        assert frame is not None
        assert frame.kind == kind, frame
        agent_node.run("umount", pod.path)


def test_after_a_broken_request(agent_node: Node) -> None:
    agent, pod = agent_node.agent, agent_node.pod()
    assert agent is not None
    request = Request(agent_node, "bridge", "ADD", network(), pod)

    with Client(agent) as client:
        with request.descriptors() as fds:
            client.send(b"nonsense" + request.data[8:], fds)
        assert client.ended()
        agent_node.run("umount", pod.path)


def test_an_agent_started_with_everything_ignored_and_blocked(agent_node: Node) -> None:
    """nohup, or an init system: SIGTERM still stops it, and its programs' signals are the usual ones."""
    assert agent_node.agent is not None
    agent_node.agent.stop()
    ignore = (
        "import os, signal, sys\n"
        "for n in (1, 2, 3, 15, 17): signal.signal(n, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, (1, 2, 3, 15, 17))\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )

    agent = Agent(agent_node, prefix=("/usr/bin/python3", "-c", ignore)).ready()

    for mask in ("SigBlk", "SigIgn"):
        lines = Path(f"/proc/{agent.pid}/status").read_text().splitlines()
        (line,) = (one for one in lines if one.startswith(mask))
        assert int(line.split()[1], 16) & 0x1_4007 == 0, line
    assert agent.stop() == 0
    agent.looks_well()
    agent.forget()
