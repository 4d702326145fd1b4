"""Git's settings, read exactly as git reads them: whoever was guarded may have written them to be read otherwise.

Only a line feed ends a line for git, and only blanks, tabs, carriage returns and line feeds are space. Git stops at what it
cannot read; here only that line is passed over, so that nothing behind it is hidden. Reads no file; what settings include is
not followed.
"""

from __future__ import annotations

import re

# Comments, and the space before and between what is told; source: git-config(1), "Syntax", and git's config.c.
_BETWEEN = re.compile(r"(?:[ \t\r\n]+|[#;][^\n]*)*")
_HEAD = re.compile(r'\[([A-Za-z0-9.-]*)(?:[ \t\r]+"((?:[^"\\\n]|\\[^\n])*)")?\]')
_KEY = re.compile(r"([A-Za-z][A-Za-z0-9-]*)[ \t]*(=|(?=\n)|\Z)")
# Of a value: an escape, or anything else alone.
_PIECE = re.compile(r"\\.|.", re.DOTALL)
_ESCAPED = {"\\\n": "", "\\": "", "\\t": "\t", "\\b": "\b", "\\n": "\n", "\\\\": "\\", '\\"': '"'}
_FALSE = re.compile(r"(?:false|no|off|[+-]?0+[kmg]?)?", re.IGNORECASE)
_ESCAPE_IN_NAME = re.compile(r"\\(.)", re.DOTALL)


def settings(text: str) -> list[tuple[str, str]]:
    """Keys as git prints them, such as `core.hookspath` or `filter.Name.clean`, with their values; `true` for a key alone."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    section, found, at = "", [], 0
    while (at := _end(_BETWEEN, text, at)) < len(text):
        if head := _HEAD.match(text, at):
            base, name = head.groups()
            section = base.lower() if name is None else base.lower() + "." + _ESCAPE_IN_NAME.sub(r"\1", name)
            at = head.end()
            continue
        key = _KEY.match(text, at)
        value, after = _value(text, key.end()) if key and key[2] else ("true", key.end() if key else at)
        if key is None or value is None:
            after = text.find("\n", at)
            at = after if after >= 0 else len(text)
            continue
        # Both are strings of C for git: they end at a NUL.
        full = f"{section}.{key[1].lower()}" if section else key[1].lower()
        found.append((full.partition("\0")[0], value.partition("\0")[0]))
        at = after
    return found


def value_of(key: str, text: str) -> str | None:
    """The one that counts, the last; None where there is none. The key is as `settings` has it."""
    return next((value for name, value in reversed(settings(text)) if name == key), None)


def is_true(value: str | None) -> bool:
    """Whether git takes it for true; where it would stop at the value, this is true."""
    return value is not None and not _FALSE.fullmatch(value)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _value(text: str, at: int) -> tuple[str | None, int]:
    """A value without quotes, escapes and the comment behind it, and where it ends; None where git cannot read it."""
    pieces: list[str] = []
    kept, quoted = 0, False
    for match in _PIECE.finditer(text, at):
        piece = match[0]
        at = match.start()
        if piece == "\n":
            break
        if piece == '"':
            quoted = not quoted
        elif piece in "#;" and not quoted:
            end = text.find("\n", at)
            at = end if end >= 0 else len(text)
            break
        elif piece in " \t\r" and not quoted:
            if pieces:
                pieces.append(piece)
            continue
        elif piece[0] == "\\":
            if piece not in _ESCAPED:
                return None, at
            pieces += _ESCAPED[piece]
        else:
            pieces.append(piece)
        kept = len(pieces)
    else:
        at = len(text)
    return (None if quoted else "".join(pieces[:kept])), at
