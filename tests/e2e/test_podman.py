"""podman with its CNI backend: a container made by the runtime of people's laptops, without a daemon."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e import images
from tests.e2e.world import DUAL_STACK, Node, Way, cgroup, cgroups_removed, network, wait_same

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "localhost/cnikit-test:1"

CONTAINERS_CONF = """
[containers]
netns = "bridge"
pids_limit = 0
default_sysctls = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "/run/pod/tmp"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{bin_dir}"]
network_config_dir = "/etc/cni/net.d"
default_network = "podman"
"""

PARENT = ("--cgroup-parent", cgroup())
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'


class Podman:
    """podman inside a node, with storage and configuration of its own."""

    def __init__(self, node: Node) -> None:
        self.node = node
        node.path("/run/pod").mkdir()
        node.path("/run/pod/containers.conf").write_text(CONTAINERS_CONF.format(bin_dir=node.way.bin_dir))
        node.path("/run/pod/policy.json").write_text(POLICY)
        with tempfile.TemporaryDirectory(prefix="cnikit-") as folder:
            image = Path(folder) / "busybox.tar"
            images.save(image, IMAGE, "/bin/busybox")
            node.path("/run/pod/busybox.tar").write_bytes(image.read_bytes())
        self("load", "--signature-policy", "/run/pod/policy.json", "-i", "/run/pod/busybox.tar")

    def __call__(self, *argv: str) -> str:
        """Run podman; its stdout."""
        folders = ["--root", "/run/pod/root", "--runroot", "/run/pod/runroot", "--storage-driver", "vfs"]
        env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/run/pod",
            "CONTAINERS_CONF": "/run/pod/containers.conf",
            "XDG_RUNTIME_DIR": "/run/pod",
        }
        return self.node.run(
            "podman", *folders, "--cgroup-manager", "cgroupfs", "--events-backend", "file", *argv, env=env
        )


@pytest.fixture
def conf() -> dict[str, Any]:
    return network("podman", "0.4.0", bridge="cni-podman0", ipam=DUAL_STACK, ipMasq=True)


@pytest.fixture
def podman(way: Way, conf: dict[str, Any]) -> Iterator[Podman]:
    with cgroups_removed(), Node(way, pids=True) as node:
        node.prepare()
        plugin = {key: value for key, value in conf.items() if key not in ("name", "cniVersion")}
        conflist = {"cniVersion": conf["cniVersion"], "name": conf["name"], "plugins": [plugin]}
        node.path("/etc/cni/net.d").mkdir(parents=True, exist_ok=True)
        node.path("/etc/cni/net.d/87-podman.conflist").write_text(json.dumps(conflist))
        yield Podman(node)


def test_run(podman: Podman) -> None:
    """A container pings its gateway and sees its addresses; then it is gone, and all of it."""
    node = podman.node
    pinged = podman("run", *PARENT, "--rm", IMAGE, "ping", "-c", "1", "-W", "5", "10.1.0.1")
    assert "1 packets received" in pinged
    before = node.snapshot()

    shown = podman("run", *PARENT, "--rm", IMAGE, "ip", "addr", "show", "dev", "eth0")

    assert "inet 10.1." in shown
    assert "inet6 fd00:1::" in shown
    wait_same(node.snapshot, before, "the container left something")
    assert node.leases("podman") == {}


def test_a_container_that_stays(podman: Podman) -> None:
    """Address and MAC of a running container as podman shows them, a requested address, removal."""
    node = podman.node
    podman("run", *PARENT, "--rm", IMAGE, "true")
    before = node.snapshot()

    podman(
        "run",
        "-d",
        "--name",
        "stays",
        "--ip",
        "10.1.7.7",
        "--mac-address",
        "02:00:00:00:00:77",
        IMAGE,
        "sleep",
        "1000000",
    )

    shown = json.loads(podman("inspect", "stays"))[0]["NetworkSettings"]["Networks"]["podman"]
    assert shown["IPAddress"] == "10.1.7.7"
    assert shown["MacAddress"] == "02:00:00:00:00:77"
    assert "10.1.7.7" in node.leases("podman")
    assert "1 packets received" in podman("exec", "stays", "/bin/busybox", "ping", "-c", "1", "-W", "5", "10.1.0.1")

    podman("rm", "-f", "-t", "0", "stays")

    wait_same(node.snapshot, before, "the removed container left something")


def test_a_published_network_has_two_containers(podman: Podman) -> None:
    """Two containers on one network reach each other."""
    podman("run", *PARENT, "-d", "--name", "one", IMAGE, "sleep", "1000000")
    address = json.loads(podman("inspect", "one"))[0]["NetworkSettings"]["Networks"]["podman"]["IPAddress"]

    pinged = podman("run", *PARENT, "--rm", IMAGE, "ping", "-c", "1", "-W", "5", address)

    assert "1 packets received" in pinged
    podman("rm", "-f", "-t", "0", "one")
    assert podman.node.leases("podman") == {}
