"""What the path automaton says about single paths, and what it refuses."""

from __future__ import annotations

import struct

import pytest

from mcpguard.errors import PolicyError
from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import PathRule
from mcpguard.policy import automaton as module
from mcpguard.policy.automaton import Automaton, Decision

READ, WRITE, EXECUTE = Access.READ, Access.WRITE, Access.EXECUTE
ALL = READ | WRITE | EXECUTE


def allow(pattern: str, rule: int = 1, access: Access = READ) -> PathRule:
    return PathRule(Effect.ALLOW, access, pattern, (), rule)


def deny(pattern: str, *exceptions: str, rule: int = 2) -> PathRule:
    return PathRule(Effect.DENY, ALL, pattern, exceptions, rule)


def readonly(pattern: str, rule: int = 3) -> PathRule:
    return PathRule(Effect.READONLY, WRITE, pattern, (), rule)


def decide(path: str | bytes, *rules: PathRule) -> Decision:
    automaton = Automaton.build(rules)
    return automaton.decision(automaton.walk(path))


def allowed(path: str | bytes, *rules: PathRule) -> Access:
    return decide(path, *rules).allowed


def test_without_a_rule_nothing_is_allowed_and_the_default_decides() -> None:
    assert decide("/etc/passwd") == Decision(Access.NONE, 0, 0, 0, protected_below=False, pinned=False)


def test_a_pattern_is_a_subtree_and_never_a_sibling_with_the_same_beginning() -> None:
    rule = allow("/p/project")
    assert allowed("/p/project", rule) == READ
    assert allowed("/p/project/src/main.py", rule) == READ
    assert allowed("/p/project2", rule) == Access.NONE
    assert allowed("/p/projec", rule) == Access.NONE
    assert allowed("/p", rule) == Access.NONE


@pytest.mark.parametrize("first", ["lib", "libx", "li", "l", "library", "secret.pem"])
def test_one_name_is_judged_by_itself_whichever_with_the_same_beginning_was_asked_before(first: str) -> None:
    rules = allow("/w"), deny("/w/lib"), deny("/**/li*x", rule=4), deny("/**/*.pem", rule=5)
    asked = Automaton.build(rules)
    names = ("lib", "libx", "li", "l", "library", "linux", "secret.pem", "secret.txt", "se", "other", "ot")
    for name in (first, *names, *names):
        found = asked.decision(asked.walk(f"/w/{name}")).allowed
        assert found == allowed(f"/w/{name}", *rules), name
    seen = {name for name in names if asked.decision(asked.walk(f"/w/{name}")).allowed}
    assert seen == {*names} - {"lib", "libx", "linux", "secret.pem"}


def test_the_root_pattern_covers_the_root_and_everything() -> None:
    assert allowed("/", allow("/")) == READ
    assert allowed("/a/b", allow("/")) == READ


def test_write_implies_read() -> None:
    assert allowed("/w/f", allow("/w", access=WRITE)) == READ | WRITE


def test_deny_wins_over_allow_on_the_same_path() -> None:
    assert allowed("/a", allow("/a", access=ALL), deny("/a")) == Access.NONE


def test_a_more_specific_allow_does_not_open_a_deny() -> None:
    assert allowed("/h/.ssh/config", allow("/h/.ssh/config", access=ALL), deny("/h/.ssh")) == Access.NONE


def test_readonly_takes_write_away_and_leaves_the_rest() -> None:
    decision = decide("/w/.git/hooks/x", allow("/w", access=ALL), readonly("/w/.git/hooks"))
    assert decision.allowed == READ | EXECUTE
    assert (decision.read_rule, decision.write_rule, decision.execute_rule) == (1, 3, 1)


def test_a_deny_is_named_before_a_readonly_that_matches_too() -> None:
    assert decide("/w/a/b/c", deny("/w"), readonly("/w/a/b/c")).write_rule == 2


def test_an_exception_leaves_its_subtree_to_the_other_rules() -> None:
    rules = (allow("/h"), deny("/h/.ssh", "/h/.ssh/config", "/h/.ssh/*.pub"))
    assert allowed("/h/.ssh", *rules) == Access.NONE
    assert allowed("/h/.ssh/id", *rules) == Access.NONE
    assert allowed("/h/.ssh/config", *rules) == READ
    assert allowed("/h/.ssh/config/below", *rules) == READ
    assert allowed("/h/.ssh/id.pub", *rules) == READ
    assert allowed("/h/.ssh/dir/id.pub", *rules) == Access.NONE


def test_an_exception_belongs_to_its_own_rule_only() -> None:
    rules = (allow("/h"), deny("/h/.ssh", "/h/.ssh/config", rule=2), deny("/**/config", rule=4))
    assert decide("/h/.ssh/config", *rules).read_rule == 4


def test_an_exception_alone_allows_nothing() -> None:
    assert allowed("/h/.ssh/config", deny("/h/.ssh", "/h/.ssh/config")) == Access.NONE


def test_a_deny_of_one_access_does_not_hide_a_weaker_deny_of_another() -> None:
    only_read = PathRule(Effect.DENY, READ, "/h/.ssh/keys", ("/h/.ssh/keys/a",), 4)
    rules = (allow("/", access=ALL), deny("/h/.ssh", "/h/.ssh/b"), only_read)
    decision = decide("/h/.ssh/keys/x", *rules)
    assert decision.allowed == Access.NONE
    assert (decision.read_rule, decision.write_rule) == (4, 2)


def test_a_name_that_one_pattern_has_matched_is_still_compared_with_the_others() -> None:
    rules = (allow("/*a*", access=WRITE), readonly("/*b*"), deny("/*c*"))
    assert allowed("/xaxbx", *rules) == allowed("/bxa", *rules) == READ
    assert allowed("/abxc", *rules) == Access.NONE
    assert decide("/cab", allow("/*a*", 1), deny("/*c*", rule=2), deny("/*ab*", rule=3)).read_rule == 3


def test_a_floating_exception_holds_at_every_depth_below_the_denied_place() -> None:
    rules = (allow("/"), deny("/**/.env*", "/**/.env.example"))
    assert allowed("/a/.env.local", *rules) == Access.NONE
    assert allowed("/a/b/.env.example", *rules) == READ
    assert allowed("/a/.env.d/x/.env.example", *rules) == READ
    assert allowed("/a/.env.d/x/.env.other", *rules) == Access.NONE


@pytest.mark.parametrize("path", ["/x/.env", "/.env", "/a/b/c/.env", "/a/.env/below", "/a/.env.local"])
def test_a_floating_pattern_matches_at_every_depth(path: str) -> None:
    assert allowed(path, allow("/"), deny("/**/.env*")) == Access.NONE


@pytest.mark.parametrize("path", ["/x.env", "/a/env", "/a/.en", "/a/b.env/c"])
def test_a_floating_pattern_matches_whole_names_only(path: str) -> None:
    assert allowed(path, allow("/"), deny("/**/.env*")) == READ


def test_a_star_stays_in_its_component_and_takes_dotfiles() -> None:
    rule = allow("/a/*/c")
    assert allowed("/a/.b/c", rule) == READ
    assert allowed("/a/b/x/c", rule) == Access.NONE
    assert allowed("/a/c", rule) == Access.NONE


def test_two_stars_cross_components_and_may_stand_for_none() -> None:
    rule = allow("/a/**/c")
    assert [allowed(path, rule) for path in ("/a/c", "/a/b/c", "/a/b/b/c/d")] == [READ, READ, READ]
    assert allowed("/b/c", rule) == Access.NONE


def test_two_stars_at_the_end_leave_the_directory_itself_out() -> None:
    rule = allow("/a/**")
    assert allowed("/a", rule) == Access.NONE
    assert allowed("/a/b/c", rule) == READ


def test_a_question_mark_is_one_byte_and_a_set_one_of_its_characters() -> None:
    assert allowed("/ab", allow("/a?")) == READ
    assert allowed("/abc", allow("/a?")) == Access.NONE
    assert allowed("/a2", allow("/a[0-9]")) == READ
    assert allowed("/ax", allow("/a[0-9]")) == Access.NONE
    assert allowed("/ax", allow("/a[!0-9]")) == READ
    assert allowed("/a*", allow("/a[*]")) == READ
    assert allowed("/ab", allow("/a[*]")) == Access.NONE


def test_names_outside_utf8_are_matched_byte_by_byte() -> None:
    rule = allow(b"/a/\xff\xe9".decode("utf-8", "surrogateescape"))
    assert allowed(b"/a/\xff\xe9", rule) == READ
    assert allowed(b"/a/\xff", rule) == Access.NONE
    assert allowed("/a/é", allow("/a/é")) == READ


def test_the_most_specific_rule_is_named_then_the_smallest_id() -> None:
    assert decide("/a/b/c", allow("/a", 1), allow("/a/b", 5)).read_rule == 5
    assert decide("/a/b/c", allow("/a/b", 7), allow("/a/b", 4)).read_rule == 4
    assert decide("/a/x.pem", deny("/a", rule=2), deny("/**/*.pem", rule=9)).read_rule == 9


def test_order_of_rules_changes_neither_tables_nor_decisions() -> None:
    rules = [allow("/a", 1), deny("/a/b", "/a/b/c", rule=2), readonly("/**/x", 3), allow("/a/*", 4, WRITE)]
    assert Automaton.build(rules).to_bytes() == Automaton.build(rules[::-1]).to_bytes()


def test_a_place_above_a_protected_one_says_so() -> None:
    rules = (allow("/w", access=WRITE), readonly("/w/.git/hooks"))
    assert decide("/w", *rules).protected_below
    assert decide("/w/.git", *rules).pinned
    assert not decide("/w/src", *rules).protected_below


def test_a_floating_deny_protects_below_every_place_and_pins_only_a_begun_match() -> None:
    rules = (allow("/w", access=WRITE), deny("/**/secrets/key"))
    assert decide("/w/src", *rules).protected_below
    assert not decide("/w/src", *rules).pinned
    assert decide("/w/secrets", *rules).pinned


def test_a_tree_walk_can_stop_where_everything_is_alike() -> None:
    automaton = Automaton.build([allow("/usr"), allow("/w", access=WRITE), deny("/w/.env"), readonly("/w/.git/hooks")])
    assert automaton.uniform(automaton.walk("/usr/lib"))
    assert automaton.uniform(automaton.walk("/nowhere"))
    assert automaton.uniform(automaton.walk("/w/.env"))
    assert not automaton.uniform(automaton.walk("/"))
    assert automaton.named_children(automaton.walk("/w")) == {".env", ".git"}
    assert automaton.named_children(automaton.walk("/usr")) == frozenset()


def test_a_denied_directory_is_uniform_where_its_exceptions_cannot_match_any_more() -> None:
    automaton = Automaton.build([allow("/h"), deny("/h/.ssh", "/h/.ssh/config")])
    assert not automaton.uniform(automaton.walk("/h/.ssh"))
    assert automaton.named_children(automaton.walk("/h/.ssh")) == {"config"}
    assert automaton.uniform(automaton.walk("/h/.ssh/id"))


def test_children_have_no_list_where_a_glob_could_name_any_of_them() -> None:
    automaton = Automaton.build([allow("/w"), deny("/**/.env*")])
    assert automaton.named_children(automaton.walk("/w")) is None
    assert automaton.named_children(automaton.walk("/")) == {"w"}


def test_children_that_all_differ_from_their_directory_have_no_list() -> None:
    automaton = Automaton.build([allow("/a/*")])
    assert automaton.named_children(automaton.walk("/a")) is None


def test_children_have_no_list_where_a_pattern_begins_with_any_byte() -> None:
    automaton = Automaton.build([allow("/w"), deny("/w/?b")])
    assert automaton.named_children(automaton.walk("/w")) is None


def test_a_denied_directory_is_uniform_though_an_allow_points_below_it() -> None:
    automaton = Automaton.build([allow("/w/.env/x"), deny("/**/.env")])
    assert automaton.uniform(automaton.walk("/w/.env"))


def test_children_one_by_one_lead_where_the_whole_path_leads() -> None:
    automaton = Automaton.build([allow("/a/b"), deny("/**/c", "/a/**/d")])
    state = automaton.start
    for name in ("a", b"b", "c", "d"):
        state = automaton.child(state, name)
    assert state == automaton.walk("/a/b/c/d") == automaton.walk(b"/a/b/c/d/")


@pytest.mark.parametrize("path", ["", "a", "a/b", "/a//b", "/a/../b", "/./a", "/a\0b", "//"])
def test_a_path_that_is_not_canonical_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        Automaton.build([]).walk(path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0"])
def test_a_name_that_no_directory_can_hold_is_refused(name: str) -> None:
    automaton = Automaton.build([])
    with pytest.raises(ValueError, match="not a file name"):
        automaton.child(automaton.start, name)


def test_tables_survive_the_way_to_bytes_and_back() -> None:
    automaton = Automaton.build(
        [allow("/a", 7), deny("/**/.env*", "/**/.env.example", rule=70_000), readonly("/a/*/b")]
    )
    again = Automaton.from_bytes(automaton.to_bytes())
    assert again.to_bytes() == automaton.to_bytes()
    assert again.decision(again.walk("/a/.env.x")) == automaton.decision(automaton.walk("/a/.env.x"))
    assert again.decision(again.walk("/a/.env.x")).read_rule == 70_000


def _words(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def test_tables_of_another_version_or_size_are_refused() -> None:
    data = Automaton.build([allow("/a")]).to_bytes()
    words = _words(data)
    other_version = struct.pack(f"<{len(words)}I", words[0], words[1] + 1, *words[2:])
    for broken in (b"", data[:-1], data[:-4], data + bytes(4), b"\0" * len(data), other_version):
        with pytest.raises(PolicyError) as caught:
            Automaton.from_bytes(broken)
        assert caught.value.code == "policy.tables"


def test_no_single_broken_word_lets_a_walk_leave_the_tables() -> None:
    words = _words(Automaton.build([allow("/ab"), deny("/**/c", "/**/d")]).to_bytes())
    for index in range(len(words)):
        broken = [*words[:index], 0x7FFFFFFF, *words[index + 1 :]]
        try:
            automaton = Automaton.from_bytes(struct.pack(f"<{len(words)}I", *broken))
        except PolicyError:
            continue
        for path in ("/", "/ab/x", "/c/d", "/c/e", "/zz"):
            automaton.decision(automaton.walk(path))


def _walk_by_the_description(data: bytes, path: str) -> list[int]:
    """Rule ids for read, write and execute, by nothing but what the module's description says of the format."""
    words = _words(data)
    ranks, protect_from, factors, guards = words[4:8]
    ids = words[8 : 8 + ranks]
    guard_words = words[8 + ranks : 8 + ranks + 2 * guards]
    at = 8 + ranks + 2 * guards
    held, matched, excepted = [0, 0, 0], 0, 0
    for _ in range(factors):
        states, cells, outputs, state, _zero = words[at : at + 5]
        at += 5
        parts = []
        for size in (states, states, states, states, cells, cells, 8 * outputs):
            parts.append(words[at : at + size])
            at += size
        base, other, slash, out, owner, following, rows = parts
        for name in [None, *path.encode().split(b"/")[1:]] if path != "/" else [None]:
            if name is not None:
                state = slash[state]
                for byte in name:
                    cell = base[state] + byte
                    state = following[cell] if owner[cell] == state else other[state]
            row = rows[8 * out[state] : 8 * out[state] + 8]
            held = [max(old, new) for old, new in zip(held, row[:3], strict=True)]
            matched |= row[3] | row[4] << 32
            excepted |= row[5] | row[6] << 32
    for guard in range(guards):
        if matched & ~excepted & 1 << guard:
            rank, access = guard_words[2 * guard : 2 * guard + 2]
            held = [max(old, rank) if access & 1 << bit else old for bit, old in enumerate(held)]
    assert all((0 < rank < protect_from) == (ids[rank] < 100 and rank > 0) for rank in held)
    return [ids[rank] for rank in held]


def test_the_serialised_form_decides_as_its_description_says() -> None:
    """Rules that allow have ids below 100 here, so that the walk can tell what the rank order says."""
    rules = [
        allow("/h", 1, WRITE),
        allow("/usr", 2, READ | EXECUTE),
        allow("/h/*/run", 3, EXECUTE),
        deny("/h/.ssh", "/h/.ssh/*.pub", rule=100),
        deny("/**/.env*", "/**/.env.example", rule=101),
        deny("/**/*.pem", rule=102),
        readonly("/h/p/.git", 103),
        *(deny(f"/x{number}", f"/x{number}/y", rule=200 + number) for number in range(40)),
    ]
    automaton = Automaton.build(rules)
    paths = ["/", "/h", "/h/a.pem/x", "/h/.ssh/id", "/h/.ssh/a.pub", "/h/.env.example", "/h/.env", "/usr/bin/x"]
    for path in [*paths, "/h/p/.git/x", "/h/p/run", "/x39/z", "/x39/y/z", "/x0", "/nowhere/at/all"]:
        decision = automaton.decision(automaton.walk(path))
        expected = [decision.read_rule, decision.write_rule, decision.execute_rule]
        assert _walk_by_the_description(automaton.to_bytes(), path) == expected, path


def _many_rules() -> list[PathRule]:
    rules = [
        PathRule(
            (Effect.ALLOW, Effect.DENY, Effect.READONLY)[number % 3],
            READ if number % 2 else WRITE,
            f"/home/user/d{number % 40:02}/project-{number:04}/" + ("cache*" if number % 10 == 0 else "state"),
            (),
            number + 1,
        )
        for number in range(1000)
    ]
    shapes = (".{}", ".{}*", "*.{}", "*{}*", "{}/config", "{}.d/*.key")
    for number in range(60):
        name = shapes[number % 6].format(f"{chr(97 + number % 26)}secret{number}")
        exceptions = (f"/**/{name}.example",) if number % 4 == 0 else ()
        rules.append(deny(f"/**/{name}", *exceptions, rule=2000 + number))
    return rules


def test_a_thousand_rules_with_sixty_floating_globs_stay_below_the_bound() -> None:
    automaton = Automaton.build(_many_rules())
    assert automaton.states <= module.MAX_STATES
    assert len(automaton.to_bytes()) <= module.MAX_BYTES // 4
    assert automaton.decision(automaton.walk("/x/y/.asecret0")).read_rule == 2000
    assert automaton.decision(automaton.walk("/home/user/d01/project-0001/state")).read_rule == 2


@pytest.mark.parametrize("place", ["/w", "/**", "/w/**/x/**"])
def test_patterns_that_multiply_are_spread_until_they_are_small(place: str) -> None:
    words = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet")
    rules = [deny(f"{place}/*{word}*", f"{place}/*{word}.ok", rule=number) for number, word in enumerate(words, 2)]
    automaton = Automaton.build([allow("/"), *rules])
    assert automaton.states < 20_000
    path = place.replace("**", "d") + "/xbravo-alpha.ok"
    assert automaton.decision(automaton.walk(path)).read_rule == 3


def test_ten_thousand_paths_beside_each_other_fit() -> None:
    rules = [allow(f"/srv/store/number-{number:05d}/deeper", rule=number) for number in range(10_000)]
    automaton = Automaton.build([*rules, deny("/**/.env*", rule=10_001)])
    assert len(automaton.to_bytes()) < 3 << 20
    for number in (1, 4_321, 9_999):
        assert automaton.decision(automaton.walk(f"/srv/store/number-{number:05d}/deeper/x")).read_rule == number
    assert automaton.decision(automaton.walk("/srv/store/number-00001/deeper/.env")).read_rule == 10_001
    assert automaton.decision(automaton.walk("/srv/store/number-10000/deeper")).read_rule == 0


def test_rules_that_multiply_are_refused_with_the_patterns_that_cost_most() -> None:
    rules = [deny(f"/**/*{a}*{b}*{c}*", rule=1) for a in "abcdef" for b in "ghijkl" for c in "mnopqr"]
    with pytest.raises(PolicyError) as caught:
        Automaton.build([*rules, allow("/usr")])
    assert caught.value.code == "policy.too-large"
    assert '"/**/*' in caught.value.what
    assert "/usr" not in caught.value.what


def test_more_deny_rules_with_exceptions_than_fit_are_refused() -> None:
    with pytest.raises(PolicyError) as caught:
        Automaton.build([deny(f"/a{number}", f"/a{number}/x", rule=number) for number in range(1, 66)])
    assert caught.value.code == "policy.too-large"


def test_a_way_that_was_forgotten_or_failed_is_walked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 4)
    automaton = Automaton.build([allow("/a"), deny("/**/.env"), readonly("/a/*/keep")])
    paths = ["/", "/a", "/a/b/c/d/e/f", "/a/b/keep/x/y/z", "/a/b", "/x/.env/y", "/a/b/c/d/.env", "/a/", "/a/b/c"]
    for path in [*paths, *reversed(paths)]:
        with pytest.raises(ValueError):
            automaton.walk(f"{path.rstrip('/')}/../x")
        step_by_step = automaton.start
        for name in [name for name in path.split("/") if name]:
            step_by_step = automaton.child(step_by_step, name)
        assert automaton.walk(path) == step_by_step
