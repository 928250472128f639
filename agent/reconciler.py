"""One network of the cluster, as this node sees it: who is in it, where this node stands, and what follows from both.

Three things can change, and each is looked at where it costs least:

- a member: its old entries leave the wanted ones and its new ones come in. The entries are a pure function
  (`vxlan.entries`, `host_gw.entries`), so nothing is kept for each peer but the node itself;
- the ground, which is this node's own link, addresses and devices: everything is planned anew;
- the kernel, which is not looked at here: `cluster.py` compares it with what is wanted.

While something is missing (no member list yet, the underlay without its address, a device that cannot be made) what
was planned last stays in force.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from agent import subnet_file
from agent.roster import Roster
from cni import addr
from cni.errors import NOT_AVAILABLE, CniError
from plugins import this_node
from plugins.cluster_conf import outside, subnet_file_of
from plugins.peers import SIZES, Entries, Local, Node, vtep_mac
from plugins.pod_network import Site, carried_to
from plugins.vxlan_device import remove_former

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from agent.log import Log
    from agent.membership import Source
    from agent.mirror import Changed
    from cni.kernel.linux import Namespace
    from cni.record import Records
    from plugins.cluster_conf import ClusterConf
    from plugins.peers import Subnet
    from plugins.pod_network import Backend
    from plugins.this_node import Places

    T = TypeVar("T")


_STAYS = "what is in force stays"


class Inbox:
    """What a source tells, from its threads to ours."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._mutex = threading.Lock()
        self._news: deque[tuple[list[Node], list[str] | None]] = deque()
        self.trouble_text = ""

    def replace(self, nodes: list[Node]) -> None:
        with self._mutex:
            self._news.clear()  # it says it all
            self._news.append((nodes, None))
        self._wake()

    def change(self, put: list[Node], gone: list[str]) -> None:
        with self._mutex:
            self._news.append((put, gone))
        self._wake()

    def trouble(self, text: str) -> None:
        self.trouble_text = text
        self._wake()

    def next(self) -> tuple[list[Node], list[str] | None] | None:
        """Nodes that are there and names that are gone (None: all others); None when there is no more news."""
        with self._mutex:
            return self._news.popleft() if self._news else None


class Ground(NamedTuple):
    """What the entries follow from, beside the peer. `twins` are the peers that have an address of this host."""

    own: Node
    local: Local
    twins: frozenset[str]

    def same(self, other: Ground | None) -> bool:
        if other is None or (self.own, self.twins) != (other.own, other.twins):
            return False
        if self.local.devices != other.local.devices or self.local.direct is not other.local.direct:
            return False
        mine, others = (
            {size: (one.index, one.name, one.networks) for size, one in ground.local.underlays.items()}
            for ground in (self, other)
        )
        return mine == others


class Firewall(NamedTuple):
    """What `range_masquerade` needs of a call's context."""

    network: str
    host: Namespace
    records: Records


class Reconciler:
    """One network. All of it belongs to the cluster's thread, but for the inbox."""

    def __init__(
        self,
        conf: ClusterConf,
        source: Source,
        backend: Backend,
        host_name: str,
        run_dir: str,
        wake: Callable[[], None],
        log: Log,
        *,
        lists_us: bool,
    ) -> None:
        """`conf.node_name` empty leaves it to the addresses, and then to `host_name`. `lists_us`: the source says where
        this node is; another one has to be told.
        """
        self.conf = conf
        self._backend = backend
        self._host_name = host_name
        self._subnet_file = subnet_file_of(conf, run_dir)
        self._log = log
        self._source = source
        self._lists_us = lists_us
        self._offered: Node | None = None
        self._inbox = Inbox(wake)
        self._roster = Roster(lambda node: outside(node, conf.networks) if conf.networks else "")
        self._ground: Ground | None = None
        self._lost: frozenset[int] = frozenset(SIZES)
        self._site: Site | None = None
        self._here: frozenset[bytes] = frozenset()
        self._faults: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self.settled = False
        self.is_sure = False

    def close(self) -> None:
        self._source.close()

    @property
    def nodes(self) -> int:
        return len(self._roster)

    @property
    def devices(self) -> frozenset[int]:
        return frozenset(self._ground.local.devices.values()) if self._ground else frozenset()

    @property
    def ranges(self) -> list[Subnet]:
        """Where a route of ours that is not wanted is superfluous: none before it is known what is wanted, and none of a
        family that is away from the start."""
        if self._ground is None:
            return []
        away = self._ground.own.addresses.keys() - self._ground.local.underlays.keys()
        return [network for network in self.conf.networks if len(network[0]) not in away]

    @property
    def links(self) -> frozenset[int]:
        """What it stands on."""
        underlays = self._ground.local.underlays.values() if self._ground else ()
        return self.devices | {underlay.index for underlay in underlays}

    @property
    def addresses(self) -> frozenset[bytes]:
        own = self._ground.own if self._ground else self._offered
        return frozenset(own.addresses.values()) if own else frozenset()

    def goes_by(self, subnet: Subnet) -> bool:
        """Whether the way to another node, which the entries follow from, may lead by a route to this network."""
        direct = self._ground.local.direct if self._ground else None
        return direct is not None and direct.has(subnet)

    @property
    def troubles(self) -> int:
        """How many things are wrong now."""
        return sum(map(bool, self._told.values())) + len(self._faults) + len(self._roster.faults)

    # The members

    def hear(self, wanted: Entries, changed: Changed) -> bool:
        """Take the source's news; whether this node itself is concerned."""
        self._tell("membership", self._inbox.trouble_text)
        concerned = False
        heard = False
        while (news := self._inbox.next()) is not None:
            put, gone = news
            left, came = self._roster.replace(put) if gone is None else self._roster.change(put, gone)
            heard = True
            for node in left:
                self._faults.pop(node.name, None)
            concerned = concerned or not self.settled or self._concerns(left) or self._concerns(came)
            self.settled = self.settled or gone is None
            if self._ground is not None:
                self._leave(left, self._ground, wanted, changed)
                if self._ground.local.direct is not None:
                    self._ground.local.direct.forget(packed for node in left for packed in node.addresses.values())
                self._join(came, self._ground, wanted, changed)
        if heard:
            self._tell("members", "; ".join(list(self._roster.faults.values())[:3]))
        return concerned

    def _concerns(self, nodes: Iterable[Node]) -> bool:
        own = self._ground.own.name if self._ground else self.conf.node_name
        return any(node.name == own or not self._here.isdisjoint(node.addresses.values()) for node in nodes)

    def _leave(self, nodes: Iterable[Node], ground: Ground, wanted: Entries, changed: Changed) -> None:
        for node in nodes:
            if node.name == ground.own.name:
                continue
            old = self._backend.entries(ground.own, node, ground.local)
            changed.add(old)
            for subnet in old.routes:
                wanted.routes.pop(subnet, None)
            for key in old.neighbours:
                wanted.neighbours.pop(key, None)
            for key in old.fdb:
                wanted.fdb.pop(key, None)

    def _join(self, nodes: Iterable[Node], ground: Ground, wanted: Entries, changed: Changed) -> None:
        for node in nodes:
            if node.name == ground.own.name:
                continue
            if node.name in ground.twins or not self._here.isdisjoint(node.addresses.values()):
                self._fault(node, f"peer {node.name}: expected an address of another host, found one that this one has")
                continue
            new = self._backend.entries(ground.own, node, ground.local)
            self._fault(node, "; ".join(new.faults))
            changed.add(new)
            wanted.routes.update(new.routes)
            wanted.neighbours.update(new.neighbours)
            wanted.fdb.update(new.fdb)

    def _fault(self, node: Node, text: str) -> None:
        """Say what is wrong with a peer, empty for nothing, once."""
        if not text:
            self._faults.pop(node.name, None)
        elif text != self._faults.get(node.name):
            self._faults[node.name] = text
            self._log.warning(text, network=self.conf.name)

    # The ground

    def stand(self, host: Namespace, wanted: Entries, changed: Changed) -> None:
        """Find this node and its links, make sure of its devices, and plan anew when that is not as before."""
        there = this_node.places(host)
        self._here = frozenset(address.packed for _, address in there)
        self._offer(host, there)
        self.is_sure = False
        if not self.settled:
            return
        before, self._lost = self._lost, frozenset(SIZES)
        try:
            own = self._own()
            if own is None:
                name = self.conf.node_name or self._host_name
                found = self._roster.faults.get(name, "it missing")
                raise CniError(NOT_AVAILABLE, f"expected this one among the members as {name!r}, found {found}")
            site = self._site_of(host, own, there)
            ground = Ground(own, self._prepare(host, site), self._twins(own))
        except CniError as error:
            self._tell("node", f"{error.msg}; {_STAYS}")
            return
        self._site, self._lost = site, frozenset(site.lost)
        self.is_sure = not site.lost
        self._tell("node", "; ".join([*(error.msg for error in site.lost.values()), _STAYS]) if site.lost else "")
        if before - self._lost:
            changed.everything = True  # the kernel refused what it takes now, and took away more than it announced
        if ground.same(self._ground):
            return
        nodes = list(self._roster)
        if self._ground is not None:
            self._tell_of_moved_pods(self._ground.own, ground.own)
            self._leave(nodes, self._ground, wanted, changed)
        self._ground = ground
        self._join(nodes, ground, wanted, changed)
        if self.is_sure:
            remove_former(host, self.conf.name, ground.local.devices.values(), self._warn)

    def _prepare(self, host: Namespace, site: Site) -> Local:
        """What the backend makes sure of, for each family by itself, and of one that is away what there was before.

        A family of which nothing can be made sure joins those that are `lost`. CniError when that is so of all.
        """
        found: Local | None = None
        for size, underlay in site.underlays.items():
            alone = Site(site.conf, site.own, {size: underlay}, site.networks, site.mtu)
            try:
                local = self._backend.prepare(host, alone, self._warn)
            except CniError as error:
                site.lost[size] = error
                continue
            if found is not None:
                local.underlays = found.underlays | local.underlays
                local.devices = found.devices | local.devices
            found = local
        if found is None:
            raise next(iter(site.lost.values()))
        if self._ground is not None:
            before = self._ground.local
            found.underlays = _of(before.underlays, site.lost) | found.underlays
            found.devices = _of(before.devices, site.lost) | found.devices
            if before.direct is not None:
                found.direct = before.direct.again(site.lost)
        return found

    def _tell_of_moved_pods(self, before: Node, now: Node) -> None:
        lost = [addr.unpack_cidr(*subnet) for subnet in before.subnets if subnet not in now.subnets]
        if lost:
            found = ", ".join(addr.unpack_cidr(*subnet) for subnet in now.subnets) or "none"
            what = f"this node's subnet was {', '.join(lost)} and is {found}"
            self._warn(
                f"{what}: other nodes do not reach the pods that have addresses of the old one; recreate these pods"
            )

    def _twins(self, own: Node) -> frozenset[str]:
        holders = filter(None, map(self._roster.holder, self._here))
        return frozenset(node.name for node in holders if node.name != own.name)

    def _own(self) -> Node | None:
        """The node that this is, as the members know it: by its name, else by an address, else by the host's name."""
        if self.conf.node_name:
            return self._roster.get(self.conf.node_name)
        holders = filter(None, map(self._roster.holder, sorted(self._here)))
        return next(holders, None) or self._roster.get(self._host_name)

    def _site_of(self, host: Namespace, own: Node, there: Places) -> Site:
        conf = self.conf
        underlays, lost = this_node.underlays(conf, own, there)
        underlays = this_node.narrowed(host, underlays, carried_to(conf, self._backend, own, self._roster))
        before = self._ground.local.underlays if self._ground else {}
        known = _of(before, lost) | underlays
        mtu = this_node.pods_mtu(own, self._backend.overhead, known, conf.mtu, "mtu")
        return Site(conf, own, underlays, conf.networks or own.subnets, mtu, lost)

    def _offer(self, host: Namespace, there: Places) -> None:
        """Have the source tell the others where this node is: at the start, when its address has gone, and when it has
        one of a family that it had none of.

        With no default route to go by, a source that lists this node says where it is.
        """
        before = self._offered.addresses if self._offered is not None else {}
        lasting = {size: packed for size, packed in before.items() if packed in self._here}
        if self._offered is not None and lasting == before and not self._offers_more(lasting, there):
            return
        name = self.conf.node_name or self._host_name
        try:
            addresses = this_node.of_links(host, self.conf, self.conf.networks, there).addresses | lasting
            self._tell("underlay", "")
        except CniError as error:
            if not self._lists_us:
                self._tell("underlay", error.msg)
                return
            addresses = lasting
        vni = self.conf.vni
        macs = {size: vtep_mac(vni, packed) for size, packed in addresses.items()} if self.conf.kind == "vxlan" else {}
        own = Node(name, addresses, self._written(), macs)
        if self._offered is None:
            self._source.start(own, self._inbox)
        elif own != self._offered:
            self._source.update(own)
        self._offered = own

    def _offers_more(self, offered: dict[int, bytes], there: Places) -> bool:
        """Whether there may be an address of a family that has pods and was not offered."""
        lacking = {len(packed) for packed, _ in self.conf.networks}.difference(offered)
        return bool(offered) and any(len(one.packed) in lacking for _, one in there)

    def _written(self) -> tuple[Subnet, ...]:
        """The subnets of an earlier time, which running pods have their addresses from."""
        try:
            return this_node.read_subnet_file(self._subnet_file).subnets
        except CniError:
            return ()

    # What else is this node's own

    def keep_up(self, firewall: Firewall) -> None:
        """Make sure of the subnet file and of the masquerade rules."""
        if not self.settled:
            return
        own, site = self._own(), self._site
        try:
            if own is None or not own.subnets:
                self._write("")
            elif site is not None and site.own.subnets == own.subnets:
                self._write(subnet_file.text_of(site))
                from plugins import range_masquerade

                masqueraded = own.subnets if self.conf.ip_masq else ()
                range_masquerade.ensure(firewall, masqueraded, (*site.networks, *self.conf.exceptions))
            self._tell("upkeep", "")
        except OSError as error:
            self._tell("upkeep", f"{self._subnet_file}: {error.strerror}")
        except CniError as error:
            self._tell("upkeep", error.msg)

    def _write(self, text: str) -> None:
        if subnet_file.settle(self._subnet_file, text):
            what = "written anew" if text else "removed: this node has no subnet"
            self._log.info(f"{self._subnet_file}: {what}", network=self.conf.name)

    def _warn(self, text: str) -> None:
        self._log.warning(text, network=self.conf.name)

    def _tell(self, what: str, text: str) -> None:
        """Say what is wrong once, and once that it is over."""
        before = self._told.get(what, "")
        if text == before:
            return
        self._told[what] = text
        if text:
            self._log.warning(f"{what}: {text}", network=self.conf.name)
        else:
            self._log.info(f"{what}: all is well again", network=self.conf.name)


def _of(found: dict[int, T], sizes: Iterable[int]) -> dict[int, T]:
    """What belongs to these families."""
    return {size: found[size] for size in sizes if size in found}
