"""Typed reading of JSON configuration, with the key path in every complaint.

The rules are Go's, because the configurations are: keys match without regard to case and the last match
counts, unknown keys are ignored, null is the same as absent, and nothing is coerced (`true` is not 1,
`"5"` is not 5, 5.0 is not 5).
"""

from __future__ import annotations

from cni import addr, jsonio
from cni.errors import INVALID_CONFIG, CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INT64 = 1 << 63


class Reader:
    """One JSON object of the configuration and where it stands (`ipam.ranges[0][1]`, empty at the top).

    Every getter returns the default when the key is absent or null and raises CniError 7 on a wrong type
    or value.
    """

    __slots__ = ("_keys", "path", "value")

    def __init__(self, value: dict[str, Any], path: str = "") -> None:
        self.value = value
        self.path = path
        self._keys: dict[str, Any] | None = None

    def refuse(self, error: CniError) -> None:
        """Refuse the configuration. This one raises; the one of `cnikit lint` remembers and goes on, so code behind a
        refusal must do without what was refused."""
        raise error

    def raw(self, key: str) -> Any:
        """The value as it stands, or None."""
        if self._keys is None:
            # A null changes nothing, so it does not override an earlier spelling of the same key either.
            self._keys = {k.casefold(): v for k, v in self.value.items() if v is not None}
        return self._keys.get(key.casefold())

    def at(self, key: str) -> str:
        """The full path of a key of this object."""
        return f"{self.path}.{key}" if self.path else key

    def string(self, key: str, default: str = "") -> str:
        found = self.raw(key)
        if found is None:
            return default
        return text(self.at(key), found)

    def boolean(self, key: str, default: bool = False) -> bool:  # noqa: FBT001, FBT002 - a default is no flag
        found = self.raw(key)
        if found is None:
            return default
        if not isinstance(found, bool):
            raise wrong(self.at(key), "true or false", found)
        return found

    def integer(self, key: str, default: int = 0, low: int = -INT64, high: int = INT64 - 1) -> int:
        found = self.raw(key)
        if found is None:
            return default
        return number(self.at(key), found, low, high)

    def object(self, key: str) -> Reader:
        """The object under `key`; an empty one when it is absent, so that nested reads need no test."""
        found = self.raw(key)
        if found is None:
            return Reader({}, self.at(key))
        if not isinstance(found, dict):
            raise wrong(self.at(key), "an object", found)
        return Reader(found, self.at(key))

    def array(self, key: str) -> list[tuple[str, Any]]:
        """The entries of the array under `key`, each with its path; empty when absent."""
        found = self.raw(key)
        if found is None:
            return []
        return items(self.at(key), found)

    def entry(self, path: str, value: Any) -> Reader:
        """One entry of an array, which must be an object."""
        return Reader(mapping(path, value), path)

    def strings(self, key: str) -> list[str]:
        return [text(path, item) for path, item in self.array(key)]

    def objects(self, key: str) -> list[Reader]:
        return [self.entry(path, item) for path, item in self.array(key)]

    def address(self, key: str) -> bytes | None:
        """An IP address as 4 or 16 bytes; None when absent or empty, as Go's net.IP has it."""
        found = self.string(key)
        if not found:
            return None
        packed = addr.pack(found)
        if packed is None:
            raise wrong(self.at(key), "an IP address", found)
        return packed

    def mac(self, key: str) -> bytes | None:
        """A MAC address as 6 bytes; None when absent or empty."""
        found = self.string(key)
        if not found:
            return None
        return hardware_address(self.at(key), found)


def text(path: str, value: Any) -> str:
    """`value` if it is a string."""
    if not isinstance(value, str):
        raise wrong(path, "a string", value)
    return value


def number(path: str, value: Any, low: int, high: int) -> int:
    """`value` if it is an integer (no bool, no 5.0) from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(path, "an integer", value)
    if not low <= value <= high:
        span = f"from {low} to {high}" if high < INT64 - 1 else f"of at least {low}"
        raise wrong(path, f"an integer {span}", value)
    return value


def mapping(path: str, value: Any) -> dict[str, Any]:
    """`value` if it is an object."""
    if not isinstance(value, dict):
        raise wrong(path, "an object", value)
    return value


def items(path: str, value: Any) -> list[tuple[str, Any]]:
    """The entries of `value` if it is an array, each with its path."""
    if not isinstance(value, list):
        raise wrong(path, "an array", value)
    return [(f"{path}[{index}]", item) for index, item in enumerate(value)]


def hardware_address(path: str, value: str) -> bytes:
    """Six bytes of `0a:58:0a:01:00:02` (also with `-`)."""
    packed = addr.pack_mac(value)
    if packed is None:
        raise wrong(path, "a MAC address such as 0a:58:0a:01:00:02", value)
    return packed


class Refusal(CniError):  # noqa: N818 - it is what a plugin does
    """Code 7 for one thing in a configuration: where it is, what was expected and what was found.

    `words` replace the message where scripts look for those of the reference.
    """

    def __init__(self, path: str, expected: str, found: str, remedy: str = "", words: str = "") -> None:
        super().__init__(INVALID_CONFIG, words or f"{path}: expected {expected}, found {found}", remedy)
        self.path = path
        self.remedy = remedy
        self.reason = f"expected {expected}, found {found}"


def wrong(path: str, expected: str, found: Any) -> Refusal:
    """The refusal of one value: `ipam.ranges[0][0].subnet: expected ..., found ...`."""
    return Refusal(path, expected, jsonio.shown(found))
