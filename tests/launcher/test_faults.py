"""An agent that is not there, is not ours to trust, or does not keep to the protocol."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.launcher.conftest import bin_directory
from tests.launcher.world import Agent, frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.launcher.conftest import Builds
    from tests.launcher.world import BinDirectory, Call, OneShot

CONF = b'{"cniVersion":"1.0.0","name":"net"}'
TRY_AGAIN = 11
IO_FAILURE = 5
NOBODY = 65534
ALL_BUT_ADD = ["DEL", "CHECK", "STATUS", "GC", "nonsense"]


def served_one_shot(node: BinDirectory, call: Call) -> OneShot:
    """How the bundle was started, which served this call alone."""
    status, out, err = call.finish()
    assert (status, out, err) == (0, b"one-shot\n", b"")
    ran = node.one_shot()
    assert ran is not None
    return ran


def was_asked_nothing(node: BinDirectory, call: Call) -> bool:
    """Whether the bundle was started as if there were no agents: with the caller's own stdin."""
    ran = served_one_shot(node, call)
    assert ran.stdin == CONF
    assert ran.fds == [0, 1, 2]
    return ran.stdin_name.startswith("pipe:")


def refused(call: Call) -> dict[str, object]:
    """The one error object of a call that failed."""
    status, out, err = call.finish()
    assert (status, err) == (1, b"")
    error: dict[str, object] = json.loads(out)
    assert set(error) == {"cniVersion", "code", "msg", "details"}
    return error


@pytest.mark.parametrize("command", ["ADD", *ALL_BUT_ADD])
def test_without_an_agent_the_bundle_serves_the_call(node: BinDirectory, command: str) -> None:
    assert was_asked_nothing(node, node.call(command, CONF))


@pytest.mark.parametrize("command", ["", None])
def test_without_a_command_no_agent_is_asked(node: BinDirectory, agent: Agent, command: str | None) -> None:
    """A person looks what this is: the bundle tells, and waits for no stdin."""
    environ = node.environ(command or "")
    if command is None:
        del environ[b"CNI_COMMAND"]
    assert was_asked_nothing(node, node.call(environ, CONF))
    assert not agent.was_asked()


def test_a_file_that_is_no_socket(node: BinDirectory) -> None:
    node.socket.write_bytes(b"")
    assert was_asked_nothing(node, node.call("ADD", CONF))


def test_a_socket_that_nobody_listens_at(node: BinDirectory) -> None:
    with Agent(node.socket):
        pass
    assert was_asked_nothing(node, node.call("ADD", CONF))


def test_a_socket_of_another_user(node: BinDirectory, agent: Agent) -> None:
    os.chown(node.socket, NOBODY, NOBODY)
    assert was_asked_nothing(node, node.call("ADD", CONF))


LISTEN = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.setresuid(65534, 65534, 65534)
listener.listen()
print(flush=True)
listener.accept()[0].recv(1)
"""


def test_a_listener_of_another_user(node: BinDirectory) -> None:
    """It got hold of a socket file of root's."""
    with subprocess.Popen([sys.executable, "-c", LISTEN, node.socket], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.read(1) == b"\n"
        assert node.socket.stat().st_uid == 0
        assert was_asked_nothing(node, node.call("ADD", CONF))


def test_a_path_that_is_too_long_for_a_socket(node: BinDirectory) -> None:
    folder = node.folder / ("x" * 100)
    folder.mkdir()
    inside = os.open(folder, os.O_PATH)
    with Agent(Path(f"/proc/self/fd/{inside}/agent.sock")):
        call = node.call(node.environ("ADD", CNIKIT_SOCKET=f"{folder}/agent.sock"), CONF)
        assert was_asked_nothing(node, call)
    os.close(inside)


def test_an_empty_name_of_the_socket_means_no_agent(node: BinDirectory) -> None:
    assert was_asked_nothing(node, node.call(node.environ("ADD", CNIKIT_SOCKET=""), CONF))


def test_a_full_backlog(node: BinDirectory) -> None:
    with Agent(node.socket, backlog=0):
        waiting = []
        try:
            while True:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                waiting[-1].connect(str(node.socket))
        except BlockingIOError:
            pass
        assert was_asked_nothing(node, node.call("ADD", CONF))
        for one in waiting:
            one.close()


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_standard_descriptor(node: BinDirectory, agent: Agent, closed: int) -> None:
    call = node.call("ADD", CONF, "sh", "-c", f'exec "$0" {closed}>&-')
    status, out, err = call.finish()
    assert (status, out, err) == (0, b"" if closed == 1 else b"one-shot\n", err)
    ran = node.one_shot()
    assert ran is not None
    assert ran.fds == [fd for fd in (0, 1, 2) if fd != closed]


def test_without_proc_there_are_no_namespaces_to_send(builds: Builds, agent: Agent, tmp_path: Path) -> None:
    """Not with AddressSanitizer, which itself needs /proc."""
    script = 'mount -t tmpfs none /proc && exec "$0"'
    for node in bin_directory(tmp_path, builds.launcher("static"), builds.stand_in()):
        call = node.call("ADD", CONF, "unshare", "--mount", "--propagation", "private", "sh", "-c", script)
        with agent.accept() as peer:
            assert peer.heard() == b""
        assert call.finish()[:2] == (0, b"one-shot\n")


def test_a_declined_call_is_served_as_if_nobody_had_been_asked(node: BinDirectory, agent: Agent) -> None:
    environ = {**node.environ("ADD", CNI_NETNS="/proc/self/ns/net"), b"BYTES": b"\xff\n=", b"EMPTY": b""}
    call = node.call(environ, CONF)
    with agent.accept() as peer:
        request = peer.request()
        peer.send(frame(b"D"))
        assert peer.heard() == b""
    ran = served_one_shot(node, call)
    assert ran.environ == request.environ == [name + b"=" + value for name, value in environ.items()]
    assert ran.stdin == CONF
    assert ran.stdin_name.startswith("/memfd:")
    assert ran.fds == [0, 1, 2]
    assert ran.arguments == [b"bridge", os.fsencode(node.program), b""]
    assert ran.blocked == 0
    assert not ran.ignored & 1 << signal.SIGPIPE - 1


# What no agent says: (what it sends in the place of READY or ANSWER).
NONSENSE = {
    "nothing": b"",
    "half a head": frame(b"A", 0, b"text")[:7],
    "a head alone": frame(b"A", 0, b"text")[:12],
    "half a text": frame(b"A", 0, b"text", b"more")[:15],
    "half a second text": frame(b"A", 0, b"text", b"more")[:-1],
    "an unknown kind": frame(b"X"),
    "a zero kind": bytes(12),
    "zeros that are none": b"A\0\1\0" + bytes(8),
    "a huge text": b"A\0\0\0" + b"\xff\xff\xff\xff" + bytes(4) + b"x" * 1000,
    "two huge texts": b"A\0\0\0" + b"\xff" * 8 + b"x" * 1000,
    "one byte too many": b"A\0\0\0" + ((64 << 20) + 1).to_bytes(4, "little") + bytes(4),
    "as much as is allowed, but not all of it": b"A\0\0\0" + (64 << 20).to_bytes(4, "little") + bytes(4) + b"x",
    "JSON": CONF,
    "no version": frame(b"R"),
    "a long version": frame(b"R", first=b"1" * 16),
    "a version that breaks out": frame(b"R", first=b'1.0","a":"'),
    "a version with a zero byte": frame(b"R", first=b"1.0\x00.0"),
    "a version and more": frame(b"R", first=b"1.0.0", second=b".0"),
    "a version and another text": frame(b"R", first=b"1.0.0", second=b"x" * 20),
}
nonsense = pytest.mark.parametrize("said", NONSENSE.values(), ids=NONSENSE)


@nonsense
def test_nonsense_before_go(node: BinDirectory, agent: Agent, said: bytes) -> None:
    call = node.call("ADD", CONF)
    with agent.accept() as peer:
        peer.request()
        peer.send(said)
    assert served_one_shot(node, call).stdin == CONF


# Of these the end is missing: the agent is gone.
CUT_OFF = ("nothing", "half a head", "a head alone", "half a text", "half a second text",
           "as much as is allowed, but not all of it")  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [*(said for what, said in NONSENSE.items() if what not in CUT_OFF), frame(b"R", first=b"1.0.0"), frame(b"D")],
    ids=[*(what for what in NONSENSE if what not in CUT_OFF), "READY", "DECLINE"],
)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_nonsense_after_go(node: BinDirectory, agent: Agent, command: str, said: bytes) -> None:
    call = node.call(command, CONF)
    with agent.accept() as peer:
        peer.begin()
        peer.send(said)
    if command == "ADD":
        error = refused(call)
        assert (error["code"], error["cniVersion"]) == (TRY_AGAIN, "1.0.0")
        assert node.one_shot() is None
    else:
        assert served_one_shot(node, call).stdin == CONF


@pytest.mark.parametrize("command", ALL_BUT_ADD)
def test_every_other_verb_is_done_again_when_the_agent_is_lost(node: BinDirectory, agent: Agent, command: str) -> None:
    call = node.call(command, CONF)
    with agent.accept() as peer:
        peer.begin()
    ran = served_one_shot(node, call)
    assert (ran.stdin, ran.fds) == (CONF, [0, 1, 2])
    assert b"CNI_COMMAND=" + command.encode() in ran.environ


@pytest.mark.parametrize("said", [NONSENSE[what] for what in CUT_OFF], ids=CUT_OFF)
def test_an_add_whose_agent_is_gone_is_deleted_and_begun_anew(node: BinDirectory, agent: Agent, said: bytes) -> None:
    environ = {**node.environ("ADD"), b"BYTES": b"\xff\n="}
    call = node.call(environ, CONF)
    with agent.accept() as peer:
        peer.begin()
        peer.send(said)
    assert call.finish() == (0, b"one-shot\n", b"one-shot\n"), "what the DEL says is for people"
    deleted, added = node.one_shots()
    assert deleted.environ == [
        name + b"=" + (b"DEL" if name == b"CNI_COMMAND" else value) for name, value in environ.items()
    ]
    assert added.environ == [name + b"=" + value for name, value in environ.items()]
    for ran in (deleted, added):
        assert (ran.stdin, ran.fds, ran.blocked) == (CONF, [0, 1, 2], 0)
        assert not ran.ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGCHLD - 1)


def test_an_add_that_cannot_be_taken_back_is_not_begun_anew(node: BinDirectory, agent: Agent) -> None:
    call = node.call({**node.environ("ADD"), b"FAILING": b"DEL"}, CONF)
    with agent.accept() as peer:
        peer.begin()
    error = refused(call)
    assert (error["code"], error["cniVersion"]) == (TRY_AGAIN, "1.0.0")
    assert len(node.one_shots()) == 1


def test_a_caller_who_ignores_the_ends_of_children_finds_the_add_begun_anew(node: BinDirectory, agent: Agent) -> None:
    call = node.call("ADD", CONF, "env", "--ignore-signal=CHLD")
    with agent.accept() as peer:
        peer.begin()
    assert call.finish()[:2] == (0, b"one-shot\n")
    deleted, added = node.one_shots()
    assert deleted.ignored & added.ignored & 1 << signal.SIGCHLD - 1, "the bundle finds what the caller has set"


def test_an_agent_that_is_lost_before_it_has_read_the_request(node: BinDirectory, agent: Agent) -> None:
    stdin = bytes(4 << 20)
    call = node.call("ADD", stdin)
    with agent.accept():
        pass
    assert served_one_shot(node, call).stdin == stdin


def test_an_agent_that_answers_before_it_has_read_the_request(node: BinDirectory, agent: Agent) -> None:
    """As one that has no room for it does."""
    call = node.call("ADD", b"{}")
    with agent.accept() as peer:
        peer.send(frame(b"D"))
        peer.request()
    assert served_one_shot(node, call).stdin == b"{}"


def test_an_agent_that_never_accepts(hurried: BinDirectory, agent: Agent) -> None:
    assert served_one_shot(hurried, hurried.call("ADD", CONF)).stdin == CONF


def test_an_agent_that_does_not_read(hurried: BinDirectory, agent: Agent) -> None:
    stdin = bytes(4 << 20)
    call = hurried.call("ADD", stdin)
    with agent.accept():
        assert served_one_shot(hurried, call).stdin == stdin


def test_an_agent_that_never_answers(hurried: BinDirectory, agent: Agent) -> None:
    call = hurried.call("ADD", CONF)
    with agent.accept() as peer:
        peer.request()
        assert served_one_shot(hurried, call).stdin == CONF
        assert peer.heard() == b""


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_an_agent_that_never_ends(hurried: BinDirectory, agent: Agent, command: str) -> None:
    call = hurried.call(command, CONF)
    with agent.accept() as peer:
        peer.send(frame(b"R", first=b"0.4.0"))
        peer.request()
        assert peer.heard() == b"G"
        if command == "ADD":
            error = refused(call)
            assert (error["code"], error["cniVersion"]) == (TRY_AGAIN, "0.4.0")
        else:
            assert served_one_shot(hurried, call).stdin == CONF
        assert peer.heard() == b""


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "STATUS", "GC"])
def test_a_silent_stdin_is_told_to_the_agent(hurried: BinDirectory, agent: Agent, command: str) -> None:
    call = hurried.call(command, None)
    with agent.accept() as peer:
        peer.send(frame(b"A", 1, b"no configuration"))
        request = peer.request()
    assert call.finish() == (1, b"no configuration", b"")
    assert (request.flags, request.stdin) == (1, b"")


def test_a_silent_stdin_that_nobody_takes(hurried: BinDirectory, agent: Agent) -> None:
    call = hurried.call("ADD", None)
    with agent.accept() as peer:
        peer.send(frame(b"D"))
        peer.request()
    error = refused(call)
    assert error["code"] == IO_FAILURE
    assert "silence" in str(error["msg"])
    assert hurried.one_shot() is None


def test_a_silent_stdin_does_not_matter_where_none_is_needed(hurried: BinDirectory, agent: Agent) -> None:
    call = hurried.call("nonsense", None)
    with agent.accept() as peer:
        peer.send(frame(b"D"))
        request = peer.request()
    assert served_one_shot(hurried, call).stdin == b""
    assert request.flags == 0


def test_a_stdin_that_cannot_be_read(node: BinDirectory, agent: Agent) -> None:
    folder = os.open(node.folder, os.O_RDONLY)
    error = refused(node.call("ADD", folder))
    assert (error["code"], error["details"]) == (IO_FAILURE, "Is a directory")
    os.close(folder)


def broken_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("stdout", [broken_pipe, full_disk])
def test_a_result_that_cannot_be_delivered_is_taken_back(
    node: BinDirectory, agent: Agent, stdout: Callable[[], int]
) -> None:
    out = stdout()
    call = node.call("ADD", CONF, stdout=out)
    os.close(out)
    with agent.accept() as peer:
        peer.begin()
        peer.send(frame(b"A", 0, b"result", b"warning;"))
        assert peer.heard() == b"F"
        call.await_state("S")  # it sleeps until the agent has taken the ADD back
    status, _, err = call.finish()
    assert status == 1
    assert err.startswith(b"warning;cnikit: cannot write to stdout: ")


@pytest.mark.parametrize(("command", "code"), [("DEL", 0), ("ADD", 1), ("CHECK", 1)])
def test_other_answers_that_cannot_be_delivered(node: BinDirectory, agent: Agent, command: str, code: int) -> None:
    out = full_disk()
    call = node.call(command, CONF, stdout=out)
    os.close(out)
    with agent.accept() as peer:
        peer.begin()
        peer.send(frame(b"A", code, b"answer"))
        assert peer.heard() == b""
    assert call.finish()[0] == 1


def full_pipe() -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        fcntl.fcntl(writer, fcntl.F_SETFL, 0)
        return reader, writer


def test_a_stdout_that_nobody_reads(hurried: BinDirectory, agent: Agent) -> None:
    reader, writer = full_pipe()
    call = hurried.call("ADD", CONF, stdout=writer)
    os.close(writer)
    with agent.accept() as peer:
        peer.send(frame(b"R", first=b"1.0.0"))
        peer.request()
        assert peer.heard() == b"G"
        peer.send(frame(b"A", 0, b"result"))
        assert peer.heard() == b"F"
        assert call.finish()[0] == 1  # and it does not wait for ever
    os.close(reader)


def test_neither_stdout_nor_stderr_is_read(hurried: BinDirectory, agent: Agent) -> None:
    reader, writer = full_pipe()
    call = hurried.call("ADD", CONF, stdout=writer, stderr=writer)
    os.close(writer)
    with agent.accept() as peer:
        peer.send(frame(b"R", first=b"1.0.0"))
        peer.request()
        assert peer.heard() == b"G"
        peer.send(frame(b"A", 0, b"result", b"warning"))
        assert peer.heard() == b"F"
    assert call.finish()[0] == 1
    os.close(reader)


def test_a_large_result_that_is_read_in_part(hurried: BinDirectory, agent: Agent) -> None:
    """It fills the pipe, which must not block the launcher in the middle of a write."""
    reader, writer = os.pipe()
    call = hurried.call("ADD", CONF, stdout=writer)
    os.close(writer)
    with agent.accept() as peer:
        peer.send(frame(b"R", first=b"1.0.0"))
        peer.request()
        assert peer.heard() == b"G"
        peer.send(frame(b"A", 0, bytes(200_000)))
        os.read(reader, 5000)
        assert peer.heard() == b"F"
    assert call.finish()[0] == 1
    os.close(reader)


def test_a_stderr_that_nobody_reads_does_not_hold_up_the_result(hurried: BinDirectory, agent: Agent) -> None:
    reader, writer = full_pipe()
    call = hurried.call("ADD", CONF, stderr=writer)
    os.close(writer)
    with agent.accept() as peer:
        peer.send(frame(b"R", first=b"1.0.0"))
        peer.request()
        assert peer.heard() == b"G"
        peer.send(frame(b"A", 0, b"result", b"warning"))
        assert peer.heard() == b"K"
    assert call.finish()[:2] == (0, b"result")
    os.close(reader)
