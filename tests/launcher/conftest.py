"""Builds of the launcher: as it is shipped, and with the sanitizers; each also with bounds that are soon over."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli.bundle import LAUNCHER_SOURCES, compile_launcher, launcher_defines
from tests.launcher.world import Agent, BinDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
LAUNCHER = HERE.parents[1] / "launcher"
HURRIED = "-DSECOND=40"  # a second of the protocol in milliseconds
SANITIZERS = ("-g", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")


class Builds:
    """Builds on demand, each once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def launcher(self, kind: str, *defines: str) -> Path:
        """The launcher for this machine: `static`, as it is shipped, or `sanitized`."""
        output = self._folder / "-".join([kind, *defines])
        if not output.exists():
            if kind == "static":
                compile_launcher(output, platform.machine(), *defines)
            else:
                sources = [*(LAUNCHER / source for source in LAUNCHER_SOURCES), HERE / "sanitizer_options.c"]
                compile_sanitized(output, "address,undefined", *sources, *defines)
        return output

    def stand_in(self) -> Path:
        """What stands in the place of the bundle's program."""
        output = self._folder / "stand-in"
        if not output.exists():
            subprocess.run(
                ["clang", "-O1", "-Wall", "-Wextra", "-Werror", HERE / "stand_in.c", "-o", output], check=True
            )
        return output


def compile_sanitized(output: Path, sanitizers: str, *arguments: str | Path) -> None:
    command = ["clang", *SANITIZERS, f"-fsanitize={sanitizers}", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, *launcher_defines(), *arguments, "-o", output], check=True)


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("builds"))


@pytest.fixture(params=["static", "sanitized"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every test runs with both."""
    made: str = request.param
    return made


@pytest.fixture
def node(builds: Builds, kind: str, tmp_path: Path) -> Iterator[BinDirectory]:
    """A bin directory with a launcher, and no agent."""
    yield from bin_directory(tmp_path, builds.launcher(kind), builds.stand_in())


@pytest.fixture
def hurried(builds: Builds, kind: str, tmp_path: Path) -> Iterator[BinDirectory]:
    """The same with a launcher that loses patience soon: for what happens when a bound is over."""
    yield from bin_directory(tmp_path, builds.launcher(kind, HURRIED), builds.stand_in())


def bin_directory(folder: Path, launcher: Path, stand_in: Path) -> Iterator[BinDirectory]:
    made = BinDirectory(folder / "bin", launcher, stand_in)
    yield made
    made.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent where both nodes look for it."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    with Agent(tmp_path / "bin" / "agent.sock") as made:
        yield made
