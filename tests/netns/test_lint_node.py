"""`cnikit lint` on the machine that the networks are for: its addresses are asked of the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        (["link add eth9 type veth peer name eth8", "addr add 10.7.0.1/24 dev eth9"], "eth9 10.7.0.0/24"),
        (["link add docker0 type bridge", "addr add 172.17.0.1/16 dev docker0"], "docker0 172.17.0.0/16"),
        (["link add eth9 type veth peer name eth8", "addr add fd00:7::1/64 dev eth9"], "eth9 fd00:7::/64"),
        (["link add p type veth peer name eth8", "addr add 10.7.0.1/32 dev p"], ""),
        (["link add p type veth peer name eth8", "link set p alias cnikit", "addr add 10.7.0.1/24 dev p"], "p 10.7.0.0/24"),
    ],
)  # fmt: skip
def test_the_networks_of_this_machine(commands: list[str], expected: str) -> None:
    name = f"lint-{os.getpid()}"
    ask = (
        "from cni import addr; from cli.lint_folder import places\n"
        "print(*(f'{one.link} {addr.unpack_cidr(*one.subnet)}' for one in places()), sep='\\n')"
    )
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for command in commands:
            subprocess.run(["ip", "-n", name, *command.split()], check=True)
        run = ["ip", "netns", "exec", name, sys.executable, "-c", ask]
        said = subprocess.run(run, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert said.split("\n") == [expected, ""]
