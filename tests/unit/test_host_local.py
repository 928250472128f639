"""host-local, verb by verb, on a real folder."""

from __future__ import annotations

import errno
import os
import posix
import stat
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.errors import CniError
from ipam import index as index_module
from tests.unit.leases import Pool

if TYPE_CHECKING:
    from pathlib import Path

TINY = [{"subnet": "10.1.0.0/29"}]  # 10.1.0.2 to 10.1.0.6
V6 = [{"subnet": "fd00::/64"}]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)


def refusal(pool: Pool, verb: str, conf: dict[str, Any], container: str = "pod", args: str = "") -> CniError:
    with pytest.raises(CniError) as refused:
        pool.call(verb, conf, container, args)
    return refused.value


def fill(pool: Pool, conf: dict[str, Any], count: int) -> None:
    for number in range(count):
        pool.add(f"pod{number}", conf)


# ADD


def test_add_writes_the_references_files(pool: Pool) -> None:
    result = pool.call("ADD", pool.conf([{"subnet": "10.1.0.0/24"}], V6))
    assert result["ips"] == [
        {"address": "10.1.0.2/24", "gateway": "10.1.0.1"},
        {"address": "fd00::2/64", "gateway": "fd00::1"},
    ]
    assert {path.name: path.read_bytes() for path in pool.network.iterdir()} == {
        "10.1.0.2": b"pod\r\neth0",
        "fd00::2": b"pod\r\neth0",
        "last_reserved_ip.0": b"10.1.0.2",
        "last_reserved_ip.1": b"fd00::2",
        "lock": b"",
    }
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [pool.network, *pool.network.iterdir()]}
    assert modes == {
        "net": 0o755, "10.1.0.2": 0o600, "fd00::2": 0o600,
        "last_reserved_ip.0": 0o600, "last_reserved_ip.1": 0o600, "lock": 0o750,
    }  # fmt: skip


def test_a_released_address_is_the_last_to_be_used_again(pool: Pool) -> None:
    conf = pool.conf(TINY)
    assert pool.add("first", conf) == ["10.1.0.2"]
    pool.delete("first")
    assert [pool.add(f"pod{n}", conf)[0][-1] for n in range(5)] == ["3", "4", "5", "6", "2"]


def test_routes_and_dns_come_from_the_configuration(pool: Pool) -> None:
    resolv = pool.folder / "resolv.conf"
    resolv.write_text(
        "# note\nnameserver 10.9.0.1\n; x\nnameserver 10.9.0.2 \ndomain a.example\nsearch b c\nsearch d\noptions ndots:2\nbad\n"
    )
    route = {
        "dst": "10.0.0.0/8", "gw": "10.1.0.9", "mtu": 1400, "advmss": 1300, "priority": 5, "table": 50, "scope": 253,
    }  # fmt: skip
    result = pool.call("ADD", pool.conf(routes=[{"dst": "0.0.0.0/0"}, route], resolvConf=str(resolv)))
    assert result["routes"] == [{"dst": "0.0.0.0/0"}, route]
    assert result["dns"] == {
        "nameservers": ["10.9.0.1", "10.9.0.2"],
        "domain": "a.example",
        "search": ["b", "c", "d"],
        "options": ["ndots:2"],
    }


def test_a_resolv_conf_is_read_as_the_reference_reads_it(pool: Pool) -> None:
    """Lines end at a line feed alone, and fields at what Go takes for white space."""
    resolv = pool.folder / "resolv.conf"
    lines = [
        "# note\fnameserver 10.9.9.1", "#\u2028nameserver 10.9.9.2", ";\x1dnameserver 10.9.9.3",
        "nameserver 10.9.0.1\fsearch x", "search a.example\fb.example\u2028c\x1cd\xa0e", "options\tndots:5\r",
    ]  # fmt: skip
    resolv.write_text("\n".join(lines), newline="")
    assert pool.call("ADD", pool.conf(resolvConf=str(resolv)))["dns"] == {
        "nameservers": ["10.9.0.1"],
        "search": ["a.example", "b.example", "c\x1cd", "e"],
        "options": ["ndots:5"],
    }


@pytest.mark.parametrize(
    "ranges",
    [
        [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.1"}],
        [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.9", "gateway": "10.1.0.9"}],
        [{"subnet": "fd00::/64", "rangeStart": "fd00::1", "rangeEnd": "fd00::1"}],
        [
            {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.1"},
            {"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.1", "rangeEnd": "10.2.0.1"},
        ],
    ],
)
def test_a_set_of_gateways_alone_is_refused(pool: Pool, ranges: list[dict[str, str]]) -> None:
    error = refusal(pool, "ADD", pool.conf(ranges))
    assert error.code == 7
    assert "ipam.ranges[0]" in error.msg
    assert "expected at least one address to give, found only the gateway's" in error.msg
    assert "gateway" in error.details
    pool.delete("pod")


def test_a_missing_resolv_conf_is_refused_before_any_lease(pool: Pool) -> None:
    error = refusal(pool, "ADD", pool.conf(resolvConf="/none/resolv.conf"))
    assert error.code == 7
    assert "ipam.resolvConf" in error.msg
    assert not pool.data_dir.exists()


def test_a_second_add_is_refused_and_changes_nothing(pool: Pool) -> None:
    conf = pool.conf([{"subnet": "10.1.0.0/24"}], V6)
    pool.add("pod", conf)
    before = pool.leases()
    error = refusal(pool, "ADD", conf)
    assert "10.1.0.2 has been allocated to pod, duplicate allocation is not allowed" in error.msg
    assert pool.leases() == before


@pytest.mark.parametrize(
    ("args", "top"),
    [
        ("IP=10.1.0.77", {}),
        ("IP=10.1.0.77/24", {}),
        ("", {"args": {"cni": {"ips": ["10.1.0.77/24"]}}}),
        ("", {"runtimeConfig": {"ips": ["10.1.0.77"]}}),
        ("IP=10.1.0.77", {"RuntimeConfig": {"IPs": ["10.1.0.77/16"]}}),
    ],
)
def test_a_requested_address_from_every_place(pool: Pool, args: str, top: dict[str, Any]) -> None:
    assert pool.add("pod", {**pool.conf(), **top}, args) == ["10.1.0.77"]
    assert pool.add("next") == ["10.1.0.78"]


def test_ranges_of_the_runtime_come_first(pool: Pool) -> None:
    conf = {**pool.conf(), "runtimeConfig": {"ipRanges": [TINY, V6]}, "ipam": {**pool.conf()["ipam"], "ranges": []}}
    assert pool.add("pod", conf) == ["10.1.0.2", "fd00::2"]


def test_a_holder_may_request_a_second_address_and_del_releases_both(pool: Pool) -> None:
    pool.add("pod")
    assert pool.add("pod", args="IP=10.1.0.9") == ["10.1.0.9"]
    assert sorted(pool.leases()) == ["10.1.0.2", "10.1.0.9"]
    pool.delete("pod")
    assert pool.leases() == {}


def test_requests_that_can_never_be_granted_have_code_7(pool: Pool) -> None:
    cases = {
        "IP=10.1.0.1": "requested ip 10.1.0.1 is subnet's gateway",
        "IP=10.2.0.5": "failed to allocate all requested IPs: 10.2.0.5",
        "IP=fd00::5": "failed to allocate all requested IPs: fd00::5",
    }
    for args, message in cases.items():
        error = refusal(pool, "ADD", pool.conf(), args=args)
        assert (error.code, message in error.msg) == (7, True), error
    two = {**pool.conf(), "runtimeConfig": {"ips": ["10.1.0.5", "10.1.0.6"]}}
    assert "failed to allocate all requested IPs: 10.1.0.6" in refusal(pool, "ADD", two).msg
    wrong = {**pool.conf(), "args": {"cni": {"ips": ["10.1.0.5", 6]}}}
    assert "args.cni.ips[1]: expected an IP address" in refusal(pool, "ADD", wrong).msg
    assert refusal(pool, "ADD", pool.conf(), args="IP=ten").code == 4
    assert not pool.data_dir.exists()


def test_a_requested_address_that_is_taken_has_code_11_and_names_the_holder(pool: Pool) -> None:
    pool.add("pod")
    error = refusal(pool, "ADD", pool.conf(), "other", "IP=10.1.0.2")
    assert error.code == 11
    assert "requested IP address 10.1.0.2 is not available in range set 10.1.0.1-10.1.0.254" in error.msg
    assert "pod/eth0" in error.msg


def test_an_empty_pool_has_code_11_with_pool_size_and_first_holders(pool: Pool) -> None:
    conf = pool.conf(TINY)
    fill(pool, conf, 5)
    error = refusal(pool, "ADD", conf)
    assert error.code == 11
    for part in (
        "no IP addresses available in range set: 10.1.0.1-10.1.0.6",
        "all 5 addresses",
        "10.1.0.0/29",
        "10.1.0.2 by pod0/eth0, 10.1.0.3 by pod1/eth0, 10.1.0.4 by pod2/eth0",
    ):
        assert part in error.msg


def test_an_add_that_fails_on_its_second_set_takes_nothing(pool: Pool) -> None:
    conf = pool.conf([{"subnet": "10.2.0.0/24"}], TINY)
    fill(pool, pool.conf(TINY), 5)
    before = {path.name: path.read_bytes() for path in pool.network.iterdir()}
    assert refusal(pool, "ADD", conf, "late").code == 11
    assert {path.name: path.read_bytes() for path in pool.network.iterdir()} == before


def test_a_failed_second_request_keeps_what_the_container_has(pool: Pool) -> None:
    pool.add("pod")
    pool.add("other")
    refusal(pool, "ADD", pool.conf(), "pod", "IP=10.1.0.3")
    assert pool.leases() == {"10.1.0.2": "pod\r\neth0", "10.1.0.3": "other\r\neth0"}


def test_an_answer_that_was_not_delivered_is_taken_back(pool: Pool) -> None:
    pool.add("pod")
    pool.call("ADD", pool.conf(), "pod", "IP=10.1.0.9", deliver=False)
    pool.call("ADD", pool.conf(), "lost", deliver=False)
    assert pool.leases() == {"10.1.0.2": "pod\r\neth0"}


def test_an_ipv6_range_of_any_size_takes_no_room(pool: Pool) -> None:
    far = [{"subnet": "fd00::/16", "rangeStart": "fd00:ffff:ffff::"}]
    assert pool.add("pod", pool.conf(far)) == ["fd00:ffff:ffff::"]
    assert pool.add("next", pool.conf(far)) == ["fd00:ffff:ffff::1"]
    assert sum(path.lstat().st_blocks for path in pool.own.iterdir()) * 512 < 64 << 10


def test_a_folder_that_cannot_be_made_is_told(pool: Pool) -> None:
    pool.data_dir.write_text("in the way")
    error = refusal(pool, "ADD", pool.conf())
    assert str(pool.data_dir) in error.msg
    assert "EEXIST" in error.msg or "ENOTDIR" in error.msg


def test_a_container_id_of_any_length(pool: Pool) -> None:
    long = "c" * 100_000
    pool.add(long)
    assert "duplicate" in refusal(pool, "ADD", pool.conf(), long).msg
    pool.call("CHECK", pool.conf(), long)
    pool.delete(long)
    assert pool.leases() == {}


def test_a_resolv_conf_that_never_ends_is_not_waited_for(pool: Pool) -> None:
    pipe = pool.folder / "pipe"
    os.mkfifo(pipe)
    assert "dns" not in pool.call("ADD", pool.conf(resolvConf=str(pipe)))
    assert "dns" not in pool.call("ADD", pool.conf(resolvConf="/dev/zero"), "next")
    assert refusal(pool, "ADD", pool.conf(resolvConf=str(pool.folder)), "last").code == 7


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 300)
    | st.sampled_from(["", "10.1.0.0/24", "10.1.0.9", "fd00::/64", "\0", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["subnet", "rangeStart", "rangeEnd", "gateway", "dst", "gw", "cni", "ips"]), inner
        )
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(["ranges", "subnet", "routes", "dataDir", "resolvConf", "statusOnExhausted", "gateway"])


@given(
    verb=st.sampled_from(["ADD", "DEL", "CHECK", "STATUS"]),
    ipam=st.dictionaries(KEYS, JSON, max_size=3),
    top=st.dictionaries(st.sampled_from(["ipam", "args", "runtimeConfig"]), JSON, max_size=1),
    args=st.sampled_from(["", "IP=", "IP=10.1.0.9", "IP=x", "IP=10.1.0.9/99"]),
)
def test_any_configuration_gives_an_answer_or_a_refusal(
    tmp_path: Path, verb: str, ipam: dict[str, Any], top: dict[str, Any], args: str
) -> None:
    pool = Pool(tmp_path)
    conf = {**pool.conf(), **top}
    if isinstance(conf["ipam"], dict) and ipam.get("dataDir") not in ("10.1.0.0/24", "10.1.0.9", "fd00::/64", ""):
        conf["ipam"] = {**pool.conf()["ipam"], **ipam}
    try:
        pool.call(verb, conf, "pod", args)
    except CniError as error:
        assert error.code in (4, 7, 11, 50, 999)
        assert error.msg
    pool.delete("pod")


# DEL


def test_del_of_the_unknown_is_success_and_makes_nothing(pool: Pool) -> None:
    pool.delete("nobody")
    assert not pool.data_dir.exists()
    pool.add("pod")
    pool.delete("nobody")
    pool.delete("nobody")
    assert pool.leases() == {"10.1.0.2": "pod\r\neth0"}


def test_del_releases_although_the_ranges_have_changed_or_are_broken(pool: Pool) -> None:
    for ranges in ([{"subnet": "192.168.0.0/24"}], [], "no ranges at all"):
        pool.add("pod")
        pool.call("DEL", pool.conf(ranges))
        assert pool.leases() == {}


def test_del_keeps_other_interfaces_and_networks(pool: Pool) -> None:
    pool.add("pod")
    pool.plant("10.1.0.50", "pod\r\nnet1")
    pool.call("ADD", {**pool.conf(), "name": "other"})
    pool.delete("pod")
    assert pool.leases() == {"10.1.0.50": "pod\r\nnet1"}
    assert (pool.data_dir / "other" / "10.1.0.2").exists()


def test_del_falls_back_to_the_old_format(pool: Pool) -> None:
    pool.plant("10.1.0.50", "pod")
    pool.plant("10.1.0.51", "  pod\n")
    pool.plant("10.1.0.52", "pod2")
    pool.call("CHECK", pool.conf())
    assert "duplicate allocation" in refusal(pool, "ADD", pool.conf()).msg
    pool.delete("pod")
    assert pool.leases() == {"10.1.0.52": "pod2"}


def test_a_lease_of_ours_rewritten_in_the_old_format_is_still_the_containers(pool: Pool) -> None:
    pool.add("pod")
    (pool.network / "10.1.0.2").unlink()
    pool.plant("10.1.0.2", "pod")
    assert "duplicate allocation" in refusal(pool, "ADD", pool.conf()).msg
    (pool.network / "10.1.0.2").rename(pool.network / "10.1.0.9")
    pool.delete("pod")
    assert pool.leases() == {}


def test_del_finds_a_lease_that_left_no_trace_in_last_reserved_ip(pool: Pool) -> None:
    """Go was killed between its two files, or somebody copied a lease in."""
    pool.add("pod")
    pool.plant("10.1.0.99", "planted\r\neth0")
    pool.call("CHECK", pool.conf(), "planted")
    pool.delete("planted")
    assert sorted(pool.leases()) == ["10.1.0.2"]


# CHECK


def test_check_wants_the_lease_of_this_attachment(pool: Pool) -> None:
    result = pool.call("ADD", pool.conf())
    conf = {**pool.conf(), "prevResult": result}
    pool.call("CHECK", conf)
    assert "Failed to find address added by container other" in refusal(pool, "CHECK", conf, "other").msg
    (pool.network / "10.1.0.2").write_text("thief\r\neth0")
    pool.plant("10.1.0.3", "pod\r\neth0")
    error = refusal(pool, "CHECK", conf)
    assert "expected the lease of pod/eth0, found that of thief/eth0" in error.msg


def test_check_with_no_folder_makes_none(pool: Pool) -> None:
    refusal(pool, "CHECK", pool.conf())
    assert not pool.data_dir.exists()


# GC and STATUS


def test_gc_releases_what_is_not_listed_and_nothing_else(pool: Pool) -> None:
    for container in ("live", "dead"):
        pool.add(container)
    pool.foreign_add("foreign-dead", "10.1.0.20")
    pool.foreign_add("foreign-live", "10.1.0.21")
    pool.plant("10.1.0.30", "live")
    pool.plant("10.1.0.31", "old-dead")
    pool.plant("10.1.0.32", "kept for the printer")
    pool.call("ADD", {**pool.conf(), "name": "other"}, "dead")
    pool.gc(["live", "foreign-live"])
    assert sorted(pool.leases()) == ["10.1.0.2", "10.1.0.21", "10.1.0.30", "10.1.0.32"]
    assert (pool.data_dir / "other" / "10.1.0.2").exists()
    pool.gc([])
    assert sorted(pool.leases()) == ["10.1.0.32"]


def test_gc_with_no_folder_makes_none(pool: Pool) -> None:
    pool.gc([])
    assert not pool.data_dir.exists()


def test_status_is_50_when_a_set_is_exhausted_unless_told_not_to(pool: Pool) -> None:
    conf = pool.conf(V6, TINY)
    pool.call("STATUS", conf)
    assert not pool.data_dir.exists()
    fill(pool, conf, 5)
    before = sorted(os.listdir(pool.network))
    error = refusal(pool, "STATUS", conf)
    assert error.code == 50
    assert "no IP addresses available in range set: 10.1.0.1-10.1.0.6: all 5 addresses are leased" in error.msg
    pool.call("STATUS", pool.conf(V6, TINY, statusOnExhausted=False))
    assert sorted(os.listdir(pool.network)) == before
    pool.delete("pod3")
    pool.call("STATUS", conf)


def test_status_is_50_when_leases_cannot_be_written(pool: Pool) -> None:
    pool.data_dir.write_text("in the way")
    error = refusal(pool, "STATUS", pool.conf())
    assert error.code == 50
    assert str(pool.data_dir) in error.msg


# What was left behind


def test_leases_of_ours_from_before_the_last_boot_are_free(pool: Pool) -> None:
    conf = pool.conf(TINY)
    fill(pool, conf, 5)
    pool.boot = "boot 2"
    pool.call("STATUS", conf)
    assert pool.add("new", conf) == ["10.1.0.2"]
    assert pool.leases() == {"10.1.0.2": "new\r\neth0"}


def test_leases_of_go_outlive_the_boot(pool: Pool) -> None:
    """Also those whose address and text are the same as one of ours from before."""
    pool.add("pod")
    pool.add("other")
    pool.boot = "boot 2"
    pool.foreign_del("pod")
    pool.foreign_add("pod", "10.1.0.2")
    pool.foreign_add("theirs", "10.1.0.60")
    pool.add("new")
    assert sorted(pool.leases()) == ["10.1.0.2", "10.1.0.60", "10.1.0.61"]
    pool.boot = "boot 3"
    pool.add("newer")
    assert sorted(pool.leases()) == ["10.1.0.2", "10.1.0.60", "10.1.0.62"]


@pytest.mark.parametrize("text", ["", " \n", "\0\0\0\0", "pod9\r\n", "pod9\r", "pod9\r\n\x01"])
def test_a_torn_lease_is_set_aside_and_its_address_free(pool: Pool, text: str) -> None:
    pool.add("pod")
    pool.plant("10.1.0.3", text)
    assert pool.add("next") == ["10.1.0.3"]
    assert (pool.own / "quarantine" / "10.1.0.3").read_bytes().decode() == text
    assert any("10.1.0.3" in line and "torn" in line for line in pool.log)


def test_text_that_is_no_lease_keeps_its_address_out_of_use(pool: Pool) -> None:
    pool.plant("10.1.0.2", "for the printer")
    (pool.network / "10.1.0.3").mkdir()
    assert pool.add("pod") == ["10.1.0.4"]
    assert refusal(pool, "ADD", pool.conf(), "other", "IP=10.1.0.2").code == 11
    pool.gc([])
    assert (pool.network / "10.1.0.2").read_text() == "for the printer"


def test_a_pool_of_torn_leases_is_not_exhausted(pool: Pool) -> None:
    conf = pool.conf(TINY)
    for last in range(2, 7):
        pool.plant(f"10.1.0.{last}", "")
    pool.call("STATUS", conf)
    assert pool.add("pod", conf) == ["10.1.0.2"]


def test_addresses_that_go_released_are_found_again_when_the_rest_is_used_up(pool: Pool) -> None:
    conf = pool.conf(TINY)
    fill(pool, conf, 5)
    pool.foreign_del("pod2")
    pool.call("STATUS", conf)
    assert pool.add("new", conf) == ["10.1.0.4"]


# Cost


def calls_of(monkeypatch: pytest.MonkeyPatch, pool: Pool, container: str) -> list[list[str]]:
    """The names of the `posix` functions that ADD, CHECK, DEL and a repeated DEL use, in order."""
    made: list[list[str]] = []

    def noted(name: str) -> Any:
        real = getattr(posix, name)

        def call(*args: Any, **keywords: Any) -> Any:
            made[-1].append(name)
            return real(*args, **keywords)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "read", "pread", "write", "pwrite", "readlink", "stat", "fstat", "link", "unlink"):
            patch.setattr(posix, name, noted(name))
        for name in ("listdir", "scandir"):
            patch.setattr(posix, name, lambda *_: pytest.fail("a folder was walked"))
        for verb in ("ADD", "CHECK", "DEL", "DEL"):
            made.append([])
            pool.call(verb, pool.conf([{"subnet": "10.1.0.0/16"}]), container)
    return made


def test_no_folder_is_walked_and_the_cost_is_flat(pool: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also when all used addresses follow `last_reserved_ip`."""
    pool.add("first")
    few = calls_of(monkeypatch, pool, "pod")
    crowded = Pool(tmp_path / "crowded")
    crowded.network.mkdir(parents=True)
    for number in range(4, 8000):
        (crowded.network / f"10.1.{number >> 8}.{number & 255}").write_bytes(b"c%d\r\neth0" % number)
    crowded.add("first", crowded.conf([{"subnet": "10.1.0.0/16"}]))
    many = calls_of(monkeypatch, crowded, "pod")
    assert crowded.add("second", crowded.conf([{"subnet": "10.1.0.0/16"}])) == ["10.1.31.64"]
    again = calls_of(monkeypatch, crowded, "third")
    assert few == many == again


def test_what_nobody_else_can_change_is_read_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.add("first")
    add, check, delete, again = calls_of(monkeypatch, pool, "pod")
    # The host's mark, the attachment's entry and that of its container's old leases; DEL needs the last when it finds
    # nothing.
    assert [calls.count("readlink") for calls in (add, check, delete, again)] == [3, 3, 2, 3]
    # The lock of the attachment and of the network, `state`, the lease, its bitmap, `released`.
    assert delete.count("open") == 6


def test_an_address_lost_to_one_who_takes_no_lock_is_another_ones(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.add("first")
    real = posix.link

    def late(source: str, target: str) -> None:
        if target.endswith("10.1.0.3"):
            pool.plant("10.1.0.3", "thief\r\neth0")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(posix, "link", late)
        assert pool.add("pod") == ["10.1.0.4"]
    pool.delete("pod")
    assert sorted(pool.leases()) == ["10.1.0.2", "10.1.0.3"]


def test_del_releases_first_and_then_refuses_what_an_old_version_cannot_say(pool: Pool) -> None:
    ranges = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]
    pool.call("ADD", {**pool.conf(*ranges), "cniVersion": "0.3.0"})

    refused = refusal(pool, "DEL", {**pool.conf(*ranges), "cniVersion": "0.2.0"})

    assert str(refused) == "CNI version 0.2.0 does not support more than 1 address per family"
    assert pool.leases() == {}


def test_del_and_gc_release_when_there_is_no_room_for_the_index(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        pool.add(name, pool.conf())
    os.unlink(pool.own / "state")  # what an ADD that found no room leaves
    write = index_module._write

    def full(path: str, data: bytes | bytearray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(index_module, "_write", full)
    pool.delete("a")
    pool.gc(["c"])
    with pytest.raises(CniError, match="no (space|inodes) left"):
        pool.add("d", pool.conf())

    assert list(pool.leases().values()) == ["c\r\neth0"]
    monkeypatch.setattr(index_module, "_write", write)
    assert pool.add("d", pool.conf()) == ["10.1.0.5"]
