"""What this node has in a network, written down for the plugins: flannel's `subnet.env`.

    FLANNEL_NETWORK=10.244.0.0/16
    FLANNEL_SUBNET=10.244.1.1/24
    FLANNEL_MTU=1450
    FLANNEL_IPMASQ=true
    CNIKIT_PUBLIC_IP=192.0.2.1

A subnet is written as its gateway's address, as flannel does. The last line is ours alone, one for each family: the address
that the members know this node by, which the links do not tell. Readers see the old file or the new one, never a half.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cni import addr
from cni.errors import CniError
from plugins.this_node import FILE_KEYS, read_subnet_file

if TYPE_CHECKING:
    from plugins.pod_network import Site
    from plugins.this_node import SubnetFile

_LONGEST = 1 << 16
_KEYS = {4: ("FLANNEL_NETWORK", "FLANNEL_SUBNET"), 16: ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")}


def written(path: str) -> SubnetFile | None:
    """What an earlier process has written down; None when there is nothing, or nothing that can be understood."""
    try:
        return read_subnet_file(path)
    except CniError:
        return None


def text_of(site: Site) -> str:
    """The file's content; empty when the node has no subnet."""
    lines = []
    for size, (network_key, subnet_key) in _KEYS.items():
        networks = [addr.unpack_cidr(*one) for one in site.networks if len(one[0]) == size]
        gateways = [addr.unpack_cidr(addr.following(one[0]), one[1]) for one in site.own.subnets if len(one[0]) == size]
        if networks:
            lines.append(f"{network_key}={','.join(networks)}\n")
        if gateways:
            lines.append(f"{subnet_key}={','.join(gateways)}\n")
    if not site.own.subnets:
        return ""
    lines.append(f"FLANNEL_MTU={site.mtu}\nFLANNEL_IPMASQ={str(site.conf.ip_masq).lower()}\n")
    lines += [
        f"{key}={addr.unpack(site.own.addresses[size])}\n"
        for size, key in FILE_KEYS.items()
        if size in site.own.addresses
    ]
    return "".join(lines)


def settle(path: str, text: str) -> bool:
    """Make the file have this content, or be gone when there is none; whether that changed anything. OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # whatever lies there is not waited for
        with open(fd, "rb") as file:
            found = file.read(_LONGEST) or b""  # a FIFO says None
    except FileNotFoundError:
        found = b""
    if found == text.encode():
        return False
    if not text:
        os.unlink(path)
        return True
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new")
    with open(new, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    return True
