"""`cnikit agent`: the node's resident process in the foreground."""

from __future__ import annotations

import os
import sys

import click

from cli.registry import PLUGINS, module_of, third_party
from cni.errors import CniError


@click.command()
@click.option("--replace", is_flag=True, help="Replace the running agent, which hands its socket over.")
@click.option(
    "--http",
    metavar="WHERE",
    help="Where /metrics, /healthz and /readyz are: a path, a loopback address and port (127.0.0.1:20500), "
    "or '' for nowhere. Without it a socket beside the agent's: /run/cnikit/agent-http.sock.",
)
@click.option(
    "--otlp",
    metavar="URL",
    default="",
    help="Send spans to this OTLP/HTTP collector (http://127.0.0.1:4318). The OTEL_* variables configure the rest.",
)
@click.option(
    "--plugin", "extra", multiple=True, metavar="NAME=FILE",
    help="Serve this plugin too. Its executable must be built with the same option from the same file.",
)  # fmt: skip
@click.option(
    "--network", "files", multiple=True, metavar="FILE", type=click.Path(dir_okay=False, resolve_path=True),
    help="Maintain the routes to the other nodes of the vxlan or host-gw network in this network list. May be repeated.",
)  # fmt: skip
@click.option(
    "--node-name", metavar="NAME", default="",
    help="This node's name in these networks. Default: their nodeName, else the host's name, with a list of members the "
    "one that has an address of this host.",
)  # fmt: skip
@click.option(
    "--sysctl-dir", metavar="DIR", default="",
    help="Where to write kernel settings when /proc/sys is read-only here: another mount of the node's /proc/sys. "
    "Without it CNIKIT_SYSCTL_DIR says where, else /proc/sys.",
)  # fmt: skip
def agent(
    replace: bool,  # noqa: FBT001 - click's way
    http: str | None,
    otlp: str,
    extra: tuple[str, ...],
    files: tuple[str, ...],
    node_name: str,
    sysctl_dir: str,
) -> None:
    """Serve the plugins' calls on this node, in the foreground.

    It listens at /run/cnikit/agent.sock, or where CNIKIT_SOCKET says. SIGTERM stops it after the calls in progress are
    answered, SIGHUP restarts it on the same socket.
    """
    from agent.http import AddressError
    from agent.listener import ListenError
    from agent.main import run
    from cli.identity import codes
    from cli.main import plugin_path

    # The command line that starts this program as it was started.
    argv = sys.argv if getattr(sys, "frozen", False) else sys.orig_argv
    try:
        plugins = third_party(extra)
        registry = {**PLUGINS, **{name: module_of(file) for name, file in plugins.items()}}
        run(
            registry, codes(plugins), argv, os.environ,
            replace=replace, http=http, otlp=otlp, files=files, node_name=node_name, sysctl_dir=sysctl_dir,
            plugin_path=plugin_path(os.environ),
        )  # fmt: skip
    except CniError as error:
        raise click.ClickException(": ".join(filter(None, (error.msg, error.details)))) from None
    except (ListenError, AddressError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    except ImportError as error:
        hint = "a plugin may import what this program has: cni, the standard library as far as it is bundled"
        raise click.ClickException(f"--plugin: {error}; {hint}") from None
