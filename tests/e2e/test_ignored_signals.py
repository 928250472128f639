"""One-shot calls by somebody who ignores and blocks signals: SIGCHLD too, which takes exit statuses from whoever waits."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_world import beside
from tests.e2e.world import DUAL_STACK, Node, Way, network, wait_same

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.e2e.world import Pod

HEEDLESS = """
import os, signal, sys
for number in {1, 2, 3, 13, 14, 15, 17, 25}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
"""
FOLDER = "/run/third-party"
CURIOUS = """#!/usr/bin/python3 -I
import pathlib, re
status = pathlib.Path("/proc/self/status").read_text()
pathlib.Path("/run/curious.signals").write_text("".join(re.findall(r"^Sig(?:Blk|Ign).*\\n", status, re.M)))
raise SystemExit(3)
"""
# In Python both SIGPIPE and SIGXFSZ are ignored, and in a shell nothing is blocked.
CURIOUS_SHELL = """#!/bin/sh
grep -E '^SigIgn:' /proc/self/status > /run/curious.signals
exit 3
"""


@pytest.fixture
def one_shot_node(bin_dir: Path) -> Iterator[Node]:
    with Node(Way("one-shot", bin_dir)) as node:
        yield node


def heedless(node: Node, *argv: str, env: Mapping[str, str], stdin: bytes = b"") -> Any:
    """What a program answers that has to succeed."""
    answer = node.attempt(sys.executable, "-I", "-c", HEEDLESS, *argv, env=env, stdin=stdin)
    assert answer.status == 0, answer
    return json.loads(answer.stdout or b"{}")


def call(node: Node, command: str, conf: Mapping[str, Any], pod: Pod, **env: str | None) -> Any:
    environ = node.environ(command, pod, env=env)
    return heedless(node, node.executable("bridge"), env=environ, stdin=json.dumps(conf).encode())


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_their_ipam_plugin_and_their_programs(one_shot_node: Node, reference: Way, backend: str) -> None:
    node = one_shot_node
    folder = node.path(FOLDER)
    folder.mkdir()
    (folder / "host-local").symlink_to(reference.bin_dir / "host-local")
    conf = network(ipam=DUAL_STACK, ipMasq=True, ipMasqBackend=backend)
    first, pod = node.pod(), node.pod()
    call(node, "ADD", conf, first, CNI_PATH=FOLDER)
    before = node.snapshot()

    result = call(node, "ADD", conf, pod, CNI_PATH=FOLDER)

    assert pod.addresses() == [item["address"] for item in result["ips"]]
    call(node, "CHECK", {**conf, "prevResult": result}, pod, CNI_PATH=FOLDER)
    call(node, "DEL", {**conf, "prevResult": result}, pod, CNI_PATH=FOLDER)
    wait_same(node.snapshot, before, "a heedless caller's pod left something")


def test_a_failure_is_still_told_and_the_program_inherits_what_the_caller_set(one_shot_node: Node) -> None:
    node = one_shot_node
    folder = node.path(FOLDER)
    folder.mkdir()
    (folder / "curious").write_text(CURIOUS)
    (folder / "curious").chmod(0o700)
    (folder / "broken").write_text("no program")
    (folder / "broken").chmod(0o700)
    pod = node.pod()

    def refused(ipam: str) -> str:
        env = node.environ("ADD", pod, env={"CNI_PATH": FOLDER})
        conf = json.dumps(network(ipam={"type": ipam})).encode()
        argv = (sys.executable, "-I", "-c", HEEDLESS, node.executable("bridge"))
        message: str = node.attempt(*argv, env=env, stdin=conf).error["msg"]
        return message

    assert "curious exited with 3" in refused("curious")
    assert "Exec format error" in refused("broken")
    signals = dict(line.split(":\t") for line in node.path("/run/curious.signals").read_text().splitlines())
    assert int(signals["SigBlk"], 16) & 0x7FFF_FFFF == 0x7FFB_FEFF  # all but SIGKILL and SIGSTOP
    assert int(signals["SigIgn"], 16) & 0x1_6007 == 0x1_6007


@pytest.mark.parametrize("ignored", [(), (signal.SIGPIPE,), (signal.SIGXFSZ,)])
def test_of_the_signals_that_python_ignores_a_program_inherits_the_callers(
    one_shot_node: Node, ignored: tuple[signal.Signals, ...]
) -> None:
    node = one_shot_node
    folder = node.path(FOLDER)
    folder.mkdir()
    (folder / "curious").write_text(CURIOUS_SHELL)
    (folder / "curious").chmod(0o700)
    setting = "import os, signal, sys\nfor number in (13, 25): signal.signal(number, signal.SIG_DFL)\n"
    setting += f"for number in {[int(number) for number in ignored]}: signal.signal(number, signal.SIG_IGN)\n"
    env = node.environ("ADD", node.pod(), env={"CNI_PATH": FOLDER})
    conf = json.dumps(network(ipam={"type": "curious"})).encode()
    argv = (sys.executable, "-I", "-c", f"{setting}os.execv(sys.argv[1], sys.argv[1:])", node.executable("bridge"))

    assert "curious exited with 3" in node.attempt(*argv, env=env, stdin=conf).error["msg"]

    mask = int(node.path("/run/curious.signals").read_text().split()[1], 16)
    assert [number for number in (13, 25) if mask >> number - 1 & 1] == list(ignored)


def test_the_demo(one_shot_node: Node, bin_dir: Path) -> None:
    the_command(one_shot_node, bin_dir, "demo")


def test_the_lab(one_shot_node: Node, bin_dir: Path) -> None:
    name = f"heedless{os.getpid()}"  # the folder of labs is the machine's: another test may have one there
    try:
        the_command(one_shot_node, bin_dir, "lab", "up", "--name", name, "--nodes", "2")
    finally:
        said = the_command(one_shot_node, bin_dir, "lab", "down", "--name", name)
    assert f"{name} is gone" in said


def the_command(node: Node, bin_dir: Path, *argv: str) -> str:
    """What a program says that has to succeed."""
    env = {"PATH": os.environ["PATH"], "CNI_PATH": str(bin_dir)}
    answer = node.attempt(sys.executable, "-I", "-c", HEEDLESS, str(beside(bin_dir)), *argv, env=env)
    assert (answer.status, "Traceback" in answer.stderr) == (0, False), answer
    return answer.stdout.decode()
