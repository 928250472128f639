"""A Node object of Kubernetes as one of ours, and what we write into our own one: pure functions, no connection.

    spec.podCIDRs, else podCIDR                                  -> subnets
    cnikit.dev/public-ip, public-ipv6                            -> address: set by people, wins
    flannel.alpha.coreos.com/public-ip(v6)-overwrite             -> address: set by people
    flannel.alpha.coreos.com/node-public-ip(v6)                  -> address: set by people, read by flanneld at its start
    flannel.alpha.coreos.com/public-ip(v6)                       -> address: what the node's agent goes by
    status.addresses, the first InternalIP of each family        -> address
    status.conditions, Ready                                     -> rank
    flannel.alpha.coreos.com/backend(-v6)-data, cnikit.dev/vtep-mac(-v6) -> MAC of the VXLAN device

A node of ours carries flannel's annotations too, so nodes of both kinds know each other while a cluster is moved
from one to the other. Whichever agent a node runs has written flannel's annotations last, but only ours writes ours:
where both tell a MAC, flannel's form is the newer one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
from lightkube.core.resource import ApiInfo, GlobalResource, GlobalSubResource, ResourceDef

from cni import addr
from cni.errors import CniError
from plugins.peers import SIZES, Node, read_described

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.membership import Network
    from plugins.peers import Subnet

OURS = "cnikit.dev/"
FLANNEL = "flannel.alpha.coreos.com/"
# The reasons of the condition: our network is there, and this node cannot take part in it.
REASON, REASON_NOT = "CnikitIsUp", "CnikitIsNotReady"
_CONDITION = "NetworkUnavailable"
_TAINT = "node.kubernetes.io/network-unavailable"

# The names of the annotations, by the family's size: of addresses, and of MACs in our form and in flannel's.
_IP = {4: "public-ip", 16: "public-ipv6"}
_MAC = {4: "vtep-mac", 16: "vtep-mac-v6"}
_DATA = {4: "backend-data", 16: "backend-v6-data"}


class _Meta(msgspec.Struct):
    name: str = ""
    annotations: dict[str, str] | None = None
    resourceVersion: str = ""  # noqa: N815 - as it is called there


class _Spec(msgspec.Struct):
    podCIDR: str = ""  # noqa: N815
    podCIDRs: list[str] | None = None  # noqa: N815
    taints: list[dict[str, Any]] | None = None


class _Address(msgspec.Struct):
    type: str = ""
    address: str = ""


class _Condition(msgspec.Struct):
    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class _Status(msgspec.Struct):
    addresses: list[_Address] | None = None
    conditions: list[_Condition] | None = None


class NodeView(GlobalResource, msgspec.Struct):
    """What we use of a Node object: the rest of it is passed over when it is decoded, and takes no memory."""

    metadata: _Meta = msgspec.field(default_factory=_Meta)
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)

    _api_info = ApiInfo(ResourceDef("", "v1", "Node"), "nodes", ["get", "list", "patch", "watch"])


class NodeStatusView(GlobalSubResource, NodeView):
    """The same object, where its status is written."""

    _api_info = ApiInfo(
        ResourceDef("", "v1", "Node"), "nodes", ["patch"], parent=ResourceDef("", "v1", "Node"), action="status"
    )


class _BackendData(msgspec.Struct, kw_only=True):
    VNI: int = 0  # flannel before 0.13.1 does not write it
    VtepMAC: str


class NodeError(Exception):
    """A Node object cannot be one of the network's: says what was expected and what was found."""


def subnets(view: NodeView, network: Network) -> tuple[Subnet, ...]:
    """The node's pod ranges, of the families that the network has. NodeError for one that is none."""
    sizes = {len(packed) for packed, _ in network.ranges} or set(SIZES)
    found = []
    for text in view.spec.podCIDRs or ([view.spec.podCIDR] if view.spec.podCIDR else []):
        subnet = addr.pack_cidr(text)
        if subnet is None or addr.network(*subnet) != subnet[0]:
            raise NodeError(f"podCIDR: expected a network such as 10.244.1.0/24, found {text!r}")
        if len(subnet[0]) in sizes:
            found.append(subnet)
    return tuple(found)


def addresses(view: NodeView) -> dict[int, bytes]:
    """Where another node answers on the underlay. NodeError for an annotation that is no address."""
    notes = view.metadata.annotations or {}
    found = {}
    for packed in reversed(_internal(view)):
        found[len(packed)] = packed
    for size, name in _IP.items():
        text = overwritten(notes, size) or (_managed(notes) and notes.get(FLANNEL + name))
        if text:
            found[size] = _annotated(name, text, size)
    return found


def stated(view: NodeView) -> tuple[bytes, ...]:
    """Where our own node is to answer, the best first: what people have given, then every InternalIP. What its agent has
    written there is not asked: it is from an earlier time. NodeError for an annotation that is no address."""
    notes = view.metadata.annotations or {}
    given = [_annotated(name, text, size) for size, name in _IP.items() if (text := overwritten(notes, size))]
    return (*given, *_internal(view))


def announced(view: NodeView) -> tuple[bytes, ...]:
    """Where our own node's agent has said that it answers."""
    notes = view.metadata.annotations or {}
    found = [addr.pack(notes.get(FLANNEL + name, "")) for name in _IP.values()] if _managed(notes) else []
    return tuple(packed for packed in found if packed is not None)


def _internal(view: NodeView) -> list[bytes]:
    texts = [one.address for one in view.status.addresses or () if one.type == "InternalIP"]
    return [packed for packed in map(addr.pack, texts) if packed is not None]


def _annotated(name: str, text: str, size: int) -> bytes:
    packed = addr.pack(text)
    if packed is None or len(packed) != size:
        raise NodeError(f"annotation {name}: expected an IPv{4 if size == 4 else 6} address, found {text!r}")
    return packed


def overwritten(notes: dict[str, str], size: int) -> str:
    """The address of a family that people have given the node, in our way or in flannel's."""
    name = _IP[size]
    return notes.get(OURS + name) or notes.get(f"{FLANNEL}{name}-overwrite") or notes.get(f"{FLANNEL}node-{name}", "")


def rank(view: NodeView) -> int:
    """0 when nothing is heard of the node's kubelet, as the node controller marks one that sends no heartbeat; else 1.

    The object of a machine that was installed anew under another name, or whose address another one has got, stays in the
    cluster until somebody deletes it: it yields its address.
    """
    is_silent = any((one.type, one.status) == ("Ready", "Unknown") for one in view.status.conditions or ())
    return 0 if is_silent else 1


def macs(view: NodeView, network: Network) -> dict[int, bytes]:
    """The MACs of the node's VXLAN devices, as far as it tells. NodeError for another VNI, or what is no MAC."""
    notes = view.metadata.annotations or {}
    found = {}
    for size, name in _MAC.items():
        text = _flannel_mac(notes.get(FLANNEL + _DATA[size], ""), network.vni) if _managed(notes) else ""
        text = text or notes.get(OURS + name, "")
        packed = addr.pack_mac(text)
        if text and (packed is None or addr.is_multicast_mac(packed)):
            raise NodeError(f"annotation {name}: expected the MAC of a device, found {text!r}")
        if packed is not None:
            found[size] = packed
    return found


def peer(view: NodeView, network: Network) -> Node | None:
    """Another node as one of ours; None while it has no podCIDR. NodeError when it cannot be one."""
    ranges = subnets(view, network)
    if not ranges:
        return None
    answers = addresses(view)
    if not answers:
        raise NodeError("expected an InternalIP in its status, found none")
    found = Node(view.metadata.name, answers, ranges, macs(view, network) if network.backend != "host-gw" else {})
    try:
        return read_described("", found.described()).ranked(rank(view))  # what no node of any source may have
    except CniError as error:
        raise NodeError(error.msg) from None


def status_patch(
    own: Node,
    view: NodeView,
    network: Network,
    now: float,
    fault: str | None,
    more: Mapping[str, str | None] = MappingProxyType({}),
) -> dict[str, Any]:
    """What to change in our own node's object, as a strategic merge patch of its status; empty for nothing.

    `fault` is why no pod can be attached here, "" when one can; with None the condition is left alone. `more`
    are annotations beside those that tell where it is.
    `nodes/status` takes annotations as well, and flannel's agent may write nothing else.
    """
    patch: dict[str, Any] = {}
    notes = view.metadata.annotations or {}
    wanted_notes = own_annotations(own, notes, network)
    if wanted_notes:
        wanted_notes.update(more)
    changed = {key: value for key, value in wanted_notes.items() if notes.get(key) != value}
    if changed:
        patch["metadata"] = {"annotations": changed}
    condition = next((one for one in view.status.conditions or () if one.type == _CONDITION), _Condition())
    wanted = _condition(own, fault)
    if wanted is not None and wanted != condition:
        time = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        written = {**msgspec.to_builtins(wanted), "lastHeartbeatTime": time}
        if condition.status != wanted.status:
            written["lastTransitionTime"] = time
        patch["status"] = {"conditions": [written]}
    return patch


def _condition(own: Node, fault: str | None) -> _Condition | None:
    """NetworkUnavailable as it is to be; None for as it is."""
    if fault:
        return _Condition(_CONDITION, "True", REASON_NOT, f"cnikit cannot attach pods on this node: {fault}")
    if fault is None or not own.subnets:
        return None
    return _Condition(_CONDITION, "False", REASON, "cnikit is running on this node")


def own_annotations(own: Node, notes: dict[str, str], network: Network) -> dict[str, str | None]:
    """What our own node's object is to say about it; None for what it must not. While the node has no address, as between
    two DHCP leases, what it says stands."""
    if not network.backend or not own.addresses:
        return {}
    found: dict[str, str | None] = {FLANNEL + "kube-subnet-manager": "true", FLANNEL + "backend-type": network.backend}
    for size in SIZES:
        here = size in own.addresses
        mac = addr.unpack_mac(own.vtep_mac(size, network.vni)) if here and network.backend == "vxlan" else None
        found[OURS + _MAC[size]] = mac
        data = (
            msgspec.json.encode(_BackendData(VNI=network.vni, VtepMAC=mac)).decode()
            if mac
            else "null"
            if here
            else None
        )
        found[FLANNEL + _DATA[size]] = data
        answers = overwritten(notes, size) or (addr.unpack(own.addresses[size]) if here else None)
        found[FLANNEL + _IP[size]] = answers
    return found


def taint_patch(view: NodeView) -> list[dict[str, Any]]:
    """What removes the taint that keeps pods away from a node with no network, as a JSON patch; empty for nothing.

    The taints are one value: nobody else's is lost, because the patch fails when they have changed meanwhile.
    """
    for index, taint in enumerate(view.spec.taints or ()):
        if taint.get("key") == _TAINT:
            path = f"/spec/taints/{index}"
            return [{"op": "test", "path": path, "value": taint}, {"op": "remove", "path": path}]
    return []


def _managed(notes: dict[str, str]) -> bool:
    """Whether an agent, flannel's or ours, says what it goes by."""
    return notes.get(FLANNEL + "kube-subnet-manager") == "true"


def _flannel_mac(text: str, vni: int) -> str:
    """The MAC in flannel's `{"VNI":1,"VtepMAC":"..."}`, which may lack the VNI; empty when it says `null` (host-gw) or
    nothing."""
    if text in ("", "null"):
        return ""
    try:
        data = msgspec.json.decode(text, type=_BackendData)
    except msgspec.MsgspecError as error:
        raise NodeError(f'annotation backend-data: expected {{"VNI": ..., "VtepMAC": ...}}, found {text!r}') from error
    if vni and data.VNI not in (0, vni):
        raise NodeError(f"expected VNI {vni}, which is this node's, found {data.VNI} in its annotation backend-data")
    return data.VtepMAC
