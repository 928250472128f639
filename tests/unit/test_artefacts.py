"""The cache of what the tests build: found again by the hash of its inputs, and never half-built."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.artefacts import cache
from tests.artefacts.cache import Artefact

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNIKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe/input").write_text("one")


def build(folder: Path) -> None:
    (folder / "file").write_text("built")


def artefact(name: str = "thing", *, needs: tuple[Artefact, ...] = ()) -> Artefact:
    return Artefact(name, build, ("recipe",), needs=needs)


def test_it_is_built_once() -> None:
    path = artefact().made()
    assert (path / "file").read_text() == "built"
    (path / "file").write_text("as it was left")
    assert (artefact().made() / "file").read_text() == "as it was left"
    assert artefact().found() == path


def test_another_input_is_another_artefact(tmp_path: Path) -> None:
    before = artefact().key
    (tmp_path / "recipe/input").write_text("two")
    changed = artefact().key
    (tmp_path / "recipe/more").touch()
    more = artefact().key
    (tmp_path / "recipe/more").chmod(0o755)
    assert len({before, changed, more, artefact().key}) == 4


def test_it_changes_with_what_it_needs(tmp_path: Path) -> None:
    other = Artefact("other", build, ())
    before = Artefact("thing", build, (), needs=(other,)).key
    assert Artefact("thing", build, (), needs=(artefact("other"),)).key != before
    path = Artefact("thing", build, (), needs=(other,)).made()
    assert other.found().parent == path.parent == tmp_path / "cache"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        build(folder)
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        Artefact("thing", fail, ()).made()
    assert sorted(entry.name for entry in (tmp_path / "cache").iterdir()) == ["thing.lock"]


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "cache/.thing-half").mkdir(parents=True)
    artefact().made()
    assert list((tmp_path / "cache").glob(".*")) == []


def test_one_that_no_clone_has_used_for_long_is_removed(tmp_path: Path) -> None:
    old = artefact().made()
    (tmp_path / "recipe/input").write_text("two")
    recent = artefact().made()
    ago = time.time() - cache.UNUSED_SECONDS - 60
    os.utime(old, (ago, ago))
    (tmp_path / "recipe/input").write_text("three")
    assert artefact().made() != recent
    assert (old.exists(), recent.exists()) == (False, True)


def test_a_missing_one_says_what_builds_it() -> None:
    with pytest.raises(AssertionError, match=r"expected the artefact thing, which make test-setup builds"):
        artefact().found()


def test_the_default_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CNIKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache() == tmp_path / "xdg/cnikit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache() == tmp_path / "home/.cache/cnikit"
