"""What `cnikit install` and `uninstall` say: a log on stderr, whose last line is why, and a word for Kubernetes.

In a pod the file /dev/termination-log is what `kubectl describe` shows of a container that has ended, also of one that
succeeded with warnings. Without it nothing is written there.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from cli.findings import printable

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST = 4096  # bytes; Kubernetes cuts the rest off


class Journal:
    """The log of one command."""

    def __init__(self, command: str, termination_log: Path) -> None:
        self._head = f"cnikit {command}"
        self._termination_log = termination_log
        self._warnings: list[str] = []

    def say(self, line: str) -> None:
        """One line on stderr."""
        print(f"{self._head}: {printable(line)}", file=sys.stderr, flush=True)

    def warn(self, line: str) -> None:
        """Something that a person should look at, although the command goes on."""
        self.say(f"warning: {line}")
        self._warnings.append(f"warning: {line}")

    def end(self, line: str) -> None:
        """The command has done its work: the last line, on stdout."""
        print(printable(line), flush=True)
        self._tell([*self._warnings, line])

    def fail(self, line: str) -> NoReturn:
        """The command has not: why, and exit code 1."""
        self.say(line)
        self._tell([line])
        sys.exit(1)

    def _tell(self, lines: list[str]) -> None:
        if not self._termination_log.is_file():
            return
        text = "\n".join(printable(line) for line in lines).encode()
        try:
            self._termination_log.write_bytes(text[:_LONGEST])
        except OSError as error:
            self.say(f"warning: {self._termination_log}: {error.strerror}")
