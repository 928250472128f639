"""The etcd source with no etcd: what its configuration may say, which subnets there are, and what is made of values."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from agent.membership import Network
from agent.membership.etcd import read_settings
from agent.membership.etcd_client import Client, Event, KeyValue, after
from agent.membership.etcd_credentials import Credentials
from agent.membership.etcd_nodes import Nodes
from agent.membership.etcd_pools import Pool, read_pools
from cni import addr
from cni.config import Reader
from cni.errors import CniError
from cni.jsonio import encode
from plugins.peers import Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from plugins.peers import Subnet


def subnet(text: str) -> Subnet:
    found = addr.pack_cidr(text)
    assert found is not None
    return found


def ends(pool: Pool) -> tuple[str, str, int]:
    return addr.unpack_cidr(*pool.at(0)), addr.unpack_cidr(*pool.at(pool.count - 1)), pool.count


@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        ("10.244.0.0/16", {}, ("10.244.1.0/24", "10.244.255.0/24", 255)),
        ("10.244.0.0/16", {"subnetLen": 18}, ("10.244.64.0/18", "10.244.192.0/18", 3)),
        ("10.244.0.0/23", {}, ("10.244.0.128/25", "10.244.1.128/25", 3)),
        (
            "10.244.0.0/16",
            {"SubnetMin": "10.244.8.0", "SubnetMax": "10.244.9.0"},
            ("10.244.8.0/24", "10.244.9.0/24", 2),
        ),
        ("10.0.0.0/8", {"subnetLen": 30}, ("10.0.0.4/30", "10.255.255.252/30", (1 << 22) - 1)),
        ("fd00:244::/48", {}, ("fd00:244:0:1::/64", "fd00:244:0:ffff::/64", 65535)),
        ("fd00:244::/63", {}, ("fd00:244:0:0:8000::/65", "fd00:244:0:1:8000::/65", 3)),
        ("fd00:244::/48", {"ipv6SubnetMin": "fd00:244:0:7::"}, ("fd00:244:0:7::/64", "fd00:244:0:ffff::/64", 65529)),
    ],
)
def test_the_subnets_are_flannels(network: str, options: dict[str, Any], expected: tuple[str, str, int]) -> None:
    (pool,) = read_pools(Reader(options, "membership"), [subnet(network)]).values()

    assert ends(pool) == expected
    assert pool.at(0) in pool
    assert pool.at(pool.count) not in pool
    assert pool.at(-1) not in pool


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"subnetLen": 17}, "membership.subnetLen: expected a length from 18"),
        ({"subnetLen": 31}, "to 30, found 31"),
        ({"subnetLen": "24"}, "membership.subnetLen: expected an integer"),
        ({"subnetMin": "10.244.1.1"}, "membership.subnetMin: expected a subnet's own address (/24) in 10.244.0.0/16"),
        ({"subnetMax": "10.245.1.0"}, "membership.subnetMax: expected a subnet's own address"),
        ({"subnetMin": "fd00::"}, "membership.subnetMin: expected a subnet's own address"),
        ({"subnetMin": "10.244.9.0", "subnetMax": "10.244.8.0"}, "an address not before 10.244.9.0"),
    ],
)
def test_subnets_that_cannot_be_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(CniError) as caught:
        read_pools(Reader(options, "membership"), [subnet("10.244.0.0/16")])

    assert told in str(caught.value)
    assert caught.value.code == 7


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"endpoints": []}, "membership.endpoints: expected at least one URL"),
        ({"endpoints": ["192.0.2.1:2379"]}, "membership.endpoints[0]: expected a URL"),
        ({"endpoints": ["https://h", "ftp://h"]}, "membership.endpoints[1]: expected a URL"),
        ({"endpoints": ["https://h:99999"]}, "membership.endpoints[0]: expected a URL"),
        ({"endpoints": ["https://user@h"]}, "membership.endpoints[0]: expected a URL"),
        ({"endpoints": [1]}, "membership.endpoints[0]: expected a string"),
        ({"certFile": "/a"}, "certFile and keyFile, or neither"),
        ({"username": "a"}, "username and passwordFile, or neither"),
        ({"prefix": "/"}, "membership.prefix: expected the beginning of keys"),
        ({"publicIP": "2001:db8::1"}, "membership.publicIP: expected an IPv4 address"),
        ({"publicIPv6": "fe80::1"}, "membership.publicIPv6: expected an address that other nodes can reach"),
        ({"publicIP": 5}, "membership.publicIP: expected a string"),
        ({"ttl": 4}, "membership.ttl: expected an integer from 5"),
    ],
)
def test_settings_that_are_wrong_are_refused(options: dict[str, Any], told: str) -> None:
    conf = Reader({"endpoints": ["https://192.0.2.1:2379"], **options}, "membership")

    with pytest.raises(CniError) as caught:
        read_settings(conf, Network("pods", (subnet("10.244.0.0/16"),)))

    assert told in str(caught.value)


def test_defaults() -> None:
    found = read_settings(Reader({"endpoints": ["http://[::1]/"]}), Network("pods", (subnet("10.244.0.0/16"),)))

    assert found.endpoints == ("http://[::1]",)
    assert found.keys.subnet(subnet("10.244.1.0/24")) == "/cnikit/pods/subnets/10.244.1.0-24"
    assert found.ttl == 86400


def test_an_empty_address_is_none() -> None:
    conf = Reader({"endpoints": ["http://h"], "publicIP": "", "publicIPv6": "2001:db8::1"})

    found = read_settings(conf, Network("pods", (subnet("10.244.0.0/16"),)))

    assert found.public == (addr.pack("2001:db8::1"),)


def test_the_end_of_a_range() -> None:
    assert after("/a/nodes/") == "/a/nodes0"


PREFIX = "/p/nodes/"


def node(name: str, address: str, *subnets: str) -> Node:
    packed = addr.pack(address)
    assert packed is not None
    return Node(name, {len(packed): packed}, tuple(subnet(one) for one in subnets))


def put(value: Node, mod: int = 1) -> Event:
    return Event(KeyValue(PREFIX + value.name, encode(value.described()), mod, 0), gone=False)


def gone(name: str) -> Event:
    return Event(KeyValue(PREFIX + name, b"", 1, 0), gone=True)


def test_several_changes_of_one_node_are_its_last_one() -> None:
    nodes = Nodes(PREFIX)
    first, last = node("a", "192.0.2.2"), node("a", "192.0.2.3")

    assert nodes.apply([put(first), put(last)]) == ([last], [])
    assert nodes.apply([put(first), gone("a")]) == ([], ["a"])
    assert nodes.apply([gone("a"), put(first)]) == ([first], [])


def test_a_nodes_rank_is_the_revision_that_wrote_it() -> None:
    nodes = Nodes(PREFIX)
    one, two = node("a", "192.0.2.2"), node("b", "192.0.2.2")

    loaded, _ = nodes.load([put(one, 7).kv, put(two, 5).kv])
    changed, _ = nodes.apply([put(two, 9)])

    assert [(found.name, found.rank) for found in (*loaded, *changed)] == [("b", 5), ("a", 7), ("b", 9)]


def test_one_that_cannot_be_read_is_named_and_neither_there_nor_gone() -> None:
    nodes = Nodes(PREFIX)
    broken = KeyValue(PREFIX + "b", b"-", 3, 0)

    assert nodes.load([put(node("a", "192.0.2.2")).kv, broken]) == ([node("a", "192.0.2.2")], {"b"})
    assert nodes.apply([Event(broken, gone=False)]) == ([], [])
    assert nodes.complaint.startswith("/p/nodes/b: not valid JSON")
    assert nodes.apply([gone("b")]) == ([], ["b"])
    assert nodes.complaint == ""


class Dropped:
    """A connection whose thread lets go of its socket as soon as another one has looked at it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socks: list[socket.socket | None] = [sock]

    @property
    def sock(self) -> socket.socket | None:
        return self._socks.pop() if self._socks else None


@pytest.mark.parametrize(
    "act", [Client.disturb, lambda client: client.leave({b"\x7f\0\0\1"})], ids=["disturb", "leave"]
)
def test_a_connection_may_end_while_another_thread_ends_it(act: Callable[[Client], None]) -> None:
    client = Client(("http://127.0.0.1:1",), Credentials("", "", "", "", ""), 0)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        client._connection = Dropped(sock)  # type: ignore[assignment]

        act(client)
