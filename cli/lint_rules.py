"""The rules of `cnikit lint` that a schema cannot express: what keys mean together, and to the kernel.

Errors are what a runtime or a plugin refuses; warnings what works, but hardly as meant. Each rule reads one
configuration that is sound by its schema. Range arithmetic is host-local's own (`ipam/ranges.py`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cli import lint_cluster
from cni import addr, jsonio, netlist
from cni.config import Reader, items
from cni.errors import CniError
from cni.execute import find
from cni.version import at_least
from ipam.ranges import Range

if TYPE_CHECKING:
    from cli.findings import Report

# Keys that any plugin may hold, and those that the runtime puts in; neither is an unknown key.
RESERVED = ("runtimeconfig", "prevresult")
EVERYWHERE = ("name", "cniversion", "type", "ipam", "dns", "capabilities", "args", "ipmasq", *RESERVED)

IPV4_MTU, IPV6_MTU = addr.LEAST_MTU.values()


def network(value: dict[str, Any], folder: str, report: Report) -> None:
    """The list itself."""
    plugins, name = value.get("plugins"), value.get("name")
    if plugins is None and value.get("loadOnlyInlinedPlugins") in (True, "true"):
        remedy = "add plugins, or leave loadOnlyInlinedPlugins out"
        report.error("plugins", "expected a list, because loadOnlyInlinedPlugins is true; found none", remedy)
    elif plugins is None and isinstance(name, str):
        place = os.path.join(folder, os.path.basename(name))
        if not netlist.files(place, (".conf",)):
            message = f"expected plugins here or in {place}/*.conf, found none"
            report.error("plugins", message, "list at least one plugin")
    old = value.get("cniVersion", "0.1.0") in ("0.1.0", "0.2.0") and "cniVersions" not in value
    if old and isinstance(plugins, list) and len(plugins) > 1:
        message = f"expected one plugin, because chains came with 0.3.0; found {len(plugins)}"
        report.warning("plugins", message, 'raise cniVersion to "0.3.0" or newer')


def reserved_keys(plugin: dict[str, Any], path: str, report: Report) -> None:
    """Keys that only a runtime may set."""
    for key in plugin:
        if key.casefold() in RESERVED or key.casefold().startswith("cni.dev/"):
            where = f"{path}.{key}" if path else key
            report.warning(where, "expected in no file: the runtime makes this key", "remove it")


def executables(plugin: dict[str, Any], path: str, report: Report, plugin_path: list[str]) -> None:
    """The plugin and its IPAM plugin should be there; on another machine they may be."""
    reader = Reader(plugin, path)
    owners = [reader]
    if isinstance(reader.raw("ipam"), dict):
        owners.append(reader.object("ipam"))
    for owner in owners:
        kind = owner.raw("type")
        if isinstance(kind, str) and kind and "/" not in kind:
            try:
                find(kind, plugin_path)
            except CniError:
                message = f"expected an executable {kind!r} in {':'.join(plugin_path)}, found none"
                report.warning(owner.at("type"), message, "install it there, or set CNI_PATH to where it is")


def plugin(value: dict[str, Any], path: str, report: Report, version: str) -> None:
    """What the keys of one plugin mean together."""
    reader = Reader(value, path)
    families: set[int] = set()
    if reader.raw("type") in lint_cluster.KINDS:  # whose ranges no file holds
        lint_cluster.network(reader, report)
    elif reader.object("ipam").raw("type") == "host-local":
        families = _host_local(reader, report, version)
    if reader.raw("type") == "bridge":
        _bridge(reader, report, families)


def _bridge(reader: Reader, report: Report, families: set[int]) -> None:
    if reader.boolean("hairpinMode") and reader.boolean("promiscMode"):
        remedy = "remove hairpinMode or promiscMode: each lets a pod reach itself"
        report.error(reader.at("promiscMode"), "expected only one of hairpinMode and promiscMode, found both", remedy)
    has_ipam = bool(reader.object("ipam").raw("type"))
    if has_ipam and reader.boolean("disableContainerInterface"):
        remedy = "remove ipam or disableContainerInterface"
        report.error(reader.at("ipam"), "expected none, because disableContainerInterface is true; found one", remedy)
    for key in ("isDefaultGateway", "isGateway", "ipMasq", "enabledad"):
        if not has_ipam and reader.boolean(key):
            message = "expected an ipam beside it, found none: without addresses it has no effect"
            report.warning(reader.at(key), message, 'add ipam, for example {"type": "host-local", ...}')
    if reader.boolean("isDefaultGateway") and reader.raw("isGateway") is False:
        message = "expected true or nothing, because isDefaultGateway implies it; found false"
        report.warning(reader.at("isGateway"), message, "remove isGateway")
    if reader.raw("ipMasqBackend") is not None and not reader.boolean("ipMasq"):
        report.warning(reader.at("ipMasqBackend"), "expected ipMasq beside it, found none", "set ipMasq, or remove it")
    _mtu(reader, report, families)
    _vlans(reader, report)


def _mtu(reader: Reader, report: Report, families: set[int]) -> None:
    mtu = reader.integer("mtu")
    least = IPV6_MTU if addr.AF_INET6 in families else IPV4_MTU
    if 0 < mtu < least:
        why = "because the pods get IPv6 addresses" if least == IPV6_MTU else "the least that IPv4 works with"
        remedy = "leave it out, or use the MTU of the node's uplink"
        report.error(reader.at("mtu"), f"expected at least {least}, {why}; found {mtu}", remedy)


def _vlans(reader: Reader, report: Report) -> None:
    for item in reader.objects("vlanTrunk"):
        first, last = item.integer("minID"), item.integer("maxID")
        if first > last:
            message = f"expected at least minID, which is {first}; found {last}"
            report.error(item.at("maxID"), message, "swap minID and maxID")
        if not item.value:
            report.warning(item.path, "expected id, or minID and maxID; found neither", "remove the entry")
    if reader.boolean("preserveDefaultVlan") and not reader.integer("vlan") and not reader.array("vlanTrunk"):
        message = "expected vlan or vlanTrunk beside it, found neither: it has no effect"
        report.warning(reader.at("preserveDefaultVlan"), message, "remove it")


def _host_local(reader: Reader, report: Report, version: str) -> set[int]:
    """The ranges; returns the address families that pods get."""
    ipam = reader.object("ipam")
    sets = [[Reader(entry, at) for at, entry in items(path, found)] for path, found in ipam.array("ranges")]
    if ipam.raw("subnet") is not None:
        sets.insert(0, [ipam])
    if not sets and "ipRanges" not in reader.object("capabilities").value:
        message = 'expected ranges (or the capability "ipRanges"), found none'
        report.error(ipam.at("ranges"), message, 'for example "ranges": [[{"subnet": "10.1.0.0/16"}]]')
    parsed = [[found for item in entries if (found := _range(item, reader, report))] for entries in sets]
    _overlaps([entry for entries in parsed for entry in entries], report)
    families = [{4: addr.AF_INET, 16: addr.AF_INET6}[entries[0].width] for entries in parsed if entries]
    for entries in parsed:
        if len({entry.width for entry in entries}) > 1:
            where = entries[0].path.rpartition("[")[0] or entries[0].path
            remedy = "put IPv4 and IPv6 into sets of their own, so that a pod gets one of each"
            report.error(where, "expected one address family in a set, found both", remedy)
    if len(families) > len(set(families)) and not at_least(version, "0.3.0"):
        message = f"expected at most one set of each family in cniVersion {version}, found {len(families)} sets"
        report.error(ipam.at("ranges"), message, 'raise cniVersion to "0.3.0" or newer')
    _routes(ipam, families, report)
    return set(families)


def _range(item: Reader, plugin_reader: Reader, report: Report) -> Range | None:
    if _outside(item, report):
        return None
    try:
        found = Range(item)
    except CniError as error:  # whatever host-local refuses besides
        path, _, message = error.msg.partition(": ")
        report.error(path, message, error.details or "correct it")
        return None
    if not addr.inside(found.gateway, found.network, found.prefix):
        message = f"expected an address in {found.subnet()}, found {jsonio.shown(addr.unpack(found.gateway))}"
        remedy = "use an address of the subnet, or leave it out for the first one"
        # A bridge gets the gateway's address; elsewhere a gateway may be on the link without being in the subnet.
        is_bridge = plugin_reader.raw("type") == "bridge"
        (report.error if is_bridge else report.warning)(item.at("gateway"), message, remedy)
    elif found.size < 1:
        message = f"expected at least one address to give, found only the gateway's in {found}"
        report.error(item.path, message, "widen the range, or choose another gateway")
    return found


def _outside(item: Reader, report: Report) -> bool:
    """Report a subnet that is none, or bounds outside it; whether there was one."""
    before = report.errors()
    written = item.string("subnet")
    packed, prefix = addr.pack_cidr(written) or (b"", 0)
    network = addr.network(packed, prefix)
    own = addr.unpack_cidr(network, prefix)
    if packed != network:
        report.error(item.at("subnet"), f"expected a network's own address, {own}, found {written}", f"write {own}")
        return True
    longest = len(packed) * 8 - 2
    if prefix > longest:
        message = f"expected a prefix length of at most {longest}, found {written}, which has no address to give"
        report.error(item.at("subnet"), message, "choose a larger subnet")
        return True
    start, end = item.address("rangeStart"), item.address("rangeEnd")
    for key, bound in (("rangeStart", start), ("rangeEnd", end)):
        if bound is not None and not addr.inside(bound, packed, prefix):
            message = f"expected an address in {own}, found {item.string(key)}"
            report.error(item.at(key), message, "use an address of the subnet, or leave it out")
    if start and end and len(start) == len(end) and start > end:
        message = (
            f"expected an address not before rangeStart, {item.string('rangeStart')}; found {item.string('rangeEnd')}"
        )
        report.error(item.at("rangeEnd"), message, "swap rangeStart and rangeEnd")
    return report.errors() > before


def _overlaps(ranges: list[Range], report: Report) -> None:
    for index, later in enumerate(ranges):
        for earlier in ranges[:index]:
            if later.overlaps(earlier):
                message = f"expected no address of another range, found {later} overlapping {earlier} ({earlier.path})"
                report.error(later.path, message, "make the two ranges disjoint, or remove one")


def _routes(ipam: Reader, families: list[int], report: Report) -> None:
    for item in ipam.objects("routes"):
        dst, gateway = addr.pack_cidr(item.string("dst")), item.address("gw")
        if dst is None:
            continue
        if gateway is not None and len(gateway) != len(dst[0]):
            message = f"expected an address of the same family as {item.string('dst')}, found {item.string('gw')}"
            report.error(item.at("gw"), message, "use a next hop of the destination's family")
        elif families and addr.family(dst[0]) not in families:
            message = f"expected the family of a range, found {item.string('dst')}: pods get no such address"
            report.warning(item.at("dst"), message, "add a range of that family, or remove the route")
