"""Network namespaces for a test: made with unique names, removed afterwards, looked at with ip, bridge and nft."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_numbers = itertools.count()


class Netns:
    """A namespace made with `ip netns add`, and the independent tools to look at it."""

    def __init__(self) -> None:
        self.name = f"cnikit-test-{os.getpid()}-{next(_numbers)}"
        self.path = f"/run/netns/{self.name}"
        run("ip", "netns", "add", self.name)

    def remove(self) -> None:
        run("ip", "netns", "del", self.name)

    def run(self, *command: str) -> str:
        """A command's output, inside; AssertionError with its complaint when it fails."""
        return run("ip", "netns", "exec", self.name, *command)

    def ip(self, *arguments: str) -> Any:
        return json.loads(run("ip", "-n", self.name, "-j", "-d", *arguments) or "[]")

    def bridge(self, *arguments: str) -> Any:
        return json.loads(self.run("bridge", "-j", "-d", *arguments) or "[]")

    def nft(self) -> list[dict[str, Any]]:
        """The whole ruleset, without its header and without counters of handles."""
        found: list[dict[str, Any]] = json.loads(self.run("nft", "-j", "list", "ruleset"))["nftables"]
        return [entry for entry in found if "metainfo" not in entry]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
    return done.stdout


@pytest.fixture
def make_netns() -> Iterator[Callable[[], Netns]]:
    """A function that makes one more namespace."""
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    yield make
    for netns in made:
        netns.remove()


@pytest.fixture
def host_ns(make_netns: Callable[[], Netns]) -> Netns:
    return make_netns()


@pytest.fixture
def pod_ns(make_netns: Callable[[], Netns]) -> Netns:
    return make_netns()
