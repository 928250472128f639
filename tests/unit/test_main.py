"""cni/main.py: what the launcher hands over, stdin with bounded waits, and which executables are our own."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni import __version__
from cni import main as main_module
from cni.errors import IO_FAILURE, CniError
from cni.main import OwnPlugins, Start, Stdin

if TYPE_CHECKING:
    from collections.abc import Iterator

REGISTRY = {"bridge": "plugins.bridge", "host-local": "ipam.host_local"}


def started(*replaced: str, called: str = "/opt/cni/bin/bridge", launcher: str = "/opt/cni/bin/bridge") -> Start:
    return Start(["/bundle/cnikit-oneshot", called, launcher, *replaced, "", "an", "", "argument"])


def test_start_reads_what_the_launcher_passes() -> None:
    start = started("LD_LIBRARY_PATH=/theirs")
    assert (start.program, start.launcher) == ("/bundle/cnikit-oneshot", "/opt/cni/bin/bridge")
    assert start.arguments == ["an", "", "argument"]


def test_start_gives_the_environment_back_as_the_caller_had_it() -> None:
    environ = {
        "PATH": "/bin", "LD_LIBRARY_PATH": "/bundle", "_PYI_ARCHIVE_FILE": "/bundle/x", "_PYI_PARENT_PROCESS_LEVEL": "1",
        "_PYI_ADDED_LATER": "1",
    }  # fmt: skip
    started("LD_LIBRARY_PATH=/theirs:/a=b", "_PYI_ARCHIVE_FILE=").restore(environ)
    assert environ == {"PATH": "/bin", "LD_LIBRARY_PATH": "/theirs:/a=b", "_PYI_ARCHIVE_FILE": ""}


def test_start_by_hand_is_refused() -> None:
    with pytest.raises(SystemExit, match="started by hand"):
        Start(["/bundle/cnikit-oneshot", "--help"])


@pytest.mark.parametrize(
    ("called", "launcher", "name"),
    [
        ("/opt/cni/bin/bridge", "/opt/cni/bin/bridge", "bridge"),
        ("bridge", "/opt/cni/bin/bridge", "bridge"),
        ("/opt/cni/bin/host-local", "/opt/cni/bin/bridge", "host-local"),  # a link named as another plugin
        ("/usr/bin/my-link", "/opt/cni/bin/bridge", "bridge"),
        ("/dev/fd/5", "/opt/cni/bin/bridge", "bridge"),
        ("/opt/cni/bin/bridge", "/opt/cni/bin/bridge (deleted)", "bridge"),
        ("/opt/cni/bin/mine", "/opt/cni/bin/mine", "mine"),
    ],
)
def test_the_plugin_is_the_name_called_by(called: str, launcher: str, name: str) -> None:
    assert started(called=called, launcher=launcher).plugin(REGISTRY) == name


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass  # the test closed it


def test_stdin_is_read_to_its_end(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    data = b"x" * 300_000  # more than a pipe holds

    def write() -> None:
        with open(writer, "wb", closefd=False) as file:
            file.write(data)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    assert Stdin(reader).all() == data
    thread.join()


def test_a_silent_stdin_is_given_up(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module, "SILENCE", 0.05)
    os.write(pipe[1], b'{"cniVersion": ')
    with pytest.raises(CniError, match="silence") as caught:
        Stdin(pipe[0]).all()
    assert caught.value.code == IO_FAILURE


@pytest.mark.parametrize("data", [b'{"cniVersion":"0.4.0"}', b'{"cniVersion":', b""])
def test_a_probe_does_not_wait_for_the_end(pipe: tuple[int, int], data: bytes) -> None:
    os.write(pipe[1], data)
    assert Stdin(pipe[0]).probe() == data


def test_an_unreadable_stdin_is_code_5(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)  # reading a folder fails
    with pytest.raises(CniError) as caught:
        Stdin(fd).all()
    os.close(fd)
    assert caught.value.code == IO_FAILURE


def test_an_endless_stdin_is_code_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module, "LONGEST", 1 << 20)
    fd = os.open("/dev/zero", os.O_RDONLY)
    with pytest.raises(CniError, match="at most") as caught:
        Stdin(fd).all()
    os.close(fd)
    assert caught.value.code == IO_FAILURE


class Folder:
    """A CNI bin directory with a bundle and launchers, as make install leaves it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bundle = path / ".cnikit" / __version__
        self.bundle.mkdir(parents=True)
        (self.bundle / "launcher").write_bytes(b"the launcher")
        (self.bundle / "launcher").chmod(0o755)
        for name in REGISTRY:
            os.link(self.bundle / "launcher", path / name)
        self.own = OwnPlugins(REGISTRY, str(self.bundle))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "bin")


def test_our_own_files_are_known(folder: Folder) -> None:
    assert folder.own.name_of(f"{folder.path}/host-local") == "host-local"


def test_a_copy_of_the_file_is_known(folder: Folder) -> None:
    file = folder.path / "host-local"
    file.unlink()
    shutil.copy2(folder.bundle / "launcher", file)
    assert folder.own.name_of(str(file)) == "host-local"


def test_a_link_to_our_file_is_known(folder: Folder, tmp_path: Path) -> None:
    link = tmp_path / "host-local"
    link.symlink_to(folder.path / "host-local")
    assert folder.own.name_of(str(link)) == "host-local"


def test_another_program_of_that_name_is_foreign(folder: Folder) -> None:
    file = folder.path / "host-local"
    for content in (b"#!/bin/sh\n", b"THE LAUNCHER"):
        file.unlink()
        file.write_bytes(content)
        file.chmod(0o755)
        assert folder.own.name_of(str(file)) is None


def test_our_launcher_beside_another_bundle_is_foreign(folder: Folder, tmp_path: Path) -> None:
    other = Folder(tmp_path / "other")
    assert folder.own.name_of(f"{other.path}/host-local") is None


def test_our_launcher_with_no_bundle_beside_it_is_foreign(folder: Folder, tmp_path: Path) -> None:
    lonely = tmp_path / "host-local"
    shutil.copy2(folder.bundle / "launcher", lonely)
    assert folder.own.name_of(str(lonely)) is None


def test_what_the_bundle_has_no_plugin_for_is_foreign(folder: Folder) -> None:
    os.link(folder.bundle / "launcher", folder.path / "ptp")
    assert folder.own.name_of(f"{folder.path}/ptp") is None


def test_a_file_without_permission_to_execute_is_foreign(folder: Folder) -> None:
    file = folder.path / "host-local"
    file.unlink()
    shutil.copy2(folder.bundle / "launcher", file)
    file.chmod(0o644)
    assert folder.own.name_of(str(file)) is None
    assert folder.own.name_of(f"{folder.path}/missing/host-local") is None
