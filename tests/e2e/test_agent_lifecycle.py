"""Start, stop, reload, hand-over, systemd: no call fails, and none that an agent could have served runs one-shot."""

from __future__ import annotations

import signal
import socket
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_world import SOCKET, Agent, Client, SlowIpam, header, start_again
from tests.e2e.world import DUAL_STACK, GENEROUS, Answer, Node, Pod, Running, network, wait_same, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PLENTY = 300.0
LOAD = 300  # calls
PACE = 0.005  # seconds from one to the next


@pytest.fixture
def conf() -> dict[str, Any]:
    return network(ipam=DUAL_STACK, ipMasq=True)


@pytest.fixture
def first(agent_node: Node) -> Agent:
    assert agent_node.agent is not None
    return agent_node.agent


@pytest.fixture
def bare(agent_node: Node, first: Agent) -> Node:
    """A node whose agent has been stopped."""
    assert first.stop() == 0
    return agent_node


class Load(threading.Thread):
    """Pods that come and go at a steady pace: half of the calls are ADDs, the others DELs of what was added before."""

    def __init__(self, node: Node, conf: dict[str, Any]) -> None:
        super().__init__()
        self._node = node
        self._conf = conf
        self.pods = node.many_pods(LOAD // 2)
        self.started: list[Running] = []
        self._added: list[Running] = []
        self._pause = threading.Event()
        self.start()

    def run(self) -> None:
        for number in range(LOAD // 2 + 20):
            if number < LOAD // 2:
                self._call("ADD", self.pods[number])
            if number >= 20:
                self._added[number - 20].process.wait()  # a runtime waits for an ADD before it deletes
                self._call("DEL", self.pods[number - 20])

    def _call(self, command: str, pod: Pod) -> None:
        self._pause.wait(PACE)
        call = self._node.start("bridge", command, self._conf, pod)
        self.started.append(call)
        if command == "ADD":
            self._added.append(call)

    def wait_for(self, count: int) -> None:
        """Until so many have begun."""
        wait_until(lambda: len(self.started) >= count, "the load has begun", GENEROUS)

    def answers(self) -> list[Answer]:
        """All, when it is over; none has failed."""
        self.join(PLENTY)
        found = [call.wait(PLENTY) for call in self.started]
        assert [answer for answer in found if not answer.ok] == []
        assert len(found) == LOAD
        return found


@pytest.fixture
def before(agent_node: Node, conf: dict[str, Any]) -> dict[str, Any]:
    pod = agent_node.pod()
    assert agent_node.call("bridge", "ADD", conf, pod).ok
    agent_node.call("bridge", "DEL", conf, pod).silent()
    return agent_node.snapshot()


def starts(agent: Agent) -> int:
    """How often it has begun to listen."""
    return agent.log().count("listening at")


def one_pod(node: Node, conf: dict[str, Any], **env: str) -> None:
    """It comes and goes."""
    pod = node.pod()
    assert node.call("bridge", "ADD", conf, pod, env=env).ok
    node.call("bridge", "DEL", conf, pod, env=env).silent()


class TestStart:
    def test_who_may_reach_it(self, agent_node: Node) -> None:
        found = agent_node.path(SOCKET).stat()
        folder = agent_node.path(SOCKET).parent.stat()

        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, 0)
        assert (stat.S_IMODE(folder.st_mode), folder.st_uid) == (0o700, 0)

    def test_a_socket_file_of_a_dead_agent_is_replaced(
        self, agent_node: Node, first: Agent, conf: dict[str, Any]
    ) -> None:
        first.kill()
        assert agent_node.path(SOCKET).is_socket()

        second = start_again(agent_node)

        one_pod(agent_node, conf)
        assert len(second.requests("ok")) == 2

    @pytest.mark.parametrize("make", ["touch", "mkdir", "mkfifo"])
    def test_what_is_no_socket_is_left_alone(self, bare: Node, make: str) -> None:
        bare.run(make, SOCKET)

        other = Agent(bare)
        assert other.wait() == 1

        assert f"cannot listen at {SOCKET}" in other.log()
        assert "Traceback" not in other.log()
        assert bare.path(SOCKET).exists()
        bare.run("rm", "-r", SOCKET)
        other.forget()

    def test_a_second_one_is_refused(self, agent_node: Node, first: Agent, conf: dict[str, Any]) -> None:
        second = Agent(agent_node)
        assert second.wait() == 1

        assert f"another agent listens at {SOCKET}" in second.log()
        assert "--replace" in second.log()
        second.forget()
        one_pod(agent_node, conf)
        assert len(first.requests("ok")) == 2

    def test_of_two_at_once_one_is_refused(self, bare: Node, conf: dict[str, Any]) -> None:
        both = [Agent(bare) for _ in range(2)]
        wait_until(lambda: any(agent.process.poll() is not None for agent in both), "one ends", GENEROUS)

        (refused,) = [agent for agent in both if agent.process.poll() is not None]
        (stays,) = [agent for agent in both if agent is not refused]
        assert refused.wait() == 1
        assert "another agent listens" in refused.log()
        refused.forget()
        stays.ready()
        one_pod(bare, conf)
        assert len(stays.requests("ok")) == 2
        assert stays.stop() == 0
        stays.forget()

    def test_the_socket_elsewhere(self, bare: Node, conf: dict[str, Any]) -> None:
        """CNIKIT_SOCKET for both; its folder is made."""
        elsewhere = "/run/some/where/socket"
        agent = Agent(bare, path=elsewhere).ready()
        assert stat.S_IMODE(bare.path(elsewhere).stat().st_mode) == 0o600
        assert stat.S_IMODE(bare.path(elsewhere).parent.stat().st_mode) == 0o700

        one_pod(bare, conf)
        assert agent.requests() == []
        one_pod(bare, conf, CNIKIT_SOCKET=elsewhere)

        assert len(agent.requests("ok")) == 2
        assert agent.stop() == 0
        assert not bare.path(elsewhere).exists()
        agent.forget()


class TestStop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_calls_under_way_are_answered(
        self, agent_node: Node, first: Agent, before: dict[str, Any], number: signal.Signals
    ) -> None:
        slow, (pod, other) = SlowIpam(agent_node), agent_node.many_pods(2)
        running = slow.start(pod)

        first.signal(number)
        wait_until(lambda: not agent_node.path(SOCKET).exists(), "the socket file goes")
        assert agent_node.call("bridge", "ADD", network(), other).ok  # by a process of its own
        assert first.process.poll() is None
        slow.go_on()

        assert running.wait().result["ips"][0]["address"] == slow.ADDRESS
        assert first.wait() == 0
        assert [one["outcome"] for one in first.logged() if one["container"] == pod.container_id] == ["ok"]
        slow.delete(pod)
        agent_node.call("bridge", "DEL", network(), other).silent()
        wait_same(agent_node.snapshot, before, "pods of a stopped agent left something")

    def test_under_load(self, agent_node: Node, first: Agent, conf: dict[str, Any], before: dict[str, Any]) -> None:
        load = Load(agent_node, conf)
        load.wait_for(60)

        assert first.stop() == 0

        load.answers()
        served = len(first.logged("ok")) - 2
        assert 0 < served < LOAD
        assert first.logged("error", "lost", "undelivered", "declined") == []
        wait_same(agent_node.snapshot, before, "the load left something")

    @pytest.mark.parametrize("drips", [False, True])
    def test_a_client_in_the_middle_of_its_request_is_not_waited_for_long(self, first: Agent, drips: bool) -> None:  # noqa: FBT001
        with Client(first) as client:
            client.send(header(1 << 20, 0) + b"x")
            first.signal(signal.SIGTERM)

            def ended() -> bool:
                if drips:
                    try:
                        client.send(b"x")
                    except OSError:
                        pass
                return first.process.poll() is not None

            wait_until(ended, "the agent ends", 30.0)
        assert first.wait() == 0


class TestReload:
    def test_under_load(self, agent_node: Node, first: Agent, conf: dict[str, Any], before: dict[str, Any]) -> None:
        """Calls wait for the moment that it takes."""
        pid = first.pid
        load = Load(agent_node, conf)
        for number in range(1, 3):
            load.wait_for(number * 80)
            first.signal(signal.SIGHUP)
            wait_until(lambda: starts(first) == number + 1, "it listens again")  # noqa: B023 - called in this round

        load.answers()

        assert first.pid == pid
        assert len(first.requests("ok")) == LOAD + 2
        assert first.requests("error", "lost", "undelivered", "declined") == []
        wait_same(agent_node.snapshot, before, "the load left something")

    @pytest.mark.usefixtures("before")
    def test_calls_under_way_are_answered_before(self, agent_node: Node, first: Agent, conf: dict[str, Any]) -> None:
        slow, pod = SlowIpam(agent_node), agent_node.pod()
        running = slow.start(pod)

        first.signal(signal.SIGHUP)
        other = agent_node.start("bridge", "ADD", conf, agent_node.pod())
        slow.go_on()

        assert running.wait().ok
        assert other.wait().ok
        wait_until(lambda: starts(first) == 2, "it listens again")
        assert len(first.requests("ok")) == 2 + 2

    def test_it_grows_by_nothing(self, agent_node: Node, first: Agent, conf: dict[str, Any]) -> None:
        one_pod(agent_node, conf)
        before = len(first.descriptors())
        for number in range(1, 6):
            first.signal(signal.SIGHUP)
            wait_until(lambda: starts(first) == number + 1, "it listens again")  # noqa: B023 - called in this round
            one_pod(agent_node, conf)
            wait_until(lambda: len(first.descriptors()) <= before, f"no more than {before} files are open")

        assert stat.S_IMODE(agent_node.path(SOCKET).stat().st_mode) == 0o600

    def test_signals_while_it_starts_anew_wait(self, agent_node: Node, first: Agent, conf: dict[str, Any]) -> None:
        for number in (10, 20):
            for _ in range(number):
                first.signal(signal.SIGHUP)
            count = starts(first)
            wait_until(lambda: starts(first) > count, "it listens again")  # noqa: B023 - called in this round
        one_pod(agent_node, conf)
        first.signal(signal.SIGHUP)
        first.signal(signal.SIGTERM)

        assert first.wait() == 0
        assert not agent_node.path(SOCKET).exists()

    @pytest.mark.parametrize("how", ["./cnikit", "cnikit"])
    def test_however_it_was_called(self, bare: Node, conf: dict[str, Any], how: str) -> None:
        """By a path that begins at the working directory, or by its name."""
        folder = bare.way.bin_dir.parent
        script = f'cd {folder} && shift && PATH="{folder}:$PATH" exec {how} "$@"'
        agent = Agent(bare, prefix=("sh", "-c", script, "sh")).ready()

        agent.signal(signal.SIGHUP)
        wait_until(lambda: starts(agent) == 2, "it listens again")

        one_pod(bare, conf)
        assert len(agent.requests("ok")) == 2
        assert agent.stop() == 0
        agent.forget()


class TestHandOver:
    def test_under_load(self, agent_node: Node, first: Agent, conf: dict[str, Any], before: dict[str, Any]) -> None:
        """No call fails, and none runs one-shot."""
        load = Load(agent_node, conf)
        load.wait_for(100)

        second = Agent(agent_node, "--replace").ready()
        assert first.wait() == 0
        load.answers()

        served = [first.logged("ok"), second.requests("ok")]
        assert all(served)
        assert sum(map(len, served)) == LOAD + 2
        assert second.requests("error", "lost", "undelivered", "declined") == []
        wait_same(agent_node.snapshot, before, "the load left something")
        first.looks_well()
        assert second.stop() == 0
        assert not agent_node.path(SOCKET).exists()
        second.forget()

    def test_the_old_one_answers_what_it_has_begun(
        self, agent_node: Node, first: Agent, conf: dict[str, Any], before: dict[str, Any]
    ) -> None:
        slow, pod = SlowIpam(agent_node), agent_node.pod()
        running = slow.start(pod)

        second = Agent(agent_node, "--replace").ready()
        one_pod(agent_node, conf)
        assert len(second.requests("ok")) == 2
        assert first.process.poll() is None
        slow.go_on()

        assert running.wait().ok
        assert first.wait() == 0
        assert agent_node.path(SOCKET).is_socket(), "the old agent removed the new one's socket file"
        slow.delete(pod)
        assert len(second.requests("ok")) == 3
        wait_same(agent_node.snapshot, before, "the hand-over left something")
        assert second.stop() == 0
        second.forget()

    def test_again_and_again(self, agent_node: Node, first: Agent, conf: dict[str, Any]) -> None:
        agents = [first]
        for _ in range(4):
            agents.append(Agent(agent_node, "--replace").ready())
            assert agents[-2].wait() == 0
            one_pod(agent_node, conf)
            assert len(agents[-1].requests("ok")) == 2
        assert agents[-1].stop() == 0
        assert not agent_node.path(SOCKET).exists()
        for agent in agents[1:]:
            agent.forget()

    def test_with_nobody_there_it_is_an_ordinary_start(self, bare: Node, conf: dict[str, Any]) -> None:
        agent = Agent(bare, "--replace").ready()

        one_pod(bare, conf)

        assert len(agent.requests("ok")) == 2
        assert agent.stop() == 0
        agent.forget()

    def test_a_new_one_that_dies_takes_nothing_with_it(
        self, agent_node: Node, first: Agent, conf: dict[str, Any]
    ) -> None:
        """It is killed when it has the socket: calls run one-shot, and the next agent starts as ever."""
        second = Agent(agent_node, "--replace").ready()
        second.kill()
        second.forget()
        assert first.wait() == 0

        one_pod(agent_node, conf)

        third = Agent(agent_node).ready()
        one_pod(agent_node, conf)
        assert len(third.requests("ok")) == 2
        assert third.stop() == 0
        third.forget()


class TestSystemd:
    """Its two protocols: sd_listen_fds(3) and sd_notify(3)."""

    @pytest.fixture
    def given(self, bare: Node) -> Iterator[socket.socket]:
        """The socket of a .socket unit."""
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(bare.path(SOCKET)))
            bare.path(SOCKET).chmod(0o600)
            listening.listen()
            yield listening

    def activated(self, node: Node, given: socket.socket, env: dict[str, str] | None = None) -> Agent:
        """An agent that systemd starts: the socket is its descriptor 3."""
        code = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[2], sys.argv[2:])"
        prefix = (sys.executable, "-c", code, str(given.fileno()))
        variables = {"LISTEN_FDS": "1", **(env or {})}
        return Agent(node, prefix=prefix, env=variables, pass_fds=[given.fileno()])

    def test_a_call_starts_it(self, bare: Node, given: socket.socket, conf: dict[str, Any]) -> None:
        """Who comes before it is there waits and is served."""
        pod = bare.pod()
        waiting = bare.start("bridge", "ADD", conf, pod)
        given.settimeout(GENEROUS)

        agent = self.activated(bare, given).ready()

        assert waiting.wait().ok
        bare.call("bridge", "DEL", conf, pod).silent()
        assert len(agent.requests("ok")) == 2
        assert agent.stop() == 0
        assert bare.path(SOCKET).is_socket(), "the socket is systemd's"
        agent.forget()
        bare.path(SOCKET).unlink()

    def test_reload_and_a_second_start(self, bare: Node, given: socket.socket, conf: dict[str, Any]) -> None:
        agent = self.activated(bare, given).ready()
        agent.signal(signal.SIGHUP)
        wait_until(lambda: starts(agent) == 2, "it listens again")
        one_pod(bare, conf)
        assert agent.stop() == 0
        agent.forget()

        pod = bare.pod()
        waiting = bare.start("bridge", "ADD", conf, pod)
        again = self.activated(bare, given).ready()
        assert waiting.wait().ok
        assert len(again.requests("ok")) == 1
        assert again.stop() == 0
        again.forget()
        bare.path(SOCKET).unlink()

    def test_a_descriptor_of_something_else(self, bare: Node) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            agent = self.activated(bare, other)
            assert agent.wait() == 1
        assert "expected a listening Unix socket" in agent.log()
        assert "Traceback" not in agent.log()
        agent.forget()

    @pytest.mark.parametrize("address", ["/run/notify", "@cnikit-test"])
    def test_it_tells_how_far_it_is(self, bare: Node, conf: dict[str, Any], address: str) -> None:
        with bare.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(f"\0{address[1:]}" if address.startswith("@") else str(bare.path(address)))
            systemd.settimeout(GENEROUS)
            agent = Agent(bare, env={"NOTIFY_SOCKET": address})

            assert self.told(systemd) == {"READY": "1"}
            one_pod(bare, conf)
            agent.signal(signal.SIGHUP)
            reloading = self.told(systemd)
            assert reloading.pop("RELOADING") == "1"
            assert int(reloading.pop("MONOTONIC_USEC")) > 0
            assert reloading == {}
            assert self.told(systemd) == {"READY": "1"}
            one_pod(bare, conf)
            agent.signal(signal.SIGTERM)
            assert self.told(systemd) == {"STOPPING": "1"}
            assert agent.wait() == 0
        agent.looks_well()
        agent.forget()

    def told(self, systemd: socket.socket) -> dict[str, str]:
        return dict(line.split("=", 1) for line in systemd.recv(4096).decode().splitlines())
