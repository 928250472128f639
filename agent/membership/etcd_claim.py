"""How a node comes to a pod subnet that no other node holds: a claim, in one transaction, under a lease.

    PREFIX/config/network           pods                   whose prefix it is: two networks in one would take each other's nodes in
    PREFIX/config/subnetLen         24                     the length all IPv4 subnets have; ipv6SubnetLen beside it
    PREFIX/subnets/10.244.1.0-24    node2                  who holds a subnet
    PREFIX/nodes/node2              {"name": "node2", ...} the node, with its subnets (plugins/peers.py)
    PREFIX/knocks/node2             {"name": "node2", ...} one who finds its name taken, and asks whether by a living one

A subnet's key is created only if it is absent, together with the node's key: of two that try, etcd lets one. All
subnets of a family have one length, which every claim compares too, so two of them never overlap. Which subnets are
tried follows from the node's name, so thousands of nodes that start at once seldom try the same one, and a node that
lost everything mostly gets what it had. Only after some that were taken are all claims read.

A name is one machine's. A key of our name with an address of ours is ours, from before a restart. With other
addresses it is ours from before a change of address, or another machine's, which then lives and deletes the knock.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from agent.membership import etcd_client as etcd
from agent.membership.etcd_faults import EtcdError, NameTakenError, UnreachableError
from agent.membership.etcd_pools import KEYS
from cni import addr
from cni.addr import overlap
from cni.errors import CniError
from cni.jsonio import decode, encode
from cni.names import digest
from plugins.peers import Node, read_described

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection, Iterable

    from agent.membership.etcd import Settings
    from agent.membership.etcd_pools import Pool
    from plugins.peers import Subnet

# Subnets that may be found taken before all claims are read, and conflicts before it is left for another time.
_BLIND_TRIES = 8
_MOST_TRIES = 200
# Free subnets passed over because hosts may have addresses in them, before one of them is taken.
_MOST_PASSED_OVER = 4096
# For so long, looked at so often, a machine of our name has time to answer. Its watch tells it at once.
_KNOCK_LOOKS, _KNOCK_PAUSE = 30, 0.1
_KNOCK_TTL = 10


class Keys(NamedTuple):
    """The names of the keys under a prefix."""

    prefix: str

    @property
    def nodes(self) -> str:
        """What the keys of nodes begin with."""
        return f"{self.prefix}/nodes/"

    @property
    def subnets(self) -> str:
        """What the keys of claims begin with."""
        return f"{self.prefix}/subnets/"

    @property
    def network(self) -> str:
        """The key that says which network all this is of."""
        return f"{self.prefix}/config/network"

    def node(self, name: str) -> str:
        return f"{self.nodes}{name}"

    def knock(self, name: str) -> str:
        return f"{self.prefix}/knocks/{name}"

    def subnet(self, subnet: Subnet) -> str:
        return f"{self.subnets}{addr.unpack(subnet[0])}-{subnet[1]}"

    def length(self, size: int) -> str:
        return f"{self.prefix}/config/{KEYS[size][0]}"


class Hosts:
    """Which addresses are hosts': those of a node, of all others as far as they are known, and maybe what is on a link."""

    def __init__(self, own: Node, here: Iterable[Subnet], others: Iterable[bytes]) -> None:
        places = list(here)
        self._addresses = [*own.addresses.values(), *(packed for packed, _ in places), *others]
        self._links = [(addr.network(*one), one[1]) for one in places]
        self._found: dict[int, set[bytes]] = {}

    def are_in(self, subnet: Subnet) -> bool:
        """Whether a host's address is in a subnet."""
        packed, length = subnet
        if length not in self._found:
            self._found[length] = {addr.network(one, length) for one in self._addresses if len(one) * 8 >= length}
        return packed in self._found[length]

    def may_be_in(self, subnet: Subnet, length: int) -> bool:
        """Whether one is or may be: a link's network has a part of it. A link with all of a pool in it, whose prefix length
        this is, says nothing."""
        return self.are_in(subnet) or any(overlap(subnet, link) for link in self._links if link[1] > length)


class Claim(NamedTuple):
    """What a node holds: its lease, and itself with its subnets."""

    lease: int
    node: Node


class Claimer:
    """Claims for one node. `claim` may be called again at any time: what is held is kept."""

    def __init__(self, client: etcd.Client, settings: Settings, stopped: threading.Event) -> None:
        """`stopped` ends what waits."""
        self._client = client
        self._network = settings.network.encode()
        self._keys = settings.keys
        self._pools = settings.pools
        self._ttl = settings.ttl
        self._stopped = stopped
        self._held = 0  # the lease of the last claim
        self.conflicts = 0

    def claim(self, own: Node, here: Collection[Subnet] = ()) -> Claim:
        """Hold a subnet of each family: what the node holds in etcd, else what `own` says it had, else a free one, which is
        one apart from the networks that this host has addresses in (`here`) as long as there is one.

        Raises EtcdError, also when none is free, and NameTakenError.
        """
        lengths = [self._keys.length(size) for size in self._pools]
        found, named, *agreed = self._client.read([self._keys.node(own.name), self._keys.network, *lengths])
        if named is None or named.value != self._network:
            self._adopt(own)
        for size, length in zip(self._pools, agreed, strict=True):
            if length is None or length.value != self._length(size):
                self._agree(size)
        other = self._other(found, own)
        if other is not None:
            self._knock(own, other)
        hosts = Hosts(own, here, self._neighbours(own))
        asked = list(dict.fromkeys([*_subnets(found), *own.subnets]))
        holders = self._holders(asked)
        attempt = _Attempt(own, self._pools, holders, hosts)
        lease = self._lease(found if other is None else None)
        for _ in range(_MOST_TRIES):
            if self._try(attempt, lease):
                self._held = lease
                return Claim(lease, attempt.node())
            if attempt.conflicts > _BLIND_TRIES and not attempt.informed:
                attempt.inform(self._all_holders())
        raise EtcdError(f"no subnet claimed in {_MOST_TRIES} tries: others were faster")

    def _neighbours(self, own: Node) -> list[bytes]:
        """The addresses of all nodes, where they may be in a range of pods: this node's is."""
        if not any(_has(pool.network, own.addresses.values()) for pool in self._pools.values()):
            return []
        found: list[bytes] = []
        for kv in self._client.read_all(self._keys.nodes)[0]:
            with suppress(CniError):  # a broken one is reported by who reads the nodes
                found += read_described("", decode(kv.value)).addresses.values()
        return found

    def _other(self, found: etcd.KeyValue | None, own: Node) -> Node | None:
        """The node whose key of our name may be another machine's; None when it is ours or nobody's."""
        if found is None or found.lease in (0, self._held):
            return None
        try:
            node = read_described("", decode(found.value))
        except CniError:
            return None
        return node if set(node.addresses.values()).isdisjoint(own.addresses.values()) else None

    def _knock(self, own: Node, other: Node) -> None:
        """Ask whether another machine lives under our name. NameTakenError when it answers."""
        key = self._keys.knock(own.name)
        self._client.transact([], [etcd.put(key, encode(own.described()), self._client.grant(_KNOCK_TTL))])
        for _ in range(_KNOCK_LOOKS):
            if self._stopped.wait(_KNOCK_PAUSE):
                raise UnreachableError("closed")
            if self._client.read([key]) == [None]:
                raise NameTakenError(other)
        self._client.transact([], [etcd.delete(key)])

    def _try(self, attempt: _Attempt, lease: int) -> bool:
        """One transaction. When it fails, the attempt knows why."""
        name, keys = attempt.own.name.encode(), self._keys
        compare = [etcd.holds(keys.network, self._network)]
        compare += [etcd.holds(keys.length(size), self._length(size)) for size in self._pools]
        wanted, released = attempt.subnets(), attempt.released()
        for subnet in (*wanted, *released):
            key = keys.subnet(subnet)
            compare.append(etcd.holds(key, name) if attempt.holders.get(subnet) else etcd.absent(key))
        node = encode(attempt.node().described())
        success = [etcd.put(keys.subnet(subnet), name, lease) for subnet in wanted]
        success += [etcd.delete(keys.subnet(subnet)) for subnet in released]
        success.append(etcd.put(keys.node(attempt.own.name), node, lease))
        looked_at = (*wanted, *released)
        agreed = [etcd.get(key) for key in (keys.network, *map(keys.length, self._pools))]
        outcome = self._client.transact(compare, success, agreed + [etcd.get(keys.subnet(one)) for one in looked_at])
        if outcome.succeeded:
            return True
        named, *lengths = outcome.found[: len(agreed)]
        if not named or named[0].value != self._network:
            self._adopt(attempt.own)
        for size, length in zip(self._pools, lengths, strict=True):
            if not length or length[0].value != self._length(size):
                self._agree(size)
        for subnet, holder in zip(looked_at, outcome.found[len(agreed) :], strict=True):
            self.conflicts += attempt.learn(subnet, _holder(holder[0] if holder else None))
        return False

    def _holders(self, subnets: list[Subnet]) -> dict[Subnet, str]:
        if not subnets:
            return {}
        found = self._client.read([self._keys.subnet(subnet) for subnet in subnets])
        return {subnet: _holder(kv) for subnet, kv in zip(subnets, found, strict=True)}

    def _all_holders(self) -> dict[Subnet, str]:
        prefix = self._keys.subnets
        found, _, _ = self._client.read_all(prefix)
        holders = {}
        for kv in found:
            subnet = addr.pack_cidr("/".join(kv.key.removeprefix(prefix).rsplit("-", 1)))
            if subnet is not None:
                holders[subnet] = _holder(kv)
        return holders

    def _lease(self, found: etcd.KeyValue | None) -> int:
        """The lease that the node has from before, if it is alive and as long as it is to be; else a new one."""
        if found is not None and found.lease and self._client.keep_alive(found.lease) == self._ttl:
            return found.lease
        return self._client.grant(self._ttl)

    def _adopt(self, own: Node) -> None:
        """See that the prefix is our network's, or raise. It becomes ours when it is nobody's, as that of an earlier build, or
        when nobody but this node has a claim there."""
        key, claims = self._keys.network, self._keys.subnets
        for _ in range(_MOST_TRIES):
            found, revision, _ = self._client.read_all(claims)
            (named,) = self._client.read([key])
            if named is not None and named.value == self._network:
                return
            compare = [etcd.unchanged(key, revision)]
            if named is not None:
                if any(_holder(kv) != own.name for kv in found):
                    raise EtcdError(self._strange(named.value.decode("utf-8", "replace")))
                compare.append(etcd.unchanged(claims, revision, etcd.after(claims)))
            if self._client.transact(compare, [etcd.put(key, self._network)]).succeeded:
                return
        raise EtcdError(f"{key}: not agreed upon in {_MOST_TRIES} tries: others were faster")

    def _strange(self, found: str) -> str:
        """What to tell of a prefix that is another network's."""
        network = self._network.decode()
        return (
            f"membership.prefix: expected one of network {network}'s own, found {self._keys.prefix}, which is network "
            f"{found}'s; give each network a prefix of its own; if {found} was renamed, say so with: "
            f"etcdctl put {self._keys.network} {network}"
        )

    def _length(self, size: int) -> bytes:
        return str(self._pools[size].length).encode()

    def _agree(self, size: int) -> None:
        """See that every node's subnets have our length, or raise. It can be changed while there is no claim of another."""
        key, claims = self._keys.length(size), self._keys.subnets
        for _ in range(_MOST_TRIES):
            found, revision, _ = self._client.read_all(claims, values=False)
            others = [kv.key for kv in found if _is_other(kv.key.removeprefix(claims), size, self._pools[size].length)]
            if others:
                name = KEYS[size][0]
                raise EtcdError(
                    f"{name}: expected subnets of the length {self._pools[size].length} under {self._keys.prefix}, "
                    f"found {others[0].removeprefix(claims)}; give every node the same {name}, or end the nodes that "
                    f"have another and delete their keys"
                )
            compare = [etcd.unchanged(claims, revision, etcd.after(claims)), etcd.unchanged(key, revision)]
            if self._client.transact(compare, [etcd.put(key, self._length(size))]).succeeded:
                return
            (kv,) = self._client.read([key])
            if kv is not None and kv.value == self._length(size):  # another one was faster
                return
        raise EtcdError(f"{key}: not agreed upon in {_MOST_TRIES} tries: others were faster")


class _Attempt:
    """What is tried for one node: a subnet of each family, chosen anew when it turns out to be another's.

    `holders` has the name that holds a subnet, as far as is known; "" for nobody.
    """

    def __init__(self, own: Node, pools: dict[int, Pool], holders: dict[Subnet, str], hosts: Hosts) -> None:
        self.own = own
        self._hosts = hosts
        self.holders = dict(holders)
        self.conflicts = 0
        self.informed = False
        self._pools = pools
        self._chosen: dict[int, Subnet] = {}
        for size, pool in pools.items():
            before = [subnet for subnet in holders if subnet in pool and holders[subnet] in ("", own.name)]
            # With its own address among its pods no other node could reach it.
            before = [subnet for subnet in before if not _has(subnet, own.addresses.values())]
            before.sort(key=lambda subnet: not holders[subnet])  # what it holds, then what it had
            self._chosen[size] = before[0] if before else self._free(pool)

    def subnets(self) -> tuple[Subnet, ...]:
        return tuple(self._chosen.values())

    def released(self) -> list[Subnet]:
        """What the node holds and does not want, such as a subnet of a network that is no longer the cluster's."""
        chosen = set(self._chosen.values())
        return [subnet for subnet, holder in self.holders.items() if holder == self.own.name and subnet not in chosen]

    def node(self) -> Node:
        return Node(self.own.name, self.own.addresses, self.subnets(), self.own.macs)

    def learn(self, subnet: Subnet, holder: str) -> bool:
        """Take note of who holds a subnet; returns whether that is another one and we wanted it."""
        self.holders[subnet] = holder
        if not holder or holder == self.own.name or subnet not in self._chosen.values():
            return False
        self.conflicts += 1
        self._chosen[len(subnet[0])] = self._free(self._pools[len(subnet[0])])
        return True

    def inform(self, holders: dict[Subnet, str]) -> None:
        """Take note of who holds what, everywhere."""
        self.informed = True
        self.holders = holders
        for subnet in self.subnets():
            self.learn(subnet, holders.get(subnet, ""))

    def _free(self, pool: Pool) -> Subnet:
        """A subnet that nobody is known to hold, first tried where the node's name and the attempt say."""
        if pool.count <= len(self.holders) and all(self.holders.get(pool.at(at)) for at in range(pool.count)):
            raise EtcdError(
                f"no subnet is free: all of {pool} are held by other nodes; widen the network, give subnets another "
                f"length, or wait until the leases of nodes that are gone end"
            )
        start = int.from_bytes(digest(f"subnet/{self.own.name}/{pool.size}/{self.conflicts}")[:16], "big") % pool.count
        passed_over: list[Subnet] = []
        for step in range(pool.count):
            subnet = pool.at((start + step) % pool.count)
            if self.holders.get(subnet):
                continue
            if not self._hosts.may_be_in(subnet, pool.network[1]):
                return subnet
            passed_over.append(subnet)
            if len(passed_over) > _MOST_PASSED_OVER:
                break
        return next((subnet for subnet in passed_over if not self._hosts.are_in(subnet)), passed_over[0])


def _has(subnet: Subnet, addresses: Iterable[bytes]) -> bool:
    return any(len(packed) == len(subnet[0]) and addr.inside(packed, *subnet) for packed in addresses)


def _holder(kv: etcd.KeyValue | None) -> str:
    """Who holds a subnet. A key that names nobody is a broken one, and is held by that."""
    return "" if kv is None else kv.value.decode("utf-8", "replace") or "?"


def _subnets(kv: etcd.KeyValue | None) -> tuple[Subnet, ...]:
    """The subnets of a node's key; none when it is broken: it is about to be written anew."""
    try:
        return read_described("", decode(kv.value)).subnets if kv else ()
    except CniError:
        return ()


def _is_other(text: str, size: int, length: int) -> bool:
    subnet = addr.pack_cidr("/".join(text.rsplit("-", 1)))
    return subnet is not None and len(subnet[0]) == size and subnet[1] != length
