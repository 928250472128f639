"""One network of the cluster, as this node sees it: who is in it, where this node stands, and what follows from both.

Three things can change, and each is looked at where it costs least:

- a member: its old entries leave the wanted ones and its new ones come in. The entries are a pure function
  (`vxlan.entries`, `host_gw.entries`), so nothing is kept for each peer but the node itself;
- the ground, which is this node's own link, addresses and devices: everything is planned anew;
- the kernel, which is not looked at here: `cluster.py` compares it with what is wanted.

While something is missing (the underlay without its address, a device that cannot be made) what was planned last stays in
force. Until the first whole list of members comes it is those of the earlier process that count: what leads to them is kept
in force, and nothing is taken away.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from agent import subnet_file
from agent.inbox import Inbox
from agent.membership.troubles import few
from agent.offer import Offer
from agent.remembered import Memory
from agent.roster import Roster
from agent.story import story
from agent.stranded import Stranded
from agent.upkeep import Upkeep
from cni.errors import NOT_AVAILABLE, CniError
from plugins import this_node
from plugins.cluster_conf import subnet_file_of
from plugins.peers import SIZES, Local, Node
from plugins.pod_network import Site, carried_to
from plugins.vxlan_device import remove_former

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from agent.log import Log
    from agent.membership import Source
    from agent.mirror import Changed
    from agent.upkeep import Firewall
    from cni.kernel.linux import Namespace
    from plugins.cluster_conf import ClusterConf
    from plugins.peers import Subnet
    from plugins.pod_network import Backend
    from plugins.reconcile import Wanted
    from plugins.this_node import Places

    T = TypeVar("T")


_STAYS = "what is in force stays"


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
        self._inbox = Inbox(wake)
        self._offer = Offer(conf, source, self._inbox, self._name(), self._subnet_file, self._tell, lists_us=lists_us)
        self._roster = Roster(conf.networks, conf.vni if conf.kind == "vxlan" else 0)
        self._roster.own = conf.node_name
        self._memory = Memory(run_dir, conf.name, self._tell)
        self._has_memory = False
        self._ground: Ground | None = None
        self._lost: frozenset[int] = frozenset(SIZES)
        self._site: Site | None = None
        self._here: frozenset[bytes] = frozenset()
        self._located: frozenset[Subnet] | None = None
        self._faults: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._upkeep = Upkeep(conf, backend, self._subnet_file, log, self._tell)
        self._stranded = Stranded()
        self.settled = False  # whether a whole list of members was heard
        self.is_sure = False
        self._is_tidy = False
        self._knows_all = False
        self._unfit: str | None = None  # why it has no ground; None before that is known
        self._judged: str | None = None

    def close(self) -> None:
        self._source.close()
        self._memory.keep(self._roster)

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
        if self._ground is None:
            return frozenset()
        local = self._ground.local
        direct = local.direct.links() if local.direct is not None else set()
        return self.devices | {underlay.index for underlay in local.underlays.values()} | direct

    @property
    def knows_all(self) -> bool:
        """Whether what the kernel holds beside what is wanted may be taken away."""
        return self._knows_all and self._ground is not None

    @property
    def is_done(self) -> bool:
        """Whether `stand` has nothing to try again."""
        return self.is_sure and (self._is_tidy or not self.knows_all)

    @property
    def addresses(self) -> frozenset[bytes]:
        """Those that this node has, or may have: any of them may be where a connection to the source comes from."""
        own = self._ground.own if self._ground else self._offer.made
        return self._here.union(own.addresses.values() if own else (), self._source.stated)

    def goes_by(self, subnet: Subnet) -> bool:
        """Whether the way to another node, which the entries follow from, may lead by a route to this network."""
        direct = self._ground.local.direct if self._ground else None
        return direct is not None and direct.has(subnet)

    @property
    def troubles(self) -> int:
        """How many things are wrong now."""
        return sum(map(bool, self._told.values())) + len(self._faults) + len(self._roster.faults)

    # The members

    def recall(self) -> None:
        """Begin with the members that the agent before this one went by."""
        self._roster.remember(self._memory.recall())
        self._has_memory = len(self._roster) > 0

    def hear(self, wanted: Wanted, changed: Changed) -> bool:
        """Take the source's news; whether this node itself is concerned."""
        self._tell("membership", self._inbox.trouble_text)
        concerned = False
        heard = False
        while (news := self._inbox.next()) is not None:
            if news.gone is None:
                left, came = self._roster.replace(news.put, news.unread)
            else:
                left, came = self._roster.change(news.put, news.gone)
            heard = True
            self._memory.is_outdated = self._memory.is_outdated or bool(left or came)
            self._note(left, came)
            for node in left:
                self._faults.pop(node.name, None)
            concerned = concerned or not self.settled or self._concerns(left) or self._concerns(came)
            self.settled = self.settled or news.gone is None
            if self.settled:
                self._see_who_is_known(changed)
            if self._ground is not None:
                self._leave(left, self._ground, wanted, changed)
                if self._ground.local.direct is not None:
                    self._ground.local.direct.forget(packed for node in left for packed in node.addresses.values())
                self._join(came, self._ground, wanted, changed)
        if heard:
            self._tell("members", few(list(self._roster.faults.values())))
        return concerned or self._source.stated != self._offer.stated

    def _see_who_is_known(self, changed: Changed) -> None:
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
                what = partial(story, before.get(name), now.get(name))
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
        located = frozenset((address.packed, address.prefix) for _, address in there)
        if located != self._located:
            self._located = located
            self._source.locate(located)
        if self._offer.settle(host, there, is_listed=self.settled):
            self.hear(wanted, changed)  # a source that lists this node answers at once
        self.is_sure = False
        own = self._own() if self.settled or self._has_memory else None
        if own is None and not self.settled:
            return
        before, self._lost = self._lost, frozenset(SIZES)
        try:
            if own is None:
                name = self._name()
                found = self._roster.faults.get(name, "it missing")
                raise CniError(NOT_AVAILABLE, f"expected this one among the members as {name!r}, found {found}")
            site = self._site_of(host, own, there)
            away = frozenset(site.lost)
            is_same = self._ground is not None and self._ground.own == own  # else what differs is to change
            damage = self._damage(host, site) if is_same else {}
            ground = Ground(own, self._prepare(host, site), self._twins(own))
            if damage:
                self._note_repairs(damage, self._damage(host, site))
        except CniError as error:
            self._unfit = error.msg
            self._tell("node", f"{error.msg}; {_STAYS}")
            return
        self._site, self._lost = site, frozenset(site.lost)
        # With an address away pods are attached for the other family; with a device that cannot be made ADD fails.
        self._unfit = next((error.msg for size, error in site.lost.items() if size not in away), "")
        self.is_sure = not site.lost
        self._tell("node", "; ".join([*(error.msg for error in site.lost.values()), _STAYS]) if site.lost else "")
        if before - self._lost:
            changed.everything = True  # the kernel refused what it takes now, and took away more than it announced
        if not ground.same(self._ground):
            self._move(ground, wanted, changed)
        self._tidy(host)

    def _move(self, ground: Ground, wanted: Wanted, changed: Changed) -> None:
        """Plan anew, for another ground."""
        nodes = list(self._roster)
        if self._ground is not None:
            self._leave(nodes, self._ground, wanted, changed)
        else:
            changed.everything = True  # what nobody wants may be taken away from now on
        self._ground, self._is_tidy = ground, False
        self._join(nodes, ground, wanted, changed)

    def _tidy(self, host: Namespace) -> None:
        """Remove the devices of an earlier configuration, once everyone is known whose routes lead through them."""
        if not self.is_done and self.is_sure:
            left = remove_former(host, self.conf.name, self.devices, self._warn)
            self._is_tidy = not left
            self._tell("former", left)

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

    def _twins(self, own: Node) -> frozenset[str]:
        holders = filter(None, map(self._roster.holder, self._here))
        return frozenset(node.name for node in holders if node.name != own.name)

    def _name(self) -> str:
        """What this node is called where its addresses do not tell."""
        return self.conf.node_name or self._host_name

    def _own(self) -> Node | None:
        """The node that this is, as the members know it: by its name, else by an address, also by one that is away, else
        by the host's name."""
        if self.conf.node_name:
            return self._roster.get(self.conf.node_name)
        holders = filter(None, map(self._roster.holder, sorted(self._here)))
        host_name = self._host_name
        by_address = next(holders, None) or self._known_by()
        return by_address or self._roster.get(host_name) or self._roster.get(host_name.lower())

    def _known_by(self) -> Node | None:
        """The node that this was, as long as the members have an address of it. What it was in an earlier process the
        subnet file says."""
        if self._ground is None:
            file = subnet_file.written(self._subnet_file)
            addresses = file.addresses.values() if file is not None else ()
            return next(filter(None, map(self._roster.holder, addresses)), None)
        before = self._ground.own
        now = self._roster.get(before.name)
        is_same = now is not None and not set(now.addresses.values()).isdisjoint(before.addresses.values())
        return now if is_same else None

    def _site_of(self, host: Namespace, own: Node, there: Places) -> Site:
        conf = self.conf
        underlays, lost = this_node.underlays(conf, own, there)
        underlays = this_node.narrowed(host, underlays, carried_to(conf, self._backend, own, self._roster))
        before = self._ground.local.underlays if self._ground else {}
        known = _of(before, lost) | underlays
        mtu = this_node.pods_mtu(own, self._backend.overhead, known, conf.mtu, "mtu")
        return Site(conf, own, underlays, conf.networks or own.subnets, mtu, lost)

    # Whether pods can be attached

    @property
    def fault(self) -> str | None:
        """Why no pod can be attached in this network, empty when one can, and None before that is known."""
        if not self.settled:
            return None
        if self._unfit is None or self._site is None:
            return self._unfit
        missing = "" if self._site.own.subnets else f"{self._site.own}: expected a subnet for its pods, found none"
        return self._unfit or self._told.get("upkeep") or missing

    def judge(self, fault: str) -> None:
        """Have the source tell it, when it has changed."""
        if fault != self._judged:
            self._judged = fault
            self._source.judge(fault)

    # What else is this node's own

    def keep_up(self, firewall: Firewall) -> None:
        """Make sure of the subnet file, the masquerade rules and that forwarded packets are accepted."""
        if self.settled:
            self._memory.keep(self._roster)
        own = self._own()
        if not self._is_known(own):  # all stays as it was
            self._tell("upkeep", "")
            return
        try:
            self._upkeep.settle(firewall, own, self._site)
            self._tell("upkeep", "")
            if own is not None:
                self._tell("pods", self._stranded.look(firewall.records, own.subnets))
        except OSError as error:
            self._tell("upkeep", f"{self._subnet_file}: {error.strerror}")
        except CniError as error:
            self._tell("upkeep", error.msg)

    def _is_known(self, own: Node | None) -> bool:
        """Whether it is known what this node has in the network, or that it is not among the members."""
        if not self.settled:
            return self._has_memory and own is not None and bool(own.subnets)
        return own is not None or not self._roster.may_be_in(self.conf.node_name, self._here)

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
