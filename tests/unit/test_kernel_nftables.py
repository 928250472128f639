"""nftables answers are read from any bytes; a comment survives there and back."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.errors import KernelError
from cni.kernel import nftables, nftsteps, ops
from cni.kernel.netlink import attrs
from tests.unit.test_kernel_rtnetlink import ANY_BODY

INET = ops.NFPROTO_INET


def made_rule(comment: str, *expressions: tuple[Any, ...]) -> bytes:
    """The body of NFT_MSG_NEWRULE for a rule, with a handle as the kernel adds it."""
    _, _, body = nftables.encode(ops.nft_rule_add(INET, "t", "c", list(expressions), comment), 0)
    return body + b"\x0c\x00\x03\x00" + (42).to_bytes(8, "big")


def test_rule_is_read_with_handle_comment_and_targets() -> None:
    body = made_rule("for net1", nftables.iifname("veth1"), nftables.jump("one"), nftables.goto("two"), nftables.drop())

    rule = nftables.parse_rule(body)

    assert (rule.handle, rule.comment, rule.targets, rule.iifname) == (42, "for net1", ["one", "two"], "veth1")


@pytest.mark.parametrize("expressions", [[], [nftables.ether_saddr(bytes(6)), nftables.nfproto(2)]])
def test_rule_for_any_interface(expressions: list[tuple[Any, ...]]) -> None:
    assert nftables.parse_rule(made_rule("", *expressions, nftables.jump("one"))).iifname == ""


@given(comment=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=31))
def test_any_comment_that_fits_comes_back(comment: str) -> None:
    assert nftables.parse_rule(made_rule(comment)).comment == comment


def test_comment_is_cut_where_nft_would_refuse_it() -> None:
    assert nftables.parse_rule(made_rule("x" * 500)).comment == "x" * 127


@pytest.mark.parametrize("match", [nftables.daddr_in, nftables.saddr_in], ids=lambda match: match.__name__)
@pytest.mark.parametrize("prefix", [1, 4, 8, 20, 24, 31, 32])
def test_network_matches_compare_only_the_prefix(prefix: int, match: Any) -> None:
    net = bytes([203, 113, 201, 85])
    _, _, body = nftables.encode(ops.nft_rule_add(INET, "t", "c", [match(2, net, prefix)]), 0)

    masked = (int.from_bytes(net, "big") >> 32 - prefix << 32 - prefix).to_bytes(4, "big")
    assert b"\x08\x00\x01\x00" + masked in attrs(body, 4)[4]


@pytest.mark.parametrize("family", [ops.NFPROTO_IPV4, ops.NFPROTO_IPV6, INET])
def test_steps_are_what_was_made(family: int) -> None:
    size, net = (16, b"\xfd" + bytes(15)) if family == ops.NFPROTO_IPV6 else (4, b"\x0a\0\0\0")
    proto = ops.NFPROTO_IPV6 if size == 16 else ops.NFPROTO_IPV4
    guard = [nftables.nfproto(proto)] if family == INET else []
    matches = [nftables.saddr_in(proto, net, 8), nftables.daddr_not_in(proto, net, 9), nftables.iifname("veth1")]
    _, _, body = nftables.encode(ops.nft_rule_add(family, "t", "c", [*guard, *matches, nftables.goto("two")], "why"), 0)

    step = nftsteps.parse_step(body)

    assert (step.size, step.comment, step.verdict, step.target) == (size, "why", "goto", "two")
    assert step.addresses == [("saddr", (net, 8), False), ("daddr", (net, 9), True)]
    assert step.links == [("iif", "veth1", False)]
    assert not step.open
    assert not step.narrow


PARSERS = [nftables.parse_rule, nftables.parse_keys, nftsteps.parse_step, nftsteps.parse_chain]


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(body=ANY_BODY)
def test_any_bytes_give_a_value_or_the_one_error(parse: Any, body: bytes) -> None:
    with suppress(KernelError):
        parse(body)
