"""What a record keeps of arguments: bounded JSON, and nothing that looks like a secret."""

import base64
import functools
import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcpguard.mcp import masking
from mcpguard.mcp.masking import LIMIT, LOOKED_AT, beginning, bounded, holds_credential, masked_text

# Put together here, so that no scanner takes this file for a leak.
KEY = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEabc\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"use {KEY} now", "use *** now"),
        (f"key:\n{PEM}\nend", "key:\n***\nend"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "AWS_SECRET_ACCESS_KEY=***"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("postgres://me:hunter22@db/x", "postgres://me:***@db/x"),
        ('{"api_key":"12345678"}', '{"api_key":"***"}'),
        (
            "a token of thanks; the path is /home/a/secret/plan.txt",
            "a token of thanks; the path is /home/a/secret/plan.txt",
        ),
    ],
)
def test_secrets_in_text_are_masked(text: str, kept: str) -> None:
    assert masked_text(text) == kept


def test_members_with_telling_names_are_masked_whatever_they_hold() -> None:
    text, cut = bounded({"password": "x", "nested": [{"apiKey": {"a": 1}}], "path": "/tmp/a", "progressToken": 4})
    assert json.loads(text) == {
        "password": "***",
        "nested": [{"apiKey": "***"}],
        "path": "/tmp/a",
        "progressToken": 4,
    }
    assert not cut


def test_a_secret_at_the_edge_of_what_is_kept_is_not_cut_in_half() -> None:
    for before in range(980, 1040):
        text, _cut = bounded({"text": "x" * before + " " + KEY})
        assert "ghp_" not in text


def test_long_values_keep_their_beginning_and_say_so() -> None:
    text, cut = bounded({"path": "/tmp/a", "content": "y" * 100_000, "more": list(range(10_000))})
    kept = json.loads(text)
    assert (kept["path"], kept["content"][:5], kept["more"][:3], cut) == ("/tmp/a", "yyyyy", [0, 1, 2], True)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3_000),
    lambda inner: st.lists(inner, max_size=60) | st.dictionaries(st.text(max_size=50), inner, max_size=60),
    max_leaves=100,
)


@given(_VALUES)
def test_whatever_it_is_the_rest_is_json_within_the_bound(value: object) -> None:
    text, cut = bounded(value)
    assert len(text.encode("utf-8", "surrogatepass")) <= LIMIT
    json.loads(text)
    assert cut or json.loads(text) is not None or value is None


# Around what is looked at, in strings, in lists and objects, and in depth.
_LONG = st.tuples(
    st.sampled_from(["x", "ab ", "token=", KEY, "\u00e9", "-----BEGIN A PRIVATE KEY-----"]),
    st.sampled_from([0, 1, 20, LOOKED_AT - 1, LOOKED_AT, LOOKED_AT + 1, LOOKED_AT + 40]),
).map(lambda one: (one[0] * one[1])[: one[1]])
_WIDE = st.sampled_from([0, 1, 2, 49, 50, 51, 52])
_LARGE = st.recursive(
    _LONG | st.integers() | st.none(),
    lambda inner: (
        st.tuples(inner, _WIDE).map(lambda one: [one[0]] * one[1])
        | st.tuples(_LONG, inner, _WIDE).map(lambda one: {one[0]: 1} | {f"{n}": one[1] for n in range(one[2])})
        | st.tuples(inner, st.integers(1, 14)).map(
            lambda one: functools.reduce(lambda made, _: [made], range(one[1]), one[0])
        )
    ),
    max_leaves=3,
)


@settings(deadline=None, max_examples=60)
@given(_LARGE)
@example(PEM * 100)
def test_of_its_beginning_the_same_is_kept(value: object) -> None:
    assert bounded(beginning(value)) == bounded(value)
    assert bounded({"a": beginning(value)}) == bounded({"a": value})


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece",
    ["x", "token", "a.", "a://", "a://b:", "Bearer ", "-----BEGIN A PRIVATE KEY-----", "eyJ", "a-", "-eyJ", "token-"],
)
def test_no_text_takes_longer_to_mask_than_it_is_long(piece: str) -> None:
    """Whoever is guarded chooses the text, and its messages wait for this: a second for one string would be minutes here."""
    for _ in range(200):
        bounded({"text": (piece * 4096)[:4095] + "="})


def test_however_many_texts_there_are_so_much_of_them_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four megabytes of texts that take long to mask held up every server of a session for many seconds."""
    looked_at: list[int] = []

    def counted(text: str) -> str:
        looked_at.append(len(text))
        return masked_text(text)

    monkeypatch.setattr(masking, "masked_text", counted)
    for length, width in ((LOOKED_AT, 20), (1, 2_500)):
        looked_at.clear()
        text, cut = bounded([[[f"{row}.{at}-" * length for at in range(50)]] * 50 for row in range(width // 50 or 1)])
        assert cut and len(text.encode()) <= LIMIT
        assert sum(looked_at) <= 16 * LOOKED_AT and len(looked_at) <= LOOKED_AT


def test_a_credential_is_found_in_files_and_in_json_inside_of_json() -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl" + chr(255) * 3 + "?" * 3
    for raw, is_one in ((key.encode(), True), (b"\x89PNG\r\n" + bytes(range(256)) * 64, False)):
        for text in (base64.b64encode(raw), base64.urlsafe_b64encode(raw), base64.b64encode(raw).rstrip(b"=")):
            assert holds_credential({"contents": [{"uri": "a:b", "blob": text.decode()}]}) is is_one
    for bad in ("", "=", "a", "no base64 \u00e9", "\x00", "====", "ab=cd"):
        assert not holds_credential({"blob": bad})
    for value, is_one in (("a1b2" * 5, True), ("<your-token-here-1>", False)):
        text: Any = {"token": value}
        for _ in range(4):
            text = json.dumps(text)
            assert holds_credential([text]) is is_one, text


def test_a_credential_is_found_in_one_text_and_not_over_several() -> None:
    key = "ghp_" + "a1" * 12
    for value in (
        key,
        ["", {"x": ["a", key]}],
        {key: 1},
        {"password": "a1b2" * 5},
        ["://u:pass1@"],
        [f"token={'a1' * 10}"],
    ):
        assert holds_credential(value), value
    halves = (
        key[:10],
        key[10:],
        "password=",
        "a1b2" * 5,
        "https://user:",
        "pass1@host",
        "token",
        "='a1b2c3d4e5f6a7b8'",
        "-----BEGIN ",
        "PRIVATE KEY-----",
    )
    for before, behind in itertools.permutations(halves, 2):
        assert not holds_credential([before, behind]), (before, behind)
