"""Whether this process may do what calls need: found out once, at the start.

An agent with too few rights would decline or fail every call while it looks alive; each is then served by a process of its
own, six times as slowly, and nobody sees why. So `/readyz` and the log say what is missing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cni.errors import CniError
from cni.kernel import mountns, netns

if TYPE_CHECKING:
    from collections.abc import Callable

# capabilities(7): name, bit, and what needs it.
NEEDED = (
    ("NET_ADMIN", 12, "links, addresses, routes and nftables"),
    ("SYS_ADMIN", 21, "entering pods' network namespaces"),
    ("SYS_CHROOT", 18, "looking at paths in the runtime's mount namespace"),
)
_REMEDY = "in a container give it securityContext.capabilities.add and appArmorProfile Unconfined"


def obstacle(status: str, enter_mounts: Callable[[], None], enter_net: Callable[[], None]) -> str:
    """What this process may not do, with the next step; empty when nothing is missing.

    `status` is the text of /proc/self/status. The others enter this process's own namespaces, as calls enter those of pods
    and runtimes, because a seccomp or AppArmor profile can forbid that in spite of the capabilities.
    """
    lacking = [f"{name} ({use})" for name, bit, use in NEEDED if not effective(status) >> bit & 1]
    if lacking:
        wanted = ", ".join(name for name, *_ in NEEDED)
        return f"expected the capabilities {wanted}, found none of {', '.join(lacking)}: {_REMEDY}"
    for what, enter in (("mount", enter_mounts), ("network", enter_net)):
        try:
            enter()
        except CniError as error:
            return f"expected to be allowed to enter {what} namespaces (setns), found: {error.msg}: {_REMEDY}"
    return ""


def effective(status: str) -> int:
    """The effective capabilities of a process as a bit mask, from the text of its /proc/PID/status."""
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)


def of_this_process() -> str:
    """`obstacle`, asked of the kernel."""
    with open("/proc/self/status") as file:
        status = file.read()
    return obstacle(status, _enter_own_mounts, _enter_own_net)


def _enter_own_mounts() -> None:
    fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        mountns.inside(fd, lambda: None)
    finally:
        os.close(fd)


def _enter_own_net() -> None:
    fd = netns.open_own()
    try:
        netns.Visitor().inside(fd, lambda: None)
    finally:
        os.close(fd)
