"""The environment of one call, checked: which variables each verb needs is one table.

Sources: CNI specification 1.1.0, section 2 ("Parameters" and each operation's input).
"""

from __future__ import annotations

from cni.errors import INVALID_ENVIRONMENT, CniError
from cni.names import identifier_fault, interface_fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")

# The verbs about one attachment; GC, STATUS and VERSION are about a network or the plugin itself.
ATTACHMENT = ("ADD", "DEL", "CHECK")

# The verbs that remove. They read of a configuration only what they need, so that no other value keeps them from it.
CLEANING = ("DEL", "GC")

# Name, the verbs that need it, and what is wrong with a value that is there.
VARIABLES = (
    ("CNI_CONTAINERID", ATTACHMENT, identifier_fault),
    ("CNI_NETNS", ("ADD", "CHECK"), None),
    ("CNI_IFNAME", ATTACHMENT, interface_fault),
    ("CNI_PATH", ("GC",), None),
)


class Request:
    """One call: the verb and its parameters. `environ` is all of the caller's environment, for delegates."""

    __slots__ = (
        "_args_fault",
        "args",
        "command",
        "container_id",
        "environ",
        "ifname",
        "netns",
        "netns_override",
        "path",
    )

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Raises CniError 4 that names every missing and every invalid variable.

        A malformed CNI_ARGS alone is a fault only for a plugin that reads it (`check_args`).
        """
        self.environ = dict(environ)
        self.command = environ.get("CNI_COMMAND", "")
        faults = _faults(self.command, environ)
        self.args, self._args_fault = _args(environ.get("CNI_ARGS", "") if self.command in ATTACHMENT else "")
        if faults:
            raise _refusal([*faults, self._args_fault] if self._args_fault else faults)
        self.container_id = environ.get("CNI_CONTAINERID", "")
        self.netns = environ.get("CNI_NETNS", "")
        self.ifname = environ.get("CNI_IFNAME", "")
        self.path = [folder for folder in environ.get("CNI_PATH", "").split(":") if folder]
        self.netns_override = environ.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "true")

    def check_args(self, known: tuple[str, ...] | None) -> None:
        """Refuse a CNI_ARGS that is malformed or has a key that is not `known`; anything goes when that is None."""
        if known is None:
            return
        if self._args_fault:
            raise _refusal([self._args_fault])
        self.args.check_known(known)

    def derived(self, command: str) -> Request:
        """The same call with another verb: the DEL that follows a delegate's failed ADD."""
        return Request({**self.environ, "CNI_COMMAND": command})


def _args(text: str) -> tuple[Args, str]:
    """CNI_ARGS parsed, and what is wrong with it."""
    try:
        return Args(text), ""
    except CniError as error:
        return Args(""), error.msg


def _refusal(faults: list[str]) -> CniError:
    details = "the CNI specification, section 2, lists the variables that each command needs"
    return CniError(INVALID_ENVIRONMENT, "; ".join(faults), details)


def _faults(command: str, environ: Mapping[str, str]) -> list[str]:
    if command not in COMMANDS:
        return [f"unknown CNI_COMMAND: {command!r}: expected one of {', '.join(COMMANDS)}"]
    missing = []
    invalid = []
    for name, needed, fault in VARIABLES:
        value = environ.get(name, "")
        if not value and command in needed:
            missing.append(name)
        elif value and command in needed and fault and fault(value):
            invalid.append(f"{name} {value!r}: {fault(value)}")
    return ([f"required env variables [{','.join(missing)}] missing"] if missing else []) + invalid


class Args:
    """CNI_ARGS: `KEY=VALUE;KEY=VALUE`. Keys are matched exactly, the last of two equal ones counts."""

    __slots__ = ("ignore_unknown", "values")

    def __init__(self, text: str) -> None:
        self.values: dict[str, str] = {}
        for pair in text.split(";") if text else []:
            key, equals, value = pair.partition("=")
            if not equals or "=" in value:
                raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: invalid pair {pair!r}: expected KEY=VALUE")
            self.values[key] = value
        self.ignore_unknown = _flag(self.values.pop("IgnoreUnknown", "0"))

    def get(self, key: str) -> str:
        """The value of a key; empty when it is not there."""
        return self.values.get(key, "")

    def check_known(self, known: tuple[str, ...]) -> None:
        """Refuse a key that a plugin does not know, unless `IgnoreUnknown` is set."""
        unknown = [key for key in self.values if key not in known]
        if unknown and not self.ignore_unknown:
            raise CniError(
                INVALID_ENVIRONMENT,
                f"CNI_ARGS: unknown args {unknown}: expected {list(known)}",
                "add IgnoreUnknown=1 to CNI_ARGS to pass keys that not every plugin knows",
            )


def _flag(text: str) -> bool:
    flags = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in flags:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: IgnoreUnknown: expected 1, true, 0 or false, found {text!r}")
    return flags[text.lower()]
