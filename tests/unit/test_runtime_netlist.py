"""Which file a network is read from, and what is said about files that are no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cni import netlist
from cni.errors import CniError
from cni.netlist import NetworkList


def conflist(name: str, *types: str, **keys: object) -> str:
    return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": kind} for kind in types], **keys})


def load(folder: Path, name: str) -> NetworkList:
    said: list[str] = []
    return netlist.load(str(folder), name, said.append)


def types(network: NetworkList) -> list[str]:
    return [plugin.type for plugin in network.plugins]


def test_lists_come_before_single_configurations_and_each_kind_by_name(tmp_path: Path) -> None:
    (tmp_path / "05-first.conf").write_text('{"name": "net", "type": "single"}')
    (tmp_path / "20-late.conflist").write_text(conflist("net", "late"))
    (tmp_path / "10-early.conflist").write_text(conflist("net", "early"))
    said: list[str] = []

    network = netlist.load(str(tmp_path), "net", said.append)

    assert types(network) == ["early"]
    assert [("20-late.conflist" in line or "05-first.conf" in line) for line in said] == [True, True]


@pytest.mark.parametrize("extension", ["conf", "json"])
def test_a_single_configuration_becomes_a_list_of_one(tmp_path: Path, extension: str) -> None:
    (tmp_path / f"10.{extension}").write_text('{"cniVersion": "0.4.0", "Name": "net", "type": "a", "mine": [1]}')

    network = load(tmp_path, "net")

    assert (network.name, network.version, types(network)) == ("net", "0.4.0", ["a"])
    assert network.plugins[0].value["mine"] == [1]
    assert json.loads(network.data) == {
        "name": "net",
        "cniVersion": "0.4.0",
        "plugins": [{"cniVersion": "0.4.0", "Name": "net", "type": "a", "mine": [1]}],
    }


def test_other_files_and_folders_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "00-old.conflist.bak").write_text("{")
    (tmp_path / "00-folder.conflist").mkdir()
    (tmp_path / "README").write_text("{")
    (tmp_path / "10.conflist").write_text(conflist("net", "a"))
    assert types(load(tmp_path, "net")) == ["a"]


def test_plugins_of_the_networks_folder_are_appended_by_name(tmp_path: Path) -> None:
    (tmp_path / "10.conflist").write_text(conflist("net", "a"))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "20.conf").write_text('{"type": "c"}')
    (tmp_path / "net" / "10.conf").write_text('{"type": "b"}')
    (tmp_path / "net" / "30.conflist").write_text("{")
    assert types(load(tmp_path, "net")) == ["a", "b", "c"]


@pytest.mark.parametrize("word", [True, "true"])
def test_load_only_inlined_plugins_ignores_the_folder(tmp_path: Path, word: object) -> None:
    (tmp_path / "10.conflist").write_text(conflist("net", "a", loadOnlyInlinedPlugins=word))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "10.conf").write_text('{"type": "b"}')
    assert types(load(tmp_path, "net")) == ["a"]


def test_a_list_may_leave_all_plugins_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "10.conflist").write_text('{"cniVersion": "1.1.0", "name": "net"}')
    with pytest.raises(CniError, match=r"plugins: expected at least one, found none here or in .*net/\*\.conf"):
        load(tmp_path, "net")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "10.conf").write_text('{"type": "b"}')
    assert types(load(tmp_path, "net")) == ["b"]


@pytest.mark.parametrize(
    ("version", "versions", "chosen"),
    [
        (None, None, "0.1.0"),
        ("", None, "0.1.0"),
        ("0.3.1", None, "0.3.1"),
        ("0.3.1", ["0.4.0", "1.1.0", "1.0.0"], "1.1.0"),
        ("1.0.0", ["0.4.0"], "1.0.0"),
        ("1.0.0", ["1.2.0", "2.0.0"], "1.0.0"),
        ("3.0.0", ["0.4.0"], "0.4.0"),
        (None, ["0.4.0", "1.0.0"], "1.0.0"),
        ("0.4.0", [], "0.4.0"),
    ],
)
def test_the_highest_version_that_both_know_is_chosen(version: object, versions: object, chosen: str) -> None:
    assert netlist.choose_version(version, versions) == chosen


@pytest.mark.parametrize(
    ("version", "versions"), [("3.0.0", None), (None, ["9.9.9"]), (1, None), ("1.0.0", "1.1.0"), (None, [1])]
)
def test_versions_that_nobody_here_speaks_are_refused(version: object, versions: object) -> None:
    with pytest.raises(CniError, match="cniVersion"):
        netlist.choose_version(version, versions)


BROKEN = [
    ('{"name": "net",\n "plugins": [}', r"not valid JSON at line 2 column 14"),
    ("[]", "expected a JSON object, found \\[\\]"),
    ('{"plugins": [{"type": "a"}]}', "missing network name"),
    ('{"Name": "net", "plugins": [{"type": "a"}]}', "name: expected this spelling, found 'Name'"),
    ('{"name": 5}', "name: expected a string, found 5"),
    ('{"name": "../etc", "plugins": [{"type": "a"}]}', "name: expected a network name"),
    ('{"name": "n", "cniVersion": 1}', "cniVersion: expected a string, found 1"),
    ('{"name": "n", "disableCheck": "maybe"}', 'disableCheck: expected true or false, found "maybe"'),
    ('{"name": "n", "disableGC": 1}', "disableGC: expected true or false, found 1"),
    ('{"name": "n", "plugins": {}}', "plugins: expected an array, found {}"),
    ('{"name": "n", "plugins": []}', "plugins: expected at least one plugin"),
    ('{"name": "n", "plugins": ["a"]}', r'plugins\[0\]: expected an object, found "a"'),
    ('{"name": "n", "plugins": [{"type": "a"}, {}]}', r"plugins\[1\]\.type: expected a plugin's name, found null"),
    ('{"name": "n", "plugins": [{"type": "a", "capabilities": {"mac": 1}}]}', r"plugins\[0\]\.capabilities\.mac"),
    ('{"name": "n", "loadOnlyInlinedPlugins": true}', "plugins: expected a list, because loadOnlyInlinedPlugins"),
]


@pytest.mark.parametrize(("content", "expected"), BROKEN)
def test_a_broken_file_before_the_match_is_named_with_the_place(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "10-broken.conflist").write_text(content)
    (tmp_path / "20-net.conflist").write_text(conflist("net", "a"))
    with pytest.raises(CniError, match=rf"10-broken\.conflist: {expected}"):
        load(tmp_path, "net")


def test_a_broken_file_after_the_match_is_only_mentioned(tmp_path: Path) -> None:
    (tmp_path / "10-net.conflist").write_text(conflist("net", "a"))
    (tmp_path / "20-broken.conflist").write_text("{")
    said: list[str] = []
    assert types(netlist.load(str(tmp_path), "net", said.append)) == ["a"]
    assert len(said) == 1
    assert "20-broken.conflist" in said[0]


def test_a_list_in_a_conf_file_is_told_to_be_renamed(tmp_path: Path) -> None:
    (tmp_path / "10.conf").write_text(conflist("net", "a"))
    with pytest.raises(CniError, match=r"ends in \.conflist|list of plugins") as caught:
        load(tmp_path, "net")
    assert ".conflist" in caught.value.details


def test_a_name_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "10.conflist").write_text(conflist("this", "a"))
    (tmp_path / "20.conflist").write_text(conflist("that", "a"))
    with pytest.raises(netlist.NotFoundError, match="found only that, this"):
        load(tmp_path, "other")
    with pytest.raises(netlist.NotFoundError, match="found no network configuration at all"):
        load(tmp_path / "nowhere", "other")
