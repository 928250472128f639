"""One record per attachment: several plugins' sections, the version before, torn files, a full file system."""

from __future__ import annotations

import json
import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from cni.lock import Locks
from cni.names import attachment_key
from cni.record import VERSION, Records, describe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "ctr:eth0"


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def records(tmp_path: Path, log: list[str]) -> Records:
    return Records(str(tmp_path), "net", Locks(lambda: 0.0).take, log.append)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "networks" / "net" / "attachments"


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 64 bytes: a write is cut short, as on a file system that is full.

    No fixture: pytest tells a result before the fixtures end, and the log it may tell it into is a file as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def common(container: str = "ctr", ifname: str = "eth0") -> dict[str, Any]:
    return describe("net", container, ifname, {"K8S_POD_NAME": "web", "K8S_POD_NAMESPACE": "prod", "MAC": "x"})


def test_record_on_disk(records: Records, folder: Path) -> None:
    records.write(common(), "bridge", {"links": ["veth1"]})

    assert json.loads((folder / KEY).read_text()) == {
        "version": VERSION,
        "network": "net",
        "containerID": "ctr",
        "ifname": "eth0",
        "args": {"K8S_POD_NAME": "web", "K8S_POD_NAMESPACE": "prod"},
        "plugins": {"bridge": {"links": ["veth1"]}},
    }
    assert (folder / KEY).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == [KEY]


def test_read_gives_what_was_written(records: Records) -> None:
    assert records.read("ctr", "eth0") is None
    assert records.all() == []
    records.write(common(), "bridge", {"a": 1})

    found = records.read("ctr", "eth0")

    assert found is not None
    assert found["plugins"] == {"bridge": {"a": 1}}
    assert records.read("ctr", "eth1") is None
    assert records.all() == [found]


def test_each_plugin_of_a_chain_has_its_section_and_the_last_takes_the_file(records: Records, folder: Path) -> None:
    records.write(common(), "bridge", {"a": 1})
    records.write(common(), "portmap", {"b": 2})
    records.write(common(), "bridge", {"a": 3})
    found = records.read("ctr", "eth0")
    assert found is not None
    assert found["plugins"] == {"bridge": {"a": 3}, "portmap": {"b": 2}}

    records.remove("ctr", "eth0", "bridge")
    found = records.read("ctr", "eth0")
    assert found is not None
    assert found["plugins"] == {"portmap": {"b": 2}}

    records.remove("ctr", "eth0", "bridge")  # again: success, and the other's section stays
    assert records.read("ctr", "eth0") == found
    records.remove("ctr", "eth0", "portmap")
    assert list(folder.iterdir()) == []
    records.remove("ctr", "eth0", "portmap")


def test_long_container_ids(records: Records, folder: Path) -> None:
    container = "c" * 255
    records.write(common(container), "bridge", {})

    assert [path.name for path in folder.iterdir()] == [attachment_key(container, "eth0")]
    found = records.read(container, "eth0")
    assert found is not None
    assert found["containerID"] == container


def test_the_version_before_is_read_and_written_as_this_one(records: Records, folder: Path) -> None:
    old = {"version": VERSION - 1, "network": "net", "containerID": "ctr", "ifname": "eth0", "plugins": {"bridge": {}}}
    folder.mkdir(parents=True)
    (folder / KEY).write_text(json.dumps(old))

    found = records.read("ctr", "eth0")

    assert found == {**old, "version": VERSION, "args": {}}
    records.write(common(), "portmap", {})
    assert json.loads((folder / KEY).read_text())["version"] == VERSION


WHOLE = {"version": VERSION, "network": "net", "containerID": "ctr", "ifname": "eth0", "args": {}, "plugins": {}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"version": 1, "netw',
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        json.dumps({**WHOLE, "version": VERSION + 1}).encode(),
        json.dumps({**WHOLE, "version": VERSION - 2}).encode(),
        json.dumps({**WHOLE, "containerID": 5}).encode(),
        json.dumps({**WHOLE, "plugins": []}).encode(),
        json.dumps({**WHOLE, "plugins": {"bridge": 5}}).encode(),
    ],
)
def test_torn_and_foreign_records_are_survived_and_told(
    records: Records, folder: Path, log: list[str], content: bytes
) -> None:
    records.write(common("other"), "bridge", {})
    (folder / KEY).write_bytes(content)

    assert records.read("ctr", "eth0") is None
    assert [record["containerID"] for record in records.all()] == ["other"]

    assert log
    assert all(str(folder / KEY) in line for line in log)
    records.write(common(), "bridge", {"new": True})  # it can be replaced
    records.remove("ctr", "eth0", "bridge")
    assert not (folder / KEY).exists()


def test_what_is_no_file_is_survived(records: Records, folder: Path, log: list[str]) -> None:
    folder.mkdir(parents=True)
    os.mkfifo(folder / KEY)

    assert records.read("ctr", "eth0") is None  # and it returned, although nobody writes

    assert log
    (folder / KEY).unlink()
    (folder / KEY).symlink_to(KEY)
    assert records.read("ctr", "eth0") is None


def test_a_torn_record_can_be_removed(records: Records, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / KEY).write_text("{")

    records.remove("ctr", "eth0", "bridge")

    assert not (folder / KEY).exists()


def test_a_full_file_system_leaves_the_old_record(records: Records, folder: Path) -> None:
    records.write(common(), "bridge", {"old": True})
    before = (folder / KEY).read_bytes()

    with small_files(), pytest.raises(OSError, match="No space left|File too large"):
        records.write(common(), "bridge", {"new": "x" * 200})

    assert (folder / KEY).read_bytes() == before
    assert [path.name for path in folder.iterdir()] == [KEY]


def test_a_killed_writer_s_temporary_file_is_no_record(records: Records, folder: Path, log: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / f".{KEY}").write_text('{"version"')

    assert records.all() == []
    records.write(common(), "bridge", {})

    assert [path.name for path in folder.iterdir()] == [KEY]
    assert log == []


def test_holders(records: Records) -> None:
    v4, v6 = "10.1.0.2/24", "fd00::2/64"
    assert records.holder(v4) == ""
    assert records.held(lambda _: True) == []
    with records.lock():
        records.hold(v4, "ctr", "eth0")
        records.hold(v6, "ctr", "eth0")
        records.hold(v4, "later", "eth0")  # whoever comes last holds it

    assert records.holder(v4) == "later:eth0"
    assert records.held(lambda key: key == KEY) == [(v6, KEY)]
    assert records.held(lambda _: True) == [(v4, "later:eth0"), (v6, KEY)]
    records.release(v4)
    records.release(v4)
    assert records.holder(v4) == ""


def test_networks_are_apart(tmp_path: Path, records: Records) -> None:
    records.write(common(), "bridge", {})

    assert Records(str(tmp_path), "other", Locks(lambda: 0.0).take, print).all() == []
