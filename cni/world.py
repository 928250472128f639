"""Everything outside one call, in one object: nothing below `cni/main.py` reaches for the world itself."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType
    from typing import Protocol

    from cni.kernel import Kernel

    class Log(Protocol):
        """Where a line for people goes (stderr in the one-shot executable)."""

        def __call__(self, line: str, /) -> object: ...


class World:
    """Made once by `cni/main.py`, and by tests.

    `registry` maps a plugin's name to its module's path. `own_plugin` tells whether an executable found on
    CNI_PATH is one of this build's, by the plugin name or None. `clock` is monotonic, in seconds.
    """

    __slots__ = ("boot_id", "clock", "kernel", "log", "own_plugin", "registry", "run_dir")

    def __init__(
        self,
        registry: Mapping[str, str],
        kernel: Kernel,
        clock: Callable[[], float],
        log: Log,
        *,
        own_plugin: Callable[[str], str | None],
        boot_id: Callable[[], str],
        run_dir: str = "/run/cnikit",
    ) -> None:
        self.registry = registry
        self.kernel = kernel
        self.clock = clock
        self.log = log
        self.own_plugin = own_plugin
        self.boot_id = boot_id
        self.run_dir = run_dir

    def plugin(self, name: str) -> ModuleType:
        """The module of a plugin, imported now: a call pays for what it uses."""
        module = self.registry[name]
        return __import__(module, fromlist=["*"])
