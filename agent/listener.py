"""Where the listening socket comes from: made here, given by systemd, or taken over from the agent that has it."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

from agent import wire
from agent.server import BACKLOG
from cni.lock import Lock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

# sd_listen_fds(3): descriptors passed to a service begin here.
FIRST_FD = 3
# The name under which an agent passes its own socket to the program that it becomes on reload.
OWN = "cnikit-own"

_SECONDS = 5.0


class ListenError(Exception):
    """There is no socket to listen on: says what was expected, found, and what to do."""


class Listener:
    """The listening socket. `own` says whether the socket file is ours to remove."""

    def __init__(self, listening: socket.socket, path: str, *, own: bool) -> None:
        self.socket = listening
        self.path = path
        self.own = own

    @classmethod
    def make(cls, path: str, clock: Callable[[], float], *, replace: bool) -> Listener:
        """Listen at a path. An agent that listens there is asked for its socket with `replace`, else left alone."""
        try:
            with Lock(f"{path}.lock", clock, transient=True):  # two that start at once
                previous = _connect(path)
                if previous is None:
                    return cls(_bind(path), path, own=True)
        except OSError as error:
            what = f"cannot listen at {path}: {error.strerror or error}"
            raise ListenError(f"{what}; set CNIKIT_SOCKET to another path") from None
        with previous:
            if not replace:
                what = f"another agent listens at {path}"
                raise ListenError(f"{what}: stop it, or start this one with --replace to take its place")
            return cls._taken_over(previous, path)

    @classmethod
    def inherited(cls, environ: MutableMapping[str, str], path: str) -> Listener | None:
        """The socket that systemd, or the agent that we were, has left open for us; None when there is none."""
        pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
        names = environ.pop("LISTEN_FDNAMES", "")
        if pid != str(os.getpid()) or not count.isdigit() or int(count) < 1:
            return None
        if int(count) != 1:
            raise ListenError(
                f"LISTEN_FDS={count}: expected one socket, found {count}; a .socket unit needs one ListenStream="
            )
        try:
            listening = socket.socket(fileno=FIRST_FD)
        except OSError as error:
            raise ListenError(f"LISTEN_FDS=1: expected a socket as descriptor {FIRST_FD}: {error.strerror}") from None
        listening.set_inheritable(False)
        if listening.family != socket.AF_UNIX or not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ListenError(
                f"descriptor {FIRST_FD}: expected a listening Unix socket; use ListenStream=/run/cnikit/agent.sock"
            )
        return cls(listening, path, own=names == OWN)

    @classmethod
    def _taken_over(cls, previous: socket.socket, path: str) -> Listener:
        """The socket of the agent at the other end; whose the file is, is as it was."""
        previous.sendall(wire.hand_over_request())
        expected = f"{path}: expected the agent there to hand its socket over"
        try:
            frame, fds, _, _ = socket.recv_fds(previous, 64, 1)
        except OSError as error:
            raise ListenError(f"{expected}: {error}") from None
        if not fds:
            raise ListenError(f"{expected}, found that it did not; stop it")
        return cls(socket.socket(fileno=fds[0]), path, own=frame[1:2] == b"\1")

    def passed_on(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment for the program that this process is about to become; its socket is then FIRST_FD."""
        if self.socket.fileno() != FIRST_FD:
            os.dup2(self.socket.fileno(), FIRST_FD)
        os.set_inheritable(FIRST_FD, True)
        names = {"LISTEN_FDNAMES": OWN} if self.own else {}
        return {**environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", **names}

    def give_away(self, peer: socket.socket) -> None:
        """Pass the socket to a new agent. The file at the path is its from now on."""
        peer.settimeout(_SECONDS)
        socket.send_fds(peer, [wire.frame(wire.LISTENER, int(self.own))], [self.socket.fileno()])
        self.own = False

    def remove(self) -> None:
        """Remove the socket file, if it is ours: launchers that come later run one-shot at once."""
        if self.own and _is_socket(self.path):
            os.unlink(self.path)
        self.own = False


def _bind(path: str) -> socket.socket:
    # The file of an agent that was killed is replaced; nothing that is not a socket is.
    if _is_socket(path):
        os.unlink(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listening.fileno(), 0o600)  # it is never there with another mode
        listening.bind(path)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _connect(path: str) -> socket.socket | None:
    """A connection to the agent that listens at a path; None when there is none."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(_SECONDS)
    try:
        peer.connect(path)
    except OSError:
        peer.close()
        return None
    return peer


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False
