"""A vxlan network with `ipMasq` on a kernel that has no nft_fib, for tests/e2e/test_overlay_services.py. It only looks; the
test judges.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.services_world import BOTH, services, source_of_a_client, source_of_the_node
from tests.e2e.underlay import add

if TYPE_CHECKING:
    from tests.e2e.world import Answer, Way

MODULES = ("nft_fib", "nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6")
RULE = "table inet t { chain c { type nat hook postrouting priority 100; fib saddr type local masquerade; }; }"


def observe(way: Way) -> dict[str, Any]:
    """Only for the virtual machine, whose /etc is its own."""
    assert "rootfstype=virtiofs" in Path("/proc/cmdline").read_text(), "expected to run in the virtual machine"
    lines = "".join(f"install {module} /bin/false\n" for module in MODULES)  # as if the files were not there
    folder = Path("/etc/modprobe.d")
    folder.mkdir(exist_ok=True)
    (folder / "no-fib.conf").write_text(lines)
    try:
        return _observe(way)
    except (AssertionError, OSError) as error:  # the machine's other tests are to be judged all the same
        return {"failed": f"{type(error).__name__}: {error}"}


def _observe(way: Way) -> dict[str, Any]:
    with services(way) as world:
        node, pod = world.node, world.node.pod()
        fib = node.attempt("nft", RULE).stderr
        result = add(pod, world.conf)
        return {
            "fib": fib,
            "status": told(node.call("vxlan", "STATUS", world.conf)),
            "check": told(node.call("vxlan", "CHECK", {**world.conf, "prevResult": result}, pod)),
            "of the node": [source_of_the_node(world, family) for family in BOTH],
            "of a client": [source_of_a_client(world, family) for family in BOTH],
        }


def told(answer: Answer) -> list[Any]:
    return [answer.status, answer.stdout.decode()]
