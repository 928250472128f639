"""Which shared libraries a folder of programs needs from outside it: the dynamic loader, and glibc's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cli.image import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cli.image.debian import Debian

# What glibc opens by itself and is therefore linked to by nothing: pthread_exit ends the whole process without it.
OPENED_BY_GLIBC = ("libgcc_s.so.1",)

_NEEDED = re.compile(r"\(NEEDED\)\s+Shared library: \[(.*)\]")
_INTERPRETER = re.compile(r"\[Requesting program interpreter: (.*)\]")
_GLIBC = re.compile(r"\bGLIBC_(\d+(?:\.\d+)+)\b")


class Linked(NamedTuple):
    """What some ELF files ask for: sonames, paths of dynamic loaders, and the highest symbol version of glibc."""

    needed: frozenset[str]
    interpreters: frozenset[str]
    glibc: tuple[int, ...]


def elf_files(folder: Path) -> list[Path]:
    """The ELF files in a folder, links aside, in order."""
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as content:
                if content.read(4) == b"\x7fELF":
                    found.append(file)
    return found


def linked(files: Iterable[Path]) -> Linked:
    """What these files ask for, of whatever architecture they are."""
    command = ["readelf", "--wide", "--program-headers", "--dynamic", "--version-info", *map(str, files)]
    # Static programs have no dynamic section, which readelf says on stdout.
    ran = subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C.UTF-8"}, check=False)
    if ran.returncode != 0:
        raise ImageError(f"readelf cannot read them: {ran.stderr.strip()}")
    versions = [tuple(map(int, found.split("."))) for found in _GLIBC.findall(ran.stdout)]
    return Linked(
        frozenset(_NEEDED.findall(ran.stdout)), frozenset(_INTERPRETER.findall(ran.stdout)), max(versions, default=())
    )


def from_outside(folders: Iterable[Path], system: Debian) -> dict[str, Path]:
    """What the programs in these folders need that is not beside them, and what that needs in turn.

    From the path at which the dynamic loader looks, without the leading slash, to the file.
    """
    files = [file for folder in folders for file in elf_files(folder)]
    if not files:
        raise ImageError("expected programs, found none: nothing here would run")
    asked = linked(files)
    found = {path.lstrip("/"): system.file(Path(path.lstrip("/"))) for path in asked.interpreters}
    brought = {file.name for file in files} | {path.rpartition("/")[2] for path in asked.interpreters}
    waiting = {*asked.needed - brought, *OPENED_BY_GLIBC}
    while waiting:
        name = waiting.pop()
        place = system.library(name)
        found[str(place)] = system.file(place)
        brought.add(name)
        waiting |= linked([found[str(place)]]).needed - brought
    missing = [path for path, file in found.items() if not file.exists()]
    if missing:
        raise ImageError(f"expected /{missing[0]} below {system.root}, found none")
    return found
