"""The node's file system, also as seen from a container that has it mounted somewhere (`--node-root`).

What is installed has to start on the node, with the node's C library and not the container's. So it is started in the
node's root, which needs nothing there: no shell, no Python, and it may be mounted read-only.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_MOST_LINKS = 40  # as the kernel has it
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NodeError(Exception):
    """Something of a node is refused: what was expected, what was found, and the next step."""


class NodeRoot:
    """A node whose root is mounted at `path`; "/" is the node that this runs on."""

    def __init__(self, path: str = "/") -> None:
        self.path = Path(path)
        self.is_own = os.path.realpath(path) == "/"

    def place(self, inside: str | Path) -> Path:
        """Where a file of the node is from here, with its symbolic links followed in the node's root. OSError."""
        if self.is_own:
            return Path(os.path.realpath(inside))
        waiting = deque(Path(inside).parts[1:])
        at = self.path
        links = 0
        while waiting:
            part = waiting.popleft()
            if part == "..":
                at = at if at == self.path else at.parent
                continue
            at /= part
            if at.is_symlink():
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(inside))
                target = at.readlink()
                at = self.path if target.is_absolute() else at.parent
                waiting.extendleft(reversed(target.parts[1:] if target.is_absolute() else target.parts))
        return at

    def has(self, folder: Path) -> bool:
        """Whether a folder from here is the one at the same path on the node."""
        try:
            return self.is_own or self.place(folder).samefile(folder)
        except OSError:
            return False

    def run(
        self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program of the node to its end, with no stdin. OSError when it cannot be started there, or does not end."""
        try:
            return subprocess.run(
                [str(word) for word in argv], env=dict(env or {"PATH": SEARCH_PATH}), stdin=subprocess.DEVNULL,
                capture_output=True, timeout=timeout, check=False, preexec_fn=self._enter(),
            )  # fmt: skip
        except subprocess.SubprocessError as error:
            if isinstance(error, subprocess.TimeoutExpired):
                raise OSError(
                    errno.ETIMEDOUT, f"expected its end, found it running after {timeout:g} s", str(argv[0])
                ) from error
            # What happens before the program is executed is reported without its reason.
            raise OSError(errno.EPERM, "cannot enter the node's root (CAP_SYS_CHROOT)", str(self.path)) from error

    def _enter(self) -> Callable[[], None] | None:
        if self.is_own:
            return None

        def enter() -> None:
            os.chroot(self.path)
            os.chdir("/")

        return enter
