"""Which agent runs on a node: what `cnikit install` reports of it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from agent.http import HttpServer, Reply
from cli.node.running_agent import describe
from cni import __version__

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("version", [__version__, "0.0.9"])
def test_its_version_is_reported(tmp_path: Path, version: str) -> None:
    page = f'# TYPE cnikit_build_info gauge\ncnikit_build_info{{python="3.11.2",version="{version}"}} 1.0\n'
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()
        replies = {"/metrics": lambda: Reply(200, page.encode())}
        server = HttpServer(str(tmp_path / "agent-http.sock"), replies, pytest.fail)
        try:
            found = describe({"CNIKIT_SOCKET": str(tmp_path / "agent.sock")})
        finally:
            server.close()

    assert found.startswith(f"an agent of cnikit {version} listens at {tmp_path}/agent.sock")
    assert ("until it is replaced it declines calls" in found) == (version != __version__)


def test_without_one_there_is_nothing_to_report(tmp_path: Path) -> None:
    assert describe({"CNIKIT_SOCKET": str(tmp_path / "agent.sock")}) == ""
