"""What `bridge` promises beyond the protocol, against the executables: traffic, masquerade, tidiness, CHECK, GC.

Rows and tests marked `ours` are those where the reference is known to do otherwise.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.world import (
    DUAL_STACK,
    LEASES,
    Answer,
    Node,
    Pod,
    Way,
    datagram,
    network,
    wait_same,
    wait_until,
    without_length,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ours = pytest.mark.ours

FAMILIES = [pytest.param(socket.AF_INET, id="IPv4"), pytest.param(socket.AF_INET6, id="IPv6")]
BACKENDS = [
    pytest.param({}, id="default"),
    *[pytest.param({"ipMasqBackend": name}, id=name) for name in ("nftables", "iptables")],
]
SUBNET_HOST: dict[int, str] = {socket.AF_INET: "10.1.9.9", socket.AF_INET6: "fd00:1::9:9"}
GATEWAY: dict[int, str] = {socket.AF_INET: "10.1.0.1", socket.AF_INET6: "fd00:1::1"}


def dual(**options: Any) -> dict[str, Any]:
    return network(ipam=DUAL_STACK, **options)


def add(node: Node, pod: Pod, conf: dict[str, Any], **options: Any) -> dict[str, Any]:
    return node.call("bridge", "ADD", conf, pod, **options).result


def delete(node: Node, pod: Pod, conf: dict[str, Any], **options: Any) -> None:
    node.call("bridge", "DEL", conf, pod, **options).silent()


def settled(node: Node, conf: dict[str, Any], way: Way | None = None) -> dict[str, Any]:
    """The node after one pod came and went: with everything shared, with nothing of a pod."""
    pod = node.pod()
    add(node, pod, conf, way=way)
    delete(node, pod, conf, way=way)
    return node.snapshot()


def address(result: dict[str, Any], family: int) -> str:
    """The pod's address of a family."""
    colon = family == socket.AF_INET6
    return next(without_length(item["address"]) for item in result["ips"] if (":" in item["address"]) == colon)


def host_end(node: Node, result: dict[str, Any]) -> str:
    """The node's end of the pod's veth."""
    name: str = result["interfaces"][1]["name"]
    assert name in node.links()
    return name


def arrival(listener: socket.socket) -> str:
    """For the message of a failure: whether a late datagram comes at all."""
    listener.settimeout(3)
    try:
        listener.recv(16)
    except TimeoutError:
        return "is lost"
    return "comes late"


class TestTraffic:
    """The pod's network works the moment ADD returns."""

    @ours
    def test_the_first_datagram_of_200_pods_arrives(self, node: Node) -> None:
        """Without the waits for the port and the bridge every tenth is lost, or comes when the node asks for the
        pod's MAC again, which it does after a second."""
        late: dict[int, str] = {}
        for number in range(200):
            pod = node.pod()
            family = (socket.AF_INET, socket.AF_INET6)[number % 2]
            with pod.socket(family) as listener, node.socket(family) as sender:
                listener.bind(("", 0))
                listener.settimeout(0.9)
                result = add(node, pod, dual())
                sender.sendto(b"first", (address(result, family), listener.getsockname()[1]))
                try:
                    listener.recv(16)
                except TimeoutError:
                    late[number] = f"{family.name} {arrival(listener)}"
            delete(node, pod, dual())
            node.kill_netns(pod)

        assert late == {}

    @pytest.mark.parametrize("family", FAMILIES)
    def test_pod_to_pod_and_pod_to_node(self, node: Node, family: int) -> None:
        first, second = node.pod(), node.pod()
        one, two = add(node, first, dual()), add(node, second, dual())

        with first.socket(family) as sender, second.socket(family) as listener, node.socket(family) as node_listener:
            listener.bind(("", 0))
            node_listener.bind(("", 0))
            assert datagram(sender, listener, address(two, family)) == address(one, family)
            assert datagram(sender, node_listener, GATEWAY[family]) == address(one, family)

    @ours
    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_reused_address_is_reachable_at_once(self, node: Node, family: int) -> None:
        """The node still has the neighbour entry of the pod that had the address before."""
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": "10.1.0.0/30"}], [{"subnet": "fd00:1::/126", "rangeEnd": "fd00:1::2"}]],
        }
        conf = network(ipam=ipam)
        first, second = node.pod(), node.pod()
        before = add(node, first, conf)
        with node.socket(family) as sender, first.socket(family) as listener:
            listener.bind(("", 0))
            datagram(sender, listener, address(before, family))
        delete(node, first, conf)

        after = add(node, second, conf)

        assert address(after, family) == address(before, family)
        with node.socket(family) as sender, second.socket(family) as listener:
            listener.bind(("", 0))
            listener.settimeout(5)
            sender.sendto(b"hello", (address(after, family), listener.getsockname()[1]))
            assert listener.recv(16) == b"hello"

    @ours
    def test_the_default_mac_follows_the_address(self, node: Node) -> None:
        pod = node.pod()

        result = add(node, pod, dual())

        assert result["interfaces"][2]["mac"] == "0a:58:0a:01:00:02"
        assert node.links(pod)["eth0"]["address"] == "0a:58:0a:01:00:02"

    @pytest.mark.parametrize("enabledad", [False, True])
    def test_no_address_is_tentative_when_add_returns(self, node: Node, enabledad: bool) -> None:  # noqa: FBT001
        pod = node.pod()

        add(node, pod, dual(enabledad=enabledad))

        flags = [item for item in pod.ip("addr", "show", "dev", "eth0")[0]["addr_info"] if item["scope"] == "global"]
        assert len(flags) == 2
        assert not any(item.get("tentative") for item in flags)


class TestMasquerade:
    """`ipMasq`, seen by a host outside that knows no route to the pods."""

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_outside_sees_the_node(self, node: Node, family: int, backend: dict[str, str]) -> None:
        outside, pod = node.outside(), node.pod()
        add(node, pod, dual(ipMasq=True, **backend))

        with pod.socket(family) as sender:
            assert outside.source_of(sender) == outside.node_address(family)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_it_outside_sees_the_pod(self, node: Node, family: int) -> None:
        outside, pod = node.outside(), node.pod()
        result = add(node, pod, dual())

        with pod.socket(family) as sender:
            assert outside.source_of(sender) == address(result, family)

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_not_within_the_pods_subnet(self, node: Node, family: int, backend: dict[str, str]) -> None:
        """A part of the subnet lies beyond the uplink, as another node's pods would."""
        outside, pod = node.outside(), node.pod()
        result = add(node, pod, dual(ipMasq=True, **backend))
        there, length = SUBNET_HOST[family], 32 if family == socket.AF_INET else 128
        node.run("ip", "-n", outside.pod.name, "addr", "add", f"{there}/{length}", "dev", "lo")
        node.run("ip", "route", "add", f"{there}/{length}", "via", outside.address(family))
        node.run("ip", "-n", pod.name, "route", "add", f"{there}/{length}", "via", GATEWAY[family])

        with pod.socket(family) as sender, outside.pod.socket(family) as listener:
            listener.bind(("", 0))
            assert datagram(sender, listener, there) == address(result, family)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_not_for_multicast(self, node: Node, backend: dict[str, str]) -> None:
        """Nobody routes multicast here, so this looks at the rules."""
        add(node, node.pod(), dual(ipMasq=True, **backend))

        rules = node.run("nft", "list", "ruleset")

        assert "224.0.0.0/4" in rules
        assert "ff00::/8" in rules

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("netns_of_a", ["gone", "there"])
    def test_two_holders_of_one_address(self, node: Node, backend: dict[str, str], netns_of_a: str) -> None:
        """ADD A, ADD B with the same address, late DEL A: B is still masqueraded."""
        conf = network(ipMasq=True, **backend)
        outside, pod_a, pod_b = node.outside(), node.pod(), node.pod()
        add(node, pod_a, conf)
        node.path(f"{LEASES}/net/10.1.0.2").unlink()  # as after a restore of an old store
        if netns_of_a == "gone":
            node.kill_netns(pod_a)
        else:
            node.run("ip", "-n", pod_a.name, "link", "set", "eth0", "down")
        result = add(node, pod_b, conf, env={"CNI_ARGS": "IP=10.1.0.2;IgnoreUnknown=1"})
        assert address(result, socket.AF_INET) == "10.1.0.2"

        delete(node, pod_a, conf)

        with pod_b.socket() as sender:
            assert outside.source_of(sender) == outside.NODE4
        assert list(node.leases("net")) == ["10.1.0.2"]

    @ours
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_two_holders_both_leave(self, node: Node, backend: dict[str, str]) -> None:
        conf = network(ipMasq=True, **backend)
        before = settled(node, conf)
        pod_a, pod_b = node.pod(), node.pod()
        result = add(node, pod_a, conf)
        taken = address(result, socket.AF_INET)
        node.path(f"{LEASES}/net/{taken}").unlink()
        node.kill_netns(pod_a)
        add(node, pod_b, conf, env={"CNI_ARGS": f"IP={taken};IgnoreUnknown=1"})

        delete(node, pod_a, conf)
        delete(node, pod_b, conf)

        wait_same(node.snapshot, before, "two holders of one address left something")


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


class TestFailedAdd:
    """Nothing of the pod is left behind by an ADD that failed."""

    @ours
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_bridge_has_another_address(self, node: Node, backend: dict[str, str]) -> None:
        conf = dual(ipMasq=True, macspoofchk=True, **backend)
        settled(node, conf)
        node.run("ip", "addr", "flush", "dev", "cni0")
        node.run("ip", "addr", "add", "10.1.0.77/16", "dev", "cni0")
        before = node.snapshot()
        pod = node.pod()

        error = node.call("bridge", "ADD", conf, pod).error

        assert "already has an IP address different" in error["msg"]
        assert "10.1.0.77" in error["msg"] + error["details"]
        assert set(node.links(pod)) == {"lo"}
        assert [item for item in node.leases("net").values() if pod.container_id in item] == []
        after = node.snapshot()
        assert {**after, "addresses": before["addresses"], "routes": before["routes"]} == before

    @ours
    def test_the_second_range_is_exhausted(self, node: Node) -> None:
        """The address of the first range goes back."""
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd00:1::/126", "rangeEnd": "fd00:1::2"}]],
        }
        add(node, node.pod(), network(ipam=ipam))
        before = node.snapshot()
        pod = node.pod()

        error = node.call("bridge", "ADD", network(ipam=ipam), pod).error

        assert error["code"] == 11
        assert "fd00:1::" in error["msg"]
        wait_same(node.snapshot, before, "the ADD without an address left something")
        assert set(node.links(pod)) == {"lo"}

    def test_the_interface_exists(self, node: Node) -> None:
        """Somebody's interface is neither taken nor removed."""
        pod = node.pod()
        add(node, node.pod(), network())
        node.run("ip", "-n", pod.name, "link", "add", "eth0", "type", "veth", "peer", "name", "theirs")
        mac = node.links(pod)["eth0"]["address"]
        before = node.snapshot()

        error = node.call("bridge", "ADD", network(), pod).error

        assert "eth0" in error["msg"]
        assert "already exists" in error["msg"]
        assert node.links(pod)["eth0"]["address"] == mac
        wait_same(node.snapshot, before, "the refused ADD left something")

    def test_add_again_is_refused_and_the_pod_lives_on(self, node: Node) -> None:
        """A second ADD of the same attachment, which the specification forbids a runtime to make."""
        pod = node.pod()
        first = add(node, pod, dual(ipMasq=True))
        before = node.snapshot()

        assert node.call("bridge", "ADD", dual(ipMasq=True), pod).error["msg"]

        wait_same(node.snapshot, before, "the second ADD changed something")
        assert pod.addresses() == [item["address"] for item in first["ips"]]

    @ours
    @pytest.mark.parametrize("args", ["", "IP=10.1.0.77"])
    def test_add_in_a_second_namespace_is_refused_and_the_pod_lives_on(self, node: Node, args: str) -> None:
        pod = node.pod()
        first = add(node, pod, dual(ipMasq=True))
        other = node.pod()
        before = node.snapshot()

        again: dict[str, str | None] = {"CNI_NETNS": other.path, "CNI_ARGS": args}
        error = node.call("bridge", "ADD", dual(ipMasq=True), pod, env=again).error

        assert f"container {pod.container_id} is attached as eth0 already" in error["msg"]
        wait_same(node.snapshot, before, "the second ADD changed something")
        assert pod.addresses() == [item["address"] for item in first["ips"]]
        assert set(node.links(other)) == {"lo"}

    def test_a_namespace_removed_without_del_and_made_again(self, node: Node) -> None:
        """As in `ip netns del pod; ip netns add pod`: what the kernel has not yet taken apart is in nobody's way."""
        pod = node.pod()
        conf = {"cniVersion": "1.0.0", "name": "layer2", "type": "bridge", "bridge": "cni0"}
        for _ in range(20):
            assert pod.path in [item.get("sandbox") for item in add(node, pod, conf)["interfaces"]]
            node.run("sh", "-c", f"ip netns del {pod.name} && ip netns add {pod.name}")

    @ours
    def test_a_chain_of_our_name_that_masquerades_nothing(self, node: Node) -> None:
        node.run("nft", "add table inet cnikit; add chain inet cnikit masq-net")
        before = node.snapshot()

        error = node.call("bridge", "ADD", network(ipMasq=True, isGateway=True), node.pod()).error

        assert "masq-net" in error["msg"]
        assert "nft list table inet cnikit" in error["details"]
        assert node.snapshot()["nft"] == before["nft"]

    @ours
    def test_the_bridge_is_no_bridge(self, node: Node) -> None:
        node.run("ip", "link", "add", "br9", "type", "veth", "peer", "name", "br9-peer")
        before = node.snapshot()
        pod = node.pod()

        error = node.call("bridge", "ADD", network(bridge="br9"), pod).error

        assert "already exists but is not a bridge" in error["msg"]
        wait_same(node.snapshot, before, "the refused ADD left something")
        assert set(node.links(pod)) == {"lo"}


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


class TestOptions:
    """The remaining options, as the kernel shows them and as packets feel them."""

    @pytest.mark.parametrize("hairpin", [False, True])
    def test_hairpin(self, node: Node, hairpin: bool) -> None:  # noqa: FBT001
        result = add(node, node.pod(), network(hairpinMode=hairpin))

        assert node.links()[host_end(node, result)]["linkinfo"]["info_slave_data"]["hairpin"] is hairpin

    def test_promisc(self, node: Node) -> None:
        add(node, node.pod(), network(promiscMode=True))

        assert node.links()["cni0"]["promiscuity"] > 0
        assert "PROMISC" in node.links()["cni0"]["flags"]

    def test_mtu(self, node: Node) -> None:
        pod = node.pod()
        result = add(node, pod, network(mtu=1300))

        assert node.links(pod)["eth0"]["mtu"] == 1300
        assert node.links()[host_end(node, result)]["mtu"] == 1300

    def test_isolation(self, node: Node) -> None:
        """A datagram sent while isolated never comes; one sent after the isolation was lifted does."""
        conf = network(portIsolation=True)
        first, second = node.pod(), node.pod()
        one, two = add(node, first, conf), add(node, second, conf)
        assert node.links()[host_end(node, one)]["linkinfo"]["info_slave_data"]["isolated"] is True
        know(node, first, "10.1.0.3", node.links(second)["eth0"]["address"])

        with first.socket() as sender, second.socket() as listener, node.socket() as node_listener:
            listener.bind(("", 0))
            node_listener.bind(("", 0))
            target = (address(two, socket.AF_INET), listener.getsockname()[1])
            assert datagram(sender, node_listener, "10.1.0.1") == "10.1.0.2"
            sender.sendto(b"isolated", target)
            node.run("bridge", "link", "set", "dev", host_end(node, one), "isolated", "off")
            sender.sendto(b"free", target)
            listener.settimeout(10)
            assert listener.recv(16) == b"free"

    def test_macspoofchk(self, node: Node) -> None:
        """A datagram with another source MAC never comes; one with the right one does."""
        pod = node.pod()
        add(node, pod, network(macspoofchk=True))
        right = node.links(pod)["eth0"]["address"]
        know(node, pod, "10.1.0.1", node.links()["cni0"]["address"])

        with pod.socket() as sender, node.socket() as listener:
            listener.bind(("", 0))
            listener.settimeout(10)
            target = ("10.1.0.1", listener.getsockname()[1])
            node.run("ip", "-n", pod.name, "link", "set", "eth0", "address", "02:99:99:99:99:99")
            sender.sendto(b"spoofed", target)
            node.run("ip", "-n", pod.name, "link", "set", "eth0", "address", right)
            sender.sendto(b"honest", target)
            assert listener.recv(16) == b"honest"

    def test_gateway(self, node: Node) -> None:
        add(node, node.pod(), dual(isDefaultGateway=False, isGateway=True))

        found = {item["local"]: item["prefixlen"] for item in node.ip("addr", "show", "dev", "cni0")[0]["addr_info"]}
        assert found["10.1.0.1"] == 16
        assert found["fd00:1::1"] == 64
        assert node.path("/proc/sys/net/ipv4/ip_forward").exists()
        assert node.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
        assert node.run("sysctl", "-n", "net.ipv6.conf.all.forwarding").strip() == "1"
        assert node.run("sysctl", "-n", "net.ipv6.conf.cni0.accept_ra").strip() == "0"

    @ours
    def test_a_default_route_of_ipam_without_a_gateway(self, node: Node) -> None:
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        pod = node.pod()

        result = add(node, pod, network(isDefaultGateway=True, ipam={**DUAL_STACK, "routes": routes}))

        assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd00:1::1"}]
        for family, gateway in (("-4", "10.1.0.1"), ("-6", "fd00:1::1")):
            assert [r["gateway"] for r in pod.ip(family, "route", "show", "default")] == [gateway]

    @ours
    def test_a_node_whose_new_links_have_no_ipv6(self, node: Node) -> None:
        node.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        pod = node.pod()

        add(node, pod, dual(isGateway=True))

        assert node.attempt("ip", "netns", "exec", pod.name, "ping", "-n", "-c1", "-W1", "fd00:1::1").ok

    def test_without_a_gateway(self, node: Node) -> None:
        pod = node.pod()
        add(node, pod, network(isDefaultGateway=False))

        assert node.ip("-4", "addr", "show", "dev", "cni0") in ([], [{}])
        assert pod.ip("-4", "route", "show", "default") == []

    def test_force_address(self, node: Node) -> None:
        add(node, node.pod(), network())
        moved = network(forceAddress=True, ipam={"type": "host-local", "ranges": [[{"subnet": "10.2.0.0/24"}]]})

        add(node, node.pod(), moved)

        found = [item["local"] for item in node.ip("-4", "addr", "show", "dev", "cni0")[0]["addr_info"]]
        assert found == ["10.2.0.1"]

    def test_layer_2_only(self, node: Node) -> None:
        pod = node.pod()
        result = add(node, pod, network(ipam={}))

        assert [item["name"] for item in result["interfaces"]][0::2] == ["cni0", "eth0"]
        assert "ips" not in result
        assert "UP" in node.links(pod)["eth0"]["flags"]
        assert pod.addresses() == []
        delete(node, pod, network(ipam={}))
        assert set(node.links(pod)) == {"lo"}

    def test_disabled_container_interface(self, node: Node) -> None:
        pod = node.pod()
        add(node, pod, network(ipam={}, disableContainerInterface=True))

        assert "UP" not in node.links(pod)["eth0"]["flags"]

    @pytest.mark.parametrize(
        ("options", "args", "mac"),
        [
            ({}, "MAC=02:00:00:00:00:01", "02:00:00:00:00:01"),
            ({"args": {"cni": {"mac": "02:00:00:00:00:02"}}}, "MAC=02:00:00:00:00:01", "02:00:00:00:00:02"),
            (
                {"args": {"cni": {"mac": "02:00:00:00:00:02"}}, "runtimeConfig": {"mac": "02:00:00:00:00:03"}},
                "MAC=02:00:00:00:00:01",
                "02:00:00:00:00:03",
            ),
        ],
    )
    def test_who_decides_the_mac(self, node: Node, options: dict[str, Any], args: str, mac: str) -> None:
        pod = node.pod()

        result = add(node, pod, network(**options), env={"CNI_ARGS": f"IgnoreUnknown=1;{args}"})

        assert result["interfaces"][2]["mac"] == mac
        assert node.links(pod)["eth0"]["address"] == mac

    def test_dns_of_the_network_wins(self, node: Node) -> None:
        node.path("/run/resolv.conf").write_text("nameserver 10.0.0.53\nsearch from.ipam\noptions ndots:5\n")
        ipam = {**network()["ipam"], "resolvConf": "/run/resolv.conf"}

        from_ipam = add(node, node.pod(), network(ipam=ipam))
        from_network = add(node, node.pod(), network(ipam=ipam, dns={"nameservers": ["10.0.0.54"]}))

        assert from_ipam["dns"] == {"nameservers": ["10.0.0.53"], "search": ["from.ipam"], "options": ["ndots:5"]}
        assert from_network["dns"] == {"nameservers": ["10.0.0.54"]}

    def test_routes_of_ipam(self, node: Node) -> None:
        pod = node.pod()
        ipam = {
            **network()["ipam"],
            "routes": [{"dst": "198.51.100.0/24"}, {"dst": "203.0.113.0/24", "gw": "10.1.0.9"}],
        }

        add(node, pod, network(ipam=ipam))

        found = {route["dst"]: route.get("gateway") for route in pod.ip("-4", "route")}
        assert found["198.51.100.0/24"] == "10.1.0.1"
        assert found["203.0.113.0/24"] == "10.1.0.9"

    @ours
    @pytest.mark.parametrize("options", [{"vlan": 100}, {"vlanTrunk": [{"id": 5}]}])
    def test_vlan(self, node: Node, options: dict[str, Any]) -> None:
        """Works, or is refused with the reason before any effect, as the kernel can or cannot."""
        before = node.snapshot()
        pod = node.pod()

        answer = node.call("bridge", "ADD", network(**options), pod)

        if answer.ok:
            assert any(entry["ifname"].startswith("veth") for entry in node.bridge("vlan", "show"))
        else:
            assert "vlan" in answer.error["msg"].lower() + answer.error["details"].lower()
            wait_same(node.snapshot, before, "the refusal of VLAN came after an effect")


def know(node: Node, pod: Pod, target: str, mac: str) -> None:
    """A permanent neighbour entry in the pod, so that a datagram leaves at once."""
    node.run("ip", "-n", pod.name, "neigh", "replace", target, "lladdr", mac, "nud", "permanent", "dev", "eth0")


def run_in(*argv: str) -> Callable[[Node, Pod, dict[str, Any]], None]:
    """A break-in of one `ip` command; POD and VETH stand for the pod's and the link's name."""

    def act(node: Node, pod: Pod, result: dict[str, Any]) -> None:
        words = {"POD": pod.name, "VETH": result["interfaces"][1]["name"]}
        node.run(*[words.get(word, word) for word in argv])

    return act


def steal_lease(node: Node, pod: Pod, _result: dict[str, Any]) -> None:
    assert pod.container_id in node.leases("net")["10.1.0.2"]
    node.path(f"{LEASES}/net/10.1.0.2").unlink()  # the file may be a hard link: writing into it would change others
    node.path(f"{LEASES}/net/10.1.0.2").write_bytes(b"somebody-else\r\neth0")


def flush_rules(node: Node, _pod: Pod, _result: dict[str, Any]) -> None:
    node.run("nft", "flush", "ruleset")


class TestCheck:
    """CHECK fails for each thing that somebody broke, and says what it expected."""

    BREAKS = [
        pytest.param(
            run_in("ip", "-n", "POD", "addr", "del", "10.1.0.2/16", "dev", "eth0"), ("10.1.0.2",), id="address"
        ),
        pytest.param(
            run_in("ip", "-n", "POD", "-6", "addr", "del", "fd00:1::2/64", "dev", "eth0"),
            ("fd00:1::2",),
            id="IPv6 address",
        ),
        pytest.param(run_in("ip", "-n", "POD", "route", "del", "default"), ("0.0.0.0", "10.1.0.1"), id="route"),
        pytest.param(
            run_in("ip", "-n", "POD", "link", "set", "eth0", "address", "02:00:00:00:00:99"),
            ("02:00:00:00:00:99",),
            id="MAC",
        ),
        pytest.param(run_in("ip", "-n", "POD", "link", "del", "eth0"), ("eth0",), id="link"),
        pytest.param(run_in("ip", "link", "set", "VETH", "nomaster"), ("cni0",), id="bridge port", marks=ours),
        pytest.param(run_in("ip", "link", "set", "VETH", "nomaster"), (), id="bridge port, any words"),
        pytest.param(run_in("ip", "link", "del", "cni0"), ("cni0",), id="bridge"),
        pytest.param(run_in("ip", "link", "set", "cni0", "down"), ("cni0", "up"), id="bridge down", marks=ours),
        pytest.param(
            run_in("ip", "addr", "del", "10.1.0.1/16", "dev", "cni0"), ("10.1.0.1",), id="gateway", marks=ours
        ),
        pytest.param(
            run_in("ip", "-n", "POD", "route", "del", "10.1.0.0/16"), ("10.1.0.0/16",), id="subnet", marks=ours
        ),
        pytest.param(
            run_in("bridge", "link", "set", "dev", "VETH", "state", "0"), ("disabled",), id="port", marks=ours
        ),
        pytest.param(
            run_in("bridge", "link", "set", "dev", "VETH", "hairpin", "off"), ("hairpin",), id="hairpin", marks=ours
        ),
        pytest.param(
            run_in("ip", "link", "set", "VETH", "address", "02:00:00:00:00:98"),
            ("02:00:00:00:00:98",),
            id="host MAC",
            marks=ours,
        ),
        pytest.param(
            run_in("ip", "-n", "POD", "link", "set", "eth0", "mtu", "1280"), ("1280", "1500"), id="MTU", marks=ours
        ),
        pytest.param(run_in("rm", f"{LEASES}/net/10.1.0.2", f"{LEASES}/net/fd00:1::2"), (), id="leases"),
        pytest.param(run_in("rm", f"{LEASES}/net/10.1.0.2"), ("10.1.0.2",), id="one lease", marks=ours),
        pytest.param(steal_lease, ("10.1.0.2", "somebody-else"), id="lease of another", marks=ours),
        pytest.param(flush_rules, (), id="masquerade", marks=ours),
        pytest.param(run_in("ip", "-n", "POD", "link", "set", "eth0", "down"), (), id="link down"),
    ]

    @pytest.mark.parametrize(("break_it", "parts"), BREAKS)
    def test_broken(
        self, node: Node, break_it: Callable[[Node, Pod, dict[str, Any]], None], parts: tuple[str, ...]
    ) -> None:
        pod = node.pod()
        options = {"ipMasq": True, "isGateway": True, "hairpinMode": True}
        result = add(node, pod, dual(**options))
        conf = dual(**options, prevResult=result)
        node.call("bridge", "CHECK", conf, pod).silent()

        break_it(node, pod, result)

        error = node.call("bridge", "CHECK", conf, pod).error
        assert all(part in error["msg"] + error.get("details", "") for part in parts), error

    @ours
    def test_a_route_in_another_table_is_fine(self, node: Node) -> None:
        """A later plugin (source based routing) moved it."""
        pod = node.pod()
        result = add(node, pod, network())
        node.run("ip", "-n", pod.name, "route", "del", "default")
        node.run("ip", "-n", pod.name, "route", "add", "default", "via", "10.1.0.1", "table", "100")

        node.call("bridge", "CHECK", network(prevResult=result), pod).silent()

    def test_it_changes_nothing(self, node: Node) -> None:
        pod = node.pod()
        result = add(node, pod, dual(ipMasq=True))
        before = node.snapshot()

        node.call("bridge", "CHECK", dual(ipMasq=True, prevResult=result), pod).silent()

        wait_same(node.snapshot, before, "CHECK changed something")

    def test_more_pods_do_not_disturb_it(self, node: Node) -> None:
        """A bridge's MAC may change when ports join; the first pod is still well."""
        pod = node.pod()
        result = add(node, pod, network())
        for _ in range(5):
            add(node, node.pod(), network())

        node.call("bridge", "CHECK", network(prevResult=result), pod).silent()


@ours
class TestStatus:
    """STATUS says no (50) when no ADD can succeed."""

    def status(self, node: Node, conf: dict[str, Any]) -> Answer:
        return node.call("bridge", "STATUS", conf)

    def test_exhausted(self, node: Node) -> None:
        conf = network(ipam={"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/30"}]]})
        self.status(node, conf).silent()
        pod = node.pod()
        add(node, pod, conf)

        assert self.status(node, conf).error["code"] == 50
        delete(node, pod, conf)
        self.status(node, conf).silent()

    def test_exhausted_may_be_ignored(self, node: Node) -> None:
        conf = network(ipam={"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/30"}]], "statusOnExhausted": False})
        add(node, node.pod(), conf)

        self.status(node, conf).silent()

    def test_no_such_ipam(self, node: Node) -> None:
        assert self.status(node, network(ipam={"type": "no-such-ipam"})).error["msg"]


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


def test_a_bridge_of_the_operator_that_lost_its_last_port(node: Node) -> None:
    """With no MAC of its own it has none then, and the next pod must be reachable all the same."""
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.run("ip", "link", "add", "port", "master", "cni0", "type", "veth", "peer", "other")
    node.run("ip", "link", "del", "port")
    node.run("ip", "link", "set", "cni0", "up")
    pod = node.pod()

    result = add(node, pod, network())

    with node.socket() as sender, pod.socket() as listener:
        listener.bind(("", 0))
        assert datagram(sender, listener, address(result, socket.AF_INET)) == "10.1.0.1"


def test_forwarding_of_a_new_port(node: Node) -> None:
    """Each port forwards when its ADD returns; asked right away, and the port is never seen otherwise."""
    for _ in range(10):
        result = add(node, node.pod(), network())
        states = {port["ifname"]: port["state"] for port in node.bridge("link")}
        assert states[result["interfaces"][1]["name"]] == "forwarding"


@ours
def test_link_local_of_the_host_end(node: Node) -> None:
    """The node's end needs no address: it is a port."""
    result = add(node, node.pod(), dual())
    name = host_end(node, result)

    wait_until(lambda: node.links()[name]["operstate"] == "UP", "the port is up")

    assert [item for item in node.ip("addr", "show", "dev", name)[0]["addr_info"] if item["scope"] == "global"] == []
