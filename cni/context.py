"""What a plugin's verb is given: the call, two namespaces, the delegate, the undo stack, the records.

A plugin is a module (docs/plugin-guide.md):

    ARGS = ("MAC",)        the CNI_ARGS keys it knows; None when it takes any
    NETNS = True           whether it works inside CNI_NETNS; an IPAM plugin does not
    class Conf             built as Conf(reader, request), with the typed configuration
    def add(ctx, conf) -> Result
    def delete(ctx, conf), check(ctx, conf), status(ctx, conf), gc(ctx, conf) -> None
"""

from __future__ import annotations

from cni.errors import INVALID_NETNS, CniError
from cni.record import Records
from cni.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType
    from typing import Protocol

    from cni.config import Reader
    from cni.delegate import Delegate
    from cni.kernel import Kernel, Namespace
    from cni.request import Request
    from cni.result import Result

    class Log(Protocol):
        """Where a line for people goes (stderr in the one-shot executable)."""

        def __call__(self, line: str, /) -> object: ...

    class Plugin(Protocol):
        """A plugin module."""

        ARGS: tuple[str, ...] | None
        NETNS: bool

        def add(self, ctx: Context, conf: object) -> Result: ...
        def delete(self, ctx: Context, conf: object) -> None: ...
        def check(self, ctx: Context, conf: object) -> None: ...
        def status(self, ctx: Context, conf: object) -> None: ...
        def gc(self, ctx: Context, conf: object) -> None: ...


class World:
    """Everything outside one call: made once by `cni/main.py` or the agent, and by tests.

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


class Context:
    """One call of one plugin.

    `pod` is the handle of CNI_NETNS: always there in ADD and CHECK of a plugin with NETNS, and None in DEL
    when the namespace is gone, was not given, or is the plugin's own. `host` is opened at first use.
    `prev_result` is None when the configuration has none. `valid` are GC's attachments.
    """

    __slots__ = (
        "_delegate", "_host", "config", "log", "network", "plugin_type", "pod", "prev_result", "records", "request",
        "undo", "valid", "version", "world",
    )  # fmt: skip

    def __init__(self, world: World, plugin_type: str, request: Request, config: Reader, version: str) -> None:
        self.world = world
        self.plugin_type = plugin_type
        self.request = request
        self.config = config
        self.version = version
        self.network = config.string("name")
        self.log = world.log
        self.undo = Undo(world.log)
        self.records = Records(world.run_dir, self.network, world.clock, world.log)
        self.pod: Namespace | None = None
        self.prev_result: Result | None = None
        self.valid: set[tuple[str, str]] = set()
        self._host: Namespace | None = None
        self._delegate: Delegate | None = None

    @property
    def host(self) -> Namespace:
        """The namespace this process runs in: the node's."""
        if self._host is None:
            self._host = self.world.kernel.own()
        return self._host

    @property
    def sandbox(self) -> Namespace:
        """`pod`, for verbs that cannot do without it."""
        if self.pod is None:
            raise CniError(INVALID_NETNS, f"CNI_NETNS: expected a network namespace, found {self.request.netns!r}")
        return self.pod

    @property
    def ipam(self) -> Delegate:
        """The IPAM plugin that `ipam.type` names."""
        if self._delegate is None:
            # Imported here: VERSION and plugins without IPAM never need it.
            from cni.delegate import Delegate

            self._delegate = Delegate(self.world, self.request, self.config)
        return self._delegate

    def close(self) -> None:
        """Release the namespaces."""
        for namespace in (self._host, self.pod):
            if namespace is not None:
                namespace.close()
