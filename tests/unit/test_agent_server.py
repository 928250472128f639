"""The agent's listening socket: whoever is sent away finds what it sent let go."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from agent import wire
from agent.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OFTEN = 2000


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """The socket of a server that sends everybody away."""
    where = str(tmp_path / "agent.sock")

    def unexpected(*what: object) -> None:
        raise AssertionError(what)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(where)
        listener.listen()
        server = Server(listener, unexpected, unexpected, time.monotonic, lambda _: None, most=0)
        thread = threading.Thread(target=server.run)
        thread.start()
        yield where
        server.stop()
        thread.join()
        server.close()


def let_go(path: str, data: bytes) -> bool:
    """Send a descriptor along with `data`; whether nobody holds it once the connection's end is there."""
    with ExitStack() as opened:
        peer = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        peer.connect(path)
        reader, writer = os.pipe()
        opened.callback(os.close, reader)
        try:
            socket.send_fds(peer, [data], [writer])
        except BrokenPipeError:
            pass  # it was sent away before
        finally:
            os.close(writer)
        try:
            assert peer.recv(1) == b""
        except ConnectionResetError:
            pass  # something was unread
        poll = select.poll()
        poll.register(reader)
        return any(event & select.POLLHUP for _, event in poll.poll(0))


def test_a_client_that_is_sent_away_unread(path: str) -> None:
    """A namespace file pins a mount, and the runtime unmounts it as soon as the launcher has ended."""
    assert sum(let_go(path, b"x" * 1000) for _ in range(OFTEN)) == OFTEN


def test_what_dismiss_leaves_unread() -> None:
    """Descriptors of several messages, of a client that goes on sending."""
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    with ours, theirs:
        for _ in range(3):
            socket.send_fds(theirs, [b"x"], [writer, writer])
        os.close(writer)

        wire.dismiss(ours)

        assert os.read(reader, 1) == b""
        with pytest.raises(BrokenPipeError):
            theirs.send(b"x")
    os.close(reader)
