"""cni/main.py: stdin with bounded waits."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from cni import main as main_module
from cni.errors import IO_FAILURE, CniError
from cni.main import Stdin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
