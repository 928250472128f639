"""Claims on addresses, on the file system alone; with real pods in tests/e2e/test_one_address_one_pod.py."""

from __future__ import annotations

import posix
from typing import TYPE_CHECKING, Any

import pytest

from cni import claims
from cni.claims import Claims
from cni.config import Reader
from cni.context import Context
from cni.names import call_lock
from cni.record import describe
from cni.request import Request
from tests.unit.calls import Node

if TYPE_CHECKING:
    from pathlib import Path

ENVIRON = {"CNI_COMMAND": "GC", "CNI_PATH": "/bin"}


class Counted:
    """The system calls of `cni/claims.py`, by name."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.names.append(name)
        return getattr(posix, name)


def context(node: Node, network: str) -> Context:
    return Context(node.world(), "bridge", Request(ENVIRON), Reader({"name": network}), "1.1.0", lambda: None)  # type: ignore[arg-type, return-value]  # nobody delegates


def record(node: Node, network: str, *links: str, address: str = "10.1.0.2/24", bridge: str = "") -> None:
    section = {"links": [{"name": name} for name in links], "addresses": [address], "bridge": bridge}
    context(node, network).records.write(describe(network, "ctr", "eth0", {}), "bridge", section)


def test_a_free_address_costs_one_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path)
    (node.run_dir / "addresses").mkdir(parents=True)
    counted = Counted()
    monkeypatch.setattr(claims, "posix", counted)

    assert Claims(context(node, "b")).other("10.1.0.2") == ""

    assert counted.names == ["link"]


def test_a_missing_folder_is_built_from_records(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record(node, "a")
    record(node, "l2", address="10.1.0.9/24", bridge="br-without-gateway")
    (node.run_dir / "networks" / "a-file").touch()
    left = node.run_dir / "addresses.new"
    left.mkdir()
    (left / "10.1.0.7").symlink_to("x/of:a-killed-builder")

    assert Claims(context(node, "b")).other("10.1.0.2") == "a/ctr:eth0"
    assert Claims(context(node, "a")).other("10.1.0.2") == ""
    assert [path.name for path in (node.run_dir / "addresses").iterdir()] == ["10.1.0.2"]
    assert not left.exists()


def test_a_lease_counts_until_it_is_gone(tmp_path: Path) -> None:
    node = Node(tmp_path)
    lease = tmp_path / "networks" / "a" / "10.1.0.2"
    lease.parent.mkdir(parents=True)
    lease.touch()
    (node.run_dir / "addresses").mkdir(parents=True)
    claim = node.run_dir / "addresses" / "10.1.0.2"
    claim.symlink_to(lease)

    assert Claims(context(node, "b")).other("10.1.0.2") == str(lease)
    assert Claims(context(node, "a")).other("10.1.0.2") == ""
    Claims(context(node, "c")).forget_stale()
    assert claim.is_symlink()
    lease.unlink()
    assert Claims(context(node, "b")).other("10.1.0.2") == ""
    Claims(context(node, "c")).forget_stale()
    assert not claim.is_symlink()


@pytest.mark.parametrize("under_way", ["under way", ""])
def test_a_record_whose_links_are_gone_counts_while_its_call_is_under_way(tmp_path: Path, under_way: str) -> None:
    node = Node(tmp_path)
    record(node, "a", "veth-gone")
    assert Claims(context(node, "a")).claim("10.1.0.2", "ctr", "eth0") == ""
    if under_way:
        (node.run_dir / "locks").mkdir()
        (node.run_dir / "locks" / call_lock("a", "ctr", "eth0", "bridge")).touch()

    assert bool(Claims(context(node, "b")).other("10.1.0.2")) is bool(under_way)
    assert Claims(context(node, "b")).claim("10.1.0.2", "ctr", "eth0") == ("a/ctr:eth0" if under_way else "")


def test_a_file_system_that_refuses_links_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter of system calls may refuse link(2) with any error."""

    class Filtered(Counted):
        def link(self, *_: str) -> None:
            raise PermissionError(1, "Operation not permitted")

    node = Node(tmp_path)
    record(node, "a")
    Claims(context(node, "a")).claim("10.1.0.2", "ctr", "eth0")
    monkeypatch.setattr(claims, "posix", Filtered())

    assert Claims(context(node, "b")).other("10.1.0.2") == "a/ctr:eth0"
    assert Claims(context(node, "b")).other("10.1.0.3") == ""
