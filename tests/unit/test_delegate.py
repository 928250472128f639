"""Delegation to IPAM: found on CNI_PATH, in-process when the file there is our own, executed when it is not."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from cni.config import Reader
from cni.delegate import Delegate
from cni.dispatch import call_in_process
from cni.errors import INTERNAL, INVALID_CONFIG, INVALID_ENVIRONMENT, CniError
from cni.request import Request
from tests.unit.calls import Node

if TYPE_CHECKING:
    from pathlib import Path

FOREIGN = """#!/bin/sh
echo "$CNI_COMMAND" >> {folder}/verbs
cat > {folder}/stdin
env > {folder}/environ
. {folder}/behaviour
"""
RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.9/24"}]}


class Foreign:
    """An executable of somebody else's on CNI_PATH that notes how it was called."""

    def __init__(self, folder: Path, bin_dir: Path) -> None:
        self._folder = folder
        (bin_dir / "foreign").write_text(FOREIGN.format(folder=folder))
        (bin_dir / "foreign").chmod(0o755)
        self.behave(f"[ $CNI_COMMAND != ADD ] || echo '{json.dumps(RESULT)}'")

    def behave(self, shell: str) -> None:
        (self._folder / "behaviour").write_text(shell)

    @property
    def verbs(self) -> list[str]:
        return (self._folder / "verbs").read_text().split()

    @property
    def stdin(self) -> Any:
        return json.loads((self._folder / "stdin").read_text())

    @property
    def environ(self) -> set[str]:
        return set((self._folder / "environ").read_text().splitlines())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def foreign(tmp_path: Path, node: Node) -> Foreign:
    return Foreign(tmp_path, node.bin_dir)


def delegate(node: Node, command: str, conf: dict[str, Any], log: list[str] | None = None, **env: str) -> Delegate:
    request = Request(node.environ(command, PATH="/usr/bin:/bin", **env))
    return Delegate(node.world(log=log), request, Reader(conf), call_in_process)


def foreign_network(**more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "net", "ipam": {"type": "foreign"}, **more}


def test_foreign_plugin_is_given_all_configuration_and_all_environment(node: Node, foreign: Foreign) -> None:
    conf = foreign_network(prevResult={"ips": []}, runtimeConfig={"ips": ["10.1.0.9"]}, unknown={"deep": [1, None]})

    result = delegate(node, "ADD", conf, CNI_ARGS="IgnoreUnknown=1;X=y", UNRELATED="kept").add()

    assert result.json("1.1.0") == RESULT
    assert foreign.stdin == conf
    assert foreign.environ >= {f"{k}={v}" for k, v in node.environ("ADD").items()} | {
        "UNRELATED=kept",
        "CNI_ARGS=IgnoreUnknown=1;X=y",
    }


@pytest.mark.parametrize(
    ("behaviour", "code", "message"),
    [
        ('echo \'{"code": 11, "msg": "full"}\'; exit 1', 11, "full"),
        ("exit 1", INTERNAL, "exited with 1"),
        ("kill -9 $$", INTERNAL, "signal 9"),
        ("echo 'no json'", INTERNAL, "not valid JSON"),
        ("true", INTERNAL, "expected a result on stdout, found nothing"),
        ("echo 5", INVALID_CONFIG, "result of foreign: expected an object, found 5"),
        ("echo '{\"ips\": 5}'", INVALID_CONFIG, "ips: expected an array"),
    ],
)
def test_failing_add_is_followed_by_del(node: Node, foreign: Foreign, behaviour: str, code: int, message: str) -> None:
    foreign.behave(f"[ $CNI_COMMAND = DEL ] || {{ {behaviour}; }}")

    with pytest.raises(CniError, match=message) as caught:
        delegate(node, "ADD", foreign_network()).add()

    assert caught.value.code == code
    assert foreign.verbs == ["ADD", "DEL"]


def test_failing_del_after_a_failed_add_is_logged_and_does_not_hide_it(node: Node, foreign: Foreign) -> None:
    foreign.behave('echo "{\\"code\\": 50, \\"msg\\": \\"$CNI_COMMAND refused\\"}"; exit 1')
    log: list[str] = []

    with pytest.raises(CniError, match="ADD refused"):
        delegate(node, "ADD", foreign_network(), log).add()

    assert log == ["ipam foreign: DEL after its failed ADD: DEL refused"]


@pytest.mark.parametrize("command", ["CHECK", "STATUS", "GC"])
def test_other_verbs_are_forwarded(node: Node, foreign: Foreign, command: str) -> None:
    delegate(node, command, foreign_network()).forward()

    assert foreign.verbs == [command]


def test_delete_runs_del_whatever_the_caller_is_in(node: Node, foreign: Foreign) -> None:
    delegate(node, "ADD", foreign_network()).delete()
    delegate(node, "DEL", foreign_network()).delete()

    assert foreign.verbs == ["DEL", "DEL"]


def test_own_plugin_is_called_in_process(node: Node) -> None:
    """The file on CNI_PATH is empty: executing it could answer nothing."""
    ipam = delegate(node, "ADD", node.network())

    assert ipam.add().json("1.1.0")["ips"] == [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}]
    ipam.delete()
    assert node.ipam_calls() == ["ADD ctr", "DEL ctr"]


def test_own_plugin_s_failing_add_is_followed_by_del(node: Node) -> None:
    conf = node.network()
    conf["ipam"]["fails"] = {"ADD": 11}

    with pytest.raises(CniError, match="fake-ipam fails at ADD") as caught:
        delegate(node, "ADD", conf).add()

    assert caught.value.code == 11
    assert node.ipam_calls() == ["ADD ctr", "DEL ctr"]


@pytest.mark.parametrize("failure", [RuntimeError("a bug"), OSError(28, "No space left on device")])
def test_own_plugin_s_unexpected_failure_is_followed_by_del(
    node: Node, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    called: list[str] = []

    def add(*_: Any) -> None:
        called.append("ADD")
        raise failure

    module = ModuleType("broken_ipam")
    verbs = {"add": add, "delete": lambda *_: called.append("DEL"), "check": None, "status": None, "gc": None}
    vars(module).update(ARGS=None, NETNS=False, Conf=lambda *_: None, **verbs)
    monkeypatch.setitem(sys.modules, "broken_ipam", module)
    node.registry = {**node.registry, "broken": "broken_ipam"}
    (node.bin_dir / "broken").touch(0o755)

    with pytest.raises(type(failure)):
        delegate(node, "ADD", {"name": "net", "ipam": {"type": "broken"}}).add()

    assert called == ["ADD", "DEL"]


@pytest.mark.parametrize(
    ("ipam", "code", "message"),
    [
        ({"type": "none"}, INVALID_CONFIG, "failed to find plugin 'none' in path"),
        ({"type": "../bin/foreign"}, INVALID_CONFIG, "invalid plugin name"),
        ({"type": 5}, INVALID_CONFIG, "ipam.type: expected a string, found 5"),
    ],
)
def test_delegate_that_cannot_be_found(node: Node, ipam: dict[str, Any], code: int, message: str) -> None:
    with pytest.raises(CniError, match=message) as caught:
        delegate(node, "ADD", {"name": "net", "ipam": ipam})

    assert caught.value.code == code


def test_derived_del_needs_no_more_than_the_add_had(node: Node) -> None:
    """GC's environment has no attachment: a DEL cannot be derived from it, and says so."""
    ipam = delegate(node, "GC", node.network(), CNI_CONTAINERID="", CNI_IFNAME="")

    with pytest.raises(CniError) as caught:
        ipam.delete()

    assert caught.value.code == INVALID_ENVIRONMENT


@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_a_plugin_of_ours_that_is_no_ipam_plugin_is_refused(node: Node, verb: str) -> None:
    """As its own IPAM plugin, bridge would call itself without end."""
    conf = node.network()
    conf["ipam"]["type"] = "bridge"
    (node.bin_dir / "bridge").touch()

    error = node.call("bridge", verb, conf).error

    assert "ipam.type: expected an IPAM plugin, found 'bridge'" in error["msg"]
