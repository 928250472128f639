"""A lab's pure parts: what it is made of, what is remembered of it, what a captured frame holds."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from cli import lab_programs, lab_state
from cli.lab_capture import tunnelled
from cli.lab_ping import Answer, Target, table, tables
from cli.lab_plan import LabError, Plan
from cli.lab_process import Process
from cli.lab_state import State
from cni.errors import KernelError
from cni.kernel import neightbl
from cni.kernel.netlink import attr_text, attr_u32, nest
from cni.netlist import NetworkList
from plugins.contradictions import refuse_contradictions

if TYPE_CHECKING:
    from rich.table import Table

MACS = bytes.fromhex("0a0000000002 0a0000000001")


class TestPlan:
    def test_nodes_agree_with_one_another_up_to_the_last(self) -> None:
        plan = Plan(node_count=200, families=(4, 16))
        members = [node.member() for node in plan.nodes]
        refuse_contradictions(members)
        assert members[199].described() == {
            "name": "node200",
            "publicIP": "192.0.2.200",
            "publicIPv6": "2001:db8::c8",
            "subnets": ["10.244.200.0/24", "fd00:244:0:c8::/64"],
        }

    def test_names_are_unique_and_fit(self) -> None:
        plan = Plan(node_count=200, pod_count=50)
        pods = [pod.name for pod in plan.pods]
        assert len(set(pods)) == 200 * 50
        assert max(len(node.name) for node in plan.nodes) <= 15, "a node's name is its link's on the underlay"

    @pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
    @pytest.mark.parametrize("source", ["static", "etcd"])
    def test_the_network_list_is_one(self, backend: str, source: str) -> None:
        plan = Plan(backend=backend, source=source, families=(16,))
        network = NetworkList(json.dumps(plan.network_list("/nodes.json")).encode())
        (plugin,) = network.plugins
        assert plugin.type == backend
        assert plugin.value["ipv6Network"] == "fd00:244::/48"
        assert "network" not in plugin.value
        where = {"static": ("file", "/nodes.json"), "etcd": ("endpoints", ["http://[2001:db8::fe]:2379"])}[source]
        assert where in plugin.value["membership"].items()

    def test_more_neighbours_than_the_kernel_keeps_are_refused(self, tmp_path: Path) -> None:
        """Linux drops packets to the others ("neighbour table overflow"); its default is 1,024 in all namespaces."""
        (tmp_path / "limit").touch()
        lab_programs.refuse_crowd(Plan(node_count=30).neighbours(4), 1024, "limit", str(tmp_path))
        lab_programs.refuse_crowd(Plan(node_count=20).neighbours(16), 1024, "limit", str(tmp_path))
        with pytest.raises(LabError, match=r"found a limit of 1024.*or `sysctl -w limit=2240`$"):
            lab_programs.refuse_crowd(Plan(node_count=32).neighbours(4), 1024, "limit", str(tmp_path))
        lab_programs.refuse_crowd(1 << 20, None, "limit", str(tmp_path))

    def test_where_the_setting_is_not_seen_the_error_says_where_it_is(self, tmp_path: Path) -> None:
        with pytest.raises(LabError, match=r"`nsenter -t 1 -n sysctl -w limit=2240` on the machine itself"):
            lab_programs.refuse_crowd(1120, 1024, "limit", str(tmp_path))

    def test_the_kernels_limits_are_read_from_the_tables_as_a_whole(self) -> None:
        def answer(name: str, *more: bytes) -> bytes:
            return bytes(4) + attr_text(1, name) + b"".join(more)

        limit, one_link = attr_u32(4, 1024), nest(6, attr_u32(1, 7))
        answers = [answer("arp_cache", limit), answer("arp_cache", one_link), answer("dn_neigh_cache", limit)]
        assert neightbl.read_limits(answers) == {4: 1024}
        with pytest.raises(KernelError):
            neightbl.read_limits([b"\0"])

    @pytest.mark.parametrize("name", ["", "-x", "Lab", "a/b", "..", "a b", "é", "x\n", "a" * 33])
    def test_a_name_that_is_none_is_refused(self, name: str) -> None:
        with pytest.raises(LabError, match="expected up to 32"):
            Plan(name)


class TestState:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        plan = Plan("mine", 2, 1, "host-gw", "etcd", (4, 16))
        state = State(
            plan, "/bin", ["cnikit"], True, {"node1": Process(12, 34)}, {"node1-pod1": ["10.244.1.2"]}, ("node2",)
        )
        state.write(str(tmp_path))
        assert lab_state.read(str(tmp_path)) == state
        assert [path.name for path in tmp_path.iterdir()] == ["state.json"]

    def test_none_is_told_from_one_that_is_not_understood(self, tmp_path: Path) -> None:
        assert lab_state.read(str(tmp_path)) is None
        for text in ("", "{}", "[]", '{"plan": {"name": "x", "families": 3}}'):
            (tmp_path / "state.json").write_text(text)
            with pytest.raises(LabError, match="expected what this version"):
                lab_state.read(str(tmp_path))


class TestCapture:
    """Frames put together by hand after RFC 791, 768 and 7348."""

    def test_a_ping_in_vxlan(self) -> None:
        found = tunnelled(vxlan(ipv4("10.0.0.1", "10.0.0.2", 1, b"\x08\x00")))
        assert found is not None
        assert found.text() == "192.0.2.1 -> 192.0.2.2 UDP 8472 VNI 258: 10.0.0.1 -> 10.0.0.2 ICMP echo request"

    @pytest.mark.parametrize("length", range(0, 120, 3))
    def test_what_is_cut_off_is_none_or_told_as_far_as_it_goes(self, length: int) -> None:
        found = tunnelled(vxlan(ipv4("10.0.0.1", "10.0.0.2", 1, b"\x08\x00"))[:length])
        assert found is None or found.vni == 258

    def test_other_ports_are_not_vxlan(self) -> None:
        assert tunnelled(vxlan(ipv4("10.0.0.1", "10.0.0.2", 1, b"\x08\x00"), port=53)) is None


def test_the_matrix_tells_which_family_is_lost() -> None:
    one, two = (Target(f"node{n}-pod1", f"node{n}", "", (f"10.0.{n}.2", f"fd00::{n}:2")) for n in (1, 2))
    answers = [
        Answer(one.name, two.name, "10.0.2.2", 0.001),
        Answer(one.name, two.name, "fd00::2:2", 0.002),
        Answer(two.name, one.name, "10.0.1.2", 0.001),
        Answer(two.name, one.name, "fd00::1:2", None),
    ]
    columns = table([one, two], answers).columns
    assert [[str(cell) for cell in column.cells] for column in columns[1:]] == [["-", "lost v6"], ["2.00 ms", "-"]]


def world_of(nodes: int, pods: int) -> tuple[list[Target], list[Answer]]:
    """The pods of a plan, and a lost ping between any two."""
    targets = [Target(pod.name, pod.node, "", ("10.0.0.1",)) for pod in Plan(node_count=nodes, pod_count=pods).pods]
    pairs = [(one, two) for one in targets for two in targets if one is not two]
    return targets, [Answer(one.name, two.name, "10.0.0.1", None) for one, two in pairs]


@pytest.mark.parametrize("width", [1, 40, 80, 132])
@pytest.mark.parametrize(("nodes", "pods"), [(4, 2), (8, 2), (12, 12)])
def test_the_matrix_keeps_its_labels_on_a_narrow_terminal(nodes: int, pods: int, width: int) -> None:
    targets, answers = world_of(nodes, pods)
    found = tables(targets, answers, width)
    names = [name for one in found for name in shown_columns(one)]
    assert names == [target.name for target in targets], "each pod is asked in one column of one table"
    for one in found:
        text = rendered(one, width)
        assert "…" not in text
        assert all(f" {target.name} " in text for target in targets), "each table names who asks"


def test_a_wide_place_has_one_table() -> None:
    assert len(tables(*world_of(8, 2), width=None)) == 1


def shown_columns(found: Table) -> list[str]:
    return [str(column.header).replace("\n", "-") for column in found.columns[1:]]


def rendered(found: Table, width: int) -> str:
    """What stands on a terminal; one that is narrower than a label and a cell breaks the lines itself."""
    console = Console(file=io.StringIO(), width=max(width, 40))
    console.print(found)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line) for line in text.splitlines()) <= max(width, 40)
    return text


def vxlan(inner: bytes, port: int = 8472) -> bytes:
    data = struct.pack("!BxxxI", 8, 258 << 8) + inner
    return ipv4("192.0.2.1", "192.0.2.2", 17, struct.pack("!HHHH", 5000, port, 8 + len(data), 0) + data)


def ipv4(source: str, target: str, protocol: int, data: bytes) -> bytes:
    addresses = bytes(int(part) for text in (source, target) for part in text.split("."))
    return MACS + b"\x08\x00" + struct.pack("!BBHIBBH", 0x45, 0, 20 + len(data), 0, 64, protocol, 0) + addresses + data
