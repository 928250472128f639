"""The fake kernel against the real one: the same operations, the same refusals, the same state afterwards."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni import addr
from cni.kernel import ops
from cni.kernel.background import thread_background
from cni.kernel.linux import Kernel
from cni.testing.fake_kernel import FakeKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni.kernel import Namespace
    from cni.kernel.ops import Op
    from tests.netns.conftest import Netns

PROTOCOL = 205


def packed(text: str) -> bytes:
    value = addr.pack(text)
    assert value is not None
    return value


MACS = [b"\x02\x63\0\0\0\2", b"\x02\x63\0\0\0\3"]
NETWORKS = [
    (packed("10.244.2.0"), 24),
    (packed("10.244.3.0"), 24),
    (packed("fd00:244:2::"), 64),
    (packed("10.9.0.1"), 24),
]
GATEWAYS = [packed("10.244.2.0"), packed("192.0.2.2"), packed("fd00:244:2::"), packed("2001:db8::2")]
NUMBERS = [0, 1, 2]
LINKS = ["under0", "cnikit.1", "cnik6.1", "none"]

links, macs, networks = st.sampled_from(LINKS), st.sampled_from(MACS), st.sampled_from(NETWORKS)
gateways, numbers = st.sampled_from(GATEWAYS), st.sampled_from(NUMBERS)
protocols, metrics = st.sampled_from([0, PROTOCOL]), st.sampled_from([0, 7])

# Operations of which a link is known by name: the kernels number them differently.
steps = st.one_of(
    st.builds(
        lambda number, link, gateway, onlink: lambda index: ops.nexthop_replace(
            number, index[link], gateway, onlink=onlink, protocol=PROTOCOL
        ),
        numbers, links, gateways, st.booleans(),
    ),
    st.builds(lambda number: lambda _: ops.nexthop_del(number), st.sampled_from([1, 2])),
    st.builds(
        lambda network, number, exclusive, metric: lambda _: ops.route_replace(
            *network, nexthop=number, protocol=PROTOCOL, exclusive=exclusive, metric=metric
        ),
        networks, st.sampled_from([1, 2]), st.booleans(), metrics,
    ),
    st.builds(
        lambda network, link, gateway: lambda index: ops.route_replace(
            *network, index=index[link], gateway=gateway if len(gateway) == len(network[0]) else None,
            onlink=len(gateway) == len(network[0]),
        ),
        networks, links, gateways,
    ),
    st.builds(
        lambda network, protocol, metric: lambda _: ops.route_del(*network, protocol=protocol, metric=metric),
        networks, protocols, metrics,
    ),
    st.builds(lambda link, gateway, mac: lambda index: ops.neigh_replace(index[link], gateway, mac), links, gateways, macs),
    st.builds(lambda link, gateway: lambda index: ops.neigh_del(index[link], gateway), links, gateways),
    st.builds(
        lambda link, mac, dst: lambda index: ops.fdb_replace(index[link], mac, dst),
        st.sampled_from(["cnikit.1", "cnik6.1", "none"]), macs, gateways,
    ),
    st.builds(
        lambda link, mac, dst: lambda index: ops.fdb_del(index[link], mac, dst),
        st.sampled_from(["cnikit.1", "cnik6.1", "none"]), macs, gateways,
    ),
    st.builds(
        lambda link, up: lambda index: ops.link_set(index[link], up=up),
        st.sampled_from(["cnikit.1", "cnik6.1"]), st.booleans(),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return Kernel(time.monotonic, thread_background)


@pytest.fixture
def real(kernel: Kernel, host_ns: Netns) -> Iterator[Namespace]:
    with kernel.open(host_ns.path) as namespace:
        prepare(namespace)
        yield namespace


@pytest.fixture
def fake() -> Namespace:
    namespace = FakeKernel().own()
    prepare(namespace)
    return namespace


def prepare(namespace: Namespace) -> None:
    namespace.apply(ops.veth_add("under0", None, "under1", None, None), ops.link_set("under1", up=True))
    under = indices(namespace)["under0"]
    local, local6 = packed("192.0.2.1"), packed("2001:db8::1")
    namespace.apply(ops.addr_add(under, local, 24, nodad=True), ops.addr_add(under, local6, 64, nodad=True))
    for name, own in (("cnikit.1", local), ("cnik6.1", local6)):
        namespace.apply(
            ops.vxlan_add(name, 1, mac=b"\x02\x63\0\0\0\1", mtu=1400, port=8472, local=own, link=under),
            ops.link_set(name, up=True),
        )


def indices(namespace: Namespace) -> dict[str, int]:
    return {link.name: link.index for link in namespace.links()} | {"none": 4711}


def reset(namespace: Namespace) -> None:
    """Take away what steps have made."""
    index = indices(namespace)
    devices = [index["cnikit.1"], index["cnik6.1"]]
    namespace.attempt([ops.nexthop_del(number) for number in NUMBERS[1:]])
    for route in namespace.routes():
        if (route.dst, route.prefix) in NETWORKS:
            namespace.attempt([ops.route_del(route.dst, route.prefix, metric=route.metric)])
    namespace.attempt([ops.neigh_del(index[link], gateway) for link in LINKS for gateway in GATEWAYS])
    namespace.attempt(
        [ops.fdb_del(device, one.mac, one.dst or b"") for device in devices for one in namespace.fdb(device)]
    )
    namespace.attempt([ops.link_set(device, up=True) for device in devices])


def state(namespace: Namespace) -> dict[str, Any]:
    """What both have to agree on, with links by name."""
    names = {index: name for name, index in indices(namespace).items()}
    return {
        "nexthops": sorted((one.id, names[one.oif], one.gateway, one.onlink, one.protocol) for one in namespace.nexthops()),
        "routes": sorted(
            (one.dst, one.prefix, one.nexthop, names[one.oif], one.gateway or b"", one.onlink and one.gateway is not None,
             one.metric, one.protocol)
            for one in namespace.routes()
            if (one.dst, one.prefix) in NETWORKS
        ),
        "neighbours": sorted(
            (name, one.packed, one.mac)
            for index, name in names.items()
            for one in namespace.neighbours(index)
            if one.packed in GATEWAYS
        ),
        "fdb": sorted((name, one.mac, one.dst) for index, name in names.items() if name.startswith("cni") for one in namespace.fdb(index)),
    }  # fmt: skip


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(chosen=st.lists(steps, min_size=1, max_size=12))
def test_any_operations_end_alike(
    real: Namespace, fake: Namespace, chosen: list[Callable[[dict[str, int]], Op]]
) -> None:
    reset(real)
    reset(fake)
    told = []
    for namespace in (real, fake):
        batch = [step(indices(namespace)) for step in chosen]
        numbered = {id(op): number for number, op in enumerate(batch)}
        told.append([(numbered[id(op)], op.verb, error.errno) for op, error in namespace.attempt(batch)])

    assert told[1] == told[0]
    assert state(fake) == state(real)
