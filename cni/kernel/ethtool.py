"""The one setting of a network card that we change: who computes the checksums of what it sends (ethtool(8), `-K tx`).

By ioctl, which any socket of the namespace takes; ethtool's own netlink family would have to be looked up first.
"""

from __future__ import annotations

import _struct
import fcntl
from errno import ENODEV, EOPNOTSUPP, EPERM

from cni.errors import KernelError

_SIOCETHTOOL = 0x8946
_ETHTOOL_GTXCSUM = 0x16
_ETHTOOL_STXCSUM = 0x17

_VALUE = _struct.Struct("=II")  # command, on
_IFREQ = _struct.Struct("@16sP16x")  # name, address of the value


def tx_checksum(socket: int, name: str) -> bool | None:
    """Whether the card computes them; None when there is no such link, or it has no such setting."""
    try:
        return bool(_call(socket, name, _ETHTOOL_GTXCSUM, 0))
    except OSError as error:
        if error.errno in (ENODEV, EOPNOTSUPP):
            return None
        raise KernelError(f"ask {name} for its transmit checksums", error.errno or EPERM) from error


def set_tx_checksum(socket: int, name: str, *, on: bool) -> None:
    try:
        _call(socket, name, _ETHTOOL_STXCSUM, int(on))
    except OSError as error:
        what = f"turn transmit checksums of {name} {'on' if on else 'off'}"
        raise KernelError(what, error.errno or EPERM) from error


def _call(socket: int, name: str, command: int, on: int) -> int:
    # Imported here: whoever never asks does without.
    from array import array

    text = name.encode("utf-8", "surrogateescape")
    if len(text) > 15 or b"\0" in text:
        raise OSError(ENODEV, "no link can have this name")
    value = array("B", _VALUE.pack(command, on))
    address, _ = value.buffer_info()
    fcntl.ioctl(socket, _SIOCETHTOOL, _IFREQ.pack(text, address))
    return int(_VALUE.unpack(value)[1])
