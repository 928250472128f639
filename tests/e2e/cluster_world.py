"""A node of a cluster for one test: its underlay, the members that its agent is told of, and independent eyes on what
the agent makes of them (`ip -j`, `bridge -j`).

The other nodes need not exist: what this one holds for them is a matter of its own kernel.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, ClassVar

from tests.e2e.agent_world import Agent
from tests.e2e.world import Node, wait_same, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from tests.e2e.world import Way

UNDERLAY = "under0"
MEMBERS = "/run/members.json"
NETWORK = "/run/net.conflist"
SUBNETS = "/run/cnikit/subnets/pods.env"
# Far less than the minute after which everything is looked at anyway, and far more than healing takes.
SOON = 15.0


def member(number: int, **changes: Any) -> dict[str, Any]:
    """The node with this number: both families, an address and a subnet of each."""
    high, low = divmod(number, 250)
    described = {
        "name": f"node{number}",
        "publicIP": f"192.0.{2 + high}.{low}",
        "publicIPv6": f"2001:db8::{number:x}",
        "subnets": [f"10.{244 + (number >> 8)}.{number & 255}.0/24", f"fd00:244:0:{number:x}::/64"],
    }
    return {key: value for key, value in (described | changes).items() if value is not None}


# The nodes of most tests: this one and three others, which need not exist.
PEERS = 3
EVERYONE = [member(number) for number in range(1, PEERS + 2)]


class ClusterNode:
    """Node 1 with its agent. Use it as a context manager. `shared` are those that several tests have in turn (`settled`)."""

    shared: ClassVar[list[ClusterNode]] = []

    def __init__(self, way: Way, kind: str, members: Sequence[dict[str, Any]], **options: Any) -> None:
        self.node = Node(way)
        self.agent: Agent | None = None
        self.node.run("ip", "link", "add", UNDERLAY, "type", "veth", "peer", "name", "wire")
        self.node.run("ip", "link", "set", "wire", "up")
        self.raise_underlay()
        plugin = {
            "type": kind, "network": "10.244.0.0/14", "ipv6Network": "fd00:244::/48", "nodeName": "node1",
            "membership": {"source": "static", "file": MEMBERS}, "ipam": {"type": "host-local"}, **options,
        }  # fmt: skip
        network = {"cniVersion": "1.1.0", "name": "pods", "plugins": [plugin]}
        self.node.path(NETWORK).write_text(json.dumps(network))
        self.tell(members)

    def __enter__(self) -> ClusterNode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if self.agent is not None:
                if value is not None:
                    print(self.agent.log()[-6000:])
                self.agent.forget()
        finally:
            self.node.close()

    def raise_underlay(self) -> None:
        self.node.run("ip", "link", "set", UNDERLAY, "up")
        self.node.run("ip", "addr", "replace", "192.0.2.1/22", "dev", UNDERLAY)
        self.node.run("ip", "addr", "replace", "2001:db8::1/64", "dev", UNDERLAY, "nodad")

    def tell(self, members: Sequence[dict[str, Any]]) -> None:
        """Write the members down, as an administrator's tool does."""
        new = self.node.path(MEMBERS + ".new")
        new.write_text(json.dumps({"nodes": list(members)}))
        new.rename(self.node.path(MEMBERS))

    def start(self, *options: str, **spawning: Any) -> Agent:
        self.agent = Agent(self.node, "--network", NETWORK, *options, **spawning).ready()
        return self.agent

    def log(self) -> str:
        """The agent's."""
        return self.agent.log() if self.agent is not None else ""

    # What the kernel holds

    def routes(self) -> dict[str, tuple[Any, ...]]:
        """Our routes with the link and the gateway that they lead to."""
        found = {}
        for family in ("-4", "-6"):
            for route in self.node.ip(family, "route", "show", "proto", "205"):
                found[route["dst"]] = (
                    route.get("dev"),
                    route.get("gateway"),
                    "onlink" in route["flags"],
                    "nhid" in route,
                )
        return found

    def neighbours(self) -> dict[tuple[str, str], str]:
        found = {}
        for entry in self.node.ip("neigh", "show", "nud", "permanent"):
            if entry["dev"].startswith("cnik"):
                found[entry["dev"], entry["dst"]] = entry["lladdr"]
        return found

    def fdb(self) -> dict[tuple[str, str], str]:
        found = {}
        for entry in self.node.bridge("fdb", "show"):
            if "dst" in entry:
                found[entry["ifname"], entry["mac"]] = entry["dst"]
        return found

    def nexthops(self) -> set[tuple[str, str]]:
        return {(one["dev"], one["gateway"]) for one in self.node.ip("nexthop", "show", "proto", "205")}

    def devices(self) -> dict[str, tuple[Any, ...]]:
        found = {}
        for link in self.node.ip("addr", "show", "type", "vxlan"):
            if not link:
                continue
            data = link["linkinfo"]["info_data"]
            addresses = sorted(one["local"] for one in link["addr_info"] if one["scope"] == "global")
            local = data.get("local") or data.get("local6")
            found[link["ifname"]] = (
                link["address"], link["mtu"], "UP" in link["flags"], data["id"], data["port"], local, data["link"],
                data["learning"], addresses,
            )  # fmt: skip
        return found

    def held(self) -> dict[str, Any]:
        """All of it."""
        return {
            "routes": self.routes(),
            "neighbours": self.neighbours(),
            "fdb": self.fdb(),
            "nexthops": self.nexthops(),
            "devices": self.devices(),
        }

    def metric(self, name: str) -> float:
        """One of the agent's, the sum over its labels."""
        page = self.node.run("curl", "-s", "--unix-socket", "/run/cnikit/agent-http.sock", "http://agent/metrics")
        lines = [line for line in page.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
        assert lines, f"no {name} in {page}"
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def wait_for_routes(self, count: int) -> None:
        wait_until(lambda: len(self.routes()) == count, f"{count} routes", SOON)

    def wait_for(self, wanted: dict[str, Any]) -> None:
        """Until the kernel holds just this."""
        wait_same(self.held, wanted, "the kernel holds what it held", SOON)


@contextlib.contextmanager
def settled(way: Way, kind: str, **options: Any) -> Iterator[ClusterNode]:
    """A node for several tests, whose agent has made the way to all others."""
    with ClusterNode(way, kind, EVERYONE, **options) as made:
        made.start()
        made.wait_for_routes(2 * PEERS)
        ClusterNode.shared.append(made)
        try:
            yield made
        finally:
            ClusterNode.shared.remove(made)
