"""The images of a cluster's pods, under the names that kubeadm and the end-to-end tests ask for, made from our programs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.artefacts.debian import with_libraries
from tests.e2e import images

if TYPE_CHECKING:
    from collections.abc import Iterator

# The image with which the tests' own pods run.
BUSYBOX = "cnikit.test/busybox:1"
_CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
_IPTABLES = ("iptables", "ip6tables")
# What the end-to-end tests call inside an agnhost pod, beside agnhost and a shell.
_AGNHOST_TOOLS = (
    "/usr/bin/dig",
    "/usr/bin/curl",
    "/usr/bin/nc.openbsd",
    "/usr/bin/ss",
    "/usr/sbin/ip",
    "/usr/bin/bash",
)


class Image(NamedTuple):
    """`files`: where each goes; `links`: what each points to; `command` and `words`: what the image runs by
    itself, of which a pod's `args` replace the words."""

    name: str
    files: dict[str, Path]
    links: dict[str, str]
    command: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def save(self, folder: Path) -> Path:
        path = folder / f"{self.name.rpartition('/')[2].replace(':', '-')}.tar"
        images.write(path, self.name, images.layer(self.files, self.links), self.command, self.words)
        return path


def names(kubernetes: Path) -> dict[str, str]:
    """The full name of each image by its last part without the tag: `coredns`, `pause`, `agnhost`."""
    version = (kubernetes / "version").read_text()
    listed = [
        _output(kubernetes / "e2e.test", "--list-images"),
        _output(kubernetes / "kubeadm", "config", "images", "list", "--kubernetes-version", version),
    ]
    return {name.rpartition("/")[2].partition(":")[0]: name for text in listed for name in text.split()}


def all_images(root: Path, kubernetes: Path, programs: Path) -> Iterator[Image]:
    """`root`: a Debian; the others: folders of programs."""
    called = names(kubernetes)
    for name in _CONTROL_PLANE:
        yield Image(called[name], {f"/usr/local/bin/{name}": kubernetes / name}, {})
    yield _kube_proxy(called["kube-proxy"], root, kubernetes)
    yield Image(called["etcd"], {"/usr/local/bin/etcd": programs / "etcd"}, {})
    yield Image(called["coredns"], {"/coredns": programs / "coredns"}, {}, ("/coredns",))
    yield Image(called["pause"], {"/pause": programs / "pause"}, {}, ("/pause",))
    busybox, applets = images.busybox_files()
    yield Image(BUSYBOX, busybox, applets)
    yield Image(called["busybox"], busybox, applets, ("/bin/sh",))
    agnhost = _agnhost(called["agnhost"], root, kubernetes)
    yield agnhost
    yield agnhost._replace(name=called["glibc-dns-testing"])


def _kube_proxy(name: str, root: Path, kubernetes: Path) -> Image:
    """With iptables, whose matches and targets are libraries that have libraries of their own."""
    extensions = [f"/{file.relative_to(root)}" for file in sorted(root.glob("usr/lib/*/xtables/*.so"))]
    tools = ("/usr/sbin/xtables-nft-multi", "/usr/sbin/nft", "/usr/sbin/conntrack")
    files = with_libraries(root, *tools, *extensions)
    calls = [f"/usr/sbin/{command}{suffix}" for command in _IPTABLES for suffix in ("", "-save", "-restore")]
    files["/usr/local/bin/kube-proxy"] = kubernetes / "kube-proxy"
    return Image(name, files, dict.fromkeys(calls, "xtables-nft-multi"))


def _agnhost(name: str, root: Path, kubernetes: Path) -> Image:
    files = {**images.busybox_files()[0], **with_libraries(root, *_AGNHOST_TOOLS), "/agnhost": kubernetes / "agnhost"}
    links = {**images.busybox_files()[1], "/usr/local/bin/nc": "/usr/bin/nc.openbsd", "/agnhost-2": "agnhost"}
    return Image(name, files, links, ("/agnhost",), ("pause",))


def _output(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
