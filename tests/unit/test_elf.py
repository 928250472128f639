"""Symbol versions as objdump sees them, and files that are no ELF files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.node import elf

LIBC = next(
    Path(folder, "libc.so.6")
    for folder in ("/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64")
    if Path(folder, "libc.so.6").is_file()
)
PROGRAM = Path("/usr/bin/objdump")
BYTES = PROGRAM.resolve().read_bytes()


def sections(file: Path) -> tuple[set[str], set[str]]:
    """The versions that objdump lists as needed and as defined."""
    text = subprocess.run(["objdump", "-p", file], capture_output=True, text=True, check=True).stdout
    definitions, _, references = text.partition("Version References:")
    defined = re.findall(r"^\d+ 0x\w+ 0x\w+ (\S+)", definitions.partition("Version definitions:")[2], re.MULTILINE)
    needed = re.findall(r"^\s+0x\w+ (0x\w+) \d+ (\S+)", references, re.MULTILINE)
    return {name for flags, name in needed if flags != "0x02"}, set(defined)


@pytest.mark.parametrize("file", [LIBC, PROGRAM])
def test_versions_are_those_of_objdump(file: Path) -> None:
    found = elf.read(file)

    assert (set(found.needed), set(found.defined)) == sections(file)
    assert "GLIBC_2.2.5" in found.defined | found.needed or "GLIBC_2.17" in found.defined | found.needed
    assert found.machine in elf.MACHINES.values()


def test_a_program_names_its_loader() -> None:
    assert elf.read(PROGRAM).interpreter.startswith("/lib")
    assert Path(elf.read(PROGRAM).interpreter).exists()


@given(st.integers(0, len(BYTES)))
def test_a_file_that_ends_early_is_refused_or_read(tmp_path: Path, length: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(BYTES[:length])
    try:
        found = elf.read(file)
    except elf.ElfError as error:
        assert str(file) in str(error)
    else:
        assert found.machine in elf.MACHINES.values()


@given(st.dictionaries(st.integers(6, 4096), st.integers(0, 255), max_size=20))
def test_garbage_is_refused_or_read(tmp_path: Path, changes: dict[int, int]) -> None:
    content = bytearray(BYTES[: 1 << 16])
    for place, value in changes.items():
        content[place] = value
    file = tmp_path / "file"
    file.write_bytes(content)
    try:
        found = elf.read(file)
    except elf.ElfError as error:
        assert str(file) in str(error)
    else:
        assert all(isinstance(name, str) for name in found.needed)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100)])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert not elf.is_elf(tmp_path / "file")
    with pytest.raises(elf.ElfError):
        elf.read(tmp_path / "file")
