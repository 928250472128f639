"""Plugins of others above and below ours: programs that call us back, and programs that we call."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.world import DUAL_STACK, Node, Way, network, wait_same, wait_until

if TYPE_CHECKING:
    from tests.e2e.agent_world import Agent

PLENTY = 300.0
MANY = 200
FOLDER = "/run/third-party"

# An IPAM plugin that has another one do the work: ours, through a launcher of its own.
WRAP = '#!/bin/sh\nexec "$HOST_LOCAL"\n'

# One that writes down where it finds itself.
CURIOUS = """#!/bin/sh
env -0 > /run/curious.env
pwd > /run/curious.pwd
ls -l /proc/self/fd | grep -v " -> /proc/" > /run/curious.fds
grep -E "^Sig(Blk|Ign)" /proc/self/status > /run/curious.signals
cat > /run/curious.stdin
echo "curious: one line for people" >&2
exit 3
"""


@pytest.fixture
def before(agent_node: Node) -> dict[str, Any]:
    pod, conf = agent_node.pod(), network(ipam=DUAL_STACK, ipMasq=True)
    assert agent_node.call("bridge", "ADD", conf, pod).ok
    agent_node.call("bridge", "DEL", conf, pod).silent()
    return agent_node.snapshot()


def agent_of(node: Node) -> Agent:
    assert node.agent is not None
    return node.agent


def install(node: Node, name: str, script: str) -> dict[str, str | None]:
    """A plugin of a third party; the environment with which it is found, and ours too."""
    folder = node.path(FOLDER)
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(script)
    (folder / name).chmod(stat.S_IRWXU)
    return {"CNI_PATH": f"{FOLDER}:{node.way.bin_dir}", "HOST_LOCAL": node.executable("host-local")}


def wrapped(**options: Any) -> dict[str, Any]:
    return network(ipam={**DUAL_STACK, "type": "wrap"}, ipMasq=True, **options)


def heard(node: Node, plugin: str, outcome: str = "ok") -> int:
    return len([one for one in agent_of(node).requests(outcome) if one["plugin"] == plugin])


class TestCalledBack:
    """Our bridge, in the agent, runs a foreign IPAM plugin that runs our host-local, in the agent."""

    def test_one(self, agent_node: Node, before: dict[str, Any]) -> None:
        env = install(agent_node, "wrap", WRAP)
        pod = agent_node.pod()

        result = agent_node.call("bridge", "ADD", wrapped(), pod, env=env).result

        assert pod.addresses() == [item["address"] for item in result["ips"]]
        agent_node.call("bridge", "CHECK", wrapped(prevResult=result), pod, env=env).silent()
        agent_node.call("bridge", "STATUS", wrapped(), env=env).silent()
        agent_node.call("bridge", "DEL", wrapped(prevResult=result), pod, env=env).silent()
        agent_node.call("bridge", "GC", wrapped(**{"cni.dev/valid-attachments": []}), env=env).silent()
        assert heard(agent_node, "host-local") == 5
        assert heard(agent_node, "bridge") == 2 + 5
        wait_same(agent_node.snapshot, before, "a wrapped IPAM plugin left something")

    def test_its_error_comes_through_both(self, agent_node: Node, before: dict[str, Any]) -> None:
        env = install(agent_node, "wrap", WRAP)
        conf = wrapped()
        conf["ipam"]["ranges"] = [[{"subnet": "10.1.0.0/33"}]]

        answer = agent_node.call("bridge", "ADD", conf, agent_node.pod(), env=env)

        assert answer.error["code"] == 7
        assert "10.1.0.0/33" in answer.error["msg"]
        wait_same(agent_node.snapshot, before, "a refused ADD left something")

    def test_two_hundred_at_once(self, agent_node: Node, before: dict[str, Any]) -> None:
        """More than the agent has threads: the inner calls never wait for a thread that an outer one holds."""
        env = install(agent_node, "wrap", WRAP)
        pods = agent_node.many_pods(MANY)

        calls = [agent_node.start("bridge", "ADD", wrapped(), pod, env=env) for pod in pods]
        answers = [call.wait(PLENTY) for call in calls]

        assert [answer for answer in answers if not answer.ok] == []
        given = [item["address"] for answer in answers for item in answer.result["ips"]]
        assert len(set(given)) == 2 * MANY
        for call in [agent_node.start("bridge", "DEL", wrapped(), pod, env=env) for pod in pods]:
            call.wait(PLENTY).silent()
        wait_same(agent_node.snapshot, before, "two hundred wrapped IPAM plugins left something")
        assert heard(agent_node, "host-local") == 2 * MANY, "an inner call was not served by the agent"
        assert agent_of(agent_node).requests("lost", "declined", "undelivered", "error") == []

    def test_the_same_pod_twice(self, agent_node: Node, before: dict[str, Any]) -> None:
        """Calls for one attachment follow one another, the inner ones with their outer one."""
        env = install(agent_node, "wrap", WRAP)
        pod = agent_node.pod()

        calls = [agent_node.start("bridge", "ADD", wrapped(), pod, env=env) for _ in range(5)]
        answers = [call.wait(PLENTY) for call in calls]

        assert len([answer for answer in answers if answer.ok]) == 1
        for call in [agent_node.start("bridge", "DEL", wrapped(), pod, env=env) for _ in range(5)]:
            call.wait(PLENTY).silent()
        wait_same(agent_node.snapshot, before, "calls for one attachment left something")


class TestMixed:
    """Go's plugins with ours, one in the other."""

    @pytest.fixture
    def mixed(self, agent_node: Node, reference: Way) -> dict[str, str | None]:
        """A CNI bin directory with links: their bridge and our host-local."""
        folder = agent_node.path("/run/mixed")
        folder.mkdir()
        (folder / "bridge").symlink_to(reference.bin_dir / "bridge")
        (folder / "host-local").symlink_to(agent_node.way.bin_dir / "host-local")
        return {"CNI_PATH": "/run/mixed"}

    def test_their_bridge_with_our_host_local(
        self, agent_node: Node, reference: Way, mixed: dict[str, str | None]
    ) -> None:
        conf, pod = network(ipam=DUAL_STACK), agent_node.pod()

        result = agent_node.call("bridge", "ADD", conf, pod, env=mixed, way=reference).result

        assert pod.addresses() == [item["address"] for item in result["ips"]]
        agent_node.call("bridge", "CHECK", {**conf, "prevResult": result}, pod, env=mixed, way=reference).silent()
        agent_node.call("bridge", "DEL", conf, pod, env=mixed, way=reference).silent()
        assert agent_node.leases("net") == {}
        assert heard(agent_node, "host-local") == 3
        assert heard(agent_node, "bridge") == 0

    def test_fifty_of_their_bridge_at_once_with_our_host_local(
        self, agent_node: Node, reference: Way, mixed: dict[str, str | None]
    ) -> None:
        from tests.e2e.world import Running

        conf, pods = network(ipam=DUAL_STACK), agent_node.many_pods(50)
        program, stdin = agent_node.executable("bridge", reference), json.dumps(conf).encode()

        def go(command: str) -> list[Running]:
            return [Running(agent_node, program, agent_node.environ(command, pod, env=mixed), stdin) for pod in pods]

        answers = [call.wait(PLENTY) for call in go("ADD")]
        given = [item["address"] for answer in answers for item in answer.result["ips"]]
        assert len(set(given)) == 100
        for call in go("DEL"):
            assert call.wait(PLENTY).ok
        assert agent_node.leases("net") == {}
        assert heard(agent_node, "host-local") == 100

    def test_our_bridge_with_their_host_local(self, agent_node: Node, reference: Way, before: dict[str, Any]) -> None:
        conf, pod = network(ipMasq=True), agent_node.pod()
        env: dict[str, str | None] = {"CNI_PATH": str(reference.bin_dir)}

        result = agent_node.call("bridge", "ADD", conf, pod, env=env).result

        assert pod.addresses() == [item["address"] for item in result["ips"]]
        agent_node.call("bridge", "CHECK", {**conf, "prevResult": result}, pod, env=env).silent()
        agent_node.call("bridge", "DEL", conf, pod, env=env).silent()
        wait_same(agent_node.snapshot, before, "our bridge with their host-local left something")
        assert heard(agent_node, "bridge") == 2 + 3
        assert heard(agent_node, "host-local") == 0


class TestForeignPrograms:
    """What a plugin finds that the agent executes is what it would find under the caller."""

    @pytest.mark.parametrize("one_shot", [True, False])
    def test_its_surroundings(self, agent_node: Node, one_shot: bool) -> None:  # noqa: FBT001
        agent_of(agent_node).stop()
        from tests.e2e.agent_world import Agent

        agent = Agent(agent_node, env={"ONLY_THE_AGENT": "has this", "LD_LIBRARY_PATH": "/nowhere"})
        if one_shot:
            agent.ready().stop()
        else:
            agent.ready()
        env = install(agent_node, "curious", CURIOUS)
        env |= {
            "VENDOR": "kept",
            "LD_LIBRARY_PATH": "/their/own",
            "PYTHONHOME": "/nowhere",
            "UMLAUT": "\udce4",
            "_PYI_X": "1",
        }
        pod, conf = agent_node.pod(), network(ipam={"type": "curious", "theirs": [1, None]})
        agent_node.run("mkdir", "-p", "/run/working/folder")
        program = agent_node.executable("bridge")

        answer = agent_node.attempt(
            "sh", "-c", f"cd /run/working/folder && exec env --default-signal {program}",
            env=agent_node.environ("ADD", pod, env=env), stdin=json.dumps(conf).encode(),
        )  # fmt: skip

        assert answer.error["code"] == 999
        assert "curious: one line for people\n" in answer.stderr
        entries = agent_node.path("/run/curious.env").read_bytes().split(b"\0")
        seen = dict(os.fsdecode(entry).split("=", 1) for entry in entries if entry)
        expected = agent_node.environ("DEL", pod, env=env)  # the last call is the DEL after its failed ADD
        shells = {"PWD", "OLDPWD", "SHLVL", "_"}
        assert {key: value for key, value in seen.items() if key not in shells} == expected
        assert json.loads(agent_node.path("/run/curious.stdin").read_text()) == conf
        assert agent_node.path("/run/curious.pwd").read_text() == "/run/working/folder\n"
        signals = dict(line.split() for line in agent_node.path("/run/curious.signals").read_text().splitlines())
        assert {int(mask, 16) & 0x7FFFFFFF for mask in signals.values()} == {0}, signals  # above are the C library's
        fds = agent_node.path("/run/curious.fds").read_text().splitlines()
        numbers = {int(line.split(" -> ")[0].split()[-1]) for line in fds if " -> " in line}
        assert numbers <= {0, 1, 2}, fds
        agent.stop()
        agent.looks_well()
        agent.forget()

    def test_they_inherit_nothing_of_calls_beside_them(self, agent_node: Node) -> None:
        """Their open files would keep other pods' namespaces alive."""
        script = "#!/bin/sh\nls -l /proc/self/fd > /run/fds.$$\nexit 3\n"
        env = install(agent_node, "lister", script)
        pods = agent_node.many_pods(40)

        calls = []
        for number, pod in enumerate(pods):
            conf = network(ipam={"type": "lister"}) if number % 4 == 0 else network(ipam=DUAL_STACK, ipMasq=True)
            calls.append(agent_node.start("bridge", "ADD", conf, pod, env=env))
        for call in calls:
            call.wait(PLENTY)

        lists = [path.read_text() for path in agent_node.path("/run").glob("fds.*")]
        assert len(lists) == 20
        for text in lists:
            assert "netns" not in text
            assert "net:[" not in text
            assert "mnt:[" not in text

    def test_a_long_story_on_stderr(self, agent_node: Node) -> None:
        """The caller sees it, up to a bound that keeps the agent small."""
        script = '#!/bin/sh\ni=0; while [ $i -lt 500 ]; do echo "line $i of a long story" >&2; i=$((i+1)); done\necho \'{"code":123,"msg":"no"}\'; exit 1\n'
        env = install(agent_node, "teller", script)

        answer = agent_node.call("bridge", "STATUS", network(ipam={"type": "teller"}), env=env)

        assert answer.error["code"] == 123
        for number in range(500):
            assert f"line {number} of a long story\n" in answer.stderr

    def test_one_that_never_ends_holds_up_nobody(self, agent_node: Node, before: dict[str, Any]) -> None:
        """Twenty plugins sleep; pods of another network come and go, through the agent."""
        env = install(agent_node, "sleeper", "#!/bin/sh\necho >> /run/asleep; read x < /run/gate\nexit 3\n")
        os.mkfifo(agent_node.path("/run/gate"))
        asleep = agent_node.path("/run/asleep")
        conf = network("sleepy", ipam={"type": "sleeper"})
        calls = [agent_node.start("bridge", "ADD", conf, pod, env=env) for pod in agent_node.many_pods(20)]
        wait_until(lambda: asleep.exists() and len(asleep.read_text()) == 20, "all sleep")
        done = heard(agent_node, "bridge")

        pod = agent_node.pod()
        assert agent_node.call("bridge", "ADD", network(ipMasq=True), pod).ok
        agent_node.call("bridge", "DEL", network(ipMasq=True), pod).silent()
        assert heard(agent_node, "bridge") == done + 2

        gate = os.open(agent_node.path("/run/gate"), os.O_RDWR)
        os.write(gate, b"\n" * 100)
        for call in calls:
            assert call.wait().error["code"] == 999
        os.close(gate)
        wait_same(agent_node.snapshot, before, "plugins that failed left something")
