"""The rules of `cnikit lint` that a schema cannot express: what keys mean together, and to the kernel.

What a plugin refuses is not here: its own code is asked (`lint_refusals.py`). Here are errors of the runtime (a plugin
that is not there) and of the kernel (an MTU too small), and warnings: what works, but hardly as meant.
"""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Any

from cli import lint_cluster, lint_refusals
from cni import addr, jsonio, netlist
from cni.config import Reader
from cni.errors import CniError
from cni.execute import find

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cli.findings import Report
    from cli.lint_refusals import Found
    from ipam.ranges import Range

# Keys that any plugin may hold, and those that the runtime puts in; neither is an unknown key.
RESERVED = ("runtimeconfig", "prevresult")
EVERYWHERE = ("name", "cniversion", "type", "ipam", "dns", "capabilities", "args", "ipmasq", *RESERVED)

# Plugins that only work on what an earlier one of the list has made.
CHAINED = ("bandwidth", "firewall", "portmap", "sbr", "tuning", "vrf")

# Capabilities by convention (the conventions of containernetworking/cni), and those that each plugin knows.
CONVENTIONS = (
    "aliases", "bandwidth", "cgroupPath", "deviceID", "dns", "infinibandGUID", "ipRanges", "ips", "mac", "portMappings",
)  # fmt: skip
CAPABILITIES: dict[str, tuple[str, ...]] = {
    "bandwidth": ("bandwidth",), "bridge": ("mac",), "firewall": (), "host-gw": ("mac",), "loopback": (),
    "macvlan": ("mac",), "portmap": ("portMappings",), "ptp": (), "sbr": (), "tuning": ("mac",), "vrf": (),
    "vxlan": ("mac",),
}  # fmt: skip
IPAM_CAPABILITIES = {"host-local": ("ipRanges", "ips"), "static": ("ips",), "dhcp": ()}


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
    """The plugin and its IPAM plugin are on CNI_PATH, or no ADD begins."""
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
                close = difflib.get_close_matches(kind, _installed(plugin_path), n=1)
                message = f"expected an executable {kind!r} in {':'.join(plugin_path)}, found none"
                hint = f"did you mean {close[0]}? Else " if close else ""
                report.error(owner.at("type"), message, f"{hint}install it there, or set CNI_PATH to where it is")


def _installed(plugin_path: list[str]) -> list[str]:
    return [
        os.path.basename(file)
        for folder in plugin_path
        if os.path.isdir(folder)
        for file in netlist.files(folder, ("",))
    ]


def order(chain: Sequence[tuple[Any, Report, str]]) -> None:
    """A chained plugin stands after the one whose pods it is for. Each comes with the file that it is in, and where in it."""
    kinds = [str(Reader(one).raw("type")) if isinstance(one, dict) else "" for one, _, _ in chain]
    for index, (kind, (_, report, where)) in enumerate(zip(kinds, chain, strict=True)):
        before = [one for one in kinds[:index] if one not in CHAINED]
        if kind in CHAINED and not before:
            message = f"expected a plugin before {kind} that makes an interface, found none: it needs prevResult"
            report.error(where, message, f"list {kind} after the plugin that attaches the pod, in a .conflist")
        elif kind in CHAINED and set(before) == {"loopback"} and len(set(kinds[index:]) - {*CHAINED, "loopback"}) > 0:
            message = f"expected the plugin that attaches the pod before {kind}, found only loopback"
            report.warning(where, message, f"move {kind} to the end")


def capabilities(plugin: dict[str, Any], path: str, report: Report) -> None:
    """What is declared is known to the plugin or to its IPAM plugin; names are matched exactly."""
    reader = Reader(plugin, path)
    declared = reader.raw("capabilities")
    if not isinstance(declared, dict):
        return
    ipam = reader.raw("ipam")
    kind, delegate = reader.raw("type"), Reader(ipam).raw("type") if isinstance(ipam, dict) else None
    known = CAPABILITIES.get(kind) if isinstance(kind, str) else None
    of_ipam = IPAM_CAPABILITIES.get(delegate, CONVENTIONS) if isinstance(delegate, str) else ()
    if kind in lint_refusals.CLUSTER:
        of_ipam = ("ips",)
    everything = (*known, *of_ipam) if known is not None else CONVENTIONS
    for name, wanted in declared.items():
        if wanted is not True or name in everything:
            continue
        close = difflib.get_close_matches(name.casefold(), [one.casefold() for one in everything], n=1, cutoff=0.75)
        spelling = [one for one in everything if [one.casefold()] == close]
        if known is None and not spelling:  # somebody else's plugin may have one of its own
            continue
        among = ", ".join(everything) or "none"
        message = f"expected a capability that {kind} knows ({among}), found {jsonio.shown(name)}"
        remedy = f"did you mean {spelling[0]}?" if spelling else "remove it: it has no effect"
        report.warning(f"{reader.at('capabilities')}.{name}", message, remedy)


def plugin(value: dict[str, Any], path: str, report: Report, found: Found) -> None:
    """What the keys of one plugin mean together."""
    reader = Reader(value, path)
    if found.cluster is not None:
        lint_cluster.network(reader, report, found)
    for one in found.sets:
        for item in one.ranges:
            if report.sound(f"{reader.path}.{item.path}" if reader.path else item.path):
                _range(item, reader, report)
    _routes(reader.object("ipam"), found, report)
    if reader.raw("type") == "bridge":
        _bridge(reader, report)


def _bridge(reader: Reader, report: Report) -> None:
    has_ipam = bool(reader.object("ipam").raw("type"))
    for key in ("isDefaultGateway", "isGateway", "ipMasq", "enabledad"):
        if not has_ipam and reader.boolean(key):
            message = "expected an ipam beside it, found none: without addresses it has no effect"
            report.warning(reader.at(key), message, 'add ipam, for example {"type": "host-local", ...}')
    if reader.boolean("isDefaultGateway") and reader.raw("isGateway") is False:
        message = "expected true or nothing, because isDefaultGateway implies it; found false"
        report.warning(reader.at("isGateway"), message, "remove isGateway")
    if reader.raw("ipMasqBackend") is not None and not reader.boolean("ipMasq"):
        report.warning(reader.at("ipMasqBackend"), "expected ipMasq beside it, found none", "set ipMasq, or remove it")
    _vlans(reader, report)


def _vlans(reader: Reader, report: Report) -> None:
    for item in reader.objects("vlanTrunk"):
        if not item.value:
            report.warning(item.path, "expected id, or minID and maxID; found neither", "remove the entry")
    if reader.boolean("preserveDefaultVlan") and not reader.integer("vlan") and not reader.array("vlanTrunk"):
        message = "expected vlan or vlanTrunk beside it, found neither: it has no effect"
        report.warning(reader.at("preserveDefaultVlan"), message, "remove it")


def _range(item: Range, reader: Reader, report: Report) -> None:
    """What host-local takes, as the Go plugin does, though it hardly works."""
    path = f"{reader.path}.{item.path}" if reader.path else item.path
    subnet = (item.network, item.prefix)
    what = addr.no_hosts(subnet) or ("link-local addresses" if addr.is_link_local(subnet) else "")
    if what:
        message = f"expected a network of addresses that hosts can have, found {item.subnet()}, which has {what}"
        report.warning(f"{path}.subnet", message, "choose a private network, for example 10.1.0.0/16 or fd00:1::/64")
    elif subnet[0][0] == 0 or (item.width == 4 and subnet[0][0] >= 240):
        message = f"expected a network that other systems route, found {item.subnet()}, which is reserved (RFC 6890)"
        report.warning(f"{path}.subnet", message, "choose a private network, for example 10.1.0.0/16 or fd00:1::/64")
    text = str(_raw_at(reader, item.path, "subnet"))
    if ":" in text and item.width == 4:
        message = f"expected an IPv4 network, found {text}, which the Go plugin refuses"
        report.warning(f"{path}.subnet", message, f"write {item.subnet()}")
    if not addr.inside(item.gateway, item.network, item.prefix):
        message = f"expected an address in {item.subnet()}, found {jsonio.shown(addr.unpack(item.gateway))}"
        remedy = "use an address of the subnet, or leave it out for the first one"
        report.warning(f"{path}.gateway", message, remedy)


def _raw_at(reader: Reader, path: str, key: str) -> Any:
    """A value by the path of the object that has it (`ipam.ranges[0][1]`)."""
    found: Any = reader.value
    for part in path.replace("[", ".").replace("]", "").split("."):
        found = found[int(part)] if isinstance(found, list) else Reader(found).raw(part)
    return Reader(found).raw(key)


def _routes(ipam: Reader, found: Found, report: Report) -> None:
    """The destinations of a pod's routes beside its addresses."""
    widths = {item.width for one in found.sets for item in one.ranges}
    for index, route in enumerate(found.ipam.routes if found.ipam else ()):
        dst = addr.unpack_cidr(route.dst, route.prefix)
        if not report.sound(f"{ipam.at('routes')}[{index}]"):
            continue
        if route.gateway is not None and len(route.gateway) != len(route.dst):
            message = f"expected an address of the same family as {dst}, found {addr.unpack(route.gateway)}"
            report.error(f"{ipam.at('routes')}[{index}].gw", message, "use a next hop of the destination's family")
        elif widths and len(route.dst) not in widths:
            message = f"expected the family of a range, found {dst}: pods get no such address"
            report.warning(
                f"{ipam.at('routes')}[{index}].dst", message, "add a range of that family, or remove the route"
            )
