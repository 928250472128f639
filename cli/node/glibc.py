"""Whether the node's C library is new enough for a bundle, before anything of it is put there.

A bundle brings its libraries along, but not glibc's own: these belong to the node's dynamic loader. Which version of glibc
it needs is the highest symbol version that any of its files asks for; which one a node has is the highest that its
libc.so.6 defines. Both are read from the files, so nothing has to be recorded when a bundle is built, and a bundle with
other people's plugins is judged by what is in it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from cli.node import elf
from cli.node.root import NodeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cli.node.root import NodeRoot

LIBRARY = "libc.so.6"
_VERSION = re.compile(r"GLIBC_(\d+(?:\.\d+)+)")
_RELEASE = re.compile(rb"GNU C Library [^\n]* release version (\d+\.\d+)")
_REMEDY = "install it on nodes with a newer system, or build it on one that is as old as this"

Version = tuple[int, ...]


def refuse(bundle: Path, root: NodeRoot) -> None:
    """NodeError when the programs of a bundle cannot start in a node's root."""
    machine, interpreter, needed = _of(bundle)
    if not needed:
        return
    expected = f"expected glibc {_text(needed)} or newer for {machine}"
    others = set()
    for place in _libraries(root, machine, interpreter):
        try:
            library = elf.read(place)
        except (OSError, elf.ElfError):
            continue
        version = _highest(library.defined)
        if library.machine != machine:
            others.add(library.machine)
        elif version >= needed:
            return
        elif version:  # beside the loader, and so the one that counts
            raise NodeError(f"{expected} on this node, found {_release(place) or _text(version)}; {_REMEDY}")
    if others:
        raise NodeError(
            f"{expected} on this node, found it for {', '.join(sorted(others))}; install the build for that"
        )
    musl = sorted(place.name for place in root.place("/lib").glob("ld-musl-*.so.1"))
    what = f"musl ({musl[0]})" if musl else f"no {LIBRARY} beside {interpreter}"
    raise NodeError(f"{expected} on this node, found {what}; a bundle needs a node with glibc")


def _of(bundle: Path) -> tuple[str, str, Version]:
    """Machine, dynamic loader, and the version of glibc that a bundle needs; () when nothing of it is linked to one."""
    machine, interpreter = "", ""
    versions: set[str] = set()
    for file in sorted(bundle.rglob("*")):
        if file.is_symlink() or not file.is_file() or not elf.is_elf(file):
            continue
        try:
            found = elf.read(file)
        except elf.ElfError as error:
            raise NodeError(f"{error}; build it again (make dist)") from error
        versions |= found.needed
        if found.interpreter:
            machine, interpreter = found.machine, found.interpreter
    return machine, interpreter, _highest(versions)


def _libraries(root: NodeRoot, machine: str, interpreter: str) -> Iterable[Path]:
    """Where the node's libc.so.6 may be: beside the dynamic loader, whose path is the only fixed one."""
    folders = [f"/lib/{machine}-linux-gnu", "/lib64", "/lib", f"/usr/lib/{machine}-linux-gnu", "/usr/lib64", "/usr/lib"]
    loader = root.place(interpreter) if interpreter else None
    if loader is not None:
        yield root.place(Path("/", loader.parent.relative_to(root.path), LIBRARY))
    yield from (root.place(f"{folder}/{LIBRARY}") for folder in folders)


def _highest(versions: Iterable[str]) -> Version:
    found = [match[1] for one in versions if (match := _VERSION.fullmatch(one))]
    return max((tuple(map(int, one.split("."))) for one in found), default=())


def _release(library: Path) -> str:
    """What a C library says of itself. A release may have brought no symbols, and so define no version of its number."""
    found = _RELEASE.search(library.read_bytes())
    return found[1].decode() if found else ""


def _text(version: Version) -> str:
    return ".".join(map(str, version))
