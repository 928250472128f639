"""What `make install`, `make agent` and `make uninstall` do to a node, and to a folder that is to become one (DESTDIR)."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni.start import Stamp
from tests.e2e.agent_world import Agent
from tests.e2e.test_cnitool import Cnitool
from tests.e2e.world import SEARCH_PATH, Answer, Node, Way, network, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["bridge", "host-gw", "host-local", "loopback", "vxlan"]
UNITS = ["cnikit-agent.service", "cnikit-agent.socket"]
# In the node's own /run, under a name that no program outside the test runs from.
PREFIX = f"/run/local-{os.getpid()}"
PLACES = {"PREFIX": PREFIX, "UNIT_DIR": "/run/units"}


@pytest.fixture
def node() -> Iterator[Node]:
    with Node(Way("installed", Path("/opt/cni/bin"))) as made:
        yield made


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A folder for the head of PATH in which modprobe writes `loaded`."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "modprobe").write_text(f'#!/bin/sh\necho "$@" >> "{folder}/loaded"\n')
    (folder / "modprobe").chmod(0o755)
    return folder


def attempt(node: Node, modules: Path, *targets: str, **variables: str) -> Answer:
    """Run make in the node. What make dist has built is taken as it is."""
    words = [f"{name}={value}" for name, value in variables.items()]
    environ = {"PATH": f"{modules}:{SEARCH_PATH}"}
    return node.attempt("make", "-s", "-C", str(ROOT), "-o", "dist", "-o", "setup", *targets, *words, env=environ)


def make(node: Node, modules: Path, *targets: str, **variables: str) -> Answer:
    answer = attempt(node, modules, *targets, **variables)
    assert answer.status == 0, answer
    return answer


def files_below(folder: Path) -> set[str]:
    """Everything in a folder but what is in bundles."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {
        path for path in found if not Path(path).parent.parent.name.startswith(".cnikit") and "/.cnikit" not in path
    }


def works(node: Node, launcher: str) -> bool:
    """A launcher answers out of its bundle: this question needs a JSON parser."""
    return node.attempt(launcher, env={"CNI_COMMAND": "VERSION"}, stdin=b" {}").status == 0


class TestDestdir:
    """Installing below a root that runs nowhere yet."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return tmp_path / "a root's folder"

    def test_everything_is_below_it_and_the_node_stays_as_it_is(self, node: Node, modules: Path, root: Path) -> None:
        before = files_below(node.path("/opt/cni")), node.run("sysctl", "-a", "--pattern", "bridge|forwarding")
        make(node, modules, "install", "agent", DESTDIR=str(root))

        assert (
            files_below(node.path("/opt/cni")),
            node.run("sysctl", "-a", "--pattern", "bridge|forwarding"),
        ) == before
        assert not (modules / "loaded").exists()
        assert {path.name for path in (root / "opt/cni/bin").iterdir()} == {".cnikit", *NAMES}
        assert {path.name for path in (root / "usr/local/bin").iterdir()} == {".cnikit-command", "cnikit"}
        assert sorted(path.name for path in (root / "etc/systemd/system").iterdir()) == UNITS
        assert {path.name for path in root.iterdir()} == {"opt", "usr", "etc"}
        assert works(node, f"{root}/opt/cni/bin/bridge")
        assert node.run(f"{root}/usr/local/bin/cnikit", "--help")

    def test_units_name_the_final_place(self, node: Node, modules: Path, root: Path) -> None:
        make(node, modules, "agent", DESTDIR=str(root), PREFIX="/usr", UNIT_DIR="/usr/lib/systemd/system")
        assert (root / "usr/bin/cnikit").is_file()
        unit = (root / "usr/lib/systemd/system/cnikit-agent.service").read_text()
        assert "\nExecStart=/usr/bin/cnikit agent\n" in unit
        assert str(root) not in unit

    @pytest.mark.parametrize(
        ("place", "written"),
        [("/opt/my tools", '"/opt/my tools/cnikit"'), ("/opt/a&b|c", "/opt/a&b|c/cnikit"), ("/100%", "/100%%/cnikit")],
    )
    def test_units_name_any_place(self, node: Node, modules: Path, root: Path, place: str, written: str) -> None:
        make(node, modules, "agent", "install", DESTDIR=str(root), BIN_DIR=place, CNI_BIN_DIR="/x y")
        assert (root / place.lstrip("/") / "cnikit").is_file()
        assert (root / "x y" / "bridge").is_file()
        assert f"\nExecStart={written} agent\n" in (root / "etc/systemd/system/cnikit-agent.service").read_text()

    def test_a_place_that_systemd_refuses(self, node: Node, modules: Path, root: Path) -> None:
        answer = attempt(node, modules, "agent", DESTDIR=str(root), BIN_DIR="/it's")
        assert "not installed: /it's/cnikit: expected a path without quotes" in answer.stderr
        assert not root.exists()

    def test_a_bundle_that_nothing_names_is_no_part_of_a_package(self, node: Node, modules: Path, root: Path) -> None:
        make(node, modules, "install", DESTDIR=str(root))
        (bundle,) = (root / "opt/cni/bin/.cnikit").iterdir()
        shutil.copytree(bundle, bundle.with_name("0.0.9-0123456789abcdef"))
        make(node, modules, "install", DESTDIR=str(root))
        assert list(bundle.parent.iterdir()) == [bundle]

    def test_uninstall_below_it(self, node: Node, modules: Path, root: Path) -> None:
        make(node, modules, "install", "agent")
        make(node, modules, "install", "agent", DESTDIR=str(root))
        before = files_below(node.path("/opt/cni"))
        make(node, modules, "uninstall", DESTDIR=str(root))
        assert [path for path in root.rglob("*") if not path.is_dir()] == []
        assert files_below(node.path("/opt/cni")) == before
        make(node, modules, "uninstall")

    @pytest.mark.parametrize("variable", ["CNI_BIN_DIR", "BIN_DIR", "UNIT_DIR"])
    def test_an_empty_name_is_refused(self, node: Node, modules: Path, root: Path, variable: str) -> None:
        for target in ("install" if variable == "CNI_BIN_DIR" else "agent", "uninstall"):
            answer = attempt(node, modules, target, DESTDIR=str(root), **{variable: ""})
            assert "expected a folder" in answer.stderr
            assert answer.status != 0


class TestUninstall:
    def test_everything_of_ours_goes_and_nothing_else(self, node: Node, modules: Path) -> None:
        plugins, command, units = (node.path(place) for place in ("/opt/cni/bin", f"{PREFIX}/bin", "/run/units"))
        for folder in (plugins, command, units / "multi-user.target.wants"):
            folder.mkdir(parents=True)
        for file in (plugins / "portmap", plugins / "bridge.bak", command / "tool", units / "other.service"):
            file.write_text("somebody's")
        theirs = {folder: files_below(folder) for folder in (plugins, command, units)}
        make(node, modules, "install", "agent", **PLACES)
        shutil.copy2(plugins / "bridge", plugins / "cnv-bridge")
        (units / "multi-user.target.wants/cnikit-agent.service").symlink_to("/run/units/cnikit-agent.service")
        for program, pods in (("iptables", "10.244.0.0/16"), ("ip6tables-legacy", "fd00:244::/48")):
            for comment in ("theirs", f"cnikit pods from {pods}"):
                rule = ("-s", pods, "-m", "comment", "--comment", comment, "-j", "ACCEPT")
                node.run(program, "-A", "FORWARD", *rule)

        answer = make(node, modules, "uninstall", **PLACES)

        assert {folder: files_below(folder) for folder in theirs} == theirs
        assert "removed /opt/cni/bin/cnv-bridge\n" in answer.stdout.decode()
        assert "systemctl daemon-reload" in answer.stderr
        for program in ("iptables", "ip6tables-legacy"):
            assert re.findall("--comment (.*) -j", node.run(program, "-S", "FORWARD")) == ["theirs"]
        assert make(node, modules, "uninstall", **PLACES).stdout == b"nothing of cnikit is installed\n"

    def test_what_was_at_the_place_of_ours_comes_back(self, node: Node, modules: Path) -> None:
        """As the plugins that kind's nodes have: without them no pod would start on the node any more."""
        plugins = node.path("/opt/cni/bin")
        plugins.mkdir(parents=True)
        (plugins / "host-local").write_text("the Go plugin")
        (plugins / "host-local").chmod(0o755)
        (plugins / "loopback").symlink_to("multiplexer")
        (plugins / "bridge").write_text("an old one")
        make(node, modules, "install")
        (plugins / "bridge").write_text("a newer one, put there by hand")
        make(node, modules, "install")
        assert all(works(node, f"/opt/cni/bin/{name}") for name in NAMES)

        answer = make(node, modules, "uninstall")

        assert sorted(path.name for path in plugins.iterdir()) == ["bridge", "host-local", "loopback"]
        assert (plugins / "host-local").read_text() == "the Go plugin"
        assert (plugins / "host-local").stat().st_mode & 0o777 == 0o755
        assert (plugins / "loopback").readlink() == Path("multiplexer")
        assert (plugins / "bridge").read_text() == "a newer one, put there by hand"
        assert "/opt/cni/bin/host-local is again what was there before the installation" in answer.stderr

    def test_a_file_that_was_put_in_our_place_stays(self, node: Node, modules: Path) -> None:
        plugins = node.path("/opt/cni/bin")
        plugins.mkdir(parents=True)
        (plugins / "bridge").write_text("an old one")
        make(node, modules, "install")
        (plugins / "bridge").write_text("a newer one")
        make(node, modules, "uninstall")
        assert [path.name for path in plugins.iterdir()] == ["bridge"]
        assert (plugins / "bridge").read_text() == "a newer one"

    def test_what_was_at_the_place_of_one_that_is_gone_comes_back(self, node: Node, modules: Path) -> None:
        plugins = node.path("/opt/cni/bin")
        plugins.mkdir(parents=True)
        (plugins / "bridge").write_text("an old one")
        make(node, modules, "install")
        (plugins / "bridge").unlink()
        make(node, modules, "uninstall")
        assert [path.name for path in plugins.iterdir()] == ["bridge"]
        assert (plugins / "bridge").read_text() == "an old one"

    def test_what_cannot_be_put_back_now_is_kept_until_it_can(self, node: Node, modules: Path) -> None:
        plugins = node.path("/opt/cni/bin")
        plugins.mkdir(parents=True)
        (plugins / "bridge").write_text("an old one")
        make(node, modules, "install")
        node.run("mount", "--bind", "/opt/cni/bin/bridge", "/opt/cni/bin/bridge")  # nothing can be renamed over it
        refused = attempt(node, modules, "uninstall")
        assert refused.status != 0
        assert "not removed: " in refused.stderr
        assert works(node, "/opt/cni/bin/bridge"), "a runtime may need a plugin of this name"
        node.run("umount", "/opt/cni/bin/bridge")
        make(node, modules, "uninstall")
        assert [path.name for path in plugins.iterdir()] == ["bridge"]
        assert (plugins / "bridge").read_text() == "an old one"

    def test_legacy_iptables_that_cannot_be_looked_at_is_named(self, node: Node, modules: Path) -> None:
        """As in a container, whose image has no programs of iptables."""
        make(node, modules, "install", **PLACES)
        node.run("iptables-legacy", "-A", "FORWARD", "-m", "comment", "--comment", "cnikit pods from 10.244.0.0/16")
        program = node.run("readlink", "-f", "/usr/sbin/iptables-legacy-save").strip()
        node.run("mount", "--bind", "/dev/null", program)
        answer = make(node, modules, "uninstall", **PLACES)
        assert "note: iptables (legacy) has a filter table" in answer.stderr
        assert "what forwardAccept has put into it stays" in answer.stderr

    def test_settings_are_put_back(self, node: Node, modules: Path) -> None:
        names = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")
        node.run("sysctl", "-qw", f"{names[0]}=0", f"{names[1]}=1")
        make(node, modules, "install", **PLACES)
        assert node.run("sysctl", "-n", *names).split() == ["1", "1"]

        answer = make(node, modules, "uninstall", **PLACES)

        assert node.run("sysctl", "-n", *names).split() == ["0", "1"]
        assert f"{names[0]} is 0 again" in answer.stdout.decode()
        assert node.files("/var/lib/cni") == {}

    def test_another_maker_s_plugin_keeps_its_bundle(self, node: Node, modules: Path) -> None:
        make(node, modules, "install", **PLACES)
        plugins = node.path("/opt/cni/bin")
        (bundle,) = (plugins / ".cnikit").iterdir()
        stamp = Stamp.read((plugins / "bridge").read_bytes())
        assert stamp is not None
        (plugins / "vip").write_bytes(Stamp("vip", stamp.build, stamp.code).written((bundle / "launcher").read_bytes()))

        answer = make(node, modules, "uninstall", **PLACES)

        assert sorted(path.name for path in plugins.iterdir()) == [".cnikit", "vip"]
        assert bundle.is_dir()
        assert f"{bundle.name} stays: other launchers" in answer.stderr
        (plugins / "vip").unlink()
        make(node, modules, "uninstall", **PLACES)
        assert list(plugins.iterdir()) == []

    def test_attached_pods_make_it_refuse(self, node: Node, modules: Path) -> None:
        make(node, modules, "install", **PLACES)
        first, second = node.pod(), node.pod()
        conf = network("net", isGateway=True, ipMasq=True)
        for pod, ifname in ((first, "eth0"), (first, "net1"), (second, "eth0")):
            assert node.call("bridge", "ADD", conf, pod, ifname=ifname).ok
        before = files_below(node.path("/opt/cni"))

        refused = attempt(node, modules, "uninstall", **PLACES)
        assert refused.status != 0
        assert "expected no attached pods, found 2" in refused.stderr
        assert files_below(node.path("/opt/cni")) == before

        make(node, modules, "uninstall", FORCE="1", **PLACES)
        assert files_below(node.path("/opt/cni")) == {"bin"}

    @pytest.mark.parametrize("how", ["labels of links", "results in /var/lib/cni/results"])
    def test_attached_pods_without_a_record_make_it_refuse(
        self, node: Node, modules: Path, peers: Path, how: str
    ) -> None:
        make(node, modules, "install", **PLACES)
        pod = node.pod()
        if how.startswith("labels"):
            assert node.call("bridge", "ADD", network("net", isGateway=True), pod).ok
            node.run("rm", "-r", "/run/cnikit/networks")
        else:
            tool = Cnitool(node, peers, {"type": "loopback"}, version="1.0.0")
            assert tool("add", pod).ok

        refused = attempt(node, modules, "uninstall", **PLACES)

        assert refused.status != 0
        assert f"expected no attached pods, found 1 (1 by {how})" in refused.stderr
        node.kill_netns(pod)
        wait_until(lambda: attempt(node, modules, "uninstall", **PLACES).status == 0, "its link is gone")

    def test_a_running_agent_is_reported_and_goes_on(self, node: Node, modules: Path) -> None:
        make(node, modules, "install", "agent", **PLACES)
        node.run("ln", "-s", PREFIX, f"{PREFIX}-link")
        agent = Agent(node, program=Path(f"{PREFIX}/bin/cnikit")).ready()
        try:
            answer = make(node, modules, "uninstall", **{**PLACES, "PREFIX": f"{PREFIX}-link"})

            assert "the agent still runs" in answer.stderr
            assert f"stays while it runs (process {agent.pid})" in answer.stderr
            assert agent.process.poll() is None
            assert agent.stop() == 0
        finally:
            agent.forget()
        make(node, modules, "uninstall", **PLACES)
        assert list(node.path(f"{PREFIX}/bin").iterdir()) == []

    def test_a_unit_that_was_edited_is_kept(self, node: Node, modules: Path) -> None:
        make(node, modules, "agent", **PLACES)
        unit = node.path("/run/units/cnikit-agent.service")
        edited = unit.read_text().replace(" agent\n", " agent --network /etc/cni/net.d/10-pods.conflist\n")
        unit.write_text(edited)
        make(node, modules, "uninstall", **PLACES)
        assert [path.name for path in unit.parent.iterdir()] == ["cnikit-agent.service.kept"]
        assert unit.with_name("cnikit-agent.service.kept").read_text() == edited

        make(node, modules, "agent", **PLACES)
        unit.write_text(f"{edited}# again\n")
        answer = make(node, modules, "uninstall", **PLACES)
        assert "it is now /run/units/cnikit-agent.service.kept.2" in answer.stderr
        kept = {path.name: path.read_text() for path in unit.parent.iterdir()}
        assert kept == {f"{unit.name}.kept": edited, f"{unit.name}.kept.2": f"{edited}# again\n"}

    def test_it_goes_on_after_a_failure(self, node: Node, modules: Path) -> None:
        make(node, modules, "install", "agent", **PLACES)
        node.run("mount", "--bind", "/opt/cni/bin", "/opt/cni/bin")
        node.run("mount", "-o", "remount,bind,ro", "/opt/cni/bin")
        answer = attempt(node, modules, "uninstall", **PLACES)
        assert answer.status != 0
        assert "not removed: /opt/cni/bin/bridge: Read-only file system" in answer.stderr
        assert list(node.path(f"{PREFIX}/bin").iterdir()) == []
