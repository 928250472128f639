"""DEL and GC on the real kernel, with a configuration that went wrong after ADD (the whole table is in tests/unit)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.bridge_world import dual, settled
from tests.e2e.world import Node, wait_same

OPTIONS = {"ipMasq": True, "macspoofchk": True}
WRONG: list[dict[str, Any]] = [
    {"mtu": 65536},
    {"mtu": -1},
    {"mtu": 2**40},
    {"vlan": 5000},
    {"vlanTrunk": [{"id": 9999}]},
    {"dns": {"nameservers": "x"}},
    {"bridge": 5, "ipMasq": "yes", "macspoofchk": 1},
    {"runtimeConfig": 5, "args": [], "prevResult": "x"},
]


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_a_wrong_value_keeps_nothing(node: Node, verb: str) -> None:
    conf = dual(**OPTIONS)
    before = settled(node, conf)
    for wrong in WRONG:
        pod = node.pod()
        assert node.call("bridge", "ADD", conf, pod).ok

        node.call("bridge", verb, {**conf, **wrong, "cni.dev/valid-attachments": []}, pod).silent()

        wait_same(node.snapshot, before, f"{verb} with {wrong} left something")


def test_what_del_needs_is_refused_last(node: Node) -> None:
    conf, pod = dual(**OPTIONS), node.pod()
    before = settled(node, conf)
    assert node.call("bridge", "ADD", conf, pod).ok

    error = node.call("bridge", "DEL", {**conf, "ipam": {**conf["ipam"], "dataDir": 5}}, pod).error

    assert (error["code"], error["msg"]) == (7, "ipam.dataDir: expected a string, found 5")
    assert "eth0" not in node.links(pod)
    assert node.nft() == before["nft"]
    node.call("bridge", "DEL", conf, pod).silent()
    wait_same(node.snapshot, before, "the second DEL left something")
