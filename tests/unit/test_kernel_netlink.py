"""Netlink framing: what is written is read again, and any bytes give messages or the one error."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.errors import KernelError
from cni.kernel import netlink


@given(st.lists(st.tuples(st.integers(1, 40), st.binary(max_size=50)), max_size=6))
def test_attributes_come_back_in_order(wanted: list[tuple[int, bytes]]) -> None:
    data = b"".join(netlink.attr(kind, value) for kind, value in wanted)

    assert list(netlink.each_attr(data)) == wanted


@given(
    st.lists(st.tuples(st.integers(16, 99), st.integers(0, 9), st.integers(1, 9), st.binary(max_size=40)), max_size=6)
)
def test_messages_come_back_in_order(wanted: list[tuple[int, int, int, bytes]]) -> None:
    bodies = [(kind, flags, seq, body + bytes(-len(body) % 4)) for kind, flags, seq, body in wanted]
    data = b"".join(netlink.message(*one) for one in bodies)

    assert list(netlink.messages(data)) == bodies


@given(st.binary(max_size=200))
def test_any_bytes_end(data: bytes) -> None:
    with suppress(KernelError):
        for kind, flags, _, body in netlink.messages(data):
            if kind == 2:
                netlink.acknowledgement(flags, body)
            list(netlink.each_attr(body))


@pytest.mark.parametrize("capped", [True, False])
def test_refusal_carries_the_kernels_words(capped: bool) -> None:  # noqa: FBT001 - a parameter
    request = netlink.message(16, 1, 3, b"" if capped else b"body" * 5)
    flags = 0x200 | (0x100 if capped else 0)
    body = (-22).to_bytes(4, "little", signed=True) + request + netlink.attr_text(1, "Device is too small")

    assert netlink.acknowledgement(flags, body) == (22, "Device is too small")
