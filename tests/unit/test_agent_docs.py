"""docs/observability.md names every metric, every field of the log, every step, and every span's attribute."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from agent.http import MOST_CLIENTS, SECONDS
from agent.metrics import process_families
from agent.pools import MOST_POOLS
from agent.report import LEVELS, Account
from tests.unit.test_docs import cells

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/observability.md").read_text()


def section(title: str) -> str:
    found = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = [text for text in found if text.startswith(f"{title}\n")]
    return text


def literals(*files: str) -> set[str]:
    """Every string that stands in these files."""
    trees = [ast.parse((ROOT / "agent" / file).read_text()) for file in files]
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_metric_and_no_other() -> None:
    ours = {
        text
        for text in literals("cluster.py", "metrics.py", "pools.py", "main.py")
        if re.fullmatch(r"cnikit_[a-z_]+", text)
    }
    known = ours | {family.name for family in process_families()}
    assert len(known) > 12
    documented = {
        name.removesuffix("_total") for name in re.findall(r"`(cnikit_[a-z_]+)`", section("Health and metrics"))
    }
    assert documented == known


def test_every_field_of_the_log_and_no_other() -> None:

    fields = set(Account._fields) - {"at"}
    documented = set(cells(section("Log"))) - {"field"}
    assert documented == fields
    assert {"time", "level", "message"} <= set(re.findall(r"`([a-z]+)`", section("Log").split("|")[0]))
    for outcome in LEVELS:
        assert f"`{outcome}`" in section("Log")


def test_the_example_of_a_line_is_one() -> None:
    (example,) = re.findall(r"```json\n(.*?)\n```", section("Log"), re.DOTALL)
    line = json.loads(example)
    assert set(line) <= {"time", "level"} | set(Account._fields)
    assert set(line["steps"]) <= set(cells(section("Steps")))


def test_every_kind_of_step() -> None:
    kinds = set()
    for file in [*(ROOT / "agent").glob("*.py"), *(ROOT / "cni").glob("*.py")]:
        kinds |= set(re.findall(r'\b(?:_?steps|step|mark)\("([a-z]+)"', file.read_text()))
    assert {"queue", "ipam", "kernel"} <= kinds
    assert set(cells(section("Steps"))) == kinds


def test_every_attribute_of_a_span() -> None:
    attributes = {text for text in literals("tracing.py") if re.fullmatch(r"(cni|cnikit|k8s)\.[a-z_.]+", text)}
    assert len(attributes) > 10
    documented = set(re.findall(r"`((?:cni|cnikit|k8s)\.[a-z_.]+)`", section("Traces")))
    assert documented == attributes


def test_bounds() -> None:
    assert f"at most {MOST_CLIENTS} clients" in PAGE
    assert f"each has {SECONDS:g} s" in PAGE
    assert f"at\nmost {MOST_POOLS} networks" in PAGE
