"""`cnikit lint`: what is wrong with a network list, where exactly, and what to do about it.

A file is decoded (`lint_files.py`), its keys are brought to the schema's spelling (`lint_schema.py`), because plugins
match them without regard to case, and then each plugin's own code says what it refuses (`lint_refusals.py`): that is
an error. What else does not fit the schema, or hardly works as meant (`lint_rules.py`), is a warning. Errors that ADD
does not know are those that only the whole folder or this machine shows (`lint_folder.py`), and what the runtime or the
kernel refuses.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cli import lint_folder, lint_members, lint_refusals, lint_rules
from cli.findings import Finding, Report
from cli.lint_files import decoded, parse
from cli.lint_schema import SCHEMAS, get, join, load, spelled, violations
from cni import jsonio, netlist
from cni.errors import CniError
from cni.execute import plugin_behind
from cni.names import identifier_fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cli.lint_folder import Place
    from cli.lint_schema import Violation

__all__ = ("SCHEMAS", "lint_content", "lint_paths")

LIST_FLAGS = ("disableCheck", "disableGC", "loadOnlyInlinedPlugins")


def lint_paths(paths: Sequence[str], plugin_path: list[str], there: Sequence[Place] = ()) -> tuple[list[Finding], int]:
    """The findings in files, and in the network lists of folders; and how many files were read.

    `there` are the networks of the machine that they are for, empty when it is another one.
    """
    reports: list[Report] = []
    folders: dict[str, Folder] = {}
    for path in paths:
        is_folder = os.path.isdir(path)
        files = _folder(path) if is_folder else [path]
        if not files:
            reports.append(report := Report(path))
            message = "expected at least one network (*.conflist, *.conf or *.json), found none"
            report.error("", message, "put a network list there, or name another folder")
        for file in files:
            reports.append(report := Report(file))
            name = os.path.abspath(os.path.dirname(file))
            folder = folders.setdefault(name, Folder(plugin_path))
            folder.lint(file, report, is_folder=is_folder)
    for folder in folders.values():
        lint_folder.compare(folder.plugins)
        lint_folder.compare_with_node(folder.plugins, there)
    findings = [finding for report in reports for finding in report.findings]
    return findings, sum(len(_folder(path)) if os.path.isdir(path) else 1 for path in paths)


def lint_content(file: str, data: bytes, plugin_path: list[str]) -> list[Finding]:
    """The findings in a network list that is to become `file`."""
    report = Report(file)
    Folder(plugin_path).check(file, decoded(data, report), report, is_folder=True)
    return report.findings


def _folder(path: str) -> list[str]:
    """The network lists of a folder in the order a runtime reads them."""
    return netlist.files(path, (".conflist",)) + netlist.files(path, (".conf", ".json"))


class Folder:
    """The networks of one folder, as far as they have been read."""

    def __init__(self, plugin_path: list[str]) -> None:
        self._plugin_path = plugin_path
        self._names: dict[str, str] = {}
        self.plugins: list[lint_folder.Plugin] = []

    def lint(self, file: str, report: Report, *, is_folder: bool) -> None:
        """Check one file."""
        self.check(file, parse(file, report), report, is_folder=is_folder)

    def check(self, file: str, value: Any, report: Report, *, is_folder: bool) -> None:
        """Check what a file was decoded to, None for what is no JSON object."""
        if value is None:
            return
        if lint_members.is_one(value):
            lint_members.check(value, report)
            if is_folder:
                message = "expected a network, found a members' file, which runtimes take for a broken network"
                report.error("", message, "move it out of this folder, for example to /etc/cnikit")
            return
        name = value.get("name") if isinstance(value.get("name"), str) else ""
        if not file.endswith(".conflist") and "plugins" not in value:
            self._plugin(value, "", report, str(value.get("cniVersion") or "0.1.0"), name)
            lint_rules.order([(value, report, "type")])
            if not name:
                report.error("name", "expected the network's name, found none", 'add "name"')
        else:
            self._list(file, value, report, name)
        earlier = self._names.setdefault(name, file) if name else file
        if earlier != file:
            remedy = "give each network a name of its own, or remove one of the files"
            message = f"expected a name used once, found {jsonio.shown(name)} in {earlier} too"
            report.error("name", message, remedy)

    def _list(self, file: str, value: dict[str, Any], report: Report, name: str) -> None:
        if not file.endswith(".conflist"):
            report.error("plugins", "expected a list's file name to end in .conflist", "rename the file")
        value = spelled(value, load("network-list"), "", report, exact=True)
        value = {key: _word(key, found, report) for key, found in value.items()}
        try:
            version = netlist.choose_version(value.get("cniVersion"), value.get("cniVersions"))
        except CniError:
            version = ""
        for one in violations(value, load("network-list"), ""):
            accepted = (one.path == "cniVersion" and version) or ".dns.nameservers[" in one.path
            (report.warning if accepted else report.error)(*one)
        folder = os.path.dirname(file)
        lint_rules.network(value, folder, report)
        given = value.get("plugins")
        plugins: list[Any] = given if isinstance(given, list) else []
        for index, plugin in enumerate(plugins):
            if isinstance(plugin, dict):
                self._plugin(plugin, f"plugins[{index}]", report, version or "1.1.0", name)
        chain = [(plugin, report, f"plugins[{index}].type") for index, plugin in enumerate(plugins)]
        parts: list[Report] = []
        if name and not identifier_fault(name) and value.get("loadOnlyInlinedPlugins") is not True:
            for part in netlist.files(os.path.join(folder, name), (".conf",)):
                parts.append(own := Report(part))
                found = parse(part, own)
                if found is not None:
                    self._plugin(found, "", own, version or "1.1.0", name)
                    chain.append((found, own, "type"))
        lint_rules.order(chain)
        for own in parts:
            report.findings += own.findings

    def _plugin(self, plugin: dict[str, Any], path: str, report: Report, version: str, name: str) -> None:
        """One plugin's configuration: its schema and its IPAM's when we have them, what ADD refuses, the rules."""
        lint_rules.executables(plugin, path, report, self._plugin_path)
        plugin = self._meant(plugin)
        kind = get(plugin, "type")
        schema = load(kind) if isinstance(kind, str) and kind != "host-local" else None
        unfit: list[Violation] = []
        if schema is not None:
            plugin = spelled(plugin, schema, path, report)
            unfit += violations(plugin, schema, path)
        if not path:  # a file of its own: the part of the list's schema that every plugin shares
            common = violations(plugin, load("network-list")["$defs"]["plugin"], path)
            for one in common:
                (report.warning if one.path.startswith("dns.nameservers[") else report.error)(*one)
        ipam = get(plugin, "ipam")
        if isinstance(ipam, dict) and get(ipam, "type") == "host-local":
            inner = join(path, "ipam")
            ipam = spelled(ipam, load("host-local"), inner, report)
            unfit += violations(ipam, load("host-local"), inner)
            plugin = {**plugin, "ipam": ipam}
        found = lint_refusals.of({**plugin, "name": name}, version)
        fits = report.sound(path) and not _take(found, unfit, path, report)
        lint_rules.reserved_keys(plugin, path, report)
        lint_rules.capabilities(plugin, path, report)
        self.plugins.append(lint_folder.Plugin(report, name, path, found))
        if fits:
            lint_rules.plugin(plugin, path, report, found)

    def _meant(self, plugin: dict[str, Any]) -> dict[str, Any]:
        """The configuration with the names of the plugins that its types start, which may be copies under other names."""
        meant = {key: self._meant(found) if _is_ipam(key, found) else found for key, found in plugin.items()}
        for key, kind in plugin.items():
            if key.casefold() == "type" and isinstance(kind, str):
                meant[key] = plugin_behind(kind, self._plugin_path)
        return meant


def _is_ipam(key: str, found: Any) -> bool:
    return key.casefold() == "ipam" and isinstance(found, dict)


def _take(found: lint_refusals.Found, unfit: list[Violation], path: str, report: Report) -> bool:
    """Report what is refused as errors, in the schema's words where it has some, and its other violations as warnings.

    Whether something does not fit the schema, so that nothing more can be read there.
    """
    refused: dict[str, tuple[str, str]] = {}
    for error in found.refused:
        where, message, remedy = lint_refusals.place(error, "peers")
        refused.setdefault(join(path, where), (message, remedy))
    for one in unfit:
        is_refused = refused.pop(one.path, None) is not None
        (report.error if is_refused else report.warning)(*one)
    told = {one.path for one in unfit}
    for where, (message, remedy) in refused.items():
        if where not in told:
            report.error(where, message, remedy or "change it to what is expected, or leave the key out")
    return bool(unfit)


def _word(key: str, found: Any, report: Report) -> Any:
    """A flag of the list; runtimes take "true" and "false" in quotes too."""
    if key not in LIST_FLAGS or str(found).lower() not in ("true", "false"):
        return found
    meant = str(found).lower() == "true"
    if found is not meant:
        message = f"expected {str(meant).lower()}, found {jsonio.shown(found)}, which only some programs take"
        report.warning(key, message, "write it without quotes")
    return meant
