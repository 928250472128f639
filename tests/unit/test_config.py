"""Reading configuration by Go's rules, with the key path in every complaint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cni.config import INT64, Reader
from cni.errors import INVALID_CONFIG, CniError

if TYPE_CHECKING:
    from collections.abc import Callable

    Get = Callable[[Reader], Any]

MAC = b"\x0a\x58\x0a\x01\x00\x02"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"mtu": 1400}, 1400),
        ({"MTU": 1400}, 1400),
        ({"mtu": 1400, "MTU": 1500}, 1500),  # the last spelling counts
        ({"MTU": 1500, "mtu": 1400}, 1400),
        ({"mtu": 1400, "MTU": None}, 1400),  # null is absent
        ({"mtu": None}, 7),
        ({}, 7),
        ({"other": 1}, 7),
        ({"mtu": 0}, 0),
    ],
)
def test_keys_match_without_regard_to_case_and_the_last_counts(value: dict[str, Any], found: int) -> None:
    assert Reader(value).integer("mtu", 7) == found


@pytest.mark.parametrize(
    ("get", "found"),
    [
        (lambda r: r.string("s", "default"), "text"),
        (lambda r: r.string("none", "default"), "default"),
        (lambda r: r.boolean("b"), True),
        (lambda r: r.boolean("none", default=True), True),
        (lambda r: r.integer("i", low=0, high=5), 5),
        (lambda r: r.object("o").integer("i"), 6),
        (lambda r: r.object("none").object("deeper").integer("i", 9), 9),
        (lambda r: r.array("none"), []),
        (lambda r: r.array("a"), [("a[0]", "x"), ("a[1]", "y")]),
        (lambda r: r.strings("a"), ["x", "y"]),
        (lambda r: [item.at("i") for item in r.objects("os")], ["os[0].i", "os[1].i"]),
        (lambda r: r.address("ip"), b"\x0a\x01\x00\x02"),
        (lambda r: r.address("empty"), None),
        (lambda r: r.address("none"), None),
        (lambda r: r.mac("mac"), MAC),
        (lambda r: r.mac("empty"), None),
        (lambda r: r.raw("S"), "text"),
    ],
)
def test_getters(get: Get, found: Any) -> None:
    value = {
        "s": "text", "b": True, "i": 5, "o": {"I": 6}, "a": ["x", "y"], "os": [{"i": 1}, {}], "ip": "10.1.0.2",
        "mac": "0a:58:0A:01:00:02", "empty": "",
    }  # fmt: skip

    assert get(Reader(value)) == found


WRONG: list[tuple[dict[str, Any], Get, str]] = [
    ({"s": 5}, lambda r: r.string("s"), "s: expected a string, found 5"),
    ({"s": {"a": 1}}, lambda r: r.string("s"), 's: expected a string, found {"a":1}'),
    ({"b": 1}, lambda r: r.boolean("b"), "b: expected true or false, found 1"),
    ({"b": "true"}, lambda r: r.boolean("b"), 'b: expected true or false, found "true"'),
    ({"i": True}, lambda r: r.integer("i"), "i: expected an integer, found true"),
    ({"i": 5.0}, lambda r: r.integer("i"), "i: expected an integer, found 5.0"),
    ({"i": "5"}, lambda r: r.integer("i"), 'i: expected an integer, found "5"'),
    ({"i": -1}, lambda r: r.integer("i", low=0), "i: expected an integer of at least 0, found -1"),
    ({"i": 9}, lambda r: r.integer("i", low=1, high=8), "i: expected an integer from 1 to 8, found 9"),
    ({"i": INT64}, lambda r: r.integer("i"), f"found {INT64}"),
    ({"o": []}, lambda r: r.object("o"), "o: expected an object, found []"),
    ({"o": {"P": {"q": 1}}}, lambda r: r.object("o").object("p").string("q"), "o.p.q: expected a string, found 1"),
    ({"a": {}}, lambda r: r.array("a"), "a: expected an array, found {}"),
    ({"a": ["x", None]}, lambda r: r.strings("a"), "a[1]: expected a string, found null"),
    ({"a": [{}, 1]}, lambda r: r.objects("a"), "a[1]: expected an object, found 1"),
    ({"a": [[{"x": 1}]]}, lambda r: r.objects("a"), 'a[0]: expected an object, found [{"x":1}]'),
    ({"a": [{}, {"b": 1}]}, lambda r: r.objects("a")[1].string("b"), "a[1].b: expected a string, found 1"),
    ({"ip": "10.1.0.2/24"}, lambda r: r.address("ip"), 'ip: expected an IP address, found "10.1.0.2/24"'),
    ({"ip": 5}, lambda r: r.address("ip"), "ip: expected a string, found 5"),
    ({"mac": "0a:58"}, lambda r: r.mac("mac"), "mac: expected a MAC address such as 0a:58:0a:01:00:02"),
]


@pytest.mark.parametrize(("value", "get", "message"), WRONG, ids=[case[2] for case in WRONG])
def test_wrong_values_are_refused_with_path_expected_and_found(value: dict[str, Any], get: Get, message: str) -> None:
    with pytest.raises(CniError) as caught:
        get(Reader(value))

    assert caught.value.code == INVALID_CONFIG
    assert message in caught.value.msg


def test_path_of_a_nested_reader() -> None:
    assert Reader({}).at("name") == "name"
    assert Reader({}, "ipam.ranges[0][1]").at("rangeEnd") == "ipam.ranges[0][1].rangeEnd"
