"""What `bridge` made goes away, against the executables: DEL, GC, and both after an exchange of executables.

Rows and tests marked `ours` are those where the reference is known to do otherwise.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.e2e.bridge_world import BACKENDS, add, address, delete, dual, host_end, ours, settled
from tests.e2e.world import LEASES, Node, Pod, Way, datagram, network, wait_same


class TestDel:
    """DEL removes everything, whatever is missing by then."""

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_usual_way(self, node: Node, backend: dict[str, str]) -> None:
        conf = dual(ipMasq=True, macspoofchk=True, **backend)
        before = settled(node, conf)
        pod = node.pod()
        result = add(node, pod, conf)

        delete(node, pod, {**conf, "prevResult": result})

        assert result["interfaces"][1]["name"] not in node.links(), "DEL answered before the link was gone"
        wait_same(node.snapshot, before, "DEL left something")

    @ours
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("netns", ["gone", "unset", "empty", "another"])
    def test_without_the_netns(self, node: Node, backend: dict[str, str], netns: str) -> None:
        conf = dual(ipMasq=True, macspoofchk=True, **backend)
        before = settled(node, conf)
        pod = node.pod()
        add(node, pod, conf)
        env: dict[str, str | None] = {}
        if netns == "gone":
            node.kill_netns(pod)
        elif netns == "another":  # the name was used again for a new pod
            node.kill_netns(pod)
            node.pod(pod.name)
        else:
            env["CNI_NETNS"] = None if netns == "unset" else ""

        delete(node, pod, conf, env=env)

        wait_same(node.snapshot, before, f"DEL with a netns that is {netns} left something")

    @pytest.mark.parametrize("times", [3])
    def test_again_and_again(self, node: Node, times: int) -> None:
        conf = dual(ipMasq=True)
        before = settled(node, conf)
        pod = node.pod()
        add(node, pod, conf)

        for _ in range(times):
            delete(node, pod, conf)

        wait_same(node.snapshot, before, "repeated DELs left something")

    @ours
    @pytest.mark.parametrize("record", ["kept", "gone"])
    def test_late_when_the_path_is_another_pods(self, node: Node, record: str) -> None:
        """A runtime repeats DEL; by then a new pod has the name of the namespace."""
        conf = dual()
        old = node.pod("reused")
        add(node, old, conf)
        node.run("ip", "-n", old.name, "link", "del", "eth0")
        node.kill_netns(old)
        if record == "gone":
            delete(node, old, conf)
        new = node.pod("reused")
        result = add(node, new, conf)

        delete(node, old, conf)

        node.call("bridge", "CHECK", {**conf, "prevResult": result}, new).silent()

    @ours
    def test_without_the_bridge(self, node: Node) -> None:
        conf = dual(ipMasq=True)
        pod = node.pod()
        result = add(node, pod, conf)
        node.run("ip", "link", "del", "cni0")

        delete(node, pod, conf)

        assert result["interfaces"][1]["name"] not in node.links()
        assert node.leases("net") == {}
        assert node.snapshot()["records"] == {}
        assert "10.1.0.2" not in node.run("nft", "list", "ruleset")

    @ours
    def test_when_somebody_deleted_the_link(self, node: Node) -> None:
        conf = dual(ipMasq=True, macspoofchk=True)
        before = settled(node, conf)
        pod = node.pod()
        result = add(node, pod, conf)
        node.run("ip", "link", "del", host_end(node, result))

        delete(node, pod, conf)

        wait_same(node.snapshot, before, "DEL without its link left something")

    @ours
    def test_without_the_record(self, node: Node) -> None:
        """The record got lost: the name of the link is derived, the rest follows from the addresses and their holders."""
        conf = dual(ipMasq=True)
        before = settled(node, conf)
        pod = node.pod()
        result = add(node, pod, conf)
        node.run("rm", "-r", "/run/cnikit/networks/net/attachments")

        delete(node, pod, {**conf, "prevResult": result})

        wait_same(node.snapshot, before, "DEL without a record left something")

    @ours
    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b'{"version":99}', b'{"version":1}'])
    def test_with_a_torn_record(self, node: Node, content: bytes) -> None:
        conf = dual(ipMasq=True)
        before = settled(node, conf)
        pod = node.pod()
        result = add(node, pod, conf)
        records = [name for name in node.files("/run/cnikit") if "/attachments/" in name]
        for name in records:
            node.path(f"/run/cnikit/{name}").write_bytes(content)

        delete(node, pod, {**conf, "prevResult": result})

        assert records
        wait_same(node.snapshot, before, "DEL with a torn record left something")

    @ours
    def test_with_a_configuration_that_changed(self, node: Node) -> None:
        """The network list was edited while the pod ran: the record says what was made."""
        conf = dual(ipMasq=True, ipMasqBackend="iptables", macspoofchk=True)
        before = settled(node, conf)
        pod = node.pod()
        add(node, pod, conf)

        delete(node, pod, dual(bridge="other0"))

        wait_same(node.snapshot, before, "DEL with another configuration left something")

    @ours
    def test_neighbours_are_gone(self, node: Node) -> None:
        pod = node.pod()
        result = add(node, pod, dual())
        with node.socket() as sender, pod.socket() as listener:
            listener.bind(("", 0))
            datagram(sender, listener, address(result, socket.AF_INET))
        assert node.neighbours()

        delete(node, pod, dual())

        assert address(result, socket.AF_INET) not in [entry[1] for entry in node.neighbours()]

    @ours
    @pytest.mark.parametrize(
        ("options", "args"),
        [
            ({}, "MAC=zz"),
            ({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}, ""),
        ],
    )
    def test_after_an_add_that_was_refused(self, node: Node, options: dict[str, Any], args: str) -> None:
        """A runtime repeats DEL until it succeeds, with the same configuration."""
        conf, pod, env = network(**options), node.pod(), {"CNI_ARGS": args}
        refused = node.call("bridge", "ADD", conf, pod, env=env).error

        node.call("bridge", "DEL", conf, pod, env=env).silent()

        assert refused["code"] == 7

    @ours
    def test_of_an_interface_that_cannot_go(self, node: Node) -> None:
        pod = node.pod()

        answer = node.call("bridge", "DEL", network(), pod, ifname="lo")

        assert (answer.status, answer.stdout) == (0, b"")
        assert "leaving lo" in answer.stderr


class TestSwap:
    """The executables change under running pods, in both directions."""

    CONFS = [
        pytest.param({"ipMasq": True}, id="masquerade"),
        pytest.param({"ipMasq": True, "ipMasqBackend": "iptables"}, id="iptables"),
        pytest.param({"ipMasq": True, "ipMasqBackend": "nftables"}, id="nftables"),
        pytest.param({"ipMasq": True, "macspoofchk": True}, id="macspoofchk"),
        pytest.param({"macspoofchk": True}, id="macspoofchk alone"),
    ]

    @pytest.mark.parametrize("options", CONFS)
    @pytest.mark.parametrize("prev_result", [True, False])
    def test_their_pod_our_del(self, node: Node, reference: Way, options: dict[str, Any], prev_result: bool) -> None:  # noqa: FBT001
        conf = dual(**options)
        before = settled(node, conf, reference)
        pod = node.pod()
        result = add(node, pod, conf, way=reference)

        delete(node, pod, {**conf, "prevResult": result} if prev_result else conf)

        wait_same(node.snapshot, before, "what the reference made was not all removed")
        assert set(node.links(pod)) == {"lo"}

    @ours
    @pytest.mark.parametrize("options", CONFS)
    def test_their_dead_pod_our_del(self, node: Node, reference: Way, options: dict[str, Any]) -> None:
        """Also when the namespace is gone, where the reference leaks its rules."""
        conf = dual(**options)
        before = settled(node, conf, reference)
        pod = node.pod()
        result = add(node, pod, conf, way=reference)
        node.kill_netns(pod)

        delete(node, pod, {**conf, "prevResult": result})

        wait_same(node.snapshot, before, "what the reference made was not all removed")

    @pytest.mark.parametrize("options", CONFS)
    def test_their_pod_our_check(self, node: Node, reference: Way, options: dict[str, Any]) -> None:
        pod = node.pod()
        result = add(node, pod, dual(**options), way=reference)

        node.call("bridge", "CHECK", dual(**options, prevResult=result), pod).silent()

    @pytest.mark.parametrize("options", CONFS)
    def test_our_pod_their_del(self, node: Node, reference: Way, options: dict[str, Any]) -> None:
        """The link and the lease go; masquerade of ours they do not know (GC removes it)."""
        pod = node.pod()
        result = add(node, pod, dual(**options))

        delete(node, pod, dual(**options), way=reference)

        assert set(node.links(pod)) == {"lo"}
        assert result["interfaces"][1]["name"] not in node.links()
        assert node.leases("net") == {}

    def test_our_pod_their_check(self, node: Node, reference: Way) -> None:
        pod = node.pod()
        result = add(node, pod, dual())

        node.call("bridge", "CHECK", dual(prevResult=result), pod, way=reference).silent()

    @ours
    def test_our_pod_their_del_our_gc(self, node: Node, reference: Way) -> None:
        conf = dual(ipMasq=True)
        settled(node, conf, reference)
        before = settled(node, conf)
        pod = node.pod()
        add(node, pod, conf)
        delete(node, pod, conf, way=reference)

        node.call("bridge", "GC", {**conf, "cni.dev/valid-attachments": []}).silent()

        wait_same(node.snapshot, before, "GC did not remove what the reference's DEL left")

    def test_both_share_the_leases(self, node: Node, reference: Way) -> None:
        """By turns, on one folder and one bridge: every address once."""
        given = []
        for way in (None, reference, None, reference, reference, None):
            given.append(address(add(node, node.pod(), network(), way=way), socket.AF_INET))

        assert given == [f"10.1.0.{last}" for last in range(2, 8)]

    @ours
    def test_ours_moves_a_pod_of_theirs_to_our_masquerade(self, node: Node, reference: Way) -> None:
        """Pods of both live side by side, and each DEL removes only its own."""
        conf = network(ipMasq=True)
        outside, theirs, mine = node.outside(), node.pod(), node.pod()
        add(node, theirs, conf, way=reference)
        add(node, mine, conf)

        delete(node, mine, conf)

        with theirs.socket() as sender:
            assert outside.source_of(sender) == outside.NODE4


@ours
class TestGC:
    """GC removes what is not listed of this network, and nothing of another."""

    def gc(self, node: Node, conf: dict[str, Any], *valid: Pod) -> None:
        listed = [{"containerID": pod.container_id, "ifname": "eth0"} for pod in valid]
        node.call("bridge", "GC", {**conf, "cni.dev/valid-attachments": listed}).silent()

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("netns", ["there", "gone"])
    def test_only_what_is_not_listed(self, node: Node, backend: dict[str, str], netns: str) -> None:
        blue = network("blue", bridge="br-blue", ipMasq=True, **backend)
        red = network(
            "red",
            bridge="br-red",
            ipMasq=True,
            ipam={"type": "host-local", "ranges": [[{"subnet": "10.2.0.0/24"}]]},
            **backend,
        )
        outside = node.outside()
        keep, drop, other = node.pod(), node.pod(), node.pod()
        add(node, keep, blue)
        add(node, other, red)
        before = node.snapshot()
        add(node, drop, blue)
        if netns == "gone":
            node.kill_netns(drop)

        self.gc(node, blue, keep)

        wait_same(node.snapshot, before, "GC removed too much or too little")
        for pod in (keep, other):
            with pod.socket() as sender:
                assert outside.source_of(sender) == outside.NODE4

    def test_everything(self, node: Node) -> None:
        conf = dual(ipMasq=True, macspoofchk=True)
        before = settled(node, conf)
        pods = [node.pod() for _ in range(3)]
        for pod in pods:
            add(node, pod, conf)

        self.gc(node, conf)

        wait_same(node.snapshot, before, "GC of everything left something")
        assert all(set(node.links(pod)) == {"lo"} for pod in pods)

    def test_a_second_interface_of_a_listed_pod(self, node: Node) -> None:
        """An attachment is a container and an interface: eth0 is listed, net1 is not."""
        conf = network(isDefaultGateway=False, isGateway=True)
        pod = node.pod()
        add(node, pod, conf)
        before = node.snapshot()
        add(node, pod, conf, ifname="net1")

        self.gc(node, conf, pod)

        wait_same(node.snapshot, before, "GC removed too much or too little")
        assert set(node.links(pod)) == {"lo", "eth0"}

    def test_leases_of_the_reference(self, node: Node, reference: Way) -> None:
        """Leases that nobody's record knows, written by the reference or by an old version of it."""
        conf = network()
        keep = node.pod()
        add(node, keep, conf)
        assert node.call("host-local", "ADD", conf, node.pod(), way=reference).ok
        node.path(f"{LEASES}/net/10.1.0.200").write_text("an-old-container")

        self.gc(node, conf, keep)

        assert list(node.leases("net")) == ["10.1.0.2"]

    def test_pods_that_live_keep_their_traffic(self, node: Node) -> None:
        conf = dual(ipMasq=True)
        pod = node.pod()
        result = add(node, pod, conf)

        self.gc(node, conf, pod)

        with node.socket() as sender, pod.socket() as listener:
            listener.bind(("", 0))
            assert datagram(sender, listener, address(result, socket.AF_INET)) == "10.1.0.1"
        node.call("bridge", "CHECK", {**conf, "prevResult": result}, pod).silent()
