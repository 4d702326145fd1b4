"""YAML text to nodes with lines, and the mistakes that YAML itself invites.

Never makes objects from YAML: only PyYAML's event and node layers run. Refused here, because two readers could
understand them in two ways or because they make a small file large: tabs, several documents, anchors and aliases,
explicit tags, deep nesting, files above MAX_BYTES, text that is not UTF-8.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import yaml

from mcpguard.errors import ProfileError

MAX_BYTES = 1 << 20
MAX_DEPTH = 8
_Loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_TAG = "tag:yaml.org,2002:"


def error(source: str, line: int, what: str, *, why: str, do: str, code: str) -> ProfileError:
    """A ProfileError at its place; line 0: the file as a whole."""
    place = f"{source}:{line}" if line else source
    return ProfileError(f"{place}: {what}", why=why, do=do, code=f"profile.{code}")


def read_bytes(path: Path, source: str) -> bytes:
    """Content of a profile file; one byte more than MAX_BYTES at most.

    Raises:
        ProfileError: `profile.unreadable`.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as failed:
        why = failed.strerror or "the file cannot be read"
        do = "check the path and its permissions"
        raise error(source, 0, "cannot be read", why=why, do=do, code="unreadable") from None


def decode(raw: bytes, source: str) -> str:
    """Text of a profile.

    Raises:
        ProfileError: `profile.too-large` or `profile.encoding`.
    """
    if len(raw) > MAX_BYTES:
        raise error(
            source,
            0,
            "is larger than 1 MiB",
            why="a profile is written by a person; this is something else",
            do="split it, or give the path of a profile",
            code="too-large",
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        raise error(
            source,
            raw.count(b"\n", 0, bad.start) + 1,
            "is not UTF-8 text",
            why=f"byte 0x{raw[bad.start]:02x} cannot stand here",
            do="save the file as UTF-8",
            code="encoding",
        ) from None


def compose(text: str, source: str) -> yaml.MappingNode:
    """The one mapping that the text holds.

    Raises:
        ProfileError: with the line of the first mistake.
    """
    tab = text.find("\t")
    if tab >= 0:
        raise error(
            source,
            text.count("\n", 0, tab) + 1,
            "a tab",
            why="YAML cannot be indented with tabs, and a tab looks like spaces",
            do='use spaces; write "\\t" in quotes for a tab in a name',
            code="tab",
        )
    try:
        _check_events(text, source)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as bad:
        raise _syntax(bad, text, source) from None
    if not isinstance(root, yaml.MappingNode):
        raise error(
            source,
            line_of(root) if root is not None else 1,
            "is empty" if root is None else "is not a list of keys",
            why="a profile is keys with values, such as name: and files:",
            do="begin with `name: NAME`; `mcpguard profile new NAME` writes a first one",
            code="not-a-mapping",
        )
    return root


def _check_events(text: str, source: str) -> None:
    """Bound the document before nodes are made: what refers to other places or nests without end never gets there."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                _refuse(source, line, "a second document (---)", "one file holds one profile", "remove it", "documents")
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                _refuse(source, line, "nested too deep", f"{MAX_DEPTH} levels are enough", "flatten it", "too-deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        _check_node_event(event, source, line)


def _check_node_event(event: yaml.Event, source: str, line: int) -> None:
    if not isinstance(event, yaml.NodeEvent):
        return
    if event.anchor is not None:
        sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
        what = f"{sign}{event.anchor} is an anchor or alias"
        why = "a rule must be readable where it stands; a value that begins with * or & needs quotes"
        _refuse(source, line, what, why, f'write the value itself, or "{sign}{event.anchor}" in quotes', "alias")
    if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
        shown = event.tag.replace(_TAG, "!!")
        why = "tags turn text into something else; a value that begins with ! needs quotes"
        _refuse(source, line, f"{shown} is a tag", why, "remove the tag, or put the value in quotes", "tag")


def _refuse(source: str, line: int, what: str, why: str, do: str, code: str) -> None:
    raise error(source, line, what, why=why, do=do, code=code)


def _syntax(bad: yaml.YAMLError, text: str, source: str) -> ProfileError:
    """The parser's own words, at its place."""
    code = "syntax"
    do = 'check the indentation, and put patterns with special characters in quotes: "{workspace}/**"'
    if isinstance(bad, yaml.MarkedYAMLError):
        line = _marked(bad, text)
        why = " ".join(part for part in (bad.problem, bad.context) if part)
        if bad.context and bad.context.endswith(("an alias", "an anchor")):
            code, do = "alias", 'a value that begins with * or & needs quotes: "**/.env"'
        if bad.problem and "nesting" in bad.problem:  # newer scanners stop by themselves, before they tell of any event
            code, do = "too-deep", "flatten it"
    elif isinstance(bad, yaml.reader.ReaderError):
        line = text.count("\n", 0, bad.position) + 1
        why = f"the character #x{bad.character:04x} is not allowed" if isinstance(bad.character, int) else bad.reason
    else:
        line, why = 0, str(bad).splitlines()[0]
    return error(source, line, "is not valid YAML", why=why, do=do, code=code)


def _marked(bad: yaml.MarkedYAMLError, text: str) -> int:
    """The line of the problem; where that is only the end of the file, the line where it began."""
    last = text.rstrip().count("\n") + 1
    marks = [mark.line + 1 for mark in (bad.problem_mark, bad.context_mark) if mark]
    return next((line for line in marks if line <= last), min(marks, default=0))


def line_of(node: yaml.Node) -> int:
    """1-based line on which a node begins."""
    return int(node.start_mark.line) + 1


def plain_kind(node: yaml.ScalarNode) -> str:
    """What YAML takes a scalar for: `str`, `bool`, `null`, `int`, `float`, `timestamp`, `merge`, `value`."""
    return str(node.tag).removeprefix(_TAG)


def shape(node: yaml.Node) -> str:
    """A node in a person's words."""
    if isinstance(node, yaml.MappingNode):
        return "keys with values"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    names = {"bool": "true/false", "null": "nothing", "int": "a number", "float": "a number", "timestamp": "a date"}
    return names.get(plain_kind(node), "one text") if isinstance(node, yaml.ScalarNode) else "something else"


def braces(node: yaml.Node) -> str:
    """`{workspace}` written without quotes, which YAML reads as a key without a value; else empty."""
    if not isinstance(node, yaml.MappingNode) or not node.flow_style or len(node.value) != 1:
        return ""
    key, value = node.value[0]
    empty = isinstance(value, yaml.ScalarNode) and plain_kind(value) == "null" and not value.value
    return f"{{{key.value}}}" if empty and isinstance(key, yaml.ScalarNode) else ""


def near(word: str, known: Iterable[str]) -> str:
    """`did you mean "X"?` when one is near enough, else empty."""
    found = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f'did you mean "{found[0]}"?' if found else ""
