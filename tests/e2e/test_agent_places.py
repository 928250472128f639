"""Launchers that are somewhere else than the agent: in another network namespace, other mounts, another folder."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_world import Agent
from tests.e2e.world import LEASES, Answer, Node, Pod, Way, network

if TYPE_CHECKING:
    from collections.abc import Iterator

SOCKET = "/run/reachable/agent.sock"


@pytest.fixture
def agent(agent_node: Node) -> Iterator[Agent]:
    """An agent whose socket is not in /run/cnikit, which some of these launchers see another folder at."""
    assert agent_node.agent is not None
    assert agent_node.agent.stop() == 0
    made = Agent(agent_node, path=SOCKET).ready()
    yield made
    assert made.stop() == 0
    made.looks_well()
    made.forget()


def call(
    node: Node, command: str, conf: dict[str, Any], pod: Pod, *,
    mounts: str = "", cwd: str = "/", look: str = "", env: dict[str, str | None] | None = None,
) -> Answer:  # fmt: skip
    """A call from a mount namespace of its own, after some shell commands there; what `look` prints goes to stderr."""
    variables = node.environ(command, pod, env={"CNIKIT_SOCKET": SOCKET, **(env or {})})
    script = f"set -e; {mounts or ':'}; cd {cwd}; {shlex.quote(node.executable('bridge'))} || status=$?; {look or ':'}; exit ${{status:-0}}"
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    return node.attempt(*argv, env=variables, stdin=json.dumps(conf).encode())


def outcomes(agent: Agent) -> list[tuple[str, str]]:
    return [(one["command"], one["outcome"]) for one in agent.requests()]


class TestAnotherNetworkNamespace:
    def test_it_is_declined_and_done_there(self, agent_node: Node, agent: Agent) -> None:
        elsewhere, pod = agent_node.many_pods(2)
        enter = ["nsenter", f"--net={elsewhere.path}", agent_node.executable("bridge")]
        env = {"CNIKIT_SOCKET": SOCKET}
        stdin = json.dumps(network()).encode()

        added = agent_node.attempt(*enter, env=agent_node.environ("ADD", pod, env=env), stdin=stdin)

        assert added.ok, added
        assert pod.addresses() == [item["address"] for item in added.result["ips"]]
        assert "cni0" in agent_node.links(elsewhere)
        assert "cni0" not in agent_node.links()
        agent_node.attempt(*enter, env=agent_node.environ("DEL", pod, env=env), stdin=stdin).silent()
        assert outcomes(agent) == [("ADD", "declined"), ("DEL", "declined")]


class TestOtherMounts:
    def test_the_same_files_are_served(self, agent_node: Node, agent: Agent) -> None:
        """As from a container that has the node's folders."""
        pod = agent_node.pod()

        added = call(agent_node, "ADD", network(ipMasq=True), pod, mounts="mount -t tmpfs other /mnt")

        assert pod.addresses() == [item["address"] for item in added.result["ips"]]
        call(agent_node, "CHECK", network(ipMasq=True, prevResult=added.result), pod).silent()
        call(agent_node, "DEL", network(ipMasq=True), pod).silent()
        assert outcomes(agent) == [("ADD", "ok"), ("CHECK", "ok"), ("DEL", "ok")]
        assert agent_node.leases("net") == {}

    @pytest.mark.parametrize("bound", ["/run/cnikit", LEASES])
    def test_the_same_folder_mounted_again_is_the_same(self, agent_node: Node, agent: Agent, bound: str) -> None:
        pod = agent_node.pod()
        agent_node.run("mkdir", "-p", bound)

        added = call(agent_node, "ADD", network(), pod, mounts=f"mount --bind {bound} {bound}")

        assert added.ok
        call(agent_node, "DEL", network(), pod).silent()
        assert outcomes(agent) == [("ADD", "ok"), ("DEL", "ok")]

    def test_the_host_is_the_launchers(self, agent_node: Node, agent: Agent) -> None:
        """An agent's image may have no machine ID, or one of its own; a one-shot call must know the leases as its own."""
        pods = agent_node.many_pods(3)
        node_id = "printf 0123456789abcdef0123456789abcdef > /run/id; touch /etc/machine-id; mount --bind /run/id /etc/machine-id"

        call(agent_node, "ADD", network(), pods[0], mounts=node_id)
        call(agent_node, "ADD", network(), pods[1], mounts=node_id, env={"CNIKIT_SOCKET": ""})
        call(agent_node, "ADD", network(), pods[2])

        origins = [
            agent_node.run("readlink", f"{LEASES}/.cnikit/net/{pod.container_id}:eth0").split(" ")[0] for pod in pods
        ]
        assert outcomes(agent) == [("ADD", "ok"), ("ADD", "ok")]
        assert origins[0] == origins[1] != origins[2]
        assert len(origins[0]) == 11

    @pytest.mark.parametrize("place", ["/run/cnikit", "/var/lib/cni", LEASES])
    def test_other_folders_of_ours_are_declined(self, agent_node: Node, agent: Agent, place: str) -> None:
        """The lease is made where the launcher sees that folder, and not where the agent does."""
        pod = agent_node.pod()
        mounts = f"mkdir -p {place}; mount -t tmpfs other {place}"

        added = call(agent_node, "ADD", network(), pod, mounts=mounts, look=f"ls -R {place} >&2")

        assert added.ok, added
        assert pod.addresses() == ["10.1.0.2/16"]
        assert ("last_reserved_ip.0" in added.stderr) == (place != "/run/cnikit")
        assert agent_node.leases("net") == ({} if place != "/run/cnikit" else agent_node.leases("net"))
        assert outcomes(agent) == [("ADD", "declined")]

    def test_another_folder_of_the_configuration_is_declined(self, agent_node: Node, agent: Agent) -> None:
        pod = agent_node.pod()
        conf = network(ipam={"type": "host-local", "subnet": "10.1.0.0/16", "dataDir": "/opt/cni/data"})

        added = call(agent_node, "ADD", conf, pod, mounts="mount -t tmpfs other /opt/cni", look="ls -R /opt/cni >&2")

        assert added.ok, added
        assert "10.1.0.2" in added.stderr
        assert agent_node.files("/opt/cni") == {}
        assert outcomes(agent) == [("ADD", "declined")]

    def test_a_folder_below_the_working_directory_is_declined(self, agent_node: Node, agent: Agent) -> None:
        pod = agent_node.pod()
        conf = network(ipam={"type": "host-local", "subnet": "10.1.0.0/16", "dataDir": "data"})
        agent_node.run("mkdir", "-p", "/opt/cni/work")

        added = call(
            agent_node, "ADD", conf, pod, cwd="/opt/cni/work",
            mounts="mount -t tmpfs other /opt/cni; mkdir /opt/cni/work", look="ls -R /opt/cni >&2",
        )  # fmt: skip

        assert added.ok, added
        assert "10.1.0.2" in added.stderr, "the lease is not where the launcher sees its working directory"
        assert agent_node.files("/opt/cni") == {}
        assert outcomes(agent) == [("ADD", "declined")]

    def test_a_foreign_ipam_is_declined(self, agent_node: Node, agent: Agent, reference: Way) -> None:
        pod = agent_node.pod()
        env: dict[str, str | None] = {"CNI_PATH": str(reference.bin_dir)}

        added = call(agent_node, "ADD", network(), pod, env=env)

        assert pod.addresses() == [item["address"] for item in added.result["ips"]]
        call(agent_node, "DEL", network(), pod, env=env).silent()
        assert outcomes(agent) == [("ADD", "declined"), ("DEL", "declined")]
        assert agent_node.leases("net") == {}

    def test_a_backend_that_executes_programs_is_declined(self, agent_node: Node, agent: Agent) -> None:
        pod = agent_node.pod()
        conf = network(ipMasq=True, ipMasqBackend="iptables")

        added = call(agent_node, "ADD", conf, pod)

        assert added.ok, added
        assert outcomes(agent) == [("ADD", "declined")]
        assert pod.container_id in agent_node.run("iptables-save", "-t", "nat")
        call(agent_node, "DEL", conf, pod).silent()
        assert pod.container_id not in agent_node.run("iptables-save", "-t", "nat")

    def test_another_cni_path_is_declined(self, agent_node: Node, agent: Agent) -> None:
        """What is executed is what the launcher sees there."""
        pod = agent_node.pod()
        agent_node.run("mkdir", "-p", "/run/plugins")
        agent_node.path("/run/plugins/host-local").symlink_to(agent_node.way.bin_dir / "host-local")
        theirs = '#!/bin/sh\\necho \'{"cniVersion":"1.1.0","ips":[{"address":"10.1.7.7/16","gateway":"10.1.0.1"}]}\'\\n'
        mounts = f"mount -t tmpfs other /run/plugins; printf {shlex.quote(theirs)} > /run/plugins/host-local; chmod 755 /run/plugins/host-local"

        added = call(agent_node, "ADD", network(), pod, env={"CNI_PATH": "/run/plugins"}, mounts=mounts)

        assert added.ok, added
        assert pod.addresses() == ["10.1.7.7/16"]
        assert outcomes(agent) == [("ADD", "declined")]


class TestWorkingDirectory:
    """The caller's is not the agent's, and relative paths begin at the caller's."""

    def attempt(self, node: Node, command: str, conf: dict[str, Any], pod: Pod, **env: str) -> Answer:
        script = f"cd /run/working && exec {shlex.quote(node.executable('bridge'))}"
        environ = node.environ(command, pod, env={"CNIKIT_SOCKET": SOCKET, **env})
        return node.attempt("sh", "-c", script, env=environ, stdin=json.dumps(conf).encode())

    @pytest.fixture(autouse=True)
    def working(self, agent_node: Node) -> None:
        agent_node.run("mkdir", "-p", "/run/working/bin")

    def test_relative_cni_path(self, agent_node: Node, agent: Agent) -> None:
        agent_node.path("/run/working/bin/host-local").symlink_to(agent_node.way.bin_dir / "host-local")
        pod = agent_node.pod()

        added = self.attempt(agent_node, "ADD", network(), pod, CNI_PATH="bin:nowhere")

        assert pod.addresses() == [item["address"] for item in added.result["ips"]]
        self.attempt(agent_node, "DEL", network(), pod, CNI_PATH="bin:nowhere").silent()
        assert outcomes(agent) == [("ADD", "ok"), ("DEL", "ok")]
        assert agent_node.leases("net") == {}

    def test_relative_cni_path_to_a_foreign_plugin(self, agent_node: Node, agent: Agent, reference: Way) -> None:
        agent_node.path("/run/working/bin/host-local").symlink_to(reference.bin_dir / "host-local")
        pod = agent_node.pod()

        added = self.attempt(agent_node, "ADD", network(), pod, CNI_PATH="bin")

        assert pod.addresses() == [item["address"] for item in added.result["ips"]]
        assert outcomes(agent) == [("ADD", "ok")]

    def test_relative_data_dir(self, agent_node: Node, agent: Agent) -> None:
        conf = network(ipam={"type": "host-local", "subnet": "10.1.0.0/16", "dataDir": "leases"})
        pod = agent_node.pod()

        added = self.attempt(agent_node, "ADD", conf, pod)

        assert added.ok, added
        assert "10.1.0.2" in agent_node.leases("net", "/run/working/leases")
        self.attempt(agent_node, "DEL", conf, pod).silent()
        assert agent_node.leases("net", "/run/working/leases") == {}
        assert outcomes(agent) == [("ADD", "ok"), ("DEL", "ok")]
