"""Whether an argument of a call is what a condition asks for.

The third answer is the point: an argument that another reader could understand in another way satisfies no rule that
allows, and every rule that denies.
"""

from __future__ import annotations

import enum
import fnmatch
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from mcpguard.model.mcp import Condition, Test

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
# Of the values of one argument together that an expression, a pattern or a host is held against, in characters, and how many
# values any test looks at: messages wait for it.
_LONGEST_TEXTS = 1 << 16
_MOST_VALUES = 20_000
# Of all paths of one argument together, in characters: each of their parts is looked at on the disk, and messages wait for it.
_LONGEST_PATHS = 1 << 17
# The kernel takes no longer one; what a server makes of it is anybody's guess.
_LONGEST_PATH = 4096
_ODD_IN_PATH = re.compile(r"[\0%$]")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_SCHEMES = frozenset(("http", "https", "ws", "wss", "ssh", "git"))
_ODD_IN_URL = re.compile(r"[^\x21-\x7e]|[\\@]")

Resolve = Callable[[str], str]


class Answer(enum.Enum):
    """What a test says."""

    YES = "yes"
    NO = "no"
    UNCLEAR = "unclear"


def holds(condition: Condition, arguments: Mapping[str, Any], resolve: Resolve) -> Answer:
    """Test one condition.

    Args:
        condition: with variables expanded.
        arguments: of the call.
        resolve: makes an absolute path of one that an argument names, symlinks followed.

    Returns:
        Of a list YES when it holds for each of its members, UNCLEAR for some of them. NO for an argument that is not there.
        UNCLEAR for what is longer than anybody would wait for.
    """
    values = list(itertools.islice(_values(arguments, condition.argument.split(".")), _MOST_VALUES + 1))
    longest = _LONGEST_OF.get(condition.test)
    if len(values) > _MOST_VALUES or (
        longest is not None and sum(len(one) for one in values if isinstance(one, str)) > longest
    ):
        return Answer.UNCLEAR
    answers = {_one(condition, value, resolve) for value in values}
    if not answers:
        return Answer.NO
    return answers.pop() if len(answers) == 1 else Answer.UNCLEAR


_UNREADABLE = object()


def _values(inside: Any, names: list[str]) -> Iterable[Any]:
    """What a dotted name means; members of lists one by one. Servers differ in whether they care for case."""
    if isinstance(inside, list):
        for member in inside:
            yield from _values(member, names)
    elif not names:
        yield inside
    elif isinstance(inside, dict):
        folded = names[0].casefold()
        found = [key for key in inside if key.casefold() == folded]
        if found and found != [names[0]]:
            yield _UNREADABLE
        elif found:
            yield from _values(inside[names[0]], names[1:])
    else:
        yield _UNREADABLE


def _one(condition: Condition, value: Any, resolve: Resolve) -> Answer:
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, int):
        value = str(value)
    elif value is None:
        value = "null"
    if not isinstance(value, str):
        return Answer.UNCLEAR
    test = _TESTS[condition.test]
    answers = {test(wanted, value, resolve) for wanted in condition.values}
    return next((one for one in (Answer.YES, Answer.UNCLEAR) if one in answers), Answer.NO)


def _said(yes: bool) -> Answer:
    return Answer.YES if yes else Answer.NO


def _equals(wanted: str, value: str, _resolve: Resolve) -> Answer:
    return _said(value == wanted)


def _glob(wanted: str, value: str, _resolve: Resolve) -> Answer:
    return _said(fnmatch.fnmatchcase(value, wanted))


def _regex(wanted: str, value: str, _resolve: Resolve) -> Answer:
    import re2

    return _said(re2.fullmatch(wanted, value) is not None)


def _inside(folder: str, value: str, resolve: Resolve) -> Answer:
    """A path is inside if it is there with every symlink followed; what servers read differently is unclear."""
    url = value.startswith("file:///")
    path = value.removeprefix("file://") if url else value
    # What is relative to us is relative to something else for some servers, which also cut off quotes and spaces.
    if not path.startswith("/") or path.startswith("//") or path != path.strip().strip("\"'`\ufeff"):
        return Answer.UNCLEAR
    if (
        len(path) >= _LONGEST_PATH
        or _ODD_IN_PATH.search(path)
        or "://" in path
        or (url and ("?" in path or "#" in path))
    ):
        return Answer.UNCLEAR
    found = resolve(path)
    return _said(folder == "/" or found == folder or found.startswith(folder + "/"))


def _host(wanted: str, value: str, _resolve: Resolve) -> Answer:
    """The host of an URL, or a bare host; `*.a.b` is every name below `a.b`. What URL readers disagree on is unclear."""
    if _ODD_IN_URL.search(value):
        return Answer.UNCLEAR
    try:
        url = urlsplit(value) if "://" in value else None
        host = value if url is None else url.hostname or ""
    except ValueError:
        return Answer.UNCLEAR
    host = host.lower().rstrip(".")
    if (url is not None and url.scheme not in _SCHEMES) or not _HOST.fullmatch(host):
        return Answer.UNCLEAR
    if _NUMBER.fullmatch(host) and not _is_address(host):
        return Answer.UNCLEAR
    if wanted.startswith("*."):
        return _said(host.endswith(wanted[1:]))
    return _said(host == wanted)


def _is_address(host: str) -> bool:
    """Whether it is an IPv4 address as everybody writes it: readers take other numbers for addresses, too."""
    try:
        return str(ipaddress.IPv4Address(host)) == host
    except ValueError:
        return False


_TESTS: dict[Test, Callable[[str, str, Resolve], Answer]] = {
    Test.EQUALS: _equals,
    Test.GLOB: _glob,
    Test.REGEX: _regex,
    Test.INSIDE: _inside,
    Test.HOST: _host,
}
# EQUALS compares, however long it is.
_LONGEST_OF = {
    Test.GLOB: _LONGEST_TEXTS,
    Test.REGEX: _LONGEST_TEXTS,
    Test.INSIDE: _LONGEST_PATHS,
    Test.HOST: _LONGEST_TEXTS,
}
