"""Requests off the wire: whole, in pieces, with descriptors, and everything that is none."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = struct.Struct("=8sIII")


def request(strings: bytes = b"1\0c0de\0bridge\0/bin/bridge\0A=1\0", stdin: bytes = b"{}", flags: int = 0) -> bytes:
    return HEADER.pack(wire.MAGIC, flags, len(strings), len(stdin)) + strings + stdin


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, wire.Arriving]]:
    """A launcher's end, and what has arrived at ours."""
    launcher, agent = socket.socketpair()
    agent.setblocking(False)
    arriving = wire.Arriving(agent, 0.0)
    with launcher:
        yield launcher, arriving
    arriving.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_whole_request(pair: tuple[socket.socket, wire.Arriving]) -> None:
    launcher, arriving = pair
    with open("/proc/self/ns/net") as net, open("/proc/self/ns/mnt") as mounts:
        socket.send_fds(
            launcher,
            [request(b"1\0c0de\0bridge\0/r/bridge\0A=1\0B=x=y\0\xff=\xfe\0", b"{}")],
            [net.fileno(), mounts.fileno()],
        )
        found = arriving.receive()
        assert found is not None
        assert os.fstat(found.net).st_ino == os.fstat(net.fileno()).st_ino
        assert os.fstat(found.mounts).st_ino == os.fstat(mounts.fileno()).st_ino

    assert (found.version, found.code, found.plugin) == ("1", "c0de", "bridge")
    assert (found.launcher, found.pod) == ("/r/bridge", -1)
    assert found.environ == {"A": "1", "B": "x=y", "\udcff": "\udcfe"}
    assert found.stdin == b"{}"
    found.close()
    found.close()  # a second time does nothing


def test_the_first_of_two_variables_with_one_name_counts(pair: tuple[socket.socket, wire.Arriving]) -> None:
    launcher, arriving = pair
    launcher.sendall(request(b"1\0c\0a\0b\0A=1\0A=2\0no variable\0"))
    found = arriving.receive()
    assert found is not None
    assert found.environ == {"A": "1"}


def test_a_request_byte_by_byte(pair: tuple[socket.socket, wire.Arriving]) -> None:
    launcher, arriving = pair
    whole = request()
    for byte in whole[:-1]:
        launcher.sendall(bytes([byte]))
        assert arriving.receive() is None
    assert arriving.receive() is None  # nothing new
    launcher.sendall(whole[-1:])
    assert arriving.receive() is not None


def test_the_end_before_the_request(pair: tuple[socket.socket, wire.Arriving]) -> None:
    launcher, arriving = pair
    launcher.sendall(request()[:-1])
    assert arriving.receive() is None
    launcher.close()
    with pytest.raises(EOFError):
        arriving.receive()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\n\r\n....", "begins with"),
        (HEADER.pack(b"cnikit\0\x01", 0, 0, 0), "different builds"),
        (HEADER.pack(b"cnikit\0\x03", 0, 0, 0), "begins with"),
        (HEADER.pack(wire.MAGIC, 0, wire.LONGEST_STRINGS + 1, 0), "at most"),
        (HEADER.pack(wire.MAGIC, 0, 0, wire.LONGEST_STDIN + 1), "at most"),
        (request() + b"x", "silence"),
        (request(b""), "strings"),
        (request(b"1\0c\0a\0b"), "strings"),
        (request(b"1\0c\0a\0"), "strings"),
    ],
)
def test_what_is_no_request(pair: tuple[socket.socket, wire.Arriving], data: bytes, says: str) -> None:
    launcher, arriving = pair
    launcher.sendall(data)
    with pytest.raises(wire.BrokenRequestError, match=says):
        arriving.receive()


def test_descriptors_are_closed_with_a_broken_request(pair: tuple[socket.socket, wire.Arriving]) -> None:
    launcher, arriving = pair
    before = descriptors()
    with open("/dev/null") as null:
        socket.send_fds(launcher, [b"nonsense, and a lot of it"], [null.fileno()] * 3)
    with pytest.raises(wire.BrokenRequestError):
        arriving.receive()
    arriving.close()
    assert descriptors() == before - 1


def test_too_many_descriptors(pair: tuple[socket.socket, wire.Arriving]) -> None:
    launcher, arriving = pair
    before = descriptors()
    with open("/dev/null") as null:
        socket.send_fds(launcher, [request()], [null.fileno()] * 50)
    with pytest.raises(wire.BrokenRequestError, match="descriptors"):
        arriving.receive()
    arriving.close()
    assert descriptors() == before - 1


def test_a_hand_over_is_the_same_in_every_version() -> None:
    assert wire.hand_over_request() == HEADER.pack(b"cnikit\0\x01", 2, 0, 0)


def test_a_hand_over(pair: tuple[socket.socket, wire.Arriving]) -> None:
    launcher, arriving = pair
    launcher.sendall(wire.hand_over_request())
    assert arriving.receive() is None
    assert arriving.wants_socket


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda tail: wire.MAGIC + tail))
def test_any_bytes_give_a_request_or_a_refusal(data: bytes) -> None:
    launcher, agent = socket.socketpair()
    agent.setblocking(False)
    arriving = wire.Arriving(agent, 0.0)
    with launcher:
        launcher.sendall(data or b"\0")
        try:
            found = arriving.receive()
        except wire.BrokenRequestError:
            found = None
        if found is not None:
            assert len(found.stdin) <= len(data)
    arriving.close()
