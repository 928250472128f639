"""bridge's VLAN options: `vlan`, `vlanTrunk`, `preserveDefaultVlan`.

A pod's port carries the trunk's VLANs tagged and its own untagged. The gateway of a network with `vlan` is
not the bridge but an interface `<bridge>.<vlan>`: a veth of the node whose other end is a port in that VLAN.
"""

from __future__ import annotations

from errno import EEXIST

from cni.errors import INTERNAL, CniError, KernelError
from cni.kernel import ops
from cni.names import host_end
from plugins import veth

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.context import Context
    from cni.kernel.types import Link
    from plugins.bridge_conf import Conf

DEFAULT = 1  # the VLAN of a trunk's untagged frames, when `vlan` names none


def set_port(ctx: Context, conf: Conf, port: str, vlans: list[int]) -> None:
    """Give a bridge port its VLANs: `vlans` tagged, the network's own untagged."""
    link = ctx.host.link(port) if conf.vlan_option else None
    if link is None:
        return
    changes = []
    if not conf.preserve_default_vlan:
        changes = [ops.vlan_del(link.index, vid) for vid in ctx.host.vlans(link.index)]
    own = conf.vlan or (DEFAULT if vlans else 0)
    changes += [ops.vlan_add(link.index, first, last) for first, last in _spans(vlans)]
    if own:  # last: the port's own VLAN may also be in the trunk
        changes.append(ops.vlan_add(link.index, own, own, untagged=True))
    ctx.host.apply(*changes)


def ensure_gateway_interface(ctx: Context, conf: Conf, bridge: Link) -> Link:
    """`<bridge>.<vlan>`: a veth in the node's namespace whose other end is a port in that VLAN. Shared, stays."""
    name = f"{conf.bridge}.{conf.vlan}"
    link = ctx.host.link(name)
    if link is None:
        port, mac = host_end("vlan", conf.bridge, str(conf.vlan))
        try:
            ctx.host.apply(
                ops.veth_add(name, veth.random_mac(), port, mac, None, bridge.mtu),
                ops.link_set(port, master=bridge.index, up=True),
            )
        except KernelError as error:
            if error.errno != EEXIST:  # another pod's ADD was faster
                raise
        link = ctx.host.link(name)
    if link is not None and (not link.up or conf.vlan not in ctx.host.vlans(link.peer)):
        # Also when it was there: who made it may have been killed before it came so far.
        peer = ctx.host.link(link.peer)
        set_port(ctx, conf, peer.name if peer else "", vlans=[])
        ctx.host.apply(ops.link_set(name, up=True))
    if link is None:
        raise CniError(INTERNAL, f"failed to find interface {name!r} after making it", "try again")
    return link


def _spans(vlans: list[int]) -> list[tuple[int, int]]:
    """Sorted IDs as (first, last) of each unbroken run."""
    spans: list[tuple[int, int]] = []
    for vid in vlans:
        if spans and spans[-1][1] == vid - 1:
            spans[-1] = (spans[-1][0], vid)
        else:
            spans.append((vid, vid))
    return spans
