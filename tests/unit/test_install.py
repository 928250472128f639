"""The settings of the kernel that an installation writes; copying is tested with the executables (tests/e2e/test_executables.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cli.node.settings import FORWARDING, ON_BRIDGES, filter_on_bridges, look, put_back

if TYPE_CHECKING:
    from pathlib import Path

V4, V6 = FORWARDING


def make(folder: Path, **values: str) -> None:
    for name in (*ON_BRIDGES, *FORWARDING):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(values.get(file.name.replace("-", "_"), "0"))


def test_bridges_call_the_firewall_for_both_families(tmp_path: Path) -> None:
    make(tmp_path)

    assert filter_on_bridges(str(tmp_path), load=("false",)) == ""

    assert [look(str(tmp_path))[name] for name in ON_BRIDGES] == ["1", "1"]


def test_the_module_is_loaded_when_it_is_not_there(tmp_path: Path) -> None:
    settings = tmp_path / "net/bridge"
    names = " ".join(name.rpartition("/")[2] for name in ON_BRIDGES)
    load = f"mkdir -p {settings}; for name in {names}; do printf 0 > {settings}/$name; done"

    assert filter_on_bridges(str(tmp_path), load=("sh", "-c", load)) == ""

    assert [look(str(tmp_path))[name] for name in ON_BRIDGES] == ["1", "1"]


@pytest.mark.parametrize("program", ["false", "no-such-program"])
def test_a_kernel_without_it_is_reported(tmp_path: Path, program: str) -> None:
    fault = filter_on_bridges(str(tmp_path), load=(program,))
    assert "expected br_netfilter in this kernel" in fault
    assert fault.endswith(f"try {program} on the node")


def test_a_setting_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / ON_BRIDGES[0]).mkdir(parents=True)

    assert filter_on_bridges(str(tmp_path)).startswith(
        "cannot set net.bridge.bridge-nf-call-iptables to 1: Is a directory"
    )


def test_settings_are_put_back_while_they_hold_our_value(tmp_path: Path) -> None:
    make(tmp_path, bridge_nf_call_ip6tables="1")
    before = look(str(tmp_path))
    for name in (*ON_BRIDGES, *FORWARDING):
        (tmp_path / name).write_text("1")
    (tmp_path / V6).write_text("2")  # somebody else has set it since

    done, stays = put_back(before, str(tmp_path))

    assert done == ["net.bridge.bridge-nf-call-iptables is 0 again"]
    assert stays == ["net.ipv4.conf.all.forwarding stays 1 (it was 0 before): other programs may need it"]
    assert look(str(tmp_path)) == {ON_BRIDGES[0]: "0", ON_BRIDGES[1]: "1", V4: "1", V6: "2"}


def test_a_setting_that_came_with_the_module_filters_no_more(tmp_path: Path) -> None:
    before = look(str(tmp_path))
    assert set(before.values()) == {None}
    make(tmp_path, bridge_nf_call_iptables="1", bridge_nf_call_ip6tables="1")

    done, stays = put_back(before, str(tmp_path))

    assert [look(str(tmp_path))[name] for name in ON_BRIDGES] == ["0", "0"]
    assert len(done) == 2
    assert stays == ["the module br_netfilter stays loaded (modprobe -r br_netfilter removes it)"]
