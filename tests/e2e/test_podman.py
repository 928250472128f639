"""podman with its CNI backend: a container made by the runtime of people's laptops, without a daemon."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.podman_world import IMAGE, PARENT, Podman
from tests.e2e.world import DUAL_STACK, Node, Way, cgroups_removed, network, wait_same

if TYPE_CHECKING:
    from collections.abc import Iterator


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
