"""What others change under a resident agent: it remembers nothing that it does not look up again."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.world import DUAL_STACK, LEASES, Node, Pod, Running, Way, network, wait_same

if TYPE_CHECKING:
    from collections.abc import Sequence

PLENTY = 300.0
ONE_SHOT = {"CNIKIT_SOCKET": "/nowhere"}
FAMILIES = (socket.AF_INET, socket.AF_INET6)


@pytest.fixture
def conf() -> dict[str, Any]:
    return network(ipam=DUAL_STACK, ipMasq=True)


@pytest.fixture
def before(agent_node: Node, conf: dict[str, Any]) -> dict[str, Any]:
    pod = agent_node.pod()
    assert agent_node.call("bridge", "ADD", conf, pod).ok
    agent_node.call("bridge", "DEL", conf, pod).silent()
    return agent_node.snapshot()


def through_the_agent(node: Node) -> int:
    assert node.agent is not None
    return len(node.agent.requests("ok"))


def lives(node: Node, conf: dict[str, Any], pod: Pod) -> None:
    """ADD of a pod whose traffic then leaves the node masqueraded, CHECK, DEL."""
    result = node.call("bridge", "ADD", conf, pod).result
    assert pod.addresses() == [item["address"] for item in result["ips"]]
    node.call("bridge", "CHECK", {**conf, "prevResult": result}, pod).silent()
    outside = node.outside()
    for family in FAMILIES:
        with pod.socket(family) as sender:
            assert outside.source_of(sender) == outside.node_address(family)
    node.call("bridge", "DEL", conf, pod).silent()
    assert set(node.links(pod)) == {"lo"}


BRIDGE_AGAIN = "ip link add {0} address 02:00:00:00:00:42 type bridge && ip link set {0} up"


@pytest.mark.parametrize(
    "change",
    [
        "ip link del cni0",
        f"ip link del cni0; {BRIDGE_AGAIN.format('cni0')}",
        f"ip link set cni0 down; ip link set cni0 name gone; {BRIDGE_AGAIN.format('cni0')}",
        "ip addr flush dev cni0",
        "ip link set cni0 down",
        "nft flush ruleset",
        "nft flush table inet cnikit; nft delete table inet cnikit",
        f"rm -r {LEASES}",
        f"rm -r {LEASES}/net",
        f"rm -r {LEASES}/.cnikit",
        "rm -r /run/cnikit/networks",
        "rm -r /run/cnikit/locks",
        f"ip link del cni0; nft flush ruleset; rm -r {LEASES} /run/cnikit/networks",
        "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
    ],
)
def test_something_goes_between_two_pods(
    agent_node: Node, conf: dict[str, Any], before: dict[str, Any], change: str
) -> None:
    agent_node.run("sh", "-c", f"{{ {change}; }} 2>/dev/null || true")

    lives(agent_node, conf, agent_node.pod())

    assert through_the_agent(agent_node) == 2 + 3


@pytest.mark.parametrize(
    "change", ["ip link del cni0", "nft flush ruleset", f"rm -r {LEASES}", "ip -all netns del", "ip link del eth0"]
)
def test_something_goes_under_a_pod(
    agent_node: Node, conf: dict[str, Any], before: dict[str, Any], change: str
) -> None:
    """Its DEL succeeds, and a new pod lives."""
    pod = agent_node.pod()
    assert agent_node.call("bridge", "ADD", conf, pod).ok
    if change == "ip link del eth0":
        agent_node.run("ip", "-n", pod.name, "link", "del", "eth0")
    else:
        agent_node.run("sh", "-c", change)

    agent_node.call("bridge", "DEL", conf, pod).silent()

    assert agent_node.leases("net") == {}
    lives(agent_node, conf, agent_node.pod())
    assert through_the_agent(agent_node) == 2 + 2 + 3


@pytest.mark.parametrize("change", ["nft flush ruleset", "ip link del cni0", f"rm -rf {LEASES}"])
def test_something_goes_again_and_again_while_pods_come(
    agent_node: Node, conf: dict[str, Any], before: dict[str, Any], change: str
) -> None:
    """Every ADD succeeds or says why not; after every DEL nothing is left, and the next pod lives."""
    pods = agent_node.many_pods(30)
    calls = []
    for number, pod in enumerate(pods):
        calls.append(agent_node.start("bridge", "ADD", conf, pod))
        if number % 5 == 4:
            agent_node.attempt("sh", "-c", change)
    answers = [call.wait(PLENTY) for call in calls]

    for answer in answers:
        if not answer.ok:
            assert answer.error["code"] in {5, 11, 999}
    for call in [agent_node.start("bridge", "DEL", conf, pod) for pod in pods]:
        call.wait(PLENTY).silent()
    assert agent_node.leases("net") == {}
    for pod in pods:
        assert set(agent_node.links(pod)) == {"lo"}
    assert [name for name in agent_node.links() if name.startswith("veth")] == []
    lives(agent_node, conf, agent_node.pod())


class TestGoHostLocal:
    """The reference's host-local on the same folder, in turn and at once."""

    def test_in_turn(self, agent_node: Node, conf: dict[str, Any], reference: Way) -> None:
        given: list[str] = []
        pods = agent_node.many_pods(12)
        for number, pod in enumerate(pods):
            way = reference if number % 3 == 1 else None
            answer = agent_node.call("host-local", "ADD", conf, pod, way=way)
            given += [item["address"] for item in answer.result["ips"]]
        assert len(set(given)) == 24

        for number, pod in enumerate(pods):
            agent_node.call("host-local", "DEL", conf, pod, way=reference if number % 2 else None).silent()
        assert agent_node.leases("net") == {}

    @pytest.mark.usefixtures("before")
    def test_at_once(self, agent_node: Node, conf: dict[str, Any], reference: Way) -> None:
        ours, theirs = agent_node.many_pods(25), agent_node.many_pods(25)
        theirs_at = agent_node.executable("host-local", reference)

        def go(command: str) -> list[Running]:
            import json

            calls = []
            for our_pod, their_pod in zip(ours, theirs, strict=True):
                calls.append(agent_node.start("host-local", command, conf, our_pod))
                environ = agent_node.environ(command, their_pod, way=reference)
                calls.append(Running(agent_node, theirs_at, environ, json.dumps(conf).encode()))
            return calls

        answers = [call.wait(PLENTY) for call in go("ADD")]
        given = [item["address"] for answer in answers for item in answer.result["ips"]]
        assert len(set(given)) == 100
        assert set(agent_node.leases("net")) == {address.partition("/")[0] for address in given}

        for call in go("DEL"):
            assert call.wait(PLENTY).ok
        assert agent_node.leases("net") == {}

    def test_its_lease_in_our_way(self, agent_node: Node, reference: Way) -> None:
        """The pool is full by its doing, and has room again by its doing."""
        tiny = network(ipam={"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/30"}]]})
        first, second = agent_node.many_pods(2)
        assert agent_node.call("host-local", "ADD", tiny, first, way=reference).ok
        error = agent_node.call("bridge", "ADD", tiny, second).error
        assert "no IP addresses available" in error["msg"]

        agent_node.call("host-local", "DEL", tiny, first, way=reference).silent()

        assert agent_node.call("bridge", "ADD", tiny, second).result["ips"][0]["address"] == "10.1.0.2/30"


class TestBothWaysAtOnce:
    """Launchers that find the agent and launchers that do not."""

    def calls(self, node: Node, command: str, conf: dict[str, Any], pods: Sequence[Pod]) -> list[Running]:
        return [
            node.start("bridge", command, conf, pod, env=ONE_SHOT if number % 2 else None)
            for number, pod in enumerate(pods)
        ]

    def test_different_pods(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        pods = agent_node.many_pods(60)

        answers = [call.wait(PLENTY) for call in self.calls(agent_node, "ADD", conf, pods)]

        given = [item["address"] for answer in answers for item in answer.result["ips"]]
        assert len(set(given)) == 120
        for pod, answer in zip(pods, answers, strict=True):
            assert pod.addresses() == [item["address"] for item in answer.result["ips"]]
        for call in self.calls(agent_node, "DEL", conf, pods[::-1]):  # each by the other way
            call.wait(PLENTY).silent()
        wait_same(agent_node.snapshot, before, "both ways at once left something")
        assert through_the_agent(agent_node) == 2 + 60

    def test_one_pod_deleted_many_times(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        for _ in range(5):
            pod = agent_node.pod()
            assert agent_node.call("bridge", "ADD", conf, pod).ok

            for call in self.calls(agent_node, "DEL", conf, [pod] * 8):
                call.wait(PLENTY).silent()

            assert set(agent_node.links(pod)) == {"lo"}
        wait_same(agent_node.snapshot, before, "repeated DELs left something")

    def test_one_pod_added_many_times(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        """One succeeds; the others find the interface there, and their failure takes nothing of it."""
        for _ in range(5):
            pod = agent_node.pod()

            answers = [call.wait(PLENTY) for call in self.calls(agent_node, "ADD", conf, [pod] * 6)]

            results = [answer.result for answer in answers if answer.ok]
            assert len(results) == 1
            assert pod.addresses() == [item["address"] for item in results[0]["ips"]]
            agent_node.call("bridge", "CHECK", {**conf, "prevResult": results[0]}, pod).silent()
            agent_node.call("bridge", "DEL", conf, pod).silent()
        wait_same(agent_node.snapshot, before, "repeated ADDs left something")

    def test_add_and_del_of_one_pod(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        """In whatever order they come: a last DEL leaves nothing."""
        for _ in range(5):
            pod = agent_node.pod()
            calls = [
                agent_node.start("bridge", command, conf, pod, env=env)
                for command, env in (("ADD", None), ("DEL", ONE_SHOT), ("ADD", ONE_SHOT), ("DEL", None), ("ADD", None))
            ]
            for call in calls:
                call.wait(PLENTY)

            agent_node.call("bridge", "DEL", conf, pod).silent()

            assert set(agent_node.links(pod)) == {"lo"}
        wait_same(agent_node.snapshot, before, "ADDs and DELs of one pod left something")
