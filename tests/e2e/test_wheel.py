"""cnikit as a package: `pip install` into a fresh environment, and from there lint, a build, the agent, and ADD.

The fresh environment sees the dependencies of the one that runs the tests, and nothing of the checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_world import AgentWay
from tests.e2e.world import SEARCH_PATH, Node, Way

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("agent", "cli", "cni", "conf", "ipam", "launcher", "plugins")
PACKAGES = ("agent", "cli", "cni", "ipam", "plugins")  # conf and launcher are no packages to import
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
NETWORK = {
    "cniVersion": "1.1.0",
    "name": "net",
    "plugins": [
        {
            "type": "bridge",
            "isDefaultGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd00:1::/64"}]]},
        },
        {"type": "loopback"},
        {"type": "vip", "addresses": ["203.0.113.10"]},
    ],
}


def environment() -> dict[str, str]:
    """Nothing of the checkout but the compiler's cache, without which each build takes half a minute."""
    paths = {"PATH": SEARCH_PATH, "HOME": "/nonexistent", "CNI_PATH": "/nonexistent"}
    return {**paths, "XDG_CACHE_HOME": str(ROOT / ".cache")}


def run(*argv: str | Path, cwd: Path, status: int = 0) -> str:
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout: building a wheel writes into it."""
    place = tmp_path_factory.mktemp("tree") / "cnikit"
    made = shutil.ignore_patterns(".git", ".venv", ".cache", ".ci", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, place, ignore=lambda folder, names: made(folder, names) | top_level(folder))
    return place


def top_level(folder: str) -> set[str]:
    return {"build", "dist"} if Path(folder) == ROOT else set()


@pytest.fixture(scope="module")
def sdist(tree: Path) -> Path:
    build = "from setuptools import build_meta; build_meta.build_sdist('made')"
    run(sys.executable, "-c", build, cwd=tree)
    (archive,) = (tree / "made").glob("cnikit-*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a package index has it: made from the source archive alone."""
    work = tmp_path_factory.mktemp("wheel")
    run("tar", "-xf", sdist, cwd=work)
    (source,) = work.iterdir()
    return wheel_of(source)


def wheel_of(source: Path) -> Path:
    run(*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "made", ".", cwd=source)
    (made,) = (source / "made").glob("*.whl")
    return made


class Installed:
    """A virtual environment with the wheel in it."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        self.python = folder / "bin" / "python"
        self.site = folder / sysconfig.get_path("purelib", vars={"base": ""}).lstrip("/")
        (self.site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        options = ("--no-deps", "--no-index")
        run(*PIP, "--python", self.python, "install", *options, wheel, cwd=folder.parent)

    @property
    def cnikit(self) -> Path:
        return self.folder / "bin" / "cnikit"

    def files(self) -> dict[str, int]:
        """What lies in the environment, and when each was written."""
        found = [path for path in self.folder.rglob("*") if "__pycache__" not in path.parts]
        return {str(path.relative_to(self.folder)): path.lstat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("an environment") / "venv", wheel)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin of somebody's own, outside every checkout."""
    folder = tmp_path_factory.mktemp("somebody's own")
    shutil.copy2(ROOT / "docs" / "example_plugin.py", folder)
    return folder / "example_plugin.py"


@pytest.fixture(scope="module")
def built(installed: Installed, plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Executables that the installed wheel has made."""
    output = tmp_path_factory.mktemp("out put") / "bin"
    before = installed.files()
    run(installed.cnikit, "build", "--output", output, "--plugin", f"vip={plugin}", cwd=plugin.parent)
    assert installed.files() == before, "a build writes nothing beside its sources"
    return output


@pytest.fixture(params=["one-shot", "agent"])
def node(request: pytest.FixtureRequest, installed: Installed, built: Path) -> Iterator[Node]:
    """A node with these executables, alone and with the wheel's own agent."""
    way = Way("one-shot", built) if request.param == "one-shot" else AgentWay("agent", built, installed.cnikit)
    with Node(way) as made:
        made.prepare()
        made.may_decline = 8  # the agent has no `vip`
        folder = made.path("/etc/cni/net.d")
        folder.mkdir(parents=True)
        (folder / "10-net.conflist").write_text(json.dumps(NETWORK))
        yield made


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}


def assert_accepts_our_lists(command: Path, folder: Path) -> None:
    """Lint has no complaint about the lists in conf/ but that their plugins are not installed on this machine."""
    files = sorted((ROOT / "conf").glob("*.conf*"))
    for file in files:
        output = run(command, "lint", file, cwd=folder, status=1)
        errors = [line for line in output.splitlines() if ": error: " in line]
        assert [line for line in errors if "expected an executable" not in line] == []
    assert files


class TestContents:
    """The wheel has the rooms that a user needs, whole, and nothing else."""

    def test_it_is_the_tree(self, wheel: Path) -> None:
        found = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
        wanted = {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}
        assert names_in(wheel) == wanted

    def test_the_source_archive_gives_the_same_as_the_tree(self, tree: Path, wheel: Path) -> None:
        assert names_in(wheel_of(tree)) == names_in(wheel)

    def test_its_packages_are_typed(self, wheel: Path) -> None:
        assert {f"{package}/py.typed" for package in PACKAGES} <= names_in(wheel)


class TestInstalled:
    """Its command, in an environment with nothing of the checkout."""

    def test_nothing_comes_from_the_checkout(self, installed: Installed) -> None:
        code = "import agent, cli, cni, ipam, plugins; print(*map(repr, sys.modules.values()), sep='\\n')"
        loaded = run(installed.python, "-c", f"import sys; {code}", cwd=installed.folder).splitlines()
        ours = [line for line in loaded if any(line.startswith(f"<module '{package}'") for package in PACKAGES)]
        assert len(ours) == len(PACKAGES)
        assert [line for line in ours if f"from '{installed.site}/" not in line] == []

    def test_lint(self, installed: Installed, tmp_path: Path) -> None:
        (tmp_path / "10-net.conflist").write_text(json.dumps({**NETWORK, "cniVersion": 1}))
        output = run(installed.cnikit, "lint", "10-net.conflist", cwd=tmp_path, status=1)
        assert output.startswith("10-net.conflist: error: cniVersion: expected a string, found 1")

    def test_lint_of_the_lists_that_come_with_it(self, installed: Installed, tmp_path: Path) -> None:
        assert_accepts_our_lists(installed.cnikit, tmp_path)

    def test_its_types_serve_a_plugin_s_author(self, installed: Installed, plugin: Path) -> None:
        options = ("--strict", "--cache-dir", os.devnull, "--python-executable", installed.python)
        assert "no issues found" in run(sys.executable, "-m", "mypy", *options, plugin.name, cwd=plugin.parent)


class TestBuild:
    """`cnikit build`."""

    def test_every_executable_works(self, built: Path) -> None:
        assert {entry.name for entry in built.iterdir()} == {
            ".cnikit", "bridge", "host-gw", "host-local", "loopback", "vip", "vxlan",
        }  # fmt: skip
        for name in ("bridge", "vip"):
            ask = {"CNI_COMMAND": "VERSION"}
            answer = subprocess.run([built / name], env=ask, stdin=subprocess.DEVNULL, capture_output=True, check=True)
            assert "1.1.0" in json.loads(answer.stdout)["supportedVersions"]

    def test_an_attachment_from_add_to_del(self, node: Node, installed: Installed, built: Path) -> None:
        def cnikit(*argv: str) -> Any:
            answer = node.attempt(str(installed.cnikit), *argv, env={**environment(), "CNI_PATH": str(built)})
            assert answer.status == 0, answer
            return answer.stdout

        pod = node.pod()
        result = json.loads(cnikit("add", "net", pod.path))
        assert [ip["address"] for ip in result["ips"]] == ["10.1.0.2/16", "fd00:1::2/64", "203.0.113.10/32"]
        assert pod.addresses() == ["10.1.0.2/16", "fd00:1::2/64"]
        assert [link["ifname"] for link in node.ip("link", "show", "type", "bridge")] == ["cni0"]
        cnikit("check", "net", pod.path)
        cnikit("del", "net", pod.path)
        assert [link["ifname"] for link in pod.ip("link", "show")] == ["lo"]

    def test_the_command_itself(self, installed: Installed, tmp_path: Path) -> None:
        run(installed.cnikit, "build", "--command", "--output", tmp_path / "dist", cwd=tmp_path)
        command = tmp_path / "dist" / "cnikit"
        assert_accepts_our_lists(command, tmp_path)
        refused = run(command, "build", "--output", "bin", cwd=tmp_path, status=1)
        assert refused.startswith("cnikit: error: this cnikit is itself a built executable")

    @pytest.mark.parametrize("missing", ["PyInstaller", "ziglang"])
    def test_without_its_tools(self, installed: Installed, tmp_path: Path, missing: str) -> None:
        code = f"import sys; sys.modules[{missing!r}] = None; from cli.main import cli; cli(prog_name='cnikit')"
        output = run(installed.python, "-c", code, "build", "--output", "bin", cwd=tmp_path, status=1)
        assert output.startswith(f"not built: expected {missing.lower()} in {installed.folder}, found none")
        assert "pip install 'cnikit[build]'" in output
        assert list(tmp_path.iterdir()) == []
