"""loopback: sets the pod's `lo` up (containerd 1.x calls it as the first attachment of every pod).

CNI_IFNAME is ignored: there is one loopback interface and its name is `lo`.
"""

from __future__ import annotations

from cni import addr
from cni.errors import INTERNAL, CniError
from cni.kernel import ops
from cni.result import Interface, IPConfig, Result
from plugins.ownership import anothers_pod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.config import Reader
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.types import Address, Link
    from cni.request import Request

ARGS = None
NETNS = True
PATHS = ()

LO = "lo"
NO_MAC = "00:00:00:00:00:00"


class Conf:
    """loopback has no options."""

    programs = ()

    def __init__(self, _config: Reader, _request: Request) -> None:
        pass


def add(ctx: Context, _conf: Conf) -> Result:
    pod = ctx.sandbox
    lo = _lo(pod)
    addresses = pod.addresses(lo.index)
    for address in addresses:
        _refuse_foreign(address)
    if not lo.up:
        ctx.undo.push("set lo down", lambda: pod.apply(ops.link_set(LO, up=False)))
        pod.apply(ops.link_set(LO, up=True))
        addresses = pod.addresses(lo.index)
    if ctx.prev_result is not None:
        return ctx.prev_result
    result = Result()
    result.interfaces.append(Interface(LO, NO_MAC, lo.mtu, ctx.request.netns))
    # One address of each family, as the reference has it.
    for size in (4, 16):
        result.ips += [IPConfig(a.packed, a.prefix, None, 0) for a in addresses if len(a.packed) == size][:1]
    return result


def delete(ctx: Context, _conf: Conf) -> None:
    """Set lo down, unless the path of the namespace is another pod's by now."""
    if ctx.pod is None:
        return
    reason = anothers_pod(ctx, ctx.pod)
    if reason:
        ctx.log(f"leaving lo in {ctx.request.netns} alone: {reason}")
        return
    ctx.pod.apply(ops.link_set(LO, up=False))


def check(ctx: Context, _conf: Conf) -> None:
    if not _lo(ctx.sandbox).up:
        raise CniError(INTERNAL, "loopback interface is down: expected lo up", "ip link set lo up, or recreate the pod")


def status(_ctx: Context, _conf: Conf) -> None:
    """Nothing can keep an ADD from succeeding: every namespace has its lo."""


def gc(_ctx: Context, _conf: Conf) -> None:
    """Nothing outlives the pod's namespace."""


def _lo(pod: Namespace) -> Link:
    link = pod.link(LO)
    if link is None:
        raise CniError(INTERNAL, "expected an interface lo in the pod's namespace, found none")
    return link


def _refuse_foreign(address: Address) -> None:
    if not addr.is_loopback(address.packed):
        found = addr.unpack_cidr(address.packed, address.prefix)
        raise CniError(INTERNAL, f"loopback interface found with non-loopback address {found!r}")
