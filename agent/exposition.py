"""The metrics page: families of prometheus_client in Prometheus' text format.

prometheus_client can write that itself, but only the module with its HTTP server can, which takes 9 of the 30 MiB that
this process may have. The format is a line for each sample.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType

    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPED = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})
_ESCAPED_HELP = str.maketrans({"\\": "\\\\", "\n": "\\n"})


class Page:
    """What `/metrics` answers. `settle` has all calls counted that have ended; then the `collectors` are asked."""

    def __init__(self, settle: Callable[[], None], *collectors: Callable[[], Iterable[Metric]]) -> None:
        self._settle = settle
        self._collectors = collectors
        self._guard = threading.Lock()

    def __call__(self) -> bytes:
        with self._guard:
            self._settle()
            pieces = []
            for collector in self._collectors:
                for family in collector():
                    pieces.append(text(family))
                    time.sleep(0)  # lets a call go first that waits for the interpreter
            return "".join(pieces).encode("utf-8", "replace")


def text(family: Metric) -> str:
    """A family's lines."""
    name = f"{family.name}_total" if family.type == "counter" else family.name
    lines = [f"# HELP {name} {family.documentation.translate(_ESCAPED_HELP)}", f"# TYPE {name} {family.type}"]
    for sample in family.samples:
        labels = ",".join(f'{key}="{value.translate(_ESCAPED)}"' for key, value in sample.labels.items())
        lines.append(
            f"{sample.name}{{{labels}}} {_number(sample.value)}" if labels else f"{sample.name} {_number(sample.value)}"
        )
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def lean(module: str) -> ModuleType:
    """A module of prometheus_client, without the package's `__init__`, which imports the HTTP server, TLS and e-mail."""
    from importlib import import_module
    from importlib.util import find_spec, module_from_spec

    if "prometheus_client" in sys.modules:
        return import_module(f"prometheus_client.{module}")
    spec = find_spec("prometheus_client")
    assert spec is not None
    sys.modules["prometheus_client"] = module_from_spec(spec)  # the package with its path, but never executed
    try:
        return import_module(f"prometheus_client.{module}")
    finally:
        del sys.modules["prometheus_client"]
