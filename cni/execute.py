"""Find a plugin's executable and run it: for delegates and for the runtime. posix_spawn, pipes and poll.

`subprocess` costs 10 ms to import; a plugin call needs one child with stdin and stdout as pipes and the
caller's stderr.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # built in, as `posix` is; `signal` imports `enum`
import posix
import select

from cni import jsonio
from cni.errors import INTERNAL, INVALID_CONFIG, CniError
from cni.paths import base_name, is_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from cni.world import Communicate

    # Starts a program with an environment, with files (ours, theirs) and signals set to their defaults; its process.
    Start = Callable[[Sequence[str], Mapping[str, str], Sequence[tuple[int, int]], Sequence[int]], int]

_CHUNK = 65536

_SIGCHLD = 17

# SIGPIPE and SIGXFSZ: the interpreter ignores them, and a child would inherit that, also where the caller does not.
_IGNORED_BY_PYTHON = (13, 25)


def find(plugin: str, path: Sequence[str]) -> str:
    """The executable of a plugin: the first file of that name in the folders of CNI_PATH. CniError 7 when none."""
    if not plugin or "/" in plugin or "\0" in plugin or plugin in (".", ".."):
        raise CniError(INVALID_CONFIG, f"invalid plugin name {plugin!r}: expected a file name with no '/'")
    for folder in path:
        candidate = f"{folder}/{plugin}"
        if is_file(candidate):
            return candidate
    raise CniError(
        INVALID_CONFIG,
        f"failed to find plugin {plugin!r} in path {list(path)}",
        "install it there, or add its folder to CNI_PATH" if path else "set CNI_PATH to the folders with the plugins",
    )


def plugin_behind(kind: str, path: Sequence[str]) -> str:
    """The plugin that a configuration's `type` starts. An executable of ours may have been copied under another name
    (`cnv-bridge`): its stamp says what it is. Anything else is what it is called."""
    # Imported here: a call that runs a plugin does without.
    from cni.start import plugin_of

    try:
        return plugin_of(find(kind, path)) or kind
    except (CniError, OSError):
        return kind  # whoever runs it will report that


def run(executable: str, environ: Mapping[str, str], stdin: bytes, through: Communicate | None = None) -> Any:
    """Run a plugin to its end (`through`, if given, instead of `communicate`); its answer decoded, None when it
    printed nothing.

    Raises the plugin's own error (code, msg and details kept), or CniError 999 when it failed with no
    error object or printed something that is not JSON.
    """
    status, stdout = (through or communicate)([executable], environ, stdin)
    name = base_name(executable)
    if status != 0:
        raise _failure(name, status, stdout)
    if not stdout.strip():
        return None
    try:
        return jsonio.decode(stdout)
    except CniError as error:
        raise CniError(INTERNAL, f"plugin {name}: expected a JSON result on stdout: {error.msg}", "") from None


def command(argv: Sequence[str], environ: Mapping[str, str], stdin: bytes, through: Communicate | None = None) -> bytes:
    """Run a program of the node (iptables-restore) to its end; its stdout. CniError 999 when it fails."""
    status, stdout = (through or communicate)(argv, environ, stdin)
    if status != 0:
        raise CniError(INTERNAL, f"{' '.join(argv)} failed with status {status}", "its stderr says why")
    return stdout


def _failure(name: str, status: int, stdout: bytes) -> CniError:
    try:
        found = jsonio.decode(stdout)
    except CniError:
        found = None
    if isinstance(found, dict) and type(found.get("code")) is int:
        return CniError(found["code"], str(found.get("msg", "")), str(found.get("details", "")))
    how = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
    said = ascii(stdout[:200].decode("utf-8", "replace"))
    return CniError(INTERNAL, f"plugin {name} {how} with no error object; stdout was {said}", "its stderr may say more")


def communicate(
    argv: Sequence[str], environ: Mapping[str, str], stdin: bytes, stderr: int = 2, ignored: Sequence[int] = ()
) -> tuple[int, bytes]:
    """Run a program with `stdin` on its standard input and `stderr` as its standard error; its exit code
    (negative: the signal that killed it) and stdout. It inherits the caller's signals; of those that the interpreter
    ignores by itself the caller ignores `ignored`."""
    defaults = [number for number in _IGNORED_BY_PYTHON if number not in ignored]
    if _signal.getsignal(_SIGCHLD) != _signal.SIG_IGN:
        return _communicate(_spawn, argv, environ, stdin, stderr, defaults)
    # Ours is ignored too, and so the kernel would throw the exit status away.
    _signal.signal(_SIGCHLD, _signal.SIG_DFL)
    try:
        return _communicate(_fork, argv, environ, stdin, stderr, defaults)
    finally:
        _signal.signal(_SIGCHLD, _signal.SIG_IGN)


def _communicate(
    start: Start,
    argv: Sequence[str],
    environ: Mapping[str, str],
    stdin: bytes,
    stderr: int,
    defaults: Sequence[int],
) -> tuple[int, bytes]:
    their_in, our_in = posix.pipe2(posix.O_CLOEXEC)
    our_out, their_out = posix.pipe2(posix.O_CLOEXEC)
    unclosed = [our_out, our_in]  # also when Ctrl-C ends this anywhere
    try:
        try:
            named = {name: value for name, value in environ.items() if name}
            pid = start(argv, named, ((their_in, 0), (their_out, 1), (stderr, 2)), defaults)
        except OSError as error:
            raise CniError(
                INTERNAL, f"cannot execute {argv[0]}: {error.strerror}", "check its mode and its architecture"
            ) from None
        finally:
            posix.close(their_in)
            posix.close(their_out)
        posix.set_blocking(our_in, False)
        try:
            stdout = _exchange(our_out, stdin, unclosed)
        finally:
            _, status = posix.waitpid(pid, 0)
        return posix.waitstatus_to_exitcode(status), stdout
    finally:
        for fd in unclosed:
            posix.close(fd)


def _spawn(
    argv: Sequence[str], environ: Mapping[str, str], files: Sequence[tuple[int, int]], defaults: Sequence[int]
) -> int:
    actions = [(posix.POSIX_SPAWN_DUP2, ours, theirs) for ours, theirs in files if ours != theirs]
    return posix.posix_spawn(argv[0], list(argv), environ, file_actions=actions, setsigdef=defaults)


def _fork(
    argv: Sequence[str], environ: Mapping[str, str], files: Sequence[tuple[int, int]], defaults: Sequence[int]
) -> int:
    """Like `_spawn`, for a program that shall ignore SIGCHLD though this process no longer does: posix_spawn cannot
    say so. Only for a process without other threads."""
    reader, writer = posix.pipe2(posix.O_CLOEXEC)
    pid = posix.fork()
    if pid == 0:
        try:
            _signal.signal(_SIGCHLD, _signal.SIG_IGN)
            for number in defaults:
                _signal.signal(number, _signal.SIG_DFL)
            for ours, theirs in files:
                posix.dup2(ours, theirs)
            posix.execve(argv[0], list(argv), environ)
        except OSError as error:
            posix.write(writer, (error.errno or 0).to_bytes(4, "little"))
        finally:
            posix._exit(127)
    posix.close(writer)
    failed = posix.read(reader, 4)
    posix.close(reader)
    if failed:
        posix.waitpid(pid, 0)
        number = int.from_bytes(failed, "little")
        raise OSError(number, posix.strerror(number))
    return pid


def _exchange(our_out: int, stdin: bytes, unclosed: list[int]) -> bytes:
    """Feed stdin, the last of `unclosed`, and collect stdout side by side, so that neither pipe can fill up and block
    both. The program's input ends where `stdin` does: it is closed then, and taken from `unclosed`."""
    our_in = unclosed[-1]
    poll = select.poll()
    poll.register(our_out, select.POLLIN)
    poll.register(our_in, select.POLLOUT)
    collected: list[bytes] = []
    while True:
        for fd, _ in poll.poll():
            if fd == our_in:
                try:
                    stdin = stdin[posix.write(our_in, stdin[:_CHUNK]) :] if stdin else b""
                except BrokenPipeError:
                    stdin = b""  # it did not want all of it, which is its right
                if not stdin:
                    poll.unregister(our_in)
                    posix.close(unclosed.pop())
            else:
                data = posix.read(our_out, _CHUNK)
                if not data:
                    return b"".join(collected)
                collected.append(data)
