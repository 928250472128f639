"""The agent killed, stopped, hidden, starved and lied to. Each time: a right answer, or a clear error with the right
code; and after DEL nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_world import SOCKET, Agent, Client, Request, SlowIpam, header, start_again
from tests.e2e.world import DUAL_STACK, LEASES, RECORDS, Node, Pod, network, wait_same, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MANY = 100
PLENTY = 300.0
NOBODY = 65534


@pytest.fixture
def conf() -> dict[str, Any]:
    return network(ipam=DUAL_STACK, ipMasq=True)


@pytest.fixture
def before(agent_node: Node, conf: dict[str, Any]) -> dict[str, Any]:
    """The node after one pod came and went, so that everything shared is there."""
    pod = agent_node.pod()
    assert agent_node.call("bridge", "ADD", conf, pod).ok
    agent_node.call("bridge", "DEL", conf, pod).silent()
    return agent_node.snapshot()


def agent_of(node: Node) -> Agent:
    assert node.agent is not None
    return node.agent


def served(node: Node, *outcomes: str) -> int:
    return len(agent_of(node).requests(*outcomes))


def goes_through(node: Node, conf: dict[str, Any]) -> None:
    """A pod comes and goes, and the agent did it."""
    pod = node.pod()
    count = served(node, "ok")
    result = node.call("bridge", "ADD", conf, pod).result
    assert [item["address"] for item in result["ips"]] == pod.addresses()
    node.call("bridge", "DEL", conf, pod).silent()
    assert served(node, "ok") == count + 2, "a call did not go through the agent"


def goes_past(node: Node, conf: dict[str, Any]) -> None:
    """A pod comes and goes, and the agent has nothing to do with it."""
    pod = node.pod()
    count = served(node)
    assert node.call("bridge", "ADD", conf, pod).ok
    node.call("bridge", "DEL", conf, pod).silent()
    assert served(node) == count


@pytest.fixture
def slow(agent_node: Node, before: dict[str, Any]) -> SlowIpam:
    return SlowIpam(agent_node)


class TestKilled:
    def test_before_a_call(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        """Its socket file stays and leads nowhere."""
        agent_of(agent_node).kill()
        assert agent_node.path(SOCKET).is_socket()

        goes_past(agent_node, conf)

        wait_same(agent_node.snapshot, before, "calls past a dead agent left something")
        start_again(agent_node)
        goes_through(agent_node, conf)

    def test_between_add_and_the_rest(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        """What one process made, every other one finds."""
        first, second = agent_node.many_pods(2)
        results = [agent_node.call("bridge", "ADD", conf, pod).result for pod in (first, second)]
        agent_of(agent_node).kill()

        agent_node.call("bridge", "CHECK", {**conf, "prevResult": results[0]}, first).silent()
        agent_node.call("bridge", "DEL", conf, first).silent()
        start_again(agent_node)
        agent_node.call("bridge", "CHECK", {**conf, "prevResult": results[1]}, second).silent()
        agent_node.call("bridge", "DEL", conf, second).silent()

        assert served(agent_node, "ok") == 2
        wait_same(agent_node.snapshot, before, "pods of a killed agent left something")

    def test_in_the_middle_of_an_add(self, agent_node: Node, slow: SlowIpam, before: dict[str, Any]) -> None:
        """It is taken back and begun anew, without the agent."""
        pod = agent_node.pod()
        running = slow.start(pod)

        agent_of(agent_node).kill()

        wait_until(lambda: agent_node.path("/run/began").read_text() == "\n\n", "the ADD is begun a second time")
        slow.go_on()
        answer = running.wait()
        assert [item["address"] for item in answer.result["ips"]] == [SlowIpam.ADDRESS] == pod.addresses()
        slow.delete(pod)
        assert set(agent_node.links(pod)) == {"lo"}
        wait_same(agent_node.snapshot, before, "an ADD whose agent was lost left something")

    def test_in_the_middle_of_an_add_that_cannot_be_taken_back(
        self, agent_node: Node, slow: SlowIpam, before: dict[str, Any]
    ) -> None:
        """Its IPAM plugin fails to release: code 11, and a later DEL takes everything."""
        pod = agent_node.pod()
        running = slow.start(pod)
        slow.refuse_del()

        agent_of(agent_node).kill()

        error = running.wait().error
        assert (error["code"], error["cniVersion"]) == (11, "1.1.0")
        assert "agent" in error["msg"]
        assert agent_node.path("/run/began").read_text() == "\n", "the ADD was begun a second time"
        slow.allow_del()
        slow.go_on()
        slow.delete(pod)
        assert set(agent_node.links(pod)) == {"lo"}
        wait_same(agent_node.snapshot, before, "an ADD whose agent was lost left something")

    def test_at_any_moment_of_an_add(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        moments = random.Random(31)
        for _ in range(25):
            pod = agent_node.pod()
            running = agent_node.start("bridge", "ADD", conf, pod)
            threading.Event().wait(moments.uniform(0.0, 0.012))
            agent_of(agent_node).kill()
            answer = running.wait()
            assert answer.ok, answer
            assert pod.addresses() == [item["address"] for item in answer.result["ips"]]
            agent_node.call("bridge", "DEL", conf, pod).silent()
            assert set(agent_node.links(pod)) == {"lo"}
            start_again(agent_node)

        wait_same(agent_node.snapshot, before, "ADDs whose agent was killed left something")
        goes_through(agent_node, conf)

    def test_at_any_moment_of_a_del(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        """DEL can be repeated, and is: the caller does not notice."""
        moments = random.Random(32)
        for _ in range(15):
            pod = agent_node.pod()
            assert agent_node.call("bridge", "ADD", conf, pod).ok
            running = agent_node.start("bridge", "DEL", conf, pod)
            threading.Event().wait(moments.uniform(0.0, 0.012))
            agent_of(agent_node).kill()
            running.wait().silent()
            assert set(agent_node.links(pod)) == {"lo"}
            start_again(agent_node)

        wait_same(agent_node.snapshot, before, "DELs whose agent was killed left something")

    def test_in_the_middle_of_a_hundred_adds(
        self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]
    ) -> None:
        pods = agent_node.many_pods(MANY)
        calls = [agent_node.start("bridge", "ADD", conf, pod) for pod in pods]
        wait_until(lambda: len(agent_of(agent_node).logged("ok")) >= 20, "some are done")
        agent_of(agent_node).kill()
        answers = [call.wait(PLENTY) for call in calls]

        assert not [answer for answer in answers if not answer.ok]
        given = [item["address"] for answer in answers for item in answer.result["ips"]]
        assert len(given) == len(set(given))
        for pod, answer in zip(pods, answers, strict=True):
            assert pod.addresses() == [item["address"] for item in answer.result["ips"]]

        start_again(agent_node)
        deletions = [agent_node.start("bridge", "DEL", conf, pod) for pod in pods]
        for deletion in deletions:
            deletion.wait(PLENTY).silent()
        wait_same(agent_node.snapshot, before, "a hundred ADDs whose agent was killed left something")
        goes_through(agent_node, conf)

    def test_in_the_middle_of_a_hundred_dels(
        self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]
    ) -> None:
        pods = agent_node.many_pods(MANY)
        for call in [agent_node.start("bridge", "ADD", conf, pod) for pod in pods]:
            assert call.wait(PLENTY).ok
        done = served(agent_node, "ok")

        calls = [agent_node.start("bridge", "DEL", conf, pod) for pod in pods]
        wait_until(lambda: len(agent_of(agent_node).logged("ok")) >= done + 10, "some are done")
        agent_of(agent_node).kill()

        for call in calls:
            call.wait(PLENTY).silent()
        wait_same(agent_node.snapshot, before, "a hundred DELs whose agent was killed left something")


class TestOutOfReach:
    def test_stopped(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        """It hears, and does not answer. What it reads when it goes on has been done by others, and it lets it be."""
        pods = agent_node.many_pods(3)
        assert agent_node.call("bridge", "ADD", conf, pods[0]).ok
        done = served(agent_node)

        agent_of(agent_node).signal(signal.SIGSTOP)
        try:
            calls = [
                agent_node.start("bridge", command, conf, pod)
                for command, pod in zip(("DEL", "ADD", "ADD"), pods, strict=True)
            ]
            answers = [call.wait() for call in calls]
            during = agent_node.snapshot()
        finally:
            agent_of(agent_node).signal(signal.SIGCONT)

        assert all(answer.ok for answer in answers)
        wait_until(lambda: served(agent_node) == done + 3, "the agent has read what was sent")
        assert served(agent_node, "lost", "declined") == 3
        wait_same(agent_node.snapshot, during, "the agent did what nobody wanted any more")
        for pod in pods:
            agent_node.call("bridge", "DEL", conf, pod).silent()
        wait_same(agent_node.snapshot, before, "calls past a stopped agent left something")

    @pytest.mark.parametrize("removed", [SOCKET, RECORDS])
    def test_its_socket_removed(self, agent_node: Node, conf: dict[str, Any], removed: str) -> None:
        agent_node.run("rm", "-r", removed)
        pod = agent_node.pod()

        assert agent_node.call("bridge", "ADD", conf, pod).ok
        agent_node.call("bridge", "DEL", conf, pod).silent()

        assert agent_of(agent_node).stop() == 0
        assert agent_of(agent_node).logged() == []

    def test_its_socket_file_is_somebody_else_s(self, agent_node: Node, conf: dict[str, Any]) -> None:
        os.chown(agent_node.path(SOCKET), NOBODY, NOBODY)
        goes_past(agent_node, conf)

        os.chown(agent_node.path(SOCKET), 0, 0)
        goes_through(agent_node, conf)

    def test_somebody_else_listens_at_a_socket_file_of_root(self, agent_node: Node, conf: dict[str, Any]) -> None:
        """As after a mistake with permissions: the process tells."""
        agent_of(agent_node).stop()
        imposter = socket.socket(socket.AF_UNIX)
        imposter.bind(str(agent_node.path(SOCKET)))
        code = "import socket, sys\ns = socket.socket(fileno=int(sys.argv[1]))\ns.listen()\nprint(1, flush=True)\nwhile True: print(s.accept()[0].recv(1).hex(), end='', flush=True)"
        argv = [sys.executable, "-c", code, str(imposter.fileno())]
        with imposter, subprocess.Popen(argv, user=NOBODY, pass_fds=[imposter.fileno()], stdout=-1) as listening:
            assert listening.stdout is not None
            assert listening.stdout.readline() == b"1\n"
            goes_past(agent_node, conf)
            listening.kill()
            assert listening.stdout.read() == b"", "the launcher told a stranger something"
        agent_node.path(SOCKET).unlink()

    def test_no_agent_but_a_file_at_its_path(self, agent_node: Node, conf: dict[str, Any]) -> None:
        agent_of(agent_node).stop()
        for make in ("touch", "mkfifo", "mkdir"):
            agent_node.run(make, SOCKET)
            goes_past(agent_node, conf)
            agent_node.run("rm", "-r", SOCKET)

    def test_its_backlog_is_full(self, agent_node: Node, conf: dict[str, Any]) -> None:
        """More connections than the kernel queues for a process that does not accept: the next one does not wait."""
        agent_of(agent_node).kill()
        agent_node.run("sysctl", "-qw", "net.core.somaxconn=2")
        agent = start_again(agent_node)
        agent.signal(signal.SIGSTOP)
        with contextlib.ExitStack() as stack:
            stack.callback(agent.signal, signal.SIGCONT)
            for client in fill(agent):
                stack.callback(client.close)

            goes_past(agent_node, conf)

        wait_until(lambda: accepts(agent), "the agent accepts connections")
        goes_through(agent_node, conf)


def accepts(agent: Agent) -> bool:
    """Whether there is room for one more connection."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        return client.connect_ex(str(agent.node.path(SOCKET))) == 0


def fill(agent: Agent) -> Iterator[socket.socket]:
    """Connections until no more fit."""
    path = str(agent.node.path(SOCKET))
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        try:
            client.connect(path)
        except BlockingIOError:
            client.close()
            return
        yield client


class TestLostLaunchers:
    """The launcher ends early: the agent takes the ADD back, because no runtime knows of it."""

    def test_before_go(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        pod = agent_node.pod()
        for kept in (1, 30, None):
            with Client(agent_of(agent_node)) as client:
                request = Request(agent_node, "bridge", "ADD", conf, pod)
                with request.descriptors() as fds:
                    client.send(request.data[:kept], fds)
                if kept is None:
                    frame = client.receive()
                    assert frame is not None
                    assert (frame.kind, frame.first) == ("R", b"1.1.0")

        wait_until(lambda: served(agent_node, "lost") == 1, "the agent noticed")
        assert agent_node.snapshot() == before
        assert set(agent_node.links(pod)) == {"lo"}

    def test_while_the_agent_works(self, agent_node: Node, slow: SlowIpam, before: dict[str, Any]) -> None:
        pod = agent_node.pod()
        running = slow.start(pod)

        running.process.kill()
        running.wait()
        slow.go_on()

        wait_same(agent_node.snapshot, before, "the ADD of a killed launcher was not taken back")
        assert set(agent_node.links(pod)) == {"lo"}

    @pytest.mark.parametrize("said", [b"", b"F", b"x"])
    def test_before_it_delivered(
        self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any], said: bytes
    ) -> None:
        """The answer is there, and nobody says that it has arrived."""
        pod = agent_node.pod()
        with Client(agent_of(agent_node)) as client:
            request = Request(agent_node, "bridge", "ADD", conf, pod)
            with request.descriptors() as fds:
                client.send(request.data, fds)
            assert client.receive() is not None
            client.send(b"G")
            frame = client.receive()
            assert frame is not None
            assert (frame.kind, frame.code) == ("A", 0)
            assert json.loads(frame.first)["ips"]
            assert pod.addresses()
            client.send(said)
            if said:
                while client.receive() is not None:
                    pass
                # The connection's end says that it is taken back.
                assert set(agent_node.links(pod)) == {"lo"}

        wait_same(agent_node.snapshot, before, "an ADD that nobody heard of was not taken back")
        assert set(agent_node.links(pod)) == {"lo"}
        goes_through(agent_node, conf)

    def test_stdout_is_closed(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        pod = agent_node.pod()
        reader, writer = os.pipe()
        os.close(reader)
        with subprocess.Popen(
            agent_node.inside(agent_node.executable("bridge")), env=agent_node.environ("ADD", pod),
            stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE,
        ) as launcher:  # fmt: skip
            os.close(writer)
            _, stderr = launcher.communicate(json.dumps(conf).encode())

        assert launcher.returncode == 1
        assert b"stdout" in stderr
        # It ended when the ADD was taken back.
        assert set(agent_node.links(pod)) == {"lo"}
        assert agent_node.leases("net") == {}
        wait_same(agent_node.snapshot, before, "an ADD with a closed stdout left something")

    def test_nobody_reads_a_long_result(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        """The pipe is full and stays full: after 10 s the ADD has failed, with nothing left of it."""
        pod = agent_node.pod()
        long = {"cniVersion": "1.1.0", "dns": {"search": ["x" * 100] * 2000}}
        with subprocess.Popen(
            agent_node.inside(agent_node.executable("bridge")), env=agent_node.environ("ADD", pod),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as launcher:  # fmt: skip
            assert launcher.stdin is not None
            launcher.stdin.write(json.dumps({**conf, "prevResult": long}).encode())
            launcher.stdin.close()
            launcher.stdin = None
            assert launcher.wait(PLENTY) == 1
            assert set(agent_node.links(pod)) == {"lo"}

        wait_same(agent_node.snapshot, before, "an ADD whose result nobody read left something")

    def test_a_slow_reader_gets_all_of_a_long_result(self, agent_node: Node, conf: dict[str, Any]) -> None:
        pod = agent_node.pod()
        names = [f"{number}.example.org" for number in range(20_000)]
        running = agent_node.start(
            "bridge", "ADD", {**conf, "prevResult": {"cniVersion": "1.1.0", "dns": {"search": names}}}, pod
        )
        assert running.process.stdout is not None
        data = b""
        while chunk := os.read(running.process.stdout.fileno(), 1000):
            data += chunk

        assert running.wait().status == 0
        assert json.loads(data)["dns"]["search"] == names
        agent_node.call("bridge", "DEL", conf, pod).silent()


class TestDiskFull:
    @pytest.fixture
    def full(self, agent_node: Node, request: pytest.FixtureRequest) -> Callable[[], None]:
        """Makes a file system full; it has room again at the end."""
        folder = request.param
        agent_node.run("mount", "-o", "remount,size=256k,nr_inodes=400", folder)

        def full() -> None:
            with pytest.raises(OSError, match="No space"):  # noqa: PT012 - whichever comes first
                with agent_node.path(f"{folder}/filler").open("wb", buffering=0) as filler:
                    while filler.write(bytes(1024)) == 1024:
                        pass
                for number in range(500):
                    agent_node.path(f"{folder}/filler-{number}").touch()

        return full

    @pytest.mark.parametrize("full", ["/run", "/var/lib/cni"], indirect=True)
    def test_add_fails_del_works(
        self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any], full: Callable[[], None]
    ) -> None:
        there, pod = agent_node.many_pods(2)
        assert agent_node.call("bridge", "ADD", conf, there).ok
        full()
        done = served(agent_node)

        error = agent_node.call("bridge", "ADD", conf, pod).error
        assert "found no space left (ENOSPC)" in error["msg"]
        assert set(agent_node.links(pod)) == {"lo"}
        agent_node.call("bridge", "DEL", conf, pod).silent()
        agent_node.call("bridge", "DEL", conf, there).silent()

        assert served(agent_node) == done + 3
        agent_node.run("sh", "-c", "rm -f /run/filler* /var/lib/cni/filler*")
        wait_same(agent_node.snapshot, before, "calls on a full disk left something")
        goes_through(agent_node, conf)


class TestNamespaces:
    """The pod's namespace changes while the call is under way: what counts is the one that the launcher opened."""

    def add(self, node: Node, conf: dict[str, Any], pod: Pod, meanwhile: Callable[[], object]) -> Any:
        """An ADD with something happening between READY and GO; its answer."""
        with Client(agent_of(node)) as client:
            request = Request(node, "bridge", "ADD", conf, pod)
            with request.descriptors() as fds:
                client.send(request.data, fds)
            frame = client.receive()
            assert frame is not None
            assert frame.kind == "R"
            meanwhile()
            client.send(b"G")
            frame = client.receive()
            assert frame is not None
            assert frame.kind == "A"
            if frame.code == 0:
                client.send(b"K")
                assert client.ended()
            return json.loads(frame.first)

    def test_gone_between_open_and_use(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        pod = agent_node.pod()

        found = self.add(agent_node, conf, pod, lambda: agent_node.kill_netns(pod))

        assert "ips" in found or found["code"] == 3
        agent_node.call("bridge", "DEL", conf, pod).silent()
        wait_same(agent_node.snapshot, before, "an ADD into a namespace that went left something")

    def test_its_path_belongs_to_another_one(
        self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]
    ) -> None:
        pod = agent_node.pod()

        def replaced() -> None:
            agent_node.run("ip", "netns", "del", pod.name)
            agent_node.run("ip", "netns", "add", pod.name)

        self.add(agent_node, conf, pod, replaced)

        assert set(agent_node.links(pod)) == {"lo"}, "the ADD went into a namespace that was never asked for"
        agent_node.call("bridge", "DEL", conf, pod).silent()
        wait_same(agent_node.snapshot, before, "an ADD into a replaced namespace left something")

    def test_gone_before_add_is_code_3_or_8(self, agent_node: Node, conf: dict[str, Any]) -> None:
        pod = agent_node.pod()
        agent_node.kill_netns(pod)
        one_shot = agent_node.call("bridge", "ADD", conf, pod, env={"CNIKIT_SOCKET": "/nowhere"}).error

        assert agent_node.call("bridge", "ADD", conf, pod).error == one_shot
        agent_node.call("bridge", "DEL", conf, pod).silent()


class TestLimits:
    @pytest.fixture
    def poor(self, agent_node: Node) -> Agent:
        """An agent that may open few files."""
        agent_of(agent_node).kill()
        return start_again(agent_node, prefix=("prlimit", "--nofile=64:64"))

    @pytest.mark.usefixtures("poor")
    def test_too_few_descriptors_for_many_calls(
        self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]
    ) -> None:
        pods = agent_node.many_pods(60)
        calls = [agent_node.start("bridge", "ADD", conf, pod) for pod in pods]
        answers = [call.wait(PLENTY) for call in calls]

        for pod, answer in zip(pods, answers, strict=True):
            if answer.ok:
                assert pod.addresses() == [item["address"] for item in answer.result["ips"]]
            else:
                assert "Too many open files" in answer.error["msg"]
                assert set(agent_node.links(pod)) == {"lo"}
        deletions = [agent_node.start("bridge", "DEL", conf, pod) for pod in pods]
        failed = [pod for pod, call in zip(pods, deletions, strict=True) if not call.wait(PLENTY).ok]
        for pod in failed:
            agent_node.call("bridge", "DEL", conf, pod).silent()
        wait_same(agent_node.snapshot, before, "calls of an agent with few descriptors left something")
        goes_through(agent_node, conf)

    @pytest.mark.usefixtures("poor")
    def test_others_hold_all_descriptors(self, agent_node: Node, conf: dict[str, Any]) -> None:
        """Launchers are not kept waiting by a process that cannot accept them."""
        agent = agent_of(agent_node)
        with contextlib.ExitStack() as stack:
            for _ in range(80):
                stack.enter_context(Client(agent))
            pod = agent_node.pod()
            assert agent_node.call("bridge", "ADD", conf, pod).ok
            agent_node.call("bridge", "DEL", conf, pod).silent()

        wait_until(lambda: len(agent.descriptors()) < 50, "the agent let go of them")
        goes_through(agent_node, conf)

    def test_three_hundred_at_once_with_the_usual_limit(
        self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]
    ) -> None:
        """1024 files, as a shell gives: enough, or made enough."""
        agent_of(agent_node).kill()
        start_again(agent_node, prefix=("prlimit", "--nofile=1024:"))
        pods = agent_node.many_pods(300)

        calls = [agent_node.start("bridge", "ADD", conf, pod) for pod in pods]
        answers = [call.wait(PLENTY) for call in calls]

        assert [answer for answer in answers if not answer.ok] == []
        assert len({item["address"] for answer in answers for item in answer.result["ips"]}) == 600
        for call in [agent_node.start("bridge", "DEL", conf, pod) for pod in pods]:
            call.wait(PLENTY).silent()
        wait_same(agent_node.snapshot, before, "three hundred calls left something")

    @pytest.mark.timeout(1200)
    @pytest.mark.parametrize("way", ["one-shot", "agent"])
    def test_the_wall_clock_jumps(self, seen_in_the_vm: dict[str, Any], way: str) -> None:
        """Forward and back by decades, under another kernel (tests/kernel_vm/clock.py), where it can be set."""
        found = seen_in_the_vm["clock"][way]

        assert [answer[0] for answer in found["answers"]] == [0] * 11, found["answers"]
        assert found["left"] == {}

    def test_a_clock_that_began_elsewhere(self, agent_node: Node, conf: dict[str, Any]) -> None:
        """The agent in a time namespace: its monotonic clock is eleven days ahead of everybody else's."""
        agent_of(agent_node).kill()
        start_again(agent_node, prefix=("unshare", "--time", "--monotonic", "1000000", "--boottime", "1000000"))

        goes_through(agent_node, conf)


class TestHostile:
    """Clients that are no launchers. Only root can be one; a mistake is enough."""

    def unharmed(self, node: Node, conf: dict[str, Any]) -> None:
        goes_through(node, conf)
        agent_of(node).looks_well()

    @pytest.mark.parametrize(
        "data",
        [
            b"\0" * 100, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", header(0, 0), header(10, 0) + b"x" * 10, header(3, 0) + b"\0\0\0",
            header((8 << 20) + 1, 0), header(3, (16 << 20) + 2), header(0xFFFFFFFF, 0xFFFFFFFF),
            header(3, 0, 0xFFFFFFFC) + b"\0\0\0", header(0, 0, magic=b"cnikit\0\1"), header(0, 0, magic=b"cnikit\0\3"), header(4, 2) + b"\0\0\0\0" + b"{}" + b"more",
            header(4, 2) + b"\xff\0\xff\0" + b"{}",
        ],
    )  # fmt: skip
    def test_what_is_no_request_is_sent_away(self, shared_agent_node: Node, conf: dict[str, Any], data: bytes) -> None:
        with Client(agent_of(shared_agent_node)) as client:
            client.send(data)
            frame = client.receive()

        assert frame is None or frame.kind == "D"
        self.unharmed(shared_agent_node, conf)

    def test_garbage(self, agent_node: Node, conf: dict[str, Any]) -> None:
        """A request with some bytes replaced, cut or doubled, two hundred times."""
        dice = random.Random(41)
        pod = agent_node.pod()
        request = Request(agent_node, "bridge", "CHECK", conf, pod)
        for _ in range(200):
            data = bytearray(request.data)
            for _ in range(dice.randint(1, 8)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            data[8:12] = request.data[8:12]  # one of the flags asks for the socket itself
            cut = dice.choice((len(data), dice.randrange(len(data))))
            gone = contextlib.suppress(BrokenPipeError, ConnectionResetError)
            with Client(agent_of(agent_node)) as client, request.descriptors() as fds, gone:
                client.send(bytes(data[:cut]), fds[: dice.randrange(4)])
                client.socket.shutdown(socket.SHUT_WR)
                while client.socket.recv(4096):
                    pass

        self.unharmed(agent_node, conf)

    @pytest.mark.parametrize("which", [0, 1, 2])
    @pytest.mark.parametrize(
        "path", ["/dev/null", "/dev/zero", "/", "/proc/self/ns/pid", "/proc/self/ns/mnt", "/proc/self/ns/net"]
    )
    def test_descriptors_of_something_else(
        self, shared_agent_node: Node, conf: dict[str, Any], which: int, path: str
    ) -> None:
        request = Request(shared_agent_node, "bridge", "CHECK", conf, shared_agent_node.pod())
        with Client(agent_of(shared_agent_node)) as client, request.descriptors() as fds:
            other = os.open(path, os.O_RDONLY)
            os.dup2(other, fds[which], inheritable=False)
            os.close(other)
            client.send(request.data, fds)
            frame = client.receive()
            assert frame is not None
            if frame.kind == "R":
                client.send(b"G")
                frame = client.receive()
                assert frame is not None
                assert (frame.kind, frame.code) == ("A", 1)
                assert json.loads(frame.first)["code"] in {3, 7, 8, 999}

        self.unharmed(shared_agent_node, conf)

    def test_too_many_descriptors(self, agent_node: Node, conf: dict[str, Any]) -> None:
        """All at once, or three with each byte: none stays open."""
        agent = agent_of(agent_node)
        self.unharmed(agent_node, conf)
        before = agent.descriptors()
        request = Request(agent_node, "bridge", "CHECK", conf, agent_node.pod())
        with request.descriptors() as fds:
            for _ in range(20):
                with Client(agent) as client:
                    client.send(request.data, fds * 20)
                    assert client.ended()
                with Client(agent) as client, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for position in range(len(request.data)):
                        socket.send_fds(client.socket, [request.data[position : position + 1]], fds)
                    client.receive()

        wait_until(lambda: len(agent.descriptors()) <= len(before), f"none is left open: {agent.descriptors()}")
        self.unharmed(agent_node, conf)

    def test_a_version_that_nobody_reads(self, agent_node: Node, conf: dict[str, Any]) -> None:
        """VERSION repeats what it was asked, here a megabyte; who does not read that holds up nobody else."""
        asked = json.dumps({"cniVersion": "1" * 1_000_000}).encode()
        with contextlib.ExitStack() as stack:
            for _ in range(6):
                client = stack.enter_context(Client(agent_of(agent_node)))
                client.send(Request(agent_node, "bridge", "VERSION", asked).data)

            done = served(agent_node, "ok")
            goes_through(agent_node, conf)
            assert served(agent_node, "ok") == done + 2

    def test_clients_that_fall_silent(self, agent_node: Node, conf: dict[str, Any], before: dict[str, Any]) -> None:
        """Two hundred that say nothing, one in the middle of its request, one that never says GO, one that never says
        that the result has arrived: calls go on beside them, and each is sent away in its time."""
        agent = agent_of(agent_node)
        pod, other = agent_node.many_pods(2)
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(Client(agent)) for _ in range(200)]
            half, never_go, never_done = (stack.enter_context(Client(agent)) for _ in range(3))
            for client, target, size in ((half, pod, 100), (never_go, pod, None), (never_done, other, None)):
                request = Request(agent_node, "bridge", "ADD", conf, target)
                with request.descriptors() as fds:
                    client.send(request.data[:size], fds)
            frame = never_done.receive()
            assert frame is not None
            never_done.send(b"G")

            self.unharmed(agent_node, conf)

            ready = never_go.receive()
            assert ready is not None
            assert ready.kind == "R"
            assert never_go.ended()
            assert half.ended()
            assert all(client.ended() for client in idle)
            answer = never_done.receive()
            assert answer is not None
            assert answer.code == 0
            while never_done.receive() is not None:
                pass

        assert set(agent_node.links(pod)) == {"lo"}
        assert set(agent_node.links(other)) == {"lo"}
        wait_same(agent_node.snapshot, before, "clients that fell silent left something")

    def test_go_without_an_end(self, agent_node: Node, conf: dict[str, Any]) -> None:
        """More than a launcher would ever say."""
        with Client(agent_of(agent_node)) as client:
            request = Request(agent_node, "bridge", "ADD", conf, agent_node.pod())
            with request.descriptors() as fds:
                client.send(request.data, fds)
            assert client.receive() is not None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.send(b"G" * 100_000)
                while client.receive() is not None:
                    pass

        wait_until(lambda: agent_node.leases("net") == {}, "the ADD is taken back")
        self.unharmed(agent_node, conf)

    def test_somebody_who_is_not_root(self, agent_node: Node, conf: dict[str, Any]) -> None:
        """The folder and the socket are opened wide by a mistake: the agent still talks to root alone."""
        agent = agent_of(agent_node)
        assert stat.S_IMODE(agent_node.path(SOCKET).stat().st_mode) == 0o600
        assert stat.S_IMODE(agent_node.path(RECORDS).stat().st_mode) == 0o700
        agent_node.path(RECORDS).chmod(0o755)
        agent_node.path(SOCKET).chmod(0o666)
        code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(len(s.recv(1)))"
        asked = agent_node.run("setpriv", f"--reuid={NOBODY}", "--clear-groups", sys.executable, "-c", code, SOCKET)

        assert asked == "0\n"
        assert "sent a client away" in agent.log()
        self.unharmed(agent_node, conf)

    def test_calls_that_wait_for_a_lock_hold_up_no_others(self, agent_node: Node) -> None:
        """Somebody holds the lock of one network's leases: another network's pods come and go."""
        import fcntl

        held, free = (
            network("held"),
            network("free", bridge="cni1", ipam={"type": "host-local", "subnet": "10.9.0.0/24"}),
        )
        first = agent_node.pod()
        assert agent_node.call("bridge", "ADD", held, first).ok
        pods = agent_node.many_pods(12)
        with agent_node.path(f"{LEASES}/held/lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = [agent_node.start("bridge", "ADD", held, pod) for pod in pods]
            wait_until(lambda: len(agent_node.files(f"{RECORDS}/locks")) >= len(pods), "they have begun")
            goes_through(agent_node, free)
            assert all(call.process.poll() is None for call in waiting), "the lock was not waited for"
        for call in waiting:
            assert call.wait().ok
