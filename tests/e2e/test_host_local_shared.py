"""One lease folder, two programs: the Go host-local and ours, in turn, at once, and from the same start state.

Neither needs root or a namespace, only the folder.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOOKKEEPING = ("lock", "last_reserved_ip.")


class Answer:
    """What one call printed and how it exited."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.code = done.returncode
        self.stderr = done.stderr.decode()
        self.json: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}

    def __repr__(self) -> str:
        return f"<Answer {self.code} {self.json} {self.stderr}>"

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def addresses(self) -> list[str]:
        return [ip["address"] for ip in self.json.get("ips", [])]


class Program:
    """One of the two executables."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path

    def __call__(self, verb: str, config: dict[str, Any], container: str = "c1", args: str = "") -> Answer:
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": "/run/netns/none",
            "CNI_PATH": "/none",
            "CNI_ARGS": args,
        }
        text = json.dumps(config).encode()
        done = subprocess.run([self.path], input=text, env=environ, capture_output=True, timeout=60, check=False)
        return Answer(done)


@pytest.fixture
def go(peers: Path) -> Program:
    return Program("go", peers / "host-local")


@pytest.fixture
def ours(bin_dir: Path) -> Program:
    return Program("ours", bin_dir / "host-local")


@pytest.fixture
def both(go: Program, ours: Program) -> list[Program]:
    return [go, ours]


def config(folder: Path, *sets: list[dict[str, str]], version: str = "1.0.0", **top: Any) -> dict[str, Any]:
    ranges = list(sets) or [[{"subnet": "10.1.0.0/24"}]]
    ipam = {"type": "host-local", "dataDir": str(folder), "ranges": ranges}
    return {"cniVersion": version, "name": "net", "type": "bridge", **top, "ipam": {**ipam, **top.get("ipam", {})}}


def leases(folder: Path) -> dict[str, str]:
    """Address and text of every lease, read with nobody's help."""
    found = (folder / "net").iterdir() if (folder / "net").exists() else []
    return {path.name: path.read_bytes().decode() for path in found if not path.name.startswith(BOOKKEEPING)}


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Name, mode and bytes of everything in the network's folder."""
    return {path.name: (path.stat().st_mode, path.read_bytes()) for path in (folder / "net").iterdir()}


def test_each_releases_what_the_other_leased(tmp_path: Path, both: list[Program]) -> None:
    for giver, taker in (both, both[::-1]):
        conf = config(tmp_path, [{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}])
        assert giver("ADD", conf, "pod").ok
        assert len(leases(tmp_path)) == 2
        assert taker("CHECK", conf, "pod").ok
        assert taker("DEL", conf, "pod").ok
        assert leases(tmp_path) == {}
        assert not giver("CHECK", conf, "pod").ok


def test_each_refuses_a_second_lease_after_the_other(tmp_path: Path, both: list[Program]) -> None:
    conf = config(tmp_path)
    for giver, taker in (both, both[::-1]):
        assert giver("ADD", conf, giver.name).ok
        refused = taker("ADD", conf, giver.name)
        assert "duplicate allocation is not allowed" in refused.json["msg"]


def test_each_grants_a_requested_second_lease_and_del_releases_both(tmp_path: Path, both: list[Program]) -> None:
    conf = config(tmp_path)
    for giver, taker in (both, both[::-1]):
        assert giver("ADD", conf, "pod").ok
        assert taker("ADD", conf, "pod", "IP=10.1.0.77").addresses == ["10.1.0.77/24"]
        assert len(leases(tmp_path)) == 2
        assert giver("DEL", conf, "pod").ok
        assert leases(tmp_path) == {}


def test_go_leases_the_same_address_again_without_a_trace_in_the_text(
    tmp_path: Path, go: Program, ours: Program
) -> None:
    """`last_reserved_ip.0` holds the same text before and after: only its time tells."""
    conf = config(tmp_path)
    assert ours("ADD", conf, "first", "IP=10.1.0.9").ok
    assert ours("DEL", conf, "first").ok
    assert go("ADD", conf, "second", "IP=10.1.0.9").ok
    assert ours("DEL", conf, "second").ok
    assert leases(tmp_path) == {}


def test_they_alternate_without_losing_or_sharing_an_address(tmp_path: Path, both: list[Program]) -> None:
    choose = random.Random(7)
    conf = config(tmp_path, [{"subnet": "10.1.0.0/27"}])
    held: dict[str, str] = {}
    for number in range(150):
        program = choose.choice(both)
        if held and (len(held) > 25 or choose.random() < 0.45):
            pod = choose.choice(sorted(held))
            assert program("DEL", conf, pod).ok
            del held[pod]
        else:
            pod = f"pod{number}"
            answer = program("ADD", conf, pod)
            assert answer.ok, answer.json
            held[pod] = answer.addresses[0].partition("/")[0]
        assert leases(tmp_path) == {address: f"{pod}\r\neth0" for pod, address in held.items()}


def test_they_work_at_once(tmp_path: Path, both: list[Program]) -> None:
    conf = config(tmp_path, [{"subnet": "10.1.0.0/25"}], [{"subnet": "fd00::/64"}])
    pods = [f"pod{number}" for number in range(60)]
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda n: both[n % 2]("ADD", conf, pods[n]), range(60)))
        assert all(answer.ok for answer in added), [answer.json for answer in added if not answer.ok]
        addresses = [address for answer in added for address in answer.addresses]
        assert len(set(addresses)) == len(addresses) == 120 == len(leases(tmp_path))
        removed = list(pool.map(lambda n: both[(n + 1) % 2]("DEL", conf, pods[n]), range(60)))
    assert all(answer.ok for answer in removed)
    assert leases(tmp_path) == {}


V4 = [{"subnet": "10.1.0.0/24"}]
V6 = [{"subnet": "fd00:1::/112"}]
TINY = [{"subnet": "10.2.0.0/29", "gateway": "10.2.0.4"}]
PIECES = [
    {"subnet": "10.3.0.0/24", "rangeStart": "10.3.0.10", "rangeEnd": "10.3.0.12"},
    {"subnet": "10.3.0.0/24", "rangeStart": "10.3.0.1", "rangeEnd": "10.3.0.3"},
    {"subnet": "10.4.0.0/24", "rangeStart": "10.4.0.254", "gateway": "10.4.0.254"},
    {"subnet": "10.5.0.0/30", "rangeStart": "10.5.0.0", "rangeEnd": "10.5.0.3"},
]


def plain(folder: Path) -> dict[str, Any]:
    return config(folder, V4)


def dual(folder: Path) -> dict[str, Any]:
    return config(folder, V4, V6)


def tiny(folder: Path) -> dict[str, Any]:
    return config(folder, TINY)


def pieces(folder: Path) -> dict[str, Any]:
    return config(folder, PIECES)


def inline(folder: Path) -> dict[str, Any]:
    return config(folder, V6, ipam={"subnet": "10.6.0.0/29", "rangeStart": "10.6.0.3", "ranges": [V6]})


def prepended(folder: Path) -> dict[str, Any]:
    return config(folder, V6, runtimeConfig={"ipRanges": [TINY]})


@pytest.mark.parametrize("make", [plain, dual, tiny, pieces, inline, prepended])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_calls_leave_the_same_folder(
    tmp_path: Path, go: Program, ours: Program, make: Callable[[Path], dict[str, Any]], seed: int
) -> None:
    """Same start state, same sequence: every answer and in the end every byte and mode are the same."""
    choose = random.Random(seed)
    confs = [make(tmp_path / name) for name in ("go", "ours")]
    pods: list[str] = []
    for number in range(24):
        pod = choose.choice(pods) if pods and choose.random() < 0.4 else f"pod{number}"
        verb = "DEL" if pod in pods else "ADD"
        (pods.remove if verb == "DEL" else pods.append)(pod)
        theirs, mine = go(verb, confs[0], pod), ours(verb, confs[1], pod)
        assert (mine.code, mine.addresses) == (theirs.code, theirs.addresses), (mine.json, theirs.json)
        if not theirs.ok:
            assert mine.json["msg"].startswith(theirs.json["msg"])
    assert contents(tmp_path / "ours") == contents(tmp_path / "go")


REFUSED = [
    ({"ranges": []}, {}, "no IP ranges specified"),
    ({"ranges": [[]]}, {}, "empty range set"),
    ({"ranges": [[{"subnet": "10.1.0.0/31"}]]}, {}, "Network 10.1.0.0/31 too small to allocate from"),
    ({"ranges": [[{"subnet": "10.1.0.1/24"}]]}, {}, "the network address is 10.1.0.0"),
    ({"ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}]]}, {}, "RangeStart 10.2.0.1 not in network 10.1.0.0/24"),
    ({"ranges": [[{"subnet": "10.1.0.0/24", "rangeEnd": "10.2.0.1"}]]}, {}, "RangeEnd 10.2.0.1 not in network 10.1.0.0/24"),
    ({"ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}]]}, {}, "RangeStart 10.1.0.9 not in network 10.1.0.0/24"),
    ({"ranges": [V4, V4]}, {}, "range set 0 overlaps with 1"),
    ({"ranges": [V4 + V6]}, {}, "mixed address families"),
    ({"ranges": [V4 + V4]}, {}, "subnets 10.1.0.1-10.1.0.254 and 10.1.0.1-10.1.0.254 overlap"),
    ({"ranges": [V4, TINY]}, {"cniVersion": "0.2.0"}, "CNI version 0.2.0 does not support more than 1 address per family"),
    ({"ranges": [V4]}, {"args": {"cni": {"ips": ["10.1.0.1"]}}}, "failed to allocate for range 0: requested ip 10.1.0.1 is subnet's gateway"),
    ({"ranges": [V4]}, {"runtimeConfig": {"ips": ["10.9.0.1/8"]}}, "failed to allocate all requested IPs: 10.9.0.1"),
]  # fmt: skip


@pytest.mark.parametrize(("ipam", "top", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_both_refuse_in_the_same_words(
    tmp_path: Path, both: list[Program], ipam: dict[str, Any], top: dict[str, Any], message: str
) -> None:
    for program in both:
        conf = {**config(tmp_path), **top, "ipam": {"type": "host-local", "dataDir": str(tmp_path), **ipam}}
        answer = program("ADD", conf)
        assert not answer.ok
        assert message in answer.json["msg"]
    assert leases(tmp_path) == {}


def test_both_say_that_the_pool_is_empty_in_the_same_words(tmp_path: Path, both: list[Program]) -> None:
    conf = config(tmp_path, [{"subnet": "10.1.0.0/30"}])
    assert both[0]("ADD", conf, "pod").ok
    theirs, mine = (program("ADD", conf, "other") for program in both)
    assert mine.json["msg"].startswith(theirs.json["msg"])
    assert mine.json["code"] == 11
    assert "10.1.0.2 by pod/eth0" in mine.json["msg"]


def test_the_go_program_walks_past_our_own_files(tmp_path: Path, go: Program, ours: Program) -> None:
    conf = config(tmp_path)
    assert ours("ADD", conf, "pod").ok
    own = {path: os.lstat(path).st_ino for path in (tmp_path / ".cnikit").rglob("*")}
    assert go("DEL", conf, "pod").ok
    assert {path: os.lstat(path).st_ino for path in (tmp_path / ".cnikit").rglob("*")} == own
    assert ours("ADD", conf, "pod").ok
