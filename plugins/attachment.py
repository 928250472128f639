"""A pod's attachment by a veth pair, whatever its host's end is joined to: its lease, its record, its result, and how it
is found again and taken away. Shared by every plugin that makes one.

The host's end is a bridge's port (`bridged.py`) or has a route to the pod (`routed.py`). Either way the record lists
what was made, so DEL and GC are the same for both, and work after the configuration has changed.
"""

from __future__ import annotations

from errno import ENODEV, ENOENT

from cni import addr
from cni.claims import Claims, shown
from cni.config import Refusal
from cni.errors import INTERNAL, TRY_AGAIN, CniError, KernelError
from cni.kernel import ops
from cni.names import interface_fault, owner, owner_of_all
from cni.record import addresses, describe
from cni.result import Interface, Result, Route
from cni.undo import Teardown
from plugins import masquerade, ownership, veth
from plugins.bridge_conf import LAST_VLAN, too_narrow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cni.context import Context
    from cni.delegate import Delegate
    from cni.kernel.types import Link
    from plugins.bridge_conf import Conf

    Subnet = tuple[bytes, int]

# First bytes of addresses that are nothing special (`addr.no_hosts`), so that most ADDs ask no further.
_ORDINARY = frozenset((*range(1, 127), *range(128, 224), *range(240, 254)))

# What DEL and GC need of a record's section, with its type.
_NEEDED = {"links": list, "addresses": list, "bridge": str, "vlan": int, "masquerade": str, "macspoofchk": bool}


class Traces:
    """Where DEL looks for an attachment that has no record, by the configuration of now.

    No value is refused: one with which no ADD can have succeeded leads nowhere, and any but `false` is a reason to look.
    """

    __slots__ = ("bridge", "ip_masq", "mac_spoof_check", "vlan")

    def __init__(
        self, bridge: object, vlan: object = 0, ip_masq: object = None, mac_spoof_check: object = None
    ) -> None:
        self.bridge = bridge if isinstance(bridge, str) and not interface_fault(bridge) else ""
        self.vlan = vlan if type(vlan) is int and 0 < vlan <= LAST_VLAN else 0
        self.ip_masq = ip_masq not in (None, False)
        self.mac_spoof_check = mac_spoof_check not in (None, False)


def lease(ctx: Context, conf: Conf, ipam: Delegate | None) -> Result:
    """The IPAM plugin's result with gateways and the default route filled in; an empty one on layer 2."""
    if ipam is None:
        return Result()
    found = ipam.add()
    ctx.undo.push("release the lease", ipam.delete)
    if not found.ips:
        raise CniError(INTERNAL, "IPAM plugin returned missing IP config: expected at least one address, found none")
    _refuse_ipv6(conf.mtu, found)
    complete(found, conf)
    if conf.bridge:  # a routed pod's gateway is on its link by a route of its own
        for fault in unusable(found, conf):
            raise fault
    return found


def complete(lease: Result, conf: Conf) -> None:
    """Fill in what `isGateway` and `isDefaultGateway` imply."""
    for ip in lease.ips if conf.is_gateway else ():
        if ip.gateway is None:
            ip.gateway = addr.following(addr.network(ip.packed, ip.prefix))
        if conf.is_default_gateway:
            _lead_by_default(lease.routes, ip.gateway)


def unusable(lease: Result, conf: Conf) -> Iterator[Refusal]:
    """What of IPAM's result no pod on a bridge can work with. Paths are those of the result."""
    for index, ip in enumerate(lease.ips):
        for key, packed in (("address", ip.packed), ("gateway", ip.gateway if conf.is_gateway else None)):
            if packed is None or packed[0] in _ORDINARY:
                continue
            host = (packed, len(packed) * 8)
            what = addr.no_hosts(host)
            if conf.is_gateway and addr.is_link_local(host):
                what = "link-local addresses"  # the bridge has such a network already
            if what:
                found = f"{addr.unpack(packed)}, one of the {what}"
                remedy = "choose a private network, for example 10.1.0.0/16 or fd00:1::/64"
                yield Refusal(f"ips[{index}].{key}", "an address that hosts can have", found, remedy)
    if lease.routes:
        yield from _unusable_routes(lease)


def _unusable_routes(lease: Result) -> Iterator[Refusal]:
    """Routes that the kernel would refuse: it takes a next hop only on the pod's link."""
    first: dict[int, tuple[int, bytes]] = {}  # of each family, as `veth.configure` takes them
    for index, ip in enumerate(lease.ips):
        if ip.gateway:
            first.setdefault(len(ip.gateway), (index, ip.gateway))
    links = [(ip.packed, ip.prefix) for ip in lease.ips]
    links += [(one.dst, one.prefix) for one in lease.routes if not one.gateway and len(one.dst) not in first]
    for index, route in enumerate(lease.routes):
        own = addr.network(route.dst, route.prefix)
        if own != route.dst and len(own) == 4:  # the kernel masks IPv6's and refuses IPv4's
            dst, right = addr.unpack_cidr(route.dst, route.prefix), addr.unpack_cidr(own, route.prefix)
            yield Refusal(f"routes[{index}].dst", f"the network's own address, {right}", dst, f"write {right}")
        at, hop = (-1, route.gateway) if route.gateway else first.get(len(route.dst), (-1, None))
        if hop is None:
            continue
        if len(hop) != len(route.dst):
            dst = addr.unpack_cidr(route.dst, route.prefix)
            remedy = "use a next hop of that family"
            yield Refusal(f"routes[{index}].gw", f"an address of the family of {dst}", addr.unpack(hop), remedy)
        elif not any(addr.inside(hop, *link) for link in links) and not addr.is_link_local((hop, len(hop) * 8)):
            at = next((index for index, ip in enumerate(lease.ips) if ip.gateway == hop), at)
            path = f"routes[{index}].gw" if at < 0 else f"ips[{at}].gateway"
            networks = ", ".join(addr.unpack_cidr(addr.network(*link), link[1]) for link in links)
            remedy = "use an address of the pod's subnet, or leave it out"
            yield Refusal(path, f"a next hop on the pod's link ({networks})", addr.unpack(hop), remedy)


def _refuse_ipv6(mtu: int, lease: Result) -> None:
    """CniError when the lease has an IPv6 address and the pod's link cannot have one."""
    if 0 < mtu < addr.IPV6_MTU and any(len(ip.packed) == 16 for ip in lease.ips):
        raise too_narrow(mtu)


def _lead_by_default(routes: list[Route], gateway: bytes) -> None:
    """Have a default route of the gateway's family; one of IPAM's that says nothing but where it leads means this one."""
    nowhere = bytes(len(gateway))
    defaults = [route for route in routes if len(route.dst) == len(gateway) and route.prefix == 0]
    for route in defaults:
        if not (route.gateway or route.priority or route.table or route.scope):
            route.gateway = gateway
    if not any(route.gateway for route in defaults):
        routes.append(Route(nowhere, 0, gateway))


def record(ctx: Context, conf: Conf, pair: veth.Pair, lease: Result) -> None:
    """Write down what will be made, before it is made."""
    request = ctx.request
    section: dict[str, Any] = {
        "netns": {"path": request.netns, "dev": ctx.sandbox.dev, "ino": ctx.sandbox.ino},
        "bridge": conf.bridge,
        "vlan": conf.vlan,
        "links": [{"name": pair.host_name, "mac": addr.unpack_mac(pair.host_mac)}],
        "mac": addr.unpack_mac(pair.mac),
        "addresses": [addr.unpack_cidr(*subnet) for subnet in subnets(lease)],
        "masquerade": conf.backend if conf.ip_masq and lease.ips else "",
        "macspoofchk": conf.mac_spoof_check,
    }
    common = describe(ctx.network, request.container_id, request.ifname, request.args.values)
    if not conf.bridge:
        section["gateways"] = [addr.unpack(gateway) for gateway in gateways_of(lease)]
    ctx.records.write(common, ctx.plugin_type, section)
    ctx.undo.push(
        "remove the record", lambda: ctx.records.remove(request.container_id, request.ifname, ctx.plugin_type)
    )
    if in_routing(conf):
        _claim(ctx, lease)


def in_routing(conf: Conf) -> bool:
    """Whether the node leads a pod's addresses to it: over the gateway's network, or by a route. Not so on layer 2."""
    return conf.is_gateway or not conf.bridge


def _claim(ctx: Context, lease: Result) -> None:
    """Refuse addresses that the node routes to pods of other networks, and keep other networks from these."""
    who, claims = (ctx.request.container_id, ctx.request.ifname), Claims(ctx)
    for text in [addr.unpack(ip.packed) for ip in lease.ips]:
        holder = claims.claim(text, *who)
        if holder:
            what = f"address {text}: expected no other pod with it on this node, found {shown(holder)}"
            raise CniError(TRY_AGAIN, what, "try again for another address, or give the networks different subnets")
        ctx.undo.push(f"claim of {text}", lambda text=text: claims.release(text, *who))  # type: ignore[misc]


def result(
    ctx: Context, conf: Conf, on_host: list[Link], pod_link: Link, lease: Result, others: tuple[Link, ...] = ()
) -> Result:
    """prevResult, if there is one, and after it the links on the host, the pod's end, and other links on the host.

    Without the addresses that `loopback` puts into prevResult when it comes first in a list: every pod has the same, so
    a later plugin that acts on them (a firewall's rules, a port map) would act for all pods at once.
    """
    result = ctx.prev_result or Result()
    result.ips = [ip for ip in result.ips if not addr.is_loopback(ip.packed)]
    pod_index = len(result.interfaces) + len(on_host)
    before, after = (
        [Interface(link.name, addr.unpack_mac(link.mac), link.mtu) for link in links] for links in (on_host, others)
    )
    inside = Interface(pod_link.name, addr.unpack_mac(pod_link.mac), pod_link.mtu, ctx.request.netns)
    result.interfaces += [*before, inside, *after]
    for ip in lease.ips:
        ip.interface = pod_index
    result.ips += lease.ips
    result.routes += lease.routes
    result.dns = conf.dns or lease.dns or result.dns
    return result


def recorded_ranges(section: dict[str, Any]) -> list[Subnet]:
    """The networks of the addresses that a record's section lists."""
    return [(addr.network(*one), one[1]) for one in addresses(section)]


def recorded_gateways(section: dict[str, Any]) -> list[bytes]:
    """The gateways of a routed pod by its record's section; one of an earlier build leaves them to the ranges."""
    texts = section.get("gateways")
    if not isinstance(texts, list):
        return [addr.following(packed) for packed, _ in dict.fromkeys(recorded_ranges(section))]
    return [one for one in (addr.pack(text) for text in texts if isinstance(text, str)) if one]


def gateways_of(lease: Result) -> list[bytes]:
    """Each once, in order."""
    return list(dict.fromkeys(ip.gateway for ip in lease.ips if ip.gateway))


def subnets(lease: Result) -> list[Subnet]:
    return [(ip.packed, ip.prefix) for ip in lease.ips]


def promised_subnets(result: Result) -> list[Subnet]:
    """What prevResult promises a pod, without the addresses of its `lo`."""
    return [subnet for subnet in subnets(result) if not addr.is_loopback(subnet[0])]


def default_mac(lease: Result) -> bytes | None:
    return veth.mac_of_address(lease.ips[0].packed) if lease.ips else None


def delete(ctx: Context, traces: Traces) -> None:
    """Remove an attachment, its lease last: what may be wrong about `ipam` keeps nothing else in place."""
    request = ctx.request
    record = ctx.records.read(request.container_id, request.ifname)
    section = _section(ctx, record) if record else None
    teardown = Teardown()
    if section is not None:
        _remove(ctx, section, request.container_id, request.ifname, teardown)
    else:
        _remove_unrecorded(ctx, traces, teardown)
    teardown.step("lease", lambda: _ipam_delete(ctx))
    if not teardown.errors:
        _remove_record(ctx, request.container_id, request.ifname, teardown)
    teardown.finish()


def gc(ctx: Context) -> None:
    """Remove what belongs to this network's attachments that are no longer valid, and nothing else."""
    teardown = Teardown()
    for record in ctx.records.all():
        container_id, ifname = record["containerID"], record["ifname"]
        section = _section(ctx, record)
        if section is None or (container_id, ifname) in ctx.valid:
            continue
        before = len(teardown.errors)
        _remove(ctx, section, container_id, ifname, teardown)
        if len(teardown.errors) == before:
            _remove_record(ctx, container_id, ifname, teardown)
    _remove_stale(ctx, teardown)
    teardown.step("leases", lambda: _ipam_forward(ctx))
    teardown.finish()


def _ipam_delete(ctx: Context) -> None:
    if _has_ipam(ctx):
        ctx.ipam.delete()


def _ipam_forward(ctx: Context) -> None:
    if _has_ipam(ctx):
        ctx.ipam.forward()


def _has_ipam(ctx: Context) -> bool:
    return bool(ctx.config.object("ipam").string("type"))


def _section(ctx: Context, record: dict[str, Any]) -> dict[str, Any] | None:
    """Our section of an attachment's record; None when there is none, or one that lacks what `_remove` needs."""
    section: dict[str, Any] = record["plugins"].get(ctx.plugin_type, {})
    return section if is_whole(section) else None


def is_whole(section: dict[str, Any]) -> bool:
    """Whether a record's section has what tells an attachment's links and addresses."""
    if not all(isinstance(section.get(key), kind) for key, kind in _NEEDED.items()):
        return False
    texts = list(section["addresses"])
    for link in section["links"]:
        texts += [link.get("name"), link.get("mac")] if isinstance(link, dict) else [None]
    return all(isinstance(text, str) for text in texts)


def _remove(ctx: Context, section: dict[str, Any], container_id: str, ifname: str, teardown: Teardown) -> None:
    """Remove what a record lists: link, neighbours, masquerade, MAC check."""
    gone: list[Link] = []
    teardown.step("link", lambda: _remove_links(ctx, section, gone))
    subnets = [subnet for subnet in map(addr.pack_cidr, section["addresses"]) if subnet]
    own = masquerade.holder_texts(ctx.network, container_id, ifname)
    bridge = 0 if section["vlan"] else next((link.master for link in gone), 0)
    teardown.step("neighbours", lambda: _forget(ctx, section["bridge"], section["vlan"], subnets, own, bridge))
    teardown.step("claims", lambda: _release_claims(ctx, subnets, container_id, ifname))
    if section["masquerade"]:
        teardown.step(
            "masquerade", lambda: masquerade.remove(ctx, section["masquerade"], subnets, container_id, ifname)
        )
    if section["macspoofchk"]:
        teardown.step("macspoofchk", lambda: _stop_mac_check(ctx, container_id, ifname))


def _remove_record(ctx: Context, container_id: str, ifname: str, teardown: Teardown) -> None:
    teardown.step("record", lambda: ctx.records.remove(container_id, ifname, ctx.plugin_type))


def _remove_links(ctx: Context, section: dict[str, Any], gone: list[Link]) -> None:
    """Remove the recorded host's ends, which are put into `gone`; the pod's goes with it. If one was gone already,
    look in the pod."""
    macs = {link["name"]: addr.pack_mac(link["mac"]) or b"" for link in section["links"]}
    gone += [link for link in (veth.remove_host_end(ctx.host, name, mac) for name, mac in macs.items()) if link]
    if len(gone) < len(macs):
        veth.remove_pod_end(ctx, ownership.own_link(ctx, _made_in(section)))


def _made_in(section: dict[str, Any]) -> tuple[object, object] | None:
    """Device and inode of the namespace that a record's section names."""
    netns = section.get("netns")
    return (netns.get("dev"), netns.get("ino")) if isinstance(netns, dict) else None


def _remove_unrecorded(ctx: Context, traces: Traces, teardown: Teardown) -> None:
    """The same with no record: from prevResult, the pod and the configuration; also what the Go plugin made."""
    request = ctx.request
    inside: list[Link] = []
    subnets = promised_subnets(ctx.prev_result) if ctx.prev_result else []
    teardown.step("link", lambda: _look_inside(ctx, inside, subnets))
    teardown.step("masquerade", lambda: masquerade.adopt(ctx))
    own = masquerade.holder_texts(ctx.network, request.container_id, request.ifname)
    held = [addr.pack_cidr(cidr) for cidr, _ in ctx.records.held(own.__contains__)]
    subnets += [subnet for subnet in held if subnet and subnet not in subnets]
    teardown.step("link", lambda: veth.remove_unrecorded(ctx, inside[0] if inside else None))
    teardown.step("claims", lambda: _release_claims(ctx, subnets, request.container_id, request.ifname))
    teardown.step("neighbours", lambda: _forget(ctx, traces.bridge, traces.vlan, subnets, own))
    if held or traces.ip_masq:
        teardown.step("masquerade", lambda: masquerade.remove_held(ctx, subnets, own))
    if traces.ip_masq:
        teardown.step("masquerade", lambda: masquerade.remove_reference(ctx, request.container_id, request.ifname))
    if traces.mac_spoof_check:
        teardown.step("macspoofchk", lambda: _stop_mac_check(ctx, request.container_id, request.ifname))


def _release_claims(ctx: Context, subnets: list[Subnet], container_id: str, ifname: str) -> None:
    claims = Claims(ctx)
    for packed, _ in subnets:
        claims.release(addr.unpack(packed), container_id, ifname)


def _look_inside(ctx: Context, inside: list[Link], subnets: list[Subnet]) -> None:
    """Add the attachment's interface in the pod to `inside`, and to `subnets` its addresses if no prevResult says them."""
    link = ownership.own_link(ctx)
    if link is not None:
        inside.append(link)
        subnets += veth.pod_addresses(ctx, link) if ctx.prev_result is None else []


def _stop_mac_check(ctx: Context, container_id: str, ifname: str) -> None:
    from plugins import macspoof

    macspoof.remove(ctx.host, container_id, ifname)


def _stop_stale_mac_checks(ctx: Context) -> None:
    from plugins import macspoof

    try:
        macspoof.remove_stale(ctx.host, ctx.network, ctx.valid)
    except KernelError as error:
        if error.errno not in masquerade.NO_NFTABLES:
            raise


def _remove_stale(ctx: Context, teardown: Teardown) -> None:
    """GC of what has no record: links by their label, masqueraded addresses by their holder, MAC checks by the link's
    name, claims."""
    teardown.step("claims", Claims(ctx).forget_stale)
    teardown.step("masquerade", lambda: masquerade.adopt(ctx, again=True))
    valid = {text for attachment in ctx.valid for text in masquerade.holder_texts(ctx.network, *attachment)}
    labels = {owner(ctx.network, *attachment) for attachment in ctx.valid}
    for link in ctx.host.links():
        if link.alias.startswith(owner_of_all(ctx.network)) and link.alias not in labels:
            teardown.step("link", lambda index=link.index: ctx.host.delete_link(index))  # type: ignore[misc]
    for cidr, key in ctx.records.held(lambda holder: holder not in valid):
        subnet = addr.pack_cidr(cidr)
        if subnet:
            teardown.step("masquerade", lambda s=subnet, k=key: masquerade.remove_held(ctx, [s], (k,)))  # type: ignore[misc]
    teardown.step("macspoofchk", lambda: _stop_stale_mac_checks(ctx))


def _forget(ctx: Context, bridge: str, vlan: int, subnets: list[Subnet], own: tuple[str, ...], index: int = 0) -> None:
    """Remove the node's neighbour entries for a pod's addresses, unless another pod holds them by now.

    `index` is the bridge's where it is known from the pod's link.
    """
    if not index and bridge:
        link = ctx.host.link(f"{bridge}.{vlan}" if vlan else bridge)
        index = link.index if link else 0
    for packed, prefix in subnets if index else []:
        if ctx.records.holder(addr.unpack_cidr(packed, prefix)) not in ("", *own):
            continue
        try:
            ctx.host.apply(ops.neigh_del(index, packed))
        except KernelError as error:
            if error.errno not in (ENOENT, ENODEV):
                raise
