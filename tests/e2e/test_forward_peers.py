"""Docker and ufw themselves, each in a node of its own: what they drop, pods get through all the same."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.cluster_world import SOON, ClusterNode, member
from tests.e2e.test_forward_accept import accepts, rules
from tests.e2e.test_pod_network import converse
from tests.e2e.underlay import V4, V6, Cluster, add
from tests.e2e.world import GENEROUS, SEARCH_PATH, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.agent_world import AgentWay
    from tests.e2e.world import Node, Way

BOTH = (V4, V6)
ALL = 100_000


class Docker:
    """Docker's daemon without a container. It keeps DOCKER-USER, and drops IPv4 only."""

    families = (V4,)
    chain = "DOCKER-USER"

    def __init__(self, node: Node, debian: Path) -> None:
        self._node = node
        self._path = f"{debian}/usr/sbin:{debian}/usr/bin:{SEARCH_PATH}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self._node.path("/run/dockerd.log")
        with log.open("ab") as out:
            self._process = self._node.spawn(
                "dockerd", "--data-root", "/run/docker-data", "--exec-root", "/run/docker", "--pidfile", "/run/docker.pid",
                "-H", "unix:///run/docker.sock", "--storage-driver", "vfs",
                env={"PATH": self._path}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        process = self._process

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text()[-3000:]
            return "API listen on /run/docker.sock" in log.read_text()

        wait_until(is_ready, "Docker answers", GENEROUS)
        wait_until(lambda: "-A FORWARD -j DOCKER-USER" in rules(self._node, "nft", "iptables"), "its chains", GENEROUS)

    def again(self) -> None:
        self.stop()
        self._node.path("/run/dockerd.log").unlink()
        self.start()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(GENEROUS)


class Ufw:
    """ufw as `ufw enable` leaves it: routed packets are dropped, in both families."""

    families = BOTH
    chain = "FORWARD"

    def __init__(self, node: Node, debian: Path) -> None:
        self._node = node
        root = node.path("/run/ufw")
        shutil.copytree(debian / "etc", root / "etc")
        shutil.copytree(debian / "lib" / "ufw", root / "lib" / "ufw")
        shutil.copytree(debian / "usr" / "share" / "ufw", root / "usr" / "share" / "ufw")
        for rules_ in (root / "usr" / "share" / "ufw" / "iptables").glob("*.rules"):  # as its package's postinst does
            shutil.copy(rules_, root / "etc" / "ufw")
        for name in ("before.rules", "before6.rules", "after.rules", "after6.rules", "ufw.conf"):
            file = root / "usr" / "share" / "ufw" / name
            if file.exists():
                shutil.copy(file, root / "etc" / "ufw")
        self._argv = ("/usr/bin/python3", f"{debian}/usr/sbin/ufw", "--rootdir=/run/ufw", "--datadir=/run/ufw")
        self._environ = {"PATH": SEARCH_PATH, "PYTHONPATH": f"{debian}/usr/lib/python3/dist-packages"}

    def start(self) -> None:
        self._node.run(
            *self._argv, "allow", "8472/udp", env=self._environ
        )  # the overlay's own packets are the user's to let in
        self._node.run(*self._argv, "--force", "enable", env=self._environ)
        assert [line for line in rules(self._node, "nft", "ip6tables") if "ufw6-reject-forward" in line]

    def again(self) -> None:
        self._node.run(*self._argv, "reload", env=self._environ)

    def stop(self) -> None:
        """What it has started has ended."""


@pytest.fixture
def debian(peers: Path) -> Path:
    """Debian's packages, unpacked."""
    found = peers / "debian"
    missing = [name for name in ("dockerd", "ufw") if not (found / "usr" / "sbin" / name).is_file()]
    if missing:
        pytest.fail(f"no {', '.join(missing)} in {found}: tests/setup/unpack-debian-peers unpacks them", pytrace=False)
    return found


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
@pytest.mark.parametrize("kind", [Docker, Ufw])
def test_pods_of_two_nodes_reach_each_other(
    way: Way, debian: Path, kind: Callable[[Node, Path], Any], backend: str
) -> None:
    with Cluster(way, underlay=BOTH, pods=BOTH) as cluster:
        node, conf = cluster.nodes[0], cluster.conf(backend, ipMasq=True)
        firewall = kind(node, debian)
        try:
            firewall.start()
            one, two = cluster.attach(conf)
            added = {**conf, "prevResult": add(third := node.pod(), conf)}

            node.call(backend, "STATUS", conf).silent()
            node.call(backend, "CHECK", added, third).silent()
            found = accepts(node, "nft")
            assert len(found) == 2 * len(firewall.families)
            assert all(line.startswith(f"-A {firewall.chain} ") for line in found)
            for family in BOTH:
                assert len(converse(one, two, family)) == len(converse(two, one, family)) == ALL

            firewall.again()
            status = node.call(backend, "STATUS", conf)
            if accepts(node, "nft") == found:
                status.silent()
            else:  # nobody is there to put them back, so they are asked for
                assert status.error["code"] == 50
                assert "expected accepts for the pods in iptables" in status.error["msg"]
                for program in ("iptables", "ip6tables"):
                    error = node.call(backend, "STATUS", conf).error
                    commands = error["details"].partition("without it: ")[2].split("; ")
                    assert all(command.startswith(f"{program} -I ") for command in commands)
                    for command in commands:
                        node.run(*command.split(" "))
                node.call(backend, "STATUS", conf).silent()
            for family in BOTH:
                assert len(converse(one, two, family)) == len(converse(two, one, family)) == ALL
        finally:
            firewall.stop()


@pytest.mark.parametrize("kind", [Docker, Ufw])
def test_one_that_comes_later_finds_the_agent_at_work(
    agent_way: AgentWay, debian: Path, kind: Callable[[Node, Path], Any]
) -> None:
    with ClusterNode(agent_way, "vxlan", [member(1), member(2)], ipMasq=True) as world:
        world.start()
        world.wait_for_routes(2)
        wait_until(lambda: "masq-pods" in str(world.node.nft()), "masquerade rules", SOON)
        firewall = kind(world.node, debian)
        count = 2 * len(firewall.families)
        try:
            firewall.start()
            wait_until(lambda: len(accepts(world.node, "nft")) == count, "accepts are there", SOON)
            firewall.again()
            wait_until(lambda: len(accepts(world.node, "nft")) == count, "they are there again", SOON)
            assert all(f"-A {firewall.chain} " in line for line in accepts(world.node, "nft"))
        finally:
            firewall.stop()
