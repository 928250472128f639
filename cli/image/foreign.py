"""Build the executables for the processor that this machine does not have.

    python -m cli.image.foreign --platform linux/arm64 --output dist/arm64

What `make dist` puts into dist is in that folder then: `bin` with the plugins, `cnikit` and its bundle. PyInstaller
runs in a root of that processor (root.py); the launcher is cross-compiled as ever.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from cli.bundle import BuildError, Target, build_command, build_plugins, expect_tools
from cli.identity import ROOT
from cli.image import ARCHITECTURES, Architecture, ImageError
from cli.image.root import PYTHON, SITE, root_of, run

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCES = ("agent", "cli", "cni", "conf", "ipam", "launcher", "plugins")
BUILDS_KEPT = 4  # of one architecture, each of 45 MiB


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cli.image.foreign", description="Build for another processor.")
    own = os.uname().machine
    others = [platform for platform, architecture in ARCHITECTURES.items() if architecture.machine != own]
    parser.add_argument("--platform", required=True, choices=others, help="what to build for")
    parser.add_argument("--output", type=Path, required=True, help="the folder to put it into")
    arguments = parser.parse_args(argv)
    try:
        expect_tools()
        build_for(ARCHITECTURES[arguments.platform], arguments.output.resolve())
    except (BuildError, ImageError, OSError) as error:
        sys.exit(f"not built: {error}")


def build_for(architecture: Architecture, output: Path) -> None:
    """Build plugins and command, or take them from the cache, where another checkout of the same sources has put them."""
    root = root_of(architecture)
    kept = root.parent / f"built-{architecture.name}-{_key(root)}"
    if not kept.is_dir():
        with tempfile.TemporaryDirectory(prefix=".built-", dir=root.parent) as work:
            made = Path(work, "built")
            target = target_of(architecture, root)
            # Both at once: an emulated interpreter takes minutes, and one processor.
            with ThreadPoolExecutor() as pool:
                builds = [
                    pool.submit(build_command, made, target),
                    pool.submit(build_plugins, made / "bin", {}, target),
                ]
                for one in builds:
                    one.result()
            if not kept.is_dir():  # nobody else has made the same meanwhile
                made.rename(kept)
    os.utime(kept)
    olds = sorted(root.parent.glob(f"built-{architecture.name}-*"), key=lambda place: place.stat().st_mtime)
    for old in olds[:-BUILDS_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(kept, output, symlinks=True)


def _key(root: Path) -> str:
    """The digest of everything that goes into a build: the root, by its name, and our sources."""
    files = [ROOT / "pyproject.toml", ROOT / "requirements.lock"]
    for room in SOURCES:
        found = (ROOT / room).rglob("*")
        files += sorted(file for file in found if file.is_file() and "__pycache__" not in file.parts)
    digest = hashlib.sha256(root.name.encode())
    for file in files:
        content = file.read_bytes()
        digest.update(f"\n{file.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def target_of(architecture: Architecture, root: Path) -> Target:
    """How Python runs on another processor. The paths in its root are the same wherever this checkout lies."""
    environ = {
        "HOME": "/work", "TMPDIR": "/work", "PYINSTALLER_CONFIG_DIR": "/work", "PYTHONPATH": f"/src:/{SITE}",
        "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip

    def run_python(work: Path, arguments: list[str]) -> None:
        run(architecture, root, [f"/usr/bin/{PYTHON}", *arguments], {"src": ROOT, "work": work}, environ)

    return Target(architecture.machine, run_python, Path("/work"))


if __name__ == "__main__":
    main()
