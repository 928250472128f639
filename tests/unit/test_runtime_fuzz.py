"""Whatever a file holds, the runtime and lint answer with a finding or a CniError, never with a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cli.lint import lint_paths
from cni.cache import Attachment, Cache
from cni.errors import CniError
from cni.netlist import NetworkList

KEYS = [
    "name",
    "cniVersion",
    "cniVersions",
    "plugins",
    "type",
    "ipam",
    "ranges",
    "subnet",
    "rangeStart",
    "rangeEnd",
    "gateway",
    "routes",
    "dst",
    "gw",
    "bridge",
    "mtu",
    "vlan",
    "vlanTrunk",
    "minID",
    "maxID",
    "id",
    "capabilities",
    "mac",
    "args",
    "cni",
    "ips",
    "dns",
    "nameservers",
    "hairpinMode",
    "promiscMode",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
    "Plugins",
    "isGateway",
    "isDefaultGateway",
    "ipMasq",
    "dataDir",
    "kind",
    "containerId",
    "ifName",
    "networkName",
    "result",
    "config",
]
WORDS = (
    "bridge",
    "host-local",
    "loopback",
    "net",
    "1.1.0",
    "0.2.0",
    "10.1.0.0/16",
    "10.1.0.5",
    "fd00::/64",
    "::1",
    "cniCacheV1",
    "",
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.text(max_size=5)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=20,
)
IPAM = st.fixed_dictionaries(
    {"type": st.just("host-local")}, optional={"ranges": VALUES, "subnet": VALUES, "routes": VALUES}
)
PLUGIN = st.fixed_dictionaries(
    {"type": st.just("bridge")}, optional={"ipam": IPAM | VALUES, "mtu": VALUES, "vlanTrunk": VALUES, "args": VALUES}
)
LISTS = VALUES | st.fixed_dictionaries(
    {"name": st.just("net"), "plugins": st.lists(PLUGIN | VALUES, max_size=3)}, optional={"cniVersion": VALUES}
)
ANY_BYTES = st.binary(max_size=60) | LISTS.map(lambda value: json.dumps(value).encode())


@given(data=ANY_BYTES)
@example(b'{"name": "\\ud800"}')
@example(b"[" * 100_000)
def test_any_bytes_are_a_list_or_a_refusal(data: bytes) -> None:
    try:
        NetworkList(data)
    except CniError as error:
        assert error.msg


ODD = {
    "deep": b"[" * 100_000,
    "null": b'{"name": "\\u0000", "plugins": [{"type": "\\u0000"}]}',
    "surrogate": b'{"name": "\\ud800", "type": "\\ud800"}',
    "escape": b'{"\\u001b[2J\\n": 1, "name": "\\n"}',
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_lint_has_an_answer_to_odd_files(data: bytes, tmp_path: Path) -> None:
    answers(data, tmp_path)


@given(data=ANY_BYTES)
def test_lint_has_an_answer_to_everything(data: bytes, tmp_path: Path) -> None:
    answers(data, tmp_path)


def answers(data: bytes, folder: Path) -> None:
    for name in ("fuzz.conflist", "fuzz.conf"):
        (folder / name).write_bytes(data)
        findings, checked = lint_paths([str(folder / name)], [str(folder)])
        assert checked == 1
        assert all(line.isprintable() for finding in findings for line in finding.text().split("\n"))


@given(value=VALUES, keys=st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_any_cache_file_is_read_or_left_alone(value: Any, keys: dict[str, Any], tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir(exist_ok=True)
    pod = Attachment("pod", "eth0")
    for content in (value, {"kind": "cniCacheV1", **keys}):
        (results / "net-pod-eth0").write_text(json.dumps(content))
        said: list[str] = []
        cache = Cache(str(tmp_path), said.append)
        entry = cache.read("net", pod)
        assert entry is not None or said
        cache.all()
