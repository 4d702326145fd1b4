"""Secrets that are written out, told from placeholders, references and things that only have such a name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import parse_qsl, urlsplit

from mcpguard.mcp.masking import LOOKED_AT, is_secret_name, secrets

_REFERENCE = re.compile(
    r"\$\{|\$\(|\{env:|\{\{|<[^>]*>|\A\$\w+\Z|%\w+%|\A(?:op|vault|keyring|secret|file|env|ssm|gcpsm|azkv|pass)://?",
    re.I,
)
_PLACEHOLDER = re.compile(
    r"your|x{3,}|\*{3,}|\.{3}|…|change.?me|replace|placeholder|example|insert|dummy|fake|sample|to.?do|redacted|secret.?here"
    r"|(?:api|access)?[-_ ]?(?:key|token)[-_ ]?(?:here|goes)|1234567|abcdef|not.?(?:set|a.?real)",
    re.IGNORECASE,
)
# In a long value that holds digits, letters may spell such a word by chance.
_SURE_PLACEHOLDER = re.compile(
    r"(?<![A-Za-z0-9])(?:your|changeme|change[-_]me|replace|placeholder|example|insert|dummy|fake|sample|todo|redacted|here)"
    r"(?![A-Za-z0-9])|x{6,}|\*{3,}|\.{3}|…|123456789|abcdefgh",
    re.IGNORECASE,
)
_LONG = 20
_ONE_CHARACTER = re.compile(r"(.)\1*\Z")
# Their names hold such a word, and their values say where or what, not the secret itself.
_ABOUT = re.compile(
    r"(?:file|path|dir|url|uri|header|name|type|id|limit|env|var|ttl|command|cmd|helper|length|size|count|expiry)s?\Z",
    re.I,
)
_PATH = re.compile(r"[~.]{0,2}/|[A-Za-z]:\\")
_SCHEME = re.compile(r"\A(?:Bearer|Basic|Token)\s+", re.I)
_WELL_KNOWN = {
    "password",
    "postgres",
    "secret",
    "root",
    "admin",
    "test",
    "true",
    "false",
    "none",
    "null",
    "required",
    "optional",
}
_SHORTEST = 8
# People choose their passwords themselves.
_SHORTEST_PASSWORD = 5


def in_pairs(pairs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names of variables or headers with the secret that each holds."""
    for name, value in pairs.items():
        if (found := next(_in(value), "")) or (found := _named(name, value)):
            yield name, found


def in_words(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options, or `argument N`, with the secret that each holds."""
    before = ""
    for at, word in enumerate(words):
        option, equals, value = word.partition("=")
        place = option if equals else before or f"argument {at}"
        if (found := next(_in(word), "")) or (found := _named(option, value) if equals else _named(before, word)):
            yield place, found
        before = word if word.startswith("-") and not equals else ""


def in_url(url: str) -> Iterator[tuple[str, str]]:
    """`password` or the name of a part of the query, with the secret that it holds."""
    try:
        parts = urlsplit(url)
        password, query = parts.password, parse_qsl(parts.query, max_num_fields=100)
    except ValueError:
        return
    if password and not _is_placeholder(password):
        yield "password", password
    yield from ((name, found) for name, value in query if (found := next(_in(value), "") or _named(name, value)))


def brief(secret: str) -> str:
    """Enough of a secret for its owner to know it: the last four characters of a long one."""
    return f"…{secret[-4:]}" if len(secret) >= 20 else "***"


def _in(text: str) -> Iterator[str]:
    """Secrets of a known form, wherever they stand in a text."""
    return (found for found in secrets(text) if not _is_placeholder(found))


def _named(name: str, value: str) -> str:
    """The value, where its name says that it is a secret and it looks like one; else empty."""
    name = name.lstrip("-")
    value = _SCHEME.sub("", value[:LOOKED_AT].strip())
    is_password = name.lower().endswith(("password", "passwd"))
    shortest = _SHORTEST_PASSWORD if is_password else _SHORTEST
    if not is_secret_name(name) or _ABOUT.search(name) or len(value) < shortest or " " in value:
        return ""
    if _is_placeholder(value) or _PATH.match(value) or "://" in value or value.lower() in _WELL_KNOWN:
        return ""
    telling = any(char.isdigit() for char in value) and not value.isdigit()
    return value if telling or len(value) >= 16 or is_password else ""


def _is_placeholder(text: str) -> bool:
    chance = len(text) >= _LONG and any(char.isdigit() for char in text)
    words = _SURE_PLACEHOLDER if chance else _PLACEHOLDER
    return bool(_REFERENCE.search(text) or words.search(text) or _ONE_CHARACTER.match(text))
