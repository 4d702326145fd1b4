"""Path patterns: what is refused, with its place, and what expansion makes of the rest."""

from __future__ import annotations

import pytest

from mcpguard.errors import PolicyError
from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import PathRule
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.patterns import expand, literal_path, parse, quote, split_literal, witness

VARIABLES = {"home": "/home/u", "workspace": "/home/u/p", "tmp": "/tmp/x"}


@pytest.mark.parametrize(
    ("text", "absolute"),
    [
        ("~", "/home/u"),
        ("~/.ssh/", "/home/u/.ssh"),
        ("{home}/.ssh", "/home/u/.ssh"),
        ("{workspace}", "/home/u/p"),
        ("{tmp}/**", "/tmp/x/*"),
        ("**/.env*", "/**/.env*"),
        ("**", "/*"),
        ("/", "/"),
        ("/a/**/**/b", "/a/**/b"),
        ("/a/**/*", "/a/*"),
        ("/a[{]b", "/a[{]b"),
    ],
)
def test_a_pattern_becomes_absolute_in_one_normal_form(text: str, absolute: str) -> None:
    assert expand(text, "p.yaml:3", VARIABLES) == absolute


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "begins with"),
        ("etc/passwd", "begins with"),
        ("*.pem", "begins with"),
        ("~root/x", "another user"),
        ("{work}/x", "not a variable"),
        ("{workspace}x", "whole path"),
        ("/a/{home}", "no meaning here"),
        ("/a/{b,c}", "no meaning here"),
        ("/a//b", "empty"),
        ("//", "empty"),
        ("/a/./b", 'component is "."'),
        ("~/../x", 'component is ".."'),
        ("/a/[.][.]", 'component is ".."'),
        ("/a\0b", "NUL"),
        ("/a/[bc", "no closing"),
        ("/a/[]", "no closing"),
        ("/a/[b/c]", "no closing"),
        ("/a/[z-a]", "backwards"),
        ("/a/[[:alpha:]]", "named classes"),
        ("/a/[é]", "ASCII"),
        ("/a/b**", "mixed"),
        ("/a/\\*", "backslash"),
        ("/a/\ud800", "surrogate"),
    ],
)
def test_a_pattern_with_two_readings_or_none_is_refused_at_its_place(text: str, reason: str) -> None:
    with pytest.raises(PolicyError) as caught:
        expand(text, "p.yaml:3", VARIABLES)
    assert caught.value.what.startswith("p.yaml:3: ")
    assert caught.value.code == "policy.pattern"
    assert reason in caught.value.why
    assert caught.value.do


@pytest.mark.parametrize("path", ["/w/[x]*?", "/w/a\\b", "/w/{tmp}", "/w/]", "/w/é !^-", "/w/[{]}[}", "/w/a{b,c}"])
def test_the_value_of_a_variable_is_taken_literally(path: str) -> None:
    pattern = expand("{workspace}/*.py", "p.yaml:3", {**VARIABLES, "workspace": path})
    assert split_literal(pattern) == (path, "/*.py")
    assert literal_path(quote(path)) == path
    assert literal_path(expand(quote(path), "p.yaml:3", VARIABLES)) == path, "what is quoted may be written"


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/a[*]/b", "/a*/b"),
        ("/a/*", "/a/\1"),
        ("/a/b*c*", "/a/b\1c\1"),
        ("/**/b", "/\1/b"),
        ("/a/[!\1]?", "/a/\2\1"),
        ("/", "/"),
    ],
)
def test_a_witness_is_a_path_of_the_pattern_with_odd_names(pattern: str, path: str) -> None:
    assert witness(pattern) == path
    automaton = Automaton.build([PathRule(Effect.ALLOW, Access.READ, pattern, (), 1)])
    assert Access.READ in automaton.decision(automaton.walk(path)).allowed


def test_a_home_at_the_root_gives_plain_paths() -> None:
    assert expand("~", "x", {**VARIABLES, "home": "/"}) == "/"
    assert expand("~/.ssh", "x", {**VARIABLES, "home": "/"}) == "/.ssh"


def test_the_literal_beginning_ends_before_the_first_glob() -> None:
    assert split_literal("/a/b*/c") == ("/a", "/b*/c")
    assert split_literal("/**/c") == ("/", "/**/c")
    assert split_literal("/a[*]b") == ("/a*b", "")
    assert literal_path("/a/?") is None


def test_a_pattern_that_is_not_absolute_is_refused() -> None:
    with pytest.raises(PolicyError, match="a/b"):
        parse("a/b")
