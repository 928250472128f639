"""Whether a call from another mount namespace can be served here (the agent in a container, the runtime outside).

It can when every path that it uses leads to the same file on both sides, and no foreign program is needed, whose
file and libraries would be those of the other side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni.execute import find
from cni.kernel import mountns

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.config import Reader
    from cni.dispatch import Call


def obstacle(mounts: int, call: Call, own_plugin: Callable[[str], str | None], run_dir: str) -> str:
    """Why a prepared call of the mount namespace `mounts` cannot be served here; empty when it can.

    CniError when that cannot be found out.
    """
    config, plugin, folders = call.context.config, call.context.plugin_type, list(call.request.path)
    if call.request.command == "ADD" and call.conf.programs:
        return f"it needs the program {call.conf.programs[0]}"
    paths = [run_dir, *_named(call, plugin, config)]
    delegate = config.object("ipam").string("type")
    if delegate and call.context.world.plugin(plugin).NETNS:  # an IPAM plugin finds its own name there
        own = None if _relative(folders) else own_plugin(find(delegate, folders))
        if own is None:
            return f"it needs the program {delegate}"
        paths += [*folders, *_named(call, own, config.object("ipam"))]
    elif delegate:
        paths += _named(call, plugin, config.object("ipam"))
    if _relative(paths):
        return f"{_relative(paths)!r} begins at the caller's working directory"
    there = mountns.inside(mounts, lambda: [mountns.place(path) for path in paths])
    unlike = [path for path, place in zip(paths, there, strict=True) if mountns.place(path) != place]
    return f"{unlike[0]} is another file in the launcher's mount namespace" if unlike else ""


def _named(call: Call, plugin: str, section: Reader) -> list[str]:
    """The paths that a section of the configuration gives to a plugin, or that it takes by default."""
    options = call.context.world.plugin(plugin).PATHS
    return [path for path in (section.string(option) or default for option, default in options) if path]


def _relative(paths: list[str]) -> str:
    """The first path that is not absolute; empty when all are."""
    return next((path for path in paths if not path.startswith("/")), "")
