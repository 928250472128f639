"""Who may import whom, and what the one-shot path may import at all: docs/how-it-is-built.md, as a test."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli.registry import PLUGINS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]

# Each room with the rooms it may import from.
ROOMS = {
    "cni": {"cni"},
    "plugins": {"plugins", "cni"},
    "ipam": {"ipam", "cni"},
    "agent": {"agent", "plugins", "ipam", "cni"},
    "launcher": {"cli", "cni"},
    "cli": {"cli", "agent", "plugins", "ipam", "cni"},
}
RUNTIME_SIDE = {"cni/runtime.py", "cni/netlist.py", "cni/cache.py"}
# Loaded by the agent only: threads cost nothing there, and are needed.
RESIDENT_SIDE = {
    "cni/kernel/resident.py", "cni/kernel/deleter.py", "cni/kernel/monitor.py", "cni/kernel/mountns.py",
    "cni/kernel/watch.py",
}  # fmt: skip

# All that the one-shot path imports of the standard library, on any path through it. A name is added here only
# with its cost at start known (docs/adr/); nothing here costs more than 0.3 ms, most is built into the interpreter.
ALLOWED = {
    "__future__", "_ctypes", "_json", "_sha2", "_sha512", "_socket", "_struct", "_thread", "errno", "fcntl", "itertools",
    "posix", "select", "sys", "time",
}  # fmt: skip
# Single files may have more.
ALLOWED_IN = {
    "ipam/ranges.py": {"ipaddress"},
    "plugins/contradictions.py": {"_bisect"},  # built in; only where the configuration lists `peers`
    "plugins/ways.py": {"_bisect"},  # built in; only where the routing table is asked for the way to a node
    "cni/kernel/ethtool.py": {"array"},  # only where a VXLAN device is made
    "cni/execute.py": {"_signal"},  # only where a program is run; built in, and loaded at every start
    "cni/jsonio.py": {"json.decoder"},  # only when a syntax error has to be told
}
# The narrow waists: the only files that may import these.
WAISTS = {
    "_ctypes": {"cni/kernel/netns.py"},
    "_socket": {"cni/kernel/netlink.py", "cni/kernel/udp.py", "cni/addr.py"},
    "_struct": {
        "cni/kernel/netlink.py",
        "cni/kernel/nftables.py",
        "cni/kernel/rtnetlink.py",
        "cni/kernel/rtlinks.py",
        "cni/kernel/rtpeers.py",
        "cni/kernel/ethtool.py",
    },
    "time": {"cni/main.py"},
}

# What VERSION has in sys.modules when it answers, beside our own modules.
LOADED_BY_VERSION = {
    "__future__", "__main__", "_abc", "_codecs", "_frozen_importlib", "_frozen_importlib_external",
    "_imp", "_io", "_json", "_sha512", "_signal", "_socket", "_thread", "_warnings", "_weakref", "abc", "builtins",
    "codecs", "encodings", "encodings.aliases", "encodings.utf_8", "errno", "fcntl", "io", "marshal",
    "posix", "select", "sys", "time", "zipimport",
}  # fmt: skip


def python_files(*rooms: str) -> list[Path]:
    return [file for room in rooms for file in sorted((ROOT / room).rglob("*.py"))]


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def one_shot_files() -> list[Path]:
    files = python_files("cni", "plugins", "ipam")
    others = RUNTIME_SIDE | RESIDENT_SIDE
    return [f for f in files if not relative(f).startswith("cni/testing/") and relative(f) not in others]


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: not what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from nodes(child)


def imports(file: Path) -> set[str]:
    """The modules that a file imports at run time, at its top or anywhere in it."""
    found: set[str] = set()
    for node in nodes(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(file)}:{node.lineno}: a relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("room", [room for room in ROOMS if (ROOT / room).is_dir()])
def test_imports_point_one_way(room: str) -> None:
    ours = set(ROOMS)
    wrong = [
        f"{relative(file)} imports {name}"
        for file in python_files(room)
        for name in sorted(imports(file))
        if name.partition(".")[0] in ours - ROOMS[room] or name.partition(".")[0] == "tests"
    ]
    assert wrong == []


def test_no_plugin_imports_another() -> None:
    modules = set(PLUGINS.values())
    wrong = [
        f"{relative(file)} imports {name}"
        for file in python_files("plugins", "ipam")
        for name in imports(file) & modules
    ]
    assert wrong == []


def test_the_one_shot_path_imports_only_the_listed_modules() -> None:
    wrong = []
    for file in one_shot_files():
        allowed = ALLOWED | ALLOWED_IN.get(relative(file), set())
        outside = {name for name in imports(file) if name.partition(".")[0] not in ROOMS}
        wrong += [f"{relative(file)} imports {name}" for name in sorted(outside - allowed)]
    assert wrong == []


def test_the_one_shot_path_does_not_import_what_is_not_in_its_bundle() -> None:
    other = {file.removesuffix(".py").replace("/", ".") for file in RUNTIME_SIDE | RESIDENT_SIDE} | {"cni.testing"}
    assert [relative(file) for file in one_shot_files() if imports(file) & other] == []


@pytest.mark.parametrize("module", WAISTS)
def test_the_waists_are_narrow(module: str) -> None:
    importers = {relative(file) for file in one_shot_files() if module in imports(file)}
    assert importers <= WAISTS[module]


def hidden_world(file: Path) -> list[str]:
    """What a file takes from the process instead of from its caller."""
    world = {
        "posix": {"environ", "getcwd", "getcwdb"},
        "os": {"environ", "environb", "getenv", "getenvb", "getcwd", "getcwdb"},
        "sys": {"argv", "stdin", "stdout", "stderr", "exit"},
        "time": {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "sleep"},
    }
    found = []
    for node in nodes(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in world.get(node.value.id, ()):
                found.append(f"{relative(file)}:{node.lineno}: {node.value.id}.{node.attr}")
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("print", "input", "exit")
        ):
            found.append(f"{relative(file)}:{node.lineno}: {node.func.id}()")
    return found


def test_only_main_looks_at_the_world() -> None:
    files = [file for file in python_files("cni", "plugins", "ipam") if relative(file) != "cni/main.py"]
    assert [line for file in files for line in hidden_world(file)] == []


def test_no_module_of_the_one_shot_path_keeps_mutable_state() -> None:
    """No `global`, and no empty list, dict or set at the top of a module, which is there to be filled."""
    found = []
    for file in one_shot_files():
        tree = ast.parse(file.read_text())
        found += [f"{relative(file)}:{n.lineno}: global" for n in ast.walk(tree) if isinstance(n, ast.Global)]
        for node in tree.body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            empty = (isinstance(value, ast.List) and not value.elts) or (isinstance(value, ast.Dict) and not value.keys)
            if empty:
                found.append(f"{relative(file)}:{node.lineno}: an empty container")
    assert found == []


def test_version_loads_a_fixed_list_of_modules() -> None:
    script = f"""
import posix, sys
sys.path.insert(0, {str(ROOT)!r})
leave = posix._exit
def tell(status):
    posix.write(2, repr(sorted(sys.modules)).replace("'", '"').encode())
    leave(status)
posix._exit = tell
from cni.main import main
main({{"bridge": "plugins.bridge"}}, ["/x/cnikit-oneshot", "bridge", "/x/bridge", ""])
"""
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "utf8", "-c", script],
        env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.DEVNULL, capture_output=True, check=True,
    )  # fmt: skip
    assert json.loads(ran.stdout)["cniVersion"] == "1.1.0"
    loaded = {name for name in json.loads(ran.stderr) if name.partition(".")[0] not in ROOMS}
    assert loaded - LOADED_BY_VERSION == set()
    ours = {name for name in json.loads(ran.stderr) if name.startswith(("plugins", "ipam", "cni.kernel."))}
    assert ours == set(), "VERSION needs no plugin and no kernel"


def test_every_folder_of_code_is_a_room() -> None:
    folders = {entry.name for entry in os.scandir(ROOT) if entry.is_dir() and list(Path(entry.path).glob("*.py"))}
    assert folders - {"docs", "tests"} <= set(ROOMS)
