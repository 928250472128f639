"""The one-shot executable: the only place under `cni/` that looks at the world.

The file in the CNI bin directory is a static launcher (launcher/launcher.c), which starts the bundle's
program with the arguments that `Start` (cni/start.py) reads; the bundle's first script gives `main` the registry. So
one program serves every plugin, and the launcher says which one this call is for.

The program exits with `posix._exit`: the interpreter's own tear-down costs a millisecond and has nothing
to do for us.
"""

from __future__ import annotations

import posix
import select
import time

from cni import __version__, dispatch, jsonio
from cni.errors import INTERNAL, IO_FAILURE, CniError
from cni.names import digest
from cni.paths import folder_of
from cni.start import OwnPlugins, Start, content_of
from cni.version import LATEST, SUPPORTED
from cni.world import World

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    from cni.kernel import Kernel, Namespace
    from cni.world import Communicate

SILENCE = 10.0  # seconds without a byte until a configuration is given up (code 5)
PROBE_SILENCE = 0.1  # seconds VERSION waits for a writer that may never come
_CHUNK = 65536
LONGEST = 16 << 20  # bytes of configuration
_MACHINE_ID_SIZE = 32
_HEX = frozenset(b"0123456789abcdef")


def main(registry: Mapping[str, str], argv: list[str]) -> NoReturn:
    """Serve one call from the process's arguments, environment, stdin and stdout, and exit."""
    _fill_standard_fds()
    start = Start(argv)
    environ = {_text(name): _text(value) for name, value in posix.environ.items()}
    start.restore(environ)
    name = start.plugin
    if name not in registry:
        _refuse(name, registry)
    if not environ.get("CNI_COMMAND"):
        about = f"CNI plugin {name} v{__version__} (cnikit)\nCNI protocol versions supported: {', '.join(SUPPORTED)}\n"
        _stderr(about)
        posix._exit(0)
    own = OwnPlugins(registry, folder_of(start.program))
    world = World(
        registry, _LazyKernel(environ.get("CNIKIT_SYSCTL_DIR", "")), time.monotonic, _log(name),
        own_plugin=own.name_of, boot_id=_boot_id, host_id=host_id, communicate=_communicate(start.ignored),
    )  # fmt: skip
    try:
        status = dispatch.serve(world, name, environ, Stdin(0), lambda _, data: _stdout(data))
    except OSError as error:
        _stderr(f"cnikit {name}: cannot write to stdout: {error.strerror}\n")
        status = 1
    posix._exit(status)


def _communicate(ignored: tuple[int, ...]) -> Communicate | None:
    """How programs are run for a caller that ignores these signals; None for the usual way."""
    if not ignored:
        return None
    from cni.execute import communicate

    return lambda argv, environ, stdin: communicate(argv, environ, stdin, ignored=ignored)


class Stdin:
    """stdin with bounded waits (`dispatch.Stdin`)."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def all(self) -> bytes:
        """Everything; CniError 5 after 10 s of silence."""
        data, ended = self._read(SILENCE, whole=False)
        if not ended:
            raise silence_error(SILENCE)
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
                chunk = posix.read(self._fd, _CHUNK)
            except OSError as error:
                raise CniError(IO_FAILURE, f"error reading from stdin: {error.strerror}") from None
            data += chunk
            if not chunk or (whole and jsonio.is_complete(data)):
                return data, True
            if len(data) > LONGEST:
                raise too_long_error()
        return data, False


def silence_error(seconds: float) -> CniError:
    return CniError(
        IO_FAILURE,
        f"stdin: expected the network configuration and its end, found {seconds:g} s of silence",
        "close stdin after the configuration is written",
    )


def too_long_error() -> CniError:
    return CniError(IO_FAILURE, f"stdin: expected at most {LONGEST >> 20} MiB of configuration")


class _LazyKernel:
    """The kernel, imported when a verb first needs it: STATUS of an IPAM plugin never does.

    `sysctl_dir` is where its settings are mounted, empty for the usual place.
    """

    __slots__ = ("_kernel", "_sysctl_dir")

    def __init__(self, sysctl_dir: str) -> None:
        self._sysctl_dir = sysctl_dir
        self._kernel: Kernel | None = None

    def _real(self) -> Kernel:
        if self._kernel is None:
            from cni.kernel.background import fork_background
            from cni.kernel.linux import Kernel
            from cni.kernel.sysctl import SYSCTL_DIR

            self._kernel = Kernel(time.monotonic, fork_background, self._sysctl_dir or SYSCTL_DIR)
        return self._kernel

    def own(self) -> Namespace:
        return self._real().own()

    def open(self, path: str) -> Namespace:
        return self._real().open(path)

    def is_own(self, path: str) -> bool:
        return self._real().is_own(path)


def _text(raw: bytes) -> str:
    """A variable as Python's `os.environ` would give it."""
    return raw.decode("utf-8", "surrogateescape")


def _boot_id() -> str:
    path = "/proc/sys/kernel/random/boot_id"
    try:
        return content_of(path).decode("ascii").strip()
    except OSError as error:
        raise CniError(INTERNAL, f"cannot read {path}: {error.strerror}", "mount /proc") from None


def host_id() -> str:
    """Which host this is, by its machine ID (machine-id(5)) and its name; empty where it has no machine ID yet.

    One alone is not enough: machines are cloned with their ID, and containers are called alike.
    """
    try:
        # Whatever is there must not block.
        fd = posix.open("/etc/machine-id", posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
        try:
            machine = posix.read(fd, _MACHINE_ID_SIZE + 1).strip()
        finally:
            posix.close(fd)
    except OSError:
        return ""
    if len(machine) != _MACHINE_ID_SIZE or not _HEX.issuperset(machine) or not machine.strip(b"0"):
        return ""  # "uninitialized" during a first boot
    return digest(f"{machine.decode('ascii')} {posix.uname().nodename}").hex()


def _refuse(name: str, registry: Mapping[str, str]) -> NoReturn:
    has = ", ".join(sorted(registry))
    error = CniError(
        INTERNAL, f"no plugin {name!r} in this bundle: it has {has}", "install the launcher and its bundle again"
    )
    try:
        _stdout(dispatch.error_json(error, LATEST))
    except OSError:
        _stderr(f"cnikit: {error}\n")
    posix._exit(1)


def _fill_standard_fds() -> None:
    """Give a closed stdin, stdout or stderr a place, or the next file opened would take its number.

    The place is the read end of a pipe that nobody writes to: reading finds the end, and writing fails as it
    should, so that an ADD whose result cannot be delivered is taken back. It needs no /dev/null.
    """
    closed = [fd for fd in (0, 1, 2) if not _is_open(fd)]
    if closed:
        reader, writer = posix.pipe()  # `reader` is the lowest free number, so the first of `closed`
        posix.close(writer)
        posix.set_inheritable(reader, True)
        for fd in closed[1:]:
            posix.dup2(reader, fd)


def _is_open(fd: int) -> bool:
    try:
        posix.fstat(fd)
    except OSError:
        return False
    return True


def _stdout(data: bytes) -> None:
    while data:
        data = data[posix.write(1, data) :]


def _stderr(text: str) -> None:
    try:
        posix.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody reads it, and there is nowhere left to say so


def _log(name: str) -> Callable[[str], None]:
    return lambda line: _stderr(f"cnikit {name}: {line}\n")
