"""Path patterns: what a person may write, and its one meaning.

Pure: text in, components out. Looks at no file system; refuses what two readers could understand in two ways.

A pattern names a subtree: the path that it matches and everything below.

    *        any run of bytes inside one component (as a whole component: any one name, dotfiles included)
    ?        one byte (a letter outside ASCII takes several)
    [a-c]    one of these ASCII characters; `[!a-c]` or `[^a-c]` one byte that is none of them; `[*]` is a plain star
    **       as a whole component: any number of components, none included; at the end: everything below
    ~ {home} {workspace} {tmp}   at the beginning; their values are taken literally
    **/x     floating: `x` at any depth below `/`
    x/       the same as `x`; after `write` it says more (`model.rule.FileRule.may_make_folder`)

Matching is on the bytes of a path (UTF-8; other bytes by surrogateescape). A `/` is only matched by a `/` or by `**`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from mcpguard.errors import PolicyError
from mcpguard.model.values import dataclass

SLASH = 0x2F
VARIABLES = ("home", "workspace", "tmp")
_SPECIAL = r"[*?\[\\]"
# Braces mean something in a written pattern only, and what is quoted may be written.
_QUOTED = r"[*?\[\\{}]"
_PLAIN = r"(/(?!\.{1,2}(/|\Z))[^/*?\[\\\0]+)+"
_VARIABLE = r"\{([^{}/]*)\}"


@dataclass(frozen=True, slots=True)
class Token:
    """One byte of a name: one of `chars`, or, when negated, any byte but these and `/`."""

    chars: frozenset[int]
    negated: bool


@dataclass(frozen=True, slots=True)
class Component:
    """What may stand between two slashes.

    Attributes:
        text: the component as written; equal texts are equal components.
        literal: the one name that matches, or None when several can.
        tokens: the bytes that a name must have, in order.
        loops: bit i set: any run of bytes may stand before token i (after the last token for i = len(tokens)).
    """

    text: str
    literal: bytes | None
    tokens: tuple[Token, ...]
    loops: int

    @property
    def any_depth(self) -> bool:
        """`**`: any number of components."""
        return self.text == "**"

    @property
    def any_name(self) -> bool:
        """`*`: one component, whatever its name."""
        return not self.tokens and bool(self.loops)


class _Syntax(Exception):
    """Why a pattern cannot be read, and what to write instead."""

    def __init__(self, why: str, do: str) -> None:
        super().__init__(why)
        self.why = why
        self.do = do


def expand(text: str, place: str, variables: Mapping[str, str]) -> str:
    """Make a written pattern absolute.

    Args:
        text: the pattern as in a profile.
        place: where it stands (`file:line`), for the error.
        variables: values of `home`, `workspace` and `tmp`: absolute paths, taken literally.

    Returns:
        The pattern as `model.policy.PathRule` holds it; `parse` reads it.

    Raises:
        PolicyError: `policy.pattern`, beginning with `place`.
    """
    try:
        return _normal(_absolute(text, variables))
    except _Syntax as wrong:
        raise PolicyError(f'{place}: pattern "{text}"', why=wrong.why, do=wrong.do, code="policy.pattern") from None


def parse(pattern: str) -> tuple[Component, ...]:
    """Components of an absolute pattern; `/` has none. A closing `**` comes out as `*`: both mean everything below.

    Raises:
        PolicyError: `policy.pattern`.
    """
    try:
        return _components(pattern)
    except _Syntax as wrong:
        raise PolicyError(f'pattern "{pattern}"', why=wrong.why, do=wrong.do, code="policy.pattern") from None


def quote(path: str) -> str:
    """The pattern that matches exactly this path (and below), whatever characters are in it; `expand` reads it, too."""
    return re.sub(_QUOTED, lambda found: f"[{found[0]}]", path)


@lru_cache(maxsize=8192)  # a launch asks for each of hundreds twice
def split_literal(pattern: str) -> tuple[str, str]:
    """Cut an absolute pattern before its first component that is not literal.

    Returns:
        (path, rest): a plain path without pattern syntax (`/` when there is none), and the remaining pattern, beginning
        with `/`, or empty when the whole pattern is literal.
    """
    if re.fullmatch(_PLAIN, pattern):  # nearly all of them
        return pattern, ""
    names: list[bytes] = []
    components = parse(pattern)
    for component in components:
        if component.literal is None:
            break
        names.append(component.literal)
    path = "/" + b"/".join(names).decode("utf-8", "surrogateescape")
    return path, "".join("/" + component.text for component in components[len(names) :])


def literal_path(pattern: str) -> str | None:
    """The one path that an absolute pattern names, or None when it holds a glob."""
    path, rest = split_literal(pattern)
    return None if rest else path


def witness(pattern: str) -> str:
    """A path that an absolute pattern matches, of names that no other pattern spells out: where a name is free, it is odd."""
    names = [b"\1" if component.any_depth else _odd_name(component) for component in parse(pattern)]
    return "/" + b"/".join(names).decode("utf-8", "surrogateescape")


def _odd_name(component: Component) -> bytes:
    name = bytearray()
    for at, token in enumerate((*component.tokens, None)):
        if component.loops >> at & 1:
            name.append(1)
        if token is not None:
            fitting = set(range(1, 256)) - token.chars - {SLASH} if token.negated else token.chars
            name.append(min(fitting, default=1))
    return bytes(name)


def shape(components: tuple[Component, ...]) -> int:
    """How a pattern multiplies with others in one automaton.

    Returns:
        0: its names are literal or have a fixed beginning (`.env*`), such patterns add up. 1: a name has a fixed end
        (`*.pem`), these add up among themselves. 2: a name has anything else (`*secret*`, `a*b`), or there is more than one
        `**`; these can multiply.
    """
    shapes = [0 if sum(component.any_depth for component in components) < 2 else 2]
    for component in components:
        if component.tokens and component.loops & ~(1 << len(component.tokens)):
            shapes.append(1 if component.loops == 1 else 2)
    return max(shapes)


def weight(components: tuple[Component, ...]) -> int:
    """How specific a pattern is: the number of bytes that a path must have to match."""
    return sum(1 + len(component.tokens) for component in components if not component.any_depth)


def _absolute(text: str, variables: Mapping[str, str]) -> str:
    if text == "~" or text.startswith("~/"):
        return _joined(variables["home"], text[1:])
    if text.startswith("~"):
        raise _Syntax("~NAME is another user's home", "write the path in full")
    head = re.match(_VARIABLE, text)
    if head:
        value = variables.get(head[1])
        rest = text[head.end() :]
        if value is None:
            raise _Syntax(f"{{{head[1]}}} is not a variable", "use one of " + _known())
        if rest and not rest.startswith("/"):
            raise _Syntax(f"a variable is a whole path, not the beginning of a name ({text})", f"write {head[0]}/...")
        return _joined(value, rest)
    if text == "**" or text.startswith("**/"):
        return "/" + _no_variable(text)
    if not text.startswith("/"):
        raise _Syntax("a pattern begins with /, ~, {variable} or **", f'write "{{workspace}}/{text}" or "**/{text}"')
    return _no_variable(text)


def _joined(value: str, rest: str) -> str:
    return quote(value.rstrip("/")) + _no_variable(rest) or "/"


def _known() -> str:
    return "~ " + " ".join(f"{{{name}}}" for name in VARIABLES)


def _no_variable(text: str) -> str:
    found = re.search(r"(?<!\[)[{}]", text)
    if not found:
        return text
    raise _Syntax(
        f"{found[0]} has no meaning here: variables stand at the beginning, alternatives are separate patterns",
        f"write one pattern for each alternative, or [{found[0]}] for the character itself",
    )


def _normal(pattern: str) -> str:
    """Read it once for its errors; drop a closing slash and doubled `**`."""
    return "".join("/" + component.text for component in _components(pattern)) or "/"


@lru_cache(maxsize=8192)
def _components(pattern: str) -> tuple[Component, ...]:
    if not pattern.startswith("/"):
        raise _Syntax("the path is not absolute", "begin it with /")
    inner = pattern[1:].removesuffix("/")
    if not inner:
        if pattern != "/":
            raise _Syntax("a component is empty (//)", "write one slash")
        return ()
    components: list[Component] = []
    for text in inner.split("/"):
        component = _component(text)
        if not (component.any_depth and components and components[-1].any_depth):
            components.append(component)
    if components[-1].any_depth:
        components[-1] = _component("*")
    elif components[-1].any_name and len(components) > 1 and components[-2].any_depth:
        del components[-2]  # `**/*` at the end: also everything below
    return tuple(components)


@lru_cache(maxsize=8192)
def _component(text: str) -> Component:
    """Read what stands between two slashes."""
    if text in ("", ".", ".."):
        what = "a component is empty (//)" if not text else f'a component is "{text}"'
        raise _Syntax(what, "write the path without detours")
    if "\0" in text:
        raise _Syntax("it holds a NUL byte", "remove it: no path can hold one")
    if text == "**":
        return Component(text, None, (), 0)
    if "**" in text:
        raise _Syntax(
            '"**" is mixed with other characters in one component', 'use "*" in a name, "**" alone between slashes'
        )
    if not re.search(_SPECIAL, text):
        name = _bytes(text)
        return Component(text, name, tuple(map(_token, name)), 0)
    return _glob(text)


def _glob(text: str) -> Component:
    tokens: list[Token] = []
    loops = 0
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == "*":
            loops |= 1 << len(tokens)
        elif char == "?":
            tokens.append(_ANY_BYTE)
        elif char == "[":
            token, at = _set(text, at)
            tokens.append(token)
        elif char == "\\":
            raise _Syntax("a backslash does not escape", r"write [*] for a plain star and [\] for a backslash")
        else:
            tokens.extend(map(_token, _bytes(char)))
    single = not loops and all(len(token.chars) == 1 and not token.negated for token in tokens)
    literal = bytes(next(iter(token.chars)) for token in tokens) if single else None
    if literal in (b".", b".."):
        raise _Syntax(f'a component is "{literal.decode()}"', "write the path without detours")
    return Component(text, literal, tuple(tokens), loops)


def _set(text: str, at: int) -> tuple[Token, int]:
    """Read the inside of `[...]` from `at`; returns the token and the index after the closing bracket."""
    negated = text[at : at + 1] in ("!", "^")
    at += negated
    end = text.find("]", at + 1)
    if end < 0:
        raise _Syntax("a [ has no closing ]", "close it, or write [[] for the character itself")
    inside = text[at:end]
    if not inside.isascii():
        raise _Syntax("only ASCII characters can stand between [ and ]", "write one pattern for each character")
    if "[:" in inside or "[." in inside or "[=" in inside:
        raise _Syntax("named classes such as [:alpha:] are not known", "write ranges such as [a-zA-Z]")
    return Token(frozenset(_members(inside)), negated), end + 1


def _members(inside: str) -> set[int]:
    members: set[int] = set()
    at = 0
    while at < len(inside):
        low = ord(inside[at])
        if inside[at + 1 : at + 2] == "-" and at + 2 < len(inside):
            high = ord(inside[at + 2])
            if high < low:
                raise _Syntax(f"the range {inside[at : at + 3]} is backwards", "write the smaller character first")
            members.update(range(low, high + 1))
            at += 3
        else:
            members.add(low)
            at += 1
    members.discard(SLASH)
    return members


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _Syntax("it holds half of a character (a lone surrogate)", "write the name as it is on disk") from None


@lru_cache(maxsize=256)
def _token(byte: int) -> Token:
    return Token(frozenset((byte,)), False)


_ANY_BYTE = Token(frozenset(), True)
