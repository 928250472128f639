"""Going back: ADD's effects are unwound in reverse when a later one fails; DEL and GC go on whatever fails."""

from __future__ import annotations

from cni.errors import INTERNAL, CniError, io_failure, merge_errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.world import Log


class Undo:
    """A stack of undos for one ADD. An undo's own failure is logged and never hides the first error."""

    __slots__ = ("_log", "_steps")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def push(self, what: str, step: Callable[[], object]) -> None:
        """Remember how to take back an effect that has just succeeded; `what` names it in the log."""
        self._steps.append((what, step))

    def unwind(self) -> None:
        """Take everything back, the last effect first."""
        while self._steps:
            what, step = self._steps.pop()
            try:
                step()
            except Exception as error:  # whatever it is, the steps below must still run
                cause = io_failure(error, "I/O failure") if isinstance(error, OSError) else error
                self._log(f"undo failed: {what}: {cause}")

    def commit(self) -> None:
        """The whole verb has succeeded and its answer is delivered: nothing will be taken back."""
        self._steps.clear()


class Teardown:
    """The steps of a DEL or GC: each is tried, failures are collected and reported together at the end."""

    __slots__ = ("errors",)

    def __init__(self) -> None:
        self.errors: list[CniError] = []

    def step(self, what: str, action: Callable[[], object]) -> None:
        """Try one step; `what` names it when the failure does not name itself."""
        try:
            action()
        except CniError as error:
            self.errors.append(error)
        except OSError as error:
            self.errors.append(io_failure(error, what, INTERNAL))

    def finish(self) -> None:
        """Raise what was collected, as one CniError; return when nothing was."""
        error = merge_errors(self.errors)
        if error is not None:
            raise error
