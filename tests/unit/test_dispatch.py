"""From bytes to bytes: the order of checks, what each verb needs, the error object, the lock and the taking back."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni import dispatch, errors
from cni.errors import CniError
from cni.lock import Lock
from cni.request import COMMANDS
from cni.result import Interface, Result
from cni.version import SUPPORTED
from tests.unit.calls import POD, REGISTRY, Node, Stdin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cni.context import Context

CONF = {"cniVersion": "1.1.0", "name": "net"}
OWN = "/proc/self/ns/net"


class Toy:
    """A plugin that notes its calls. `act` is what its verbs do; ADD answers with prevResult or an interface."""

    ARGS = ("KNOWN",)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.seen: list[Context] = []
        self.act: Callable[[Context], object] = lambda _: None

    def module(self, *, netns: bool) -> ModuleType:
        module = ModuleType("toy")
        verb = self._verb
        vars(module).update(
            ARGS=self.ARGS, NETNS=netns, Conf=_Conf, add=self._add, delete=verb, check=verb, status=verb, gc=verb
        )
        return module

    def _verb(self, ctx: Context, _conf: Any) -> None:
        self.calls.append(ctx.request.command)
        self.seen.append(ctx)
        self.act(ctx)

    def _add(self, ctx: Context, conf: Any) -> Result:
        self._verb(ctx, conf)
        result = ctx.prev_result or Result()
        result.interfaces.append(Interface(ctx.request.ifname, sandbox=ctx.request.netns))
        return result


class _Conf:
    def __init__(self, config: Any, _request: Any) -> None:
        config.integer("mtu")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setitem(sys.modules, "toy", made.module(netns=True))
    monkeypatch.setitem(sys.modules, "toy_ipam", made.module(netns=False))
    return made


@pytest.fixture
def node(tmp_path: Path, toy: Toy) -> Node:
    made = Node(tmp_path, registry={"toy": "toy", "toy-ipam": "toy_ipam"})
    made.kernel.add_netns(OWN, own=True)
    return made


# What each verb answers


def test_add_answers_with_one_document(node: Node, toy: Toy) -> None:
    answer = node.call("toy", "ADD", CONF)

    assert answer.result == {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": POD}]}
    assert answer.documents == 1
    assert toy.calls == ["ADD"]


@pytest.mark.parametrize("command", ["DEL", "CHECK", "STATUS", "GC"])
def test_other_verbs_say_nothing(node: Node, toy: Toy, command: str) -> None:
    node.call("toy", command, {**CONF, dispatch.VALID_ATTACHMENTS: []}).silent()

    assert toy.calls == [command]


def test_prev_result_is_extended(node: Node) -> None:
    previous = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth1"}], "vendor": {"kept": True}}

    answer = node.call("toy", "ADD", {**CONF, "prevResult": previous})

    assert [item["name"] for item in answer.result["interfaces"]] == ["eth1", "eth0"]
    assert answer.result["vendor"] == {"kept": True}


@pytest.mark.parametrize("version", SUPPORTED[2:])
def test_result_is_in_the_version_asked_for(node: Node, version: str) -> None:
    assert node.call("toy", "ADD", {**CONF, "cniVersion": version}).result["cniVersion"] == version


@pytest.mark.parametrize(
    ("data", "version"),
    [
        (b"", "1.1.0"), (b"{}", "1.1.0"), (b"garbage", "1.1.0"), (b"[]", "1.1.0"), (b'{"cniVersion": 5}', "1.1.0"),
        (b'{"cniVersion": ""}', "1.1.0"), (b'{"cniVersion": "0.3.1"}', "0.3.1"), (b'{"CNIVERSION": "0.2.0"}', "0.2.0"),
        (b'{"cniVersion": "9.9.9"}', "9.9.9"),
    ],
)  # fmt: skip
def test_version_answers_with_the_version_it_was_given(node: Node, data: bytes, version: str) -> None:
    out: list[bytes] = []
    stdin = Stdin(data)

    status = dispatch.serve(node.world(), "toy", {"CNI_COMMAND": "VERSION"}, stdin, lambda _, data: out.append(data))

    assert status == 0
    assert json.loads(b"".join(out)) == {"cniVersion": version, "supportedVersions": list(SUPPORTED)}
    assert stdin.reads == ["probe"]  # it never waits for an end that may not come


def test_version_answers_when_stdin_cannot_be_read(node: Node) -> None:
    class Broken(Stdin):
        def probe(self) -> bytes:
            raise CniError(errors.IO_FAILURE, "broken")

    out: list[bytes] = []
    assert (
        dispatch.serve(node.world(), "toy", {"CNI_COMMAND": "VERSION"}, Broken(b""), lambda _, data: out.append(data))
        == 0
    )
    assert json.loads(out[0])["cniVersion"] == "1.1.0"


# The order of checks, and what is refused

# Each has the faults of all that follow; the first one must be told.
ORDER: list[tuple[str, dict[str, str], bytes, int, str]] = [
    ("environment", {"CNI_CONTAINERID": "", "CNI_IFNAME": "a/b"}, b"{", errors.INVALID_ENVIRONMENT, "CNI_CONTAINERID"),
    ("JSON", {}, b"{", errors.DECODING_FAILURE, "not valid JSON"),
    ("an object", {}, b"[]", errors.DECODING_FAILURE, "expected a JSON object, found []"),
    ("type of name", {}, b'{"name": 5, "cniVersion": "9"}', errors.DECODING_FAILURE, "name: expected a string"),
    ("name missing", {}, b'{"cniVersion": "9"}', errors.INVALID_CONFIG, "missing network name"),
    ("name null", {}, b'{"name": null, "cniVersion": "9"}', errors.INVALID_CONFIG, "missing network name"),
    ("null", {}, b"null", errors.INVALID_CONFIG, "missing network name"),
    ("name", {}, b'{"name": "a/b", "cniVersion": "9"}', errors.INVALID_CONFIG, "name 'a/b': invalid characters"),
    ("version", {}, b'{"name": "n", "cniVersion": "9", "mtu": "x"}', errors.INCOMPATIBLE_VERSION, "cniVersion is '9'"),
    ("type of version", {}, b'{"name": "n", "cniVersion": 1, "mtu": "x"}', errors.DECODING_FAILURE, "cniVersion"),
    ("CNI_ARGS", {"CNI_ARGS": "X=1"}, b'{"name": "n", "mtu": "x"}', errors.INVALID_ENVIRONMENT, "unknown args ['X']"),
    ("prevResult", {}, b'{"name": "n", "prevResult": [], "mtu": "x"}', errors.INVALID_CONFIG, "prevResult: expected"),
    ("plugin's options", {"CNI_NETNS": "/gone"}, b'{"name": "n", "mtu": "x"}', errors.INVALID_CONFIG, "mtu: expected"),
    ("netns", {"CNI_NETNS": "/gone"}, b'{"name": "n"}', errors.INVALID_NETNS, "'/gone', found nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("env", "data", "code", "message"), [c[1:] for c in ORDER], ids=[c[0] for c in ORDER])
def test_the_first_fault_is_told_before_any_effect(
    node: Node, toy: Toy, env: dict[str, str], data: bytes, code: int, message: str
) -> None:
    before = node.snapshot()

    answer = node.call("toy", "ADD", data, env=env)

    assert answer.error["code"] == code
    assert message in answer.error["msg"]
    assert toy.calls == []
    assert node.snapshot() == before
    assert list((node.run_dir / "locks").glob("*")) == []


@pytest.mark.parametrize(
    ("data", "version"),
    [
        (b'{"cniVersion": "0.4.0", "name": ""}', "0.4.0"),
        (b'{"cniVersion": "9.9.9", "name": "n"}', "1.1.0"),
        (b'{"cniVersion": "0.4.0"', "1.1.0"),
        (b"", "1.1.0"),
    ],
)
def test_errors_are_in_the_version_that_was_asked_for(node: Node, data: bytes, version: str) -> None:
    assert node.call("toy", "ADD", data).error["cniVersion"] == version
    # Also when the environment is what is wrong.
    assert node.call("toy", "ADD", data, env={"CNI_IFNAME": ""}).error["cniVersion"] == version


@pytest.mark.parametrize(("command", "since"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
def test_verbs_need_their_version(node: Node, toy: Toy, command: str, since: str) -> None:
    for version in SUPPORTED:
        conf = {**CONF, "cniVersion": version, dispatch.VALID_ATTACHMENTS: []}
        answer = node.call("toy", command, conf)
        if SUPPORTED.index(version) >= SUPPORTED.index(since):
            answer.silent()
        else:
            assert answer.error["code"] == errors.INCOMPATIBLE_VERSION
            assert f"does not allow {command}" in answer.error["msg"]
    assert len(toy.calls) == len(SUPPORTED) - SUPPORTED.index(since)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("version", ["0.1.0", "0.4.0", "1.1.0"])
def test_unknown_args_are_refused_unless_ignored(node: Node, command: str, version: str) -> None:
    if command not in ("ADD", "DEL", "CHECK") or (command == "CHECK" and version == "0.1.0"):
        return
    conf = {**CONF, "cniVersion": "0.4.0" if command == "ADD" else version}
    assert node.call("toy", command, conf, env={"CNI_ARGS": "X=1"}).error["code"] == errors.INVALID_ENVIRONMENT
    assert node.call("toy", command, conf, env={"CNI_ARGS": "X=1;IgnoreUnknown=1"}).status == 0
    assert node.call("toy", command, conf, env={"CNI_ARGS": "KNOWN=1"}).status == 0


# GC's list


@pytest.mark.parametrize(
    ("entries", "pairs"),
    [
        (None, set()),
        ([], set()),
        ([{"containerID": "a", "ifname": "eth0"}], {("a", "eth0")}),
        ([{"CONTAINERID": "a", "ifName": "eth0"}, {"containerID": "b", "ifname": "x"}], {("a", "eth0"), ("b", "x")}),
    ],
)
def test_gc_is_given_the_valid_attachments(node: Node, toy: Toy, entries: Any, pairs: set[tuple[str, str]]) -> None:
    node.call("toy", "GC", {**CONF, dispatch.VALID_ATTACHMENTS: entries}).silent()

    assert toy.seen[0].valid == pairs


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "cni.dev/valid-attachments: expected the list of valid attachments, found no such key"),
        ({dispatch.VALID_ATTACHMENTS: {}}, "cni.dev/valid-attachments: expected an array"),
        ({dispatch.VALID_ATTACHMENTS: ["a"]}, "cni.dev/valid-attachments[0]: expected an object"),
        ({dispatch.VALID_ATTACHMENTS: [{"ifname": "eth0"}]}, "[0].containerID: expected a string, found null"),
        ({dispatch.VALID_ATTACHMENTS: [{"containerID": "a", "ifname": 5}]}, "[0].ifname: expected a string, found 5"),
    ],
)
def test_gc_refuses_a_list_that_it_cannot_read(node: Node, toy: Toy, more: dict[str, Any], message: str) -> None:
    answer = node.call("toy", "GC", {**CONF, **more})

    assert answer.error["code"] == errors.INVALID_CONFIG
    assert message in answer.error["msg"]
    assert toy.calls == []


# The namespace


def test_del_without_a_namespace(node: Node, toy: Toy) -> None:
    for netns in ("", "/gone"):
        node.call("toy", "DEL", CONF, netns=netns).silent()

    assert [ctx.pod for ctx in toy.seen] == [None, None]


@pytest.mark.parametrize("plugin", ["toy", "toy-ipam"])
@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_own_namespace_is_refused(node: Node, toy: Toy, plugin: str, command: str) -> None:
    answer = node.call(plugin, command, CONF, netns=OWN)

    assert answer.error["code"] == errors.INVALID_NETNS
    assert toy.calls == []


def test_del_of_the_own_namespace_counts_as_gone(node: Node, toy: Toy) -> None:
    node.call("toy", "DEL", CONF, netns=OWN).silent()

    assert toy.seen[0].pod is None


@pytest.mark.parametrize("override", ["1", "true", "True"])
def test_own_namespace_can_be_allowed(node: Node, toy: Toy, override: str) -> None:
    assert node.call("toy", "ADD", CONF, netns=OWN, env={"CNI_NETNS_OVERRIDE": override}).status == 0

    assert toy.seen[0].sandbox.ino == toy.seen[0].host.ino


def test_a_plugin_without_netns_is_given_none(node: Node, toy: Toy) -> None:
    for command in ("ADD", "DEL", "CHECK"):
        assert node.call("toy-ipam", command, CONF, netns="/gone").status == 0

    assert [ctx.pod for ctx in toy.seen] == [None] * 3


def test_a_missing_namespace_has_its_code_in_check(node: Node) -> None:
    assert node.call("toy", "CHECK", CONF, netns="/gone").error["code"] == errors.INVALID_NETNS


# DEL must get through


@pytest.mark.parametrize("previous", [[], {"ips": 5}, {"ips": [{"address": "x"}]}, "garbage"])
@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_del_and_gc_go_on_with_a_broken_prev_result(node: Node, toy: Toy, previous: Any, verb: str) -> None:
    conf = {**CONF, "cniVersion": "1.1.0", dispatch.VALID_ATTACHMENTS: [], "prevResult": previous}

    answer = node.call("toy", verb, conf)

    answer.silent()
    assert toy.seen[0].prev_result is None
    assert f"{verb} must not depend on it" in answer.log[0]
    for command in ("ADD", "CHECK"):
        assert node.call("toy", command, {**CONF, "prevResult": previous}).error["code"] == errors.INVALID_CONFIG


# Lock, failures and taking back


def test_del_goes_on_where_no_lock_can_be_made(node: Node, toy: Toy) -> None:
    node.run_dir.mkdir(parents=True, exist_ok=True)
    (node.run_dir / "locks").write_text("no folder")

    assert node.call("toy", "ADD", CONF).error["code"] == errors.IO_FAILURE
    node.call("toy", "DEL", CONF).silent()
    assert [context.request.command for context in toy.seen] == ["DEL"]


def test_an_attachment_is_locked_by_network_and_plugin(node: Node, toy: Toy) -> None:
    locks = node.run_dir / "locks"
    seen: list[list[str]] = []
    toy.act = lambda _: seen.append(os.listdir(locks) if locks.exists() else [])

    for command in ("ADD", "CHECK", "DEL", "STATUS", "GC"):
        node.call("toy", command, {**CONF, dispatch.VALID_ATTACHMENTS: None})

    assert seen == [["net:ctr:eth0:toy"]] * 3 + [[]] * 2
    assert os.listdir(locks) == []


def test_a_busy_attachment_is_code_11(node: Node, toy: Toy) -> None:
    path = node.run_dir / "locks" / "net:ctr:eth0:toy"

    with Lock(str(path), lambda: 0.0):  # the node's clock is a second further at each look
        answer = node.call("toy", "ADD", CONF)

    assert answer.error["code"] == errors.TRY_AGAIN
    assert str(path) in answer.error["msg"]
    assert toy.calls == []
    assert node.call("toy", "ADD", CONF, container="other").status == 0


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (CniError(101, "own", "do this"), 101, "own"),
        (OSError(28, "No space left on device"), errors.IO_FAILURE, "No space left on device"),
        (ZeroDivisionError("a bug"), errors.INTERNAL, "ZeroDivisionError: a bug"),
        (RecursionError(), errors.INTERNAL, "RecursionError"),
    ],
)
def test_failures_become_one_error_object_and_are_taken_back(
    node: Node, toy: Toy, failure: Exception, code: int, message: str
) -> None:
    taken_back: list[str] = []

    def act(ctx: Context) -> None:
        ctx.undo.push("effect", lambda: taken_back.append("effect"))
        raise failure

    toy.act = act

    answer = node.call("toy", "ADD", CONF)

    assert (answer.error["code"], answer.documents) == (code, 1)
    assert message in answer.error["msg"]
    assert taken_back == ["effect"]
    if code == errors.INTERNAL:
        assert "unexpected, at" in answer.error["details"]
        assert "test_dispatch.py" in answer.error["details"]


def test_success_takes_nothing_back(node: Node, toy: Toy) -> None:
    toy.act = lambda ctx: ctx.undo.push("effect", lambda: pytest.fail("taken back"))

    assert node.call("toy", "ADD", CONF).status == 0


def test_an_answer_that_cannot_be_written_is_taken_back(node: Node, toy: Toy) -> None:
    taken_back: list[str] = []
    toy.act = lambda ctx: ctx.undo.push("effect", lambda: taken_back.append("effect"))

    def deliver(_status: int, _data: bytes) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):  # main tells it on stderr
        dispatch.serve(node.world(), "toy", node.environ("ADD"), Stdin(json.dumps(CONF).encode()), deliver)

    assert taken_back == ["effect"]
    assert os.listdir(node.run_dir / "locks") == []


def test_a_result_that_the_version_cannot_tell_is_taken_back(node: Node, toy: Toy) -> None:
    taken_back: list[str] = []
    toy.act = lambda ctx: ctx.undo.push("effect", lambda: taken_back.append("effect"))

    answer = node.call("toy", "ADD", {**CONF, "cniVersion": "0.2.0"})

    assert "no valid IP addresses" in answer.error["msg"]
    assert taken_back == ["effect"]


# Whatever comes

variables = st.dictionaries(
    st.sampled_from(["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"]),
    st.sampled_from(["a", POD, "A=1", "", "/", "\udcff"]) | st.text(max_size=4),
    max_size=2,
)
anything = st.recursive(
    st.sampled_from([None, True, 5, -1, 1e30, 1 << 64, "", "a", "1.1.0", "\ud800", "fake-ipam", "10.1.0.2/24"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["ips", "type", "address", "mac"]), inner)
    ),
    max_leaves=4,
)
options = st.dictionaries(
    st.sampled_from(
        ["prevResult", "ipam", "dns", "args", "runtimeConfig", "mtu", "bridge", "vlan", "vlanTrunk", "ipMasqBackend"]
    ),
    anything,
    max_size=3,
)
configurations = (
    st.builds(lambda more: {"cniVersion": "1.1.0", "name": "n", dispatch.VALID_ATTACHMENTS: [], **more}, options)
    | st.dictionaries(st.sampled_from(["cniVersion", "name", dispatch.VALID_ATTACHMENTS]), anything)
).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40)


@settings(max_examples=200)
@given(st.sampled_from(["bridge", "loopback", "fake-ipam"]), st.sampled_from(COMMANDS), variables, configurations)
def test_any_call_gives_nothing_or_one_document(
    tmp_path_factory: pytest.TempPathFactory, plugin: str, command: str, environ: dict[str, str], data: bytes
) -> None:
    node = Node(tmp_path_factory.mktemp("node"), registry=REGISTRY)

    answer = node.call(plugin, command, data, env=environ)

    if answer.status == 0:
        assert answer.documents == (command in ("ADD", "VERSION"))
    else:
        assert answer.documents == 1
        assert "please report" not in answer.error["details"], answer
