"""The container image, made without Docker and without a base image: `make image`.

    __main__.py      puts an archive together from what `make dist` has built, for one platform or more
    foreign.py       builds the same for the processor that this machine does not have
    root.py          the Debian root of that processor, and how its programs are run here
    debian.py        what is asked of a Debian system: which package a file is of, and under which terms it is
    libraries.py     what is linked to what
    packages.py      the Python packages that are needed
    archive.py       layers and the OCI image layout

docs/adr/034-an-image-without-a-base.md has the reasons and the figures.
"""

from __future__ import annotations

from typing import NamedTuple


class ImageError(Exception):
    """The image could not be made; the message says what is missing."""


class Architecture(NamedTuple):
    """A processor by the names that it has: in OCI and Debian, in uname(1), in paths, and in ELF headers."""

    name: str
    machine: str
    triplet: str
    elf: int


ARCHITECTURES = {
    "linux/amd64": Architecture("amd64", "x86_64", "x86_64-linux-gnu", 62),
    "linux/arm64": Architecture("arm64", "aarch64", "aarch64-linux-gnu", 183),
}
