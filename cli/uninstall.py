"""Take cnikit off a node: what `make install agent` has put there, and nothing of anybody else.

    python -m cli.uninstall --plugins /opt/cni/bin --command /usr/local/bin --units /etc/systemd/system
    ... --root DIR      below DIR, where a package or an image is made
    ... --force         although pods are attached, whose DEL nobody can make then

Launchers of our plugins and command go, under whatever names; they are known by the stamps in them. Bundles go that no
launcher names any more and nobody runs. So do the accepts in iptables (`forwardAccept`). What else pods, leases and networks have left on the node stays:
docs/uninstall.md.
Calling it again is success.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cli.install import (
    COMMAND_BUNDLES,
    REPLACED,
    UNIT_SOURCES,
    UNITS,
    alone,
    below,
    launchers,
    named_folder,
    programs,
    sweep,
)
from cli.node import pods, settings
from cli.node.record import Record
from cli.node.root import NodeError, NodeRoot
from cli.node.running_agent import listens, socket_of
from cli.registry import PLUGINS
from cni.errors import CniError
from cni.kernel.background import fork_background
from cni.kernel.linux import Kernel
from cni.kernel.sysctl import SYSCTL_DIR
from cni.start import BUNDLES
from plugins import forward_accept

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class Places(NamedTuple):
    """Where things are on the node, below whatever root."""

    plugins: Path
    command: Path
    units: Path
    records: Path
    socket: Path


class Outcome(NamedTuple):
    """What was removed, what a person has to know, and what could not be done."""

    removed: list[str]
    notes: list[str]
    faults: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cli.uninstall", description="Take cnikit off this node.")
    parser.add_argument("--plugins", type=named_folder, metavar="DIR", required=True, help="where the plugins are")
    parser.add_argument("--command", type=named_folder, metavar="DIR", required=True, help="where cnikit is")
    parser.add_argument("--units", type=named_folder, metavar="DIR", required=True, help="where the systemd units are")
    parser.add_argument("--root", default="", metavar="DIR", help="all of this below DIR, not on the running system")
    parser.add_argument("--force", action="store_true", help="also while pods are attached")
    arguments = parser.parse_args()
    socket = socket_of(os.environ)
    named = (arguments.plugins, arguments.command, arguments.units, pods.RECORDS, socket)
    places = Places(*(below(arguments.root, place) for place in named))
    try:
        found = (
            {f"records in {places.records}": pods.by_record(places.records, NodeRoot())}
            if arguments.root
            else pods.attached(
                places.records, places.plugins, NodeRoot(), lambda line: print(f"note: {line}", file=sys.stderr)
            )
        )
        if not arguments.force:
            pods.refuse(found, "make uninstall FORCE=1")
    except (NodeError, OSError) as error:
        sys.exit(f"not uninstalled: {error}")
    outcome = uninstall(places)
    if not arguments.root:
        withdraw(outcome)
        record = Record()
        put_settings_back(outcome, record, SYSCTL_DIR)
        record.forget_before()
    print("\n".join(f"removed {item}" for item in outcome.removed) or "nothing of cnikit is installed")
    for line in outcome.notes:
        print(f"note: {line}", file=sys.stderr)
    if outcome.faults:
        sys.exit("\n".join(f"not removed: {line}" for line in outcome.faults))


def uninstall(places: Places) -> Outcome:
    """Remove everything that is ours, and go on whatever fails."""
    outcome = Outcome([], [], [])
    removal = Removal(outcome)
    removal.launchers(places.plugins, BUNDLES, PLUGINS)
    removal.launchers(places.command, COMMAND_BUNDLES, ("",))
    removal.units(places.units)
    if listens(places.socket):
        outcome.notes.append(
            f"the agent still runs, or systemd holds its socket ({places.socket}): "
            "systemctl stop cnikit-agent.socket cnikit-agent.service"
        )
    return outcome


def withdraw(outcome: Outcome) -> None:
    """Take what networks have put among the rules of iptables on this node."""
    try:
        with Kernel(time.monotonic, fork_background).own() as host:
            view = forward_accept.View(host, forward_accept.Programs(os.environ))
            outcome.removed.extend(forward_accept.remove_all(view))
            outcome.notes.extend(f"{text}; what forwardAccept has put into it stays" for text in view.unread)
    except CniError as error:
        outcome.faults.append(f"accepts in iptables: {error.msg}")


def put_settings_back(outcome: Outcome, record: Record, sysctl_dir: str) -> None:
    """Give the kernel's settings their values of before the installation, where they hold ours."""
    try:
        done, stays = settings.put_back(record.before.get("settings", {}), sysctl_dir)
    except OSError as error:
        outcome.faults.append(f"{error.filename}: {error.strerror}; --sysctl-dir names another mount of /proc/sys")
    else:
        outcome.removed.extend(done)
        outcome.notes.extend(stays)


class Removal:
    """Removes things and writes down what became of each."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def launchers(self, folder: Path, bundles: str, plugins: Collection[str]) -> None:
        """Remove the launchers of these plugins, and the bundles that nobody names then."""
        place = folder / bundles
        try:
            with alone(place) if place.is_dir() else contextlib.nullcontext():
                found = launchers(folder, bundles)
                ours = [launcher.path for launcher in found if launcher.plugin in plugins]
                self._files([file for file in ours if not self._put_back(file, place / f"{REPLACED}{file.name}")])
                of_launchers = {launcher.path.name for launcher in found}
                for kept in sorted(place.glob(f"{REPLACED}*")):
                    name = kept.name.removeprefix(REPLACED)
                    if not os.path.lexists(folder / name):
                        self._put_back(folder / name, kept)  # somebody has removed ours
                    elif name not in of_launchers:
                        kept.unlink()  # somebody has put another file in the place of ours
                if place.is_dir():
                    self._bundles(folder, bundles)
        except OSError as error:
            self._fault(error, folder)

    def _put_back(self, file: Path, kept: Path) -> bool:
        """Put what was there before at the place of a launcher of ours; whether there was something."""
        if not os.path.lexists(kept):
            return False
        try:
            kept.replace(file)
        except OSError as error:
            self._fault(error, file)
            return True  # ours stays: a runtime may need a plugin of this name
        self._outcome.notes.append(f"{file} is again what was there before the installation")
        return True

    def _bundles(self, folder: Path, bundles: str) -> None:
        place = folder / bundles
        before = builds(place)
        sweep(folder, bundles, patience=0)
        left = builds(place)
        self._outcome.removed.extend(str(place / name) for name in before if name not in left)
        named = {launcher.bundle.name for launcher in launchers(folder, bundles)}
        for name in left:
            users = ", ".join(users_of(place / name))
            if name in named:
                self._outcome.notes.append(f"{place / name} stays: other launchers in {folder} name it")
            elif users:
                self._outcome.notes.append(
                    f"{place / name} stays while it runs (process {users}); then uninstall again"
                )
        if not os.listdir(place):
            place.rmdir()

    def units(self, folder: Path) -> None:
        """Remove the agent's units, and the links in this folder by which `systemctl enable` named them."""
        try:
            ours = [folder / name for name in UNITS if is_ours(folder / name)]
            for unit in ours:
                self._files([link for link in folder.glob(f"*.wants/{unit.name}") if link.is_symlink()])
                if is_edited(unit):
                    kept = unused(unit.with_name(f"{unit.name}.kept"))
                    unit.replace(kept)
                    self._outcome.notes.append(f"{unit} was edited: it is now {kept}, where systemd does not read it")
                else:
                    self._files([unit])
        except OSError as error:
            self._fault(error, folder)
        else:
            if ours:
                self._outcome.notes.append("systemd still knows the units: systemctl daemon-reload")

    def _files(self, files: Iterable[Path]) -> None:
        for file in files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                self._fault(error, file)
            else:
                self._outcome.removed.append(str(file))

    def _fault(self, error: OSError, place: Path) -> None:
        self._outcome.faults.append(f"{error.filename or place}: {error.strerror}")


def builds(place: Path) -> list[str]:
    """The bundles in a folder of bundles."""
    return sorted(entry.parent.name for entry in place.glob("*/launcher") if not entry.parent.name.startswith("."))


def users_of(bundle: Path) -> list[str]:
    """The PIDs of what runs out of a bundle."""
    return [pid for pid, program in programs() if program.startswith(f"{bundle.resolve()}/")]


def unused(path: Path) -> Path:
    """The path, with a number after it (`NAME.2`) where that is taken."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(one for one in itertools.chain([path], numbered) if not os.path.lexists(one))


def is_ours(unit: Path) -> bool:
    return unit.is_file() and "cnikit agent" in unit.read_text(errors="replace")


def is_edited(unit: Path) -> bool:
    """Whether a unit of ours differs from what an installation writes, but for the place of the command."""
    found = unit.read_text(errors="replace").splitlines()
    wanted = (UNIT_SOURCES / unit.name).read_text().splitlines()
    return len(found) != len(wanted) or not all(map(_same_line, found, wanted))


def _same_line(found: str, wanted: str) -> bool:
    call = "ExecStart="
    moved = wanted.startswith(call) and found.startswith(call) and found.endswith(("/cnikit agent", '/cnikit" agent'))
    return moved or found == wanted


if __name__ == "__main__":
    main()
