"""sd_notify(3): tell systemd, when it has started us, how far we are."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Notifier:
    """Sends states to the socket that NOTIFY_SOCKET names; without one it does nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path

    def tell_ending(self, how: str) -> None:
        """That the service stops, or is about to begin anew."""
        if how == "reload":
            microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            self.tell(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")
        else:
            self.tell("STOPPING=1")

    def tell(self, state: str) -> None:
        """`READY=1`, `STOPPING=1`, ... Nobody there is no failure."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            try:
                sender.sendto(state.encode(), self._address)
            except OSError:
                pass
