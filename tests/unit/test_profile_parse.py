"""A profile says exactly what was written, or exactly where it is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.errors import ProfileError
from mcpguard.model.access import Access, Effect
from mcpguard.model.rule import FileRule, NetDirection
from mcpguard.profile import nodes
from mcpguard.profile.draft import Raw
from mcpguard.profile.parse import examine, parse

BAD = sorted((Path(__file__).parents[1] / "data" / "profiles" / "bad").glob("*.yaml"))
EXPECT = re.compile(r"# expect: (\d+) (\S+) \| (.*)")


def read(text: str) -> Raw:
    return parse(text, "p.yaml", name="p")


def refusal(text: str) -> ProfileError:
    with pytest.raises(ProfileError) as caught:
        read(text)
    return caught.value


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_each_mistake_is_refused_with_its_line_its_code_and_what_to_do(path: Path) -> None:
    text = path.read_text()
    found = EXPECT.match(text)
    assert found
    line, code, do = found.groups()
    error = refusal(text)
    assert error.what.startswith(f"p.yaml:{line}: ")
    assert (error.code, error.do) == (code, do)


def test_there_are_bad_profiles_to_test_with() -> None:
    assert len(BAD) > 40


def test_every_mistake_of_a_file_is_found_in_the_order_of_its_lines() -> None:
    _, errors = examine("nam: x\nfiles:\n  read: [on]\n  rite: []\nmcp: {a: 1}\n", "p.yaml", name="p")
    assert [error.what.split(": ")[0] for error in errors] == ["p.yaml:1", "p.yaml:3", "p.yaml:4", "p.yaml:5"]


def test_a_rule_keeps_its_line_and_its_words() -> None:
    raw = read("name: x\nfiles:\n  write:\n    - ~/.x\n    # why\n    - '~/.y*'\n")
    assert [(rule.origin.place, rule.origin.text) for rule in raw.profile.files] == [
        ("p.yaml:4", "write ~/.x"),
        ("p.yaml:6", "write ~/.y*"),
    ]


def test_write_grants_read_and_execute_grants_neither() -> None:
    raw = read("files: {read: [/r], write: [/w], execute: [/x]}")
    assert {rule.pattern: rule.access for rule in raw.profile.files} == {
        "/r": Access.READ,
        "/w": Access.READ | Access.WRITE,
        "/x": Access.EXECUTE,
    }


def test_a_denial_keeps_its_exceptions_and_its_reason() -> None:
    raw = read(
        "files:\n  deny:\n    - path: ~/.ssh\n      except: [~/.ssh/config]\n      because: SSH  private\n        keys\n"
    )
    rule = raw.profile.files[0]
    assert isinstance(rule, FileRule)
    assert (rule.effect, rule.exceptions, rule.because) == (Effect.DENY, ("~/.ssh/config",), "SSH private keys")
    assert rule.origin.text == "deny ~/.ssh except ~/.ssh/config"


def test_a_readonly_entry_takes_write_away_and_may_say_why() -> None:
    rule = read('files: {readonly: [{path: "{workspace}/x", because: y}]}').profile.files[0]
    assert (rule.effect, rule.access, rule.because) == (Effect.READONLY, Access.WRITE, "y")


def test_network_rules_know_their_direction() -> None:
    raw = read("network: {allow: [a.example], deny: [10.0.0.1], listen: [localhost]}")
    assert [(rule.effect, rule.direction, rule.target) for rule in raw.profile.network] == [
        (Effect.ALLOW, NetDirection.CONNECT, "a.example"),
        (Effect.DENY, NetDirection.CONNECT, "10.0.0.1"),
        (Effect.ALLOW, NetDirection.LISTEN, "localhost"),
    ]


def test_every_key_of_a_full_profile_is_read() -> None:
    raw = read(
        "name: x\ndescription: >\n  two\n  lines\nextends: [base]\ncommand: [a, -b]\n"
        "sockets: {allow: ['@a'], own: [/c], deny: [/b]}\n"
        "environment: {remove: ['A_*'], keep: [A_B]}\nsystem: {user_namespaces: true, io_uring: false}\nmcp: {}\n"
    )
    profile = raw.profile
    assert (profile.name, profile.description, profile.command) == ("x", "two lines", ("a", "-b"))
    assert (raw.parents[0].name, raw.parents[0].line) == ("base", 5)
    assert [(rule.effect, rule.pattern, rule.own) for rule in profile.sockets] == [
        (Effect.ALLOW, "@a", False),
        (Effect.ALLOW, "/c", True),
        (Effect.DENY, "/b", False),
    ]
    assert (profile.environment_remove, profile.environment_keep) == (("A_*",), ("A_B",))
    assert (profile.system.user_namespaces, profile.system.io_uring) == (True, False)


def test_variables_are_set_to_texts() -> None:
    profile = read("environment:\n  set: {B: '{home}/x', _A1: '{\"k\": 1}'}\n").profile
    assert profile.environment_set == (("B", "{home}/x"), ("_A1", '{"k": 1}'))
    assert next((place.line, place.text) for place in profile.origins) == (2, "environment set B={home}/x")


@pytest.mark.parametrize(
    ("written", "code", "word"),
    [
        ("{LD_PRELOAD: /x.so}", "profile.variable", "decides which code runs"),
        ("{LD_LIBRARY_PATH: /x}", "profile.variable", "decides which code runs"),
        ("{GLIBC_TUNABLES: x=1}", "profile.variable", "decides which code runs"),
        ("{PATH: /x}", "profile.variable", "decides which code runs"),
        ("{MCPGUARD_SESSION: x}", "profile.variable", "decides which code runs"),
        ("{A=B: x}", "profile.variable", "letters, digits and _"),
        ("{'': x}", "profile.variable", "letters, digits and _"),
        ("{'A*': x}", "profile.variable", "letters, digits and _"),
        ("{A: x, A: y}", "profile.variable", "one of them"),
        ("{A: '{workspce}/x'}", "profile.variable", "{workspace}"),
        ("{A: 1}", "profile.not-text", "number"),
        ("{A: }", "profile.not-text", "nothing"),
        ("{A: {home}}", "profile.not-text", "{ }"),
        ('{A: "a\\nb"}', "profile.line-break", "one line"),
        ("[A]", "profile.type", "with values"),
    ],
)
def test_a_variable_that_cannot_be_set_is_refused(written: str, code: str, word: str) -> None:
    error = refusal(f"name: p\nenvironment:\n  set: {written}\n")
    assert (error.code, error.what.startswith("p.yaml:3: ")) == (code, True)
    assert word in error.why


def test_words_in_quotes_are_words() -> None:
    assert [rule.pattern for rule in read("files: {read: ['no', '~', '8080']}").profile.files] == ["no", "~", "8080"]


def test_a_file_without_a_name_has_the_name_it_was_found_under() -> None:
    assert read("files: {}").profile.name == "p"


def test_aliases_that_would_explode_are_refused_at_the_first_anchor() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    error = refusal(bomb)
    assert error.code == "profile.alias"
    assert error.what.startswith("p.yaml:1: ")


def test_nesting_beyond_the_bound_is_refused_without_recursion() -> None:
    assert refusal("files: " + "[" * 100_000).code == "profile.too-deep"


def test_a_control_character_is_refused_with_its_line() -> None:
    error = refusal("name: x\nfiles:\n  read: ['a\x01b']\n")
    assert error.code == "profile.syntax"
    assert error.what.startswith("p.yaml:3: ")


def test_bytes_that_are_not_utf8_are_refused_with_their_line() -> None:
    with pytest.raises(ProfileError) as caught:
        nodes.decode(b"name: x\nfiles:\n  read: [/\xff]\n", "p.yaml")
    assert caught.value.code == "profile.encoding"
    assert caught.value.what.startswith("p.yaml:3: ")


def test_a_file_above_one_mebibyte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * (nodes.MAX_BYTES + 1))
    with pytest.raises(ProfileError) as caught:
        nodes.decode(nodes.read_bytes(path, "big.yaml"), "big.yaml")
    assert caught.value.code == "profile.too-large"


def test_a_file_of_exactly_one_mebibyte_is_read() -> None:
    text = b"name: x\n#".ljust(nodes.MAX_BYTES, b"#")
    assert read(nodes.decode(text, "p.yaml")).profile.name == "x"


def test_a_byte_order_mark_is_no_mistake() -> None:
    assert read(nodes.decode(b"\xef\xbb\xbfname: x\n", "p.yaml")).profile.name == "x"


def test_a_missing_file_is_an_error_with_four_lines(tmp_path: Path) -> None:
    with pytest.raises(ProfileError) as caught:
        nodes.read_bytes(tmp_path / "no.yaml", "no.yaml")
    assert caught.value.code == "profile.unreadable"
    assert all(caught.value.lines())


FRAGMENTS = st.sampled_from(
    [
        "name: x\n",
        "files:\n",
        "  read: [",
        "]",
        "{",
        "}",
        "- ",
        "~",
        "*a",
        "&a",
        "!!x ",
        "<<: ",
        "? ",
        ": ",
        "|\n",
        "#",
        "\n",
        "  ",
        "'",
        '"',
        "deny:",
        "path",
        "except: ",
        "because: y",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "\x85",
        "\ufeff",
        "no",
        "0x1",
        "=",
        "1:2",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(), st.lists(FRAGMENTS, max_size=25).map("".join)))
def test_whatever_the_text_there_is_a_profile_or_an_error_with_four_lines(text: str) -> None:
    raw, errors = examine(text, "p.yaml", name="p")
    assert raw.profile.name
    assert all(error.what.startswith("p.yaml") and all(error.lines()) and error.why for error in errors)


def test_nothing_of_a_wrong_entry_becomes_a_rule() -> None:
    raw, errors = examine("files:\n  deny:\n    - path: ~/.ssh\n      excep: [~/.ssh/config]\n", "p.yaml", name="p")
    assert errors
    assert raw.profile.files == ()


@pytest.mark.parametrize("mode", ["check", "require", "off"])
def test_how_names_are_looked_at_is_a_word_though_yaml_has_another_meaning_for_one(mode: str) -> None:
    raw = read(f"name: p\nnetwork: {{sni: {mode}}}\n")
    assert raw.profile.sni == mode
    assert [origin.text for origin in raw.profile.origins] == [f"network sni {mode}"]


@pytest.mark.parametrize("value", ["false", "no", "Check", "[check]", "", "maybe"])
def test_another_word_for_it_is_refused(value: str) -> None:
    error = refusal(f"name: p\nnetwork:\n  sni: {value}\n")
    assert error.what.startswith("p.yaml:3: network.sni is ")
    assert error.do == "write check, require or off"
