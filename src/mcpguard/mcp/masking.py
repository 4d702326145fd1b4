"""Values of JSON for a record: bounded, and without what looks like a secret.

Whoever reads the record must see what a call did, not what would let them do it too. Masking finds what has a known form or
a telling name; it is no promise that nothing secret is left.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

MASK = "***"
# Bytes of JSON text, characters of one string before any is shortened further, and how deep and wide values are followed.
LIMIT = 4_096
_STRINGS = (1_024, 256, 64, 16)
_MOST = 50
_DEEPEST = 12
# Who writes the text is not to be trusted: no pattern may look at it more often than a few times, whatever it is.
# A secret that begins behind what is kept is cut off; one that begins before must be seen whole.
LOOKED_AT = 4_096
# Of all strings of one value together.
_LOOKED_AT_IN_ALL = 16 * LOOKED_AT
# Member of a resource that holds a file that is no text, as base64.
_BYTES = "blob"
_OF_URLS = str.maketrans("-_", "+/")
# Nothing shorter is a credential by its form.
_SHORTEST = 8

_NAMES = re.compile(
    r"pass(?:word|wd|phrase|code)?$|secret|token(?!s$)|api[-_]?key|access[-_]?key|private[-_]?key|authorization|credential|"
    r"cookie|session[-_]?key|bearer|client[-_]?secret|connection[-_]?string",
    re.IGNORECASE,
)
# Not secret, although their names hold such a word.
_HARMLESS = re.compile(r"(?:progress|continuation|page|next)[-_]?token", re.IGNORECASE)
_FORMS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|sk-|sk_live_|rk_live_|hf_|npm_|pypi-|AKIA|ASIA|AIza|ya29\.|SG\.|dop_v1_)"
    r"[A-Za-z0-9_.\-]{10,}"
    r"|(?<![A-Za-z0-9_\-])eyJ[A-Za-z0-9_\-]{8,}+\.eyJ[A-Za-z0-9_\-]{8,}+\.[A-Za-z0-9_\-]*+",
    re.DOTALL,
)
# `NAME=value`, `name: value` and `"name":"value"` in running text; the value of an HTTP credential behind its scheme.
_PAIRS = re.compile(
    r"(?P<name>(?<![A-Za-z0-9_\-])[A-Za-z0-9_\-]*?(?:password|passwd|passphrase|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credential)"
    r"[A-Za-z0-9_\-]{0,64}+[\"']?\s{0,8}+[=:]\s{0,8}[\"']?)(?P<value>[^\s\"'&,;]{4,})",
    re.IGNORECASE,
)
_SCHEMES = re.compile(r"\b(?P<scheme>Bearer|Basic)\s+(?P<value>[A-Za-z0-9+/=_.\-~]{8,})", re.IGNORECASE)
_IN_URLS = re.compile(r"(?P<begin>\b[a-z][a-z0-9+.\-]{0,30}://[^/\s:@]{0,128}:)(?P<value>[^/\s@]+)(?=@)", re.IGNORECASE)


# For a library that takes no longer than a text is long, if it need not say where in a match its parts are.
_CREDENTIALS = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|sk-|sk_live_|rk_live_|hf_|npm_|pypi-|AKIA|ASIA|AIza|ya29\.|SG\.|dop_v1_)"
    r"[A-Za-z0-9_.\-]{16}"
    r"|\beyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8}"
    r"|://[^/\s:@]*:[^/\s@$<{*]{4,}@"
)
_TOLD = (
    r"(?i:password|passwd|passphrase|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credential)"
    r"[A-Za-z0-9_\-]*[\"'\\]*\s*[=:]\s*[\"'\\]*[^\s\"'&,;]{16,}"
)
_RANDOM = 16
_PLACEHOLDER = re.compile(r"[$<>{}()\[\]*…]|\.\.\.|example|placeholder|changeme", re.IGNORECASE)


def masked_text(text: str) -> str:
    """The text with MASK in place of what looks like a secret."""
    text = _FORMS.sub(MASK, text)
    text = _SCHEMES.sub(lambda found: f"{found['scheme']} {MASK}", text)
    # To look for a character takes a hundredth of the time.
    if "=" in text or ":" in text:
        text = _PAIRS.sub(lambda found: found["name"] + MASK, text)
    return _IN_URLS.sub(lambda found: found["begin"] + MASK, text) if "://" in text else text


def secrets(text: str) -> Iterator[str]:
    """What `masked_text` takes away; what is longer than LOOKED_AT is not looked at to its end."""
    for pattern in (_FORMS, _SCHEMES, _PAIRS, _IN_URLS):
        for found in pattern.finditer(text[:LOOKED_AT]):
            yield found["value"] if "value" in pattern.groupindex else found[0]


def holds_credential(value: object) -> bool:
    """Whether JSON holds what is a credential by its form: keys of known makers, private keys, passwords in URLs, and long
    random values behind a telling name. Words of code such as `token: str` are none. Looks at all of it,
    in linear time; into files (`blob`), too."""
    waiting = [value]
    texts: list[str] = []
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            if len(one) >= _SHORTEST:
                texts.append(one)
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            for name, item in one.items():
                # The name before the value: that may be long.
                if isinstance(item, str) and len(item) >= _RANDOM and is_secret_name(name) and _is_random(item):
                    return True
                if name == _BYTES and isinstance(item, str):
                    texts.append(_decoded(item))
                waiting += (name, item)
    # In one go, for there may be hundreds of thousands; no credential goes on behind both of these.
    return _is_credential(",\n".join(texts))


def _decoded(text: str) -> str:
    """What base64 stands for, as far as it is text; nothing where it is none."""
    try:
        return base64.b64decode(text.translate(_OF_URLS) + "==").decode("utf-8", "replace")
    except ValueError:
        return ""


def _is_credential(text: str) -> bool:
    forms, told = _credentials()
    # Halves of characters are none to the library.
    data = text.encode("utf-8", "replace")
    if forms.search(data):
        return True
    found = (one[0].decode("utf-8", "replace") for one in told.finditer(data))
    return any(_is_random(re.split("[=:]", one, maxsplit=1)[1].strip("\"'\\ \t\r\n")) for one in found)


@functools.cache
def _credentials() -> tuple[Any, Any]:
    """What servers answer may have any length, and may not make an expression run for ever."""
    import re2

    return re2.compile(_CREDENTIALS), re2.compile(_TOLD)


def _is_random(text: str) -> bool:
    """Long, of letters and digits, and nothing that stands for a value."""
    kinds = (str.isdigit, str.isalpha)
    return len(text) >= _RANDOM and not _PLACEHOLDER.search(text) and all(any(map(kind, text)) for kind in kinds)


def is_secret_name(name: str) -> bool:
    """Whether a member of that name holds a secret, by its name alone."""
    return bool(_NAMES.search(name)) and not _HARMLESS.search(name)


def bounded(value: object, limit: int = LIMIT) -> tuple[str, bool]:
    """The value as JSON text of at most `limit` bytes, masked; and whether something was left out.

    Long strings keep their beginning, long lists and objects their first members, so that what is left is JSON.
    """
    masked = _Masked()
    for longest in _STRINGS:
        shortened = _Shortening(longest, masked)
        text = json.dumps(shortened.value(value), ensure_ascii=False, separators=(",", ":"))
        # Halves of characters stay what they were in the message: escapes.
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        if len(text.encode()) <= limit:
            return text, shortened.cut
    return json.dumps("…"), True


def beginning(value: Any, depth: int = 0) -> Any:
    """As much of a value as `bounded` looks at, so that the rest need not be kept for it."""
    if isinstance(value, str):
        return value[: LOOKED_AT + 1]
    if depth > _DEEPEST:
        return value
    if isinstance(value, list):
        return [beginning(one, depth + 1) for one in value[: _MOST + 1]]
    if isinstance(value, dict):
        items = list(value.items())[: _MOST + 1]
        # Names are kept whole, or two might become one.
        return {name: beginning(one, depth + 1) for name, one in items}
    return value


class _Masked:
    """Texts without their secrets. Each is looked at once, and together they are so many that none waits for it long."""

    def __init__(self) -> None:
        self._left = _LOOKED_AT_IN_ALL
        self._known: dict[str, str] = {}

    def text(self, text: str) -> str | None:
        """None: there were too many before."""
        if (known := self._known.get(text)) is not None:
            return known
        # Short ones have their price, too.
        self._left -= len(text) + _STRINGS[-1]
        if self._left < 0:
            return None
        return self._known.setdefault(text, masked_text(text))


class _Shortening:
    """One pass over a value.

    Attributes:
        cut: something was left out.
    """

    def __init__(self, longest: int, masked: _Masked) -> None:
        self.cut = False
        self._longest = longest
        self._masked = masked

    def value(self, value: object, depth: int = 0) -> Any:
        if isinstance(value, str):
            return self._string(value)
        if isinstance(value, dict | list) and depth == _DEEPEST:
            self.cut = True
            return "…"
        if isinstance(value, dict):
            return {
                self._string(name): MASK if item and is_secret_name(name[:LOOKED_AT]) else self.value(item, depth + 1)
                for name, item in ((str(name), item) for name, item in self._first(list(value.items())))
            }
        if isinstance(value, list):
            return [self.value(item, depth + 1) for item in self._first(value)]
        if isinstance(value, int) and value.bit_length() > 64:
            return self._string(hex(value))
        # What JSON has no word for, and Python's reader takes.
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    def _string(self, text: str) -> str:
        shown = self._masked.text(text[:LOOKED_AT])
        if shown is None:
            self.cut = True
            return "…"
        if len(text) <= LOOKED_AT and len(shown) <= self._longest:
            return shown
        self.cut = True
        return shown[: self._longest] + "…"

    def _first(self, items: list[Any]) -> list[Any]:
        if len(items) > _MOST:
            self.cut = True
        return items[:_MOST]
