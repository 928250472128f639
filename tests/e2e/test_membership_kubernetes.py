"""Membership from a real Kubernetes API server, RBAC in force: what is learned from Node objects, what is written into
our own one, and what is told when the server, the rights, the certificates or the ranges are not as they should be."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped]

from agent.membership import Network
from agent.membership.kubernetes import KubernetesSource, make
from cni import addr
from cni.config import Reader
from cni.errors import CniError
from plugins.peers import Node
from tests.kubernetes.pki import Authority
from tests.kubernetes.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kubernetes.control_plane import ControlPlane

pytest_plugins = ["tests.kubernetes.fixtures"]

ROOT = Path(__file__).parents[2]
RBAC = ROOT / "conf" / "kubernetes" / "base" / "rbac.yaml"
NETWORK = Network("pods", ((bytes([10, 244, 0, 0]), 16),), (), "vxlan", 1)
DUAL = Network("pods", (*NETWORK.ranges, (addr.pack("fd00:244::") or b"", 48)), (), "vxlan", 1)
OURS, FLANNEL = "cnikit.dev/", "flannel.alpha.coreos.com/"
MAC = "0a:00:00:00:00:07"
TAINT = {"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"}
OTHER_TAINT = {"key": "example.com/keep", "effect": "NoExecute", "value": "yes"}


def own_node(*addresses: str, name: str = "node1", macs: dict[int, bytes] | None = None) -> Node:
    packed = [found for text in addresses or ("192.0.2.1",) if (found := addr.pack(text))]
    return Node(name, {len(one): one for one in packed}, (), macs)


@contextmanager
def running(source: KubernetesSource, own: Node | None = None) -> Iterator[Recorder]:
    """On a node that can take part."""
    recorder = Recorder()
    source.start(own or own_node(), recorder)
    source.judge("")
    try:
        yield recorder
    finally:
        source.close()


def notes_of(plane: ControlPlane, name: str = "node1") -> dict[str, str]:
    found: dict[str, str] = plane.node(name)["metadata"].get("annotations", {})
    return found


def condition(plane: ControlPlane, name: str = "node1") -> dict[str, str]:
    conditions = plane.node(name)["status"].get("conditions", [])
    return next((one for one in conditions if one["type"] == "NetworkUnavailable"), {})


def taints(plane: ControlPlane, name: str = "node1") -> list[dict[str, str]]:
    found: list[dict[str, str]] = plane.node(name)["spec"].get("taints", [])
    return found


# What is learned


def test_nodes_are_learned(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])
    plane.add_node("node2", ["10.244.2.0/24"], ["192.0.2.2", "2001:db8::2", "192.0.2.222"])
    plane.add_node("node3", [], ["192.0.2.3"])  # no range yet

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        told.wait_for("node1", "node2")

        assert told.described() == {
            "node1": {"name": "node1", "publicIP": "192.0.2.1", "subnets": ["10.244.1.0/24"]},
            "node2": {
                "name": "node2", "publicIP": "192.0.2.2", "publicIPv6": "2001:db8::2", "subnets": ["10.244.2.0/24"],
            },
        }  # fmt: skip
        assert told.trouble_now == ""


def test_both_families(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", ["10.244.1.0/24", "fd00:244:0:1::/64"], ["192.0.2.1", "2001:db8::1"])
    plane.add_node("node2", ["fd00:244:0:2::/64"], ["2001:db8::2"])

    with running(KubernetesSource(DUAL, kubeconfig), own_node("192.0.2.1", "2001:db8::1")) as told:
        told.wait_for("node1", "node2")

        found = told.described()
        assert found["node1"]["subnets"] == ["10.244.1.0/24", "fd00:244:0:1::/64"]
        assert found["node2"] == {"name": "node2", "publicIPv6": "2001:db8::2", "subnets": ["fd00:244:0:2::/64"]}
        told.wait(lambda: FLANNEL + "public-ipv6" in notes_of(plane), "the own node is announced")
        assert notes_of(plane)[FLANNEL + "public-ipv6"] == "2001:db8::1"
        mac = notes_of(plane)[OURS + "vtep-mac-v6"]
        assert json.loads(notes_of(plane)[FLANNEL + "backend-v6-data"]) == {"VNI": 1, "VtepMAC": mac}


def test_ranges_of_a_family_that_the_network_has_not_are_left_out(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", ["10.244.1.0/24", "fd00:244:0:1::/64"], ["192.0.2.1"])

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        told.wait_for("node1")

        assert told.described()["node1"]["subnets"] == ["10.244.1.0/24"]


def test_a_node_of_flannel(plane: ControlPlane, kubeconfig: str) -> None:
    notes = {
        FLANNEL + "kube-subnet-manager": "true", FLANNEL + "backend-type": "vxlan",
        FLANNEL + "backend-data": f'{{"VNI":1,"VtepMAC":"{MAC}"}}', FLANNEL + "public-ip": "198.51.100.2",
    }  # fmt: skip
    plane.add_node("node2", ["10.244.2.0/24"], ["192.0.2.2"], notes)
    plane.add_node("node3", ["10.244.3.0/24"], ["192.0.2.3"], {**notes, FLANNEL + "public-ip-overwrite": "203.0.113.3"})

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        told.wait_for("node1", "node2", "node3")

        found = told.described()
        assert (found["node2"]["publicIP"], found["node2"]["vtepMAC"]) == ("198.51.100.2", MAC)
        assert found["node3"]["publicIP"] == "203.0.113.3"


def test_more_nodes_than_a_page_holds(plane: ControlPlane, kubeconfig: str) -> None:
    names = [f"node{number}" for number in range(1, 621)]
    for number, name in enumerate(names, 1):
        plane.add_node(name, [f"10.244.{number // 250}.{number % 250}/32"], [f"192.0.{number // 250}.{number % 250}"])

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        told.wait_for(*names)

        assert told.replaced == 1


# What changes


def test_nodes_come_change_and_go(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        told.wait_for("node1")
        plane.add_node("node2", [], ["192.0.2.2"])
        plane.patch_node("node2", {"spec": {"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24"]}})
        told.wait_for("node1", "node2")

        moved = {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.22"}]}}
        plane.patch_node("node2", moved, "/status")
        told.wait(lambda: told.described()["node2"]["publicIP"] == "192.0.2.22", "its new address is told")
        plane.patch_node("node2", {"metadata": {"annotations": {OURS + "vtep-mac": MAC}}})
        told.wait(lambda: told.described()["node2"].get("vtepMAC") == MAC, "its MAC is told")
        changes = len(told.changes)
        plane.patch_node("node2", {"metadata": {"labels": {"heartbeat": "1"}}})  # nothing of ours
        plane.delete_node("node2")
        told.wait_for("node1")

        assert told.changes[changes:] == [([], ["node2"])]
        assert told.replaced == 1
        assert told.trouble_now == ""


def test_a_node_that_is_replaced_by_one_of_its_name(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node2", ["10.244.2.0/24"], ["192.0.2.2"])

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        told.wait_for("node1", "node2")
        plane.delete_node("node2")
        plane.add_node("node2", ["10.244.20.0/24"], ["192.0.2.20"])

        told.wait(
            lambda: "node2" in told.nodes and told.described()["node2"]["publicIP"] == "192.0.2.20", "the new one"
        )
        assert told.described()["node2"]["subnets"] == ["10.244.20.0/24"]


def test_a_node_whose_kubelet_is_silent_ranks_lower(plane: ControlPlane, kubeconfig: str) -> None:
    """Who of several with one address is in the roster says."""

    def ready(name: str, status: str) -> None:
        plane.patch_node(name, {"status": {"conditions": [{"type": "Ready", "status": status}]}}, "/status")

    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])
    ready("node1", "Unknown")  # we know better
    plane.add_node("dead", ["10.244.2.0/24"], ["192.0.2.2"])
    ready("dead", "Unknown")

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        told.wait_for("dead", "node1")
        plane.add_node("living", ["10.244.3.0/24"], ["192.0.2.2"])
        told.wait_for("dead", "living", "node1")
        assert {name: node.rank for name, node in told.nodes.items()} == {"dead": 0, "living": 1, "node1": 1}
        ready("dead", "False")
        told.wait(lambda: told.nodes["dead"].rank == 1, "something is heard of it")
        ready("dead", "Unknown")
        told.wait(lambda: told.nodes["dead"].rank == 0, "and nothing any more")


def test_a_node_that_cannot_tell_where_it_is_finds_it_in_its_object(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])

    with running(KubernetesSource(NETWORK, kubeconfig), Node("node1", {}, ())) as told:
        told.wait_for("node1")

        assert told.described()["node1"]["publicIP"] == "192.0.2.1"
        told.wait(lambda: condition(plane), "the own node is announced")
        assert FLANNEL + "public-ip" not in notes_of(plane), "it is not known to be here"


def test_the_own_node_moves(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])
    source = KubernetesSource(NETWORK, kubeconfig)

    with running(source) as told:
        told.wait(lambda: notes_of(plane).get(FLANNEL + "public-ip") == "192.0.2.1", "announced")
        source.update(own_node("192.0.2.99", macs={4: bytes.fromhex("0a0000000063")}))

        told.wait(lambda: notes_of(plane).get(FLANNEL + "public-ip") == "192.0.2.99", "announced anew")
        assert notes_of(plane)[OURS + "vtep-mac"] == "0a:00:00:00:00:63"
        assert told.described()["node1"] == {
            "name": "node1", "publicIP": "192.0.2.99", "vtepMAC": "0a:00:00:00:00:63", "subnets": ["10.244.1.0/24"],
        }  # fmt: skip


# What is written


def test_the_own_node_is_announced_in_both_forms(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"], {"example.com/other": "stays"})
    own = own_node(macs={4: bytes.fromhex("0a0000000007")})

    with running(KubernetesSource(NETWORK, kubeconfig), own) as told:
        told.wait(lambda: condition(plane), "the condition is there")

    assert notes_of(plane) == {
        "example.com/other": "stays",
        "cnikit.dev/vtep-mac": MAC,
        "flannel.alpha.coreos.com/backend-data": f'{{"VNI":1,"VtepMAC":"{MAC}"}}',
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/public-ip": "192.0.2.1",
    }
    assert (condition(plane)["status"], condition(plane)["reason"]) == ("False", "CnikitIsUp")


def test_a_backend_without_macs_removes_them(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node(
        "node1", ["10.244.1.0/24"], ["192.0.2.1"], {OURS + "vtep-mac": MAC, FLANNEL + "backend-v6-data": "x"}
    )
    network = Network("pods", NETWORK.ranges, (), "host-gw", 0)

    with running(KubernetesSource(network, kubeconfig)) as told:
        told.wait(lambda: condition(plane), "announced")

    assert notes_of(plane) == {
        "flannel.alpha.coreos.com/backend-data": "null",
        "flannel.alpha.coreos.com/backend-type": "host-gw",
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/public-ip": "192.0.2.1",
    }


def test_condition_and_taint_of_a_node_with_no_network_go(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])
    plane.patch_node("node1", {"spec": {"taints": [OTHER_TAINT, TAINT]}})
    unavailable = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    plane.patch_node("node1", {"status": {"conditions": [ready, unavailable]}}, "/status")

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        told.wait(lambda: TAINT not in taints(plane), "the taint is gone")

    assert taints(plane) == [OTHER_TAINT]
    assert condition(plane)["status"] == "False"
    assert condition(plane)["lastTransitionTime"]
    assert [one["type"] for one in plane.node("node1")["status"]["conditions"]] == ["Ready", "NetworkUnavailable"]


def test_what_somebody_undoes_is_done_again(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        told.wait(lambda: condition(plane), "announced")
        plane.patch_node("node1", {"metadata": {"annotations": {FLANNEL + "public-ip": None}}})

        told.wait(lambda: notes_of(plane).get(FLANNEL + "public-ip") == "192.0.2.1", "announced again")


# Two machines of one name


def test_of_two_machines_with_one_name_the_earlier_has_the_object(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])
    with running(KubernetesSource(NETWORK, kubeconfig, machine="first")) as one:
        one.wait(lambda: notes_of(plane).get(OURS + "machine") == "first", "it is announced")
        began = plane.version()
        later = KubernetesSource(NETWORK, kubeconfig, machine="second")

        with running(later, own_node("192.0.2.9")) as two:
            one.wait_trouble("node1: expected one machine of that name, found another one with 192.0.2.9; give each")
            two.wait_trouble("node1: expected one machine of that name, found another one with 192.0.2.1; give each")
            one.wait(lambda: OURS + "knock" not in notes_of(plane), "it has answered")

            states = [node["metadata"]["annotations"] for node in plane.states("node1", began)]
            assert {notes[FLANNEL + "public-ip"] for notes in states} == {"192.0.2.1"}, "nobody writes in turns"
            assert [notes.get(OURS + "knock", "") for notes in states] == ["second 192.0.2.9", ""]


def test_a_machine_of_the_name_that_is_gone_answers_no_more(plane: ControlPlane, kubeconfig: str) -> None:
    """A reboot, or another machine in its place."""
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])
    with running(KubernetesSource(NETWORK, kubeconfig, machine="before")) as one:
        one.wait(lambda: notes_of(plane).get(OURS + "machine") == "before", "it is announced")

    with running(KubernetesSource(NETWORK, kubeconfig, machine="after"), own_node("192.0.2.9")) as two:
        two.wait(lambda: notes_of(plane).get(FLANNEL + "public-ip") == "192.0.2.9", "it is announced in its place")

        assert notes_of(plane)[OURS + "machine"] == "after"
        assert OURS + "knock" not in notes_of(plane)
        assert [text for text in two.troubles if "of that name" in text] == []


# Rights


def apply_rbac(plane: ControlPlane) -> None:
    paths = {
        "ServiceAccount": "/api/v1/namespaces/kube-system/serviceaccounts",
        "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles",
        "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings",
    }
    for document in yaml.safe_load_all(RBAC.read_text()):
        plane.call("POST", paths[document["kind"]], document, expected=(201, 409))


def test_the_rights_of_the_manifest_are_needed_and_enough(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])
    plane.patch_node("node1", {"spec": {"taints": [TAINT]}})
    account = {"metadata": {"name": "cnikit"}}
    plane.call("POST", "/api/v1/namespaces/kube-system/serviceaccounts", account, expected=(201, 409))
    folder = plane.service_account("kube-system", "cnikit")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(plane.port))

    with running(KubernetesSource(NETWORK, "", str(folder))) as told:
        text = told.wait_trouble("403")
        assert "system:serviceaccount:kube-system:cnikit" in text
        assert "conf/kubernetes/base/rbac.yaml" in text
        apply_rbac(plane)

        told.wait_for("node1")
        told.wait(lambda: not taints(plane), "the taint is gone")
        told.wait_trouble("")
        assert condition(plane)["status"] == "False"


def test_without_the_right_to_patch_nodes_only_the_taint_stays(plane: ControlPlane) -> None:
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])
    plane.patch_node("node1", {"spec": {"taints": [TAINT]}})
    rules = [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    ]
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    path = "/apis/rbac.authorization.k8s.io/v1/"
    plane.call("POST", path + "clusterroles", {**kind, "metadata": {"name": "lean"}, "rules": rules})
    binding = {
        "metadata": {"name": "lean"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "lean"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "lean"}],
    }
    plane.call("POST", path + "clusterrolebindings", {**kind, **binding})
    pair = plane.authority.issue("lean", "/CN=lean")

    with running(KubernetesSource(NETWORK, str(plane.kubeconfig("lean.conf", pair)))) as told:
        told.wait(lambda: condition(plane), "announced")
        plane.add_node("node2", ["10.244.2.0/24"], ["192.0.2.2"])
        told.wait_for("node1", "node2")

        assert told.troubles == []
        assert TAINT in taints(plane)


# What is wrong


def test_a_token_that_is_no_good_and_is_renewed(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    apply_rbac(plane)
    folder = plane.service_account("kube-system", "cnikit")
    good = (folder / "token").read_text()
    (folder / "token").write_text(good[:-8] + "AAAAAAAA")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(plane.port))

    with running(KubernetesSource(NETWORK, "", str(folder))) as told:
        text = told.wait_trouble("401")
        assert str(folder) in text
        assert "expired" in text
        (folder / "token").write_text(good)

        told.wait_for("node1")
        told.wait(lambda: "401" not in told.trouble_now, "the trouble is over")


def test_a_client_certificate_that_has_expired_and_is_renewed(plane: ControlPlane) -> None:
    pair = plane.authority.issue("late", "/O=system:masters/CN=late", days=-1)
    fresh = plane.authority.issue("fresh", "/O=system:masters/CN=late")
    path = plane.kubeconfig("late.conf", pair)

    with running(KubernetesSource(NETWORK, str(path))) as told:
        text = told.wait_trouble("expired")
        assert "late.conf" in text
        shutil.copy(fresh.key, pair.key)
        shutil.copy(fresh.certificate, pair.certificate)

        told.wait_for("node1")
        told.wait(lambda: "expired" not in told.trouble_now, "the trouble is over")


def test_a_server_of_another_ca(plane: ControlPlane, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other-ca")
    path = tmp_path / "kubeconfig"
    document = json.loads(plane.kubeconfig("admin.conf", plane.admin).read_text())
    document["clusters"][0]["cluster"]["certificate-authority"] = str(other.certificate)
    path.write_text(json.dumps(document))

    with running(KubernetesSource(NETWORK, str(path))) as told:
        text = told.wait_trouble("CA")

        assert plane.server in text
        assert told.replaced == 0


def test_a_server_that_goes_and_comes_back(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])
    plane.add_node("node2", ["10.244.2.0/24"], ["192.0.2.2"])

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        told.wait_for("node1", "node2")
        plane.stop_api_server()
        text = told.wait_trouble("cannot reach")
        assert plane.server in text
        assert sorted(told.nodes) == ["node1", "node2"], "what is known stays in force"
        assert len([one for one in told.troubles if one]) == 1, told.troubles
        plane.start_api_server()
        plane.delete_node("node2")

        told.wait_for("node1")
        told.wait_trouble("")


def test_the_own_node_is_not_there_yet(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("worker-a", ["10.244.2.0/24"], ["192.0.2.2"])

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        text = told.wait_trouble("node1")
        assert "worker-a" in text
        assert "--node-name" in text
        plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])

        told.wait_trouble("")
        told.wait(lambda: told.described()["node1"]["subnets"] == ["10.244.1.0/24"], "its range")


def test_the_own_node_gets_its_range_late(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", [], ["192.0.2.1"])

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        text = told.wait_trouble("podCIDR")
        assert "--allocate-node-cidrs" in text
        assert condition(plane) == {}, "a node with no range has no network"
        plane.patch_node("node1", {"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}})

        told.wait_trouble("")
        told.wait(lambda: condition(plane), "the condition is set")
        assert told.described()["node1"]["subnets"] == ["10.244.1.0/24"]


def test_a_range_that_changes(plane: ControlPlane, kubeconfig: str) -> None:
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        told.wait_for("node1")
        plane.delete_node("node1")
        told.wait_trouble("found none")
        plane.add_node("node1", ["10.244.9.0/24"], ["192.0.2.1"])

        told.wait(lambda: told.described()["node1"]["subnets"] == ["10.244.9.0/24"], "its range is another one")
        told.wait_trouble("")


def test_annotations_that_are_wrong(plane: ControlPlane, kubeconfig: str) -> None:
    managed = {FLANNEL + "kube-subnet-manager": "true", FLANNEL + "backend-type": "vxlan"}
    wrong_vni = {**managed, FLANNEL + "backend-data": f'{{"VNI":7,"VtepMAC":"{MAC}"}}'}
    plane.add_node("node1", ["10.244.1.0/24"], ["192.0.2.1"])
    plane.add_node("node2", ["10.244.2.0/24"], ["192.0.2.2"], wrong_vni)
    plane.add_node("node3", ["10.244.3.0/24"], ["192.0.2.3"], {OURS + "public-ip": "here"})
    plane.add_node("node4", ["10.244.4.0/24"], ["192.0.2.4"])

    with running(KubernetesSource(NETWORK, kubeconfig)) as told:
        told.wait_for("node1", "node4")
        told.wait_trouble("node2: expected VNI 1", "found 7", "node3: annotation public-ip", "'here'")
        assert told.unread == {"node2", "node3"}, "what was known of them elsewhere stays in force"
        plane.patch_node("node4", {"metadata": {"annotations": {OURS + "vtep-mac": "mac"}}})
        told.wait_trouble("node4: annotation vtep-mac")
        assert "node4" in told.nodes, "what was known of it stays in force"
        plane.delete_node("node2")
        plane.delete_node("node3")
        plane.patch_node("node4", {"metadata": {"annotations": {OURS + "vtep-mac": MAC}}})

        told.wait_trouble("")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "not found"),
        ("", "expected a kubeconfig"),
        ("{", "expected a kubeconfig"),
        ("[]", "expected a kubeconfig"),
        ('{"clusters": [], "contexts": [], "current-context": "there"}', "there"),
    ],
)
def test_a_kubeconfig_that_is_none(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)

    with running(KubernetesSource(NETWORK, str(path))) as told:
        assert str(path) in told.wait_trouble(expected)


def test_neither_kubeconfig_nor_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with running(KubernetesSource(NETWORK, "")) as told:
        told.wait_trouble("membership.kubeconfig", "KUBERNETES_SERVICE_HOST")


def test_a_relative_kubeconfig_is_refused() -> None:
    config: dict[str, Any] = {"source": "kubernetes", "kubeconfig": "kubeconfig"}

    with pytest.raises(CniError, match=r"membership\.kubeconfig: expected an absolute path"):
        make(Reader(config, "membership"), NETWORK)
