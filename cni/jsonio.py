"""JSON in and out, without the `json` package.

`import json` costs 6 ms, because its Python half compiles regular expressions. Its C half does all the
work we need and imports in 0.1 ms, so decoding and encoding are done with that alone.

Differences from `json`, all as Go's decoder has them: NaN, Infinity and numbers beyond a float's range are
refused, bytes that are not UTF-8 and halves of surrogate pairs become U+FFFD, a repeated key takes the last place
as well as the last value.
"""

from __future__ import annotations

import _json

from cni.errors import DECODING_FAILURE, CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

WHITESPACE = " \t\n\r"
_INFINITY = float("inf")


def decode(data: bytes | str) -> Any:
    """The one JSON value in `data`; CniError 6 says where it went wrong."""
    text = data if isinstance(data, str) else data.decode("utf-8", "replace")
    if text.startswith("\ufeff"):
        found = "not valid JSON at line 1 column 1: expected a JSON value, found a byte order mark"
        raise CniError(DECODING_FAILURE, found, "save it as UTF-8 without a byte order mark")
    start = len(text) - len(text.lstrip(WHITESPACE))
    if start == len(text):
        raise CniError(DECODING_FAILURE, "no JSON found: the input is empty", "pass the network configuration on stdin")
    value, end = _scan(text, start)
    rest = text[end:].lstrip(WHITESPACE)
    if rest:
        raise _syntax(text, len(text) - len(rest), "expected one JSON value and nothing after it")
    return value


def encode(value: Any) -> bytes:
    """Compact JSON, ASCII only, so that every string survives whatever locale the reader has."""
    return "".join(_encoder(value, 0)).encode("ascii")


def shown(value: Any) -> str:
    """`value` as JSON for an error message, cut at 80 characters."""
    try:
        text = encode(value).decode("ascii")
    except RecursionError:  # the encoder gives up some levels before the decoder
        return "something nested too deeply to be shown"
    return text if len(text) <= 80 else text[:77] + "..."


def is_complete(data: bytes) -> bool:
    """Whether `data` starts with one whole JSON value: a reader need not wait for more."""
    text = data.decode("utf-8", "replace")
    start = len(text) - len(text.lstrip(WHITESPACE))
    try:
        _scan(text, start)
    except CniError:
        return False
    return True


def _scan(text: str, start: int) -> tuple[Any, int]:
    try:
        value, end = _scanner(text, start)
        return _without_halves(value) if "\\ud" in text or "\\uD" in text else value, end
    except StopIteration as stop:
        raise _syntax(text, stop.value, "expected a JSON value") from None
    except SystemError:
        # The C half takes its error class from the Python half, if somebody has imported that by now. A syntax
        # error is rare enough to pay for it.
        import json.decoder  # noqa: F401, TID251

        return _scan(text, start)
    except RecursionError:
        raise CniError(DECODING_FAILURE, "the JSON is nested too deeply", "") from None
    except ValueError as error:
        # JSONDecodeError carries the position; a number of more than 4,300 digits or a NaN does not.
        problem = getattr(error, "msg", str(error))
        raise _syntax(text, getattr(error, "pos", start), _ours(problem)) from None


def _ours(problem: str) -> str:
    """Python's wording (`Expecting ',' delimiter`, `Unterminated string starting at`) as part of our sentence."""
    return problem.replace("Expecting", "expected").removesuffix(" at").removesuffix(" starting")


def _syntax(text: str, at: int, problem: str) -> CniError:
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    found = text[at : at + 20] or "the end of the input"
    return CniError(
        DECODING_FAILURE,
        f"not valid JSON at line {line} column {column}: {problem}, found {found!a}",
        "",
    )


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        # The last of two equal keys counts, also in the order that case-blind lookups go by.
        result.pop(key, None)
        result[key] = value
    return result


def _without_halves(value: Any) -> Any:
    """`value` without halves of surrogate pairs, which no file name, no message and no other program can hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_halves(item) for item in value]
    if isinstance(value, dict):
        return {_without_halves(key): _without_halves(item) for key, item in value.items()}
    return value


def _float(text: str) -> float:
    value = float(text)
    if value in (_INFINITY, -_INFINITY):
        raise ValueError(f"the number {text} is out of range")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unserialisable(value: object) -> NoReturn:
    raise TypeError(f"not JSON: {type(value).__name__}")


class _Scanner:
    """What the C scanner reads its settings from."""

    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_pairs)
    parse_float = staticmethod(_float)
    parse_int = int
    parse_constant = staticmethod(_constant)


_scanner = _json.make_scanner(_Scanner)  # type: ignore[arg-type]  # typeshed asks for an instance, CPython does not
_encoder = _json.make_encoder(None, _unserialisable, _json.encode_basestring_ascii, None, ":", ",", False, False, False)
