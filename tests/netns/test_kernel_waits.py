"""Deleting and waiting on the real kernel: when a call returns, what it promises is so."""

from __future__ import annotations

import os
import select
import threading
import time
from errno import EADDRNOTAVAIL, EIO, ENODEV, EOPNOTSUPP, ETIMEDOUT
from typing import TYPE_CHECKING

import pytest

from cni.errors import KernelError
from cni.kernel import ops
from cni.kernel.background import Child, fork_background, thread_background
from cni.kernel.linux import Kernel
from cni.kernel.types import OPER_UP
from tests.netns.test_kernel_links import ADDRESS6, MAC, PEER_MAC, add_bridge, add_pair, index_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.kernel.background import Background, Helper
    from tests.netns.conftest import Netns

BACKGROUNDS = pytest.mark.parametrize("background", [fork_background, thread_background])


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        select.select((), (), (), 0.005)


class Silent:
    """A helper that never says a word."""

    def __init__(self, fds: tuple[int, ...]) -> None:
        for fd in fds:
            os.close(fd)
        self._reader, self._writer = os.pipe()

    def fileno(self) -> int:
        return self._reader

    def release(self) -> bool:
        os.close(self._reader)
        os.close(self._writer)
        return True


@BACKGROUNDS
def test_link_is_gone_when_delete_returns(background: Background, host_ns: Netns, pod_ns: Netns) -> None:
    kernel = Kernel(time.monotonic, background)
    with kernel.open(host_ns.path) as host, kernel.open(pod_ns.path) as pod:
        bridge = add_bridge(host)
        for _ in range(20):
            veth, _ = add_pair(host, pod, bridge)

            host.delete_link(veth)

            assert host.link(veth) is None
            assert pod.link("eth0") is None
    assert [link["ifname"] for link in host_ns.ip("link")] == ["lo", "cni0"]


@BACKGROUNDS
def test_deleting_nothing_is_success(background: Background, host_ns: Netns) -> None:
    kernel = Kernel(time.monotonic, background)
    with kernel.open(host_ns.path) as host:
        host.delete_link(4711)


@BACKGROUNDS
def test_undeletable_link_is_an_error(background: Background, host_ns: Netns) -> None:
    kernel = Kernel(time.monotonic, background)
    with kernel.open(host_ns.path) as host, pytest.raises(KernelError) as caught:
        host.delete_link(1)

    assert caught.value.errno == EOPNOTSUPP
    assert caught.value.msg.startswith("delete link 1: ")


@BACKGROUNDS
def test_delete_races_with_another(background: Background, host_ns: Netns, pod_ns: Netns) -> None:
    kernel = Kernel(time.monotonic, background)
    errors: list[BaseException] = []

    def delete(index: int) -> None:
        try:
            with kernel.open(host_ns.path) as host:
                host.delete_link(index)
        except KernelError as error:
            errors.append(error)

    with kernel.open(host_ns.path) as host, kernel.open(pod_ns.path) as pod:
        veth, _ = add_pair(host, pod)
        threads = [threading.Thread(target=delete, args=(veth,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert host.link(veth) is None
    assert errors == []


def test_delete_asks_when_no_notice_comes(host_ns: Netns) -> None:
    """A helper that says nothing and a link that leaves unseen before the notices are listened to."""
    ticks = iter(range(1000))

    def background(_work: object, fds: tuple[int, ...]) -> Helper:
        return Silent(fds)

    with Kernel(lambda: float(next(ticks)), background).open(host_ns.path) as host:
        host.apply(ops.bridge_add("b", None))
        with pytest.raises(KernelError) as caught:
            host.delete_link(index_of(host, "b"))

    assert caught.value.errno == ETIMEDOUT
    assert "it is still there" in caught.value.msg


def test_delete_asks_when_notices_were_lost(host_ns: Netns) -> None:
    """More notices than the socket can hold come before the one that counts."""
    listeners = Kernel(time.monotonic, thread_background)

    def background(work: Callable[[], int], fds: tuple[int, ...]) -> Helper:
        with listeners.open(host_ns.path) as other:
            for _ in range(2):
                other.apply(*[ops.link_set("lo", mtu=mtu) for mtu in range(1300, 4300)])
        assert work() == 0
        return Silent(fds)

    with Kernel(time.monotonic, background).open(host_ns.path) as host:
        host.apply(ops.bridge_add("b", None))
        host.delete_link(index_of(host, "b"))

        assert host.link("b") is None


def test_dead_helper_is_an_error(host_ns: Netns) -> None:
    def background(_work: object, fds: tuple[int, ...]) -> Helper:
        return fork_background(lambda: os._exit(9), fds)

    kernel = Kernel(time.monotonic, background)
    with kernel.open(host_ns.path) as host:
        host.apply(ops.bridge_add("b", None))
        with pytest.raises(KernelError) as caught:
            host.delete_link(index_of(host, "b"))

    assert caught.value.errno == EIO


def test_forked_helper_holds_nothing_of_its_parent() -> None:
    """Neither our output nor a lock: their other ends see the end of file while the helper still works."""
    lock_reader, lock_writer = os.pipe()
    go_reader, go_writer = os.pipe()

    helper = fork_background(lambda: len(select.select([go_reader], (), (), 20)[0]), (go_reader,))
    os.close(lock_writer)

    # The child closes all but its own before it works, so the last writer is gone.
    assert select.select([lock_reader], (), (), 10)[0] == [lock_reader]
    assert os.read(lock_reader, 1) == b""
    os.close(go_writer)
    assert select.select([helper.fileno()], (), (), 10)[0] == [helper.fileno()]
    assert os.read(helper.fileno(), 4) == (1).to_bytes(4, "little")
    until(helper.release)
    os.close(lock_reader)


def test_helpers_leave_no_zombie(host_ns: Netns, pod_ns: Netns) -> None:
    children: list[Child] = []

    def background(work: Callable[[], int], fds: tuple[int, ...]) -> Child:
        children.append(fork_background(work, fds))
        return children[-1]

    kernel = Kernel(time.monotonic, background)
    with kernel.open(host_ns.path) as host, kernel.open(pod_ns.path) as pod:
        for _ in range(5):
            veth, _ = add_pair(host, pod)
            host.delete_link(veth)

    until(kernel.release_helpers)

    assert len(children) == 5
    for child in children:
        with pytest.raises(ChildProcessError):
            os.waitpid(child.pid, os.WNOHANG)


def test_port_forwards_when_the_wait_returns(host_ns: Netns, pod_ns: Netns) -> None:
    kernel = Kernel(time.monotonic, thread_background)
    with kernel.open(host_ns.path) as host, kernel.open(pod_ns.path) as pod:
        bridge = add_bridge(host)
        veth, _ = add_pair(host, pod, bridge)

        host.wait_port(veth, 5)

        (port,) = host_ns.bridge("link", "show", "dev", "veth1")
        assert port["state"] == "forwarding"
        assert host_ns.ip("link", "show", "veth1")[0]["operstate"] == "UP"


def test_bridge_is_up_when_the_wait_returns(host_ns: Netns, pod_ns: Netns) -> None:
    """It has its carrier a moment after its first port, and drops what is sent over it until then."""
    kernel = Kernel(time.monotonic, thread_background)
    with kernel.open(host_ns.path) as host, kernel.open(pod_ns.path) as pod:
        bridge = add_bridge(host)
        for _ in range(20):
            veth, _ = add_pair(host, pod, bridge)

            host.wait_port(bridge, 5)

            found = host.link(bridge)
            assert found is not None
            assert found.operstate == OPER_UP
            assert host_ns.ip("link", "show", "dev", found.name)[0]["operstate"] == "UP"
            host.delete_link(veth)


def test_whether_a_link_goes(host_ns: Netns, pod_ns: Netns) -> None:
    kernel = Kernel(time.monotonic, thread_background)
    with kernel.open(host_ns.path) as host, kernel.open(pod_ns.path) as pod:
        veth, _ = add_pair(host, pod)

        assert not host.wait_gone(veth, 0.05)

        later = threading.Timer(0.1, host_ns.run, ("ip", "link", "del", "veth1"))
        later.start()
        assert host.wait_gone(veth, 10)
        later.join()
        assert "veth1" not in {link["ifname"] for link in host_ns.ip("link", "show")}
        assert host.wait_gone(veth, 0)


def test_port_that_never_comes_up_is_told_with_its_state(host_ns: Netns, pod_ns: Netns) -> None:
    kernel = Kernel(time.monotonic, thread_background)
    with kernel.open(host_ns.path) as host, kernel.open(pod_ns.path) as pod:
        host.apply(ops.veth_add("veth1", MAC, "eth0", PEER_MAC, pod, master=add_bridge(host)))

        with pytest.raises(KernelError) as caught:
            host.wait_port(index_of(host, "veth1"), 0.05)

        assert caught.value.errno == ETIMEDOUT
        assert "veth1 has operstate" in caught.value.msg
        with pytest.raises(KernelError) as caught:
            host.wait_port(4711, 1)
        assert caught.value.errno == ENODEV


def test_address_is_usable_when_the_wait_returns(host_ns: Netns, pod_ns: Netns) -> None:
    kernel = Kernel(time.monotonic, thread_background)
    with kernel.open(host_ns.path) as host, kernel.open(pod_ns.path) as pod:
        _, eth0 = add_pair(host, pod)
        pod.apply(ops.addr_add(eth0, ADDRESS6, 64, nodad=False))

        pod.wait_addresses(eth0, [ADDRESS6], 10)

        (found,) = [a for a in pod_ns.ip("addr", "show", "eth0")[0]["addr_info"] if a["local"] == "fd00::2"]
        assert "tentative" not in found
        assert pod_ns.ip("route", "get", "fd00::2")[0]["type"] == "local"


def test_duplicate_address_is_told(host_ns: Netns, pod_ns: Netns) -> None:
    kernel = Kernel(time.monotonic, thread_background)
    with kernel.open(host_ns.path) as host, kernel.open(pod_ns.path) as pod:
        veth, eth0 = add_pair(host, pod)
        host.apply(ops.addr_add(veth, ADDRESS6, 64, nodad=True))
        host.wait_port(veth, 5)
        pod.apply(ops.addr_add(eth0, ADDRESS6, 64, nodad=False))

        with pytest.raises(KernelError) as caught:
            pod.wait_addresses(eth0, [ADDRESS6], 10)

    assert caught.value.errno == EADDRNOTAVAIL
    assert "use address fd00::2/64" in caught.value.msg


def test_wait_for_addresses_is_bounded(host_ns: Netns, pod_ns: Netns) -> None:
    kernel = Kernel(time.monotonic, thread_background)
    with kernel.open(host_ns.path) as host, kernel.open(pod_ns.path) as pod:
        _, eth0 = add_pair(host, pod)
        pod.apply(ops.addr_add(eth0, ADDRESS6, 64, nodad=False))

        with pytest.raises(KernelError) as caught:
            pod.wait_addresses(eth0, [ADDRESS6], 0.02)

    assert caught.value.errno == ETIMEDOUT
    assert "still tentative: fd00::2" in caught.value.msg
