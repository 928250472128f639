"""Where an agent learns who is in the cluster: an etcd or an API server, in the namespaces of the node that calls this.

They are children of that node's process, in a process group of their own, and end with it.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from tests.bench import node

ETCD, ETCD_PEERS = "127.0.0.1:2379", "127.0.0.1:2380"
API_PORT = 6443
PREFIX = "/cnikit/pods"
KUBECONFIG = "/run/kubeconfig"
START_SECONDS = 30.0
# etcd takes 128 operations in a transaction.
AT_ONCE = 100


def serve_etcd(described: list[dict[str, Any]]) -> None:
    """An etcd in which these nodes have claimed their subnets."""
    log = open("/run/etcd.log", "w")  # noqa: SIM115 - it is etcd's from now on
    start([
        "etcd", "--data-dir", "/run/etcd", "--listen-client-urls", f"http://{ETCD}", "--advertise-client-urls",
        f"http://{ETCD}", "--listen-peer-urls", f"http://{ETCD_PEERS}", "--initial-advertise-peer-urls",
        f"http://{ETCD_PEERS}", "--initial-cluster", f"default=http://{ETCD_PEERS}",
    ], log.fileno())  # fmt: skip
    await_etcd()
    pairs = [(f"{PREFIX}/config/subnetLen", "24")]
    for one in described:
        pairs.append((f"{PREFIX}/nodes/{one['name']}", json.dumps(one)))
        pairs += [(f"{PREFIX}/subnets/{subnet.replace('/', '-')}", one["name"]) for subnet in one["subnets"]]
    for at in range(0, len(pairs), AT_ONCE):
        puts = [{"request_put": {"key": text(key), "value": text(value)}} for key, value in pairs[at : at + AT_ONCE]]
        ask_etcd("/v3/kv/txn", {"success": puts})


def await_etcd() -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ask_etcd("/v3/maintenance/status", {})
        except OSError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"etcd: expected it to answer within {START_SECONDS:g} s, found {error}") from None
            time.sleep(0.02)
        else:
            return


def ask_etcd(path: str, message: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection(ETCD, timeout=START_SECONDS)
    try:
        connection.request("POST", path, json.dumps(message))
        response = connection.getresponse()
        said = response.read()
        if response.status != http.client.OK:
            raise SystemExit(f"etcd: {path}: expected it to succeed, found {response.status} {said[:200]!r}")
    finally:
        connection.close()


def text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def serve_kubernetes(count: int) -> None:
    """An API server with so many nodes beside our own."""
    program = os.path.join(os.path.dirname(__file__), "cluster_apiserver.py")
    server = start([sys.executable, program, str(API_PORT), str(count)])
    assert server.stdout is not None
    if server.stdout.readline() != b"listening\n":
        raise SystemExit("the API server: expected it to listen, found that it has ended")
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": f"http://127.0.0.1:{API_PORT}"}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "users": [{"name": "bench", "user": {"token": "bench"}}],
    }  # fmt: skip
    with open(KUBECONFIG, "w") as file:
        json.dump(config, file)


def start(argv: list[str], errors: int | None = None) -> subprocess.Popen[bytes]:
    program = shutil.which(argv[0])
    if program is None:
        raise SystemExit(f"expected the program {argv[0]}, found none (see tests/setup/install-debian-packages)")
    return subprocess.Popen(
        [program, *argv[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
        process_group=0, preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread is there yet
    )  # fmt: skip


def end_with_parent() -> None:
    node.check(node.libc.prctl(node.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
