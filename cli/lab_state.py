"""What is known of a lab between two commands: `state.json` in its folder, replaced as a whole."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from typing import Any

from cli.lab_plan import LabError, Plan
from cli.lab_process import Process


@dataclass(frozen=True)
class State:
    """The plan, and what became of it. `complete` when `up` has come to its end.

    `processes` are the agents by their node's name, and `etcd`; `addresses` those of each pod; `killed` the nodes that
    are gone; `bin_dir` where the plugins are; `command` what a node's agent is a subcommand of.
    """

    plan: Plan
    bin_dir: str
    command: list[str]
    complete: bool = False
    processes: dict[str, Process] = field(default_factory=dict)
    addresses: dict[str, list[str]] = field(default_factory=dict)
    killed: tuple[str, ...] = ()

    def changed(self, **changes: Any) -> State:
        return replace(self, **changes)

    def write(self, folder: str) -> None:
        """Put it in place of what is there."""
        value = {
            "plan": self.plan.described(),
            "bin_dir": self.bin_dir,
            "command": self.command,
            "complete": self.complete,
            "processes": {name: [process.pid, process.started] for name, process in self.processes.items()},
            "addresses": self.addresses,
            "killed": list(self.killed),
        }
        with open(f"{folder}/state.json.new", "w") as file:
            json.dump(value, file, indent=2)
        os.replace(f"{folder}/state.json.new", f"{folder}/state.json")


def read(folder: str) -> State | None:
    """The state of the lab in a folder; None when none was written yet. LabError when it cannot be understood."""
    try:
        with open(f"{folder}/state.json") as file:
            value = json.load(file)
        return State(
            Plan.read(value["plan"]),
            value["bin_dir"],
            value["command"],
            value["complete"],
            {name: Process(*both) for name, both in value["processes"].items()},
            value["addresses"],
            tuple(value["killed"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{folder}/state.json: expected what this version of `lab up` writes, found {error!r}: "
            f"`cnikit lab down --name {os.path.basename(folder)}` removes that lab"
        ) from None
