"""What the end-to-end tests stand on. Two variables say what is tested and against whom:

    CNIKIT_TEST_BIN     folder with the executables under test (bridge, host-local, loopback); the command `cnikit`,
                        which has the agent, lies beside it
    CNIKIT_TEST_PEERS   folder with the reference's executables and cnitool

The tests need root and these programs: ip, bridge, nft, iptables, nsenter, containerd, ctr, runc, podman, conmon
and a static busybox. What is missing fails loudly.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_world import AgentWay, beside
from tests.e2e.world import Node, Way
from tests.kernel_vm import vm

if TYPE_CHECKING:
    from collections.abc import Iterator


ROOT = Path(__file__).parents[2]
UNBOUNDED = 1 << 30


def _folder(variable: str, programs: tuple[str, ...]) -> Path:
    value = os.environ.get(variable, "")
    if not value:
        pytest.fail(f"{variable} is not set: expected the folder with {', '.join(programs)}", pytrace=False)
    folder = Path(value).resolve()
    missing = [program for program in programs if not os.access(folder / program, os.X_OK)]
    if missing:
        pytest.fail(f"{variable}={value}: no executable {', '.join(missing)} there", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def peers() -> Path:
    """The reference's executables and cnitool."""
    return _folder("CNIKIT_TEST_PEERS", ("cnitool", "bridge", "host-local", "loopback"))


@pytest.fixture(scope="session")
def bin_dir() -> Path:
    """The executables under test."""
    return _folder("CNIKIT_TEST_BIN", ("bridge", "host-local", "loopback"))


@pytest.fixture(scope="session")
def agent_way(bin_dir: Path) -> AgentWay:
    """Through launcher and agent."""
    program = beside(bin_dir)
    if not os.access(program, os.X_OK):
        pytest.fail(f"no executable {program}: the tests through the agent need it", pytrace=False)
    return AgentWay("agent", bin_dir, program)


@pytest.fixture(scope="session", params=["one-shot", "agent"])
def way(request: pytest.FixtureRequest, bin_dir: Path) -> Way:
    """How the executables under test are reached; every test runs once for each parameter."""
    if request.param == "one-shot":
        return Way("one-shot", bin_dir)
    found: AgentWay = request.getfixturevalue("agent_way")
    return found


@pytest.fixture(scope="session")
def reference(peers: Path) -> Way:
    """The reference's executables."""
    return Way("reference", peers)


@pytest.fixture
def node(way: Way) -> Iterator[Node]:
    """A fresh node."""
    with Node(way) as made:
        yield made


def _with_agent(agent_way: AgentWay) -> Iterator[Node]:
    with Node(agent_way) as made:
        made.prepare()
        made.may_decline = made.may_pass_by = UNBOUNDED
        yield made


@pytest.fixture
def agent_node(agent_way: AgentWay) -> Iterator[Node]:
    """A fresh node with an agent, for tests that disturb it and look themselves at what it was asked."""
    yield from _with_agent(agent_way)


@pytest.fixture(scope="module")
def shared_agent_node(agent_way: AgentWay) -> Iterator[Node]:
    """One for a whole file."""
    yield from _with_agent(agent_way)


@pytest.fixture(scope="session")
def seen_in_the_vm(bin_dir: Path, peers: Path) -> dict[str, Any]:
    """What tests/kernel_vm/look.py saw under another kernel."""
    python = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-B", "-m"]
    outcome = vm.run([*python, "tests.kernel_vm.look", str(bin_dir), str(peers)], timeout=1000)
    assert outcome.status == 0, outcome.output
    found: dict[str, Any] = json.loads(outcome.output)
    assert found["kernel"] != os.uname().release
    return found


@pytest.fixture(scope="module")
def shared_node(way: Way) -> Iterator[Node]:
    """One node for a whole file: for many cheap calls that leave nothing behind."""
    with Node(way) as made:
        yield made
