"""What ADD, or the agent at its start, refuses in one plugin's configuration: asked of their own code.

There is no second list of rules. The plugin's `Conf` is made from a `Collecting` reader, which remembers a refusal where
the plugin's own raises it, and goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cni import addr
from cni.config import Reader, Refusal, mapping
from cni.errors import CniError
from cni.request import Request
from cni.result import IPConfig, Result, Route
from ipam import host_local, ranges
from plugins import bridge_conf, pod_network
from plugins.attachment import complete, unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.cluster import Options
    from ipam.ranges import Range, RangeSet

T = TypeVar("T")

CLUSTER = ("vxlan", "host-gw")
KINDS = ("bridge", *CLUSTER)
_WHO = Request({"CNI_COMMAND": "STATUS"})


class Collecting(Reader):
    """A reader that remembers what is refused, gives the default instead, and so does all that it leads to."""

    __slots__ = ("refused",)

    def __init__(self, value: dict[str, Any], path: str = "", refused: list[CniError] | None = None) -> None:
        super().__init__(value, path)
        self.refused = [] if refused is None else refused

    def refuse(self, error: CniError) -> None:
        if error.msg not in {earlier.msg for earlier in self.refused}:
            self.refused.append(error)

    def string(self, key: str, default: str = "") -> str:
        return self._or(default, lambda: Reader.string(self, key, default))

    def boolean(self, key: str, default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as in Reader
        return self._or(default, lambda: Reader.boolean(self, key, default))

    def integer(self, key: str, default: int = 0, *bounds: int, **named: int) -> int:
        return self._or(default, lambda: Reader.integer(self, key, default, *bounds, **named))

    def object(self, key: str) -> Reader:
        found = self._or(Reader({}, self.at(key)), lambda: Reader.object(self, key))
        return Collecting(found.value, found.path, self.refused)

    def array(self, key: str) -> list[tuple[str, Any]]:
        return self._or([], lambda: Reader.array(self, key))

    def entry(self, path: str, value: Any) -> Reader:
        return Collecting(mapping(path, value), path, self.refused)

    def objects(self, key: str) -> list[Reader]:
        found: list[Reader] = []
        for path, item in self.array(key):
            try:
                found.append(self.entry(path, item))
            except CniError as error:
                self.refuse(error)
        return found

    def strings(self, key: str) -> list[str]:
        return self._or([], lambda: Reader.strings(self, key))

    def address(self, key: str) -> bytes | None:
        return self._or(None, lambda: Reader.address(self, key))

    def mac(self, key: str) -> bytes | None:
        return self._or(None, lambda: Reader.mac(self, key))

    def _or(self, default: T, read: Callable[[], T]) -> T:
        try:
            return read()
        except CniError as error:
            self.refuse(error)
            return default


class Found(NamedTuple):
    """What a configuration is, as far as it can be read, and what is refused in it."""

    refused: list[CniError]
    bridge: bridge_conf.Conf | None = None
    cluster: pod_network.Conf | None = None
    options: Options | None = None  # the agent's
    ipam: host_local.Conf | None = None

    @property
    def sets(self) -> list[RangeSet]:
        return self.ipam.sets if self.ipam else []


def of(value: dict[str, Any], version: str) -> Found:
    """One plugin's configuration, with the network's `name`. Paths are relative to it."""
    reader = Collecting(value)
    kind = reader.raw("type")
    bridge, cluster, options, ipam = None, None, None, None
    if kind == "bridge":
        bridge = _tried(reader, lambda: bridge_conf.Conf(reader, _WHO))
        for fault in bridge.contradictions() if bridge else ():
            reader.refuse(fault)
    elif kind in CLUSTER:
        cluster = _tried(reader, lambda: pod_network.Conf(reader, _WHO))
        if cluster and cluster.attachment == bridge_conf.BRIDGED:
            for fault in cluster.link().contradictions():
                reader.refuse(fault)
        if reader.raw("membership") is not None or reader.raw("peers") is not None:
            from agent.cluster import options_of

            options = _tried(reader, lambda: options_of(reader))
    found = reader.raw("ipam")
    if kind not in CLUSTER and isinstance(found, dict) and Reader(found).raw("type") == "host-local":
        ipam = _tried(reader, lambda: host_local.Conf(reader, _WHO))
        if ipam:
            ranges.check_families(ipam.sets, version, reader)
            if ipam.resolv_conf:
                _tried(reader, lambda: host_local.read_resolv_conf(ipam.resolv_conf))
    if bridge and ipam and not reader.refused:
        for fault in _unusable(bridge, ipam):
            reader.refuse(fault)
    refused = [error for error in reader.refused if not _comes_later(reader, error)]
    return Found(refused, bridge, cluster, options, ipam)


def _unusable(bridge: bridge_conf.Conf, ipam: host_local.Conf) -> Iterator[Refusal]:
    """What of the addresses that pods will get ADD refuses: that of the ranges is asked for, one after the other."""
    for turn in range(max((len(one.ranges) for one in ipam.sets), default=0)):
        chosen = [one.ranges[min(turn, len(one.ranges) - 1)] for one in ipam.sets]
        lease = Result()
        lease.ips = [IPConfig(_first(one), one.prefix, one.gateway) for one in chosen]
        lease.routes = [_copied(route) for route in ipam.routes]
        complete(lease, bridge)
        for fault in unusable(lease, bridge):
            where, _, key = fault.path.partition("].")
            what, _, index = where.partition("[")
            if what == "routes":
                fault.path = f"ipam.{fault.path}"
            else:
                one = chosen[int(index)]
                is_given = key == "gateway" and one.gateway != addr.following(one.network)
                fault.path = f"{one.path}.{'gateway' if is_given else 'subnet'}"
            yield fault


def _first(found: Range) -> bytes:
    """The first address that a pod gets."""
    first = found.packed(found.first)
    return addr.following(first) if first == found.gateway and found.size else first


def _copied(route: Route) -> Route:
    """A route of its own for `complete` to change."""
    return Route.read(Reader(route.json()))


def place(error: CniError, otherwise: str) -> tuple[str, str, str]:
    """Path, message and remedy of a refusal; the path is `otherwise` when it names none."""
    if isinstance(error, Refusal):
        return error.path, error.reason, error.remedy
    path, colon, message = error.msg.partition(": ")
    if colon and path and " " not in path:
        return path, message, error.details
    return otherwise, error.msg, error.details


def _tried(reader: Reader, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except CniError as error:
        reader.refuse(error)
        return None


def _comes_later(reader: Reader, error: CniError) -> bool:
    """Whether only the file lacks it: the runtime gives ranges to a plugin that declares the capability."""
    declared = isinstance(reader.raw("capabilities"), dict) and reader.raw("capabilities").get("ipRanges") is True
    return declared and isinstance(error, Refusal) and error.msg.startswith("no IP ranges specified")
