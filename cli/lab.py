"""`cnikit lab`: a cluster of network namespaces on one machine, to look at and to break."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from errno import ENOSPC
from typing import TYPE_CHECKING, Any

import click

from cli.lab_plan import BACKENDS, MOST_NODES, MOST_PODS, SOURCES, UPLINK, LabError, Plan
from cli.registry import bundled_plugins

if TYPE_CHECKING:
    from cli.lab_cluster import Lab
    from cli.lab_places import LabNode

# Where programs of a lab may lie, beside the caller's PATH.
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "allow_interspersed_args": False}

NAME = click.option("--name", default="lab", show_default=True, metavar="NAME", help="The lab's name.")


class Group(click.Group):
    """Turns an error of any command into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        from cli.sandbox import SandboxError

        try:
            return super().invoke(ctx)
        except (LabError, SandboxError) as error:
            raise click.ClickException(str(error)) from None
        except PermissionError as error:
            if os.geteuid() == 0:
                raise
            raise click.ClickException(f"a lab needs root: run it with sudo ({error})") from None
        except OSError as error:
            if error.errno != ENOSPC:
                raise
            raise click.ClickException(
                f"labs are in /run, and it is full ({error}): make room, see `df /run`"
            ) from None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's way
        """In the order of this file, which is that of use."""
        return list(self.commands)


@click.group(cls=Group)
def lab() -> None:
    """Build a cluster of network namespaces, look at it, and break it.

    Its nodes have no route to this machine's network. Everything is gone after `lab down`.
    """


@lab.command()
@NAME
@click.option("--nodes", type=click.IntRange(1, MOST_NODES), default=3, show_default=True, help="How many nodes.")
@click.option("--pods", type=click.IntRange(0, MOST_PODS), default=2, show_default=True, help="How many on each node.")
@click.option(
    "--backend", type=click.Choice(BACKENDS), default="vxlan", show_default=True, help="How nodes are joined."
)
@click.option(
    "--source",
    type=click.Choice(SOURCES),
    default="static",
    show_default=True,
    help="Where the agents learn the nodes: from a file, or from an etcd in the lab.",
)
@click.option("--ipv6", is_flag=True, help="IPv6 only, the underlay too.")
@click.option("--dual", is_flag=True, help="IPv4 and IPv6.")
@click.option("--bin-dir", type=click.Path(exists=True, file_okay=False), help="The folder with the plugins.")
def up(
    name: str,
    nodes: int,
    pods: int,
    backend: str,
    source: str,
    ipv6: bool,  # noqa: FBT001 - click's way
    dual: bool,  # noqa: FBT001
    bin_dir: str | None,
) -> None:
    """Build a lab: nodes with agents, and pods that reach each other."""
    from cli.lab_cluster import Lab, option

    if ipv6 and dual:
        raise LabError("expected --ipv6 or --dual, found both: --ipv6 has no IPv4")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is there by then is taken away again
    families = (16,) if ipv6 else (4, 16) if dual else (4,)
    start = time.monotonic()
    plugins = os.path.realpath(bin_dir or bundled_plugins())
    _go_where_labs_are()
    made = Lab.up(Plan(name, nodes, pods, backend, source, families), plugins)
    took = time.monotonic() - start
    _show(made)
    click.echo(f"The lab named {name} is up after {took:.1f} s, and every pod reaches every other one. Try:")
    node, place, which = made.nodes[-1].name, (made.pods or made.nodes)[0].name, option(name)
    for line in (
        f"ping{which}",
        f"exec{which} {place} ip addr",
        f"tcpdump{which} {node}",
        f"kill{which} {node}",
        f"start{which} {node}",
        f"down{which}",
    ):
        click.echo(f"    cnikit lab {line}")


@lab.command(short_help="Show nodes, agents, pods, partitions.")
@NAME
def status(name: str) -> None:
    """Show nodes, agents, pods and partitions.

    When there is no lab of that name, those that there are.
    """
    _show(_find(name))


@lab.command(short_help="Ping from every pod to every other one.")
@NAME
@click.option(
    "--size",
    type=click.IntRange(0, 65507),
    default=56,
    show_default=True,
    help="Bytes of data; beyond the MTU packets are fragmented.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.05),
    default=2.0,
    show_default=True,
    help="Seconds to wait for the last answers.",
)
@click.argument("places", nargs=-1, metavar="[NODE|POD]...")
def ping(name: str, size: int, timeout: float, places: tuple[str, ...]) -> None:
    """Ping from every pod to every other one; exit code 1 when any pair fails.

    With nodes or pods named, only among those.
    """
    from rich.console import Console

    from cli.lab_ping import tables

    found = _find(name)
    targets, answers = found.ping(size, timeout, places)
    if not answers and (places or len(found.pods) > 1):
        count = f"{len(targets)} pod{'' if len(targets) == 1 else 's'}"
        raise LabError(f"expected two pods at least, to ping each other, found {count}: name more nodes or pods")
    console = Console()
    for one in tables(targets, answers, console.width if console.is_terminal else None):
        _print(one)
    lost = [one for one in answers if one.seconds is None]
    click.echo(f"{len(answers) - len(lost)} of {len(answers)} pings of {size} bytes answered")
    for node in found.nodes:
        if node.killed:
            click.echo(f"{node.name} was killed")
    _show_cuts(found)
    if lost:
        sys.exit(1)


@lab.command(context_settings=_PASSED_ON)
@NAME
@click.argument("node")
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[TCPDUMP'S ARGUMENTS]...")
def tcpdump(name: str, node: str, args: tuple[str, ...]) -> None:
    """Run tcpdump on the underlay link of NODE.

    What is inside of VXLAN packets is shown too: `tcpdump node1 udp port 8472`.
    """
    found = _find(name)
    target = found.node(node)
    if target.killed:
        raise LabError(f"{node} was killed, and its link with it: choose another node, or start it again")
    program = shutil.which("tcpdump", path=_search_path())
    if program is None:
        raise LabError("expected the program tcpdump, found none: apt-get install tcpdump")
    from cli import sandbox

    sandbox.enter(target.netns)  # and not its files: what -w writes lands where the caller is
    # tcpdump knows VXLAN by another port.
    inside = ["-T", "vxlan"] if found.state.plan.backend == "vxlan" else []
    os.execv(program, ["tcpdump", "-n", "-i", UPLINK, *inside, *args])


@lab.command(name="exec", context_settings=_PASSED_ON)
@NAME
@click.argument("place", metavar="NODE|POD")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND]...")
def execute(name: str, place: str, command: tuple[str, ...]) -> None:
    """Run COMMAND (a shell) on a node, or in a pod's network."""
    found = _find(name)
    target = found.place(place)
    bin_dir = found.state.bin_dir
    path = f"{_search_path()}:{os.path.dirname(bin_dir)}"  # `cnikit` lies beside its plugins' folder
    argv = command or (os.environ.get("SHELL") or "/bin/sh",)
    if not command:
        click.echo(f"A shell on {place}; `exit` leaves it.", err=True)
    target.enter()
    try:
        os.execvpe(argv[0], argv, {**os.environ, "PATH": path, "CNI_PATH": bin_dir})
    except OSError as error:
        raise LabError(f"exec {argv[0]}: {error.strerror}") from None


@lab.command(short_help="Remove a node without warning.")
@NAME
@click.argument("node")
def kill(name: str, node: str) -> None:
    """Remove a node without warning: its agent, whatever runs on it, and its link."""
    from cli.lab_cluster import option

    found = _find(name)
    before = found.node(node).killed
    found.kill(node)
    if before:
        click.echo(f"{node} was killed before")
        return
    how = "etcd forgets it when its lease ends" if found.state.plan.source == "etcd" else "it is off the list of nodes"
    click.echo(f"{node} is gone: nothing runs on it, its link is cut, and {how}.")
    click.echo(f"`cnikit lab start{option(name)} {node}` brings it back.")


@lab.command(short_help="Bring back a node that was killed.")
@NAME
@click.argument("node")
def start(name: str, node: str) -> None:
    """Bring back a node that was killed, with new pods, or the agent of a node if only that has ended."""
    found = _find(name)
    found.start(node)
    _show(found)


@lab.command(short_help="Cut nodes off from each other, or --heal.")
@NAME
@click.option("--heal", is_flag=True, help="Undo it: between two nodes, for one node, or everywhere.")
@click.argument("nodes", nargs=-1, metavar="NODE [NODE]")
def partition(name: str, heal: bool, nodes: tuple[str, ...]) -> None:  # noqa: FBT001 - click's way
    """Drop all traffic between two nodes on the underlay.

    With one NODE, whatever it and all others send each other. With --source etcd, `etcd` is one of the others.
    """
    if len(nodes) > 2 or not (nodes or heal):
        raise click.UsageError(f"expected one node or two, found {len(nodes)}")
    found = _find(name)
    pairs = found.heal(*nodes) if heal else found.partition(*nodes)
    for one, two in pairs:
        click.echo(f"{one} and {two} {'reach each other again' if heal else 'are cut from each other'}")
    if not pairs:
        click.echo("there was nothing to heal" if heal else f"{nodes[0]} is the only node: there is nothing to cut")


@lab.command()
@NAME
def down(name: str) -> None:
    """Remove a lab, including one that is only half built."""
    from cli.lab_cluster import remove

    Plan(name)  # a name that no lab can have is refused
    _go_where_labs_are()
    click.echo(f"The lab named {name} is gone" if remove(name) else f"There is no lab named {name}")


def _find(name: str) -> Lab:
    from cli.lab_cluster import Lab

    Plan(name)
    _go_where_labs_are()
    return Lab.find(name)


def _go_where_labs_are() -> None:
    """Every command looks for labs in the mount namespace of whoever called it: one of its own ends with it."""
    from cli import lab_process

    if os.geteuid() != 0:
        raise LabError("a lab needs root, to make and enter network namespaces: run it with sudo")
    lab_process.join_parents_mounts()


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}".lstrip(":")


def _show(found: Lab) -> None:
    from rich.table import Table

    plan = found.state.plan
    table = Table(
        "node",
        "underlay",
        "agent",
        "pods",
        title=f"{plan.name}: {plan.backend}, members from {plan.source}",
        title_justify="left",
    )
    for node in found.nodes:
        pods = "\n".join(f"{pod.name}  {' '.join(pod.addresses)}" for pod in node.pods)
        table.add_row(node.name, "\n".join(node.addresses), _agent(node), pods)
    _print(table)
    etcd = found.state.processes.get("etcd")
    if etcd is not None:
        click.echo(f"etcd {'runs' if etcd.runs() else 'has ended'} at {plan.etcd_url()}, process {etcd.pid}")
    _show_cuts(found)


def _show_cuts(found: Lab) -> None:
    for one, two in found.cuts():
        click.echo(f"{one} and {two} are partitioned")


def _agent(node: LabNode) -> str:
    if node.killed:
        return "killed"
    return f"process {node.agent.pid}" if node.agent.runs() else "has ended"


def _print(table: Any) -> None:
    """A table as wide as it is, also where no terminal says how wide it may be."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal or console.width < console.measure(table).minimum:
        console = Console(width=console.measure(table, options=console.options.update(max_width=10_000)).maximum + 1)
    console.print(table)
