"""Pods whose packets somebody else's firewall drops in the forward hook: iptables of both kinds, where accepts go among
what is there, and nftables tables, where none help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.e2e.cluster_world import SOON, ClusterNode, member
from tests.e2e.underlay import V4, V6, Cluster, add, address, ping
from tests.e2e.world import Node, Way, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.agent_world import AgentWay

BOTH = (V4, V6)
RANGES = {"iptables": "10.244.0.0/16", "ip6tables": "fd00:244::/48"}
# What Docker has made and somebody has put in, and where the two accepts are to be.
DOCKER = """\
*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -i docker0 -j ACCEPT
-A DOCKER-USER -p tcp -m tcp --dport 23 -m comment --comment "no \\"telnet\\"" -j DROP
-A DOCKER-USER -j RETURN
COMMIT
"""
IN_DOCKER = ["-A DOCKER-USER -p tcp", "accept", "accept", "-A DOCKER-USER -j RETURN"]
# As ufw refuses, and as old Red Hats do.
UFW = """\
*filter
:FORWARD ACCEPT [0:0]
:refuse - [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -j refuse
-A refuse -j REJECT
COMMIT
"""
IN_UFW = ["-A FORWARD -m conntrack", "accept", "accept", "-A FORWARD -j refuse"]
PLAIN = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"


class Case(NamedTuple):
    backend: str
    kind: str
    script: str
    expected: list[str]

    def __str__(self) -> str:
        return f"{self.backend}-{self.kind}"


CASES = [
    Case("vxlan", "nft", DOCKER, IN_DOCKER),
    Case("host-gw", "legacy", DOCKER, IN_DOCKER),
    Case("host-gw", "nft", UFW, IN_UFW),
    Case("vxlan", "legacy", UFW, IN_UFW),
]


def restore(node: Node, kind: str, script: str) -> None:
    for program in RANGES:
        node.run(f"{program}-{kind}-restore", stdin=script.encode())


def rules(node: Node, kind: str, program: str) -> list[str]:
    """Those of the filter table, as their owner's program lists them."""
    lines = node.run(f"{program}-{kind}-save", "-t", "filter").splitlines()
    assert not [line for line in lines if "incompatible" in line]
    return [line for line in lines if line.startswith("-A")]


def accepts(node: Node, kind: str) -> list[str]:
    return [line for program in RANGES for line in rules(node, kind, program) if '"cnikit pods ' in line]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pods_reach_each_other_where_iptables_drops(way: Way, case: Case) -> None:
    with Cluster(way, underlay=BOTH, pods=BOTH) as cluster:
        for node in cluster.nodes:
            restore(node, case.kind, case.script)
        conf = cluster.conf(case.backend, ipMasq=True)
        one, two = cluster.attach(conf)
        node = cluster.nodes[0]

        assert all(ping(one, address(two, family)).ok for family in BOTH)
        for program, network in RANGES.items():
            chain = case.expected[0].split()[1]
            found = [line for line in rules(node, case.kind, program) if line.startswith(f"-A {chain} ")]
            wanted = list(case.expected)
            for way_, option in (("from", "-s"), ("to", "-d")):
                comment = f'-m comment --comment "cnikit pods {way_} {network}" -j ACCEPT'
                wanted[wanted.index("accept")] = f"-A {chain} {option} {network} {comment}"
            assert all(map(str.startswith, found, wanted)), found
            assert len(found) == len(wanted)
        for program in RANGES:  # as its owner saves and restores them, which writes the comments in another way
            saved = node.run(f"{program}-{case.kind}-save", "-t", "filter")
            node.run(f"{program}-{case.kind}-restore", stdin=saved.encode())
        before = accepts(node, case.kind)
        node.run("nft", "flush", "table", "inet", "cnikit")
        add(node.pod(), conf)
        assert accepts(node, case.kind) == before

        add(node.pod(), {**conf, "forwardAccept": False})
        assert accepts(node, case.kind) == []


@pytest.mark.parametrize("kind", ["nft", "legacy"])
@pytest.mark.parametrize("option", ["-i", "-o"])
def test_a_drop_by_the_device_that_comes_later_is_named_and_how_to_accept_the_pods(
    way: Way, kind: str, option: str
) -> None:
    with Cluster(way) as cluster:
        node, conf = cluster.nodes[0], cluster.conf("vxlan", ipMasq=True)
        one, two = cluster.attach(conf)
        result: dict[str, Any] = add(other := node.pod(), conf)
        node.run(f"iptables-{kind}", "-A", "FORWARD", option, "cnikit.1", "-j", "DROP")
        assert not ping(one, address(two, V4)).ok

        status = node.call("vxlan", "STATUS", conf).error
        check = node.call("vxlan", "CHECK", {**conf, "prevResult": result}, other).error

        assert (status["code"], check["code"]) == (50, 999)
        table = "iptables" if kind == "nft" else "iptables (legacy)"
        text = f"expected accepts for the pods in {table}, found its FORWARD chain (rule 1) to drop them"
        assert all(text in error["msg"] for error in (status, check)), (status, check)
        for command in status["details"].partition("without it: ")[2].split("; "):
            assert command.split(" ")[0] == {"nft": "iptables", "legacy": "iptables-legacy"}[kind]
            node.run(*command.replace("iptables ", "iptables-nft ").split(" "))
        node.call("vxlan", "STATUS", conf).silent()
        node.call("vxlan", "CHECK", {**conf, "prevResult": result}, other).silent()
        assert ping(one, address(two, V4)).ok


def test_nothing_is_put_where_nothing_drops(way: Way) -> None:
    with Cluster(way, 1) as cluster:
        node = cluster.nodes[0]
        script = DOCKER.replace(":FORWARD DROP", ":FORWARD ACCEPT")
        restore(node, "nft", script)

        cluster.attach(cluster.conf("vxlan", ipMasq=True))

        assert accepts(node, "nft") == []


def test_legacy_iptables_without_its_programs_is_reported(bin_dir: Path) -> None:
    with Cluster(Way("one-shot", bin_dir), 1) as cluster:
        node = cluster.nodes[0]
        node.run("iptables-legacy", "-P", "FORWARD", "DROP")
        node.run("mount", "--bind", "/dev/null", "/usr/sbin/iptables-legacy-save")

        answer = node.call("vxlan", "ADD", cluster.conf("vxlan", ipMasq=True), node.pod())

        assert answer.ok
        assert "expected iptables-legacy-save to look at it, found none" in answer.stderr


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_the_agent_follows_what_others_do(agent_way: AgentWay, kind: str) -> None:
    with ClusterNode(agent_way, "vxlan", [member(1), member(2)], ipMasq=True) as world:
        agent = world.start()
        world.wait_for_routes(2)
        node = world.node

        restore(node, kind, PLAIN)
        wait_until(lambda: len(accepts(node, kind)) == 4, "accepts are there", SOON)
        restore(node, kind, DOCKER)
        wait_until(lambda: len(accepts(node, kind)) == 4, "they are there again after a flush", SOON)
        assert all("-A DOCKER-USER " in line for line in accepts(node, kind))
        for program in RANGES:
            node.run(f"{program}-{kind}", "-P", "FORWARD", "ACCEPT")
        wait_until(lambda: accepts(node, kind) == [], "nothing is needed any more", SOON)
        assert "accepts of network pods put into DOCKER-USER" in agent.log()


FOREIGN = """\
table inet wall {
    chain out {
        type filter hook forward priority 10; policy drop
        ct state established accept
        %s
    }
}
"""


class TestTablesOfOthers:
    """A drop there is final, so it is named, by each who can be asked."""

    def test_a_drop_is_named(self, way: Way) -> None:
        with Cluster(way) as cluster:
            node, conf = cluster.nodes[0], cluster.conf("host-gw", ipMasq=True)
            (pod,) = cluster.attach(conf, 1)
            result: dict[str, Any] = add(other := node.pod(), conf)
            node.call("host-gw", "STATUS", conf).silent()
            node.run("nft", FOREIGN % "")

            status = node.call("host-gw", "STATUS", conf).error
            check = node.call("host-gw", "CHECK", {**conf, "prevResult": result}, other).error

            assert (status["code"], check["code"]) == (50, 999)
            for error in (status, check):
                assert "dropped by nftables chain inet wall out (its policy)" in error["msg"]
                assert "nft insert rule inet wall out ip saddr 10.244.0.0/16 accept" in error["details"]
            node.call("host-gw", "STATUS", {**conf, "forwardAccept": False}).silent()
            for command in status["details"].partition(": ")[2].split("; ")[:2]:
                node.run(*command.split(" "))
            node.call("host-gw", "STATUS", conf).silent()
            node.call("host-gw", "CHECK", {**conf, "prevResult": result}, other).silent()
            add(cluster.nodes[1].pod(), conf)
            assert ping(pod, address(other, V4)).ok

    def test_the_agent_names_it_and_says_when_it_is_over(self, agent_way: AgentWay) -> None:
        with ClusterNode(agent_way, "vxlan", [member(1), member(2)], ipMasq=True) as world:
            agent = world.start()
            world.wait_for_routes(2)
            world.node.run("nft", FOREIGN % "")
            wait_until(lambda: "dropped by nftables chain inet wall out" in agent.log(), "it is named", SOON)
            assert world.metric("cnikit_cluster_trouble") == 1
            world.node.run("nft", "delete", "table", "inet", "wall")
            wait_until(lambda: "forwarding: all is well again" in agent.log(), "it is over", SOON)


@pytest.fixture(scope="module")
def walled(bin_dir: Path) -> Iterator[Cluster]:
    """A node for many rulesets of others, which go again."""
    with Cluster(Way("one-shot", bin_dir), 1) as cluster:
        cluster.attach(cluster.conf("vxlan", ipMasq=True))
        yield cluster


@pytest.mark.parametrize(
    ("rule", "is_dropped"),
    [
        ("ip saddr 10.0.0.0/8 accept; ip daddr 10.0.0.0/8 accept", False),
        ("iifname cnikit.1 accept; oifname cnikit.1 accept", False),
        ("iifname cnikit.1 accept", True),
        ("iifname docker0 oifname != docker0 accept", True),
        ("tcp dport 22 accept", True),
        ("ip saddr 10.244.0.0/16 ct state new accept", False),
        ("ip saddr { 10.244.0.0/16, 10.1.0.0/16 } accept", False),
        ("iifname lo accept; accept", False),
        ("accept; iifname cnikit.1 drop", False),
        ("iifname cnikit.1 drop; accept", True),
        ("oifname cnikit.1 drop; accept", True),
        ('oifname "veth*" drop; accept', True),
        ("iifname { cnikit.1, docker0 } drop; accept", False),  # what a set holds is not asked
        ("iifname cnik6.1 drop; iifname eth0 drop; accept", False),
    ],
)
def test_own_rules_for_the_pods_are_believed(walled: Cluster, rule: str, *, is_dropped: bool) -> None:
    node, conf = walled.nodes[0], walled.conf("vxlan", ipMasq=True)
    node.run("nft", FOREIGN % rule)
    try:
        assert node.call("vxlan", "STATUS", conf).ok is not is_dropped
    finally:
        node.run("nft", "delete", "table", "inet", "wall")
