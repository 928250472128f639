"""The launcher as a file: for which machines it is built, and that it needs nothing there."""

from __future__ import annotations

import platform
import struct
from typing import TYPE_CHECKING

import pytest

from cli.bundle import compile_launcher
from tests.launcher.conftest import bin_directory
from tests.launcher.world import frame

if TYPE_CHECKING:
    from pathlib import Path

    from tests.launcher.conftest import Builds
    from tests.launcher.world import Agent

MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine of ELF
PT_INTERP, PT_DYNAMIC = 3, 2
CONF = b'{"cniVersion":"1.0.0","name":"net"}'


@pytest.mark.parametrize("machine", MACHINES)
def test_it_is_small_and_static(machine: str, tmp_path: Path) -> None:
    compile_launcher(tmp_path / "launcher", machine)
    content = (tmp_path / "launcher").read_bytes()
    assert len(content) < 64 * 1024
    assert content[:6] == b"\x7fELF\x02\x01"  # 64 bits, little-endian
    assert struct.unpack_from("<H", content, 18) == (MACHINES[machine],)
    (table,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    kinds = [struct.unpack_from("<I", content, table + size * number)[0] for number in range(count)]
    assert kinds
    assert not {PT_INTERP, PT_DYNAMIC} & set(kinds)


@pytest.mark.parametrize("machine", MACHINES)
def test_it_hands_a_call_over_and_starts_the_bundle(machine: str, tmp_path: Path, builds: Builds, agent: Agent) -> None:
    """On its own machine, or in QEMU's user mode."""
    emulator = [] if machine == platform.machine() else [f"qemu-{machine}-static"]
    compile_launcher(tmp_path / "launcher", machine)
    for node in bin_directory(tmp_path, tmp_path / "launcher", builds.stand_in()):
        call = node.call("ADD", CONF, *emulator)
        with agent.accept() as peer:
            request = peer.begin()
            peer.send(frame(b"A", 0, b"result"))
            assert peer.heard() == b"K"
        assert call.finish() == (0, b"result", b"")
        assert (request.stdin, len(request.namespaces)) == (CONF, 2)

        call = node.call("DEL", CONF, *emulator)
        with agent.accept() as peer:
            peer.begin()
        assert call.finish() == (0, b"one-shot\n", b"")
        ran = node.one_shot()
        assert ran is not None
        assert ran.stdin == CONF


@pytest.mark.parametrize("command", ["ADD", "VERSION"])
def test_the_command_s_launcher_asks_no_agent(tmp_path: Path, builds: Builds, agent: Agent, command: str) -> None:
    """And it answers nothing itself, whatever it finds in the environment of the shell."""
    compile_launcher(tmp_path / "launcher", platform.machine(), "-DPEOPLE")
    for node in bin_directory(tmp_path, tmp_path / "launcher", builds.stand_in()):
        assert node.call(command, b'{"cniVersion":"1.1.0"}').finish() == (0, b"one-shot\n", b"")
    assert not agent.was_asked()
