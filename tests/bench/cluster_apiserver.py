"""As much of a Kubernetes API server as an agent asks for, with made-up nodes.

    python cluster_apiserver.py PORT NODES

It lists nodes in pages, lets a watch wait for changes that never come, and takes patches of a node. An object is as
large as a kubelet's, about 9 KB, most of it images and managed fields: that is what an agent has to read past.
It says a line when it listens.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from tests.bench.cluster_peers import Peer

VERSION = "1000000"
IMAGES = 40
ENDED = threading.Event()


def node_object(peer: Peer) -> dict[str, Any]:
    """A Node as the API server tells it when an agent of ours has been at work there."""
    images = [
        {"names": [f"registry.example/team{image}/application@sha256:{image:064x}"], "sizeBytes": 10_000_000 + image}
        for image in range(IMAGES)
    ]
    conditions = [
        {
            "type": kind,
            "status": "False",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z",
            "message": f"kubelet has no {kind}",
        }
        for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")
    ]
    managed: dict[str, Any] = {f"f:label-{number}.example/of-a-node": {} for number in range(40)}
    return {
        "metadata": {
            "name": peer.name, "uid": f"00000000-0000-0000-0000-{peer.mac.replace(':', '')}", "resourceVersion": "1000",
            "labels": {f"label-{number}.example/of-a-node": "value" for number in range(12)},
            "annotations": {"cnikit.dev/vtep-mac": peer.mac},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:metadata": {"f:labels": managed}}}],
        },
        "spec": {"podCIDR": peer.subnet, "podCIDRs": [peer.subnet], "providerID": f"example://{peer.name}"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": peer.address}, {"type": "Hostname", "address": peer.name}],
            "capacity": {"cpu": "8", "memory": "32000000Ki", "pods": "110"},
            "conditions": conditions, "images": images, "nodeInfo": {"kernelVersion": "6.1.0", "osImage": "Debian"},
        },
    }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    peers: list[Peer]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path != "/api/v1/nodes":
            self._say(404, {"kind": "Status", "code": 404, "message": f"{url.path}: expected /api/v1/nodes"})
        elif asked.get("watch") in {"true", "1"}:
            self._watch()
        else:
            self._list(int(asked.get("continue") or 0), int(asked.get("limit") or len(self.peers)))

    def do_PATCH(self) -> None:
        """The patch is read, and the node stays as it is."""
        self.rfile.read(int(self.headers["Content-Length"]))
        name = urlsplit(self.path).path.split("/")[4]
        self._say(200, node_object(next(peer for peer in self.peers if peer.name == name)))

    def _list(self, first: int, limit: int) -> None:
        last = first + limit
        metadata = {"resourceVersion": VERSION, "continue": str(last) if last < len(self.peers) else ""}
        items = [node_object(peer) for peer in self.peers[first:last]]
        self._say(200, {"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": items})

    def _watch(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        ENDED.wait()

    def _say(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Nobody reads it."""


def main(port: int, peers: list[Peer]) -> None:
    Handler.peers = peers
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    print("listening", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.path.insert(0, __file__.rsplit("/", 3)[0])
    from tests.bench import cluster_peers

    main(int(sys.argv[1]), [cluster_peers.OWN, *cluster_peers.peers(int(sys.argv[2]))])
