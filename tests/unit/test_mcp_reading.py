"""Hostile files cost bounded time and memory, and never more than an error."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.catalogue.reading import UnreadableError, parse

_ALL = {"json": 2 << 20, "toml": 256 << 10, "yaml": 1 << 20}
# Each once had a parser look at every character for every one before it, or nest until memory ends.
HOSTILE = [
    *(("json", text) for text in ("[", "/*", "//", '"\\', '"', ",", ", ", "/* *", "{", '{"a":', "*", "\n", "[],")),
    *(("toml", text) for text in ("a.", "a=[", "[a.", "a={a=", '"a".', "'", '"""', "a", "[[", "a.a=1\n")),
    *(("yaml", text) for text in ("[", "- ", "? ", "a: ", "&a ", "!!x ", "{", "- - ", "'", "#", "%", "a:\n ")),
]


@pytest.mark.parametrize(("syntax", "text"), HOSTILE)
def test_repetition_is_bounded(syntax: str, text: str) -> None:
    """In a process of its own with little memory: what takes more is killed, and fails here."""
    code = (
        "import resource, sys\n"
        "from mcpguard.catalogue.reading import UnreadableError, parse\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "text, size = sys.argv[1].encode(), int(sys.argv[3])\n"
        "try:\n parse(text * (size // len(text)), sys.argv[2])\nexcept UnreadableError:\n pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, text, syntax, str(_ALL[syntax])], timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1, // x\n "b": "http://c/*", /* y */ "d": [1, 2,],}', {"a": 1, "b": "http://c/*", "d": [1, 2]}),
        ('{"a": ",]", "b": "\\",}"}', {"a": ",]", "b": '",}'}),
        ('\ufeff{"a": 1}', {"a": 1}),
        ("  \n", {}),
        ("// nothing\n{}", {}),
    ],
)
def test_comments_and_commas_go_and_texts_stay(text: str, value: object) -> None:
    assert parse(text.encode(), "json") == (value, ())


def test_repeated_keys_are_told() -> None:
    assert parse(b'{"a": 1, "b": {"c": 1, "c": 2}}', "json") == ({"a": 1, "b": {"c": 2}}, ("c",))


@pytest.mark.parametrize(
    ("syntax", "raw"),
    [
        ("json", b"{"),
        ("json", b"\xff"),
        ("json", b"[" * 70 + b"]" * 70),
        ("json", b"1" * 5000),
        ("yaml", b"a: &x 1\nb: *x\n"),
        ("yaml", b"a: !!python/object/apply:os.system [id]\n"),
        ("yaml", b"a: 1\n---\nb: 2\n"),
        ("toml", b"a = 1\na = 2\n"),
    ],
)
def test_what_is_not_understood_is_an_error(syntax: str, raw: bytes) -> None:
    with pytest.raises(UnreadableError):
        parse(raw, syntax)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(st.sampled_from('a/*",\\]}\n ')),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.sampled_from('ab/*",')), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(_JSON)
def test_json_with_comments_and_commas_means_what_it_means_without(value: object) -> None:
    text = json.dumps(value)
    assert parse(text.encode(), "json")[0] == (value if text.strip() else {})
    if isinstance(value, list | dict) and value:
        assert parse(f"/* ] */{text[:-1]} , // }}\n{text[-1]}".encode(), "json")[0] == value
