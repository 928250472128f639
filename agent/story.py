"""What has become of a member, in words for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from plugins.peers import Node


def story(before: Node | None, now: Node | None) -> str:
    """In one line. None: the member was not in before, or is not in now."""
    was, has = (node.described() if node else {} for node in (before, now))
    name = has.pop("name", None) or was["name"]
    was.pop("name", None)
    if now is None:
        return f"node {name} has left"
    if before is None:
        return f"node {name} has joined: {_listed(has)}"
    changed = [key for key in was | has if was.get(key) != has.get(key)]
    changes = [f"{key} from {_text(was.get(key))} to {_text(has.get(key))}" for key in changed]
    return f"node {name} has changed: {', '.join(changes)}"


def _listed(found: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in found.items())


def _text(value: str | list[str] | None) -> str:
    return (" and ".join(value) if isinstance(value, list) else value) or "none"
