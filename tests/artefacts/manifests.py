"""The manifests that users apply, made from the folders of kustomize: `make manifests` writes them."""

from __future__ import annotations

import subprocess

from tests.artefacts.cache import ROOT
from tests.artefacts.programs import KUBERNETES

FOLDER = ROOT / "conf" / "kubernetes"
# Each file, and the folder that it is made from.
MANIFESTS = {"cnikit.yaml": "vxlan", "cnikit-host-gw.yaml": "host-gw", "cnikit-uninstall.yaml": "uninstall"}


def made(source: str) -> str:
    """The text of the manifest that is made from a folder."""
    kubectl = KUBERNETES.made() / "kubectl"
    text = subprocess.run([kubectl, "kustomize", FOLDER / source], check=True, stdout=subprocess.PIPE, text=True).stdout
    return f"# Made from conf/kubernetes/{source} by `make manifests`: change it there.\n{text}"


if __name__ == "__main__":
    for name, source in MANIFESTS.items():
        (FOLDER / name).write_text(made(source))
