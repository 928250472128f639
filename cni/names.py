"""Names: which are allowed, and which we derive. All pure.

The allowed forms are the specification's (section 2, "Parameters") and the kernel's (`dev_valid_name`).
"""

from __future__ import annotations

try:
    from _sha512 import sha512  # type: ignore[import-not-found]  # typeshed leaves the C modules out
except ImportError:  # Python 3.12 moved it
    from _sha2 import sha512  # type: ignore[import-not-found]

IFNAMSIZ = 16

# What every label of ours starts with (`owner`).
OWNER = "cnikit "

# Bytes of an interface's alias and of an nftables comment.
LONGEST_LABEL = 255

# The longest file name the usual file systems take is 255 bytes; room is left for suffixes.
LONGEST_FILE_NAME = 200

_ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _ALNUM | frozenset("_.-")


def identifier_fault(value: str) -> str:
    """Why `value` is no container ID or network name; empty when it is one."""
    if not value or value[0] not in _ALNUM:
        return "must start with a letter or digit"
    if not _NAME.issuperset(value):
        return "invalid characters: only letters, digits, '_', '.' and '-' are allowed"
    return ""


def interface_fault(value: str) -> str:
    """Why `value` cannot name a network interface; empty when it can."""
    if not value:
        return "is empty"
    raw = value.encode("utf-8", "surrogateescape")
    if len(raw) >= IFNAMSIZ:
        return f"is longer than {IFNAMSIZ - 1} bytes"
    if value in (".", ".."):
        return "must not be '.' or '..'"
    if any(char in "/:\0" or char.isspace() for char in value):
        return "must not contain '/', ':', NUL or white space"
    if any("\ud800" <= char <= "\udfff" for char in value):
        return "must be UTF-8: no result could contain its name otherwise"
    if "%" in value:
        return "must not contain '%', which the kernel takes for a pattern"
    if b"\xa0" in raw:
        return "must not contain the byte a0 (as in 'à'), which the kernel takes for a space"
    return ""


def digest(text: str) -> bytes:
    """SHA-512 of a text, the hash behind every derived name (the reference's choice)."""
    raw: bytes = sha512(text.encode("utf-8", "surrogateescape")).digest()
    return raw


def attachment_key(container_id: str, ifname: str) -> str:
    """The file name that stands for an attachment: `CONTAINER:IFNAME`, hashed when that is too long.

    Neither part can hold a colon, so two attachments never share a key.
    """
    key = f"{container_id}:{ifname}"
    return key if len(key) <= LONGEST_FILE_NAME else f"sha512-{digest(key).hex()[:64]}:{ifname}"


def call_lock(network: str, container_id: str, ifname: str, plugin: str) -> str:
    """The file name of the lock that a call of a plugin holds for its attachment (`<run_dir>/locks/`)."""
    return file_name(f"{network}:{attachment_key(container_id, ifname)}:{plugin}")


def file_name(text: str) -> str:
    """`text` as the name of a file; its hash when it is too long for one."""
    return text if len(text) <= LONGEST_FILE_NAME else f"sha512-{digest(text).hex()[:64]}"


def host_end(network: str, container_id: str, ifname: str, attempt: int = 0) -> tuple[str, bytes]:
    """Name and MAC of the host's end of an attachment's veth: always the same, so that DEL finds it with no
    record, and knows by both that it is ours.

    44 bits of the hash are the name; when another attachment has it already, `attempt` 1, 2, ... give others.
    """
    found = digest(f"{network}/{container_id}/{ifname}/{attempt}")
    return "veth" + found.hex()[:11], local_mac(found[8:])


def local_mac(raw: bytes) -> bytes:
    """The first six of these bytes as a MAC: locally administered (bit 1), not a group address (bit 0)."""
    return bytes([raw[0] & 0xFC | 0x02]) + raw[1:6]


def owner(network: str, container_id: str, ifname: str) -> str:
    """The label (interface alias, nftables comment) of what was made for an attachment, cut at what these can hold."""
    label = f"{owner_of_all(network)}{container_id}/{ifname}".encode("utf-8", "surrogateescape")
    return label[:LONGEST_LABEL].decode("utf-8", "ignore")


def holder(label: str) -> tuple[str, str] | None:
    """Container ID and interface in a label that `owner` made, whatever its network; None for one that was cut."""
    if not label.startswith(OWNER) or len(label.encode("utf-8", "surrogateescape")) >= LONGEST_LABEL:
        return None
    parts = label.split("/")
    return (parts[1], parts[2]) if len(parts) == 3 else None


def owner_of_all(network: str) -> str:
    """What the labels of a network's attachments start with."""
    return f"{OWNER}{network}/"
