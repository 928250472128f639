"""JSON in and out: any bytes give a value or CniError 6, and what is valid is read as Python's `json` reads it."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import jsonio
from cni.errors import DECODING_FAILURE, CniError

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))
# Text that is often nearly JSON.
nearly = st.lists(st.sampled_from([*'{}[]",:0123456789.eE+- \t\n\\', "true", "null", "1e999", "NaN", '"a"'])).map(
    "".join
)


def no_constant(name: str) -> NoReturn:
    raise ValueError(name)


@given(st.binary() | nearly.map(str.encode) | values.map(lambda value: json.dumps(value).encode()[:-1]))
def test_any_bytes_give_a_value_or_code_6(data: bytes) -> None:
    try:
        jsonio.encode(jsonio.decode(data))
    except CniError as error:
        assert error.code == DECODING_FAILURE
        assert error.msg


@given(nearly)
def test_takes_what_json_takes_and_refuses_what_it_refuses(text: str) -> None:
    try:
        expected = json.loads(text, parse_constant=no_constant)
    except ValueError:
        with pytest.raises(CniError):
            jsonio.decode(text)
        return
    if "e999" in text or "E999" in text:
        return  # Python makes it infinity, Go refuses it: see below
    assert jsonio.decode(text) == expected


@given(values, st.sampled_from([None, 1]), st.booleans())
def test_reads_what_json_writes(value: Any, indent: int | None, ascii_only: bool) -> None:  # noqa: FBT001
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    assert jsonio.decode(text.encode()) == value
    assert jsonio.is_complete(text.encode())


@given(values)
def test_json_reads_what_encode_writes(value: Any) -> None:
    data = jsonio.encode(value)

    assert json.loads(data) == value
    assert jsonio.decode(data) == value
    assert data.isascii()


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", "the input is empty"),
        (b" \n\t", "the input is empty"),
        (b"{", "line 1 column 2"),
        (b'{"a": 1,\n "b": }', "line 2 column 7"),
        (b"{} {}", "line 1 column 4: expected one JSON value and nothing after it, found '{}'"),
        (b"NaN", "NaN is not JSON"),
        (b"-Infinity", "-Infinity is not JSON"),
        (b"1e999", "1e999"),
        (b"9" * 5000, "line 1 column 1"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xef\xbb\xbf{}", "expected a JSON value"),
        (b'"a\nb"', "control character"),
        (b"\xff", "expected a JSON value"),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else "",
)
def test_says_where_it_went_wrong(data: bytes, where: str) -> None:
    with pytest.raises(CniError) as caught:
        jsonio.decode(data)

    assert caught.value.code == DECODING_FAILURE
    assert where.lower() in caught.value.msg.lower()


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', {"b": 2, "a": 3}),  # the last one counts, and stands last
        (b'"\xff"', "\ufffd"),  # bytes that are not UTF-8
        (b'"\\ud800"', "\ufffd"),  # half a surrogate pair
        (b'{"\\udc00": ["\\ud83d\\ude00 \\ud83d"]}', {"\ufffd": ["\U0001f600 \ufffd"]}),
        (b"  null ", None),
    ],
)
def test_reads_as_go_does(data: bytes, value: Any) -> None:
    found = jsonio.decode(data)

    assert found == value
    assert not isinstance(value, dict) or list(found) == list(value)


@pytest.mark.parametrize(
    ("data", "complete"),
    [(b"{}", True), (b" {} {", True), (b"{}{", True), (b"{", False), (b"", False), (b'{"a": "', False), (b"[1", False)],
)
def test_is_complete_needs_one_whole_value(data: bytes, complete: bool) -> None:  # noqa: FBT001
    assert jsonio.is_complete(data) is complete


def test_shown_survives_what_the_decoder_survives() -> None:
    deepest = 0
    for depth in range(900, 1000):
        try:
            value = jsonio.decode("[" * depth + "]" * depth)
        except CniError:
            break
        deepest = depth
        assert jsonio.shown(value)
    assert deepest


def test_shown_is_cut() -> None:
    assert jsonio.shown({"a": [1, None, "é"]}) == '{"a":[1,null,"\\u00e9"]}'
    assert jsonio.shown("x" * 100) == '"' + "x" * 76 + "..."


def test_encode_refuses_what_is_no_json() -> None:
    with pytest.raises(TypeError, match="bytes"):
        jsonio.encode({"a": b""})


@pytest.mark.parametrize("depth", [300, 600, 900, 5000])
def test_deep_nesting_gives_a_value_or_code_6(depth: int) -> None:
    try:
        jsonio.decode(b"[" * depth + b'"\\ud800"' + b"]" * depth)
    except CniError as error:
        assert (error.code, error.msg) == (DECODING_FAILURE, "the JSON is nested too deeply")


def test_a_byte_order_mark_is_named() -> None:
    with pytest.raises(CniError) as caught:
        jsonio.decode(b"\xef\xbb\xbf{}")
    assert caught.value.code == DECODING_FAILURE
    assert "byte order mark" in caught.value.msg
    assert "UTF-8" in caught.value.details
