"""The one-shot executable: the only place under `cni/` that looks at the world.

`main(registry)` serves every plugin of the registry; which one is told by the name the program was called
by. The program exits with `os._exit`: the interpreter's own tear-down costs a millisecond and has nothing
to do for us.
"""

from __future__ import annotations

import os
import select
import sys
import time

from cni import __version__, dispatch, jsonio
from cni.context import World
from cni.errors import IO_FAILURE, CniError
from cni.version import SUPPORTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from cni.kernel import Kernel, Namespace

SILENCE = 10.0  # seconds without a byte until a configuration is given up (code 5)
PROBE_SILENCE = 0.1  # seconds VERSION waits for a writer that may never come
_CHUNK = 65536
_LONGEST = 16 << 20


def main(registry: Mapping[str, str], argv: list[str]) -> NoReturn:
    """Serve one call of plugin `name` from the process's environment, stdin and stdout, and exit."""
    name = os.path.basename(argv[1])
    _fill_standard_fds()
    environ = dict(os.environ)
    if not environ.get("CNI_COMMAND"):
        about = f"CNI plugin {name} v{__version__} (cnikit)\nCNI protocol versions supported: {', '.join(SUPPORTED)}\n"
        _stderr(about)
        os._exit(0)
    world = World(registry, _LazyKernel(), time.monotonic, _log(name), own_plugin=_own_plugin(registry), boot_id=_boot_id)
    try:
        status = dispatch.serve(world, name, environ, Stdin(0), _stdout)
    except OSError as error:
        _stderr(f"cnikit {name}: cannot write to stdout: {error}\n")
        status = 1
    os._exit(status)


class Stdin:
    """stdin with bounded waits (`dispatch.Stdin`)."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def all(self) -> bytes:
        """Everything; CniError 5 after 10 s of silence."""
        data, ended = self._read(SILENCE, whole=False)
        if not ended:
            raise CniError(
                IO_FAILURE,
                f"stdin: expected the network configuration and its end, found {SILENCE:g} s of silence",
                "close stdin after the configuration is written",
            )
        return data

    def probe(self) -> bytes:
        """One JSON value, the end, or what came before 100 ms of silence."""
        return self._read(PROBE_SILENCE, whole=True)[0]

    def _read(self, silence: float, *, whole: bool) -> tuple[bytes, bool]:
        """What came, and whether it was complete: the end was reached or (`whole`) one JSON value is there."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        data = b""
        while poll.poll(silence * 1000):
            try:
                chunk = os.read(self._fd, _CHUNK)
            except OSError as error:
                raise CniError(IO_FAILURE, f"error reading from stdin: {error.strerror}") from None
            data += chunk
            if not chunk or (whole and jsonio.is_complete(data)):
                return data, True
            if len(data) > _LONGEST:
                raise CniError(IO_FAILURE, f"stdin: expected at most {_LONGEST >> 20} MiB of configuration")
        return data, False


class _LazyKernel:
    """The kernel, imported when a verb first needs it: STATUS of an IPAM plugin never does."""

    __slots__ = ("_kernel",)

    def __init__(self) -> None:
        self._kernel: Kernel | None = None

    def _real(self) -> Kernel:
        if self._kernel is None:
            from cni.kernel.linux import Kernel, fork_background

            self._kernel = Kernel(time.monotonic, fork_background)
        return self._kernel

    def own(self) -> Namespace:
        return self._real().own()

    def open(self, path: str) -> Namespace:
        return self._real().open(path)

    def is_own(self, path: str) -> bool:
        return self._real().is_own(path)


def _own_plugin(registry: Mapping[str, str]) -> object:
    return None


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _fill_standard_fds() -> None:
    """Give a closed stdin, stdout or stderr a place, or the next file opened would take its number."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDWR)


def _stdout(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def _stderr(text: str) -> None:
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody reads it, and there is nowhere left to say so


def _log(name: str) -> object:
    return lambda line: _stderr(f"cnikit {name}: {line}\n")


_ = sys
