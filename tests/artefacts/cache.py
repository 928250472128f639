"""Artefacts: what takes minutes to build and changes rarely, kept outside the clone and shared by all clones of a user.

An artefact is a folder below CNIKIT_CACHE whose name ends in a hash of everything it is made from, so one that is there
is never out of date, and two clones with different inputs do not disturb each other. `make clean-cache` removes all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
UNUSED_SECONDS = 14 * 86400.0


def cache() -> Path:
    """CNIKIT_CACHE; its default is `cnikit` in the user's cache folder."""
    named = os.environ.get("CNIKIT_CACHE", "")
    if named:
        return Path(named).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "cnikit"


@dataclass(frozen=True)
class Artefact:
    """`build` fills an empty folder. What it reads is in `inputs` (files and folders of the clone), `words` and `needs`."""

    name: str
    build: Callable[[Path], None]
    inputs: tuple[str, ...]
    words: tuple[str, ...] = ()
    needs: tuple[Artefact, ...] = ()

    @property
    def key(self) -> str:
        digest = hashlib.sha256()
        for word in (self.name, *self.words, *(need.key for need in self.needs)):
            digest.update(f"{word}\0".encode())
        for file in _files(self.inputs):
            content = file.read_bytes()
            mode = file.stat().st_mode & 0o111
            digest.update(f"{file.relative_to(ROOT)}\0{mode}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()[:12]

    @property
    def path(self) -> Path:
        return cache() / f"{self.name}-{self.key}"

    def found(self) -> Path:
        """The folder, for a test: it must have been built."""
        path = self.path
        assert path.is_dir(), f"no {path}: expected the artefact {self.name}, which make test-setup builds"
        return path

    def made(self) -> Path:
        """The folder, built now if it is not there."""
        for need in self.needs:
            need.made()
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if not path.is_dir():
                self._build(path)
            os.utime(path)
            self._remove_unused(path)
        return path

    def _build(self, path: Path) -> None:
        began = time.monotonic()
        print(f"building {self.name} into {path}", flush=True)
        for rest in path.parent.glob(f".{self.name}-*"):  # of a build that was killed
            shutil.rmtree(rest)
        unfinished = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{self.name}-"))
        unfinished.chmod(0o755)
        try:
            self.build(unfinished)
            unfinished.rename(path)
        except BaseException:
            shutil.rmtree(unfinished)
            raise
        print(f"built {self.name} in {time.monotonic() - began:.0f} s", flush=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One build at a time, of all processes."""
        with (self.path.parent / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _remove_unused(self, path: Path) -> None:
        """Earlier ones of this name that no clone has asked for in two weeks."""
        for other in path.parent.glob(f"{self.name}-{'?' * 12}"):
            if other != path and time.time() - other.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(other)


def _files(inputs: tuple[str, ...]) -> Iterator[Path]:
    for name in inputs:
        start = ROOT / name
        assert start.exists(), f"no {start}: expected the input of an artefact"
        found = sorted(start.rglob("*")) if start.is_dir() else [start]
        yield from (file for file in found if file.is_file() and "__pycache__" not in file.parts)
