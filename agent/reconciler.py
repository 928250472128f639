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
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from agent import memory, subnet_file
from agent.membership.troubles import few
from agent.roster import Roster
from cni import addr
from cni.errors import NOT_AVAILABLE, CniError
from plugins import this_node
from plugins.cluster_conf import subnet_file_of
from plugins.peers import Node, vtep_mac
from plugins.pod_network import Site
from plugins.vxlan_device import remove_former

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any

    from agent.log import Log
    from agent.membership import Source
    from agent.mirror import Changed
    from cni.kernel.linux import Namespace
    from cni.record import Records
    from plugins.cluster_conf import ClusterConf
    from plugins.peers import Local, Subnet
    from plugins.pod_network import Backend
    from plugins.reconcile import Wanted
    from plugins.this_node import Places


class News(NamedTuple):
    """Nodes that are there and names that are gone (None: all others, but for those that are there and `unread`)."""

    put: list[Node]
    gone: list[str] | None
    unread: frozenset[str] = frozenset()


class Inbox:
    """What a source tells, from its threads to ours."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._mutex = threading.Lock()
        self._news: deque[News] = deque()
        self.trouble_text = ""

    def replace(self, nodes: list[Node], unread: Collection[str] = ()) -> None:
        with self._mutex:
            self._news.clear()  # it says it all
            self._news.append(News(nodes, None, frozenset(unread)))
        self._wake()

    def change(self, put: list[Node], gone: list[str]) -> None:
        with self._mutex:
            self._news.append(News(put, gone))
        self._wake()

    def trouble(self, text: str) -> None:
        self.trouble_text = text
        self._wake()

    def next(self) -> News | None:
        """None when there is no more news."""
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
        self._inbox = Inbox(wake)
        self._roster = Roster(conf.networks, conf.vni if conf.kind == "vxlan" else 0)
        self._roster.own = conf.node_name
        self._memory = memory.path_of(run_dir, conf.name)
        self._has_memory = False
        self._to_remember = False
        self._masqueraded: tuple[Subnet, ...] | None = None
        self._ground: Ground | None = None
        self._site: Site | None = None
        self._here: frozenset[bytes] = frozenset()
        self._faults: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self.settled = False
        self.is_sure = False
        self._knows_all = False

    def close(self) -> None:
        self._source.close()
        self._remember()

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
    def knows_all(self) -> bool:
        """Whether what the kernel holds beside what is wanted may be taken away."""
        return self._knows_all and self._ground is not None

    @property
    def addresses(self) -> frozenset[bytes]:
        own = self._ground.own if self._ground else self._offered
        return frozenset(own.addresses.values()) if own else frozenset()

    @property
    def troubles(self) -> int:
        """How many things are wrong now."""
        return sum(map(bool, self._told.values())) + len(self._faults) + len(self._roster.faults)

    # The members

    def recall(self) -> None:
        """Begin with the members that the agent before this one went by."""
        self._roster.remember(memory.read(self._memory))
        self._has_memory = len(self._roster) > 0

    def hear(self, wanted: Wanted, changed: Changed) -> bool:
        """Take the source's news; whether this node itself is concerned."""
        self._tell("membership", self._inbox.trouble_text)
        concerned = False
        heard = False
        while (news := self._inbox.next()) is not None:
            if news.gone is None:
                left, came = self._roster.replace(news.put, news.unread)
                self._take_as_whole(changed)
            else:
                left, came = self._roster.change(news.put, news.gone)
            heard = True
            self._to_remember = self._to_remember or bool(left or came)
            self._note(left, came)
            for node in left:
                self._faults.pop(node.name, None)
            concerned = concerned or not self.settled or self._concerns(left) or self._concerns(came)
            self.settled = self.settled or news.gone is None
            if self._ground is not None:
                self._leave(left, self._ground, wanted, changed)
                self._join(came, self._ground, wanted, changed)
        if heard:
            self._tell("members", few(list(self._roster.faults.values())))
        return concerned

    def _take_as_whole(self, changed: Changed) -> None:
        """See whether all members are known now: what the kernel holds of one that cannot be read and is not remembered
        stays, whichever that is."""
        before, self._knows_all = self._knows_all, self._has_memory or not self._roster.unread
        if self._knows_all:
            self._has_memory = True
            changed.everything = changed.everything or not before

    def _note(self, left: Iterable[Node], came: Iterable[Node]) -> None:
        """Log who has joined, changed and left."""
        before, now = ({node.name: node for node in nodes} for nodes in (left, came))
        for name in before | now:
            if before.get(name) != now.get(name):
                what = partial(_story, before.get(name), now.get(name))
                self._log.note("members", what, network=self.conf.name, node=name)

    def _concerns(self, nodes: Iterable[Node]) -> bool:
        own = self._ground.own.name if self._ground else self.conf.node_name
        return any(node.name == own or not self._here.isdisjoint(node.addresses.values()) for node in nodes)

    def _leave(self, nodes: Iterable[Node], ground: Ground, wanted: Wanted, changed: Changed) -> None:
        for node in nodes:
            if node.name == ground.own.name:
                continue
            old = self._backend.entries(ground.own, node, ground.local)
            changed.add(old)
            wanted.remove(old)

    def _join(self, nodes: Iterable[Node], ground: Ground, wanted: Wanted, changed: Changed) -> None:
        for node in nodes:
            if node.name == ground.own.name:
                continue
            if node.name in ground.twins or not self._here.isdisjoint(node.addresses.values()):
                self._fault(node, f"peer {node.name}: expected an address of another host, found one that this one has")
                continue
            new = self._backend.entries(ground.own, node, ground.local)
            self._fault(node, "; ".join(new.faults))
            changed.add(new)
            wanted.add(new)

    def _fault(self, node: Node, text: str) -> None:
        """Say what is wrong with a peer, empty for nothing, once."""
        if not text:
            self._faults.pop(node.name, None)
        elif text != self._faults.get(node.name):
            self._faults[node.name] = text
            self._log.warning(text, network=self.conf.name)

    # The ground

    def stand(self, host: Namespace, wanted: Wanted, changed: Changed) -> None:
        """Find this node and its links, make sure of its devices, and plan anew when that is not as before."""
        there = this_node.places(host)
        self._here = self._roster.here = frozenset(address.packed for _, address in there)
        self._offer(host, there)
        self.is_sure = False
        if not self.settled:
            return
        try:
            own = self._own()
            if own is None:
                name = self._name()
                found = self._roster.faults.get(name, "it missing")
                raise CniError(NOT_AVAILABLE, f"expected this one among the members as {name!r}, found {found}")
            if self._ground is None:
                own = self._as_far_as_here(own)
            self._site = self._site_of(own, there)
            damage = self._damage(host, self._site) if self._ground is not None else {}
            ground = Ground(own, self._backend.prepare(host, self._site, self._warn), self._twins(own))
            if damage:
                self._note_repairs(damage, self._damage(host, self._site))
        except CniError as error:
            self._tell("node", f"{error.msg}; what is in force stays")
            return
        self.is_sure = True
        self._tell("node", "")
        if ground.same(self._ground):
            return
        nodes = list(self._roster)
        if self._ground is not None:
            self._tell_of_moved_pods(self._ground.own, ground.own)
            self._leave(nodes, self._ground, wanted, changed)
        else:
            changed.everything = True  # what nobody wants may be taken away from now on
        self._ground = ground
        self._join(nodes, ground, wanted, changed)
        remove_former(host, self.conf.name, ground.local.devices.values(), self._warn)

    def _damage(self, host: Namespace, site: Site) -> dict[int, str]:
        """What is not as it has to be of the devices, by the family of their underlay."""
        found = {}
        for size, underlay in site.underlays.items():
            try:
                self._backend.check(host, Site(site.conf, site.own, {size: underlay}, site.networks, site.mtu))
            except CniError as error:
                found[size] = error.msg
        return found

    def _note_repairs(self, before: dict[int, str], after: dict[int, str]) -> None:
        for size, text in before.items():
            if size not in after:
                self._log.note("repairs", partial(str, f"repaired: {text}"), network=self.conf.name)

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

    def _name(self) -> str:
        """What this node is called where its addresses do not tell."""
        return self.conf.node_name or self._host_name

    def _own(self) -> Node | None:
        """The node that this is, as the members know it: by its name, else by an address, else by the host's name."""
        if self.conf.node_name:
            return self._roster.get(self.conf.node_name)
        holders = filter(None, map(self._roster.holder, sorted(self._here)))
        return next(holders, None) or self._roster.get(self._host_name)

    def _site_of(self, own: Node, there: Places) -> Site:
        conf = self.conf
        underlays = this_node.underlays(conf, own, there)
        mtu = this_node.pods_mtu(own, self._backend.overhead, underlays, conf.mtu, "mtu")
        return Site(conf, own, underlays, conf.networks or own.subnets, mtu)

    def _offer(self, host: Namespace, there: Places) -> None:
        """Have the source tell the others where this node is: at the start, when its address has gone, and when it has
        one of a family that it had none of.

        With no default route to go by, a source that lists this node says where it is.
        """
        before = self._offered.addresses if self._offered is not None else {}
        lasting = {size: packed for size, packed in before.items() if packed in self._here}
        if self._offered is not None and lasting == before and not self._offers_more(lasting, there):
            return
        name = self._name()
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
        self._remember()
        own, site = self._own(), self._site
        try:
            if own is None and self._roster.may_be_in(self.conf.node_name, self._here):
                pass  # as it was, it stays
            elif own is None or not own.subnets:
                self._write("")
            elif site is not None and site.own.subnets == own.subnets:
                self._write(subnet_file.text_of(site))
                from plugins import range_masquerade

                masqueraded = own.subnets if self.conf.ip_masq else ()
                done = range_masquerade.ensure(firewall, masqueraded, (*site.networks, *self.conf.exceptions))
                if done and masqueraded == self._masqueraded:
                    text = "repaired: masquerade rules: they were not as they have to be"
                    self._log.note("repairs", partial(str, text), network=self.conf.name)
                self._masqueraded = masqueraded
            self._tell("upkeep", "")
        except OSError as error:
            self._tell("upkeep", f"{self._subnet_file}: {error.strerror}")
        except CniError as error:
            self._tell("upkeep", error.msg)

    def _remember(self) -> None:
        """Write down who is in, for the process after this one. Without it this one serves all the same."""
        if not self._to_remember:
            return
        try:
            memory.write(self._memory, self._roster)
        except OSError as error:
            self._tell("memory", f"{self._memory}: {error.strerror}; written as soon as that is possible")
        else:
            self._to_remember = False
            self._tell("memory", "")

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


def _story(before: Node | None, now: Node | None) -> str:
    """What has become of a member, None where it was or is not in."""
    was, has = (node.described() if node else {} for node in (before, now))
    name = has.pop("name", None) or was["name"]
    was.pop("name", None)
    if now is None:
        return f"node {name} has left"
    if before is None:
        return f"node {name} has joined: {_listed(has)}"
    changed = [key for key in was | has if was.get(key) != has.get(key)]
    changes = [f"{key} from {_text(was.get(key))} to {_text(has.get(key))}" for key in changed]
    return f"node {name} has changed: {', '.join(changes)}"


def _listed(found: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in found.items())


def _text(value: str | list[str] | None) -> str:
    return (" and ".join(value) if isinstance(value, list) else value) or "none"
