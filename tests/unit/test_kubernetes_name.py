"""Whether the Node object of a name is this machine's: who is there first stays, and both report it."""

from __future__ import annotations

from typing import Any

import pytest

from agent.membership.kubernetes_name import ANSWER_SECONDS, KNOCK, MACHINE, Name
from plugins.peers import Node


class Machine:
    """One that writes what it wants into the object, and sees each state of it."""

    def __init__(self, number: int) -> None:
        self.own = Node("node1", {4: bytes([192, 0, 2, number])}, ())
        self.name = Name("node1", f"machine{number}")


class Object:
    """The annotations, at a time, with the machines that watch them."""

    def __init__(self, *machines: Machine, **notes: str) -> None:
        self.machines = list(machines)
        self.notes = dict(notes)
        self.now = 1000.0
        self.writes = 0
        for machine in machines:
            machine.name.see(self.notes, self.now)

    def write(self, changes: dict[str, Any]) -> None:
        new = {key: value for key, value in {**self.notes, **changes}.items() if value is not None}
        if new != self.notes:
            self.notes = new
            self.writes += 1
            for machine in self.machines:
                machine.name.see(new, self.now)

    def settle(self, seconds: float = 0.0) -> None:
        """Let the machines do what they want to, now or for some time."""
        end = self.now + seconds
        while True:
            before = self.writes
            for machine in self.machines:
                self.write(machine.name.changes(machine.own, self.now))
                if machine.name.is_ours:
                    self.write(machine.name.annotations())
            if self.writes == before:
                due = min((machine.name.due(self.now) for machine in self.machines), default=end)
                if due > end:
                    self.now = end
                    return
                self.now = due

    def faults(self) -> list[bool]:
        return [bool(machine.name.fault(self.now)) for machine in self.machines]


def test_an_object_that_is_nobodys_is_ours() -> None:
    one = Object(Machine(1))

    one.settle()

    assert one.notes == {MACHINE: "machine1"}
    assert one.faults() == [False]


def test_the_later_of_two_is_refused_and_both_report_it() -> None:
    both = Object(Machine(1))
    both.settle()
    both.machines.append(Machine(2))
    both.machines[1].name.see(both.notes, both.now)

    both.settle()

    assert both.notes == {MACHINE: "machine1"}
    assert [machine.name.is_ours for machine in both.machines] == [True, False]
    texts = [machine.name.fault(both.now) for machine in both.machines]
    assert "node1: expected one machine of that name, found another one with 192.0.2.2; give each" in texts[0]
    assert "expected one machine of that name, found another one; give each" in texts[1]
    writes = both.writes
    both.settle(3600)
    assert both.faults() == [True, True]
    assert both.notes == {MACHINE: "machine1"}
    assert both.writes - writes <= 2 * 3600 / 20, "a knock and an answer now and then"


def test_of_two_that_start_at_once_one_is_refused() -> None:
    both = Object(Machine(1), Machine(2))
    changes = [machine.name.annotations() for machine in both.machines]
    for change in changes:  # neither has seen what the other one writes
        both.write(change)

    both.settle()

    assert both.notes == {MACHINE: "machine2"}
    assert both.faults() == [True, True]


@pytest.mark.parametrize("seen", [0, 1])
def test_who_is_refused_takes_part_once_the_other_is_gone(seen: int) -> None:
    both = Object(Machine(1))
    both.settle()
    both.machines.append(Machine(2))
    both.machines[1].name.see(both.notes, both.now)
    both.settle(seen)

    del both.machines[0]
    both.settle(60)

    assert both.notes == {MACHINE: "machine2"}
    assert both.faults() == [False]


def test_after_a_boot_nobody_answers_and_nothing_is_reported() -> None:
    one = Object(Machine(1), **{MACHINE: "before"})

    one.settle(ANSWER_SECONDS - 1)
    assert one.notes == {MACHINE: "before", KNOCK: "machine1 192.0.2.1"}
    assert one.faults() == [False]
    one.settle(1)

    assert one.notes == {MACHINE: "machine1"}
    assert one.faults() == [False]


def test_what_two_networks_of_one_machine_see_is_their_own() -> None:
    both = Object(Machine(1), Machine(1), **{MACHINE: "before"})

    both.settle(60)

    assert both.notes == {MACHINE: "machine1"}
    assert both.faults() == [False, False]


def test_two_newcomers_do_not_write_in_turns() -> None:
    three = Object(Machine(1))
    three.settle()
    for number in (2, 3):
        three.machines.append(Machine(number))
        three.machines[-1].name.see(three.notes, three.now)
    del three.machines[0]

    three.settle(60)

    assert three.notes[MACHINE] in ("machine2", "machine3")
    assert three.faults() == [True, True]
    assert three.writes < 20


def test_an_earlier_state_that_comes_late_is_no_answer() -> None:
    machine = Machine(2)
    machine.name.see({MACHINE: "machine1"}, 0.0)
    assert machine.name.changes(machine.own, 0.0) == {KNOCK: "machine2 192.0.2.2"}  # and it is written

    machine.name.see({MACHINE: "machine1", "another": "change"}, 1.0)  # from before that

    assert machine.name.fault(1.0) == ""


def test_who_has_no_address_answers_and_does_not_knock() -> None:
    nowhere = Node("node1", {}, ())
    name = Name("node1", "machine1")
    name.see({MACHINE: "machine1", KNOCK: "machine2 192.0.2.2"}, 0.0)
    assert name.changes(nowhere, 0.0) == {KNOCK: None}

    name.see({MACHINE: "machine2"}, 0.0)

    assert name.changes(nowhere, 0.0) == {}
    assert name.changes(Machine(1).own, 0.0) == {KNOCK: "machine1 192.0.2.1"}


def test_who_does_not_know_the_machine_writes_nothing_of_it() -> None:
    name = Name("node1", "")
    name.see({MACHINE: "machine1", KNOCK: "machine2"}, 0.0)

    assert name.is_ours
    assert (name.changes(Machine(1).own, 0.0), name.annotations(), name.fault(0.0)) == ({}, {}, "")
