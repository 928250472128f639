"""Names: which are allowed and which we derive."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import names

ids = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=300).filter(lambda t: t[0].isalnum())
interfaces = st.text(string.ascii_letters + string.digits + "-_.", min_size=1, max_size=15)


@pytest.mark.parametrize("value", ["a", "0", "a.b-c_d", "A" * 300, "9" * 64])
def test_identifiers(value: str) -> None:
    assert names.identifier_fault(value) == ""


@pytest.mark.parametrize("value", ["", "-a", ".", "_a", "a b", "a/b", "a:b", "é", "٣", "a\0", "a\n", "\udcff"])
def test_no_identifiers(value: str) -> None:
    assert names.identifier_fault(value)


@pytest.mark.parametrize("value", ["e", "eth0", "a" * 15, "a.b", "...", "é", "a@b"])
def test_interface_names(value: str) -> None:
    assert names.interface_fault(value) == ""


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "..",
        "a" * 16,
        "é" * 8,
        "a/b",
        "a:b",
        "a b",
        "a\tb",
        "a\n",
        "a\u00a0b",
        "a\0b",
        "a\udcff",
        "eth%d",
        "100%",
        "à",
    ],
)
def test_no_interface_names(value: str) -> None:
    assert names.interface_fault(value)


@given(ids, interfaces, ids, interfaces)
def test_attachment_keys_are_file_names_and_never_shared(a: str, if_a: str, b: str, if_b: str) -> None:
    one, other = names.attachment_key(a, if_a), names.attachment_key(b, if_b)

    assert (one == other) == ((a, if_a) == (b, if_b))
    assert "/" not in one
    assert len(one) <= 255


def test_attachment_key_is_readable_while_it_fits() -> None:
    assert names.attachment_key("ctr", "eth0") == "ctr:eth0"
    assert names.attachment_key("c" * 250, "eth0").startswith("sha512-")


@given(ids, ids, interfaces, st.integers(0, 3))
def test_host_end_is_a_valid_name_and_a_unicast_mac(network: str, container: str, ifname: str, attempt: int) -> None:
    name, mac = names.host_end(network, container, ifname, attempt)

    assert names.interface_fault(name) == ""
    assert name.startswith("veth")
    assert len(mac) == 6
    assert mac[0] & 3 == 2  # locally administered, not a group
    assert names.host_end(network, container, ifname, attempt) == (name, mac)


def test_host_end_differs_by_every_part() -> None:
    ends = [
        names.host_end(*parts)
        for parts in (
            ("n", "c", "i", 0),
            ("n", "c", "i", 1),
            ("n", "c", "j", 0),
            ("n", "d", "i", 0),
            ("m", "c", "i", 0),
        )
    ]

    assert len({name for name, _ in ends}) == len({mac for _, mac in ends}) == 5


def test_owner() -> None:
    assert names.owner("net", "ctr", "eth0") == "cnikit net/ctr/eth0"
    assert names.owner("net", "ctr", "eth0").startswith(names.owner_of_all("net"))


@pytest.mark.parametrize("network", ["n" * 239, "n" * 240, "n" * 400])
def test_a_label_is_cut_at_whole_characters(network: str) -> None:
    """An alias and a comment hold 255 bytes, and an interface's name may be of two bytes each letter."""
    label = names.owner(network, "c", "ééééééé")

    assert len(label.encode()) <= names.LONGEST_LABEL
    assert label.startswith("cnikit n")


@pytest.mark.parametrize(
    ("label", "holder"),
    [
        ("cnikit net/ctr/eth0", ("ctr", "eth0")),
        ("cnikit renamed/ctr/eth0", ("ctr", "eth0")),
        ("cnikit net/other/eth1", ("other", "eth1")),
        ("cnikit net", None),
        ("somebody/else/s", None),
        ("", None),
        (names.owner("n" * 300, "other", "eth0"), None),
    ],
)
def test_whose_a_label_is(label: str, holder: tuple[str, str] | None) -> None:
    assert names.holder(label) == holder


@given(st.text("abc", max_size=600), st.text("abc", max_size=600))
def test_file_names_fit_and_differ(one: str, other: str) -> None:
    assert len(names.file_name(one)) <= 200
    assert (names.file_name(one) == names.file_name(other)) == (one == other)
