"""The kernel of a process that stays: handles that share sockets one after another, and deletions that share a
grace period. Each test's node is a namespace of its own, which the test's threads are in.
"""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import subprocess
import threading
import time
from errno import EAGAIN, EBADF, EIO, ENOBUFS, EOPNOTSUPP, ETIMEDOUT
from typing import TYPE_CHECKING, Any

import pytest

from cni.errors import KernelError
from cni.kernel import NetnsError, deleter, monitor, ops
from cni.kernel.netlink import Socket
from cni.kernel.resident import ResidentKernel
from tests.netns.conftest import run
from tests.netns.test_kernel_links import index_of
from tests.netns.test_kernel_waits import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cni.kernel.linux import Namespace
    from tests.netns.conftest import Netns

MANY = 100


@pytest.fixture
def node(host_ns: Netns) -> Iterator[Netns]:
    """The namespace that the test, and every thread that it starts, runs in."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(host_ns.path, os.O_RDONLY)
    assert libc.setns(there, 0) == 0
    yield host_ns
    assert libc.setns(before, 0) == 0
    os.close(there)
    os.close(before)


@pytest.fixture
def kernel(node: Netns) -> Iterator[ResidentKernel]:
    """A kernel that leaves neither a descriptor nor a thread behind."""
    gc.collect()
    fds, threads = open_fds(), threading.active_count()
    made = ResidentKernel(time.monotonic)
    yield made
    made.close()
    made.close()
    assert open_fds() == fds
    assert threading.active_count() == threads


def open_fds() -> set[str]:
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}


def add_veths(host: Namespace, count: int, prefix: str = "v") -> list[int]:
    """Pairs `v0` and `v0p`, both here; the indices of the first ones."""
    for number in range(count):
        host.apply(ops.veth_add(f"{prefix}{number}", None, f"{prefix}{number}p", None, None))
    return [index_of(host, f"{prefix}{number}") for number in range(count)]


def at_once(work: Callable[[Any], object], items: list[Any]) -> list[BaseException | None]:
    """Do the work for each item in a thread of its own, all at the same moment; what each one raised."""
    together = threading.Barrier(len(items))
    raised: list[BaseException | None] = [None] * len(items)

    def one(number: int) -> None:
        try:
            together.wait(20)
            work(items[number])
        except BaseException as error:  # noqa: BLE001 - told by the test
            raised[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(items))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised


def names(node: Netns) -> set[str]:
    return {link["ifname"] for link in node.ip("link")}


class TestOwn:
    def test_it_is_the_namespace_of_who_made_the_kernel(self, kernel: ResidentKernel, node: Netns) -> None:
        with kernel.own() as own:
            own.apply(ops.bridge_add("b", None))

        status = os.stat(node.path)
        assert (own.dev, own.ino) == (status.st_dev, status.st_ino)
        assert names(node) == {"lo", "b"}
        assert kernel.is_own(node.path)

    def test_other_namespaces_are_told_from_it(self, kernel: ResidentKernel, pod_ns: Netns) -> None:
        assert [kernel.is_own(path) for path in (pod_ns.path, "/nowhere", "nul\0")] == [False, False, False]

    def test_sockets_and_folders_are_kept(self, kernel: ResidentKernel) -> None:
        opened = []
        for _ in range(3):
            with kernel.own() as own:
                own.links()
                own.nft_has(1, "t")
                own.conf(socket.AF_INET, "lo", "forwarding")
                own.conf(socket.AF_INET6, "lo", "forwarding")
            opened.append({fd: os.readlink(f"/proc/self/fd/{fd}") for fd in open_fds()})

        assert opened[0] == opened[1] == opened[2]

    def test_closed_handle_is_not_used(self, kernel: ResidentKernel) -> None:
        own = kernel.own()
        own.links()
        own.close()
        own.close()

        for use in (own.links, lambda: own.nft_has(1, "t"), lambda: own.conf(2, "lo", "forwarding")):
            with pytest.raises(KernelError) as caught:
                use()
            assert caught.value.errno == EBADF
        with kernel.own() as other:
            assert other.link("lo") is not None

    def test_threads_do_not_read_each_others_answers(self, kernel: ResidentKernel) -> None:
        with kernel.own() as own:
            own.apply(*[ops.bridge_add(f"b{number}", None) for number in range(20)])

        def ask(number: int) -> None:
            for _ in range(30):
                with kernel.own() as own:
                    link = own.link(f"b{number}")
                    assert link is not None
                    assert link.name == f"b{number}"
                    assert len(own.links()) == 21
                    assert own.link(f"none{number}") is None

        assert at_once(ask, list(range(20))) == [None] * 20

    def test_ended_threads_leave_their_sockets_to_others(self, kernel: ResidentKernel) -> None:
        def ask(_: int) -> None:
            with kernel.own() as own:
                own.links()

        at_once(ask, [0, 1])
        before = open_fds()
        for _ in range(20):
            at_once(ask, [0])

        assert open_fds() == before

    def test_socket_out_of_step_is_replaced(self, kernel: ResidentKernel) -> None:
        """More answers than it can hold: some are lost, others are still in it."""
        with kernel.own() as own:
            own.links()
            overflow(own)
            assert own.link("lo") is not None
            assert [link.name for link in own.links()] == ["lo"]
            overflow(own)
        with kernel.own() as next_one:
            assert [link.name for link in next_one.links()] == ["lo"]

    def test_socket_is_replaced_before_its_numbers_run_out(self, kernel: ResidentKernel) -> None:
        with kernel.own() as own:
            own.links()
            own._rtnetlink()._seq = (1 << 32) - 5
        with kernel.own() as own:
            for _ in range(10):
                assert own.link("lo") is not None

    def test_family_that_is_missing_is_looked_for_again(
        self, kernel: ResidentKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "net/ipv4/conf").mkdir(parents=True)
        with monkeypatch.context() as without, kernel.own() as own:
            without.setattr(kernel, "sysctl_dir", str(tmp_path))
            assert own.conf(socket.AF_INET6, "lo", "forwarding") is None
        with kernel.own() as own:
            assert own.conf(socket.AF_INET6, "lo", "forwarding") == "0"

    def test_closed_kernel_is_not_used(self, kernel: ResidentKernel, pod_ns: Netns) -> None:
        late = kernel.own()
        late.links()
        kernel.close()

        for use in (kernel.own, lambda: kernel.open(pod_ns.path), lambda: kernel.deleter.delete(1, bool, alone=True)):
            with pytest.raises(KernelError) as caught:
                use()
            assert caught.value.errno == EBADF
        late.close()


def overflow(namespace: Namespace) -> None:
    """Lose answers of the socket's."""
    namespace._rtnetlink()._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    with pytest.raises(KernelError) as caught:
        namespace.apply(*[ops.link_set("none", up=True)] * 100)
    assert caught.value.errno == ENOBUFS


class TestPods:
    def test_pod_is_opened_and_its_caller_stays(self, kernel: ResidentKernel, node: Netns, pod_ns: Netns) -> None:
        with kernel.open(pod_ns.path) as pod:
            pod.apply(ops.bridge_add("inside", None))
            pod.set_conf(socket.AF_INET, "inside", "arp_notify", "1")
            pod.nft_has(1, "t")

        assert (names(node), names(pod_ns)) == ({"lo"}, {"lo", "inside"})
        assert os.stat("/proc/thread-self/ns/net").st_ino == os.stat(node.path).st_ino

    def test_pod_is_used_from_a_passed_descriptor(self, kernel: ResidentKernel, pod_ns: Netns) -> None:
        fd = os.open(pod_ns.path, os.O_RDONLY | os.O_CLOEXEC)

        with kernel.adopt("/a/path/of/another/mount/namespace", fd) as pod:
            assert pod.fd == fd
            pod.apply(ops.bridge_add("inside", None))

        assert names(pod_ns) == {"lo", "inside"}
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    @pytest.mark.parametrize(
        ("path", "found", "gone"),
        [
            ("/proc/self/ns/mnt", "a mount namespace", False),
            ("/dev/null", "a character device", False),
            ("/proc", "a directory", False),
            ("file", "a plain file", True),
        ],
    )
    def test_passed_descriptor_of_something_else_is_refused(
        self, kernel: ResidentKernel, tmp_path: Path, path: str, found: str, *, gone: bool
    ) -> None:
        (tmp_path / "file").touch()
        fd = os.open(tmp_path / path, os.O_RDONLY | os.O_CLOEXEC)

        with pytest.raises(NetnsError) as caught:
            kernel.adopt("/run/netns/pod", fd)

        assert f"'/run/netns/pod', found {found}" in caught.value.msg
        assert caught.value.gone is gone
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    def test_threads_visit_different_pods(self, kernel: ResidentKernel, make_netns: Callable[[], Netns]) -> None:
        pods = [make_netns() for _ in range(4)]

        def fill(pod_ns: Netns) -> None:
            for number in range(30):
                with kernel.open(pod_ns.path) as pod:
                    pod.apply(ops.bridge_add(f"{pod_ns.name[-4:]}-{number}", None))

        assert at_once(fill, pods) == [None] * 4
        for pod_ns in pods:
            assert names(pod_ns) == {"lo"} | {f"{pod_ns.name[-4:]}-{number}" for number in range(30)}

    def test_link_of_a_pod_is_deleted(self, kernel: ResidentKernel, pod_ns: Netns) -> None:
        with kernel.own() as own, kernel.open(pod_ns.path) as pod:
            own.apply(ops.veth_add("v", None, "eth0", None, pod))

            pod.delete_link(index_of(pod, "eth0"))

            assert (own.link("v"), pod.link("eth0")) == (None, None)

    def test_no_descriptor_stays_open(self, kernel: ResidentKernel, pod_ns: Netns) -> None:
        before: set[str] = set()
        for number in range(1000):
            with kernel.own() as own, kernel.open(pod_ns.path) as pod:
                own.link("lo")
                own.conf(socket.AF_INET, "all", "forwarding")
                pod.link("lo")
                pod.conf(socket.AF_INET6, "lo", "disable_ipv6")
            with kernel.adopt("p", os.open(pod_ns.path, os.O_RDONLY | os.O_CLOEXEC)) as pod, pytest.raises(KernelError):
                pod.apply(ops.link_set("none", up=True))
            with pytest.raises(NetnsError):
                kernel.open("/proc/self/ns/mnt")
            with pytest.raises(NetnsError):
                kernel.adopt("p", os.open("/dev/null", os.O_RDONLY))
            before = before or open_fds()
            assert open_fds() == before, number


class TestDeletion:
    def test_link_is_gone_when_delete_returns(self, kernel: ResidentKernel, node: Netns) -> None:
        with kernel.own() as own:
            for index in add_veths(own, 20):
                own.delete_link(index)
                assert own.link(index) is None
            own.delete_link(4711)
        assert names(node) == {"lo"}

    def test_each_is_gone_for_its_caller_when_many_are_deleted_at_once(
        self, kernel: ResidentKernel, node: Netns
    ) -> None:
        with kernel.own() as own:
            indices = add_veths(own, MANY)
            add_veths(own, 3, "other")

        def delete(index: int) -> None:
            with kernel.own() as own:
                own.delete_link(index)
                assert own.link(index) is None

        assert at_once(delete, indices) == [None] * MANY
        assert names(node) == {"lo"} | {f"other{n}" for n in range(3)} | {f"other{n}p" for n in range(3)}

    def test_what_is_asked_for_meanwhile_shares_one_request(
        self, kernel: ResidentKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = Held(monkeypatch)
        with kernel.own() as own:
            indices = add_veths(own, 11)

        with held:
            first = threading.Thread(target=delete_all, args=(kernel, indices[:1]))
            first.start()
            held.wait()
            rest = [threading.Thread(target=delete_all, args=(kernel, [index])) for index in indices[1:]]
            for thread in rest:
                thread.start()
            until(lambda: len(kernel.deleter._jobs) == 10)
        for thread in [first, *rest]:
            thread.join(20)

        assert held.batches == [[indices[0]], sorted(indices[1:])]
        with kernel.own() as own:
            assert [link.name for link in own.links()] == ["lo"]

    def test_link_of_another_kind_has_its_own_answer(
        self, kernel: ResidentKernel, node: Netns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one request: veths, a bridge, the loopback that cannot be deleted, and one that is gone already."""
        held = Held(monkeypatch)
        with kernel.own() as own:
            first, *veths, gone = add_veths(own, 4)
            own.apply(ops.bridge_add("b", None))
            indices = [*veths, index_of(own, "b"), 1, gone]
            raised: dict[int, KernelError] = {}

        def delete(index: int) -> None:
            try:
                delete_all(kernel, [index])
            except KernelError as error:
                raised[index] = error

        with held:
            threads = [threading.Thread(target=delete, args=(index,)) for index in [first]]
            threads[0].start()
            held.wait()
            threads += [threading.Thread(target=delete, args=(index,)) for index in indices]
            for thread in threads[1:]:
                thread.start()
            until(lambda: len(kernel.deleter._jobs) == len(indices))
            run("ip", "-n", node.name, "link", "del", "v3")
        for thread in threads:
            thread.join(20)

        assert {index: error.errno for index, error in raised.items()} == {1: EOPNOTSUPP}
        assert raised[1].msg.startswith("delete link 1: ")
        assert names(node) == {"lo"}

    def test_links_of_somebody_in_our_groups_stay(self, kernel: ResidentKernel, node: Netns) -> None:
        with kernel.own() as own:
            indices = add_veths(own, 20)
            add_veths(own, 3, "other")
        for number in range(3):
            run("ip", "-n", node.name, "link", "set", f"other{number}", "group", str(deleter.GROUPS + number))

        at_once(lambda index: delete_all(kernel, [index]), indices)

        assert {name for name in names(node) if not name.endswith("p")} == {"lo", "other0", "other1", "other2"}

    def test_one_link_is_deleted_by_many(self, kernel: ResidentKernel, node: Netns) -> None:
        with kernel.own() as own:
            (index,) = add_veths(own, 1)

        assert at_once(lambda _: delete_all(kernel, [index]), list(range(10))) == [None] * 10
        assert names(node) == {"lo"}

    def test_links_leave_by_another_hand_meanwhile(self, kernel: ResidentKernel, node: Netns) -> None:
        with kernel.own() as own:
            indices = add_veths(own, 20)

        def delete(number: int) -> None:
            if number % 2:
                delete_all(kernel, [indices[number]])
            else:  # may find it gone
                subprocess.run(["ip", "-n", node.name, "link", "del", f"v{number}"], check=False, capture_output=True)
                delete_all(kernel, [indices[number]])

        assert at_once(delete, list(range(20))) == [None] * 20
        assert names(node) == {"lo"}

    def test_1000_deletions_leave_no_descriptor(self, kernel: ResidentKernel) -> None:
        with kernel.own() as own:
            at_once(lambda index: delete_all(kernel, [index]), add_veths(own, MANY))
        most = len(open_fds()) + deleter.THREADS
        for _ in range(9):
            with kernel.own() as own:
                indices = add_veths(own, MANY)
            at_once(lambda index: delete_all(kernel, [index, 1]), indices)
            assert len(open_fds()) <= most


class TestDeletionFaults:
    def test_notices_that_were_lost_are_asked_for(
        self, kernel: ResidentKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lose(notices: Socket) -> list[int]:
            Socket.notices(notices)
            raise KernelError("receive the kernel's answer", ENOBUFS)

        monkeypatch.setattr(monitor._Notices, "gone", lose)
        with kernel.own() as own:
            indices = add_veths(own, 20)

        assert at_once(lambda index: delete_all(kernel, [index]), indices) == [None] * 20

    @pytest.mark.parametrize("error", [KernelError("read", EIO), ValueError("?"), OSError(EIO, "?")])
    def test_monitor_survives_whatever_happens(
        self, kernel: ResidentKernel, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(_: Socket) -> list[int]:
            raise error

        monkeypatch.setattr(monitor, "_PAUSE", 0.01)
        with kernel.own() as own:
            indices = add_veths(own, 2)
            with monkeypatch.context() as broken:
                broken.setattr(monitor._Notices, "gone", fail)
                own.delete_link(indices[0])

            own.delete_link(indices[1])

            assert [link.name for link in own.links()] == ["lo"]
            assert kernel.deleter._monitor is not None
            assert kernel.deleter._monitor._thread.is_alive()

    def test_deleting_thread_survives_whatever_happens(
        self, kernel: ResidentKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise ValueError("something unforeseen")

        with kernel.own() as own:
            first, second = add_veths(own, 2)
            with monkeypatch.context() as broken:
                broken.setattr(deleter, "_delete", fail)
                with pytest.raises(KernelError, match="something unforeseen") as caught:
                    own.delete_link(first)
            assert caught.value.errno == EIO

            own.delete_link(second)

            assert own.link(second) is None

    def test_no_thread_is_to_be_had(self, kernel: ResidentKernel, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with kernel.own() as own:
            (index,) = add_veths(own, 1)
            before = open_fds()
            with monkeypatch.context() as full:
                full.setattr(threading.Thread, "start", refuse)
                with pytest.raises(KernelError) as caught:
                    own.delete_link(index)
            assert caught.value.errno == EAGAIN
            assert open_fds() == before

            own.delete_link(index)

            assert own.link(index) is None

    def test_no_descriptor_is_to_be_had(self, kernel: ResidentKernel) -> None:
        import resource

        with kernel.own() as own:
            (index,) = add_veths(own, 1)
            before = open_fds()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                with pytest.raises(KernelError, match="EMFILE"):
                    own.delete_link(index)
                with pytest.raises((KernelError, NetnsError), match="EMFILE"):
                    kernel.open("/proc/self/ns/net")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert open_fds() == before

            own.delete_link(index)

            assert own.link(index) is None

    def test_threads_that_never_come_back_block_nobody(
        self, kernel: ResidentKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As when the kernel cannot let go of a link ("waiting for eth0 to become free")."""
        ticks = iter(range(1, 1 << 20))
        monkeypatch.setattr(deleter, "_NOTICE_SECONDS", 0.01)
        monkeypatch.setattr(kernel.deleter, "_clock", lambda: float(next(ticks)))
        held = Held(monkeypatch)
        with kernel.own() as own:
            first, second = add_veths(own, 2)
            with held:
                stuck = threading.Thread(target=lambda: at_once(lambda i: delete_all(kernel, [i]), [first]))
                stuck.start()
                held.wait()

                own.delete_link(second)

                assert own.link(second) is None
                assert own.link(first) is not None
            stuck.join(20)

    def test_link_that_stays_is_an_error(self, kernel: ResidentKernel, monkeypatch: pytest.MonkeyPatch) -> None:
        ticks = iter(range(1, 1 << 20))
        monkeypatch.setattr(deleter, "_NOTICE_SECONDS", 0.01)
        monkeypatch.setattr(kernel.deleter, "_clock", lambda: float(next(ticks)))
        held = Held(monkeypatch)
        with kernel.own() as own:
            (index,) = add_veths(own, 1)
            with held, pytest.raises(KernelError, match="still there after 30 seconds") as caught:
                own.delete_link(index)
        assert caught.value.errno == ETIMEDOUT

    def test_other_notices_do_not_wake_the_monitor(
        self, kernel: ResidentKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing but the end of a link passes the filter."""
        seen: list[tuple[int, bytes]] = []
        original = Socket.notices

        def notices(one: Socket) -> list[tuple[int, bytes]]:
            heard = original(one)
            seen.extend(heard)
            return heard

        monkeypatch.setattr(Socket, "notices", notices)
        with kernel.own() as own:
            first, second = add_veths(own, 2)
            own.delete_link(first)
            own.apply(ops.bridge_add("b", None), ops.link_set("b", up=True))
            own.apply(ops.link_set(second, master=index_of(own, "b"), up=True))
            own.apply(ops.link_set(second, master=0))
            own.delete_link(second)

        until(lambda: len(seen) >= 4)
        assert [kind for kind, _ in seen] == [17] * 4  # RTM_DELLINK, of both ends of each


class Held:
    """Lets a deletion wait in its thread, and notes what is deleted together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[int]] = []
        self._begun = threading.Event()
        self._go = threading.Event()
        original = deleter._delete

        def delete(one: Socket, jobs: list[Any]) -> None:
            self.batches.append(sorted(job.index for job in jobs))
            self._begun.set()
            assert self._go.wait(20)
            original(one, jobs)

        monkeypatch.setattr(deleter, "_delete", delete)

    def wait(self) -> None:
        assert self._begun.wait(20)

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None:
        self._go.set()


def delete_all(kernel: ResidentKernel, indices: list[int]) -> None:
    with kernel.own() as own:
        for index in indices:
            own.delete_link(index)
