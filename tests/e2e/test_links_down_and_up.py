"""A link of a pod goes down and comes up again: the kernel takes routes and IPv6 addresses away with it, and the pod is
reached again soon, over both families.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.cluster_world import NETWORK, ClusterNode, member
from tests.e2e.underlay import V4, V6, add, address, delete
from tests.e2e.world import Way, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.world import Pod

BOTH = (V4, V6)
SECOND = 1.0


@pytest.fixture(scope="module", params=["routed", "bridged"])
def world(request: pytest.FixtureRequest, bin_dir: Path) -> Iterator[ClusterNode]:
    # The launchers find the agent that the test has started.
    with ClusterNode(
        Way("launchers", bin_dir), "vxlan", [member(1), member(2)], attachment=request.param, ipMasq=True
    ) as made:
        made.start()
        made.wait_for_routes(2)
        yield made


@pytest.fixture(scope="module")
def pod(world: ClusterNode) -> Pod:
    made = world.node.pod()
    add(made, configuration(world))
    return made


def configuration(world: ClusterNode) -> dict[str, Any]:
    """The plugin's, as the runtime makes it of the list."""
    network: dict[str, Any] = json.loads(world.node.path(NETWORK).read_text())
    return {**network["plugins"][0], "name": network["name"], "cniVersion": network["cniVersion"]}


def host_end(pod: Pod) -> str:
    index = pod.ip("link", "show", "eth0")[0]["link_index"]
    return next(name for name, link in pod.node.links().items() if link["ifindex"] == index)


def reached(pod: Pod) -> bool:
    """From the node and to it, over both families."""
    pings = [("ping", "-n", "-c1", "-W1", address(pod, family)) for family in BOTH]
    gateways = ("10.244.1.1", "fd00:244:0:1::1")
    inside = [("ip", "netns", "exec", pod.name, "ping", "-n", "-c1", "-W1", gateway) for gateway in gateways]
    return all(pod.node.attempt(*argv).ok for argv in pings + inside)


def state(pod: Pod, link: str) -> dict[str, Any]:
    """What the node has of it."""
    node = pod.node
    addresses = node.ip("addr", "show", "dev", link)[0]["addr_info"]
    return {
        "addresses": sorted((one["local"], one["prefixlen"]) for one in addresses if not one.get("tentative")),
        "routes": sorted(
            one["dst"] for family in ("-4", "-6") for one in node.ip(family, "route", "show", "dev", link)
        ),
    }


@pytest.mark.parametrize("which", ["port", "bridge"])
def test_a_link_down_and_up(world: ClusterNode, pod: Pod, which: str) -> None:
    link = "cni0" if which == "bridge" and "cni0" in world.node.links() else host_end(pod)
    assert reached(pod)
    before = state(pod, link)

    world.node.run("ip", "link", "set", link, "down")
    world.node.run("ip", "link", "set", link, "up")

    wait_until(lambda: state(pod, link) == before, f"{link} has what it had: {before}", SECOND)
    assert reached(pod)


@pytest.mark.parametrize("world", ["routed"], indirect=True)
class TestRouted:
    @pytest.mark.parametrize(
        "command",
        [
            "route del 10.244.1.2",
            "-6 route del fd00:244:0:1::2",
            "addr del fd00:244:0:1::1/128",
            "addr del 10.244.1.1/32",
        ],
    )
    def test_what_somebody_deletes(self, world: ClusterNode, pod: Pod, command: str) -> None:
        link = host_end(pod)
        before = state(pod, link)

        world.node.run("ip", *command.split(" "), "dev", link)

        wait_until(lambda: state(pod, link) == before, f"{link} has what it had: {before}", SECOND)
        assert reached(pod)

    def test_while_there_was_no_agent(self, world: ClusterNode, pod: Pod) -> None:
        link = host_end(pod)
        before = state(pod, link)
        assert world.agent is not None
        world.agent.stop()
        world.agent.forget()
        for way in ("down", "up"):
            world.node.run("ip", "link", "set", link, way)

        world.start()

        wait_until(lambda: state(pod, link) == before, f"{link} has what it had: {before}")
        assert f"given back to 1 links of pods: {link}" in world.agent.log()

    def test_pods_that_come_and_go_are_nothing_to_restore(self, world: ClusterNode, pod: Pod) -> None:
        agent = world.agent
        assert agent is not None
        before = agent.log().count("given back")
        routes = world.node.ip("route")
        for _ in range(5):
            other = world.node.pod()
            add(other, configuration(world))
            delete(other, configuration(world))

        world.node.run("ip", "link", "set", host_end(pod), "down")
        world.node.run("ip", "link", "set", host_end(pod), "up")

        wait_until(lambda: agent.log().count("given back") > before, "the pod that stayed is restored")
        assert agent.log().count("given back") == before + 1
        assert world.node.ip("route") == routes
