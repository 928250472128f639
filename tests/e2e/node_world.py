"""What the tests of `cnikit install` and `cnikit uninstall` share: the command in a node, lists, and roots of other nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.world import SEARCH_PATH, Answer, Node

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["bridge", "host-gw", "host-local", "loopback", "vxlan"]
BIN, LISTS, RECORD = "/opt/cni/bin", "/etc/cni/net.d", "/var/lib/cni/cnikit-node.json"
GLIBC = ("ld-linux", "libc.so", "libm.so", "libdl.so", "libpthread.so")
NAME = "10-cnikit.conflist"
ENVIRON = {"PATH": SEARCH_PATH, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
COMMAND = (sys.executable, "-m", "cli.main")


def cnikit(
    node: Node,
    *words: str,
    program: tuple[str, ...] = COMMAND,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> Answer:
    """Call the command in a node, to its end."""
    return node.attempt(*program, *words, env={**ENVIRON, **(env or {})}, timeout=timeout)


def succeeds(node: Node, *words: str, **options: Any) -> Answer:
    answer = cnikit(node, *words, **options)
    assert answer.status == 0, answer
    assert "Traceback" not in answer.stderr, answer
    return answer


def fails(node: Node, *words: str, **options: Any) -> str:
    """The last line of stderr of a call that must fail: what Kubernetes shows."""
    answer = cnikit(node, *words, **options)
    assert answer.status == 1, answer
    assert not answer.stderr.startswith("Traceback"), answer
    return answer.stderr.splitlines()[-1]


def conflist(name: str = "cnikit", kind: str = "vxlan", **options: Any) -> dict[str, Any]:
    """A template as Kubernetes has it: no ranges."""
    plugin = {"type": kind, "ipMasq": True, "membership": {"source": "kubernetes"}, "ipam": {"type": "host-local"}}
    return {"cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": name, "plugins": [{**plugin, **options}]}


def template(folder: Path, value: Mapping[str, Any] | None = None, name: str = NAME) -> str:
    """Write a template; its path."""
    file = folder / name
    file.write_text(json.dumps(value or conflist()))
    return str(file)


def lists(node: Node) -> dict[str, Any]:
    """The network lists of a node as runtimes see them, by file name."""
    files = {name: text for name, text in node.files(LISTS).items() if name.endswith((".conf", ".conflist", ".json"))}
    return {name: json.loads(text) for name, text in files.items()}


def installed(node: Node) -> set[str]:
    """The names in the CNI bin directory."""
    folder = node.path(BIN)
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def works(node: Node, launcher: str) -> bool:
    """A launcher answers out of its bundle: this question needs a JSON parser."""
    return node.attempt(launcher, env={"CNI_COMMAND": "VERSION"}, stdin=b" {}").status == 0


def bare_root(node: Node, bin_dir: Path, at: str = "/run/noderoot") -> Path:
    """The root of a node in which only a C library is, and the CNI bin directory; its path in the node."""
    root = node.path(at)
    (bundle,) = (bin_dir / ".cnikit").iterdir()
    programs = [bundle / "cnikit-oneshot", *bundle.glob("*.so.*"), *bundle.rglob("lib-dynload/*.so")]
    linked = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout.split()
    for library in {word for word in linked if word.startswith("/lib") and Path(word).name.startswith(GLIBC)}:
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(library), target)
    node.run("mkdir", "-p", BIN, f"{at}{BIN}")
    node.run("mount", "--bind", BIN, f"{at}{BIN}")
    return Path(at)


def glibc(root: Path, newest: int, machine: str = "") -> None:
    """A made-up C library in the root of a node: a real shared object with the version definitions of glibc 2.NEWEST."""
    machine = machine or os.uname().machine
    folder = root / f"lib/{machine}-linux-gnu"
    folder.mkdir(parents=True)
    versions = ["2.17", *(f"2.{minor}" for minor in range(18, newest + 1))]
    script, source = root / "versions", root / "libc.c"
    names = [f"since_{version.replace('.', '_')}" for version in versions]
    script.write_text("".join(f"GLIBC_{v} {{ global: {n}; }};\n" for v, n in zip(versions, names, strict=True)))
    source.write_text("".join(f"int {name};\n" for name in names))
    library = folder / "libc.so.6"
    command = ["-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu", "-nostdlib", "-shared", "-fPIC"]
    command += [f"-Wl,--version-script={script}", "-Wl,-soname,libc.so.6", "-o", str(library), str(source)]
    subprocess.run(
        [sys.executable, *command], check=True, env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(root / "zig")}
    )
