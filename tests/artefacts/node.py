"""The image of a kind node, in a podman storage of its own: Debian with systemd, containerd, kubelet and kubeadm, and
the images of the pods in containerd's store. It has what kind's own image has, and like that one no Python.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.artefacts import pods
from tests.artefacts.cache import Artefact
from tests.artefacts.debian import DEBIAN
from tests.artefacts.programs import KUBERNETES, NODE_PROGRAMS
from tests.e2e.kube.place import Place
from tests.e2e.world import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "localhost/cnikit-test/node:1"
_HERE = Path(__file__).with_name("node")
_PLACES = {
    "/usr/local/bin/entrypoint": "entrypoint",
    "/etc/containerd/config.toml": "containerd.toml",
    "/etc/systemd/system/containerd.service": "containerd.service",
    "/etc/systemd/system/kubelet.service": "kubelet.service",
    "/etc/kubernetes/kubelet.conf.d/10-cgroups.conf": "kubelet.conf",
    "/etc/sysctl.d/10-kind.conf": "sysctl.conf",
    "/kind/manifests/default-storage.yaml": "storage.yaml",
}
_FOLDERS = ("etc/kubernetes/manifests", "etc/cni/net.d", "opt/cni/bin", "lib/modules", "kind")
_MASKED = (
    # hardware, consoles, logins and file systems of a machine
    "console-getty.service", "dev-hugepages.mount", "dev-mqueue.mount", "getty.target", "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "systemd-binfmt.service", "systemd-firstboot.service", "systemd-logind.service", "systemd-modules-load.service",
    "systemd-pstore.service", "systemd-remount-fs.service", "systemd-tmpfiles-setup-dev.service",
    "systemd-tmpfiles-setup.service", "systemd-udev-trigger.service", "systemd-udevd.service", "systemd-update-utmp.service",
    # the network is podman's
    "systemd-network-generator.service", "systemd-networkd.service", "systemd-networkd.socket",
    # housekeeping
    "apt-daily-upgrade.timer", "apt-daily.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer",
)  # fmt: skip
_NO_CRI = ("io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix="root-") as temporary:
        root = Path(temporary) / "root"
        subprocess.run(["cp", "--archive", DEBIAN.path / "root", root], check=True)
        _install_programs(root)
        _configure(root)
        _enable_units(root)
        with tempfile.TemporaryDirectory(dir=folder, prefix="images-") as archives:
            _import_images(root, Path(archives))
        _save(root, folder / "storage")


def _install_programs(root: Path) -> None:
    kubernetes, programs = KUBERNETES.path, NODE_PROGRAMS.path
    for name in _FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("kubelet", "kubeadm", "kubectl"):
        shutil.copy(kubernetes / name, root / "usr/bin")
    for name in ("containerd", "containerd-shim-runc-v2", "ctr", "crictl"):
        shutil.copy(programs / name, root / "usr/local/bin")
    shutil.copytree(programs / "cni", root / "opt/cni/bin", dirs_exist_ok=True)
    shutil.copy(kubernetes / "version", root / "kind/version")


def _configure(root: Path) -> None:
    for file in (root / "usr/lib/sysctl.d").iterdir():  # Debian's set values of the whole machine
        file.unlink()
    for target, source in _PLACES.items():
        path = root / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_HERE / source, path)
    config = root / "etc/containerd/config.toml"
    config.write_text(config.read_text().replace("@PAUSE@", pods.names(KUBERNETES.path)["pause"]))
    # A container gets containerd's own limits: more takes CAP_SYS_RESOURCE, which root has not everywhere.
    spec = json.loads(_output(NODE_PROGRAMS.path / "ctr", "oci", "spec"))
    del spec["process"]["rlimits"]
    config.with_name("cri-base.json").write_text(json.dumps(spec))


def _enable_units(root: Path) -> None:
    for verb in (["set-default", "multi-user.target"], ["enable", "containerd", "kubelet"], ["mask", *_MASKED]):
        _output("chroot", root, "systemctl", "--quiet", *verb)
    with (root / "etc/systemd/journald.conf").open("a") as file:
        file.write("ReadKMsg=no\n")  # the machine's
    for name in ("etc/machine-id", "etc/resolv.conf", "etc/hostname"):
        (root / name).unlink(missing_ok=True)
    for name in ("etc/machine-id", "etc/.updated", "var/.updated"):  # not the first boot of a new system
        (root / name).touch()


def _import_images(root: Path, archives: Path) -> None:
    """Put the images into the node's store, packed: a node unpacks what it runs."""
    with _containerd(root / "var/lib/containerd") as ctr:
        for image in pods.all_images(DEBIAN.path / "root", KUBERNETES.path, NODE_PROGRAMS.path):
            archive = image.save(archives)
            _output(
                *ctr, "images", "import", "--no-unpack", "--digests", "--label=io.cri-containerd.pinned=pinned", archive
            )
            archive.unlink()


@contextlib.contextmanager
def _containerd(store: Path) -> Iterator[list[str | Path]]:
    """A containerd on the store; the beginning of a command line of ctr that talks to it."""
    programs = NODE_PROGRAMS.path
    with tempfile.TemporaryDirectory(prefix="cnikit-") as run:
        socket = Path(run) / "socket"
        config = Path(run) / "config.toml"
        config.write_text(
            f'version = 3\nroot = "{store}"\nstate = "{run}/state"\ndisabled_plugins = {json.dumps(_NO_CRI)}\n'
            f'[grpc]\naddress = "{socket}"\n[ttrpc]\naddress = "{socket}.ttrpc"\n'
        )
        log = Path(run) / "log"
        with log.open("w") as file:
            # It ends with a build that is killed.
            argv = ["setpriv", "--pdeathsig=KILL", str(programs / "containerd"), f"--config={config}"]
            daemon = subprocess.Popen(argv, stdout=file, stderr=file)

        def answers() -> bool:
            assert daemon.poll() is None, log.read_text()[-3000:]
            return socket.exists()

        try:
            wait_until(answers, "containerd answers", 60.0)
            yield [programs / "ctr", "--address", socket, "--namespace", "k8s.io"]
        finally:
            daemon.terminate()
            daemon.wait()


def _save(root: Path, storage: Path) -> None:
    changes = [
        'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]',
        "STOPSIGNAL SIGRTMIN+3",
        "ENV container=podman",
    ]
    options = [word for change in changes for word in ("--change", change)]
    with Place(storage) as place, subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as packing:
        place.run("podman", "import", "--quiet", *options, "-", IMAGE, stdin=packing.stdout)
    shutil.rmtree(storage / "libpod")  # it records the storage's path, which is not final yet
    assert packing.returncode == 0, f"tar {root}: expected status 0, found {packing.returncode}"


def _output(*argv: str | Path) -> str:
    ran = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, f"{argv}: expected status 0, found {ran.returncode}\n{ran.stderr}"
    return ran.stdout


NODE_IMAGE = Artefact(
    "node-image",
    _build,
    (
        "tests/artefacts/node.py",
        "tests/artefacts/pods.py",
        "tests/artefacts/node",
        "tests/e2e/images.py",
        "tests/e2e/kube/place.py",
    ),
    needs=(DEBIAN, KUBERNETES, NODE_PROGRAMS),
)
