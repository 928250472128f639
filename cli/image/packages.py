"""The Python packages that are needed: of pyproject.toml's dependencies, with what they need in turn."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from importlib.metadata import DistributionFinder
from typing import TYPE_CHECKING

from cli.identity import ROOT
from cli.image import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import Distribution

PROJECT = "cnikit"
# What a licence is called that stands among a package's metadata and not in its folder `licenses`.
_TERMS = re.compile(r"(?i)(licen[cs]e|copying|notice|copyright)")


def required(*more: str) -> set[str]:
    """The names, normalized, of the packages that the command needs, and of `more` with what these need.

    They are looked for where this program's own packages are, whose versions are those of requirements.lock.
    """
    from packaging.requirements import Requirement

    waiting = [Requirement(text) for text in (*_dependencies(), *more)]
    extras: dict[str, set[str]] = {}
    while waiting:
        requirement = waiting.pop()
        name = normalized(requirement.name)
        if name in extras and requirement.extras <= extras[name]:
            continue
        extras.setdefault(name, set()).update(requirement.extras)
        for text in distribution(name).requires or ():
            one = Requirement(text)
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras[name])):
                waiting.append(one)
    return set(extras)


def _dependencies() -> list[str]:
    """What our own project depends on, said by the checkout or by what is installed."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        return list(tomllib.loads(project.read_text())["project"]["dependencies"])
    return [text for text in distribution(PROJECT).requires or () if "extra ==" not in text]


def packages_beside() -> list[str]:
    """The importable names of the packages that are installed and not required, as those of tests and of building.

    A library imports some of them where they happen to be there, and so would bring them into the built command.
    """
    wanted = {PROJECT, *required()}
    beside = {
        name
        for name, owners in importlib.metadata.packages_distributions().items()
        if not wanted & {normalized(owner) for owner in owners}
    }
    return sorted(name for name in beside if name.isidentifier())


def distribution(name: str, folder: str = "") -> Distribution:
    """A package that is installed, in `folder` or where this program's own are. ImageError when it is not."""
    places = {"path": [folder]} if folder else {}
    for found in importlib.metadata.distributions(context=DistributionFinder.Context(name=name, **places)):
        return found
    raise ImageError(
        f"expected the Python package {name} in {folder or 'this environment'}, found none: call make dist"
    )


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    """The exact version of each package, by its normalized name."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {normalized(name): version for name, version in pairs}


def terms(found: Distribution) -> Iterator[tuple[str, bytes]]:
    """The licence files of a package, by name; its metadata when it has none, which at least name the licence."""
    files = [file for file in found.files or () if file.parts[0].endswith(".dist-info")]
    named = [file for file in files if "licenses" in file.parts[1:-1] or _TERMS.match(file.name)]
    for file in named or [file for file in files if file.name == "METADATA"]:
        yield "/".join(file.parts[1:]), file.locate().read_bytes()  # type: ignore[attr-defined]
