"""A policy in force with more rules: what held holds, numbers stay, nothing that takes away is loosened."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.errors import PolicyError
from mcpguard.model.access import PATH_EFFECTS, Access, Effect, Verdict
from mcpguard.model.policy import Policy, User
from mcpguard.model.profile import Profile, SystemSwitches
from mcpguard.model.rule import FileRule, NetDirection, NetRule, Origin, SocketRule
from mcpguard.policy.compile import OWN_REASON, compile_policy, extend_policy
from mcpguard.policy.decide import Answer, automaton_of, decide_connect, decide_file, decide_name, decide_unix

READ, WRITE, EXECUTE = Access.READ, Access.WRITE, Access.EXECUTE
ALL = READ | WRITE | EXECUTE
USER = User(1000, 1000, (), "u", "/home/u")
SWITCHES = SystemSwitches()
LINKS = {"/home/u/w/planted": "/etc", "/home/u/real": "/srv/data"}
NAMES = ("a", "b", "ab", "a*", "*", "**")
PATHS = ["/" + "/".join(names) for names in (("a",), ("b",), ("ab",), ("a", "a"), ("a", "b"), ("b", "ab", "a"))]


def origin(text: str, file: str = "p.yaml") -> Origin:
    return Origin("p", file, 1, text)


def rule(pattern: str, access: Access = READ, effect: Effect = Effect.ALLOW, file: str = "p.yaml") -> FileRule:
    return FileRule(effect, access, pattern, origin(f"{effect} {access} {pattern}", file))


def added(pattern: str, access: Access = READ) -> FileRule:
    return rule(pattern, access, file="approved")


def compiled(*files: FileRule, network: tuple[NetRule, ...] = (), sockets: tuple[SocketRule, ...] = ()) -> Policy:
    profile = Profile("p", "p.yaml", files=files, network=network, sockets=sockets, system=SWITCHES)
    return compile_policy(
        profile,
        user=USER,
        workspace="/home/u/w",
        tmp="/tmp/x",
        own_paths=["/srv/own"],
        own_hidden=["/srv/own/control"],
        resolve=LINKS.get,
    )


def net(target: str, effect: Effect = Effect.ALLOW, file: str = "p.yaml") -> NetRule:
    return NetRule(effect, NetDirection.CONNECT, target, origin(f"{effect} {target}", file))


def patterns() -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(lambda names: "/" + "/".join(names))


def rules(effects: Sequence[Effect]) -> st.SearchStrategy[list[FileRule]]:
    one = st.builds(rule, patterns(), st.sampled_from([READ, READ | WRITE, EXECUTE]), st.sampled_from(effects))
    return st.lists(one.map(lambda made: made if made.effect is Effect.ALLOW else _whole(made)), max_size=4)


def _whole(made: FileRule) -> FileRule:
    return rule(made.pattern, WRITE if made.effect is Effect.READONLY else ALL, made.effect)


@settings(max_examples=150, deadline=None)
@given(rules(PATH_EFFECTS), rules([Effect.ALLOW]))
def test_more_rules_allow_more_and_loosen_nothing(given_rules: list[FileRule], more: list[FileRule]) -> None:
    before = compiled(*given_rules)
    after = extend_policy(before, files=[added(one.pattern, one.access) for one in more], resolve=LINKS.get)
    old, new = automaton_of(before.tables), automaton_of(after.tables)
    for path in PATHS:
        was, now = old.decision(old.walk(path)), new.decision(new.walk(path))
        assert was.allowed & ~now.allowed == Access.NONE
        for access in (READ, WRITE, EXECUTE):
            refused = access not in was.allowed and was.rule(access)
            assert not refused or access not in now.allowed, (path, access)
    assert after.rules[: len(before.rules)] == before.rules
    assert after.reasons[: len(before.reasons)] == before.reasons


@settings(max_examples=100, deadline=None)
@given(rules(PATH_EFFECTS), rules([Effect.ALLOW]))
def test_it_decides_as_if_all_had_been_compiled_at_once(given_rules: list[FileRule], more: list[FileRule]) -> None:
    together = compiled(*given_rules, *more)
    after = extend_policy(compiled(*given_rules), files=more, resolve=LINKS.get)
    one, other = automaton_of(together.tables), automaton_of(after.tables)
    for path in PATHS:
        assert one.decision(one.walk(path)).allowed == other.decision(other.walk(path)).allowed
    assert after.digest == together.digest


def test_new_rules_are_numbered_behind_the_old_and_decide_by_their_own() -> None:
    before = compiled(rule("/a"), network=(net("10.0.0.1:443"),))
    after = extend_policy(
        before,
        files=[added("/b")],
        network=[net("10.0.0.2:443", file="approved"), net("a.example:443", file="approved")],
        sockets=[SocketRule(Effect.ALLOW, "/s", origin("sockets /s", "approved"))],
        resolve=LINKS.get,
    )
    (number,) = decide_file(after, "/b", READ)[1]
    assert after.rules[number].file == "approved"
    assert decide_file(after, "/a", READ) == decide_file(before, "/a", READ)
    for answer in (
        decide_connect(after, "10.0.0.2", 443),
        decide_name(after, "a.example", 443),
        decide_unix(after, "/s"),
    ):
        assert answer.verdict is Verdict.ALLOW
        assert answer.rule >= len(before.rules)
    assert decide_connect(after, "10.0.0.1", 443) == decide_connect(before, "10.0.0.1", 443)
    assert len(after.rules) == len(before.rules) + 4


def test_the_same_rule_again_changes_nothing() -> None:
    once = extend_policy(compiled(rule("/a")), files=[added("/b")], resolve=LINKS.get)
    assert extend_policy(once, files=[added("/b")], resolve=LINKS.get) == once


def test_a_symlink_where_the_agent_may_write_opens_nothing() -> None:
    before = compiled(rule("{workspace}", READ | WRITE))
    after = extend_policy(before, files=[added("/home/u/w/planted/passwd"), added("~/real/x")], resolve=LINKS.get)
    assert decide_file(after, "/etc/passwd", READ)[0] is Verdict.DENY
    assert decide_file(after, "/srv/data/x", READ)[0] is Verdict.ALLOW


def test_what_cannot_be_compiled_is_said() -> None:
    with pytest.raises(PolicyError):
        extend_policy(compiled(), files=[added("relative")], resolve=LINKS.get)
    with pytest.raises(PolicyError):
        extend_policy(compiled(), network=[net("10.0.0.0/99")], resolve=LINKS.get)


def test_no_rule_opens_what_is_hidden() -> None:
    everything = SocketRule(Effect.ALLOW, "/**", origin("sockets /**"))
    before = compiled(rule("/", ALL), sockets=(everything,))
    after = extend_policy(before, files=[added("/srv/own/control", ALL)], sockets=[everything], resolve=LINKS.get)
    for policy in (before, after):
        assert decide_file(policy, "/srv/own/control/s", READ)[0] is Verdict.DENY
        assert decide_file(policy, "/srv/own/other", READ)[0] is Verdict.ALLOW
        refused = decide_unix(policy, "/srv/own/control/s")
        assert refused == Answer(Verdict.DENY, refused.rule)
        assert policy.reasons[refused.rule] == OWN_REASON
        assert decide_unix(policy, "/srv/other").verdict is Verdict.ALLOW
