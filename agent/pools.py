"""Leases used and free, by network and range set, of the pools of host-local that calls have named.

A lease is a file that anybody may make, so files are what is counted. A folder of 60,000 is not read again for each
scrape: then the bitmaps of the index answer (`ipam/index.py`). No lock is taken.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.exposition import lean
from cni import addr
from cni.config import Reader
from cni.errors import CniError
from cni.execute import plugin_behind
from ipam.index import Index
from ipam.ranges import read_sets
from ipam.store import DEFAULT_DATA_DIR, OWN_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from agent.report import Account
    from agent.service import Served
    from ipam.ranges import RangeSet

HOST_LOCAL = "host-local"

MOST_POOLS = 100  # the ones that were named last
MOST_SETS = 8  # of one pool

# Up to here the files are counted whenever something has changed.
SMALL = 4096
# A larger folder that the index does not know is read no more often than this.
SELDOM = 30.0
# Pages of the bitmap that are looked at for each range. An IPv6 subnet has more than any disk.
_PAGES = 64
# A folder that changed this long ago, and not since, has not changed within the same tick of its clock.
_TICK_NS = 100_000_000


class Usage(NamedTuple):
    """One range set's addresses."""

    network: str
    range_set: str
    used: int
    free: int


class Pool:
    """The folder of one network's leases, its range sets, and what was last counted there."""

    def __init__(self, network: str, data_dir: str, asked: Any, sets: Sequence[RangeSet]) -> None:
        self.network = network
        self.folder = f"{data_dir}/{network}"
        self.own = f"{data_dir}/{OWN_FOLDER}/{network}"
        self.asked = asked
        self.sets = sets
        self._used: list[int] = []
        self._listed = 0
        self._changed = -1  # the folder's modification time when it was counted; -1: count again
        self._counted = 0.0

    def usages(self, now: float) -> Iterator[Usage]:
        used = self._count(now)
        for item, count in zip(self.sets, used, strict=True):
            yield Usage(self.network, str(item.index), count, max(0, item.size - count))

    def _count(self, now: float) -> list[int]:
        try:
            changed = os.stat(self.folder).st_mtime_ns
        except OSError:  # nobody has a lease yet
            return [0] * len(self.sets)
        if changed == self._changed:
            return self._used
        index = Index(self.own, self.folder)
        marked = [sum(_marked(index, one) for one in item.ranges) for item in self.sets] if _whole(index) else []
        if sum(marked) > SMALL:
            return marked
        if not marked and self._listed > SMALL and now - self._counted < SELDOM:
            return self._used
        self._used = self._files()
        self._counted = now
        self._changed = changed if time.time_ns() - changed > _TICK_NS else -1
        return self._used

    def _files(self) -> list[int]:
        used = [0] * len(self.sets)
        names = os.listdir(self.folder)
        self._listed = len(names)
        for at, name in enumerate(names):
            packed = addr.pack(name)
            for position, item in enumerate(self.sets if packed else ()):
                found = item.range_for(packed or b"")
                if found is not None and found.gateway != packed:
                    used[position] += 1
            if at % 500 == 499:
                time.sleep(0)  # lets a call go first that waits for the interpreter
        return used


class Pools:
    """The pools that calls have named. Given every call; `usages` is for another thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pools: dict[tuple[str, str], Pool] = {}

    def __call__(self, account: Account, served: Served) -> None:
        call = served.call
        if call is None or account.command not in ("ADD", "CHECK", "STATUS") or account.outcome not in ("ok", "error"):
            return
        config = call.context.config
        try:
            self._note(account.network, config, call.request.path)
        except CniError:
            pass  # a configuration that was refused

    def _note(self, network: str, config: Reader, path: Sequence[str]) -> None:
        ipam = config.object("ipam")
        kind, data_dir = ipam.string("type"), ipam.string("dataDir") or DEFAULT_DATA_DIR
        if not data_dir.startswith("/") or not (kind == HOST_LOCAL or plugin_behind(kind, path) == HOST_LOCAL):
            return
        key = (network, data_dir)
        asked = (ipam.value, config.object("runtimeConfig").raw("ipRanges"))
        known = self._pools.get(key)
        if known is not None and known.asked == asked:
            return
        pools = {name: pool for name, pool in self._pools.items() if name != key}
        for name in list(pools)[: max(0, len(pools) + 1 - MOST_POOLS)]:
            del pools[name]
        pools[key] = Pool(network, data_dir, asked, read_sets(config)[:MOST_SETS])
        self._pools = pools  # a new one: somebody may be reading the old one

    def usages(self) -> Iterator[Usage]:
        now = self._clock()
        for pool in list(self._pools.values()):
            yield from pool.usages(now)

    def families(self) -> Iterator[Metric]:
        """Two gauges. Networks of one name with several folders count together."""
        core = lean("metrics_core")
        labels = ("network", "range_set")
        used = core.GaugeMetricFamily("cnikit_leases_used", "Addresses with a lease, whoever made it.", labels=labels)
        free = core.GaugeMetricFamily("cnikit_leases_free", "Addresses that can be handed out.", labels=labels)
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        for usage in self.usages():
            before = sums.get(usage[:2], (0, 0))
            sums[usage[:2]] = (before[0] + usage.used, before[1] + usage.free)
        for key, (one, two) in sorted(sums.items()):
            used.add_metric(key, one)
            free.add_metric(key, two)
        yield used
        yield free


def _whole(index: Index) -> bool:
    try:
        return index.load()
    except OSError:
        return False


def _marked(index: Index, item: Any) -> int:
    last = min(item.last, item.first + (_PAGES << 15))
    count = index.marked(item.width, item.first, last)
    gateway = int.from_bytes(item.gateway, "big") if item.gateway in item else -1
    return count - (index.marked(item.width, gateway, gateway) if item.first <= gateway <= last else 0)
