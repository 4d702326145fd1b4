"""What the tools of known servers do: data that was written by us, read from `classes/*.json`.

A server is known by its package, never by what it calls itself. A tool that no file names is unknown: no rule that allows
a class covers it, and every rule that denies one does.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FOLDER = Path(__file__).with_name("classes")
# Of an argument that decides a class, in characters and in members of a list: messages wait while it is looked at, and no
# command that a server takes is that long.
_LONGEST = 1 << 16
_MOST = 100


def of_package(package: str) -> Mapping[str, Any]:
    """The entry of a package: tool name or glob to its classes; empty for one that nobody described.

    Args:
        package: name without version, such as `@modelcontextprotocol/server-filesystem`.
    """
    return next((one["tools"] for one in _every() if package in one["packages"]), {})


def changes(tools: Mapping[str, Any]) -> bool:
    """Whether one of the tools is known to change something.

    Args:
        tools: as `of_package` gives them.
    """
    return "write" in _said(tools)


def destroys(tools: Mapping[str, Any]) -> bool:
    """Whether what one of the tools changes is known not to be had back; as `changes`."""
    return "destructive" in _said(tools)


def _said(tools: Mapping[str, Any]) -> frozenset[str]:
    lists = (
        one if isinstance(one, list) else [word for _, words in one["by"] for word in words] for one in tools.values()
    )
    return frozenset(word for words in lists for word in words)


def kept_to(package: str) -> str | None:
    """The built-in profile that a server is kept to where no rule of `mcp.confine` names it, as all of its tools work with it;
    None: it is not known to need less than its agent has."""
    return next((one["kept_to"] for one in _every() if package in one["packages"] and "kept_to" in one), None)


def classes_of(tools: Mapping[str, Any], tool: str, arguments: Mapping[str, Any]) -> frozenset[str]:
    """Classes of a call, empty for an unknown tool.

    Args:
        tools: as `of_package` gives them. A value is a list of classes, or `{"argument": NAME, "by": [[regular expression,
            classes], ...]}`: the first expression that matches the whole argument decides. `<NAME>` in an expression stands for
            what `"parts"` has under that name. Of an argument that is a list each one counts: it only reads where every one of
            them does. What is longer than `_LONGEST`, or has more than `_MOST` members, is unknown.
    """
    said = tools.get(tool)
    if said is None:
        globs = sorted((name for name in tools if fnmatch.fnmatchcase(tool, name)), key=len)
        said = tools[globs[-1]] if globs else []
    if isinstance(said, list):
        return frozenset(said)
    value = arguments.get(said["argument"])
    several = value if isinstance(value, list) else [value]
    if len(several) > _MOST or sum(len(one) for one in several if isinstance(one, str)) > _LONGEST:
        return frozenset()
    found = [_of_argument(said, one) for one in several]
    if not all(found):
        return frozenset()
    together = frozenset().union(*found)
    return together if all("read" in one for one in found) else together - {"read"}


def _of_argument(said: Mapping[str, Any], value: object) -> frozenset[str]:
    if not isinstance(value, str):
        return frozenset()
    return next(
        (frozenset(found) for text, found in said["by"] if re.fullmatch(_whole(said, text), value)), frozenset()
    )


def _whole(said: Mapping[str, Any], text: str) -> str:
    for name, part in said.get("parts", {}).items():
        text = text.replace(f"<{name}>", part)
    return text


def _every() -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted(_FOLDER.glob("*.json"))]
