"""vxlan and host-gw between nodes: what passes, what is on the wire, and what each verb says; with static peers and with
a subnet file, no agent of the network anywhere."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.e2e.underlay import V4, V6, Capture, Cluster, add, address, delete, ping
from tests.e2e.world import Node, Outside, datagram, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.world import Pod, Way

BOTH = (V4, V6)


class Case(NamedTuple):
    backend: str
    underlay: tuple[int, ...] = (V4,)
    pods: tuple[int, ...] = (V4,)
    attachment: str = "routed"

    def __str__(self) -> str:
        names = {V4: "4", V6: "6"}
        over, pods = ("".join(names[family] for family in found) for found in (self.underlay, self.pods))
        return f"{self.backend}-{self.attachment}-pods{pods}-over{over}"


CASES = [
    Case("vxlan"),
    Case("vxlan", BOTH, BOTH),
    Case("vxlan", (V4,), BOTH),
    Case("vxlan", (V6,), BOTH),
    Case("vxlan", (V6,), (V6,)),
    Case("vxlan", BOTH, BOTH, "bridged"),
    Case("host-gw", BOTH, BOTH),
    Case("host-gw", BOTH, BOTH, "bridged"),
    Case("host-gw", (V6,), (V6,)),
]
BACKENDS = ["vxlan", "host-gw"]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def cluster(way: Way) -> Iterator[Cluster]:
    """Two nodes, IPv4 only."""
    with Cluster(way) as made:
        yield made


def converse(one: Pod, two: Pod, family: int) -> bytes:
    """What `two` reads of a TCP connection from `one`: its source address and 100,000 bytes."""
    with one.socket(family, socket.SOCK_STREAM) as client, two.socket(family, socket.SOCK_STREAM) as server:
        server.bind(("", 0))
        server.listen()
        server.settimeout(5)
        client.settimeout(5)
        client.connect((address(two, family), server.getsockname()[1]))
        connection, (source, *_) = server.accept()
        with connection:
            connection.settimeout(5)
            assert source == address(one, family)
            client.sendall(bytes(100_000))
            client.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := connection.recv(1 << 16):
                received += chunk
            return received


def write_subnet_file(node: Node, **values: str) -> None:
    file = node.path("/run/cnikit/subnets")
    file.mkdir(parents=True, exist_ok=True)
    (file / "pods.env").write_text("".join(f"{key}={value}\n" for key, value in values.items()))


def masqueraded(node: Node) -> list[str]:
    """What is masqueraded, by the rules' comments: a range of pods, or a network and the device to it."""
    return [item["rule"]["comment"].removeprefix("range ")[:-17] for item in node.nft() if "rule" in item]


def ranges(node: Node) -> set[str]:
    """Those of pods."""
    return {one for one in masqueraded(node) if " " not in one}


FLANNEL = {
    "FLANNEL_NETWORK": "10.244.0.0/16",
    "FLANNEL_SUBNET": "10.244.1.1/24",
    "FLANNEL_MTU": "1450",
    "FLANNEL_IPMASQ": "true",
}
FILE_CONF = {"cniVersion": "1.1.0", "name": "pods", "type": "vxlan", "iface": "eth0", "ipam": {"type": "host-local"}}


class TestTraffic:
    """An answer of ADD means that packets pass, in both directions."""

    def test_pods_of_two_nodes_reach_each_other(self, way: Way, case: Case) -> None:
        with Cluster(way, underlay=case.underlay, pods=case.pods) as cluster:
            one, two = cluster.attach(cluster.conf(case.backend, attachment=case.attachment, ipMasq=True))
            for family in case.pods:
                there, back = address(two, family), address(one, family)
                assert ping(one, there).ok
                assert ping(two, back).ok
                assert ping(one, there, "-s", "4000").ok, "in fragments"
                with one.socket(family) as sender, two.socket(family) as listener:
                    listener.bind(("", 0))
                    assert datagram(sender, listener, there) == back, "the source is the pod's own"
                assert len(converse(one, two, family)) == 100_000

    @pytest.mark.parametrize("case", CASES[:6], ids=str)
    def test_what_is_on_the_wire_of_vxlan_is_udp_8472(self, way: Way, case: Case) -> None:
        with Cluster(way, underlay=case.underlay, pods=case.pods) as cluster:
            one, two = cluster.attach(cluster.conf("vxlan", attachment=case.attachment))
            wrapped = Capture(cluster.switch, "node2", "udp port 8472", 2 * len(case.pods))
            plain = Capture(cluster.switch, "node2", "net 10.244.0.0/16 or net fd00:244::/48")
            for family in case.pods:
                assert ping(one, address(two, family)).ok
            lines = wrapped.lines()

            assert plain.lines() == []
        outer = [line for line in lines if re.search(r"\.8472: (OTV|VXLAN), .*(vni|instance) 1\b", line)]
        inner = [re.sub(r"^(\S+ )?|, id .*", "", line) for line in lines if line not in outer]
        assert len(outer) == 2 * len(case.pods)
        assert all("echo re" in line and re.search("10.244|fd00:244", line) for line in inner), inner

    @pytest.mark.parametrize("attachment", ["routed", "bridged"])
    def test_what_is_on_the_wire_of_host_gw_is_the_pods_packet(self, cluster: Cluster, attachment: str) -> None:
        one, two = cluster.attach(cluster.conf("host-gw", attachment=attachment))
        capture = Capture(cluster.switch, "node2", "udp or icmp", 2)

        assert ping(one, address(two, V4)).ok

        lines = capture.lines()
        assert [re.sub(r"^\S+ |, id .*", "", line) for line in lines] == [
            "IP 10.244.1.2 > 10.244.2.2: ICMP echo request",
            "IP 10.244.2.2 > 10.244.1.2: ICMP echo reply",
        ]

    @pytest.mark.parametrize(
        ("case", "mtu"),
        [
            (Case("vxlan"), 1450),
            (Case("vxlan", (V6,), BOTH), 1430),
            (Case("vxlan", BOTH, BOTH), 1430),
            (Case("host-gw"), 1500),
        ],
        ids=str,
    )
    def test_the_mtu_is_what_the_underlay_carries_in_one_piece(self, way: Way, case: Case, mtu: int) -> None:
        with Cluster(way, underlay=case.underlay, pods=case.pods) as cluster:
            one, two = cluster.attach(cluster.conf(case.backend))
            assert one.ip("link", "show", "eth0")[0]["mtu"] == mtu
            capture = Capture(cluster.switch, "node2", "ip[6:2] & 0x3fff != 0 or ip6[6] == 44")
            assert ping(one, address(two, V4), "-M", "do", "-s", str(mtu - 28)).ok
            assert capture.lines() == []

    def test_an_underlay_that_carries_less_is_noticed_by_the_next_pod(self, way: Way) -> None:
        with Cluster(way) as cluster:
            conf = cluster.conf("vxlan")
            cluster.attach(conf)
            for node in cluster.nodes:
                node.run("ip", "link", "set", "eth0", "mtu", "1400")

            one, two = cluster.attach(conf)

            assert one.node.links()["cnikit.1"]["mtu"] == one.ip("link", "show", "eth0")[0]["mtu"] == 1350
            assert ping(one, address(two, V4), "-M", "do", "-s", "1322").ok

    def test_a_node_that_comes_back_with_another_address(self, way: Way) -> None:
        """Its device is made anew with another MAC, and the others replace what they had for it."""
        with Cluster(way) as cluster:
            conf = cluster.conf("vxlan")
            cluster.attach(conf)
            moved = cluster.nodes[1]
            moved.run("ip", "addr", "del", "198.18.0.2/24", "dev", "eth0")
            moved.run("ip", "addr", "add", "198.18.0.22/24", "dev", "eth0")
            conf["peers"][1]["publicIP"] = "198.18.0.22"

            one, two = cluster.attach(conf)

            assert ping(one, address(two, V4)).ok
            entries = [e["dst"] for e in one.node.bridge("fdb", "show", "dev", "cnikit.1") if "dst" in e]
            assert entries == ["198.18.0.22"]

    def test_pods_of_one_node_pass_the_forward_hook_when_they_are_routed(self, cluster: Cluster) -> None:
        conf = cluster.conf("vxlan")
        one, other = cluster.attach(conf, 1, 1)
        assert ping(one, address(other, V4)).ok
        one.node.run(
            "nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; policy drop; }"
        )

        assert not ping(one, address(other, V4)).ok

    @pytest.mark.parametrize("attachment", ["routed", "bridged"])
    def test_the_first_datagram_of_a_new_pod_arrives(self, way: Way, attachment: str) -> None:
        """From a pod of another node: it is forwarded, so the node has to look for the pod by itself."""
        with Cluster(way, underlay=BOTH, pods=BOTH) as cluster:
            conf = cluster.conf("vxlan", attachment=attachment)
            (elsewhere,) = cluster.attach(conf, 1)
            lost = []
            for number in range(10):
                family = BOTH[number % 2]
                pod = cluster.nodes[1].pod()
                with pod.socket(family) as listener, elsewhere.socket(family) as sender:
                    listener.bind(("", 0))
                    listener.settimeout(0.5)
                    add(pod, conf)
                    sender.sendto(b"first", (address(pod, family), listener.getsockname()[1]))
                    try:
                        listener.recv(16)
                    except TimeoutError:
                        lost.append((number, family))
            assert lost == []

    def test_direct_routing_across_a_router_takes_the_overlay(self, way: Way) -> None:
        """Node 3 is moved behind a router: it is reached through VXLAN, node 2 without."""
        with Cluster(way, 3) as cluster:
            move_behind_router(cluster, 3)
            conf = cluster.conf("vxlan", directRouting=True)
            conf["peers"][2]["publicIP"] = "198.51.100.3"
            one, two, three = cluster.attach(conf)
            near, far = (Capture(cluster.switch, f"node{number}", "udp or icmp", 2) for number in (2, 3))

            assert ping(one, address(two, V4)).ok
            assert ping(one, address(three, V4)).ok

            assert [".8472: " in line for line in near.lines()] == [False, False]
            assert any(".8472: " in line for line in far.lines())

    def test_host_gw_tells_of_a_peer_behind_a_router_and_goes_on(self, way: Way) -> None:
        with Cluster(way, 3) as cluster:
            move_behind_router(cluster, 3)
            conf = cluster.conf("host-gw")
            conf["peers"][2]["publicIP"] = "198.51.100.3"
            one, two = cluster.nodes[0].pod(), cluster.nodes[1].pod()

            answer = one.node.call("host-gw", "ADD", conf, one)

            add(two, conf)
            assert answer.ok
            assert "node3: 10.244.3.0/24 is unreachable" in answer.stderr
            assert ping(one, address(two, V4)).ok
            assert [r["dst"] for r in one.node.ip("route") if r.get("protocol") == "205"] == ["10.244.2.0/24"]


def move_behind_router(cluster: Cluster, number: int) -> None:
    switch = cluster.switch
    switch.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0")
    for gateway in ("198.18.0.254/24", "198.51.100.254/24"):
        switch.run("ip", "addr", "add", gateway, "dev", "switch")
    for other, node in enumerate(cluster.nodes, 1):
        moved = other == number
        if moved:
            node.run("ip", "addr", "replace", f"198.51.100.{number}/24", "dev", "eth0")
            node.run("ip", "addr", "del", f"198.18.0.{number}/24", "dev", "eth0")
        node.run("ip", "route", "add", "default", "via", "198.51.100.254" if moved else "198.18.0.254")


class TestAttachment:
    """What ADD makes, and that DEL and GC take it away."""

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_routed_is_what_ptp_makes(self, way: Way, reference: Way, backend: str) -> None:
        with Cluster(way, underlay=BOTH, pods=BOTH) as cluster, Node(reference) as other:
            (pod,) = cluster.attach(cluster.conf(backend, mtu=1400), 1)
            theirs = other.pod()
            ranges = [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:0:1::/64"}]]
            routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
            ipam = {"type": "host-local", "ranges": ranges, "routes": routes}
            ptp = {"cniVersion": "1.1.0", "name": "ptp", "type": "ptp", "mtu": 1400, "ipam": ipam}
            assert other.call("ptp", "ADD", ptp, theirs).ok

            assert pod.addresses() == theirs.addresses()
            for family in ("-4", "-6"):
                ours, expected = (routes_of(one.ip(family, "route")) for one in (pod, theirs))
                assert ours == expected
            end, their_end = (next(n for n in one.node.links() if n.startswith("veth")) for one in (pod, theirs))
            mine, gateways = (global_addresses(*place) for place in ((pod.node, end), (other, their_end)))
            assert mine == gateways == ["10.244.1.1/32", "fd00:244:0:1::1/128"]
            assert [r["dst"] for r in pod.node.ip("-4", "route", "show", "dev", end)] == ["10.244.1.2"]

    def test_the_result(self, cluster: Cluster) -> None:
        pod = cluster.nodes[0].pod()

        result = add(pod, cluster.conf("vxlan"))

        assert result["ips"] == [{"interface": 1, "address": "10.244.1.2/24", "gateway": "10.244.1.1"}]
        assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}]
        host, inside = result["interfaces"]
        assert "sandbox" not in host
        assert (inside["name"], inside["sandbox"], inside["mtu"]) == ("eth0", pod.path, 1450)
        assert host["name"] in pod.node.links()

    @pytest.mark.parametrize("attachment", ["routed", "bridged"])
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_del_and_gc_leave_what_was_before_the_pod(self, way: Way, backend: str, attachment: str) -> None:
        with Cluster(way, underlay=BOTH, pods=BOTH) as cluster:
            conf, node = cluster.conf(backend, attachment=attachment, ipMasq=True), cluster.nodes[0]
            (first,) = cluster.attach(conf, 1)
            delete(first, conf)
            before = node.snapshot()

            one, two = cluster.attach(conf, 1, 1)
            delete(one, conf)
            delete(one, conf)
            node.kill_netns(two)
            node.call(backend, "GC", {**conf, "cni.dev/valid-attachments": []}).silent()

            assert node.snapshot() == before

    @pytest.mark.parametrize("attachment", ["routed", "bridged"])
    def test_many_first_pods_at_once(self, way: Way, attachment: str) -> None:
        """On a node with nothing yet, so that all of them find the device, the routes and the rules missing."""
        with Cluster(way, underlay=BOTH, pods=BOTH) as cluster:
            conf, node = cluster.conf("vxlan", attachment=attachment, ipMasq=True), cluster.nodes[0]
            (far,) = cluster.attach(conf, 2)
            pods = node.many_pods(12)

            answers = [one.wait() for one in [node.start("vxlan", "ADD", conf, pod) for pod in pods]]

            assert [(answer.status, answer.stderr) for answer in answers] == [(0, "")] * len(pods)
            assert len({address(pod, V4) for pod in pods}) == len(pods)
            assert all(ping(pod, address(far, V6)).ok for pod in pods)
            assert len(masqueraded(node)) == len(set(masqueraded(node))) == 6
            removed = [one.wait() for one in [node.start("vxlan", "DEL", conf, pod) for pod in pods]]
            assert [answer.status for answer in removed] == [0] * len(pods)
            assert [name for name in node.links() if name.startswith("veth")] == []

    @pytest.mark.parametrize("attachment", ["routed", "bridged"])
    def test_del_needs_neither_the_network_nor_the_namespace(self, cluster: Cluster, attachment: str) -> None:
        conf = cluster.conf("vxlan", attachment=attachment)
        (pod,) = cluster.attach(conf, 1)
        other = {key: value for key, value in conf.items() if key not in ("peers", "network", "attachment")}
        node = pod.node
        node.kill_netns(pod)

        node.call("vxlan", "DEL", {**other, "vni": -5}, pod, env={"CNI_NETNS": None}).silent()

        assert node.leases("pods") == {}
        assert [name for name in node.links() if name.startswith("veth")] == []

    @pytest.mark.parametrize("attachment", ["routed", "bridged"])
    def test_check_behind_another_plugin_looks_at_the_own_addresses(self, cluster: Cluster, attachment: str) -> None:
        conf, node = cluster.conf("vxlan", attachment=attachment), cluster.nodes[0]
        pod = node.pod()
        before = {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "net0", "mac": "02:00:00:00:00:05", "sandbox": pod.path}],
            "ips": [{"address": "172.30.0.5/16", "interface": 0}],
        }

        result = node.call("vxlan", "ADD", {**conf, "prevResult": before}, pod).result

        assert [ip["interface"] for ip in result["ips"]] == [
            0,
            next(i for i, one in enumerate(result["interfaces"]) if one["name"] == "eth0"),
        ]
        node.run("ip", "-n", pod.name, "link", "add", "net0", "address", "02:00:00:00:00:05", "type", "bridge")
        node.run("ip", "-n", pod.name, "addr", "add", "172.30.0.5/16", "dev", "net0")
        node.call("vxlan", "CHECK", {**conf, "prevResult": result}, pod).silent()

    @pytest.mark.parametrize("version", ["0.1.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    def test_cnitool(self, cluster: Cluster, peers: Path, version: str) -> None:
        node, pod = cluster.nodes[0], cluster.nodes[0].pod()
        plugin = {key: value for key, value in cluster.conf("vxlan").items() if key not in ("name", "cniVersion")}
        folder = node.path("/etc/cni/net.d")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "10.conflist").write_text(json.dumps({"cniVersion": version, "name": "pods", "plugins": [plugin]}))
        env = {"PATH": "/usr/sbin:/usr/bin", "CNI_PATH": str(node.way.bin_dir), "NETCONFPATH": "/etc/cni/net.d"}
        node.prepare()

        for command in ("add", *(["check"] if version >= "0.4.0" else []), "del"):
            answer = node.attempt(str(peers / "cnitool"), command, "pods", pod.path, env=env)
            assert answer.ok, (command, answer)
            node.answered += 1
            if command == "add":
                assert address(pod, V4) == "10.244.1.2"
        assert node.leases("pods") == {}


def global_addresses(node: Node, link: str) -> list[str]:
    found = node.ip("addr", "show", "dev", link)[0]["addr_info"]
    return [f"{one['local']}/{one['prefixlen']}" for one in found if one["scope"] == "global"]


def routes_of(found: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Destination, gateway and scope, without link-local ones."""
    return sorted(
        (route["dst"], route.get("gateway", ""), str(route.get("scope", "")))
        for route in found
        if not route["dst"].startswith("fe80:")
    )


class TestMasquerade:
    """One rule for a node's range: the cluster sees the pod, the outside the node, and an exception the pod."""

    @pytest.mark.parametrize("attachment", ["routed", "bridged"])
    @pytest.mark.parametrize("family", BOTH)
    def test_who_sees_which_address(self, way: Way, family: int, attachment: str) -> None:
        with Cluster(way, underlay=BOTH, pods=BOTH) as cluster:
            conf = cluster.conf("vxlan", attachment=attachment, ipMasq=True)
            (pod,) = cluster.attach(conf, 1)
            outside = Outside(pod.node)
            with pod.socket(family) as sender:
                assert outside.source_of(sender) == outside.node_address(family)

            network = "192.0.2.0/24" if family == V4 else "2001:db8:ffff::/64"
            (other,) = cluster.attach({**conf, "nonMasqueradeCIDRs": [network]}, 1)

            with pod.socket(family) as first, other.socket(family) as second:
                assert outside.source_of(first) == address(pod, family), "for pods that were there before, too"
                assert outside.source_of(second) == address(other, family)

    def test_no_element_per_pod_and_healed_when_flushed(self, cluster: Cluster) -> None:
        conf, node = cluster.conf("vxlan", ipMasq=True), cluster.nodes[0]
        cluster.attach(conf, 1)
        before = node.nft()
        cluster.attach(conf, 1, 1)
        assert node.nft() == before
        node.run("nft", "flush", "ruleset")

        cluster.attach(conf, 1)

        assert node.nft() == before
        assert masqueraded(node) == ["10.244.1.0/24", "10.244.0.0/16 cnikit.1", "10.244.0.0/16 cnik6.1"]
        assert [item for item in before if "set" in item] == []

    def test_switched_off_again(self, cluster: Cluster) -> None:
        conf, node = cluster.conf("vxlan", ipMasq=True), cluster.nodes[0]
        cluster.attach(conf, 1)

        cluster.attach({**conf, "ipMasq": False}, 1)

        assert [item for item in node.nft() if "rule" in item] == []


class TestSubnetFile:
    """Without `peers` the node's subnet comes from a file, as flanneld or the agent writes it."""

    def test_flannels_file_serves(self, cluster: Cluster) -> None:
        node = cluster.nodes[0]
        write_subnet_file(node, **FLANNEL | {"FLANNEL_MTU": "1400"})
        pod = node.pod()

        result = add(pod, FILE_CONF)

        assert result["ips"][0]["address"] == "10.244.1.2/24"
        assert node.links()["cnikit.1"]["mtu"] == pod.ip("link", "show", "eth0")[0]["mtu"] == 1400

    def test_beside_flanneld(self, cluster: Cluster) -> None:
        """Its device, which has the network's VNI and port, and what leads to the other node are its own affair."""
        addresses = ("198.18.0.1", "198.18.0.2")
        for node, local, subnet in zip(cluster.nodes, addresses, ("10.244.1", "10.244.2"), strict=True):
            device = ("flannel.1", "type", "vxlan", "id", "1", "local", local, "dev", "eth0", "dstport", "8472")
            node.run("ip", "link", "add", *device, "nolearning")
            node.run("ip", "addr", "add", f"{subnet}.0/32", "dev", "flannel.1")
            node.run("ip", "link", "set", "flannel.1", "addrgenmode", "none")  # nothing that becomes usable later
            node.run("ip", "link", "set", "flannel.1", "mtu", "1450", "up")
            write_subnet_file(node, **FLANNEL | {"FLANNEL_SUBNET": f"{subnet}.1/24"})
        for node, other, local, subnet in zip(
            cluster.nodes, reversed(cluster.nodes), reversed(addresses), ("10.244.2", "10.244.1"), strict=True
        ):
            mac = other.links()["flannel.1"]["address"]
            node.run("ip", "route", "add", f"{subnet}.0/24", "via", f"{subnet}.0", "dev", "flannel.1", "onlink")
            node.run("ip", "neigh", "add", f"{subnet}.0", "lladdr", mac, "dev", "flannel.1")
            node.run("bridge", "fdb", "add", mac, "dev", "flannel.1", "dst", local)
        node = cluster.nodes[0]
        before = (node.ip("route"), node.ip("addr", "show", "flannel.1"))
        conf = {**FILE_CONF, "ipMasq": True}
        node.call("vxlan", "STATUS", conf).silent()

        one, two = (node.pod() for node in cluster.nodes)
        result = add(one, conf)
        add(two, conf)

        assert "cnikit.1" not in node.links()
        assert "10.244.0.0/16 flannel.1" in masqueraded(node)
        assert one.ip("link", "show", "eth0")[0]["mtu"] == 1450
        assert ping(one, address(two, V4)).ok
        node.call("vxlan", "CHECK", {**conf, "prevResult": result}, one).silent()
        delete(one, conf)
        assert (node.ip("route"), node.ip("addr", "show", "flannel.1")) == before

    def test_status_tells_what_is_missing(self, cluster: Cluster) -> None:
        node = cluster.nodes[0]
        missing = node.call("vxlan", "STATUS", FILE_CONF).error
        write_subnet_file(node, FLANNEL_NETWORK="10.244.0.0/16")
        empty = node.call("vxlan", "STATUS", FILE_CONF).error
        refused = node.call("vxlan", "ADD", FILE_CONF, node.pod()).error
        write_subnet_file(node, **FLANNEL)

        node.call("vxlan", "STATUS", FILE_CONF).silent()

        assert missing["code"] == empty["code"] == 50
        assert "/run/cnikit/subnets/pods.env: No such file" in missing["msg"]
        assert "neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET" in empty["msg"]
        assert refused["code"] == 11
        assert "cnikit.1" not in node.links(), "STATUS changes nothing"

    @pytest.mark.parametrize("attachment", ["routed", "bridged"])
    def test_a_subnet_that_changes_under_running_pods(self, cluster: Cluster, attachment: str) -> None:
        node, conf = cluster.nodes[0], {**FILE_CONF, "attachment": attachment, "ipMasq": True}
        outside = Outside(node)
        write_subnet_file(node, **FLANNEL)
        old = node.pod()
        result = add(old, conf)
        node.call("vxlan", "CHECK", {**conf, "prevResult": result}, old).silent()

        write_subnet_file(node, **FLANNEL | {"FLANNEL_SUBNET": "10.244.9.1/24"})
        told = node.call("vxlan", "CHECK", {**conf, "prevResult": result}, old).error
        new = node.pod()
        added = add(new, conf)

        assert "10.244.1.2: expected an address of this node's subnets (10.244.9.0/24)" in told["msg"]
        assert added["ips"][0]["address"] == "10.244.9.2/24"
        assert [a["local"] for a in node.ip("addr", "show", "cnikit.1")[0]["addr_info"] if a["scope"] == "global"] == [
            "10.244.9.0"
        ]
        assert ping(old, "10.244.9.2").ok, "what runs goes on on its node"
        for pod in (old, new):
            with pod.socket(V4) as sender:
                assert outside.source_of(sender) == Outside.NODE4, "and is masqueraded"
        node.call("vxlan", "CHECK", {**conf, "prevResult": added}, new).silent()
        delete(old, conf)
        assert ranges(node) == {"10.244.1.0/24", "10.244.9.0/24"}
        add(node.pod(), conf)
        assert ranges(node) == {"10.244.9.0/24"}, "nobody has an address of the old one any more"


class TestDevice:
    """The VXLAN device is ours by its label; what is somebody else's is told and stays."""

    def test_what_it_is(self, way: Way) -> None:
        with Cluster(way, underlay=BOTH, pods=BOTH) as cluster:
            (pod,) = cluster.attach(cluster.conf("vxlan", vni=7, port=4789, gbp=True), 1)
            links = pod.node.links()

        for name, local in (("cnikit.7", ("local", "198.18.0.1")), ("cnik6.7", ("local6", "2001:db8::1"))):
            data = links[name]["linkinfo"]["info_data"]
            assert (data["id"], data["port"], data["learning"], data["gbp"]) == (7, 4789, False, True)
            assert data[local[0]] == local[1]
            assert data["link"] == "eth0"
            assert links[name]["ifalias"] == "cnikit pods"

    def test_ours_is_put_right(self, cluster: Cluster) -> None:
        conf = cluster.conf("vxlan")
        one, two = cluster.attach(conf)
        node = one.node
        before = node.links()["cnikit.1"]
        node.run("ip", "link", "add", "foreign", "type", "bridge")
        node.run("ip", "link", "set", "cnikit.1", "down", "address", "02:00:00:00:00:99", "mtu", "1300")
        node.run("ip", "addr", "flush", "dev", "cnikit.1")

        (again,) = cluster.attach(conf, 1)

        after = node.links()["cnikit.1"]
        assert [after[key] for key in ("address", "mtu", "ifindex")] == [
            before[key] for key in ("address", "mtu", "ifindex")
        ]
        assert ping(again, address(two, V4)).ok
        for damage in (
            ("del", "cnikit.1"),
            ("set", "cnikit.1", "down", "name", "other"),
            ("set", "cnikit.1", "master", "foreign"),
        ):
            node.run("ip", "link", *damage)
            cluster.attach(conf, 1)
            assert ping(again, address(two, V4)).ok, damage
        assert "other" not in node.links()

    @pytest.mark.parametrize("other", [{"vni": 9}, {"type": "host-gw"}], ids=str)
    def test_ours_goes_when_the_network_has_another(self, cluster: Cluster, other: dict[str, Any]) -> None:
        conf = cluster.conf("vxlan")
        cluster.attach(conf)
        foreign = ("ip", "link", "add", "flannel.5", "type", "vxlan", "id", "5", "dstport", "8472", "dev", "eth0")
        cluster.nodes[0].run(*foreign)

        one, two = cluster.attach({**conf, **other})

        devices = [link["ifname"] for link in one.node.ip("-d", "link", "show", "type", "vxlan")]
        assert sorted(devices) == ["cnikit.9", "flannel.5"][not other.get("vni") :]
        assert ping(one, address(two, V4)).ok

    def test_a_driver_that_breaks_checksums_is_relieved_of_them(self, cluster: Cluster) -> None:
        """No such hardware is here, so the driver's name is put where the kernel would show it."""
        one, two = cluster.nodes
        one.run("mount", "-t", "tmpfs", "none", "/sys/class/net")
        one.run("mkdir", "-p", "/sys/class/net/eth0/device")
        one.run("ln", "-s", "/sys/bus/pci/drivers/vmxnet3", "/sys/class/net/eth0/device/driver")

        cluster.attach(cluster.conf("vxlan"))

        states = [node.run("ethtool", "-k", "cnikit.1") for node in (one, two)]
        assert ["tx-checksumming: on" in state for state in states] == [False, True]

    def test_ours_is_made_anew_for_another_port(self, cluster: Cluster) -> None:
        cluster.attach(cluster.conf("vxlan"))

        one, two = cluster.attach(cluster.conf("vxlan", port=4789))

        assert one.node.links()["cnikit.1"]["linkinfo"]["info_data"]["port"] == 4789
        assert ping(one, address(two, V4)).ok

    @pytest.mark.parametrize(
        ("made", "found"),
        [
            (("name", "cnikit.1", "type", "vxlan", "id", "9", "dstport", "8472", "local", "198.18.0.1", "dev", "eth0", "nolearning"), "VNI 9"),
            (("name", "cnikit.1", "type", "vxlan", "id", "1", "dstport", "4789", "local", "198.18.0.1", "dev", "eth0", "nolearning"), "UDP port 4789"),
            (("name", "cnikit.1", "type", "vxlan", "id", "1", "dstport", "8472", "local", "198.18.0.9", "dev", "eth0", "nolearning"), "198.18.0.9"),
            (("name", "cnikit.1", "type", "bridge"), "a bridge interface"),
            (("name", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472", "local", "198.18.0.1", "dev", "eth0"), "flannel.1"),
        ],
    )  # fmt: skip
    def test_somebody_elses_is_told_and_stays(self, cluster: Cluster, made: tuple[str, ...], found: str) -> None:
        node, conf = cluster.nodes[0], cluster.conf("vxlan")
        node.run("ip", "link", "add", *made)
        pod = node.pod()
        before = node.snapshot()

        status = node.call("vxlan", "STATUS", conf).error
        refused = node.call("vxlan", "ADD", conf, pod).error

        assert status["code"] == 50
        assert found in status["msg"]
        assert found in refused["msg"]
        assert refused["details"]
        assert node.snapshot() == before

    @pytest.mark.parametrize(
        "made",
        [
            (("id", "2", "dstport", "8472", "local", "198.18.0.1", "gbp"), "with gbp"),
            (("id", "2", "dstport", "8472", "local", "198.18.0.1", "udp6zerocsumrx"), "with udp6zerocsumrx"),
            (("external", "dstport", "8472"), "with external"),
        ],
        ids=lambda made: made[1],
    )
    def test_a_port_is_shared_only_by_devices_of_one_kind(self, cluster: Cluster, made: tuple[Any, str]) -> None:
        node, conf = cluster.nodes[0], cluster.conf("vxlan")
        node.run("ip", "link", "add", "other", "type", "vxlan", *made[0])
        node.run("ip", "link", "set", "other", "up")
        pod = node.pod()
        before = node.snapshot()

        for error in (node.call("vxlan", "STATUS", conf).error, node.call("vxlan", "ADD", conf, pod).error):
            assert error["code"] == 50
            assert (
                f"UDP port 8472: expected only VXLAN devices without extensions, as cnikit.1 is to be, found other {made[1]}"
                in error["msg"]
            )
            assert "choose another `port`" in error["details"]
        assert node.snapshot() == before

    def test_two_networks_on_one_port_with_and_without_gbp(self, cluster: Cluster) -> None:
        node, conf = cluster.nodes[0], cluster.conf("vxlan")
        cluster.attach(conf, 1)
        peers = [{**peer, "subnets": [f"10.9.{number}.0/24"]} for number, peer in enumerate(conf["peers"])]
        other = {**conf, "name": "other", "vni": 2, "gbp": True, "network": "10.9.0.0/16", "peers": peers}
        pod = node.pod()
        before = node.snapshot()

        error = node.call("vxlan", "ADD", other, pod).error

        assert (error["code"], "as cnikit.2 is to be, found cnikit.1 without extensions" in error["msg"]) == (50, True)
        assert node.snapshot() == before
        add(pod, {**other, "port": 8473})
        changed = node.call("vxlan", "ADD", {**other, "gbp": False}, node.pod())
        assert changed.ok, "of its own device the other extension is no hindrance"
        before = node.snapshot()
        error = node.call("vxlan", "ADD", {**other, "gbp": True}, node.pod()).error
        assert "found cnikit.1 without extensions" in error["msg"]
        assert node.snapshot() == before, "and what there was still serves"
        node.run("ip", "link", "del", "cnikit.2")
        add(node.pod(), {**conf, "vni": 3, "gbp": True})
        assert "cnikit.1" not in node.links(), "the network's own former device yields"

    def test_a_port_that_another_program_has(self, cluster: Cluster) -> None:
        node, conf = cluster.nodes[0], cluster.conf("vxlan")
        pod = node.pod()
        before = node.snapshot()
        with node.socket(V4) as socket_:
            socket_.bind(("", 8472))

            error = node.call("vxlan", "ADD", conf, pod).error

        assert (error["code"], "UDP port 8472: expected it free for cnikit.1" in error["msg"]) == (50, True)
        assert node.snapshot() == before

    def test_check_tells_what_is_wrong(self, cluster: Cluster) -> None:
        node, conf = cluster.nodes[0], cluster.conf("vxlan", ipMasq=True)
        pod = node.pod()
        result = add(pod, conf)
        checked = {**conf, "prevResult": result}
        node.call("vxlan", "CHECK", checked, pod).silent()

        for damage, told in (
            (("ip", "link", "set", "cnikit.1", "down"), "cnikit.1: expected it up, found it down"),
            (("ip", "link", "del", "cnikit.1"), "expected the network's VXLAN device, found none"),
            (
                ("ip", "link", "set", "cnikit.1", "alias", "x"),
                "cnikit.1: expected label 'cnikit pods', found label 'x'",
            ),
            (
                ("ip", "addr", "add", "10.244.1.77/32", "dev", "cnikit.1"),
                "expected no other address, found 10.244.1.77/32",
            ),
            (("ip", "-n", pod.name, "route", "del", "10.244.1.1"), "the pod's routes: expected 10.244.1.1/32 dev eth0"),
            (("ip", "route", "flush", "scope", "link", "proto", "boot"), "the node's routes: expected 10.244.1."),
            (("nft", "flush", "ruleset"), "expected a rule for 10.244.1.0/24"),
            (("ip", "route", "del", "10.244.2.0/24", "proto", "205"), "10.244.2.0/24"),
            (("ip", "neigh", "del", "10.244.2.0", "dev", "cnikit.1"), "10.244.2.0"),
            (("ip", "nexthop", "flush", "proto", "205"), "nexthop"),
            (("sysctl", "-qw", "net.ipv4.ip_forward=0"), "expected net.ipv4.conf.all.forwarding 1, found 0"),
        ):
            node.run(*damage)
            error = node.call("vxlan", "CHECK", checked, pod).error
            assert (error["code"], told in error["msg"]) == (999, True), error
            node.call("vxlan", "DEL", conf, pod).silent()
            checked["prevResult"] = add(pod, conf)
            node.call("vxlan", "CHECK", checked, pod).silent()


def spoiled(cluster: Cluster, **node2: Any) -> dict[str, Any]:
    """A configuration with something else about node 2."""
    conf = cluster.conf("vxlan")
    conf["peers"][1] |= node2
    return conf


class TestBadInput:
    """A clear error, and nothing is made."""

    @pytest.mark.parametrize(
        ("node2", "options", "code", "told"),
        [
            ({"subnets": ["10.244.1.128/25"]}, {}, 7, "which overlaps 10.244.1.0/24 of node1"),
            ({"publicIP": "198.18.0.1"}, {}, 7, "found 198.18.0.1, which is node1's"),
            ({"subnets": ["10.9.0.0/24"]}, {}, 7, "inside the network (10.244.0.0/16), found 10.9.0.0/24"),
            ({"subnets": ["10.244.2.1/24"]}, {}, 7, "peers[1].subnets[0]: expected the network's own address, 10.244.2.0/24"),
            ({"name": "node1"}, {}, 7, "a name that no other node has"),
            ({"vtepMAC": "ff:ff:ff:ff:ff:ff"}, {}, 7, "peers[1].vtepMAC: expected a unicast MAC address"),
            ({"publicIP": "2001:db8::2"}, {}, 7, "peers[1].publicIP: expected an IPv4 address"),
            ({}, {"vni": 0}, 7, "vni: expected an integer from 1 to 16777215, found 0"),
            ({}, {"vni": 1 << 24}, 7, "vni: expected an integer from 1 to 16777215"),
            ({}, {"port": 70000}, 7, "port: expected an integer from 1 to 65535"),
            ({}, {"attachment": "tunnel"}, 7, 'attachment: expected "routed" or "bridged"'),
            ({}, {"mtu": 1500}, 7, "mtu: expected at most 1450, because eth0 has MTU 1500, found 1500"),
            ({}, {"network": "10.244.0.1/16"}, 7, "network: expected the network's own address, 10.244.0.0/16"),
            ({}, {"ipMasqBackend": "iptables"}, 7, "ipMasqBackend"),
            ({}, {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}]]}}, 7, "ipam.ranges: expected none"),
            ({}, {"runtimeConfig": {"ipRanges": [[{"subnet": "10.77.0.0/24"}]]}}, 7, "runtimeConfig.ipRanges: expected none"),
            ({}, {"nodeName": "node9"}, 50, "nodeName: expected the name of a peer"),
            ({}, {"nodeName": "node2"}, 7, "peer node1: expected an address of another host, found 198.18.0.1"),
        ],
    )  # fmt: skip
    def test_is_refused(
        self, cluster: Cluster, node2: dict[str, Any], options: dict[str, Any], code: int, told: str
    ) -> None:
        node, conf = cluster.nodes[0], {**spoiled(cluster, **node2), **options}
        pod = node.pod()
        before = node.snapshot()

        refused = node.call("vxlan", "ADD", conf, pod).error

        assert refused["code"] == code
        assert told in refused["msg"]
        node.call("vxlan", "DEL", conf, pod).silent()
        assert node.snapshot() == before

    def test_add_in_a_second_namespace_is_refused_and_the_pod_lives_on(self, cluster: Cluster) -> None:
        node, conf = cluster.nodes[0], cluster.conf("vxlan")
        one, two = cluster.attach(conf)
        before = node.snapshot()

        again = {"CNI_NETNS": node.pod().path}
        error = node.call("vxlan", "ADD", conf, one, env=again).error

        assert f"container {one.container_id} is attached as eth0 already" in error["msg"]
        assert node.snapshot() == before
        assert ping(one, address(two, V4)).ok

    def test_a_node_that_is_no_peer(self, cluster: Cluster) -> None:
        node, conf = cluster.nodes[0], cluster.conf("vxlan")
        del conf["peers"][0]

        status = node.call("vxlan", "STATUS", conf).error

        assert status["code"] == 50
        assert "expected one with an address of this host (198.18.0.1), found none" in status["msg"]

    def test_a_foreign_route_is_told_and_stays(self, cluster: Cluster) -> None:
        node, conf = cluster.nodes[0], cluster.conf("vxlan")
        node.run("ip", "route", "add", "10.244.2.0/24", "via", "198.18.0.77")

        answer = node.call("vxlan", "ADD", conf, node.pod())

        assert answer.ok
        assert "10.244.2.0/24" in answer.stderr
        assert [r["gateway"] for r in node.ip("route", "show", "10.244.2.0/24")] == ["198.18.0.77"]

    def test_a_peer_that_nobody_can_reach_costs_no_other(self, cluster: Cluster) -> None:
        node, conf = cluster.nodes[0], cluster.conf("host-gw")
        conf["peers"].append({**cluster.peer(3), "publicIP": "198.18.0.255"})  # the link's broadcast address

        answer = node.call("host-gw", "ADD", conf, node.pod())

        assert answer.ok
        assert "node3: 10.244.3.0/24 is unreachable" in answer.stderr
        assert [r["dst"] for r in node.ip("route") if r.get("protocol") == "205"] == ["10.244.2.0/24"]

    @pytest.mark.parametrize(("backend", "options"), [("host-gw", {}), ("vxlan", {"directRouting": True})])
    def test_status_with_the_underlay_down(self, cluster: Cluster, backend: str, options: dict[str, Any]) -> None:
        node, conf = cluster.nodes[0], cluster.conf(backend, **options)
        node.run("ip", "link", "set", "eth0", "down")

        status = node.call(backend, "STATUS", conf).error

        assert (status["code"], "eth0: expected the link to the other nodes up" in status["msg"]) == (50, True)
        assert not node.call(backend, "ADD", conf, node.pod()).ok

    def test_status_with_another_networks_gateway(self, cluster: Cluster) -> None:
        node, conf = cluster.nodes[0], cluster.conf("vxlan", attachment="bridged")
        node.run("ip", "link", "add", "cni0", "type", "bridge")
        node.run("ip", "addr", "add", "10.9.0.1/24", "dev", "cni0")

        status = node.call("vxlan", "STATUS", conf).error

        assert (status["code"], '"cni0" already has an IP address' in status["msg"]) == (50, True)
        assert not node.call("vxlan", "ADD", conf, node.pod()).ok

    def test_a_peer_that_is_gone_is_withdrawn(self, cluster: Cluster) -> None:
        conf = cluster.conf("vxlan")
        cluster.attach(conf, 1)
        node = cluster.nodes[0]
        smaller = {**conf, "peers": conf["peers"][:1]}

        cluster.attach(smaller, 1)

        assert [r for r in node.ip("route") if r.get("protocol") == "205"] == []
        assert [
            n for n in node.ip("neigh", "show", "nud", "permanent", "dev", "cnikit.1") if n["dst"].startswith("10.")
        ] == []
        assert [e for e in node.bridge("fdb", "show", "dev", "cnikit.1") if "dst" in e] == []
        wait_until(lambda: node.ip("nexthop") == [], "nexthops are gone")
