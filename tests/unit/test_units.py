"""The systemd unit of the agent: what it waits for, and what waits for it."""

from __future__ import annotations

from configparser import RawConfigParser
from pathlib import Path

UNIT = Path(__file__).parents[2] / "conf" / "systemd" / "cnikit-agent.service"


def test_the_agent_starts_when_the_node_has_its_address_and_before_pods_do() -> None:
    unit = RawConfigParser(strict=False)
    unit.read_string(UNIT.read_text())

    assert unit["Unit"]["After"].split() == unit["Unit"]["Wants"].split() == ["network-online.target"]
    assert unit["Unit"]["Before"].split() == ["containerd.service", "kubelet.service"]
