"""Which addresses the node leads to pods, where no claims say so (`cni/claims.py`).

Pods of ours have records, which name the bridge. A pod of the Go plugins has a lease, which does not say whether its
network is in the node's routing. So the kernel is asked: an address counts when the bridge has an address of the node in
the same network, or when a route of its own leads to a veth.
"""

from __future__ import annotations

import posix

from cni import addr
from cni.names import attachment_key, file_name
from cni.paths import base_name, exists, folder_of, is_folder
from cni.record import Records, addresses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cni.claims import Leases
    from cni.context import Context
    from cni.kernel import Namespace
    from cni.kernel.types import Address


def holders(ctx: Context, leases: Leases) -> dict[str, str]:
    """The target of each address's claim: the attachment that has a record with it, else the lease."""
    folder = f"{ctx.world.run_dir}/networks"
    recorded = {text: holder for holder, record in _records(ctx, folder) for text in _led_to(ctx.host, record)}
    found = dict(recorded)
    routing: _Routing | None = None
    for path, container_id, ifname in leases():
        network, address = file_name(base_name(folder_of(path))), base_name(path)
        if address in recorded or exists(f"{folder}/{network}/attachments/{attachment_key(container_id, ifname)}"):
            continue
        routing = routing or _Routing(ctx.host)
        packed = addr.pack(address)
        if packed and routing.leads_to(packed):
            found[address] = path
    return found


def _records(ctx: Context, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        networks = posix.listdir(folder)
    except FileNotFoundError:
        return
    for network in [name for name in sorted(networks) if is_folder(f"{folder}/{name}")]:
        for record in Records(ctx.world.run_dir, network, ctx.world.lock, ctx.log).all():
            yield f"{network}/{attachment_key(record['containerID'], record['ifname'])}", record


def _led_to(host: Namespace, record: dict[str, Any]) -> Iterator[str]:
    """The addresses of an attachment of ours that the node leads to it: a routed one's, or a bridge's with a gateway."""
    for section in record["plugins"].values():
        bridge, vlan = section.get("bridge"), section.get("vlan")
        link = host.link(f"{bridge}.{vlan}" if vlan else bridge) if bridge else None
        near = host.addresses(link.index) if link else []
        for packed, _ in addresses(section):
            if bridge == "" or _in_network_of(packed, near):
                yield addr.unpack(packed)


class _Routing:
    """Where the node leads packets over its bridges and veths, asked once."""

    __slots__ = ("_near", "_routed")

    def __init__(self, host: Namespace) -> None:
        links = {link.index: link for link in host.links() if link.kind in ("bridge", "veth")}
        self._near = [one for index in links for one in host.addresses(index)]
        self._routed = {
            route.dst
            for route in host.routes()
            if route.prefix == len(route.dst) * 8 and route.oif in links and links[route.oif].kind == "veth"
        }

    def leads_to(self, packed: bytes) -> bool:
        return packed in self._routed or _in_network_of(packed, self._near)


def _in_network_of(packed: bytes, near: list[Address]) -> bool:
    return any(one.packed != packed and addr.inside(packed, one.packed, one.prefix) for one in near)
