"""What `cnikit lint` finds: one finding, and the report of one file that collects them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing to fix: where, what was found and expected, and the remedy. A warning when `error` is false."""

    file: str
    path: str
    message: str
    remedy: str
    error: bool

    def text(self) -> str:
        """Two lines for people."""
        where = f"{self.path}: " if self.path else ""
        kind = "error" if self.error else "warning"
        return f"{printable(f'{self.file}: {kind}: {where}{self.message}')}\n    remedy: {printable(self.remedy)}"


class Report:
    """Collects the findings of one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.findings: list[Finding] = []

    def error(self, path: str, message: str, remedy: str) -> None:
        """Something that a runtime or a plugin refuses."""
        self.findings.append(Finding(self.file, path, message, remedy, error=True))

    def warning(self, path: str, message: str, remedy: str) -> None:
        """Something that works, but hardly as meant."""
        self.findings.append(Finding(self.file, path, message, remedy, error=False))

    def sound(self, path: str) -> bool:
        """Whether there is no error at a path or below it so far."""
        inside = (f"{path}.", f"{path}[") if path else ("",)
        return not any(item.error and (item.path == path or item.path.startswith(inside)) for item in self.findings)

    def errors(self) -> int:
        """How many errors there are so far."""
        return sum(finding.error for finding in self.findings)


def printable(line: str) -> str:
    """A line for a terminal: what is in a file's keys and names must not steer it."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
