"""`cnikit install`: put this build on a node, in an order that leaves the node as it was until all is known to be well.

1. An API server answers, where one is needed, and a kubeconfig for the agent says where. The network list is made from its
   template, with the cluster's ranges, and judged as `cnikit lint` does.
2. The node's glibc is new enough for the bundle, and this very command can start an agent.
3. The executables are copied beside their place, tried on the node, and renamed into it (`cli/install.py`).
4. The kernel's settings are noted and set.
5. The network list comes last, because with it a runtime calls the node ready.

A refusal before 3 has replaced nothing else. Each step can be repeated, so a call that was killed is completed by the next one.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cli.install import install, try_out_command, try_out_plugin
from cli.node import apiserver, glibc, network_list, pod_ranges, settings
from cli.node.pod_ranges import Cluster
from cli.node.record import Record
from cli.node.root import NodeError, NodeRoot
from cli.node.running_agent import describe
from cli.node.traces import note_before
from cni import __version__
from cni.errors import CniError
from cni.start import BUNDLES

if TYPE_CHECKING:
    from typing import Any

    from cli.node.journal import Journal

_STEPS = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EROFS: "mount it so that it can be written",
    errno.EACCES: "run it as root",
    errno.EPERM: "run it as root",
}


class Options(NamedTuple):
    """The command line."""

    source: Path
    bin_dir: Path
    conf_dir: Path
    template: Path | None
    list_name: str
    pod_cidr: str
    cluster: Cluster
    agent_kubeconfig: Path | None
    root: NodeRoot
    sysctl_dir: str

    @property
    def place(self) -> Path | None:
        """Where the network list goes."""
        return self.conf_dir / (self.list_name or self.template.name) if self.template else None


def installed(options: Options, journal: Journal) -> str:
    """Put this build on a node; what was done. NodeError for what was not."""
    try:
        return Installation(options, journal).run()
    except CniError as error:
        raise NodeError(str(error)) from error
    except OSError as error:
        step = _STEPS.get(error.errno or 0, "")
        what = f"{error.filename or 'input/output'}: {error.strerror or error}"
        raise NodeError(f"{what}; {step}" if step else what) from error


class Installation:
    """One installation on one node."""

    def __init__(self, options: Options, journal: Journal) -> None:
        self._options = options
        self._journal = journal
        self._record = Record()
        self._cluster = options.cluster

    def run(self) -> str:
        """Do all of it; what was done. NodeError, CniError or OSError for what was not."""
        options = self._options
        self._find_api_server()
        data = self._list()
        self._check_node()
        self._check_agent()
        names = install(options.source, options.bin_dir, BUNDLES, self._try_out)
        note_before(self._record, options.sysctl_dir)
        fault = settings.filter_on_bridges(options.sysctl_dir, options.root)
        if fault:
            self._journal.warn(fault)
        done = f"installed {', '.join(names)} (cnikit {__version__}) in {options.bin_dir}"
        return f"{done}, and {self._put(options.place, data)}" if options.place else done

    def _find_api_server(self) -> None:
        """In a pod: where the API server answers, which need not be where the pod is told."""
        options = self._options
        if options.cluster.has_account():
            places = apiserver.servers(options.cluster.server, options.root, os.environ)
            clusters = [options.cluster._replace(server=place) for place in places]
            if clusters:
                self._cluster = apiserver.answering(clusters, self._journal.say, time.sleep)
            if options.agent_kubeconfig is not None:
                if not clusters:
                    raise NodeError(
                        "--agent-kubeconfig: expected an API server, found none in a kubeconfig of the kubelet or in "
                        "KUBERNETES_SERVICE_HOST; name one with --apiserver"
                    )
                apiserver.write_kubeconfig(options.agent_kubeconfig, self._cluster)
        elif options.agent_kubeconfig is not None:
            raise NodeError(
                f"--agent-kubeconfig: expected the service account of a pod at {options.cluster.service_account}, found none; "
                "outside of a pod write the kubeconfig that the network list names yourself"
            )

    def _list(self) -> bytes:
        """The content of the network list; nothing is written."""
        options, place = self._options, self._options.place
        if options.template is None or place is None:
            return b""
        value = network_list.template(options.template)
        if network_list.lacks_ranges(value):
            network_list.fill(value, self._ranges(value))
        elif options.pod_cidr:
            self._journal.warn(f"--pod-cidr {options.pod_cidr} has no effect: {options.template} needs no range")
        data = network_list.encoded(value)
        for warning in network_list.refuse(place, data, [str(options.bin_dir), str(options.source)]):
            self._journal.warn(warning)
        network_list.refuse_place(place, str(value.get("name")), self._record.list)
        return data

    def _ranges(self, value: dict[str, Any]) -> pod_ranges.Ranges:
        options = self._options
        if options.pod_cidr:
            return pod_ranges.parse(options.pod_cidr, "--pod-cidr")
        if not self._cluster.is_known(os.environ):
            name = value.get("name")
            raise NodeError(
                f"{options.template}: expected the range of network {name}'s pods, found none, and this is no pod of a "
                f"cluster that could be asked; {pod_ranges.WAYS}, and name a --kubeconfig"
            )
        return pod_ranges.of_cluster(self._cluster, self._journal.say, time.sleep)

    def _check_node(self) -> None:
        options = self._options
        if not options.root.path.is_dir():
            raise NodeError(f"--node-root: expected the node's root at {options.root.path}, found no folder")
        glibc.refuse(options.source / BUNDLES, options.root)

    def _try_out(self, plugin: Path) -> None:
        root, folder = self._options.root, self._options.bin_dir
        if not root.has(folder):
            raise NodeError(
                f"{folder}: expected the node's own folder, found another than {root.path}{folder}; mount it"
            )
        try_out_plugin(plugin, root)

    def _check_agent(self) -> None:
        """The command can be an agent; another one that runs is named, because it is about to be replaced."""
        if getattr(sys, "frozen", False):
            try_out_command(Path(sys.executable))
        found = describe(os.environ)
        if found:
            self._journal.say(found)

    def _put(self, place: Path, data: bytes) -> str:
        recorded = self._record.list
        # Known as ours before it is there: a list that nobody knows would stay for ever. The earlier one is found by its
        # network's name, should this be the last that happens.
        self._record.value |= {"list": str(place), "content": data.decode()}
        self._record.save()
        replaced = network_list.put(place, data, recorded)
        for conflict in network_list.conflicts(place):
            self._journal.warn(conflict)
        return f"{place}{' in the place of ' + ', '.join(replaced) if replaced else ''}"
