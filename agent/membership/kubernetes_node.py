"""A Node object of Kubernetes as one of ours, and what we write into our own one: pure functions, no connection.

    spec.podCIDRs, else podCIDR                                  -> subnets
    cnikit.dev/public-ip, public-ipv6                            -> address: set by people, wins
    flannel.alpha.coreos.com/public-ip(v6)-overwrite             -> address: set by people
    flannel.alpha.coreos.com/node-public-ip(v6)                  -> address: set by people, read by flanneld at its start
    flannel.alpha.coreos.com/public-ip(v6)                       -> address: what the node's agent goes by
    status.addresses, the first InternalIP of each family        -> address
    flannel.alpha.coreos.com/backend(-v6)-data, cnikit.dev/vtep-mac(-v6) -> MAC of the VXLAN device

A node of ours carries flannel's annotations too, so nodes of both kinds know each other while a cluster is moved
from one to the other. Whichever agent a node runs has written flannel's annotations last, but only ours writes ours:
where both tell a MAC, flannel's form is the newer one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from lightkube.core.resource import ApiInfo, GlobalResource, GlobalSubResource, ResourceDef

from cni import addr
from cni.errors import CniError
from plugins.peers import SIZES, Node, read_described

if TYPE_CHECKING:
    from agent.membership import Network
    from plugins.peers import Subnet

OURS = "cnikit.dev/"
FLANNEL = "flannel.alpha.coreos.com/"
# The reason of the condition that says our network is there.
REASON = "CnikitIsUp"
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
    """Where the node answers on the underlay. NodeError for an annotation that is no address."""
    internal: dict[int, bytes] = {}
    for one in view.status.addresses or ():
        packed = addr.pack(one.address) if one.type == "InternalIP" else None
        if packed is not None:
            internal.setdefault(len(packed), packed)
    notes = view.metadata.annotations or {}
    found = {}
    for size, name in _IP.items():
        text = overwritten(notes, size) or (_managed(notes) and notes.get(FLANNEL + name))
        if not text:
            if size in internal:
                found[size] = internal[size]
            continue
        packed = addr.pack(text)
        if packed is None or len(packed) != size:
            raise NodeError(f"annotation {name}: expected an IPv{4 if size == 4 else 6} address, found {text!r}")
        found[size] = packed
    return found


def overwritten(notes: dict[str, str], size: int) -> str:
    """The address of a family that people have given the node, in our way or in flannel's."""
    name = _IP[size]
    return notes.get(OURS + name) or notes.get(f"{FLANNEL}{name}-overwrite") or notes.get(f"{FLANNEL}node-{name}", "")


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
        return read_described("", found.described())  # what no node of any source may have
    except CniError as error:
        raise NodeError(error.msg) from None


def status_patch(own: Node, view: NodeView, network: Network, now: float) -> dict[str, Any]:
    """What to change in our own node's object, as a strategic merge patch of its status; empty for nothing.

    `nodes/status` takes annotations as well, and flannel's agent may write nothing else.
    """
    patch: dict[str, Any] = {}
    notes = view.metadata.annotations or {}
    changed = {key: value for key, value in own_annotations(own, notes, network).items() if notes.get(key) != value}
    if changed:
        patch["metadata"] = {"annotations": changed}
    condition = next((one for one in view.status.conditions or () if one.type == _CONDITION), _Condition())
    if own.subnets and (condition.status, condition.reason) != ("False", REASON):
        time = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        wanted = {"type": _CONDITION, "status": "False", "reason": REASON, "lastHeartbeatTime": time}
        wanted["message"] = "cnikit is running on this node"
        if condition.status != "False":
            wanted["lastTransitionTime"] = time
        patch["status"] = {"conditions": [wanted]}
    return patch


def own_annotations(own: Node, notes: dict[str, str], network: Network) -> dict[str, str | None]:
    """What our own node's object is to say about it; None for what it must not."""
    if not network.backend:
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
