"""DEL and GC clean up whatever has become of the configuration since ADD: every option of the schemas in turn gets every
kind of wrong value. What DEL cannot do without is refused, after everything else is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.calls import POD, Node
from tests.unit.test_pod_network_fake import PEERS, give_underlay

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMAS = Path(__file__).parents[2] / "conf/schema"
REGISTRY = {
    "bridge": "plugins.bridge",
    "host-gw": "plugins.host_gw",
    "vxlan": "plugins.vxlan",
    "host-local": "ipam.host_local",
    "loopback": "plugins.loopback",
}
VALID = "cni.dev/valid-attachments"
WRONG: list[Any] = [
    None,
    True,
    -1,
    5,
    65536,
    2**40,
    2**80,
    1.5,
    "",
    "no",
    "\0",
    "a" * 300,
    [],
    [None],
    [5],
    {},
    {"cni": 5},
]
CLUSTER = {"network": "10.244.0.0/16", "ipv6Network": "fd00:244::/48", "peers": PEERS, "ipMasq": True}
NETWORKS: dict[str, dict[str, Any]] = {
    "bridge": {"type": "bridge", "isDefaultGateway": True, "ipMasq": True, "macspoofchk": True},
    "host-gw": {"type": "host-gw", **CLUSTER},
    "host-gw bridged": {"type": "host-gw", **CLUSTER, "attachment": "bridged"},
    "vxlan": {"type": "vxlan", **CLUSTER},
}
RANGES = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]
# Values of other forms, deeper in the configuration.
NESTED: list[dict[str, Any]] = [
    {"vlanTrunk": [{"id": 5000}, {"minID": 9}]},
    {"dns": {"nameservers": 5, "domain": [], "search": {}, "options": [5]}},
    {"args": {"cni": {"mac": 5, "ips": [5]}}},
    {"runtimeConfig": {"mac": 5, "ips": "x", "ipRanges": 5}},
    {"runtimeConfig": 5},
    {"prevResult": 5},
    {"prevResult": {"ips": [{"address": 5}]}},
    {"hairpinMode": True, "promiscMode": True},
    {"peers": [{"name": 5}]},
    {"membership": {"etcd": 5}},
]
# Without these the leases cannot be found.
NEEDED = {"dataDir"}


def options(schema: str) -> list[str]:
    found = json.loads((SCHEMAS / f"{schema}.json").read_text())["properties"]
    return [key for key in found if key not in ("type", "name", "cniVersion", "ipam")]


def changes(network: str) -> Iterator[dict[str, Any]]:
    for key in options(NETWORKS[network]["type"]):
        for value in WRONG:
            yield {key: value}
    yield from NESTED
    for key in set(options("host-local")) - NEEDED if network == "bridge" else ():
        for value in WRONG:
            yield {"ipam": {key: value}}


class World:
    """A node with one network, and a pod of it after `attach`."""

    def __init__(self, folder: Path, network: str) -> None:
        folder.mkdir()
        self.node = Node(folder, registry=REGISTRY)
        self.leases = folder / "leases"
        ipam: dict[str, Any] = {"type": "host-local", "dataDir": str(self.leases)}
        if network == "bridge":
            ipam |= {"ranges": RANGES}
        self.conf = {"cniVersion": "1.1.0", "name": "net", **NETWORKS[network], "ipam": ipam}
        with self.node.kernel.own() as host:
            give_underlay(host)
        plugin = self.conf["type"]
        # The first pod leaves what all share.
        assert self.node.call(plugin, "ADD", self.conf).status == 0
        assert self.node.call(plugin, "DEL", self.conf).status == 0
        self.before = self.node.snapshot()

    def attach(self) -> None:
        assert self.node.call(self.conf["type"], "ADD", self.conf).status == 0
        assert len(self.leased()) == 2

    def leased(self) -> list[str]:
        return [name.name for name in (self.leases / "net").iterdir() if name.name[0].isdigit() or ":" in name.name]

    def changed(self, change: dict[str, Any]) -> dict[str, Any]:
        ipam = change.get("ipam")
        rest = {**self.conf, VALID: [], **change}
        return {**rest, "ipam": {**self.conf["ipam"], **ipam}} if isinstance(ipam, dict) else rest

    def remove(self, verb: str, change: dict[str, Any]) -> Any:
        return self.node.call(self.conf["type"], verb, self.changed(change))

    def clean(self) -> bool:
        return self.node.snapshot() == self.before and self.leased() == []

    def lose_records(self) -> None:
        shutil.rmtree(self.node.run_dir / "networks/net/attachments")


@pytest.mark.parametrize("verb", ["DEL", "GC"])
@pytest.mark.parametrize("network", NETWORKS)
def test_no_value_that_only_add_needs_keeps_anything(tmp_path: Path, network: str, verb: str) -> None:
    world = World(tmp_path / "world", network)
    for change in changes(network):
        world.attach()

        answer = world.remove(verb, change)

        assert (answer.status, answer.stdout) == (0, b""), (change, answer)
        assert world.clean(), (change, answer)


@pytest.mark.parametrize("network", NETWORKS)
def test_del_without_a_record_keeps_nothing_either(tmp_path: Path, network: str) -> None:
    world = World(tmp_path / "world", network)
    for change in changes(network):
        world.attach()
        world.lose_records()

        answer = world.remove("DEL", change)

        assert (answer.status, answer.stdout) == (0, b""), (change, answer)
        assert "eth0" not in world.node.pod("links", POD), change
        assert world.leased() == [], change


@pytest.mark.parametrize("verb", ["DEL", "GC"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"ipam": 5}, "ipam"),
        ({"ipam": [5]}, "ipam"),
        ({"ipam": {"type": 5}}, "ipam.type"),
        ({"ipam": {"type": {}}}, "ipam.type"),
        ({"ipam": {"dataDir": 5}}, "ipam.dataDir"),
        ({"ipam": {"dataDir": "a\0b"}}, "ipam.dataDir"),
    ],
    ids=str,
)
def test_what_leases_are_found_by_is_refused_once_the_rest_is_gone(
    tmp_path: Path, network: str, verb: str, change: dict[str, Any], path: str
) -> None:
    world = World(tmp_path / "world", network)
    world.attach()

    answer = world.remove(verb, change)

    assert answer.error["code"] == 7
    assert answer.error["msg"].startswith(f"{path}: expected")
    assert {**world.node.snapshot(), "files": {}} == {**world.before, "files": {}}
    world.remove(verb, {}).silent()
    assert world.clean()


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_host_local_and_loopback_by_themselves(tmp_path: Path, verb: str) -> None:
    world = World(tmp_path / "world", "bridge")
    for key, value in ((k, v) for k in options("host-local") if k not in NEEDED for v in WRONG):
        world.attach()
        conf = world.changed({"ipam": {key: value}, "dns": 5, "args": 5, "runtimeConfig": value, "prevResult": "x"})

        world.node.call("host-local", verb, conf).silent()

        assert world.leased() == [], (key, value)
        world.node.call("loopback", verb, conf).silent()
        world.remove("DEL", {}).silent()


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.4.0"])
def test_versions_before_gc(tmp_path: Path, version: str) -> None:
    world = World(tmp_path / "world", "bridge")
    for value in WRONG:
        world.attach()

        world.remove("DEL", {"cniVersion": version, "mtu": value, "ipam": {"ranges": [[{"subnet": value}]]}}).silent()

        assert world.clean(), value
