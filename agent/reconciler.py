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
from agent.stranded import Stranded
from cni import addr
from cni.errors import NOT_AVAILABLE, CniError
from plugins import this_node
from plugins.cluster_conf import outside, subnet_file_of
from plugins.peers import ADDRESS_KEYS, Entries, Node, vtep_mac
from plugins.pod_network import Site
from plugins.vxlan_device import remove_former

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.log import Log
    from agent.membership import Source
    from agent.mirror import Changed
    from cni.kernel.linux import Namespace
    from cni.record import Records
    from plugins.cluster_conf import ClusterConf
    from plugins.peers import Local, Subnet
    from plugins.pod_network import Backend
    from plugins.this_node import Places


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
        if self.local.devices != other.local.devices:
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
        self._stated: tuple[bytes, ...] = ()  # what an offer was made by
        self._inbox = Inbox(wake)
        self._roster = Roster(lambda node: outside(node, conf.networks) if conf.networks else "")
        self._roster.own = conf.node_name
        self._ground: Ground | None = None
        self._site: Site | None = None
        self._here: frozenset[bytes] = frozenset()
        self._located: frozenset[Subnet] | None = None
        self._faults: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._stranded = Stranded()
        self.settled = False
        self.is_sure = False
        self._unfit: str | None = None  # why it has no ground; None before that is known
        self._judged: str | None = None

    def close(self) -> None:
        self._source.close()

    @property
    def nodes(self) -> int:
        return len(self._roster)

    @property
    def devices(self) -> frozenset[int]:
        return frozenset(self._ground.local.devices.values()) if self._ground else frozenset()

    @property
    def links(self) -> frozenset[int]:
        """What it stands on."""
        underlays = self._ground.local.underlays.values() if self._ground else ()
        return self.devices | {underlay.index for underlay in underlays}

    @property
    def addresses(self) -> frozenset[bytes]:
        """Those that this node has, or may have: any of them may be where a connection to the source comes from."""
        own = self._ground.own if self._ground else self._offered
        return self._here.union(own.addresses.values() if own else (), self._source.stated)

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
                self._join(came, self._ground, wanted, changed)
        if heard:
            self._tell("members", "; ".join(list(self._roster.faults.values())[:3]))
        return concerned or self._source.stated != self._stated

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
        located = frozenset((address.packed, address.prefix) for _, address in there)
        if located != self._located:
            self._located = located
            self._source.locate(located)
        if self._offer(host, there):
            self.hear(wanted, changed)  # a source that lists this node answers at once
        self.is_sure = False
        if not self.settled:
            return
        try:
            own = self._own()
            if own is None:
                name = self.conf.node_name or self._host_name
                found = self._roster.faults.get(name, "it missing")
                raise CniError(NOT_AVAILABLE, f"expected this one among the members as {name!r}, found {found}")
            if self._ground is None:
                own = self._as_far_as_here(own)
            self._site = self._site_of(own, there)
            ground = Ground(own, self._backend.prepare(host, self._site, self._warn), self._twins(own))
        except CniError as error:
            self._unfit = error.msg
            self._tell("node", f"{error.msg}; what is in force stays")
            return
        self._unfit = ""
        self.is_sure = True
        self._tell("node", "")
        if ground.same(self._ground):
            return
        nodes = list(self._roster)
        if self._ground is not None:
            self._tell_of_moved_pods(self._ground.own, ground.own)
            self._leave(nodes, self._ground, wanted, changed)
        self._ground = ground
        self._join(nodes, ground, wanted, changed)
        remove_former(host, self.conf.name, ground.local.devices.values(), self._warn)

    def _as_far_as_here(self, own: Node) -> Node:
        """The own node with the addresses that it has by now: one family need not wait for the other at the start."""
        here = {size: packed for size, packed in own.addresses.items() if packed in self._here}
        return Node(own.name, here, own.subnets, own.macs) if here else own

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
        host_name = self._host_name
        return next(holders, None) or self._roster.get(host_name) or self._roster.get(host_name.lower())

    def _site_of(self, own: Node, there: Places) -> Site:
        conf = self.conf
        underlays = this_node.underlays(conf, own, there)
        mtu = this_node.pods_mtu(own, self._backend.overhead, underlays, conf.mtu, "mtu")
        return Site(conf, own, underlays, conf.networks or own.subnets, mtu)

    def _offer(self, host: Namespace, there: Places) -> bool:
        """Have the source tell the others where this node is, when that has changed: its address has gone and there is
        another, or it has one of a family that it had none of. Whether there was something to tell.

        No address at all is no news: what was told stands until there is one. A source that lists this node is asked
        first, because it may know which of several addresses counts.
        """
        self._stated = self._source.stated
        if self._offered is None and self._lists_us:
            self._offered = Node(self.conf.node_name or self._host_name, {}, self._written())
            self._source.start(self._offered, self._inbox)
        if self._lists_us and not self.settled:
            return False
        before = self._offered.addresses if self._offered is not None else {}
        lasting = {size: packed for size, packed in before.items() if packed in self._here}
        try:
            self._refuse_elsewhere()
            preferred = (*self._stated, *lasting.values())
            found = this_node.of_links(host, self.conf, self.conf.networks, there, preferred).addresses
            self._tell("underlay", "")
        except CniError as error:
            if not self._lists_us:
                self._tell("underlay", error.msg)
            return False
        told = {} if self._lists_us else {len(packed): packed for packed in self._stated}
        return self._tell_source(lasting | found | told)

    def _refuse_elsewhere(self) -> None:
        """CniError 50 when the address that others are to reach this node at is not here: they would be misled."""
        for packed in () if self._lists_us else self._stated:
            if packed not in self._here:
                key, here = ADDRESS_KEYS[len(packed)], ", ".join(sorted(map(addr.unpack, self._here))) or "none"
                text = f"membership.{key}: expected an address of this host ({here}), found {addr.unpack(packed)}"
                raise CniError(NOT_AVAILABLE, text)

    def _tell_source(self, addresses: dict[int, bytes]) -> bool:
        """Offer these addresses, unless they are what was offered last."""
        if self._offered is not None and self._offered.addresses == addresses:
            return False
        vni = self.conf.vni
        macs = {size: vtep_mac(vni, packed) for size, packed in addresses.items()} if self.conf.kind == "vxlan" else {}
        own = Node(self.conf.node_name or self._host_name, addresses, self._written(), macs)
        if self._offered is None:
            self._source.start(own, self._inbox)
        else:
            self._source.update(own)
        self._offered = own
        return True

    # Whether pods can be attached

    @property
    def fault(self) -> str | None:
        """Why no pod can be attached in this network, empty when one can, and None before that is known."""
        if self._unfit is None or self._site is None:
            return self._unfit
        missing = "" if self._site.own.subnets else f"{self._site.own}: expected a subnet for its pods, found none"
        return self._unfit or self._told.get("upkeep") or missing

    def judge(self, fault: str) -> None:
        """Have the source tell it, when it has changed."""
        if fault != self._judged:
            self._judged = fault
            self._source.judge(fault)

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
            if own is not None:
                self._tell("pods", self._stranded.look(firewall.records, own.subnets))
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
