"""Opening namespaces: only network namespaces, told from everything else, and no descriptor stays behind."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from cni.errors import KernelError
from cni.kernel import NetnsError, ops
from cni.kernel.background import thread_background
from cni.kernel.linux import Kernel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.netns.conftest import Netns


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(time.monotonic, thread_background)


def inode() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_namespace_is_known_by_device_and_inode(kernel: Kernel, host_ns: Netns) -> None:
    status = os.stat(host_ns.path)
    with kernel.open(host_ns.path) as namespace, kernel.own() as own:
        assert (namespace.dev, namespace.ino) == (status.st_dev, status.st_ino)
        assert own.ino == inode()


def test_own_namespace_is_told_from_others(kernel: Kernel, host_ns: Netns) -> None:
    assert kernel.is_own("/proc/self/ns/net")
    assert not kernel.is_own(host_ns.path)
    assert not kernel.is_own("/nowhere")
    assert not kernel.is_own("nul\0")


def plain_file(folder: Path) -> str:
    (folder / "file").write_text("")
    return str(folder / "file")


def fifo(folder: Path) -> str:
    os.mkfifo(folder / "fifo")
    return str(folder / "fifo")


def unix_socket(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
    return str(folder / "s")


def loop(folder: Path) -> str:
    (folder / "loop").symlink_to(folder / "loop")
    return str(folder / "loop")


def ended_process(_folder: Path) -> str:
    process = subprocess.Popen(["true"])
    process.wait(10)
    return f"/proc/{process.pid}/ns/net"


@pytest.mark.parametrize(
    ("make", "found", "gone"),
    [
        (lambda folder: str(folder / "missing"), "nothing", True),
        (lambda folder: plain_file(folder) + "/below", "nothing", True),
        (ended_process, "nothing", True),
        (lambda _: "", "nothing", True),
        (plain_file, "a plain file", True),
        (str, "a directory", False),
        (fifo, "a FIFO", False),
        (unix_socket, "a socket", False),
        (loop, "ELOOP", False),
        (lambda _: "/dev/null", "a character device", False),
        (lambda _: "/proc/self/ns/mnt", "a mount namespace", False),
        (lambda _: "/proc/self/ns/user", "a user namespace", False),
        (lambda _: "/x" * 5000, "ENAMETOOLONG", False),
        (lambda _: "nul\0", "a NUL character", False),
    ],
)
def test_what_is_no_network_namespace_is_told(
    kernel: Kernel,
    tmp_path: Path,
    make: object,
    found: str,
    gone: bool,  # noqa: FBT001 - a parameter
) -> None:
    assert callable(make)
    path = make(tmp_path)

    with pytest.raises(NetnsError) as caught:
        kernel.open(path)

    assert f"found {found}" in caught.value.msg or found in caught.value.msg
    assert (caught.value.code, caught.value.gone) == (8, gone)


def test_caller_stays_where_it_was(kernel: Kernel, host_ns: Netns) -> None:
    before = inode()

    with kernel.open(host_ns.path) as namespace:
        assert inode() == before
        namespace.nft_has(1, "t")  # enters once more
        assert inode() == before

    assert inode() == before


def test_caller_is_back_when_opening_fails_inside(
    kernel: Kernel, host_ns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, fds = inode(), open_fds()
    seen: list[int] = []

    def fail(*_: object) -> None:
        seen.append(inode())
        raise KernelError("open a netlink socket", 24)

    monkeypatch.setattr("cni.kernel.linux.Socket", fail)

    with kernel.open(host_ns.path) as namespace, pytest.raises(KernelError):
        namespace.links()

    assert seen == [os.stat(host_ns.path).st_ino]
    assert inode() == before
    assert open_fds() == fds


def test_closed_namespace_is_not_used(kernel: Kernel, host_ns: Netns) -> None:
    for namespace in (kernel.open(host_ns.path), kernel.own()):
        namespace.close()
        namespace.close()
        for use in (namespace.links, lambda namespace=namespace: namespace.conf(2, "lo", "forwarding")):
            with pytest.raises(KernelError) as caught:
                use()
            assert "was closed" in caught.value.msg


def open_fds() -> set[str]:
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}


def test_no_descriptor_stays_open(kernel: Kernel, host_ns: Netns, pod_ns: Netns) -> None:
    before = open_fds()

    for _ in range(200):
        with kernel.open(host_ns.path) as host, kernel.open(pod_ns.path) as pod, kernel.own() as own:
            host.link("lo")
            pod.nft_has(1, "t")
            own.conf(2, "lo", "forwarding")
        with pytest.raises(NetnsError):
            kernel.open("/proc/self/ns/mnt")

    assert open_fds() == before


def test_no_descriptor_survives_exec(kernel: Kernel, host_ns: Netns) -> None:
    before = open_fds()
    with kernel.open(host_ns.path) as host, kernel.own() as own:
        host.links()
        host.nft_has(1, "t")
        for family in (2, 10):
            own.conf(family, "lo", "forwarding")
            host.conf(family, "lo", "forwarding")
        opened = open_fds() - before

        assert len(opened) >= 8
        assert [fd for fd in opened if not fcntl.fcntl(int(fd), fcntl.F_GETFD) & fcntl.FD_CLOEXEC] == []


def test_threads_work_in_their_own_namespaces(kernel: Kernel, host_ns: Netns, pod_ns: Netns) -> None:
    errors: list[BaseException] = []

    def fill(path: str, prefix: str) -> None:
        try:
            for number in range(30):
                with kernel.open(path) as namespace:
                    namespace.apply(ops.bridge_add(f"{prefix}{number}", None))
        except BaseException as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    threads = [
        threading.Thread(target=fill, args=(host_ns.path, "a")),
        threading.Thread(target=fill, args=(pod_ns.path, "b")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert errors == []
    assert {link["ifname"][0] for link in host_ns.ip("link", "show", "type", "bridge")} == {"a"}
    assert len(pod_ns.ip("link", "show", "type", "bridge")) == 30
