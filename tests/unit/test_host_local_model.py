"""host-local against a model that a child could draw: who holds which address.

Our calls, the Go program's, restarts of the node, killed writers and a damaged index come in any order.
Two never hold one address, DEL frees all that its attachment held, and no address is lost for ever.
"""

from __future__ import annotations

import os
import posix
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cni.errors import CniError
from tests.unit.leases import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUBNET = [{"subnet": "10.1.0.0/28"}]
ADDRESSES = [f"10.1.0.{last}" for last in range(2, 15)]
CONTAINERS = st.sampled_from([f"c{number}" for number in range(9)])


class Leases(RuleBasedStateMachine):
    """`held` is what the folder must say.

    `dead` are leases of ours from an earlier boot, which may go at any time.
    """

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.pool = Pool(self.folder)
        self.conf = self.pool.conf(SUBNET)
        self.held: dict[str, str] = {}
        self.ours: set[str] = set()
        self.dead: dict[str, str] = {}
        self.copy = self.folder / "copy"

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def of(self, container: str) -> list[str]:
        return [address for address, who in self.held.items() if who == container]

    def free(self) -> list[str]:
        return [address for address in ADDRESSES if address not in self.held]

    def settle(self) -> None:
        """What of the dead is gone now."""
        there = self.pool.leases()
        self.dead = {address: who for address, who in self.dead.items() if address in there}

    @rule(container=CONTAINERS)
    def add(self, container: str) -> None:
        try:
            (address,) = self.pool.add(container, self.conf)
        except CniError as error:
            assert "duplicate allocation" in error.msg if self.of(container) else error.code == 11
            assert self.of(container) or not self.free()
            return
        assert not self.of(container)
        self.granted(container, address)

    @rule(container=CONTAINERS, address=st.sampled_from(ADDRESSES))
    def request(self, container: str, address: str) -> None:
        try:
            assert self.pool.add(container, self.conf, f"IP={address}") == [address]
        except CniError as error:
            assert error.code == 11
            assert address in self.held
            return
        self.granted(container, address)

    def granted(self, container: str, address: str) -> None:
        assert address in self.free()
        self.dead.pop(address, None)
        # Beside a lease of Go's, a second one of the same attachment counts as Go's: it is not released for its age.
        if self.ours.issuperset(self.of(container)):
            self.ours.add(address)
        self.held[address] = container

    @rule(container=CONTAINERS)
    def delete(self, container: str) -> None:
        self.pool.call("DEL", self.conf, container)
        self.forget(container)

    def forget(self, container: str) -> None:
        for address in self.of(container):
            del self.held[address]
            self.ours.discard(address)

    @rule(container=CONTAINERS)
    def check(self, container: str) -> None:
        try:
            self.pool.call("CHECK", self.conf, container)
        except CniError:
            assert not self.of(container)
        else:
            assert self.of(container)

    @rule(keep=st.sets(CONTAINERS))
    def gc(self, keep: set[str]) -> None:
        self.pool.gc(keep, self.conf)
        for container in set(self.held.values()) - keep:
            self.forget(container)

    @rule()
    def status(self) -> None:
        try:
            self.pool.call("STATUS", self.conf)
        except CniError as error:
            assert error.code == 50
            assert not self.free()
        else:
            assert self.free()

    @rule(container=CONTAINERS, number=st.integers(0, 99), told=st.booleans())
    def foreign_add(self, container: str, number: int, *, told: bool) -> None:
        """Go leases; or it is killed before it has told `last_reserved_ip`, which nobody lets it do twice."""
        self.settle()
        free = [address for address in self.free() if address not in self.pool.leases()]
        if self.of(container) or container in self.dead.values() or not free:
            return
        address = free[number % len(free)]
        self.pool.plant(address, f"{container}\r\neth0")
        # The folder's clock stands still within a call; that of two programs does not.
        now = time.time_ns()
        os.utime(self.pool.network / address, ns=(now, now))
        if told:
            (self.pool.network / "last_reserved_ip.0").write_text(address)
        self.held[address] = container
        if not told:
            self.pool.call("CHECK", self.conf, container)

    @rule(container=CONTAINERS)
    def foreign_del(self, container: str) -> None:
        self.pool.foreign_del(container)
        self.forget(container)
        self.dead = {address: who for address, who in self.dead.items() if who != container}

    @rule(number=st.integers(0, 99))
    def torn_lease(self, number: int) -> None:
        self.settle()
        free = [address for address in self.free() if address not in self.pool.leases()]
        if free:
            self.pool.plant(free[number % len(free)], "")

    @rule(data=st.binary(max_size=80))
    def state_garbled(self, data: bytes) -> None:
        if self.pool.own.exists():
            (self.pool.own / "state").write_bytes(data)

    @rule()
    def bitmaps_lost(self) -> None:
        for page in self.pool.own.glob("used-*"):
            page.unlink()

    @rule()
    def bitmaps_garbled(self) -> None:
        for page in self.pool.own.glob("used-*"):
            page.write_bytes(b"\xff" * 5000)

    @invariant()
    def folder_agrees(self) -> None:
        there = {address: text for address, text in self.pool.leases().items() if text}
        expected = {address: f"{who}\r\neth0" for address, who in self.held.items()}
        dead = {address: f"{who}\r\neth0" for address, who in self.dead.items() if address not in self.held}
        assert expected.items() <= there.items()
        assert there.items() <= {**dead, **expected}.items()


class Reboots(Leases):
    """Which leases are ours is known by the index alone, so a node that loses it may keep dead leases."""

    @rule()
    def reboot(self) -> None:
        self.pool.boot += "+"
        for address in self.ours:
            self.dead[address] = self.held.pop(address)
        self.ours.clear()


class LostIndex(Leases):
    """The index is lost, or an old one comes back."""

    @rule()
    def index_copied(self) -> None:
        if self.pool.own.exists():
            shutil.rmtree(self.copy, ignore_errors=True)
            shutil.copytree(self.pool.own, self.copy, symlinks=True)

    @rule()
    def index_restored(self) -> None:
        if self.copy.exists():
            shutil.rmtree(self.pool.own, ignore_errors=True)
            shutil.copytree(self.copy, self.pool.own, symlinks=True)

    @rule()
    def index_deleted(self) -> None:
        if self.pool.own.exists():
            shutil.rmtree(self.pool.own)


TestReboots = Reboots.TestCase
TestReboots.settings = settings(max_examples=40, stateful_step_count=40)
TestLostIndex = LostIndex.TestCase
TestLostIndex.settings = settings(max_examples=40, stateful_step_count=40)


# Killed writers. The child dies at its n-th system call that changes something; the parent goes on.

CHANGES = ("open", "link", "symlink", "unlink", "rename", "write", "pwrite", "ftruncate", "utime", "mkdir", "close")
TINY = [{"subnet": "10.1.0.0/29"}]


def die_at(nth: int, work: Callable[[], object]) -> bool:
    """Whether `work` was killed before its `nth` change in a child process; else it has come to its end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == nth:
                os._exit(9)
            return call(*args, **keywords)

        return wrapper

    try:
        for name in CHANGES:
            setattr(posix, name, counted(getattr(posix, name)))
        work()
    finally:
        os._exit(0)


def every_death(folder: Path, arrange: Callable[[Pool], None], work: Callable[[Pool], object]) -> Iterator[Pool]:
    """A pool for every point at which `work` can die."""
    for nth in range(1, 200):
        pool = Pool(folder / str(nth))
        arrange(pool)
        if not die_at(nth, lambda pool=pool: work(pool)):  # type: ignore[misc]
            assert nth > 10
            return
        yield pool
    pytest.fail("the work never ended")


def two(pool: Pool) -> dict[str, Any]:
    return pool.conf(TINY, [{"subnet": "fd00::/125"}])


def one_other(pool: Pool) -> None:
    pool.add("other", two(pool))


def holders_of_a_full_pool(pool: Pool) -> list[str]:
    """Who holds the five IPv4 addresses when more have asked for one than there are."""
    for number in range(7):
        try:
            pool.add(f"late{number}", two(pool))
        except CniError as error:
            assert error.code == 11
    found = pool.leases()
    return [text.partition("\r")[0] for address, text in sorted(found.items()) if ":" not in address]


def test_an_add_killed_anywhere_holds_nothing_after_del(tmp_path: Path) -> None:
    for pool in every_death(tmp_path, one_other, lambda pool: pool.add("pod", two(pool))):
        pool.delete("pod")
        assert set(pool.leases().values()) == {"other\r\neth0"}
        assert sorted(holders_of_a_full_pool(pool)) == ["late0", "late1", "late2", "late3", "other"]


def test_an_add_killed_anywhere_shares_nothing_before_del(tmp_path: Path) -> None:
    for pool in every_death(tmp_path, one_other, lambda pool: pool.add("pod", two(pool))):
        holders = holders_of_a_full_pool(pool)
        assert len(holders) == 5
        assert holders.count("pod") <= 1
        pool.delete("pod")
        assert "pod\r\neth0" not in pool.leases().values()
        for container in ("late0", "late1", "late2", "late3", "late4", "other"):
            pool.delete(container)
        assert pool.leases() == {}
        assert len(holders_of_a_full_pool(pool)) == 5


def test_a_del_killed_anywhere_is_ended_by_the_next(tmp_path: Path) -> None:
    def arrange(pool: Pool) -> None:
        one_other(pool)
        pool.add("pod", two(pool))

    for pool in every_death(tmp_path, arrange, lambda pool: pool.delete("pod")):
        pool.delete("pod")
        assert set(pool.leases().values()) == {"other\r\neth0"}
        assert len(holders_of_a_full_pool(pool)) == 5


def test_a_walk_killed_anywhere_is_done_again(tmp_path: Path) -> None:
    def arrange(pool: Pool) -> None:
        one_other(pool)
        pool.foreign_add("theirs", "10.1.0.5")
        pool.plant("10.1.0.6", "")

    for pool in every_death(tmp_path, arrange, lambda pool: pool.add("pod", two(pool))):
        assert sorted(set(holders_of_a_full_pool(pool)) - {"pod"})[-2:] == ["other", "theirs"]
        for container in ("theirs", "pod", "other"):
            pool.delete(container)
        assert not {text for text in pool.leases().values() if not text.startswith("late")}
