"""The protocol as seen from outside: environment, stdin, stdout, exit codes, error objects.

CNI specification 1.1.0, sections 2 (parameters and operations), 4 (delegation) and 5 (result types). Most of it
is one table of calls and the answer each must get. A row marked `ours` is one where the reference answers
otherwise or not at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.world import LEASES, VERSIONS, Node, Pod, Way, network, wait_same

if TYPE_CHECKING:
    from collections.abc import Iterator

ours = pytest.mark.ours

PLUGINS = ("bridge", "host-local", "loopback")
LONGER_THAN_ANY_WAIT = 40.0  # our own waits end after 10 s


@pytest.fixture(scope="module")
def warm(way: Way) -> Iterator[tuple[Node, Pod]]:
    """A node whose shared objects (bridge, folders) are there already, and an empty pod."""
    with Node(way) as node:
        first = node.pod()
        assert node.call("bridge", "ADD", network(ipMasq=True), first).ok
        assert node.call("bridge", "DEL", network(ipMasq=True), first).ok
        yield node, node.pod()


def conf(plugin: str = "bridge", /, **options: Any) -> dict[str, Any]:
    """A valid configuration of any of the three plugins."""
    found = {**network(), "type": plugin, **options}
    return {key: value for key, value in found.items() if value is not DROPPED}


DROPPED = object()
BAD_LISTS: list[Any] = ["all", {}, [5], [{}], [{"containerID": "a"}], [{"containerID": 5, "ifname": "eth0"}]]
ALL_MISSING: dict[str, str | None] = {"CNI_CONTAINERID": None, "CNI_NETNS": None, "CNI_IFNAME": None}


# Refusals: (what, command, configuration or bytes, environment, code, parts of the message)
REFUSED = [
    # the environment: code 4
    pytest.param("JUMP", conf(), {}, 4, ("unknown CNI_COMMAND", "JUMP"), id="unknown command"),
    pytest.param("add", conf(), {}, 4, ("unknown CNI_COMMAND",), id="commands have one case"),
    pytest.param("ADD", conf(), {"CNI_CONTAINERID": None}, 4, ("CNI_CONTAINERID", "missing"), id="ADD without ID"),
    pytest.param("ADD", conf(), {"CNI_NETNS": None}, 4, ("CNI_NETNS", "missing"), id="ADD without netns"),
    pytest.param("ADD", conf(), {"CNI_NETNS": ""}, 4, ("CNI_NETNS", "missing"), id="empty is missing"),
    pytest.param("ADD", conf(), {"CNI_IFNAME": None}, 4, ("CNI_IFNAME", "missing"), id="ADD without ifname"),
    pytest.param("ADD", conf(), ALL_MISSING, 4, ("CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME",), id="ADD names all missing"),
    pytest.param(
        "CHECK", conf(), ALL_MISSING, 4, ("CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME",), id="CHECK names all missing"
    ),
    pytest.param("DEL", conf(), ALL_MISSING, 4, ("CNI_CONTAINERID,CNI_IFNAME",), id="DEL needs no netns"),
    pytest.param("GC", conf(), {"CNI_PATH": None}, 4, ("CNI_PATH", "missing"), id="GC without path"),
    pytest.param(
        "ADD",
        conf(),
        {"CNI_CONTAINERID": "a/b", "CNI_IFNAME": "a:b"},
        4,
        ("CNI_CONTAINERID", "CNI_IFNAME"),
        id="all invalid at once",
        marks=ours,
    ),
    pytest.param(
        "ADD",
        conf(),
        {"CNI_CONTAINERID": None, "CNI_NETNS": None, "CNI_IFNAME": "a:b"},
        4,
        ("CNI_CONTAINERID,CNI_NETNS", "CNI_IFNAME"),
        id="missing and invalid at once",
        marks=ours,
    ),
    pytest.param("ADD", b"{nonsense", ALL_MISSING, 4, ("missing",), id="environment wins over JSON"),
    pytest.param("ADD", b"{nonsense", {"CNI_IFNAME": "a/b"}, 4, (), id="invalid environment wins over JSON"),
    pytest.param("JUMP", b"{nonsense", {}, 4, ("CNI_COMMAND",), id="unknown command wins over JSON", marks=ours),
    *[
        pytest.param("ADD", conf(), {"CNI_CONTAINERID": bad}, 4, (), id=f"container ID {bad!r}")
        for bad in ("a/b", "-a", ".a", "_a", "a b", "a:b", "a\n", "ä", "../a")
    ],
    *[
        pytest.param("ADD", conf(), {"CNI_IFNAME": bad}, 4, (), id=f"interface {bad!r}")
        for bad in ("sixteenletters16", "a/b", "a:b", "a b", "a\t", ".", "..", "/")
    ],
    *[
        pytest.param("ADD", conf(), {"CNI_ARGS": bad}, 4, ("CNI_ARGS",), id=f"CNI_ARGS {bad!r}", marks=ours)
        for bad in (
            "A",
            "A=B=C",
            "IgnoreUnknown=perhaps",
            "IgnoreUnknown=1;A",
            "NO_SUCH=1",
            "IgnoreUnknown=0;NO_SUCH=1",
        )
    ],
    # JSON: code 6
    *[
        pytest.param("ADD", bad, {}, 6, (), id=f"stdin {bad[:20]!r}")
        for bad in (
            b"",
            b"  \n",
            b"{",
            b"nonsense",
            b'{"a":1}}',
            b"[]",
            b'"text"',
            b"5",
            b"{'name': 'net'}",
            b"\xff\xfe",
            b"true",
        )
    ],
    pytest.param("ADD", b'{"cniVersion":"1.1.0","name":5,"type":"bridge"}', {}, 6, ("name",), id="name is a number"),
    pytest.param("ADD", conf(cniVersion=1), {}, 6, (), id="cniVersion is a number"),
    pytest.param("ADD", conf(cniVersion=True), {}, 6, (), id="cniVersion is true"),
    # names and versions: 7 and 1
    pytest.param("ADD", b"null", {}, 7, ("missing network name",), id="null has no name"),
    pytest.param("ADD", b"{}", {}, 7, ("missing network name",), id="no name"),
    pytest.param("ADD", conf(name=""), {}, 7, ("missing network name",), id="empty name"),
    pytest.param("ADD", conf(name=None), {}, 7, ("missing network name",), id="name is null"),
    *[
        pytest.param("ADD", conf(name=bad), {}, 7, (), id=f"name {bad!r}")
        for bad in ("a/b", "..", "-a", "a b", "ä", "a\n")
    ],
    *[
        pytest.param(command, conf(cniVersion="9.9.9"), {}, 1, ("incompatible CNI versions",), id=f"{command} at 9.9.9")
        for command in ("ADD", "DEL")
    ],
    *[
        pytest.param(
            "CHECK", conf(cniVersion=old), {}, 1, ("config version does not allow CHECK",), id=f"CHECK at {old}"
        )
        for old in VERSIONS[:4]
    ],
    *[
        pytest.param(
            command,
            conf(cniVersion=old),
            {},
            1,
            (f"config version does not allow {command}",),
            id=f"{command} at {old}",
        )
        for command in ("GC", "STATUS")
        for old in VERSIONS[:6]
    ],
    # the network namespace: code 8
    pytest.param(
        "ADD", conf(), {"CNI_NETNS": "/run/netns/nobody"}, 8, ("/run/netns/nobody",), id="no netns", marks=ours
    ),
    pytest.param("ADD", conf(), {"CNI_NETNS": "/etc/passwd"}, 8, ("/etc/passwd",), id="netns is a file", marks=ours),
    pytest.param("ADD", conf(), {"CNI_NETNS": "/"}, 8, (), id="netns is a folder", marks=ours),
    pytest.param(
        "ADD", conf(), {"CNI_NETNS": "/proc/self/ns/mnt"}, 8, (), id="a namespace of another kind", marks=ours
    ),
    pytest.param(
        "ADD", conf(), {"CNI_NETNS": "/proc/self/ns/net"}, 8, ("should not be the same",), id="own netns", marks=ours
    ),
    # the configuration: code 7 with the key path, what was found and what was expected
    *[
        pytest.param("ADD", conf(**{key: value}), {}, 7, parts, id=f"{key}={json.dumps(value)[:40]}", marks=ours)
        for key, value, parts in (
            ("mtu", True, ("mtu", "true", "integer")),
            ("mtu", "1500", ("mtu", "1500", "integer")),
            ("mtu", 1500.5, ("mtu", "1500.5", "integer")),
            ("mtu", 1e3, ("mtu", "1000", "integer")),
            ("mtu", -1, ("mtu", "-1")),
            ("ipMasq", 1, ("ipMasq", "1", "true or false")),
            ("isGateway", "true", ("isGateway", "true")),
            ("bridge", 5, ("bridge", "5", "string")),
            ("bridge", "sixteenletters16", ("bridge", "sixteenletters16")),
            ("bridge", "a/b", ("bridge", "a/b")),
            ("vlan", 4095, ("vlan", "4095")),
            ("vlan", -1, ("vlan", "-1")),
            ("vlan", "5", ("vlan", "5")),
            ("ipMasqBackend", "ebpf", ("ipMasqBackend", "ebpf")),
            ("ipam", [], ("ipam", "object")),
            ("ipam", {"type": 5}, ("ipam.type", "5", "string")),
            ("ipam", {"type": "host-local"}, ("ipam.ranges",)),
            ("ipam", {"type": "host-local", "ranges": [[{"subnet": 5}]]}, ("ipam.ranges[0][0].subnet", "5")),
            (
                "ipam",
                {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0"}]]},
                ("ipam.ranges[0][0].subnet", "10.1.0.0"),
            ),
            ("ipam", {"type": "host-local", "ranges": [{"subnet": "10.1.0.0/16"}]}, ("ipam.ranges[0]",)),
            (
                "ipam",
                {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.9.9"}]]},
                ("ipam.ranges[0][0].rangeEnd", "10.1.9.9", "10.1.0.0/24"),
            ),
            ("dns", {"nameservers": "10.0.0.1"}, ("dns.nameservers", "10.0.0.1", "array")),
            ("dns", {"nameservers": [5]}, ("dns.nameservers[0]", "5", "string")),
            ("args", {"cni": {"mac": "zz"}}, ("mac", "zz")),
            ("runtimeConfig", {"mac": "zz"}, ("runtimeConfig.mac", "zz")),
            ("runtimeConfig", {"ips": ["10.1.0.999"]}, ("runtimeConfig.ips[0]", "10.1.0.999")),
            ("prevResult", [], ("prevResult", "object")),
            ("prevResult", {"ips": [{"address": "x"}]}, ("prevResult.ips[0].address", "x")),
        )
    ],
    # refused by both, with the reference's words
    *[
        pytest.param("ADD", conf(**{key: value}), {}, None, parts, id=f"both: {key}={json.dumps(value)[:40]}")
        for key, value, parts in (
            ("vlan", 5000, ("5000", "4094")),
            ("vlanTrunk", [{"minID": 5}], ("maxID",)),
            ("vlanTrunk", [{"minID": 9, "maxID": 5}], ("minID",)),
            ("vlanTrunk", [{"id": 0}], ()),
            ("disableContainerInterface", True, ("isableContainerInterface",)),
            ("bridge", "lo", ("lo",)),
        )
    ],
    *[
        pytest.param("ADD", conf(ipam={"type": name}), {}, 7, (name,), id=f"ipam {name}", marks=ours)
        for name in ("no-such-ipam", "../host-local", ".", "a/b")
    ],
    pytest.param(
        "ADD", conf(hairpinMode=True, promiscMode=True), {}, None, ("hairpin", "promisc"), id="hairpin and promisc"
    ),
    # GC's list
    pytest.param("GC", conf(), {}, 7, ("cni.dev/valid-attachments",), id="GC without a list", marks=ours),
    *[
        pytest.param(
            "GC",
            conf(**{"cni.dev/valid-attachments": bad}),
            {},
            7,
            ("valid-attachments",),
            id=f"GC list {bad!r}",
            marks=ours,
        )
        for bad in BAD_LISTS
    ],
]


@pytest.mark.parametrize(("command", "stdin", "env", "code", "parts"), REFUSED)
def test_refusal(
    warm: tuple[Node, Pod],
    command: str,
    stdin: dict[str, Any] | bytes,
    env: dict[str, str | None],
    code: int | None,
    parts: tuple[str, ...],
) -> None:
    """The code, the words, and that nothing happened. `None`: any code but a wrong one of the spec's first six."""
    node, pod = warm
    before = node.snapshot()

    answer = node.call("bridge", command, stdin, pod, env=env)

    error = answer.error
    assert error["code"] == code if code else error["code"] in {4, 7, 999}, error
    assert all(part in error["msg"] + error.get("details", "") for part in parts), error
    assert set(node.links(pod)) == {"lo"}
    wait_same(node.snapshot, before, f"refused with {error}, but something changed")


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize(
    ("command", "stdin", "env", "code"),
    [
        ("JUMP", conf(), {}, 4),
        ("ADD", b"", ALL_MISSING, 4),
        ("DEL", b"", {"CNI_IFNAME": ".."}, 4),
        ("ADD", b"{", {}, 6),
        ("ADD", b"{}", {}, 7),
        ("DEL", conf(cniVersion="2.0.0"), {}, 1),
        ("CHECK", conf(cniVersion="0.3.1"), {}, 1),
        ("GC", conf(cniVersion="1.0.0"), {}, 1),
        ("STATUS", conf(cniVersion="0.4.0"), {}, 1),
    ],
)
def test_every_plugin_refuses_alike(
    warm: tuple[Node, Pod], plugin: str, command: str, stdin: Any, env: dict[str, str | None], code: int
) -> None:
    node, pod = warm

    answer = node.call(plugin, command, stdin, pod, env=env)

    assert answer.error["code"] == code


@ours
@pytest.mark.parametrize(
    ("stdin", "said"),
    [(b"{}", "1.1.0"), (b'{"cniVersion":"0.4.0"}', "0.4.0"), (b'{"cniVersion":"7.0.0"}', "1.1.0"), (b"junk", "1.1.0")],
)
def test_error_object(warm: tuple[Node, Pod], stdin: bytes, said: str) -> None:
    """An error carries all four keys, and the version it was asked in when that is one we speak."""
    node, pod = warm

    error = node.call("bridge", "ADD", stdin, pod).error

    assert set(error) == {"cniVersion", "code", "msg", "details"}
    assert error["cniVersion"] == said


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("command", [None, ""])
def test_about(warm: tuple[Node, Pod], plugin: str, command: str | None) -> None:
    node, _ = warm

    answer = node.call(plugin, "", b"", env={"CNI_COMMAND": command})

    assert answer.status == 0
    assert answer.stdout == b""
    assert plugin in answer.stderr
    assert all(version in answer.stderr for version in VERSIONS)


class TestVersion:
    """VERSION: one JSON value, end of file, or 100 ms of silence on stdin."""

    @pytest.mark.parametrize("plugin", PLUGINS)
    @pytest.mark.parametrize(
        "stdin", [b"", b"null", b"{}", b"junk", b"[1]", b'{"cniVersion":5}', b'{"cniVersion":""}', b"\xff"]
    )
    def test_without_a_version(self, warm: tuple[Node, Pod], plugin: str, stdin: bytes) -> None:
        answer = warm[0].call(plugin, "VERSION", stdin)

        assert answer.result == {"cniVersion": "1.1.0", "supportedVersions": list(VERSIONS)}

    @ours
    @pytest.mark.parametrize("asked", [*VERSIONS, "9.9.9", "0.4"])
    def test_with_a_version(self, warm: tuple[Node, Pod], asked: str) -> None:
        answer = warm[0].call("bridge", "VERSION", {"CNIVersion": asked})

        assert answer.result == {"cniVersion": asked, "supportedVersions": list(VERSIONS)}

    def test_needs_nothing_else(self, warm: tuple[Node, Pod]) -> None:
        answer = warm[0].call("bridge", "VERSION", b"", env={"CNI_PATH": None, "PATH": None, "CNI_ARGS": "bad"})

        assert answer.result["supportedVersions"] == list(VERSIONS)

    @pytest.mark.parametrize("written", [b"", b'{"cniVersion":', b'{"cniVersion":"1.1.0"}', b"junk"])
    def test_with_a_writer_that_never_ends(self, warm: tuple[Node, Pod], written: bytes) -> None:
        node, _ = warm
        read_end, write_end = os.pipe()
        try:
            os.write(write_end, written)
            process = node.spawn(
                node.executable("bridge"), env=node.environ("VERSION"), stdin=read_end, stdout=-1, stderr=-1
            )
            out, _ = process.communicate(timeout=LONGER_THAN_ANY_WAIT)
        finally:
            os.close(read_end)
            os.close(write_end)

        assert json.loads(out) == {"cniVersion": "1.1.0", "supportedVersions": list(VERSIONS)}


class TestStdin:
    """A configuration that never comes, or never ends."""

    @ours
    @pytest.mark.parametrize("written", [b"", b'{"cniVersion":"1.1.0",', json.dumps(network()).encode()])
    def test_silence_is_code_5(self, warm: tuple[Node, Pod], written: bytes) -> None:
        node, pod = warm
        read_end, write_end = os.pipe()
        try:
            os.write(write_end, written)
            process = node.spawn(
                node.executable("bridge"), env=node.environ("ADD", pod), stdin=read_end, stdout=-1, stderr=-1
            )
            out, _ = process.communicate(timeout=LONGER_THAN_ANY_WAIT)
        finally:
            os.close(read_end)
            os.close(write_end)

        assert process.returncode == 1
        assert json.loads(out)["code"] == 5
        assert set(node.links(pod)) == {"lo"}

    @pytest.mark.parametrize("plugin", PLUGINS)
    @pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
    def test_closed_streams(self, warm: tuple[Node, Pod], plugin: str, closed: str) -> None:
        node, pod = warm

        answer = node.attempt("/bin/sh", "-c", f"exec {node.executable(plugin)} {closed}", env=node.environ("ADD", pod))

        assert answer.error["code"] in {5, 6}

    def test_closed_stdin_and_version(self, warm: tuple[Node, Pod]) -> None:
        node, _ = warm

        answer = node.attempt("/bin/sh", "-c", f"exec {node.executable('bridge')} <&-", env=node.environ("VERSION"))

        assert answer.result["cniVersion"] == "1.1.0"

    @ours
    def test_nobody_reads_the_result(self, node: Node) -> None:
        """An ADD whose result cannot be delivered is taken back."""
        first, pod = node.pod(), node.pod()
        assert node.call("bridge", "ADD", network(ipMasq=True), first).ok
        assert node.call("bridge", "DEL", network(ipMasq=True), first).ok
        before = node.snapshot()

        answer = node.attempt(
            "/bin/sh", "-c", f"exec {node.executable('bridge')} >/dev/full",
            env=node.environ("ADD", pod), stdin=json.dumps(network(ipMasq=True)).encode(),
        )  # fmt: skip

        assert answer.status == 1
        assert "Traceback" not in answer.stderr
        assert set(node.links(pod)) == {"lo"}
        wait_same(node.snapshot, before, "the undelivered ADD left something")

    @pytest.mark.parametrize("pause", [1, 7, 100])
    def test_configuration_in_pieces(self, node: Node, pause: int) -> None:
        """A slow writer is no error, whatever the pieces are."""
        pod = node.pod()
        data = json.dumps(network(dns={"domain": "ä" * 5})).encode()
        process = node.spawn(
            node.executable("host-local"), env=node.environ("ADD", pod), stdin=-1, stdout=-1, stderr=-1
        )
        assert process.stdin is not None
        for start in range(0, len(data), pause):
            os.write(process.stdin.fileno(), data[start : start + pause])
        out, _ = process.communicate(timeout=LONGER_THAN_ANY_WAIT)

        assert json.loads(out)["ips"][0]["address"] == "10.1.0.2/16"


class TestSilentSuccess:
    """Nothing on stdout, exit 0."""

    @pytest.mark.parametrize("plugin", PLUGINS)
    @pytest.mark.parametrize("listed", [None, [], [{"containerID": "somebody", "ifname": "eth0"}]])
    def test_gc(self, warm: tuple[Node, Pod], plugin: str, listed: Any) -> None:
        warm[0].call(plugin, "GC", conf(plugin, **{"cni.dev/valid-attachments": listed})).silent()

    @pytest.mark.parametrize("plugin", PLUGINS)
    def test_status(self, warm: tuple[Node, Pod], plugin: str) -> None:
        warm[0].call(plugin, "STATUS", conf(plugin)).silent()

    @pytest.mark.parametrize("plugin", PLUGINS)
    def test_del_of_nothing(self, warm: tuple[Node, Pod], plugin: str) -> None:
        node, pod = warm

        for _ in range(3):
            node.call(plugin, "DEL", conf(plugin), pod).silent()

    @pytest.mark.parametrize("plugin", ["bridge", "host-local"])
    @pytest.mark.parametrize("netns", [None, "", "/run/netns/nobody"])
    def test_del_without_netns(self, warm: tuple[Node, Pod], plugin: str, netns: str | None) -> None:
        node, pod = warm

        node.call(plugin, "DEL", conf(plugin), pod, env={"CNI_NETNS": netns}).silent()

    @pytest.mark.parametrize("plugin", PLUGINS)
    def test_check_right_after_add(self, node: Node, plugin: str) -> None:
        pod = node.pod()
        result = node.call(plugin, "ADD", conf(plugin), pod).result

        node.call(plugin, "CHECK", conf(plugin, prevResult=result), pod).silent()


class TestKeys:
    """Reading of configurations: Go's rules, since the configurations are written for Go."""

    def test_keys_match_in_any_case(self, node: Node) -> None:
        pod = node.pod()
        shouted = {
            "CNIVERSION": "1.0.0",
            "Name": "net",
            "TYPE": "bridge",
            "BRIDGE": "br7",
            "isdefaultgateway": True,
            "IPAM": {"Type": "host-local", "RANGES": [[{"SubNet": "10.9.0.0/24"}]]},
        }

        result = node.call("bridge", "ADD", shouted, pod).result

        assert result["cniVersion"] == "1.0.0"
        assert result["interfaces"][0]["name"] == "br7"
        assert result["ips"][0]["address"] == "10.9.0.2/24"

    def test_null_is_absent(self, node: Node) -> None:
        pod = node.pod()
        nulls: dict[str, Any] = dict.fromkeys(
            ("bridge", "mtu", "ipMasq", "hairpinMode", "vlan", "vlanTrunk", "args", "runtimeConfig", "dns")
        )

        result = node.call("bridge", "ADD", network(**nulls, prevResult=None), pod).result

        assert result["interfaces"][0]["name"] == "cni0"

    def test_unknown_keys_are_ignored(self, node: Node) -> None:
        pod = node.pod()
        strange: dict[str, Any] = {
            "x-vendor": {"a": [1]},
            "capabilities": {"ips": True},
            "runtimeConfig": {"cniDeviceInfoFile": "x"},
        }

        assert node.call("bridge", "ADD", network(**strange), pod).ok

    def test_the_last_of_two_equal_keys_counts(self, node: Node) -> None:
        pod = node.pod()
        data = json.dumps(network()).replace('"bridge": "cni0"', '"bridge": "br1", "bridge": "br2"').encode()

        result = node.call("bridge", "ADD", data, pod).result

        assert result["interfaces"][0]["name"] == "br2"

    @pytest.mark.parametrize(
        ("plugin", "version"),
        [
            # The reference's loopback answers every version in the form of 1.0.0.
            pytest.param(plugin, version, marks=ours if plugin == "loopback" and version < "0.3.0" else ())
            for plugin in PLUGINS
            for version in VERSIONS
        ],
    )
    def test_the_answer_has_the_version_asked_for(self, node: Node, plugin: str, version: str) -> None:
        pod = node.pod()

        result = node.call(plugin, "ADD", conf(plugin, cniVersion=version), pod).result

        assert result["cniVersion"] == version
        assert ("ip4" in result) == (version < "0.3.0")

    @pytest.mark.parametrize("missing", [DROPPED, None, ""])
    def test_no_version_is_the_oldest(self, node: Node, missing: Any) -> None:
        pod = node.pod()

        result = node.call("host-local", "ADD", conf("host-local", cniVersion=missing), pod).result

        assert result["ip4"]["ip"] == "10.1.0.2/16"

    @ours
    def test_mtu_of_interfaces_from_1_1_0(self, node: Node) -> None:
        old, new = node.pod(), node.pod()

        before = node.call("bridge", "ADD", network(version="1.0.0", mtu=1400), old).result
        after = node.call("bridge", "ADD", network(version="1.1.0", mtu=1400), new).result

        assert ["mtu" in item for item in before["interfaces"]] == [False, False, False]
        assert [item["mtu"] for item in after["interfaces"]][1:] == [1400, 1400]


class TestOwnNetns:
    """CNI_NETNS that is the plugin's own: the node's network must not be taken for a pod's."""

    @ours
    def test_del_touches_nothing(self, node: Node) -> None:
        node.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0-peer")
        before = node.snapshot()

        node.call("bridge", "DEL", network(), node.pod(), env={"CNI_NETNS": "/proc/self/ns/net"}).silent()

        wait_same(node.snapshot, before, "DEL with the node's own netns changed it")

    @ours
    def test_del_still_releases_the_lease(self, node: Node) -> None:
        pod = node.pod()
        assert node.call("bridge", "ADD", network(), pod).ok

        node.call("bridge", "DEL", network(), pod, env={"CNI_NETNS": "/proc/self/ns/net"}).silent()

        assert node.leases("net") == {}

    @pytest.mark.parametrize("value", ["1", "true", "TRUE", "True"])
    def test_override(self, node: Node, value: str) -> None:
        pod = node.pod()
        env: dict[str, str | None] = {"CNI_NETNS": "/proc/self/ns/net", "CNI_NETNS_OVERRIDE": value}

        result = node.call("bridge", "ADD", network(isDefaultGateway=False), pod, env=env).result

        assert result["interfaces"][2]["sandbox"] == "/proc/self/ns/net"
        assert "eth0" in node.links()
        node.call("bridge", "DEL", network(isDefaultGateway=False), pod, env=env).silent()
        assert "eth0" not in node.links()

    @ours
    @pytest.mark.parametrize("value", ["0", "false", "yes", ""])
    def test_no_override(self, node: Node, value: str) -> None:
        env: dict[str, str | None] = {"CNI_NETNS": "/proc/self/ns/net", "CNI_NETNS_OVERRIDE": value}

        assert node.call("bridge", "ADD", network(), node.pod(), env=env).error["code"] == 8


class TestPrevResult:
    """A plugin that is not the first of its chain."""

    BEFORE: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "dummy7", "mac": "02:00:00:00:00:07", "sandbox": "/run/netns/x"}],
        "ips": [{"address": "192.0.2.9/24", "gateway": "192.0.2.1", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}],
        "dns": {"nameservers": ["192.0.2.53"], "domain": "example.org"},
    }

    def test_loopback_passes_it_through(self, node: Node) -> None:
        pod = node.pod()

        result = node.call("loopback", "ADD", conf("loopback", prevResult=self.BEFORE), pod).result

        assert result == self.BEFORE

    @ours
    def test_bridge_extends_it(self, node: Node) -> None:
        pod = node.pod()

        result = node.call("bridge", "ADD", network(prevResult=self.BEFORE), pod).result

        assert [item["name"] for item in result["interfaces"]][:2] == ["dummy7", "cni0"]
        assert result["ips"][0] == self.BEFORE["ips"][0]
        assert result["ips"][1]["interface"] == 3
        assert result["interfaces"][3]["name"] == "eth0"
        assert self.BEFORE["routes"][0] in result["routes"]

    def test_check_without_it_is_refused(self, node: Node) -> None:
        pod = node.pod()
        assert node.call("bridge", "ADD", network(), pod).ok

        assert node.call("bridge", "CHECK", network(), pod).error["code"] in {7, 999}


class TestDelegation:
    """A third party's IPAM plugin on CNI_PATH: a shell script that writes down how it was called."""

    SCRIPT = """#!/bin/sh
echo "$CNI_COMMAND" >> /run/calls
env > /run/env
cat > /run/stdin
case $CNI_COMMAND in
  ADD) {add} ;;
  *) {other} ;;
esac
"""
    GOOD = """echo '{"cniVersion":"1.1.0","ips":[{"address":"10.5.0.9/24","gateway":"10.5.0.1"}],"dns":{"domain":"example.org"}}'"""

    def install(self, node: Node, add: str = GOOD, other: str = "true") -> dict[str, str | None]:
        """The environment with which the script is found before everything else."""
        folder = node.path("/run/third-party")
        folder.mkdir()
        script = folder / "their-ipam"
        script.write_text(self.SCRIPT.format(add=add, other=other))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return {"CNI_PATH": f"/run/third-party:{node.way.bin_dir}", "VENDOR": "kept"}

    def calls(self, node: Node) -> list[str]:
        log = node.path("/run/calls")
        return log.read_text().split() if log.exists() else []

    def conf(self, **options: Any) -> dict[str, Any]:
        return network(ipam={"type": "their-ipam", "theirs": [1, {"a": None}]}, x_unknown={"b": 2}, **options)

    def test_it_gets_everything(self, node: Node) -> None:
        pod = node.pod()
        env = self.install(node)

        result = node.call("bridge", "ADD", self.conf(), pod, env=env).result

        assert result["ips"][0]["address"] == "10.5.0.9/24"
        assert result["dns"] == {"domain": "example.org"}
        assert json.loads(node.path("/run/stdin").read_text()) == self.conf()
        seen = dict(line.split("=", 1) for line in node.path("/run/env").read_text().splitlines() if "=" in line)
        expected = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": pod.container_id,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
        }
        assert {key: seen[key] for key in expected} == expected
        assert seen["CNI_PATH"] == env["CNI_PATH"]
        assert seen["VENDOR"] == "kept"
        assert "LD_LIBRARY_PATH" not in seen
        assert pod.addresses() == ["10.5.0.9/24"]

    def test_del_and_check_and_status_are_forwarded(self, node: Node) -> None:
        pod = node.pod()
        env = self.install(node)
        result = node.call("bridge", "ADD", self.conf(), pod, env=env).result

        node.call("bridge", "CHECK", self.conf(prevResult=result), pod, env=env).silent()
        node.call("bridge", "STATUS", self.conf(), env=env).silent()
        node.call("bridge", "DEL", self.conf(prevResult=result), pod, env=env).silent()

        assert self.calls(node) == ["ADD", "CHECK", "STATUS", "DEL"]

    @ours
    def test_gc_is_forwarded(self, node: Node) -> None:
        env = self.install(node)

        node.call("bridge", "GC", self.conf(**{"cni.dev/valid-attachments": []}), env=env).silent()

        assert self.calls(node) == ["GC"]

    @pytest.mark.parametrize("command", ["ADD", "STATUS", "DEL"])
    def test_its_error_comes_through(self, node: Node, command: str) -> None:
        pod = node.pod()
        fail = """echo '{"cniVersion":"1.1.0","code":123,"msg":"the pool burnt down","details":"ask the fire brigade"}'; exit 1"""
        env = self.install(node, add=fail, other=fail)

        error = node.call("bridge", command, self.conf(), pod, env=env).error

        assert error["code"] == 123
        assert "the pool burnt down" in error["msg"]
        assert "ask the fire brigade" in error["details"] + error["msg"]

    @ours
    def test_its_failed_add_is_followed_by_its_del(self, node: Node) -> None:
        pod = node.pod()
        env = self.install(node, add="""echo '{"code":123,"msg":"no"}'; exit 1""")

        assert node.call("bridge", "ADD", self.conf(), pod, env=env).error["code"] == 123

        assert self.calls(node) == ["ADD", "DEL"]
        assert set(node.links(pod)) == {"lo"}

    @ours
    @pytest.mark.parametrize(
        "add",
        ["exit 3", "kill -9 $$", "echo nonsense", "echo nonsense; exit 1", "true", "echo '[]'", "echo '{\"ips\":[]}'"],
    )
    def test_nonsense_of_it_is_an_error(self, node: Node, add: str) -> None:
        pod = node.pod()
        env = self.install(node, add=add)

        assert node.call("bridge", "ADD", self.conf(), pod, env=env).error["msg"]

        assert set(node.links(pod)) == {"lo"}

    def test_it_is_called_again_when_something_else_fails(self, node: Node) -> None:
        """The address is there, the interface cannot be: the delegate gets it back."""
        pod = node.pod()
        node.run("ip", "-n", pod.name, "link", "add", "eth0", "type", "veth", "peer", "name", "x")
        before = node.links(pod)["eth0"]["address"]
        env = self.install(node)

        assert node.call("bridge", "ADD", self.conf(), pod, env=env).error

        assert self.calls(node) in ([], ["ADD", "DEL"])
        assert node.links(pod)["eth0"]["address"] == before


@ours
class TestLocks:
    """A lock that somebody holds: a bounded wait, then code 11, nothing done."""

    @pytest.mark.parametrize("plugin", ["host-local", "bridge"])
    def test_leases(self, node: Node, plugin: str) -> None:
        first, pod = node.pod(), node.pod()
        assert node.call("bridge", "ADD", network(), first).ok
        before = node.snapshot()

        with node.path(f"{LEASES}/net/lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            answer = node.call(plugin, "ADD", network(), pod, timeout=LONGER_THAN_ANY_WAIT)

        assert answer.error["code"] == 11
        assert "lock" in answer.error["msg"]
        wait_same(node.snapshot, before, "the ADD that gave up left something")

    def test_it_goes_on_when_the_lock_is_released(self, node: Node) -> None:
        pod = node.pod()
        assert node.call("host-local", "ADD", network(), node.pod()).ok

        with node.path(f"{LEASES}/net/lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            running = node.start("host-local", "ADD", network(), pod)
            assert running.process.poll() is None
            fcntl.flock(lock, fcntl.LOCK_UN)
            answer = running.wait()

        assert answer.result["ips"][0]["address"] == "10.1.0.3/16"
