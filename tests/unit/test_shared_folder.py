"""host-local's folder shared by several hosts: a lease of another host is kept, whatever boot it is of."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ipam import store
from ipam.index import Entry, origin_of, time_tag
from tests.unit.leases import Pool

if TYPE_CHECKING:
    from pathlib import Path

TINY = [{"subnet": "10.1.0.0/29"}]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)


def on(pool: Pool, host: str, boot: str = "boot 1") -> Pool:
    """The same folder, seen from a host in one of its boots."""
    pool.host, pool.boot = host, f"{host} {boot}" if host else boot
    return pool


def test_a_lease_of_another_host_is_kept(pool: Pool) -> None:
    on(pool, "a").add("pod-a")

    assert on(pool, "b").add("pod-b") == ["10.1.0.3"]
    assert on(pool, "a").add("second") == ["10.1.0.4"]
    assert pool.leases() == {"10.1.0.2": "pod-a\r\neth0", "10.1.0.3": "pod-b\r\neth0", "10.1.0.4": "second\r\neth0"}


@pytest.mark.parametrize("first", ["a", "b"])
def test_after_a_reboot_its_own_leases_are_released_and_no_others(pool: Pool, first: str) -> None:
    """Also when the other host is the first to call after it."""
    on(pool, "a").add("pod-a")
    on(pool, "b").add("pod-b")
    on(pool, first, "boot 2" if first == "a" else "boot 1").add("between")
    on(pool, "a", "boot 2").add("new-a")

    holders = {text.partition("\r")[0] for text in pool.leases().values()}
    assert holders == {"pod-b", "between", "new-a"}
    assert [line for line in pool.log if "pod-a" in line and "before the last boot" in line]


def test_a_full_pool_is_not_healed_with_another_hosts_leases(pool: Pool) -> None:
    conf = pool.conf(TINY)
    for number in range(5):
        on(pool, "a").add(f"pod{number}", conf)

    with pytest.raises(Exception, match="all 5 addresses"):
        on(pool, "b").add("new", conf)
    with pytest.raises(Exception, match="all 5 addresses"):
        pool.call("STATUS", conf)
    on(pool, "a", "boot 2").call("STATUS", conf)
    assert on(pool, "a", "boot 2").add("new", conf) == ["10.1.0.2"]


def test_a_host_that_is_not_known_is_never_the_same(pool: Pool) -> None:
    on(pool, "").add("pod")
    on(pool, "", "boot 2").add("second")
    on(pool, "a", "boot 3").add("third")
    on(pool, "", "boot 4").add("fourth")

    assert len(pool.leases()) == 4


def test_one_attachment_of_two_hosts_is_of_neither(pool: Pool) -> None:
    """An entry has room for one origin: what is not known to be ours alone is kept."""
    conf = pool.conf([{"subnet": "10.1.0.0/24"}])
    two = pool.conf([{"subnet": "10.2.0.0/24"}])
    on(pool, "a").add("pod", conf)
    on(pool, "b").add("pod", two)

    on(pool, "a", "boot 2").add("x", conf)
    on(pool, "b", "boot 2").add("y", conf)
    assert {"10.1.0.2", "10.2.0.2"} <= set(pool.leases())


def test_gc_releases_none_of_another_host(pool: Pool) -> None:
    on(pool, "a").add("pod-a")
    on(pool, "b").add("pod-b")
    pool.foreign_add("go", "10.1.0.60")

    pool.gc([])
    assert list(pool.leases()) == ["10.1.0.2"]
    on(pool, "").gc([])
    assert list(pool.leases()) == ["10.1.0.2"]
    on(pool, "a", "boot 1").gc([])
    assert pool.leases() == {}


def test_gc_releases_what_go_has_leased_again(pool: Pool) -> None:
    """The text is that of another host's lease, the file is not."""
    on(pool, "a").add("pod-a")
    pool.foreign_del("pod-a")
    pool.foreign_add("pod-a", "10.1.0.2")

    on(pool, "b").gc([])
    assert pool.leases() == {}


def test_two_hosts_in_turn_read_the_leases_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[str] = []
    walk = store.Store.walk

    def counted(self: store.Store) -> bool:
        walks.append(pool.host)
        return walk(self)

    monkeypatch.setattr(store.Store, "walk", counted)
    for number in range(6):
        on(pool, "ab"[number % 2]).add(f"pod{number}")
        if number > 1:
            pool.delete(f"pod{number - 2}")

    assert walks == ["a", "b"]


# The version before


def version_1(pool: Pool) -> None:
    """Make the index what the version before wrote."""
    for name in os.listdir(pool.own):
        if ":" in name:
            _, _, *addresses = os.readlink(pool.own / name).split(" ")
            mtime = os.stat(pool.network / addresses[0]).st_mtime_ns & 0xFFFFFFFF
            (pool.own / name).unlink()
            (pool.own / name).symlink_to(f"0123abcd {mtime:08x} {' '.join(addresses)}")
    state = (pool.own / "state").read_bytes().partition(b"\n")[2]
    (pool.own / "state").write_bytes(b"cnikit host-local index 1 0123abcd\n" + state)


def test_leases_of_the_version_before_are_kept(pool: Pool) -> None:
    """It did not say which host had made them."""
    pool.add("pod")
    version_1(pool)

    pool.boot = "boot 2"
    assert pool.add("new") == ["10.1.0.3"]
    pool.boot = "boot 3"
    assert pool.add("newer") == ["10.1.0.4"]
    assert sorted(pool.leases()) == ["10.1.0.2", "10.1.0.4"]
    pool.gc([])
    assert pool.leases() == {}


def test_entries_are_foreign_to_the_version_before() -> None:
    """It compared the second word with eight hexadecimal digits of the lease's time."""
    text = str(Entry(origin_of("a", "boot"), time_tag(1_700_000_000_123_456_789), ["10.1.0.2"]))
    assert len(text.split(" ")[1]) != 8


def test_an_entry_leaves_as_much_room_as_before() -> None:
    text = str(Entry(origin_of("a", "boot"), time_tag(0), ["10.244.255.254", "fd00:10:244:1234::fffe"]))
    assert len(text) <= len("0123abcd 01234567 10.244.255.254 fd00:10:244:1234::fffe") <= 59
