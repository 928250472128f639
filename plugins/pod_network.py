"""A network of pods that spans nodes: the verbs that `vxlan` and `host-gw` share.

ADD makes the node ready for the network (`site_of`, the backend's device, with static `peers` also what leads to
them), and attaches the pod as `bridge` or as ptp would, with ranges for IPAM from the node's own subnets. Whoever keeps
the way to the other nodes beside that, our agent or flanneld, need not run for it.
"""

from __future__ import annotations

from cni import addr
from cni.config import Reader, Refusal, wrong
from cni.errors import INTERNAL, INVALID_CONFIG, NOT_AVAILABLE, CniError
from cni.request import CLEANING
from plugins.bridge_conf import BRIDGED, DEFAULT_BRIDGE
from plugins.bridge_conf import Conf as LinkConf
from plugins.peers import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.types import Vxlan
    from cni.request import Request
    from cni.result import IPConfig, Result
    from cni.world import Log
    from plugins.cluster_conf import ClusterConf
    from plugins.peers import Entries, Local, Subnet, Underlay
    from plugins.this_node import Places, SubnetFile

ARGS = ("IP", "MAC")
NETNS = True
PATHS = (("subnetFile", ""),)

DEFAULT_IPAM = "host-local"
ROUTED = "routed"

# What a bridged or routed attachment takes over from the configuration; the rest of it is the network's.
_LINK_KEYS = ("name", "cniVersion", "bridge", "hairpinMode", "dns", "args", "runtimeConfig")


class Backend:
    """What differs between the plugins. `overhead` is what a packet grows by, by the underlay's address size.

    `entries` is what this node has in its kernel for a peer, `prepare` makes sure of what all peers share and gives
    what `entries` needs, `refuse` raises when `prepare` could not succeed and changes nothing, `check` raises for the
    first difference between what it makes and what is there, and gives the same as `prepare`. `devices` are the names
    of the links that it makes.
    """

    __slots__ = ("check", "devices", "entries", "overhead", "prepare", "refuse")

    def __init__(
        self,
        overhead: dict[int, int],
        entries: Callable[[Node, Node, Local], Entries],
        prepare: Callable[[Namespace, Site, Log], Local],
        refuse: Callable[[Namespace, Site], None],
        check: Callable[[Namespace, Site], Local],
        devices: Callable[[ClusterConf], list[str]],
    ) -> None:
        self.overhead = overhead
        self.entries = entries
        self.prepare = prepare
        self.refuse = refuse
        self.check = check
        self.devices = devices


class Site:
    """The node in a network: who it is, its underlay links by address size, the network's ranges, the MTU of pods,
    which its devices have too. `lost` says what is wrong with an address that is on no link, by its size."""

    __slots__ = ("conf", "lost", "mtu", "networks", "own", "underlays")

    def __init__(
        self,
        conf: ClusterConf,
        own: Node,
        underlays: dict[int, Underlay],
        networks: tuple[Subnet, ...],
        mtu: int,
        lost: dict[int, CniError] | None = None,
    ) -> None:
        self.conf = conf
        self.own = own
        self.underlays = underlays
        self.networks = networks
        self.mtu = mtu
        self.lost = lost or {}


class Conf:
    """The options of one pod's attachment, and the network's (`ClusterConf`). DEL and GC do without: what was
    attached can be detached whatever has become of the configuration."""

    __slots__ = ("attachment", "cluster", "config", "request")

    programs = ()  # ranges are masqueraded with nftables

    def __init__(self, config: Reader, request: Request) -> None:
        self.config = config
        self.request = request
        self.attachment = ROUTED
        self.cluster: ClusterConf | None = None
        if request.command not in CLEANING:
            self.attachment = config.string("attachment", ROUTED)
            self.cluster = _cluster(config, self.attachment)

    def link(self, mtu: int = 0) -> LinkConf:
        """The attachment as bridge would be configured for it; a routed one has no bridge."""
        value: dict[str, Any] = {key: found for key in _LINK_KEYS if (found := self.config.raw(key)) is not None}
        value |= {"isDefaultGateway": True, "mtu": mtu, "ipam": {"type": _ipam_type(self.config)}}
        if self.attachment != BRIDGED:
            value["bridge"] = ""
        return LinkConf(Reader(value), self.request)

    def with_ranges(self, subnets: tuple[Subnet, ...]) -> Reader:
        """The configuration as IPAM is given it: the node's subnets are its ranges, and pods are in its routing.

        An `ipam` of the wrong type stays, and so does a wrong type in it: whoever asks for the plugin refuses it.
        """
        given = self.config.raw("ipam")
        if given is not None and not isinstance(given, dict):
            return self.config
        ipam = Reader(given or {}, "ipam")
        rest = {key: found for key, found in self.config.value.items() if key.casefold() not in ("ipam", "isgateway")}
        kept = {key: found for key, found in ipam.value.items() if key.casefold() != "type"}
        kind = ipam.raw("type")
        ranges = [[{"subnet": addr.unpack_cidr(*subnet)}] for subnet in subnets]
        return Reader(
            {
                **rest,
                "isGateway": True,
                "ipam": {**kept, "type": DEFAULT_IPAM if kind in (None, "") else kind, "ranges": ranges},
            }
        )


def add(ctx: Context, conf: Conf, backend: Backend) -> Result:
    site = _site(ctx, conf, backend)
    link = conf.link(site.mtu)
    if conf.attachment == BRIDGED:
        link.refuse_contradictions()
    ctx.config = conf.with_ranges(site.own.subnets)
    _ = ctx.ipam  # a missing executable is found out before the first effect
    _connect(ctx, site, backend)
    _pass_firewalls(ctx, site, backend)
    if conf.attachment == BRIDGED:
        from plugins import bridged

        return bridged.add(ctx, link, site.networks)
    from plugins import routed

    return routed.add(ctx, link)


def delete(ctx: Context, conf: Conf) -> None:
    from plugins import attachment

    ctx.config = conf.with_ranges(_ranges_of(ctx))
    bridged = ctx.config.raw("attachment") == BRIDGED
    bridge = ctx.config.raw("bridge") if bridged else ""
    attachment.delete(ctx, attachment.Traces(DEFAULT_BRIDGE if bridge is None else bridge))


def gc(ctx: Context, conf: Conf) -> None:
    """Remove what belongs to this network's attachments that are no longer valid; what all share stays."""
    from plugins import attachment

    ctx.config = conf.with_ranges(())  # which names host-local when the configuration names nobody
    attachment.gc(ctx)


def check(ctx: Context, conf: Conf, backend: Backend) -> None:
    from plugins import attachment_check
    from plugins.settings import check_forwarding

    site = _site(ctx, conf, backend)
    for error in site.lost.values():
        raise CniError(INTERNAL, error.msg, error.details)
    ips = attachment_check.pod_ips(ctx, attachment_check.promised(ctx))
    _refuse_moved(site, ips)
    ctx.config = conf.with_ranges(site.own.subnets)
    ctx.ipam.forward()
    _check_peers(ctx.host, site, backend, backend.check(ctx.host, site))
    check_forwarding(ctx.host, sorted({addr.family(ip.packed) for ip in ips}))
    if conf.attachment == BRIDGED:
        from plugins import bridge_check

        bridge_check.check(ctx, conf.link(site.mtu))
    else:
        from plugins import routed_check

        routed_check.check(ctx)
    if site.conf.ip_masq:
        from plugins import range_masquerade

        range_masquerade.check(ctx, site, overlay(site, backend))
    if site.conf.forward_accept:
        from plugins import forward_accept

        forward_accept.check(ctx, forward_accept.Network(site, overlay(site, backend)))


def status(ctx: Context, conf: Conf, backend: Backend) -> None:
    """CniError 50 when no ADD can succeed."""
    from cni.paths import folder_fault
    from plugins import masquerade, node_bridge
    from plugins.settings import refuse_forwarding

    try:
        fault = folder_fault(ctx.world.run_dir)
        if fault:
            raise CniError(NOT_AVAILABLE, fault, "every attachment has a record and a lock there")
        site = _site(ctx, conf, backend)
        backend.refuse(ctx.host, site)
        ctx.config = conf.with_ranges(site.own.subnets)
        ctx.ipam.forward()
        link = conf.link(site.mtu)
        if conf.attachment == BRIDGED:
            link.refuse_contradictions()
            bridge = node_bridge.find(ctx.host, link.bridge, vlan="")
            gateways = [(addr.following(packed), prefix) for packed, prefix in site.own.subnets]
            if bridge is not None:
                node_bridge.refuse_full(ctx.host, bridge, ctx.config.object("ipam"))
                node_bridge.refuse_gateways(ctx.host, bridge, gateways, site.networks)
        if site.conf.ip_masq:
            masquerade.status(ctx, masquerade.NFTABLES)
        if site.conf.forward_accept:
            from plugins import forward_accept

            devices = overlay(site, backend)
            is_looked = not _has_passed(ctx, site, devices)
            forward_accept.status(ctx, forward_accept.Network(site, devices), is_looked=is_looked)
        refuse_forwarding(ctx.host)
    except CniError as error:
        code = error.code if NOT_AVAILABLE < error.code < INTERNAL else NOT_AVAILABLE
        what = f"{ctx.plugin_type} {ctx.network} cannot serve ADD: {error.msg}"
        raise CniError(code, what, error.details) from None


def site_of(host: Namespace, conf: ClusterConf, backend: Backend, subnet_file: str) -> Site:
    """Who this node is in a network, from its `peers`, else from the subnet file. CniError 7, 11 or 50 with the reason
    when it cannot take part."""
    from plugins import this_node

    file = this_node.read_subnet_file(subnet_file) if conf.peers is None else None
    devices = backend.devices(conf)
    made = this_node.own_devices(host, conf, devices)
    theirs = this_node.flannelds_device(host, conf) if file is not None and devices and not made else None
    if theirs is not None and file is not None and (conf.has_agent or file.addresses):
        # The file is our agent's, so flanneld only left its device there, and keeps no way to other nodes.
        from plugins.vxlan_device import taken

        raise taken(conf, theirs)
    if file is not None and not made and (not devices or theirs is not None) and (conf.mtu or file.mtu):
        # The file says all that a pod needs, and whoever wrote it looks after the routes.
        return _site_at(conf, backend, Node(conf.node_name, {}, file.subnets), {}, file)
    known = this_node.places_under(host, made)
    here = {one.packed for _, one in known}
    if known and (file is None or here.issuperset(file.addresses.values())):
        try:
            return _found(host, conf, backend, file, known, made)
        except CniError:
            pass  # something has moved, and looking at every link will show where
    return _found(host, conf, backend, file, this_node.places(host), made)


def refuse_underlay_down(host: Namespace, site: Site) -> None:
    """CniError 50 when ADD would make routes over an underlay link that is down, which takes none."""
    for underlay in site.underlays.values() if site.conf.peers is not None else ():
        link = host.link(underlay.index)
        if link is not None and not link.up:
            text = f"{underlay.name}: expected the link to the other nodes up, found it down"
            raise CniError(NOT_AVAILABLE, text, f"ip link set {underlay.name} up")


def _found(
    host: Namespace, conf: ClusterConf, backend: Backend, file: SubnetFile | None, there: Places, made: list[Vxlan]
) -> Site:
    """The same by the addresses `there`, which are all that the node has or those of the underlay, and the network's
    devices that are `made` already."""
    from plugins import this_node

    if file is not None:
        own = this_node.of_file(conf, file, there) or this_node.of_devices(host, conf, file.subnets, there, made)
        own = own or this_node.of_links(host, conf, file.subnets, there)
    else:
        own = this_node.among(conf, conf.peers or (), there)
        if not own.subnets:
            raise this_node.no_subnet(f"node {own.name} among the peers without `subnets`")
    underlays, lost = this_node.underlays(conf, own, there)
    if file is None or not (conf.mtu or file.mtu):  # whoever wrote the MTU into the file knows the other nodes
        underlays = this_node.narrowed(host, underlays, carried_to(conf, backend, own, conf.peers or ()))
    return _site_at(conf, backend, own, underlays, file, lost)


def carried_to(conf: ClusterConf, backend: Backend, own: Node, nodes: Iterable[Node]) -> list[bytes]:
    """The addresses of the other nodes, where a backend reaches those that are not on the link too."""
    if not backend.devices(conf):
        return []
    return [packed for node in nodes if node.name != own.name for packed in node.addresses.values()]


def _site_at(
    conf: ClusterConf,
    backend: Backend,
    own: Node,
    underlays: dict[int, Underlay],
    file: SubnetFile | None,
    lost: dict[int, CniError] | None = None,
) -> Site:
    from plugins import this_node
    from plugins.cluster_conf import refuse_outside
    from plugins.peers import self_contradiction

    networks, given, source = conf.networks, conf.mtu, "mtu"
    if file is not None:
        networks = networks or file.networks
        if not networks:
            text = "expected network or ipv6Network, or FLANNEL_NETWORK in the subnet file, found none"
            raise CniError(INVALID_CONFIG, f"network: {text}", 'add the cluster\'s range, for example "10.244.0.0/16"')
        refuse_outside(own, networks)
        if not given:
            given, source = file.mtu, "FLANNEL_MTU of the subnet file"
        fault = self_contradiction(own)  # peers are looked at when they are read
        if fault:
            raise CniError(INVALID_CONFIG, fault)
    if underlays:
        mtu = this_node.pods_mtu(own, backend.overhead, underlays, given, source)
    else:  # whoever wrote the file knows what the underlay carries
        this_node.refuse_narrow(own, given, source, "set `mtu`, or correct the file at its origin")
        mtu = given
    return Site(conf, own, underlays, networks, mtu, lost)


def _site(ctx: Context, conf: Conf, backend: Backend) -> Site:
    from plugins.cluster_conf import subnet_file_of

    assert conf.cluster is not None
    return site_of(ctx.host, conf.cluster, backend, ctx.world.resolve(subnet_file_of(conf.cluster, ctx.world.run_dir)))


def _connect(ctx: Context, site: Site, backend: Backend) -> None:
    """Make sure of the node's own part, and with static peers of what leads to each of them."""
    for error in site.lost.values():
        ctx.log(error.msg)
    if site.conf.peers is None:
        backend.prepare(ctx.host, site, ctx.log)
        return
    from plugins import reconcile

    with ctx.records.lock():  # two ADDs would both make what both found missing, and take the other's for a stranger's
        local = backend.prepare(ctx.host, site, ctx.log)
        devices, others = local.devices.values(), _to_peers(site, backend, local)
        # What a family that is away had stays: it leads to the same nodes when the family is back.
        ranges = [network for network in site.networks if len(network[0]) not in site.lost]
        if reconcile.sync(ctx.host, others, devices, ranges, ctx.log) and not site.lost:
            from plugins.vxlan_device import remove_former

            left = remove_former(ctx.host, site.conf.name, devices, ctx.log)
            if left:
                ctx.log(left)
    for entries in others:
        for fault in entries.faults:
            ctx.log(fault)


def _to_peers(site: Site, backend: Backend, local: Local) -> list[Entries]:
    return [backend.entries(site.own, peer, local) for peer in site.conf.peers or () if peer != site.own]


def _check_peers(host: Namespace, site: Site, backend: Backend, local: Local) -> None:
    """CniError 999 that names the first thing that is missing on the way to static peers. Of others the agent knows."""
    if site.conf.peers is None:
        return
    from plugins import reconcile

    others = _to_peers(site, backend, local)
    missing = reconcile.compared(host, others, local.devices.values(), site.networks).additions()
    if missing:
        text = f"the way to other nodes: expected all of it, found this to be done: {missing[0].text}"
        raise CniError(INTERNAL, text, "ADD of any pod does it, unless another program's route is in its place")


def _pass_firewalls(ctx: Context, site: Site, backend: Backend) -> None:
    """Masquerade, and have forwarded packets accepted.

    What others drop is looked at when the masquerade rules are not there as they have to be, so on a network's first
    ADD and after a flush, and not for each pod; without such rules each time.
    """
    devices = overlay(site, backend)
    if _has_passed(ctx, site, devices):
        return
    from plugins import forward_accept, range_masquerade

    with ctx.records.lock():
        forward_accept.ensure(ctx, forward_accept.Network(site, devices))
    range_masquerade.ensure(ctx, site, devices)


def _has_passed(ctx: Context, site: Site, devices: list[str]) -> bool:
    """Whether an earlier ADD has done all that, as far as the masquerade rules tell."""
    from plugins import range_masquerade

    return range_masquerade.is_settled(ctx, site, devices) and (site.conf.ip_masq or not site.conf.forward_accept)


def overlay(site: Site, backend: Backend) -> list[str]:
    """The names of the devices that packets for other nodes may leave by, ours or flanneld's; empty without an overlay."""
    from plugins.this_node import flannel_devices

    ours = backend.devices(site.conf)
    return ours if site.underlays or not ours else flannel_devices(site.conf)


def _refuse_moved(site: Site, ips: list[IPConfig]) -> None:
    """CniError 999 when the pod's address is from another subnet than the node has now."""
    for ip in ips:
        same = [subnet for subnet in site.own.subnets if len(subnet[0]) == len(ip.packed)]
        if not any(addr.inside(ip.packed, *subnet) for subnet in same):
            subnets = ", ".join(addr.unpack_cidr(*subnet) for subnet in same) or "none of this family"
            text = f"{addr.unpack(ip.packed)}: expected an address of this node's subnets ({subnets}), found one of another"
            raise CniError(INTERNAL, text, "the node's subnet has changed: recreate the pod, no other node reaches it")


def _ranges_of(ctx: Context) -> tuple[Subnet, ...]:
    """The subnets that an attachment's addresses are from, by its record or its result."""
    from plugins.attachment import promised_subnets, recorded_ranges

    record = ctx.records.read(ctx.request.container_id, ctx.request.ifname)
    found = recorded_ranges(record["plugins"].get(ctx.plugin_type, {})) if record else []
    if not found and ctx.prev_result:
        found = [(addr.network(*subnet), subnet[1]) for subnet in promised_subnets(ctx.prev_result)]
    return tuple(dict.fromkeys(found))


def _cluster(config: Reader, attachment: str) -> ClusterConf:
    """The network's options. CniError 7 for what cannot be together with them."""
    from plugins.cluster_conf import ClusterConf

    if attachment not in (ROUTED, BRIDGED):
        config.refuse(wrong("attachment", '"routed" or "bridged"', attachment))
    backend = config.string("ipMasqBackend", "nftables")
    if backend != "nftables":
        config.refuse(wrong("ipMasqBackend", '"nftables", the only one that masquerades ranges', backend))
    ipam, runtime = config.object("ipam"), config.object("runtimeConfig")
    for given, key in ((ipam, "ranges"), (ipam, "subnet"), (runtime, "ipRanges")):
        if given.raw(key):
            remedy = "remove it: the subnets come from `peers` or the subnet file"
            config.refuse(Refusal(given.at(key), "none, because the ranges are the node's own subnets", "one", remedy))
    return ClusterConf(config)


def _ipam_type(config: Reader) -> str:
    return config.object("ipam").string("type") or DEFAULT_IPAM
