"""Which networks the agent finds in network lists, and what it writes down for their plugins."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster import networks_of
from agent.subnet_file import settle, text_of
from cni import addr
from cni.config import Reader
from cni.errors import CniError
from cni.start import Stamp
from plugins.cluster_conf import ClusterConf
from plugins.peers import Node
from plugins.pod_network import Site
from plugins.this_node import SubnetFile

if TYPE_CHECKING:
    from pathlib import Path

VXLAN = {"type": "vxlan", "network": "10.244.0.0/16", "membership": {"source": "static", "file": "/x"}}


def listed(folder: Path, name: str, *plugins: dict[str, Any]) -> str:
    path = folder / f"{name}.conflist"
    path.write_text(json.dumps({"cniVersion": "1.1.0", "name": name, "plugins": list(plugins)}))
    return str(path)


def test_every_network_of_several_nodes_is_found(tmp_path: Path) -> None:
    one = listed(tmp_path, "one", {"type": "bridge"}, VXLAN)
    two = tmp_path / "two.conf"
    peers = [{"name": "n1", "publicIP": "192.0.2.1"}]
    two.write_text(json.dumps({"name": "two", "type": "host-gw", "network": "10.9.0.0/16", "peers": peers}))

    found = networks_of([one, str(two)])

    assert [(one.conf.name, one.conf.kind, one.lists_us) for one in found] == [
        ("one", "vxlan", True), ("two", "host-gw", True),
    ]  # fmt: skip


def test_a_copied_plugin_is_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "cnv-vxlan").write_bytes(Stamp("vxlan", "build", "code").written(b"\x7fcnikit-stamp1\n\0" + bytes(384)))

    found = networks_of([listed(tmp_path, "one", {**VXLAN, "type": "cnv-vxlan"})], [str(tmp_path)])

    assert [one.conf.kind for one in found] == ["vxlan"]


@pytest.mark.parametrize(
    ("membership", "expected"),
    [
        ({"source": "static", "file": "/x"}, ["", "Of-Conf", "Given"]),
        ({"source": "etcd", "endpoints": ["http://h"]}, ["Host", "Of-Conf", "Given"]),
        ({"source": "kubernetes"}, ["host", "of-conf", "given"]),
    ],
)
def test_whom_a_node_is(tmp_path: Path, membership: dict[str, Any], expected: list[str]) -> None:
    (unnamed,) = networks_of([listed(tmp_path, "one", {**VXLAN, "membership": membership})])
    (named,) = networks_of([listed(tmp_path, "two", {**VXLAN, "membership": membership, "nodeName": "Of-Conf"})])

    assert [unnamed.name("", "Host"), named.name("", "Host"), named.name("Given", "Host")] == expected


@pytest.mark.parametrize(
    ("plugins", "complaint"),
    [
        ([{"type": "bridge"}], "expected a plugin of type vxlan or host-gw, found none"),
        ([{**VXLAN, "vni": 0}], "vni: expected an integer from 1"),
        ([{"type": "vxlan", "network": "10.244.0.0/16"}], "membership: expected a source of members beside no `peers`"),
        ([{"type": "vxlan", "membership": {}}], "network: expected the network's range"),
        ([{**VXLAN, "membership": {"source": "static"}}], "membership.file: expected the absolute path"),
        ([VXLAN, VXLAN], "expected it once, found it twice"),
    ],
)
def test_what_cannot_be_used_is_said_with_the_file(tmp_path: Path, plugins: Any, complaint: str) -> None:
    path = listed(tmp_path, "one", *plugins)

    with pytest.raises(CniError) as caught:
        networks_of([path])

    assert complaint in caught.value.msg


def test_two_networks_with_one_vni_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CniError, match="expected a VNI of its own, found 1 twice"):
        networks_of([listed(tmp_path, "one", VXLAN), listed(tmp_path, "two", VXLAN)])


def test_two_networks_on_one_port_with_and_without_gbp_are_refused(tmp_path: Path) -> None:
    two = {**VXLAN, "network": "10.245.0.0/16", "vni": 2, "gbp": True}

    with pytest.raises(CniError, match="expected gbp as one on UDP port 8472 has it, found it on and off"):
        networks_of([listed(tmp_path, "one", VXLAN), listed(tmp_path, "two", two)])
    assert len(networks_of([listed(tmp_path, "one", VXLAN), listed(tmp_path, "two", {**two, "port": 8473})])) == 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"network": "10.244.0.0/16"}, "network two: expected ranges of its own, found 10.244.0.0/16, which overlaps 10.244.0.0/16 of one"),
        ({"network": "10.244.128.0/17"}, "found 10.244.128.0/17, which overlaps"),
        ({"network": "10.0.0.0/8"}, "found 10.0.0.0/8, which overlaps"),
        ({"network": "", "ipv6Network": "fd00:244:0:1::/64"}, "found fd00:244:0:1::/64, which overlaps fd00:244::/48"),
        ({"network": "10.9.0.0/16", "subnetFile": "/run/cnikit/subnets/one.env"}, "expected a subnetFile of its own"),
    ],
)  # fmt: skip
def test_two_networks_that_would_take_from_each_other_are_refused(
    tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    one = listed(tmp_path, "one", {**VXLAN, "ipv6Network": "fd00:244::/48"})

    with pytest.raises(CniError) as caught:
        networks_of([one, listed(tmp_path, "two", {**VXLAN, "type": "host-gw", **options})])

    assert complaint in caught.value.msg


def test_two_networks_with_nothing_in_common_are_no_twins(tmp_path: Path) -> None:
    one = listed(tmp_path, "one", {**VXLAN, "ipv6Network": "fd00:244::/48"})
    two = {**VXLAN, "network": "10.245.0.0/16", "ipv6Network": "fd00:245::/48", "vni": 2}

    assert [found.conf.name for found in networks_of([one, listed(tmp_path, "two", two)])] == ["one", "two"]


def test_the_subnet_file_is_what_the_plugins_read(tmp_path: Path) -> None:
    conf = ClusterConf(
        Reader(
            {"type": "vxlan", "name": "lab", "network": "10.244.0.0/16", "ipv6Network": "fd00:244::/48", "ipMasq": True}
        )
    )
    subnets = tuple(found for found in map(addr.pack_cidr, ("10.244.1.0/24", "fd00:244:0:1::/64")) if found)
    site = Site(conf, Node("n1", {4: b"\xc0\0\2\1"}, subnets), {}, conf.networks, 1450)
    path = str(tmp_path / "subnets" / "lab.env")

    assert settle(path, text_of(site))
    assert not settle(path, text_of(site)), "it is not written again"

    text = (tmp_path / "subnets" / "lab.env").read_text()
    assert text.splitlines() == [
        "FLANNEL_NETWORK=10.244.0.0/16", "FLANNEL_SUBNET=10.244.1.1/24", "FLANNEL_IPV6_NETWORK=fd00:244::/48",
        "FLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64", "FLANNEL_MTU=1450", "FLANNEL_IPMASQ=true", "CNIKIT_PUBLIC_IP=192.0.2.1",
    ]  # fmt: skip
    read = SubnetFile(text, path)
    assert (read.subnets, read.networks, read.mtu) == (subnets, conf.networks, 1450)
    assert read.addresses == {4: b"\xc0\0\2\1"}
    assert [entry.name for entry in (tmp_path / "subnets").iterdir()] == ["lab.env"]


@pytest.mark.parametrize("found", [b"FLANNEL_SUBNET=\xff\xfe\n", b"x" * (1 << 20), None])
def test_whatever_lies_in_its_place_is_replaced(tmp_path: Path, found: bytes | None) -> None:
    path = tmp_path / "lab.env"
    if found is None:
        os.mkfifo(path)
    else:
        path.write_bytes(found)

    assert settle(str(path), "FLANNEL_MTU=1450\n")

    assert path.read_text() == "FLANNEL_MTU=1450\n"


def test_a_node_without_subnets_has_no_subnet_file(tmp_path: Path) -> None:
    path = tmp_path / "lab.env"
    path.write_text("FLANNEL_SUBNET=10.244.1.1/24\n")
    conf = ClusterConf(Reader({"type": "vxlan", "name": "lab", "network": "10.244.0.0/16"}))

    assert settle(str(path), text_of(Site(conf, Node("n1", {}, ()), {}, conf.networks, 1450)))

    assert not path.exists()
    assert not settle(str(path), "")
