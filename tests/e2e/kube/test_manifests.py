"""What lies in conf/kubernetes for users to apply is what its sources say, for this version."""

from __future__ import annotations

import re

import pytest
import yaml  # type: ignore[import-untyped]

from cni import __version__
from tests.artefacts.cache import ROOT
from tests.artefacts.manifests import FOLDER, MANIFESTS, made


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_what_its_sources_say(name: str) -> None:
    assert (FOLDER / name).read_text() == made(MANIFESTS[name]), "call make manifests"


@pytest.mark.parametrize("name", MANIFESTS)
def test_images_have_this_version(name: str) -> None:
    images = set(re.findall(r"\bimage: (\S+)", (FOLDER / name).read_text()))
    assert images == {f"cnikit.dev/cnikit:{__version__}"}


@pytest.mark.parametrize("name", [name for name in MANIFESTS if name != "cnikit-uninstall.yaml"])
def test_an_agent_is_not_killed_because_it_is_not_ready(name: str) -> None:
    """One with too few rights would be started again and again, and every time lose the calls that it was serving."""
    objects = yaml.safe_load_all((FOLDER / name).read_text())
    (daemon_set,) = [one for one in objects if one["kind"] == "DaemonSet"]
    (agent,) = daemon_set["spec"]["template"]["spec"]["containers"]
    asked = {probe: agent[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}


def test_commands_in_texts_name_this_version() -> None:
    texts = [FOLDER / "kind.yaml", ROOT / "docs" / "kubernetes.md", ROOT / "README.md"]
    named = {version for text in texts for version in re.findall(r"image/cnikit-([0-9.]+)\.tar", text.read_text())}
    assert named == {__version__}
