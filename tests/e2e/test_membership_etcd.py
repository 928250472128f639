"""Membership on a real etcd: claims that nobody else gets, and what happens to them when etcd, its data, the network
or the certificates are not as they should be."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from agent.membership import Network
from agent.membership.etcd import read_settings
from agent.membership.etcd_claim import Claimer
from agent.membership.etcd_client import PAGE, Client
from agent.membership.etcd_faults import UnreachableError
from cni import addr
from cni.config import Reader
from plugins.peers import Node
from tests.e2e.etcd_world import IPV6_NETWORK, NETWORK, PREFIX, Ear, Etcd, Member, put_node, subnet
from tests.e2e.world import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest_plugins = ["tests.e2e.etcd_fixtures"]


# Claims


def test_a_node_claims_a_subnet_and_tells_where_it_is(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()

    (subnet,) = one.subnets
    keys = etcd.content()
    assert json.loads(keys[f"{PREFIX}/nodes/node1"]) == {"name": "node1", "publicIP": "192.0.2.1", "subnets": [subnet]}
    assert keys[f"{PREFIX}/subnets/{subnet.replace('/', '-')}"] == "node1"
    network = ipaddress.ip_network(subnet)
    assert network.prefixlen == 24
    assert network.subnet_of(ipaddress.ip_network("10.244.0.0/16"))  # type: ignore[arg-type]
    assert subnet != "10.244.0.0/24"  # flannel leaves it out as well


def test_nodes_see_one_another(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()
    two = member(2).start().ready()

    one.ear.wait(lambda ear: "node2" in ear.nodes, "node1 hears of node2")
    assert one.ear.nodes == two.ear.nodes


def test_both_families_are_claimed_at_once(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1, networks=(NETWORK, IPV6_NETWORK)).start().ready()

    four, six = one.subnets
    assert ipaddress.ip_network(four).version == 4
    assert ipaddress.ip_network(six).subnet_of(ipaddress.ip_network("fd00:244::/48"))  # type: ignore[arg-type]
    assert f"{PREFIX}/subnets/{six.replace('/', '-')}" in etcd.content()


def test_fifty_at_once_for_sixty_subnets_all_get_their_own(etcd: Etcd, member: Callable[..., Member]) -> None:
    members = [member(number, subnetMin="10.244.1.0", subnetMax="10.244.60.0") for number in range(1, 51)]

    for one in members:
        one.start()
    for one in members:
        one.ready()

    held = {one.subnets[0] for one in members}
    assert len(held) == 50
    assert {key.rsplit("/", 1)[1] for key in etcd.content(f"{PREFIX}/subnets/")} == {
        one.replace("/", "-") for one in held
    }


def test_processes_at_once_for_as_many_subnets_as_they_are(etcd: Etcd, tmp_path: Path) -> None:
    code = (
        "import sys; from tests.e2e.etcd_world import Member\n"
        "one = Member(int(sys.argv[2]), [sys.argv[1]], subnetMin='10.244.1.0', subnetMax='10.244.8.0')\n"
        "sys.stdin.read(1); one.start().ready(); print(*one.subnets); one.source.close()"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, etcd.url, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]

    outputs = []
    for one in started:
        assert one.stdin is not None
        one.stdin.write("x")
        one.stdin.flush()
    for one in started:
        outputs.append(one.communicate(timeout=60)[0].strip())

    assert sorted(outputs) == [f"10.244.{number}.0/24" for number in range(1, 9)]


def test_when_no_subnet_is_free_that_is_told_and_one_that_gets_free_is_taken(
    etcd: Etcd, member: Callable[..., Member]
) -> None:
    ends = {"subnetMin": "10.244.7.0", "subnetMax": "10.244.7.0"}
    one = member(1, **ends).start().ready()

    two = member(2, **ends).start()

    two.ear.wait(lambda ear: "no subnet is free" in ear.trouble_now, "trouble")
    assert two.ear.nodes == {}
    one.source.close()  # its lease ends
    assert two.ready().subnets == ["10.244.7.0/24"]


def test_nodes_with_another_subnet_length_are_refused_while_there_are_claims(
    etcd: Etcd, member: Callable[..., Member]
) -> None:
    one = member(1).start().ready()

    two = member(2, subnetLen=25).start()

    two.ear.wait(lambda ear: "subnetLen: expected" in ear.trouble_now, "trouble")
    assert two.ear.nodes == {}
    one.source.close()
    (subnet,) = two.ready().subnets
    assert subnet.endswith("/25")


@pytest.mark.parametrize(
    ("here", "ends", "expected"),
    [
        # 10.244.8.0/22 is a link's; of what is on a link an address of our own is the worst.
        (["10.244.9.7/22"], ("10.244.8.0", "10.244.12.0"), ["10.244.12.0/24"]),
        (["10.244.9.7/22"], ("10.244.8.0", "10.244.9.0"), ["10.244.8.0/24"]),
        (["10.244.9.7/22"], ("10.244.9.0", "10.244.9.0"), ["10.244.9.0/24"]),
        (["10.244.9.7/8"], ("10.244.8.0", "10.244.9.0"), ["10.244.8.0/24"]),
        (["192.0.2.1/24", "fd00::1/64"], ("10.244.8.0", "10.244.8.0"), ["10.244.8.0/24"]),
    ],
)
def test_a_subnet_with_a_hosts_addresses_is_not_claimed_while_another_is_free(
    etcd: Etcd, member: Callable[..., Member], here: list[str], ends: tuple[str, str], expected: list[str]
) -> None:
    for number in range(1, 4):  # names decide where they begin
        one = member(number, subnetMin=ends[0], subnetMax=ends[1])
        one.source.locate(frozenset(subnet(text) for text in here))

        assert one.start().ready().subnets == expected

        one.source.close()
        etcd.ctl("del", "--prefix", PREFIX)


def test_a_subnet_with_another_nodes_address_is_not_claimed(etcd: Etcd, member: Callable[..., Member]) -> None:
    put_node(etcd, "node7", "10.244.8.7", "10.244.200.0/24")
    etcd.ctl("put", f"{PREFIX}/nodes/broken", "-")

    for number in range(1, 4):  # names decide where they begin
        one = member(number, subnetMin="10.244.8.0", subnetMax="10.244.9.0").start(f"10.244.99.{number}")
        one.ear.wait(lambda ear: f"node{number}" in ear.nodes, "it has a subnet")  # noqa: B023 - called in this round only
        assert one.subnets == ["10.244.9.0/24"]
        one.source.close()
        etcd.ctl("del", "--prefix", f"{PREFIX}/subnets/")


def test_a_subnet_with_the_nodes_own_address_is_given_back(etcd: Etcd, member: Callable[..., Member]) -> None:
    member(1, had="10.244.77.0/24").start().ready().source.close()

    one = member(1, had="10.244.77.0/24").start("10.244.77.9").ready()

    assert one.subnets != ["10.244.77.0/24"]
    assert f"{PREFIX}/subnets/10.244.77.0-24" not in etcd.content()


# Leases and restarts


def test_a_node_that_is_gone_is_withdrawn_when_its_lease_ends(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()
    two = member(2).start().ready()
    one.ear.wait(lambda ear: "node2" in ear.nodes, "node1 hears of node2")

    two.source.close()

    one.ear.wait(lambda ear: "node2" not in ear.nodes, "node2 is withdrawn")
    assert len(etcd.content(f"{PREFIX}/subnets/")) == 1


def test_a_lease_is_kept_for_as_long_as_the_source_lives(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()
    (lease,) = etcd.leases()
    watcher = member(2).start().ready()

    for _ in range(3):
        _wait_until_renewed(etcd, lease)

    assert "node1" in watcher.ear.nodes
    assert one.ear.trouble_now == ""


def test_a_lease_is_kept_while_somebody_is_slow_to_hear_of_changes(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1)
    busy, go_on = threading.Event(), threading.Event()

    class Slow(Ear):
        def change(self, put: list[Node], gone: list[str]) -> None:
            busy.set()
            go_on.wait()
            super().change(put, gone)

    one.ear = Slow()
    one.start().ready()
    try:
        put_node(etcd, "node2", "192.0.2.2", "10.244.200.0/24")
        assert busy.wait(20)
        (lease,) = etcd.leases()
        _wait_until_renewed(etcd, lease)
        _wait_until_renewed(etcd, lease)  # that is longer than it lives by itself
    finally:
        go_on.set()

    assert f"{PREFIX}/nodes/node1" in etcd.content()


def _wait_until_renewed(etcd: Etcd, lease: str) -> None:
    remaining: list[int] = []

    def risen() -> bool:
        remaining.append(_seconds_left(etcd, lease))
        return len(remaining) > 1 and remaining[-1] > remaining[-2]

    wait_until(risen, "the lease is renewed")


def _seconds_left(etcd: Etcd, lease: str) -> int:
    return int(json.loads(etcd.told("lease", "timetolive", lease, "-w", "json"))["ttl"])


def test_a_node_that_restarts_has_its_subnet_and_its_lease_again(etcd: Etcd, member: Callable[..., Member]) -> None:
    before = member(1, ttl=600).start().ready()
    before.source.close()
    lease = etcd.leases()

    after = member(1, ttl=600).start().ready()

    assert after.subnets == before.subnets
    assert etcd.leases() == lease


def test_a_node_that_comes_back_with_another_address_is_replaced(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()
    two = member(2).start().ready()
    two.source.close()

    member(2).start("192.0.2.222").ready()

    one.ear.wait(lambda ear: ear.nodes["node2"].addresses == {4: addr.pack("192.0.2.222")}, "the new address")
    assert one.ear.nodes["node2"].subnets == two.ear.nodes["node2"].subnets


def test_an_address_that_changes_while_it_runs_is_told(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()
    two = member(2).start().ready()

    two.source.update(two.at("192.0.2.99"))

    one.ear.wait(lambda ear: ear.nodes.get("node2", two.at("::")).addresses == {4: addr.pack("192.0.2.99")}, "it")
    two.ear.wait(lambda ear: ear.nodes["node2"].addresses == {4: addr.pack("192.0.2.99")}, "node2 hears it as well")
    assert one.ear.nodes["node2"].subnets == two.ear.nodes["node2"].subnets
    assert {*one.ear.troubles, *two.ear.troubles} <= {""}


def test_the_subnet_a_node_had_is_taken_while_it_is_free(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1, had="10.244.77.0/24").start().ready()

    assert one.subnets == ["10.244.77.0/24"]


def test_when_somebody_has_it_another_one_is_taken(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1, had="10.244.77.0/24").start().ready()

    two = member(2, had="10.244.77.0/24").start().ready()

    assert one.subnets == ["10.244.77.0/24"]
    assert two.subnets != one.subnets


def test_a_subnet_outside_the_network_is_given_back(etcd: Etcd, member: Callable[..., Member]) -> None:
    member(1, had="10.244.77.0/24").start().ready().source.close()

    one = member(1, subnetMax="10.244.9.0").start().ready()

    assert int(one.subnets[0].split(".")[2]) <= 9
    assert f"{PREFIX}/subnets/10.244.77.0-24" not in etcd.content()


def test_claims_deleted_by_hand_are_made_again(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()
    before = etcd.content()

    etcd.ctl("del", "--prefix", f"{PREFIX}/subnets/")
    wait_until(lambda: etcd.content() == before, "the claim is there again")
    etcd.ctl("del", "--prefix", PREFIX)
    wait_until(lambda: etcd.content() == before, "all is there again")
    etcd.ctl("put", f"{PREFIX}/nodes/node1", "no node")
    wait_until(lambda: etcd.content() == before, "the node is there again")

    assert one.ready().subnets == [key.rsplit("/", 1)[1].replace("-", "/") for key in before if "/subnets/" in key]


def test_a_lease_that_was_revoked_is_taken_anew(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()
    before = one.subnets
    (lease,) = etcd.leases()

    etcd.ctl("lease", "revoke", lease)

    wait_until(lambda: etcd.leases() not in ([], [lease]), "another lease")
    wait_until(lambda: f"{PREFIX}/nodes/node1" in etcd.content(), "the node's key")
    assert one.ready().subnets == before


def test_of_two_machines_with_one_name_the_later_one_is_refused(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()
    held = etcd.content()

    two = member(9, name="node1").start()

    one.ear.wait(lambda ear: "another node, with 192.0.2.9, also calls itself node1" in ear.trouble_now, "trouble")
    two.ear.wait(lambda ear: "another node, with 192.0.2.1, also calls itself node1" in ear.trouble_now, "trouble")
    assert "until then this one has no subnet" in two.ear.trouble_now
    two.ear.wait(lambda ear: "node1" in ear.nodes, "it knows that")
    assert two.ear.nodes == {"node1": Node("node1", {4: addr.pack("192.0.2.9") or b""}, ())}
    assert {key: value for key, value in etcd.content().items() if "/knocks/" not in key} == held
    one.source.close()
    two.ear.wait(lambda ear: ear.nodes["node1"].subnets == one.ear.nodes["node1"].subnets, "the name is its own")


def test_of_two_machines_with_one_name_that_start_at_once_one_is_refused(
    etcd: Etcd, member: Callable[..., Member]
) -> None:
    two = [member(1), member(9, name="node1")]
    for one in two:
        one.start()

    for one in two:
        one.ear.wait(lambda ear: any("also calls itself node1" in text for text in ear.troubles), "it is reported")
    wait_until(lambda: sum(bool(one.ear.nodes and one.subnets) for one in two) == 1, "one of them has a subnet")


def test_who_was_away_yields_to_the_machine_that_has_its_name_now(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1, ttl=600).start().ready()
    (held,) = one.subnets
    etcd.kill()
    gate = etcd.elsewhere()
    gate.ctl("del", "--prefix", PREFIX)  # as when its lease has ended
    two = member(9, had=held, name="node1", ttl=600, endpoints=[gate.url, etcd.url]).start().ready()
    gate.kill()
    etcd.start()

    one.ear.wait(lambda ear: "another node, with 192.0.2.9, also calls itself node1" in ear.trouble_now, "trouble")

    one.ear.wait(lambda ear: ear.nodes["node1"].subnets == (), "it gives out no address of what is another's")
    two.ear.wait(lambda ear: "another node, with 192.0.2.1, also calls itself node1" in ear.trouble_now, "trouble")
    assert two.subnets == [held]
    assert json.loads(etcd.content()[f"{PREFIX}/nodes/node1"])["publicIP"] == "192.0.2.9"


def test_who_is_refused_for_its_name_gives_up_what_it_has_and_knows_the_others(
    etcd: Etcd, member: Callable[..., Member]
) -> None:
    """It may have had other subnets: without a claim they are anybody's."""
    put_node(etcd, "node2", "192.0.2.2", "10.244.200.0/24")
    etcd.ctl("put", f"{PREFIX}/nodes/node3", "broken")
    one = member(1).start()
    one.ear.wait(lambda ear: "node1" in ear.nodes, "it has a subnet")

    two = member(9, had="10.244.77.0/24", name="node1").start()

    two.ear.wait(lambda ear: set(ear.nodes) == {"node1", "node2"}, "it knows who is there")
    assert two.ear.nodes["node1"].subnets == ()
    assert two.ear.unread == {"node3"}
    assert two.ear.replaced == 1
    one.source.close()
    two.ear.wait(lambda ear: ear.nodes["node1"].subnets, "the name, and a subnet with it, is its own")


def test_who_was_away_gives_up_other_subnets_too(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1, ttl=600).start().ready()
    etcd.kill()
    gate = etcd.elsewhere()
    gate.ctl("del", "--prefix", PREFIX)  # as when its lease has ended
    two = member(9, had="10.244.77.0/24", name="node1", ttl=600, endpoints=[gate.url, etcd.url]).start().ready()
    gate.kill()
    etcd.start()

    one.ear.wait(lambda ear: ear.nodes["node1"].subnets == (), "it has no claim, so it has no subnet")

    assert "another node, with 192.0.2.9, also calls itself node1" in one.ear.trouble_now
    assert two.subnets == ["10.244.77.0/24"]


def test_who_is_stopped_while_it_asks_for_its_name_asks_no_more(etcd: Etcd, member: Callable[..., Member]) -> None:
    member(1, ttl=600).start().ready().source.close()
    conf = {"endpoints": [etcd.url], "prefix": PREFIX}
    settings = read_settings(Reader(conf, "membership"), Network("pods", (NETWORK,)))
    client = Client(settings.endpoints, settings.credentials)
    stopped = threading.Event()
    stopped.set()
    newcomer = Node("node1", {4: addr.pack("192.0.2.9") or b""}, ())

    with pytest.raises(UnreachableError):
        Claimer(client, settings, stopped).claim(newcomer)

    client.close()
    assert client.requests == 3, "its key is read, the knock has a lease and is written; nobody waits for an answer"


# Whose prefix it is


def test_a_prefix_is_one_networks(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()
    assert etcd.content()[f"{PREFIX}/config/network"] == "pods"
    held = etcd.content()

    two = member(2, network="other").start()

    two.ear.wait(lambda ear: f"found {PREFIX}, which is network pods's" in ear.trouble_now, "it is refused")
    assert "membership.prefix: expected one of network other's own" in two.ear.trouble_now
    assert f"etcdctl put {PREFIX}/config/network other" in two.ear.trouble_now
    assert two.ear.nodes == {}
    assert etcd.content() == held
    one.source.close()  # its claims end
    two.ready()
    assert etcd.content()[f"{PREFIX}/config/network"] == "other"


def test_a_prefix_that_an_earlier_build_wrote_becomes_the_networks(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()
    etcd.ctl("del", f"{PREFIX}/config/network")  # earlier builds had none
    before = etcd.content()

    two = member(2).start().ready()

    assert etcd.content()[f"{PREFIX}/config/network"] == "pods"
    assert before.items() <= etcd.content().items()
    one.ear.wait(lambda ear: "node2" in ear.nodes, "they are in one network")
    assert two.ear.nodes == one.ear.nodes
    three = member(3, network="other").start()
    three.ear.wait(lambda ear: "which is network pods's" in ear.trouble_now, "it is refused")


def test_of_two_networks_that_begin_at_once_one_has_the_prefix(etcd: Etcd, member: Callable[..., Member]) -> None:
    both = [member(1), member(2, network="other")]

    for one in both:
        one.start()

    wait_until(lambda: any("membership.prefix: expected" in one.ear.trouble_now for one in both), "one is refused")
    wait_until(lambda: any(one.ear.nodes for one in both), "and one has a subnet")
    (served,) = [one for one in both if one.ear.nodes]
    assert etcd.content()[f"{PREFIX}/config/network"] == ("pods" if served is both[0] else "other")
    assert len(etcd.content(f"{PREFIX}/subnets/")) == 1


def test_a_network_that_only_this_node_has_may_be_renamed(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1, ttl=600).start().ready()
    one.source.close()

    again = member(1, ttl=600, network="renamed").start().ready()

    assert again.subnets == one.subnets
    assert etcd.content()[f"{PREFIX}/config/network"] == "renamed"


def test_an_earlier_value_that_somebody_puts_back_is_replaced(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()
    before = etcd.content()[f"{PREFIX}/nodes/node1"]
    one.source.update(one.at("192.0.2.99"))
    wait_until(lambda: "192.0.2.99" in etcd.content()[f"{PREFIX}/nodes/node1"], "it has moved")

    etcd.ctl("put", f"{PREFIX}/nodes/node1", before)

    wait_until(lambda: "192.0.2.99" in etcd.content()[f"{PREFIX}/nodes/node1"], "it says so again")
    wait_until(lambda: etcd.content()[f"{PREFIX}/subnets/{one.subnets[0].replace('/', '-')}"] == "node1", "it is held")


# What etcd does


def test_etcd_that_is_not_there_at_first_is_waited_for(etcd: Etcd, member: Callable[..., Member]) -> None:
    etcd.kill()
    one = member(1).start()
    one.ear.wait(lambda ear: "cannot be reached: Connection refused" in ear.trouble_now, "trouble")

    etcd.start()

    assert one.ready().ear.troubles[-1] == ""


def test_what_is_known_stays_while_etcd_is_away_and_changes_are_seen_after(
    etcd: Etcd, member: Callable[..., Member]
) -> None:
    one = member(1, ttl=600).start().ready()
    put_node(etcd, "node2", "192.0.2.2", "10.244.200.0/24")
    one.ear.wait(lambda ear: "node2" in ear.nodes, "node2")
    before = dict(one.ear.nodes)

    etcd.kill()
    one.ear.wait(lambda ear: "what is known stays in force" in ear.trouble_now, "trouble")
    assert one.ear.nodes == before
    etcd.start()
    put_node(etcd, "node3", "192.0.2.3", "10.244.201.0/24")

    one.ear.wait(lambda ear: "node3" in ear.nodes and not ear.trouble_now, "node3")
    assert one.ear.replaced == 1  # the watch went on where it was


def test_a_lease_that_ended_while_etcd_was_away_is_claimed_again(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()
    before = one.subnets
    etcd.forget()

    etcd.start()

    wait_until(lambda: f"{PREFIX}/nodes/node1" in etcd.content(), "claimed again")
    assert one.ready().subnets == before


def test_when_another_node_has_taken_it_meanwhile_another_one_is_taken(
    etcd: Etcd, member: Callable[..., Member]
) -> None:
    one = member(1).start().ready()
    (before,) = one.subnets
    etcd.forget()
    gate = etcd.elsewhere()
    gate.ctl("put", f"{PREFIX}/subnets/{before.replace('/', '-')}", "node2")
    gate.kill()
    etcd.start()

    one.ear.wait(lambda ear: ear.nodes["node1"].subnets != (subnet(before),), "it has another one")
    assert len(one.ready().subnets) == 1


def test_compacted_revisions_are_read_anew(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1, ttl=600).start().ready()
    put_node(etcd, "node2", "192.0.2.2", "10.244.200.0/24")
    one.ear.wait(lambda ear: "node2" in ear.nodes, "node2")
    etcd.kill()
    gate = etcd.elsewhere()
    put_node(gate, "node3", "192.0.2.3", "10.244.201.0/24")
    gate.ctl("del", f"{PREFIX}/nodes/node2")
    gate.ctl("compaction", str(gate.revision()))
    gate.kill()

    etcd.start()

    one.ear.wait(lambda ear: set(ear.nodes) == {"node1", "node3"} and not ear.trouble_now, "read anew")
    assert one.ear.replaced == 2


def test_an_etcd_that_stands_still_is_noticed(etcd: Etcd, member: Callable[..., Member]) -> None:
    one = member(1).start().ready()

    etcd.freeze()
    try:
        one.ear.wait(lambda ear: "timed out" in ear.trouble_now, "trouble", 60)
    finally:
        etcd.thaw()

    one.ready()


def test_another_endpoint_is_used_when_one_does_not_answer(etcd: Etcd, member: Callable[..., Member]) -> None:
    nobody = "http://127.0.0.1:1"
    for number in range(1, 9):  # names decide where they begin
        assert member(number, endpoints=[nobody, etcd.url]).start().ready().ear.troubles in ([], [""])


def test_more_nodes_than_a_page_holds_are_read(etcd: Etcd, member: Callable[..., Member]) -> None:
    count = 2 * PAGE + 1
    lines = []
    for number in range(count):
        value = {"name": f"n{number}", "publicIP": f"198.18.{number // 256}.{number % 256}", "subnets": []}
        lines.append(f"put {PREFIX}/nodes/n{number} {json.dumps(json.dumps(value))}\n")
    for start in range(0, count, 100):  # etcd takes 128 operations in a transaction
        etcd.ctl("txn", stdin="\n" + "".join(lines[start : start + 100]) + "\n\n")

    one = member(1).start().ready()

    assert len(one.ear.nodes) == count + 1


# Values that are none


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("no JSON", "not valid JSON"),
        ("[]", "expected an object"),
        ('{"name": "node7"}', "expected publicIP or publicIPv6, found neither"),
        ('{"name": "node8", "publicIP": "192.0.2.7"}', "expected node7 as in the key"),
        ('{"name": "node7", "publicIP": "192.0.2.7", "subnets": ["10.244.7.1/24"]}', "own address, 10.244.7.0/24"),
        ("[" * 100_000, "stays as it was"),
    ],
)
def test_a_wrong_value_is_told_and_left_out_and_the_others_go_on(
    etcd: Etcd, member: Callable[..., Member], value: str, told: str
) -> None:
    one = member(1).start().ready()

    etcd.ctl("put", f"{PREFIX}/nodes/node7", stdin=value)
    put_node(etcd, "node2", "192.0.2.2", "10.244.200.0/24")

    one.ear.wait(lambda ear: "node2" in ear.nodes and told in ear.trouble_now, "told")
    assert f"{PREFIX}/nodes/node7" in one.ear.trouble_now
    assert set(one.ear.nodes) == {"node1", "node2"}
    put_node(etcd, "node7", "192.0.2.7", "10.244.207.0/24")
    one.ear.wait(lambda ear: "node7" in ear.nodes and not ear.trouble_now, "put right")


def test_a_node_whose_value_becomes_wrong_stays_as_it_was_until_its_key_is_gone(
    etcd: Etcd, member: Callable[..., Member]
) -> None:
    one = member(1).start().ready()
    put_node(etcd, "node2", "192.0.2.2", "10.244.200.0/24")
    one.ear.wait(lambda ear: "node2" in ear.nodes, "it is in")
    known = one.ear.nodes["node2"]

    etcd.ctl("put", f"{PREFIX}/nodes/node2", stdin="no JSON")

    told = f"{PREFIX}/nodes/node2: not valid JSON"
    one.ear.wait(lambda ear: told in ear.trouble_now and "stays as it was" in ear.trouble_now, "told")
    assert one.ear.nodes["node2"] == known
    two = member(3).start()  # who begins now knows only that it is there
    two.ear.wait(lambda ear: ear.unread == {"node2"}, "it is there and cannot be read")
    etcd.ctl("del", f"{PREFIX}/nodes/node2")
    one.ear.wait(lambda ear: "node2" not in ear.nodes and not ear.trouble_now, "gone")


def test_wrong_values_found_at_start_are_told_as_well(etcd: Etcd, member: Callable[..., Member]) -> None:
    for number in range(5):
        etcd.ctl("put", f"{PREFIX}/nodes/bad{number}", "-")
    etcd.ctl("put", f"{PREFIX}/subnets/no subnet", "-")
    etcd.ctl("put", f"{PREFIX}/elsewhere", "-")

    one = member(1).start()

    one.ear.wait(lambda ear: "node1" in ear.nodes and "and 2 more" in ear.trouble_now, "told")


def test_of_two_keys_with_one_address_the_later_one_ranks_higher(etcd: Etcd, member: Callable[..., Member]) -> None:
    """A node that was given another name is there under both; who of them is in the roster says."""
    one = member(1).start().ready()
    put_node(etcd, "old", "192.0.2.7", "10.244.207.0/24")
    put_node(etcd, "new", "192.0.2.7", "10.244.208.0/24")

    one.ear.wait(lambda ear: {"old", "new"} <= ear.nodes.keys(), "both are there")
    assert one.ear.nodes["old"].rank < one.ear.nodes["new"].rank
    two = member(2).start().ready()
    assert two.ear.nodes["old"].rank < two.ear.nodes["new"].rank
    put_node(etcd, "old", "192.0.2.7", "10.244.207.0/24")
    one.ear.wait(lambda ear: ear.nodes["old"].rank > ear.nodes["new"].rank, "it has come back")
