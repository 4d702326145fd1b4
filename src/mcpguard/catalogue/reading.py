"""Files that anybody may have written to plain values: bounded, never waiting, nothing in them is executed.

JSON is read with comments and trailing commas: half of the clients allow them, and what a client refuses does no harm.
YAML with aliases or tags is refused: the one makes a small file large, the other makes objects.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcpguard.model.values import dataclass

MAX_DEPTH = 64
MAX_CODE = 2 << 30
MAX_BYTES = {"json": 2 << 20, "toml": 256 << 10, "yaml": 1 << 20}
# What does not end is taken to the end, so that no character is looked at for every one before it.
_STRING = r'"(?:[^"\\\n]|\\.)*+"?'
_COMMENT = re.compile(rf"({_STRING})|//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_TRAILING = re.compile(rf"({_STRING})|,(?=\s*[}}\]])")
# The parser's time and memory grow with the square of the parts of one dotted key.
_DOTTED = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){33}""")


class UnreadableError(Exception):
    """A file is there and cannot be understood; the text is the reason in a person's words."""


@dataclass(frozen=True, slots=True)
class Document:
    """One file.

    Attributes:
        value: what it holds; an empty mapping where it is empty.
        mode: permission bits.
        owner: user id.
        size: bytes.
        repeated: keys that stand twice in one object, of which readers take the first or the last.
    """

    value: Any
    mode: int
    owner: int
    size: int
    repeated: tuple[str, ...] = ()


def read(path: Path, syntax: str, limit: int) -> Document:
    """A configuration file of `limit` bytes at most as plain values.

    Raises:
        FileNotFoundError: there is none.
        UnreadableError: it is no regular file, too large, closed to this user, or not in this syntax.
    """
    raw, status = content(path, limit)
    value, repeated = parse(raw, syntax)
    return Document(value, stat.S_IMODE(status.st_mode), status.st_uid, len(raw), repeated)


def content(path: Path, limit: int, most: int = -1) -> tuple[bytes, os.stat_result]:
    """Bytes of a regular file of at most `limit`, or only its first `most`. Raises as `read` does."""
    with opened(path, limit) as (file, status):
        try:
            raw = file.read(most if most >= 0 else limit + 1) or b""  # None where one would have to wait
        except OSError as failed:
            raise UnreadableError(failed.strerror or "it cannot be read") from None
    if len(raw) > limit:
        raise UnreadableError(f"it is larger than {limit >> 10} KiB")
    return raw, status


def is_file(path: Path) -> bool:
    """Whether there is a regular file that can be looked at, whatever its name holds."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder that can be looked at, whatever its name holds."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


@contextmanager
def opened(path: Path, limit: int) -> Iterator[tuple[io.BufferedReader, os.stat_result]]:
    """A regular file of at most `limit` bytes. Raises as `read` does."""
    try:
        # A pipe would have us wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except (OSError, ValueError) as failed:
        raise UnreadableError(getattr(failed, "strerror", None) or "the path is not valid") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("it is not a regular file")
        if status.st_size > limit:
            raise UnreadableError(f"it is larger than {limit >> 10} KiB")
        with open(descriptor, "rb", closefd=False) as file:
            yield file, status
    finally:
        os.close(descriptor)


def parse(raw: bytes, syntax: str) -> tuple[Any, tuple[str, ...]]:
    """Plain values, and repeated keys (JSON; the other syntaxes refuse them).

    Raises:
        UnreadableError: it is not in this syntax, or nested too deep.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        raise UnreadableError(f"it is not UTF-8 text: byte 0x{raw[bad.start]:02x} at {bad.start}") from None
    if not text.strip():
        return {}, ()
    try:
        value, repeated = _PARSERS[syntax](text)
        _check_depth(value)
    except RecursionError:
        raise UnreadableError("it is nested too deep") from None
    except ValueError as bad:
        raise UnreadableError(str(bad).splitlines()[0][:200]) from None
    return value, repeated


def _json(text: str) -> tuple[Any, tuple[str, ...]]:
    repeated: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            names = [name for name, _ in found]
            repeated.extend({name for name in names if names.count(name) > 1} if len(names) < 1000 else ("many",))
        return made

    try:
        return json.loads(text, object_pairs_hook=pairs), tuple(repeated)
    except json.JSONDecodeError:
        repeated.clear()
        return json.loads(_plain(text), object_pairs_hook=pairs), tuple(repeated)


def _plain(text: str) -> str:
    """JSON without comments and trailing commas, every line where it was."""
    without = _COMMENT.sub(lambda found: found[1] or "\n" * found[0].count("\n") or " ", text)
    return _TRAILING.sub(lambda found: found[1] or " ", without)


def _toml(text: str) -> tuple[Any, tuple[str, ...]]:
    import tomllib

    if _DOTTED.search(text):
        raise UnreadableError("it has a key of too many parts")
    return tomllib.loads(text), ()


def _yaml(text: str) -> tuple[Any, tuple[str, ...]]:
    import yaml

    from mcpguard.errors import ProfileError
    from mcpguard.profile import nodes

    try:
        root = nodes.compose(text, "")
    except ProfileError as bad:
        raise UnreadableError(f"line {bad.what.lstrip(':')}") from None
    return yaml.SafeLoader("").construct_document(root), ()


_PARSERS = {"json": _json, "toml": _toml, "yaml": _yaml}


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise UnreadableError("it is nested too deep")
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(below, depth + 1)
