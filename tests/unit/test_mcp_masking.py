"""What a record keeps of arguments: bounded JSON, and nothing that looks like a secret."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.mcp.masking import LIMIT, bounded, masked_text

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


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece", ["x", "token", "a.", "a://", "a://b:", "Bearer ", "-----BEGIN A PRIVATE KEY-----", "eyJ", "a-"]
)
def test_no_text_takes_longer_to_mask_than_it_is_long(piece: str) -> None:
    """Whoever is guarded chooses the text, and its messages wait for this: a second for one string would be minutes here."""
    for _ in range(200):
        bounded({"text": piece * (4096 // len(piece))})
