"""bridge: a pod on a Linux bridge of the node, by a veth pair.

Options and their meaning are those of the Go plugin (containernetworking/plugins, plugins/main/bridge).
Read ADD in `add`; what it makes is found again by DEL and GC through the attachment's record.
"""

from __future__ import annotations

from errno import ENOENT, ETIMEDOUT

from cni import addr
from cni.addr import family
from cni.errors import INTERNAL, NOT_AVAILABLE, CniError, KernelError
from cni.kernel import ops
from cni.kernel.types import OPER_UP
from cni.names import attachment_key, owner, owner_of_all
from cni.paths import folder_fault
from cni.record import describe
from cni.result import Interface, Result, Route
from cni.undo import Teardown
from plugins import masquerade, node_bridge, veth
from plugins.bridge_conf import Conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni.context import Context
    from cni.delegate import Delegate
    from cni.kernel.types import Link

    Subnet = tuple[bytes, int]

__all__ = ("ARGS", "NETNS", "PATHS", "Conf", "add", "check", "delete", "gc", "status")

# Of these MAC is ours and IP is host-local's, which is given the same CNI_ARGS: one of a pair knows both keys.
ARGS = ("IP", "MAC")
NETNS = True
PATHS = ()

# Seconds an ADD waits for the bridge port to forward; it takes about 0.1 ms.
PORT_TIMEOUT = 1.0

# What DEL and GC need of a record's section, with its type.
_NEEDED = {"links": list, "addresses": list, "bridge": str, "vlan": int, "masquerade": str, "macspoofchk": bool}


def add(ctx: Context, conf: Conf) -> Result:
    conf.refuse_contradictions()
    veth.refuse_taken_name(ctx)
    found = node_bridge.find(ctx.host, conf.bridge, vlan=conf.vlan_option)
    ipam = ctx.ipam if conf.layer3 else None  # a missing executable is found out before the first effect
    bridge = node_bridge.ensure(
        ctx.host, found, conf.bridge, conf.mtu, promisc=conf.promisc, vlan_filtering=bool(conf.vlan_option)
    )
    lease = _lease(ctx, conf, ipam)
    pair = veth.Pair(ctx, conf.mac or _default_mac(lease), conf.mtu)
    _record(ctx, conf, pair, lease)
    gateway_link = _set_gateways(ctx, conf, bridge, lease)
    host_link, pod_link = _attach(ctx, conf, pair, bridge)
    if not conf.disable_container_interface:
        _bring_up(ctx, conf, host_link, pod_link, lease)
        _wait_until_reachable(ctx, pod_link, gateway_link, lease)
    if conf.ip_masq and lease.ips:
        masquerade.add(ctx, conf.backend, _subnets(lease))
    bridge = node_bridge.after_joining(ctx.host, bridge, host_link)
    on_host = [bridge, host_link, *([gateway_link] if gateway_link and conf.vlan else [])]
    return _result(ctx, conf, on_host, pod_link, lease)


def delete(ctx: Context, conf: Conf) -> None:
    request = ctx.request
    record = ctx.records.read(request.container_id, request.ifname)
    section = _section(ctx, record) if record else None
    teardown = Teardown()
    if section is not None:
        _remove(ctx, section, request.container_id, request.ifname, teardown)
    else:
        _remove_unrecorded(ctx, conf, teardown)
    if conf.layer3:
        teardown.step("lease", lambda: _ipam_delete(ctx))
    if not teardown.errors:
        _remove_record(ctx, request.container_id, request.ifname, teardown)
    teardown.finish()


def check(ctx: Context, conf: Conf) -> None:
    conf.refuse_contradictions()
    if conf.layer3:
        ctx.ipam.forward()
    # Imported here, like other parts below that only some calls need: each costs 0.1 ms of every start.
    from plugins import bridge_check

    bridge_check.check(ctx, conf)


def status(ctx: Context, conf: Conf) -> None:
    """CniError 50 when no ADD can succeed."""
    conf.refuse_contradictions()
    try:
        fault = folder_fault(ctx.world.run_dir)
        if fault:
            raise CniError(NOT_AVAILABLE, fault, "every attachment has a record and a lock there")
        if conf.layer3:
            ctx.ipam.forward()
        node_bridge.find(ctx.host, conf.bridge, vlan=conf.vlan_option)
        if conf.ip_masq:
            masquerade.status(ctx, conf.backend)
        if conf.is_gateway:
            _refuse_forwarding(ctx, conf)
    except CniError as error:
        code = error.code if error.code > NOT_AVAILABLE and error.code < INTERNAL else NOT_AVAILABLE
        raise CniError(code, f"bridge {conf.bridge} cannot serve ADD: {error.msg}", error.details) from None


def gc(ctx: Context, conf: Conf) -> None:
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
    if conf.layer3:
        teardown.step("leases", lambda: _ipam_forward(ctx))
    teardown.finish()


def _lease(ctx: Context, conf: Conf, ipam: Delegate | None) -> Result:
    """The IPAM plugin's result with gateways and the default route filled in; an empty one on layer 2."""
    if ipam is None:
        return Result()
    lease = ipam.add()
    ctx.undo.push("release the lease", ipam.delete)
    if not lease.ips:
        raise CniError(INTERNAL, "IPAM plugin returned missing IP config: expected at least one address, found none")
    if not conf.is_gateway:
        return lease
    for ip in lease.ips:
        if ip.gateway is None:
            ip.gateway = addr.following(addr.network(ip.packed, ip.prefix))
        nowhere = bytes(len(ip.packed))
        has_default = any(r.dst == nowhere and r.prefix == 0 and r.gateway is not None for r in lease.routes)
        if conf.is_default_gateway and not has_default:
            lease.routes.append(Route(nowhere, 0, ip.gateway))
    return lease


def _ipam_delete(ctx: Context) -> None:
    ctx.ipam.delete()


def _ipam_forward(ctx: Context) -> None:
    ctx.ipam.forward()


def _record(ctx: Context, conf: Conf, pair: veth.Pair, lease: Result) -> None:
    """Write down what will be made, before it is made."""
    request = ctx.request
    section: dict[str, Any] = {
        "netns": {"path": request.netns, "dev": ctx.sandbox.dev, "ino": ctx.sandbox.ino},
        "bridge": conf.bridge,
        "vlan": conf.vlan,
        "links": [{"name": pair.host_name, "mac": addr.unpack_mac(pair.host_mac)}],
        "mac": addr.unpack_mac(pair.mac),
        "addresses": [addr.unpack_cidr(*subnet) for subnet in _subnets(lease)],
        "masquerade": conf.backend if conf.ip_masq and lease.ips else "",
        "macspoofchk": conf.mac_spoof_check,
    }
    common = describe(ctx.network, request.container_id, request.ifname, request.args.values)
    ctx.records.write(common, ctx.plugin_type, section)
    ctx.undo.push(
        "remove the record", lambda: ctx.records.remove(request.container_id, request.ifname, ctx.plugin_type)
    )


def _set_gateways(ctx: Context, conf: Conf, bridge: Link, lease: Result) -> Link | None:
    """Put the gateway addresses on the bridge, or with `vlan` on an interface of its own; which one is returned."""
    if not conf.is_gateway or not lease.ips:
        return None
    link = bridge
    if conf.vlan:
        from plugins import bridge_vlan

        link = bridge_vlan.ensure_gateway_interface(ctx, conf, bridge)
    gateways = [(ip.gateway, ip.prefix) for ip in lease.ips if ip.gateway]
    for gateway in gateways:
        node_bridge.set_gateway(ctx.host, link, gateway, gateways, force=conf.force_address)
    for configured in sorted({family(packed) for packed, _ in gateways}):
        node_bridge.enable_forwarding(ctx, configured)
    return link


def _attach(ctx: Context, conf: Conf, pair: veth.Pair, bridge: Link) -> tuple[Link, Link]:
    """Make the pair; returns its host's and its pod's end."""
    port = []
    if conf.hairpin or conf.isolated:
        port.append(ops.port_set(pair.host_name, hairpin=conf.hairpin, isolated=conf.isolated))
    veth.create(ctx, pair, bridge.index, *port)
    if conf.vlan_option:
        from plugins import bridge_vlan

        bridge_vlan.set_port(ctx, conf, pair.host_name, conf.vlans)
    if conf.mac_spoof_check:
        from plugins import macspoof

        request = ctx.request
        ctx.undo.push("macspoofchk", lambda: macspoof.remove(ctx.host, request.container_id, request.ifname))
        macspoof.add(ctx.host, request.container_id, request.ifname, pair.host_name, pair.mac)
    host_link = ctx.host.link(pair.host_name)
    if host_link is None:
        raise CniError(INTERNAL, f"expected {pair.host_name} after making it, found it gone", "try again")
    return host_link, veth.pod_end(pair, host_link)


def _bring_up(ctx: Context, conf: Conf, host_link: Link, pod_link: Link, lease: Result) -> None:
    """Set the pod's end up and return when packets pass: a port that does not forward yet lost the first
    packet of one pod in ten."""
    pod = ctx.sandbox
    if lease.ips:
        veth.configure(pod, pod_link, lease.ips, lease.routes, duplicate_detection=conf.duplicate_detection)
    else:
        pod.apply(ops.link_set(pod_link.index, up=True))
    try:
        ctx.host.wait_port(host_link.index, PORT_TIMEOUT)
    except KernelError as error:
        found = ctx.host.link(host_link.index)
        if error.errno != ETIMEDOUT or found is None or found.operstate != OPER_UP:
            raise
        # Up, but not forwarding: a bridge with spanning tree takes 30 s, which no pod start waits for.
        ctx.log(f"{host_link.name} is up but does not forward yet: {error.msg}")


def _wait_until_reachable(ctx: Context, pod_link: Link, gateway_link: Link | None, lease: Result) -> None:
    """Return when pod and gateway answer at their addresses, and tell the segment about the pod's."""
    if not lease.ips:
        return
    veth.wait_usable(ctx.sandbox, pod_link, [ip.packed for ip in lease.ips])
    if gateway_link is not None:
        veth.wait_usable(ctx.host, gateway_link, [ip.gateway for ip in lease.ips if ip.gateway])
    veth.announce(ctx.sandbox, pod_link)


def _result(ctx: Context, conf: Conf, on_host: list[Link], pod_link: Link, lease: Result) -> Result:
    """prevResult, if there is one, and after it bridge, host's end, pod's end (and the VLAN's interface)."""
    result = ctx.prev_result or Result()
    pod_index = len(result.interfaces) + 2
    interfaces = [Interface(link.name, addr.unpack_mac(link.mac), link.mtu) for link in on_host]
    inside = Interface(pod_link.name, addr.unpack_mac(pod_link.mac), pod_link.mtu, ctx.request.netns)
    result.interfaces += [*interfaces[:2], inside, *interfaces[2:]]
    for ip in lease.ips:
        ip.interface = pod_index
    result.ips += lease.ips
    result.routes += lease.routes
    result.dns = conf.dns or lease.dns or result.dns
    return result


def _section(ctx: Context, record: dict[str, Any]) -> dict[str, Any] | None:
    """Our section of an attachment's record; None when there is none, or one that lacks what `_remove` needs."""
    section: dict[str, Any] = record["plugins"].get(ctx.plugin_type, {})
    if not all(isinstance(section.get(key), kind) for key, kind in _NEEDED.items()):
        return None
    texts = list(section["addresses"])
    for link in section["links"]:
        texts += [link.get("name"), link.get("mac")] if isinstance(link, dict) else [None]
    return section if all(isinstance(text, str) for text in texts) else None


def _remove(ctx: Context, section: dict[str, Any], container_id: str, ifname: str, teardown: Teardown) -> None:
    """Remove what a record tells: link, neighbours, masquerade, MAC check."""
    teardown.step("link", lambda: _remove_links(ctx, section))
    subnets = [subnet for subnet in map(addr.pack_cidr, section["addresses"]) if subnet]
    key = attachment_key(container_id, ifname)
    teardown.step("neighbours", lambda: _forget(ctx, section["bridge"], section["vlan"], subnets, key))
    if section["masquerade"]:
        teardown.step(
            "masquerade", lambda: masquerade.remove(ctx, section["masquerade"], subnets, container_id, ifname)
        )
    if section["macspoofchk"]:
        teardown.step("macspoofchk", lambda: _stop_mac_check(ctx, container_id, ifname))


def _remove_record(ctx: Context, container_id: str, ifname: str, teardown: Teardown) -> None:
    teardown.step("record", lambda: ctx.records.remove(container_id, ifname, ctx.plugin_type))


def _remove_links(ctx: Context, section: dict[str, Any]) -> None:
    """Remove the recorded host's ends; the pod's goes with it. If one was gone already, look in the pod."""
    macs = {link["name"]: addr.pack_mac(link["mac"]) or b"" for link in section["links"]}
    gone = [veth.remove_host_end(ctx.host, name, mac) for name, mac in macs.items()]
    if not all(gone):
        veth.remove_pod_end(ctx)


def _remove_unrecorded(ctx: Context, conf: Conf, teardown: Teardown) -> None:
    """The same with no record: from prevResult, the pod and the configuration; also what the Go plugin made."""
    request = ctx.request
    key = attachment_key(request.container_id, request.ifname)
    subnets = [(ip.packed, ip.prefix) for ip in ctx.prev_result.ips] if ctx.prev_result else veth.pod_addresses(ctx)
    subnets += [s for s in (addr.pack_cidr(cidr) for cidr, _ in ctx.records.held(key.__eq__)) if s and s not in subnets]
    teardown.step("link", lambda: veth.remove_unrecorded(ctx))
    teardown.step("neighbours", lambda: _forget(ctx, conf.bridge, conf.vlan, subnets, key))
    if conf.ip_masq:
        teardown.step("masquerade", lambda: masquerade.remove_held(ctx, subnets, key))
        teardown.step("masquerade", lambda: masquerade.remove_reference(ctx, request.container_id, request.ifname))
    if conf.mac_spoof_check:
        teardown.step("macspoofchk", lambda: _stop_mac_check(ctx, request.container_id, request.ifname))


def _stop_mac_check(ctx: Context, container_id: str, ifname: str) -> None:
    from plugins import macspoof

    macspoof.remove(ctx.host, container_id, ifname)


def _remove_stale(ctx: Context, teardown: Teardown) -> None:
    """GC of what has no record: links by their label, masqueraded addresses by their holder."""
    keys = {attachment_key(*attachment) for attachment in ctx.valid}
    labels = {owner(ctx.network, *attachment) for attachment in ctx.valid}
    for link in ctx.host.links():
        if link.alias.startswith(owner_of_all(ctx.network)) and link.alias not in labels:
            teardown.step("link", lambda index=link.index: ctx.host.delete_link(index))  # type: ignore[misc]
    for cidr, key in ctx.records.held(lambda holder: holder not in keys):
        subnet = addr.pack_cidr(cidr)
        if subnet:
            teardown.step("masquerade", lambda s=subnet, k=key: masquerade.remove_held(ctx, [s], k))  # type: ignore[misc]


def _forget(ctx: Context, bridge: str, vlan: int, subnets: list[Subnet], key: str) -> None:
    """Remove the node's neighbour entries for a pod's addresses, unless another pod holds them by now."""
    link = ctx.host.link(f"{bridge}.{vlan}" if vlan else bridge)
    for packed, prefix in subnets if link else []:
        if link is None or ctx.records.holder(addr.unpack_cidr(packed, prefix)) not in ("", key):
            continue
        try:
            ctx.host.apply(ops.neigh_del(link.index, packed))
        except KernelError as error:
            if error.errno != ENOENT:
                raise


def _subnets(lease: Result) -> list[Subnet]:
    return [(ip.packed, ip.prefix) for ip in lease.ips]


def _default_mac(lease: Result) -> bytes | None:
    return veth.mac_of_address(lease.ips[0].packed) if lease.ips else None


def _refuse_forwarding(ctx: Context, conf: Conf) -> None:
    """KernelError when no family can be forwarded. IPAM decides which are used, and a kernel may lack IPv6."""
    families = [f for f in (addr.AF_INET, addr.AF_INET6) if ctx.host.conf(f, "all", "forwarding") is not None]
    faults = Teardown()
    for configured in families if conf.layer3 else []:
        faults.step("forwarding", lambda f=configured: node_bridge.refuse_forwarding(ctx.host, f))  # type: ignore[misc]
    if families and len(faults.errors) == len(families):
        raise faults.errors[0]
