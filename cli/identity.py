"""What a build is, as digests: of a bundle, which is then found by it, and of the code that a plugin's calls run.

Bundles of several makers lie side by side in one folder, because each build's has another name. The agent runs out of
a bundle of its own, so it compares code: what a call would run one-shot, and what would run here. Both are over
content alone; two builds of one tree agree, wherever it lies.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cli.registry import PLUGINS
from cni import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent
CODE_FILE = "code"  # in the command's bundle: what `code` is in a checkout

# What is in no plugin: the runtime side of cni/, which calls plugins, and the kernel of a process that stays.
NOT_ONE_SHOT = (
    "cni.runtime", "cni.netlist", "cni.cache", "cni.kernel.resident", "cni.kernel.deleter", "cni.kernel.monitor",
    "cni.kernel.mountns", "cni.kernel.watch",
)  # fmt: skip


def build_of(bundle: Path) -> str:
    """The name of a bundle's folder: the version, and a digest of every file in it with its place."""
    files = sorted(file for file in bundle.rglob("*") if file.is_symlink() or file.is_file())
    return f"{__version__}-{_digest((str(file.relative_to(bundle)), _content(file)) for file in files)}"


def codes(extra: Mapping[str, str]) -> dict[str, str]:
    """The digest of what a call runs, for each of our plugins and of these `extra` ones (name to file)."""
    ours = code()
    return {**dict.fromkeys(PLUGINS, ours), **{name: _code_of(ours, Path(file)) for name, file in extra.items()}}


def code() -> str:
    """The digest of the code that our own plugins run."""
    if getattr(sys, "frozen", False):
        return (Path(vars(sys)["_MEIPASS"]) / CODE_FILE).read_text()  # the bootloader's name for its bundle
    return _digest((name, file.read_bytes()) for name, file in own_files())


def own_files() -> Iterator[tuple[str, Path]]:
    """The modules of ours that a call may need, with their files."""
    for folder in ("cni", "plugins", "ipam"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if not name.startswith(("cni.testing", *NOT_ONE_SHOT)):
                yield name, file


def _code_of(ours: str, file: Path) -> str:
    """The same for a plugin in a file of its own: with that file, and what it imports from beside it."""
    files = {file.name: file}
    waiting = [file]
    while waiting:
        for found in _imported(waiting.pop(), file.parent):
            name = str(found.relative_to(file.parent))
            if name not in files:
                files[name] = found
                waiting.append(found)
    return _digest([("", ours.encode()), *((name, files[name].read_bytes()) for name in sorted(files))])


def _imported(file: Path, folder: Path) -> Iterator[Path]:
    """The files in `folder` that a module imports, at its top or anywhere in it."""
    import ast  # only where somebody brings a plugin

    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = file.relative_to(folder).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            names.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
    for name in names:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            place = folder.joinpath(*parts[:count])
            yield from (found for found in (place.with_suffix(".py"), place / "__init__.py") if found.is_file())


def _digest(entries: Iterable[tuple[str, bytes]]) -> str:
    import hashlib  # it loads OpenSSL, which an agent without plugins of others can do without

    digest = hashlib.sha256()
    for name, content in entries:
        label = os.fsencode(name)
        digest.update(b"%d %d\n" % (len(label), len(content)))
        digest.update(label)
        digest.update(content)
    return digest.hexdigest()[:16]


def _content(file: Path) -> bytes:
    return os.fsencode(os.readlink(file)) if file.is_symlink() else file.read_bytes()
