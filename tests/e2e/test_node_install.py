"""`cnikit install` on a real node: what it refuses before anything is replaced, and what is there when it has ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent_world import Agent, beside
from tests.e2e.node_world import (
    BIN,
    LISTS,
    NAME,
    NAMES,
    RECORD,
    bare_root,
    cnikit,
    conflist,
    fails,
    glibc,
    installed,
    lists,
    succeeds,
    template,
    works,
)
from tests.e2e.world import Node, Way, network, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

BOTH = "10.244.0.0/16,fd00:10:244::/56"
RANGES = {"network": "10.244.0.0/16", "ipv6Network": "fd00:10:244::/56"}


@pytest.fixture
def node() -> Iterator[Node]:
    with Node(Way("installed", Path(BIN))) as made:
        yield made


@pytest.fixture
def words(bin_dir: Path, tmp_path: Path) -> list[str]:
    """The command's words on a node whose list gets its ranges from the command line."""
    return ["install", "--from", str(bin_dir), "--list", template(tmp_path), "--pod-cidr", BOTH]


def untouched(node: Node) -> bool:
    """Whether nothing is installed, and nothing remembered."""
    return installed(node) == set() and lists(node) == {} and not node.path(RECORD).exists()


class TestInstalling:
    def test_everything_is_there_and_works(self, node: Node, words: list[str]) -> None:
        answer = succeeds(node, *words)

        assert installed(node) == {".cnikit", *NAMES}
        assert all(works(node, f"{BIN}/{name}") for name in NAMES)
        assert lists(node) == {NAME: conflist(**RANGES)}
        assert answer.stdout.decode().endswith(f"in {BIN}, and {LISTS}/{NAME}\n")

    def test_again_it_replaces_no_list_and_no_bundle(self, node: Node, words: list[str]) -> None:
        succeeds(node, *words)
        files = [node.path(f"{LISTS}/{NAME}"), *node.path(f"{BIN}/.cnikit").glob("*/modules.bin")]
        before = [file.stat().st_ino for file in files]
        remembered = node.path(RECORD).read_text()

        succeeds(node, *words)

        assert [file.stat().st_ino for file in files] == before
        assert node.path(RECORD).read_text() == remembered
        assert installed(node) == {".cnikit", *NAMES}

    def test_the_built_command_does_it(self, node: Node, words: list[str], bin_dir: Path) -> None:
        succeeds(node, *words, program=(str(beside(bin_dir)),))
        assert lists(node) == {NAME: conflist(**RANGES)}
        assert works(node, f"{BIN}/vxlan")
        succeeds(node, "uninstall", program=(str(beside(bin_dir)),))
        assert untouched(node)

    def test_without_a_list_there_are_only_executables(self, node: Node, bin_dir: Path) -> None:
        succeeds(node, "install", "--from", str(bin_dir), "--cni-bin-dir", "/opt/cni/other")
        assert works(node, "/opt/cni/other/bridge")
        assert lists(node) == {}

    def test_another_build_is_replaced_with_its_list(self, node: Node, words: list[str], tmp_path: Path) -> None:
        words[words.index("--list") + 1] = template(tmp_path, conflist(mtu=1400), "05-cnikit.conflist")
        succeeds(node, *words)
        words[words.index("--list") + 1] = template(tmp_path)

        answer = succeeds(node, *words)

        assert lists(node) == {NAME: conflist(**RANGES)}
        assert f"in the place of {LISTS}/05-cnikit.conflist" in answer.stdout.decode()

    def test_other_makers_lists_stay_and_a_conflict_is_reported(self, node: Node, words: list[str]) -> None:
        node.path(LISTS).mkdir()
        theirs = {"05-first.conflist": network("first"), "10-kindnet.conflist": network("kindnet")}
        for name, value in theirs.items():
            template(node.path(LISTS), value, name)
        log = node.path("/run/termination-log")
        log.touch()

        answer = succeeds(node, *words, "--termination-log", "/run/termination-log")

        assert lists(node) == {**theirs, NAME: conflist(**RANGES)}
        (warning,) = [line for line in answer.stderr.splitlines() if "warning" in line]
        assert f"{LISTS}/05-first.conflist (network first) sorts before {NAME}" in warning
        assert warning.partition("warning")[2] in log.read_text()

    def test_another_maker_s_list_at_our_place_is_refused(self, node: Node, words: list[str]) -> None:
        node.path(LISTS).mkdir()
        template(node.path(LISTS), network("theirs"), NAME)
        assert "expected no file or one with the network cnikit, found another maker's (theirs)" in fails(node, *words)
        assert installed(node) == set()
        succeeds(node, *words, "--list-name", "09-cnikit.conflist")
        assert set(lists(node)) == {NAME, "09-cnikit.conflist"}

    def test_the_agent_that_runs_is_reported(self, node: Node, words: list[str], bin_dir: Path) -> None:
        agent = Agent(node, program=beside(bin_dir)).ready()
        try:
            answer = succeeds(node, *words)
            assert "an agent of cnikit" in answer.stderr
            assert "listens at /run/cnikit/agent.sock" in answer.stderr
            assert agent.process.poll() is None
            assert agent.stop() == 0
        finally:
            agent.forget()

    def test_a_listener_that_says_nothing_is_reported(self, node: Node, words: list[str]) -> None:
        node.path("/run/cnikit").mkdir()
        script = (
            "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/run/cnikit/agent.sock'); s.listen(); input()"
        )
        listener = node.spawn(sys.executable, "-c", script, stdin=subprocess.PIPE)
        try:
            wait_until(lambda: node.path("/run/cnikit/agent.sock").exists(), "it listens")
            assert "an agent listens at /run/cnikit/agent.sock, and does not say which" in succeeds(node, *words).stderr
        finally:
            listener.communicate(b"\n")


class TestRefusals:
    """Nothing is replaced."""

    def test_a_list_that_lint_refuses(self, node: Node, words: list[str], tmp_path: Path) -> None:
        succeeds(node, *words)
        before = lists(node), {path.name: path.stat().st_ino for path in node.path(BIN).iterdir()}
        template(tmp_path, conflist(vni="big"))
        log = node.path("/run/termination-log")
        log.touch()

        line = fails(node, *words, "--termination-log", "/run/termination-log")

        assert line.startswith(f"cnikit install: not installed: {LISTS}/{NAME}: error: plugins[0].vni: expected")
        assert line == f"cnikit install: {log.read_text()}"
        assert (lists(node), {path.name: path.stat().st_ino for path in node.path(BIN).iterdir()}) == before

    def test_a_plugin_that_the_node_lacks(self, node: Node, words: list[str], tmp_path: Path) -> None:
        value = conflist()
        value["plugins"].append({"type": "portmap", "capabilities": {"portMappings": True}})
        template(tmp_path, value)
        assert "plugins[1].type: expected an executable 'portmap'" in fails(node, *words)
        assert untouched(node)
        node.run("mkdir", "-p", BIN)
        shutil.copy("/bin/true", node.path(f"{BIN}/portmap"))
        succeeds(node, *words)

    def test_a_range_that_nobody_says(self, node: Node, words: list[str]) -> None:
        line = fails(node, *words[:-2])
        assert "expected the range of network cnikit's pods, found none" in line
        assert "--pod-cidr" in line
        assert "kubeadm-config" in line
        assert untouched(node)

    @pytest.mark.parametrize(
        ("found", "text"),
        [("glibc", "found 2.31; install it on"), ("other", "found it for"), ("musl", "found musl (ld-musl-")],
    )
    def test_a_node_whose_c_library_is_too_old(
        self, node: Node, words: list[str], tmp_path: Path, found: str, text: str
    ) -> None:
        root = tmp_path / "root"
        root.mkdir()
        if found == "musl":
            (root / "lib").mkdir()
            (root / "lib/ld-musl-x86_64.so.1").touch()
        elif found == "other":
            here = os.uname().machine
            glibc(root, 41, other := "x86_64" if here == "aarch64" else "aarch64")
            (root / f"lib/{other}-linux-gnu").rename(root / f"lib/{here}-linux-gnu")
        else:
            glibc(root, 31)
        line = fails(node, *words, "--node-root", str(root))
        assert "expected glibc 2.3" in line
        assert text in line
        assert untouched(node)

    def test_a_bundle_that_does_not_start(self, node: Node, words: list[str], bin_dir: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken"
        shutil.copytree(bin_dir, broken, symlinks=True)
        (modules,) = broken.glob(".cnikit/*/modules.bin")
        modules.write_bytes(modules.read_bytes()[:1000])
        words[words.index("--from") + 1] = str(broken)
        # What a runtime asks proves nothing: the launcher answers by itself.
        asked = b'{"cniVersion":"1.1.0"}'
        assert node.attempt(str(broken / "bridge"), env={"CNI_COMMAND": "VERSION"}, stdin=asked).status == 0

        assert "bridge does not run from there (exit code" in fails(node, *words)

        assert installed(node) == {".cnikit"}
        assert list(node.path(f"{BIN}/.cnikit").iterdir()) == []
        assert lists(node) == {}

    def test_wrong_words(self, node: Node, bin_dir: Path) -> None:
        source = ("install", "--from", str(bin_dir))
        assert "--list with them" in fails(node, *source, "--pod-cidr", BOTH)
        assert "expected a file name" in fails(node, *source, "--list", "/x", "--list-name", "a/b.conflist")
        assert "/x: No such file" in fails(node, *source, "--list", "/x")
        assert "call make dist first" in fails(node, "install", "--from", "/run")
        assert untouched(node)


class TestInAContainer:
    """The node's root is elsewhere, and /proc/sys can only be read."""

    def test_it_runs_in_a_root_without_shell_and_python(self, node: Node, words: list[str], bin_dir: Path) -> None:
        root = bare_root(node, bin_dir)
        node.run("mount", "--bind", str(root), str(root))
        node.run("mount", "-o", "remount,bind,ro", str(root))
        node.run("mount", "--bind", BIN, f"{root}{BIN}")

        succeeds(node, *words, "--node-root", str(root))

        assert installed(node) == {".cnikit", *NAMES}
        assert lists(node) == {NAME: conflist(**RANGES)}
        assert works(node, f"{BIN}/vxlan")

    def test_a_library_that_only_the_container_has(self, node: Node, words: list[str], bin_dir: Path) -> None:
        root = bare_root(node, bin_dir)
        (library,) = node.path(str(root)).rglob("libdl.so.2")
        library.unlink()
        assert "does not run from there (exit code" in fails(node, *words, "--node-root", str(root))
        assert installed(node) == {".cnikit"}
        assert lists(node) == {}

    def test_a_folder_that_is_not_the_node_s_is_refused(self, node: Node, words: list[str], bin_dir: Path) -> None:
        root = bare_root(node, bin_dir)
        node.run("umount", f"{root}{BIN}")
        assert f"{BIN}: expected the node's own folder" in fails(node, *words, "--node-root", str(root))
        assert "found no folder" in fails(node, *words, "--node-root", "/no/such/root")
        assert lists(node) == {}

    def test_settings_at_another_mount(self, node: Node, words: list[str]) -> None:
        setting = "/proc/sys/net/bridge/bridge-nf-call-iptables"
        node.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
        node.run("mkdir", "-p", "/run/host/sys/net")
        node.run("mount", "--bind", "/proc/sys/net", "/run/host/sys/net")
        node.run("mount", "--bind", "/proc/sys", "/proc/sys")
        node.run("mount", "-o", "remount,bind,ro", "/proc/sys")

        answer = succeeds(node, *words)
        assert "cannot set net.bridge.bridge-nf-call-iptables to 1: Read-only file system" in answer.stderr
        assert "--sysctl-dir" in answer.stderr
        assert node.run("cat", setting) == "0\n"

        succeeds(node, *words, "--sysctl-dir", "/run/host/sys")
        assert node.run("cat", setting) == "1\n"
        before = json.loads(node.path(RECORD).read_text())["before"]["settings"]
        assert before["net/bridge/bridge-nf-call-iptables"] == "0"


class TestInterruptions:
    def test_a_killed_one_is_completed_by_the_next(self, node: Node, words: list[str]) -> None:
        """It is killed before each step that puts something into its place, until there is none left."""
        killed = 0
        while True:
            node.run("rm", "-rf", f"{BIN}", LISTS, RECORD)
            answer = cnikit(node, *words, program=(sys.executable, "-c", KILLED, str(killed + 1)))
            if answer.status == 0:
                break
            assert answer.status == -signal.SIGKILL, answer
            killed += 1
            there = installed(node) & set(NAMES)
            assert all(works(node, f"{BIN}/{name}") for name in there), f"half a bundle after {killed} steps"
            if lists(node):
                assert lists(node) == {NAME: conflist(**RANGES)}
                assert there == set(NAMES), "a runtime calls this node ready"
            succeeds(node, *words)
            assert installed(node) == {".cnikit", *NAMES}
            assert lists(node) == {NAME: conflist(**RANGES)}
            assert set(node.files(LISTS)) == {NAME}
        assert killed > len(NAMES) + 3, "expected a step for each launcher, the bundle, the record and the list"

    @pytest.mark.parametrize("cause", ["a full disk", "a read-only folder", "a read-only folder of lists", "no inodes"])
    def test_it_goes_on_when_the_cause_is_gone(self, node: Node, words: list[str], cause: str) -> None:
        place = LISTS if "lists" in cause else "/opt/cni"
        limits = {"a full disk": "size=8m", "no inodes": "nr_inodes=20"}
        node.run("mkdir", "-p", place)
        node.run("mount", "-t", "tmpfs", "-o", limits.get(cause, "ro"), "tmpfs", place)

        line = fails(node, *words)

        assert line.startswith("cnikit install: not installed: /"), line
        assert place in line
        assert ("Read-only file system" if "read-only" in cause else "No space left on device") in line
        assert line.endswith("mount it so that it can be written" if "read-only" in cause else "free some space there")
        assert lists(node) == {}
        assert not installed(node) or "lists" in cause or installed(node) == {".cnikit"}
        node.run("mount", "-o", "remount,rw,size=200m,nr_inodes=10000", place)
        succeeds(node, *words)
        assert lists(node) == {NAME: conflist(**RANGES)}
        assert works(node, f"{BIN}/host-gw")


# `cnikit` that is killed before its Nth step.
KILLED = """
import os, signal, sys
left = int(sys.argv.pop(1))
def counted(step):
    def called(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments, **named)
    return called
from cli.main import cli
os.rename, os.replace, os.unlink = map(counted, (os.rename, os.replace, os.unlink))
cli(sys.argv[1:])
"""
