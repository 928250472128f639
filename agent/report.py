"""What is told of a call that has come to its end."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.service import Served


class Reporter:
    """Given each call by the thread that served it."""

    def __call__(self, served: Served) -> None:
        environ, call = served.environ, served.call
        seconds: dict[str, float] = {}
        for step in served.steps.done:
            if step.depth == 0:
                seconds[step.kind] = seconds.get(step.kind, 0.0) + step.end - step.begin
        line = {
            "command": environ.get("CNI_COMMAND", ""),
            "plugin": served.plugin,
            "container": environ.get("CNI_CONTAINERID", ""),
            "ifname": environ.get("CNI_IFNAME", ""),
            "network": call.context.network if call else "",
            "outcome": served.outcome,
            "seconds": round(served.steps.end - served.steps.begin, 6),
            "steps": {kind: round(value, 6) for kind, value in seconds.items()},
        }
        if served.lines:
            line["lines"] = list(served.lines)
        sys.stderr.write(json.dumps(line) + "\n")
