"""Put built executables into the directories of a running node.

    python -m cli.install dist/bin /opt/cni/bin                the plugins
    python -m cli.install --command dist /usr/local/bin        the cnikit command, which is the agent too

A plugin may be called at any moment, also while this runs. So nothing that is in use is ever written to or
missing: everything is copied beside its place, synced, tried (VERSION), and only then renamed into it, the
bundle first. What was replaced stays for a while, for the calls that began in it (`sweep`). Files of other makers and
other versions of ours stay.

With the plugins br_netfilter is switched on: without it, what two pods say to each other over one bridge passes no rule
of services and policy.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cni import __version__
from cni.kernel import sysctl

if TYPE_CHECKING:
    from collections.abc import Callable

BUNDLES = ".cnikit"
COMMAND_BUNDLES = ".cnikit-command"
BRIDGE_SETTINGS = Path("/proc/sys/net/bridge")
LOAD_BR_NETFILTER = ("modprobe", "br_netfilter")
RENAME_EXCHANGE = 2
AT_FDCWD = -100
STAGE = ".install-"
CALLS_END_IN = 3600.0  # seconds; the runtimes give up sooner


class InstallError(Exception):
    """The installation was refused or failed; the directory is as it was."""


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--command"]
    if len(arguments) != 2 or not arguments[1]:
        usage = "usage: python -m cli.install [--command] FROM TO"
        sys.exit(f"{usage}, for example: python -m cli.install dist/bin /opt/cni/bin")
    source, target = map(Path, arguments)
    try:
        if len(arguments) < len(sys.argv) - 1:
            names = install(source, target, COMMAND_BUNDLES, try_out_command)
        else:
            names = install(source, target, BUNDLES, try_out_plugin)
    except (InstallError, OSError) as error:
        sys.exit(f"not installed: {error}")
    print(f"installed {', '.join(names)} (cnikit {__version__}) in {target}")
    fault = filter_on_bridges() if "bridge" in names else ""
    if fault:
        print(f"warning: {fault}", file=sys.stderr)


def filter_on_bridges(settings: Path = BRIDGE_SETTINGS, load: tuple[str, ...] = LOAD_BR_NETFILTER) -> str:
    """Load br_netfilter and set it for both families; why that was not possible, empty when it was."""
    need = "without it rules of services and policy do not see what pods on one bridge send each other"
    if not settings.is_dir():
        try:
            subprocess.run(load, capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            pass  # what is missing then is told below
    if not settings.is_dir():
        return f"expected br_netfilter in this kernel, found no {settings}; {need}: try {' '.join(load)}"
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
        try:
            sysctl.put(str(settings / name), "1")
        except OSError as error:
            return f"cannot set net.bridge.{name} to 1: {error.strerror}; {need}"
    return ""


def install(source: Path, target: Path, bundles: str, try_out: Callable[[Path], None]) -> list[str]:
    """Install everything of `source` that starts a bundle of the folder `bundles`, after `try_out` of each; returns
    the names. InstallError or OSError when that failed."""
    bundle = source / bundles / __version__
    names = launchers(source, bundle)
    if not names:
        raise InstallError(
            f"{source}: expected executables and the folder {bundles}/{__version__}; call make dist first"
        )
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (target / name).is_dir():
            raise InstallError(f"{target / name} is a folder; remove it")
    (target / bundles).mkdir(exist_ok=True)
    sweep(target / bundles)
    stage = Path(tempfile.mkdtemp(prefix=STAGE, dir=target / bundles))
    try:
        shutil.copytree(bundle, stage / bundles / __version__, symlinks=True)
        for name in names:
            shutil.copy2(source / name, stage / name)
        sync(stage)
        for name in names:
            try_out(stage / name)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    exchange(stage / bundles / __version__, target / bundles / __version__)
    for name in names:
        (stage / name).replace(target / name)
    if not any((stage / bundles).iterdir()):
        shutil.rmtree(stage)
    sync(target / bundles, recursive=False)
    sync(target, recursive=False)
    return names


def sweep(folder: Path) -> None:
    """Remove what earlier installations have replaced, or left behind when they were killed, and nobody runs any more.

    A program finds its files by the path that it was started from, and that path follows it when its bundle is replaced.
    So a bundle that was replaced is kept for longer than any call takes; an agent may run in it for months.
    """
    # Programs in other PID namespaces cannot be seen here, which is what the time is for.
    running = []
    for program in Path("/proc").glob("[0-9]*/exe"):
        with contextlib.suppress(OSError):
            running.append(os.readlink(program))
    for stage in folder.glob(f"{STAGE}*"):
        old = time.time() - stage.stat().st_mtime > CALLS_END_IN
        if old and not any(program.startswith(f"{stage}/") for program in running):
            shutil.rmtree(stage, ignore_errors=True)


def launchers(source: Path, bundle: Path) -> list[str]:
    """The names in `source` that are copies of the bundle's launcher."""
    try:
        content = (bundle / "launcher").read_bytes()
    except OSError:
        return []
    files = [file for file in sorted(source.iterdir()) if file.is_file() and file.stat().st_size == len(content)]
    return [file.name for file in files if file.read_bytes() == content]


def try_out_command(command: Path) -> None:
    """Have the command explain its agent, which needs its bundle."""
    ran = subprocess.run([command, "agent", "--help"], capture_output=True, timeout=60, check=False)
    if ran.returncode != 0:
        said = (ran.stdout + ran.stderr).decode("utf-8", "replace").strip()
        raise InstallError(f"{command.name} does not run from there (exit code {ran.returncode}): {said}")


def try_out_plugin(plugin: Path) -> None:
    """Ask a plugin for its versions, in a form that needs its bundle (launcher/agent.c)."""
    ran = subprocess.run(
        [plugin], env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    try:
        versions = json.loads(ran.stdout)["supportedVersions"]
    except (ValueError, KeyError, TypeError):
        versions = []
    if ran.returncode != 0 or "1.1.0" not in versions:
        said = (ran.stdout + ran.stderr).decode("utf-8", "replace").strip()
        raise InstallError(f"{plugin.name} does not run from there (exit code {ran.returncode}): {said}")


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
