"""Several builds in one folder: what an installation keeps, what it removes and when, and which build the agent serves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli.identity import build_of
from cli.install import UNUSED, launchers
from cni.start import Stamp
from tests.e2e.agent_world import Agent, beside
from tests.e2e.world import Answer, Node, Pod, Way, network

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "example_plugin.py"
NAMES = ["bridge", "host-gw", "host-local", "loopback", "vxlan"]
HOUR = 3600
VIP = {"type": "vip", "addresses": ["203.0.113.10", "2001:db8::10"]}


def install(source: Path, target: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "cli.install", source, target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def another_build(bin_dir: Path, folder: Path) -> Path:
    """The same code in a bundle with one file more, so that it is another build."""
    subprocess.run(["cp", "-a", bin_dir, folder], check=True)
    (bundle,) = (folder / ".cnikit").iterdir()
    (bundle / "another").touch()
    build = build_of(bundle)
    bundle.rename(bundle.with_name(build))
    for name in NAMES:
        content = (folder / name).read_bytes()
        stamp = Stamp.read(content)
        assert stamp is not None
        (folder / name).write_bytes(Stamp(name, build, stamp.code).written(content))
    return folder


def builds_in(folder: Path) -> set[str]:
    return {entry.name for entry in (folder / ".cnikit").iterdir() if not entry.name.startswith(".")}


def build_in(folder: Path) -> str:
    (build,) = builds_in(folder)
    return build


def versions(program: Path, question: bytes = b'{"cniVersion":"1.0.0"}') -> subprocess.CompletedProcess[bytes]:
    environ = {"CNI_COMMAND": "VERSION"}
    return subprocess.run([program], env=environ, input=question, capture_output=True, check=False)


def works(program: Path) -> bool:
    """The launcher answers, and so does its bundle, which is asked in a way that needs a JSON parser."""
    return all(versions(program, question).returncode == 0 for question in (b'{"cniVersion":"1.0.0"}', b" {}"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third party's build: ours with a plugin of theirs."""
    folder = tmp_path_factory.mktemp("theirs")
    build = [sys.executable, "-m", "cli.bundle", "--output", str(folder), "--plugin", f"vip={EXAMPLE}"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "installed"


class TestFolder:
    def test_builds_lie_side_by_side_while_launchers_name_them(self, bin_dir: Path, theirs: Path, target: Path) -> None:
        install(theirs, target)
        install(bin_dir, target)

        assert builds_in(target) == {build_in(theirs), build_in(bin_dir)}
        found = {one.path.name: one.bundle.name for one in launchers(target)}
        assert found == {**dict.fromkeys(NAMES, build_in(bin_dir)), "vip": build_in(theirs)}
        assert all(works(target / name) for name in found)

    @pytest.mark.parametrize("made", ["copy", "hard link", "rename"])
    def test_a_launcher_of_another_name_keeps_its_bundle(
        self, bin_dir: Path, tmp_path: Path, target: Path, made: str
    ) -> None:
        install(another_build(bin_dir, tmp_path / "before"), target)
        if made == "copy":
            shutil.copy2(target / "bridge", target / "cnv-bridge")
        elif made == "hard link":
            (target / "cnv-bridge").hardlink_to(target / "bridge")
        else:
            (target / "bridge").rename(target / "cnv-bridge")
        install(bin_dir, target)
        grow_old(target)
        install(bin_dir, target)

        assert len(builds_in(target)) == 2
        assert works(target / "cnv-bridge")
        assert works(target / "bridge")

    def test_a_bundle_goes_an_hour_after_its_last_launcher(self, bin_dir: Path, tmp_path: Path, target: Path) -> None:
        before = another_build(bin_dir, tmp_path / "before")
        install(before, target)
        install(bin_dir, target)
        assert builds_in(target) == {build_in(before), build_in(bin_dir)}
        install(bin_dir, target)
        assert len(builds_in(target)) == 2, "an hour has not passed"

        grow_old(target)
        install(bin_dir, target)

        assert builds_in(target) == {build_in(bin_dir)}
        assert os.listdir(target / ".cnikit") == [build_in(bin_dir)]

    def test_the_hour_begins_anew_when_a_build_comes_back(self, bin_dir: Path, tmp_path: Path, target: Path) -> None:
        before = another_build(bin_dir, tmp_path / "before")
        install(before, target)
        install(bin_dir, target)
        grow_old(target)
        install(before, target)
        install(bin_dir, target)
        assert len(builds_in(target)) == 2
        assert all(works(target / name) for name in NAMES)

    def test_a_bundle_that_runs_stays(self, bin_dir: Path, tmp_path: Path, target: Path) -> None:
        before = another_build(bin_dir, tmp_path / "before")
        install(before, target)
        program = target / ".cnikit" / build_in(before) / "sleep"
        shutil.copy2("/bin/sleep", program)
        with subprocess.Popen([program, "60"]) as running:
            install(bin_dir, target)
            grow_old(target)
            install(bin_dir, target)
            assert build_in(before) in builds_in(target)
            running.kill()

    def test_an_installation_that_was_killed_is_completed(self, bin_dir: Path, tmp_path: Path, target: Path) -> None:
        """Killed behind the bundle, with one launcher replaced, and its copy of everything still there."""
        before = another_build(bin_dir, tmp_path / "before")
        install(before, target)
        stage = target / ".cnikit" / ".install-killed"
        shutil.copytree(bin_dir, stage)
        shutil.copytree(bin_dir / ".cnikit" / build_in(bin_dir), target / ".cnikit" / build_in(bin_dir))
        (stage / "bridge").replace(target / "bridge")
        assert all(works(target / name) for name in NAMES)
        os.utime(stage, (0, 0))

        install(bin_dir, target)

        assert not stage.exists()
        assert {one.bundle.name for one in launchers(target)} == {build_in(bin_dir)}
        assert all(works(target / name) for name in NAMES)

    def test_a_damaged_bundle_is_repaired(self, bin_dir: Path, target: Path) -> None:
        install(bin_dir, target)
        (target / ".cnikit" / build_in(bin_dir) / "modules.bin").write_bytes(b"")
        assert not works(target / "bridge")
        install(bin_dir, target)
        assert works(target / "bridge")

    def test_two_installations_at_once(self, bin_dir: Path, tmp_path: Path, target: Path) -> None:
        sources = [bin_dir, another_build(bin_dir, tmp_path / "other")] * 2
        running = [
            subprocess.Popen([sys.executable, "-m", "cli.install", source, target], cwd=ROOT, stdout=subprocess.DEVNULL)
            for source in sources
        ]
        assert [one.wait() for one in running] == [0] * 4
        assert all(works(target / name) for name in NAMES)

    def test_version_is_not_answered_for_a_bundle_that_is_gone(self, bin_dir: Path, theirs: Path, target: Path) -> None:
        """`cnikit version` says so, and its exit code too."""
        install(theirs, target)
        install(bin_dir, target)
        foreign = target / "foreign"
        foreign.write_text("#!/bin/sh\nexit 1\n")
        foreign.chmod(0o755)
        cnikit = [str(beside(bin_dir)), "version"]
        ran = subprocess.run(cnikit, env={"CNI_PATH": str(target)}, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert "no answer" in ran.stdout, "a foreign plugin's trouble is shown"

        shutil.rmtree(target / ".cnikit" / build_in(theirs))

        ran = subprocess.run(cnikit, env={"CNI_PATH": str(target)}, capture_output=True, text=True, check=False)
        assert (ran.returncode, "error: vip: expected an answer" in ran.stderr) == (1, True)
        error = json.loads(versions(target / "vip").stdout)
        assert (error["cniVersion"], error["code"]) == ("1.0.0", 999)

    def test_version_reports_launchers_of_the_first_layout_without_their_bundle(
        self, bin_dir: Path, target: Path
    ) -> None:
        layout_of_before(bin_dir, target)
        cnikit, env = [str(beside(bin_dir)), "version"], {"CNI_PATH": str(target)}
        assert subprocess.run(cnikit, env=env, capture_output=True, check=False).returncode == 0

        shutil.rmtree(target / ".cnikit" / "0.1.0")

        ran = subprocess.run(cnikit, env=env, capture_output=True, text=True, check=False)
        assert (ran.returncode, f"error: {', '.join(NAMES)}: expected an answer" in ran.stderr) == (1, True)


def grow_old(target: Path) -> None:
    """Let an hour pass for what no launcher names."""
    for mark in (target / ".cnikit").glob(f"{UNUSED}*"):
        os.utime(mark, (time.time() - HOUR - 1,) * 2)


# One that is called by its name, as all were before they had stamps: it only knows the folder of its version.
UNSTAMPED = """#!/bin/sh
folder=$(dirname "$0")/.cnikit/0.1.0
[ -d "$folder" ] || folder=/usr/lib/cnikit/0.1.0
[ -d "$folder" ] || { echo '{"cniVersion":"1.1.0","code":999,"msg":"no bundle","details":""}'; exit 1; }
exec "$folder/bin/$(basename "$0")"
"""


def layout_of_before(bin_dir: Path, folder: Path) -> Path:
    """A CNI bin directory of the first builds: `.cnikit/0.1.0`, and files that are equal to the launcher in it."""
    bundle = folder / ".cnikit" / "0.1.0"
    bundle.mkdir(parents=True)
    shutil.copytree(bin_dir, bundle / "bin")
    (bundle / "launcher").write_text(UNSTAMPED)
    (bundle / "launcher").chmod(0o755)
    for name in NAMES:
        (folder / name).hardlink_to(bundle / "launcher")
    return folder


class TestPods:
    """What was attached by one build is checked and detached by the next, and nothing of it stays."""

    @pytest.fixture
    def node(self, way: Way, target: Path) -> Iterator[Node]:
        with Node(way.with_plugins_in(target)) as made:
            made.prepare()
            made.may_decline = made.may_pass_by = 100
            yield made

    def test_an_upgrade_from_the_first_layout_and_back(self, node: Node, bin_dir: Path, target: Path) -> None:
        layout_of_before(bin_dir, target)
        before, conf = node.snapshot(), network(ipMasq=True)
        old, new, again = node.many_pods(3)
        added = node.call("bridge", "ADD", conf, old).result

        install(bin_dir, target)

        assert builds_in(target) == {"0.1.0", build_in(bin_dir)}
        node.call("bridge", "CHECK", {**conf, "prevResult": added}, old).silent()
        added = node.call("bridge", "ADD", conf, new).result
        node.call("bridge", "DEL", conf, old).silent()

        for name in NAMES:  # as the installer of before did it
            (target / name).unlink()
            (target / name).hardlink_to(target / ".cnikit" / "0.1.0" / "launcher")
        node.call("bridge", "CHECK", {**conf, "prevResult": added}, new).silent()
        assert node.call("bridge", "ADD", conf, again).ok
        for pod in (new, again):
            node.call("bridge", "DEL", conf, pod).silent()
        assert node.leases("net") == {}
        assert [link for link in node.links() if link.startswith("veth")] == []
        assert before.keys() == node.snapshot().keys()

        install(bin_dir, target)
        grow_old(target)
        install(bin_dir, target)
        assert builds_in(target) == {build_in(bin_dir)}

    def test_a_stock_installation_leaves_other_makers_pods_what_they_need(
        self, node: Node, bin_dir: Path, theirs: Path, target: Path, peers: Path
    ) -> None:
        install(theirs, target)
        folder = node.path("/etc/cni/net.d")
        folder.mkdir(parents=True)
        plugins = [network(), {"type": "loopback"}, VIP]
        chain = {"cniVersion": "1.1.0", "name": "net", "plugins": plugins}
        (folder / "10-net.conflist").write_text(json.dumps(chain))

        def cnitool(verb: str, pod: Pod) -> Answer:
            environ = {"CNI_PATH": str(target), "NETCONFPATH": "/etc/cni/net.d"}
            return node.attempt(str(peers / "cnitool"), verb, "net", pod.path, env=environ)

        pod = node.pod()
        assert cnitool("add", pod).ok
        install(bin_dir, target)

        cnitool("check", pod).silent()
        cnitool("del", pod).silent()
        assert "203.0.113.10/32" not in pod.addresses("lo")
        assert node.leases("net") == {}
        other = node.pod()
        assert cnitool("add", other).ok
        cnitool("del", other).silent()


class TestCopies:
    def test_copies_are_the_plugins_that_they_were(self, way: Way, target: Path) -> None:
        """In every verb, also the copy of an IPAM plugin that is delegated to, which runs in the same process."""
        install(way.bin_dir, target)
        shutil.copy2(target / "bridge", target / "cnv-bridge")
        shutil.copy2(target / "host-local", target / "my-host-local")
        ipam = {"type": "my-host-local", "subnet": "10.1.0.0/16"}
        conf = network(type="cnv-bridge", ipam=ipam)
        with Node(way.with_plugins_in(target)) as node:
            node.prepare()
            pod = node.pod()
            added = node.call("cnv-bridge", "ADD", conf, pod).result
            assert pod.addresses() == ["10.1.0.2/16"]
            node.call("cnv-bridge", "CHECK", {**conf, "prevResult": added}, pod).silent()
            node.call("cnv-bridge", "STATUS", conf).silent()
            node.call("bridge", "CHECK", {**conf, "type": "bridge", "prevResult": added}, pod).silent()
            node.call("cnv-bridge", "GC", {**conf, "cni.dev/valid-attachments": []}).silent()
            node.call("cnv-bridge", "DEL", conf, pod).silent()
            assert node.leases("net") == {}
            if node.agent is not None:
                asked = [(one["plugin"], one["outcome"]) for one in node.agent.requests()]
                assert set(asked) == {("bridge", "ok")}

    def test_a_copy_of_bridge_is_no_ipam_plugin(self, way: Way, target: Path) -> None:
        """It would call itself without end."""
        install(way.bin_dir, target)
        shutil.copy2(target / "bridge", target / "my-ipam")
        with Node(way.with_plugins_in(target)) as node:
            node.prepare()
            error = node.call("bridge", "ADD", network(ipam={"type": "my-ipam"}), node.pod()).error
            assert (error["code"], "expected an IPAM plugin" in error["msg"]) == (7, True)


class TestAgent:
    """It serves a launcher whose code it runs itself, whoever has built it."""

    @pytest.fixture
    def node(self, theirs: Path) -> Iterator[Node]:
        with Node(Way("theirs", theirs)) as made:
            yield made

    def asked(self, node: Node, bin_dir: Path, *options: str) -> dict[str, list[tuple[str, list[str]]]]:
        """By plugin what a stock agent made of a pod's life with their launchers, and said of it."""
        agent = Agent(node, *options, program=beside(bin_dir)).ready()
        pod = node.pod()
        result = node.call("bridge", "ADD", network(), pod).result
        vip = {**VIP, "cniVersion": "1.1.0", "name": "net", "prevResult": result}
        assert node.call("vip", "ADD", vip, pod).ok
        node.call("vip", "DEL", vip, pod).silent()
        node.call("bridge", "DEL", network(), pod).silent()
        found: dict[str, list[tuple[str, list[str]]]] = {}
        for one in agent.requests():
            found.setdefault(one["plugin"], []).append((one["outcome"], one.get("lines", [])))
        assert agent.stop() == 0
        agent.looks_well()
        agent.forget()
        return found

    def test_it_serves_the_plugins_that_are_ours_and_declines_theirs(self, node: Node, bin_dir: Path) -> None:
        found = self.asked(node, bin_dir)
        assert found["bridge"] == [("ok", [])] * 2
        why = "no plugin 'vip' here; start the agent with --plugin vip=FILE"
        assert found["vip"] == [("declined", [why])] * 2

    def test_it_serves_theirs_when_it_is_given_the_same_file(self, node: Node, bin_dir: Path, tmp_path: Path) -> None:
        shutil.copy2(EXAMPLE, tmp_path)
        found = self.asked(node, bin_dir, "--plugin", f"vip={tmp_path / EXAMPLE.name}")
        assert found["bridge"] == found["vip"] == [("ok", [])] * 2

    def test_it_declines_theirs_when_its_file_is_another(self, node: Node, bin_dir: Path, tmp_path: Path) -> None:
        (tmp_path / EXAMPLE.name).write_text(EXAMPLE.read_text() + "\n")
        found = self.asked(node, bin_dir, "--plugin", f"vip={tmp_path / EXAMPLE.name}")
        assert found["bridge"] == [("ok", [])] * 2
        for outcome, (line,) in found["vip"]:
            assert outcome == "declined"
            assert line.startswith("the launcher's code of 'vip' is ")
            assert line.endswith("install both from one build")

    @pytest.mark.parametrize("change", ["built-in", "contract"])
    def test_what_is_no_plugin_beside_ours_is_refused_by_agent_and_build(
        self, bin_dir: Path, tmp_path: Path, change: str
    ) -> None:
        module = tmp_path / "my_plugin.py"
        module.write_text("NETNS = True\n")
        option = ["--plugin", f"bridge={EXAMPLE}" if change == "built-in" else f"mine={module}"]
        says = "one of cnikit's own plugins" if change == "built-in" else "found no ARGS, PATHS, Conf, add"
        build = [sys.executable, "-m", "cli.bundle", "--output", str(tmp_path / "out")]
        for argv in ([*build, *option], [str(beside(bin_dir)), "agent", *option]):
            ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
            assert ran.returncode != 0
            assert says in ran.stderr, ran.stderr
            assert "Traceback" not in ran.stderr
        assert not (tmp_path / "out").exists()
