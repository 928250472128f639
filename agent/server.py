"""The listening socket: every connection until its request is there. One thread, which never waits for a client.

A client that is slow, broken or hostile costs a descriptor until its time is over, and nobody else anything.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from typing import TYPE_CHECKING

from agent import wire

if TYPE_CHECKING:
    from collections.abc import Callable

BACKLOG = 4096
REQUEST_SECONDS = 15.0  # longer than a launcher waits for its own stdin
FINISH_SECONDS = 3.0  # less than launchers wait for READY: on reload they wait for this
MOST_BYTES = 32 << 20  # of all requests that are arriving
_MUCH = 1 << 18  # who has sent less is not sent away for it
_TICK = 1.0
_CREDENTIALS = struct.Struct("=iII")
_FULL = (errno.EMFILE, errno.ENFILE)


class Server:
    """Accepts connections and hands complete requests to `take`. `hand_over` is given a new agent's connection.
    At most `most` connections are listened to at a time.

    `log` is given a line about a client that was sent away. `run` returns after `stop`, which may be called in a
    signal handler or another thread.
    """

    def __init__(
        self,
        listener: socket.socket,
        take: Callable[[socket.socket, wire.Request], None],
        hand_over: Callable[[socket.socket], None],
        clock: Callable[[], float],
        log: Callable[[str], None],
        most: int = 512,
    ) -> None:
        self._most = most
        self._listener = listener
        self._take = take
        self._hand_over = hand_over
        self._clock = clock
        self._log = log
        self._arriving: dict[int, wire.Arriving] = {}
        self._stopped, self._stopping = socket.socketpair()
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self.turned = clock()  # when the loop went round last
        for one in (listener, self._stopped, self._stopping):
            one.setblocking(False)
        self._epoll.register(listener, select.EPOLLIN)
        self._epoll.register(self._stopped, select.EPOLLIN)

    def run(self) -> None:
        """Serve until `stop`."""
        while self._turn():
            pass

    def stop(self) -> None:
        """Make `run` return. What has connected is served by `finish`."""
        try:
            self._stopping.send(b"\0")
        except BlockingIOError:
            pass  # it has been woken often enough

    def finish(self, *, accept: bool) -> None:
        """Wait for the rest of the requests that have begun; `accept` also those of launchers that are connecting."""
        if accept:
            self._accept_all()
        self._epoll.unregister(self._listener)
        deadline = self._clock() + FINISH_SECONDS
        while self._arriving and self._clock() < deadline:
            self._turn()

    def close(self) -> None:
        """Let go of everything but the listener, which belongs to the caller."""
        for arriving in self._arriving.values():
            arriving.close()
        self._arriving.clear()
        self._epoll.close()
        self._stopped.close()
        self._stopping.close()
        os.close(self._spare)

    def _turn(self) -> bool:
        """One round; false when it was the last."""
        going_on = True
        for fd, _ in self._epoll.poll(_TICK):
            if fd == self._listener.fileno():
                self._accept_all()
            elif fd == self._stopped.fileno():
                self._stopped.recv(16)
                going_on = False
            else:
                self._receive(fd)
        now = self._clock()
        self.turned = now
        for fd, arriving in list(self._arriving.items()):
            if arriving.deadline < now:
                self._send_away(fd, f"expected its request, found {REQUEST_SECONDS:g} s of silence")
        return going_on

    def _accept_all(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _FULL:
                    self._log(f"accept: {error.strerror}")
                    return
                if not self._turn_one_away():
                    return
                continue
            self._welcome(peer)

    def _welcome(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        _, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if user != 0 or len(self._arriving) >= self._most:
            self._log(f"sent a client away: user {user}, {len(self._arriving)} others are sending their requests")
            wire.dismiss(peer)
            return
        self._arriving[peer.fileno()] = wire.Arriving(peer, self._clock() + REQUEST_SECONDS)
        self._epoll.register(peer, select.EPOLLIN)
        self._receive(peer.fileno())

    def _turn_one_away(self) -> bool:
        """With no descriptor left, end the next connection at once, so that its launcher need not wait to run one-shot."""
        os.close(self._spare)
        try:
            wire.dismiss(self._listener.accept()[0])
        except OSError:
            return False
        finally:
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        return True

    def _receive(self, fd: int) -> None:
        arriving = self._arriving[fd]
        try:
            request = arriving.receive()
        except EOFError:  # the launcher has changed its mind
            self._forget(fd).close()
            return
        except (wire.BrokenRequestError, OSError) as error:
            self._send_away(fd, str(error))
            return
        if request is not None:
            self._take(self._forget(fd).peer, request)
        elif arriving.wants_socket:
            self._hand_over(self._forget(fd).peer)
        elif arriving.size > _MUCH and sum(one.size for one in self._arriving.values()) > MOST_BYTES:
            self._send_away(fd, f"more than {MOST_BYTES} bytes of requests are arriving")
        else:
            arriving.deadline = self._clock() + REQUEST_SECONDS

    def _forget(self, fd: int) -> wire.Arriving:
        self._epoll.unregister(fd)
        return self._arriving.pop(fd)

    def _send_away(self, fd: int, why: str) -> None:
        self._log(f"sent a client away: {why}")
        self._forget(fd).close()
