"""The plugins of this build: the name that each is called by, its module, and where they lie."""

from __future__ import annotations

import os
import sys

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


def bundled_plugins() -> str:
    """The folder `bin` beside the cnikit executable, `dist/bin` in a checkout; empty when there is none."""
    program = os.path.dirname(os.path.realpath(sys.executable if getattr(sys, "frozen", False) else sys.argv[0]))
    checkout = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "dist")
    # A frozen program lies in a folder of its own below the one that holds its launcher.
    for folder in (program, os.path.dirname(program), os.path.dirname(os.path.dirname(program)), checkout):
        candidate = os.path.join(folder, "bin")
        if os.path.isfile(os.path.join(candidate, "host-local")):
            return candidate
    return ""
