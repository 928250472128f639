"""The fixtures of the tests on a Kubernetes API server, for `pytest_plugins`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.artefacts.programs import KUBERNETES
from tests.kubernetes.control_plane import ControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(KUBERNETES.found() / "kube-apiserver", tmp_path_factory.mktemp("kubernetes")) as plane:
        yield plane


@pytest.fixture
def plane(control_plane: ControlPlane) -> ControlPlane:
    """The API server with no node at all."""
    control_plane.clear()
    return control_plane


@pytest.fixture
def kubeconfig(plane: ControlPlane) -> str:
    return str(plane.kubeconfig("admin.conf", plane.admin))
