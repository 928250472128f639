"""containerd and runc as distributed: pod sandboxes through the CRI, containers through `ctr run --cni`.

The daemon runs inside the test's node, with a PID namespace: its shims and containers end with the node.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_tools import protoc

from tests.e2e.containerd_world import IMAGE, STARTUP, Containerd
from tests.e2e.world import DUAL_STACK, Node, Way, cgroup, cgroups_removed, datagram, network, wait_same, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleType, ModuleType]:
    """The CRI's messages and stubs, compiled from cri/api.proto."""
    out = tmp_path_factory.mktemp("cri")
    source = Path(__file__).with_name("cri")
    status = protoc.main(["protoc", f"-I{source}", f"--python_out={out}", f"--grpc_python_out={out}", "api.proto"])
    assert status == 0, "protoc failed"
    sys.path.insert(0, str(out))
    try:
        # The second imports the first by its plain name.
        return importlib.import_module("api_pb2"), importlib.import_module("api_pb2_grpc")
    finally:
        sys.path.remove(str(out))


def install(node: Node, conf: dict[str, Any], **top: Any) -> None:
    """Put the network list where the runtimes look for it."""
    plugin = {key: value for key, value in conf.items() if key not in ("name", "cniVersion")}
    conflist = {"cniVersion": conf["cniVersion"], "name": conf["name"], **top, "plugins": [plugin]}
    folder = node.path("/etc/cni/net.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "10-net.conflist").write_text(json.dumps(conflist))


@pytest.fixture
def conf() -> dict[str, Any]:
    return network("pods", "1.0.0", ipam=DUAL_STACK, ipMasq=True)


@pytest.fixture
def containerd(way: Way, conf: dict[str, Any]) -> Iterator[Containerd]:
    with cgroups_removed(), tempfile.TemporaryDirectory(prefix="cnikit-") as folder:
        with Node(way, pids=True) as node:
            node.prepare()
            install(node, conf)
            node.path("/opt/cni/bin").symlink_to(way.bin_dir)
            running = Containerd(node, Path(folder))
            yield running
        running.daemon.wait(STARTUP)  # the kernel ended it with the node's PID namespace


class Cri:
    """The calls of the CRI, as the kubelet makes them."""

    def __init__(self, containerd: Containerd, api: tuple[ModuleType, ModuleType]) -> None:
        self.messages, stubs = api
        # The socket lies in the node's mount namespace; a UNIX socket's path may lead there through /proc.
        self.channel = grpc.insecure_channel(f"unix://{containerd.socket}")
        self.stub = stubs.RuntimeServiceStub(self.channel)

    def run(self, name: str) -> str:
        config = self.messages.PodSandboxConfig(
            metadata=self.messages.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="tests", attempt=0),
            hostname=name,
            log_directory="/run/cd/logs",
            linux=self.messages.LinuxPodSandboxConfig(cgroup_parent=f"{cgroup()}/{name}"),
        )
        answer = self.stub.RunPodSandbox(self.messages.RunPodSandboxRequest(config=config), timeout=STARTUP)
        found: str = answer.pod_sandbox_id
        return found

    def status(self, sandbox: str) -> tuple[list[str], str]:
        """Addresses and netns path of a sandbox."""
        answer = self.stub.PodSandboxStatus(
            self.messages.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True), timeout=STARTUP
        )
        network_status = answer.status.network
        info = json.loads(answer.info["info"])
        netns = next(item["path"] for item in info["runtimeSpec"]["linux"]["namespaces"] if item["type"] == "network")
        return [network_status.ip, *[item.ip for item in network_status.additional_ips]], netns

    def stop(self, sandbox: str) -> None:
        self.stub.StopPodSandbox(self.messages.StopPodSandboxRequest(pod_sandbox_id=sandbox), timeout=STARTUP)

    def remove(self, sandbox: str) -> None:
        self.stub.RemovePodSandbox(self.messages.RemovePodSandboxRequest(pod_sandbox_id=sandbox), timeout=STARTUP)

    def network_ready(self) -> bool:
        conditions = self.stub.Status(self.messages.StatusRequest(), timeout=STARTUP).status.conditions
        return any(item.type == "NetworkReady" and item.status for item in conditions)


def test_pod_sandboxes(containerd: Containerd, api: tuple[ModuleType, ModuleType]) -> None:
    """Two pods come and go as the kubelet makes them; the node is as it was before the second."""
    node = containerd.node
    cri = Cri(containerd, api)
    wait_until(cri.network_ready, "containerd takes the network list", STARTUP)
    first = cri.run("first")
    cri.stop(first)
    cri.remove(first)
    before = node.snapshot()

    sandbox = cri.run("second")

    addresses, netns = cri.status(sandbox)
    assert set(addresses) == set(node.leases("pods"))
    assert len(addresses) == 2
    inside = json.loads(node.run("nsenter", f"--net={netns}", "ip", "-j", "addr", "show", "dev", "eth0"))
    assert set(addresses) <= {item["local"] for item in inside[0]["addr_info"]}
    lo = json.loads(node.run("nsenter", f"--net={netns}", "ip", "-j", "addr", "show", "dev", "lo"))
    assert "UP" in lo[0]["flags"]
    with node.socket() as listener:
        listener.bind(("", 0))
        node.run("nsenter", f"--net={netns}", "busybox", "ping", "-c", "1", "-W", "5", "10.1.0.1")
    assert all(sandbox in text for text in node.leases("pods").values())

    cri.stop(sandbox)
    cri.stop(sandbox)  # the kubelet repeats itself
    cri.remove(sandbox)

    wait_same(node.snapshot, before, "the sandbox left something")
    cri.channel.close()


def test_a_sandbox_that_lost_its_netns(containerd: Containerd, api: tuple[ModuleType, ModuleType]) -> None:
    """As after a crash of the node's services: the namespace's mount is gone when the runtime stops the sandbox."""
    node = containerd.node
    cri = Cri(containerd, api)
    wait_until(cri.network_ready, "containerd takes the network list", STARTUP)
    sandbox = cri.run("lost")
    _, netns = cri.status(sandbox)
    name = netns.replace("/var/run/", "/run/")
    node.run("umount", name)
    node.run("rm", "-f", name)

    cri.stop(sandbox)
    cri.remove(sandbox)

    assert node.leases("pods") == {}
    cri.channel.close()


@pytest.mark.ours  # the namespace is gone when ctr calls DEL: the reference leaves its masquerade rules
def test_ctr_run(containerd: Containerd, conf: dict[str, Any]) -> None:
    """`ctr run --cni` reads /etc/cni/net.d and /opt/cni/bin; the container pings its gateway."""
    node = containerd.node
    pinged = containerd.ctr(
        "run",
        "--rm",
        "--cni",
        "--cgroup",
        f"{cgroup()}/ctr",
        "--snapshotter",
        "native",
        IMAGE,
        "c1",
        "ping",
        "-c",
        "1",
        "-W",
        "5",
        "10.1.0.1",
    )
    assert "1 packets received" in pinged
    before = node.snapshot()

    shown = containerd.ctr(
        "run",
        "--rm",
        "--cni",
        "--cgroup",
        f"{cgroup()}/ctr",
        "--snapshotter",
        "native",
        IMAGE,
        "c2",
        "ip",
        "addr",
        "show",
        "dev",
        "eth0",
    )

    assert "inet 10.1." in shown
    assert "inet6 fd00:1::" in shown
    wait_same(node.snapshot, before, "the container left something")
    assert node.leases(conf["name"]) == {}


def test_datagram_between_sandboxes(containerd: Containerd, api: tuple[ModuleType, ModuleType]) -> None:
    """Two pods of the CRI talk to each other."""
    node = containerd.node
    cri = Cri(containerd, api)
    wait_until(cri.network_ready, "containerd takes the network list", STARTUP)
    one, two = cri.run("one"), cri.run("two")
    (first, *_), netns_one = cri.status(one)
    (second, *_), netns_two = cri.status(two)

    with node.socket_at(netns_one) as sender, node.socket_at(netns_two) as listener:
        listener.bind(("", 0))
        assert datagram(sender, listener, second) == first

    for sandbox in (one, two):
        cri.stop(sandbox)
        cri.remove(sandbox)
    cri.channel.close()
