"""The agent keeps no pod's namespace file busy: a runtime unmounts it (without MNT_DETACH) as soon as it has an answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_world import Agent, Client, Request
from tests.e2e.world import network

if TYPE_CHECKING:
    from tests.e2e.world import Node, Way

REFUSED = network(mtu="many")
ALL_GONE: dict[str, Any] = {"cni.dev/valid-attachments": []}
OFTEN = 50

# Calls a plugin again and again, as a runtime does: mounts the pod's namespace, calls, unmounts. Prints for each verb
# how often the mount was busy. In one process of the node: what takes long between call and umount hides the fault.
RUNTIME = """
import ctypes, json, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
plan = json.load(sys.stdin)
pod = os.open(plan["pod"], os.O_RDONLY)
place = "/run/netns/again"
open(place, "w").close()
busy = {}
result = None
for _ in range(plan["often"]):
    for name, verb, conf, succeeds in plan["calls"]:
        assert libc.mount(f"/proc/self/fd/{pod}".encode(), place.encode(), None, 4096, None) == 0
        env = {**plan["env"], "CNI_NETNS": place, "CNI_COMMAND": verb}
        stdin = json.dumps({**conf, "prevResult": result} if verb in ("CHECK", "DEL") and result else conf)
        ran = subprocess.run([plan["plugin"]], env=env, input=stdin.encode(), capture_output=True)
        failed = libc.umount2(place.encode(), 0) != 0
        busy[name] = busy.get(name, 0) + failed
        if failed:
            libc.umount2(place.encode(), 2)
        assert (ran.returncode == 0) == succeeds, (name, ran)
        if verb == "ADD" and succeeds:
            result = json.loads(ran.stdout)
print(json.dumps(busy))
"""


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


@pytest.mark.parametrize("ipam", ["ours", "theirs"])
def test_after_every_call(agent_node: Node, reference: Way, ipam: str) -> None:
    pod, conf = agent_node.pod(), network(ipMasq=True)
    calls = [
        ("ADD", "ADD", conf, True),
        ("CHECK", "CHECK", conf, True),
        ("refused ADD", "ADD", conf, False),  # eth0 is there
        ("STATUS", "STATUS", conf, True),
        ("DEL", "DEL", conf, True),
        ("DEL again", "DEL", conf, True),
        ("GC", "GC", {**conf, **ALL_GONE}, True),
        ("wrong ADD", "ADD", REFUSED, False),
    ]
    path = str(agent_node.way.bin_dir if ipam == "ours" else reference.bin_dir)
    plan = {
        "pod": pod.path, "often": OFTEN, "calls": calls, "plugin": agent_node.executable("bridge"),
        "env": agent_node.environ("", pod, env={"CNI_PATH": path}),
    }  # fmt: skip

    busy = json.loads(agent_node.run(sys.executable, "-I", "-c", RUNTIME, stdin=json.dumps(plan).encode(), timeout=900))

    assert busy == dict.fromkeys((name for name, *_ in calls), 0)
    agent_node.answered += OFTEN * len(calls)


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
