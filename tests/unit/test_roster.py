"""The members of a network as far as they agree: whoever contradicts is left out, and comes in when it can."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.roster import Roster
from cni import addr
from plugins.peers import Node, refuse_contradictions


def node(name: str, address: int = 0, *subnets: str, mac: bytes | None = None) -> Node:
    packed = tuple(found for found in map(addr.pack_cidr, subnets) if found)
    return Node(name, {4: bytes([192, 0, 2, address or int(name[1:])])}, packed, {4: mac} if mac else None)


def roster(*nodes: Node) -> Roster:
    made = Roster(lambda node: "no" if node.name == "wrong" else "")
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
    found = Roster(lambda _: "")
    found.own = "n1"
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


def test_a_node_that_is_wrong_by_itself_is_forgotten_with_its_name() -> None:
    found = roster(node("wrong", 7), node("n1"))
    assert found.faults == {"wrong": "no"}

    found.replace([node("n1")])

    assert found.faults == {}


def test_a_node_with_its_address_among_pods_is_left_out_whatever_the_order() -> None:
    inside, pods = node("n1", 9), node("n2", 2, "192.0.2.8/29")

    for first, second in ((inside, pods), (pods, inside)):
        found = roster(first)
        found.change([second], [])
        assert names(found) == {first.name}
        assert "192.0.2." in found.faults[second.name]
    assert "outside of every node's subnets, found 192.0.2.9, which is in one of n2" in found.faults["n1"]
    found.change([], ["n2"])
    assert names(found) == {"n1"}


def test_a_node_with_its_own_address_among_its_own_pods_is_left_out() -> None:
    assert "found 192.0.2.1, which is in one of n1" in roster(node("n1", 1, "192.0.2.0/24")).faults["n1"]


def test_addresses_of_the_other_family_are_not_among_pods() -> None:
    assert names(roster(node("n1", 1, "::c000:200/120"), node("n2", 2, "fd00::/64"))) == {"n1", "n2"}


def test_a_node_that_becomes_wrong_stays_as_it_was_until_somebody_needs_what_it_had() -> None:
    found = roster(node("n1", 1, "10.1.1.0/24"), node("n2", 2, "10.1.2.0/24"))

    found.change([node("n2", 2, "10.1.1.0/24")], [])

    assert found.get("n2") == node("n2", 2, "10.1.2.0/24")
    assert found.faults["n2"].endswith("overlaps one of n1; it stays as it was")
    found.change([node("n3", 3, "10.1.2.0/24")], [])
    assert names(found) == {"n1", "n3"}
    found.change([], ["n1"])
    assert found.get("n2") == node("n2", 2, "10.1.1.0/24")
    assert found.faults == {}


def test_a_node_that_leaves_the_network_stays_as_it_was_until_it_is_gone() -> None:
    made = Roster(lambda one: "no" if one.subnets and one.subnets[0][0][0] != 10 else "")
    made.replace([node("n1", 1, "10.1.1.0/24")])

    made.change([node("n1", 1, "11.1.1.0/24")], [])

    assert made.get("n1") == node("n1", 1, "10.1.1.0/24")
    made.change([], ["n1"])
    assert (names(made), made.faults) == (set(), {})


nodes = st.builds(
    lambda number, address, start, length: node(
        f"n{number}", address,
        *([f"10.{start << (8 - length)}.0.0/{8 + length}"] if start else [f"192.0.2.{address ^ 2}/32"]),
    ),
    st.integers(1, 5), st.integers(1, 6), st.integers(0, 3), st.integers(2, 4),
)  # fmt: skip


@given(st.lists(st.tuples(st.lists(nodes, max_size=4), st.lists(st.sampled_from(["n1", "n2", "n3"]), max_size=2))))
def test_those_in_it_never_contradict_and_nobody_is_lost(changes: list[tuple[list[Node], list[str]]]) -> None:
    found = Roster(lambda _: "")
    known: dict[str, Any] = {}
    for put, gone in changes:
        left, came = found.change(put, gone)
        known = {name: one for name, one in known.items() if name not in gone} | {one.name: one for one in put}

        refuse_contradictions(found)
        assert {one.name for one in found} | set(found.faults) == set(known)
        assert all(one == known[one.name] or one.name in found.faults for one in found)
        assert all(found.get(one.name) == one for one in came)
        assert len({one.name for one in left}) == len(left)
