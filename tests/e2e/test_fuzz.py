"""Whatever comes in, a CNI answer comes out: never a traceback, never a hang, never two documents.

Hypothesis makes the input and hypothesis is derandomized (tests/conftest.py): every run tries the same
calls. The calls run on one node; what succeeds by accident is deleted again.
"""

from __future__ import annotations

import copy
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from tests.e2e.world import Answer, Node, Pod, Way

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.ours  # the reference panics at [null] in vlanTrunk, and answers twice at its own netns

PLUGINS = ("bridge", "host-local", "loopback")
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
LONGER_THAN_ANY_WAIT = 40.0
TRIED = (Phase.explicit, Phase.generate)  # no shrinking: every try costs processes

# A configuration that uses nearly every key, so that each can be broken.
FULL: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "fuzz",
    "type": "bridge",
    "bridge": "fuzz0",
    "isGateway": True,
    "isDefaultGateway": True,
    "forceAddress": False,
    "ipMasq": False,
    "ipMasqBackend": "nftables",
    "mtu": 1400,
    "hairpinMode": False,
    "promiscMode": False,
    "vlan": 0,
    "vlanTrunk": [],
    "preserveDefaultVlan": False,
    "macspoofchk": False,
    "enabledad": False,
    "disableContainerInterface": False,
    "portIsolation": False,
    "capabilities": {"mac": True},
    "dns": {"nameservers": ["10.0.0.53"], "domain": "example.org", "search": ["example.org"], "options": ["ndots:5"]},
    "args": {"cni": {"mac": "02:00:00:00:00:01", "ips": ["10.7.0.9"]}},
    "runtimeConfig": {"mac": "02:00:00:00:00:02", "ips": ["fd00:7::9"]},
    "cni.dev/valid-attachments": [{"containerID": "x", "ifname": "eth0"}],
    "ipam": {
        "type": "host-local",
        "ranges": [
            [{"subnet": "10.7.0.0/16", "rangeStart": "10.7.0.4", "rangeEnd": "10.7.0.99", "gateway": "10.7.0.1"}],
            [{"subnet": "fd00:7::/64"}],
        ],
        "routes": [
            {
                "dst": "192.0.2.0/24",
                "gw": "10.7.0.1",
                "mtu": 1300,
                "advmss": 1200,
                "priority": 5,
                "table": 100,
                "scope": 0,
            }
        ],
    },
    "prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1400, "sandbox": "/run/netns/x"}],
        "ips": [{"address": "10.7.0.9/16", "gateway": "10.7.0.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.7.0.1"}],
        "dns": {"nameservers": ["10.0.0.53"]},
    },
}

# What each value of FULL is replaced with, one at a time.
STRANGE: list[Any] = [None, True, 0, -1, 1.5, 1 << 70, "", "x", "ä\x00\n", "9" * 300, [], {}, [None], [[]], {"": {}}]


def key_paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON value, the whole of it first."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from key_paths(item, (*path, key))


def replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy of a JSON value with one place changed."""
    if not path:
        return new
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return changed


@pytest.fixture(scope="module")
def lab(way: Way) -> Iterator[tuple[Node, Pod]]:
    with Node(way) as node:
        yield node, node.pod()


def check(answer: Answer, command: str | None) -> None:
    """The one invariant: a result, silence, the about text, or an error object."""
    assert "Traceback" not in answer.stderr, answer
    assert "panic" not in answer.stderr, answer
    if not command:
        assert answer.status == 0, answer
        assert answer.stdout == b"", answer
        assert "CNI" in answer.stderr, answer
    elif answer.status != 0:
        error = answer.error
        assert error["code"] > 0, answer
        assert "Error:" not in error["msg"].split(" ")[0], f"an exception that nobody expected: {error}"
    elif command in ("ADD", "VERSION"):
        assert isinstance(answer.result.get("cniVersion"), str), answer
    else:
        assert answer.stdout == b"", answer


def call(lab: tuple[Node, Pod], plugin: str, command: str, stdin: bytes, env: dict[str, Any] | None = None) -> Answer:
    """One call, its invariant, and the undoing of an ADD that went well."""
    node, pod = lab
    answer = node.call(plugin, command, stdin, pod, env=env, timeout=LONGER_THAN_ANY_WAIT)
    check(answer, (env or {}).get("CNI_COMMAND", command))
    if command == "ADD" and answer.ok:
        node.call(plugin, "DEL", stdin, pod, env=env).silent()
    return answer


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` cut somewhere, or with some bytes replaced."""
    position = st.integers(0, len(data) - 1)
    cut = position.map(lambda at: data[:at])
    poke = st.tuples(position, st.binary(min_size=1, max_size=4)).map(
        lambda p: data[: p[0]] + p[1] + data[p[0] + len(p[1]) :]
    )
    return cut | poke


STDIN = (
    st.binary(max_size=200)
    | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | JSON_VALUES.map(lambda value: json.dumps(value).encode())
    | damaged(json.dumps(FULL).encode())
)

ANY_BYTES = st.binary(max_size=40).filter(lambda data: b"\0" not in data)
ANY_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
ARGS = st.sampled_from(
    ["IgnoreUnknown=1;IP=10.7.0.5", "IP=", "MAC=zz", ";", "=", "a=b;a=b", "IgnoreUnknown=", "IP=10.7.0.5;;"]
)
ENVIRONMENT = st.fixed_dictionaries(
    {},
    optional={
        "CNI_COMMAND": st.sampled_from(COMMANDS) | ANY_TEXT,
        "CNI_CONTAINERID": ANY_BYTES | ANY_TEXT | st.just("a" * 5000),
        "CNI_IFNAME": ANY_BYTES | ANY_TEXT | st.sampled_from(["eth0", "lo", "..", "a" * 15, "ä" * 8]),
        "CNI_NETNS": ANY_BYTES
        | st.sampled_from(["/", "/dev/null", "/run/netns/x", "/proc/self/ns/net", "/run/" + "a" * 5000]),
        "CNI_ARGS": ANY_BYTES | ARGS,
        "CNI_PATH": ANY_BYTES | st.sampled_from([":", "/", "/dev/null", "relative"]),
        "CNI_NETNS_OVERRIDE": st.sampled_from(["0", "x", "TRUE"]),
        "PATH": ANY_BYTES,
        "HOME": ANY_BYTES,
        "LANG": st.sampled_from(["C", "de_DE.ISO-8859-1", "xx"]),
        "LC_ALL": st.sampled_from(["C", "POSIX", "tr_TR.UTF-8"]),
        "PYTHONHOME": st.just("/nowhere"),
        "PYTHONPATH": st.just("/nowhere"),
        "PYTHONIOENCODING": st.just("ascii"),
        "PYTHONVERBOSE": st.just("1"),
        "TMPDIR": st.just("/nowhere"),
    },
)


@pytest.mark.parametrize("plugin", PLUGINS)
@settings(max_examples=60, phases=TRIED)
@given(command=st.sampled_from(COMMANDS), stdin=STDIN)
@example(command="ADD", stdin=b"[" * 100_000)
@example(command="VERSION", stdin=b"[" * 100_000)
@example(command="ADD", stdin=b'{"a":' * 50_000)
@example(command="ADD", stdin=b'{"cniVersion":"1.1.0","name":"x","mtu":' + b"9" * 5000 + b"}")
@example(command="ADD", stdin=b'{"cniVersion":"\\ud800","name":"x"}')
@example(command="ADD", stdin=b'{"cniVersion":"1.1.0","name":"\\ud800"}')
@example(command="ADD", stdin=b'{"cniVersion":"1.1.0","name":"x","bridge":"\\ud800","ipam":{"type":"\\ud800"}}')
@example(command="DEL", stdin=b'{"cniVersion":"1.1.0","name":"x","ipam":{"type":"host-local","dataDir":"\\u0000"}}')
@example(command="ADD", stdin=b'{"cniVersion":"1.1.0","name":"x","ipam":{"type":"host-local\\u0000"}}')
@example(command="ADD", stdin=b'{"cniVersion":"1.1.0","name":"' + b"n" * 5000 + b'","ipam":{"type":"host-local"}}')
@example(command="ADD", stdin=b'\xef\xbb\xbf{"cniVersion":"1.1.0","name":"x"}')
@example(command="ADD", stdin=b'{"cniVersion":"1.1.0","name":"x","mtu":NaN}')
@example(command="ADD", stdin=b'{"cniVersion":"1.1.0","name":"x","mtu":-Infinity}')
def test_any_stdin(lab: tuple[Node, Pod], plugin: str, command: str, stdin: bytes) -> None:
    call(lab, plugin, command, stdin)


@pytest.mark.parametrize("plugin", PLUGINS)
@settings(max_examples=60, phases=TRIED)
@given(env=ENVIRONMENT, stdin=st.just(json.dumps(FULL).encode()) | STDIN)
def test_any_environment(lab: tuple[Node, Pod], plugin: str, env: dict[str, Any], stdin: bytes) -> None:
    """`PATH` and the rest may be anything as well: an executable of the node's own takes nothing from them."""
    node, pod = lab
    command = env.get("CNI_COMMAND", "ADD")
    if command == "ADD" and env.get("CNI_NETNS_OVERRIDE") == "TRUE":
        env = {**env, "CNI_NETNS": pod.path}  # the node itself is no place for a pod's interface
    answer = node.call(plugin, command, stdin, pod, env=env, timeout=LONGER_THAN_ANY_WAIT)

    check(answer, command)
    if command == "ADD" and answer.ok:
        node.call(plugin, "DEL", stdin, pod, env={**env, "CNI_COMMAND": "DEL"})


SWAPS = [
    (path, new)
    for path, new in itertools.product(key_paths(FULL), STRANGE)
    if path[-1:] != ("dataDir",)  # would write elsewhere
]


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("command", ["ADD", "CHECK"])
@settings(max_examples=120, phases=TRIED)
@given(swap=st.sampled_from(SWAPS))
def test_a_valid_configuration_with_one_value_replaced(
    lab: tuple[Node, Pod], plugin: str, command: str, swap: tuple[tuple[str | int, ...], Any]
) -> None:
    path, new = swap
    call(lab, plugin, command, json.dumps(replaced(FULL, path, new)).encode())


@pytest.mark.ours
@settings(max_examples=80, phases=TRIED)
@given(
    swap=st.sampled_from([(path, new) for path, new in SWAPS if path and path[0] in {"ipam", "runtimeConfig", "dns"}])
)
def test_a_wrong_value_is_named_with_its_path(lab: tuple[Node, Pod], swap: tuple[tuple[str | int, ...], Any]) -> None:
    """A refusal that blames the configuration (code 7) names the key that was changed, or one below or above it."""
    path, new = swap
    answer = call(lab, "bridge", "ADD", json.dumps(replaced(FULL, path, new)).encode())

    if not answer.ok and answer.error["code"] == 7 and path[0] == "ipam" and path[-1] != "type":
        assert str(path[0]) in answer.error["msg"] + answer.error["details"], answer


def test_nothing_is_left_of_all_this(lab: tuple[Node, Pod]) -> None:
    """Runs last in this file: the calls above made nothing that outlives its DEL but the shared bridge."""
    node, pod = lab

    veths = [name for name, link in node.links().items() if link.get("linkinfo", {}).get("info_kind") == "veth"]

    assert veths == []
    assert set(node.links(pod)) == {"lo"}
