"""Rules as written to rules that can be applied: patterns split, variables expanded, mistakes refused with their place.

    SERVER              everything that the server offers; not what it asks (sampling, elicitation)
    SERVER/NAME         tools by name
    SERVER/@CLASS       tools by class: read, write, destructive, open; or unknown
    SERVER/KIND:NAME    tool, resource, prompt, sampling, elicitation or method by name

`*`, `?` and `[...]` are wildcards, `*` crosses `/`. Names are compared as they are, case included.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping

from mcpguard.errors import ProfileError
from mcpguard.model.access import Effect
from mcpguard.model.mcp import AfterTaint, Condition, Confinement, McpKind, McpRule, McpRules, Starting, Test, ToolClass
from mcpguard.model.rule import Origin
from mcpguard.model.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

UNKNOWN = "unknown"
# In the place of a profile's name in `mcp.confine`: what its agent has.
AS_AGENT = "as-agent"
# What a server offers; the other kinds are named or not covered. These can be asked for: what a server asks, and methods that
# nobody knows, have no words that would tell a person what they answer to.
_OFFERED = (McpKind.TOOL, McpKind.RESOURCE, McpKind.PROMPT)
_KINDS = tuple(kind.value for kind in McpKind)
_CLASSES = (*(one.value for one in ToolClass), UNKNOWN)
_SERVER = re.compile(r"[A-Za-z0-9._*?\[\]!-]+")
_OTHER = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a rule is about. `kinds` are those it covers; `tool_class` is empty where names decide."""

    server: str
    kinds: tuple[McpKind, ...]
    name: str
    tool_class: str

    def covers(self, server: str, kind: McpKind, name: str, classes: frozenset[str]) -> bool:
        """Whether it is about this thing of this server. `classes`: of a tool, else empty."""
        return (
            kind in self.kinds
            and fnmatch.fnmatchcase(server, self.server)
            and (self.tool_class in classes if self.tool_class else fnmatch.fnmatchcase(name, self.name))
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that can be applied; `where` has its variables expanded."""

    effect: Effect
    pattern: Pattern
    where: tuple[Condition, ...]
    because: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Kept:
    """Servers that are kept to less than their agent has.

    Attributes:
        server: their name, with wildcards.
        profile: name of the profile that they are kept to.
    """

    server: str
    profile: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class McpPolicy:
    """What a session says of MCP.

    Attributes:
        rules: in no order that matters.
        classes: (class, what it names).
        untrusted: what makes the session tainted.
        after_taint: what then happens to calls that change or send something.
        gate: whether servers start by way of the gate only.
        confined: which servers may reach less.
        flow: where `after_taint` is written.
        servers: names, with wildcards, of the approved servers that may start; None: every one.
        all_clients: where it is written that the servers of every program start by way of the gate only; None: of agents.
    """

    rules: tuple[Rule, ...] = ()
    classes: tuple[tuple[str, Pattern], ...] = ()
    untrusted: tuple[Pattern, ...] = ()
    after_taint: AfterTaint = AfterTaint.ALLOW
    gate: bool = False
    confined: tuple[Kept, ...] = ()
    flow: Origin | None = None
    servers: tuple[str, ...] | None = None
    all_clients: Origin | None = None

    def keeps(self, word: str) -> bool:
        """Whether a rule says what a server is kept to, by its name as rules see it."""
        return any(fnmatch.fnmatchcase(word, one.server) for one in self.confined)

    def may_start(self, name: str) -> bool:
        """Whether a server of this name may start, if the user approved it."""
        word = server_word(name)
        return self.servers is None or any(fnmatch.fnmatchcase(word, one) for one in self.servers)


def server_word(name: str) -> str:
    """A server's name as rules see it: what is no letter, digit, `.`, `_` or `-` becomes `_`, as agents do it."""
    return _OTHER.sub("_", name)


def compile_rules(rules: McpRules, variables: Mapping[str, str]) -> McpPolicy:
    """Make the rules of a profile ready.

    Args:
        rules: of the joined profile.
        variables: absolute paths for `~`, `{home}`, `{workspace}` and `{tmp}`, by these names without braces.

    Raises:
        ProfileError: a rule means nothing, with its place.
    """
    return McpPolicy(
        tuple(_rule(rule, variables) for rule in rules.rules),
        tuple((one.value, _pattern(rule)) for one, rule in rules.classes),
        tuple(_pattern(rule) for rule in rules.untrusted),
        rules.after_taint or AfterTaint.ALLOW,
        bool(rules.gate),
        tuple(_confined(one) for one in rules.confined),
        rules.flow,
        None if rules.servers is None else tuple(map(_starting, rules.servers)),
        rules.all_clients,
    )


def dump(policy: McpPolicy) -> dict[str, Any]:
    """Plain values, for another process; `load` reads them."""
    return {
        "rules": [
            {
                "effect": rule.effect.value,
                "pattern": _dump_pattern(rule.pattern),
                "where": [[one.argument, one.test.value, list(one.values)] for one in rule.where],
                "because": rule.because,
                "origin": _dump_origin(rule.origin),
            }
            for rule in policy.rules
        ],
        "classes": [[name, _dump_pattern(pattern)] for name, pattern in policy.classes],
        "untrusted": [_dump_pattern(pattern) for pattern in policy.untrusted],
        "after_taint": policy.after_taint.value,
        "flow": policy.flow and _dump_origin(policy.flow),
        "gate": policy.gate,
        "confined": [[one.server, one.profile, _dump_origin(one.origin)] for one in policy.confined],
        "servers": None if policy.servers is None else list(policy.servers),
        "all_clients": policy.all_clients and _dump_origin(policy.all_clients),
    }


def load(plain: Mapping[str, Any]) -> McpPolicy:
    """What `dump` made.

    Raises:
        KeyError, TypeError, ValueError: it did not make this.
    """
    return McpPolicy(
        tuple(
            Rule(
                Effect(rule["effect"]),
                _load_pattern(rule["pattern"]),
                tuple(Condition(argument, Test(test), tuple(values)) for argument, test, values in rule["where"]),
                rule["because"],
                Origin(*rule["origin"]),
            )
            for rule in plain["rules"]
        ),
        tuple((name, _load_pattern(pattern)) for name, pattern in plain["classes"]),
        tuple(_load_pattern(pattern) for pattern in plain["untrusted"]),
        AfterTaint(plain["after_taint"]),
        plain["gate"] is True,
        tuple(Kept(server, profile, Origin(*origin)) for server, profile, origin in plain["confined"]),
        plain["flow"] and Origin(*plain["flow"]),
        None if plain["servers"] is None else tuple(plain["servers"]),
        plain["all_clients"] and Origin(*plain["all_clients"]),
    )


def _confined(one: Confinement) -> Kept:
    return Kept(_name(one, "write SERVER: PROFILE"), one.profile, one.origin)


def _starting(one: Starting) -> str:
    return _name(one, "write the name that the agent's configuration gives it")


def _name(one: Confinement | Starting, do: str) -> str:
    if not _SERVER.fullmatch(one.server):
        raise ProfileError(
            f'{one.origin.place}: "{one.server}" is no server',
            why="a server is named by letters, digits, `.`, `_` and `-`, with wildcards; other characters count as `_`",
            do=do,
            code="profile.mcp",
        )
    return one.server


def _dump_origin(origin: Origin) -> list[Any]:
    return [origin.profile, origin.file, origin.line, origin.text]


def _dump_pattern(pattern: Pattern) -> list[Any]:
    return [pattern.server, [kind.value for kind in pattern.kinds], pattern.name, pattern.tool_class]


def _load_pattern(plain: list[Any]) -> Pattern:
    server, kinds, name, tool_class = plain
    return Pattern(server, tuple(McpKind(kind) for kind in kinds), name, tool_class)


def _rule(rule: McpRule, variables: Mapping[str, str]) -> Rule:
    where = tuple(_condition(one, rule, variables) for one in rule.where)
    pattern = _pattern(rule)
    if rule.effect is Effect.ASK and not set(pattern.kinds) <= set(_OFFERED):
        why = "a person is asked for tools, resources and prompts, which a server offers"
        raise _wrong(rule, "nothing that can be asked for", why, "write it under `allow` or `deny`")
    if where and McpKind.TOOL not in pattern.kinds and McpKind.PROMPT not in pattern.kinds:
        raise _wrong(
            rule, "conditions on what has no arguments", "only tools and prompts have arguments", "remove `where`"
        )
    return Rule(rule.effect, pattern, where, rule.because, rule.origin)


def _pattern(rule: McpRule) -> Pattern:
    server, slash, rest = rule.text.partition("/")
    if not _SERVER.fullmatch(server):
        why = "a server is named by letters, digits, `.`, `_` and `-`, with wildcards; other characters count as `_`"
        raise _wrong(rule, "no server", why, 'write SERVER, SERVER/TOOL, "SERVER/@CLASS" or SERVER/KIND:NAME')
    if not slash:
        return Pattern(server, _OFFERED, "*", "")
    if rest.startswith("@"):
        if rest[1:] not in _CLASSES:
            raise _wrong(
                rule, f'"{rest}" is no class', "a class is one of a few words", "use one of @" + ", @".join(_CLASSES)
            )
        return Pattern(server, (McpKind.TOOL,), "", rest[1:])
    kind, colon, name = rest.partition(":")
    if colon and kind in _KINDS:
        return Pattern(server, (McpKind(kind),), name or "*", "")
    if not rest:
        raise _wrong(
            rule, "no tool after the slash", "it would mean nothing or everything", f"write {server}, or {server}/TOOL"
        )
    return Pattern(server, (McpKind.TOOL,), rest, "")


def _condition(one: Condition, rule: McpRule, variables: Mapping[str, str]) -> Condition:
    if one.test is Test.INSIDE:
        return Condition(one.argument, one.test, tuple(_folder(value, rule, variables) for value in one.values))
    if one.test is Test.REGEX:
        for value in one.values:
            _check_expression(value, rule)
    if one.test is Test.HOST:
        return Condition(one.argument, one.test, tuple(value.lower().rstrip(".") for value in one.values))
    return one


def _folder(value: str, rule: McpRule, variables: Mapping[str, str]) -> str:
    for written, name in (("~", "home"), ("{home}", "home"), ("{workspace}", "workspace"), ("{tmp}", "tmp")):
        if value == written or value.startswith(written + "/"):
            value = variables[name] + value[len(written) :]
            break
    if not value.startswith("/") or {"..", "."} & set(value.split("/")) or "{" in value:
        why = "`inside` takes a folder: absolute, or beginning with ~, {workspace}, {tmp} or {home}; without wildcards"
        raise _wrong(rule, f'"{value}" is no folder', why, 'write for instance {path: {inside: "{workspace}"}}')
    return "/" + value.strip("/")


def _check_expression(value: str, rule: McpRule) -> None:
    import re2  # what agents send may not make an expression run for ever

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(value, options)
    except re2.error as bad:
        why = bad.args[0].decode(errors="replace") if isinstance(bad.args[0], bytes) else str(bad.args[0])
        do = "write it as RE2 understands it: without look-around and back-references"
        raise _wrong(rule, f'"{value}" is no regular expression', why, do) from None


def _wrong(rule: McpRule, what: str, why: str, do: str) -> ProfileError:
    return ProfileError(f'{rule.origin.place}: "{rule.text}": {what}', why=why, do=do, code="profile.mcp")
