"""`cnikit lab`: clusters that come up, are seen to work by others' programs, are broken, and leave nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cli import lab_cluster, sandbox
from cli.lab_cluster import Lab
from cli.lab_plan import LabError, Plan
from cli.lab_space import place, unshare_pinned
from tests.e2e.world import GENEROUS, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
SMALL = ("--nodes", "2", "--pods", "1")
_numbers = itertools.count(1)


class Machine:
    """What a lab could leave on the machine, and the command as somebody types it."""

    def __init__(self, bin_dir: Path) -> None:
        self.bin_dir = bin_dir
        self.name = f"test{os.getpid()}-{next(_numbers)}"

    def start(self, verb: str, *args: str, **options: Any) -> subprocess.Popen[str]:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **options.pop("env", {})}
        given = ["--bin-dir", str(self.bin_dir)] if verb == "up" else []
        argv = [
            "env",
            "--default-signal=INT",
            sys.executable,
            "-m",
            "cli.main",
            "lab",
            verb,
            "--name",
            self.name,
            *given,
        ]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*argv, *args], env=environ, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, **options
        )

    def lab(self, verb: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        running = self.start(verb, *args, **options)
        out, err = running.communicate(timeout=GENEROUS)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(args, running.returncode, out, err)

    def ok(self, verb: str, *args: str) -> str:
        ran = self.lab(verb, *args)
        assert ran.returncode == 0, ran
        return ran.stdout

    def ip(self, place: str, *args: str) -> Any:
        return json.loads(self.ok("exec", place, "ip", "-j", *args) or "[]")

    def check(self, node: str, pod: str) -> str:
        """What `cnikit check` says on a node."""
        program = (sys.executable, "-m", "cli.main")
        return self.lab("exec", node, *program, "check", "lab", f"/run/netns/{pod}").stderr

    @property
    def folder(self) -> Path:
        return Path("/run/cnikit-lab") / self.name

    def left(self) -> list[str]:
        """Files, mounts and processes of the lab."""
        found = [str(path) for path in self.folder.parent.glob(f"{self.name}*")]
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/{self.name}/" in line]
        return found + [f"process {pid}" for pid in self.processes()]

    def processes(self) -> list[int]:
        """Those whose output goes into the lab's folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/fd/2"):
            with contextlib.suppress(OSError):
                if f"/{self.name}/" in os.readlink(path):
                    found.append(int(path.parts[2]))
        return found


@pytest.fixture
def machine(bin_dir: Path) -> Iterator[Machine]:
    made = Machine(bin_dir)
    before = links()
    try:
        yield made
    finally:
        made.lab("down")
    assert made.left() == []
    assert links() == before


def lab_up(machine: Machine, *prefix: str, options: tuple[str, ...] = SMALL) -> subprocess.CompletedProcess[str]:
    """`lab up`, called by another program."""
    up = (sys.executable, "-m", "cli.main", "lab", "up", "--name", machine.name, "--bin-dir", str(machine.bin_dir))
    return subprocess.run(
        (*prefix, *up, *options),
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=GENEROUS, check=False,
    )  # fmt: skip


def links() -> list[str]:
    shown = subprocess.run(("ip", "-j", "link"), capture_output=True, text=True, check=True).stdout
    return sorted(link["ifname"] for link in json.loads(shown))


class TestUp:
    @pytest.mark.parametrize(
        ("options", "pings"),
        [
            ((), 30),
            (("--dual", "--source", "etcd"), 60),
            (("--ipv6", "--backend", "host-gw", "--source", "etcd"), 30),
            (("--ipv6",), 30),
            (("--backend", "host-gw", "--dual", "--nodes", "2", "--pods", "1"), 4),
        ],
    )
    def test_every_pod_reaches_every_other_one_with_and_without_fragments(
        self, machine: Machine, options: tuple[str, ...], pings: int
    ) -> None:
        machine.ok("up", *options)

        assert f"{pings} of {pings} pings of 56 bytes" in machine.ok("ping")
        assert f"{pings} of {pings} pings of 5000 bytes" in machine.ok("ping", "--size", "5000")
        assert machine.check("node1", "node1-pod1") == ""

        machine.ok("down")
        assert machine.left() == []

    def test_nodes_are_alone_with_each_other(self, machine: Machine) -> None:
        machine.ok("up")

        (device,) = machine.ip("node1", "-d", "link", "show", "cnikit.1")
        assert device["linkinfo"]["info_data"]["port"] == 8472
        names = {link["ifname"] for link in machine.ip("node1", "link")}
        assert {name for name in names if not name.startswith("veth")} == {"lo", "eth0", "cnikit.1"}
        assert machine.ip("node1", "route", "show", "default") == []
        assert machine.ip("node1-pod1", "-4", "addr", "show", "eth0")[0]["addr_info"][0]["local"] == "10.244.1.2"
        assert machine.ip("node1-pod1", "link", "show", "lo")[0]["flags"].count("UP") == 1

    def test_a_node_has_files_of_its_own(self, machine: Machine) -> None:
        machine.ok("up", "--nodes", "2", "--pods", "1")

        assert machine.ok("exec", "node1", "ls", "/run").split() == ["cnikit", "cnikit-lab", "netns"]
        assert machine.ok("exec", "node2", "ls", "/var/lib/cni/networks/lab").split() >= ["10.244.2.2"]
        assert "10.244.1.2" not in machine.ok("exec", "node2", "ls", "/var/lib/cni/networks/lab")
        assert machine.check("node1", "node1-pod1") == ""
        assert "run ADD first" in machine.check("node2", "node1-pod1")

    def test_a_second_up_says_what_to_do_and_touches_nothing(self, machine: Machine) -> None:
        machine.ok("up", "--nodes", "2", "--pods", "1")

        again = machine.lab("up")

        assert again.returncode == 1
        assert f"cnikit lab down --name {machine.name}" in again.stderr
        assert "2 of 2" in machine.ok("ping")

    def test_two_labs_do_not_meet(self, machine: Machine, bin_dir: Path) -> None:
        other = Machine(bin_dir)
        machine.ok("up", "--nodes", "2", "--pods", "1")
        try:
            other.ok("up", "--nodes", "2", "--pods", "1")
            machine.ok("down")
            assert machine.left() == []
            assert "2 of 2" in other.ok("ping")
        finally:
            other.ok("down")

    def test_one_that_is_made_by_ip_netns_exec_stays(self, machine: Machine) -> None:
        """`ip netns exec` gives its command a mount namespace, which ends with it."""
        subprocess.run(("ip", "netns", "add", machine.name), check=True)
        try:
            made = lab_up(machine, "ip", "netns", "exec", machine.name)
            assert made.returncode == 0, made
            assert "2 of 2" in machine.ok("ping")
        finally:
            subprocess.run(("ip", "netns", "del", machine.name), check=True)

    def test_one_whose_mounts_are_gone_says_so_and_goes_away(self, machine: Machine) -> None:
        """The shell is the command's parent, so the lab is mounted where the shell is, and the shell ends."""
        made = lab_up(machine, "unshare", "-m", "sh", "-c", '"$@"; exit $?', "sh")
        assert made.returncode == 0, made
        assert f"cnikit lab down --name {machine.name}" in machine.lab("ping").stderr
        assert machine.processes() != []
        machine.ok("down")
        wait_until(lambda: machine.processes() == [], "the agents end", GENEROUS)

    def test_tests_use_the_same_code(self, machine: Machine) -> None:
        with Lab.up(Plan(machine.name, node_count=2, pod_count=1), str(machine.bin_dir)) as lab:
            one, two = lab.pods
            assert one.run("ping", "-c1", "-W5", two.addresses[0]).returncode == 0
            assert "10.244.2.0/24" in lab.node("node1").run("ip", "route").stdout
        assert machine.left() == []


class TestBreaking:
    @pytest.mark.parametrize("source", ["static", "etcd"])
    def test_a_killed_node_is_withdrawn_by_the_others(self, machine: Machine, source: str) -> None:
        machine.ok("up", "--source", source, "--pods", "1")
        gone = machine.ip("node2-pod1", "-4", "addr", "show", "eth0")[0]["addr_info"][0]["local"]

        machine.ok("kill", "node2")

        assert machine.lab("ping", "--timeout", "0.3").returncode == 1
        wait_until(lambda: not routed(machine, "node1", gone), "node1 has no route to node2's pods", GENEROUS)
        assert "2 of 2" in machine.ok("ping", "node1", "node3")
        assert "killed" in machine.ok("status")
        assert "node2 was killed" in machine.lab("tcpdump", "node2").stderr

    def test_partitioned_nodes_lose_each_other_only(self, machine: Machine) -> None:
        machine.ok("up", "--pods", "1", "--dual")

        machine.ok("partition", "node1", "node2")
        matrix = machine.lab("ping", "--timeout", "0.3")
        assert matrix.returncode == 1
        assert matrix.stdout.count(" lost ") == 2
        assert "8 of 12" in matrix.stdout
        assert "node1 and node2 are partitioned" in machine.ok("status")

        machine.ok("partition", "--heal", "node2", "node1")
        assert "12 of 12" in machine.ok("ping")

    def test_a_node_alone_loses_all_and_heals(self, machine: Machine) -> None:
        machine.ok("up", "--pods", "1", "--source", "etcd")
        client = ("etcdctl", "--endpoints=192.0.2.254:2379", "--command-timeout=1s", "endpoint", "health")
        assert machine.lab("exec", "node2", *client).returncode == 0

        machine.ok("partition", "node2")
        assert "2 of 6" in machine.lab("ping", "--timeout", "0.3").stdout
        assert machine.lab("exec", "node2", *client).returncode != 0
        assert machine.lab("exec", "node1", *client).returncode == 0

        assert machine.ok("partition", "--heal", "node2", "etcd") == "etcd and node2 reach each other again\n"
        assert machine.lab("exec", "node2", *client).returncode == 0
        assert machine.ok("partition", "--heal").count("reach each other again") == 2
        assert machine.ok("partition", "--heal") == "there was nothing to heal\n"
        wait_until(lambda: machine.lab("ping").returncode == 0, "all reach all", GENEROUS)

    def test_nodes_that_are_killed_at_once_are_all_remembered(self, machine: Machine) -> None:
        machine.ok("up", "--nodes", "4", "--pods", "0")
        killing = [machine.start("kill", f"node{number}") for number in (1, 2, 3, 4)]
        assert [one.communicate(timeout=GENEROUS)[1] for one in killing] == [""] * 4
        assert machine.ok("status").count("killed") == 4

    def test_tcpdump_shows_pods_packets_in_the_underlays(self, machine: Machine) -> None:
        machine.ok("up", "--nodes", "2", "--pods", "1")
        watching = machine.start("tcpdump", "node1", "-l", "-c", "2", "udp", "port", "8472")
        assert watching.stderr is not None
        while "listening on eth0" not in (line := watching.stderr.readline()):
            assert line, "tcpdump ended"

        machine.ok("ping", "--size", "100")

        out, _ = watching.communicate(timeout=GENEROUS)
        assert re.search(r"192\.0\.2\.\d\.\d+ > 192\.0\.2\.\d\.8472: VXLAN.*vni 1", out)
        assert re.search(r"IP 10\.244\.\d\.2 > 10\.244\.\d\.2: ICMP echo", out)

    def test_tcpdump_takes_udp_for_vxlan_only_where_there_is_vxlan(self, machine: Machine) -> None:
        machine.ok("up", "--nodes", "2", "--pods", "1", "--backend", "host-gw")
        watching = machine.start("tcpdump", "node1", "-l", "-c", "1", "udp", "port", "5000")
        assert watching.stderr is not None
        while "listening on eth0" not in (line := watching.stderr.readline()):
            assert line, "tcpdump ended"

        send = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x' * 40, ('10.244.2.2', 5000))"
        machine.ok("exec", "node1-pod1", sys.executable, "-c", send)

        out, _ = watching.communicate(timeout=GENEROUS)
        assert "10.244.2.2.5000: UDP, length 40" in out

    def test_down_ends_what_somebody_runs_on_a_node(self, machine: Machine) -> None:
        machine.ok("up", "--nodes", "1", "--pods", "1")
        shell = machine.start("exec", "node1-pod1", "sh", "-c", "echo there; exec sleep 1000")
        assert shell.stdout is not None
        assert shell.stdout.readline() == "there\n"

        machine.ok("down")

        assert shell.wait(GENEROUS) == -signal.SIGKILL
        shell.communicate()


class TestStartingAgain:
    @pytest.mark.parametrize(
        "options",
        [("--dual",), ("--source", "etcd"), ("--backend", "host-gw", "--ipv6"), ("--backend", "host-gw", "--dual")],
    )
    def test_a_killed_node_is_back_with_new_pods(self, machine: Machine, options: tuple[str, ...]) -> None:
        machine.ok("up", "--pods", "1", *options)
        before = addresses(machine, "node2-pod1")
        machine.ok("kill", "node2")
        machine.ok("kill", "node2")

        machine.ok("start", "node2")

        assert machine.lab("ping").returncode == 0
        assert before.isdisjoint(addresses(machine, "node2-pod1"))
        assert machine.check("node2", "node2-pod1") == ""
        assert "killed" not in machine.ok("status")
        assert "running" in machine.lab("start", "node2").stderr

    def test_a_node_whose_agent_has_ended_keeps_its_pods(self, machine: Machine) -> None:
        machine.ok("up", "--nodes", "2", "--pods", "1")
        before = addresses(machine, "node2-pod1")
        (agent,) = [pid for pid in machine.processes() if "node2" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(agent, signal.SIGKILL)
        wait_until(lambda: "has ended" in machine.ok("status"), "the agent's end is told", GENEROUS)
        assert "2 of 2" in machine.ok("ping"), "what the agent has set up stays"

        machine.ok("start", "node2")

        assert "has ended" not in machine.ok("status")
        assert addresses(machine, "node2-pod1") == before
        machine.ok("exec", "node2", "ip", "nexthop", "flush", "proto", "205")
        wait_until(lambda: machine.lab("ping").returncode == 0, "the new agent heals the routes", GENEROUS)

    def test_it_waits_for_those_only_that_can_be_reached(self, machine: Machine) -> None:
        machine.ok("up", "--nodes", "4", "--pods", "1")
        machine.ok("kill", "node2")
        machine.ok("kill", "node3")
        machine.ok("partition", "node1", "node2")

        machine.ok("start", "node2")

        assert "2 of 2" in machine.ok("ping", "node2", "node4")


def addresses(machine: Machine, pod: str) -> set[str]:
    """A pod's own, as `ip` has them."""
    (link,) = machine.ip(pod, "addr", "show", "eth0")
    return {info["local"] for info in link["addr_info"] if info["scope"] == "global"}


# What is there when `up` is killed.
MOMENTS: dict[str, Callable[[Machine], Any]] = {
    "its folder": lambda machine: machine.folder.exists(),
    "a namespace": lambda machine: any(machine.folder.glob("net/underlay")),
    "a node": lambda machine: any(machine.folder.glob("mnt/node1")),
    "an agent": lambda machine: any(machine.folder.glob("node1.log")),
    "an agent that listens": lambda machine: any(machine.folder.glob("node1/run/cnikit/agent.sock")),
    "a pod": lambda machine: any(machine.folder.glob("node3/var/results/*")),
}


class TestUpThatFails:
    @pytest.mark.parametrize("moment", MOMENTS)
    def test_down_removes_what_a_killed_up_left(self, machine: Machine, moment: str) -> None:
        running = machine.start("up")
        wait_until(lambda: MOMENTS[moment](machine) or running.poll() is not None, f"there is {moment}")
        running.kill()
        running.communicate()

        if running.returncode != 0:
            assert "lab down" in machine.lab("ping").stderr
            assert "lab down" in machine.lab("up").stderr
        machine.ok("down")

        assert machine.left() == []
        machine.ok("up", "--nodes", "2", "--pods", "1")

    @pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
    def test_one_that_is_asked_to_end_cleans_up(self, machine: Machine, end: signal.Signals) -> None:
        running = machine.start("up", "--nodes", "5")
        wait_until(lambda: any(machine.folder.glob("node1.log")) or running.poll() is not None, "an agent")
        running.send_signal(end)
        _, err = running.communicate(timeout=GENEROUS)

        assert running.returncode not in (0, -end), err
        assert machine.left() == []

    def test_the_error_names_the_log_and_nothing_else_is_left(self, machine: Machine) -> None:
        with pytest.raises(LabError) as caught:
            Lab.up(Plan(machine.name), str(machine.bin_dir), ["sh", "-c", "echo I am no agent >&2; exit 3"])

        log = machine.folder.with_name(f"{machine.name}.log")
        assert "process has ended" in str(caught.value)
        assert str(log) in str(caught.value)
        assert "I am no agent" in log.read_text()
        assert machine.left() == [str(log)]

    def test_a_full_disk_leaves_nothing_either(self, machine: Machine) -> None:
        """With a /run of 64 KiB the agents start, and then there is no room."""
        mounts = "$(grep -c cnikit-lab /proc/self/mountinfo)"  # other labs' are seen here too
        script = f'before={mounts}; mount -t tmpfs -o size=64k none /run && "$@"; echo "exit code $?"; find /run; '
        script += f"pgrep -c python; echo $(({mounts} - before))"
        up = [sys.executable, "-m", "cli.main", "lab", "up", "--name", machine.name, "--bin-dir", str(machine.bin_dir)]
        ran = subprocess.run(
            ["unshare", "-mpf", "--mount-proc", "sh", "-c", script, "sh", *up],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=GENEROUS, check=False,
        )  # fmt: skip
        assert "No space left" in ran.stderr
        assert "nothing of it is left" in ran.stderr
        found = [line for line in ran.stdout.splitlines() if not line.endswith(".log")]
        assert found == ["exit code 1", "/run", "/run/cnikit-lab", "0", "0"], ran

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            (("--nodes", "0"), "--nodes"),
            (("--nodes", "201"), "--nodes"),
            (("--ipv6", "--dual"), "--ipv6 or --dual"),
            (("--backend", "gre"), "vxlan"),
            (("--name", "../x"), "small letters"),
            (("--name", "Lab"), "small letters"),
            (("--name", "a" * 33), "small letters"),
        ],
    )
    def test_bad_input_is_told(self, machine: Machine, args: tuple[str, ...], told: str) -> None:
        ran = machine.lab("up", *args)
        assert ran.returncode in (1, 2)
        assert told in ran.stderr
        assert machine.left() == []

    def test_too_many_nodes_are_refused_in_a_network_namespace_too(self, machine: Machine) -> None:
        """The limit is the machine's; the file that sets it is seen in the first namespace only."""
        ran = lab_up(machine, "unshare", "-n", options=("--nodes", "200", "--pods", "50"))
        assert ran.returncode == 1
        assert "found a limit of" in ran.stderr
        assert "nsenter -t 1 -n sysctl -w net.ipv4.neigh.default.gc_thresh3=" in ran.stderr
        assert machine.left() == []

    def test_without_etcd_it_says_what_to_install(self, machine: Machine, tmp_path: Path) -> None:
        (tmp_path / "env").symlink_to("/usr/bin/env")
        ran = machine.lab("up", "--source", "etcd", env={"PATH": str(tmp_path)})
        assert ran.returncode == 1
        assert "apt-get install etcd-server" in ran.stderr

    def test_without_plugins_it_says_how_to_get_them(self, machine: Machine, tmp_path: Path) -> None:
        with pytest.raises(LabError, match="make dist"):
            Lab.up(Plan(machine.name), str(tmp_path))

    def test_unknown_places_are_told(self, machine: Machine) -> None:
        assert "lab up" in machine.lab("ping").stderr
        machine.ok("up", "--nodes", "2", "--pods", "1")
        for verb, *args in (
            ("kill", "node9"), ("partition", "node1", "node9"), ("partition", "node1", "node1"), ("ping", "nobody"),
            ("exec", "node1-pod9", "true"), ("tcpdump", "eth0"), ("exec", "node1", "no-such-program"),
            ("start", "node9"), ("start", "node1"), ("ping", "node1"), ("ping", "node1-pod1"), ("partition", "etcd"),
            ("partition", "--heal", "node9"),
        ):  # fmt: skip
            ran = machine.lab(verb, *args)
            assert ran.returncode == 1, (verb, args)
            assert "Error: " in ran.stderr
        assert "2 of 2" in machine.ok("ping")


def routed(machine: Machine, node: str, address: str) -> bool:
    """Whether a node's main table has a route that holds for an address."""
    return machine.lab("exec", node, "ip", "route", "get", address).returncode == 0


def test_a_folder_that_the_machine_lacks_is_there_for_the_node_only(tmp_path: Path) -> None:
    missing = "/var/lib/cnikit-no-such/deeper"
    (tmp_path / "one").touch()

    def seen() -> list[list[str]]:
        sandbox.isolate()
        before = os.listdir("/var/lib")
        place(str(tmp_path), missing)
        return [os.listdir(missing), sorted({*os.listdir("/var/lib")} ^ {*before})]

    assert sandbox.in_child(seen) == [["one"], ["cnikit-no-such"]]
    assert not os.path.exists("/var/lib/cnikit-no-such")


def test_the_labs_of_the_machine_are_named(machine: Machine) -> None:
    machine.ok("up", "--nodes", "1", "--pods", "0")
    assert machine.name in lab_cluster.names()
    with pytest.raises(LabError, match=machine.name):
        Lab.find("no-such-lab")


@pytest.mark.parametrize("cpu", sorted(os.sched_getaffinity(0)))
def test_a_mount_namespace_is_pinned_from_one_that_was_made_on_any_cpu(cpu: int) -> None:
    """Where namespaces' IDs are handed out for each CPU, only some of the later ones are higher."""

    def own() -> int:
        unshare_pinned("/run/pin")
        return os.stat("/proc/self/ns/mnt").st_ino

    def pinned() -> bool:
        usable = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cpu})
        sandbox.isolate()
        os.sched_setaffinity(0, usable)
        Path("/run/pin").touch()
        there = sandbox.in_child(own)
        return bool(os.stat("/run/pin").st_ino == there)

    assert sandbox.in_child(pinned)
