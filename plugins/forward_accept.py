"""Accepts for the pods' packets where iptables drops what is forwarded (`forwardAccept`), and who else drops it.

    -A DOCKER-USER -s 10.244.0.0/16 -m comment --comment "cnikit pods from 10.244.0.0/16" -j ACCEPT
    -A DOCKER-USER -d 10.244.0.0/16 -m comment --comment "cnikit pods to 10.244.0.0/16" -j ACCEPT

Docker, ufw and many a hardened image have FORWARD drop, and so drop what pods of different nodes send each other. As
long as that is so, each family has these two rules for each of the network's ranges: in DOCKER-USER where that chain
stands before the drop, else in FORWARD, and there as late as counts, so that whatever others refuse before stays
refused. They are taken away when nothing drops any more. The comment is how they are known.

The tables of iptables' nftables kind are written without a program. In a table of others nothing is put: a drop in any
base chain is final, and all that can be done is to name it (`check`, `status`, the agent's log).
"""

from __future__ import annotations

from errno import ENOENT

from cni import addr, names
from cni.errors import INTERNAL, NOT_AVAILABLE, CniError, KernelError
from cni.kernel import ops
from cni.kernel.ops import NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6
from plugins import legacy_iptables
from plugins.forward_policy import Packet, dropped_at, left_at
from plugins.iptables import FAMILIES
from plugins.peers import SIZES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.ops import Op
    from cni.kernel.types import NftChain, NftStep
    from cni.world import Communicate
    from plugins.peers import Subnet
    from plugins.pod_network import Site

    # A rule of ours: `from` or `to`, and the range.
    Rule = tuple[str, Subnet]

FORWARD = "FORWARD"
DOCKER_USER = "DOCKER-USER"
FILTER = "filter"

_NFPROTO_NAMES = {NFPROTO_INET: "inet", NFPROTO_IPV4: "ip", NFPROTO_IPV6: "ip6"}
_LONGEST_NETWORK = 40
_ROUTED_PODS = "veth"  # what the names of their links begin with (cni/names.py)
_TRIES = 3


class Programs:
    """How programs are run: legacy iptables has nothing else to write it with."""

    __slots__ = ("environ", "through")

    def __init__(self, environ: Mapping[str, str], through: Communicate | None = None) -> None:
        self.environ = environ
        self.through = through


class Network:
    """What a network asks for: accepts or none, for which ranges, and the links that its packets come in and leave by: `wires`
    by the size of the pods' addresses, and `pods`."""

    __slots__ = ("is_accepted", "name", "pods", "ranges", "wires")

    def __init__(self, site: Site, devices: Sequence[str]) -> None:
        """`devices` are the overlay's, as `SIZES` has their underlays."""
        conf = site.conf
        self.name = conf.name
        self.is_accepted = conf.forward_accept
        self.ranges = site.networks or site.own.subnets
        self.wires = {size: tuple(_wires(site, devices, size)) for size in SIZES}
        self.pods = (conf.bridge or _ROUTED_PODS,)

    def packets(self, size: int) -> list[Packet]:
        wires, found = self.wires[size], []
        for one in self.ranges:
            if len(one[0]) == size:
                found += [Packet(one, wires, self.pods), Packet(one, self.pods, wires)]
        return found

    def rules(self, size: int) -> dict[str, Rule]:
        """By their comments."""
        own = [one for one in self.ranges if len(one[0]) == size] if self.is_accepted else []
        return {
            f"{_label(self.name)}{way} {addr.unpack_cidr(*one)}": (way, one) for one in own for way in ("from", "to")
        }


def _wires(site: Site, devices: Sequence[str], size: int) -> Iterator[str]:
    """The links to other nodes for pods' packets of a family. Which family's device carries them follows from the addresses
    that nodes have; here from this node's, for those of both families are all the same as a rule."""
    if devices:
        carriers = [one for one in sorted(SIZES, key=size.__ne__) if one in site.own.addresses]
        yield devices[SIZES.index(carriers[0] if carriers else size)]
    if size in site.underlays and (site.conf.direct or not devices):
        yield site.underlays[size].name


class _NftTable:
    """`filter` of iptables' nftables kind."""

    def __init__(self, host: Namespace, size: int, policy: str) -> None:
        self.size = size
        self.policy = policy
        self.text = self.command = FAMILIES[size][1]
        self._host = host
        self._proto = FAMILIES[size][0]
        self._steps: dict[str, list[NftStep]] = {}

    def steps(self, chain: str) -> Sequence[NftStep]:
        if chain not in self._steps:
            self._steps[chain] = self._host.nft_steps(self._proto, FILTER, chain)
        return self._steps[chain]

    def change(self, removed: list[tuple[str, NftStep]], chain: str, before: int, added: Mapping[str, Rule]) -> None:
        operations = [ops.nft_rule_del(self._proto, FILTER, name, step.handle) for name, step in removed]
        operations += [self._addition(chain, before, *rule, comment) for comment, rule in added.items()]
        self._host.nft(*operations)

    def _addition(self, chain: str, before: int, way: str, subnet: Subnet, comment: str) -> Op:
        from cni.kernel.nftables import accept, counter, daddr_in, saddr_in

        match = saddr_in if way == "from" else daddr_in
        expressions = [match(self._proto, *subnet), counter(), accept()]
        return ops.nft_rule_add(self._proto, FILTER, chain, expressions, comment, before)


class _LegacyTable:
    """`filter` of legacy iptables."""

    def __init__(self, table: legacy_iptables.Table, size: int, programs: Programs) -> None:
        self.size = size
        self.policy = table.policies.get(FORWARD) or "accept"
        self.text = f"{FAMILIES[size][1]} (legacy)"
        self.command = legacy_iptables.command_name(size, programs.environ)
        self.steps = table.steps
        self._programs = programs

    def change(self, removed: list[tuple[str, NftStep]], chain: str, before: int, added: Mapping[str, Rule]) -> None:
        # From the last to the first, so that the numbers of the others stay.
        last_first = sorted(removed, key=lambda one: one[1].handle, reverse=True)
        lines = [f"-D {name} {step.handle}" for name, step in last_first]
        at = before - sum(name == chain and step.handle < before for name, step in removed) if before else 0
        for number, (comment, (way, subnet)) in enumerate(added.items()):
            place = f"-I {chain} {at + number}" if at else f"-A {chain}"
            option = "-s" if way == "from" else "-d"
            lines.append(f'{place} {option} {addr.unpack_cidr(*subnet)} -m comment --comment "{comment}" -j ACCEPT')
        legacy_iptables.change(self.size, lines, self._programs.environ, self._programs.through)


class View:
    """What filters forwarded packets on this node: the tables of iptables, and the base chains of others. `unread` says
    what cannot be looked at, whatever it does."""

    def __init__(self, host: Namespace, programs: Programs) -> None:
        self._host = host
        self.tables: list[_NftTable | _LegacyTable] = []
        self.others: list[NftChain] = []
        self.unread: list[str] = []
        for chain in host.nft_chains():
            size = {NFPROTO_IPV4: 4, NFPROTO_IPV6: 16}.get(chain.family)
            if chain.hook != "forward":
                continue
            if size and (chain.table, chain.name) == (FILTER, FORWARD):
                self.tables.append(_NftTable(host, size, chain.policy))
            else:
                self.others.append(chain)
        for size in FAMILIES:
            legacy = legacy_iptables.read(size, programs.environ, programs.through)
            if legacy is not None:
                self.tables.append(_LegacyTable(legacy, size, programs))
            elif legacy_iptables.is_used(size):
                name = FAMILIES[size][1]
                self.unread.append(
                    f"{name} (legacy) has a filter table: expected {name}-legacy-save to look at it, found none"
                )

    def refusals(self, network: Network) -> list[CniError]:
        """Who else drops the network's packets, as errors with what can be done."""
        found: list[CniError] = []
        for chain in self.others if network.is_accepted else ():
            steps = _cached(lambda name, chain=chain: self._host.nft_steps(chain.family, chain.table, name))  # type: ignore[misc]
            for size, (proto, *_) in FAMILIES.items():
                packets = network.packets(size)
                if not packets or chain.family not in (proto, NFPROTO_INET):
                    continue
                at = dropped_at(steps, chain.name, chain.policy, packets)
                if at is not None:
                    found.append(_dropped(chain, at, len(steps(chain.name)), packets[0].network))
        return found

    def missing(self, network: Network) -> Iterator[CniError]:
        """The same for what accepts of ours would let pass, and do not."""
        for table in self.tables if network.is_accepted else ():
            packets = network.packets(table.size)
            at = dropped_at(table.steps, FORWARD, table.policy, packets)
            if at is not None:
                yield _unaccepted(table, at, packets)


def ensure(ctx: Context, network: Network) -> None:
    """Have the accepts that the network asks for, and no other of its. What others drop is logged."""
    done, view = settle(ctx.host, network, Programs(ctx.request.environ, ctx.world.communicate))
    for line in (*done, *(view.unread if network.is_accepted else ())):
        ctx.log(line)
    for refusal in view.refusals(network):
        ctx.log(f"{refusal.msg}; {refusal.details}")


def settle(host: Namespace, network: Network, programs: Programs) -> tuple[list[str], View]:
    """The same without a word: what was done, and what there is beside it."""
    done: list[str] = []
    for attempt in range(1, _TRIES + 1):
        view = View(host, programs)
        try:
            for table in view.tables:
                done += _settle(table, network)
            break
        except KernelError as error:
            if error.errno != ENOENT or attempt == _TRIES:  # somebody else has changed the chain meanwhile
                raise
    return done, view


def check(ctx: Context, network: Network) -> None:
    """CniError 999 that names the first thing that drops the network's packets."""
    view = View(ctx.host, Programs(ctx.request.environ, ctx.world.communicate))
    for refusal in (*view.refusals(network), *view.missing(network)):
        raise CniError(INTERNAL, refusal.msg, refusal.details)


def status(ctx: Context, network: Network, *, is_looked: bool) -> None:
    """CniError 50 when somebody drops the network's packets, and ADD can do nothing about it, or will not: `is_looked` says
    whether the next one calls `ensure`."""
    view = View(ctx.host, Programs(ctx.request.environ, ctx.world.communicate))
    for refusal in (*view.refusals(network), *(() if is_looked else view.missing(network))):
        raise refusal


def remove_all(view: View) -> list[str]:
    """Take the accepts of every network away, where that can be looked at; what was done."""
    done = []
    for table in view.tables:
        there = _ours(table, names.OWNER)
        if there:
            table.change(there, FORWARD, 0, {})
            done.append(f"{len(there)} accepts from {table.text} {FILTER}")
    return done


def _settle(table: _NftTable | _LegacyTable, network: Network) -> list[str]:
    """What was done in one table."""
    there = _ours(table, _label(network.name))
    mine = {id(step) for _, step in there}
    others = _cached(lambda chain: [step for step in table.steps(chain) if id(step) not in mine])
    packets = network.packets(table.size)
    dropped = [one for one in packets if dropped_at(others, FORWARD, table.policy, [one]) is not None]
    wanted = network.rules(table.size) if dropped else {}
    if sorted(step.comment for _, step in there) == sorted(wanted) and (
        not dropped or dropped_at(table.steps, FORWARD, table.policy, packets) is None
    ):
        return []
    chain, before = _place(others, dropped)
    table.change(there, chain, before, wanted)
    if not wanted:
        return [f"{table.text}: accepts of network {network.name} removed"]
    return [f"{table.text} drops forwarded packets: accepts of network {network.name} put into {chain}"]


def _place(steps: Callable[[str], Sequence[NftStep]], dropped: Sequence[Packet]) -> tuple[str, int]:
    """Into which chain accepts go so that these packets come to them, and before which rule there (0: at the end)."""
    at = left_at(steps, FORWARD, dropped)
    chain = FORWARD
    if any(step.target == DOCKER_USER and _is_for_all(step) for step in steps(FORWARD)[: at + 1]):
        chain, at = DOCKER_USER, left_at(steps, DOCKER_USER, dropped)
    return chain, steps(chain)[at].handle if at < len(steps(chain)) else 0


def _is_for_all(step: NftStep) -> bool:
    return not (step.addresses or step.links or step.open or step.narrow)


def _ours(table: _NftTable | _LegacyTable, label: str) -> list[tuple[str, NftStep]]:
    return [
        (chain, one) for chain in (FORWARD, DOCKER_USER) for one in table.steps(chain) if one.comment.startswith(label)
    ]


def _cached(steps: Callable[[str], Sequence[NftStep]]) -> Callable[[str], Sequence[NftStep]]:
    found: dict[str, Sequence[NftStep]] = {}

    def ask(chain: str) -> Sequence[NftStep]:
        if chain not in found:
            found[chain] = steps(chain)
        return found[chain]

    return ask


def _label(network: str) -> str:
    """What the comments of a network's accepts start with. nft shows 127 bytes of one."""
    short = network if len(network) <= _LONGEST_NETWORK else f"sha512-{names.digest(network).hex()[:32]}"
    return f"{names.OWNER}{short} "


def _unaccepted(table: _NftTable | _LegacyTable, at: int, packets: Sequence[Packet]) -> CniError:
    why = "policy" if at >= len(table.steps(FORWARD)) else f"rule {at + 1}"
    text = f"forwarded packets: expected accepts for the pods in {table.text}, found its {FORWARD} chain ({why}) to drop them"
    chain, _ = _place(table.steps, packets)
    networks = dict.fromkeys(addr.unpack_cidr(*one.network) for one in packets)
    commands = [f"{table.command} -I {chain} {way} {one} -j ACCEPT" for one in networks for way in ("-s", "-d")]
    remedy = "the agent (cnikit agent --network FILE) puts them there within seconds; without it"
    return CniError(NOT_AVAILABLE, text, f"{remedy}: {'; '.join(commands)}")


def _dropped(chain: NftChain, at: int, rules: int, network: Subnet) -> CniError:
    where = f"{_NFPROTO_NAMES[chain.family]} {chain.table} {chain.name}"
    why = "its policy" if at >= rules else f"its rule {at + 1}"
    text = f"forwarded packets: expected those of pods to pass, found them dropped by nftables chain {where} ({why})"
    match = (
        f"nft insert rule {where} {'ip' if len(network[0]) == 4 else 'ip6'} {{}} {addr.unpack_cidr(*network)} accept"
    )
    remedy = f"no other table can accept them: {match.format('saddr')}; {match.format('daddr')}"
    return CniError(NOT_AVAILABLE, text, f"{remedy}; or set forwardAccept to false, and they are not looked at")
