"""Which records are of pods that are still attached."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cli.node import pods
from cli.node.root import NodeRoot

if TYPE_CHECKING:
    from pathlib import Path

GONE = "/run/netns/cnikit-test-of-a-pod-that-is-gone"


@pytest.mark.parametrize(
    ("plugins", "attached"),
    [
        ({"vxlan": {"netns": {"path": "/proc/self/ns/net"}}}, {"ctr"}),
        ({"vxlan": {"netns": {"path": GONE}}}, set()),
        ({"vxlan": {"netns": {"path": GONE}}, "bridge": {"netns": {"path": "/proc/self/ns/net"}}}, {"ctr"}),
        ({"vxlan": {"netns": {"path": ""}}}, {"ctr"}),
        ({"vxlan": {}}, {"ctr"}),
        ({}, {"ctr"}),
        (None, {"ctr"}),
    ],
)
def test_a_record_counts_unless_its_namespaces_are_gone(
    tmp_path: Path, plugins: dict[str, Any] | None, attached: set[str]
) -> None:
    folder = tmp_path / "pods" / "attachments"
    folder.mkdir(parents=True)
    record = {"args": {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "web"}, "plugins": plugins}
    (folder / "ctr:eth0").write_text("{" if plugins is None else json.dumps(record))
    assert set(pods.by_record(tmp_path, NodeRoot())) == attached
    assert set(pods.by_record(tmp_path, NodeRoot(), {"ctr"})) == {"ctr"}, "a runtime will call DEL"


def test_in_a_container_the_node_s_root_is_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "pods" / "attachments"
    folder.mkdir(parents=True)
    (folder / "ctr:eth0").write_text(json.dumps({"args": {}, "plugins": {"vxlan": {"netns": {"path": GONE}}}}))
    place = tmp_path / "node" / GONE.lstrip("/")
    place.parent.mkdir(parents=True)
    place.touch()
    assert set(pods.by_record(tmp_path, NodeRoot(str(tmp_path / "node")))) == {"ctr"}
