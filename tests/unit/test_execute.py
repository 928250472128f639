"""Running a plugin's executable: real small scripts that answer, fail, are killed, print garbage and print a lot."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from cni import execute
from cni.errors import INTERNAL, INVALID_CONFIG, CniError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Script = Callable[[str], str]

ENVIRON = {"PATH": "/usr/bin:/bin", "CNI_COMMAND": "ADD"}
BIG = 3 << 20  # far more than any pipe holds


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Makes a shell script and gives its path."""

    def make(body: str) -> str:
        path = tmp_path / "plugin"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return make


def test_answer_is_decoded(script: Script) -> None:
    path = script('read line; echo "{\\"command\\": \\"$CNI_COMMAND\\", \\"stdin\\": $line}"')

    assert execute.run(path, ENVIRON, b'{"a":1}\n') == {"command": "ADD", "stdin": {"a": 1}}


@pytest.mark.parametrize("body", ["cat > /dev/null", "echo", "printf ' \\n '"])
def test_no_answer(script: Script, body: str) -> None:
    assert execute.run(script(body), ENVIRON, b"{}") is None


def test_environment_is_the_given_one_and_nothing_else() -> None:
    answer = execute.command(["/usr/bin/env"], {**ENVIRON, "X": "a b"}, b"").decode()

    assert sorted(answer.splitlines()) == ["CNI_COMMAND=ADD", "PATH=/usr/bin:/bin", "X=a b"]


@pytest.mark.parametrize(
    ("body", "code", "message", "details"),
    [
        ('echo \'{"code": 11, "msg": "busy", "details": "later"}\'; exit 1', 11, "busy", "later"),
        ('echo \'{"code": 100, "msg": "own"}\'; exit 3', 100, "own", ""),
        (
            "exit 3",
            INTERNAL,
            "plugin plugin exited with 3 with no error object; stdout was ''",
            "its stderr may say more",
        ),
        ("echo oh no; exit 1", INTERNAL, "exited with 1 with no error object; stdout was 'oh no\\n'", ""),
        ('echo \'{"code": true, "msg": 1}\'; exit 1', INTERNAL, "exited with 1 with no error object", ""),
        ("echo '[]'; exit 1", INTERNAL, "exited with 1", ""),
        ("kill -9 $$", INTERNAL, "plugin plugin was killed by signal 9", ""),
        ("kill -PIPE $$", INTERNAL, "plugin plugin was killed by signal 13", ""),
        ("echo '{\"a\":'", INTERNAL, "plugin plugin: expected a JSON result on stdout: not valid JSON", ""),
        ("printf '\\377\\376'", INTERNAL, "plugin plugin: expected a JSON result on stdout: not valid JSON", ""),
        ("echo '{} {}'", INTERNAL, "expected one JSON value and nothing after it", ""),
    ],
)
def test_failures(script: Script, body: str, code: int, message: str, details: str) -> None:
    with pytest.raises(CniError) as caught:
        execute.run(script(body), ENVIRON, b"{}")

    assert caught.value.code == code
    assert message in caught.value.msg
    assert details in caught.value.details


def test_a_lot_in_both_directions_at_once(script: Script) -> None:
    data = json.dumps("x" * BIG).encode()

    assert execute.run(script("exec cat"), ENVIRON, data) == "x" * BIG


def test_a_lot_out_before_anything_is_read(script: Script) -> None:
    path = script(f"head -c {BIG} /dev/zero | tr '\\0' ' '; cat")

    assert execute.run(path, ENVIRON, b'"' + b"x" * BIG + b'"') == "x" * BIG


@pytest.mark.parametrize("body", ["echo 5", "exec 0<&-; echo 5", "head -c 10 >/dev/null; echo 5"])
def test_input_that_nobody_reads_to_its_end(script: Script, body: str) -> None:
    assert execute.run(script(body), ENVIRON, b"x" * BIG) == 5


def test_no_descriptor_is_leaked_or_given_to_the_child(script: Script) -> None:
    before = os.listdir("/proc/self/fd")
    inherited = {int(fd) for fd in before if os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(int(fd))}
    path = script("ls /proc/self/fd | paste -sd, | sed 's/.*/[&]/'")

    found = set(execute.run(path, ENVIRON, b"{}"))

    assert found <= inherited | {0, 1, 2, 3, 10}  # 3 is the folder that ls reads, 10 the shell's script
    with pytest.raises(CniError):
        execute.run(f"{path}-none", ENVIRON, b"")
    assert os.listdir("/proc/self/fd") == before


def test_file_that_cannot_be_executed(tmp_path: Path) -> None:
    path = tmp_path / "plugin"
    path.write_text("#!/nowhere\n")

    with pytest.raises(CniError, match=f"cannot execute {path}: Permission denied") as caught:
        execute.run(str(path), ENVIRON, b"")
    assert caught.value.code == INTERNAL

    path.chmod(0o755)
    with pytest.raises(CniError, match="No such file"):
        execute.run(str(path), ENVIRON, b"")


def test_command_gives_stdout_as_it_is(script: Script) -> None:
    assert execute.command([script('printf "%s|" "$@"; cat'), "a b", ""], ENVIRON, b"\xff") == b"a b||\xff"

    with pytest.raises(CniError, match="-x failed with status 4"):
        execute.command([script("exit 4"), "-x"], ENVIRON, b"")


def test_find_takes_the_first_folder_that_has_it(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    for folder in (one, two, three):
        folder.mkdir()
    (one / "plugin").mkdir()  # a folder of that name is no plugin
    (two / "plugin").touch()
    (three / "plugin").touch()

    assert execute.find("plugin", ["/nowhere", str(one), str(two), str(three)]) == f"{two}/plugin"


@pytest.mark.parametrize("name", ["", "../plugin", "a/b", "/bin/sh", ".", "..", "a\0b"])
def test_find_refuses_what_is_no_file_name(name: str) -> None:
    with pytest.raises(CniError, match="invalid plugin name") as caught:
        execute.find(name, ["/bin"])

    assert caught.value.code == INVALID_CONFIG


@pytest.mark.parametrize(("path", "details"), [([], "set CNI_PATH"), (["/nowhere"], "install it there")])
def test_find_names_what_it_looked_for_and_where(path: list[str], details: str) -> None:
    with pytest.raises(CniError, match="failed to find plugin 'none'") as caught:
        execute.find("none", path)

    assert caught.value.code == INVALID_CONFIG
    assert caught.value.details.startswith(details)
    assert str(path) in caught.value.msg


def test_the_interpreter_as_a_plugin() -> None:
    """A child that answers from another thread after stdin has ended."""
    program = (
        "import sys, threading; data = sys.stdin.read(); threading.Thread(target=lambda: print(len(data))).start()"
    )

    assert int(execute.command([sys.executable, "-c", program], ENVIRON, b"x" * 100_000)) == 100_000


def test_an_entry_without_a_name_is_left_out(script: Callable[[str], str]) -> None:
    assert execute.run(script("echo 5"), {**ENVIRON, "": "weird"}, b"{}") == 5
