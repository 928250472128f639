"""The plugins of this build: the name that each is called by, and its module."""

from __future__ import annotations

import os

PLUGINS = {
    "bridge": "plugins.bridge",
    "loopback": "plugins.loopback",
    "host-local": "ipam.host_local",
    "vxlan": "plugins.vxlan",
    "host-gw": "plugins.host_gw",
}


def named_file(item: str) -> tuple[str, str]:
    """A third party's plugin given as NAME=FILE: its name and the file's absolute path. ValueError when it is none."""
    name, _, file = item.partition("=")
    path = os.path.abspath(file)
    module, suffix = os.path.splitext(os.path.basename(path))
    if not name or "/" in name or suffix != ".py" or not module.isidentifier() or not os.path.isfile(path):
        raise ValueError(f"--plugin {item}: expected NAME=FILE with a Python file that can be imported")
    return name, path


def module_of(path: str) -> str:
    """The name by which a plugin's file is imported."""
    return os.path.splitext(os.path.basename(path))[0]
