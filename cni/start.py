"""What a launcher is: how it says which plugin it starts, and which files are launchers of ours.

All launchers of a build are one compiled program (launcher/launcher.c) with different stamps, a field of fixed size
(`struct stamp` in launcher/launcher.h) that cli/bundle.py writes into each copy. The stamp alone says what a file is, so
that a copy, a link or a renamed file is the plugin that it was. Outside their stamps launchers of a build are equal.
"""

from __future__ import annotations

import posix

from cni.paths import base_name, folder_of, is_link, real_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

BUNDLES = ".cnikit"  # the folder beside the launchers that has a folder for each build
SYSTEM_BUNDLES = "/usr/lib/cnikit"  # where a launcher looks next

LARGEST_LAUNCHER = 1 << 18  # bytes: a larger file is none and need not be read

_SIGNALS = {"SIGPIPE=ignored": 13, "SIGXFSZ=ignored": 25}

_MARK = b"\x7fcnikit-stamp1\n\0"
_SIZES = (256, 64, 64)  # of plugin, build and code
_SIZE = len(_MARK) + sum(_SIZES)


class Stamp:
    """What is written in a launcher.

    `plugin` is its name, empty in the launcher of a command. `build` is the folder of its bundle. `code` is a digest of
    the code that its calls run (cli/identity.py).
    """

    __slots__ = ("build", "code", "plugin")

    def __init__(self, plugin: str, build: str, code: str) -> None:
        self.plugin = plugin
        self.build = build
        self.code = code

    @classmethod
    def read(cls, content: bytes) -> Stamp | None:
        """The stamp in a file's content; None when it has none."""
        at = content.find(_MARK)
        if at < 0:
            return None
        at += len(_MARK)
        fields = []
        for size in _SIZES:
            field = content[at : at + size]
            fields.append(field[: field.find(b"\0")].decode("utf-8", "surrogateescape"))
            at += size
        return cls(*fields)

    def written(self, content: bytes) -> bytes:
        """The content of a launcher with this stamp in the place of its own. ValueError when that has no room."""
        at = content.find(_MARK)
        if at < 0 or content.find(_MARK, at + 1) >= 0:
            raise ValueError("expected a compiled launcher with one place for its stamp")
        data = _MARK
        for text, size in zip((self.plugin, self.build, self.code), _SIZES, strict=True):
            field = text.encode("utf-8", "surrogateescape")
            if len(field) >= size or b"\0" in field:
                raise ValueError(f"{text!r}: expected fewer than {size} bytes")
            data += field.ljust(size, b"\0")
        return content[:at] + data + content[at + _SIZE :]


class Start:
    """What the launcher passes on: `PROGRAM PLUGIN SELF [NAME=VALUE...] "" [ARGUMENT...]` (launcher/launcher.c).

    `program` is the bundle's, `plugin` the name in the launcher's stamp, `launcher` that file's real path. `ignored` are
    the signals that the caller ignores, of those that Python does from its start on.
    """

    __slots__ = ("_replaced", "arguments", "ignored", "launcher", "plugin", "program")

    def __init__(self, argv: list[str]) -> None:
        if "" not in argv[3:]:
            raise SystemExit(f"{argv[0]}: started by hand; call the file beside the folder {BUNDLES}")
        end = argv.index("", 3)
        self.program, self.plugin, self.launcher = argv[:3]
        self._replaced = [entry for entry in argv[3:end] if entry not in _SIGNALS]
        self.ignored = tuple([_SIGNALS[entry] for entry in argv[3:end] if entry in _SIGNALS])
        self.arguments = argv[end + 1 :]

    def restore(self, environ: MutableMapping[str, str]) -> None:
        """Give `environ` the caller's values of the variables that were needed to start."""
        for name in list(environ):
            if name == "LD_LIBRARY_PATH" or name.startswith("_PYI_"):
                del environ[name]
        for entry in self._replaced:
            name, _, value = entry.partition("=")
            environ[name] = value


class OwnPlugins:
    """Tells which executables are launchers of this very bundle (its folder is `bundle`), so that a delegate
    can run in-process. Costs about 50 microseconds."""

    __slots__ = ("_bundle", "_registry")

    def __init__(self, registry: Mapping[str, str], bundle: str) -> None:
        self._registry = registry
        self._bundle = bundle

    def name_of(self, executable: str) -> str | None:
        """The plugin that executing the file would start out of this bundle; None when it is anything else."""
        try:
            stamp = stamp_of(executable, f"{self._bundle}/launcher")
            if stamp is None or stamp.build != base_name(self._bundle) or stamp.plugin not in self._registry:
                return None
            if is_link(posix.lstat(executable)):
                executable = real_path(executable)
            return stamp.plugin if self._starts_here(folder_of(executable)) else None
        except OSError:
            return None  # whatever is wrong with it, executing it will show

    def _starts_here(self, folder: str) -> bool:
        """Whether a launcher in this folder finds this bundle: the launcher's own rule."""
        for place in (f"{folder}/{BUNDLES}", SYSTEM_BUNDLES):
            try:
                found, own = posix.stat(f"{place}/{base_name(self._bundle)}"), posix.stat(self._bundle)
            except FileNotFoundError:
                continue
            return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)
        return False


def stamp_of(executable: str, launcher: str) -> Stamp | None:
    """The stamp of an executable file that is this launcher but for its stamp; None for any other. OSError."""
    found = posix.stat(executable)
    if not found.st_mode & 0o111 or found.st_size != posix.stat(launcher).st_size:
        return None
    content, original = content_of(executable), content_of(launcher)
    at = original.find(_MARK)
    after = at + _SIZE
    if at < 0 or content[:at] != original[:at] or content[after:] != original[after:]:
        return None
    return Stamp.read(content[at:after])


def plugin_of(executable: str) -> str:
    """The plugin in the stamp of a launcher of whatever build; empty for a file without one. OSError."""
    if posix.stat(executable).st_size > LARGEST_LAUNCHER:
        return ""
    stamp = Stamp.read(content_of(executable))
    return stamp.plugin if stamp else ""


def content_of(path: str) -> bytes:
    """A file's whole content."""
    with open(path, "rb", buffering=0) as file:
        return file.read()
