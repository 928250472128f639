"""The environment of a call: every missing and every invalid variable is named at once."""

from __future__ import annotations

import pytest

from cni.errors import INVALID_ENVIRONMENT, CniError
from cni.request import Args, Request

FULL = {
    "CNI_CONTAINERID": "ctr",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin:/usr/lib/cni::",
    "CNI_ARGS": "IgnoreUnknown=1;MAC=0a:58:0a:01:00:02",
}
NEEDS = {
    "ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "DEL": {"CNI_CONTAINERID", "CNI_IFNAME"},
    "GC": {"CNI_PATH"},
    "STATUS": set[str](),
    "VERSION": set[str](),
}


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(CniError) as caught:
        Request(environ)
    assert caught.value.code == INVALID_ENVIRONMENT
    return caught.value.msg


def test_all_parameters() -> None:
    request = Request({**FULL, "CNI_COMMAND": "ADD", "CNI_NETNS_OVERRIDE": "TRUE", "OTHER": "kept"})

    assert (request.command, request.container_id, request.ifname) == ("ADD", "ctr", "eth0")
    assert (request.netns, request.netns_override) == ("/run/netns/pod", True)
    assert request.path == ["/opt/cni/bin", "/usr/lib/cni"]
    assert request.args.get("MAC") == "0a:58:0a:01:00:02"
    assert request.args.get("IP") == ""
    assert request.environ["OTHER"] == "kept"


@pytest.mark.parametrize("command", NEEDS)
def test_each_command_takes_what_it_needs_and_no_less(command: str) -> None:
    assert Request({name: FULL[name] for name in NEEDS[command]} | {"CNI_COMMAND": command}).command == command

    for name in NEEDS[command]:
        for absent in ({}, {name: ""}):
            environ = {**{key: value for key, value in FULL.items() if key != name}, **absent, "CNI_COMMAND": command}
            assert refusal(environ) == f"required env variables [{name}] missing"


def test_every_missing_and_invalid_variable_is_named_at_once() -> None:
    message = refusal({"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "-a", "CNI_IFNAME": "a/b", "CNI_ARGS": "x"})

    assert "[CNI_NETNS] missing" in message
    assert "CNI_CONTAINERID '-a': must start with a letter or digit" in message
    assert "CNI_IFNAME 'a/b'" in message
    assert "CNI_ARGS: invalid pair 'x'" in message
    assert refusal({"CNI_COMMAND": "ADD"}) == "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing"


@pytest.mark.parametrize("command", ["", "add", "ADD ", "UPDATE"])
def test_unknown_command(command: str) -> None:
    assert f"unknown CNI_COMMAND: {command!r}" in refusal({**FULL, "CNI_COMMAND": command})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CNI_CONTAINERID", "a b"), ("CNI_CONTAINERID", "a/b"), ("CNI_CONTAINERID", ".a"), ("CNI_CONTAINERID", "é"),
        ("CNI_CONTAINERID", "a\n"), ("CNI_IFNAME", "."), ("CNI_IFNAME", ".."), ("CNI_IFNAME", "a" * 16),
        ("CNI_IFNAME", "é" * 8), ("CNI_IFNAME", "a:1"), ("CNI_IFNAME", "a b"), ("CNI_IFNAME", "a\t"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_invalid_values(command: str, name: str, value: str) -> None:
    assert f"{name} {value!r}: " in refusal({**FULL, "CNI_COMMAND": command, name: value})


@pytest.mark.parametrize("command", ["GC", "STATUS", "VERSION"])
def test_commands_about_no_attachment_ignore_its_variables(command: str) -> None:
    environ = {**FULL, "CNI_COMMAND": command, "CNI_CONTAINERID": "a b", "CNI_IFNAME": "a/b", "CNI_ARGS": "x"}

    assert Request(environ).args.values == {}


@pytest.mark.parametrize(
    ("value", "override"),
    [("1", True), ("true", True), ("True", True), ("0", False), ("", False), ("yes", False), ("11", False)],
)
def test_netns_override(value: str, override: bool) -> None:  # noqa: FBT001
    assert Request({**FULL, "CNI_COMMAND": "ADD", "CNI_NETNS_OVERRIDE": value}).netns_override is override


@pytest.mark.parametrize(
    ("text", "values", "ignore_unknown"),
    [
        ("", {}, False),
        ("A=1", {"A": "1"}, False),
        ("A=1;B=2;A=3", {"A": "3", "B": "2"}, False),
        ("A=;b= x", {"A": "", "b": " x"}, False),
        ("IgnoreUnknown=1", {}, True),
        ("IgnoreUnknown=TRUE;A=1", {"A": "1"}, True),
        ("IgnoreUnknown=0", {}, False),
        ("IgnoreUnknown=False", {}, False),
    ],
)
def test_args(text: str, values: dict[str, str], ignore_unknown: bool) -> None:  # noqa: FBT001
    args = Args(text)

    assert args.values == values
    assert args.ignore_unknown is ignore_unknown


@pytest.mark.parametrize("text", ["A", "A=1;", ";A=1", "A=1=2", "A==", "IgnoreUnknown=yes", "IgnoreUnknown="])
def test_bad_args(text: str) -> None:
    with pytest.raises(CniError, match="CNI_ARGS") as caught:
        Args(text)

    assert caught.value.code == INVALID_ENVIRONMENT


def test_unknown_args_are_named_unless_ignored() -> None:
    Args("MAC=1").check_known(("MAC", "IP"))
    Args("IgnoreUnknown=1;X=1").check_known(())

    with pytest.raises(CniError, match=r"unknown args \['X', 'mac'\]: expected \['MAC'\]"):
        Args("X=1;MAC=1;mac=2").check_known(("MAC",))


def test_derived_call_differs_in_its_verb_only() -> None:
    request = Request({**FULL, "CNI_COMMAND": "ADD", "OTHER": "kept"})

    derived = request.derived("DEL")

    assert derived.command == "DEL"
    assert derived.environ == {**request.environ, "CNI_COMMAND": "DEL"}
    assert (derived.container_id, derived.netns) == (request.container_id, request.netns)
