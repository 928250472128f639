"""Of nodes with one address those of which something is heard are told, whatever the order of what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from hypothesis import given
from hypothesis import strategies as st

from agent.membership.kubernetes_living import Living
from agent.membership.troubles import Troubles
from plugins.peers import Node
from tests.kubernetes.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OWN = "own"
NAMES = (OWN, "a", "b", "c")
nodes = st.builds(
    lambda name, four, six: Node(name, {4: bytes([192, 0, 2, four]), 16: bytes(15) + bytes([six])}, ()),
    st.sampled_from(NAMES), st.integers(1, 2), st.integers(1, 3),
)  # fmt: skip
steps = st.one_of(
    st.tuples(st.just("put"), nodes),
    st.tuples(st.just("gone"), st.sampled_from(NAMES)),
    st.tuples(st.just("silent"), st.tuples(st.sampled_from(NAMES), st.booleans())),
    st.tuples(st.just("list"), st.lists(nodes, unique_by=lambda node: node.name)),
)


def expected(there: Mapping[str, Node], silent: set[str]) -> dict[str, Node]:
    def yields(node: Node) -> bool:
        if node.name not in silent or node.name == OWN:
            return False
        others = [
            other for other in there.values() if other is not node and (other.name not in silent or other.name == OWN)
        ]
        return any(set(node.addresses.values()) & set(other.addresses.values()) for other in others)

    return {name: node for name, node in there.items() if not yields(node)}


@given(st.lists(steps, max_size=20))
def test_who_is_told_follows_from_who_is_there(history: list[tuple[str, object]]) -> None:
    told = Recorder()
    living = Living(OWN, told, Troubles(told.trouble))
    there: dict[str, Node] = {}
    silent: set[str] = set()

    for step in history:
        match step:
            case ("put", Node() as node):
                there[node.name] = node
                living.change([node], [])
            case ("gone", str() as name) if name in there:
                del there[name]
                silent.discard(name)
                living.change([], [name])
            case ("silent", (str() as name, bool() as is_silent)) if name in there:
                (silent.add if is_silent else silent.discard)(name)
                living.hear(name, silent=is_silent)
            case ("list", list() as listed):
                there = {node.name: node for node in listed}
                silent &= there.keys()
                living.replace(listed, set(silent))
        assert told.nodes == expected(there, silent)
        assert bool(told.trouble_now) == (told.nodes != there)


class Unlisted(dict[str, Node]):
    """Thousands of nodes, of which nobody should look at each."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("all nodes were looked at for the change of one")

    def keys(self) -> NoReturn:
        raise AssertionError("all nodes were looked at for the change of one")


def test_a_change_of_one_node_asks_nothing_of_all_others() -> None:
    told = Recorder()
    living = Living(OWN, told, Troubles(told.trouble))
    living._nodes = Unlisted()

    living.change([Node("a", {4: b"\xc0\0\2\1"}, ()), Node("b", {4: b"\xc0\0\2\2"}, ())], [])
    living.change([], ["a"])

    assert told.nodes.keys() == {"b"}
