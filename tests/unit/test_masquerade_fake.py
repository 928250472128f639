"""Masquerading in nftables on the fake kernel: one table, per network a chain, per subnet a set and a rule."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from cni import addr
from cni.errors import INTERNAL, CniError
from cni.kernel import ops
from cni.kernel.nftables import daddr_not_in, nfproto, saddr_in_set
from cni.kernel.nftables import masquerade as masquerade_expression
from cni.kernel.ops import NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6
from cni.request import Request
from cni.testing.faulty_kernel import FaultyKernel
from plugins import masquerade
from tests.unit.calls import Node

if TYPE_CHECKING:
    from pathlib import Path

    from cni.context import Context
    from cni.delegate import Delegate
    from cni.kernel import Kernel

ONE = (b"\x0a\x01\x00\x02", 24)
TWO = (b"\x0a\x01\x00\x03", 24)
SIX = (b"\xfd" + bytes(14) + b"\x02", 64)
TABLE = "1 cnikit"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def no_delegate() -> Delegate:
    pytest.fail("masquerading asked for the IPAM plugin")


def context(node: Node, container: str = "ctr", network: str = "net", kernel: Kernel | None = None) -> Context:
    from cni.config import Reader
    from cni.context import Context

    request = Request(node.environ("ADD", container))
    return Context(node.world(kernel), "bridge", request, Reader({"name": network}), "1.1.0", no_delegate)


def add(node: Node, *subnets: tuple[bytes, int], container: str = "ctr", network: str = "net") -> None:
    masquerade.add(context(node, container, network), masquerade.NFTABLES, list(subnets))


def remove(node: Node, *subnets: tuple[bytes, int], container: str = "ctr", network: str = "net") -> None:
    masquerade.remove(context(node, container, network), masquerade.NFTABLES, list(subnets), container, "eth0")


def table(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.own("nft")[TABLE]
    return found


def elements(node: Node) -> dict[str, list[bytes]]:
    return {name: list(one["elements"]) for name, one in table(node)["sets"].items()}


def holders(node: Node) -> dict[str, str]:
    return {name.rpartition("/")[2]: text for name, text in node.snapshot()["files"].items() if "/holders/" in name}


def test_first_pod_makes_table_chain_set_rule_and_element(node: Node) -> None:
    add(node, ONE, SIX)

    net6 = addr.network(*SIX)
    assert table(node) == {
        "chains": {
            "masq-net": {
                "hook": ("nat", "postrouting", 100),
                "rules": [
                    (
                        [
                            nfproto(NFPROTO_IPV4),
                            saddr_in_set(NFPROTO_IPV4, "pods-net-0a010000/24"),
                            daddr_not_in(NFPROTO_IPV4, b"\x0a\x01\x00\x00", 24),
                            daddr_not_in(NFPROTO_IPV4, b"\xe0\0\0\0", 4),
                            masquerade_expression(),
                        ],
                        "10.1.0.0/24",
                    ),
                    (
                        [
                            nfproto(NFPROTO_IPV6),
                            saddr_in_set(NFPROTO_IPV6, f"pods-net-{net6.hex()}/64"),
                            daddr_not_in(NFPROTO_IPV6, net6, 64),
                            daddr_not_in(NFPROTO_IPV6, b"\xff" + bytes(15), 8),
                            masquerade_expression(),
                        ],
                        "fd00::/64",
                    ),
                ],
            }
        },
        "sets": {
            "pods-net-0a010000/24": {"key": "ipv4_addr", "elements": {ONE[0]: "cnikit net/ctr/eth0"}},
            f"pods-net-{net6.hex()}/64": {"key": "ipv6_addr", "elements": {SIX[0]: "cnikit net/ctr/eth0"}},
        },
    }
    assert holders(node) == {"10.1.0.2_24": "-> ctr:eth0", "fd00::2_64": "-> ctr:eth0"}


def test_second_pod_adds_an_element_and_no_rule(node: Node) -> None:
    add(node, ONE)
    before = table(node)["chains"]
    faulty = FaultyKernel(node.kernel)

    masquerade.add(context(node, "two", kernel=faulty), masquerade.NFTABLES, [TWO])

    assert table(node)["chains"] == before
    assert elements(node) == {"pods-net-0a010000/24": [ONE[0], TWO[0]]}
    assert [verb for verb in faulty.verbs if verb.startswith("add ")] == [
        "add element 0a010003 to nftables set cnikit pods-net-0a010000/24"
    ]


def test_networks_have_their_own_chains_and_sets(node: Node) -> None:
    add(node, ONE)
    add(node, ONE, network="net2", container="two")

    remove(node, ONE, network="net2", container="two")

    assert elements(node) == {"pods-net-0a010000/24": [ONE[0]], "pods-net2-0a010000/24": []}
    assert sorted(table(node)["chains"]) == ["masq-net", "masq-net2"]


def test_what_somebody_removed_is_made_again(node: Node) -> None:
    add(node, ONE)
    host = node.kernel.own()
    host.nft(
        ops.nft_chain_flush(NFPROTO_INET, "cnikit", "masq-net"), ops.nft_chain_del(NFPROTO_INET, "cnikit", "masq-net")
    )

    add(node, TWO, container="two")

    assert [comment for _, comment in table(node)["chains"]["masq-net"]["rules"]] == ["10.1.0.0/24"]
    assert elements(node) == {"pods-net-0a010000/24": [ONE[0], TWO[0]]}


def test_remove_takes_the_element_and_leaves_the_skeleton(node: Node) -> None:
    add(node, ONE, SIX)
    chains = table(node)["chains"]

    remove(node, ONE, SIX)

    assert set(map(tuple, elements(node).values())) == {()}
    assert table(node)["chains"] == chains
    assert holders(node) == {}
    remove(node, ONE, SIX)


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_an_address_belongs_to_whoever_came_last(node: Node, order: tuple[str, str]) -> None:
    add(node, ONE, container="first")
    add(node, ONE, container="second")

    remove(node, ONE, container=order[0])
    left = [ONE[0]] if order[0] == "first" else []
    assert elements(node) == {"pods-net-0a010000/24": left}

    remove(node, ONE, container=order[1])
    assert elements(node) == {"pods-net-0a010000/24": []}
    assert holders(node) == {}


def test_remove_without_anything_there(node: Node) -> None:
    before = node.snapshot()

    remove(node, ONE, SIX)

    assert node.snapshot() == before


def test_remove_after_somebody_flushed_everything(node: Node) -> None:
    add(node, ONE)
    node.kernel._own.nft.tables.clear()

    remove(node, ONE)

    assert holders(node) == {}


def test_add_pushes_its_undo(node: Node) -> None:
    ctx = context(node)
    masquerade.add(ctx, masquerade.NFTABLES, [ONE])

    ctx.undo.unwind()

    assert elements(node) == {"pods-net-0a010000/24": []}
    assert holders(node) == {}


def test_add_failing_at_every_verb_can_be_taken_back(tmp_path: Path) -> None:
    for verb in range(1, 100):
        (tmp_path / str(verb)).mkdir()
        node = Node(tmp_path / str(verb))
        faulty = FaultyKernel(node.kernel, verb)
        ctx = context(node, kernel=faulty)
        try:
            masquerade.add(ctx, masquerade.NFTABLES, [ONE, SIX])
        except CniError:
            assert faulty.failed
        else:
            break
        ctx.undo.unwind()
        assert node.own("nft") == {}
        assert holders(node) == {}, faulty.failed
    assert verb > 8


def test_long_network_names_are_hashed(node: Node) -> None:
    network = "n" * 200

    add(node, ONE, network=network)

    assert all(len(name) < 256 for name in [*table(node)["chains"], *table(node)["sets"]])
    masquerade.check(context(node, network=network), masquerade.NFTABLES, [ONE])


def forget(node: Node) -> None:
    """The folder of holders is lost, as with /run."""
    shutil.rmtree(node.run_dir, ignore_errors=True)


def replace_and_forget(node: Node) -> None:
    add(node, ONE, container="two")
    forget(node)


def test_the_label_decides_where_there_is_no_holder(node: Node) -> None:
    add(node, ONE, SIX)
    add(node, TWO, container="two")
    forget(node)
    masquerade.check(context(node), masquerade.NFTABLES, [ONE, SIX])

    remove(node, ONE, SIX)

    assert [key for keys in elements(node).values() for key in keys] == [TWO[0]]
    assert holders(node) == {"10.1.0.3_24": "-> cnikit net/two/eth0"}
    masquerade.check(context(node, "two"), masquerade.NFTABLES, [TWO])
    remove(node, TWO, container="two")
    assert holders(node) == {}


def test_one_lost_holder_is_no_loss_either(node: Node) -> None:
    add(node, ONE)
    context(node).records.release("10.1.0.2/24")
    masquerade.check(context(node), masquerade.NFTABLES, [ONE])

    remove(node, ONE)

    assert elements(node) == {"pods-net-0a010000/24": []}


def test_the_label_is_of_whoever_came_last(node: Node) -> None:
    add(node, ONE)
    add(node, ONE, container="two")
    forget(node)

    remove(node, ONE)

    assert table(node)["sets"]["pods-net-0a010000/24"]["elements"] == {ONE[0]: "cnikit net/two/eth0"}


def test_labels_that_are_cut_still_find_their_owner(node: Node) -> None:
    long = "c" * 300
    add(node, ONE, container=long)
    forget(node)
    masquerade.check(context(node, long), masquerade.NFTABLES, [ONE])

    remove(node, ONE, container=long)

    assert elements(node) == {"pods-net-0a010000/24": []}


def test_a_later_pod_without_masquerading_ends_it(node: Node) -> None:
    add(node, ONE, TWO)
    add(node, ONE, network="net-two", container="other")

    masquerade.remove_former(context(node, "two"), [ONE])
    assert elements(node) == {"pods-net-0a010000/24": [TWO[0]], "pods-net-two-0a010000/24": [ONE[0]]}

    forget(node)
    masquerade.remove_former(context(node, "three"), [TWO])
    assert elements(node) == {"pods-net-0a010000/24": [], "pods-net-two-0a010000/24": [ONE[0]]}


def test_a_pod_without_masquerading_asks_the_kernel_once_for_all(node: Node) -> None:
    faulty = FaultyKernel(node.kernel)
    masquerade.remove_former(context(node, kernel=faulty), [ONE])
    first = list(faulty.verbs)

    masquerade.remove_former(context(node, "two", kernel=faulty), [TWO])

    assert first == ["own", "nft_rules cnikit masq-net"]
    assert faulty.verbs == first


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda n: remove(n, ONE), "10.1.0.2/24 in nftables set inet cnikit pods-net-0a010000/24, found it missing"),
        (lambda n: n.kernel._own.nft.tables.clear(), "a rule for 10.1.0.0/24 in nftables chain inet cnikit masq-net"),
        (lambda n: add(n, ONE, container="two"), "masqueraded for ctr:eth0, found it held by two:eth0"),
        (
            replace_and_forget,
            "masqueraded for ctr:eth0, found it held by cnikit net/two",
        ),
    ],
)
def test_check_names_what_is_missing(node: Node, spoil: Any, complaint: str) -> None:
    add(node, ONE)
    masquerade.check(context(node), masquerade.NFTABLES, [ONE])

    spoil(node)

    with pytest.raises(CniError) as caught:
        masquerade.check(context(node), masquerade.NFTABLES, [ONE])
    assert caught.value.code == INTERNAL
    assert complaint in caught.value.msg


def test_status_asks_the_kernel(node: Node) -> None:
    masquerade.status(context(node), masquerade.NFTABLES)

    with pytest.raises(CniError, match="EIO"):
        masquerade.status(context(node, kernel=FaultyKernel(node.kernel, 2)), masquerade.NFTABLES)
