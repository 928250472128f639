"""`cnikit lint`: each file in tests/golden/lint against what is to be said about it, to the letter.

`NAME.expected` stands beside each file. A new case is written by hand: run `cnikit lint` on the file in its
folder, with CNI_PATH naming a folder that has bridge, host-local, loopback and ptp, and read what it says.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import lint, lint_refusals
from cli.main import cli
from cni.config import Reader
from cni.errors import CniError
from cni.request import Request
from cni.start import Stamp
from ipam import host_local
from plugins import bridge, pod_network

GOLDEN = Path(__file__).parents[1] / "golden" / "lint"
CASES = sorted(path for path in GOLDEN.iterdir() if path.suffix != ".expected" and path.is_file())
EXAMPLES = Path(__file__).parents[2] / "conf"


@pytest.fixture
def plugin_path(tmp_path: Path) -> list[str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bridge", "host-gw", "host-local", "loopback", "portmap", "ptp", "vxlan"):
        (folder / name).touch()
    return [str(folder)]


def said(path: str, plugin_path: list[str]) -> str:
    findings, _ = lint.lint_paths([path], plugin_path)
    return "".join(f"{finding.text()}\n" for finding in findings).replace(plugin_path[0], "BIN")


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_what_is_said_about_a_file(case: Path, plugin_path: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    assert said(case.name, plugin_path) == case.with_name(f"{case.name}.expected").read_text()


def test_every_finding_points_and_helps(plugin_path: list[str]) -> None:
    findings, checked = lint.lint_paths([str(case) for case in CASES], plugin_path)
    assert checked == len(CASES)
    for finding in findings:
        assert finding.message, finding
        assert finding.remedy, finding


def test_the_examples_we_ship_are_clean(plugin_path: list[str]) -> None:
    assert said(str(EXAMPLES), plugin_path) == ""


def test_every_schema_is_valid_and_describes_every_key() -> None:
    from jsonschema import Draft202012Validator

    for file in Path(lint.SCHEMAS).glob("*.json"):
        schema = json.loads(file.read_text())
        Draft202012Validator.check_schema(schema)
        for name, about in schema["properties"].items():
            assert about.get("description") or "$ref" in about, f"{file.name}: {name}"


def test_a_folder_tells_duplicate_names_and_the_plugins_of_the_networks_folder(
    tmp_path: Path, plugin_path: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "net.d"
    (folder / "net").mkdir(parents=True)
    content = '{"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "loopback"}]}'
    (folder / "10.conflist").write_text(content)
    (folder / "20.conflist").write_text(content.replace('"net"', '"net"'))
    (folder / "net" / "30.conf").write_text('{"type": "bridge", "mtu": "big"}')
    monkeypatch.chdir(tmp_path)

    told = said("net.d", plugin_path)

    assert 'net.d/20.conflist: error: name: expected a name used once, found "net" in net.d/10.conflist too' in told
    assert 'net.d/net/30.conf: error: mtu: expected an integer, found "big"' in told


def test_a_copied_plugin_is_linted_as_what_it_is(tmp_path: Path, plugin_path: list[str]) -> None:
    for name, plugin in (("cnv-bridge", "bridge"), ("cnv-vxlan", "vxlan"), ("cnv-ipam", "host-local")):
        launcher(Path(plugin_path[0], name), plugin)
    file = tmp_path / "10.conflist"
    ipam = {"type": "cnv-ipam", "ranges": [[{"subnet": "10.1.0.0/33"}]]}
    plugins = [{"type": "cnv-bridge", "mtu": "big", "ipam": ipam}, {"type": "cnv-vxlan", "vni": -1}]
    file.write_text(json.dumps({"cniVersion": "1.1.0", "name": "net", "plugins": plugins}))

    told = said(str(file), plugin_path)

    assert 'plugins[0].mtu: expected an integer, found "big"' in told
    assert "plugins[0].ipam.ranges[0][0].subnet: expected" in told
    assert "plugins[1].vni: expected" in told
    assert "executable" not in told


def launcher(path: Path, plugin: str) -> None:
    """A launcher's file, as far as its stamp."""
    path.write_bytes(Stamp(plugin, "build", "code").written(b"\x7fcnikit-stamp1\n\0" + bytes(384)))


@pytest.mark.parametrize(
    ("inlined", "dropped_in", "complaint"),
    [
        (
            [],
            {"10-portmap": "portmap", "20-bridge": "bridge"},
            "10-portmap.conf: error: type: expected a plugin before",
        ),
        ([{"type": "portmap"}], {"20-bridge": "bridge"}, "plugins[0].type: expected a plugin before portmap"),
        ([{"type": "bridge"}], {"10-portmap": "portmap"}, ""),
        ([], {"10-bridge": "bridge", "20-portmap": "portmap"}, ""),
    ],
)
def test_the_order_of_a_list_goes_on_in_the_networks_folder(
    tmp_path: Path, plugin_path: list[str], inlined: list[Any], dropped_in: dict[str, str], complaint: str
) -> None:
    (tmp_path / "net").mkdir()
    value = {"cniVersion": "1.1.0", "name": "net", **({"plugins": inlined} if inlined else {})}
    (tmp_path / "10.conflist").write_text(json.dumps(value))
    for name, kind in dropped_in.items():
        (tmp_path / "net" / f"{name}.conf").write_text(json.dumps({"type": kind}))

    told = said(str(tmp_path), plugin_path)

    assert complaint in told if complaint else "expected a plugin before" not in told


@pytest.mark.parametrize(
    ("file", "status"), [("good.conflist", 0), ("bridge-spelling.conflist", 0), ("syntax.conflist", 1)]
)
def test_the_exit_code_is_1_for_errors_and_0_for_warnings(
    file: str, status: int, plugin_path: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNI_PATH", os.pathsep.join(plugin_path))
    assert CliRunner().invoke(cli, ["lint", str(GOLDEN / file)]).exit_code == status


def test_what_lint_accepts_our_plugins_accept(plugin_path: list[str]) -> None:
    for case in (GOLDEN / "good.conflist", *EXAMPLES.glob("*.conflist")):
        value = json.loads(case.read_text())
        reader = Reader({**value["plugins"][0], "name": "net", "cniVersion": "1.1.0"})
        request = Request({"CNI_COMMAND": "STATUS"})
        if reader.raw("type") in lint_refusals.CLUSTER:
            pod_network.Conf(reader, request)
        else:
            bridge.Conf(reader, request).refuse_contradictions()
            host_local.Conf(reader, request)


@pytest.mark.parametrize(
    "plugin",
    [
        plugin
        for name in ("bridge-together", "host-local-ranges")
        for plugin in json.loads((GOLDEN / f"{name}.conflist").read_text())["plugins"]
    ],
    ids=lambda plugin: json.dumps(plugin)[:60],
)
def test_what_our_plugins_refuse_lint_calls_an_error(
    plugin: dict[str, object], tmp_path: Path, plugin_path: list[str]
) -> None:
    file = tmp_path / "net.conf"
    file.write_text(json.dumps({"cniVersion": "1.1.0", "name": "net", **plugin}))
    findings, _ = lint.lint_paths([str(file)], plugin_path)
    at_run_time = {"ipRanges": [[{"subnet": "10.1.0.0/24"}]]} if "capabilities" in plugin else {}
    reader = Reader({"cniVersion": "1.1.0", "name": "net", "runtimeConfig": at_run_time, **plugin})
    request = Request({"CNI_COMMAND": "STATUS"})
    try:
        bridge.Conf(reader, request).refuse_contradictions()
        if isinstance(plugin.get("ipam"), dict):
            host_local.Conf(reader, request)
    except CniError:
        assert any(finding.error for finding in findings)
