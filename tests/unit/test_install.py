"""What `python -m cli.install` does beside copying; that is tested with the executables (tests/e2e/test_executables.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.install import filter_on_bridges

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")


def test_bridges_call_the_firewall_for_both_families(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_text("0")

    assert filter_on_bridges(tmp_path, load=("false",)) == ""

    assert [(tmp_path / name).read_text() for name in NAMES] == ["1", "1"]


def test_the_module_is_loaded_when_it_is_not_there(tmp_path: Path) -> None:
    settings = tmp_path / "bridge"

    make = f"mkdir {settings}; for name in {' '.join(NAMES)}; do printf 0 > {settings}/$name; done"

    assert filter_on_bridges(settings, load=("sh", "-c", make)) == ""

    assert [(settings / name).read_text() for name in NAMES] == ["1", "1"]


def test_a_kernel_without_it_is_told(tmp_path: Path) -> None:
    for load in (("false",), ("no-such-program",)):
        fault = filter_on_bridges(tmp_path / "bridge", load=load)
        assert "expected br_netfilter in this kernel" in fault
        assert fault.endswith(f"try {load[0]}")


def test_a_setting_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).mkdir()

    assert filter_on_bridges(tmp_path).startswith(f"cannot set net.bridge.{NAMES[0]} to 1: Is a directory")
