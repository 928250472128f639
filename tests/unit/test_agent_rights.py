"""What an agent with too few rights says of itself."""

from __future__ import annotations

import errno

import pytest

from agent import rights
from cni.errors import KernelError

FULL = "Name:\tcnikit\nCapInh:\t0000000000000000\nCapEff:\t0000000000241000\nCapBnd:\t000001ffffffffff\n"


def enter() -> None:
    pass


def refuse() -> None:
    raise KernelError("enter a mount namespace", errno.EPERM)


def test_the_three_capabilities_are_enough() -> None:
    assert rights.effective(FULL) == 1 << 12 | 1 << 18 | 1 << 21
    assert rights.obstacle(FULL, enter, enter) == ""


@pytest.mark.parametrize(("name", "bit"), [(name, bit) for name, bit, _ in rights.NEEDED])
def test_each_that_is_missing_is_named(name: str, bit: int) -> None:
    status = f"CapEff:\t{rights.effective(FULL) & ~(1 << bit):016x}\n"
    found = rights.obstacle(status, enter, enter)
    assert f"found none of {name} (" in found
    assert "expected the capabilities NET_ADMIN, SYS_ADMIN, SYS_CHROOT" in found
    assert "securityContext.capabilities.add" in found


def test_a_profile_that_forbids_setns() -> None:
    found = rights.obstacle(FULL, refuse, enter)
    assert "to enter mount namespaces (setns), found: enter a mount namespace: EPERM" in found
    assert "network namespaces" in rights.obstacle(FULL, enter, refuse)
