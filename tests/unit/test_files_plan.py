"""The tier-3 plan: what is granted, and what is taken away again. On real directories, without the kernel."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard.errors import PolicyError
from mcpguard.model.access import Access, Effect
from mcpguard.model.plan import FilesPlan, MountStep
from mcpguard.model.policy import PathRule, Policy, User
from mcpguard.model.profile import NAMESPACE_MAPS, SystemSwitches
from mcpguard.policy.automaton import Automaton
from mcpguard.session import files_plan, files_state, files_walk

READ = Access.READ
WRITE = Access.READ | Access.WRITE
ALL = Access.READ | Access.WRITE | Access.EXECUTE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = Path(os.path.realpath(tmp_path)) / "home"
    for directory in (".ssh", "Documents", "code/.git/hooks", "code/src"):
        (made / directory).mkdir(parents=True)
    for file in (".ssh/id", ".ssh/id.pub", "Documents/letter", ".bashrc", ".agent.json", "code/.env", "code/src/.env"):
        (made / file).write_text(file)
    return made


def allow(pattern: object, access: Access = WRITE) -> PathRule:
    return PathRule(Effect.ALLOW, access, str(pattern), (), 1)


def deny(pattern: object, *exceptions: object) -> PathRule:
    return PathRule(Effect.DENY, ALL, str(pattern), tuple(str(e) for e in exceptions), 2)


def readonly(pattern: object) -> PathRule:
    return PathRule(Effect.READONLY, Access.WRITE, str(pattern), (), 3)


def plan(
    home: Path, *rules: PathRule, audit: bool = False, sockets: tuple[str, ...] = (), wide: bool = False
) -> FilesPlan:
    user = User(os.getuid(), os.getgid(), (), "user", str(home))
    policy = Policy(
        "digest", "p", (), user, str(home / "code"), str(home / "tmp"), (), (), b"", rules, (), (), (), (), (), (),
        SystemSwitches(), audit,
    )  # fmt: skip
    return files_plan.plan_files(policy, Automaton.build(rules), sockets=sockets, wide=wide)


def steps(made: FilesPlan) -> set[tuple[str, str]]:
    return {(step.op, step.path) for step in made.steps}


def step_at(made: FilesPlan, op: str, path: Path) -> MountStep:
    (found,) = [step for step in made.steps if (step.op, step.path) == (op, str(path))]
    return found


def granted(made: FilesPlan) -> dict[str, Access]:
    return {grant.path: grant.access for grant in made.grants}


def test_only_what_a_rule_allows_is_granted(home: Path) -> None:
    made = plan(home, allow(home / "code"), allow(home / ".agent.json", READ))
    assert granted(made) == {str(home / "code"): WRITE, str(home / ".agent.json"): READ}
    assert steps(made) == {("rw", str(home / "code"))}


def test_patterns_look_at_a_granted_directory_once_and_grant_nothing_in_it_again(home: Path) -> None:
    for number in range(50):
        (home / "Documents" / f"paper{number}").touch()
    one = plan(home, allow(home / "Documents"), allow(home / "Documents/paper*"))
    both = plan(home, allow(home / "Documents"), allow(home / "Documents/paper*"), allow(home / "Documents/*.txt"))
    assert granted(one) == granted(both) == {str(home / "Documents"): WRITE}
    assert one.visited == both.visited < 2 * 50


def test_a_name_protected_in_a_granted_directory_is_still_found(home: Path) -> None:
    for name in ("kept.lock", "hidden.key", "free"):
        (home / "Documents" / name).touch()
    made = plan(home, allow(home / "Documents"), readonly(home / "Documents/*.lock"), deny(home / "Documents/*.key"))
    assert granted(made) == {str(home / "Documents"): WRITE}
    places = steps(made)
    assert {("ro", str(home / "Documents/kept.lock")), ("mask", str(home / "Documents/hidden.key"))} <= places
    assert not any(path.endswith("free") for _op, path in places)


def test_a_denied_name_inside_an_allowed_tree_is_hidden_at_every_depth(home: Path) -> None:
    made = plan(home, allow(home / "code"), deny("/**/.env*"))
    assert ("mask", str(home / "code/.env")) in steps(made)
    assert ("mask", str(home / "code/src/.env")) in steps(made)


def test_a_denied_name_outside_every_allowed_tree_needs_no_mount(home: Path) -> None:
    assert not any(op == "mask" for op, _ in steps(plan(home, allow(home / "code"), deny(home / ".ssh"))))


def test_exceptions_show_through_a_hidden_directory_and_the_rest_has_stand_ins(home: Path) -> None:
    made = plan(home, allow(home, READ), deny(home / ".ssh", home / ".ssh/*.pub"))
    mask = step_at(made, "mask", home / ".ssh")
    assert {(entry.path, entry.kind) for entry in mask.entries} == {("id", "file"), ("id.pub", "keep")}


def test_a_readonly_place_in_a_writable_tree_is_remounted_and_its_parents_are_pinned(home: Path) -> None:
    made = plan(home, allow(home / "code"), readonly(home / "code/.git/hooks"))
    assert steps(made) == {
        ("rw", str(home / "code")),
        ("rw", str(home / "code/.git")),
        ("ro", str(home / "code/.git/hooks")),
    }


def test_parents_come_before_children(home: Path) -> None:
    made = plan(home, allow(home / "code"), readonly(home / "code/.git/hooks"), deny("/**/.env*"))
    depths = [step.path.count("/") for step in made.steps]
    assert depths == sorted(depths)


def test_a_write_glob_opens_its_directory_and_closes_everything_else_in_it(home: Path) -> None:
    made = plan(home, allow(f"{home}/.agent.json*"), allow(home / "code"))
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
    rules = (allow(home / "code", ALL), PathRule(Effect.DENY, Access.EXECUTE, str(home / "code/src"), (), 4))
    assert ("noexec", str(home / "code/src")) in steps(plan(home, *rules))


def test_a_literal_denial_is_hidden_where_directories_are_not_listed(home: Path) -> None:
    made = plan(home, allow("/etc", READ), deny("/etc/shadow"), deny("/**/.env*"))
    assert ("mask", "/etc/shadow") in steps(made)


def test_files_of_every_process_are_not_looked_for_one_by_one(home: Path) -> None:
    """What `system.user_namespaces` opens: there are hundreds of processes, and none of them is the agent's."""
    made = plan(home, allow("/proc", READ), *(allow(pattern) for pattern in NAMESPACE_MAPS))
    assert granted(made) == {"/proc": READ}
    assert steps(made) == set()


def test_a_refused_socket_is_hidden(home: Path) -> None:
    made = plan(home, allow(home / "code"), sockets=(str(home / "code/daemon.sock"),))
    assert ("hide", str(home / "code/daemon.sock")) in steps(made)


def test_audit_grants_everything_and_still_hides_what_is_denied(home: Path) -> None:
    made = plan(home, allow(home / "code"), deny(home / ".ssh"), readonly(home / ".bashrc"), audit=True)
    assert granted(made) == {"/": ALL}
    assert {("mask", str(home / ".ssh")), ("ro", str(home / ".bashrc"))} <= steps(made)


def test_audit_looks_for_patterns_where_no_other_rule_leads(home: Path) -> None:
    made = plan(home, deny("/**/.env"), audit=True)
    assert {path for op, path in steps(made) if op == "mask"} == {str(home / "code/.env"), str(home / "code/src/.env")}


def test_a_wide_plan_covers_what_is_denied_and_keeps_its_narrow_grants_for_devices(home: Path) -> None:
    rules = (
        allow(home / "code"),
        deny(home / ".ssh", home / ".ssh/*.pub"),
        readonly(home / ".bashrc"),
        deny("/**/.env"),
    )
    made = plan(home, *rules, sockets=(str(home / "code/daemon.sock"),), wide=True)
    assert made.wide
    assert not plan(home, *rules).wide
    assert granted(made) == {str(home / "code"): WRITE}
    covered = {step for step in steps(made) if step[0] != "rw"}
    assert covered == {
        ("mask", str(home / ".ssh")),
        ("ro", str(home / ".bashrc")),
        ("mask", str(home / "code/.env")),
        ("mask", str(home / "code/src/.env")),
        ("hide", str(home / "code/daemon.sock")),
    }
    assert ("rw", "/") in steps(made)


def test_a_wide_plan_looks_at_no_more_of_the_home_than_a_narrow_one(home: Path) -> None:
    for number in range(200):
        (home / "Documents" / str(number)).touch()
    (home / "Documents/.env").touch()
    rules = (allow(home / "code"), deny("/**/.env"))
    assert plan(home, *rules, wide=True).visited < plan(home, *rules).visited + 50
    # A rule on the way opens it all, and so it is looked at.
    for open_ in (home, home.parent):
        made = plan(home, allow(open_), deny("/**/.env"), wide=True)
        assert ("mask", str(home / "Documents/.env")) in steps(made)


@pytest.mark.parametrize(
    ("path", "access", "op"),
    [
        ("Documents/letter", WRITE, None),
        ("Documents/new", WRITE, None),
        (".ssh/id", READ, "mask"),
        (".ssh/new.pub", READ, "mask"),
        (".ssh/id.pub", READ, None),
        (".ssh/id.pub", WRITE, None),
        (".bashrc", READ, None),
        (".bashrc", WRITE, "ro"),
        ("code/.git/hooks/new", WRITE, "ro"),
        ("code/.git", WRITE, None),
        ("code/.env", READ, "mask"),
    ],
)
def test_what_a_cover_keeps_from_a_later_rule_is_known(home: Path, path: str, access: Access, op: str | None) -> None:
    rules = (
        *(allow(home / "code"), readonly(home / ".bashrc"), readonly(home / "code/.git/hooks"), deny("/**/.env")),
        deny(home / ".ssh", home / ".ssh/*.pub"),
    )
    found = files_plan.cover_at(plan(home, *rules, wide=True), str(home / path), access)
    assert (found.op if found else None) == op


@pytest.mark.parametrize(
    ("name", "bound", "most", "code"),
    [
        ("{}", "MAX_VISITED", 40, "plan.too-many-files"),
        (".env{}", "MAX_STEPS", 10, "plan.too-many-mounts"),
    ],
)
def test_too_much_is_refused_with_the_folder_that_holds_or_needs_most(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, bound: str, most: int, code: str
) -> None:
    for number in range(50):
        (home / "code/src" / name.format(number)).touch()
    monkeypatch.setattr(files_state, bound, most)
    with pytest.raises(PolicyError) as refused:
        plan(home, allow(home / "code"), deny("/**/.env*"))
    assert refused.value.code == code
    assert refused.value.what.endswith(f"most are below {home}/code/src")


@pytest.mark.parametrize(
    ("counts", "folder"),
    [
        ({}, "/"),
        ({"/": 9}, "/"),
        ({"/a": 4, "/b": 4}, "/"),
        ({"/a": 1, "/a/b": 2, "/a/b/c": 10, "/a/bc": 2}, "/a/b/c"),
        ({"/a/b/c": 5, "/a/b/d": 5, "/a/e": 3}, "/a/b"),
    ],
)
def test_the_heaviest_folder_is_the_deepest_with_more_than_half(counts: dict[str, int], folder: str) -> None:
    assert files_state.heaviest(counts) == folder


@contextlib.contextmanager
def pit(folder: Path, name: str, levels: int) -> Iterator[None]:
    """Directories in directories with a secret at the end, made step by step: no path needs to be so long."""
    begin = os.open(".", os.O_PATH)
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    try:
        for _ in range(levels):
            os.mkdir(name)
            os.chdir(name)
        Path(".env").touch()
        yield
    finally:
        os.fchdir(begin)
        os.close(begin)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.parametrize(("name", "levels"), [("d", 1_200), ("d" * 250, 40), ("é" * 120, 40)])
def test_what_lies_too_deep_is_hidden_and_told(home: Path, name: str, levels: int) -> None:
    with pit(home / "code/pit", name, levels):
        made = plan(home, allow(home / "code"), deny("/**/.env*"))
    (hidden,) = [path for op, path in steps(made) if op == "mask" and "/pit/" in path]
    assert files_state.too_deep(hidden)
    assert not files_state.too_deep(os.path.dirname(hidden))
    # Its own name, and every name on the way, fit into a system call.
    assert len(os.fsencode(hidden)) < 4096
    assert {("mask", str(home / "code/.env")), ("mask", str(home / "code/src/.env"))} <= steps(made)
    (told,) = made.hidden
    assert told in made.gaps
    assert "too deep" in told
    assert f"{home}/code/pit"[:60] in told


def test_the_deepest_directory_that_is_looked_at_has_its_names_protected(home: Path) -> None:
    levels = files_state.MAX_DEPTH - f"{home}/code/pit".count("/") - 1
    with pit(home / "code/pit", "d", levels):
        made = plan(home, allow(home / "code"), deny("/**/.env*"))
    assert ("mask", f"{home}/code/pit/{'d/' * levels}.env") in steps(made)
    assert made.hidden == ()


def test_a_deep_tree_in_a_hidden_directory_stays_hidden_with_it(home: Path) -> None:
    with pit(home / "code/.env.d", "d", 1_200):
        made = plan(home, allow(home / "code"), deny("/**/.env*", "/**/.env.example"))
    mask = step_at(made, "mask", home / "code/.env.d")
    assert {entry.kind for entry in mask.entries} == {"dir"}


def test_a_deep_tree_without_anything_to_protect_is_not_looked_at(home: Path) -> None:
    with pit(home / "code/pit", "d", 1_200):
        made = plan(home, allow(home / "code"))
    assert steps(made) == {("rw", str(home / "code"))}
    assert made.gaps == ()


def test_a_chain_of_links_without_end_is_no_target(home: Path) -> None:
    """Python follows links by recursion, without the kernel's bound."""
    (home / "code/l0").write_text("end")
    for number in range(1, 1_200):
        (home / f"code/l{number}").symlink_to(f"l{number - 1}")
    (home / "code/.env.link").symlink_to("l1199")
    made = plan(home, allow(home / "code"), deny("/**/.env*"))
    assert any(f"{home}/code/.env.link" in gap for gap in made.gaps)
    assert ("mask", str(home / "code/.env")) in steps(made)


def closed_to(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As for an ordinary user; the root that runs this test may search everything."""
    access = os.access

    def answer(path: str, mode: int) -> bool:
        return access(path, mode) and not (str(path) == str(folder) and mode == os.X_OK)

    monkeypatch.setattr(os, "access", answer)


def test_a_folder_that_is_closed_to_its_owner_is_hidden(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent is the owner: it could open it again, and what lies in it was not protected."""
    closed_to(monkeypatch, home / "code/.git")
    made = plan(home, allow(home / "code"), readonly(home / "code/.git/hooks"))
    assert ("mask", str(home / "code/.git")) in steps(made)
    assert "closed to its owner" in made.hidden[0]


def test_a_folder_that_is_closed_to_others_needs_no_cover(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed_to(monkeypatch, home / "code/.git")
    monkeypatch.setattr(files_walk, "_owner", lambda _path: os.getuid() + 1)
    made = plan(home, allow(home / "code"), readonly(home / "code/.git/hooks"))
    assert ("mask", str(home / "code/.git")) not in steps(made)
    assert made.hidden == ()
