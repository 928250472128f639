"""cni/start.py: what the launcher hands over and has in its stamp, and which executables are our own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from cni.start import OwnPlugins, Stamp, Start

if TYPE_CHECKING:
    from pathlib import Path

BUILD = "0.1.0-0123456789abcdef"
MARK = b"\x7fcnikit-stamp1\n\0"
REGISTRY = {"bridge": "plugins.bridge", "host-local": "ipam.host_local"}


def started(*replaced: str) -> Start:
    return Start(["/bundle/cnikit-oneshot", "bridge", "/opt/cni/bin/my-bridge", *replaced, "", "an", "", "argument"])


def test_start_reads_what_the_launcher_passes() -> None:
    start = started("LD_LIBRARY_PATH=/theirs")
    assert (start.program, start.plugin) == ("/bundle/cnikit-oneshot", "bridge")
    assert start.launcher == "/opt/cni/bin/my-bridge"
    assert start.arguments == ["an", "", "argument"]


def test_start_gives_the_environment_back_as_the_caller_had_it() -> None:
    environ = {
        "PATH": "/bin", "LD_LIBRARY_PATH": "/bundle", "_PYI_ARCHIVE_FILE": "/bundle/x", "_PYI_PARENT_PROCESS_LEVEL": "1",
        "_PYI_ADDED_LATER": "1",
    }  # fmt: skip
    started("LD_LIBRARY_PATH=/theirs:/a=b", "_PYI_ARCHIVE_FILE=").restore(environ)
    assert environ == {"PATH": "/bin", "LD_LIBRARY_PATH": "/theirs:/a=b", "_PYI_ARCHIVE_FILE": ""}


def test_start_says_which_signals_the_caller_ignores() -> None:
    environ = {"SIGPIPE": "the caller's"}
    start = started("LD_LIBRARY_PATH=/theirs", "SIGXFSZ=ignored")
    start.restore(environ)
    assert start.ignored == (25,)
    assert environ == {"SIGPIPE": "the caller's", "LD_LIBRARY_PATH": "/theirs"}
    assert started("SIGPIPE=ignored", "SIGXFSZ=ignored").ignored == (13, 25)
    assert started().ignored == ()


def test_start_by_hand_is_refused() -> None:
    with pytest.raises(SystemExit, match="started by hand"):
        Start(["/bundle/cnikit-oneshot", "--help"])


BLANK = b"\x7fELF code" + MARK + bytes(384) + b"more code"


def test_a_stamp_is_read_as_it_was_written() -> None:
    written = Stamp("bridge", "0.1.0-abc", "c0de").written(BLANK)
    assert len(written) == len(BLANK)
    found = Stamp.read(written)
    assert found is not None
    assert (found.plugin, found.build, found.code) == ("bridge", "0.1.0-abc", "c0de")
    again = Stamp("host-local", "0.1.0-abc", "c0de").written(written)
    assert again == Stamp("host-local", "0.1.0-abc", "c0de").written(BLANK)


@pytest.mark.parametrize("content", [b"", b"no launcher", BLANK + BLANK])
def test_only_a_launcher_takes_a_stamp(content: bytes) -> None:
    with pytest.raises(ValueError, match="one place"):
        Stamp("bridge", "0.1.0-abc", "").written(content)


@pytest.mark.parametrize("name", ["x" * 256, "a\0b"])
def test_a_name_that_has_no_room_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="fewer than 256"):
        Stamp(name, "", "").written(BLANK)


def test_a_file_without_a_stamp_has_none() -> None:
    assert Stamp.read(b"\x7fELF") is None
    assert Stamp.read(MARK[:-1]) is None
    cut_short = Stamp.read(MARK)  # a file that was not copied to its end
    assert cut_short is not None
    assert cut_short.plugin == ""


class Folder:
    """A CNI bin directory with a bundle and launchers, as make install leaves it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bundle = path / ".cnikit" / BUILD
        self.bundle.mkdir(parents=True)
        (self.bundle / "launcher").write_bytes(BLANK)
        for name in REGISTRY:
            self.put(name, name)
        self.own = OwnPlugins(REGISTRY, str(self.bundle))

    def put(self, name: str, plugin: str, build: str = BUILD, blank: bytes = BLANK) -> str:
        """A launcher of a plugin, under any name; its path."""
        file = self.path / name
        file.write_bytes(Stamp(plugin, build, "c0de").written(blank))
        file.chmod(0o755)
        return str(file)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "bin")


def test_our_own_files_are_known(folder: Folder) -> None:
    assert folder.own.name_of(f"{folder.path}/host-local") == "host-local"


@pytest.mark.parametrize("name", ["my-host-local", "bridge"])
def test_a_copy_under_another_name_is_what_it_was(folder: Folder, name: str) -> None:
    shutil.copy2(folder.path / "host-local", folder.path / name)
    assert folder.own.name_of(f"{folder.path}/{name}") == "host-local"


def test_a_link_to_our_file_is_known(folder: Folder, tmp_path: Path) -> None:
    link = tmp_path / "host-local"
    link.symlink_to(folder.path / "host-local")
    assert folder.own.name_of(str(link)) == "host-local"


def test_another_program_of_that_name_is_foreign(folder: Folder) -> None:
    file = folder.path / "host-local"
    ours = file.read_bytes()
    for content in (
        b"#!/bin/sh\n",
        b"",
        ours.replace(b"more code", b"MORE CODE"),
        ours.replace(b"ELF", b"elf"),
        ours[:-1],
    ):
        file.unlink()
        file.write_bytes(content)
        file.chmod(0o755)
        assert folder.own.name_of(str(file)) is None


def test_our_launcher_beside_another_bundle_is_foreign(folder: Folder, tmp_path: Path) -> None:
    other = Folder(tmp_path / "other")
    assert folder.own.name_of(f"{other.path}/host-local") is None


def test_our_launcher_with_no_bundle_beside_it_is_foreign(folder: Folder, tmp_path: Path) -> None:
    lonely = tmp_path / "host-local"
    shutil.copy2(folder.path / "host-local", lonely)
    assert folder.own.name_of(str(lonely)) is None


def test_what_the_bundle_has_no_plugin_for_is_foreign(folder: Folder) -> None:
    assert folder.own.name_of(folder.put("ptp", "ptp")) is None
    assert folder.own.name_of(folder.put("cnikit", "")) is None


def test_a_launcher_of_another_build_is_foreign(folder: Folder) -> None:
    assert folder.own.name_of(folder.put("host-local", "host-local", "0.1.0-another")) is None


def test_a_file_without_permission_to_execute_is_foreign(folder: Folder) -> None:
    file = folder.path / "host-local"
    file.chmod(0o644)
    assert folder.own.name_of(str(file)) is None
    assert folder.own.name_of(f"{folder.path}/missing/host-local") is None
