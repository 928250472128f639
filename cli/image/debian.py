"""What is asked of a Debian system, this machine's or one below a folder: libraries, their packages, their terms."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cli.image import Architecture, ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable

DATABASE = "var/lib/dpkg"


class Package(NamedTuple):
    name: str  # without the architecture
    version: str


class Debian:
    """The system at `root` as one of its programs sees it."""

    def __init__(self, root: Path, architecture: Architecture) -> None:
        self.root = root
        self.architecture = architecture

    def library(self, name: str) -> Path:
        """Where the dynamic loader finds a shared library by its name. ImageError when it does not."""
        triplet = self.architecture.triplet
        places = [Path(folder, name) for folder in (f"lib/{triplet}", f"usr/lib/{triplet}", "lib", "usr/lib")]
        for place in places:
            if (self.root / place).exists():
                return place
        where = ", ".join(f"/{place.parent}" for place in places)
        raise ImageError(f"expected {name} for {self.architecture.name} below {self.root} in {where}, found none")

    def file(self, place: Path) -> Path:
        """The file at a place, links followed as they are in this root."""
        path = self.root / place
        while path.is_symlink():
            target = path.readlink()
            path = self.root / str(target).lstrip("/") if target.is_absolute() else path.parent / target
        return path

    def owners(self, ends: Iterable[str]) -> dict[str, str]:
        """For each of these ends of paths the package that such a file is of, where there is one."""
        wanted = sorted(ends)
        found: dict[str, str] = {}
        # By their ends, because packages of before the merge of /usr list /lib where others list /usr/lib.
        for line in self._query("--search", *(f"*/{end}" for end in wanted)).stdout.splitlines():
            packages, _, path = line.partition(": ")
            of_this = [name for name in packages.split(", ") if name.partition(":")[2] in ("", self.architecture.name)]
            if of_this and not packages.startswith("diversion by "):
                found.update({end: of_this[0] for end in wanted if path.endswith(f"/{end}")})
        return found

    def described(self, package: str) -> Package:
        """Name and version of a package that is installed."""
        found = self._query("--show", "--showformat", "${binary:Package} ${Version}", package)
        name, _, version = found.stdout.partition(" ")
        if found.returncode != 0 or not version:
            raise ImageError(f"dpkg-query does not know {package}: {found.stderr.strip()}")
        return Package(name.partition(":")[0], version)

    def copyright(self, package: str) -> bytes:
        """The terms under which a package is, as Debian has them in /usr/share/doc."""
        place = self.root / "usr/share/doc" / package / "copyright"
        try:
            return place.read_bytes()  # through links between folders of packages, which are relative
        except OSError as error:
            raise ImageError(
                f"expected the terms of {package} in {place}, found none ({error.strerror}); an image without them may "
                "not be handed on. If this system leaves documentation out (/etc/dpkg/dpkg.cfg.d), install the package "
                "anew with --path-include=/usr/share/doc/*/copyright"
            ) from None

    def _query(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["dpkg-query", "--admindir", str(self.root / DATABASE), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise ImageError(
                "expected dpkg-query, found none: an image is made of Debian's packages, on Debian"
            ) from None
