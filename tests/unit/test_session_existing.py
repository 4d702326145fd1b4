"""Rules with `existing`: they hold for what is there at launch, and leave alone what the session makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import Policy, User
from mcpguard.model.profile import Profile
from mcpguard.model.rule import FileRule, Found, Origin
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.compile import compile_policy
from mcpguard.session import existing

PATTERN = "{workspace}/**/.git"


def policy(workspace: Path, *paths: str, find: bool = True) -> Policy:
    places = paths or ("hooks", "config")
    rules = [
        FileRule(Effect.ALLOW, Access.READ | Access.WRITE, "{workspace}", Origin("p", "p.yaml", 1, "write")),
        *(
            FileRule(
                Effect.READONLY, Access.WRITE, f"{PATTERN}/{name}", Origin("p", "p.yaml", 2, name), existing=PATTERN
            )
            for name in places
        ),
    ]
    return compile_policy(
        Profile("p", "p.yaml", files=tuple(rules)),
        user=User(0, 0, (), "u", str(workspace)),
        workspace=str(workspace),
        tmp="/tmp",
        find=existing.search if find else None,
    )


def writable(made: Policy, path: Path) -> bool:
    automaton = Automaton.from_bytes(made.tables)
    return Access.WRITE in automaton.decision(automaton.walk(str(path))).allowed


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in (".git", "old/.git/objects", "deep/a/b/.git"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("folder", ["", "old", "deep/a/b"])
def test_what_is_there_is_protected_names_that_come_later_included(folder: str, place: Path) -> None:
    made = policy(place)
    assert not writable(made, place / folder / ".git/hooks/pre-commit")
    assert not writable(made, place / folder / ".git/config")
    assert writable(made, place / folder / ".git/HEAD")


def test_what_the_session_makes_is_its_own(place: Path) -> None:
    assert writable(policy(place), place / "new/.git/config")
    assert not writable(policy(place, find=False), place / "new/.git/config")


def test_a_file_that_leads_to_a_repository_is_protected_itself(place: Path) -> None:
    (place / "sub").mkdir()
    (place / "sub/.git").write_text("gitdir: ../.git/modules/sub\n")
    made = policy(place)
    assert not writable(made, place / "sub/.git")
    assert writable(made, place / "sub/file")


def test_a_symlink_is_protected_and_so_is_the_place_that_it_leads_to(place: Path) -> None:
    (place / "store").mkdir()
    (place / "linked").mkdir()
    (place / "linked/.git").symlink_to("../store")
    made = policy(place)
    assert not writable(made, place / "linked/.git")
    assert not writable(made, place / "store/config")
    assert writable(made, place / "store/HEAD")


def test_a_name_with_pattern_characters_is_taken_as_it_is(place: Path) -> None:
    (place / "[a]*/.git").mkdir(parents=True)
    made = policy(place)
    assert not writable(made, place / "[a]*/.git/config")
    assert writable(made, place / "a/.git/config")


def test_where_nobody_can_look_the_rule_holds_for_every_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(existing, "MAX_LOOKED_AT", 0)
    found = existing.search(str(place), "/**/.git")
    assert {path for path, _rest in found.unknown} >= {str(place / "old"), str(place / "deep")}
    made = policy(place)
    for folder in ("", "old", "deep/a/b", "old/new", "deep/new"):
        assert not writable(made, place / folder / ".git/config")


def test_a_folder_that_cannot_be_listed_may_hold_what_is_looked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(path: str) -> object:
        if path == str(place / "old"):
            raise PermissionError
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    made = policy(place)
    assert not writable(made, place / "old/.git/config")
    assert not writable(made, place / "old/new/.git/config")
    assert writable(made, place / "new/.git/config")


def test_patterns_of_one_level_and_plain_paths(place: Path) -> None:
    for name in ("w/one", "w/two"):
        (place / name).mkdir(parents=True)
    (place / "w/file").touch()
    assert existing.search(str(place / "w"), "/*") == Found(
        (str(place / "w/one"), str(place / "w/two")), (str(place / "w/file"),), ()
    )
    assert existing.search(str(place / "w"), "/*/x") == Found()
    assert existing.search(str(place / "w"), "") == Found((str(place / "w"),), (), ())
    assert existing.search(str(place / "none"), "") == existing.search(str(place / "none"), "/**/x") == Found()
