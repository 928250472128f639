"""Our runtime and cnitool on one node: each drives the real Go plugins and takes over what the other made.

Both run inside one node (a network and a mount namespace), so they share the cache in /var/lib/cni.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.world import VERSIONS, Node, Way

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
CNIKIT = (sys.executable, "-m", "cli.main")
IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.12.0.0/24"}], [{"subnet": "fd00:12::/64"}]]}
PLUGINS = [
    {"type": "bridge", "isGateway": True, "ipMasq": False, "ipam": IPAM, "capabilities": {"mac": True}},
    {"type": "tuning", "mtu": 1400},
]


class Pair:
    """A node, a folder of network lists, and the two commands."""

    def __init__(self, node: Node, peers: Path, folder: Path) -> None:
        self.node = node
        self.folder = folder
        self._peers = peers
        self.pod = node.pod()

    def network(self, file: str = "10-net.conflist", **keys: Any) -> None:
        value = {"cniVersion": "1.1.0", "name": "net", "plugins": PLUGINS, **keys}
        (self.folder / file).write_text(json.dumps(value))

    def cnitool(self, verb: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self._run((str(self._peers / "cnitool"), verb, "net", self.pod.path), env)

    def cnikit(self, *words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """`add`, `del`, `check` get the network and the pod; other words are taken as they are."""
        full = (*words, "net", self.pod.path) if words in (("add",), ("del",), ("check",)) else words
        return self._run((*CNIKIT, *full), env, stdin)

    def cached(self) -> dict[str, Any]:
        """The cache's files, decoded."""
        found = self.node.run("sh", "-c", "cd /var/lib/cni/results 2>/dev/null && grep -H '' * || true")
        lines = [line.partition(":") for line in found.splitlines()]
        entries = {name: json.loads(value) for name, _, value in lines}
        for entry in entries.values():
            entry["config"] = json.loads(base64.b64decode(entry["config"]))
        return entries

    def leases(self) -> list[str]:
        listed = self.node.run("sh", "-c", "ls /var/lib/cni/networks/net 2>/dev/null || true").split()
        return [name for name in listed if not name.startswith(("last_reserved_ip", "lock"))]

    def _run(self, argv: tuple[str, ...], env: dict[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CNI_PATH": str(self._peers),
            "NETCONFPATH": str(self.folder),
            **env,
        }
        enter = ("nsenter", f"--target={self.node.pid}", "--net", "--mount", "--")
        return subprocess.run(
            (*enter, *argv), env=environ, input=stdin, capture_output=True, text=True, check=False, timeout=60
        )


@pytest.fixture
def pair(peers: Path, tmp_path: Path) -> Iterator[Pair]:
    with Node(Way("reference", peers)) as node:
        yield Pair(node, peers, tmp_path)


def good(outcome: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert outcome.returncode == 0, outcome
    return outcome


def without_macs(value: Any) -> Any:
    """MACs and veth names of the Go bridge are random."""
    if isinstance(value, dict):
        return {key: without_macs(item) for key, item in value.items() if key != "mac"}
    if isinstance(value, list):
        return [without_macs(item) for item in value]
    return "veth" if isinstance(value, str) and value.startswith("veth") else value


@pytest.mark.parametrize("version", VERSIONS)
def test_both_write_the_same_cache_and_print_the_same_result(pair: Pair, version: str) -> None:
    plugins = [PLUGINS[0]]
    pair.network(cniVersion=version, plugins=plugins)
    env = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web", "CAP_ARGS": '{"mac": "02:00:00:00:00:07", "ips": []}'}

    theirs = json.loads(good(pair.cnitool("add", **env)).stdout)
    their_cache = pair.cached()
    good(pair.cnitool("del", **env))
    pair.node.run("sh", "-c", "rm -r /var/lib/cni/networks")
    ours = json.loads(good(pair.cnikit("add", **env)).stdout)

    assert without_macs(ours) == without_macs(theirs)
    assert without_macs(pair.cached()) == without_macs(their_cache)
    assert pair.pod.ip("link", "show", "eth0")[0]["address"] == "02:00:00:00:00:07"


def test_what_cnitool_added_we_check_and_delete(pair: Pair) -> None:
    pair.network()
    good(pair.cnitool("add"))

    good(pair.cnikit("check"))
    good(pair.cnikit("del"))

    assert pair.cached() == {}
    assert pair.leases() == []
    assert [link["ifname"] for link in pair.pod.ip("link", "show")] == ["lo"]


def test_what_we_added_cnitool_checks_and_deletes(pair: Pair) -> None:
    pair.network()
    good(pair.cnikit("add"))

    good(pair.cnitool("check"))
    good(pair.cnitool("del"))

    assert pair.cached() == {}
    assert pair.leases() == []
    assert [link["ifname"] for link in pair.pod.ip("link", "show")] == ["lo"]


def test_del_works_from_the_cache_when_the_list_is_gone(pair: Pair) -> None:
    pair.network()
    good(pair.cnikit("add"))
    (pair.folder / "10-net.conflist").unlink()

    outcome = good(pair.cnikit("del"))

    assert "using the configuration that ADD had" in outcome.stderr
    assert pair.leases() == []
    assert pair.cached() == {}


def test_both_choose_the_same_file_and_the_folders_plugins(pair: Pair) -> None:
    pair.network("20-list.conflist", plugins=[PLUGINS[0]])
    (pair.folder / "10-single.conf").write_text('{"cniVersion": "0.4.0", "name": "net", "type": "absent"}')
    (pair.folder / "net").mkdir()
    (pair.folder / "net" / "10-tuning.conf").write_text('{"type": "tuning", "mtu": 1350}')

    good(pair.cnitool("add"))
    assert pair.pod.ip("link", "show", "eth0")[0]["mtu"] == 1350
    good(pair.cnitool("del"))
    outcome = good(pair.cnikit("add"))

    assert pair.pod.ip("link", "show", "eth0")[0]["mtu"] == 1350
    assert "10-single.conf has network 'net' too" in outcome.stderr


def test_gc_without_a_list_only_tells_and_with_one_deletes_the_rest(pair: Pair) -> None:
    pair.network()
    good(pair.cnikit("add"))
    good(pair.cnikit("add", CNI_IFNAME="eth1"))
    (container,) = {entry["containerId"] for entry in pair.cached().values()}

    refused = pair.cnikit("gc", "net")
    assert refused.returncode == 1
    assert refused.stdout.count(container) == 2
    assert "gc needs --keep" in refused.stderr
    assert len(pair.cached()) == 2

    keep = json.dumps([{"containerID": container, "ifname": "eth1"}])
    good(pair.cnikit("gc", "net", "--keep", "-", stdin=keep))
    assert [entry["ifName"] for entry in pair.cached().values()] == ["eth1"]
    assert [link["ifname"] for link in pair.pod.ip("link", "show")] == ["lo", "eth1"]
    assert len(pair.leases()) == 2


def test_status_says_why_not(pair: Pair) -> None:
    pair.network(plugins=[{"type": "bridge", "ipam": {"type": "static"}}])
    good(pair.cnikit("status", "net"))
    pair.network(plugins=[{"type": "absent"}])
    refused = pair.cnikit("status", "net")
    assert refused.returncode == 1
    assert "failed to find plugin 'absent'" in refused.stderr


def test_version_lists_the_plugins(pair: Pair) -> None:
    listed = good(pair.cnikit("version")).stdout
    assert "host-local" in listed
    assert "1.1.0" in listed
