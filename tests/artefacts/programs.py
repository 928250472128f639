"""The programs of a cluster, built with the ordinary Go client: Kubernetes, and what kind and its nodes need beside it.

GOFLAGS, GOPROXY, GOMODCACHE and GOCACHE are respected.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.artefacts.cache import ROOT, Artefact

TOOLS = ROOT / "tests" / "tools"
CONTAINERD = "v2.4.2"
COREDNS = "v1.14.3"
KIND = "v0.33.0"
# The CNI plugins that kind's own node image has, at the version of tests/tools/go.mod.
CNI_PLUGINS = ("ipam/host-local", "main/loopback", "main/ptp", "meta/portmap")
_STRIPPED = "-s -w"


def _build_kubernetes(folder: Path) -> None:
    """kube-apiserver and the other programs, kubeadm, kubectl, agnhost, ginkgo, and `e2e.test` with the specs of
    sig-network."""
    module = TOOLS / "kubernetes"
    version = _go(module, "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes").strip()
    major, minor, _ = version.removeprefix("v").split(".", 2)
    names = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    stamps = [f"-X k8s.io/component-base/version.{name}={value}" for name, value in names.items()]
    ldflags = ["-ldflags", " ".join([_STRIPPED, *stamps])]
    _go(module, "build", "-trimpath", *ldflags, "-o", f"{folder}/", "tool")
    _go(module, "test", "-c", "-trimpath", *ldflags, "-o", f"{folder}/e2e.test", "./e2e")
    (folder / "version").write_text(version)


def _build_node_programs(folder: Path) -> None:
    """containerd, kind, CoreDNS, etcd, a small crictl, the reference's CNI plugins (in cni/), and pause."""
    containerd = "github.com/containerd/containerd/v2"
    stamp = f"{_STRIPPED} -X {containerd}/version.Version={CONTAINERD}"
    commands = [f"{containerd}/cmd/{name}@{CONTAINERD}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")]
    _install(folder, stamp, *commands)
    _install(folder, _STRIPPED, f"sigs.k8s.io/kind@{KIND}")
    _install(folder, _STRIPPED, f"github.com/coredns/coredns@{COREDNS}")
    for name in ("etcd", "crictl"):
        _go(TOOLS / name, "build", "-trimpath", "-ldflags", _STRIPPED, "-o", f"{folder}/{name}", ".")
    plugins = [f"github.com/containernetworking/plugins/plugins/{name}" for name in CNI_PLUGINS]
    (folder / "cni").mkdir()
    _go(TOOLS, "build", "-trimpath", "-o", f"{folder}/cni/", *plugins)
    source = Path(__file__).with_name("node") / "pause.c"
    target = f"{os.uname().machine}-linux-musl"
    _run(
        [
            sys.executable,
            "-m",
            "ziglang",
            "cc",
            "-target",
            target,
            "-static",
            "-Os",
            "-s",
            "-o",
            folder / "pause",
            source,
        ]
    )


def _install(folder: Path, ldflags: str, *packages: str) -> None:
    _go(TOOLS / "kubernetes", "install", "-trimpath", "-ldflags", ldflags, *packages, GOBIN=str(folder))


def _go(module: Path, *words: str, **environment: str) -> str:
    """Run Go inside a module with its own settings where they always are, and its counters in the clone."""
    here = ROOT / ".cache"
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "go" / "env"
    go = _run([ROOT / "tests/setup/find-go", module]).strip()
    ours = {"GOENV": str(settings), "GOPATH": str(here / "go")}
    always = {"XDG_CONFIG_HOME": str(here / "config"), "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    return _run([go, *words], cwd=module, env={**ours, **os.environ, **always, **environment})


def _run(argv: list[str | Path], cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    return subprocess.run(argv, cwd=cwd, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


_RECIPE = ("tests/artefacts/programs.py", "tests/setup/find-go")
KUBERNETES = Artefact("kubernetes", _build_kubernetes, (*_RECIPE, "tests/tools/kubernetes"))
NODE_PROGRAMS = Artefact(
    "node-programs",
    _build_node_programs,
    (
        *_RECIPE,
        "tests/artefacts/node/pause.c",
        "tests/tools/crictl",
        "tests/tools/etcd",
        "tests/tools/go.mod",
        "tests/tools/go.sum",
    ),
)
