"""All that is looked at in the virtual machine (vm.py), as JSON on stdout.

python -m tests.kernel_vm.look OUR_BIN_DIR PEER_BIN_DIR
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.e2e.agent_world import AgentWay, beside
from tests.e2e.world import Way
from tests.kernel_vm import clock, no_fib, vlan


def main() -> None:
    bin_dir, peers = map(Path, sys.argv[1:])
    one_shot, agent = Way("one-shot", bin_dir), AgentWay("agent", bin_dir, beside(bin_dir))
    ways = (one_shot, agent, Way("reference", peers))
    found = {
        "kernel": os.uname().release,
        "cases": {case: {way.name: vlan.observe(way, case) for way in ways} for case in vlan.CASES},
        "refusal": {way.name: vlan.refusal(way) for way in (one_shot, agent)},
        "clock": {way.name: clock.observe(way) for way in (one_shot, agent)},
        "without nft_fib": no_fib.observe(one_shot),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
