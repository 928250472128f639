"""Whether a call from another mount namespace can be served here (the agent in a container, the runtime outside).

It can when every path that it uses leads to the same file on both sides, and no foreign program is needed, whose
file and libraries would be those of the other side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cni.errors import CniError
from cni.execute import find
from cni.kernel import mountns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni.dispatch import Call


def obstacle(mounts: int, call: Call, own_plugin: Callable[[str], str | None], run_dir: str) -> str:
    """Why a prepared call of the mount namespace `mounts` cannot be served here; empty when it can."""
    config, world = call.context.config, call.context.world
    plugins = [call.context.plugin_type]
    ipam = config.object("ipam").string("type")
    folders = list(call.request.path) if ipam else []
    relative = [path for path in folders if not path.startswith("/")]
    if relative:
        return f"CNI_PATH: {relative[0]!r} begins at the caller's working directory"
    programs: tuple[str, ...] = getattr(call.conf, "programs", ())
    if call.request.command == "ADD" and programs:
        return f"it needs the program {programs[0]}"
    paths = [run_dir, *folders, *_absolute(config.value)]
    if ipam and ipam not in plugins:
        try:
            plugin = own_plugin(find(ipam, folders))
        except CniError as error:
            return error.msg
        if plugin is None:
            return f"it needs the program {ipam}"
        plugins.append(plugin)
    for plugin in plugins:
        paths += world.plugin(plugin).PATHS
    there = mountns.inside(mounts, lambda: [mountns.place(path) for path in paths])
    unlike = [path for path, place in zip(paths, there, strict=True) if mountns.place(path) != place]
    return f"{unlike[0]} is another file in the launcher's mount namespace" if unlike else ""


def _absolute(value: Any) -> Iterator[str]:
    """Every absolute path in a configuration."""
    if isinstance(value, str):
        if value.startswith("/") and "\0" not in value:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _absolute(item)
    elif isinstance(value, list):
        for item in value:
            yield from _absolute(item)
