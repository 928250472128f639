"""What an ELF file asks of the libraries that it is linked to, and what a library offers: symbol versions.

Read from the program headers and the dynamic section, as the dynamic loader does: elf(5), and "Symbol Versioning" in the
Linux Standard Base. 64-bit little-endian files only, which is all that bundles are built for.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MACHINES = {62: "x86_64", 183: "aarch64"}

_MAGIC = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_NEED, _NEED_AUX = struct.Struct("<HHIII"), struct.Struct("<IHHII")
_DEFINITION, _DEFINITION_AUX = struct.Struct("<HHHHIII"), struct.Struct("<II")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_STRTAB = 0, 5
_DT_VERDEF, _DT_VERNEED = 0x6FFFFFFC, 0x6FFFFFFE
_WEAK = 2  # the loader starts a program without it


class ElfError(Exception):
    """A file is no ELF file, or one that ends too early."""


class Elf(NamedTuple):
    """`machine` as uname(1) has it, `interpreter` the dynamic loader's path (empty for libraries), and symbol versions."""

    machine: str
    interpreter: str
    needed: frozenset[str]
    defined: frozenset[str]


def is_elf(path: Path) -> bool:
    """Whether a file begins as a 64-bit little-endian ELF file does."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read(path: Path) -> Elf:
    """Read one file. ElfError when it is none; OSError."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(path, data)
    except (struct.error, ValueError) as error:  # mmap says ValueError of an empty file
        raise ElfError(f"{path}: expected an ELF file, found one that is cut off or broken ({error})") from error


def _read(path: Path, data: mmap.mmap) -> Elf:
    if data[: len(_MAGIC)] != _MAGIC:
        raise ElfError(f"{path}: expected a 64-bit little-endian ELF file, found another")
    _, machine, _, _, at, _, _, _, size, count, *_ = _HEADER.unpack_from(data)
    programs = [_PROGRAM.unpack_from(data, at + number * size) for number in range(count)]
    loads = [(virtual, offset, length) for kind, _, offset, virtual, _, length, *_ in programs if kind == _PT_LOAD]
    interpreter, dynamic = "", {}
    for kind, _, offset, _, _, length, *_ in programs:
        if kind == _PT_INTERP:
            interpreter = data[offset : offset + length].rstrip(b"\0").decode()
        elif kind == _PT_DYNAMIC:
            dynamic = dict(_entries(data, offset, length))
    where = {
        tag: _offset(address, loads) for tag, address in dynamic.items() if tag in (_DT_STRTAB, _DT_VERDEF, _DT_VERNEED)
    }
    texts = where.get(_DT_STRTAB, 0)
    return Elf(
        MACHINES.get(machine, f"machine {machine}"),
        interpreter,
        frozenset(_text(data, texts + one) for one in _needs(data, where.get(_DT_VERNEED, 0))),
        frozenset(_text(data, texts + one) for one in _definitions(data, where.get(_DT_VERDEF, 0))),
    )


def _entries(data: mmap.mmap, offset: int, length: int) -> Iterator[tuple[int, int]]:
    for at in range(offset, offset + length, _DYNAMIC.size):
        tag, value = _DYNAMIC.unpack_from(data, at)
        if tag == _DT_NULL:
            return
        yield tag, value


def _offset(address: int, loads: list[tuple[int, int, int]]) -> int:
    """Where in the file an address of the loaded program is."""
    for virtual, offset, length in loads:
        if virtual <= address < virtual + length:
            return address - virtual + offset
    raise ValueError(f"address {address:#x} is in no segment")


def _needs(data: mmap.mmap, at: int) -> Iterator[int]:
    """The names of the versions in a verneed section, as places in the string table."""
    while at:
        _, count, _, auxiliary, following = _NEED.unpack_from(data, at)
        place = at + auxiliary
        for _ in range(count):
            _, flags, _, name, step = _NEED_AUX.unpack_from(data, place)
            if not flags & _WEAK:
                yield name
            place += step
        at = at + following if following else 0


def _definitions(data: mmap.mmap, at: int) -> Iterator[int]:
    """The same of a verdef section."""
    while at:
        _, _, _, _, _, auxiliary, following = _DEFINITION.unpack_from(data, at)
        yield _DEFINITION_AUX.unpack_from(data, at + auxiliary)[0]
        at = at + following if following else 0


def _text(data: mmap.mmap, at: int) -> str:
    return data[at : max(data.find(b"\0", at), at)].decode("utf-8", "replace")
