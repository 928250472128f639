"""A failed ADD leaves nothing of the pod behind: every single kernel verb of an ADD fails once, on the real kernel."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.world import Answer, Node, Pod, Way

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_PROCESS = Path(__file__).with_name("in_process.py")

BASE: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "faults",
    "type": "bridge",
    "bridge": "cni0",
    "isDefaultGateway": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd00:7::/64"}]]},
}
CASES: dict[str, dict[str, Any]] = {
    "nftables": {"ipMasq": True, "hairpinMode": True, "macspoofchk": True},
    "iptables": {"ipMasq": True, "ipMasqBackend": "iptables"},
    "layer2": {"ipam": {}, "isDefaultGateway": False, "portIsolation": True},
}


@pytest.fixture
def node() -> Iterator[Node]:
    with Node(Way("in-process", Path("/nowhere"))) as made:
        yield made


def call(node: Node, command: str, conf: dict[str, Any], pod: Pod, plugin_path: Path, fail_at: str = "0") -> Answer:
    """One call of bridge from source, inside the node."""
    environ = node.environ(command, pod, env={"FAIL_AT": fail_at, "CNI_PATH": str(plugin_path)})
    return node.attempt(sys.executable, "-B", str(IN_PROCESS), "bridge", env=environ, stdin=json.dumps(conf).encode())


def told(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.stderr.strip().splitlines()[-1])
    return found


@pytest.fixture
def plugin_path(tmp_path: Path) -> Path:
    """A folder on CNI_PATH in which host-local is found; in-process it is ours."""
    (tmp_path / "host-local").touch(0o755)
    return tmp_path


def look(node: Node, pod: Pod) -> dict[str, Any]:
    return {**node.snapshot(), "pod": node.links(pod)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_add_failing_at_every_verb_leaves_nothing_of_the_pod(node: Node, plugin_path: Path, case: str) -> None:
    conf = BASE | CASES[case]
    first, pod = node.pod(), node.pod()
    # What pods share (bridge, gateway, forwarding, the table's skeleton) is made by another pod before.
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
    assert verbs == len(report["verbs"]) + 1
    assert verbs > 12
    call(node, "DEL", conf, pod, plugin_path).silent()
    assert look(node, pod) == before


def test_an_answer_that_cannot_be_delivered_takes_the_add_back(node: Node, plugin_path: Path) -> None:
    conf = BASE | CASES["nftables"]
    first, pod = node.pod(), node.pod()
    assert call(node, "ADD", conf, first, plugin_path).ok
    call(node, "DEL", conf, first, plugin_path).silent()
    before = look(node, pod)

    answer = call(node, "ADD", conf, pod, plugin_path, "answer")

    assert answer.status == 1
    assert look(node, pod) == before


def test_del_goes_on_when_a_verb_fails_and_a_second_del_finishes(node: Node, plugin_path: Path) -> None:
    conf = BASE | CASES["nftables"]
    pod = node.pod()
    assert call(node, "ADD", conf, pod, plugin_path).ok
    call(node, "DEL", conf, pod, plugin_path).silent()
    before = look(node, pod)

    failed = 0
    for verb in range(1, 40):
        assert call(node, "ADD", conf, pod, plugin_path).ok
        answer = call(node, "DEL", conf, pod, plugin_path, str(verb))
        if answer.ok and not told(answer)["failed"]:
            break
        failed += 1
        call(node, "DEL", conf, pod, plugin_path).silent()
        assert look(node, pod) == before, f"verb {verb}: {told(answer)['failed']}"
    assert failed > 5
