"""Giving the links of routed pods back what they have lost, on the fake kernel: what goes wrong with one of them."""

from __future__ import annotations

import time
from functools import partial

from agent.pod_links import PodLinks
from cni import addr
from cni.kernel import ops
from cni.lock import Lock
from cni.record import Records
from tests.unit.calls import OTHER, Node
from tests.unit.test_pod_network_fake import conf
from tests.unit.test_pod_network_fake import node as node  # noqa: PLC0414 - a fixture


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, text: str, **_: object) -> None:
        self.lines.append(text)


def test_another_programs_route_to_a_pod_keeps_nobody_else_from_being_restored(node: Node) -> None:
    assert node.call("host-gw", "ADD", conf(node, "host-gw"), "one").status == 0
    others = {
        **conf(node, "host-gw"),
        **node.network("10.244.1.3/24", "fd00:244:0:1::3/64", name="net"),
        "type": "host-gw",
    }
    assert node.call("host-gw", "ADD", others, "two", OTHER).status == 0
    first, second = (addr.pack(text) or b"" for text in ("10.244.1.2", "10.244.1.3"))
    with node.kernel.own() as host:
        eth0 = host.link("eth0")
        assert eth0 is not None
        host.apply(ops.route_replace(first, 32, index=eth0.index, protocol=3))
        led = next(route for route in host.routes() if route.dst == second)
        host.apply(ops.route_del(second, 32, protocol=3, metric=led.metric))
        log = Log()
        records = Records(str(node.run_dir), "net", partial(Lock, clock=time.monotonic), log.warning)
        links = PodLinks(host, [records], str(node.run_dir), log)  # type: ignore[arg-type]

        restored = [links.restore(None) for _ in range(2)]

        assert [len(names) for names in restored] == [1, 0]
        assert [route.oif for route in host.routes() if route.dst == first] == [eth0.index]
        assert second in {route.dst for route in host.routes()}
    (line,) = log.lines
    assert "address 10.244.1.2: expected no route to it on this node, found one over eth0" in line
