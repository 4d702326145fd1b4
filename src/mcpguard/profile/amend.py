"""Rules added to the text of a profile; everything else stays as it was written, comments and order included."""

from __future__ import annotations

import io
from collections.abc import Iterable
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
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq
    from ruamel.yaml.error import YAMLError

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    try:
        root = yaml.load(text)
        if root is None:
            root = CommentedMap()
        for addition in additions:
            section = root.setdefault(addition.section, CommentedMap())
            if section is None:
                section = root[addition.section] = CommentedMap()
            entries = section.setdefault(addition.key, CommentedSeq())
            if entries is None:
                entries = section[addition.key] = CommentedSeq()
            _append(entries, addition)
        written = io.StringIO()
        yaml.dump(root, written)
    except (YAMLError, AttributeError, TypeError) as broken:
        raise ProfileError(
            "no rule can be added to this profile",
            why=str(broken).splitlines()[0] if str(broken) else "it is not written as sections of lists",
            do="look at it with `mcpguard profile check`",
            code="profile.not-amended",
        ) from None
    return written.getvalue()


def _append(entries: Any, addition: Addition) -> None:
    if any(entry == addition.value for entry in entries):
        return
    if addition.comment:
        entries.fa.set_block_style()
    entries.append(_scalar(addition.value))
    if addition.comment:
        entries.yaml_set_comment_before_after_key(len(entries) - 1, before=addition.comment, indent=4)


def _scalar(value: str) -> Any:
    """In quotes where another reader could take it for something else."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    plain = value[:1].isalpha() or value[:1] in ("/", "~")
    odd = any(character in value for character in "*{}[]#,&!|>%@`\"'\\ ") or ": " in value or value.endswith(":")
    # `localhost:8080` is a word to every reader, `8080:1` is not.
    return value if plain and not odd and len(value) > 1 else DoubleQuotedScalarString(value)
