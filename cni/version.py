"""The CNI specification versions we speak, and which verb each allows (spec, "Version considerations")."""

from __future__ import annotations

from cni.errors import DECODING_FAILURE, INCOMPATIBLE_VERSION, CniError

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST = "1.1.0"

# A configuration without cniVersion predates the key.
DEFAULT = "0.1.0"

# The version that brought each verb; ADD, DEL and VERSION have always been there.
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


def at_least(version: str, other: str) -> bool:
    """Whether one of our SUPPORTED versions is `other` or newer."""
    return SUPPORTED.index(version) >= SUPPORTED.index(other)


def negotiate(found: object, command: str) -> str:
    """The version to answer in, from the configuration's `cniVersion` (None when it has none).

    Raises CniError 6 when it is not a string, 1 when we do not speak it or when it has no such verb.
    """
    if found is None or found == "":
        version = DEFAULT
    elif isinstance(found, str):
        version = found
    else:
        raise CniError(DECODING_FAILURE, f"cniVersion: expected a string, found {found!r}", 'for example "1.1.0"')
    if version not in SUPPORTED:
        raise CniError(
            INCOMPATIBLE_VERSION,
            f"incompatible CNI versions: cniVersion is {version!r}, this plugin supports {', '.join(SUPPORTED)}",
            f"set cniVersion to one of these, at best {LATEST}",
        )
    since = SINCE.get(command, SUPPORTED[0])
    if not at_least(version, since):
        raise CniError(
            INCOMPATIBLE_VERSION,
            f"config version does not allow {command}: cniVersion is {version}, {command} needs {since} or newer",
            f"set cniVersion to {since} or newer",
        )
    return version
