"""docs/uninstall.md: after its commands a node is as it was before cnikit came."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.underlay import V4, V6, Cluster
from tests.e2e.world import DUAL_STACK, SEARCH_PATH, Node, Way, network

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "uninstall.md").read_text()
# What the page's commands would do to the machine that runs the tests is only written down.
# tests/e2e/test_uninstall.py has the first of them.
ASIDE = ("make", "systemctl", "modprobe")
CHAINS = {"type": "host-local", "ranges": [[{"subnet": "10.2.0.0/16"}], [{"subnet": "fd00:2::/64"}]]}


@pytest.fixture
def cluster(bin_dir: Path) -> Iterator[Cluster]:
    with Cluster(Way("one-shot", bin_dir), underlay=(V4, V6), pods=(V4, V6)) as made:
        yield made


@pytest.fixture
def aside(tmp_path: Path) -> Path:
    """A folder for the head of PATH, in which the programs of ASIDE write `called`."""
    folder = tmp_path / "aside"
    folder.mkdir()
    for name in ASIDE:
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{folder}/called"\n')
        (folder / name).chmod(0o755)
    return folder


def commands(title: str) -> list[str]:
    """The blocks of commands in a section of the page."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def state(node: Node) -> dict[str, Any]:
    """What cnikit may have changed, as the kernel's own tools have it."""
    folders = [node.path(name) for name in ("/run/cnikit", "/var/lib/cni", "/etc/cni/net.d")]
    families = ("iptables", "ip6tables")
    tables = [node.run(f"{one}-save", "-t", table).splitlines() for one in families for table in ("nat", "filter")]
    return {
        "links": sorted(link["ifname"] for link in node.ip("link")),
        "routes": [node.ip(family, "route", "show", "table", "main") for family in ("-4", "-6")],
        "nexthops": node.ip("nexthop"),
        "nftables": [item for item in node.nft() if next(iter(item.values()))["family"] in {"inet", "bridge"}],
        "iptables": [line for lines in tables for line in lines if line.startswith("-A") or "CNI-" in line],
        "files": {str(path) for folder in folders for path in folder.rglob("*") if not path.is_dir()},
        "settings": node.run("sysctl", "net.ipv4.conf.all.forwarding", "net.ipv6.conf.all.forwarding"),
    }


@pytest.mark.parametrize("with_del", [True, False], ids=["pods had a DEL", "pods had none"])
@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_the_page(cluster: Cluster, aside: Path, backend: str, *, with_del: bool) -> None:
    node = cluster.nodes[0]
    node.path("/etc/cni/net.d").mkdir()
    for family in ("iptables", "ip6tables"):
        node.run(family, "-P", "FORWARD", "DROP")
    before = state(node)
    networks = [
        {**cluster.conf(backend, ipMasq=True), "name": "overlay"},
        network("plain", ipMasq=True, macspoofchk=True, ipam=DUAL_STACK),
        network("chains", bridge="cni1", ipMasq=True, ipMasqBackend="iptables", ipam=CHAINS),
    ]
    for conf in networks:
        attach(node, conf, with_del=with_del)
    assert all(before[key] != found for key, found in state(node).items())

    run(node, aside, *commands("Before"), *commands("The files"))
    for conf in networks:
        for block in commands("Each network"):
            mine = block.replace("pods", conf["name"]).replace("cni0", conf.get("bridge", ""))
            # A routed network has no bridge.
            run(node, aside, mine if "bridge" in conf else re.sub(r"^ip link delete $", "", mine, flags=re.MULTILINE))
    for block in commands("The node"):
        if "bridge-nf" not in block or node.path("/proc/sys/net/bridge").is_dir():
            run(node, aside, block)

    assert state(node) == before
    called = (aside / "called").read_text().splitlines()
    assert called[:3] == [
        "systemctl disable --now cnikit-agent.socket cnikit-agent.service",
        "make uninstall",
        "systemctl daemon-reload",
    ]


def attach(node: Node, conf: dict[str, Any], *, with_del: bool) -> None:
    """A pod of this network comes and goes, with a DEL or as a crash takes it."""
    (node.path("/etc/cni/net.d") / f"10-{conf['name']}.conflist").write_text(json.dumps(conf))
    pod = node.pod()
    assert node.call(conf["type"], "ADD", conf, pod).ok
    if with_del:
        node.call(conf["type"], "DEL", conf, pod).silent()
    node.kill_netns(pod)


def run(node: Node, aside: Path, *scripts: str) -> None:
    for script in scripts:
        node.run("sh", "-euc", script, env={"PATH": f"{aside}:{SEARCH_PATH}"})
