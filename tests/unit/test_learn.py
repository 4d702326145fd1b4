"""From what sessions asked for to rules: what is collapsed, what is left out, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mcpguard.cli.commands import build
from mcpguard.errors import ProfileError
from mcpguard.events.store import Store
from mcpguard.model.access import Access, Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.rule import Origin
from mcpguard.policy.decide import decide_file
from mcpguard.profile.amend import Addition, amend
from mcpguard.profile.parse import parse
from mcpguard.session.needs import Need
from mcpguard.session.policy import load_policy
from mcpguard.session.propose import propose

HOME, WORKSPACE = "/home/u", "/home/u/project"
VARIABLES = {"home": HOME, "workspace": WORKSPACE, "tmp": "/tmp"}


def need(access: str, object: str, *, kind: str = "file", program: str = "tool") -> Need:
    return Need(kind, access, object, {program: 1})


def rules(*needs: Need) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for proposal in propose(needs, VARIABLES):
        found.setdefault(proposal.key, []).append(proposal.value)
    return found


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([need("write", f"{HOME}/.cache/tool/a/b")], {"files.write": ["~/.cache/tool/"]}),
        (
            [need("write", f"{HOME}/.cache/tool"), need("write", f"{HOME}/.cache/tool/x")],
            {"files.write": ["~/.cache/tool/"]},
        ),
        ([need("read", f"{HOME}/.tool/x"), need("write", f"{HOME}/.tool/y")], {"files.write": ["~/.tool/"]}),
        ([need("read", f"{HOME}/.tool/settings")], {"files.read": ["~/.tool/settings"]}),
        ([need("read", f"{HOME}/.tool/{name}") for name in "ab"], {"files.read": ["~/.tool"]}),
        ([need("write", f"{HOME}/.config/tool/x")], {"files.write": ["~/.config/tool/x"]}),
        ([need("write", f"{HOME}/.83af2c91")], {"files.write": ["~/.83af2c91"]}),
        ([need("write", f"{HOME}/.b1234567")], {"files.write": ["~/.b1234567"]}),
        ([need("write", f"{HOME}/.bash_83af2c91")], {"files.write": ["~/.bash_83af2c91"]}),
        ([need("write", f"{HOME}/a/x_83af2c91d")], {"files.write": ["~/a/x_83af2c91d"]}),
        ([need("write", f"{HOME}/a/data_83af2c91d")], {"files.write": ["~/a/data_*"]}),
        ([need("read", f"{HOME}/reports-2024/x")], {"files.read": ["~/reports-2024/x"]}),
        ([need("read", f"/var/lib/n{i}") for i in range(4)], {"files.read": [f"/var/lib/n{i}" for i in range(4)]}),
        ([need("read", f"/home/v/n{i}") for i in range(4)], {"files.read": [f"/home/v/n{i}" for i in range(4)]}),
        ([need("read", f"{HOME}/notes.txt")], {"files.read": ["~/notes.txt"]}),
        ([need("read", f"{HOME}/doc/n{i}") for i in range(4)], {"files.read": ["~/doc"]}),
        ([need("read", f"{HOME}/f{i}") for i in range(9)], {"files.read": [f"~/f{i}" for i in range(9)]}),
        ([need("read", f"/srv/data/n{i}") for i in range(4)], {"files.read": ["/srv/data"]}),
        ([need("read", f"/srv/n{i}") for i in range(4)], {"files.read": [f"/srv/n{i}" for i in range(4)]}),
        ([need("write", f"{HOME}/.tool.json.tmp.83af2c91")], {"files.write": ["~/.tool.json.tmp.*"]}),
        ([need("write", "/tmp/tool-1000/x")], {"files.write": ["{tmp}/tool-*/x"]}),
        ([need("write", f"{WORKSPACE}/[x]")], {"files.write": ["{workspace}/[[]x]"]}),
        (
            [need("execute", "/srv/bin/tool", kind="exec")],
            {"files.read": ["/srv/bin/tool"], "files.execute": ["/srv/bin/tool"]},
        ),
        ([need("connect", "api.example.com:443", kind="net")], {"network.allow": ["api.example.com:443"]}),
        (
            [need("connect", "127.0.0.1:5432", kind="net"), need("connect", "[::1]:5432", kind="net")],
            {"network.allow": ["localhost:5432"]},
        ),
        ([need("connect", "192.0.2.1:53/udp", kind="net")], {"network.allow": ["192.0.2.1:53/udp"]}),
        ([need("listen", "0.0.0.0:8080", kind="net")], {"network.listen": ["0.0.0.0:8080"]}),
        ([need("listen", "127.0.0.1:", kind="net")], {"network.listen": ["localhost"]}),
        ([need("listen", "[::]:/udp", kind="net")], {"network.listen": ["[::]/udp"]}),
        ([need("connect", "/run/x.sock", kind="unix")], {"sockets.allow": ["/run/x.sock"]}),
    ],
)
def test_what_is_proposed(asked: list[Need], expected: dict[str, list[str]]) -> None:
    assert rules(*asked) == expected


def test_what_a_rule_refuses_on_purpose_is_never_proposed() -> None:
    key = need("read", f"{HOME}/.ssh/id_rsa")
    key.refused = (Origin("base", "builtin:base.yaml", 1, "deny ~/.ssh"), "keys")
    assert rules(key) == {}


def test_each_rule_says_who_asked_for_it_and_how_often() -> None:
    asked = [
        need("write", f"{HOME}/.tool/{name}", program=program)
        for name, program in (("a", "git"), ("b", "node"), ("c", "git"))
    ]
    (proposal,) = propose(asked, VARIABLES)
    assert proposal.comment == "git 2x, node 1x; 3 names; a program's own folder"


def test_a_file_directly_in_the_home_is_marked() -> None:
    (proposal,) = propose([need("write", f"{HOME}/.startup")], VARIABLES)
    assert "LOOK" in proposal.comment


def test_a_program_s_name_cannot_leave_its_comment() -> None:
    (proposal,) = propose([need("read", "/srv/x", program="a\n- /")], VARIABLES)
    assert "\n" not in proposal.comment


OWN = """\
# mine
name: mine   # the name
extends: [dev-tools]

files:
  read: [~/notes]
  write:
    - ~/.cache/x   # why
    # another
    - "~/.y*"
"""


def test_rules_are_added_and_everything_else_stays_as_it_was_written() -> None:
    text = amend(
        OWN, [Addition("files", "write", "{workspace}/a b", "git 1x"), Addition("network", "allow", "a.example:443")]
    )
    for line in OWN.splitlines():
        assert line in text
    assert '    # git 1x\n    - "{workspace}/a b"\n' in text
    made = parse(text, "mine.yaml", name="mine").profile
    assert [rule.pattern for rule in made.files] == ["~/notes", "~/.cache/x", "~/.y*", "{workspace}/a b"]
    assert [rule.target for rule in made.network] == ["a.example:443"]
    assert amend(text, [Addition("network", "allow", "a.example:443")]) == text


@pytest.mark.parametrize("text", ["- a\n", "files: 3\n", "a: [\n", "files:\n  write: ~/x\n"])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(ProfileError) as caught:
        amend(text, [Addition("files", "write", "~/y")])
    assert caught.value.code == "profile.not-amended"


NAMES = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="/") | st.just(" "), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None)
@given(names=st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=4))
def test_whatever_the_name_the_rule_that_is_written_allows_it(names: list[str]) -> None:
    """Written as YAML, read back and compiled, a learned rule opens the path that it was learned from."""
    path = f"{HOME}/" + "/".join(names)
    proposals = propose([need("write", path)], VARIABLES)
    text = amend("name: p\n", [proposal.addition() for proposal in proposals])
    from mcpguard.model.policy import User
    from mcpguard.policy.compile import compile_policy

    policy = compile_policy(
        parse(text, "p.yaml", name="p").profile,
        user=User(1, 1, (), "u", HOME),
        workspace=WORKSPACE,
        tmp="/tmp",
        resolve=lambda _: None,
    )
    assert decide_file(policy, path, Access.WRITE)[0] is Verdict.ALLOW


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("home", "project", "guard"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path / "guard"))
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


@pytest.fixture
def session(world: Path) -> Callable[..., str]:
    """A stored session of a profile with these events."""

    def make(*events: Event, profile: str = "default") -> str:
        policy = load_policy(profile)
        with Store.open() as store:
            made = store.start_session(policy, command=("x",), tier="t", coverage=(), now_ns=1_760_000_000_000_000_000)
            store.add(made, events)
        return made

    return make


def audited(path: str, rule: Origin | None = None, verdict: Verdict = Verdict.AUDIT) -> Event:
    default = Origin("default", "default", 0, "no rule allows it")
    return Event(1, "", Kind.FILE, "create", verdict, access="write", path=path, comm="tool", rule=rule or default)


def learn(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(build(), ["profile", "learn", *words])
    return done.exit_code, done.stdout, done.stderr


def test_the_proposal_is_a_profile_on_stdout_and_its_story_on_stderr(world: Path, session: Callable[..., str]) -> None:
    deny = next(rule for rule in load_policy("default").rules if rule.text.startswith("deny ~/.ssh"))
    id = session(
        audited(f"{world}/home/.tool/x"),
        audited(f"{world}/home/.tool/y"),
        audited(f"{world}/home/.ssh/id_rsa", deny, Verdict.DENY),
    )
    code, out, err = learn()
    assert code == 0
    made = parse(out, "p", name="p").profile
    assert (made.name, made.extends, [rule.pattern for rule in made.files]) == ("default", ("default",), ["~/.tool/"])
    assert f"Learned from {id}" in out and "# tool 2x; 2 names" in out
    assert "left out" in err and "~/.ssh/id_rsa" in err and "deny ~/.ssh" in err
    assert "nothing was written yet" in err and "--install" in err and "profiles/default.yaml" in err
    assert not list((world / "guard").glob("config/profiles/*"))


def test_install_shows_the_difference_and_writes_only_when_told(world: Path, session: Callable[..., str]) -> None:
    session(audited(f"{world}/home/.tool"), audited(f"{world}/home/.tool/x"))
    target = world / "guard/config/profiles/mine.yaml"
    code, out, _err = learn("--install", "--name", "mine")
    assert (code, out, target.exists()) == (1, "+ file write ~/.tool/\n", False)
    code, out, _err = learn("--install", "--name", "mine", "--yes")
    assert (code, target.exists()) == (0, True)
    assert load_policy("mine").profile == "mine"
    code, out, _err = learn("--install", "--name", "mine", "--yes")
    assert (code, out) == (0, "")
    assert "--install" not in learn("--name", "mine")[2]


def test_a_name_that_was_only_looked_up_is_learned(world: Path, session: Callable[..., str]) -> None:
    """In audit, what was connected to says which port; where nothing was, the next run would be refused the name."""
    rule = Origin("default", "default", 0, "no rule allows it")

    def asked(name: str, detail: str) -> Event:
        return Event(1, "", Kind.DNS, "query", Verdict.AUDIT, host=name, comm="tool", rule=rule, detail=detail)

    session(
        *(asked("only.example", kind) for kind in ("A", "AAAA", "TXT")),
        asked("used.example", "A"),
        Event(
            2, "", Kind.NET, "connect", Verdict.AUDIT, host="used.example", address="192.0.2.1", port=8443, rule=rule
        ),
        Event(3, "", Kind.NET, "connect", Verdict.AUDIT, address="192.0.2.9", port=9, rule=rule),
    )
    _code, out, _err = learn()
    made = parse(out, "p", name="p").profile
    assert {rule.target for rule in made.network} == {"only.example:443", "used.example:8443", "192.0.2.9:9"}


def test_an_own_profile_keeps_its_comments(world: Path, session: Callable[..., str]) -> None:
    session(audited(f"{world}/home/.tool"), audited(f"{world}/home/.tool/x"))
    target = world / "guard/config/profiles/mine.yaml"
    target.parent.mkdir(parents=True)
    target.write_text(OWN)
    assert learn("--install", "--name", "mine", "--yes")[0] == 0
    text = target.read_text()
    assert "# another" in text and "~/.cache/x   # why" in text and "~/.tool/" in text


def test_an_own_profile_that_is_kept_elsewhere_stays_there(world: Path, session: Callable[..., str]) -> None:
    session(audited(f"{world}/home/.tool"), audited(f"{world}/home/.tool/x"))
    link, kept = world / "guard/config/profiles/mine.yaml", world / "dotfiles/agent.yaml"
    link.parent.mkdir(parents=True)
    kept.parent.mkdir()
    kept.write_text(OWN)
    link.symlink_to(kept)
    assert learn("--install", "--name", "mine", "--yes")[0] == 0
    assert link.is_symlink() and "~/.tool/" in kept.read_text()


def test_rules_that_no_session_used_are_listed(world: Path, session: Callable[..., str]) -> None:
    policy = load_policy("default")
    used = next(rule for rule in policy.rules if rule.text == "read /usr")
    session(audited("/usr/x", used, Verdict.ALLOW))
    code, out, _err = learn("--tighten")
    assert code == 0
    assert "read /opt" in out and "read /usr " not in out and "deny" not in out


def test_unused_rules_of_ones_own_are_listed_last(world: Path, session: Callable[..., str]) -> None:
    target = world / "guard/config/profiles/mine.yaml"
    target.parent.mkdir(parents=True)
    target.write_text(OWN)
    session(profile="mine")
    code, out, err = learn("--tighten")
    lines = out.splitlines()
    assert code == 0 and all("mine.yaml" in line for line in lines[-3:]) and "builtin:" in lines[-4]
    assert "3 rules of yours" in err and f"{len(lines) - 4} of built-in" in err


def test_a_profile_given_by_its_path_must_be_put_where_profiles_are(world: Path, session: Callable[..., str]) -> None:
    id = session(audited(f"{world}/home/notes/x"))
    with Store.open() as store, store._write() as connection:
        connection.execute("UPDATE sessions SET profile = 'elsewhere' WHERE id = ?", (id,))
    done = CliRunner().invoke(build(), ["profile", "learn"])
    assert getattr(done.exception, "code", "") == "learn.no-profile"
    done = CliRunner().invoke(build(), ["profile", "learn", "--name", "default"])
    assert done.exit_code == 0, done.exception


def test_sessions_of_two_projects_are_not_mixed(
    world: Path, session: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = session(audited("/srv/x"))
    (world / "other").mkdir()
    monkeypatch.chdir(world / "other")
    second = session(audited("/srv/x"))
    done = CliRunner().invoke(build(), ["profile", "learn", first, second])
    assert getattr(done.exception, "code", "") == "learn.workspaces"
    assert make_policy(*OPEN_POLICY).rules


@pytest.mark.parametrize(
    "words",
    [
        '["/ws/env/bin/python3", "env/bin/pip", "install"]',
        '["python", "-m", "pip"]',
        '["python", "/usr/lib/pip/__pip-runner__.py"]',
    ],
)
@pytest.mark.parametrize("folder", ["", ".cache", ".cache/pip"])
def test_where_pip_looks_for_its_cache_it_may_have_one(
    folder: str, words: str, world: Path, session: Callable[..., str]
) -> None:
    """As root it opens the folder that it would be in; a rule about that one would open everybody's."""
    looked = replace(audited(f"{world}/home/{folder}".rstrip("/")), op="open", access="read", pid=7, time_ns=9)
    (world / "home" / folder).mkdir(parents=True, exist_ok=True)
    ran = replace(looked, kind=Kind.EXEC, op="exec", path="/p", argv=tuple(json.loads(words)), time_ns=8)
    # Who makes a folder of its own there is another one.
    made = replace(looked, op="mkdir", access="write", pid=8)
    session(ran, looked, made)
    code, out, err = learn()
    assert code == 0 and "~/.cache/pip/" in out and "~/.cache\n" not in out and "- read " not in err


def test_nobody_else_who_lists_the_caches_is_taken_for_pip(world: Path, session: Callable[..., str]) -> None:
    looked = replace(audited(f"{world}/home/.cache"), op="open", access="read", pid=7, time_ns=9)
    (world / "home/.cache").mkdir(parents=True)
    ran = replace(looked, kind=Kind.EXEC, op="exec", path="/p", argv=("python3", "-m", "pip"), time_ns=8)
    session(ran, looked, replace(looked, pid=8), replace(ran, pid=8, argv=("python3", "pipes.py")))
    _code, out, err = learn()
    assert ".cache/pip" not in out and "a rule would open everything in this folder" in err
