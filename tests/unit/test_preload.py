"""What an agent would import when it is first needed is imported at its start: the files may be another version's by then."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOADED = """
import sys
from agent.main import preload
from cli.registry import PLUGINS
preload(PLUGINS)
print(*sys.modules)
"""


def test_whatever_a_call_imports_is_there_from_the_start() -> None:
    loaded = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    assert {found for file in sources() for found in imported_late(file)} - set(loaded.split()) == set()


def sources() -> list[Path]:
    """What the agent serves calls with."""
    found = [file for folder in ("cni", "ipam", "plugins") for file in (ROOT / folder).rglob("*.py")]
    return [file for file in found if "testing" not in file.parts]


def imported_late(file: Path) -> set[str]:
    """The modules of ours that functions of a file import."""
    functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
    froms = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in froms for alias in node.names} | {
        str(node.module) for node in froms
    }
    return {name for name in names if (ROOT / f"{name.replace('.', '/')}.py").is_file()}
