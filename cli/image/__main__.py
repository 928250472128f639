"""Write the image as one archive.

    python -m cli.image --output dist/image                                 for both processors: cnikit-VERSION.tar
    python -m cli.image --output dist/image --platform linux/amd64          for one: cnikit-VERSION-amd64.tar

It puts together what is built: `--built` (default dist) has this machine's executables, its folder named like another
processor (dist/arm64) that one's. The root file system of the image:

    /opt/cnikit/bin                                                         the plugins, as in dist/bin
    /usr/bin/cnikit, /usr/bin/.cnikit-command                               the command, which the image starts
    /lib/..., /lib64/...                                                    glibc: the dynamic loader, and what is linked to
    /usr/share/doc                                                          the terms of everything in it
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cli.bundle import COMMAND_BUNDLE, PLUGIN_BUNDLE
from cli.identity import ROOT
from cli.image import ARCHITECTURES, Architecture, ImageError, archive, libraries
from cli.image.packages import distribution, locked, required, terms
from cli.image.root import SITE, system
from cli.install import COMMAND_BUNDLES, launchers
from cni import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cli.image.debian import Debian

NAME = f"cnikit.dev/cnikit:{__version__}"
PLUGINS = "opt/cnikit/bin"
COMMAND = "usr/bin"
DOC = "usr/share/doc"
CONFIG = {
    "Entrypoint": [f"/{COMMAND}/cnikit"],
    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    "Labels": {
        "org.opencontainers.image.title": "cnikit",
        "org.opencontainers.image.description": "CNI plugins and their node agent",
        "org.opencontainers.image.version": __version__,
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cli.image", description="Write an OCI image archive.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to put it into")
    parser.add_argument("--platform", action="append", choices=list(ARCHITECTURES), help="only for this one")
    parser.add_argument("--built", type=Path, default=ROOT / "dist", metavar="DIR", help="what make dist has built")
    arguments = parser.parse_args(argv)
    wanted = [ARCHITECTURES[name] for name in dict.fromkeys(arguments.platform or ARCHITECTURES)]
    suffix = f"-{wanted[0].name}" if len(wanted) == 1 else ""
    place = arguments.output / f"cnikit-{__version__}{suffix}.tar"
    try:
        images = [image(architecture, arguments.built) for architecture in wanted]
        key = archive.write(place, NAME, images)
    except (ImageError, OSError) as error:
        sys.exit(f"no image written: {error}")
    print(f"{place}: {NAME}, {key}")
    for one in images:
        print(f"linux/{one.architecture}: {sum(len(layer.content) for layer in one.layers) / 2**20:.1f} MiB")


def image(architecture: Architecture, built: Path) -> archive.Image:
    """The image of one platform from its executables. ImageError when something of it is missing."""
    debian = system(architecture)
    is_own = debian.root == Path("/")
    source, site = (built, "") if is_own else (built / architecture.name, str(debian.root / SITE))
    programs = {PLUGINS: launchers(source / "bin"), COMMAND: launchers(source, COMMAND_BUNDLES)}
    if not all(programs.values()):
        raise ImageError(f"expected the executables for {architecture.name} in {source}, found none: call make image")
    ours = {f"{at}/{one.path.name}": one.path for at, found in programs.items() for one in found}
    for at, found in programs.items():
        ours |= {f"{at}/{one.bundle.parent.name}/{one.bundle.name}": one.bundle for one in found}
    bundles = {one.bundle for found in programs.values() for one in found}
    outside = libraries.from_outside(bundles, debian)
    triplet = architecture.triplet
    glibc = owners(debian, {"/".join(place.split("/")[-2:]) for place in outside}, set())
    brought = owners(debian, {end for one in bundles for end in ends(one, triplet)}, packaged(site))
    versions = ", ".join(f"{one.name} {one.version}" for one in sorted(map(debian.described, glibc)))
    return archive.Image(
        architecture.name,
        (
            archive.layer({**outside, **copyrights(debian, glibc)}, versions),
            archive.layer({**ours, **copyrights(debian, brought - glibc), **licences(site)}, f"cnikit {__version__}"),
        ),
        CONFIG,
    )


def ends(bundle: Path, triplet: str) -> set[str]:
    """The last two parts of the paths that the libraries of a bundle had where PyInstaller found them."""
    extensions = "lib-dynload"  # the standard library's
    files = libraries.elf_files(bundle)
    return {f"{extensions if file.parent.name == extensions else triplet}/{file.name}" for file in files}


def owners(debian: Debian, files: set[str], known: set[str]) -> set[str]:
    """The Debian packages that these files, ends of paths, are of; the names in `known` need none. ImageError for others."""
    found = debian.owners(files)
    if unknown := sorted(file for file in files - set(found) if file.rpartition("/")[2] not in known):
        raise ImageError(
            f"expected every library to be of a Debian package or of a Python package of requirements.lock, found "
            f"{unknown[0]} of none: nobody knows its terms. Build with Debian's own Python"
        )
    return set(found.values())


def packaged(site: str) -> set[str]:
    """The names of the files that are of Python packages, and of the programs of our bundles."""
    files = {file.name for name in required("pyinstaller") for file in distribution(name, site).files or ()}
    return files | {"launcher", PLUGIN_BUNDLE[1], COMMAND_BUNDLE[1]}


def copyrights(debian: Debian, packages: Iterable[str]) -> dict[str, bytes]:
    """The terms of Debian packages, by their place in the image."""
    named = {package.partition(":")[0]: package for package in packages}
    return {f"{DOC}/{name}/copyright": debian.copyright(name) for name in sorted(named)}


def licences(site: str) -> dict[str, bytes]:
    """Our terms, and those of what is in our executables and no Debian package: Python packages, and the C library that the
    launcher is linked to."""
    found = {f"{DOC}/cnikit/LICENSE": (ROOT / "LICENSE").read_bytes()}
    versions = locked()
    for name in sorted(required("pyinstaller")):
        for file, content in terms(distribution(name, site)):
            found[f"{DOC}/cnikit/{name}-{versions[name]}/{file}"] = content
    spec = find_spec("ziglang")
    assert spec is not None
    assert spec.origin is not None
    musl = Path(spec.origin).parent / "lib" / "libc" / "musl" / "COPYRIGHT"
    found[f"{DOC}/musl/copyright"] = musl.read_bytes()
    return found


if __name__ == "__main__":
    main()
