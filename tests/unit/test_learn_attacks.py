"""A session that was told to spoil what is learned from it: no rule opens more than was asked, and the profile stays sound."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learn import HOME, VARIABLES, WORKSPACE, audited, learn, need, session, world

from mcpguard.events.schema import clean
from mcpguard.model.access import Access, Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.policy import Policy, User
from mcpguard.model.profile import Profile
from mcpguard.model.rule import Origin
from mcpguard.policy.compile import compile_policy
from mcpguard.policy.decide import decide_file
from mcpguard.profile.amend import amend
from mcpguard.profile.parse import parse
from mcpguard.session.needs import Need, set_apart
from mcpguard.session.policy import load_policy
from mcpguard.session.propose import SINGLE, Proposal, propose

__all__ = ["session", "world"]
NAME = (
    st.text(st.characters(exclude_characters="/\0", exclude_categories=()), min_size=1, max_size=14)
    | st.sampled_from(
        (
            *(
                "*",
                "**",
                "{workspace}",
                "{tmp}",
                "~",
                "$HOME",
                "[a-z]",
                "[!a]",
                "?",
                "\\",
                "a\nfiles:",
                "- x",
                "# x",
                "a: b",
            ),
            *(
                "'",
                '"',
                "!!python",
                "&a",
                "*a",
                "no",
                "a ",
                " a",
                "[",
                "]",
                "{",
                "}",
                "%",
                "@",
                "`",
                "\x85",
                "\ud800",
                "\udcff",
            ),
            *("\udcff", "a\tb", "\r", "\x1b[2J", "\u2028", "\ufeff", "C:\\x", "a\\xffb", "..x", "~bob", "é", "日本"),
        )
    )
).filter(lambda name: name not in (".", ".."))


def text_of(proposals: Iterable[Proposal]) -> str:
    return amend("name: p\n", [proposal.addition() for proposal in proposals])


def compiled(profile: Profile) -> Policy:
    user = User(1, 1, (), "u", HOME)
    return compile_policy(profile, user=user, workspace=WORKSPACE, tmp="/tmp", resolve=lambda _: None)


def policy_of(text: str) -> Policy:
    return compiled(parse(text, "p.yaml", name="p").profile)


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The profile `base` is compiled for the home of these tests, once, where there is no world with one of its own."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    if "world" in request.fixturenames:
        return
    import mcpguard.session.needs as module
    from mcpguard.profile.load import load

    made: list[Policy] = []

    def once(_workspace: str) -> Policy:
        made[:] = made or [compiled(load("base"))]
        return made[0]

    monkeypatch.setattr(module, "base_policy", once)


def learned(*needs: Need) -> list[Proposal]:
    set_apart(needs, WORKSPACE)
    return propose(needs, VARIABLES)


@settings(max_examples=300, deadline=None)
@given(
    names=st.lists(NAME, min_size=1, max_size=3), other=NAME, base=st.sampled_from((HOME, WORKSPACE, "/tmp", "/srv/a"))
)
def test_a_rule_opens_the_object_it_was_learned_from_and_nothing_beside_it(
    names: list[str], other: str, base: str
) -> None:
    recorded = clean(
        f"{base}/" + "/".join(name.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for name in names)
    )
    asked = need("write", recorded)
    proposals = learned(asked)
    policy = policy_of(text_of(proposals))
    if asked.refused is not None:
        assert proposals == []
        return
    assert decide_file(policy, recorded, Access.WRITE)[0] is Verdict.ALLOW
    beside = f"{recorded.rpartition('/')[0]}/{clean(other.encode('utf-8', 'replace').decode('utf-8'))}"
    if proposals[0].reason == SINGLE and beside != recorded:
        elsewhere = {beside, f"{HOME}/x", "/etc/passwd", f"{recorded}x", recorded.rpartition("/")[0]}
        for path in elsewhere - {recorded}:
            assert decide_file(policy, path, Access.WRITE)[0] is Verdict.DENY, (path, proposals)


@settings(max_examples=100, deadline=None)
@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from(("read", "write", "execute")),
            st.lists(NAME, min_size=1, max_size=3),
            st.sampled_from((HOME, WORKSPACE, "/tmp", f"{HOME}/.cache", f"{HOME}/.config/x", "/srv/a")),
        ),
        max_size=12,
    )
)
def test_what_is_written_as_yaml_is_the_policy_that_was_proposed(
    asked: list[tuple[str, list[str], str]],
) -> None:
    """Read back from its text, a learned profile has the digest of the rules that were proposed."""
    needs = [
        need(access, clean(f"{base}/" + "/".join(names).encode("utf-8", "replace").decode("utf-8")))
        for access, names, base in asked
    ]
    needs += [need("connect", "api.example.com:443", kind="net"), need("connect", "[2001:db8::1]:53/udp", kind="net")]
    needs += [need("listen", "127.0.0.1:", kind="net"), need("connect", "/run/x [y].sock", kind="unix")]
    proposals = learned(*needs)
    text = text_of(proposals)
    # Comments are for people; the same lists in flow style, in the other order, are the same profile.
    sections: dict[str, dict[str, list[str]]] = {}
    for proposal in reversed(proposals):
        section, key = proposal.key.split(".")
        sections.setdefault(section, {}).setdefault(key, []).append(proposal.value)
    direct = yaml.safe_dump({"name": "p", **sections}, default_flow_style=True, allow_unicode=False)
    # The digest covers rules without their places.
    assert policy_of(text).digest == policy_of(direct).digest
    assert amend(text, []) == text


KEYS = (
    ".ssh/id_rsa",
    ".aws/credentials",
    ".netrc",
    ".config/gh/hosts.yml",
    ".gnupg/x",
    ".npmrc",
    ".docker/config.json",
)
LATER = (".bashrc", ".profile", ".config/autostart/x.desktop", ".local/bin/ls", ".gitconfig", ".claude/settings.json")
ELSEWHERE = (
    "other/.git/hooks/pre-commit",
    "other/.git/config",
    "other/.vscode/tasks.json",
    "other/.mcp.json",
    "other/.envrc",
)


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("access", ["read", "write", "execute"])
def test_credentials_are_never_proposed_whatever_profile_the_session_had(access: str, name: str) -> None:
    asked = need(access, f"{HOME}/{name}")
    assert learned(asked) == [] and asked.refused is not None


@pytest.mark.parametrize("name", [*LATER, *ELSEWHERE])
def test_what_runs_later_is_never_proposed(name: str) -> None:
    asked = need("write", f"{HOME}/{name}")
    assert learned(asked) == [] and asked.refused is not None


@pytest.mark.parametrize(
    "target", ["169.254.169.254:80", "[fd00:ec2::254]:80", "100.100.100.200:80/udp", "metadata.google.internal:80"]
)
def test_addresses_that_hand_out_credentials_are_never_proposed(target: str) -> None:
    asked = need("connect", target, kind="net")
    assert learned(asked) == [] and asked.refused is not None


def test_sockets_of_programs_outside_are_never_proposed() -> None:
    asked = [
        need("connect", name, kind="unix") for name in ("/run/docker.sock", "@/tmp/.X11-unix/X0", "/run/user/0/bus")
    ]
    assert learned(*asked) == [] and all(one.refused for one in asked)


@pytest.mark.parametrize("name", ["@a*", "@*", "@/*", "@a?", "@a[b]", "@a\nb: c", "@a\u202eb", "a.sock", "./@a"])
def test_no_socket_becomes_a_rule_that_means_others_too(name: str) -> None:
    asked = need("connect", name, kind="unix")
    assert propose([asked], VARIABLES) == []
    assert learned(asked) == [] and asked.refused is not None
    assert "no rule can mean this name exactly" in asked.refused[0].text
    beside = need("connect", "@a{b}-1", kind="unix")  # the control
    assert [one.value for one in learned(beside)] == ["@a{b}-1"]


@pytest.mark.parametrize("name", ["a\u202egnp.exe", "a\nb", "a\u200bb", "a\x1b[2J", "a\u2066b", "a\u2028b"])
@pytest.mark.parametrize("access", ["read", "write", "execute"])
def test_a_name_that_a_person_reads_as_another_is_not_learned(access: str, name: str) -> None:
    asked = need(access, f"{HOME}/{name}")
    assert learned(asked) == [] and asked.refused is not None
    assert "no rule can mean this name exactly" in asked.refused[0].text


def test_no_folder_is_proposed_above_what_was_left_out() -> None:
    asked = [need("write", f"{HOME}/.dot/{name}") for name in ("a", "b", "c", "d", ".git/hooks/post-checkout")]
    apart = f"{HOME}/.dot/.git/hooks/post-checkout"
    set_apart(asked, WORKSPACE)
    values = [proposal.value for proposal in propose(asked, VARIABLES, apart={apart})]
    assert values == ["~/.dot/a", "~/.dot/b", "~/.dot/c", "~/.dot/d"]
    assert [proposal.value for proposal in propose(asked, VARIABLES)] == ["~/.dot/"]


def test_without_the_denials_of_base_no_folder_stands_for_what_is_in_it() -> None:
    asked = [need("write", f"{HOME}/.cargo/{n}") for n in range(9)]
    assert len(propose(asked, VARIABLES, widen=False)) == 9


def test_names_that_are_random_through_and_through_open_no_other() -> None:
    for name in (".83af2c91", "a.b1234567", "12345678", "83af2c91-0000", ".9f9f9f9f9"):
        policy = policy_of(text_of(learned(need("write", f"{HOME}/{name}"))))
        for other in (".bash_x", "a.c", "notes", "a.notes", "x"):
            assert decide_file(policy, f"{HOME}/{other}", Access.WRITE)[0] is Verdict.DENY, name


def test_a_flood_is_a_short_proposal_in_reasonable_time(world: Path, session: object) -> None:
    """Also when each name is in a folder of its own, so that nothing can be said together."""
    events = [audited(f"{world}/home/f{n}/g{n}/x") for n in range(3000)]
    session(*events)  # type: ignore[operator]
    code, out, err = learn()
    assert code == 0
    assert len(parse(out, "p", name="p").profile.files) == 100
    assert "and 2900 more rules were not proposed" in err


def test_a_poisoned_audit_leaves_a_sound_profile_with_nothing_of_the_poison(world: Path, session: object) -> None:
    home = f"{world}/home"
    deny = next(rule for rule in load_policy("default").rules if rule.text.startswith("deny ~/.ssh"))
    names = ("*", "**", "{workspace}", "a\nfiles:\n  write: [x]", "x: y # z", "- x", "\\xff", "'\"", "~", "$HOME")
    events = [
        audited(f"{home}/.ssh/id_rsa", deny, Verdict.DENY),
        *(audited(f"{home}/{name}") for name in LATER),
        *(audited(f"{home}/box/{n}/{name}") for n, name in enumerate(names)),
        replace(audited(f"{home}/fine"), comm="a\n  - /\n#"),
        Event(
            1, "", Kind.NET, "connect", Verdict.AUDIT, address="169.254.169.254", port=80, protocol="tcp", comm="curl"
        ),
        Event(1, "", Kind.NET, "connect", Verdict.AUDIT, address="192.0.2.1", port=80, protocol="tcp", comm="curl"),
        Event(
            1,
            "",
            Kind.NET,
            "connect",
            Verdict.AUDIT,
            host="a b\n- x",
            address="192.0.2.9",
            port=1,
            protocol="tcp",
            comm="c",
        ),
    ]
    session(*events)  # type: ignore[operator]
    code, out, err = learn("--install", "--yes", "--name", "mine")
    assert code == 0, err
    assert learn("--install", "--yes", "--name", "mine")[1] == ""
    text = (world / "guard/config/profiles/mine.yaml").read_text()
    made = parse(text, "mine.yaml", name="mine").profile
    assert made.extends == ("default",)
    assert [rule.target for rule in made.network] == ["192.0.2.1:80"]
    policy = load_policy("mine")
    for n, name in enumerate(names):
        asked = f"{home}/box/{n}/{name}"
        held = Verdict.DENY if re.search(r"\\x|\n", name) else Verdict.ALLOW
        assert decide_file(policy, asked, Access.WRITE)[0] is held, name
        assert decide_file(policy, f"{home}/box/{n}/other", Access.WRITE)[0] is Verdict.DENY, name
    for name in (*LATER, ".ssh/id_rsa", "other", "box/other"):
        assert decide_file(policy, f"{home}/{name}", Access.WRITE)[0] is Verdict.DENY, name
    assert all(line.isprintable() for line in (out + err).splitlines())


def test_no_name_makes_a_line_of_its_own_in_what_is_printed(world: Path, session: object) -> None:
    names = ("@a\nb: c", "@\x1b[2J", "@a\u202eb", f"{world}/home/x\n+ files.read       /")
    events = [Event(1, "", Kind.UNIX, "connect", Verdict.AUDIT, path=name, comm="c\nd") for name in names[:3]]
    session(*events, audited(names[3]))  # type: ignore[operator]
    code, out, err = learn()
    assert code == 0 and "sockets" not in out
    assert all(line.isprintable() for line in (out + err).splitlines())
    assert not any(line.lstrip().startswith(("b: c", "+ files.read")) for line in err.splitlines())
    for shown in ("@a\\nb: c", "@\\x1b[2J", "@a\\u202eb", "x\\n+ files.read"):
        assert shown in err


def audit_made(path: str) -> Event:
    return Event(1, "", Kind.FILE, "mkdir", Verdict.AUDIT, access="write", path=path)


def test_a_folder_that_was_listed_or_touched_is_never_opened_as_a_whole(world: Path, session: object) -> None:
    """A rule on a path opens everything below it, and only the folder itself was asked for."""
    home = world / "home"
    for name in ("letters/2024", "photos", "moved/inside"):
        (home / name).mkdir(parents=True)
    (home / "link").symlink_to(home / "letters")
    default = Origin("default", "default", 0, "no rule allows it")
    asked = [
        *(
            Event(1, "", Kind.FILE, "open", Verdict.AUDIT, access="read", path=path, rule=default)
            for path in ("/", str(world))
        ),
        *(
            Event(1, "", Kind.FILE, "open", Verdict.AUDIT, access="read", path=f"{home}{name}")
            for name in ("", "/letters")
        ),
        Event(1, "", Kind.FILE, "utimes", Verdict.AUDIT, access="write", path=f"{home}/photos"),
        Event(1, "", Kind.FILE, "mkdir", Verdict.DENY, access="write", path=f"{home}/photos", rule=default),
        Event(1, "", Kind.FILE, "symlink", Verdict.AUDIT, access="write", path=f"{home}/link"),
        Event(1, "", Kind.FILE, "rename", Verdict.AUDIT, access="write", path=f"{home}/was", target=f"{home}/moved"),
        Event(1, "", Kind.FILE, "mkdir", Verdict.AUDIT, access="write", path=f"{home}/letters/2024"),
    ]
    session(*asked)  # type: ignore[operator]
    code, out, err = learn()
    assert code == 0, err
    # The last one was made by the session itself.
    assert [rule.pattern for rule in parse(out, "p", name="p").profile.files] == ["~/letters/2024"]
    assert "everything in this folder" in err and "what it leads to" in err


@pytest.mark.parametrize(
    "door",
    [
        Need("unix", "connect", "/run/nscd/socket", {"curl": 1}),
        Need("unix", "connect", "/run/systemd/resolve/io.systemd.Resolve", {"curl": 1}),
        Need("net", "connect", "dns.google:443", {"curl": 1}),
        Need("net", "connect", "1.1.1.1:443", {"curl": 1}),
        Need("net", "connect", "[2620:fe::fe]:443/udp", {"curl": 1}),
        Need("net", "connect", "10.1.2.3:853", {"curl": 1}),
    ],
    ids=lambda need: need.object,
)
def test_another_way_to_names_is_never_learned(door: Need) -> None:
    other = Need("net", "connect", "api.example.com:443", {"curl": 1})
    assert [proposal.value for proposal in learned(door, other)] == ["api.example.com:443"]
    assert door.refused is not None and "another door to name resolution" in door.refused[1]
