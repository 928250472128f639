"""What bridge makes of its VLAN options on the running kernel, for tests/e2e/test_vlan.py.

For each case and each way to a bridge: a fresh node, two pods, then what `ip`, `bridge` and `ping` show. It only
looks; the test judges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.e2e.world import DUAL_STACK, Node, network

if TYPE_CHECKING:
    from tests.e2e.world import Answer, Pod, Way

CASES: dict[str, dict[str, Any]] = {
    "vlan": {"vlan": 100, "isDefaultGateway": False},
    "trunk": {"vlanTrunk": [{"minID": 101, "maxID": 103}, {"id": 200}], "isDefaultGateway": False},
    "both": {"vlan": 100, "vlanTrunk": [{"id": 200}], "isDefaultGateway": False},
    "preserve": {"vlan": 100, "preserveDefaultVlan": True, "isDefaultGateway": False},
    "gateway": {"vlan": 100, "ipMasq": True, "ipam": DUAL_STACK},
    "layer2": {"vlan": 100, "disableContainerInterface": True, "ipam": {}, "isDefaultGateway": False},
}
GATEWAYS = {"gateway": ["10.1.0.1", "fd00:1::1"]}


def observe(way: Way, case: str) -> dict[str, Any]:
    conf = network(**CASES[case])
    with Node(way) as node:
        first, second = node.pod("first"), node.pod("second")
        before = node.snapshot()
        added = [node.call("bridge", "ADD", conf, pod) for pod in (first, second)]
        if not all(answer.ok for answer in added):
            return {"failed": [told(answer) for answer in added]}
        results = [answer.result for answer in added]
        seen = {
            "results": results,
            "vlans": {port["ifname"]: port["vlans"] for port in node.bridge("vlan", "show")},
            "links": links(node),
            "pod": {name: link["flags"] for name, link in node.links(first).items()},
            "pings": {target: ping(node, first, target) for target in targets(case, results)},
        }
        checks = [
            node.call("bridge", "CHECK", {**conf, "prevResult": r}, p)
            for r, p in zip(results, (first, second), strict=True)
        ]
        deleted = [
            node.call("bridge", "DEL", {**conf, "prevResult": results[0]}, first),
            node.call("bridge", "DEL", conf, second),
        ]
        after = node.snapshot()
        return {
            **seen,
            "check": [told(answer) for answer in checks],
            "del": [told(answer) for answer in deleted],
            "left": {key: after[key] for key in ("leases", "records", "neighbours") if after[key] != before[key]},
            "links after": sorted(after["links"]),
            "elements after": [item["set"].get("elem") for item in after["nft"] if "set" in item],
        }


def refusal(way: Way) -> dict[str, Any]:
    """A bridge that does not filter VLANs, made by somebody else."""
    with Node(way) as node:
        pod = node.pod()
        node.run("ip", "link", "add", "cni0", "type", "bridge", "vlan_filtering", "0")
        before = node.snapshot()
        answer = node.call("bridge", "ADD", network(vlan=100), pod)
        return {"answer": told(answer), "unchanged": node.snapshot() == before}


def told(answer: Answer) -> list[Any]:
    return [answer.status, answer.stdout.decode(), answer.stderr]


def links(node: Node) -> dict[str, Any]:
    return {
        name: {
            "kind": link.get("linkinfo", {}).get("info_kind", ""),
            "mtu": link["mtu"],
            "up": "UP" in link["flags"],
            "master": link.get("master", ""),
            "filters": link.get("linkinfo", {}).get("info_data", {}).get("vlan_filtering"),
        }
        for name, link in node.links().items()
    }


def targets(case: str, results: list[dict[str, Any]]) -> list[str]:
    """The gateways, and the second pod."""
    return GATEWAYS.get(case, []) + [ip["address"].partition("/")[0] for ip in results[1].get("ips", [])]


def ping(node: Node, pod: Pod, target: str) -> bool:
    """Whether an answer comes to the very first packet."""
    return node.attempt("ip", "netns", "exec", pod.name, "ping", "-n", "-c", "1", "-W", "10", target).ok
