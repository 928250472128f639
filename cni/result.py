"""The result of ADD: read from any version's JSON, extended by a plugin, written in the version asked for.

Inside there is one form, that of 1.1.0 (spec section 5). 0.3.x and 0.4.0 add `version` to each address;
0.1.0 and 0.2.0 have one `ip4` and one `ip6` and no interfaces. Keys that we do not know are carried along.
"""

from __future__ import annotations

from cni import addr
from cni.config import Reader, wrong
from cni.errors import INTERNAL, CniError
from cni.version import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DNS_LISTS = ("nameservers", "search", "options")


class Interface:
    """An interface that an attachment consists of. `sandbox` is the netns path, empty on the host; `mac` is text."""

    __slots__ = ("extra", "mac", "mtu", "name", "sandbox")

    def __init__(self, name: str, mac: str = "", mtu: int = 0, sandbox: str = "") -> None:
        self.name = name
        self.mac = mac
        self.mtu = mtu
        self.sandbox = sandbox
        self.extra: dict[str, Any] = {}

    @classmethod
    def read(cls, reader: Reader) -> Interface:
        interface = cls(
            reader.string("name"), reader.string("mac"), reader.integer("mtu", low=0), reader.string("sandbox")
        )
        interface.extra = _unknown(reader, ("name", "mac", "mtu", "sandbox"))
        return interface

    def json(self, version: str) -> dict[str, Any]:
        out: dict[str, Any] = {"name": self.name}
        if self.mac:
            out["mac"] = self.mac
        if self.mtu and at_least(version, "1.1.0"):
            out["mtu"] = self.mtu
        if self.sandbox:
            out["sandbox"] = self.sandbox
        return {**out, **self.extra}


class IPConfig:
    """An address: bytes and prefix length, its gateway or None, and the index of its interface or None."""

    __slots__ = ("extra", "gateway", "interface", "packed", "prefix")

    def __init__(self, packed: bytes, prefix: int, gateway: bytes | None, interface: int | None = None) -> None:
        self.packed = packed
        self.prefix = prefix
        self.gateway = gateway
        self.interface = interface
        self.extra: dict[str, Any] = {}

    @classmethod
    def read(cls, reader: Reader, address_key: str = "address") -> IPConfig:
        packed, prefix = _cidr(reader, address_key)
        interface = reader.integer("interface", low=0) if reader.raw("interface") is not None else None
        config = cls(packed, prefix, reader.address("gateway"), interface)
        config.extra = _unknown(reader, ("version", address_key, "gateway", "interface", "routes"))
        return config

    def json(self, version: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if not at_least(version, "1.0.0"):
            out["version"] = "4" if len(self.packed) == 4 else "6"
        if self.interface is not None:
            out["interface"] = self.interface
        out["address"] = addr.unpack_cidr(self.packed, self.prefix)
        if self.gateway:
            out["gateway"] = addr.unpack(self.gateway)
        return {**out, **self.extra}


class Route:
    """A route for the pod: network bytes and prefix length, gateway or None; 0 and None mean "not said"."""

    __slots__ = ("advmss", "dst", "extra", "gateway", "mtu", "prefix", "priority", "scope", "table")

    def __init__(self, dst: bytes, prefix: int, gateway: bytes | None) -> None:
        self.dst = dst
        self.prefix = prefix
        self.gateway = gateway
        self.mtu = 0
        self.advmss = 0
        self.priority = 0
        self.table: int | None = None
        self.scope: int | None = None
        self.extra: dict[str, Any] = {}

    @classmethod
    def read(cls, reader: Reader) -> Route:
        dst, prefix = _cidr(reader, "dst")
        route = cls(dst, prefix, reader.address("gw"))
        for key in ("mtu", "advmss", "priority"):
            setattr(route, key, reader.integer(key, low=0, high=(1 << 32) - 1))
        if reader.raw("table") is not None:
            route.table = reader.integer("table", low=0, high=(1 << 32) - 1)
        if reader.raw("scope") is not None:
            route.scope = reader.integer("scope", low=0, high=255)
        route.extra = _unknown(reader, ("dst", "gw", "mtu", "advmss", "priority", "table", "scope"))
        return route

    def json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"dst": addr.unpack_cidr(self.dst, self.prefix)}
        if self.gateway:
            out["gw"] = addr.unpack(self.gateway)
        for key in ("mtu", "advmss", "priority"):
            if getattr(self, key):
                out[key] = getattr(self, key)
        for key in ("table", "scope"):
            if getattr(self, key) is not None:
                out[key] = getattr(self, key)
        return {**out, **self.extra}


class Result:
    """What ADD answers. `dns` is the spec's object as a dict, empty when nothing is set."""

    __slots__ = ("dns", "extra", "interfaces", "ips", "routes")

    def __init__(self) -> None:
        self.interfaces: list[Interface] = []
        self.ips: list[IPConfig] = []
        self.routes: list[Route] = []
        self.dns: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}

    @classmethod
    def read(cls, reader: Reader) -> Result:
        """From the JSON of any version (its form shows which); CniError 7 on wrong types."""
        result = cls()
        result.interfaces = [Interface.read(item) for item in reader.objects("interfaces")]
        result.ips = [IPConfig.read(item) for item in reader.objects("ips")]
        result.routes = [Route.read(item) for item in reader.objects("routes")]
        for key in ("ip4", "ip6"):
            if reader.raw(key) is not None:
                old = reader.object(key)
                result.ips.append(IPConfig.read(old, "ip"))
                result.routes += [Route.read(item) for item in old.objects("routes")]
        result.dns = read_dns(reader.object("dns"))
        result.extra = _unknown(reader, ("cniVersion", "interfaces", "ips", "routes", "dns", "ip4", "ip6"))
        return result

    def json(self, version: str) -> dict[str, Any]:
        """As the JSON object of one spec version; CniError 999 when that version cannot express it."""
        out: dict[str, Any] = {"cniVersion": version}
        if not at_least(version, "0.3.0"):
            out.update(self._old_addresses())
        else:
            if self.interfaces:
                out["interfaces"] = [item.json(version) for item in self.interfaces]
            if self.ips:
                out["ips"] = [item.json(version) for item in self.ips]
            if self.routes:
                out["routes"] = [item.json() for item in self.routes]
        if self.dns:
            out["dns"] = self.dns
        return {**out, **self.extra}

    def _old_addresses(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for size, key in ((4, "ip4"), (16, "ip6")):
            ours = [item for item in self.ips if len(item.packed) == size]
            if not ours:
                continue
            out[key] = {"ip": addr.unpack_cidr(ours[0].packed, ours[0].prefix)}
            if ours[0].gateway:
                out[key]["gateway"] = addr.unpack(ours[0].gateway)
            routes = [item for item in self.routes if len(item.dst) == size]
            if routes:
                out[key]["routes"] = [Route(item.dst, item.prefix, item.gateway).json() for item in routes]
        if not out:
            # The reference's words. Only from 0.3.0 on can an attachment be without addresses.
            raise CniError(INTERNAL, "cannot convert: no valid IP addresses")
        return out


def read_dns(reader: Reader) -> dict[str, Any]:
    """The spec's `dns` object with its types checked; empty when nothing is set."""
    dns: dict[str, Any] = {}
    for key in ("nameservers", "domain", "search", "options"):
        value = reader.strings(key) if key in DNS_LISTS else reader.string(key)
        if value:
            dns[key] = value
    return dns


def read_routes(reader: Reader, key: str) -> list[Route]:
    """Routes of a configuration (`ipam.routes`)."""
    found = []
    for item in reader.objects(key):
        try:
            found.append(Route.read(item))
        except CniError as error:
            reader.refuse(error)
    return found


def _cidr(reader: Reader, key: str) -> tuple[bytes, int]:
    found = reader.raw(key)
    parsed = addr.pack_cidr(found) if isinstance(found, str) else None
    if parsed is None:
        raise wrong(reader.at(key), "an address with prefix length such as 10.1.0.2/24", found)
    return parsed


def _unknown(reader: Reader, known: tuple[str, ...]) -> dict[str, Any]:
    lowered = {key.casefold() for key in known}
    return {key: value for key, value in reader.value.items() if key.casefold() not in lowered}
