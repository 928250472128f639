"""What `cnikit lint` sees only in a whole folder, or on the machine that a network is for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster import networks_of
from cli import lint
from cli.lint_folder import Place
from cni import addr
from cni.errors import CniError
from plugins.peers import vtep_mac

if TYPE_CHECKING:
    from pathlib import Path

MEMBERS = {"source": "kubernetes"}


def on_bridge(bridge: str, subnet: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        **more,
        "ipam": {"type": "host-local", "subnet": subnet},
    }


def vxlan(network: str, vni: int, **more: Any) -> dict[str, Any]:
    return {"type": "vxlan", "network": network, "vni": vni, "membership": MEMBERS, **more}


class Folder:
    """A folder of network lists, and what is said about it."""

    def __init__(self, root: Path) -> None:
        self.path = root / "net.d"
        self.path.mkdir()
        self._bin = root / "bin"
        self._bin.mkdir()
        for name in ("bridge", "host-gw", "host-local", "vxlan"):
            (self._bin / name).touch()

    def add(self, name: str, *plugins: dict[str, Any]) -> str:
        file = self.path / f"{name}.conflist"
        file.write_text(json.dumps({"cniVersion": "1.1.0", "name": name, "plugins": plugins}))
        return str(file)

    def said(self, *there: Place, paths: tuple[str, ...] = ()) -> list[str]:
        findings, _ = lint.lint_paths(paths or (str(self.path),), [str(self._bin)], there)
        assert all(one.remedy for one in findings)
        return [f"{'error' if one.error else 'warning'} {one.file.rpartition('/')[2]} {one.path}" for one in findings]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def place(link: str, cidr: str) -> Place:
    found = addr.pack_cidr(cidr)
    assert found is not None
    return Place(link, *found)


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        (on_bridge("br0", "10.1.0.0/24"), on_bridge("br1", "10.2.0.0/24"), []),
        (on_bridge("br0", "10.1.0.0/24"), on_bridge("br1", "10.1.0.0/16"), ["error b.conflist plugins[0].ipam.subnet"]),
        (on_bridge("br0", "fd00::/64"), on_bridge("br1", "fd00::/64"), ["error b.conflist plugins[0].ipam.subnet"]),
        (on_bridge("br0", "10.1.0.0/24"), on_bridge("br0", "10.2.0.0/24"), ["error b.conflist plugins[0].ipam.gateway"]),
        (on_bridge("br0", "10.1.0.0/24"), on_bridge("br0", "10.1.0.0/24"), ["warning b.conflist plugins[0].ipam.subnet"]),
        (on_bridge("br0", "fd00:1::/64"), on_bridge("br0", "fd00:2::/64"), []),
        (on_bridge("br0", "10.1.0.0/24"), on_bridge("br0", "fd00:2::/64"), []),
        (on_bridge("br0", "10.1.0.0/24", vlan=5), on_bridge("br0", "10.2.0.0/24", vlan=6), []),
        (on_bridge("br0", "10.1.0.0/24", isGateway=False), on_bridge("br1", "10.1.0.0/24", isGateway=False), []),
        (vxlan("10.244.0.0/16", 1), on_bridge("br0", "10.244.5.0/24"), ["error b.conflist plugins[0].ipam.subnet"]),
        (
            vxlan("10.244.0.0/16", 1, attachment="bridged", bridge="br0"),
            on_bridge("br0", "10.1.0.0/24"),
            ["error b.conflist plugins[0].bridge"],
        ),
    ],
)  # fmt: skip
def test_two_networks_of_one_node(
    one: dict[str, Any], two: dict[str, Any], expected: list[str], folder: Folder
) -> None:
    folder.add("a", one)
    folder.add("b", two)
    assert folder.said() == expected


@pytest.mark.parametrize(
    ("two", "path"),
    [
        (vxlan("10.245.0.0/16", 1), "vni"),
        (vxlan("10.244.128.0/17", 2), "network"),
        ({"type": "host-gw", "network": "10.244.0.0/17", "membership": MEMBERS}, "network"),
        (vxlan("10.245.0.0/16", 2, subnetFile="/run/cnikit/subnets/a.env"), "subnetFile"),
    ],
)
def test_two_cluster_networks_are_compared_as_the_agent_does(two: dict[str, Any], path: str, folder: Folder) -> None:
    files = [folder.add("a", vxlan("10.244.0.0/16", 1)), folder.add("b", two)]
    assert folder.said() == [f"error b.conflist plugins[0].{path}"]
    with pytest.raises(CniError, match="network b: expected"):
        networks_of(files)


def test_two_cluster_networks_with_one_prefix_in_etcd(folder: Folder) -> None:
    one = {"source": "etcd", "endpoints": ["http://192.0.2.1:2379", "http://192.0.2.2:2379"], "prefix": "/pods"}
    two = {"source": "etcd", "endpoints": ["http://192.0.2.2:2379/"], "prefix": "/pods/"}
    files = [
        folder.add("a", vxlan("10.244.0.0/16", 1, membership=one)),
        folder.add("b", vxlan("10.245.0.0/16", 2, membership=two)),
        folder.add("c", vxlan("10.246.0.0/16", 3, membership={**one, "prefix": "/others"})),
        folder.add("d", vxlan("10.247.0.0/16", 4, membership={**two, "endpoints": ["http://192.0.2.9:2379"]})),
    ]
    assert folder.said() == ["error b.conflist plugins[0].membership.prefix"]
    with pytest.raises(CniError, match="network b: expected a membership.prefix of its own, found that of a"):
        networks_of(files)


def test_files_of_one_folder_are_compared_also_when_each_is_named(folder: Folder) -> None:
    files = (folder.add("a", on_bridge("br0", "10.1.0.0/24")), folder.add("b", on_bridge("br1", "10.1.0.0/24")))
    assert folder.said(paths=files) == ["error b.conflist plugins[0].ipam.subnet"]


@pytest.mark.parametrize(
    ("plugin", "found", "expected"),
    [
        (on_bridge("br0", "10.1.0.0/24"), "10.1.0.7/24", "error a.conflist plugins[0].ipam.subnet"),
        (on_bridge("br0", "10.1.0.0/16"), "10.1.9.7/24", "error a.conflist plugins[0].ipam.subnet"),
        (on_bridge("br0", "10.1.0.0/24"), "10.1.0.7/16", "error a.conflist plugins[0].ipam.subnet"),
        (on_bridge("br0", "10.1.5.0/24"), "10.1.0.7/16", "warning a.conflist plugins[0].ipam.subnet"),
        (on_bridge("br0", "fd00:1::/64"), "fd00:1::7/64", "error a.conflist plugins[0].ipam.subnet"),
        (vxlan("10.244.0.0/16", 1), "10.244.3.1/24", "error a.conflist plugins[0].network"),
        (on_bridge("br0", "10.1.0.0/24"), "10.2.0.7/24", ""),
        (on_bridge("br0", "10.1.0.0/24", isGateway=False), "10.1.0.7/24", ""),
        (on_bridge("eth0", "10.1.0.0/24"), "10.1.0.1/24", ""),
    ],
)
def test_a_range_that_the_node_uses_otherwise(
    plugin: dict[str, Any], found: str, expected: str, folder: Folder
) -> None:
    folder.add("a", plugin)
    assert folder.said(place("eth0", found)) == list(filter(None, [expected]))
    assert folder.said() == []  # on another machine


def test_a_folder_without_networks_is_an_error(folder: Folder) -> None:
    (folder.path / "10-net.conflist.bak").touch()
    assert folder.said() == ["error net.d "]


def test_members_are_read_as_the_agent_reads_them(folder: Folder) -> None:
    file = folder.path.parent / "peers.json"
    folder.add("a", vxlan("10.244.0.0/16", 1, membership={"source": "static", "file": str(file)}))
    assert folder.said() == ["warning a.conflist plugins[0].membership.file"]
    nodes = [{"name": "a", "publicIP": "192.0.2.1", "subnets": ["10.9.1.0/24"]}, {"name": "b", "publicIP": "ten"}]
    file.write_text(json.dumps({"nodes": nodes}))
    assert folder.said() == ["error peers.json nodes[1].publicIP", "error peers.json nodes[0]"]
    assert folder.said(paths=(str(file),)) == ["error peers.json nodes[1].publicIP"]
    mac = addr.unpack_mac(vtep_mac(1, bytes([192, 0, 2, 1])))
    nodes = [
        {"name": "a", "publicIP": "192.0.2.1", "subnets": ["10.244.1.0/24"]},
        {"name": "b", "publicIP": "192.0.2.2", "subnets": [], "vtepMAC": mac},
        {"name": "c", "publicIP": "192.0.2.3", "subnet": ["10.244.3.0/24"]},
    ]
    file.write_text(json.dumps({"nodes": nodes}))
    assert folder.said() == ["error peers.json nodes[2].subnet", "error peers.json nodes[1]"]
    file.rename(folder.path / "peers.json")
    assert "error peers.json " in folder.said()
