"""Serves one plugin call in this process, from source, with a kernel that fails at a chosen verb.

    FAIL_AT=7 CNI_COMMAND=ADD ... python in_process.py bridge < configuration

Answers as the executable does; the last line of stderr is JSON: the verbs so far and the one that failed.
"""

from __future__ import annotations

import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from cli.registry import PLUGINS
from cni import dispatch
from cni.kernel.background import fork_background
from cni.kernel.linux import Kernel
from cni.main import Stdin
from cni.testing.faulty_kernel import FaultyKernel
from cni.world import World


def log(line: str) -> None:
    print(line, file=sys.stderr)


def deliver(_status: int, data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
    if os.environ.get("FAIL_AT") == "answer":
        raise BrokenPipeError(32, "Broken pipe")


def main() -> None:
    at = os.environ.pop("FAIL_AT", "0")
    kernel = FaultyKernel(Kernel(time.monotonic, fork_background), int(at) if at.isdigit() else 0)
    os.environ["FAIL_AT"] = at
    world = World(
        PLUGINS,
        kernel,
        time.monotonic,
        log,
        own_plugin=lambda path: os.path.basename(path) if os.path.basename(path) in PLUGINS else None,
        boot_id=lambda: "11111111-2222-3333-4444-555555555555",
    )
    try:
        status = dispatch.serve(world, sys.argv[1], dict(os.environ), Stdin(0), deliver)
    except BrokenPipeError:
        status = 1
    print(json.dumps({"verbs": kernel.verbs, "failed": kernel.failed}), file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
