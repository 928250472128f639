"""The network list of an installation: ranges, whose a file is, and what stands beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cli.node import network_list, pod_ranges
from cli.node.root import NodeError, NodeRoot

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH = "10.244.0.0/16,fd00:10:244::/56"


def conflist(name: str = "cnikit", **options: Any) -> dict[str, Any]:
    plugin = {"type": "vxlan", "membership": {"source": "kubernetes"}, "ipam": {"type": "host-local"}, **options}
    return {"cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": name, "plugins": [plugin]}


def write(file: Path, value: Any) -> Path:
    file.write_text(json.dumps(value))
    return file


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("10.244.0.0/16", {"network": "10.244.0.0/16"}),
        ("fd00:10:244::/56", {"ipv6Network": "fd00:10:244::/56"}),
        (BOTH, {"network": "10.244.0.0/16", "ipv6Network": "fd00:10:244::/56"}),
        ("fd00:10:244::/56, 10.244.0.0/16", {"network": "10.244.0.0/16", "ipv6Network": "fd00:10:244::/56"}),
    ],
)
@pytest.mark.parametrize("kind", ["vxlan", "host-gw"])
def test_a_list_without_ranges_is_filled(text: str, keys: dict[str, str], kind: str) -> None:
    value = conflist(type=kind)
    assert network_list.lacks_ranges(value)
    network_list.fill(value, pod_ranges.parse(text, "--pod-cidr"))
    assert value == conflist(type=kind, **keys)
    assert not network_list.lacks_ranges(value)


@pytest.mark.parametrize(
    "own", [{"network": "10.9.0.0/16"}, {"IPV6Network": "fd00:9::/48"}, {"subnetFile": "/run/x.env"}]
)
def test_a_list_with_ranges_keeps_them(own: dict[str, str]) -> None:
    value = conflist(**own)
    assert not network_list.lacks_ranges(value)
    network_list.fill(value, pod_ranges.parse(BOTH, "--pod-cidr"))
    assert value == conflist(**own)


def test_other_plugins_need_no_range() -> None:
    assert not network_list.lacks_ranges({"name": "n", "plugins": [{"type": "bridge"}, {"type": "portmap"}]})


@pytest.mark.parametrize(
    "text", ["", "10.244.0.0", "10.244.0.1/16", "10.0.0.0/8,10.1.0.0/16", "10.0.0.0/33", "a,b", "fd00::/8,"]
)
def test_a_wrong_range_is_refused(text: str) -> None:
    with pytest.raises(NodeError, match="--pod-cidr: expected"):
        pod_ranges.parse(text, "--pod-cidr")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}', '{"plugins": {}}'])
def test_a_template_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "list").write_text(content)
    with pytest.raises(NodeError, match=str(tmp_path / "list")):
        network_list.template(tmp_path / "list")


def test_a_template_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="No such file or directory; name a network list with --list"):
        network_list.template(tmp_path / "list")


@pytest.fixture
def plugins(tmp_path: Path) -> list[str]:
    """CNI_PATH with what the list calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("vxlan", "host-local"):
        (folder / name).touch(0o755)
    return [str(folder)]


def test_what_lint_refuses_is_refused(tmp_path: Path, plugins: list[str]) -> None:
    place = tmp_path / "10-cnikit.conflist"
    with pytest.raises(NodeError) as caught:
        network_list.refuse(place, network_list.encoded(conflist(vni="big", network="10.244.0.0/33")), plugins)
    assert "plugins[0].vni: expected" in str(caught.value)
    assert "plugins[0].network: expected" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(NodeError, match="expected an executable 'vxlan'"):
        network_list.refuse(place, network_list.encoded(conflist(network="10.244.0.0/16")), [])
    with pytest.raises(NodeError, match="expected a file name that ends in .conflist"):
        network_list.refuse(tmp_path / "10-cnikit.conf", network_list.encoded(conflist()), plugins)


def test_the_form_for_all_containerds_is_taken(tmp_path: Path, plugins: list[str]) -> None:
    data = network_list.encoded(conflist(network="10.244.0.0/16"))
    assert network_list.refuse(tmp_path / "10-cnikit.conflist", data, plugins) == []


def test_a_list_of_ours_under_another_name_is_replaced(tmp_path: Path) -> None:
    earlier = write(tmp_path / "05-cnikit.conflist", conflist(mtu=1400))
    recorded = write(tmp_path / "07-renamed.conflist", conflist("renamed"))
    theirs = write(tmp_path / "99-other.conflist", conflist("other"))
    broken = tmp_path / "98-broken.conf"
    broken.write_text("{")
    place = tmp_path / "10-cnikit.conflist"
    data = network_list.encoded(conflist())

    assert network_list.put(place, data, recorded) == [str(earlier), str(recorded)]

    assert sorted(tmp_path.iterdir()) == [place, broken, theirs]
    assert place.read_bytes() == data
    assert place.stat().st_mode & 0o777 == 0o644
    inode = place.stat().st_ino
    assert network_list.put(place, data, place) == []
    assert place.stat().st_ino == inode, "written anew although it was the same"


def test_another_maker_s_file_at_our_place_is_refused(tmp_path: Path) -> None:
    place = write(tmp_path / "10-cnikit.conflist", conflist("theirs"))
    with pytest.raises(NodeError, match=r"found another maker's \(theirs\)"):
        network_list.refuse_place(place, "cnikit", None)
    network_list.refuse_place(place, "cnikit", place)
    network_list.refuse_place(place, "theirs", None)


def test_what_sorts_before_ours_is_reported(tmp_path: Path) -> None:
    place = write(tmp_path / "10-cnikit.conflist", conflist())
    for name in ("05-first.conf", "06-broken.json", "10-a.conflist", "11-later.conflist", "01-none.txt"):
        (tmp_path / name).write_text("{")
    write(tmp_path / "05-first.conf", {"name": "first", "type": "ptp"})
    found = network_list.conflicts(place)
    assert [line.partition(")")[0] for line in found] == [
        f"{tmp_path}/05-first.conf (network first", f"{tmp_path}/06-broken.json (network unknown",
        f"{tmp_path}/10-a.conflist (network unknown",
    ]  # fmt: skip


@pytest.fixture
def linked(tmp_path: Path) -> Callable[[str], Path]:
    """A node's root with links as distributions have them; where a path of the node is from here."""
    (tmp_path / "root/usr/lib/multi").mkdir(parents=True)
    (tmp_path / "root/usr/lib/multi/ld-2.31.so").touch()
    (tmp_path / "root/lib").symlink_to("usr/lib")
    (tmp_path / "root/lib64").symlink_to("/lib/multi")
    (tmp_path / "root/usr/lib/multi/ld.so.2").symlink_to("../../../lib/multi/ld-2.31.so")
    (tmp_path / "root/up").symlink_to("../../../../up/../lib")
    (tmp_path / "root/loop").symlink_to("loop")
    return NodeRoot(str(tmp_path / "root")).place


def test_links_are_followed_in_the_node_s_root(linked: Callable[[str], Path], tmp_path: Path) -> None:
    library = tmp_path / "root/usr/lib/multi/ld-2.31.so"
    assert linked("/lib64/ld.so.2") == library
    assert linked("/lib/multi/../multi/ld.so.2") == library
    assert linked("/nothing/there") == tmp_path / "root/nothing/there"
    for path in ("/loop", "/up"):
        with pytest.raises(OSError, match="Too many levels"):
            linked(path)


def test_a_program_that_does_not_end_is_an_error_with_its_name() -> None:
    with pytest.raises(OSError, match="expected its end, found it running after 0.1 s") as caught:
        NodeRoot().run(["/bin/sleep", "1000"], timeout=0.1)
    assert caught.value.filename == "/bin/sleep"
