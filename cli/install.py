"""Put built executables into the directories of a running node.

    python -m cli.install dist/bin /opt/cni/bin                the plugins
    python -m cli.install --command dist /usr/local/bin        the cnikit command, which is the agent too
    ... --units /etc/systemd/system                            and with that the agent's systemd units
    ... --root DIR                                             below DIR, where a package or an image is made

A plugin may be called at any moment, also while this runs. So nothing that is in use is ever written to or
missing: everything is copied beside its place, synced, tried (VERSION), and only then renamed into it, the
bundle first. Bundles of other builds stay while launchers in the folder name them, and for a while after that, for the
calls that began in them (`sweep`). Files of other makers stay; one at the place of ours is kept in the folder of bundles, and
comes back when ours is uninstalled.

With the plugins br_netfilter is switched on: without it, what two pods say to each other over one bridge passes no rule
of services and policy. Below a root that is not the running system's no setting of the kernel is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cli.node import glibc
from cli.node.record import Record
from cli.node.root import NodeError, NodeRoot
from cli.node.settings import filter_on_bridges
from cli.node.traces import note_before
from cni import __version__
from cni.start import BUNDLES, LARGEST_LAUNCHER, Stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

COMMAND_BUNDLES = ".cnikit-command"
UNITS = ("cnikit-agent.service", "cnikit-agent.socket")
UNIT_SOURCES = Path(__file__).resolve().parent.parent / "conf" / "systemd"
UNIT_COMMAND = "/usr/local/bin/cnikit"  # what stands in them
RENAME_EXCHANGE = 2
AT_FDCWD = -100
STAGE = ".install-"
REPLACED = ".replaced-"  # the file of another maker that was at the place of one of ours
UNUSED = ".unused-"  # a file for each bundle that no launcher names any more
CALLS_END_IN = 3600.0  # seconds; the runtimes give up sooner


class InstallError(NodeError):
    """The installation was refused or failed; the directory is as it was."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cli.install", description="Install built executables.")
    parser.add_argument("source", metavar="FROM", type=named_folder, help="the folder with what make dist has built")
    parser.add_argument("target", metavar="TO", type=named_folder, help="the folder to put it into")
    parser.add_argument("--command", action="store_true", help="install the cnikit command instead of the plugins")
    parser.add_argument(
        "--units", type=named_folder, metavar="DIR", help="also put the agent's systemd units into this folder"
    )
    parser.add_argument(
        "--root", default="", metavar="DIR", help="install below DIR; the running system stays as it is"
    )
    arguments = parser.parse_args()
    if arguments.units and not arguments.command:
        parser.error("--units: expected --command with it, whose units they are")
    bundles, try_out = (COMMAND_BUNDLES, try_out_command) if arguments.command else (BUNDLES, try_out_plugin)
    target = below(arguments.root, arguments.target)
    try:
        units = unit_texts(arguments.target.absolute() / "cnikit") if arguments.units else {}
        # Nothing runs below another root, so what nobody names there need not wait for calls to end.
        if not arguments.root:
            glibc.refuse(arguments.source / bundles, NodeRoot())
        names = install(arguments.source, target, bundles, try_out, 0 if arguments.root else CALLS_END_IN)
        if arguments.units:
            put_units(units, below(arguments.root, arguments.units))
        fault = prepare() if "bridge" in names and not arguments.root else ""
    except (NodeError, OSError) as error:
        sys.exit(f"not installed: {error}")
    print(f"installed {', '.join(names)} (cnikit {__version__}) in {target}")
    if fault:
        print(f"warning: {fault}", file=sys.stderr)


def prepare() -> str:
    """Set what networks need of the node's kernel, after it is noted how it was; what is missing."""
    note_before(Record())
    return filter_on_bridges()


def named_folder(text: str) -> Path:
    """A folder of the command line. An empty one would be the current folder, which nobody means."""
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, for example /opt/cni/bin, found nothing")
    return Path(text)


def below(root: str, place: Path) -> Path:
    """Where a place lies while `root` is not the root of a running system yet (DESTDIR); empty means it is."""
    return Path(root, *place.absolute().parts[1:]) if root else place


def unit_texts(command: Path) -> dict[str, str]:
    """The agent's systemd units, which call `command`. InstallError when systemd takes no such path."""
    # It reads "%" as the start of a specifier, and has no way to write these others.
    path = str(command).replace("%", "%%")
    if any(char in "\"'\\" or not char.isprintable() for char in path):
        raise InstallError(
            f"{command}: expected a path without quotes and backslashes, which systemd refuses in a unit"
        )
    word = f'"{path}"' if " " in path else path
    return {name: (UNIT_SOURCES / name).read_text().replace(UNIT_COMMAND, word) for name in UNITS}


def put_units(units: Mapping[str, str], place: Path) -> None:
    """Put systemd units into a folder, each at once."""
    place.mkdir(parents=True, exist_ok=True)
    for name, text in units.items():
        new = place / f".{name}.new"
        new.write_text(text)
        new.chmod(0o644)
        new.replace(place / name)


def install(
    source: Path, target: Path, bundles: str, try_out: Callable[[Path], None], patience: float = CALLS_END_IN
) -> list[str]:
    """Install everything of `source` that starts a bundle of its folder `bundles`, after `try_out` of each; returns
    the names. `patience` is how long bundles stay that no launcher names. InstallError or OSError when that failed."""
    found = launchers(source, bundles)
    builds = sorted({launcher.bundle.name for launcher in found})
    missing = [build for build in builds if not (source / bundles / build / "launcher").is_file()]
    if not found or missing:
        folder = f"{bundles}/{missing[0] if missing else __version__}"
        raise InstallError(f"{source}: expected executables and the folder {folder}; call make dist first")
    names = [launcher.path.name for launcher in found]
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (target / name).is_dir():
            raise InstallError(f"{target / name} is a folder; remove it")
    (target / bundles).mkdir(exist_ok=True)
    with alone(target / bundles):
        sweep(target, bundles, patience)
        stage = staged(source, target, bundles, builds, names, try_out)
        for build in builds:
            (target / bundles / f"{UNUSED}{build}").unlink(missing_ok=True)  # its time begins anew
            put(stage / bundles / build, target / bundles / build)
        ours = {launcher.path.name for launcher in launchers(target, bundles)}
        for name in names:
            if name not in ours and os.path.lexists(target / name):
                keep(target / name, target / bundles / f"{REPLACED}{name}")
            (stage / name).replace(target / name)
        if not any((stage / bundles).iterdir()):
            shutil.rmtree(stage)
        sweep(target, bundles, patience)
        sync(target / bundles, recursive=False)
        sync(target, recursive=False)
    return names


def keep(file: Path, kept: Path) -> None:
    """Give a file of another maker a second name, under which it stays until we are uninstalled. OSError."""
    kept.unlink(missing_ok=True)  # of an earlier time: what is there now is what was put there last
    kept.hardlink_to(file)


def staged(
    source: Path, target: Path, bundles: str, builds: list[str], names: list[str], try_out: Callable[[Path], None]
) -> Path:
    """A folder beside the bundles of `target` with a copy of everything, which runs there."""
    stage = Path(tempfile.mkdtemp(prefix=STAGE, dir=target / bundles))
    try:
        for build in builds:
            copy(source / bundles / build, stage / bundles / build)
        for name in names:
            shutil.copy2(source / name, stage / name)
        sync(stage)
        for name in names:
            try_out(stage / name)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    return stage


def copy(source: Path, target: Path) -> None:
    """Copy a folder. OSError for the first file that could not be."""
    failed: list[OSError] = []

    def one(file: str, place: str) -> None:
        try:
            shutil.copy2(file, place)
        except OSError as error:  # shutil would go on, and keep no more than a text
            failed.append(OSError(error.errno, error.strerror, place))
            raise

    try:
        shutil.copytree(source, target, symlinks=True, copy_function=one)
    except shutil.Error:
        if failed:
            raise failed[0] from None
        raise


class Launcher(NamedTuple):
    """A file that is a launcher of ours: its plugin, empty for the command, and the bundle that it starts, which may be
    missing."""

    path: Path
    plugin: str
    bundle: Path


def launchers(folder: Path, bundles: str = BUNDLES) -> list[Launcher]:
    """The launchers in a folder, by name, under whatever names, that start bundles of its folder `bundles`.

    Those of before there were stamps equal the one that their bundle keeps, and are what they are called.
    """
    unstamped = {}
    for kept in sorted((folder / bundles).glob("*/launcher")):
        content = kept.read_bytes()
        stamp = Stamp.read(content)
        if stamp is None:
            unstamped[content] = kept.parent
    found = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if file.is_symlink() or not file.is_file() or file.stat().st_size > LARGEST_LAUNCHER:
            continue
        content = file.read_bytes()
        stamp = Stamp.read(content)
        if stamp is not None and stamp.build and bool(stamp.plugin) == (bundles == BUNDLES):
            found.append(Launcher(file, stamp.plugin, folder / bundles / stamp.build))
        elif stamp is None and content in unstamped:
            found.append(Launcher(file, file.name if bundles == BUNDLES else "", unstamped[content]))
    return found


def sweep(target: Path, bundles: str, patience: float) -> None:
    """Remove the bundles that no launcher in `target` names any more, and what installations that were killed have left,
    when nobody has run it for `patience` seconds.

    A call that began in a bundle finds its files there to its end, and an agent may run in one for months. How long a
    bundle has not been named is the age of a file beside it.
    """
    folder = target / bundles
    named = {launcher.bundle.name for launcher in launchers(target, bundles)}
    running = programs()
    for place in sorted(folder.iterdir()):
        is_stage = place.name.startswith(STAGE)
        if not is_stage and not (place / "launcher").is_file():
            continue
        since = place if is_stage else folder / f"{UNUSED}{place.name}"
        if place.name in named:
            since.unlink(missing_ok=True)
            continue
        if not is_stage and not since.exists():
            since.touch()
        inside = f"{place.resolve()}/"
        if time.time() - since.stat().st_mtime < patience or any(one.startswith(inside) for _, one in running):
            continue
        gone = place if is_stage else folder / f"{STAGE}{place.name}"  # at once: half a bundle is none
        place.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        if not is_stage:
            since.unlink()


def programs() -> list[tuple[str, str]]:
    """The PIDs and paths of the programs that run. Those in other PID namespaces cannot be seen, which is what time is for."""
    found = []
    for program in Path("/proc").glob("[0-9]*/exe"):
        with contextlib.suppress(OSError):
            found.append((program.parent.name, os.readlink(program)))
    return found


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One installation in a folder at a time."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def try_out_command(command: Path) -> None:
    """Have the command explain its agent, which needs its bundle."""
    ran = NodeRoot().run([command, "agent", "--help"])
    if ran.returncode != 0:
        said = (ran.stdout + ran.stderr).decode("utf-8", "replace").strip()
        raise InstallError(f"{command.name} does not run from there (exit code {ran.returncode}): {said}")


def try_out_plugin(plugin: Path, root: NodeRoot | None = None) -> None:
    """Ask a plugin for its versions in the node's root, with nothing on stdin: what runtimes send is answered by the
    launcher alone (launcher/agent.c), and this needs the bundle."""
    ran = (root or NodeRoot()).run([plugin], {"CNI_COMMAND": "VERSION"})
    try:
        versions = json.loads(ran.stdout)["supportedVersions"]
    except (ValueError, KeyError, TypeError):
        versions = []
    if ran.returncode != 0 or "1.1.0" not in versions:
        said = (ran.stdout + ran.stderr).decode("utf-8", "replace").strip()
        raise InstallError(f"{plugin.name} does not run from there (exit code {ran.returncode}): {said}")


def put(new: Path, place: Path) -> None:
    """Put the bundle `new` at `place`. What is there stays when it is the same, and is else then at `new`."""
    if same_files(new, place):
        shutil.rmtree(new)
    else:
        exchange(new, place)


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders have the same content."""
    listed = [
        {file.relative_to(folder): file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir()}
        for folder in (one, other)
    ]
    return listed[0].keys() == listed[1].keys() and all(
        _same_file(file, listed[1][at]) for at, file in listed[0].items()
    )


def _same_file(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return one.stat().st_mode == other.stat().st_mode and one.read_bytes() == other.read_bytes()


def exchange(new: Path, place: Path) -> None:
    """Put `new` at `place` with no moment at which nothing is there; what was there is then at `new`."""
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        new.rename(place)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(place), RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), str(place))
    # A file system that cannot exchange (NFS): two renames, with a moment between them.
    old = new.with_name(f"{new.name}.old")
    place.rename(old)
    new.rename(place)


def sync(folder: Path, *, recursive: bool = True) -> None:
    """Write a folder's entries, and with `recursive` everything in it, to the disk."""
    paths = [folder, *(folder.rglob("*") if recursive else ())]
    for path in paths:
        if not path.is_symlink():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


if __name__ == "__main__":
    main()
