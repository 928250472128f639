"""The agent's part in the cluster: one thread that makes the kernel hold what the networks' members ask for.

    sources (threads) -> inbox -> reconciler: wanted entries \
                                                              difference -> one batch -> kernel
    kernel's notices  ->          mirror:     held entries   /

It is level-triggered: whatever happened, what is compared is what is wanted now with what is there now, and only for
the keys that something was said about. Everything is compared at the start, when notices were lost and every minute.
What fails is tried again with growing pauses, and told once.

The thread ends with the agent; what it made stays in the kernel, so that pods go on talking while the agent is
stopped, replaced or started anew.
"""

from __future__ import annotations

import os
import select
import threading
import time
import traceback
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from agent.exposition import lean
from agent.log import MOST_NOTES
from agent.membership import Network, source
from agent.mirror import Changed, Mirror
from agent.pod_links import PodLinks
from agent.reconciler import Reconciler
from agent.upkeep import Firewall
from cni import addr
from cni.addr import overlap
from cni.config import Reader, wrong
from cni.errors import INVALID_CONFIG, CniError
from cni.execute import plugin_behind
from cni.lock import Locks
from cni.netlist import read
from cni.record import Records
from plugins.cluster_conf import ClusterConf, subnet_file_of
from plugins.reconcile import Difference, Scope, Wanted, attempt, blocked_text, is_blocked, repair_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from agent.log import Log
    from agent.membership import Source
    from cni.errors import KernelError
    from cni.kernel.linux import Namespace
    from cni.kernel.ops import Op
    from plugins.pod_network import Backend
    from plugins.reconcile import Failed

RUN_DIR = "/run/cnikit"
KINDS = ("vxlan", "host-gw")

# How often everything is looked at, and what is cheap to look at (subnet file, masquerade rules).
_LOOK_SECONDS = 60.0
_KEEP_UP_SECONDS = 0.5
# A network that is not sure of its ground looks for it each time. With thousands of nodes that takes long: then it rests for
# so many times as long, up to so many seconds. What it waits for is announced as a rule.
_STAND_TIMES = 10
_LONGEST_UNSURE = 1.2  # what comes back is right again within 3 s
# After each round, so that a burst is put right in few batches, and who undoes our work does not keep us busy.
_REST_MS = 10
# When something fails.
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
# With more operations than this their notices would cost more than a look at everything.
_MANY = 2000
_MOST_TOLD = 20


class Options:
    """A network that was asked for: its options, and who knows its members. CniError 7 for a wrong `membership`.

    `lists_us`: whoever knows the members knows this node too; another one has to be told where it is.
    """

    def __init__(self, conf: ClusterConf, membership: Reader | None) -> None:
        self.conf = conf
        vni = conf.vni if conf.kind == "vxlan" else 0
        self.source: Source = source(membership, Network(conf.name, conf.networks, conf.peers or (), conf.kind, vni))
        self._kind = membership.string("source") if membership is not None else ""
        self.lists_us = self._kind != "etcd"
        self.is_judged = self._kind == "kubernetes"

    def name(self, given: str, host_name: str) -> str:
        """Which member this node is, by the name that the command line has `given`, by `nodeName` or the host's; empty
        leaves it to the addresses.

        Where nodes register themselves only the name says which one is ours: the address may have been another's, whose
        entry is still there, or be another's by now. Kubernetes has names in lower case, and so registers the kubelet.
        """
        name = given or self.conf.node_name
        if self._kind == "kubernetes":
            return (name or host_name).lower()
        return name or (host_name if self._kind == "etcd" else "")


def networks_of(files: Sequence[str], plugin_path: Sequence[str] = ()) -> list[Options]:
    """The networks of several nodes in these network lists. CniError that names the file and what is wrong in it.

    A copy of our executable on `plugin_path` is the plugin that it was copied from.
    """
    found: list[Options] = []
    for file in files:
        network = read(file)
        before = len(found)
        for plugin in network.plugins:
            kind = plugin_behind(plugin.type, plugin_path)
            if kind in KINDS:
                reader = Reader({**plugin.value, "name": network.name, "type": kind})
                try:
                    found.append(options_of(reader))
                except CniError as error:
                    raise CniError(error.code, f"{file}: {error.msg}", error.details) from None
        if len(found) == before:
            text = f"{file}: expected a plugin of type {' or '.join(KINDS)}, found none"
            raise CniError(INVALID_CONFIG, text, "--network is for networks that span nodes")
    for _, two, what in twins([options.conf for options in found], claims_of(found)):
        raise CniError(INVALID_CONFIG, f"network {two.name}: {what}")
    return found


def options_of(reader: Reader) -> Options:
    """One network's options. CniError 7 when the agent cannot serve it."""
    conf = ClusterConf(reader)
    membership = reader.object("membership") if reader.raw("membership") is not None else None
    if membership is None and conf.peers is None:
        reader.refuse(wrong("membership", "a source of members beside no `peers`", None))
    if not conf.networks:
        reader.refuse(wrong("network", "the network's range, or ipv6Network", None))
    return Options(conf, membership)


def claims_of(networks: Iterable[Options]) -> dict[str, frozenset[str]]:
    """Where the nodes of networks claim what they have (`Source.claims`), by the network's name."""
    return {options.conf.name: options.source.claims for options in networks}


def twins(
    confs: Sequence[ClusterConf], claims: Mapping[str, frozenset[str]]
) -> Iterator[tuple[ClusterConf, ClusterConf, str]]:
    """Two networks that would take something from each other, and what the second was to have and has."""
    for one, two in combinations(confs, 2):
        what = _shared(one, two)
        if not what and not claims.get(one.name, frozenset()).isdisjoint(claims.get(two.name, ())):
            what = f"a membership.prefix of its own, found that of {one.name} in one etcd"
        if what:
            yield one, two, f"expected {what}"


def _shared(one: ClusterConf, two: ClusterConf) -> str:
    """What a second network was to have, and what was found; empty when they share nothing."""
    if one.name == two.name:
        return "it once, found it twice"
    if one.kind == two.kind == "vxlan" and one.vni == two.vni:
        return f"a VNI of its own, found {two.vni} twice"
    if one.kind == two.kind == "vxlan" and one.port == two.port and one.gbp != two.gbp:
        return f"gbp as {one.name} on UDP port {one.port} has it, found it on and off, which the kernel cannot serve on one port"
    for mine in one.networks:
        for other in two.networks:
            if overlap(mine, other):
                ranges = f"{addr.unpack_cidr(*other)}, which overlaps {addr.unpack_cidr(*mine)} of {one.name}"
                return f"ranges of its own, found {ranges}"
    if subnet_file_of(one, RUN_DIR) == subnet_file_of(two, RUN_DIR):
        return f"a subnetFile of its own, found {two.subnet_file} of {one.name}"
    return ""


def backend_of(kind: str) -> Backend:
    """What the plugin of a type says of its networks. Imported here: an agent without networks does without."""
    from plugins import host_gw, vxlan

    return vxlan.BACKEND if kind == "vxlan" else host_gw.BACKEND


class Cluster:
    """All networks of this node. `host` is the node's namespace, for this thread alone; it is closed at the end."""

    def __init__(self, networks: Sequence[Options], host: Namespace, node_name: str, log: Log) -> None:
        """`node_name` empty leaves each network to its `nodeName`, and then to the node's addresses."""
        self._host = host
        self._log = log
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._wanted = Wanted()
        self._mirror = Mirror(host, self._wanted)
        self._again = Changed()
        self._again_at = 0.0
        self._pause = _FIRST_PAUSE
        self._look_at = self._keep_up_at = self._stand_at = 0.0
        self._failing: set[str] = set()
        self._told: set[str] = set()
        self.changes = self.repairs = 0
        locks = Locks(time.monotonic)
        self._networks: list[tuple[Reconciler, Firewall]] = []
        self._judged: list[Reconciler] = []
        host_name = os.uname().nodename
        for network in networks:
            conf = network.conf
            conf.node_name = network.name(node_name, host_name)
            reconciler = Reconciler(
                conf, network.source, backend_of(conf.kind), host_name, RUN_DIR, self.wake, log,
                lists_us=network.lists_us,
            )  # fmt: skip
            if network.is_judged:
                self._judged.append(reconciler)
            records = Records(RUN_DIR, conf.name, locks.take, log.warning)
            self._networks.append((reconciler, Firewall(conf.name, host, records)))
        self._pod_links = PodLinks(host, [firewall.records for _, firewall in self._networks], RUN_DIR, log)
        self._thread = threading.Thread(target=self._run, name="cluster", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread and the sources. What is in the kernel stays."""
        self._stopping = True
        self.wake()
        self._thread.join()
        for reconciler, _ in self._networks:
            reconciler.close()
        self._mirror.close()
        self._host.close()

    def wake(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        for reconciler, _ in self._networks:
            reconciler.recall()
        while not self._stopping:
            try:
                self._round()
                self._wait()
            except Exception as error:  # noqa: BLE001 - whatever it is, this thread must go on
                what = error.msg if isinstance(error, CniError) else "".join(traceback.format_exception(error))
                self._log.error(f"cluster: {what}")
                self._mirror.close()
                self._look_at = 0.0
                self._rest(1000)

    def _round(self) -> None:
        mirror, wanted = self._mirror, self._wanted
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            mirror.moved = True
            mirror.look(mirror.devices)
        else:
            mirror.read()
        self._restore_pod_links(mirror.returned.take())
        planned = Changed()
        for reconciler, _ in self._networks:
            mirror.moved = reconciler.hear(wanted, planned) or mirror.moved
        if now >= self._again_at and (self._again or self._failing or self._told):
            self._try_again(now)
        is_time = now >= self._keep_up_at
        is_due = is_time and now >= self._stand_at and not all(reconciler.is_done for reconciler, _ in self._networks)
        if mirror.moved or is_due:
            began = time.monotonic()
            self._stand(planned)
            ended = time.monotonic()
            self._stand_at = ended + min(_STAND_TIMES * (ended - began), _LONGEST_UNSURE)
        if mirror.moved or is_time:
            self._keep_up_at = now + _KEEP_UP_SECONDS
            for reconciler, firewall in self._networks:
                reconciler.keep_up(firewall)
            self._judge()
        mirror.moved = False
        mirror.changed.update(planned)
        if mirror.changed:
            self._put_right(planned)

    def _restore_pod_links(self, only: set[int] | None) -> None:
        """Give these links of pods, or all, back what they have lost."""
        if only is not None:
            only = only | self._pod_links.pending
        restored = self._pod_links.restore(only) if only is None or only else []
        if restored:
            self.repairs += len(restored)
            names = ", ".join(restored[:3]) + (", ..." if len(restored) > 3 else "")
            self._log.info(f"restored routes and addresses of {len(restored)} links of pods: {names}")

    def _stand(self, planned: Changed) -> None:
        """Have every network find its ground, and follow what they stand on."""
        for reconciler, _ in self._networks:
            reconciler.stand(self._host, self._wanted, planned)
        everyone = [reconciler for reconciler, _ in self._networks]
        devices = frozenset().union(*(one.devices for one in everyone))
        links = frozenset().union(*(one.links for one in everyone))
        addresses = frozenset().union(*(one.addresses for one in everyone))
        self._mirror.stand_on(links, addresses, lambda subnet: any(one.goes_by(subnet) for one in everyone))
        if devices != self._mirror.devices or planned.everything:
            self._mirror.look(devices)
        if planned.everything:  # what failed until now is tried at once
            self._pause, self._again_at = _FIRST_PAUSE, 0.0

    def _judge(self) -> None:
        """Have the cluster know whether pods can be attached here: its node is one, so all of its networks have one answer."""
        faults = [reconciler.fault for reconciler in self._judged]
        known = [fault for fault in faults if fault is not None]
        if len(known) == len(faults) or any(known):
            for reconciler in self._judged:
                reconciler.judge("; ".join(filter(None, known)))

    def _put_right(self, planned: Changed) -> None:
        """Compare what has to be compared and do what is to be done, in one batch. What is not `planned` are repairs."""
        mirror = self._mirror
        changed, mirror.changed = mirror.changed, Changed()
        known = [reconciler for reconciler, _ in self._networks if reconciler.knows_all]
        links = frozenset().union(*(one.devices for one in known))
        scope = Scope(links, [subnet for one in known for subnet in one.ranges])
        difference = Difference(self._wanted, mirror.held, scope)
        changed.compare(difference)
        operations = difference.operations()
        is_many = len(operations) > _MANY
        if is_many:
            mirror.close()
        repairs = [op for op in operations if not planned.covers(op)]
        story = self._story(repairs)
        failed = attempt(self._host, operations, mirror.held)
        self._count(operations, repairs, story, failed)
        replaced = mirror.replaced(op for op, error in failed if is_blocked(op, error))
        failed = [(op, error) for op, error in failed if op not in replaced]
        self._take_failures(failed)
        if is_many:
            mirror.look(mirror.devices)
            if failed:  # as many would fail again at once
                self._again.update(mirror.changed)
                mirror.changed = Changed()

    def _story(self, repairs: list[Op]) -> dict[int, str]:
        """What is to be logged of repairs, of as many as there may be lines in a second. A nexthop goes with its routes."""
        entries = [op for op in repairs if not op.verb.startswith("nexthop")] or repairs
        texts = {id(op): "" for op in entries}
        for op in entries[:MOST_NOTES]:
            texts[id(op)] = repair_text(op, self._mirror.held, self._link_name)
        return texts

    def _count(self, operations: list[Op], repairs: list[Op], story: dict[int, str], failed: Failed) -> None:
        """Count what was done, and log the repairs."""
        undone = {id(op) for op, _ in failed}
        repaired = [op for op in repairs if id(op) not in undone]
        self.repairs += len(repaired)
        self.changes += len(operations) - len(undone) - len(repaired)
        for op in repaired:
            if id(op) in story:
                self._log.note("repairs", partial(_told, story[id(op)], op))

    def _link_name(self, index: int) -> str:
        link = self._host.link(index)
        return link.name if link is not None else f"link {index}"

    def _take_failures(self, failed: list[tuple[Op, KernelError]]) -> None:
        """Tell what failed, once, and remember it for another try. Why it fails while a network has nothing to stand on
        is told by that network.
        """
        is_sure = all(reconciler.is_sure for reconciler, _ in self._networks)
        for op, error in failed:
            text = blocked_text(op) if is_blocked(op, error) else error.msg
            if is_sure and text not in self._told and len(self._told) < _MOST_TOLD:
                self._log.warning(f"{text}; tried again")
                self._told.add(text)
            self._failing.add(text)
            self._again.add_key(op)

    def _try_again(self, now: float) -> None:
        """Have compared what failed before."""
        self._pause = min(2 * self._pause, _LAST_PAUSE) if self._failing else _FIRST_PAUSE
        self._again_at = now + self._pause
        if self._again:
            self._mirror.changed.update(self._again)
            self._again = Changed()
        self._told &= self._failing
        self._failing = set()

    def _wait(self) -> None:
        """Until there is something to do."""
        due = min(self._look_at, self._keep_up_at, self._again_at if self._again else self._look_at)
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        watched = self._mirror.fileno()
        if watched is not None:
            poll.register(watched, select.POLLIN)
        self._rest(_REST_MS)
        if not self._mirror.changed:
            poll.poll(max(0.0, due - time.monotonic()) * 1000)
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass

    def _rest(self, milliseconds: int) -> None:
        if not self._stopping:
            select.select((), (), (), milliseconds / 1000)

    def families(self) -> Iterator[Metric]:
        """`cnikit_cluster_*`."""
        core = lean("metrics_core")
        for name, text, value in (
            ("cnikit_cluster_nodes", "Nodes of a network that are known, this one included.", "nodes"),
            ("cnikit_cluster_trouble", "Things that are wrong with a network; the log says what.", "troubles"),
        ):
            family = core.GaugeMetricFamily(name, text, labels=("network",))
            for reconciler, _ in self._networks:
                family.add_metric((reconciler.conf.name,), getattr(reconciler, value))
            yield family
        entries = core.GaugeMetricFamily("cnikit_cluster_entries", "What the kernel is to hold.", labels=("kind",))
        for kind in ("routes", "neighbours", "fdb"):
            entries.add_metric((kind,), len(getattr(self._wanted, kind)))
        yield entries
        yield core.GaugeMetricFamily(
            "cnikit_cluster_failing", "Entries that the kernel does not take.", value=len(self._failing)
        )
        for name, text, count in (
            (
                "cnikit_cluster_changes",
                "Operations that followed a change of the members or of this node.",
                self.changes,
            ),
            ("cnikit_cluster_repairs", "Operations that put right what others had changed.", self.repairs),
            ("cnikit_cluster_resyncs", "Looks at everything that the kernel holds.", self._mirror.looks),
            ("cnikit_cluster_losses", "Times that the kernel dropped notices.", self._mirror.losses),
        ):
            yield core.CounterMetricFamily(name, text, value=count)


def _told(text: str, op: Op) -> str:
    return text or f"repaired: {op.text}"
