"""VERSION, which the launcher answers itself when it is asked for as libcni does; any other way the bundle answers."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from cni.version import SUPPORTED
from tests.launcher.conftest import bin_directory
from tests.launcher.test_faults import broken_pipe, full_disk, full_pipe, served_one_shot
from tests.launcher.world import BUILD, BinDirectory, Call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.launcher.conftest import Builds
    from tests.launcher.world import Agent

ASKED = b'{"cniVersion":"1.0.0"}'  # to the byte what libcni sends
LONGEST = "123456789012345"
PATIENT = "-DSECOND=9000"  # a second of the protocol in milliseconds: for a test that is slow to write

# What is not that, so that a JSON parser has to look at it.
NEAR_MISSES = {
    "nothing": b"",
    "a newline behind": ASKED + b"\n",
    "a space behind": ASKED + b" ",
    "a space before": b" " + ASKED,
    "a space after the colon": b'{"cniVersion": "1.0.0"}',
    "a space in the version": b'{"cniVersion":"1.0.0 "}',
    "another key": b'{"cniVersion":"1.0.0","name":"net"}',
    "another key before": b'{"name":"net","cniVersion":"1.0.0"}',
    "the key in capitals": b'{"CNIVERSION":"1.0.0"}',
    "the key twice": b'{"cniVersion":"1.0.0","cniVersion":"1.1.0"}',
    "two questions": ASKED + ASKED,
    "no question": b"{}",
    "an empty version": b'{"cniVersion":""}',
    "a long version": b'{"cniVersion":"1234567890123456"}',
    "a very long version": b'{"cniVersion":"' + b"1" * 50_000 + b'"}',
    "letters": b'{"cniVersion":"1.0.0-rc1"}',
    "an escape": b'{"cniVersion":"1\\u002e0.0"}',
    "a version that breaks out": b'{"cniVersion":"1.0","a":"b"}',
    "a minus": b'{"cniVersion":"-1.0.0"}',
    "no colon": b'{"cniVersion";"1.0.0"}',
    "no quote": b'{"cniVersion":1.0.0"}',
    "a number": b'{"cniVersion":1.0}',
    "null": b'{"cniVersion":null}',
    "a zero byte in the version": b'{"cniVersion":"1.0\0.0"}',
    "a zero byte behind the version": b'{"cniVersion":"1.0.0\0"}',
    "a zero byte in the key": b'{"cniVersion\0":"1.0.0"}',
    "a zero byte behind": ASKED + b"\0",
    "a zero byte before": b"\0" + ASKED,
    "a byte order mark": b"\xef\xbb\xbf" + ASKED,
    "no last brace": ASKED[:-1],
    "another last brace": ASKED[:-1] + b"]",
    "no end of the version": ASKED[:-2],
    "half a key": ASKED[:7],
    "the head alone": ASKED[:15],
}


# Configurations, and the version that an answer without a bundle is in.
ASKED_FOR = {
    "as libcni does": (ASKED, "1.0.0"),
    "among others": (b'{"name": "net", "ipam": {"cniVersion": "0.1.0"}, "cniVersion" : "0.3.1", "a": [1]}', "0.3.1"),
    "in another case": (b'{"CNIVERSION":"0.4.0"}', "0.4.0"),
    "twice": (b'{"cniVersion":"0.4.0","cniversion":"0.3.0"}', "0.3.0"),
    "as a value": (b'{"name":"cniVersion","type":"0.4.0"}', "1.1.0"),
    "what stands between versions": (b'{"cniVersion":","}', "1.1.0"),
    "below": (b'{"prevResult":{"cniVersion":"0.4.0"}}', "1.1.0"),
    "behind quotes": (b'{"name":"a\\"\\\\","x":"\\",{","cniVersion":"0.2.0"}', "0.2.0"),
    "unknown": (b'{"cniVersion":"9.9.9"}', "1.1.0"),
    "part of one": (b'{"cniVersion":"0.1"}', "1.1.0"),
    "a number": (b'{"cniVersion":1}', "1.1.0"),
    "null": (b'{"cniVersion":null}', "1.1.0"),
    "broken": (b'{"cniVersion":"0.4.0"', "1.1.0"),
    "a list": (b'["cniVersion","0.4.0"]', "1.1.0"),
    "nothing": (b"", "1.1.0"),
}


def answer(version: str) -> bytes:
    return json.dumps({"cniVersion": version, "supportedVersions": list(SUPPORTED)}, separators=(",", ":")).encode()


def was_answered(node: BinDirectory, call: Call, version: str = "1.0.0") -> bool:
    """Whether the launcher alone has answered."""
    assert call.finish() == (0, answer(version), b"")
    return node.one_shot() is None


@pytest.mark.parametrize("version", [*SUPPORTED, "9.9.9", "0.4", "7", "..", LONGEST])
def test_the_launcher_answers(node: BinDirectory, agent: Agent, version: str) -> None:
    assert was_answered(node, node.call("VERSION", f'{{"cniVersion":"{version}"}}'.encode()), version)
    assert not agent.was_asked()


def test_it_needs_no_agent_and_no_other_variable(node: BinDirectory) -> None:
    assert was_answered(node, node.call({b"CNI_COMMAND": b"VERSION"}, ASKED))


@pytest.mark.parametrize("asked", ASKED_FOR.values(), ids=ASKED_FOR)
@pytest.mark.parametrize("command", ["VERSION", "ADD", "DEL", "CHECK", "STATUS", "GC", "nonsense"])
def test_without_its_bundle_it_fails_in_the_version_that_was_asked_for(
    node: BinDirectory, command: str, asked: tuple[bytes, str]
) -> None:
    shutil.rmtree(node.folder / ".cnikit")
    status, stdout, stderr = node.call({b"CNI_COMMAND": command.encode()}, asked[0]).finish()
    assert (status, stderr) == (1, b"")
    error = json.loads(stdout)
    assert (error["cniVersion"], error["code"]) == (asked[1], 999)
    assert f"{node.folder}/.cnikit/{BUILD}" in error["msg"]


@pytest.mark.parametrize("damage", ["gone", "another build's", "no program"])
def test_a_bundle_that_is_not_its_own_is_none(node: BinDirectory, damage: str) -> None:
    bundle = node.folder / ".cnikit" / BUILD
    if damage == "gone":
        shutil.rmtree(bundle)
    elif damage == "no program":
        (bundle / "cnikit-oneshot").chmod(0o644)
    else:
        bundle.rename(bundle.with_name(BUILD[:-1]))
    status, stdout, _ = node.call("VERSION", ASKED).finish()
    assert (status, json.loads(stdout)["cniVersion"]) == (1, "1.0.0")


@pytest.mark.parametrize("name", ["host-local", "cnv-bridge", "BRIDGE", "bridge "])
@pytest.mark.parametrize("way", ['"$0"', 'cd "${0%/*}" && exec "./${0##*/}"', 'PATH="${0%/*}" && exec "${0##*/}"'])
@pytest.mark.parametrize("made", ["link", "chain of links", "hard link", "copy"])
def test_under_any_name_it_is_what_it_was(node: BinDirectory, name: str, way: str, made: str) -> None:
    program = node.folder / name
    if made == "copy":
        shutil.copy2(node.program, program)
    elif made == "hard link":
        program.hardlink_to(node.program)
    elif made == "link":
        program.symlink_to("bridge")
    else:
        (node.folder / "plugin").symlink_to("bridge")
        program = node.folder / "links" / name
        program.parent.mkdir()
        program.symlink_to("../plugin")
    node.program = program
    assert was_answered(node, node.call("VERSION", ASKED, "sh", "-c", way))
    ran = served_one_shot(node, node.call("ADD", ASKED, "sh", "-c", way))
    assert ran.arguments[0] == b"bridge"


@pytest.mark.parametrize("command", ["version", "VERSION ", "VERSIONS", " VERSION"])
def test_another_command_is_not_answered(node: BinDirectory, command: str) -> None:
    assert served_one_shot(node, node.call(command, ASKED)).stdin == ASKED


@pytest.mark.parametrize("asked", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_asked_in_another_way_the_bundle_answers(node: BinDirectory, agent: Agent, asked: bytes) -> None:
    environ = node.environ("VERSION", CNI_NETNS="/proc/self/ns/net")
    ran = served_one_shot(node, node.call(environ, asked))
    assert ran.stdin == asked
    assert ran.fds == [0, 1, 2]
    assert ran.environ == [name + b"=" + value for name, value in environ.items()]
    assert ran.arguments == [b"bridge", os.fsencode(node.program), b""]
    assert not ran.ignored & 1 << 12  # SIGPIPE
    assert not agent.was_asked()


def test_the_question_may_come_in_pieces(builds: Builds, kind: str, tmp_path: Path) -> None:
    for node in bin_directory(tmp_path, builds.launcher(kind, PATIENT), builds.stand_in()):
        reader, writer = os.pipe()
        call = node.call("VERSION", reader)
        os.close(reader)
        for byte in ASKED:
            os.write(writer, bytes([byte]))
        os.close(writer)
        assert was_answered(node, call)


def test_the_question_may_be_a_file(node: BinDirectory, tmp_path: Path) -> None:
    (tmp_path / "asked").write_bytes(b"a line before\n" + ASKED)
    file = os.open(tmp_path / "asked", os.O_RDONLY)
    os.lseek(file, len(b"a line before\n"), os.SEEK_SET)
    assert was_answered(node, node.call("VERSION", file))
    os.close(file)


def test_the_bundle_finds_one_byte_more_than_a_plugin_takes(node: BinDirectory, tmp_path: Path) -> None:
    (tmp_path / "asked").write_bytes(ASKED + b" " * (16 << 20))
    file = os.open(tmp_path / "asked", os.O_RDONLY)
    assert len(served_one_shot(node, node.call("VERSION", file)).stdin) == (16 << 20) + 1
    os.close(file)


@pytest.mark.parametrize("asked", [b"", ASKED[:9], ASKED], ids=["nothing", "half of it", "the question"])
def test_silence_in_the_place_of_the_end(hurried: BinDirectory, agent: Agent, asked: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, asked)
    call = hurried.call("VERSION", reader)
    os.close(reader)
    assert served_one_shot(hurried, call).stdin == asked
    assert not agent.was_asked()
    os.close(writer)


def test_a_stdin_that_cannot_be_read(node: BinDirectory) -> None:
    folder = os.open(node.folder, os.O_RDONLY)
    assert served_one_shot(node, node.call("VERSION", folder)).stdin == b""
    os.close(folder)


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_standard_descriptor_is_for_the_bundle(node: BinDirectory, agent: Agent, closed: int) -> None:
    call = node.call("VERSION", ASKED, "sh", "-c", f'exec "$0" {closed}>&-')
    assert call.finish()[1] == (b"" if closed == 1 else b"one-shot\n")
    ran = node.one_shot()
    assert ran is not None
    assert ran.fds == [fd for fd in (0, 1, 2) if fd != closed]
    assert ran.stdin == (b"" if closed == 0 else ASKED)
    assert not agent.was_asked()


@pytest.mark.parametrize("stdout", [broken_pipe, full_disk])
def test_an_answer_that_cannot_be_delivered(node: BinDirectory, stdout: Callable[[], int]) -> None:
    out = stdout()
    call = node.call("VERSION", ASKED, stdout=out)
    os.close(out)
    status, _, err = call.finish()
    assert status == 1
    assert err.startswith(b"cnikit: cannot write to stdout: ")
    assert node.one_shot() is None


def test_an_answer_that_nobody_reads(hurried: BinDirectory) -> None:
    reader, writer = full_pipe()
    call = hurried.call("VERSION", ASKED, stdout=writer)
    os.close(writer)
    assert call.finish()[0] == 1  # and it does not wait for ever
    os.close(reader)
    assert hurried.one_shot() is None
