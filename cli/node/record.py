"""What an installation remembers of the node: which list is ours, and what the node was like before.

    /var/lib/cni/cnikit-node.json

It is on the disk, because a network list stays over a boot; settings, bridges and tables do not, so these belong to one
boot of one network namespace (a node that is a container boots alone) and are noted anew in the next.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

PLACE = Path("/var/lib/cni/cnikit-node.json")
VERSION = 1


class Record:
    """The record at a place: `value` is a JSON object, written by `save` in one step."""

    def __init__(self, place: Path = PLACE) -> None:
        self.place = place
        try:
            found = json.loads(place.read_bytes())
        except (FileNotFoundError, ValueError):  # none, or torn by a crash of the whole machine
            found = None
        is_ours = isinstance(found, dict) and found.get("version") == VERSION
        self.value: dict[str, Any] = found if is_ours else {"version": VERSION}

    @property
    def list(self) -> Path | None:
        """The network list that is ours."""
        found = self.value.get("list")
        return Path(found) if isinstance(found, str) else None

    @property
    def before(self) -> dict[str, Any]:
        """What the node was like: of this boot only."""
        found = self.value.get("before")
        return found if isinstance(found, dict) and found.get("boot") == boot() else {}

    def forget_before(self) -> None:
        """All that was noted of the node is put back. OSError."""
        self.value.pop("before", None)
        if self.list is not None:
            self.save()
        else:
            self.place.unlink(missing_ok=True)

    def save(self) -> None:
        """Write it. OSError."""
        self.place.parent.mkdir(parents=True, exist_ok=True)
        new = self.place.with_name(f".{self.place.name}.new")
        with new.open("w") as file:
            json.dump(self.value, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.place)


def boot() -> str:
    """What is another after each boot of the node."""
    found = os.stat("/proc/self/ns/net")
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {found.st_dev}:{found.st_ino}"
