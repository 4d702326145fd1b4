"""The tier-3 plan: what is granted, and what is taken away again. On real directories, without the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcpguard.errors import PolicyError
from mcpguard.model.access import Access, Effect
from mcpguard.model.plan import FilesPlan, MountStep
from mcpguard.model.policy import PathRule, Policy, User
from mcpguard.model.profile import SystemSwitches
from mcpguard.policy.automaton import Automaton
from mcpguard.session import files_plan, files_state

READ = Access.READ
WRITE = Access.READ | Access.WRITE
ALL = Access.READ | Access.WRITE | Access.EXECUTE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = Path(os.path.realpath(tmp_path)) / "home"
    for directory in (".ssh", "Documents", "work/.git/hooks", "work/src"):
        (made / directory).mkdir(parents=True)
    for file in (".ssh/id", ".ssh/id.pub", "Documents/letter", ".bashrc", ".agent.json", "work/.env", "work/src/.env"):
        (made / file).write_text(file)
    return made


def allow(pattern: object, access: Access = WRITE) -> PathRule:
    return PathRule(Effect.ALLOW, access, str(pattern), (), 1)


def deny(pattern: object, *exceptions: object) -> PathRule:
    return PathRule(Effect.DENY, ALL, str(pattern), tuple(str(e) for e in exceptions), 2)


def readonly(pattern: object) -> PathRule:
    return PathRule(Effect.READONLY, Access.WRITE, str(pattern), (), 3)


def plan(home: Path, *rules: PathRule, audit: bool = False, sockets: tuple[str, ...] = ()) -> FilesPlan:
    user = User(os.getuid(), os.getgid(), (), "user", str(home))
    policy = Policy(
        "digest", "p", (), user, str(home / "work"), str(home / "tmp"), (), (), b"", rules, (), (), (), (), (), (),
        SystemSwitches(), audit,
    )  # fmt: skip
    return files_plan.plan_files(policy, Automaton.build(rules), sockets=sockets)


def steps(made: FilesPlan) -> set[tuple[str, str]]:
    return {(step.op, step.path) for step in made.steps}


def step_at(made: FilesPlan, op: str, path: Path) -> MountStep:
    (found,) = [step for step in made.steps if (step.op, step.path) == (op, str(path))]
    return found


def granted(made: FilesPlan) -> dict[str, Access]:
    return {grant.path: grant.access for grant in made.grants}


def test_only_what_a_rule_allows_is_granted(home: Path) -> None:
    made = plan(home, allow(home / "work"), allow(home / ".agent.json", READ))
    assert granted(made) == {str(home / "work"): WRITE, str(home / ".agent.json"): READ}
    assert steps(made) == {("rw", str(home / "work"))}


def test_a_denied_name_inside_an_allowed_tree_is_hidden_at_every_depth(home: Path) -> None:
    made = plan(home, allow(home / "work"), deny("/**/.env*"))
    assert ("mask", str(home / "work/.env")) in steps(made)
    assert ("mask", str(home / "work/src/.env")) in steps(made)


def test_a_denied_name_outside_every_allowed_tree_needs_no_mount(home: Path) -> None:
    assert not any(op == "mask" for op, _ in steps(plan(home, allow(home / "work"), deny(home / ".ssh"))))


def test_exceptions_show_through_a_hidden_directory_and_the_rest_has_stand_ins(home: Path) -> None:
    made = plan(home, allow(home, READ), deny(home / ".ssh", home / ".ssh/*.pub"))
    mask = step_at(made, "mask", home / ".ssh")
    assert {(entry.path, entry.kind) for entry in mask.entries} == {("id", "file"), ("id.pub", "keep")}


def test_a_readonly_place_in_a_writable_tree_is_remounted_and_its_parents_are_pinned(home: Path) -> None:
    made = plan(home, allow(home / "work"), readonly(home / "work/.git/hooks"))
    assert steps(made) == {
        ("rw", str(home / "work")),
        ("rw", str(home / "work/.git")),
        ("ro", str(home / "work/.git/hooks")),
    }


def test_parents_come_before_children(home: Path) -> None:
    made = plan(home, allow(home / "work"), readonly(home / "work/.git/hooks"), deny("/**/.env*"))
    depths = [step.path.count("/") for step in made.steps]
    assert depths == sorted(depths)


def test_a_write_glob_opens_its_directory_and_closes_everything_else_in_it(home: Path) -> None:
    made = plan(home, allow(f"{home}/.agent.json*"), allow(home / "work"))
    assert made.open_directories == (str(home),)
    assert granted(made)[str(home)] == WRITE
    for name in (".ssh", "Documents", ".bashrc"):
        assert ("hide", str(home / name)) in steps(made)
    assert not {path for _op, path in steps(made)} & {str(home / ".agent.json")}
    assert any(str(home) in gap for gap in made.gaps)


def test_a_denied_place_must_be_there_to_be_covered_and_a_passing_one_need_not(home: Path) -> None:
    made = plan(home, allow(f"{home}/.agent.json*"), deny(home / ".ssh"))
    assert ("mask", str(home / ".ssh")) in steps(made), "its disappearance stops the launch"
    assert ("hide", str(home / "Documents")) in steps(made), "its disappearance does not"


def test_a_link_that_must_stay_is_shown_as_its_target(home: Path) -> None:
    (home / "dotfiles").mkdir()
    (home / "dotfiles/rc").write_text("rc")
    (home / ".rc").symlink_to("dotfiles/rc")
    made = plan(home, allow(f"{home}/.agent.json*"), allow(home / "dotfiles/rc", READ))
    assert step_at(made, "link", home / ".rc").target == str(home / "dotfiles/rc")


def test_a_missing_place_to_write_opens_its_parent_but_never_the_home(home: Path) -> None:
    (home / ".cache").mkdir()
    made = plan(home, allow(home / ".cache/tool"), allow(home / ".tool"), allow(home / ".other/deep"))
    assert made.open_directories == (str(home / ".cache"),)
    assert [path for path in (".tool", ".other/deep") if not any(str(home / path) in gap for gap in made.gaps)] == []


def test_execution_is_taken_away_where_only_a_parent_may_execute(home: Path) -> None:
    rules = (allow(home / "work", ALL), PathRule(Effect.DENY, Access.EXECUTE, str(home / "work/src"), (), 4))
    assert ("noexec", str(home / "work/src")) in steps(plan(home, *rules))


def test_a_literal_denial_is_hidden_where_directories_are_not_listed(home: Path) -> None:
    made = plan(home, allow("/etc", READ), deny("/etc/shadow"), deny("/**/.env*"))
    assert ("mask", "/etc/shadow") in steps(made)


def test_a_refused_socket_is_hidden(home: Path) -> None:
    made = plan(home, allow(home / "work"), sockets=(str(home / "work/daemon.sock"),))
    assert ("hide", str(home / "work/daemon.sock")) in steps(made)


def test_audit_grants_everything_and_still_hides_what_is_denied(home: Path) -> None:
    made = plan(home, allow(home / "work"), deny(home / ".ssh"), readonly(home / ".bashrc"), audit=True)
    assert granted(made) == {"/": ALL}
    assert {("mask", str(home / ".ssh")), ("ro", str(home / ".bashrc"))} <= steps(made)


def test_too_many_names_are_refused_with_a_clear_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_state, "MAX_VISITED", 3)
    with pytest.raises(PolicyError) as refused:
        plan(home, allow(home / "work"), deny("/**/.env*"))
    assert refused.value.code == "plan.too-many-files"
