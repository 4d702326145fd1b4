"""A kept policy is the policy, and is used only while everything it was made from is unchanged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcpguard.model.profile import SystemSwitches
from mcpguard.session import policy_cache
from mcpguard.session.policy import load_policy


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = Path(os.path.realpath(tmp_path))
    for name in ("home", "project", "guard/config/profiles"):
        (place / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.setenv("MCPGUARD_HOME", str(place / "guard"))
    monkeypatch.chdir(place / "project")
    write_profile(place, "~/.ssh")
    return place


def write_profile(place: Path, denied: str) -> None:
    text = f"name: mine\nextends: [dev-tools]\nfiles:\n  deny: [{denied}]\nnetwork:\n  allow: [a.example.org:443]\n"
    text += "environment:\n  set: {MINE: '{home}/x'}\n"
    text += "system:\n  user_namespaces: true\n  io_uring: true\n  memory_programs: true\n"
    (place / "guard/config/profiles/mine.yaml").write_text(text)


def kept(place: Path) -> list[Path]:
    return sorted((place / "guard/state/policies").glob("*.json"))


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next policy must come from the kept ones."""
    monkeypatch.setattr("mcpguard.profile.load.load", lambda *_args, **_names: pytest.fail("compiled again"))


def test_the_kept_policy_equals_the_compiled_one(project: Path, request: pytest.FixtureRequest) -> None:
    compiled = load_policy("mine", read=["/opt/data"], net=["10.0.0.0/8:5432"])
    assert len(kept(project)) == 1
    request.getfixturevalue("no_compiler")
    assert load_policy("mine", read=["/opt/data"], net=["10.0.0.0/8:5432"]) == compiled


def test_a_changed_profile_is_compiled_again(project: Path) -> None:
    before = load_policy("mine")
    write_profile(project, "~/.aws")
    assert load_policy("mine").digest != before.digest


def test_a_new_profile_of_a_parents_name_is_seen(project: Path) -> None:
    before = load_policy("mine")
    text = "name: base\nextends: [base]\nfiles:\n  deny: [~/private]\n"
    (project / "guard/config/profiles/base.yaml").write_text(text)
    assert load_policy("mine").digest != before.digest


def test_a_name_that_became_a_symlink_is_seen(project: Path) -> None:
    load_policy("mine")
    (project / "elsewhere").mkdir()
    (project / "home/.ssh").symlink_to("../elsewhere")
    patterns = {path.pattern for path in load_policy("mine").paths}
    assert str(project / "elsewhere") in patterns


def test_other_options_workspaces_and_users_have_policies_of_their_own(project: Path) -> None:
    (project / "other").mkdir()
    policies = [
        load_policy("mine"),
        load_policy("mine", audit=True),
        load_policy("mine", write=["/opt/data"]),
        load_policy("mine", str(project / "other")),
    ]
    assert len(kept(project)) == len(policies)
    assert len({(policy.digest, policy.audit) for policy in policies}) == len(policies)


def test_a_damaged_file_is_as_good_as_none(project: Path) -> None:
    before = load_policy("mine")
    (file,) = kept(project)
    file.write_text(file.read_text()[:-40])
    assert load_policy("mine") == before


def test_the_oldest_go(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_cache, "KEPT", 2)
    for name in ("/opt/a", "/opt/b", "/opt/c"):
        load_policy("mine", read=[name])
    assert len(kept(project)) == 2


def test_a_linked_worktree_is_never_kept(project: Path) -> None:
    (project / "project/.git").write_text("gitdir: /nowhere\n")
    load_policy("mine")
    assert kept(project) == []


def test_a_repository_that_appeared_is_seen(project: Path) -> None:
    before = load_policy("mine")
    (project / "project/sub/.git").mkdir(parents=True)
    after = load_policy("mine")
    assert after.digest != before.digest
    assert str(project / "project/sub/.git/hooks") in {path.pattern for path in after.paths}


def test_every_switch_is_kept(project: Path) -> None:
    text = "name: mine\nextends: [base]\nsystem: {user_namespaces: true, io_uring: true, memory_programs: true}\n"
    (project / "guard/config/profiles/mine.yaml").write_text(text)
    assert load_policy("mine").system == load_policy("mine").system == SystemSwitches(True, True, True)
