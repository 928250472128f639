"""Where our executables answer otherwise than the reference, on purpose: each with its reason.

`test_differential.py` compares everything but this. NORMALISED takes one narrow thing out of an observation of
either side; ERRORS says which of our refusals belongs to which of theirs. A difference that is in neither is
a failure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Observation = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """One wanted difference, and what makes both sides alike."""

    reason: str
    normalise: Callable[[Observation], None]


def _interfaces(seen: Observation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (seen["result"] or {}).get("interfaces", [])
    return found


def _drop_mtu(seen: Observation) -> None:
    for interface in _interfaces(seen):
        interface.pop("mtu", None)


def _name_random_things(seen: Observation) -> None:
    """Replace names and addresses that are random, or derived from other things, by what they stand for."""
    stands_for = {}
    for name, link in seen["node"]["links"].items():
        if link["kind"] == "veth":
            stands_for[name] = "HOST-VETH"
            stands_for[link["mac"]] = "HOST-MAC"
        elif link["kind"] == "bridge":
            # By name: a bridge of the reference without a gateway has the MAC of one of its ports.
            link["mac"] = "BRIDGE-MAC"
            for interface in _interfaces(seen):
                if interface["name"] == name:
                    interface["mac"] = "BRIDGE-MAC"
    for name, link in seen["pod"]["links"].items():
        if name != "lo" and link["mac"] != seen["requested_mac"]:
            stands_for[link["mac"]] = "POD-MAC"
    for key in ("result", "node", "pod"):
        seen[key] = _replaced(seen[key], stands_for)


def _replaced(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): _replaced(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _drop_nodad(seen: Observation) -> None:
    for side in ("node", "pod"):
        for link in seen[side]["links"].values():
            for address in link["addresses"]:
                address.pop("nodad", None)
                address.pop("tentative", None)


def _drop_empty_dns(seen: Observation) -> None:
    if seen["result"] and seen["result"].get("dns") == {}:
        del seen["result"]["dns"]


def _drop_alias(seen: Observation) -> None:
    for link in seen["node"]["links"].values():
        link.pop("alias", None)


def _drop_lock(seen: Observation) -> None:
    seen["leases"] = {name: text for name, text in seen["leases"].items() if not name.endswith("/lock")}


def _drop_arp_without_ipv4(seen: Observation) -> None:
    families = {
        address["family"] for link in seen["pod"]["links"].values() for address in link["addresses"] if link["kind"]
    }
    if "inet" not in families:
        seen["pod"]["sysctls"] = [line for line in seen["pod"]["sysctls"] if "arp_notify" not in line]


def _drop_metrics_of_old_routes(seen: Observation) -> None:
    if seen["result"] and seen["result"]["cniVersion"] < "0.3.0":
        routes = [json.loads(route) for route in seen["pod"]["routes"]]
        kept = [{key: value for key, value in route.items() if key not in ("metric", "metrics")} for route in routes]
        seen["pod"]["routes"] = sorted(json.dumps(route, sort_keys=True) for route in kept)


def _drop_queue_length(seen: Observation) -> None:
    for link in seen["node"]["links"].values():
        if link["kind"] == "veth":
            link.pop("txqlen", None)


def _drop_last_reserved_of_a_refused_add(seen: Observation) -> None:
    if seen["error"]:
        seen["leases"] = {name: text for name, text in seen["leases"].items() if "/last_reserved_ip." not in name}


def _drop_error_extras(seen: Observation) -> None:
    if seen["error"]:
        seen["error"] = {key: seen["error"][key] for key in ("code", "msg")}


def _loopback_in_its_own_form(seen: Observation) -> None:
    result = seen["result"]
    if seen["plugin"] != "loopback" or not result:
        return
    if result["cniVersion"] < "0.3.0":
        # ip4/ip6 of ours, interfaces and ips of theirs
        addresses = [result[key]["ip"] for key in ("ip4", "ip6") if key in result]
        addresses += [item["address"] for item in result.get("ips", [])]
        seen["result"] = {"cniVersion": result["cniVersion"], "addresses": addresses}
    elif result["cniVersion"] < "1.0.0":
        for item in result.get("ips", []):
            item.pop("version", None)


NORMALISED = [
    Known("interfaces[].mtu belongs to results of 1.1.0; the reference's bridge leaves it out", _drop_mtu),
    Known(
        "the pod's MAC follows its address, so that a reused address is reachable at once; the host's veth is named "
        "after the attachment, so that DEL finds it; a bridge's MAC is set when it is made. The reference's are random",
        _name_random_things,
    ),
    Known(
        "our addresses are added NODAD: usable at once, with no wait for a duplicate that IPAM excludes; the reference "
        "switches accept_dad off instead",
        _drop_nodad,
    ),
    Known("the host's veth carries its owner in its alias, so that it is findable without a record", _drop_alias),
    Known(
        'results before 1.0.0 of the reference say `"dns": {}` when there is no DNS; we leave it out', _drop_empty_dns
    ),
    Known("our DEL, CHECK and refused ADD make no folder and no lock for a network that has none", _drop_lock),
    Known(
        "arp_notify is switched on for pods with IPv4 only; theirs also where there is no ARP", _drop_arp_without_ipv4
    ),
    Known(
        "results of 0.1.0 and 0.2.0 have no place for a route's priority and MTU; theirs loses them between IPAM and bridge",
        _drop_metrics_of_old_routes,
    ),
    Known(
        "the host's veth has the kernel's queue length, where theirs has 0, which a shaper added later would inherit",
        _drop_queue_length,
    ),
    Known(
        "a refused ADD of ours takes no address; theirs takes some, gives them back, and moves last_reserved_ip",
        _drop_last_reserved_of_a_refused_add,
    ),
    Known("an error object carries cniVersion and details too", _drop_error_extras),
    Known(
        "the reference's loopback prints every result in the form of 1.0.0, whatever version was asked for",
        _loopback_in_its_own_form,
    ),
]


@dataclass(frozen=True)
class Refusal:
    """Their message (a regular expression), our code, and what our message has to contain."""

    theirs: str
    code: int
    ours: str
    reason: str


ERRORS = [
    Refusal(r"invalid characters found in network name", 7, r"name .*invalid characters", "the same, with the value"),
    Refusal(
        r"failed to allocate for range",
        7,
        r"failed to allocate all requested IPs|requested ip .* is subnet's gateway",
        "a wish that can never be fulfilled is refused before anything is allocated",
    ),
    Refusal(
        r"no IP addresses available in range set: (?P<pool>[^ ]+)",
        11,
        r"no IP addresses available in range set: {pool}",
        "an exhausted pool is worth another try later",
    ),
    Refusal(
        r"failed to allocate all requested IPs: (?P<ip>[^ ]+)",
        7,
        r"failed to allocate all requested IPs: {ip}",
        "no try can ever help",
    ),
    Refusal(
        r"requested IP address (?P<ip>[^ ]+) is not available in range set",
        11,
        r"requested IP address {ip} is not available in range set",
        "the address may be released",
    ),
    Refusal(
        r"requested ip (?P<ip>[^ ]+) is subnet's gateway",
        7,
        r"requested ip {ip} is subnet's gateway",
        "no try can ever help",
    ),
    Refusal(
        r"(?P<ip>[^ ]+) has been allocated to (?P<id>[^,]+), duplicate allocation is not allowed",
        999,
        r"{ip} has been allocated to {id}, duplicate allocation is not allowed",
        "the same, with the range set named",
    ),
    Refusal(
        r"Failed to find address added by container (?P<id>[^ ]+)",
        999,
        r"Failed to find address added by container {id}",
        "the same",
    ),
    Refusal(r"no IP ranges specified", 7, r"ipam\.ranges", "a fault of the configuration, with the key"),
    Refusal(r"IPAM config missing 'ipam' key", 7, r"IPAM config missing 'ipam' key", "a fault of the configuration"),
    Refusal(
        r"invalid range set (?P<at>\d+): .*not in network|RangeStart .* not in network",
        7,
        r"range(Start|End)",
        "a fault of the configuration, with the key",
    ),
    Refusal(
        r"invalid range set (?P<at>\d+)", 7, r"ipam\.|runtimeConfig\.", "a fault of the configuration, with the key"
    ),
    Refusal(r"range set (?P<one>\d+) overlaps with (?P<two>\d+)", 7, r"overlap", "a fault of the configuration"),
    Refusal(
        r"does not support more than 1 address per family",
        7,
        r"does not support more than 1 address per family",
        "a fault of the configuration",
    ),
    Refusal(
        r"cannot unmarshal|invalid CIDR|invalid IP address|invalid ip",
        7,
        r"expected .*found",
        "key path, expected and found in place of Go's decoder error",
    ),
    Refusal(r"ARGS: (unknown args|invalid pair|error parsing)", 4, r"CNI_ARGS", "a fault of the environment"),
    Refusal(r"invalid VLAN ID (?P<id>-?\d+)", 7, r"vlan: .*{id}", "a fault of the configuration, with the key"),
    Refusal(r"trunk|minID|maxID", 7, r"vlanTrunk", "a fault of the configuration, with the key"),
    Refusal(
        r"cannot set hairpin mode and promiscuous mode",
        7,
        r"cannot set hairpin mode and promiscuous mode",
        "a fault of the configuration",
    ),
    Refusal(
        r"cannot use IPAM when DisableContainerInterface",
        7,
        r"cannot use IPAM when DisableContainerInterface",
        "a fault of the configuration",
    ),
    Refusal(
        r"failed to find plugin \"(?P<name>[^\"]+)\"",
        7,
        r"failed to find plugin .{name}.",
        "a fault of the configuration",
    ),
    Refusal(
        r"already has an IP address different from (?P<ip>[^ ]+)",
        999,
        r"already has an IP address different from {ip}",
        "the same",
    ),
    Refusal(r"already exists but is not a bridge", 999, r"already exists but is not a bridge", "the same"),
    Refusal(
        r"container veth name \(\"(?P<name>[^\"]+)\"\).*already exists",
        999,
        r"{name}.*already exists",
        "the same, before any effect",
    ),
    Refusal(r"[Rr]equired prevResult missing", 7, r"required prevResult missing", "a fault of the configuration"),
    Refusal(
        r"invalid MAC|address .*: invalid MAC address|parse .*mac",
        7,
        r"MAC address",
        "a fault of the configuration, with the key",
    ),
    Refusal(r"open (?P<file>/[^:]+): no such file", 7, r"{file}", "a file that the configuration names"),
    Refusal(
        r"unknown ipmasq backend \"(?P<name>[^\"]+)\"",
        7,
        r"ipMasqBackend: .*{name}",
        "a fault of the configuration, with the key",
    ),
]


@dataclass(frozen=True)
class OnlyTheirs:
    """A refusal of theirs where we succeed."""

    theirs: str
    reason: str
    commands: tuple[str, ...] = ("ADD", "CHECK", "DEL")


ONLY_THEIRS = [
    OnlyTheirs(
        r'ARGS: unknown args \["(IP|MAC)=',
        "a bridge and its IPAM plugin get the same CNI_ARGS, so each knows the other's",
    ),
    OnlyTheirs(
        r"Bridge interface .* Mac doesn't match",
        "a bridge's MAC changes when ports join, and their CHECK then fails for pods that are well",
        ("CHECK",),
    ),
    OnlyTheirs(
        r"invalid IP address|invalid range set|overlaps with|no IP ranges|invalid CIDR|does not support more than 1|cannot unmarshal .*(ips|ranges|routes|subnet)",
        "a lease can be released whatever has become of the ranges that it was taken from",
        ("DEL",),
    ),
    OnlyTheirs(
        r"cannot unmarshal|invalid VLAN ID|trunk|minID|cannot set hairpin mode and promiscuous|cannot use IPAM when Disable",
        "DEL reads of the configuration only what it needs: another value is no reason to keep a pod's link and lease",
        ("DEL",),
    ),
]

# A refusal of ours where they succeed: our message (a regular expression) and why.
ONLY_OURS = [
    (r"^ipam\.routes\[\d+\]\.dst: expected", "they install a route to `<nil>`, which is one to nowhere"),
]


def only_one_refuses(command: str, theirs: Any, ours: Any) -> bool:
    """Whether this is one of the calls that only one side refuses."""
    if theirs.ok == ours.ok:
        return False
    if ours.ok:
        return any(command in item.commands and re.search(item.theirs, theirs.error["msg"]) for item in ONLY_THEIRS)
    return any(re.search(pattern, ours.error["msg"]) for pattern, _ in ONLY_OURS)


def counterpart(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Why our error does not match theirs; empty when it does."""
    if theirs["code"] == ours["code"] and theirs["msg"].lower() in ours["msg"].lower():
        return ""
    faults = [_fault(refusal, match, ours) for refusal in ERRORS if (match := re.search(refusal.theirs, theirs["msg"]))]
    if not faults:
        return "the messages differ and no entry of ERRORS covers it"
    return "" if "" in faults else "; ".join(faults)


def _fault(refusal: Refusal, match: re.Match[str], ours: dict[str, Any]) -> str:
    named = {key: re.escape(value) for key, value in match.groupdict().items() if value}
    expected = re.sub(r"\{(\w+)\}", lambda found: named.get(found[1], ".*"), refusal.ours)
    if ours["code"] != refusal.code:
        return f"code {refusal.code} expected ({refusal.reason})"
    if not re.search(expected, ours["msg"], re.IGNORECASE):
        return f"a message like {expected!r} expected ({refusal.reason})"
    return ""
