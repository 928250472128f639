"""A failed ADD of vxlan or host-gw leaves nothing of the pod, and nothing half made that stops the next one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.world import Answer, Node, Pod, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IN_PROCESS = Path(__file__).with_name("in_process.py")

PEERS = [
    {"name": "a", "publicIP": "198.18.0.1", "publicIPv6": "2001:db8::1", "subnets": ["10.7.1.0/24", "fd00:7:0:1::/64"]},
    {"name": "b", "publicIP": "198.18.0.2", "publicIPv6": "2001:db8::2", "subnets": ["10.7.2.0/24", "fd00:7:0:2::/64"]},
]
BASE: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "faults",
    "network": "10.7.0.0/16",
    "ipv6Network": "fd00:7::/48",
    "ipMasq": True,
    "peers": PEERS,
    "ipam": {"type": "host-local"},
}
CASES: dict[str, dict[str, Any]] = {
    "vxlan": {"type": "vxlan"},
    "vxlan-bridged": {"type": "vxlan", "attachment": "bridged", "hairpinMode": True},
    "host-gw": {"type": "host-gw"},
}


@pytest.fixture
def make_node() -> Iterator[Callable[[], Node]]:
    """A function that makes one more node with an underlay link."""
    made: list[Node] = []

    def make() -> Node:
        node = Node(Way("in-process", Path("/nowhere")))
        made.append(node)
        node.run("ip", "link", "add", "eth0", "type", "bridge")
        node.run("ip", "addr", "add", "198.18.0.1/24", "dev", "eth0")
        node.run("ip", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
        node.run("ip", "link", "set", "eth0", "up")
        return node

    yield make
    for node in made:
        node.close()


@pytest.fixture
def plugin_path(tmp_path: Path) -> Path:
    """A folder on CNI_PATH in which host-local is found; in-process it is ours."""
    (tmp_path / "host-local").touch(0o755)
    return tmp_path


def call(node: Node, command: str, conf: dict[str, Any], pod: Pod, plugin_path: Path, fail_at: str = "0") -> Answer:
    """One call from source, inside the node."""
    environ = node.environ(command, pod, env={"FAIL_AT": fail_at, "CNI_PATH": str(plugin_path)})
    argv = (sys.executable, "-B", str(IN_PROCESS), conf["type"])
    return node.attempt(*argv, env=environ, stdin=json.dumps(conf).encode())


def told(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.stderr.strip().splitlines()[-1])
    return found


def look(node: Node, pod: Pod) -> dict[str, Any]:
    """Without the neighbours: the kernel's own come and go."""
    found = {**node.snapshot(), "pod": node.links(pod)}
    return {key: value for key, value in found.items() if key != "neighbours"}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_add_failing_at_every_verb_leaves_nothing_of_the_pod(
    make_node: Callable[[], Node], plugin_path: Path, case: str
) -> None:
    node, conf = make_node(), BASE | CASES[case]
    first, pod = node.pod(), node.pod()
    assert call(node, "ADD", conf, first, plugin_path).ok
    call(node, "DEL", conf, first, plugin_path).silent()
    before = look(node, pod)

    verbs = 0
    while True:
        verbs += 1
        answer = call(node, "ADD", conf, pod, plugin_path, str(verbs))
        report = told(answer)
        if not report["failed"]:
            break
        if answer.ok:  # a verb whose failure the ADD can bear
            assert "packets do not pass" in answer.stderr or report["failed"].startswith("link"), (report, answer)
            call(node, "DEL", conf, pod, plugin_path).silent()
        else:
            assert "EIO" in answer.error["msg"], (verbs, report, answer)
        assert look(node, pod) == before, f"verb {verbs}: {report['failed']}: {answer.stderr}"

    assert answer.ok, answer
    assert verbs > 12
    call(node, "DEL", conf, pod, plugin_path).silent()
    assert look(node, pod) == before


@pytest.mark.timeout(900)
def test_what_a_failed_first_add_leaves_does_not_hinder_the_next(
    make_node: Callable[[], Node], plugin_path: Path
) -> None:
    """On a node that has nothing yet: device, routes and rules are half made at every point."""
    conf = BASE | CASES["vxlan"]
    whole = make_node()
    pod = whole.pod()
    assert call(whole, "ADD", conf, pod, plugin_path).ok
    call(whole, "DEL", conf, pod, plugin_path).silent()
    expected = {key: value for key, value in whole.snapshot().items() if key != "links"}

    verbs = 0
    while True:
        verbs += 1
        node = make_node()
        pod = node.pod()
        failed = call(node, "ADD", conf, pod, plugin_path, str(verbs))
        if not told(failed)["failed"]:
            break
        again = call(node, "ADD", conf, node.pod(), plugin_path)
        assert again.ok, (told(failed), again)
        call(node, "DEL", conf, node.pods[-1], plugin_path).silent()
        call(node, "DEL", conf, pod, plugin_path).silent()
        found = {key: value for key, value in node.snapshot().items() if key != "links"}
        assert found == expected, told(failed)
        node.close()
    assert verbs > 20
