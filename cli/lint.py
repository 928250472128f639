"""`cnikit lint`: what is wrong with a network list, where exactly, and what to do about it.

Three passes, each on what the one before has found sound: JSON syntax, the schemas in `conf/schema/` (the
list's, then each plugin's and its IPAM's by their type), and the rules that a schema cannot express
(`cli/lint_rules.py`). Keys are first brought to the schema's spelling, because plugins match them without
regard to case; an odd spelling is a warning.

In a frozen cnikit the schemas lie in `conf/schema` beside the bundle's modules: include that folder as data,
and the packages `click`, `rich`, `jsonschema` (with `jsonschema_specifications`) and `pyroute2`.
"""

from __future__ import annotations

import difflib
import json
import os
from functools import cache
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.validators import extend

from cli import lint_rules
from cli.findings import Finding, Report
from cni import addr, jsonio, netlist
from cni.errors import CniError
from cni.names import identifier_fault, interface_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jsonschema import ValidationError

SCHEMAS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "conf", "schema")

# What a reader is told, by JSON Schema type: what was expected, and how to write it.
TYPES = {
    "boolean": ("true or false", "write true or false, without quotes"),
    "integer": ("an integer", "write a whole number, without quotes"),
    "string": ("a string", "put it in quotes"),
    "array": ("a list", "write a list: [ ... ]"),
    "object": ("an object", "write an object: { ... }"),
}

LIST_FLAGS = ("disableCheck", "disableGC", "loadOnlyInlinedPlugins")

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


def lint_paths(paths: Sequence[str], plugin_path: list[str]) -> tuple[list[Finding], int]:
    """The findings in files, and in the network lists of folders; and how many files were read."""
    findings: list[Finding] = []
    checked = 0
    for path in paths:
        files = _folder(path) if os.path.isdir(path) else [path]
        names: dict[str, str] = {}
        for file in files:
            report = Report(file)
            name = _lint_file(file, report, plugin_path)
            if name in names:
                remedy = "give each network a name of its own, or remove one of the files"
                message = f"expected a name used once, found {jsonio.shown(name)} in {names[name]} too"
                report.error("name", message, remedy)
            elif name:
                names[name] = file
            findings += report.findings
        checked += len(files)
    return findings, checked


def _folder(path: str) -> list[str]:
    """The network lists of a folder in the order a runtime reads them."""
    return netlist.files(path, (".conflist",)) + netlist.files(path, (".conf", ".json"))


def _lint_file(file: str, report: Report, plugin_path: list[str]) -> str:
    """Check one file; returns the network's name, empty when it cannot be told."""
    value = _parse(file, report)
    if value is None:
        return ""
    if not file.endswith(".conflist") and "plugins" not in value:
        _lint_plugin(value, "", report, plugin_path, str(value.get("cniVersion") or "0.1.0"))
        if not isinstance(value.get("name"), str):
            report.error("name", "expected the network's name, found none", 'add "name"')
    else:
        _lint_list(file, value, report, plugin_path)
    name = value.get("name")
    return name if isinstance(name, str) else ""


def _parse(file: str, report: Report) -> dict[str, Any] | None:
    try:
        with open(file, "rb") as opened:
            data = opened.read()
        value = jsonio.decode(data)
    except OSError as error:
        report.error("", f"cannot read: {error.strerror}", "check the path and its mode")
        return None
    except CniError as error:
        report.error("", error.msg, "mend the JSON there: a missing comma, quote or bracket, or one too many")
        return None
    if not isinstance(value, dict):
        report.error("", f"expected a JSON object, found {jsonio.shown(value)}", "begin with { and the network's name")
        return None
    _repeated_keys(json.loads(data.decode("utf-8", "replace"), object_pairs_hook=_Pairs), "", report)
    return value


class _Pairs(list[tuple[str, Any]]):
    """An object whose keys are not merged yet."""


def _repeated_keys(value: Any, path: str, report: Report) -> None:
    """Report keys that stand twice in one object, which any JSON decoder forgets."""
    if isinstance(value, _Pairs):
        keys = [key for key, _ in value]
        for key in sorted({key for key in keys if keys.count(key) > 1}):
            report.warning(_join(path, key), "expected this key once, found it twice", "remove one: the last counts")
        for key, item in value:
            _repeated_keys(item, _join(path, key), report)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _repeated_keys(item, f"{path}[{index}]", report)


def _lint_list(file: str, value: dict[str, Any], report: Report, plugin_path: list[str]) -> None:
    if not file.endswith(".conflist"):
        report.error("plugins", "expected a list's file name to end in .conflist", "rename the file")
    value = _spelled(value, _schema("network-list"), "", report, exact=True)
    value = {key: _word(key, found, report) for key, found in value.items()}
    _validate(value, _schema("network-list"), "", report)
    lint_rules.network(value, os.path.dirname(file), report)
    try:
        version = netlist.choose_version(value.get("cniVersion"), value.get("cniVersions"))
    except CniError:
        version = "1.1.0"  # the schema has said so already
    plugins = value.get("plugins")
    for index, plugin in enumerate(plugins if isinstance(plugins, list) else []):
        if isinstance(plugin, dict):
            _lint_plugin(plugin, f"plugins[{index}]", report, plugin_path, version)
    name = value.get("name")
    if isinstance(name, str) and not identifier_fault(name) and value.get("loadOnlyInlinedPlugins") is not True:
        for part in netlist.files(os.path.join(os.path.dirname(file), name), (".conf",)):
            own = Report(part)
            found = _parse(part, own)
            if found is not None:
                _lint_plugin(found, "", own, plugin_path, version)
            report.findings += own.findings


def _word(key: str, found: Any, report: Report) -> Any:
    """A flag of the list; runtimes take "true" and "false" in quotes too."""
    if key not in LIST_FLAGS or str(found).lower() not in ("true", "false"):
        return found
    meant = str(found).lower() == "true"
    if found is not meant:
        message = f"expected {str(meant).lower()}, found {jsonio.shown(found)}, which only some programs take"
        report.warning(key, message, "write it without quotes")
    return meant


def _lint_plugin(plugin: dict[str, Any], path: str, report: Report, plugin_path: list[str], version: str) -> None:
    """One plugin's configuration: its schema and its IPAM's when we have them, then the rules."""
    kind = _get(plugin, "type")
    schema = _schema(kind) if isinstance(kind, str) and kind != "host-local" else None
    if schema is not None:
        plugin = _spelled(plugin, schema, path, report)
        _validate(plugin, schema, path, report)
    if not path:  # a file of its own: the part of the list's schema that every plugin shares
        _validate(plugin, _schema("network-list")["$defs"]["plugin"], path, report)
    ipam = _get(plugin, "ipam")
    if isinstance(ipam, dict) and _get(ipam, "type") == "host-local":
        inner = _join(path, "ipam")
        ipam = _spelled(ipam, _schema("host-local"), inner, report)
        _validate(ipam, _schema("host-local"), inner, report)
        plugin = {**plugin, "ipam": ipam}
    lint_rules.reserved_keys(plugin, path, report)
    lint_rules.executables(plugin, path, report, plugin_path)
    if report.sound(path):
        lint_rules.plugin(plugin, path, report, version)


@cache
def _load(name: str) -> dict[str, Any] | None:
    file = os.path.join(SCHEMAS, f"{name}.json")
    if not name or "/" in name or "\0" in name or not os.path.isfile(file):
        return None
    with open(file, encoding="utf-8") as opened:
        loaded: dict[str, Any] = json.load(opened)
        return loaded


def _schema(name: str) -> Any:
    return _load(name)


def _spelled(value: Any, schema: Any, path: str, report: Report, root: Any = None, *, exact: bool = False) -> Any:
    """`value` with its keys in the schema's spelling and without nulls; odd and unknown keys are reported.

    `exact` is for the list itself, whose keys a runtime does not match in another spelling.
    """
    root = root or schema
    schema = _resolved(schema, root)
    if isinstance(value, list) and "items" in schema:
        return [_spelled(item, schema["items"], f"{path}[{i}]", report, root) for i, item in enumerate(value)]
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
            out[name] = _spelled(item, schema["properties"][name], _join(path, name), report, root)
    return out


def _odd_spelling(key: str, name: str, path: str, report: Report, *, exact: bool) -> None:
    message = f"expected the spelling {name}, found {key}"
    if exact:
        report.error(_join(path, key), f"{message}, which runtimes do not read", f"write {name}")
    else:
        report.warning(_join(path, key), f"{message}, which means the same to plugins", f"write {name}")


def _unknown_key(key: str, known: list[str], path: str, report: Report) -> None:
    if key.casefold() in lint_rules.EVERYWHERE or key.casefold().startswith("cni.dev/"):
        return
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    remedy = f"did you mean {close[0]}?" if close else "remove it if nobody else reads it"
    report.warning(_join(path, key), "unknown key: it has no effect here", remedy)


# 5.0 is an integer to JSON Schema and none to Go.
_Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, found: type(found) is int),
)


def _validate(value: Any, schema: Any, path: str, report: Report) -> None:
    root = _load("network-list") if "$defs" not in schema and path == "" else schema
    for error in sorted(_Validator(schema, format_checker=_formats()).iter_errors(value), key=_place):
        where = path
        for part in error.absolute_path:
            where = f"{where}[{part}]" if isinstance(part, int) else _join(where, part)
        report.error(*_explain(error, where, root))


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
        return _join(path, key), f"expected this key{because}, found none", about.get("x-remedy") or f'add "{key}"'
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


def _get(value: dict[str, Any], key: str) -> Any:
    """A key in any spelling."""
    return next((item for name, item in value.items() if name.casefold() == key.casefold()), None)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
