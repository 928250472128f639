"""What CHECK and STATUS of `bridge` find, against the executables.

Rows and tests marked `ours` are those where the reference is known to do otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.bridge_world import add, delete, dual, ours
from tests.e2e.world import LEASES, Answer, Node, Pod, network, wait_same

if TYPE_CHECKING:
    from collections.abc import Callable


def run_in(*argv: str) -> Callable[[Node, Pod, dict[str, Any]], None]:
    """A break-in of one `ip` command; POD and VETH stand for the pod's and the link's name."""

    def act(node: Node, pod: Pod, result: dict[str, Any]) -> None:
        words = {"POD": pod.name, "VETH": result["interfaces"][1]["name"]}
        node.run(*[words.get(word, word) for word in argv])

    return act


def steal_lease(node: Node, pod: Pod, _result: dict[str, Any]) -> None:
    assert pod.container_id in node.leases("net")["10.1.0.2"]
    node.path(f"{LEASES}/net/10.1.0.2").unlink()  # the file may be a hard link: writing into it would change others
    node.path(f"{LEASES}/net/10.1.0.2").write_bytes(b"somebody-else\r\neth0")


def flush_rules(node: Node, _pod: Pod, _result: dict[str, Any]) -> None:
    node.run("nft", "flush", "ruleset")


class TestCheck:
    """CHECK fails for each thing that somebody broke, and says what it expected."""

    BREAKS = [
        pytest.param(
            run_in("ip", "-n", "POD", "addr", "del", "10.1.0.2/16", "dev", "eth0"), ("10.1.0.2",), id="address"
        ),
        pytest.param(
            run_in("ip", "-n", "POD", "-6", "addr", "del", "fd00:1::2/64", "dev", "eth0"),
            ("fd00:1::2",),
            id="IPv6 address",
        ),
        pytest.param(run_in("ip", "-n", "POD", "route", "del", "default"), ("0.0.0.0", "10.1.0.1"), id="route"),
        pytest.param(
            run_in("ip", "-n", "POD", "link", "set", "eth0", "address", "02:00:00:00:00:99"),
            ("02:00:00:00:00:99",),
            id="MAC",
        ),
        pytest.param(run_in("ip", "-n", "POD", "link", "del", "eth0"), ("eth0",), id="link"),
        pytest.param(run_in("ip", "link", "set", "VETH", "nomaster"), ("cni0",), id="bridge port", marks=ours),
        pytest.param(run_in("ip", "link", "set", "VETH", "nomaster"), (), id="bridge port, any words"),
        pytest.param(run_in("ip", "link", "del", "cni0"), ("cni0",), id="bridge"),
        pytest.param(run_in("ip", "link", "set", "cni0", "down"), ("cni0", "up"), id="bridge down", marks=ours),
        pytest.param(
            run_in("ip", "addr", "del", "10.1.0.1/16", "dev", "cni0"), ("10.1.0.1",), id="gateway", marks=ours
        ),
        pytest.param(
            run_in("ip", "-n", "POD", "route", "del", "10.1.0.0/16"), ("10.1.0.0/16",), id="subnet", marks=ours
        ),
        pytest.param(
            run_in("bridge", "link", "set", "dev", "VETH", "state", "0"), ("disabled",), id="port", marks=ours
        ),
        pytest.param(
            run_in("bridge", "link", "set", "dev", "VETH", "hairpin", "off"), ("hairpin",), id="hairpin", marks=ours
        ),
        pytest.param(
            run_in("ip", "link", "set", "VETH", "address", "02:00:00:00:00:98"),
            ("02:00:00:00:00:98",),
            id="host MAC",
            marks=ours,
        ),
        pytest.param(
            run_in("ip", "-n", "POD", "link", "set", "eth0", "mtu", "1280"), ("1280", "1500"), id="MTU", marks=ours
        ),
        pytest.param(run_in("rm", f"{LEASES}/net/10.1.0.2", f"{LEASES}/net/fd00:1::2"), (), id="leases"),
        pytest.param(run_in("rm", f"{LEASES}/net/10.1.0.2"), ("10.1.0.2",), id="one lease", marks=ours),
        pytest.param(steal_lease, ("10.1.0.2", "somebody-else"), id="lease of another", marks=ours),
        pytest.param(flush_rules, (), id="masquerade", marks=ours),
        pytest.param(run_in("ip", "-n", "POD", "link", "set", "eth0", "down"), (), id="link down"),
    ]

    @pytest.mark.parametrize(("break_it", "parts"), BREAKS)
    def test_broken(
        self, node: Node, break_it: Callable[[Node, Pod, dict[str, Any]], None], parts: tuple[str, ...]
    ) -> None:
        pod = node.pod()
        options = {"ipMasq": True, "isGateway": True, "hairpinMode": True}
        result = add(node, pod, dual(**options))
        conf = dual(**options, prevResult=result)
        node.call("bridge", "CHECK", conf, pod).silent()

        break_it(node, pod, result)

        error = node.call("bridge", "CHECK", conf, pod).error
        assert all(part in error["msg"] + error.get("details", "") for part in parts), error

    @ours
    def test_a_route_in_another_table_is_fine(self, node: Node) -> None:
        """A later plugin (source based routing) moved it."""
        pod = node.pod()
        result = add(node, pod, network())
        node.run("ip", "-n", pod.name, "route", "del", "default")
        node.run("ip", "-n", pod.name, "route", "add", "default", "via", "10.1.0.1", "table", "100")

        node.call("bridge", "CHECK", network(prevResult=result), pod).silent()

    def test_it_changes_nothing(self, node: Node) -> None:
        pod = node.pod()
        result = add(node, pod, dual(ipMasq=True))
        before = node.snapshot()

        node.call("bridge", "CHECK", dual(ipMasq=True, prevResult=result), pod).silent()

        wait_same(node.snapshot, before, "CHECK changed something")

    def test_more_pods_do_not_disturb_it(self, node: Node) -> None:
        """A bridge's MAC may change when ports join; the first pod is still well."""
        pod = node.pod()
        result = add(node, pod, network())
        for _ in range(5):
            add(node, node.pod(), network())

        node.call("bridge", "CHECK", network(prevResult=result), pod).silent()


@ours
class TestStatus:
    """STATUS says no (50) when no ADD can succeed."""

    def status(self, node: Node, conf: dict[str, Any]) -> Answer:
        return node.call("bridge", "STATUS", conf)

    def test_exhausted(self, node: Node) -> None:
        conf = network(ipam={"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/30"}]]})
        self.status(node, conf).silent()
        pod = node.pod()
        add(node, pod, conf)

        assert self.status(node, conf).error["code"] == 50
        delete(node, pod, conf)
        self.status(node, conf).silent()

    def test_exhausted_may_be_ignored(self, node: Node) -> None:
        conf = network(ipam={"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/30"}]], "statusOnExhausted": False})
        add(node, node.pod(), conf)

        self.status(node, conf).silent()

    def test_no_such_ipam(self, node: Node) -> None:
        assert self.status(node, network(ipam={"type": "no-such-ipam"})).error["msg"]
