"""Every plugin module keeps the contract of `cni.context.Plugin`: `make check` has mypy compare the modules named here,
and these tests see that none is left out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cli.registry import PLUGINS
from docs import example_plugin
from ipam import host_local
from plugins import bridge, host_gw, loopback, vxlan

if TYPE_CHECKING:
    from cni.context import Plugin

ROOT = Path(__file__).parents[2]

# A module in the wrong form is an error of mypy in its line.
BRIDGE: Plugin[bridge.Conf] = bridge
HOST_GW: Plugin[host_gw.Conf] = host_gw
HOST_LOCAL: Plugin[host_local.Conf] = host_local
LOOPBACK: Plugin[loopback.Conf] = loopback
VXLAN: Plugin[vxlan.Conf] = vxlan
EXAMPLE: Plugin[example_plugin.Conf] = example_plugin

CHECKED: list[Plugin[Any]] = [BRIDGE, HOST_GW, HOST_LOCAL, LOOPBACK, VXLAN]

# What mypy has to refuse: each is loopback with one line of it changed.
BROKEN = {
    "a verb with another configuration": (
        "def check(ctx: Context, _conf: Conf)",
        "def check(ctx: Context, _conf: str)",
    ),
    "a verb that is missing": ("def status(", "def state("),
    "ADD without a result": ("return ctx.prev_result", "return None"),
    "a configuration without programs": ("    programs = ()\n", ""),
    "a constant that is missing": ("PATHS = ()", ""),
    "CNI_ARGS keys that are no texts": ("ARGS = None", "ARGS = (1,)"),
}


def test_every_plugin_of_the_build_is_compared() -> None:
    assert {module.__name__ for module in CHECKED} == set(PLUGINS.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("fault", BROKEN)
def test_mypy_refuses_a_module_that_breaks_the_contract(tmp_path: Path, fault: str) -> None:
    assert compared(tmp_path, *BROKEN[fault]) != []


def test_mypy_takes_the_same_module_as_it_is(tmp_path: Path) -> None:
    assert compared(tmp_path, "", "") == []


def compared(folder: Path, found: str, replacement: str) -> list[str]:
    """mypy's complaints about loopback with a piece of it replaced, as a plugin."""
    source = Path(loopback.__file__).read_text()
    assert found in source
    (folder / "broken.py").write_text(source.replace(found, replacement, 1))
    (folder / "compared.py").write_text(
        "import broken\nfrom cni.context import Plugin\nBROKEN: Plugin[broken.Conf] = broken\n"
    )
    options = ["--strict", "--explicit-package-bases", "--cache-dir", f"{ROOT}/.cache/mypy", "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *options, "compared.py"]
    path = {"MYPYPATH": f"{ROOT}:{folder}"}
    run = subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    return run.stdout.splitlines()
