"""bridge: a pod on a Linux bridge of the node, by a veth pair.

Options and their meaning are those of the Go plugin `bridge` of containernetworking/plugins, in
`bridge_conf.py`. ADD is `bridged.add`, which cluster networks share; what it makes is found again by DEL and GC
through the attachment's record (`attachment.py`).
"""

from __future__ import annotations

from cni.errors import INTERNAL, NOT_AVAILABLE, CniError
from cni.paths import folder_fault
from plugins.bridge_conf import DEFAULT_BRIDGE, Conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.result import Result

__all__ = ("ARGS", "NETNS", "PATHS", "Conf", "add", "check", "delete", "gc", "status")

# Of these MAC is ours and IP is host-local's, which is given the same CNI_ARGS: one of a pair knows both keys.
ARGS = ("IP", "MAC")
NETNS = True
PATHS = ()

# Each verb imports what it needs: a part costs 0.1 ms of every start.


def add(ctx: Context, conf: Conf) -> Result:
    from plugins import bridged

    conf.refuse_contradictions()
    return bridged.add(ctx, conf)


def delete(ctx: Context, _conf: Conf) -> None:
    from plugins import attachment

    given = ctx.config.raw
    bridge = given("bridge")
    traces = attachment.Traces(
        DEFAULT_BRIDGE if bridge is None else bridge, given("vlan"), given("ipMasq"), given("macspoofchk")
    )
    attachment.delete(ctx, traces)


def check(ctx: Context, conf: Conf) -> None:
    from plugins import bridge_check

    conf.refuse_contradictions()
    if conf.layer3:
        ctx.ipam.forward()
    bridge_check.check(ctx, conf)


def status(ctx: Context, conf: Conf) -> None:
    """CniError 50 when no ADD can succeed."""
    from plugins import masquerade, node_bridge
    from plugins.settings import refuse_forwarding

    conf.refuse_contradictions()
    try:
        fault = folder_fault(ctx.world.run_dir)
        if fault:
            raise CniError(NOT_AVAILABLE, fault, "every attachment has a record and a lock there")
        if conf.layer3:
            ctx.ipam.forward()
        found = node_bridge.find(ctx.host, conf.bridge, vlan=conf.vlan_option)
        if found is not None:
            node_bridge.refuse_full(ctx.host, found, ctx.config.object("ipam"))
        if found is not None and conf.is_gateway and not conf.vlan:
            node_bridge.refuse_narrow(found, conf.ipv6_gateways())
        if conf.ip_masq:
            masquerade.status(ctx, conf.backend)
        if conf.is_gateway and conf.layer3:
            refuse_forwarding(ctx.host)
    except CniError as error:
        code = error.code if error.code > NOT_AVAILABLE and error.code < INTERNAL else NOT_AVAILABLE
        raise CniError(code, f"bridge {conf.bridge} cannot serve ADD: {error.msg}", error.details) from None


def gc(ctx: Context, _conf: Conf) -> None:
    """Remove what belongs to this network's attachments that are no longer valid, and nothing else."""
    from plugins import attachment

    attachment.gc(ctx)
