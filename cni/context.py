"""What a plugin's verb is given: the call, two namespaces, the delegate, the undo stack, the records.

A plugin is a module (docs/plugin-guide.md):

    ARGS = ("MAC",)        the CNI_ARGS keys it knows; None when it takes any
    NETNS = True           whether it works inside CNI_NETNS; an IPAM plugin does not
    PATHS = (("dir", "/x"),)  options that name files or folders of the node, and what each is when not given
    class Conf             built as Conf(reader, request), with the typed configuration and `programs`
    def add(ctx, conf) -> Result
    def delete(ctx, conf), check(ctx, conf), status(ctx, conf), gc(ctx, conf) -> None

`Plugin` is the same for the type checker, which compares every module of the registry with it
(tests/unit/test_plugin_contract.py). `World.plugin` returns it.
"""

from __future__ import annotations

from cni.errors import INVALID_NETNS, CniError
from cni.record import Records
from cni.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol, TypeVar

    from cni.config import Reader
    from cni.delegate import Delegate
    from cni.kernel import Namespace
    from cni.request import Request
    from cni.result import Result
    from cni.world import World

    class PluginConf(Protocol):
        """What a plugin's typed configuration has, whatever else it holds."""

        @property
        def programs(self) -> tuple[str, ...]:
            """Programs of the node that ADD runs, beside its delegate."""

    AnyConf = TypeVar("AnyConf", bound=PluginConf)

    class Plugin(Protocol[AnyConf]):
        """A plugin module, whose verbs take what its `Conf` makes."""

        @property
        def ARGS(self) -> tuple[str, ...] | None: ...
        @property
        def NETNS(self) -> bool: ...
        @property
        def PATHS(self) -> tuple[tuple[str, str], ...]: ...
        @property
        def Conf(self) -> Callable[[Reader, Request], AnyConf]: ...

        def add(self, ctx: Context, conf: AnyConf, /) -> Result: ...
        def delete(self, ctx: Context, conf: AnyConf, /) -> None: ...
        def check(self, ctx: Context, conf: AnyConf, /) -> None: ...
        def status(self, ctx: Context, conf: AnyConf, /) -> None: ...
        def gc(self, ctx: Context, conf: AnyConf, /) -> None: ...


class Context:
    """One call of one plugin.

    `pod` is the handle of CNI_NETNS: always there in ADD and CHECK of a plugin with NETNS, and None in DEL
    when the namespace is gone, was not given, or is the plugin's own. `host` is opened at first use.
    `prev_result` is None when the configuration has none. `valid` are GC's attachments.
    """

    __slots__ = (
        "_delegate", "_host", "_ipam", "config", "log", "network", "plugin_type", "pod", "prev_result", "records", "request",
        "undo", "valid", "version", "world",
    )  # fmt: skip

    def __init__(
        self,
        world: World,
        plugin_type: str,
        request: Request,
        config: Reader,
        version: str,
        delegate: Callable[[], Delegate],
    ) -> None:
        self.world = world
        self.plugin_type = plugin_type
        self.request = request
        self.config = config
        self.version = version
        self.network = config.string("name")
        self.log = world.log
        self.undo = Undo(world.log)
        self.records = Records(world.run_dir, self.network, world.lock, world.log)
        self.pod: Namespace | None = None
        self.prev_result: Result | None = None
        self.valid: set[tuple[str, str]] = set()
        self._host: Namespace | None = None
        self._delegate: Callable[[], Delegate] | None = delegate
        self._ipam: Delegate | None = None

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
        if self._ipam is None:
            assert self._delegate is not None
            self._ipam = self._delegate()
        return self._ipam

    def close(self) -> None:
        """Release the namespaces, and what would keep an ended call alive in a resident process."""
        self._delegate = self._ipam = None
        for namespace in (self._host, self.pod):
            if namespace is not None:
                namespace.close()
