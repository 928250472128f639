"""Membership from a file: however it is written, and whatever is wrong with it meanwhile."""

from __future__ import annotations

import json
import os
import queue
from typing import TYPE_CHECKING, Any

import pytest

from agent.membership import Network, source
from agent.membership.static import File, nodes_of
from cni.config import Reader
from cni.errors import CniError
from plugins.peers import Node

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

OWN = Node("n1", {4: b"\xc0\0\2\1"}, ())
SECONDS = 20.0


class Ear:
    """What was told, in order."""

    def __init__(self) -> None:
        self.heard: queue.Queue[Any] = queue.Queue()

    def replace(self, nodes: list[Node], unread: Collection[str] = ()) -> None:
        self.heard.put([node.name for node in nodes] + [f"{name}?" for name in unread])

    def change(self, put: list[Node], gone: list[str]) -> None:
        raise AssertionError((put, gone))

    def trouble(self, text: str) -> None:
        self.heard.put(text)

    def next(self) -> Any:
        return self.heard.get(timeout=SECONDS)


def content(*names: str) -> str:
    nodes = [{"name": name, "publicIP": f"192.0.2.{number}", "subnets": []} for number, name in enumerate(names, 1)]
    return json.dumps({"nodes": nodes})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "peers.json"
    path.write_text(content("n1"))
    return path


@pytest.fixture
def ear(file: Path) -> Iterator[Ear]:
    made = Ear()
    watched = File(str(file))
    watched.start(OWN, made)
    assert made.next() == ["n1"]
    yield made
    watched.close()


def test_a_file_that_is_replaced(file: Path, ear: Ear) -> None:
    new = file.with_name("new")
    new.write_text(content("n1", "n2"))
    new.rename(file)

    assert ear.next() == ["n1", "n2"]


def test_a_file_that_is_written_in_place(file: Path, ear: Ear) -> None:
    file.write_text(content("n1", "n3"))

    # A look may fall between its truncation and its end.
    told = ear.next()
    while told != ["n1", "n3"]:
        assert isinstance(told, str)
        told = ear.next()


def test_a_symbolic_link_that_is_exchanged(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "peers.json").write_text(content(folder))
    (tmp_path / "data").symlink_to("one")
    heard = Ear()
    watched = File(str(tmp_path / "data" / "peers.json"))
    watched.start(OWN, heard)
    assert heard.next() == ["one"]

    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "data")

    assert heard.next() == ["two"]
    watched.close()


def test_a_half_written_file_is_told_once_and_then_its_end(file: Path, ear: Ear) -> None:
    whole = content("n1", "n2")
    new = file.with_name("new")
    new.write_text(whole[:-9])
    new.rename(file)

    told = ear.next()
    assert told.startswith(f"{file}: ")
    assert "not valid JSON" in told
    file.write_text(whole)

    heard = [ear.next(), ear.next()]
    assert sorted(heard, key=str) == sorted([["n1", "n2"], ""], key=str)


def test_a_file_that_is_gone_is_told_and_comes_back(file: Path, ear: Ear) -> None:
    file.rename(file.with_name("aside"))
    assert "expected a file of nodes, found none: No such file" in ear.next()

    file.with_name("aside").rename(file)

    assert ear.next() == ["n1"]
    assert ear.next() == ""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the input is empty"),
        ("[]", "the file: expected an object"),
        ("{}", "nodes: expected an array of nodes, found null"),
        ('{"nodes": {}}', "nodes: expected an array"),
    ],
)
def test_what_is_no_list_of_nodes_is_said(text: str, complaint: str) -> None:
    with pytest.raises(CniError) as caught:
        nodes_of(text.encode())

    assert complaint in caught.value.msg


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("n2", "nodes[1]: expected an object"),
        ({}, "nodes[1].name"),
        ({"name": "n2"}, "nodes[1].publicIP: expected publicIP or publicIPv6"),
        ({"name": "n2", "publicIP": "127.0.0.1"}, "nodes[1].publicIP: expected an address that other nodes can reach"),
        ({"name": "n2", "publicIP": "192.0.2.9", "subnets": [], "vtepMAC": "00:00:00:00:00:00"}, "nodes[1].vtepMAC"),
        ({"name": "n2", "publicIP": "192.0.2.9", "subnets": ["10.1.2.3/24"]}, "nodes[1].subnets[0]"),
        ({"name": "n2", "publicIP": "192.0.2.9"}, "nodes[1].subnets: expected an array of subnets ([] for none)"),
        ({"name": "n2", "publicIP": "192.0.2.9", "subnets": None}, "nodes[1].subnets: expected an array of subnets"),
        ({"name": "n2", "publicIP": "192.0.2.9", "subnet": []}, "nodes[1].subnet: expected one of name, publicIP"),
    ],
)
def test_what_is_wrong_with_a_node_costs_that_node_only(entry: Any, complaint: str) -> None:
    whole = json.loads(content("n1", "other", "n3"))
    whole["nodes"][1] = entry

    found = nodes_of(json.dumps(whole).encode())

    assert [node.name for node in found.nodes] == ["n1", "n3"]
    (fault,) = found.faults
    assert complaint in fault
    assert found.unread == {entry.get("name", "") if isinstance(entry, dict) else ""}


def test_a_node_that_cannot_be_read_is_named(file: Path, ear: Ear) -> None:
    file.write_text(content("n1", "n2", "n3"))
    while ear.next() != ["n1", "n2", "n3"]:
        pass
    whole = json.loads(content("n1", "n2", "n3"))
    whole["nodes"][1]["publicIP"] = "0.0.0.0"  # noqa: S104 - a node that cannot be
    new = file.with_name("new")
    new.write_text(json.dumps(whole))
    new.rename(file)

    heard = [ear.next(), ear.next()]

    assert heard[0] == ["n1", "n3", "n2?"]
    assert heard[1].startswith(f"{file}: nodes[1].publicIP: expected")


def test_many_wrong_nodes_are_told_in_one_short_text(file: Path, ear: Ear) -> None:
    new = file.with_name("new")
    new.write_text(json.dumps({"nodes": [{}] * 5000}))
    new.rename(file)

    assert ear.next() == ["?"]
    assert ear.next().endswith("and 4997 more")


def test_what_is_no_regular_file_is_told_and_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    os.mkfifo(path)
    heard = Ear()
    watched = File(str(path))
    watched.start(OWN, heard)
    assert heard.next().endswith("found something that is no regular file")

    path.unlink()
    path.mkdir()
    (tmp_path / "new").write_text(content("n1"))
    path.rmdir()
    (tmp_path / "new").rename(path)

    told = heard.next()
    while told != ["n1"]:
        told = heard.next()
    watched.close()


def test_no_nodes_at_all_is_said_explicitly() -> None:
    assert nodes_of(b'{"nodes": []}') == ([], [], frozenset())


def test_two_entries_of_one_name_are_both_given_and_reported() -> None:
    whole = json.loads(content("n1", "n1"))

    found = nodes_of(json.dumps(whole).encode())

    assert [node.name for node in found.nodes] == ["n1", "n1"]
    assert found.faults == [
        "nodes[1].name: expected a name that no other node has, found two of n1, the other at nodes[0]"
    ]
    assert found.unread == frozenset()


def test_the_configurations_peers_are_told_at_once() -> None:
    heard = Ear()
    source(None, Network("lab", (), (OWN,))).start(OWN, heard)

    assert heard.next() == ["n1"]


@pytest.mark.parametrize(
    ("membership", "complaint"),
    [
        ({}, "membership.source: expected one of static, etcd, kubernetes"),
        ({"source": "consul"}, 'found "consul"'),
        ({"source": "static"}, "membership.file: expected the absolute path"),
        ({"source": "static", "file": "peers.json"}, "membership.file: expected the absolute path"),
    ],
)
def test_a_wrong_membership_is_refused(membership: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CniError) as caught:
        source(Reader(membership, "membership"), Network("lab", ()))

    assert complaint in caught.value.msg
