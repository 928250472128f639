"""The runtime side against plugins that note what they are given: scripts in a temporary folder, no root needed."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni import netlist
from cni.cache import Attachment
from cni.errors import CniError
from cni.netlist import NetworkList
from cni.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

# Appends environment and stdin to calls.jsonl; ADD adds an interface named after itself to prevResult.
# `NAME.fails` makes it fail with the verb that is in the file, `NAME.says` replaces its answer.
# The interpreter stands behind sh, because a path with a space in it is no shebang line.
PLUGIN = f"""#!/bin/sh
'''exec' "{sys.executable}" -IS "$0" "$@"
' '''
import json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
name = os.path.basename(__file__)
verb = os.environ["CNI_COMMAND"]
stdin = json.load(sys.stdin)
with open(here + "/calls.jsonl", "a") as log:
    log.write(json.dumps({{"plugin": name, "verb": verb, "env": dict(os.environ), "stdin": stdin}}) + "\\n")
if os.path.exists(here + "/" + name + ".fails") and verb in open(here + "/" + name + ".fails").read().split():
    print(json.dumps({{"code": 11, "msg": name + " says no", "details": "ask again"}}))
    sys.exit(1)
if os.path.exists(here + "/" + name + ".says"):
    print(open(here + "/" + name + ".says").read())
elif verb == "ADD":
    result = stdin.get("prevResult", {{"cniVersion": stdin["cniVersion"], "interfaces": []}})
    result["interfaces"].append({{"name": name}})
    print(json.dumps(result))
elif verb == "VERSION":
    print(json.dumps({{"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}}))
"""


class World:
    """A folder of plugins, a cache, and what the plugins were called with."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.cache = folder / "cache"
        self.said: list[str] = []
        for name in ("first", "second", "third"):
            (self.bin / name).write_text(PLUGIN)
            (self.bin / name).chmod(0o755)
        environ = {"PATH": os.environ["PATH"], "FROM_OUTSIDE": "yes", "CNI_COMMAND": "nonsense"}
        self.runtime = Runtime([str(self.bin)], environ, time.monotonic, self.said.append, str(self.cache))

    def fails(self, plugin: str, *verbs: str) -> None:
        (self.bin / f"{plugin}.fails").write_text(" ".join(verbs))

    def calls(self) -> list[dict[str, Any]]:
        """The calls since the last look."""
        log = self.bin / "calls.jsonl"
        if not log.exists():
            return []
        found = [json.loads(line) for line in log.read_text().splitlines()]
        log.unlink()
        return found

    def order(self) -> list[tuple[str, str]]:
        return [(call["verb"], call["plugin"]) for call in self.calls()]

    def cached(self) -> list[Path]:
        results = self.cache / "results"
        return sorted(results.iterdir()) if results.is_dir() else []


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def chain(*plugins: str, **keys: Any) -> NetworkList:
    value = {"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": plugin} for plugin in plugins], **keys}
    return NetworkList(json.dumps(value).encode())


POD = Attachment("pod-1", "eth0", "/run/netns/pod-1", [("IgnoreUnknown", "1"), ("K8S_POD_NAME", "web")])


# ADD


def test_add_runs_the_chain_in_order_and_hands_each_result_to_the_next(world: World) -> None:
    result = world.runtime.add(chain("first", "second", "third"), POD)

    calls = world.calls()
    assert [call["plugin"] for call in calls] == ["first", "second", "third"]
    assert "prevResult" not in calls[0]["stdin"]
    assert calls[1]["stdin"]["prevResult"]["interfaces"] == [{"name": "first"}]
    assert calls[2]["stdin"]["prevResult"]["interfaces"] == [{"name": "first"}, {"name": "second"}]
    assert [interface["name"] for interface in result["interfaces"]] == ["first", "second", "third"]


def test_a_plugin_gets_the_cni_variables_and_the_rest_of_the_environment(world: World) -> None:
    world.runtime.add(chain("first"), POD)

    env = world.calls()[0]["env"]
    assert {key: value for key, value in env.items() if key.startswith(("CNI_", "FROM_"))} == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "pod-1",
        "CNI_NETNS": "/run/netns/pod-1",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web",
        "CNI_PATH": str(world.bin),
        "FROM_OUTSIDE": "yes",
    }


def test_a_plugin_gets_its_configuration_with_unknown_fields_name_and_version(world: World) -> None:
    plugin = {
        "type": "first",
        "Name": "other",
        "keyA": ["some more", {"deep": None}],
        "cni.dev/mine": 1,
        "prevResult": {},
    }
    network = NetworkList(json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": [plugin]}).encode())

    world.runtime.add(network, POD)

    assert world.calls()[0]["stdin"] == {
        "type": "first",
        "keyA": ["some more", {"deep": None}],
        "cniVersion": "1.0.0",
        "name": "net",
    }


def test_only_declared_capabilities_reach_a_plugin(world: World) -> None:
    plugins = [
        {"type": "first", "capabilities": {"mac": True, "portMappings": False, "bandwidth": True}},
        {"type": "second"},
    ]
    pod = Attachment("pod", "eth0", "/n", [], {"mac": "02:00:00:00:00:01", "portMappings": [1], "ips": ["10.0.0.1"]})

    world.runtime.add(chain(plugins=plugins), pod)

    first, second = world.calls()
    assert first["stdin"]["runtimeConfig"] == {"mac": "02:00:00:00:00:01"}
    assert "capabilities" not in first["stdin"]
    assert "runtimeConfig" not in second["stdin"]


def test_a_failed_add_is_followed_by_del_and_leaves_no_cache(world: World) -> None:
    world.fails("second", "ADD")

    with pytest.raises(CniError, match="second says no") as caught:
        world.runtime.add(chain("first", "second", "third"), POD)

    assert (caught.value.code, caught.value.details) == (11, "ask again")
    assert world.order() == [
        ("ADD", "first"), ("ADD", "second"), ("DEL", "third"), ("DEL", "second"), ("DEL", "first"),
    ]  # fmt: skip
    assert world.cached() == []


def test_a_failing_del_after_a_failed_add_does_not_hide_the_first_error(world: World) -> None:
    world.fails("second", "ADD", "DEL")

    with pytest.raises(CniError, match=r"second failed \(ADD\)"):
        world.runtime.add(chain("first", "second"), POD)

    assert any("DEL after the failed ADD" in line for line in world.said)


def test_a_missing_executable_is_found_out_before_the_first_plugin_runs(world: World) -> None:
    with pytest.raises(CniError, match="failed to find plugin 'absent'"):
        world.runtime.add(chain("first", "absent"), POD)
    assert world.calls() == []


def test_a_second_add_is_refused_and_harms_nothing(world: World) -> None:
    world.runtime.add(chain("first"), POD)
    world.calls()

    with pytest.raises(CniError, match="already"):
        world.runtime.add(chain("first"), POD)

    assert world.calls() == []
    assert len(world.cached()) == 1


@pytest.mark.parametrize("answer", ["", "[1]", '{"cniVersion": "9.0.0"}', '{"ips": [{"address": 5}]}'])
def test_an_answer_that_is_no_result_is_refused(world: World, answer: str) -> None:
    (world.bin / "first.says").write_text(answer)
    with pytest.raises(CniError, match="first") as caught:
        world.runtime.add(chain("first"), POD)
    assert caught.value.code == 999
    assert world.cached() == []


def test_a_result_without_version_gets_the_networks(world: World) -> None:
    (world.bin / "first.says").write_text('{"ips": [], "own": 1}')
    assert world.runtime.add(chain("first", cniVersion="0.4.0"), POD) == {"ips": [], "own": 1, "cniVersion": "0.4.0"}


@pytest.mark.parametrize(
    ("container", "ifname"), [("", "eth0"), ("a/b", "eth0"), ("pod", ""), ("pod", "x" * 16), ("pod", "a:b")]
)
def test_invalid_names_are_refused_before_any_effect(world: World, container: str, ifname: str) -> None:
    with pytest.raises(CniError) as caught:
        world.runtime.add(chain("first"), Attachment(container, ifname, "/n"))
    assert caught.value.code == 4
    assert world.calls() == []


# The cache


def test_the_cache_has_libcnis_format_and_modes(world: World) -> None:
    network = chain("first")
    pod = Attachment("pod-1", "eth0", "/run/netns/pod-1", [("A", "b")], {"mac": "x"})

    result = world.runtime.add(network, pod)

    file = world.cache / "results" / "net-pod-1-eth0"
    value = json.loads(file.read_bytes())
    assert base64.b64decode(value.pop("config")) == network.data
    assert value == {
        "kind": "cniCacheV1",
        "containerId": "pod-1",
        "ifName": "eth0",
        "networkName": "net",
        "netns": "/run/netns/pod-1",
        "cniArgs": [["A", "b"]],
        "capabilityArgs": {"mac": "x"},
        "result": result,
    }
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert world.cached() == [file]


def test_what_is_empty_is_left_out_of_the_cache(world: World) -> None:
    world.runtime.add(chain("first"), Attachment("pod", "eth0"))
    assert set(json.loads(world.cached()[0].read_bytes())) == {
        "kind", "containerId", "config", "ifName", "networkName", "result",
    }  # fmt: skip


@pytest.mark.parametrize("torn", [b"", b'{"kind":"cniCacheV1"', b"[]", b'{"kind":"cniCacheV2"}', b"\xff\x00"])
def test_a_torn_cache_file_does_not_stop_del(world: World, torn: bytes) -> None:
    world.runtime.add(chain("first"), POD)
    world.cached()[0].write_bytes(torn)
    world.calls()

    world.runtime.delete(chain("first"), POD)

    assert "prevResult" not in world.calls()[0]["stdin"]
    assert world.cached() == []
    assert any("going on without it" in line for line in world.said)


def test_the_cache_of_an_old_runtime_is_the_result_itself(world: World) -> None:
    old = {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]}
    (world.cache / "results").mkdir(parents=True)
    (world.cache / "results" / "net-pod-1-eth0").write_text(json.dumps(old))

    world.runtime.delete(chain("first"), POD)

    assert world.calls()[0]["stdin"]["prevResult"] == old


def test_two_attachments_whose_file_names_collide_are_told_apart(world: World) -> None:
    # Network a-b with container c, and network a with container b-c, share the name a-b-c-eth0.
    world.runtime.add(chain("first", name="a-b"), Attachment("c", "eth0", "/c"))
    world.calls()

    world.runtime.delete(chain("first", name="a"), Attachment("b-c", "eth0", "/bc"))

    assert "prevResult" not in world.calls()[0]["stdin"]


# DEL


def test_del_runs_in_reverse_with_the_final_result(world: World) -> None:
    network = chain("first", "second")
    result = world.runtime.add(network, POD)
    world.calls()

    world.runtime.delete(network, POD)

    calls = world.calls()
    assert [(call["verb"], call["plugin"]) for call in calls] == [("DEL", "second"), ("DEL", "first")]
    assert [call["stdin"]["prevResult"] for call in calls] == [result, result]
    assert world.cached() == []


@pytest.mark.parametrize(("version", "given"), [("0.3.1", False), ("0.4.0", True), ("1.0.0", True)])
def test_prev_result_came_to_del_with_0_4_0(world: World, version: str, *, given: bool) -> None:
    network = chain("first", cniVersion=version)
    world.runtime.add(network, POD)
    world.calls()
    world.runtime.delete(network, POD)
    assert ("prevResult" in world.calls()[0]["stdin"]) is given


def test_del_uses_the_configuration_and_parameters_of_add(world: World) -> None:
    before = chain(plugins=[{"type": "first", "colour": "red", "capabilities": {"mac": True}}])
    world.runtime.add(before, Attachment("pod", "eth0", "/n", [("K", "v")], {"mac": "m"}))
    world.calls()

    after = chain(plugins=[{"type": "second", "colour": "blue"}])
    world.runtime.delete(after, Attachment("pod", "eth0", "/n"))

    (call,) = world.calls()
    assert (call["plugin"], call["stdin"]["colour"]) == ("first", "red")
    assert call["env"]["CNI_ARGS"] == "K=v"
    assert call["stdin"]["runtimeConfig"] == {"mac": "m"}


def test_the_cached_result_takes_the_form_of_the_configurations_version(world: World) -> None:
    network = chain("first", cniVersion="0.4.0")
    (world.bin / "first.says").write_text('{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]}')
    world.runtime.add(network, POD)
    world.calls()

    world.runtime.delete(network, POD)

    assert world.calls()[0]["stdin"]["prevResult"]["ips"] == [{"address": "10.0.0.2/24", "version": "4"}]


def test_a_failing_del_stops_and_keeps_the_cache_for_the_next_try(world: World) -> None:
    network = chain("first", "second")
    world.runtime.add(network, POD)
    world.calls()
    world.fails("second", "DEL")

    with pytest.raises(CniError, match=r"plugin second failed \(DEL\): second says no"):
        world.runtime.delete(network, POD)

    assert world.order() == [("DEL", "second")]
    assert len(world.cached()) == 1


def test_del_of_what_was_never_added_asks_the_plugins_all_the_same(world: World) -> None:
    world.runtime.delete(chain("first", "second"), POD)
    assert world.order() == [("DEL", "second"), ("DEL", "first")]


# CHECK and STATUS


def test_check_runs_in_order_with_the_final_result(world: World) -> None:
    network = chain("first", "second")
    result = world.runtime.add(network, POD)
    world.calls()

    world.runtime.check(network, POD)

    calls = world.calls()
    assert [(call["verb"], call["plugin"]) for call in calls] == [("CHECK", "first"), ("CHECK", "second")]
    assert [call["stdin"]["prevResult"] for call in calls] == [result, result]


def test_check_needs_0_4_0(world: World) -> None:
    with pytest.raises(CniError, match="does not support the CHECK command") as caught:
        world.runtime.check(chain("first", cniVersion="0.3.1"), POD)
    assert caught.value.code == 1


@pytest.mark.parametrize("word", [True, "true", "TRUE"])
def test_disable_check_makes_check_a_success(world: World, word: object) -> None:
    world.runtime.check(chain("first", disableCheck=word), POD)
    assert world.calls() == []


def test_check_without_add_says_what_it_misses(world: World) -> None:
    with pytest.raises(CniError, match=r"expected .*net-pod-1-eth0"):
        world.runtime.check(chain("first"), POD)


def test_status_asks_every_plugin_and_names_the_first_that_refuses(world: World) -> None:
    assert world.runtime.status(chain("first", "second")) is True
    calls = world.calls()
    assert [(call["verb"], call["plugin"]) for call in calls] == [("STATUS", "first"), ("STATUS", "second")]
    assert calls[0]["stdin"] == {"type": "first", "cniVersion": "1.1.0", "name": "net"}

    world.fails("first", "STATUS")
    with pytest.raises(CniError, match=r"first failed \(STATUS\)") as caught:
        world.runtime.status(chain("first", "second"))
    assert caught.value.code == 11


def test_status_came_with_1_1_0(world: World) -> None:
    assert world.runtime.status(chain("first", cniVersion="1.0.0")) is False
    assert world.calls() == []


# GC


def test_gc_deletes_stale_attachments_first_and_then_asks_the_plugins(world: World) -> None:
    network = chain("first", "second")
    for name in ("alive", "dead"):
        world.runtime.add(network, Attachment(name, "eth0", f"/run/{name}"))
    world.runtime.add(chain("first", name="other"), Attachment("dead", "eth0", "/run/dead"))
    world.calls()

    world.runtime.gc(network, [("alive", "eth0")])

    calls = world.calls()
    assert [(call["verb"], call["plugin"], call["env"]["CNI_CONTAINERID"]) for call in calls] == [
        ("DEL", "second", "dead"), ("DEL", "first", "dead"), ("GC", "first", ""), ("GC", "second", ""),
    ]  # fmt: skip
    assert calls[0]["env"]["CNI_NETNS"] == "/run/dead"
    assert calls[2]["stdin"]["cni.dev/valid-attachments"] == [{"containerID": "alive", "ifname": "eth0"}]
    assert [file.name for file in world.cached()] == ["net-alive-eth0", "other-dead-eth0"]


def test_gc_collects_every_error_and_goes_on(world: World) -> None:
    network = chain("first", "second")
    world.runtime.add(network, Attachment("dead", "eth0", "/run/dead"))
    world.calls()
    world.fails("second", "DEL")
    world.fails("first", "GC")

    with pytest.raises(CniError) as caught:
        world.runtime.gc(network, [])

    assert "plugin second failed (DEL)" in caught.value.msg
    assert "plugin first failed (GC)" in caught.value.msg
    assert world.order() == [("DEL", "second"), ("GC", "first"), ("GC", "second")]


def test_gc_before_1_1_0_deletes_but_does_not_ask(world: World) -> None:
    network = chain("first", cniVersion="1.0.0")
    world.runtime.add(network, POD)
    world.calls()
    world.runtime.gc(network, [])
    assert world.order() == [("DEL", "first")]


def test_disable_gc_keeps_everything(world: World) -> None:
    network = chain("first", disableGC="true")
    world.runtime.add(network, POD)
    world.calls()
    world.runtime.gc(network, [])
    assert world.calls() == []
    assert len(world.cached()) == 1


# VERSION


def test_validate_names_the_capabilities_of_plugins_that_fit(world: World) -> None:
    plugins = [
        {"type": "first", "capabilities": {"mac": True, "ips": False}},
        {"type": "second", "capabilities": {"a": True}},
    ]
    assert world.runtime.validate(chain(plugins=plugins)) == ["a", "mac"]


def test_validate_tells_every_plugin_that_does_not_fit(world: World) -> None:
    with pytest.raises(CniError) as caught:
        world.runtime.validate(chain("first", "absent", cniVersion="0.2.0"))
    assert "plugin first does not support config version '0.2.0'" in caught.value.msg
    assert "failed to find plugin 'absent'" in caught.value.msg


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ('{"cniVersion": "0.2.0"}', ["0.1.0", "0.2.0"]),
        ('{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}', ["1.0.0"]),
    ],
)
def test_versions_of_old_and_new_plugins(world: World, says: str, expected: list[str]) -> None:
    (world.bin / "first.says").write_text(says)
    assert world.runtime.versions("first") == expected


def test_the_lists_of_a_folder_and_of_the_cache_are_put_together_in_del(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "net.d"
    (folder / "net").mkdir(parents=True)
    (folder / "a.conflist").write_text('{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "first"}]}')
    (folder / "net" / "20-extra.conf").write_text('{"type": "second"}')
    world.runtime.add(netlist.load(str(folder), "net", world.said.append), POD)
    (folder / "a.conflist").write_text('{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "third"}]}')
    world.calls()

    world.runtime.delete(netlist.load(str(folder), "net", world.said.append), POD)

    assert world.order() == [("DEL", "second"), ("DEL", "first")]


# Whose turn it is


def test_gc_waits_for_an_add_of_its_network_and_sees_what_it_made(world: World) -> None:
    gate = world.bin / "gate"
    os.mkfifo(gate)
    blocking = PLUGIN.replace(
        "stdin = json.load", f'open("{gate}").read() if verb == "ADD" else None\nstdin = json.load'
    )
    (world.bin / "first").write_text(blocking)
    network = chain("first")
    adding = threading.Thread(target=world.runtime.add, args=(network, POD))
    collecting = threading.Thread(target=world.runtime.gc, args=(network, []))

    adding.start()
    with gate.open("w"):  # returns when the plugin runs, and holds it until the end of the block
        collecting.start()
        wait_until(lambda: holders(world.cache / "cnikit-locks" / "net") == 2)
    adding.join()
    collecting.join()

    assert world.order() == [("ADD", "first"), ("DEL", "first"), ("GC", "first")]
    assert world.cached() == []


def test_the_wait_for_others_is_bounded(world: World) -> None:
    world.runtime.add(chain("first"), POD)
    seconds = itertools.count(0, 6)
    hasty = Runtime([str(world.bin)], {}, lambda: float(next(seconds)), world.said.append, str(world.cache))
    with (world.cache / "cnikit-locks" / "net").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CniError, match="still at work") as caught:
            hasty.delete(chain("first"), POD)
    assert caught.value.code == 11
    assert len(world.cached()) == 1


def test_nothing_but_the_networks_lock_stays(world: World) -> None:
    network = chain("first")
    world.runtime.add(network, POD)
    world.runtime.delete(network, POD)
    assert [path.name for path in (world.cache / "cnikit-locks").iterdir()] == ["net"]


def holders(path: Path) -> int:
    """How many of this process's descriptors are open on a file."""
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return sum(os.path.realpath(link) == str(path) for link in links)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        threading.Event().wait(0.005)
