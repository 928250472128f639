"""What the `cnikit` command makes of its environment and its files; the verbs themselves are in tests/e2e."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main, registry
from cli.main import World
from cni.errors import CniError


def test_the_container_id_is_cnitools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    expected = hashlib.sha512(str(tmp_path / "ns").encode()).hexdigest()[:20]

    attachment = World({}).attachment("./x/../ns")

    assert attachment.container_id == f"cnitool-{expected}"
    assert attachment.netns == str(tmp_path / "ns")


def test_the_attachment_comes_from_cnitools_variables() -> None:
    environ = {"CNI_IFNAME": "net1", "CNI_ARGS": "A=1;B=2", "CAP_ARGS": '{"mac": "x"}'}
    attachment = World(environ).attachment("/n")
    assert (attachment.ifname, attachment.args, attachment.capability_args) == (
        "net1",
        [("A", "1"), ("B", "2")],
        {"mac": "x"},
    )


def test_the_interface_is_eth0_unless_it_is_said() -> None:
    assert World({}).attachment("/n").ifname == "eth0"
    assert World({"CNI_IFNAME": ""}).attachment("/n").ifname == ""


@pytest.mark.parametrize("args", ["A", "A=", "=1", "A=1;", "A=b=c"])
def test_broken_cni_args_are_refused(args: str) -> None:
    with pytest.raises(CniError, match="invalid CNI_ARGS pair"):
        main.cni_args(args)


@pytest.mark.parametrize("args", ["{", "[]", '"mac"'])
def test_broken_cap_args_are_refused(args: str) -> None:
    with pytest.raises(CniError, match="CAP_ARGS"):
        main.capability_args(args)


def test_cni_path_is_taken_as_it_is_and_has_a_default() -> None:
    assert main.plugin_path({"CNI_PATH": "/a::/b"}) == ["/a", "/b"]
    assert main.plugin_path({})[-1] == "/opt/cni/bin"


def test_a_frozen_command_finds_its_plugins_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "host-local").touch()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "cnikit"))

    assert registry.bundled_plugins() == str(tmp_path / "bin")


def test_the_keep_list_is_read() -> None:
    assert main.kept("f", b'[{"containerID": "a", "ifname": "eth0"}]') == [("a", "eth0")]
    assert main.kept("f", b"[]") == []


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"", "no JSON found"),
        (b"{}", "expected an array"),
        (b"null", "expected an array"),
        (b'["a"]', r"\[0\]: expected an object"),
        (b'[{"containerID": "a"}]', r"\[0\]\.ifname: expected a string, found null"),
    ],
)
def test_a_broken_keep_list_is_refused_with_the_place(data: bytes, place: str) -> None:
    with pytest.raises(CniError, match=place) as caught:
        main.kept("FILE", data)
    assert caught.value.msg.startswith("--keep FILE: ")
    assert "containerID" in caught.value.details


def test_an_error_is_one_line_on_stderr_and_exit_code_1(tmp_path: Path) -> None:
    runner = CliRunner(env={"NETCONFPATH": str(tmp_path), "CNI_PATH": str(tmp_path)})
    outcome = runner.invoke(main.cli, ["add", "net", "/n"])
    assert outcome.exit_code == 1
    assert outcome.stdout == ""
    assert outcome.stderr.count("\n") == 1
    assert outcome.stderr.startswith("cnikit: error: no net configuration with name 'net'")


def test_the_one_time_commands_do_not_load_tables_or_schemas() -> None:
    code = (
        "import sys, cli.main; print([m for m in ('rich', 'jsonschema', 'pyroute2', 'json.tool') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"
