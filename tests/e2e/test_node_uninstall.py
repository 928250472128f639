"""`cnikit uninstall`: a node is as it was before `cnikit install`, and nothing is taken from pods that run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.e2e.agent_world import Agent, beside
from tests.e2e.node_world import (
    BIN,
    COMMAND,
    LISTS,
    NAME,
    NAMES,
    RECORD,
    ROOT,
    conflist,
    fails,
    installed,
    lists,
    succeeds,
    template,
)
from tests.e2e.underlay import V4, V6, Cluster
from tests.e2e.world import Node, Way, network, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.world import Pod

SETTINGS = (
    "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables", "net.ipv4.conf.all.forwarding",
    "net.ipv6.conf.all.forwarding",
)  # fmt: skip
K8S = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1"}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(Way("installed", Path(BIN)), underlay=(V4, V6), pods=(V4, V6)) as made:
        yield made


@pytest.fixture
def node(cluster: Cluster) -> Node:
    found = cluster.nodes[0]
    found.run("sysctl", "-qw", *(f"{name}=0" for name in SETTINGS[:2]))
    return found


def state(node: Node) -> dict[str, Any]:
    """All that a removal has to give back: everything of the kernel, and every file of the folders that are written to."""
    folders = ("/run/cnikit", "/var/lib/cni", "/etc/cni", "/opt/cni")
    return {
        **node.snapshot(),
        "nexthops": node.ip("nexthop"),
        # Multicast groups follow from forwarding, which stays.
        "fdb": [one for one in node.bridge("fdb") if not one["mac"].startswith(("33:33", "01:00:5e"))],
        "files": {folder: node.files(folder) for folder in folders},
        "settings": settings(node),
    }


def settings(node: Node) -> list[str]:
    return node.run("sysctl", "-n", *SETTINGS).split()


def install(node: Node, bin_dir: Path, folder: Path, value: dict[str, Any]) -> None:
    succeeds(node, "install", "--from", str(bin_dir), "--list", template(folder, value))


def attach(node: Node, conf: dict[str, Any], command: str = "ADD", pod: Pod | None = None) -> Pod:
    """Call the first plugin of a list, as a runtime does."""
    pod = pod or node.pod()
    plugin = {**conf["plugins"][0], "name": conf["name"], "cniVersion": "1.1.0"}
    answer = node.call(plugin["type"], command, plugin, pod, env=K8S)
    assert answer.ok, answer
    return pod


def summary(text: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.decode().splitlines()[-1])
    return found


def of_cluster(cluster: Cluster, backend: str, **options: Any) -> dict[str, Any]:
    conf = {**cluster.conf(backend, ipMasq=True), **options}
    name = conf.pop("name")
    conf.pop("cniVersion")
    return {"cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": name, "plugins": [conf]}


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
@pytest.mark.parametrize("attachment", ["routed", "bridged"])
def test_a_node_is_as_before(
    cluster: Cluster, node: Node, bin_dir: Path, tmp_path: Path, backend: str, attachment: str
) -> None:
    before = state(node)
    value = of_cluster(cluster, backend, attachment=attachment)
    install(node, bin_dir, tmp_path, value)
    assert settings(node)[:2] == ["1", "1"]
    pod = attach(node, value)
    attach(node, value, "DEL", pod)
    node.kill_netns(pod)
    different = state(node)
    assert all(before[key] != different[key] for key in ("nft", "nexthops", "files", "settings"))

    answer = succeeds(node, "uninstall")

    after = state(node)
    assert after["settings"] == ["0", "0", "1", "1"]
    assert {**after, "settings": before["settings"]} == before
    told = summary(answer.stdout)
    assert told["failed"] == []
    assert told["node"] == node.run("uname", "-n").strip()
    assert [line.partition(" ")[0] for line in told["stays"]] == list(SETTINGS[2:])
    assert f"{BIN}/vxlan" in told["removed"]
    again = summary(succeeds(node, "uninstall").stdout)
    assert (again["removed"], again["failed"]) == ([], [])


def test_the_capabilities_of_its_manifest_are_enough(
    cluster: Cluster, node: Node, bin_dir: Path, tmp_path: Path
) -> None:
    daemon_set = yaml.safe_load((ROOT / "conf/kubernetes/cnikit-uninstall.yaml").read_text())
    pod = daemon_set["spec"]["template"]["spec"]
    (given,) = {
        tuple(one["securityContext"]["capabilities"]["add"]) for one in (*pod["initContainers"], *pod["containers"])
    }
    drop = ",".join(["-all", *(f"+{name.lower()}" for name in given)])
    before = state(node)
    value = of_cluster(cluster, "vxlan")
    install(node, bin_dir, tmp_path, value)
    attached = attach(node, value)
    limited = ("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", *COMMAND)
    assert "shop/web-1" in fails(node, "uninstall", program=limited)
    attach(node, value, "DEL", attached)
    node.kill_netns(attached)

    succeeds(node, "uninstall", program=limited)

    after = state(node)
    assert {**after, "settings": before["settings"]} == before


def test_a_bridge_network_with_all_that_it_leaves(node: Node, bin_dir: Path, tmp_path: Path) -> None:
    node.run("ip", "link", "add", "br-theirs", "type", "bridge")
    before = state(node)
    plugin = network("cnikit", ipMasq=True, macspoofchk=True)
    plugin["ipam"]["dataDir"] = "/var/lib/cni/elsewhere"
    value = {"cniVersion": "1.1.0", "name": plugin.pop("name"), "plugins": [plugin]}
    plugin.pop("cniVersion")
    install(node, bin_dir, tmp_path, value)
    pod = attach(node, value)
    assert "expected no attached pods, found 1 (1 by records in /run/cnikit/networks, 1 by labels of links)" in fails(
        node, "uninstall"
    )
    node.kill_netns(pod)  # it crashes, and nobody calls DEL: no runtime has a result of it
    wait_until(lambda: not [name for name in node.links() if name.startswith("veth")], "its link is gone")

    answer = succeeds(node, "uninstall")

    after = state(node)
    # What nobody calls DEL for stays where other programs have the same names: docs/uninstall.md.
    theirs = [item for item in after["nft"] if next(iter(item.values()))["family"] == "bridge"]
    assert {**after, "settings": None, "nft": [item for item in after["nft"] if item not in theirs]} == {
        **before,
        "settings": None,
    }
    assert summary(answer.stdout)["failed"] == []


def test_a_bridge_that_was_there_or_is_used_stays(node: Node, bin_dir: Path, tmp_path: Path) -> None:
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    plugin = {key: found for key, found in network().items() if key not in ("name", "cniVersion")}
    value = {"cniVersion": "1.1.0", "name": "cnikit", "plugins": [plugin]}
    install(node, bin_dir, tmp_path, value)
    succeeds(node, "uninstall")
    assert "cni0" in node.links()

    node.run("ip", "link", "del", "cni0")
    install(node, bin_dir, tmp_path, value)
    attach(node, value, "DEL", attach(node, value))
    node.run("ip", "link", "add", "theirs", "master", "cni0", "type", "veth", "peer", "name", "other-end")
    assert "bridge cni0: delete bridge cni0: EBUSY" in "".join(summary_of_failure(node)["failed"])
    node.run("ip", "link", "del", "theirs")
    assert "cni0" in summary(succeeds(node, "uninstall").stdout)["removed"]
    assert "cni0" not in node.links()
    assert not node.path(RECORD).exists()


def summary_of_failure(node: Node) -> dict[str, Any]:
    from tests.e2e.node_world import cnikit

    answer = cnikit(node, "uninstall")
    assert answer.status == 1, answer
    return summary(answer.stdout)


class TestRefusals:
    def test_attached_pods_are_named_and_keep_everything(
        self, cluster: Cluster, node: Node, bin_dir: Path, tmp_path: Path
    ) -> None:
        value = of_cluster(cluster, "vxlan")
        install(node, bin_dir, tmp_path, value)
        pod = attach(node, value)
        before = state(node)

        line = fails(node, "uninstall")

        assert "expected no attached pods, found 1" in line
        assert "shop/web-1" in line
        assert state(node) == before, "DEL needs the list and the executables"
        attach(node, value, "DEL", pod)
        succeeds(node, "uninstall")
        assert installed(node) == set()

    def test_by_force_it_goes_on(self, cluster: Cluster, node: Node, bin_dir: Path, tmp_path: Path) -> None:
        value = of_cluster(cluster, "vxlan")
        install(node, bin_dir, tmp_path, value)
        attach(node, value)
        succeeds(node, "uninstall", "--force")
        assert installed(node) == set()
        assert lists(node) == {}
        assert [name for name in node.links() if name.startswith("cnik")] == []

    def test_an_agent_that_runs(self, node: Node, bin_dir: Path, tmp_path: Path) -> None:
        install(node, bin_dir, tmp_path, {**conflist(), "plugins": [{"type": "loopback"}]})
        agent = Agent(node, program=beside(bin_dir)).ready()
        try:
            assert "expected no agent, found one that listens at /run/cnikit/agent.sock" in fails(
                node, "uninstall", "--force"
            )
            assert installed(node) == {".cnikit", *NAMES}
            assert set(lists(node)) == {NAME}
            assert agent.stop() == 0
        finally:
            agent.forget()
        succeeds(node, "uninstall")
        assert node.files("/run/cnikit") == {}


def test_what_others_have_stays(node: Node, bin_dir: Path, tmp_path: Path) -> None:
    node.run("mkdir", "-p", LISTS, BIN)
    by_hand = {"cniVersion": "1.1.0", "name": "byhand", "plugins": [{"type": "bridge", "ipam": network()["ipam"]}]}
    theirs = {"20-other.conflist": {**network("other"), "type": "ptp"}, "30-hand.conflist": by_hand}
    for name, value in theirs.items():
        template(node.path(LISTS), value, name)
    node.path(f"{BIN}/portmap").write_text("somebody's")
    lease = "/var/lib/cni/networks/other/10.9.0.2"
    node.run("mkdir", "-p", "/var/lib/cni/networks/other")
    node.path(lease).write_text("container\neth0")
    node.run("nft", "add table inet theirs")
    node.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
    install(node, bin_dir, tmp_path, {**conflist(), "plugins": [{"type": "loopback"}]})

    answer = succeeds(node, "uninstall")

    assert lists(node) == theirs
    assert installed(node) == {"portmap"}
    assert node.path(lease).read_text() == "container\neth0"
    assert "theirs" in node.run("nft", "list", "tables")
    assert settings(node)[:2] == ["1", "0"], "the first one was set before"
    assert f"{LISTS}/30-hand.conflist stays" in answer.stderr
    assert "20-other" not in answer.stderr


def test_a_setting_that_is_another_s_by_now_stays(node: Node, bin_dir: Path, tmp_path: Path) -> None:
    install(node, bin_dir, tmp_path, {**conflist(), "plugins": [{"type": "loopback"}]})
    node.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
    node.run("mkdir", "-p", "/run/host/sys/net")
    node.run("mount", "--bind", "/proc/sys/net", "/run/host/sys/net")
    node.run("mount", "--bind", "/proc/sys", "/proc/sys")
    node.run("mount", "-o", "remount,bind,ro", "/proc/sys")
    failed = summary_of_failure(node)["failed"]
    assert failed == [
        "/proc/sys/net/bridge/bridge-nf-call-ip6tables: Read-only file system; --sysctl-dir names another mount of /proc/sys"
    ]
    removed = summary(succeeds(node, "uninstall", "--sysctl-dir", "/run/host/sys").stdout)["removed"]
    assert removed == ["net.bridge.bridge-nf-call-ip6tables is 0 again", RECORD]
    assert settings(node)[:2] == ["0", "0"]


def test_folders_that_are_mounts_of_a_container_stay_empty(node: Node, bin_dir: Path, tmp_path: Path) -> None:
    for folder in ("/run/cnikit", LISTS, BIN):
        node.run("mkdir", "-p", folder)
        node.run("mount", "--bind", folder, folder)
    install(node, bin_dir, tmp_path, {**conflist(), "plugins": [{"type": "loopback"}]})
    node.path("/run/cnikit/agent.sock.lock").touch()
    assert summary(succeeds(node, "uninstall").stdout)["failed"] == []
    assert [list(node.path(folder).iterdir()) for folder in ("/run/cnikit", LISTS, BIN)] == [[], [], []]
