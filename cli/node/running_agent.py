"""The agent that runs on a node: whether one listens, and which build it is."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import TYPE_CHECKING

from agent.http import AddressError, beside
from cli.live import scrape
from cni import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET = Path("/run/cnikit/agent.sock")


def socket_of(environ: Mapping[str, str]) -> Path:
    """Where the node's agent listens."""
    return Path(environ.get("CNIKIT_SOCKET") or SOCKET)


def listens(socket: Path) -> bool:
    """Whether somebody listens at this path: the agent, or systemd for it. Asking there would start it."""
    entries = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()
    return any(entry.endswith(f" {socket}") for entry in entries)


def describe(environ: Mapping[str, str]) -> str:
    """Which agent runs; empty when none does."""
    socket = socket_of(environ)
    if not listens(socket):
        return ""
    try:
        (labels,) = scrape(beside(str(socket))).samples["cnikit_build_info"]
        version = dict(labels)["version"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, AddressError) as error:
        return f"an agent listens at {socket}, and does not say which ({error})"
    note = "" if version == __version__ else f", and this is {__version__}: until it is replaced it declines calls"
    return f"an agent of cnikit {version} listens at {socket}{note}"
