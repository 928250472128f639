"""The members of a network as far as they agree: whoever contradicts is left out, and comes in when it can."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.roster import Roster
from cni import addr
from plugins.contradictions import Agreed, refuse_contradictions
from plugins.peers import Node, vtep_mac


def node(name: str, address: int = 0, *subnets: str, mac: bytes | None = None, rank: int = 0) -> Node:
    packed = tuple(found for found in map(addr.pack_cidr, subnets) if found)
    return Node(name, {4: bytes([192, 0, 2, address or int(name[1:])])}, packed, {4: mac} if mac else None, rank)


def roster(*nodes: Node) -> Roster:
    made = Roster()
    made.replace(nodes)
    return made


def names(found: Roster) -> set[str]:
    return {one.name for one in found}


def test_what_left_is_given_as_it_was_and_what_came_as_it_is() -> None:
    found = roster(node("n1"), node("n2", 2, "10.1.2.0/24"), node("n3"))

    left, came = found.change([node("n2", 22, "10.1.2.0/24")], ["n3", "nobody"])

    assert {one.name: one.addresses[4][3] for one in left} == {"n2": 2, "n3": 3}
    assert [one.addresses[4][3] for one in came] == [22]
    assert names(found) == {"n1", "n2"}


def test_what_is_the_same_is_no_change() -> None:
    found = roster(node("n1"), node("n2", 2, "10.1.2.0/24"))

    assert found.change([node("n2", 2, "10.1.2.0/24")], []) == ([], [])
    assert found.replace([node("n1"), node("n2", 2, "10.1.2.0/24")]) == ([], [])


def test_the_first_holder_of_an_address_keeps_it_until_it_goes() -> None:
    found = roster(node("n1", 1))

    assert found.change([node("n2", 1)], []) == ([], [])
    assert "node n2: expected an address of its own, found 192.0.2.1, which is n1's" in found.faults["n2"]
    found.change([], ["n1"])

    assert names(found) == {"n2"}
    assert found.faults == {}
    assert found.holder(bytes([192, 0, 2, 1])) == node("n2", 1)


def test_this_nodes_address_is_nobody_elses() -> None:
    found = Roster()
    found.own, found.here = "n1", frozenset((bytes([192, 0, 2, 1]), bytes([192, 0, 2, 3])))
    found.replace([node("n2", 1), node("n1", 1), node("n3")])
    assert names(found) == {"n1", "n3"}

    found.change([node("n1", 3)], [])

    assert names(found) == {"n1", "n2"}
    assert "192.0.2.3, which is n1's" in found.faults["n3"]


def test_a_swap_in_one_change_is_no_contradiction() -> None:
    found = roster(node("n1", 1, "10.1.1.0/24"), node("n2", 2, "10.1.2.0/24"))

    found.change([node("n1", 2, "10.1.2.0/24"), node("n2", 1, "10.1.1.0/24")], [])

    assert found.faults == {}
    assert found.get("n1") == node("n1", 2, "10.1.2.0/24")


def test_overlapping_subnets_are_found_on_every_side() -> None:
    found = roster(node("n1", 1, "10.1.1.0/24"), node("n2", 2, "10.1.3.0/24"))

    for subnet in ("10.1.1.0/24", "10.1.1.128/25", "10.1.0.0/16", "10.1.3.7/32", "10.1.2.0/23"):
        found.change([node("n9", 9, subnet)], [])
        assert "n9" in found.faults, subnet
    found.change([node("n9", 9, "10.1.2.0/24", "fd00::/64")], [])

    assert names(found) == {"n1", "n2", "n9"}


def test_a_node_whose_own_subnets_overlap_is_left_out() -> None:
    assert "n1" in roster(node("n1", 1, "10.1.0.0/16", "10.1.1.0/24")).faults


def test_two_nodes_with_one_mac() -> None:
    assert (
        "VTEP MAC of its own" in roster(node("n1", mac=b"\2\0\0\0\0\1"), node("n2", mac=b"\2\0\0\0\0\1")).faults["n2"]
    )


TEN = ((b"\x0a\0\0\0", 8),)


def test_a_node_that_is_wrong_by_itself_is_forgotten_with_its_name() -> None:
    found = Roster(TEN)
    found.replace([node("n7", 7, "11.1.1.0/24"), node("n1")])
    assert (
        "n7: expected a subnet inside the network (10.0.0.0/8), found 11.1.1.0/24; make the network"
        in found.faults["n7"]
    )

    found.replace([node("n1")])

    assert found.faults == {}


def test_a_node_with_its_address_among_pods_is_left_out_whatever_the_order() -> None:
    inside, pods = node("n1", 9), node("n2", 2, "192.0.2.8/29")

    for first, second in ((inside, pods), (pods, inside)):
        found = roster(first)
        found.change([second], [])
        assert names(found) == {first.name}
        assert "192.0.2." in found.faults[second.name]
    assert "outside of every node's subnets, found 192.0.2.9 in 192.0.2.8/29 of n2" in found.faults["n1"]
    found.change([], ["n2"])
    assert names(found) == {"n1"}


def test_a_node_with_its_own_address_among_its_own_pods_is_left_out() -> None:
    assert "found 192.0.2.1 in 192.0.2.0/24 of n1" in roster(node("n1", 1, "192.0.2.0/24")).faults["n1"]


def test_addresses_of_the_other_family_are_not_among_pods() -> None:
    assert names(roster(node("n1", 1, "::c000:200/120"), node("n2", 2, "fd00::/64"))) == {"n1", "n2"}


def test_a_node_that_becomes_wrong_stays_as_it_was_until_somebody_needs_what_it_had() -> None:
    found = roster(node("n1", 1, "10.1.1.0/24"), node("n2", 2, "10.1.2.0/24"))

    found.change([node("n2", 2, "10.1.1.0/24")], [])

    assert found.get("n2") == node("n2", 2, "10.1.2.0/24")
    assert found.faults["n2"].endswith("overlaps 10.1.1.0/24 of n1; it stays as it was")
    found.change([node("n3", 3, "10.1.2.0/24")], [])
    assert names(found) == {"n1", "n3"}
    found.change([], ["n1"])
    assert found.get("n2") == node("n2", 2, "10.1.1.0/24")
    assert found.faults == {}


def test_a_node_that_leaves_the_network_stays_as_it_was_until_it_is_gone() -> None:
    made = Roster(TEN)
    made.replace([node("n1", 1, "10.1.1.0/24")])

    made.change([node("n1", 1, "11.1.1.0/24")], [])

    assert made.get("n1") == node("n1", 1, "10.1.1.0/24")
    made.change([], ["n1"])
    assert (names(made), made.faults) == (set(), {})


def test_a_mac_that_is_derived_is_its_nodes_own() -> None:
    derived = vtep_mac(1, bytes([192, 0, 2, 1]))
    thief = node("n9", mac=derived)

    for together in ([thief, node("n1")], [node("n1"), thief]):  # a fresh node's first list, whatever its order
        found = Roster(vni=1)
        found.replace(together)
        assert names(found) == {"n1"}
        assert "found " + addr.unpack_mac(derived) + ", which is n1's" in found.faults["n9"]
        assert found.change([], ["n9"]) == ([], [])
    assert names(roster(thief, node("n1"))) == {"n1", "n9"}  # without VXLAN devices there is none


def test_one_mac_on_devices_of_two_families_is_no_contradiction() -> None:
    mac, six = b"\2\0\0\0\0\1", addr.pack("2001:db8::2") or b""

    assert names(roster(node("n1", mac=mac), Node("n2", {16: six}, (), {16: mac}))) == {"n1", "n2"}


def test_a_member_that_changes_is_judged_before_a_newcomer() -> None:
    found = roster(node("n1", 1, "10.1.1.0/24"))

    found.replace([node("n9", 1), node("n1", 1, "10.1.2.0/24")])

    assert found.get("n1") == node("n1", 1, "10.1.2.0/24")
    assert set(found.faults) == {"n9"}


def test_who_else_has_the_own_address_or_mac_yields_and_comes_back() -> None:
    mac = vtep_mac(1, bytes([192, 0, 2, 7]))
    found = Roster(vni=1)
    found.own, found.here = "own", frozenset(bytes([192, 0, 2, last]) for last in (7, 9))
    found.replace([node("n1", 7), node("n2", 2, "10.1.2.0/24", mac=mac), node("own", 9)])
    assert names(found) == {"n1", "own"}

    left, came = found.change([node("own", 7)], [])

    assert ({one.name for one in left}, [one.name for one in came]) == ({"n1", "own"}, ["own"])
    assert set(found.faults) == {"n1", "n2"}
    found.change([node("own", 9)], [])
    assert names(found) == {"n1", "own"}
    found.here = frozenset([bytes([192, 0, 2, 9])])
    found.change([node("own", 7)], [])  # a slip: that is not here
    assert found.get("own") == node("own", 9)
    assert names(found) == {"n1", "own"}


def test_of_two_with_one_address_the_one_of_higher_rank_is_in_whatever_the_order() -> None:
    old, new = node("n1", 9, "10.1.1.0/24", rank=5), node("n2", 9, "10.1.2.0/24", rank=7)

    for together in ([old, new], [new, old]):
        assert names(roster(*together)) == {"n2"}
    found = roster(old)
    assert found.change([new], []) == ([old], [new])
    assert "192.0.2.9, which is n2's; n1 yields to it: delete its entry" in found.faults["n1"]
    assert found.change([], ["n2"]) == ([new], [old])
    assert found.faults == {}


def test_a_rank_that_changes_decides_anew_and_is_no_change_by_itself() -> None:
    found = roster(node("n1", 9, rank=1), node("n2", 9, rank=1), node("n3", rank=1))
    assert names(found) == {"n1", "n3"}  # the first one keeps it

    assert found.change([node("n3", rank=0)], []) == ([], [])
    assert found.change([node("n1", 9, rank=0)], []) == ([node("n1", 9)], [node("n2", 9)])
    assert found.change([node("n1", 9, rank=1)], []) == ([], [])
    assert names(found) == {"n2", "n3"}


def test_who_cannot_come_in_for_another_reason_evicts_nobody() -> None:
    found = roster(node("n1", 9, "10.1.1.0/24"), node("n2", 2, "10.1.2.0/24"))

    assert found.change([node("n3", 9, "10.1.2.0/24", rank=7)], []) == ([], [])

    assert "overlaps 10.1.2.0/24 of n2" in found.faults["n3"]
    found.change([], ["n2"])
    assert names(found) == {"n3"}


def test_who_yields_makes_room_for_those_it_kept_out() -> None:
    found = roster(node("n1", 9, "10.1.1.0/24"), node("n2", 2, "10.1.1.0/24"))
    assert set(found.faults) == {"n2"}

    found.change([node("n3", 9, "10.1.3.0/24", rank=7)], [])

    assert names(found) == {"n2", "n3"}


def test_a_rank_counts_for_addresses_alone() -> None:
    mac = b"\2\0\0\0\0\1"
    found = roster(node("n1", 1, "10.1.1.0/24", mac=mac))

    found.change([node("n2", 2, mac=mac, rank=7), node("n3", 3, "10.1.1.0/24", rank=7)], [])

    assert names(found) == {"n1"}


def test_this_node_yields_to_no_rank() -> None:
    found = Roster()
    found.own = "n1"
    found.replace([node("n1", 9), node("n2", 9, rank=7)])  # also with an address that is away

    assert names(found) == {"n1"}
    assert set(found.faults) == {"n2"}


def test_who_was_in_before_a_restart_yields_to_a_higher_rank() -> None:
    found = Roster()
    found.remember([node("n1", 9)])

    found.replace([node("n1", 9, rank=5), node("n2", 9, rank=7)])

    assert names(found) == {"n2"}


def test_of_two_with_one_name_the_member_stays_as_it_was() -> None:
    found = roster(node("n1"))

    assert found.replace([node("n1", 9), node("n1")]) == ([], [])
    assert found.replace([node("n1", 8), node("n1", 9)]) == ([], [])


def test_a_member_that_cannot_be_read_stays_and_keeps_what_it_has() -> None:
    found = roster(node("n1"), node("n2", 2, "10.1.2.0/24"))

    assert found.replace([node("n1"), node("n3", 3, "10.1.2.0/24")], ["n2", "n7"]) == ([], [])

    assert names(found) == {"n1", "n2"}
    assert set(found.faults) == {"n3"}
    assert found.may_be_in("n7", frozenset())
    assert not found.may_be_in("n8", frozenset())
    assert found.may_be_in("", frozenset()), "an unnamed node may be any"
    assert found.may_be_in("n8", frozenset([bytes([192, 0, 2, 3])])), "n3, which is refused, has its address"
    found.replace([node("n1"), node("n3", 3, "10.1.2.0/24")])
    assert names(found) == {"n1", "n3"}


def test_a_member_that_cannot_be_read_is_not_what_it_was_to_become() -> None:
    found = roster(node("n1", 1, "10.1.1.0/24"), node("n2", 2, "10.1.2.0/24"))
    found.change([node("n2", 2, "10.1.1.0/24")], [])

    found.replace([], ["n2"])

    assert found.get("n2") == node("n2", 2, "10.1.2.0/24")
    assert found.faults == {}


def test_nobody_is_gone_while_a_member_has_no_name() -> None:
    found = roster(node("n1"), node("n2"))

    found.replace([node("n3")], [""])

    assert names(found) == {"n1", "n2", "n3"}
    assert found.may_be_in("n8", frozenset())


def test_who_was_in_before_a_restart_is_in_after_it() -> None:
    rival, member = node("n1", 1, "10.1.1.0/24"), node("n2", 2, "10.1.1.0/24")
    found = Roster()
    found.remember([member, node("n3")])

    left, came = found.replace([rival, member])

    assert (left, came) == ([node("n3")], [])
    assert names(found) == {"n2"}
    assert set(found.faults) == {"n1"}


nodes = st.builds(
    lambda number, address, start, length, of, rank: node(
        f"n{number}", address,
        *([f"10.{start << (8 - length)}.0.0/{8 + length}"] if start else [f"192.0.2.{address ^ 2}/32"]),
        mac=vtep_mac(1, bytes([192, 0, 2, of])) if of else None, rank=rank,
    ),
    st.integers(1, 5), st.integers(1, 6), st.integers(0, 3), st.integers(2, 4), st.integers(0, 3), st.integers(0, 2),
)  # fmt: skip


def may_come_in(waiting: Node, found: Roster) -> bool:
    """Whether nobody stands against a node but such as have its address, and a lower rank."""
    agreed = Agreed(vni=1)
    for member in found:
        yields = (
            not set(member.addresses.values()).isdisjoint(waiting.addresses.values()) and member.rank < waiting.rank
        )
        if member.name != waiting.name and not yields:
            agreed.enter(member)
    return not agreed.contradiction(waiting)


@given(st.lists(st.tuples(st.lists(nodes, max_size=4), st.lists(st.sampled_from(["n1", "n2", "n3"]), max_size=2))))
def test_those_in_it_never_contradict_and_nobody_is_lost(changes: list[tuple[list[Node], list[str]]]) -> None:
    found = Roster(vni=1)
    known: dict[str, Any] = {}
    for put, gone in changes:
        left, came = found.change(put, gone)
        known = {name: one for name, one in known.items() if name not in gone} | {one.name: one for one in put}

        refuse_contradictions(found, vni=1)
        assert {one.name for one in found} | set(found.faults) == set(known)
        assert all(one == known[one.name] or one.name in found.faults for one in found)
        assert all(found.get(one.name) == one for one in came)
        assert not [name for name in found.faults if may_come_in(known[name], found)], "somebody waits for nothing"
        assert len({one.name for one in left}) == len(left)
