"""Build the executables with PyInstaller: one bundle for all plugins, and one for the `cnikit` command.

    python -m cli.bundle --output dist/bin                                        our plugins
    python -m cli.bundle --output DIR --plugin example=docs/example_plugin.py     and one of yours beside them
    python -m cli.bundle --output dist --command                                  the command for people

`cnikit build` takes the same options. It works from a checkout and from an installed wheel, whose folder it never
writes to.

    DIR/bridge, DIR/host-local, ...     copies of the launcher, launcher/launcher.c, each with its stamp (cni/start.py)
    DIR/.cnikit/BUILD/                  BUILD is the version and a digest of what is in the folder
        cnikit-oneshot                  PyInstaller's bootloader with launcher/oneshot.py
        modules.bin                     the code of cni/, plugins/ and ipam/, and of your plugins
        base_library.zip/               what they need of the standard library. A folder in spite of its name, which
                                        is the bootloader's for the first entry of sys.path (a zip costs 1 ms)
        libpython3.11.so.1.0, ...       shared libraries
        launcher                        what the files in DIR are but for their stamps

A default PyInstaller build starts in 37 ms, this one in 9; docs/adr/ has the steps and their measure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import marshal
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cli.identity import CODE_FILE, NOT_ONE_SHOT, ROOT, build_of, code, codes, own_files
from cli.image.packages import packages_beside
from cli.install import put, sweep
from cli.registry import PLUGINS, module_of, third_party
from cni import __version__
from cni.start import Stamp
from cni.version import SUPPORTED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# The launcher's bundle folder and program: of the plugins, and of the command.
PLUGIN_BUNDLE = (".cnikit", "cnikit-oneshot")
COMMAND_BUNDLE = (".cnikit-command", "cnikit-command")
LAUNCHER_SOURCES = ("launcher.c", "agent.c", "asked.c")

# What PyInstaller finds through imports that no call of ours ever makes (os.popen imports subprocess, ...).
UNREACHED = (
    "ctypes", "typing", "dataclasses", "pathlib", "logging", "socket", "subprocess", "argparse", "contextlib",
    "threading", "selectors", "signal", "multiprocessing", "asyncio", "tempfile", "shutil", "random", "hashlib",
    "ssl", "zipfile", "bz2", "lzma", "inspect", "importlib.metadata", "importlib.resources", "email", "urllib",
    "unittest", "pydoc", "decimal", "doctest", "pickle", "gettext", "platform", "sqlite3", "datetime", "_strptime",
    "calendar", "ast", "textwrap", "string", "stringprep", "getopt", "fnmatch", "base64", "quopri", "copy",
    "tracemalloc",
)  # fmt: skip
# What is not in the built command.
BUILD_ONLY = ("cli.bundle", "cli.image")
# What nothing of ours uses. `readline` would bring a library under the GPL along; the last two are what rich shows source code
# and Markdown with, and a fifth of the bundle.
NOT_IN_COMMAND = ("readline", "tkinter", "pygments", "markdown_it")
# The one-shot program runs in UTF-8 mode; the others are what a codec lookup may ask for.
ENCODINGS = ("__init__", "aliases", "ascii", "latin_1", "utf_8")


class BuildError(Exception):
    """The executables could not be built; nothing in the output folder has changed."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m cli.bundle") -> None:
    parser = argparse.ArgumentParser(prog=prog, description="Build the executables.")
    parser.add_argument("--output", type=Path, required=True, help="the folder to put them into")
    parser.add_argument("--command", action="store_true", help="build the cnikit command instead of the plugins")
    parser.add_argument("--plugin", action="append", default=[], metavar="NAME=FILE", help="also bundle this plugin")
    arguments = parser.parse_args(argv)
    output = arguments.output.resolve()
    try:
        extra = third_party(arguments.plugin)
        expect_tools()
        if arguments.command:
            build_command(output)
        else:
            build_plugins(output, extra)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    except (BuildError, OSError) as error:
        sys.exit(f"not built: {error}")


def expect_tools() -> None:
    """BuildError when something that building needs is not installed."""
    modules = {"PyInstaller": "pyinstaller", "ziglang": "ziglang"}
    missing = [package for module, package in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        names = " and ".join(missing)
        raise BuildError(f"expected {names} in {sys.prefix}, found none: pip install 'cnikit[build]'")
    programs = [program for program in ("objcopy", "strip") if shutil.which(program) is None]
    if programs:
        raise BuildError(f"expected {' and '.join(programs)} on PATH, found none: apt-get install binutils")


def run(what: str, command: list[str], **options: Any) -> None:
    """Run a program that says itself what is wrong; BuildError when it failed."""
    status = subprocess.run(command, check=False, **options).returncode
    if status != 0:
        raise BuildError(f"{what} failed with exit code {status}; its messages are above")


class Target(NamedTuple):
    """The machine that is built for, by its name in uname(1), and how Python runs there: with these arguments, in this
    working folder of ours, which it may have at another place (`place`)."""

    machine: str
    run_python: Callable[[Path, list[str]], None]
    place: Path | None = None


def run_python_here(work: Path, arguments: list[str]) -> None:
    # The hash seed makes two builds of the same sources equal.
    environ = {**os.environ, "PYINSTALLER_CONFIG_DIR": str(work), "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    run("PyInstaller", [sys.executable, *arguments], env=environ, cwd=ROOT)


HERE = Target(platform.machine(), run_python_here)


def build_plugins(output: Path, extra: dict[str, str], target: Target = HERE) -> None:
    """Build the bundle of our plugins and the `extra` ones (name to file), and a launcher for each."""
    registry = {**PLUGINS, **{name: module_of(file) for name, file in extra.items()}}
    paths = [os.path.dirname(file) for file in extra.values()]
    spec = f"from cli.bundle import assemble_plugins\nassemble_plugins(globals(), {registry!r}, {paths!r})\n"
    build(output, target, spec, PLUGIN_BUNDLE, {name: (name, code) for name, code in codes(extra).items()})


def build_command(output: Path, target: Target = HERE) -> None:
    """Build the `cnikit` command."""
    spec = "from cli.bundle import assemble_command\nassemble_command(globals())\n"
    build(output, target, spec, COMMAND_BUNDLE, {"cnikit": ("", "")}, "-DPEOPLE")


def build(
    output: Path,
    target: Target,
    spec: str,
    names: tuple[str, str],
    launchers: Mapping[str, tuple[str, str]],
    *defines: str,
) -> None:
    """Freeze, compile the launcher, and put both into `output`: what is there may be in use.

    `launchers` gives each file's name its plugin and the digest of that plugin's code.
    """
    folder, program = names
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=output) as work:
        bundle = freeze(Path(work), target, spec, program)
        define = (f'-DFOLDER="{folder}"', f'-DPROGRAM="{program}"', *defines)
        compile_launcher(bundle / "launcher", target.machine, *define)
        build = build_of(bundle)
        put(bundle, output / folder / build)
        for name, (plugin, digest) in launchers.items():
            file = Path(work) / "launcher"
            file.write_bytes(Stamp(plugin, build, digest).written((output / folder / build / "launcher").read_bytes()))
            file.chmod(0o755)
            file.replace(output / name)
    sweep(output, folder, patience=0)


def freeze(work: Path, target: Target, spec: str, program: str) -> Path:
    """Run PyInstaller on a spec file; returns the folder it made."""
    (work / f"{program}.spec").write_text(spec)
    there = target.place or work
    arguments = ["-m", "PyInstaller", "--log-level", "WARN", "--noconfirm"]
    arguments += ["--distpath", str(there / "dist"), "--workpath", str(there / "work"), str(there / f"{program}.spec")]
    target.run_python(work, arguments)
    return work / "dist" / program


def assemble_plugins(pyinstaller: dict[str, Any], registry: dict[str, str], paths: list[str]) -> None:
    """The body of the plugins' spec file; `pyinstaller` holds the names that PyInstaller gives to one."""
    intern_characters()
    own = own_modules(registry)
    extra = set(registry) - set(PLUGINS)
    analysis = pyinstaller["Analysis"](
        [str(ROOT / "launcher" / "oneshot.py")],
        pathex=[str(ROOT), *paths], hiddenimports=own, excludes=[] if extra else list(UNREACHED), noarchive=True, optimize=2,
    )  # fmt: skip
    modules: dict[str, tuple[bool, bytes]] = {}
    library = []
    for target, source, kind in analysis.datas:
        name = target.removesuffix(".pyc").replace("/", ".")
        module = name.removesuffix(".__init__")
        if module in own:
            modules[module] = (module != name, Path(source).read_bytes()[16:])  # the code follows a header of 16 bytes
        elif not name.startswith("encodings.") or name.removeprefix("encodings.") in ENCODINGS:
            library.append((f"base_library.zip/{target}" if target.endswith(".pyc") else target, source, kind))
    missing = sorted(set(own) - set(modules))
    if missing:
        raise SystemExit(f"not found: {', '.join(missing)}")
    blob = Path(pyinstaller["workpath"]) / "modules.bin"
    blob.write_bytes(packed(registry, modules))
    library.append((blob.name, str(blob), "DATA"))
    # PyInstaller's own bootstrap, which `PYZ.dependencies` and the other scripts are, is what oneshot.py replaces.
    archive = pyinstaller["PYZ"]([])
    archive.dependencies = []
    scripts = [entry for entry in analysis.scripts if entry[0] == "oneshot"]
    program = PLUGIN_BUNDLE[1]
    executable = pyinstaller["EXE"](
        archive, scripts, [("X utf8_mode=1", None, "OPTION")],
        exclude_binaries=True, name=program, contents_directory=".", strip=True, upx=False, console=True,
    )  # fmt: skip
    pyinstaller["COLLECT"](executable, analysis.binaries, library, name=program, strip=True, upx=False)


def intern_characters() -> None:
    """Make every string of one character an interned one, so that two builds of the same sources are equal.

    Python has one object for each of these, which becomes interned when anything interns it, a variable's name in the environment for
    example, and marshal writes down which strings are.
    """
    for number in range(256):
        sys.intern(chr(number))


def packed(registry: dict[str, str], modules: dict[str, tuple[bool, bytes]]) -> bytes:
    """The content of modules.bin, which launcher/oneshot.py describes."""
    index, code = {}, b""
    for name, (package, data) in sorted(modules.items()):
        index[name] = (package, len(code), len(data))
        code += data
    head = marshal.dumps((registry, index))
    return len(head).to_bytes(8, "little") + head + code


def own_modules(registry: dict[str, str]) -> list[str]:
    """The modules that go into modules.bin: all of ours that a call may need, and the plugins."""
    # Every module of ours begins with an import from __future__.
    return list(dict.fromkeys(["__future__", *(name for name, _ in own_files()), *registry.values()]))


def assemble_command(pyinstaller: dict[str, Any]) -> None:
    """The body of the command's spec file: an ordinary onedir build."""
    intern_characters()
    files = [file for room in ("cli", "agent") for file in sorted((ROOT / room).rglob("*.py"))]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    names = [name for name in names if not name.startswith(BUILD_ONLY)]
    written = Path(pyinstaller["workpath"]) / CODE_FILE
    written.write_text(code())
    analysis = pyinstaller["Analysis"](
        [str(ROOT / "launcher" / "command.py")],
        pathex=[str(ROOT)], hiddenimports=[*names, *own_modules(PLUGINS), *NOT_ONE_SHOT], datas=[(str(ROOT / "conf"), "conf"), (str(written), ".")],
        excludes=[*packages_beside(), *NOT_IN_COMMAND, *BUILD_ONLY],
    )  # fmt: skip
    program = COMMAND_BUNDLE[1]
    # Not PyInstaller's hooks for single libraries: none is needed here, and they import half of the standard library.
    scripts = [entry for entry in analysis.scripts if not entry[0].startswith("pyi_rth_")]
    executable = pyinstaller["EXE"](
        pyinstaller["PYZ"](analysis.pure), scripts,
        exclude_binaries=True, name=program, contents_directory=".", strip=True, upx=False, console=True,
    )  # fmt: skip
    pyinstaller["COLLECT"](executable, analysis.binaries, analysis.datas, name=program, strip=True, upx=False)


def compile_launcher(output: Path, machine: str, *defines: str) -> None:
    """Compile the launcher, without a stamp, for a machine (x86_64, aarch64): static, with no C compiler on this one."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl", "-Os", "-static", "-s"]
    command += ["-std=gnu11", "-Wall", "-Wextra", "-Werror", *launcher_defines(), *defines]
    command += ["-o", str(output), *(str(ROOT / "launcher" / source) for source in LAUNCHER_SOURCES)]
    with tempfile.TemporaryDirectory() as spare:
        # The compiler keeps what it makes in XDG_CACHE_HOME or HOME; with neither it does not start.
        named = {"ZIG_GLOBAL_CACHE_DIR", "XDG_CACHE_HOME", "HOME"} & os.environ.keys()
        run("the C compiler", command, env=os.environ if named else {**os.environ, "ZIG_GLOBAL_CACHE_DIR": spare})


def launcher_defines() -> list[str]:
    """What the launcher has to know when it is compiled, as options of a C compiler."""
    supported = json.dumps(json.dumps(list(SUPPORTED), separators=(",", ":")))
    return [f'-DVERSION="{__version__}"', f"-DSUPPORTED={supported}"]


if __name__ == "__main__":
    main()
