"""Pods with addresses of a subnet that the node has no more: found in the records, and not read at every call."""

from __future__ import annotations

from typing import Any

from agent.stranded import Stranded
from cni import addr


class Records:
    """Those of pods, by name, with their addresses."""

    def __init__(self, **pods: list[str]) -> None:
        self.pods = pods
        self.reads = 0

    def all(self) -> list[dict[str, Any]]:
        self.reads += 1
        return [
            {"containerID": name, "args": {}, "plugins": {"vxlan": {"addresses": addresses}, "portmap": {}}}
            for name, addresses in self.pods.items()
        ]


def subnets(*texts: str) -> tuple[tuple[bytes, int], ...]:
    return tuple(found for found in map(addr.pack_cidr, texts) if found)


OWN = subnets("10.244.2.0/24", "fd00:244:0:2::/64")


def test_pods_of_another_subnet_are_named() -> None:
    records = Records(a=["10.244.1.5/24", "fd00:244:0:2::5/64"], b=["10.244.2.5/24"], c=["fd00:244:0:1::6/64"])

    text = Stranded().look(records, OWN)  # type: ignore[arg-type]

    assert text.startswith("a; c: expected addresses of this node's subnets (10.244.2.0/24, fd00:244:0:2::/64)")
    assert "found some of 10.244.1.0/24, fd00:244:0:1::/64" in text
    assert "b" not in text.partition(":")[0]


def test_records_are_read_when_the_subnets_change_and_until_such_pods_are_gone() -> None:
    records, stranded = Records(b=["10.244.2.5/24"]), Stranded()

    assert [stranded.look(records, OWN) for _ in range(100)] == [""] * 100  # type: ignore[arg-type]
    assert records.reads == 1
    moved = subnets("10.244.3.0/24")
    assert all(stranded.look(records, moved) for _ in range(10))  # type: ignore[arg-type]
    assert records.reads == 2
    records.pods.clear()
    told = [stranded.look(records, moved) for _ in range(100)]  # type: ignore[arg-type]

    assert told[0] != ""
    assert told[-1] == ""
    assert records.reads == 3
