"""Delegation to an IPAM plugin (spec section 4): found on CNI_PATH, given the whole configuration and the
whole environment; called in-process when the file found there is one of this build's own."""

from __future__ import annotations

from cni import jsonio
from cni.config import Reader, mapping
from cni.errors import INTERNAL, INVALID_CONFIG, CniError
from cni.execute import find, run
from cni.result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.request import Request
    from cni.world import World


class Delegate:
    """One delegate of one call. Every verb raises the delegate's own CniError.

    `in_process` calls a plugin of this build (`dispatch.call_in_process`).
    """

    __slots__ = ("_config", "_executable", "_in_process", "_own", "_request", "_world", "name")

    def __init__(
        self,
        world: World,
        request: Request,
        config: Reader,
        in_process: Callable[[World, str, Request, Reader], Result | None],
    ) -> None:
        self._in_process = in_process
        self._world = world
        self._request = request
        self._config = config
        self.name = config.object("ipam").string("type")
        self._executable = find(self.name, [world.resolve(folder) for folder in request.path])
        self._own = world.own_plugin(self._executable)
        if self._own is not None and world.plugin(self._own).NETNS:
            # bridge as the IPAM plugin of bridge would call itself without end.
            raise CniError(
                INVALID_CONFIG, f"ipam.type: expected an IPAM plugin, found {self.name!r}", 'for example "host-local"'
            )

    def add(self) -> Result:
        """The delegate's result. Its failure is followed by its DEL, as the spec asks."""
        try:
            answer = self._call(self._request)
        except Exception:  # whatever it was: run in-process it can be more than a CniError
            self._clean_up()
            raise
        if not isinstance(answer, Result):
            self._clean_up()
            raise CniError(INTERNAL, f"ipam plugin {self.name}: expected a result on stdout, found nothing")
        return answer

    def delete(self) -> None:
        """Run DEL, whatever verb the caller itself is in."""
        self._call(self._request if self._request.command == "DEL" else self._request.derived("DEL"))

    def forward(self) -> None:
        """Run the caller's own verb: CHECK, STATUS or GC."""
        self._call(self._request)

    def _call(self, request: Request) -> Result | None:
        with self._world.step("ipam", f"{self.name} {request.command}"):
            return self._answer(request)

    def _answer(self, request: Request) -> Result | None:
        if self._own is not None:
            return self._in_process(self._world, self._own, request, self._config)
        found = run(self._executable, request.environ, jsonio.encode(self._config.value), self._world.communicate)
        return None if found is None else Result.read(Reader(mapping(f"result of {self.name}", found)))

    def _clean_up(self) -> None:
        try:
            self.delete()
        except Exception as error:  # noqa: BLE001 - it must not hide why ADD failed
            self._world.log(f"ipam {self.name}: DEL after its failed ADD: {error}")
