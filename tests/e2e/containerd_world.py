"""A containerd inside a node, with runc and an image of our own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tests.e2e import images
from tests.e2e.world import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.world import Node

IMAGE = "cnikit.test/busybox:1"
SOCKET = "/run/cd/cd.sock"
STARTUP = 60.0

CONFIG = """
version = 2
root = "/run/cd/root"
state = "/run/cd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.overlayfs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin_dir}"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


class Containerd:
    """A containerd of our own inside a node. Its socket has a short path: a UNIX address holds 107 bytes."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.socket = str(node.path(SOCKET))
        node.path("/run/cd").mkdir()
        node.path("/run/cd/config.toml").write_text(CONFIG.format(socket=SOCKET, image=IMAGE, bin_dir=node.way.bin_dir))
        self.log = folder / "containerd.log"
        with self.log.open("wb") as log:
            self.daemon = node.spawn("containerd", "--config", "/run/cd/config.toml", stdin=-3, stdout=log, stderr=log)
        wait_until(self._answers, f"containerd answers; its log is {self.log}", STARTUP)
        image = folder / "busybox.tar"
        images.save(image, IMAGE, "/bin/sleep", "1000000000")
        shutil.copy(image, node.path("/run/cd/busybox.tar"))
        for namespace in ("k8s.io", "default"):
            self.ctr("-n", namespace, "images", "import", "--snapshotter", "native", "/run/cd/busybox.tar")

    def _answers(self) -> bool:
        assert self.daemon.poll() is None, self.log.read_text()[-3000:]
        return self.node.attempt("ctr", "-a", SOCKET, "version").ok

    def ctr(self, *argv: str) -> str:
        return self.node.run("ctr", "-a", SOCKET, *argv)
