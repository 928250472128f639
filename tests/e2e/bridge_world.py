"""Calls of `bridge` and what they answered, for the tests of the executables."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.e2e.world import DUAL_STACK, Node, Pod, Way, network, without_length

ours = pytest.mark.ours
BACKENDS = [
    pytest.param({}, id="default"),
    *[pytest.param({"ipMasqBackend": name}, id=name) for name in ("nftables", "iptables")],
]


def dual(**options: Any) -> dict[str, Any]:
    return network(ipam=DUAL_STACK, **options)


def add(node: Node, pod: Pod, conf: dict[str, Any], **options: Any) -> dict[str, Any]:
    return node.call("bridge", "ADD", conf, pod, **options).result


def delete(node: Node, pod: Pod, conf: dict[str, Any], **options: Any) -> None:
    node.call("bridge", "DEL", conf, pod, **options).silent()


def settled(node: Node, conf: dict[str, Any], way: Way | None = None) -> dict[str, Any]:
    """The node after one pod came and went: with everything shared, with nothing of a pod."""
    pod = node.pod()
    add(node, pod, conf, way=way)
    delete(node, pod, conf, way=way)
    return node.snapshot()


def address(result: dict[str, Any], family: int) -> str:
    """The pod's address of a family."""
    colon = family == socket.AF_INET6
    return next(without_length(item["address"]) for item in result["ips"] if (":" in item["address"]) == colon)


def host_end(node: Node, result: dict[str, Any]) -> str:
    """The node's end of the pod's veth."""
    name: str = result["interfaces"][1]["name"]
    assert name in node.links()
    return name
