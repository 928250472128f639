"""An API server that cuts, stalls, refuses and talks nonsense: what is known stays in force, people are told once, and
nothing that happened meanwhile is missed. The client library and the sockets are real; the server is our own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.membership import Network
from agent.membership.kubernetes import KubernetesSource
from agent.membership.kubernetes_api import Api, ApiError
from agent.membership.kubernetes_own import Pace
from plugins.peers import Node
from tests.kubernetes.pki import Authority
from tests.kubernetes.recorder import Recorder
from tests.kubernetes.stand_in import Handler, StandIn, begin_and_cut, refuse, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kubernetes.stand_in import Action

ROOT = Path(__file__).parents[2]
NETWORK = Network("pods", ((bytes([10, 244, 0, 0]), 16),), (), "host-gw", 0)
OWN = Node("node1", {4: bytes([192, 0, 2, 1])}, ())


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as found:
        found.add(1)
        found.add(2)
        yield found


@contextmanager
def running(server: StandIn, path: Path, ca: Path | None = None) -> Iterator[Recorder]:
    source = KubernetesSource(NETWORK, server.kubeconfig(path / "kubeconfig", ca))
    recorder = Recorder()
    source.start(OWN, recorder)
    try:
        yield recorder
    finally:
        source.close()


def watched(told: Recorder, server: StandIn, count: int = 1) -> None:
    """Wait until so many watches have begun, the last of which is there."""
    told.wait(lambda: server.streaming >= count and server.watching == 1, f"watch {count} is there")


# Watches that end


def test_a_watch_goes_on_where_it_stood(server: StandIn, tmp_path: Path) -> None:
    with running(server, tmp_path) as told:
        watched(told, server)
        server.push("ADDED", server.add(3))
        told.wait_for("node1", "node2", "node3")
        server.bookmark(5000)
        server.end_watches()
        watched(told, server, 2)

        queries = [query for kind, query in server.requests if kind == "watch"]
        assert queries[0]["resourceVersion"] == "102"
        assert queries[1]["resourceVersion"] == "5000", "the bookmark's"
        assert queries[0]["allowWatchBookmarks"] == "true"
        assert 300 <= int(queries[0]["timeoutSeconds"]) <= 600
        assert server.count("list") == 1
        assert told.troubles == []


@pytest.mark.parametrize("begun", [b"", b'{"type":"MODIFIED","object":{"metadata":{"na'])
def test_a_watch_that_is_cut_off(server: StandIn, tmp_path: Path, begun: bytes) -> None:
    server.next("watch", begin_and_cut(begun), begin_and_cut(begun))

    with running(server, tmp_path) as told:
        watched(told, server, 3)
        server.push("DELETED", server.nodes["node2"])

        told.wait_for("node1")
        assert server.count("list") == 1
        assert told.troubles == []


def test_events_in_pieces(server: StandIn, tmp_path: Path) -> None:
    """Chunks end anywhere, also in a character, and a value may hold what Unicode calls a line's end."""
    node = server.add(3)
    node["metadata"]["annotations"] = {"example.com/text": "one\u2028two\x85three \U0001f433"}
    line = json.dumps({"type": "ADDED", "object": node}, ensure_ascii=False).encode() + b"\n"

    with running(server, tmp_path) as told:
        watched(told, server)
        for byte in line:
            server.send(bytes([byte]))

        told.wait_for("node1", "node2", "node3")
        assert told.troubles == []


# 410: the server does not know our version any more


def test_gone_in_the_middle_of_a_watch(server: StandIn, tmp_path: Path) -> None:
    with running(server, tmp_path) as told:
        watched(told, server)
        del server.nodes["node2"]  # missed
        server.add(3)
        server.error(410, "too old resource version: 102 (9000)")

        told.wait_for("node1", "node3")
        assert told.replaced == 2
        assert told.troubles == []


def test_gone_at_the_beginning_of_a_watch(server: StandIn, tmp_path: Path) -> None:
    server.next("watch", refuse(410, "too old resource version"))

    with running(server, tmp_path) as told:
        watched(told, server, 2)

        assert server.count("list") == 2
        assert told.troubles == []


def test_gone_between_two_pages(server: StandIn, tmp_path: Path) -> None:
    for number in range(3, 254):
        server.add(number)
    server.nodes.update((f"more{n}", server.nodes["node2"] | {"metadata": {"name": f"more{n}"}}) for n in range(300))

    def second_page(handler: Handler) -> None:
        refuse(410, "The provided continue parameter is too old")(handler)

    server.next("list", lambda handler: handler._list({"limit": "500"}), second_page)

    with running(server, tmp_path) as told:
        told.wait(lambda: len(told.nodes) == 553, "all are there")
        assert told.replaced == 1, "half a list is none"
        assert [query.get("continue") for kind, query in server.requests if kind == "list"] == [
            None,
            "500",
            None,
            "500",
        ]


# Refusals and nonsense


@pytest.mark.parametrize("kind", ["list", "watch"])
@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (refuse(500, "etcdserver: request timed out"), "500 Internal Server Error: etcdserver: request timed out"),
        (refuse(503, "apiserver not ready"), "503 Service Unavailable"),
        (refuse(403, "nodes is forbidden"), "conf/kubernetes/base/rbac.yaml"),
        (refuse(401, "Unauthorized"), "token or client certificate"),
        (say(b"<html>bad gateway</html>", 502, "text/html"), "502 Bad Gateway: <html>bad gateway</html>"),
        (say(b"", 302), "302 Found: nothing else"),
        (say(b'{"kind": "Status", "message": 5}', 500), "500"),
    ],
)
def test_a_refusal_is_told_once_and_tried_again(
    server: StandIn, tmp_path: Path, kind: str, action: Action, expected: str
) -> None:
    server.next(kind, action, action)

    with running(server, tmp_path) as told:
        watched(told, server)
        told.wait_trouble("")

        assert len(told.troubles) == 2, told.troubles
        assert expected in told.troubles[0]
        assert server.address in told.troubles[0]
        assert told.replaced == 1, "a watch goes on where the list stands"


def test_429_is_tried_again_when_the_server_said(server: StandIn, tmp_path: Path) -> None:
    server.next("list", refuse(429, "too many requests", Retry_After="1"))

    with running(server, tmp_path) as told:
        told.wait_trouble("429")
        assert server.count("list") == 1
        told.wait_for("node1", "node2")

        told.wait_trouble("")
        assert server.count("list") == 2, "the usual pause would have been a tenth of what was asked"


class Pauses(threading.Event):
    """A wait that takes no time, and remembers how long it should have been."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return False


def test_pauses_are_what_the_server_asked_for_and_grow(server: StandIn, tmp_path: Path) -> None:
    server.next("list", refuse(429, "too many requests", Retry_After="7"))
    path = server.kubeconfig(tmp_path / "kubeconfig")
    with closing(Api(path)) as api, pytest.raises(ApiError) as caught:
        list(api.pages())
    source = KubernetesSource(NETWORK, path)
    source._closed = pauses = Pauses()

    source._wait(caught.value.retry_after)
    for _ in range(20):
        source._wait()

    assert pauses.seconds[0] == 7.0
    assert pauses.seconds[1] < 0.3
    assert all(2.5 <= one <= 5.0 for one in pauses.seconds[-10:])


def test_patches_that_are_undone_are_done_later_each_time() -> None:
    pace, now, times = Pace(), 1000.0, []

    for _ in range(15):
        while (at := pace.next(now)) > now:
            now = at
        times.append(now)

    rests = [later - earlier for earlier, later in pairwise(times)]
    assert rests == pytest.approx(sorted(rests))
    assert rests[0] < 0.5
    assert rests[-1] > 50.0
    now += 1000.0
    assert [pace.next(now) for _ in range(2)] == [now, pytest.approx(now + rests[0])], (
        "after a long time it is forgotten"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"null", b"[]", b'{"items": 5}', b'{"items": [{"metadata": {"name": 7}}]}', b'{"items": null}',
        b"\xff\xfe", b'{"kind": "Status"}',
    ],
)  # fmt: skip
def test_a_list_that_is_none(server: StandIn, tmp_path: Path, data: bytes) -> None:
    server.next("list", say(data))

    with running(server, tmp_path) as told:
        told.wait_for("node1", "node2")
        told.wait_trouble("")

        assert "expected the list of nodes" in told.troubles[0]
        assert told.replaced == 1


@pytest.mark.parametrize(
    "line",
    [b"{\n", b"null\n", b'{"type": "ADDED"}\n', b'{"type": "ADDED", "object": 5}\n', b"\xff\xfe\n", b"<html>\n"],
)
def test_an_event_that_is_none(server: StandIn, tmp_path: Path, line: bytes) -> None:
    """What is known stays; then the list is taken anew, and the trouble lasts until a watch has proved itself."""
    with running(server, tmp_path) as told:
        watched(told, server)
        server.send(line)
        told.wait_trouble("expected an event of the watch")
        assert sorted(told.nodes) == ["node1", "node2"]
        watched(told, server, 2)
        assert told.trouble_now != ""
        server.push("ADDED", server.add(3))

        told.wait_for("node1", "node2", "node3")
        told.wait_trouble("")
        assert server.count("list") == 2


def test_an_error_event_of_the_server(server: StandIn, tmp_path: Path) -> None:
    with running(server, tmp_path) as told:
        watched(told, server)
        server.error(500, "unable to decode an event")
        told.wait_trouble("ends the watch with 500: unable to decode an event")
        watched(told, server, 2)
        server.bookmark(9000)

        told.wait_trouble("")


def test_a_server_that_only_ever_talks_nonsense_is_not_besieged(server: StandIn, tmp_path: Path) -> None:
    """Pauses grow: in the time that nine tries with the first pause would take there are fewer, each with its list."""
    server.next("watch", *(begin_and_cut(b"nonsense\n") for _ in range(5)))

    with running(server, tmp_path) as told:
        watched(told, server, 6)

        assert len(told.troubles) == 1, told.troubles


# Slowness


def test_a_slow_server(server: StandIn, tmp_path: Path) -> None:
    body = json.dumps({"metadata": {"resourceVersion": "102"}, "items": list(server.nodes.values())}).encode()

    def slowly(handler: Handler) -> None:
        handler.begin_chunks()
        for begin in range(0, len(body), 10):
            handler.chunk(body[begin : begin + 10])
        handler.chunk(b"")

    server.next("list", slowly)

    with running(server, tmp_path) as told:
        told.wait_for("node1", "node2")
        assert told.troubles == []


@pytest.mark.parametrize("kind", ["list", "watch", "patch"])
def test_closing_while_the_server_stalls(server: StandIn, tmp_path: Path, kind: str) -> None:
    def stall(handler: Handler) -> None:
        handler.server.stand_in.released.wait()

    server.next(kind, stall)
    source = KubernetesSource(NETWORK, server.kubeconfig(tmp_path / "kubeconfig"))
    told = Recorder()
    source.start(OWN, told)
    told.wait(lambda: server.count(kind), f"it asks for {kind}")

    ending = threading.Thread(target=source.close)
    ending.start()
    ending.join(20.0)

    assert not ending.is_alive()
    before = (told.described(), told.replaced, len(told.changes), len(told.troubles))
    server.released.set()
    server.push("ADDED", server.add(3))
    assert (told.described(), told.replaced, len(told.changes), len(told.troubles)) == before, "it says nothing more"


def test_closing_what_was_never_started() -> None:
    KubernetesSource(NETWORK, "/nowhere").close()


def test_closing_ends_the_threads(server: StandIn, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    files = len(os.listdir("/proc/self/fd"))

    with running(server, tmp_path) as told:
        watched(told, server)

    told.wait(lambda: not {"kubernetes", "kubernetes-own"} & names_since(before), "the threads have ended")
    server.end_watches()
    told.wait(lambda: len(os.listdir("/proc/self/fd")) <= files, "its connections are closed")


def names_since(before: set[threading.Thread]) -> set[str]:
    """The names of the threads that were not there before."""
    return {one.name for one in set(threading.enumerate()) - before}


def test_refusals_leave_no_connection(server: StandIn, tmp_path: Path) -> None:
    server.next("watch", *(refuse(500, "no") for _ in range(6)))
    with running(server, tmp_path) as told:
        watched(told, server, 7)
        sockets = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_socket(fd)]
        peers = _peers(server)

        assert peers <= 2, f"{peers} connections of {sockets}"


def _is_socket(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False


def _peers(server: StandIn) -> int:
    """How many connections to the server there are, on the client's side."""
    port = int(server.address.rpartition(":")[2])
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        if _is_socket(fd):
            with socket.socket(fileno=os.dup(int(fd))) as one:
                try:
                    found += one.family == socket.AF_INET and one.getpeername()[1] == port
                except OSError:
                    continue
    return found


# TLS


def test_a_server_certificate_that_has_expired(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    late = authority.issue("late", "/CN=server", names="IP:127.0.0.1", days=-1)

    with StandIn(late) as server, running(server, tmp_path, authority.certificate) as told:
        told.wait_trouble("certificate has expired", server.address)


def test_a_server_certificate_of_another_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    other = authority.issue("other", "/CN=server", names="DNS:elsewhere.example")

    with StandIn(other) as server, running(server, tmp_path, authority.certificate) as told:
        told.wait_trouble("IP address mismatch", server.address)


def test_closing_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    pair = authority.issue("server", "/CN=server", names="IP:127.0.0.1")

    with StandIn(pair) as server:
        server.add(1)
        before = set(threading.enumerate())
        with running(server, tmp_path, authority.certificate) as told:
            watched(told, server)
        told.wait(lambda: "kubernetes" not in names_since(before), "the thread that watched has ended")


# Our own node's object


def test_patches_that_are_refused_are_told_and_tried_again(server: StandIn, tmp_path: Path) -> None:
    server.next("patch", refuse(403, 'nodes "node1" is forbidden'), refuse(409, "conflict"))

    with running(server, tmp_path) as told:
        told.wait(lambda: server.patches, "it is patched in the end")
        told.wait_trouble("")

        assert "cannot tell the cluster about this node" in told.troubles[0]
        assert "403" in told.troubles[0]
        assert sorted(told.nodes) == ["node1", "node2"]


def test_two_who_want_it_differently_do_not_write_in_turns_for_ever(server: StandIn, tmp_path: Path) -> None:
    with running(server, tmp_path) as told:
        told.wait(lambda: server.patches, "it is patched")
        watched(told, server)
        for _ in range(200):
            server.nodes["node1"]["metadata"]["annotations"] = {}
            server.push("MODIFIED", server.nodes["node1"])
        server.push("ADDED", server.add(3))
        told.wait_for("node1", "node2", "node3")

        assert len(server.patches) < 10


# Memory


MEMORY = """
import sys, threading
import agent.main, agent.membership
from plugins.peers import Node

def kib(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))

agent.main.use_one_arena()
agent.main.preload({"bridge": "plugins.bridge", "host-local": "ipam.host_local", "loopback": "plugins.loopback"})
found = {"agent": kib("VmRSS")}
from agent.membership.kubernetes import KubernetesSource
from agent.membership.kubernetes_api import Api, ApiError
from agent.membership.troubles import Troubles
from agent.membership.kubernetes_own import Pace
found["client"] = kib("VmRSS")
done = threading.Event()

class Listener:
    def replace(self, nodes, unread=()):
        self.nodes = {node.name: node for node in nodes}
        done.set()
    def change(self, put, gone): pass
    def trouble(self, text):
        if text: print(text, file=sys.stderr)

listener = Listener()
network = agent.membership.Network("pods", ((bytes([10, 0, 0, 0]), 8),), (), "vxlan", 1)
source = KubernetesSource(network, sys.argv[1])
source.start(Node("node0", {4: bytes([192, 0, 2, 1])}, ()), listener)
assert done.wait(120.0)
found["nodes"], found["peak"], found["count"] = kib("VmRSS"), kib("VmHWM"), len(listener.nodes)
print(__import__("json").dumps(found), flush=True)
source.close()
"""


def big_node(number: int) -> dict[str, Any]:
    """A Node object as large as a busy node's: 50 images, conditions, managed fields."""
    high, low = divmod(number, 250)
    name = f"node{number}"
    images = [{"names": [f"registry.example/team/app-{n}@sha256:{n:064x}"], "sizeBytes": n << 20} for n in range(50)]
    return {
        "metadata": {
            "name": name, "uid": f"{number:032x}", "resourceVersion": str(number),
            "labels": {f"example.com/label-{n}": "value" for n in range(15)},
            "annotations": {"cnikit.dev/vtep-mac": f"0a:00:00:00:{high:02x}:{low:02x}", "example.com/long": "x" * 500},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {f"f:{n}": {} for n in range(60)}}],
        },
        "spec": {"podCIDR": f"10.{high}.{low}.0/24", "podCIDRs": [f"10.{high}.{low}.0/24"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": f"172.16.{high}.{low}"}], "images": images,
            "conditions": [{"type": f"Type{n}", "status": "False", "message": "all is well " * 5} for n in range(6)],
        },
    }  # fmt: skip


@pytest.mark.timeout(300)
def test_five_thousand_nodes_take_little_memory(tmp_path: Path) -> None:
    with StandIn() as server:
        server.nodes = {f"node{number}": big_node(number) for number in range(5000)}
        path = server.kubeconfig(tmp_path / "kubeconfig")

        ran = subprocess.run(
            [sys.executable, "-c", MEMORY, path], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    print(found, f"{len(json.dumps(big_node(1)))} bytes a node")
    assert found["count"] == 5000
    assert [query["limit"] for kind, query in server.requests if kind == "list"] == ["500"] * 10
    assert found["nodes"] <= 60 * 1024, found


def test_an_agent_without_kubernetes_does_not_load_its_client(tmp_path: Path) -> None:
    script = """
import sys, agent.main, agent.membership
from cni.config import Reader
agent.membership.source(None, agent.membership.Network("pods", ()))
print(*[name for name in ("lightkube", "httpx2", "msgspec", "yaml", "ssl") if name in sys.modules])
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    assert ran.stdout.split() == []
