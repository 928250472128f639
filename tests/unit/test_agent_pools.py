"""Leases used and free: whatever made the files, and without reading a large folder."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from agent import pools
from agent.pools import Pools, Usage
from cni.config import Reader
from cni.start import Stamp
from tests.unit.leases import Pool
from tests.unit.test_agent_metrics import account, labels, read

if TYPE_CHECKING:
    from pathlib import Path

V4 = [{"subnet": "10.1.0.0/24"}]  # 253 addresses beside the gateway
V6 = [{"subnet": "fd00::/120", "rangeEnd": "fd00::ff"}]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)


@pytest.fixture
def known(clock: Clock) -> Pools:
    return Pools(clock)


def name(known: Pools, conf: dict[str, Any], path: tuple[str, ...] = (), **given: Any) -> None:
    """A call that had this configuration, and this CNI_PATH."""
    call = SimpleNamespace(context=SimpleNamespace(config=Reader(conf)), request=SimpleNamespace(path=path))
    known(account(network=conf.get("name", ""), **given), SimpleNamespace(call=call))  # type: ignore[arg-type]


def used(known: Pools) -> list[int]:
    return [usage.used for usage in known.usages()]


def settle_folder(pool: Pool) -> None:
    """The folder has changed a while ago."""
    past = time.time() - 10
    os.utime(pool.network, (past, past))


def test_each_range_set_of_a_network(pool: Pool, known: Pools) -> None:
    conf = pool.conf(V4, V6)
    for number in range(3):
        pool.add(f"pod{number}", conf)
    name(known, conf)
    assert list(known.usages()) == [Usage("net", "0", 3, 250), Usage("net", "1", 3, 251)]


def test_a_copy_of_host_local_is_one(pool: Pool, known: Pools, tmp_path: Path) -> None:
    (tmp_path / "cnv-ipam").write_bytes(
        Stamp("host-local", "build", "code").written(b"\x7fcnikit-stamp1\n\0" + bytes(384))
    )
    conf = pool.conf(V4)
    conf["ipam"]["type"] = "cnv-ipam"

    name(known, conf, path=("/nowhere",))
    assert list(known.usages()) == []
    name(known, conf, path=(str(tmp_path),))
    assert [usage.used for usage in known.usages()] == [0]


def test_leases_of_others_count_at_once(pool: Pool, known: Pools) -> None:
    name(known, pool.conf())
    assert used(known) == [0], "there is no folder yet"
    pool.add("ours")
    assert used(known) == [1]
    pool.foreign_add("theirs", "10.1.0.77")
    assert used(known) == [2]
    pool.foreign_del("theirs")
    assert used(known) == [1]


def test_only_addresses_of_the_ranges_count(pool: Pool, known: Pools) -> None:
    name(known, pool.conf())
    for foreign in ("10.2.0.5", "10.1.0.1", "fd00::5", "notes.txt"):  # another network, the gateway, a file
        pool.plant(foreign, "x\r\neth0")
    pool.add("pod")
    assert used(known) == [1]


def test_a_folder_that_has_not_changed_is_not_read_again(
    pool: Pool, known: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.add("pod")
    name(known, pool.conf())
    settle_folder(pool)
    assert used(known) == [1]
    monkeypatch.setattr(os, "listdir", None)
    assert used(known) == [1]


def test_a_folder_that_changed_a_moment_ago_is_read_again(pool: Pool, known: Pools) -> None:
    pool.add("pod")
    name(known, pool.conf())
    assert used(known) == [1]
    before = pool.network.stat()
    pool.foreign_add("b", "10.1.0.9")
    os.utime(pool.network, ns=(before.st_mtime_ns, before.st_mtime_ns))  # within the same tick
    assert used(known) == [2]


class TestALargePool:
    """More leases than are counted file by file."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pools, "SMALL", 5)

    def fill(self, pool: Pool, count: int) -> dict[str, Any]:
        conf = pool.conf(V4, V6)
        for number in range(count):
            pool.add(f"pod{number}", conf)
        return conf

    def test_is_not_listed(self, pool: Pool, known: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
        name(known, self.fill(pool, 20))
        monkeypatch.setattr(os, "listdir", None)
        assert list(known.usages()) == [Usage("net", "0", 20, 233), Usage("net", "1", 20, 234)]
        pool.delete("pod3")
        assert used(known) == [19, 19]

    def test_a_lease_at_the_gateway_is_none_of_the_range(self, pool: Pool, known: Pools) -> None:
        conf = self.fill(pool, 10)
        pool.plant("10.1.0.1", "x\r\neth0")
        pool.gc([f"pod{number}" for number in range(10)], conf)  # walks, and marks what it finds
        pool.add("pod10", conf)
        name(known, conf)
        assert used(known)[0] == 11

    def test_that_others_have_changed_is_read_again_but_seldom(self, pool: Pool, known: Pools, clock: Clock) -> None:
        name(known, self.fill(pool, 20))
        pool.foreign_add("theirs", "10.1.0.200")
        assert used(known) == [21, 20], "the index knows nothing of this one"
        pool.foreign_add("another", "10.1.0.201")
        clock.now += pools.SELDOM - 1
        assert used(known) == [21, 20]
        clock.now += 1
        assert used(known) == [22, 20]

    def test_a_range_that_crosses_the_index_pages(self, pool: Pool, known: Pools) -> None:
        conf = pool.conf([{"subnet": "10.1.0.0/16", "rangeStart": "10.1.127.250", "rangeEnd": "10.1.128.10"}])
        for number in range(12):
            pool.add(f"pod{number}", conf)
        name(known, conf)
        assert list(known.usages()) == [Usage("net", "0", 12, 5)]

    def test_a_range_that_no_disk_could_fill(self, pool: Pool, known: Pools) -> None:
        conf = pool.conf([{"subnet": "fd00::/64"}])
        for number in range(10):
            pool.add(f"pod{number}", conf)
        name(known, conf)
        assert used(known) == [10]


class TestWhichPools:
    def test_those_of_refused_calls_are_none(self, pool: Pool, known: Pools) -> None:
        name(known, pool.conf([{"subnet": "10.1.0.0/33"}]), outcome="error")
        name(known, {"name": "net", "ipam": {"type": "dhcp"}})
        name(known, {"name": "net", "ipam": 7})
        name(known, {"name": "net"})
        name(known, pool.conf(dataDir="relative"))
        name(known, pool.conf(), command="DEL")
        known(account(), SimpleNamespace(call=None))  # type: ignore[arg-type]
        assert list(known.usages()) == []

    def test_a_network_that_changes_is_the_same_pool(self, pool: Pool, known: Pools) -> None:
        name(known, pool.conf(V4))
        name(known, pool.conf([{"subnet": "10.1.0.0/29"}]))
        assert [usage.free for usage in known.usages()] == [5]

    def test_many_networks_do_not_fill_the_memory(self, pool: Pool, known: Pools) -> None:
        for number in range(pools.MOST_POOLS * 3):
            name(known, {**pool.conf(), "name": f"net{number}"})
        names = {usage.network for usage in known.usages()}
        assert len(names) == pools.MOST_POOLS
        assert f"net{pools.MOST_POOLS * 3 - 1}" in names
        assert "net0" not in names

    def test_folders_of_one_name_count_together(self, pool: Pool, known: Pools, tmp_path: Path) -> None:
        pool.add("pod")
        name(known, pool.conf())
        name(known, pool.conf(dataDir=str(tmp_path / "elsewhere")))
        found = read(known.families)
        key = labels(network="net", range_set="0")
        assert found["cnikit_leases_used", key] == 1
        assert found["cnikit_leases_free", key] == 252 + 253
