"""Many at once, and calls that are killed at any moment."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.world import DUAL_STACK, Node, Pod, Running, network, wait_same

if TYPE_CHECKING:
    from collections.abc import Sequence

MANY = 100
PLENTY = 300.0  # seconds for a hundred calls side by side on a small machine


@pytest.fixture
def conf() -> dict[str, Any]:
    return network(ipam=DUAL_STACK, ipMasq=True)


def together(node: Node, command: str, conf: dict[str, Any], pods: Sequence[Pod]) -> list[dict[str, Any] | None]:
    """Start all calls before the first is waited for; every one must succeed. The results of ADD."""
    return collect([node.start("bridge", command, conf, pod) for pod in pods])


def collect(running: Sequence[Running]) -> list[dict[str, Any] | None]:
    results: list[dict[str, Any] | None] = []
    for call in running:
        answer = call.wait(PLENTY)
        assert answer.ok, answer
        results.append(answer.result if answer.stdout else None)
    return results


def addresses(results: Sequence[dict[str, Any] | None]) -> list[str]:
    return [item["address"] for result in results if result for item in result["ips"]]


def warm_up(node: Node, conf: dict[str, Any]) -> dict[str, Any]:
    """One pod comes and goes, so that everything shared is there; the node as it is then."""
    pod = node.pod()
    assert node.call("bridge", "ADD", conf, pod).ok
    assert node.call("bridge", "DEL", conf, pod).ok
    return node.snapshot()


def test_a_hundred_at_once(node: Node, conf: dict[str, Any]) -> None:
    before = warm_up(node, conf)
    pods = node.many_pods(MANY)

    results = together(node, "ADD", conf, pods)

    given = addresses(results)
    assert len(given) == 2 * MANY
    assert len(set(given)) == 2 * MANY
    assert set(node.leases("net")) == {address.partition("/")[0] for address in given}
    for pod, result in zip(pods, results, strict=True):
        assert result is not None
        assert pod.addresses() == [item["address"] for item in result["ips"]]

    together(node, "DEL", conf, pods)

    wait_same(node.snapshot, before, "a hundred ADDs and DELs left something")


def test_the_very_first_calls_at_once(node: Node, conf: dict[str, Any]) -> None:
    """Bridge, gateway addresses, table and folders are made by whoever comes first; nobody fails for it."""
    pods = node.many_pods(20)

    results = together(node, "ADD", conf, pods)

    assert len(set(addresses(results))) == 40
    gateways = [
        item["local"]
        for item in node.ip("addr", "show", "dev", "cni0")[0]["addr_info"]
        if not item["local"].startswith("fe80")
    ]
    assert sorted(gateways) == ["10.1.0.1", "fd00:1::1"]


def test_a_mix(node: Node, conf: dict[str, Any]) -> None:
    """Half of the pods leave while others come."""
    before = warm_up(node, conf)
    staying, coming = node.many_pods(MANY // 2), node.many_pods(MANY // 2)
    first = together(node, "ADD", conf, staying)

    calls = [
        node.start("bridge", command, conf, pod)
        for leaving, arriving in zip(staying, coming, strict=True)
        for command, pod in (("DEL", leaving), ("ADD", arriving))
    ]
    results = collect(calls)

    given = addresses(results)
    assert len(given) == len(set(given)) == MANY
    assert len(set(addresses(first))) == MANY
    assert set(node.leases("net")) == {address.partition("/")[0] for address in given}
    together(node, "DEL", conf, coming)
    wait_same(node.snapshot, before, "a mix of ADDs and DELs left something")


def test_the_same_del_many_times_at_once(node: Node, conf: dict[str, Any]) -> None:
    """A runtime that lost patience repeats itself."""
    before = warm_up(node, conf)
    pod = node.pod()
    assert node.call("bridge", "ADD", conf, pod).ok

    together(node, "DEL", conf, [pod] * 8)

    wait_same(node.snapshot, before, "repeated DELs left something")


def test_adds_of_two_networks_at_once(node: Node) -> None:
    """Two networks on two bridges know nothing of each other."""
    ranges = {
        name: {"type": "host-local", "ranges": [[{"subnet": subnet}]]}
        for name, subnet in (("a", "10.2.0.0/24"), ("b", "10.3.0.0/24"))
    }
    confs = {name: network(name, bridge=f"br-{name}", ipMasq=True, ipam=ipam) for name, ipam in ranges.items()}
    pods = node.many_pods(20)

    calls = [node.start("bridge", "ADD", confs["ab"[index % 2]], pod) for index, pod in enumerate(pods)]
    results = collect(calls)

    given = addresses(results)
    assert len(set(given)) == 20
    assert {address.rpartition(".")[0] for address in given[0::2]} == {"10.2.0"}
    assert {address.rpartition(".")[0] for address in given[1::2]} == {"10.3.0"}


@pytest.mark.ours
@pytest.mark.parametrize("netns_survives", [True, False])
def test_killed_adds_then_del(node: Node, conf: dict[str, Any], netns_survives: bool) -> None:  # noqa: FBT001
    """kill -9 at sixty moments spread over the time an ADD takes; one DEL then removes whatever was made."""
    before = warm_up(node, conf)
    moments = random.Random(20)
    finished = 0
    for _ in range(60):
        pod = node.pod()
        running = node.start("bridge", "ADD", conf, pod)
        kill_after(running, moments.uniform(0.0, 0.06))
        finished += running.wait().status == 0
        if not netns_survives:
            node.kill_netns(pod)
        node.call("bridge", "DEL", conf, pod).silent()
        if netns_survives:
            assert set(node.links(pod)) == {"lo"}

    assert finished < 60, "no call was killed: the moments are too late"
    wait_same(node.snapshot, before, "killed ADDs and their DELs left something")
    assert left_over_files(node) == []


@pytest.mark.ours
def test_killed_dels_then_del(node: Node, conf: dict[str, Any]) -> None:
    """The same for a DEL: the next one finishes the work."""
    before = warm_up(node, conf)
    moments = random.Random(21)
    for _ in range(40):
        pod = node.pod()
        assert node.call("bridge", "ADD", conf, pod).ok
        running = node.start("bridge", "DEL", conf, pod)
        kill_after(running, moments.uniform(0.0, 0.06))
        running.wait()
        node.call("bridge", "DEL", conf, pod).silent()

    wait_same(node.snapshot, before, "killed DELs left something")
    assert left_over_files(node) == []


@pytest.mark.ours
def test_killed_adds_disturb_nobody(node: Node, conf: dict[str, Any]) -> None:
    """Ten of twenty are killed while all run; the others get their addresses, and each its own."""
    before = warm_up(node, conf)
    moments = random.Random(22)
    pods = node.many_pods(20)
    calls = [node.start("bridge", "ADD", conf, pod) for pod in pods]
    for running in calls[0::2]:
        kill_after(running, moments.uniform(0.0, 0.05))
    answers = [running.wait(PLENTY) for running in calls]

    results = [answer.result for answer in answers[1::2]]
    assert len(set(addresses(results))) == 20

    together(node, "DEL", conf, pods)
    wait_same(node.snapshot, before, "ADDs with killed ones among them left something")
    assert left_over_files(node) == []


def kill_after(running: Running, seconds: float) -> None:
    """kill -9 the call after a while, by its own process ID, unless it ended by itself."""
    threading.Event().wait(seconds)
    running.process.kill()


def left_over_files(node: Node) -> list[str]:
    """Temporary files and lock files of single attachments, in the records' folder and beside the leases."""
    records = [name for name in node.files("/run/cnikit") if not name.endswith("/lock")]
    leases = [name for name in node.files("/var/lib/cni/networks") if ".tmp" in name or "temp" in name]
    return records + leases
