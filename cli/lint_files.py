"""The files of `cnikit lint`: read, decoded, and what to do about those that are no JSON.

Whether a file is JSON is decided by the decoder that plugins use. What a person most likely did is guessed here, from
the place where it stopped.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cni import jsonio
from cni.errors import CniError

if TYPE_CHECKING:
    from cli.findings import Report

_BRACKETS = "a bracket, quote or comma is missing or one too many there: correct it"
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig", "UTF-8 with a byte order mark"),
    (b"\xff\xfe\0\0", "utf-32", "UTF-32"),
    (b"\0\0\xfe\xff", "utf-32", "UTF-32"),
    (b"\xff\xfe", "utf-16", "UTF-16"),
    (b"\xfe\xff", "utf-16", "UTF-16"),
)
_PYTHON = {"True": "true", "False": "false", "None": "null"}


def parse(file: str, report: Report) -> Any:
    """The decoded object of a file; None when it is none, which is reported."""
    try:
        with open(file, "rb") as opened:
            data = opened.read()
    except OSError as error:
        report.error("", f"expected a file that can be read, found {error.strerror}", "check the path and its mode")
        return None
    return decoded(data, report)


def decoded(data: bytes, report: Report) -> Any:
    """The same of a file's content."""
    if not data.strip(b"\xef\xbb\xbf" + jsonio.WHITESPACE.encode()):
        report.error("", "expected a JSON object, found an empty file", "write the network list, or remove the file")
        return None
    encoding, name = _encoding(data)
    if encoding != "utf-8":
        report.error("", f"expected UTF-8 without a byte order mark, found {name}", _as_utf8(name))
        return None
    try:
        value = jsonio.decode(data)
    except CniError as error:
        report.error("", error.msg, _remedy(data.decode("utf-8", "replace")))
        return None
    if not isinstance(value, dict):
        report.error("", f"expected a JSON object, found {jsonio.shown(value)}", "begin with { and the network's name")
        return None
    if b"\xef\xbf\xbd" in data or "\ufffd" in data.decode("utf-8", "replace"):
        report.warning("", "expected UTF-8, found bytes that are none and stand for nothing", "save it as UTF-8")
    repeated_keys(json.loads(data.decode("utf-8", "replace"), object_pairs_hook=_Pairs), "", report)
    return value


def _encoding(data: bytes) -> tuple[str, str]:
    """The codec of a file's bytes and what people call it."""
    for mark, codec, name in _BOMS:
        if data.startswith(mark):
            return codec, name
    if b"\0" in data[:4]:  # JSON begins with two ASCII characters (RFC 4627, section 3)
        return ("utf-16", "UTF-16") if data[:4].count(0) < 3 else ("utf-32", "UTF-32")
    return "utf-8", "UTF-8"


def _as_utf8(name: str) -> str:
    if name.startswith("UTF-8"):
        return "save it as UTF-8 without a byte order mark: sed -i '1s/^\\xEF\\xBB\\xBF//' FILE"
    return f"save it as UTF-8: iconv -f {name} -t UTF-8 FILE"


def _remedy(text: str) -> str:
    """What to do about JSON that a decoder stops at."""
    body = text.lstrip(jsonio.WHITESPACE)
    if body.startswith(("---", "- ")) or (body[:1].isalpha() and ":" in body.split("\n", 1)[0]):
        return "this looks like YAML: write it as JSON"
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return _at(text, error.pos, error.msg)
    except (ValueError, RecursionError):
        pass
    return "write plain JSON there: no NaN, no Infinity, no number out of range, and less nesting"


def _at(text: str, at: int, problem: str) -> str:
    """The same, by the place and the decoder's words."""
    rest = text[at:].lstrip(jsonio.WHITESPACE)
    before = text[:at].rstrip(jsonio.WHITESPACE)
    word = rest[: next((i for i, char in enumerate(rest) if not (char.isalnum() or char in "_$-")), len(rest))]
    if rest.startswith(("//", "/*", "#")):
        return "JSON has no comments: remove it"
    if problem.startswith("Illegal trailing comma") or (rest[:1] in ("}", "]") and before.endswith(",")):
        return "remove the comma before the closing bracket"
    if rest.startswith(","):
        return "remove one comma: there is nothing between two of them"
    if rest.startswith("'"):
        return 'use double quotes (") instead of single ones'
    if word in _PYTHON:
        return f"write {_PYTHON[word]}, in JSON's spelling"
    if problem.startswith("Expecting property name") and word:
        return f'put the key in double quotes: "{word}"'
    if problem.startswith("Invalid control character"):
        return "end the string on its own line, or write \\n and \\t for line breaks and tabs"
    if problem.startswith("Invalid \\"):
        return 'write \\\\ for a backslash, or one of \\" \\/ \\b \\f \\n \\r \\t \\uXXXX'
    if problem.startswith("Extra data"):
        return "keep one JSON object in the file, and remove what comes after it"
    if problem.endswith("delimiter") and rest[:1] in ('"', "{", "["):
        return "put a comma before it" if "','" in problem else "put a colon between the key and its value"
    if not rest or problem.startswith("Unterminated"):
        return "the end is missing: close what is open, with a quote or a bracket"
    return _BRACKETS


class _Pairs(list[tuple[str, Any]]):
    """An object whose keys are not merged yet."""


def repeated_keys(value: Any, path: str, report: Report) -> None:
    """Report keys that stand twice in one object, which any JSON decoder forgets."""
    if isinstance(value, _Pairs):
        keys = [key for key, _ in value]
        for key in sorted({key for key in keys if keys.count(key) > 1}):
            where = f"{path}.{key}" if path else key
            report.warning(where, "expected this key once, found it twice", "remove one: the last counts")
        for key, item in value:
            repeated_keys(item, f"{path}.{key}" if path else key, report)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            repeated_keys(item, f"{path}[{index}]", report)
