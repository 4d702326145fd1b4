"""Rules added to the text of a profile; everything else stays as it was written, byte for byte.

A parser says where the lists stand, and the new lines are put between the others. What comes out is read again and must hold
what was there and what was added, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mcpguard.errors import ProfileError


class Addition(NamedTuple):
    """One more entry of a list: `section` and `key` as in `files.write`; the comment stands above it."""

    section: str
    key: str
    value: str
    comment: str = ""


def amend(text: str, additions: Iterable[Addition]) -> str:
    """The profile's text with the entries added that it does not hold already.

    Raises:
        ProfileError: it is no mapping of sections, or cannot be read at all.
    """
    import yaml

    places: dict[tuple[str, str], list[Addition]] = {}
    for addition in additions:
        places.setdefault((addition.section, addition.key), []).append(addition)
    try:
        for (section, key), wanted in places.items():
            before = _content(text)
            entries = _entries(before, section, key)
            missing: dict[str, Addition] = {}
            for one in wanted:
                if one.value not in entries:
                    missing.setdefault(one.value, one)
            if not missing:
                continue
            text = _placed(text, section, key, [*missing.values()])
            entries += missing
            if _content(text) != before:
                raise TypeError("its text cannot be added to without changing what it says")
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as broken:
        raise ProfileError(
            "no rule can be added to this profile",
            why=str(broken).splitlines()[0] if str(broken) else "it is not written as sections of lists",
            do="look at it with `mcpguard profile check`",
            code="profile.not-amended",
        ) from None
    return text


def _content(text: str) -> Any:
    import yaml

    found = yaml.safe_load(text)
    return {} if found is None else found


def _entries(content: Any, section: str, key: str) -> list[Any]:
    """The list itself, made where there is none; what is no list fails as what it is."""
    for name, empty in ((section, {}), (key, [])):
        if content.get(name) is None:
            content[name] = empty
        content = content[name]
    if not isinstance(content, list):
        raise TypeError(f"{section}.{key} is no list")
    return content


class _Text:
    """Lines, and what is put between them. The ends of lines are as they were."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.end = "\r\n" if "\r\n" in text else "\n"

    def below(self, line: int, lines: Sequence[str]) -> str:
        """Put lines below one, which is counted from 0; -1: above all."""
        kept = self.text.splitlines(keepends=True) if self.text else []
        # A parser counts by more ends of lines than a person sees; a profile that has those is not what it seems.
        if any(one.rstrip("\r\n").splitlines() not in ([], [one.rstrip("\r\n")]) for one in kept):
            raise TypeError("it has ends of lines that are not seen")
        if line >= 0 and not kept[line].endswith("\n"):
            kept[line] += self.end
        kept[line + 1 : line + 1] = [one + self.end for one in lines]
        return "".join(kept)

    def within(self, index: int, words: str) -> str:
        return self.text[:index] + words + self.text[index:]


def _placed(text: str, section: str, key: str, wanted: Sequence[Addition]) -> str:
    import yaml

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = _Text(text)
    if root is None or _is_null(root):
        return lines.below(len(text.splitlines()) - 1, [f"{section}:", f"  {key}:", *_listed(wanted, 4)])
    below, indent = _found(root, section)
    short = f"{key}: [{_inline(wanted)}]"
    if below is None:
        return _added(lines, root, indent, [f"{section}:", f"  {key}:", *_listed(wanted, 4)], f"{section}: {{{short}}}")
    if _is_null(below):
        return lines.below(_line_of(below), [f"{' ' * (indent + 2)}{key}:", *_listed(wanted, indent + 4)])
    entries, indent = _found(below, key)
    if entries is None:
        return _added(lines, below, indent, [f"{key}:", *_listed(wanted, 2)], short)
    if _is_null(entries):
        return lines.below(_line_of(entries), _listed(wanted, indent + 2))
    if not isinstance(entries, yaml.SequenceNode):
        raise TypeError(f"{section}.{key} is no list")
    if entries.flow_style:
        return _within(lines, entries, wanted)
    return lines.below(_last_line(entries), _listed(wanted, entries.start_mark.column))


def _found(mapping: Any, name: str) -> tuple[Any, int]:
    """The node of a key, None where there is none, and the column where keys stand."""
    import yaml

    if not isinstance(mapping, yaml.MappingNode):
        raise TypeError("it is not written as sections of lists")
    column = mapping.start_mark.column
    for key, value in mapping.value:
        if key.value == name:
            if value.start_mark.index < key.end_mark.index:
                raise TypeError(f"{name} repeats what stands elsewhere (an alias)")
            return value, key.start_mark.column
    return None, column


def _added(lines: _Text, mapping: Any, indent: int, long: Sequence[str], short: str) -> str:
    """A mapping with one key more, below the others.

    Args:
        long: the key and what it holds, on lines of their own.
        short: the same between brackets, where no comment has room.
    """
    if mapping.flow_style:
        return lines.within(*_after_last(mapping, short))
    return lines.below(_last_line(mapping), [" " * indent + one for one in long])


def _within(lines: _Text, entries: Any, wanted: Sequence[Addition]) -> str:
    """More entries between brackets: on lines of their own where the others have such, or where they have comments."""
    last = entries.value[-1] if entries.value else None
    closing = entries.end_mark.index - 1
    if last is None or not (any(one.comment for one in wanted) or last.end_mark.line < entries.end_mark.line):
        return lines.within(*_after_last(entries, _inline(wanted)))
    own_line = lines.text[: last.start_mark.index].rpartition("\n")[2].isspace()
    indent = " " * (last.start_mark.column if own_line else entries.start_mark.column + 1)
    more = [f"{indent}{one}" for one in _spread(wanted, ",")]
    end = last.end_mark.index
    rest = lines.text[end:closing]
    if last.end_mark.line == entries.end_mark.line:
        comma = "" if rest.strip() == "," else ","
        put = lines.end + lines.end.join([*more[:-1], more[-1].removesuffix(",")])
        after = len(rest.rstrip()) if not comma else 0
        return lines.within(end + after, comma + put)
    marked = _Text(lines.text if _has_comma(rest) else lines.within(end, ","))
    return marked.below(last.end_mark.line, more)


def _has_comma(rest: str) -> bool:
    """Whether one stands behind the last entry, before the closing bracket; comments are not looked into."""
    return any(line.split("#")[0].strip().startswith(",") for line in rest.splitlines())


def _after_last(node: Any, words: str) -> tuple[int, str]:
    """Where words go between brackets, and with what before them."""
    import yaml

    if not node.value:
        return node.start_mark.index + 1, words
    last = node.value[-1]
    return (last[1] if isinstance(node, yaml.MappingNode) else last).end_mark.index, f", {words}"


def _inline(wanted: Sequence[Addition]) -> str:
    return ", ".join(_scalar(one.value) for one in wanted)


def _listed(wanted: Sequence[Addition], indent: int) -> list[str]:
    return [" " * indent + (one if one.startswith("#") else f"- {one}") for one in _spread(wanted, "")]


def _spread(wanted: Sequence[Addition], end: str) -> list[str]:
    """A line each, below its comment; no value begins with a `#` that is not in quotes."""
    return [
        line
        for one in wanted
        for line in (*(f"# {word}" for word in one.comment.splitlines()), _scalar(one.value) + end)
    ]


def _is_null(node: Any) -> bool:
    return node.tag == "tag:yaml.org,2002:null" and not node.value


def _line_of(node: Any) -> int:
    return int(node.start_mark.line)


def _last_line(node: Any) -> int:
    """The last line of its last word. Where a mapping ends a parser only knows when the next one begins, behind comments."""
    import yaml

    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(node, yaml.MappingNode) else last)
    end = node.end_mark
    return int(end.line - 1 if end.column == 0 and end.line > node.start_mark.line else end.line)


def _scalar(value: str) -> str:
    """In quotes where another reader could take it for something else."""
    begins = value[:1].isalpha() or value[:1] in ("/", "~")
    # `localhost:8080` is a word to every reader, `8080:1` is not; and `true` is none.
    if begins and re.fullmatch(r"[\w./~:+=-]{2,}", value) and value[-1] != ":" and _content(f"[{value}]") == [value]:
        return value
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"
