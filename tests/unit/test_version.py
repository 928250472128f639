"""Which spec versions we speak, and which verb each allows."""

from __future__ import annotations

from typing import Any

import pytest

from cni.errors import DECODING_FAILURE, INCOMPATIBLE_VERSION, CniError
from cni.version import SUPPORTED, at_least, negotiate

# The first version that has the verb (spec, changes of each version).
SINCE = {"ADD": "0.1.0", "DEL": "0.1.0", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
ALL = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


def test_supported_versions() -> None:
    assert SUPPORTED == ALL


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("command", SINCE)
def test_each_verb_in_each_version(command: str, version: str) -> None:
    if ALL.index(version) >= ALL.index(SINCE[command]):
        assert negotiate(version, command) == version
        return
    with pytest.raises(CniError) as caught:
        negotiate(version, command)
    assert caught.value.code == INCOMPATIBLE_VERSION
    assert caught.value.msg.startswith(f"config version does not allow {command}")
    assert SINCE[command] in caught.value.details


@pytest.mark.parametrize("absent", [None, ""])
def test_no_version_is_the_oldest(absent: str | None) -> None:
    assert negotiate(absent, "ADD") == "0.1.0"


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ("2.0.0", INCOMPATIBLE_VERSION),
        ("0.3", INCOMPATIBLE_VERSION),
        ("1.1.0 ", INCOMPATIBLE_VERSION),
        ("v1.0.0", INCOMPATIBLE_VERSION),
        (1, DECODING_FAILURE),
        (["1.1.0"], DECODING_FAILURE),
    ],
)
def test_version_we_do_not_speak(found: Any, code: int) -> None:
    with pytest.raises(CniError) as caught:
        negotiate(found, "DEL")

    assert caught.value.code == code
    assert repr(found) in caught.value.msg


def test_at_least_goes_by_the_order_of_versions() -> None:
    assert [[at_least(one, other) for other in ALL] for one in ALL] == [
        [i >= j for j in range(len(ALL))] for i in range(len(ALL))
    ]
