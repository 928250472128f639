"""`cnikit top`: a live table of the agent's calls and address pools."""

from __future__ import annotations

import os
import signal

import click


@click.command()
@click.option("--once", is_flag=True, help="Print one table, with everything since the agent's start, and exit.")
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between updates.")
@click.option("--http", metavar="WHERE", help="Where the agent serves its metrics: the value of its own --http.")
def top(once: bool, interval: float, http: str | None) -> None:  # noqa: FBT001 - click passes options by name
    """Show a live table of the agent's calls, latencies and address pools.

    Rates and latencies are those of the last interval. Ctrl-C ends it.
    """
    # A caller that ignores or blocks SIGINT (nohup) must not disable Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    try:
        from agent.http import beside
        from agent.main import SOCKET
        from cli.live import show, show_once

        where = http or beside(os.environ.get("CNIKIT_SOCKET") or SOCKET)
        if once:
            show_once(where)
        else:
            show(where, interval)
    except KeyboardInterrupt:
        pass
