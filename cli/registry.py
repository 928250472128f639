"""The plugins of this build: the name that each is called by, its module, and where they lie."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PLUGINS = {
    "bridge": "plugins.bridge",
    "loopback": "plugins.loopback",
    "host-local": "ipam.host_local",
    "vxlan": "plugins.vxlan",
    "host-gw": "plugins.host_gw",
}
_LONGEST_NAME = 255


# What the module of a plugin has: docs/plugin-guide.md, "The contract".
CONTRACT = ("ARGS", "NETNS", "PATHS", "Conf", "add", "delete", "check", "status", "gc")
# Names of modules and packages that are ours.
_ROOMS = ("agent", "cli", "cni", "conf", "ipam", "launcher", "plugins")


def third_party(items: Iterable[str]) -> dict[str, str]:
    """The plugins given as NAME=FILE by `--plugin`, each name with its file's absolute path.

    They can be imported from now on, and were. ValueError for one that cannot be a plugin beside ours; ImportError when it
    imports what is not there.
    """
    plugins: dict[str, str] = {}
    modules: dict[str, str] = {}
    for item in items:
        name, path = _named_file(item)
        module = module_of(path)
        if name in PLUGINS:
            raise ValueError(
                f"--plugin {item}: {name} is one of cnikit's own plugins, expected another name; "
                "the built executable may be copied to any name"
            )
        if name in plugins:
            raise ValueError(
                f"--plugin {item}: {name} was given before, as {plugins[name]}; each needs a name of its own"
            )
        if module in modules:
            raise ValueError(
                f"--plugin {item}: a module {module} was given before, as plugin {modules[module]}; "
                "each needs a file of its own, with another name"
            )
        if module in _ROOMS or module in sys.stdlib_module_names:
            raise ValueError(f"--plugin {item}: a module {module} is there already; give the file another name")
        plugins[name], modules[module] = path, name
    for name, path in plugins.items():
        _check_contract(f"--plugin {name}={path}", path)
    return plugins


def _named_file(item: str) -> tuple[str, str]:
    name, _, file = item.partition("=")
    path = os.path.abspath(file)
    module, suffix = os.path.splitext(os.path.basename(path))
    if not name or "/" in name or suffix != ".py" or not module.isidentifier() or not os.path.isfile(path):
        raise ValueError(f"--plugin {item}: expected NAME=FILE with a Python file that can be imported")
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise ValueError(f"--plugin {item}: expected a name of at most {_LONGEST_NAME} bytes, which a file can have")
    return name, path


def _check_contract(given: str, path: str) -> None:
    """Import a plugin's module and see that it has what every plugin has."""
    folder = os.path.dirname(path)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(module_of(path))
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a stranger's module does
        raise ValueError(f"{given}: cannot be imported: {type(error).__name__}: {error}") from None
    if os.path.realpath(module.__file__ or "") != os.path.realpath(path):
        raise ValueError(f"{given}: another module {module.__name__} was found; give the file another name")
    missing = [name for name in CONTRACT if not hasattr(module, name)]
    if missing:
        raise ValueError(
            f"{given}: expected a plugin, found no {', '.join(missing)} in it; docs/plugin-guide.md has the contract"
        )
    uncallable = [name for name in CONTRACT[3:] if not callable(getattr(module, name))]
    if uncallable or not isinstance(module.NETNS, bool):
        raise ValueError(
            f"{given}: expected {', '.join(CONTRACT[3:])} to be called and NETNS to be True or False; "
            "docs/plugin-guide.md has the contract"
        )


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
