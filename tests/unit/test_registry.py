"""cli/registry.py and cli/identity.py: what `--plugin` takes, and how builds and code are told apart."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from cli import identity
from cli.registry import CONTRACT, PLUGINS, third_party
from cni import __version__

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "example_plugin.py"
WHOLE = """
ARGS, NETNS, PATHS = (), True, ()
class Conf:
    def __init__(self, reader, request): ...
def add(ctx, conf): ...
delete = check = status = gc = add
"""


@pytest.fixture(autouse=True)
def nothing_stays_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def written(folder: Path, name: str, content: str = WHOLE) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return folder / name


def test_a_plugin_of_somebody_else(tmp_path: Path) -> None:
    mine = written(tmp_path, "my_plugin.py")
    assert third_party([f"vip={EXAMPLE}", f"mine={mine}"]) == {"vip": str(EXAMPLE), "mine": str(mine)}
    assert "my_plugin" in sys.modules


@pytest.mark.parametrize("name", PLUGINS)
def test_our_own_plugins_are_not_replaced(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is one of cnikit's own plugins, expected another name"):
        third_party([f"{name}={written(tmp_path, 'my_plugin.py')}"])


def test_one_name_or_one_module_twice(tmp_path: Path) -> None:
    one, two, other = (
        written(tmp_path / "a", "one_plugin.py"),
        written(tmp_path / "a", "two_plugin.py"),
        written(tmp_path / "b", "one_plugin.py"),
    )
    with pytest.raises(ValueError, match="mine was given before"):
        third_party([f"mine={one}", f"mine={two}"])
    for second in (one, other):
        with pytest.raises(ValueError, match="module one_plugin was given before, as plugin mine"):
            third_party([f"mine={one}", f"yours={second}"])


@pytest.mark.parametrize("name", ["json.py", "cni.py", "plugins.py", "posix.py"])
def test_a_module_that_is_there_already(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is there already"):
        third_party([f"mine={written(tmp_path, name)}"])


@pytest.mark.parametrize("missing", CONTRACT)
def test_a_module_without_a_name_of_the_contract(tmp_path: Path, missing: str) -> None:
    with pytest.raises(ValueError, match=rf"found no {missing} in it"):
        third_party([f"mine={written(tmp_path, 'my_plugin.py', WHOLE + f'del {missing}')}"])


def test_all_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no ARGS, NETNS, PATHS, Conf, add, delete, check, status, gc in it"):
        third_party([f"mine={written(tmp_path, 'my_plugin.py', '')}"])


@pytest.mark.parametrize("wrong", ["gc = None", "NETNS = 'yes'", "Conf = {}"])
def test_a_name_of_the_contract_that_is_something_else(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ValueError, match="to be called and NETNS"):
        third_party([f"mine={written(tmp_path, 'my_plugin.py', WHOLE + wrong)}"])


@pytest.mark.parametrize("content", ["def", "1 / 0"])
def test_a_module_that_cannot_be_imported(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match="cannot be imported: (SyntaxError|ZeroDivisionError)"):
        third_party([f"mine={written(tmp_path, 'my_plugin.py', content)}"])


@pytest.mark.parametrize(
    "item", ["mine", "=my_plugin.py", "a/b=my_plugin.py", "mine=none.py", "mine=/bin/sh", f"{'x' * 256}={EXAMPLE}"]
)
def test_what_is_no_name_and_file(item: str) -> None:
    with pytest.raises(ValueError, match="--plugin .* expected"):
        third_party([item])


def test_the_code_of_our_plugins_is_one(tmp_path: Path) -> None:
    codes = identity.codes({"mine": str(written(tmp_path, "my_plugin.py"))})
    assert set(codes) == {*PLUGINS, "mine"}
    assert {codes[name] for name in PLUGINS} == {identity.code()}
    assert codes["mine"] != identity.code()


def test_the_code_of_a_plugin_is_its_file_and_what_it_imports_from_beside_it(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    plugin = written(here, "my_plugin.py", f"import helper\nfrom package import part\n{WHOLE}")
    written(here, "helper.py", "import my_plugin\nimport sys\n")
    written(here / "package", "__init__.py", "")
    written(here / "package", "part.py", "from . import deep\n")
    written(here / "package", "deep.py", "1")
    shutil.copytree(here, there)
    code = identity.codes({"mine": str(plugin)})["mine"]

    assert identity.codes({"mine": str(there / "my_plugin.py")})["mine"] == code
    written(here, "not_imported.py", "1")
    assert identity.codes({"mine": str(plugin)})["mine"] == code
    for file in ("my_plugin.py", "helper.py", "package/__init__.py", "package/part.py", "package/deep.py"):
        content = (here / file).read_text()
        (here / file).write_text(content + "\n")
        assert identity.codes({"mine": str(plugin)})["mine"] != code, file
        (here / file).write_text(content)


def test_a_build_is_named_by_what_is_in_its_bundle(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    written(one, "a", "text")
    written(one / "folder", "b", "more")
    (one / "link").symlink_to("a")
    shutil.copytree(one, other, symlinks=True)
    build = identity.build_of(one)
    assert build.startswith(f"{__version__}-")
    assert identity.build_of(other) == build
    (other / "folder" / "b").write_text("else")
    assert identity.build_of(other) != build
    (other / "folder" / "b").write_text("more")
    (other / "folder" / "b").rename(other / "folder" / "c")
    assert identity.build_of(other) != build
