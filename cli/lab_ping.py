"""Who reaches whom: every pod asks every other one, all at once, and the answers make a table.

One process does it. A socket belongs to the namespace that it was made in, so it enters each pod's, makes the
sockets there, and then sends and receives from all of them. Each request is sent once: what gets lost is lost.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli import sandbox
from cli.sandbox import ECHO, PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

LARGEST = 65_507  # bytes of data that fit into one IPv4 packet
_SO_RCVBUFFORCE = 33
_BUFFER = 8 << 20
# Requests of one round go out together, and the next round does not wait longer for their answers than this.
_ROUND_SECONDS = 0.05


@dataclass(frozen=True)
class Target:
    """A pod that asks and is asked."""

    name: str
    node: str
    netns: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What came of one request: the round trip in seconds, or None."""

    source: str
    target: str
    address: str
    seconds: float | None


def ask_all(targets: Sequence[Target], size: int, timeout: float) -> list[Answer]:
    """Every pod pings every other one at each address, with `size` bytes of data; `timeout` counts for the last."""
    return [Answer(*fields) for fields in sandbox.in_child(lambda: _Asker(targets, size).run(timeout))]


class _Asker:
    """All requests under way. Leaves the process in the last pod's namespace: for a child."""

    def __init__(self, targets: Sequence[Target], size: int) -> None:
        self._targets = targets
        self._data = bytes(index & 0xFF for index in range(size))
        self._sockets: dict[tuple[int, int], socket.socket] = {}  # by target and address family
        self._sent: dict[tuple[int, int, str], float] = {}  # by source, target and address
        self._took: dict[tuple[int, int, str], float] = {}
        self._poll = select.poll()
        self._by_fd: dict[int, int] = {}

    def run(self, timeout: float) -> list[tuple[str, str, str, float | None]]:
        self._open()
        count = len(self._targets)
        for step in range(1, count):
            for source in range(count):
                self._send(source, (source + step) % count)
            self._receive(time.monotonic() + (timeout if step == count - 1 else _ROUND_SECONDS))
        return [
            (self._targets[source].name, self._targets[target].name, address, self._took.get((source, target, address)))
            for source, target, address in sorted(self._sent)
        ]

    def _open(self) -> None:
        for index, target in enumerate(self._targets):
            sandbox.enter(target.netns)
            for family in sorted({_family(address) for address in target.addresses}):
                sock = socket.socket(family, socket.SOCK_RAW, PROTOCOL[family])
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
                self._sockets[index, family] = sock
                self._by_fd[sock.fileno()] = index
                self._poll.register(sock, select.POLLIN)

    def _send(self, source: int, target: int) -> None:
        for address in self._targets[target].addresses:
            family = _family(address)
            sock = self._sockets.get((source, family))
            if sock is None:
                continue
            head = struct.pack("!HH", os.getpid() & 0xFFFF, target)
            self._sent[source, target, address] = time.monotonic()
            try:
                sock.sendto(sandbox.echo(ECHO[family][0], head, self._data), (address, 0))
            except OSError:
                pass  # no route, or no room: then nothing will answer

    def _receive(self, deadline: float) -> None:
        """Take answers until all that was asked is answered, or the deadline."""
        while len(self._took) < len(self._sent):
            left = deadline - time.monotonic()
            ready = self._poll.poll(max(left, 0) * 1000)
            for fd, _ in ready:
                self._take(self._by_fd[fd], fd)
            if left <= 0 and not ready:
                return

    def _take(self, source: int, fd: int) -> None:
        sock = next(sock for sock in self._sockets.values() if sock.fileno() == fd)
        try:
            packet, sender = sock.recvfrom(1 << 16)
        except OSError:  # an ICMP error about what we sent
            return
        message = sandbox.icmp(sock.family, packet)
        identifier, target = struct.unpack("!HH", message[4:8])
        key = (source, target, sender[0])
        wanted = (message[0], identifier) == (ECHO[sock.family][1], os.getpid() & 0xFFFF)
        if wanted and message[8 : 8 + len(self._data)] == self._data and key in self._sent:
            self._took.setdefault(key, time.monotonic() - self._sent[key])


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tables(targets: Sequence[Target], answers: Sequence[Answer], width: int | None) -> list[Table]:
    """The matrix in as many tables as it takes for `width` characters, each with all rows and some of the columns."""
    cells = [len(_cell([answer])[0]) for answer in answers]
    headings = [len(line) for target in targets for line in _two_lines(target).split("\n")]
    labels = [len(target.name) for target in targets]
    # Two blanks and a line beside each column, and one more line.
    fit = (
        len(targets)
        if width is None
        else (width - max(labels, default=0) - 4) // (max(cells + headings, default=0) + 3)
    )
    step = max(fit, 1)
    return [table(targets, answers, targets[at : at + step]) for at in range(0, len(targets), step)]


def table(targets: Sequence[Target], answers: Sequence[Answer], asked: Sequence[Target] | None = None) -> Table:
    """The matrix: a row for each that asks, a column for each that is asked (all of them, if nothing is said), the
    slower family's time in the cell."""
    from rich.table import Table
    from rich.text import Text

    columns = targets if asked is None else asked
    by_pair: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        by_pair.setdefault((answer.source, answer.target), []).append(answer)
    found = Table(show_lines=False)
    found.add_column("from \\ to", no_wrap=True)
    for target in columns:
        found.add_column(_two_lines(target), justify="right", no_wrap=True)
    for source in targets:
        cells: list[str | Text] = []
        for target in columns:
            there = by_pair.get((source.name, target.name), [])
            text, style = ("-", "dim") if source is target else _cell(there)
            cells.append(Text(text, style=style))
        found.add_row(Text(source.name), *cells)
    return found


def _two_lines(target: Target) -> str:
    return f"{target.node}\n{target.name.removeprefix(f'{target.node}-')}"


def _cell(answers: Sequence[Answer]) -> tuple[str, str]:
    lost = [one for one in answers if one.seconds is None]
    if not answers:
        return "?", "red"
    if lost:
        families = "" if len(lost) == len(answers) else " v6" if ":" in lost[0].address else " v4"
        return f"lost{families}", "bold red"
    return f"{max(one.seconds or 0.0 for one in answers) * 1000:.2f} ms", "green"
