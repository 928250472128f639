"""`cnikit agent`: the node's resident process in the foreground."""

from __future__ import annotations

import os
import sys

import click

from cli.registry import PLUGINS


@click.command()
@click.option("--replace", is_flag=True, help="Take the place of the agent that runs: it hands its socket over.")
def agent(replace: bool) -> None:  # noqa: FBT001 - click passes options by name
    """Serve the plugins' calls on this node, in the foreground.

    It listens at /run/cnikit/agent.sock, or where CNIKIT_SOCKET says. SIGTERM stops it when the calls under way are
    answered, SIGHUP starts it anew on the same socket.
    """
    from agent.listener import ListenError
    from agent.main import run

    # The command line that starts this program as it was started.
    argv = sys.argv if getattr(sys, "frozen", False) else sys.orig_argv
    try:
        run(PLUGINS, argv, os.environ, replace=replace)
    except ListenError as error:
        raise click.ClickException(str(error)) from None
