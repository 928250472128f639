"""`cnikit demo`: two pods on one node, attached, tried out, checked, detached, with nothing left behind; then pods on
three nodes, and what is on the wire between these.

It reads from top to bottom like what it prints. The node is this process, moved into namespaces of its own
(`cli/sandbox.py`), so the machine's bridges, firewall and files are never touched. The plugins are the real
executables, run by our own runtime. What the kernel then looks like is asked with pyroute2, not with the
code that the plugins use.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from typing import TYPE_CHECKING, Any

import click
from pyroute2 import IPRoute
from rich.console import Console

from cli import nftscan, sandbox
from cli.lab_capture import VXLAN_PORT, Capture, tunnelled
from cli.lab_cluster import Lab
from cli.lab_ping import table
from cli.lab_plan import UPLINK as UPLINK_OF_NODES
from cli.lab_plan import Plan
from cli.lab_space import mount_points
from cni import addr, netlist
from cni.cache import Attachment
from cni.errors import CniError
from cni.kernel import sysctl
from cni.runtime import Runtime

if TYPE_CHECKING:
    from rich.table import Table

HOME = "/run/cnikit-demo"
BRIDGE = "demo0"
UPLINK = "uplink"
NODE = ("192.0.2.1/24", "2001:db8::1/64")
OUTSIDE = ("192.0.2.2/24", "2001:db8::2/64")
PINGS = 3
TIMEOUT = 3.0

NETWORK = {
    "cniVersion": "1.1.0",
    "name": "demo",
    "plugins": [
        {
            "type": "bridge",
            "bridge": BRIDGE,
            "isDefaultGateway": True,
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "dataDir": f"{HOME}/leases",
                "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]],
            },
        }
    ],
}


class SurpriseError(Exception):
    """Something is not as it should be."""


def run_demo(bin_dir: str) -> int:
    """Show everything; returns the exit code."""
    if not bin_dir:
        click.echo("cnikit demo: no plugins beside cnikit: build them with `make dist`, or give --bin-dir", err=True)
        return 1
    if os.geteuid() != 0:
        click.echo("cnikit demo: needs root, to make network namespaces: run it with sudo", err=True)
        return 1
    start = time.monotonic()
    try:
        Demo(os.path.realpath(bin_dir)).run()
    except (CniError, OSError, sandbox.SandboxError, SurpriseError) as error:
        click.echo(f"\ncnikit demo failed: {error}", err=True)
        return 1
    except KeyboardInterrupt:
        click.echo("\ncnikit demo: interrupted; its namespaces end with it, nothing is left", err=True)
        return 130
    took = time.monotonic() - start
    click.echo(f"\nAll of this in {took:.1f} s, in namespaces of its own: your machine is as it was.")
    return 0


class Demo:
    """The story. Each method is a chapter; each prints what it does and fails on any surprise."""

    def __init__(self, bin_dir: str) -> None:
        if bin_dir.startswith("/run/"):
            raise SurpriseError(f"the plugins are in {bin_dir}, and the demo hides /run: copy them elsewhere")
        self._bin_dir = bin_dir
        self._pods: dict[str, Attachment] = {}
        self._addresses: dict[str, list[str]] = {}

    def run(self) -> None:
        self._make_node()
        self._show_network()
        self._attach("pod1")
        self._attach("pod2")
        self._try_out()
        self._check()
        self._detach()
        self._nothing_left()
        self._show_cluster()

    def _make_node(self) -> None:
        step("A node, two pods and a host outside: network namespaces that only this program sees")
        sandbox.isolate()
        for name in ("pod1", "pod2"):
            path = sandbox.new_netns(f"cnikit-demo-{name}")
            self._pods[name] = Attachment(f"cnikit-demo-{name}", "eth0", path)
        self._outside = sandbox.new_netns("cnikit-demo-outside")
        sandbox.in_child(lambda: connect(self._outside))
        sandbox.within(self._outside, configure, "eth0", OUTSIDE)
        told(f"node     {' and '.join(NODE)} on {UPLINK}")
        told(f"outside  {' and '.join(OUTSIDE)}, with no route to any pod")
        # A new wire drops what passes in its first second; the pods' pings are not about that.
        for address in OUTSIDE:
            sandbox.within("/proc/self/ns/net", sandbox.ping, address.partition("/")[0], 1, TIMEOUT)
        told("the node reaches it")

    def _show_network(self) -> None:
        step("The network, as an administrator writes it into /etc/cni/net.d")
        folder = f"{HOME}/net.d"
        os.makedirs(folder)
        with open(f"{folder}/10-demo.conflist", "w") as file:
            json.dump(NETWORK, file, indent=2)
        told(json.dumps(NETWORK, indent=2))
        self._runtime = Runtime([self._bin_dir], dict(os.environ), time.monotonic, told, f"{HOME}/cache")
        self._network = netlist.load(folder, "demo", told)
        self._runtime.validate(self._network)
        self._runtime.status(self._network)
        told(f"VERSION and STATUS: the plugins in {self._bin_dir} speak {self._network.version} and are ready")

    def _attach(self, name: str) -> None:
        step(f"ADD {name}")
        started = time.monotonic()
        result = self._runtime.add(self._network, self._pods[name])
        took = time.monotonic() - started
        told(json.dumps(result, indent=2))
        self._addresses[name] = [ip["address"].partition("/")[0] for ip in result["ips"]]
        told(f"took {took * 1000:.0f} ms")

    def _try_out(self) -> None:
        step("Pings from pod to pod, and to the host outside")
        witness = sandbox.Witness(self._outside)
        try:
            self._ping("pod1", "pod2", self._addresses["pod2"])
            self._ping("pod2", "pod1", self._addresses["pod1"])
            for name in self._pods:
                self._ping(name, "outside", [address.partition("/")[0] for address in OUTSIDE])
            seen = witness.sources()
        finally:
            witness.close()
        expected = sorted(address.partition("/")[0] for address in NODE)
        told(f"outside saw pings from {', '.join(seen)}: the node's own addresses, so masquerading works")
        if seen != expected:
            raise SurpriseError(f"outside saw pings from {seen}, expected {expected}")
        told(f"nftables rules and elements that name the pods' addresses: {self._mentions()}")

    def _ping(self, source: str, target: str, addresses: list[str]) -> None:
        for address in addresses:
            times = sandbox.within(self._pods[source].netns, sandbox.ping, address, PINGS, TIMEOUT)
            told(f"{source} -> {target:8} {address:14} " + "  ".join(f"{rtt:.3f} ms" for rtt in times))

    def _check(self) -> None:
        step("CHECK: is everything as ADD left it?")
        for name, pod in self._pods.items():
            self._runtime.check(self._network, pod)
            told(f"{name}: yes")

    def _detach(self) -> None:
        step("DEL")
        for name, pod in self._pods.items():
            started = time.monotonic()
            self._runtime.delete(self._network, pod)
            told(f"{name}: gone in {(time.monotonic() - started) * 1000:.0f} ms")

    def _nothing_left(self) -> None:
        step("What is left")
        on_node = sandbox.in_child(links)
        none_left("links of the pods on the node", [link for link in on_node if link not in ("lo", UPLINK, BRIDGE)])
        for name, pod in self._pods.items():
            none_left(f"links in {name} but lo", [link for link in sandbox.within(pod.netns, links) if link != "lo"])
        none_left("leased addresses", [name for name in names(f"{HOME}/leases/demo") if addr.pack(name)])
        none_left("attachment records", names("/run/cnikit/networks/demo/attachments"))
        none_left("cached results", names(f"{HOME}/cache/results"))
        none_left("nftables rules and elements that name the pods' addresses", ["one"] * self._mentions())
        told(f"(the bridge {BRIDGE} stays: it is the network's, not a pod's)")

    def _show_cluster(self) -> None:
        step("Three nodes: a VXLAN lab, as `cnikit lab up --dual` makes one")
        if not os.access(f"{self._bin_dir}/vxlan", os.X_OK):
            told(f"left out: there is no plugin vxlan in {self._bin_dir}")
            return
        shown = sandbox.contained(lambda: show_lab(self._bin_dir))
        told(
            f"three nodes with agents and two pods each: up in {shown['up']:.1f} s, gone in {shown['down'] * 1000:.0f} ms"
        )
        step("Every pod pings every other one, over IPv4 and IPv6 (`cnikit lab ping`)")
        told(shown["matrix"])
        step(f"On the wire, while a pod of node1 pings one of node3: UDP {VXLAN_PORT}, and in it the pods' packets")
        told("\n".join(shown["wire"]))
        if len(shown["wire"]) != 4:
            raise SurpriseError(f"expected 2 requests and 2 replies in UDP {VXLAN_PORT}, found {len(shown['wire'])}")
        none_left("mounts and files of the lab", shown["left"])

    def _mentions(self) -> int:
        return nftscan.mentions([addr.pack(a) or b"" for both in self._addresses.values() for a in both])


def show_lab(bin_dir: str) -> dict[str, Any]:
    """Build a lab, look at it and take it down. It runs in a child, and answers what there is to show."""
    started = time.monotonic()
    with Lab.up(Plan("demo", families=(4, 16)), bin_dir) as lab:
        up = time.monotonic() - started
        targets, answers = lab.ping()
        if any(answer.seconds is None for answer in answers):
            raise SurpriseError("a pod does not reach another one")
        here, there = lab.pods[0], lab.pods[-1]
        sandbox.enter(lab.node(here.node).netns)
        capture = Capture(UPLINK_OF_NODES)
        sandbox.enter(here.netns)
        for address in there.addresses:
            sandbox.ping(address, 1, TIMEOUT)
        found = [tunnelled(frame) for frame in capture.frames()]
        started = time.monotonic()
    return {
        "up": up,
        "down": time.monotonic() - started,
        "matrix": shown(table(targets, answers)),
        "wire": [one.text() for one in found if one and one.inner.target in (*here.addresses, *there.addresses)],
        "left": [*names("/run/cnikit-lab"), *mount_points("/run/cnikit-lab")],
    }


def shown(found: Table) -> str:
    """A table as text."""
    console = Console(width=200, file=io.StringIO())
    console.print(found)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.rstrip()


def connect(outside: str) -> None:
    """The wire between node and outside."""
    with IPRoute() as ip:
        ip.link("add", ifname=UPLINK, kind="veth", peer={"ifname": "eth0", "net_ns_fd": outside})
    configure(UPLINK, NODE)
    configure("lo", ())


def configure(link: str, addresses: tuple[str, ...]) -> None:
    """Give a link its addresses and set it up, with no duplicate detection, which delays the first ping by 2 s."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        sysctl.put(f"/proc/sys/net/ipv6/conf/{link}/accept_dad", "0")
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=link)[0]
        for address in addresses:
            text, _, prefix = address.partition("/")
            ip.addr("add", index=index, address=text, prefixlen=int(prefix), flags=0x02 if ":" in text else 0)
        ip.link("set", index=index, state="up")


def links() -> list[str]:
    """The names of the links where the caller is."""
    with IPRoute() as ip:
        return [link.get("ifname") for link in ip.get_links()]


def names(folder: str) -> list[str]:
    """The files of a folder that are not hidden; none when there is no such folder."""
    return [name for name in os.listdir(folder) if not name.startswith(".")] if os.path.isdir(folder) else []


def none_left(what: str, found: list[Any]) -> None:
    """Tell that nothing is left of a kind, or fail with what is."""
    if found:
        raise SurpriseError(f"left behind: {what}: {', '.join(found)}")
    told(f"{what}: none")


def step(title: str) -> None:
    """A chapter's title."""
    click.secho(f"\n== {title}", bold=True)


def told(text: str) -> None:
    """Something shown, indented below its title."""
    for line in text.splitlines():
        click.echo(f"   {line}")
