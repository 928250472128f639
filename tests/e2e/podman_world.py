"""podman inside a node, with storage and configuration of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e import images
from tests.e2e.world import cgroup

if TYPE_CHECKING:
    from tests.e2e.world import Node

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
