"""What a network keeps in force for this node beside the way to the others: the subnet file, the masquerade rules, and
that forwarded packets are accepted.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from agent import subnet_file
from agent.forwarding import Forwarding
from plugins.pod_network import overlay

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.log import Log
    from cni.kernel.linux import Namespace
    from cni.record import Records
    from plugins.cluster_conf import ClusterConf
    from plugins.peers import Node, Subnet
    from plugins.pod_network import Backend, Site


class Firewall(NamedTuple):
    """What `range_masquerade` needs of a call's context."""

    network: str
    host: Namespace
    records: Records


class Upkeep:
    """`path` is the subnet file's. `tell` is given a subject and what is wrong with it."""

    def __init__(
        self, conf: ClusterConf, backend: Backend, path: str, log: Log, tell: Callable[[str, str], None]
    ) -> None:
        self._conf = conf
        self._backend = backend
        self._path = path
        self._log = log
        self._tell = tell
        self._forwarding = Forwarding()
        self._masqueraded: tuple[Subnet | str, ...] | None = None

    def settle(self, firewall: Firewall, own: Node | None, site: Site | None) -> None:
        """Make sure of all three. `own` is this node as the members know it, None when it is not among them; with no
        subnet it has no file. OSError of the file, CniError of the kernel."""
        if own is None or not own.subnets:
            self._write("")
            return
        if site is None or site.own.subnets != own.subnets:
            return  # this node does not stand there yet
        self._write(subnet_file.text_of(site))
        devices = overlay(site, self._backend)
        self._masquerade(firewall, site, devices)
        for line in self._forwarding.keep_up(firewall, site, devices):
            self._log.info(line, network=self._conf.name)
        self._tell("forwarding", self._forwarding.trouble)

    def _masquerade(self, firewall: Firewall, site: Site, devices: list[str]) -> None:
        from plugins import range_masquerade

        wanted: tuple[Subnet | str, ...] = (*site.own.subnets, *devices) if self._conf.ip_masq else ()
        if range_masquerade.ensure(firewall, site, devices) and wanted == self._masqueraded:
            text = "repaired: masquerade rules: they were not as they have to be"
            self._log.note("repairs", partial(str, text), network=self._conf.name)
        self._masqueraded = wanted

    def _write(self, text: str) -> None:
        if subnet_file.settle(self._path, text):
            what = "written anew" if text else "removed: this node has no subnet"
            self._log.info(f"{self._path}: {what}", network=self._conf.name)
