"""The difference between what is wanted and what the kernel holds: applied, it gives what is wanted, and touches
nothing else, from whatever state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni import addr
from cni.errors import KernelError
from cni.kernel import ops
from cni.kernel.types import NUD_PERMANENT, FdbEntry
from cni.testing.fake_kernel import FakeKernel
from plugins.peers import Entries
from plugins.reconcile import FIRST_ID, PROTOCOL, Difference, Held, Scope, Wanted, attempt, look, merged, sync

if TYPE_CHECKING:
    from cni.testing.fake_kernel import FakeNamespace
    from plugins.peers import Hop, Subnet

RANGES = ((b"\x0a\xf4\0\0", 16), (addr.pack("fd00:244::") or b"", 48))
MACS = [bytes([2, 0, 0, 0, 0, number]) for number in range(4)]
UNDERLAYS = [b"\xc0\0\2" + bytes([number]) for number in range(2, 6)]


def subnet(number: int, size: int = 4) -> Subnet:
    if size == 4:
        return bytes([10, 244, number, 0]), 24
    return (addr.pack(f"fd00:244:0:{number:x}::") or b""), 64


def node() -> tuple[FakeNamespace, int, int]:
    """A node with a device of ours and a link of somebody else, both up."""
    host = FakeKernel().own()
    host.apply(ops.bridge_add("under0", None), ops.link_set("under0", up=True))
    under = host.link("under0")
    assert under is not None
    host.apply(
        ops.vxlan_add("device0", 1, mac=None, mtu=0, port=8472, local=b"\xc0\0\2\1", link=under.index),
        ops.link_set("device0", up=True),
    )
    device = host.link("device0")
    assert device is not None
    return host, device.index, under.index


def entries(device: int, *peers: tuple[int, int, int]) -> Entries:
    """What leads to peers, each a subnet, a MAC and an underlay address."""
    found = Entries()
    for number, mac, underlay in peers:
        for size in (4, 16):
            network = subnet(number, size)
            found.routes[network] = (device, network[0], True)
            found.neighbours[device, network[0]] = MACS[mac]
        found.fdb[device, MACS[mac]] = UNDERLAYS[underlay]
    return found


def held(host: FakeNamespace, device: int) -> dict[str, Any]:
    """What the fake has, in the words of the wanted entries."""
    found = look(host, [device])
    return {
        "routes": {network: found.hops.get(number) for network, number in found.routes.items()},
        "neighbours": found.neighbours,
        "fdb": found.fdb,
    }


def as_wanted(wanted: Entries) -> dict[str, Any]:
    return {"routes": wanted.routes, "neighbours": wanted.neighbours, "fdb": wanted.fdb}


peers = st.dictionaries(
    st.integers(1, 5), st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=5
).map(lambda found: [(number, *rest) for number, rest in found.items()])  # fmt: skip


@settings(deadline=None)
@given(peers, peers)
def test_from_any_state_to_any_other_and_nothing_foreign_is_touched(before: Any, after: Any) -> None:
    host, device, under = node()
    log: list[str] = []
    host.apply(
        ops.route_replace(b"\x0a\x09\0\0", 16, index=under, protocol=4),
        ops.route_replace(bytes([10, 244, 200, 7]), 32, index=under, protocol=PROTOCOL),  # of a pod
        ops.nexthop_replace(9, under, b"\xc0\0\2\x09", onlink=True, protocol=4),
        ops.neigh_replace(under, b"\xc0\0\2\x09", MACS[0]),
    )
    sync(host, [entries(device, *before)], [device], RANGES, log.append)
    assert held(host, device) == as_wanted(entries(device, *before))

    sync(host, [entries(device, *after)], [device], RANGES, log.append)

    assert held(host, device) == as_wanted(entries(device, *after))
    assert len(host.nexthops(PROTOCOL)) == 2 * len(after), "no nexthop is left over"
    assert [one.id for one in host.nexthops() if one.protocol != PROTOCOL] == [9]
    assert [(one.dst, one.protocol) for one in host.routes() if one.oif == under] == [
        (b"\x0a\x09\0\0", 4), (bytes([10, 244, 200, 7]), PROTOCOL),
    ]  # fmt: skip
    assert [one.packed for one in host.neighbours(under)] == [b"\xc0\0\2\x09"]
    assert log == []


@settings(deadline=None)
@given(peers, st.data())
def test_any_damage_is_put_right(there: Any, data: st.DataObject) -> None:
    host, device, under = node()
    wanted = entries(device, *there)
    sync(host, [wanted], [device], RANGES, print)

    for network in data.draw(st.lists(st.sampled_from(sorted(wanted.routes)), max_size=3)) if there else []:
        host.attempt([ops.route_del(*network)])
    for one in host.nexthops(PROTOCOL):
        if data.draw(st.booleans()):
            host.attempt([ops.nexthop_del(one.id)])
    for index, mac in wanted.fdb:
        if data.draw(st.booleans()):
            host.attempt([ops.fdb_replace(index, mac, UNDERLAYS[data.draw(st.integers(0, 3))])])
    host.apply(ops.neigh_replace(device, b"\x0a\xf4\xfa\0", MACS[0]))
    host.apply(ops.route_replace(*subnet(77), index=under, gateway=b"\xc0\0\2\7", onlink=True, protocol=PROTOCOL))
    sync(host, [wanted], [device], RANGES, print)

    assert held(host, device) == as_wanted(wanted)


@settings(deadline=None)
@given(peers, peers)
def test_key_by_key_comes_to_the_same_as_all_at_once(before: Any, after: Any) -> None:
    host, device, _ = node()
    old, new = entries(device, *before), entries(device, *after)
    sync(host, [old], [device], RANGES, print)
    known = look(host, [device])

    difference = Difference(new, known, Scope([device], RANGES))
    for network in {**old.routes, **new.routes}:
        difference.route(network)
    for key in {**old.neighbours, **new.neighbours}:
        difference.neighbour(key)
    for key in {**old.fdb, **new.fdb}:
        difference.fdb(key)
    assert attempt(host, difference.operations(), known) == []

    assert held(host, device) == as_wanted(new)
    again = look(host, [device])
    assert (again.routes, again.hops, again.uses, again.neighbours, again.fdb) == (
        known.routes, known.hops, known.uses, known.neighbours, known.fdb,
    ), "what it believes to have done is what is there"  # fmt: skip


def test_nothing_to_do_is_no_operation() -> None:
    host, device, _ = node()
    wanted = entries(device, (1, 1, 1), (2, 2, 2))
    sync(host, [wanted], [device], RANGES, print)

    difference = Difference(wanted, look(host, [device]), Scope([device], RANGES))
    difference.everything()

    assert difference.operations() == []


def test_a_foreign_route_in_the_place_of_ours_stays_and_is_told() -> None:
    host, device, under = node()
    log: list[str] = []
    host.apply(ops.route_replace(*subnet(1), index=under, protocol=4))

    sync(host, [entries(device, (1, 1, 1), (2, 2, 2))], [device], RANGES, log.append)

    assert [(one.oif, one.protocol) for one in host.routes() if (one.dst, one.prefix) == subnet(1)] == [(under, 4)]
    assert len(log) == 1
    assert "route to 10.244.1.0/24: expected none but ours" in log[0]
    assert set(held(host, device)["routes"]) == {subnet(1, 16), subnet(2), subnet(2, 16)}


def test_another_networks_routes_over_the_same_link_are_not_ours_to_remove() -> None:
    host, _, under = node()
    mine: dict[Subnet, Hop] = {subnet(1): (under, UNDERLAYS[0], True)}
    others: dict[Subnet, Hop] = {(b"\x0a\x63\1\0", 24): (under, UNDERLAYS[1], True)}
    for routes, ranges in ((others, ((b"\x0a\x63\0\0", 16),)), (mine, RANGES)):
        wanted = Entries()
        wanted.routes.update(routes)
        sync(host, [wanted], [], ranges, print)

    found = look(host, [])

    assert set(found.routes) == {*mine, *others}


def test_a_nexthop_that_leads_elsewhere_is_replaced_by_another_and_goes() -> None:
    host, device, _ = node()
    wanted = entries(device, (1, 1, 1))
    sync(host, [wanted], [device], RANGES, print)
    (first,) = [one for one in host.nexthops() if one.gateway == subnet(1)[0]]

    host.apply(ops.nexthop_replace(first.id, device, b"\x0a\xf4\x09\0", onlink=True, protocol=0))
    sync(host, [wanted], [device], RANGES, print)

    assert held(host, device) == as_wanted(wanted)
    assert first.id not in [one.id for one in host.nexthops()]


def test_numbers_of_nexthops_are_the_same_every_time_and_free() -> None:
    host, device, under = node()
    wanted = entries(device, (1, 1, 1), (2, 2, 2))
    taken = FIRST_ID + int.from_bytes(subnet(1)[0], "big") % ((1 << 24) - 3)
    host.apply(ops.nexthop_replace(taken, under, b"\xc0\0\2\x09", onlink=True, protocol=4))

    sync(host, [wanted], [device], RANGES, print)

    numbers = {one.gateway: one.id for one in host.nexthops(PROTOCOL)}
    assert numbers[subnet(1)[0]] == taken + 1
    assert held(host, device) == as_wanted(wanted)


def test_a_link_that_is_down_is_an_error_and_the_rest_is_done() -> None:
    host, device, under = node()
    host.apply(ops.link_set("under0", up=False))
    wanted = merged([entries(device, (1, 1, 1))])
    wanted.routes[subnet(2)] = (under, UNDERLAYS[1], True)

    with pytest.raises(KernelError):
        sync(host, [wanted], [device], RANGES, print)

    assert set(held(host, device)["routes"]) == {subnet(1), subnet(1, 16)}


def test_entries_for_many_receivers_are_left_alone() -> None:
    found = Held()
    for mac in (bytes(6), b"\x33\x33\0\0\0\1", b""):
        found.fdb_entry(FdbEntry(3, mac, UNDERLAYS[0], NUD_PERMANENT))

    assert found.fdb == {}


def test_a_key_that_two_peers_want_goes_with_the_last_of_them() -> None:
    one, two = entries(3, (1, 1, 1)), entries(3, (2, 1, 2))  # with one MAC
    wanted = Wanted()
    wanted.add(one)
    wanted.add(two)

    assert wanted.fdb == {(3, MACS[1]): UNDERLAYS[1]}
    wanted.remove(two)
    assert as_wanted(wanted) == as_wanted(one)
    wanted.add(two)
    wanted.remove(one)
    assert as_wanted(wanted) == as_wanted(two)
    wanted.remove(one)  # which is out already
    assert as_wanted(wanted) == as_wanted(two)
    wanted.remove(two)
    assert as_wanted(wanted) == as_wanted(Entries())
