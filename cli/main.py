"""`cnikit`: attach, check and detach by hand, as cnitool does; lint, versions, and the demo.

The environment variables and the container ID are cnitool's, so that each can take over what the other
made: CNI_PATH, NETCONFPATH, CAP_ARGS, CNI_ARGS, CNI_IFNAME. Errors are one line on stderr and exit code 1.
Modules that only one command needs are imported in that command: `cnikit add` should not pay for tables.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cli.agent import agent
from cli.lab import lab
from cli.node.commands import install, uninstall
from cli.registry import bundled_plugins
from cli.top import top
from cni import __version__, jsonio, netlist
from cni.cache import Attachment
from cni.config import Reader, items, mapping, text
from cni.errors import INVALID_ENVIRONMENT, CniError
from cni.names import digest
from cni.netlist import NetworkList, NotFoundError
from cni.runtime import Runtime
from cni.start import LARGEST_LAUNCHER, SYSTEM_BUNDLES, Stamp

if TYPE_CHECKING:
    from collections.abc import Mapping


class Command(click.Group):
    """Turns an error of any command into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CniError as error:
            fail(str(error))
        except BrokenPipeError:
            raise  # click knows what to do: `cnikit ... | head` has seen enough
        except OSError as error:
            fail(f"{error.filename or ctx.command_path}: {error.strerror}")


def fail(line: str) -> NoReturn:
    """Report what is wrong on stderr and exit with 1."""
    say(f"error: {line}")
    sys.exit(1)


def say(line: str) -> None:
    """One line for people, beside the result on stdout."""
    # A plugin's message may have line ends and worse; here it is one line.
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(line.split("\n")).rstrip())
    click.echo(f"cnikit: {shown}", err=True)


@click.group(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cnikit", message="%(prog)s %(version)s")
def cli() -> None:
    """Run CNI networks by hand.

    \b
    Environment:
      NETCONFPATH  folder with the network lists (/etc/cni/net.d)
      CNI_PATH     folders with the plugins, separated by ':'
                   (the folder bin beside cnikit, then /opt/cni/bin)
      CNI_IFNAME   the interface's name in the namespace (eth0)
      CNI_ARGS     KEY=VALUE;KEY=VALUE, given to every plugin
      CAP_ARGS     JSON object, given to plugins that declare the capability
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would lose the exit statuses of what we start


cli.add_command(agent)
cli.add_command(lab)
cli.add_command(top)
cli.add_command(install)
cli.add_command(uninstall)

NETWORK = click.argument("network")
NETNS = click.argument("netns", type=click.Path())


@cli.command()
@NETWORK
@NETNS
def add(network: str, netns: str) -> None:
    """Attach the namespace NETNS to NETWORK and print the result."""
    world = World(os.environ)
    show(world.runtime.add(world.network(network), world.attachment(netns)))


@cli.command(name="del")
@NETWORK
@NETNS
def delete(network: str, netns: str) -> None:
    """Detach the namespace NETNS from NETWORK. Success when it is not attached."""
    world = World(os.environ)
    attachment = world.attachment(netns)
    world.runtime.delete(world.network_or_cached(network, attachment), attachment)


@cli.command()
@NETWORK
@NETNS
def check(network: str, netns: str) -> None:
    """Check that NETNS is attached to NETWORK as ADD left it."""
    world = World(os.environ)
    found = world.network(network)
    world.runtime.check(found, world.attachment(netns))
    if found.disable_check:
        say(f"network {network} has disableCheck: no plugin was asked")


@cli.command()
@NETWORK
@click.argument("netns", required=False, type=click.Path())
def status(network: str, netns: str | None) -> None:  # noqa: ARG001 - cnitool asks for one too
    """Check whether NETWORK can take another pod now. NETNS is ignored."""
    world = World(os.environ)
    found = world.network(network)
    if not world.runtime.status(found):
        say(f"network {network} has cniVersion {found.version}, and STATUS came with 1.1.0: no plugin was asked")


@cli.command()
@NETWORK
@click.option(
    "--keep",
    type=click.File("rb"),
    help='JSON list of the live attachments: [{"containerID": "...", "ifname": "eth0"}]; - reads stdin.',
)
def gc(network: str, keep: Any) -> None:
    """Delete the attachments of NETWORK that are not in --keep.

    Without --keep it deletes nothing, lists what it would delete, and exits with 1.
    """
    world = World(os.environ)
    found = world.network(network)
    if found.disable_gc:
        say(f"network {network} has disableGC: nothing is collected")
        return
    if keep is None:
        _list_attachments(world, found)
        fail(
            "gc needs --keep: without a list of the attachments that live it would delete all of the above, "
            "running pods included; pass --keep FILE (a file with [] deletes them all)"
        )
    world.runtime.gc(found, kept(keep.name, keep.read()))


@cli.command()
def version() -> None:
    """Show the version, and which CNI versions the plugins on CNI_PATH support.

    Exit code 1 when one of cnikit's own does not answer, for example because its bundle is missing.
    """
    from rich.console import Console
    from rich.table import Table

    world = World(os.environ)
    console = Console(soft_wrap=True)
    console.print(f"cnikit {__version__}")
    table = Table("plugin", "spec versions")
    table.add_column("file", overflow="fold")  # whole also where the terminal, or the lack of one, is narrow
    broken = []
    for name, file in plugins_on(world.path):
        try:
            supported = " ".join(world.runtime.versions(name))
        except CniError as error:
            supported = f"no answer to VERSION: {error.msg}"
            if is_launcher(file):
                broken.append(name)
        table.add_row(name, supported, file)
    if table.row_count:
        console.print(table)
    else:
        say(f"no plugins in {':'.join(world.path)}: set CNI_PATH")
    if broken:
        fail(f"{', '.join(broken)}: expected an answer to VERSION; install cnikit there again (make install)")


@cli.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True))
def lint(files: tuple[str, ...]) -> None:
    """Check network lists and explain how to fix errors.

    FILES may be folders; the default is the folder NETCONFPATH. The exit code is 1 if there is an error, and 0 if there
    are only warnings.
    """
    from cli.lint import lint_paths
    from cli.lint_folder import places

    world = World(os.environ)
    findings, checked = lint_paths(files or (world.folder,), world.path, places())
    for finding in findings:
        click.echo(finding.text())
    errors = sum(finding.error for finding in findings)
    counts = ((checked, "file"), (errors, "error"), (len(findings) - errors, "warning"))
    say("checked {}: {}, {}".format(*(f"{count} {what}{'' if count == 1 else 's'}" for count, what in counts)))
    sys.exit(1 if errors else 0)


@cli.command()
@click.option("--bin-dir", type=click.Path(exists=True, file_okay=False), help="The folder with the plugins to show.")
def demo(bin_dir: str | None) -> None:
    """Show two pods from ADD to DEL, in namespaces of its own.

    It leaves nothing on the machine, and needs root.
    """
    from cli.demo import run_demo

    sys.exit(run_demo(bin_dir or bundled_plugins()))


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def build(arguments: tuple[str, ...]) -> None:
    """Build the plugins' executables, yours among them (--help has the options)."""
    if getattr(sys, "frozen", False):
        fail(
            "this cnikit is itself a built executable and cannot build others: pip install 'cnikit[build]' has one that can"
        )
    from cli.bundle import main

    main(arguments, "cnikit build")


class World:
    """What the environment says: where networks and plugins are, and the parameters of the attachment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.folder = environ.get("NETCONFPATH") or netlist.DEFAULT_FOLDER
        self.path = plugin_path(environ)
        self.runtime = Runtime(self.path, dict(environ), time.monotonic, say)

    def network(self, name: str) -> NetworkList:
        """The network list of that name."""
        return netlist.load(self.folder, name, say)

    def network_or_cached(self, name: str, attachment: Attachment) -> NetworkList:
        """For DEL, the cached list serves when the administrator has removed the file already."""
        try:
            return self.network(name)
        except NotFoundError:
            entry = self.runtime.cache.read(name, attachment)
            if entry is None or entry.config is None:
                raise
            say(f"{self.folder} has no network {name!r} any more: using the configuration that ADD had")
            found = NetworkList(entry.config)
            found.append(netlist.folder_plugins(self.folder, name))
            return found

    def attachment(self, netns: str) -> Attachment:
        """The attachment of a namespace, with cnitool's container ID."""
        path = os.path.abspath(netns)
        return Attachment(
            f"cnitool-{digest(path)[:10].hex()}",
            self._environ.get("CNI_IFNAME", "eth0"),
            path,
            cni_args(self._environ.get("CNI_ARGS", "")),
            capability_args(self._environ.get("CAP_ARGS", "")),
        )


def cni_args(found: str) -> list[tuple[str, str]]:
    """CNI_ARGS as pairs; CniError 4 for one without key or value."""
    pairs = []
    for pair in found.split(";") if found else []:
        key, _, value = pair.partition("=")
        if not key or not value or "=" in value:
            raise CniError(INVALID_ENVIRONMENT, f"invalid CNI_ARGS pair {pair!r}: expected KEY=VALUE")
        pairs.append((key, value))
    return pairs


def capability_args(found: str) -> dict[str, Any]:
    """CAP_ARGS as an object; CniError when it is none."""
    if not found:
        return {}
    try:
        value = jsonio.decode(found)
    except CniError as error:
        raise CniError(error.code, f"CAP_ARGS: {error.msg}", 'expected a JSON object such as {"mac": "..."}') from None
    return {} if value is None else mapping("CAP_ARGS", value)


def kept(name: str, data: bytes) -> list[tuple[str, str]]:
    """The --keep list as (container ID, interface) pairs."""
    try:
        readers = [Reader(mapping(path, entry), path) for path, entry in items("", jsonio.decode(data))]
        return [
            (text(item.at("containerID"), item.raw("containerID")), text(item.at("ifname"), item.raw("ifname")))
            for item in readers
        ]
    except CniError as error:
        hint = '[{"containerID": "...", "ifname": "eth0"}]'
        raise CniError(error.code, f"--keep {name}: {error.msg}", f"expected a list such as {hint}") from None


def show(result: dict[str, Any]) -> None:
    """A result as indented JSON on stdout."""
    import json

    click.echo(json.dumps(result, indent=4))


def plugin_path(environ: Mapping[str, str]) -> list[str]:
    """The folders of CNI_PATH; without it the plugins of this build, then the usual place."""
    given = [folder for folder in environ.get("CNI_PATH", "").split(":") if folder]
    return given or [folder for folder in (bundled_plugins(), "/opt/cni/bin") if folder]


def plugins_on(path: list[str]) -> list[tuple[str, str]]:
    """Name and file of each executable on the path; as with $PATH, the first of a name counts."""
    found: dict[str, str] = {}
    for folder in path:
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            file = os.path.join(folder, name)
            if os.path.isfile(file) and os.access(file, os.X_OK):
                found.setdefault(name, file)
    return sorted(found.items())


def is_launcher(file: str) -> bool:
    """Whether a file is a launcher of cnikit, of whatever build: the first ones have no stamp, but they too name the
    folder where they look for their bundle last."""
    with open(file, "rb") as opened:
        content = opened.read(LARGEST_LAUNCHER + 1)
    return len(content) <= LARGEST_LAUNCHER and (Stamp.read(content) is not None or SYSTEM_BUNDLES.encode() in content)


def _list_attachments(world: World, network: NetworkList) -> None:
    from rich.console import Console
    from rich.table import Table

    from cni.lock import Locks
    from cni.record import Records

    rows = {(item.container_id, item.ifname): [item.netns, "cache"] for item in world.runtime.stale(network, ())}
    for record in Records("/run/cnikit", network.name, Locks(time.monotonic).take, say).all():
        row = rows.setdefault((record["containerID"], record["ifname"]), ["", ""])
        row[1] = f"{row[1]}, record" if row[1] else "record"
    table = Table("container ID", "interface", "namespace", "known from")
    for (container_id, ifname), (netns, source) in sorted(rows.items()):
        table.add_row(container_id, ifname, netns, source)
    console = Console(soft_wrap=True)
    console.print(table if rows else f"network {network.name} has no attachments that we know of")


if __name__ == "__main__":
    cli()
