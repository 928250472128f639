"""A container's /proc/sys that can only be read: what is right already is no write, and the rest goes to another mount
of it, which CNIKIT_SYSCTL_DIR or the agent's `--sysctl-dir` names (adr/023).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_world import Agent, AgentWay
from tests.e2e.bridge_world import add, dual, ours
from tests.e2e.underlay import V4, V6, Cluster
from tests.e2e.underlay import add as attach
from tests.e2e.world import Node, Pod, Way

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = ours

ELSEWHERE = "/run/node-settings"
VARIABLE = {"CNIKIT_SYSCTL_DIR": ELSEWHERE}
FORWARDING = ("net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding")


class OneShotElsewhere(Way):
    """Each call is given the variable."""

    def enter(self, node: Node) -> None:
        environ = node.environ
        node.environ = lambda *args, **options: {**environ(*args, **options), **VARIABLE}  # type: ignore[method-assign]


class AgentElsewhere(AgentWay):
    """The agent is given the option; the calls say nothing."""

    def enter(self, node: Node) -> None:
        node.agent = Agent(node, "--sysctl-dir", ELSEWHERE, program=self.program).ready()


@pytest.fixture
def elsewhere(way: Way) -> Way:
    """The way to the executables that are given the other mount."""
    if isinstance(way, AgentWay):
        return AgentElsewhere(way.name, way.bin_dir, way.program)
    return OneShotElsewhere(way.name, way.bin_dir)


@pytest.fixture
def closed(way: Way) -> Iterator[Node]:
    """A node whose /proc/sys is read-only for plugins that know of no other."""
    with Node(way) as node:
        close(node)
        yield node


def close(node: Node, *, fresh: bool = False) -> None:
    """Forwarding off, /proc/sys read-only, and another mount of it, or of the same folder in a `fresh` proc."""
    for name in (ELSEWHERE, "/run/node-proc"):
        node.path(name).mkdir()
    node.run("mount", "-t", "proc", "proc", "/run/node-proc")
    node.run("mount", "--bind", "/run/node-proc/sys" if fresh else "/proc/sys", ELSEWHERE)
    node.run("mount", "--bind", "/proc/sys", "/proc/sys")
    node.run("mount", "-o", "remount,bind,ro", "/proc/sys")
    for name in FORWARDING:
        put(node, name, "0")
    assert node.attempt("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/forwarding").status != 0


def put(where: Node | Pod, name: str, value: str) -> None:
    node, prefix = (where, ()) if isinstance(where, Node) else (where.node, ("ip", "netns", "exec", where.name))
    node.run(*prefix, "sh", "-c", f"echo {value} > {ELSEWHERE}/{name}")


def get(where: Node | Pod, name: str) -> str:
    node, prefix = (where, ()) if isinstance(where, Node) else (where.node, ("ip", "netns", "exec", where.name))
    return node.run(*prefix, "cat", f"{ELSEWHERE}/{name}").strip()


class TestAnotherMount:
    @pytest.mark.parametrize("fresh", [False, True], ids=["bind", "another-proc"])
    def test_bridge(self, elsewhere: Way, fresh: bool) -> None:  # noqa: FBT001
        conf: dict[str, Any] = dual(ipMasq=True)
        with Node(elsewhere) as node:
            close(node, fresh=fresh)
            pod = node.pod()

            result = add(node, pod, conf)

            assert [get(node, name) for name in FORWARDING] == ["1", "1"]
            assert get(pod, "net/ipv6/conf/eth0/accept_dad") == "0"
            assert get(node, "net/ipv6/conf/cni0/accept_ra") == "0"
            node.call("bridge", "CHECK", {**conf, "prevResult": result}, pod).silent()
            node.call("bridge", "STATUS", conf).silent()
            node.call("bridge", "DEL", {**conf, "prevResult": result}, pod).silent()
            assert set(node.links(pod)) == {"lo"}

    @pytest.mark.parametrize("attachment", ["routed", "bridged"])
    @pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
    def test_networks_that_span_nodes(self, elsewhere: Way, backend: str, attachment: str) -> None:
        with Cluster(elsewhere, underlay=(V4, V6), pods=(V4, V6)) as cluster:
            conf, node = cluster.conf(backend, attachment=attachment), cluster.nodes[0]
            for each in cluster.nodes:
                close(each)
            pod = node.pod()
            node.call(backend, "STATUS", conf).silent()

            result = attach(pod, conf)

            assert [get(node, name) for name in FORWARDING] == ["1", "1"]
            assert get(pod, "net/ipv6/conf/eth0/accept_dad") == "0"
            node.call(backend, "CHECK", {**conf, "prevResult": result}, pod).silent()
            node.call(backend, "DEL", {**conf, "prevResult": result}, pod).silent()
            assert set(node.links(pod)) == {"lo"}


class TestNoOtherMount:
    def test_what_is_right_is_no_write(self, closed: Node) -> None:
        conf: dict[str, Any] = dual(ipMasq=True)
        pod = closed.pod()
        for name in FORWARDING:
            put(closed, name, "1")
        put(pod, "net/ipv6/conf/default/accept_dad", "0")

        result = add(closed, pod, conf)

        closed.call("bridge", "CHECK", {**conf, "prevResult": result}, pod).silent()
        closed.call("bridge", "DEL", {**conf, "prevResult": result}, pod).silent()
        assert set(closed.links(pod)) == {"lo"}

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ("net/ipv4/conf/all/forwarding", "set net.ipv4.conf.all.forwarding to 1: EROFS"),
            ("net/ipv6/conf/all/forwarding", "set net.ipv6.conf.all.forwarding to 1: EROFS"),
            ("net/ipv6/conf/default/accept_dad", "set net.ipv6.conf.eth0.accept_dad to 0: EROFS"),
        ],
    )
    def test_what_is_wrong_is_named(self, closed: Node, wrong: str, said: str) -> None:
        """The setting, the value that it needs and the one it has; and nothing of the pod stays."""
        conf: dict[str, Any] = dual(ipMasq=True)
        pod = closed.pod()
        for name in FORWARDING:
            put(closed, name, "1")
        put(pod, "net/ipv6/conf/default/accept_dad", "0")
        put(pod if "accept_dad" in wrong else closed, wrong, "1" if "accept_dad" in wrong else "0")

        error = closed.call("bridge", "ADD", conf, pod).error

        assert error["code"] == 999
        assert said in error["msg"]
        assert f"found {'1' if 'accept_dad' in wrong else '0'}" in error["msg"]
        assert "CNIKIT_SYSCTL_DIR" in error["details"]
        assert set(closed.links(pod)) == {"lo"}
        assert closed.leases("net") == {}
        assert not [name for name in closed.files("/run/cnikit") if "/attachments/" in name]

    @pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
    def test_status_knows_beforehand(self, way: Way, backend: str) -> None:
        with Cluster(way, pods=(V4,)) as cluster:
            node = cluster.nodes[0]
            close(node)

            error = node.call(backend, "STATUS", cluster.conf(backend)).error

            assert "net.ipv4.conf.all.forwarding" in error["msg"]
            assert "CNIKIT_SYSCTL_DIR" in error["details"]


class TestAWrongPlace:
    @pytest.mark.parametrize(
        ("place", "code"), [("settings", 4), ("/run", 999), ("/nowhere", 999)], ids=["relative", "another", "none"]
    )
    def test_one_shot(self, bin_dir: Path, place: str, code: int) -> None:
        """ADD says so. DEL needs no setting, and removes what was made before the variable was changed."""
        with Node(Way("one-shot", bin_dir)) as node:
            pod, other, env = node.pod(), node.pod(), {"CNIKIT_SYSCTL_DIR": place}
            add(node, pod, dual())

            error = node.call("bridge", "ADD", dual(), other, env=env).error

            assert error["code"] == code
            assert place in error["msg"]
            assert "CNIKIT_SYSCTL_DIR" in error["msg"] + error["details"]
            assert len(node.leases("net")) == 2
            node.call("bridge", "DEL", dual(), pod, env=env).silent()
            assert node.leases("net") == {}

    @pytest.mark.parametrize("place", ["settings", "/run", "/nowhere"])
    def test_agent(self, agent_way: AgentWay, place: str) -> None:
        """It does not start."""
        with Node(agent_way) as node:
            answer = node.attempt(str(agent_way.program), "agent", "--sysctl-dir", place)

            assert answer.status == 1
            assert place in answer.stderr
            assert "CNIKIT_SYSCTL_DIR" in answer.stderr
            assert "Traceback" not in answer.stderr
