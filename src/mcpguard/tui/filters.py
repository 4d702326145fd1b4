"""The filter line of `watch`: words such as `verdict:deny path:~/.ssh/** git` to a filter of the event store. Pure."""

from __future__ import annotations

import re
import shlex
from typing import Any

from mcpguard.errors import UsageError
from mcpguard.events.query import Filter, path_filter
from mcpguard.model.access import Verdict
from mcpguard.model.event import Kind
from mcpguard.policy.patterns import quote

KEYS = ("verdict", "kind", "process", "path", "host", "text")
HELP = "verdict:deny|allow|audit  kind:file|exec|net|...  process:GLOB  path:GLOB  host:GLOB  any other word: text"


def parse(line: str, home: str) -> Filter:
    """Read a filter line; the empty one matches everything.

    Raises:
        UsageError: a key, verdict, kind or pattern that is none, with what to write.
    """
    try:
        words = shlex.split(line)
    except ValueError:
        raise _wrong(line, "a quotation mark is not closed") from None
    fields: dict[str, Any] = {}
    text: list[str] = []
    for word in words:
        key, colon, value = word.partition(":")
        if not colon or key not in KEYS:
            text.append(word)
        elif not value:
            raise _wrong(word, f"{key}: needs a value")
        elif key == "text":
            text.append(value)
        else:
            fields[key] = _value(key, value, home)
    if text:
        fields["text"] = " ".join(text)
    return Filter(**fields)


def exactly(text: str = "", **words: str) -> str:
    """A filter line for these values as they are: nothing in them is a pattern."""
    plain = {"path": quote, "host": _plain}
    parts = [f"{key}:{shlex.quote(plain.get(key, str)(value))}" for key, value in words.items() if value]
    # Tools have the names that their servers choose, also such as `verdict:allow`.
    key = "text:" if text.partition(":")[0] in KEYS else ""
    return " ".join([*parts, *([key + shlex.quote(text)] if text else [])])


def _plain(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _value(key: str, value: str, home: str) -> object:
    if key == "path":
        return path_filter(value, home)
    if key in ("verdict", "kind"):
        known: type[Verdict] | type[Kind] = Verdict if key == "verdict" else Kind
        try:
            return known(value.lower())
        except ValueError:
            raise _wrong(value, f"a {key} is one of " + ", ".join(one.value for one in known)) from None
    return value


def _wrong(what: str, why: str) -> UsageError:
    return UsageError(f'"{what}" is no filter', why=why, do=f"write {HELP}", code="watch.filter")
