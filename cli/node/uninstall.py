"""`cnikit uninstall`: take this node back to what it was before `cnikit install`, as docs/uninstall.md describes it by hand.

The network list goes first, so that no pod starts any more, and is put back when one was attached just then. Everything
else is tried whatever fails, and what could not be removed is named; the record of the installation goes last, so that a
repeated call knows as much.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cli import lint_refusals
from cli.node import network_list, pods, traces
from cli.node.record import Record
from cli.node.root import NodeError, NodeRoot
from cli.node.running_agent import listens, socket_of
from cli.registry import PLUGINS
from cli.uninstall import Outcome, Removal, put_settings_back, withdraw
from cni.config import Reader
from cni.errors import CniError
from cni.kernel.background import fork_background
from cni.kernel.linux import Kernel
from cni.netlist import NetworkList
from cni.start import BUNDLES
from plugins import bridge_conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cli.node.journal import Journal

RUN = Path("/run/cnikit")
LEASES = Path("/var/lib/cni/networks")  # where `dataDir` does not say otherwise
INDEX = ".cnikit"  # in it, and in each other
LOCKS = Path("/var/lib/cni/cnikit-locks")
RESULTS = Path("/var/lib/cni/results")
# Beside leases in a network's folder.
_NO_LEASES = ("lock", "last_reserved_ip.")


class Options(NamedTuple):
    """The command line."""

    bin_dir: Path
    conf_dir: Path
    root: NodeRoot
    sysctl_dir: str
    is_forced: bool


def uninstalled(options: Options, journal: Journal) -> tuple[str, list[str]]:
    """Remove everything: the summary as JSON, and what could not be removed. NodeError when it must not begin."""
    try:
        outcome = Uninstallation(options, journal).run()
    except CniError as error:
        raise NodeError(str(error)) from error
    except OSError as error:
        raise NodeError(f"{error.filename}: {error.strerror}") from error
    for line in outcome.notes:
        journal.warn(line)
    for line in outcome.faults:
        journal.warn(f"not removed: {line}")
    summary = {
        "node": os.uname().nodename,
        "removed": outcome.removed,
        "stays": outcome.notes,
        "failed": outcome.faults,
    }
    return json.dumps(summary), outcome.faults


class Uninstallation:
    """One removal on one node."""

    def __init__(self, options: Options, journal: Journal) -> None:
        self._options = options
        self._journal = journal
        self._record = Record()
        self._outcome = Outcome([], [], [])

    def run(self) -> Outcome:
        """Do all of it. NodeError, CniError or OSError before anything is changed."""
        options, outcome = self._options, self._outcome
        self._refuse_pods()
        socket = socket_of(os.environ)
        if listens(socket):
            raise NodeError(
                f"expected no agent, found one that listens at {socket} and would make again what is removed; stop it "
                "first (kubectl delete -f cnikit.yaml, systemctl stop cnikit-agent.socket cnikit-agent.service)"
            )
        self._remove_list()
        networks = self._networks()
        self._remove_from_kernel([bridge for one in networks for bridge in one.bridges])
        withdraw(outcome)
        Removal(outcome).launchers(options.bin_dir, BUNDLES, PLUGINS)
        put_settings_back(outcome, self._record, options.sysctl_dir)
        self._remove_state(networks)
        if not outcome.faults:
            self._remove(self._record.place)
        return outcome

    def _refuse_pods(self) -> None:
        found = pods.attached(pods.RECORDS, self._options.bin_dir, self._options.root, self._journal.say)
        if not self._options.is_forced:
            pods.refuse(found, "--force")

    def _remove_list(self) -> None:
        """Take our network list away: from now on no pod is attached to it."""
        ours = self._record.list
        if ours is not None:
            unread = network_list.unread(ours)
            if ours.is_file():
                ours.replace(unread)
                try:
                    self._refuse_pods()
                except BaseException:  # SIGTERM too: nothing else would put it back
                    unread.replace(ours)
                    raise
                self._outcome.removed.append(str(ours))
            unread.unlink(missing_ok=True)
        for file in network_list.others(self._options.conf_dir):
            if network_list.names_plugins(file, PLUGINS):
                self._outcome.notes.append(f"{file} stays: it is not from an installation, and its plugins are removed")

    def _networks(self) -> list[Network]:
        """The networks of our lists, as far as they can be read."""
        content = self._record.value.get("content")
        try:
            return [Network.read(content.encode())] if isinstance(content, str) else []
        except CniError as error:
            self._outcome.notes.append(f"the list that was installed cannot be read any more: {error.msg}")
            return []

    def _remove_from_kernel(self, bridges: list[str]) -> None:
        try:
            with Kernel(time.monotonic, fork_background).own() as host:
                for what, fault in traces.remove(host, self._record.before, bridges):
                    if fault is None:
                        self._outcome.removed.append(what)
                    else:
                        self._outcome.faults.append(f"{what}: {fault.msg}")
        except CniError as error:
            self._outcome.faults.append(f"what networks have left in the kernel: {error.msg}")

    def _remove_state(self, networks: list[Network]) -> None:
        """Leases, index, locks, records. Leases of networks that are not ours stay: another plugin may have them."""
        for network in networks:
            for folder in (network.leases, network.leases / INDEX):
                self._remove(folder / network.name)
            if network.leases != LEASES:
                self._remove(network.leases / INDEX)
            for file in RESULTS.glob(f"{network.name}-*") if RESULTS.is_dir() else ():
                self._remove(file)
            self._remove_empty(network.leases)
        for known in sorted((LEASES / INDEX).iterdir()) if (LEASES / INDEX).is_dir() else ():
            folder = LEASES / known.name
            leases = (
                [file.name for file in folder.iterdir() if not file.name.startswith(_NO_LEASES)]
                if folder.is_dir()
                else []
            )
            if leases:
                self._outcome.notes.append(
                    f"{folder} stays: it has {len(leases)} leases of a network that was not installed"
                )
            else:
                self._remove(folder)
        for place in (LEASES / INDEX, LOCKS):
            self._remove(place)
        self._remove_empty(LEASES)
        for place in sorted(RUN.iterdir()) if RUN.is_dir() else ():
            self._remove(place)
        self._remove_empty(RUN)

    def _remove(self, place: Path) -> None:
        try:
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            elif os.path.lexists(place):
                place.unlink()
            else:
                return
        except OSError as error:
            self._outcome.faults.append(f"{error.filename or place}: {error.strerror}")
        else:
            self._outcome.removed.append(str(place))

    def _remove_empty(self, folder: Path) -> None:
        """Remove a folder when nothing is in it. What is mounted into a container is busy, and stays as it was."""
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                self._outcome.faults.append(f"{folder}: {error.strerror}")
        else:
            self._outcome.removed.append(str(folder))


class Network(NamedTuple):
    """What a network list says of what it leaves on a node."""

    name: str
    leases: Path
    bridges: list[str]

    @classmethod
    def read(cls, data: bytes) -> Network:
        """From a list's content. CniError."""
        found = NetworkList(data)
        leases = LEASES
        bridges: list[str] = []
        for plugin in found.plugins:
            reader = Reader(plugin.value)
            leases = Path(reader.object("ipam").string("dataDir") or leases)
            bridges += _bridges({**plugin.value, "name": found.name}, found.version)
        return cls(found.name, leases, bridges)


def _bridges(plugin: dict[str, Any], version: str) -> Iterator[str]:
    found = lint_refusals.of(plugin, version)
    if found.bridge is not None:
        yield found.bridge.bridge
    if found.cluster is not None and found.cluster.attachment == bridge_conf.BRIDGED:
        yield found.cluster.link().bridge
