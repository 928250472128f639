"""The command lines of `cnikit install` and `cnikit uninstall`. What they import, other commands need not pay for."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import click

from cli.registry import bundled_plugins
from cni.kernel.sysctl import SYSCTL_DIR

IMAGE_PLUGINS = "/opt/cnikit/bin"
TERMINATION_LOG = "/dev/termination-log"
FOLDER = click.Path(file_okay=False)
ABSOLUTE = click.Path(file_okay=False, resolve_path=True)
FILE = click.Path(dir_okay=False)
ABSOLUTE_FILE = click.Path(dir_okay=False, resolve_path=True)

_BIN_DIR = click.option(
    "--cni-bin-dir", type=ABSOLUTE, default="/opt/cni/bin", show_default=True, help="The folder of the plugins."
)
_CONF_DIR = click.option(
    "--cni-conf-dir", type=ABSOLUTE, default="/etc/cni/net.d", show_default=True, help="The folder of network lists."
)
_NODE_ROOT = click.option(
    "--node-root", type=ABSOLUTE, default="/", show_default=True,
    help="The node's root, in a container that has it mounted. Programs of the node are called in it.",
)  # fmt: skip
_SYSCTL_DIR = click.option(
    "--sysctl-dir", metavar="DIR", default=lambda: os.environ.get("CNIKIT_SYSCTL_DIR") or SYSCTL_DIR,
    help="Where to write kernel settings: another mount of /proc/sys. Default: CNIKIT_SYSCTL_DIR, else /proc/sys.",
)  # fmt: skip
_TERMINATION_LOG = click.option("--termination-log", type=FILE, default=TERMINATION_LOG, hidden=True)


@click.command()
@click.option(
    "--from",
    "source",
    type=FOLDER,
    help=f"The executables. Default: {IMAGE_PLUGINS}, else the folder bin beside cnikit.",
)
@_BIN_DIR
@_CONF_DIR
@click.option("--list", "template", type=FILE, help="The network list to install. It may lack the pods' ranges.")
@click.option("--list-name", default="", metavar="NAME", help="The list's file name there. Default: its own.")
@click.option(
    "--pod-cidr", default="", metavar="RANGE[,RANGE]",
    help="The pods' ranges for a list without them. Default: the cluster's, from kubeadm's ConfigMap.",
)  # fmt: skip
@click.option("--kubeconfig", default="", metavar="FILE", help="Ask the API server as this user, not as the pod's.")
@click.option(
    "--apiserver", default="", metavar="URL",
    help="Where the API server is. Default: where the kubeconfig says; in a pod where the node's kubelet or the service does.",
)  # fmt: skip
@click.option(
    "--agent-kubeconfig", type=ABSOLUTE_FILE,
    help="Write a kubeconfig for this pod's agent here: the API server that has answered, and the service account.",
)  # fmt: skip
@_NODE_ROOT
@_SYSCTL_DIR
@_TERMINATION_LOG
def install(
    source: str | None, template: str | None, list_name: str, pod_cidr: str, kubeconfig: str, apiserver: str,
    agent_kubeconfig: str | None, **place: Any
) -> None:  # fmt: skip
    """Install the plugins and a network list on this node.

    Everything is checked and tried before anything is replaced. It can be repeated, and completes what was interrupted.
    """
    from pathlib import Path

    from cli.node.install import Options, installed
    from cli.node.journal import Journal
    from cli.node.pod_ranges import Cluster
    from cli.node.root import NodeError, NodeRoot

    # As a container's first process it would ignore the signal while it waits for an API server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    journal = Journal("install", Path(place["termination_log"]))
    built = source or (IMAGE_PLUGINS if os.path.isdir(IMAGE_PLUGINS) else bundled_plugins() or IMAGE_PLUGINS)
    try:
        if "/" in list_name:
            raise NodeError(f"--list-name: expected a file name, found {list_name!r}; --cni-conf-dir names the folder")
        if template is None and (list_name or pod_cidr):
            raise NodeError(
                "--list-name, --pod-cidr: expected --list with them, found none; they are about its network"
            )
        cluster = Cluster(os.path.abspath(kubeconfig) if kubeconfig else "", apiserver)
        options = Options(
            Path(built), Path(place["cni_bin_dir"]), Path(place["cni_conf_dir"]), Path(template) if template else None,
            list_name, pod_cidr, cluster, Path(agent_kubeconfig) if agent_kubeconfig else None,
            NodeRoot(place["node_root"]), place["sysctl_dir"],
        )  # fmt: skip
        journal.end(installed(options, journal))
    except NodeError as error:
        journal.fail(f"not installed: {error}")


@click.command()
@_BIN_DIR
@_CONF_DIR
@_NODE_ROOT
@_SYSCTL_DIR
@click.option("--force", is_flag=True, help="Also while pods are attached, whose DEL nobody can make then.")
@click.option("--stay", is_flag=True, help="Go on running when all is done, as a container of a DaemonSet must.")
@_TERMINATION_LOG
def uninstall(*, force: bool, stay: bool, **place: Any) -> None:
    """Take cnikit off this node, with all that its networks have made there.

    It refuses while pods are attached or an agent runs. The last line is a summary in JSON. It can be repeated.
    """
    from pathlib import Path

    from cli.node.journal import Journal
    from cli.node.root import NodeError, NodeRoot
    from cli.node.uninstall import Options, uninstalled

    # As a container's first process it would ignore the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0 if stay else 128 + signal.SIGTERM))
    journal = Journal("uninstall", Path(place["termination_log"]))
    folders = (Path(place["cni_bin_dir"]), Path(place["cni_conf_dir"]))
    options = Options(*folders, NodeRoot(place["node_root"]), place["sysctl_dir"], is_forced=force)
    try:
        summary, faults = uninstalled(options, journal)
    except NodeError as error:
        journal.fail(f"not uninstalled: {error}")
    journal.end(summary)
    if faults:
        sys.exit(1)
    while stay:
        signal.pause()
