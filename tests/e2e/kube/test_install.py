"""cnikit installed by its own manifest alone: nodes become Ready, every pod reaches every other, agents may die, and after
its removal the nodes are as they were.

The tests of one cluster follow one another, from a node without a network to a node without one again.
"""

from __future__ import annotations

import hashlib
import json
import threading
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from tests.artefacts.manifests import FOLDER
from tests.artefacts.programs import NODE_PROGRAMS
from tests.e2e.kube import cnikit, matrix

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.kube.cluster import Cluster

UNINSTALL = str(FOLDER / "cnikit-uninstall.yaml")


def test_nodes_are_ready_once_the_agents_have_started(
    cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    assert not any(node.ready for node in cluster.nodes()), "a node is Ready before there is a network"

    cnikit.install(cluster, "vxlan")

    cluster.wait_ready()
    cnikit.rolled_out(cluster)
    record_property("seconds from the agents' start to Ready, by node", seconds_to_ready(cluster))


def test_every_pod_reaches_every_other(cluster: Cluster) -> None:
    assert matrix.failures(cluster) == []
    served_by_the_agents(cluster, "vxlan")


@pytest.mark.parametrize("cluster", ["ipv4"], indirect=True)
def test_the_matrix_names_what_does_not_work(cluster: Cluster) -> None:
    """Else it would prove nothing."""
    assert matrix.failures(cluster) == []
    here, there = [node.name for node in cluster.nodes() if "worker" in node.name]
    web = next(item for item in cluster.get("pods", "--selector=app=web") if item["spec"]["nodeName"] == there)
    address = web["status"]["podIP"]
    cluster.on_node(here, "ip", "route", "add", "blackhole", f"{address}/32")

    try:
        found = matrix.failures(cluster)
    finally:
        cluster.on_node(here, "ip", "route", "delete", "blackhole", f"{address}/32")

    direct = {failure.partition(" to ")[0] for failure in found if f"pod {address} " in failure}
    assert direct == {f"pod on {here}", f"node {here}"}
    assert matrix.failures(cluster) == []


@pytest.mark.parametrize("cluster", ["ipv4"], indirect=True)
def test_pods_come_and_go_while_agents_are_killed(cluster: Cluster) -> None:
    """Calls that an agent was lost in are completed without it: no pod's sandbox fails."""
    matrix.failures(cluster)
    workers = [node.name for node in cluster.nodes() if "worker" in node.name]
    over = threading.Event()

    def kill() -> None:
        while not over.wait(2.0):
            for worker in workers:
                cluster.place.attempt("podman", "exec", worker, "pkill", "-9", "-f", "cnikit-comman[d].*  agent ")

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for _ in range(3):
            cluster.kubectl("delete", "pods", "--selector=app in (web, client)", "--wait=true")
            for name in ("ds/web", "ds/client"):
                cluster.rolled_out(name)
    finally:
        over.set()
        killer.join()

    restarts = sum(
        status["restartCount"] for agent in cnikit.agents(cluster) for status in agent["status"]["containerStatuses"]
    )
    assert restarts >= len(workers), "no agent was killed"
    failed = [
        event["message"]
        for event in cluster.get("events", "--all-namespaces")
        if event["reason"] in ("FailedCreatePodSandBox", "FailedKillPod")
        # Before there was a network there was none to be had.
        and "cni plugin not initialized" not in event["message"]
    ]
    assert failed == []
    cnikit.rolled_out(cluster)
    assert matrix.failures(cluster) == []


@pytest.mark.parametrize("cluster", ["dual"], indirect=True)
def test_over_plain_routes_every_pod_reaches_every_other(cluster: Cluster) -> None:
    """The list in the place of another one: pods that run keep what they have until they are made anew."""
    cnikit.apply(cluster, "host-gw")
    cnikit.rolled_out(cluster)
    cluster.kubectl("delete", "pods", "--selector=app in (web, client)", "--wait=true")

    assert matrix.failures(cluster) == []
    served_by_the_agents(cluster, "host-gw")


@pytest.mark.parametrize("cluster", ["dual"], indirect=True)
def test_nothing_is_left_after_removal(cluster: Cluster) -> None:
    cluster.kubectl("delete", f"--kustomize={FOLDER / 'host-gw'}", "--wait=true")
    cluster.kubectl("delete", "daemonset", "web", "client", "--wait=true")
    cluster.kubectl("apply", f"--filename={UNINSTALL}")
    for node in cluster.nodes():
        cluster.kubectl("drain", node.name, "--ignore-daemonsets", "--timeout=120s")

    cluster.rolled_out("daemonset/cnikit-uninstall", cnikit.NAMESPACE)

    shipped = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (NODE_PROGRAMS.found() / "cni").iterdir()
    }
    for node in cluster.nodes():
        sums = cluster.on_node(node.name, "sh", "-c", "cd /opt/cni/bin && sha256sum *").splitlines()
        found = {name: digest for digest, name in (line.split() for line in sums)}
        assert found == shipped, "as kind's image has them"
        assert cluster.on_node(node.name, "ls", "-A", "/opt/cni/bin").split() == sorted(shipped)
        assert cluster.on_node(node.name, "ls", "-A", "/etc/cni/net.d") == ""
        assert cluster.on_node(node.name, "sh", "-c", "ls -A /run/cnikit 2>/dev/null || true") == ""
        links = {link["ifname"] for link in json.loads(cluster.on_node(node.name, "ip", "-json", "link"))}
        assert links == {"lo", "eth0"}
        for family in ("-4", "-6"):
            assert cluster.on_node(node.name, "ip", family, "route", "show", "proto", "205") == ""
        assert "cnikit" not in cluster.on_node(node.name, "nft", "list", "tables")
    cluster.kubectl("delete", f"--filename={UNINSTALL}", "--wait=true")


def served_by_the_agents(cluster: Cluster, backend: str) -> None:
    """Every call was served by an agent, and none was declined, which would hide that it has too few rights."""
    # STATUS is an error until the agent knows its node.
    calls = [call for call in cnikit.calls(cluster) if call["command"] != "STATUS" or call["outcome"] == "declined"]
    assert {call["plugin"] for call in calls if call["command"] == "ADD"} >= {backend}
    assert [call for call in calls if call["outcome"] != "ok"] == []


def seconds_to_ready(cluster: Cluster) -> dict[str, float]:
    """By the API server's times, which have no fractions."""
    started = {
        agent["spec"]["nodeName"]: status["state"]["running"]["startedAt"]
        for agent in cnikit.agents(cluster)
        for status in agent["status"]["containerStatuses"]
    }
    ready = {
        item["metadata"]["name"]: entry["lastTransitionTime"]
        for item in cluster.get("nodes")
        for entry in item["status"]["conditions"]
        if entry["type"] == "Ready"
    }
    return {
        node: (datetime.fromisoformat(ready[node]) - datetime.fromisoformat(began)).total_seconds()
        for node, began in started.items()
    }
