"""What the launcher's tests stand on: a bin directory with a launcher and a stand-in for the bundle, and an agent
that does what the test tells it, byte for byte.

The protocol is written down here a second time, from docs/agent-protocol.md and not from agent/wire.py.
"""

from __future__ import annotations

import array
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni import __version__

if TYPE_CHECKING:
    from types import TracebackType

BUILD = f"{__version__}-0123456789abcdef"
CODE = "fedcba9876543210"
DEADLINE = 30  # seconds until a test gives up
PIPE_SIZE = 1 << 16  # what every pipe holds
PREPARED = (b"LD_LIBRARY_PATH=", b"_PYI_")  # what the launcher sets for the bundle's program


def stamped(content: bytes, plugin: str) -> bytes:
    """A launcher with a plugin's stamp: after its mark of 16 bytes come the fields, with zero bytes behind them."""
    mark = b"\x7fcnikit-stamp1\n\0"
    assert content.count(mark) == 1
    fields = ((plugin, 256), (BUILD, 64), (CODE, 64))
    stamp = mark + b"".join(field.encode().ljust(size, b"\0") for field, size in fields)
    at = content.index(mark)
    return content[:at] + stamp + content[at + len(stamp) :]


class OneShot:
    """How the stand-in was started."""

    def __init__(self, folder: Path) -> None:
        environ = (folder / "environ").read_bytes().split(b"\0")[:-1]
        self.environ = [entry for entry in environ if not entry.startswith(PREPARED)]
        self.stdin = (folder / "stdin").read_bytes()
        self.stdin_name = (folder / "stdin-name").read_text()
        self.arguments = (folder / "arguments").read_bytes().split(b"\0")[:-1]
        self.fds = [fd for fd, is_open in enumerate((folder / "fds").read_bytes()) if is_open]
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        self.ignored = int(status["SigIgn"], 16)
        self.blocked = int(status["SigBlk"], 16)


def filled_pipe(data: bytes) -> int:
    """The end to read from. All is there at once: on a busy machine a launcher may be sooner out of patience than we
    come to write."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


class Call:
    """A launcher that runs."""

    def __init__(self, argv: list[str], environ: dict[bytes, bytes], stdin: bytes | int | None, **options: Any) -> None:
        """`stdin` is what to write into a pipe, a descriptor, or None for a pipe that stays open and silent."""
        self._feeder: threading.Thread | None = None
        filled = filled_pipe(stdin) if isinstance(stdin, bytes) and len(stdin) <= PIPE_SIZE else None
        given = stdin if isinstance(stdin, int) else filled
        self._process = subprocess.Popen(
            argv, env=environ, stdin=subprocess.PIPE if given is None else given,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )  # fmt: skip
        self.pid = self._process.pid
        if filled is not None:
            os.close(filled)
        elif isinstance(stdin, bytes):
            self._feeder = threading.Thread(target=self._feed, args=(stdin,))
            self._feeder.start()

    def _feed(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.close()
        except BrokenPipeError:
            pass

    def finish(self) -> tuple[int, bytes, bytes]:
        """Its exit code, stdout and stderr."""
        out, err = b"", b""
        streams = [self._process.stdout, self._process.stderr]
        if self._process.stdout:
            out = self._process.stdout.read()
        if self._process.stderr:
            err = self._process.stderr.read()
        status = self._process.wait(DEADLINE)
        if self._feeder is not None:
            self._feeder.join(DEADLINE)
        for stream in [self._process.stdin, *streams]:
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
        return status, out, err

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def await_state(self, state: str) -> None:
        """Wait until it is in this state, as /proc has it: R, S, T, Z ..."""
        deadline = time.monotonic() + DEADLINE
        while Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != state:
            assert time.monotonic() < deadline, f"the launcher never came to state {state}"

    def close(self) -> None:
        """End it when the test did not."""
        if self._process.returncode is None:
            self._process.kill()
            self.finish()


class BinDirectory:
    """A CNI bin directory with the launcher and the stand-in for its bundle."""

    def __init__(self, folder: Path, launcher: Path, stand_in: Path) -> None:
        self.folder = folder
        self.program = folder / "bridge"
        self.socket = folder / "agent.sock"
        self._bundle = folder / ".cnikit" / BUILD
        self._bundle.mkdir(parents=True)
        self.program.write_bytes(stamped(launcher.read_bytes(), "bridge"))
        self.program.chmod(0o755)
        shutil.copy2(stand_in, self._bundle / "cnikit-oneshot")
        self._calls: list[Call] = []

    def environ(self, command: str, **more: str) -> dict[bytes, bytes]:
        environ = {"PATH": "/usr/bin:/bin", "CNIKIT_SOCKET": str(self.socket), "CNI_COMMAND": command, **more}
        return {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}

    def call(
        self, command: str | dict[bytes, bytes], stdin: bytes | int | None = b"{}", *wrapper: str, **options: Any
    ) -> Call:
        """Start the launcher, with `wrapper` as the words before its path."""
        environ = self.environ(command) if isinstance(command, str) else command
        call = Call([*wrapper, str(self.program)], environ, stdin, **options)
        self._calls.append(call)
        return call

    def one_shots(self) -> list[OneShot]:
        """How the bundle's program was started, each time."""
        return [OneShot(ran) for name in ("ran", "ran-again") if (ran := self._bundle / name).exists()]

    def one_shot(self) -> OneShot | None:
        """How it was started, if it was, and not twice."""
        ran = self.one_shots()
        assert len(ran) <= 1
        return ran[0] if ran else None

    def close(self) -> None:
        for call in self._calls:
            call.close()


class Request:
    """What the launcher sent."""

    def __init__(self, data: bytes, fds: list[int]) -> None:
        self.magic, self.flags, size, stdin_size = struct.unpack_from("=8sIII", data)
        strings, self.stdin = data[20 : 20 + size], data[20 + size :]
        assert len(self.stdin) == stdin_size
        assert strings.endswith(b"\0")
        self.version, self.code, self.plugin, self.launcher, *self.environ = strings[:-1].split(b"\0")
        self.namespaces = []
        for fd in fds:
            found = os.fstat(fd)
            self.namespaces.append((found.st_dev, found.st_ino))
            os.close(fd)


class Agent:
    """An agent that listens at `path`; the test plays it."""

    def __init__(self, path: Path, backlog: int = 16) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE)
        self._socket.bind(str(path))
        self._socket.listen(backlog)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def accept(self) -> Peer:
        connection, _ = self._socket.accept()
        connection.settimeout(DEADLINE)
        return Peer(connection)

    def was_asked(self) -> bool:
        """Whether a launcher has connected and was not accepted."""
        return bool(select.select([self._socket], [], [], 0)[0])


class Peer:
    """The agent's end of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def request(self) -> Request:
        """Read a whole request."""
        first, control, _, _ = self._socket.recvmsg(1 << 20, 1024)
        fds = array.array("i")
        for _, _, packed in control:
            fds.frombytes(packed)
        data = bytearray(first)
        while len(data) < 20 or len(data) < 20 + sum(struct.unpack_from("=II", data, 12)):
            chunk = self._socket.recv(1 << 20)
            assert chunk, "the launcher ended in the middle of its request"
            data += chunk
        return Request(bytes(data), list(fds))

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def heard(self) -> bytes:
        """One byte from the launcher; nothing when it has ended the connection."""
        try:
            return self._socket.recv(1)
        except ConnectionResetError:  # it ended with bytes of ours unread
            return b""

    def begin(self) -> Request:
        """Up to GO."""
        request = self.request()
        self.send(frame(b"R", first=b"1.0.0"))
        assert self.heard() == b"G"
        return request


def frame(kind: bytes, code: int = 0, first: bytes = b"", second: bytes = b"") -> bytes:
    """A frame from the agent."""
    return struct.pack("=cBHII", kind, code, 0, len(first), len(second)) + first + second
