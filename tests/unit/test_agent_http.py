"""The small HTTP server: right answers, few clients, and none that another one could hold up."""

from __future__ import annotations

import os
import socket
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from agent import http
from agent.http import AddressError, HttpServer, Reply, beside, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GET = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n"
SECONDS = 20.0


class Served:
    """A server at a path, and clients of it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.failures: list[str] = []
        replies = {"/hello": lambda: Reply(200, b"hello\n"), "/large": lambda: Reply(200, b"x" * 5_000_000),
                   "/broken": self._broken}  # fmt: skip
        self.server = HttpServer(self.path, replies, self.failures.append)
        self.clients: list[socket.socket] = []

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(SECONDS)
        client.connect(self.path)
        self.clients.append(client)
        return client

    def ask(self, request: bytes = GET) -> tuple[int, bytes]:
        """Status and body."""
        client = self.connect()
        client.sendall(request)
        return answer(client)

    def close(self) -> None:
        self.server.close()
        for client in self.clients:
            client.close()

    def _broken(self) -> Reply:
        raise RuntimeError("no")


def answer(client: socket.socket) -> tuple[int, bytes]:
    """What a client is told up to the end of its connection."""
    data = b""
    while chunk := client.recv(1 << 20):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert "Connection: close" in lines
    return int(lines[0].split()[1]), body


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "http.sock")
    yield made
    made.close()


class TestAnswers:
    def test_get(self, served: Served) -> None:
        assert served.ask() == (200, b"hello\n")
        assert served.ask(GET.replace(b"/hello", b"/hello?x=1")) == (200, b"hello\n")

    def test_head_has_no_body(self, served: Served) -> None:
        assert served.ask(GET.replace(b"GET", b"HEAD")) == (200, b"")

    def test_large(self, served: Served) -> None:
        status, body = served.ask(GET.replace(b"/hello", b"/large"))
        assert (status, len(body)) == (200, 5_000_000)

    def test_piece_by_piece(self, served: Served) -> None:
        client = served.connect()
        for at in range(len(GET)):
            client.sendall(GET[at : at + 1])
        assert answer(client) == (200, b"hello\n")

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
            (b"POST /hello HTTP/1.1\r\n\r\n", 405),
            (b"hello\r\n\r\n", 400),
            (b"\0\xff\r\n\r\n", 400),
            (b"GET /hello HTTP/2\r\n\r\n", 400),
            (b"GET /hello HTTP/1.1\r\n" + b"X: ".ljust(8192 - 21, b"x"), 431),
        ],
    )
    def test_what_is_refused(self, served: Served, request_: bytes, status: int) -> None:
        assert served.ask(request_)[0] == status

    def test_paths_that_there_are(self, served: Served) -> None:
        assert b"/hello" in served.ask(b"GET / HTTP/1.1\r\n\r\n")[1]

    def test_a_reply_that_fails(self, served: Served) -> None:
        assert served.ask(GET.replace(b"/hello", b"/broken"))[0] == 500
        assert served.failures == ["/broken: RuntimeError: no"]
        assert served.ask()[0] == 200


class TestBadClients:
    def test_silent_ones_hold_up_nobody(self, served: Served) -> None:
        silent = [served.connect() for _ in range(http.MOST_CLIENTS * 3)]
        assert served.ask() == (200, b"hello\n")
        assert silent[0].recv(1) == b"", "the one that was silent for the longest is gone"

    def test_one_that_never_reads(self, served: Served) -> None:
        slow = served.connect()
        slow.sendall(GET.replace(b"/hello", b"/large"))
        assert served.ask() == (200, b"hello\n")

    def test_each_has_a_time(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http, "SECONDS", 0.1)
        assert served.connect().recv(1) == b""

    def test_one_that_goes(self, served: Served) -> None:
        for request in (b"", b"GET", GET.replace(b"/hello", b"/large")):
            client = served.connect()
            client.sendall(request)
            client.close()
        assert served.ask()[0] == 200

    def test_many_at_once(self, served: Served) -> None:
        found: list[tuple[int, bytes]] = []
        threads = [threading.Thread(target=lambda: found.append(served.ask())) for _ in range(http.MOST_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [(200, b"hello\n")] * http.MOST_CLIENTS


class TestPlace:
    def test_only_root_may_connect(self, served: Served) -> None:
        assert stat.S_IMODE(os.stat(served.path).st_mode) == 0o600

    def test_its_folder_is_made(self, tmp_path: Path) -> None:
        made = Served(tmp_path / "a" / "b" / "http.sock")
        assert made.ask()[0] == 200
        made.close()

    def test_closing_removes_the_file_and_closing_twice_is_harmless(self, served: Served) -> None:
        served.server.close()
        served.server.close()
        assert not os.path.exists(served.path)

    def test_the_file_of_one_that_was_killed_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "http.sock"
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(path))
            killed.listen()
        made = Served(path)
        assert made.ask()[0] == 200
        made.close()

    def test_one_that_answers_is_left_alone(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http, "_PATIENCE", 0.0)
        with pytest.raises(AddressError, match="another program answers there"):
            HttpServer(served.path, {}, print)
        assert served.ask()[0] == 200

    def test_one_that_is_about_to_end_is_awaited(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http, "_PATIENCE", SECONDS)
        ending = threading.Timer(0.2, served.server.close)
        ending.start()
        next_one = HttpServer(served.path, {"/hello": lambda: Reply(200, b"next\n")}, print)
        ending.join()
        assert served.ask() == (200, b"next\n")
        next_one.close()

    def test_a_file_of_another_kind_is_left_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http, "_PATIENCE", 0.0)
        path = tmp_path / "precious"
        path.write_text("data")
        with pytest.raises(AddressError, match="no socket"):
            HttpServer(str(path), {}, print)
        assert path.read_text() == "data"

    def test_the_successors_file_is_not_removed(self, served: Served) -> None:
        os.unlink(served.path)
        next_one = Served(served.server.where)  # type: ignore[arg-type]
        served.server.close()
        assert next_one.ask()[0] == 200
        next_one.close()

    def test_a_loopback_port(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = HttpServer(f"127.0.0.1:{port}", {"/hello": lambda: Reply(200, b"hello\n")}, print)
        with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
            client.sendall(GET)
            assert answer(client) == (200, b"hello\n")
        server.close()

    def test_a_port_that_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http, "_PATIENCE", 0.0)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(AddressError, match=r"cannot listen at 127.0.0.1:\d+: Address already in use"):
                HttpServer(f"127.0.0.1:{taken.getsockname()[1]}", {}, print)


class TestAddress:
    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            ("/run/x.sock", "/run/x.sock"),
            ("127.0.0.1:20500", ("127.0.0.1", 20500)),
            ("127.9.9.9:1", ("127.9.9.9", 1)),
            ("[::1]:65535", ("::1", 65535)),
            ("localhost:80", ("127.0.0.1", 80)),
        ],
    )
    def test_good(self, where: str, expected: object) -> None:
        assert parse(where) == expected

    @pytest.mark.parametrize(
        "where",
        ["0.0.0.0:80", "10.0.0.1:80", "[::]:80", "[::ffff:127.0.0.1]:80", "example.org:80", ":80", "80", "127.0.0.1",
         "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:\u0665", "relative/path", "\0:1"],
    )  # fmt: skip
    def test_bad(self, where: str) -> None:
        with pytest.raises(AddressError, match="expected a path, or a loopback address and port"):
            parse(where)

    def test_beside_the_agents_own(self) -> None:
        assert beside("/run/cnikit/agent.sock") == "/run/cnikit/agent-http.sock"
        assert beside("/tmp/x") == "/tmp/x-http.sock"
