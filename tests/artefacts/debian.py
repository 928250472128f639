"""A Debian root folder for the nodes, and the files of one program in it with its libraries, for images of pods."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.artefacts.cache import Artefact

SUITE = "trixie"  # what kind's own node image is made from
PACKAGES = (
    "systemd", "systemd-sysv", "bash", "procps", "util-linux", "mount", "kmod", "e2fsprogs", "ca-certificates", "curl", "jq",
    # what kubelet, kube-proxy, containerd and kubeadm call
    "conntrack", "ethtool", "iproute2", "iptables", "nftables", "pigz", "runc",
    # what the pods of Kubernetes' end-to-end tests call
    "bind9-dnsutils", "netcat-openbsd",
)  # fmt: skip
# Nobody reads them in a node.
_UNREAD = ("var/cache/apt", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/man", "usr/share/locale")


def _build(folder: Path) -> None:
    root = folder / "root"
    log = folder / "debootstrap.log"
    with log.open("w") as file:
        argv = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
        status = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False).returncode
    assert status == 0, f"debootstrap: expected status 0, found {status}\n{log.read_text()[-3000:]}"
    for unread in _UNREAD:
        for entry in (root / unread).iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def with_libraries(root: Path, *programs: str) -> dict[str, Path]:
    """The programs, paths inside the root, and the libraries they are linked with: where each belongs, and its file."""
    found = {}
    for program in programs:
        linked = subprocess.run(["chroot", root, "ldd", program], check=False, capture_output=True, text=True).stdout
        for name in [program, *(word for word in linked.split() if word.startswith("/"))]:
            resolved = subprocess.run(["chroot", root, "realpath", name], check=True, capture_output=True, text=True)
            found[name] = root / resolved.stdout.strip().lstrip("/")
    return found


DEBIAN = Artefact("debian", _build, ("tests/artefacts/debian.py",))
