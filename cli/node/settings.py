"""Settings of the node's kernel that an installation, the plugins and the agent write: noted before, put back after.

`bridge-nf-call-*` have pods on one bridge pass the rules of services and policy; without br_netfilter in the kernel there
are none. They are put back while they hold our value. Forwarding stays, because other programs need it by then and do
not say so; it is named.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cli.node.root import NodeRoot
from cni.kernel import sysctl

if TYPE_CHECKING:
    from collections.abc import Mapping

BRIDGE = "net/bridge"
ON_BRIDGES = (f"{BRIDGE}/bridge-nf-call-iptables", f"{BRIDGE}/bridge-nf-call-ip6tables")
FORWARDING = ("net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding")
OURS = "1"  # of each of them
LOAD_BR_NETFILTER = ("modprobe", "br_netfilter")


def look(sysctl_dir: str = sysctl.SYSCTL_DIR) -> dict[str, str | None]:
    """What the settings are now; None for one that is not there."""
    return {name: _read(sysctl_dir, name) for name in (*ON_BRIDGES, *FORWARDING)}


def filter_on_bridges(
    sysctl_dir: str = sysctl.SYSCTL_DIR, root: NodeRoot | None = None, load: tuple[str, ...] = LOAD_BR_NETFILTER
) -> str:
    """Load br_netfilter and set it for both families; why that was not possible, empty when it was."""
    need = "without it rules of services and policy do not see what pods on one bridge send each other"
    settings = Path(sysctl_dir, BRIDGE)
    if not settings.is_dir():
        try:
            (root or NodeRoot()).run(load)
        except OSError:
            pass  # what is missing then is reported below
    if not settings.is_dir():
        return f"expected br_netfilter in this kernel, found no {settings}; {need}: try {' '.join(load)} on the node"
    for name in ON_BRIDGES:
        try:
            sysctl.put(f"{sysctl_dir}/{name}", OURS)
        except OSError as error:
            hint = "; name another mount of /proc/sys with --sysctl-dir" if error.errno in sysctl.READ_ONLY else ""
            return f"cannot set {_shown(name)} to {OURS}: {error.strerror}; {need}{hint}"
    return ""


def put_back(before: Mapping[str, str | None], sysctl_dir: str = sysctl.SYSCTL_DIR) -> tuple[list[str], list[str]]:
    """Give settings their value of before, where they hold ours; what was done, and what stays. OSError."""
    done, stays = [], []
    for name, was in before.items():
        now = _read(sysctl_dir, name)
        if now != OURS or was == OURS:
            continue
        if name in FORWARDING:
            stays.append(f"{_shown(name)} stays {now} (it was {was} before): other programs may need it")
            continue
        # A setting that was not there came with the module, whose default filters; without it nothing was filtered.
        sysctl.put(f"{sysctl_dir}/{name}", was or "0")
        done.append(f"{_shown(name)} is {was or '0'} again")
        if was is None and not any("br_netfilter" in line for line in stays):
            stays.append("the module br_netfilter stays loaded (modprobe -r br_netfilter removes it)")
    return done, stays


def _read(sysctl_dir: str, name: str) -> str | None:
    try:
        return Path(sysctl_dir, name).read_text().strip()
    except FileNotFoundError:
        return None


def _shown(name: str) -> str:
    return name.replace("/", ".")
