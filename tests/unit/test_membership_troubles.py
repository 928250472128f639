"""What is wrong with a source is told when it changes, as one short text."""

from __future__ import annotations

from agent.membership.troubles import Troubles


def test_troubles_are_told_once_for_each_text() -> None:
    told: list[str] = []
    troubles = Troubles(told.append)

    troubles.tell("etcd", "")
    troubles.tell("etcd", "away")
    troubles.tell("lease", "away")
    troubles.tell("values", "broken")
    troubles.tell("etcd", "")
    troubles.tell("lease", "")
    troubles.tell("values", "")
    troubles.close()
    troubles.tell("etcd", "away")

    assert told == ["away", "away; broken", "broken", ""]


def test_what_follows_from_another_is_not_told_beside_it() -> None:
    told: list[str] = []
    troubles = Troubles(told.append, follows={"announce": "api"})

    troubles.tell("announce", "cannot tell")
    troubles.tell("api", "away")
    troubles.tell("api", "")

    assert told == ["cannot tell", "away", "cannot tell"]


def test_of_many_nodes_some_are_told() -> None:
    told: list[str] = []
    troubles = Troubles(told.append)

    troubles.nodes({f"n{number}": "broken" for number in range(5, 0, -1)})
    troubles.node("n1", "")
    troubles.node("n9", "broken")
    troubles.nodes({})

    assert told == [
        "n1: broken; n2: broken; n3: broken; and 2 more",
        "n2: broken; n3: broken; n4: broken; and 1 more",
        "n2: broken; n3: broken; n4: broken; and 2 more",
        "",
    ]
