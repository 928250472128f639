"""The schemas in `conf/schema/`: the spelling of keys, and what does not fit them.

They are for people and editors, and know the remedies. What of it is an error is not decided here (`lint.py`).

In a frozen cnikit the schemas lie in `conf/schema` beside the bundle's modules: include that folder as data,
and the packages `click`, `rich`, `jsonschema` (with `jsonschema_specifications`) and `pyroute2`.
"""

from __future__ import annotations

import difflib
import json
import os
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.validators import extend

from cli.lint_rules import EVERYWHERE
from cni import addr, jsonio
from cni.names import interface_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jsonschema import ValidationError

    from cli.findings import Report

SCHEMAS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "conf", "schema")

# What a message says, by JSON Schema type: what was expected, and how to write it.
TYPES = {
    "boolean": ("true or false", "write true or false, without quotes"),
    "integer": ("an integer", "write a whole number, without quotes"),
    "string": ("a string", "put it in quotes"),
    "array": ("a list", "write a list: [ ... ]"),
    "object": ("an object", "write an object: { ... }"),
}

FORMATS: dict[str, tuple[str, str, Callable[[str], bool]]] = {
    "ip": ("an IP address", "write an address such as 10.1.0.1 or fd00:1::1", lambda text: addr.pack(text) is not None),
    "cidr": ("a network", "write address/length such as 10.1.0.0/16", lambda text: addr.pack_cidr(text) is not None),
    "ip-or-cidr": (
        "an IP address, with or without prefix length",
        "write an address such as 10.1.0.5 or 10.1.0.5/16",
        lambda text: addr.pack(text) is not None or addr.pack_cidr(text) is not None,
    ),
    "mac": (
        "a MAC address",
        "write six hexadecimal pairs such as 0a:58:0a:01:00:02",
        lambda text: addr.pack_mac(text) is not None,
    ),
    "interface-name": ("an interface name", "use at most 15 bytes", lambda text: not interface_fault(text)),
}


class Violation(NamedTuple):
    """One thing that does not fit a schema."""

    path: str
    message: str
    remedy: str


@cache
def load(name: str) -> Any:
    file = os.path.join(SCHEMAS, f"{name}.json")
    if not name or "/" in name or "\0" in name or not os.path.isfile(file):
        return None
    with open(file, encoding="utf-8") as opened:
        loaded: dict[str, Any] = json.load(opened)
        return loaded


def spelled(value: Any, schema: Any, path: str, report: Report, root: Any = None, *, exact: bool = False) -> Any:
    """`value` with its keys in the schema's spelling and without nulls; odd and unknown keys are reported.

    `exact` is for the list itself, whose keys a runtime does not match in another spelling.
    """
    root = root or schema
    schema = _resolved(schema, root)
    if isinstance(value, list) and "items" in schema:
        return [spelled(item, schema["items"], f"{path}[{i}]", report, root) for i, item in enumerate(value)]
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    known = {key.casefold(): key for key in schema["properties"]}
    out: dict[str, Any] = {}
    for key, item in value.items():
        name = known.get(key.casefold())
        if name is None:
            if not schema.get("x-open"):  # "x-open": another schema knows the other keys
                _unknown_key(key, list(known.values()), path, report)
            out[key] = item
            continue
        if name != key:
            _odd_spelling(key, name, path, report, exact=exact)
        if item is not None:
            out[name] = spelled(item, schema["properties"][name], join(path, name), report, root)
    return out


def _odd_spelling(key: str, name: str, path: str, report: Report, *, exact: bool) -> None:
    message = f"expected the spelling {name}, found {key}"
    if exact:
        report.error(join(path, key), f"{message}, which runtimes do not read", f"write {name}")
    else:
        report.warning(join(path, key), f"{message}, which means the same to plugins", f"write {name}")


def _unknown_key(key: str, known: list[str], path: str, report: Report) -> None:
    if key.casefold() in EVERYWHERE or key.casefold().startswith("cni.dev/"):
        return
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    remedy = f"did you mean {close[0]}?" if close else "remove it if no other program reads it"
    report.warning(join(path, key), "unknown key: it has no effect here", remedy)


# 5.0 is an integer to JSON Schema and none to Go.
_Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, found: type(found) is int),
)


def violations(value: Any, schema: Any, path: str) -> Iterator[Violation]:
    """What of a value does not fit a schema, in the order of its keys."""
    root = load("network-list") if "$defs" not in schema and path == "" else schema
    for error in sorted(_Validator(schema, format_checker=_formats()).iter_errors(value), key=_place):
        where = path
        for part in error.absolute_path:
            where = f"{where}[{part}]" if isinstance(part, int) else join(where, part)
        yield Violation(*_explain(error, where, root))


@cache
def _formats() -> FormatChecker:
    """The formats of our schemas and no others."""
    checker = FormatChecker(formats=())
    for name, (_, _, holds) in FORMATS.items():
        checker.checks(name)(lambda found, holds=holds: not isinstance(found, str) or holds(found))
    return checker


def _place(error: ValidationError) -> list[str]:
    return [f"{part:06}" if isinstance(part, int) else part for part in error.absolute_path]


def _explain(error: ValidationError, path: str, root: Any) -> tuple[str, str, str]:
    """Path, message and remedy of one violation."""
    schema: dict[str, Any] = error.schema
    found, rule, wanted = error.instance, error.validator, error.validator_value
    remedy = schema.get("x-remedy", "")
    if rule in ("required", "dependentRequired"):
        key = error.message.split("'")[1]
        about = _resolved(schema.get("properties", {}).get(key, {}), root)
        because = f", because {error.message.split(chr(39))[3]} is given" if rule == "dependentRequired" else ""
        return join(path, key), f"expected this key{because}, found none", about.get("x-remedy") or f'add "{key}"'
    kind = str(schema.get("type", ""))
    expected, hint = TYPES.get(kind, ("something else", schema.get("description", "")))
    if rule == "type" and kind in ("boolean", "integer", "string"):
        remedy = ""  # how to write the type comes before what to write
    elif rule in ("minimum", "maximum"):
        expected, hint = f"an integer from {schema['minimum']} to {schema['maximum']}", "choose one in that span"
    elif rule == "enum":
        expected, hint = f"one of {', '.join(map(str, wanted))}", "choose one of them"
    elif rule == "format":
        expected, hint, _ = FORMATS[str(wanted)]
    elif rule == "minItems":
        expected, hint = "at least one entry", "add one, or remove the key"
    elif rule in ("pattern", "const"):
        expected = schema.get("x-expected", f"{wanted}")
    return path, f"expected {expected}, found {jsonio.shown(found)}", remedy or hint


def _resolved(schema: Any, root: Any) -> Any:
    """A subschema with its `$ref` into the same file followed."""
    while "$ref" in schema:
        target = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def get(value: dict[str, Any], key: str) -> Any:
    """A key in any spelling."""
    return next((item for name, item in value.items() if name.casefold() == key.casefold()), None)


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
