"""Does every pod reach every other? A server and a client on each node, and all the ways from one to the other.

`assert failures(cluster) == []`: each failure is a sentence with from, to, what was expected and what was found. The
servers answer with the name of their node and with the address that they saw, so that a connection that another pod
took, or whose source was replaced on the way between pods, is a failure too.
"""

from __future__ import annotations

import ipaddress
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.artefacts.pods import BUSYBOX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.kube.cluster import Cluster, Node

PORT, HOST_PORT, NODE_PORT = 8080, 18080, 30080
SERVICE_NAME = "web.default.svc.cluster.local"
_SERVER = f"""
mkdir -p /www/cgi-bin
printf '#!/bin/sh\\nprintf "Content-Type: text/plain\\\\n\\\\n%%s %%s" "%s" "$REMOTE_ADDR"\\n' "$NODE" > /www/cgi-bin/who
chmod +x /www/cgi-bin/who
exec httpd -f -p {PORT} -h /www
"""
# Prints a line for each check: its number, the status, and what the command printed, in one line. They run at the same
# time: one that fails takes its whole timeout.
_SHELL = """
check() {
    number=$1; shift
    printed=$("$@" 2>&1 < /dev/null); status=$?
    printf '%s\\t%s\\t%s\\n' "$number" "$status" "$(echo "$printed" | tr '\\n\\t' '  ')"
}
[ ! -e /sys/class/net/eth0/mtu ] || mtu=$(cat /sys/class/net/eth0/mtu)
"""
_WGET = "timeout 10 wget -qO- {}"
_CURL = "curl --silent --show-error --max-time 10 {}"


class Pod(NamedTuple):
    name: str
    node: str
    addresses: tuple[str, ...]


class Check(NamedTuple):
    """A command in a shell, and what must be in the words that it prints."""

    what: str
    command: str
    expected: tuple[str, ...] = ()


def failures(cluster: Cluster) -> list[str]:
    """All that does not work, as sentences. Deploys servers and clients first, if they are not there."""
    cluster.apply(_daemon_set("web", _SERVER, [{"containerPort": PORT, "hostPort": HOST_PORT}]))
    cluster.apply(_daemon_set("client", "exec sleep 1000000000", []), _service())
    for name in ("ds/web", "ds/client"):
        cluster.rolled_out(name)
    cluster.rolled_out("deploy/coredns", "kube-system")
    nodes = cluster.nodes()
    servers, clients = (_pods(cluster, name) for name in ("web", "client"))
    assert len(servers) == len(clients) == len(nodes), f"expected a pod of each kind on each node\n{cluster.state()}"
    services = cluster.get("service", "web")["spec"]["clusterIPs"]

    def from_pod(pod: Pod) -> list[str]:
        checks = list(_from_pod(pod, servers, nodes, services))
        return _failed(f"pod on {pod.node}", checks, cluster.in_pod(pod.name, "sh", input=_script(checks)))

    def from_node(node: Node) -> list[str]:
        checks = list(_from_node(servers, services))
        return _failed(f"node {node.name}", checks, cluster.on_node(node.name, "bash", input=_script(checks)))

    with ThreadPoolExecutor() as pool:
        found = [*pool.map(from_pod, clients), *pool.map(from_node, nodes)]
    return [failure for one in found for failure in one]


def _from_pod(pod: Pod, servers: list[Pod], nodes: list[Node], services: list[str]) -> Iterator[Check]:
    for server in servers:
        for address in server.addresses:
            ours = _same_family(pod.addresses, address)
            yield Check(f"pod {address} on {server.node}, ping", f"ping -c 1 -W 10 {address}")
            # As large as the link allows, so that a path that is narrower than it says is noticed.
            headers = 28 if _version(address) == 4 else 48
            large = f"ping -c 1 -W 10 -s $((mtu - {headers})) {address}"
            yield Check(f"pod {address} on {server.node}, ping of the link's size", large)
            yield _http(f"pod {address} on {server.node}, HTTP", _url(address, PORT), server.node, ours)
    for address in services:
        yield _http(f"service {address}, HTTP", _url(address, 80), _same_family(pod.addresses, address))
    yield _http(f"service by name {SERVICE_NAME}, HTTP", _url(SERVICE_NAME, 80))
    for node in nodes:
        for address in node.addresses:
            yield Check(f"node {node.name} {address}, ping", f"ping -c 1 -W 10 {address}")
            yield _http(f"hostPort of {node.name} {address}, HTTP", _url(address, HOST_PORT), node.name)
            yield _http(f"NodePort of {node.name} {address}, HTTP", _url(address, NODE_PORT))


def _from_node(servers: list[Pod], services: list[str]) -> Iterator[Check]:
    for server in servers:
        for address in server.addresses:
            what = f"pod {address} on {server.node}, HTTP"
            yield Check(what, _CURL.format(_url(address, PORT)), (server.node,))
    for address in services:
        yield Check(f"service {address}, HTTP", _CURL.format(_url(address, 80)))


def _http(what: str, url: str, *expected: str) -> Check:
    return Check(what, _WGET.format(url), expected)


def _script(checks: list[Check]) -> str:
    lines = [f"check {number} sh -c {shlex.quote(check.command)} &" for number, check in enumerate(checks)]
    return "\n".join([_SHELL, "export mtu", *lines, "wait", ""])


def _failed(where: str, checks: list[Check], printed: str) -> list[str]:
    answers = {
        int(number): (status, text) for number, status, text in (line.split("\t") for line in printed.splitlines())
    }
    assert sorted(answers) == list(range(len(checks))), f"{where}: expected {len(checks)} answers\n{printed}"
    found = []
    for number, check in enumerate(checks):
        status, text = answers[number]
        wrong = [word for word in check.expected if word not in map(_plain, text.split())]
        if status != "0" or wrong:
            expected = " and ".join(["status 0", *check.expected])
            found.append(f"{where} to {check.what}: expected {expected}, found status {status}, {text!r}")
    return found


def _plain(word: str) -> str:
    """An address as the API server writes it: busybox has [fd00::1] and ::ffff:10.1.0.1."""
    try:
        address = ipaddress.ip_address(word.strip("[]"))
    except ValueError:
        return word
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version


def _same_family(addresses: tuple[str, ...], other: str) -> str:
    return next(address for address in addresses if _version(address) == _version(other))


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/cgi-bin/who" if ":" in host else f"http://{host}:{port}/cgi-bin/who"


def _pods(cluster: Cluster, app: str) -> list[Pod]:
    items = [
        item for item in cluster.get("pods", f"--selector=app={app}") if "deletionTimestamp" not in item["metadata"]
    ]
    return [
        Pod(
            item["metadata"]["name"],
            item["spec"]["nodeName"],
            tuple(entry["ip"] for entry in item["status"].get("podIPs", [])),
        )
        for item in items
    ]


def _daemon_set(name: str, script: str, ports: list[dict[str, int]]) -> dict[str, Any]:
    container = {
        "name": name,
        "image": BUSYBOX,
        "command": ["sh", "-c", script],
        "ports": ports,
        "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
    }
    spec = {
        "containers": [container],
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 0,
    }
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def _service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "NodePort",
            "selector": {"app": "web"},
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"port": 80, "targetPort": PORT, "nodePort": NODE_PORT}],
        },
    }
