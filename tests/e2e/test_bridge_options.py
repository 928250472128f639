"""What each option of `bridge` does, against the executables.

Rows and tests marked `ours` are those where the reference is known to do otherwise.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.e2e.bridge_world import add, address, delete, dual, host_end, ours
from tests.e2e.world import DUAL_STACK, Node, Pod, datagram, network, wait_same


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
