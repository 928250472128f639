"""`cnikit lab`: a cluster of network namespaces on one machine, to look at and to break."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from cli.lab_plan import BACKENDS, MOST_NODES, MOST_PODS, SOURCES, UPLINK, LabError, Plan
from cli.registry import bundled_plugins

if TYPE_CHECKING:
    from cli.lab_cluster import Lab, LabNode

# Where programs of a lab may lie, beside the caller's PATH.
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "allow_interspersed_args": False}

NAME = click.option("--name", default="lab", show_default=True, metavar="NAME", help="Which lab.")


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
@click.option("--source", type=click.Choice(SOURCES), default="static", show_default=True, help="Who knows the nodes.")
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
    from cli.lab_cluster import Lab

    if ipv6 and dual:
        raise LabError("expected --ipv6 or --dual, found both: --ipv6 has no IPv4")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is there by then is taken away again
    families = (16,) if ipv6 else (4, 16) if dual else (4,)
    start = time.monotonic()
    made = Lab.up(Plan(name, nodes, pods, backend, source, families), os.path.realpath(bin_dir or bundled_plugins()))
    took = time.monotonic() - start
    _show(made)
    option = "" if name == "lab" else f" --name {name}"
    click.echo(f"lab {name} is up after {took:.1f} s, and every pod reaches every other one. Try:")
    node, place = made.nodes[-1].name, (made.pods or made.nodes)[0].name
    for line in (
        f"ping{option}",
        f"tcpdump{option} {node}",
        f"exec{option} {place} ip addr",
        f"kill{option} {node}",
        f"down{option}",
    ):
        click.echo(f"    cnikit lab {line}")


@lab.command()
@NAME
def down(name: str) -> None:
    """Remove a lab, also one that was left half built."""
    from cli.lab_cluster import remove

    Plan(name)  # a name that no lab can have is told
    _need_root()
    click.echo(f"lab {name} is gone" if remove(name) else f"there is no lab {name}")


@lab.command()
@NAME
def status(name: str) -> None:
    """Show nodes, agents, pods, and who is cut from whom. Without a lab of that name, the labs that there are."""
    _show(_find(name))


@lab.command()
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
    from cli.lab_ping import table

    found = _find(name)
    targets, answers = found.ping(size, timeout, places)
    _print(table(targets, answers))
    lost = [one for one in answers if one.seconds is None]
    click.echo(f"{len(answers) - len(lost)} of {len(answers)} pings of {size} bytes answered")
    for node in found.nodes:
        if node.killed:
            click.echo(f"{node.name} was killed")
    for one, two in sorted(_cuts(found)):
        click.echo(f"{one} and {two} are partitioned")
    if lost or (not answers and len(found.pods) > 1 and not places):
        sys.exit(1)


@lab.command(context_settings=_PASSED_ON)
@NAME
@click.argument("node")
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[TCPDUMP'S ARGUMENTS]...")
def tcpdump(name: str, node: str, args: tuple[str, ...]) -> None:
    """Run tcpdump on the underlay link of NODE.

    What is inside of VXLAN packets is shown too.
    """
    found = _find(name).node(node)
    if found.killed:
        raise LabError(f"{node} was killed, and its link with it: choose another node")
    program = shutil.which("tcpdump", path=_search_path())
    if program is None:
        raise LabError("expected the program tcpdump, found none: apt-get install tcpdump")
    from cli import sandbox

    sandbox.enter(found.netns)  # and not its files: what -w writes lands where the caller is
    os.execv(program, ["tcpdump", "-n", "-i", UPLINK, "-T", "vxlan", *args])


@lab.command()
@NAME
@click.argument("node")
def kill(name: str, node: str) -> None:
    """Let a node vanish: its agent, whatever runs on it, and its link."""
    found = _find(name)
    found.kill(node)
    how = (
        "etcd forgets it when its lease ends" if found.state.plan.source == "etcd" else "it is off the list of members"
    )
    click.echo(f"{node} is gone; {how}")


@lab.command()
@NAME
@click.option("--heal", is_flag=True, help="Let it pass again.")
@click.argument("one")
@click.argument("two")
def partition(name: str, heal: bool, one: str, two: str) -> None:  # noqa: FBT001 - click's way
    """Drop whatever nodes ONE and TWO send each other on the underlay."""
    found = _find(name)
    if heal:
        found.heal(one, two)
    else:
        found.partition(one, two)
    click.echo(f"{one} and {two} {'reach each other again' if heal else 'are cut from each other'}")


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
    target.enter()
    try:
        os.execvpe(argv[0], argv, {**os.environ, "PATH": path, "CNI_PATH": bin_dir})
    except OSError as error:
        raise LabError(f"exec {argv[0]}: {error.strerror}") from None


def _find(name: str) -> Lab:
    from cli.lab_cluster import Lab

    Plan(name)
    _need_root()
    return Lab.find(name)


def _need_root() -> None:
    if os.geteuid() != 0:
        raise LabError("a lab needs root, to enter its network namespaces: run it with sudo")


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}".lstrip(":")


def _cuts(found: Lab) -> set[tuple[str, str]]:
    """Each pair once. Without nft there are none."""
    from cli import lab_underlay

    return {(one, two) for one, two in lab_underlay.cuts(found.space) if one < two}


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
    for one, two in sorted(_cuts(found)):
        click.echo(f"{one} and {two} are partitioned")


def _agent(node: LabNode) -> str:
    if node.killed:
        return "killed"
    return f"process {node.agent.pid}" if node.agent.runs() else "has ended"


def _print(table: Any) -> None:
    """A table as wide as it is, also where no terminal says how wide it may be."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=console.measure(table, options=console.options.update(max_width=10_000)).maximum + 1)
    console.print(table)
