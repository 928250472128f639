"""Everything outside one call, in one object: nothing below `cni/main.py` reaches for the world itself."""

from __future__ import annotations

from cni.lock import Locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Protocol

    from cni.context import Plugin
    from cni.kernel import Kernel

    class Log(Protocol):
        """Where a line for people goes (stderr in the one-shot executable)."""

        def __call__(self, line: str, /) -> object: ...

    class HeldLock(Protocol):
        """A lock that was taken (`cni/lock.py`)."""

        def __enter__(self) -> HeldLock: ...
        def __exit__(self, *exc: object) -> None: ...
        def close(self) -> None: ...

    class TakeLock(Protocol):
        """Take the lock of a file; CniError 11 when that takes too long (`cni/lock.py`)."""

        def __call__(self, path: str, *, transient: bool = False, mode: int = 0o600) -> HeldLock: ...

    class Step(Protocol):
        """What surrounds a step of a call, to see how long it takes."""

        def __enter__(self) -> object: ...
        def __exit__(self, *exc: object) -> None: ...

    # Runs a program with an environment and stdin; its exit code and stdout.
    Communicate = Callable[[Sequence[str], Mapping[str, str], bytes], tuple[int, bytes]]


class World:
    """Made by `cni/main.py` and by the agent, and by tests.

    `registry` maps a plugin's name to its module's path. `own_plugin` says whether an executable found on
    CNI_PATH is one of this build's, by the plugin name or None. `clock` is monotonic, in seconds. `lock`
    takes a lock, `communicate` runs a foreign program (None: as `cni/execute.py` does), `resolve` makes a path that
    begins at the caller's working directory absolute, `step` is given the kind of a step and what it is about. `host_id` is
    empty where nothing distinguishes this host from others.
    """

    __slots__ = (
        "boot_id", "clock", "communicate", "host_id", "kernel", "lock", "log", "own_plugin", "registry", "resolve",
        "run_dir", "step",
    )  # fmt: skip

    def __init__(
        self,
        registry: Mapping[str, str],
        kernel: Kernel,
        clock: Callable[[], float],
        log: Log,
        *,
        own_plugin: Callable[[str], str | None],
        boot_id: Callable[[], str],
        host_id: Callable[[], str] = str,
        lock: TakeLock | None = None,
        communicate: Communicate | None = None,
        step: Callable[[str, str], Step] | None = None,
        resolve: Callable[[str], str] | None = None,
        run_dir: str = "/run/cnikit",
    ) -> None:
        self.registry = registry
        self.kernel = kernel
        self.clock = clock
        self.log = log
        self.own_plugin = own_plugin
        self.boot_id = boot_id
        self.host_id = host_id
        self.lock = lock or Locks(clock).take
        self.communicate = communicate
        self.resolve = resolve or (lambda path: path)
        self.step = step or (lambda kind, about: _UNTIMED)  # noqa: ARG005 - nobody looks
        self.run_dir = run_dir

    def plugin(self, name: str) -> Plugin[Any]:
        """The module of a plugin, imported now: a call pays for what it uses."""
        found: Plugin[Any] = __import__(self.registry[name], fromlist=["*"])
        return found


class _Untimed:
    """A step that nobody looks at."""

    __slots__ = ()

    def __enter__(self) -> None: ...
    def __exit__(self, *exc: object) -> None: ...


_UNTIMED = _Untimed()
