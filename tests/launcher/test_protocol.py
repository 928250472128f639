"""One call through the launcher, with an agent that keeps to the protocol."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from cni import __version__
from tests.launcher.world import CODE, frame

if TYPE_CHECKING:
    from pathlib import Path

    from tests.launcher.world import Agent, BinDirectory

MOST_STDIN = (16 << 20) + 1
CONF = b'{"cniVersion":"1.0.0","name":"net"}'


def namespace(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


OURS = [namespace("/proc/self/ns/net"), namespace("/proc/self/ns/mnt")]


def test_a_call_is_handed_over_and_answered(node: BinDirectory, agent: Agent) -> None:
    call = node.call("STATUS", CONF)
    with agent.accept() as peer:
        request = peer.request()
        peer.send(frame(b"A", 0, b"answer", b"a warning"))
        assert peer.heard() == b""
    assert call.finish() == (0, b"answer", b"a warning")
    assert request.magic == b"cnikit\0\2"
    assert (request.version, request.code, request.plugin) == (__version__.encode(), CODE.encode(), b"bridge")
    assert request.launcher == os.fsencode(node.program)
    assert (request.flags, request.stdin, request.namespaces) == (0, CONF, OURS)


def test_through_a_link_it_says_its_own_name_and_path(node: BinDirectory, agent: Agent) -> None:
    (node.folder / "link").symlink_to("bridge")
    call = node.call("STATUS", b"", "sh", "-c", 'exec "${0%/*}/./link"')
    with agent.accept() as peer:
        request = peer.request()
        peer.send(frame(b"A"))
    assert call.finish()[0] == 0
    assert request.plugin == b"bridge"
    assert request.launcher == os.fsencode(node.program)


def test_an_add_waits_for_go_and_reports_that_its_result_was_taken(node: BinDirectory, agent: Agent) -> None:
    call = node.call("ADD", CONF)
    with agent.accept() as peer:
        request = peer.begin()
        peer.send(frame(b"A", 0, b'{"ips":[]}', b"slow disk"))
        assert (peer.heard(), peer.heard()) == (b"K", b"")
    assert call.finish() == (0, b'{"ips":[]}', b"slow disk")
    assert (request.stdin, request.namespaces) == (CONF, OURS)
    assert node.one_shot() is None


def test_an_add_that_failed_is_not_reported_as_taken(node: BinDirectory, agent: Agent) -> None:
    call = node.call("ADD")
    with agent.accept() as peer:
        peer.begin()
        peer.send(frame(b"A", 1, b'{"code":7}'))
        assert peer.heard() == b""
    assert call.finish() == (1, b'{"code":7}', b"")


@pytest.mark.parametrize("command", ["DEL", "CHECK", "STATUS", "GC"])
def test_the_other_verbs_report_nothing(node: BinDirectory, agent: Agent, command: str) -> None:
    call = node.call(command, CONF)
    with agent.accept() as peer:
        request = peer.begin()
        peer.send(frame(b"A"))
        assert peer.heard() == b""
    assert call.finish() == (0, b"", b"")
    assert request.namespaces == OURS


@pytest.mark.parametrize("command", ["ADD", "DEL", "STATUS", "nonsense", "add"])
def test_a_refusal_needs_no_go(node: BinDirectory, agent: Agent, command: str) -> None:
    call = node.call(command)
    with agent.accept() as peer:
        peer.request()
        peer.send(frame(b"A", 1, b'{"code":4}', b"why"))
        assert peer.heard() == b""
    assert call.finish() == (1, b'{"code":4}', b"why")


def test_the_pod_s_namespace_is_opened_by_the_launcher(node: BinDirectory, agent: Agent, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # as a netns it is nonsense, but nothing to hang on
    for path, expected in ((str(fifo), [*OURS, namespace(str(fifo))]), (f"{fifo}/none", OURS), ("", OURS)):
        call = node.call(node.environ("ADD", CNI_NETNS=path))
        with agent.accept() as peer:
            request = peer.request()
            peer.send(frame(b"A", 1))
        assert call.finish()[0] == 1
        assert request.namespaces == expected


def test_the_environment_arrives_as_it_is(node: BinDirectory, agent: Agent) -> None:
    environ = {**node.environ("STATUS"), b"BYTES": b"\xff\n\x01=", b"EMPTY": b"", b"LD_LIBRARY_PATH": b"/theirs"}
    environ |= {b"LONG": b"x" * 100_000, b"_PYI_ARCHIVE_FILE": b"theirs"}
    call = node.call(environ)
    with agent.accept() as peer:
        request = peer.request()
        peer.send(frame(b"A"))
    assert call.finish()[0] == 0
    assert request.environ == [name + b"=" + value for name, value in environ.items()]


STRANGE = """
import ctypes, sys
socket, program = sys.argv[1:]
entries = [b"CNI_COMMAND=STATUS", b"", b"no equals sign", b"=", b"CNI_COMMAND=ADD", b"CNIKIT_SOCKET=" + socket.encode()]
argv = (ctypes.c_char_p * 2)(program.encode(), None)
ctypes.CDLL(None).execve(program.encode(), argv, (ctypes.c_char_p * 7)(*entries, None))
"""


def test_entries_that_are_no_variables_arrive_as_well(node: BinDirectory, agent: Agent) -> None:
    """And of two variables of one name the first counts."""
    call = node.call({}, b"", sys.executable, "-c", STRANGE, str(node.socket))
    with agent.accept() as peer:
        request = peer.begin()
        peer.send(frame(b"A"))
        assert peer.heard() == b""  # for an ADD it would be DONE
    assert call.finish() == (0, b"", b"")
    entries = [b"CNI_COMMAND=STATUS", b"", b"no equals sign", b"=", b"CNI_COMMAND=ADD"]
    assert request.environ[:-1] == entries


def test_a_large_configuration_and_a_large_answer(node: BinDirectory, agent: Agent) -> None:
    """Larger than what pipes and sockets hold, and than the room the launcher has at hand."""
    configuration, answer = os.urandom(1 << 20), os.urandom((24 << 20) + 5)
    call = node.call("ADD", configuration)
    with agent.accept() as peer:
        request = peer.begin()
        peer.send(frame(b"A", 0, answer, b"warning"))
        assert call.finish() == (0, answer, b"warning")
        assert peer.heard() == b"K"
    assert request.stdin == configuration


@pytest.mark.parametrize("size", [MOST_STDIN - 1, MOST_STDIN, MOST_STDIN + 1000])
def test_a_configuration_is_read_up_to_one_byte_too_many(node: BinDirectory, agent: Agent, size: int) -> None:
    stdin = os.urandom(1000) * (size // 1000) + bytes(size % 1000)
    call = node.call("ADD", stdin)
    with agent.accept() as peer:
        request = peer.request()
        peer.send(frame(b"D"))
    assert call.finish()[0] == 0
    assert request.stdin == stdin[:MOST_STDIN]
    ran = node.one_shot()
    assert ran is not None
    assert ran.stdin == stdin[:MOST_STDIN]


def test_an_answer_may_come_in_pieces(node: BinDirectory, agent: Agent) -> None:
    call = node.call("ADD")
    with agent.accept() as peer:
        peer.request()
        for byte in frame(b"R", first=b"1.1.0"):
            peer.send(bytes([byte]))
        assert peer.heard() == b"G"
        for byte in frame(b"A", 0, b"result", b"warning"):
            peer.send(bytes([byte]))
        assert peer.heard() == b"K"
    assert call.finish() == (0, b"result", b"warning")


def test_a_launcher_that_was_stopped_for_a_while_goes_on(node: BinDirectory, agent: Agent) -> None:
    call = node.call("ADD")
    with agent.accept() as peer:
        peer.begin()
        call.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, call.pid, os.WSTOPPED | os.WNOWAIT)
        call.signal(signal.SIGCONT)
        os.waitid(os.P_PID, call.pid, os.WCONTINUED | os.WNOWAIT)
        peer.send(frame(b"A", 0, b"result"))
        assert peer.heard() == b"K"
    assert call.finish() == (0, b"result", b"")


def test_a_launcher_that_is_killed_is_gone_for_the_agent(node: BinDirectory, agent: Agent) -> None:
    call = node.call("ADD")
    with agent.accept() as peer:
        peer.begin()
        call.signal(signal.SIGKILL)
        assert peer.heard() == b""
    assert call.finish() == (-signal.SIGKILL, b"", b"")


def test_many_calls_at_once(node: BinDirectory, agent: Agent) -> None:
    calls = [node.call("ADD", str(number).encode()) for number in range(20)]
    peers = [agent.accept() for _ in calls]
    stdins = [peer.begin().stdin for peer in peers]
    for peer, stdin in zip(reversed(peers), reversed(stdins), strict=True):
        with peer:
            peer.send(frame(b"A", 0, stdin))
            assert peer.heard() == b"K"
    assert [call.finish() for call in calls] == [(0, str(number).encode(), b"") for number in range(20)]


def test_a_signal_that_the_caller_ignores_changes_nothing(node: BinDirectory, agent: Agent) -> None:
    call = node.call(
        "DEL", CONF, preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN), restore_signals=False
    )
    with agent.accept() as peer:
        peer.request()
        peer.send(frame(b"D"))
    assert call.finish()[0] == 0
    ran = node.one_shot()
    assert ran is not None
    assert ran.ignored & 1 << signal.SIGPIPE - 1
