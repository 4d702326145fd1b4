"""What a parser has read so far, and its questions to a node: keys, items, texts.

A wrong answer becomes an error with its line, and reading goes on; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import yaml

from mcpguard.errors import ProfileError
from mcpguard.model.mcp import AfterTaint, Confinement, McpRule, McpRules, Starting, ToolClass
from mcpguard.model.profile import Profile, SniMode, SystemSwitches
from mcpguard.model.rule import FileException, FileRule, NetRule, Origin, SocketRule
from mcpguard.model.values import dataclass, field
from mcpguard.profile import nodes
from mcpguard.profile.schema import SECTIONS, Key, keys_of


class Parent(NamedTuple):
    """A name under `extends`, and where it stands."""

    name: str
    line: int


@dataclass(frozen=True, slots=True)
class Raw:
    """One file: `profile` holds only what the file itself says."""

    profile: Profile
    parents: tuple[Parent, ...]


class Word(NamedTuple):
    """A text and the line it stands on."""

    text: str
    line: int


@dataclass(slots=True)
class Draft:
    """A profile while it is read. `source` is what `Origin.file` shows; errors are in the order they were found."""

    source: str
    name: str
    errors: list[ProfileError] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    description: str = ""
    parents: list[Parent] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    files: list[FileRule] = field(default_factory=list)
    exceptions: list[FileException] = field(default_factory=list)
    network: list[NetRule] = field(default_factory=list)
    sockets: list[SocketRule] = field(default_factory=list)
    variables: dict[str, list[str]] = field(default_factory=lambda: {"remove": [], "keep": []})
    settings: dict[str, str] = field(default_factory=dict)
    switches: dict[str, bool] = field(default_factory=dict)
    mcp: list[McpRule] = field(default_factory=list)
    classes: list[tuple[ToolClass, McpRule]] = field(default_factory=list)
    untrusted: list[McpRule] = field(default_factory=list)
    after_taint: AfterTaint | None = None
    flow: Origin | None = None
    all_clients: Origin | None = None
    gate: bool | None = None
    confined: list[Confinement] = field(default_factory=list)
    servers: tuple[Starting, ...] | None = None
    origins: list[Origin] = field(default_factory=list)
    sni: SniMode | None = None

    def refuse(self, line: int, code: str, what: str, why: str, do: str) -> None:
        """Note a mistake and go on."""
        self.lines.append(line)
        self.errors.append(nodes.error(self.source, line, what, why=why, do=do, code=code))

    def origin(self, line: int, text: str) -> Origin:
        """The place of a rule."""
        origin = Origin(self.name, self.source, line, text)
        self.origins.append(origin)
        return origin

    def in_order(self) -> list[ProfileError]:
        """The errors by line."""
        return [self.errors[index] for index in sorted(range(len(self.errors)), key=self.lines.__getitem__)]

    def finish(self) -> Raw:
        """The profile as far as it was understood."""
        profile = Profile(
            name=self.name,
            source=self.source,
            description=self.description,
            extends=tuple(parent.name for parent in self.parents),
            command=tuple(self.command),
            files=tuple(self.files),
            network=tuple(self.network),
            sockets=tuple(self.sockets),
            environment_remove=tuple(self.variables["remove"]),
            environment_keep=tuple(self.variables["keep"]),
            environment_set=tuple(sorted(self.settings.items())),
            system=SystemSwitches(**self.switches),
            ancestors=(self.name,),
            origins=tuple(self.origins),
            exceptions=tuple(self.exceptions),
            sni=self.sni,
            mcp=McpRules(
                *(tuple(self.mcp), tuple(self.classes), tuple(self.untrusted), self.after_taint, self.gate),
                confined=tuple(self.confined),
                flow=self.flow,
                servers=self.servers,
                all_clients=self.all_clients,
            ),
        )
        return Raw(profile, tuple(self.parents))


def keys(
    draft: Draft, mapping: yaml.MappingNode, known: Mapping[str, Key], section: str
) -> Iterator[tuple[Key, yaml.Node]]:
    """The known keys of a mapping with their values; complains about the others."""
    seen: dict[str, int] = {}
    for node, value in mapping.value:
        line = nodes.line_of(node)
        name = str(node.value) if isinstance(node, yaml.ScalarNode) else None
        if name is None:
            draft.refuse(line, "unknown-key", "a key is not a word", "keys are a fixed set of words", _listed(known))
        elif isinstance(node, yaml.ScalarNode) and nodes.plain_kind(node) == "merge":
            why = "a rule must be readable where it stands"
            draft.refuse(line, "merge-key", "<< is a merge key", why, "use `extends` to share rules between profiles")
        elif name in seen:
            why = f"it stands on line {seen[name]} already, and YAML would drop one of them"
            draft.refuse(line, "duplicate-key", f'duplicate key "{name}"', why, "join the two")
        elif name not in known:
            what = f'unknown key "{name}"' + (f" in {section}" if section else "")
            do = nodes.near(name, known) or _elsewhere(name, section) or _listed(known)
            draft.refuse(line, "unknown-key", what, "a mistyped rule would be a hole, so nothing is skipped", do)
        else:
            seen[name] = line
            yield known[name], value


def _listed(known: Mapping[str, Key]) -> str:
    return "use one of " + ", ".join(known)


def _elsewhere(name: str, section: str) -> str:
    """Where a key belongs that was written in the wrong section; empty for an unknown one, and inside an entry."""
    for other in SECTIONS if "." not in section else ():
        if other != section and name in keys_of(other):
            return f'write it under "{other}"' if other else f'"{name}" stands at the left margin'
    return ""


def wrong_type(draft: Draft, node: yaml.Node, path: str, wanted: str) -> None:
    """Complain about the kind of a value."""
    empty = isinstance(node, yaml.ScalarNode) and nodes.plain_kind(node) == "null"
    what = f"{path} has no value" if empty else f"{path} is {nodes.shape(node)}"
    do = f"remove the key, or write {wanted}" if empty else f"write {wanted}"
    draft.refuse(nodes.line_of(node), "type", what, f"it holds {wanted}", do)


def text(draft: Draft, node: yaml.Node, path: str) -> Word | None:
    """One line of text that YAML does not take for something else; None after a complaint."""
    if not isinstance(node, yaml.ScalarNode):
        if pattern := nodes.braces(node):
            unquoted(draft, node, path, pattern)
        else:
            wrong_type(draft, node, path, "one text")
        return None
    line, value = nodes.line_of(node), str(node.value)
    if nodes.plain_kind(node) != "str":
        _not_text(draft, line, path, value, nodes.plain_kind(node))
    elif not value.strip():
        draft.refuse(
            line, "empty", f"an empty text in {path}", "it would mean nothing or everything", "remove the entry"
        )
    elif any(char in value for char in "\n\r\0"):
        draft.refuse(line, "line-break", f"a line break in {path}", "an entry is one line", "write it on one line")
    else:
        return Word(value, line)
    return None


def unquoted(draft: Draft, node: yaml.Node, path: str, pattern: str) -> None:
    """Complain about `{workspace}` without quotes."""
    why = "YAML reads { } as keys with values"
    draft.refuse(
        nodes.line_of(node), "not-text", f"{pattern} in {path} is not text", why, f'put it in quotes: "{pattern}"'
    )


def _not_text(draft: Draft, line: int, path: str, value: str, kind: str) -> None:
    read_as = {"bool": "true or false", "null": "nothing at all", "timestamp": "a date"}.get(kind, "a number")
    what = f'"{value}" in {path} is not text' if value else f"an empty entry in {path}"
    do = f'put it in quotes: "{value}"' if value else "remove it, or write the entry"
    if path.startswith("network.") and kind in ("int", "float"):
        do = f'write a host before a port: "localhost:{value}"'
    draft.refuse(line, "not-text", what, f"YAML reads it as {read_as}", do)


def items(draft: Draft, key: Key, node: yaml.Node) -> list[yaml.Node]:
    """The entries of a list."""
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    wrong_type(draft, node, key.path, f"a {key.type.value}")
    return []


def words(draft: Draft, key: Key, node: yaml.Node) -> list[Word]:
    """The entries of a list of texts."""
    found = (text(draft, item, key.path) for item in items(draft, key, node))
    return [word for word in found if word is not None]
