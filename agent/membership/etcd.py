"""Membership in etcd: this node's subnets are claimed there, its key says where it is, and a watch tells of the others.

Two threads. `follow` claims, reads all nodes and then watches from the revision that it has read, so that no change
falls between the two. `hold` keeps the lease alive and writes this node's key when its address has changed, and waits for
nobody: a watch that has much to tell delays no lease. When a lease has ended all the same (etcd was away for longer
than `ttl`), its keys are gone, which the watch tells: then the same subnets are claimed again, or others if
somebody has them.

    "membership": {"source": "etcd", "endpoints": ["https://..."], "prefix": "/cnikit/NET", "ttl": 86400,
                   "caFile", "certFile", "keyFile", "username", "passwordFile",
                   "publicIP", "publicIPv6",
                   "subnetLen": 24, "subnetMin", "subnetMax", "ipv6SubnetLen": 64, "ipv6SubnetMin", "ipv6SubnetMax"}
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from agent.membership import FIRST_PAUSE, LAST_PAUSE, Source
from agent.membership.etcd_claim import Claimer, Keys
from agent.membership.etcd_client import Client, after, delete, leased, put, unchanged
from agent.membership.etcd_credentials import Credentials
from agent.membership.etcd_faults import (
    CompactedError,
    EtcdError,
    LostError,
    NameTakenError,
    UnreachableError,
    name_fault,
)
from agent.membership.etcd_nodes import Nodes
from agent.membership.etcd_pools import read_pools
from agent.membership.troubles import Troubles
from cni.config import Refusal, text, wrong
from cni.errors import CniError
from cni.jsonio import decode, encode
from cni.names import digest
from plugins.peers import ADDRESS_KEYS, Node, read_described

if TYPE_CHECKING:
    from typing import Any

    from agent.membership import Listener, Network
    from agent.membership.etcd_claim import Claim
    from agent.membership.etcd_client import Answer, Event, KeyValue
    from agent.membership.etcd_pools import Pool
    from cni.config import Reader
    from plugins.peers import Subnet

# A lease is renewed three times in its life, and so often that an etcd that does not answer is noticed.
_LONGEST_BEAT = 60.0
# etcd's own bounds of a lease's seconds; shorter ones would end while etcd chooses a leader.
_TTL = (5, 9_000_000_000)
_CLOSING_PATIENCE = 5.0
# Who is refused for its name knocks every few seconds; after so long without it has given up.
_KNOCKS_STOPPED = 30.0


class Settings(NamedTuple):
    """What the configuration says."""

    network: str
    endpoints: tuple[str, ...]
    credentials: Credentials
    keys: Keys
    pools: dict[int, Pool]
    ttl: int
    public: tuple[bytes, ...]  # this node's addresses, as far as they are given


def make(config: Reader, network: Network) -> EtcdSource:
    """The source that `membership` describes. CniError 7 with the path of what is wrong."""
    return EtcdSource(read_settings(config, network))


def read_settings(config: Reader, network: Network) -> Settings:
    endpoints = tuple(_endpoint(config, path, found) for path, found in config.array("endpoints"))
    if not endpoints:
        config.refuse(wrong(config.at("endpoints"), "at least one URL such as https://192.0.2.1:2379", []))
    credentials = Credentials(
        *(config.string(key) for key in ("caFile", "certFile", "keyFile", "username", "passwordFile"))
    )
    if bool(credentials.cert) != bool(credentials.key):
        config.refuse(wrong(config.at("certFile"), "certFile and keyFile, or neither", credentials.cert))
    if bool(credentials.user) != bool(credentials.password):
        config.refuse(wrong(config.at("username"), "username and passwordFile, or neither", credentials.user))
    prefix = config.string("prefix", f"/cnikit/{network.name}").rstrip("/")
    if not prefix:
        config.refuse(wrong(config.at("prefix"), "the beginning of keys, such as /cnikit/pods", prefix))
    if not network.ranges:
        config.refuse(Refusal("network", "network or ipv6Network to claim subnets of", "neither", "add the range"))
    pools = read_pools(config, network.ranges)
    ttl = config.integer("ttl", 86400, *_TTL)
    return Settings(network.name, endpoints, credentials, Keys(prefix), pools, ttl, _public(config))


class EtcdSource(Source):
    """The source of one network. `start` is called once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        self._guard = threading.Condition()  # of those below
        self._own = Node("", {}, ())
        self._claim: Claim | None = None
        self._here: frozenset[Subnet] = frozenset()
        self._published: deque[Node] = deque(maxlen=8)  # what this node's key may hold

    @property
    def stated(self) -> tuple[bytes, ...]:
        return self._settings.public

    @property
    def claims(self) -> frozenset[str]:
        return frozenset(f"{endpoint} {self._settings.keys.prefix}" for endpoint in self._settings.endpoints)

    def locate(self, here: frozenset[Subnet]) -> None:
        with self._guard:
            before, self._here = self._here, here
            self._guard.notify_all()
        gone = {packed for packed, _ in before}.difference(packed for packed, _ in here)
        for client in (self._follow_client, self._hold_client) if self._threads else ():
            client.leave(gone)

    def start(self, own: Node, listener: Listener) -> None:
        """`own.subnets` are what the node had before, if that is known: they are taken again while they are free."""
        settings = self._settings
        self._own = own
        self._listener = listener
        self._troubles = Troubles(listener.trouble, follows={"lease": "etcd"})
        spread = digest(own.name)  # thousands of nodes do not all do the same at the same moment
        self._spread = 0.75 + spread[0] / 512
        start = int.from_bytes(spread[:4], "big")
        self._follow_client = Client(settings.endpoints, settings.credentials, start)
        self._hold_client = Client(settings.endpoints, settings.credentials, start)
        self._claimer = Claimer(self._follow_client, settings, self._stopped)
        self._nodes = Nodes(settings.keys.nodes)
        self._revision, self._cluster, self._watching = 0, "", False
        self._listed = False  # the listener has had a whole list
        self._knock: KeyValue | None = None  # of another machine with our name, to be answered
        self._knocked_at = math.inf
        for work in (self._follow, self._hold):
            thread = threading.Thread(target=work, name=f"etcd{work.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def update(self, own: Node) -> None:
        with self._guard:
            self._own = Node(own.name, own.addresses, self._own.subnets, own.macs)
            self._guard.notify_all()

    def close(self) -> None:
        if not self._threads:
            return
        self._troubles.close()
        self._stopped.set()
        with self._guard:
            self._guard.notify_all()
        self._follow_client.interrupt()
        self._hold_client.interrupt()
        for thread in self._threads:
            thread.join(_CLOSING_PATIENCE)

    # The thread that claims, reads and watches.

    def _follow(self) -> None:
        pause = FIRST_PAUSE
        lost_at = -math.inf
        while not self._stopped.is_set():
            try:
                self._take()
                self._read()
                self._watch()
            except CompactedError:
                self._revision = 0
            except LostError:
                self._lose()
                # The others have withdrawn this node, so there is no time to lose; but who fights for a name has to wait.
                before, lost_at = lost_at, time.monotonic()
                if lost_at - before >= LAST_PAUSE:
                    self._watching = False
                    continue
            except UnreachableError as error:
                if not self._watching:  # a watch that was lost may be had from another endpoint at once
                    self._troubles.tell("etcd", f"{error}; what is known stays in force")
            except NameTakenError as error:
                self._troubles.tell("etcd", "")
                self._troubles.tell("name", str(error))
            except EtcdError as error:
                self._troubles.tell("etcd", f"{error}; what is known stays in force")
            except Exception as error:  # noqa: BLE001 - a thread that ends would never be missed
                self._troubles.tell("etcd", f"unexpected: {type(error).__name__}: {error}")
                self._lose()
            if self._watching:
                pause = FIRST_PAUSE
            self._watching = False
            self._rest(pause * self._spread)
            pause = min(2 * pause, LAST_PAUSE)
        self._follow_client.close()

    def _rest(self, seconds: float) -> None:
        """Wait, but not when this node has other addresses than it had: what failed may work now."""
        with self._guard:
            here = self._here
            self._guard.wait_for(lambda: self._stopped.is_set() or self._here != here, seconds)

    def _take(self) -> None:
        """Hold this node's subnets, unless they are held."""
        with self._guard:
            own, claim, here = self._own, self._claim, self._here
        if claim is not None:
            return
        try:
            claim = self._claimer.claim(own, here)
        except NameTakenError:
            self._yield(own)
            raise
        node = claim.node
        with self._guard:
            self._published.append(node)
            self._own = Node(own.name, self._own.addresses, node.subnets, self._own.macs)
            self._claim = claim
            self._guard.notify_all()
        self._troubles.tell("name", "")

    def _yield(self, own: Node) -> None:
        """Have no subnet while another machine lives under this node's name. What is not claimed may become anybody's, and two
        would hand out one address. EtcdError when who else is there cannot be read."""
        bare = Node(own.name, own.addresses, (), own.macs)
        if self._listed:
            self._listener.change([bare], [])
            return
        keys = self._settings.keys
        found, _, _ = self._follow_client.read_all(keys.nodes)
        nodes, unread = self._nodes.load(kv for kv in found if kv.key != keys.node(own.name))
        self._listener.replace([*nodes, bare], unread)
        self._listed = True

    def _lose(self) -> None:
        self._revision = 0
        with self._guard:
            self._claim = self._knock = None

    def _read(self) -> None:
        """Know all nodes, unless they are known."""
        if self._revision:
            return
        keys, own = self._settings.keys, self._own
        found, revision, self._cluster = self._follow_client.read_all(keys.nodes)
        mine = next((kv for kv in found if kv.key == keys.node(own.name)), None)
        if mine is None:
            raise LostError("this node's key is gone")
        self._look_at_own(mine)
        self._listener.replace(*self._nodes.load(found))
        self._troubles.tell("values", self._nodes.complaint)
        self._revision, self._listed = revision, True

    def _watch(self) -> None:
        """Follow the changes until an error ends it."""
        with self._guard:
            claim = self._claim
        if claim is None:
            raise LostError("this node's lease has ended")
        keys = self._settings.keys
        own_keys = [keys.knock(claim.node.name), *map(keys.subnet, claim.node.subnets)]
        watched = [(keys.nodes, after(keys.nodes)), *((key, "") for key in own_keys)]
        with closing(self._follow_client.watch(watched, self._revision + 1)) as answers:
            for answer in answers:
                if answer.cluster != self._cluster or (answer.created and answer.revision < self._revision):
                    raise LostError("this is another etcd, or one that was set back")
                self._troubles.tell("etcd", "")
                self._watching = True
                if not answer.created:
                    self._apply(answer)

    def _apply(self, answer: Answer) -> None:
        """Tell of changes."""
        keys, own = self._settings.keys, self._own
        events = []
        for event in answer.events:
            if event.kv.key.startswith(keys.nodes):
                events.append(event)
            if event.kv.key == keys.knock(own.name):
                self._hear_knock(event)
            elif event.kv.key == keys.node(own.name) and not event.gone:
                self._look_at_own(event.kv)
            elif event.kv.key == keys.node(own.name):
                raise LostError("this node's key is gone")
            elif not event.kv.key.startswith(keys.nodes) and (event.gone or event.kv.value != own.name.encode()):
                raise LostError("a subnet of this node is gone")
        put, gone = self._nodes.apply(events)
        if put or gone:
            self._listener.change(put, gone)
        if answer.watch == 1 and not answer.events:  # nothing has happened up to here
            self._revision = answer.revision
        self._revision = max([self._revision, *(event.kv.mod for event in events)])
        self._troubles.tell("values", self._nodes.complaint)

    def _look_at_own(self, kv: KeyValue) -> None:
        """See whether the value of this node's key is what this node has written."""
        try:
            node = read_described("", decode(kv.value))
        except CniError:
            raise LostError("this node's key is overwritten") from None
        with self._guard:
            ours = self._claim is not None and kv.lease == self._claim.lease and node in self._published
        if not ours:  # an earlier value that somebody has put back misleads the others as well
            raise LostError("this node's key is overwritten")

    def _hear_knock(self, event: Event) -> None:
        """Another machine has come that has our name. It is refused: the thread that keeps the lease answers."""
        if event.gone:
            return
        try:
            self._troubles.tell("name", name_fault(read_described("", decode(event.kv.value))))
        except CniError:
            return
        with self._guard:
            self._knock, self._knocked_at = event.kv, time.monotonic()
            self._guard.notify_all()

    # The thread that keeps the lease.

    def _hold(self) -> None:
        beat = min(self._settings.ttl / 3, _LONGEST_BEAT) * self._spread
        pause = FIRST_PAUSE
        kept: Claim | None = None
        while not self._stopped.is_set():
            with self._guard:
                self._guard.wait_for(lambda: self._is_due(kept), beat)  # noqa: B023 - called in this round only
                claim, fresh, moved = self._claim, self._claim is not kept, self._moved
            kept = claim
            if claim is None or self._stopped.is_set() or (fresh and not moved):
                continue
            try:
                self._answer()
                kept = self._kept(claim)
                self._troubles.tell("lease", "")
                pause = FIRST_PAUSE
            except Exception as error:  # noqa: BLE001 - a thread that ends would never be missed
                if not isinstance(error, LostError):
                    self._troubles.tell("lease", f"{error}; what is known stays in force")
                if pause == FIRST_PAUSE:  # what does not answer here may only seem alive there
                    self._follow_client.disturb()
                self._rest(pause * self._spread)
                pause = min(2 * pause, LAST_PAUSE)
        self._hold_client.close()

    def _is_due(self, kept: Claim | None) -> bool:
        return self._stopped.is_set() or self._claim is not kept or self._moved or self._knock is not None

    @property
    def _moved(self) -> bool:
        """Whether this node's key does not tell where it is now."""
        return self._claim is not None and (self._claim.node.addresses, self._claim.node.macs) != (
            self._own.addresses, self._own.macs,
        )  # fmt: skip

    def _kept(self, claim: Claim) -> Claim:
        """Renew the lease and, when this node has moved, its key."""
        key = self._settings.keys.node(claim.node.name)
        if not self._hold_client.keep_alive(claim.lease):
            return self._dropped(claim, "its lease has ended")
        with self._guard:
            if not self._moved:
                return claim
            node = Node(claim.node.name, self._own.addresses, claim.node.subnets, self._own.macs)
            self._published.append(node)
        written = put(key, encode(node.described()), claim.lease)
        if not self._hold_client.transact([leased(key, claim.lease)], [written]).succeeded:
            return self._dropped(claim, "its key is gone")
        with self._guard:
            if self._claim is claim:
                self._claim = claim._replace(node=node)
                return self._claim
        return claim

    def _answer(self) -> None:
        """Let who knocked know that we are here, and forget one that has not come again for long."""
        with self._guard:
            knock, self._knock = self._knock, None
        if knock is not None:
            self._hold_client.transact([unchanged(knock.key, knock.mod)], [delete(knock.key)])
        elif time.monotonic() - self._knocked_at > _KNOCKS_STOPPED:
            self._knocked_at = math.inf
            self._troubles.tell("name", "")

    def _dropped(self, claim: Claim, why: str) -> Claim:
        """Have the other thread claim anew."""
        with self._guard:
            if self._claim is claim:
                self._claim = self._knock = None
        raise LostError(why)


def _public(config: Reader) -> tuple[bytes, ...]:
    given = {key: found for key in ADDRESS_KEYS.values() if (found := config.raw(key)) not in (None, "")}
    if not given:
        return ()
    return tuple(read_described(config.path, {"name": "this node", **given}).addresses.values())


def _endpoint(config: Reader, path: str, found: Any) -> str:
    given = text(path, found)
    try:
        url = urlsplit(given)
        good = url.scheme in ("http", "https") and url.hostname and url.port != 0 and url.path in ("", "/")
    except ValueError:
        good = False
    if not good or url.query or url.fragment or url.username:
        config.refuse(wrong(path, "a URL such as https://192.0.2.1:2379", given))
    return given.rstrip("/")
