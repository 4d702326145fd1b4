"""YAML text to one profile, its parents not yet joined; every rule keeps its line and its text.

A mistyped rule would be a hole, so nothing is skipped: `examine` finds every mistake, `parse` stops at the first. What
a path or host pattern means is not judged here (the policy compiler does, with the same line numbers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import yaml

from mcpguard.errors import ProfileError, UsageError
from mcpguard.model.access import Access, Effect
from mcpguard.model.mcp import AfterTaint, Clients, Condition, Confinement, McpRule, Starting, Test, ToolClass
from mcpguard.model.profile import SniMode
from mcpguard.model.rule import CONFINES, GRANTS, FileException, FileRule, NetDirection, NetRule, SocketRule
from mcpguard.profile import nodes
from mcpguard.profile.draft import Draft, Parent, Raw, Word, items, keys, text, unquoted, words, wrong_type
from mcpguard.profile.effective import NO_SERVERS, command_text, setting_text
from mcpguard.profile.schema import ENTRY_KEYS, Key, Type, keys_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z0-9_*?\[\]!-]+")
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The loader of every program obeys these, the one of the agent first; by PATH it would be chosen which program the command is.
_NEVER_SET = re.compile(r"LD_.*|GLIBC_TUNABLES|PATH|MCPGUARD_.*")
_PLACE = re.compile(r"\{([A-Za-z_]+)\}")
_PLACES = ("workspace", "tmp", "home")
_TESTS = tuple(test.value for test in Test)
_EFFECTS = {"ask": Effect.ASK, "deny": Effect.DENY}
# Keys that hold one of a few words.
_WORDS = {
    "mcp.flow.then": tuple(word.value for word in AfterTaint),
    "mcp.clients": tuple(word.value for word in Clients),
}
_ALL = Access.READ | Access.WRITE | Access.EXECUTE


def parse(document: str, source: str, *, name: str) -> Raw:
    """Read one profile.

    Args:
        document: the file's content.
        source: what errors and rules call the file: its path, or `builtin:NAME.yaml`.
        name: the profile's name when the file does not say one.

    Raises:
        ProfileError: the first mistake, with `file:line`.
    """
    raw, errors = examine(document, source, name=name)
    if errors:
        raise errors[0]
    return raw


def examine(document: str, source: str, *, name: str) -> tuple[Raw, list[ProfileError]]:
    """As `parse`, but go on after a mistake. With errors, the profile holds what could be understood."""
    draft = Draft(source, name)
    try:
        root = nodes.compose(document, source)
    except ProfileError as broken:
        return draft.finish(), [broken]
    _read_name(draft, root)
    for key, value in keys(draft, root, keys_of(""), ""):
        if key.type is Type.SECTION:
            _read_section(draft, key, value)
        else:
            _READERS[key.type](draft, key, value)
    return draft.finish(), draft.in_order()


def valid_name(name: str) -> bool:
    """A name that is also a file name on every system: letters, digits, `.`, `_` and `-`."""
    return bool(_NAME.fullmatch(name))


def require_name(name: str) -> None:
    """Raises UsageError: it is no name for a profile of one's own."""
    if not valid_name(name):
        raise UsageError(
            f'"{name}" is not a name',
            why="a name is letters, digits, . _ and -, beginning with a letter or digit, 64 at most",
            do="choose a name such as my-agent",
            code="usage.profile-name",
        )


def _read_name(draft: Draft, root: yaml.MappingNode) -> None:
    """The name comes first: the origin of every rule holds it."""
    for key, value in root.value:
        if isinstance(key, yaml.ScalarNode) and key.value == "name":
            word = text(draft, value, "name")
            if word and valid_name(word.text):
                draft.name = word.text
            elif word:
                why = "a name is letters, digits, . _ and -, beginning with a letter or digit, 64 at most"
                draft.refuse(word.line, "name", f'"{word.text}" is not a name', why, "choose a name such as my-agent")
            return


def _read_section(draft: Draft, key: Key, node: yaml.Node) -> None:
    known = keys_of(key.path)
    if isinstance(node, yaml.MappingNode):
        for inner, value in keys(draft, node, known, key.path):
            (_read_section if inner.type is Type.SECTION else _READERS[inner.type])(draft, inner, value)
    else:
        wrong_type(draft, node, key.path, "keys with values: " + ", ".join(known))


def _read_text(draft: Draft, key: Key, node: yaml.Node) -> None:
    """`description`; `name` was read before everything else."""
    if key.path != "description":
        return
    if isinstance(node, yaml.ScalarNode) and nodes.plain_kind(node) == "str":
        draft.description = " ".join(str(node.value).split())
    else:
        text(draft, node, key.path)


def _read_command(draft: Draft, key: Key, node: yaml.Node) -> None:
    draft.command = [word.text for word in words(draft, key, node)]
    draft.origin(nodes.line_of(node), command_text(tuple(draft.command)))


def _read_names(draft: Draft, key: Key, node: yaml.Node) -> None:
    for word in words(draft, key, node):
        if not valid_name(word.text):
            why = "`extends` takes the names of built-in or own profiles, not paths"
            do = "copy the file into your profile folder and name it here"
            draft.refuse(word.line, "name", f'"{word.text}" is not the name of a profile', why, do)
        elif any(parent.name == word.text for parent in draft.parents):
            what = f'"{word.text}" is named twice in extends'
            draft.refuse(word.line, "duplicate-parent", what, "once is enough", "remove one")
        else:
            draft.parents.append(Parent(word.text, word.line))


def _read_patterns(draft: Draft, key: Key, node: yaml.Node) -> None:
    for word in words(draft, key, node):
        origin = draft.origin(word.line, f"{key.name} {word.text}")
        draft.files.append(FileRule(Effect.ALLOW, GRANTS[key.name], word.text, origin))


def _read_restrictions(draft: Draft, key: Key, node: yaml.Node) -> None:
    """`readonly`, `deny` and `except`: a pattern, or a mapping that says more about it."""
    for item in items(draft, key, node):
        if isinstance(item, yaml.MappingNode):
            _read_entry(draft, key, item)
        elif word := text(draft, item, key.path):
            _add_restriction(draft, key, word, (), "")


def _read_entry(draft: Draft, key: Key, mapping: yaml.MappingNode) -> None:
    """An entry with `path`. After a complaint the whole entry is dropped: half of a rule is another rule."""
    if pattern := nodes.braces(mapping):
        unquoted(draft, mapping, key.path, pattern)
        return
    before = len(draft.errors)
    path: Word | None = None
    exceptions: tuple[str, ...] = ()
    because = ""
    existing: Word | None = None
    for inner, value in keys(draft, mapping, ENTRY_KEYS[key.type], key.path):
        if inner.type is Type.PATTERNS:
            exceptions = tuple(word.text for word in words(draft, inner, value))
        elif inner.name == "path":
            path = text(draft, value, f"{key.path} path")
        elif inner.name == "existing":
            existing = text(draft, value, f"{key.path} existing")
        elif word := text(draft, value, f"{key.path} because"):
            because = " ".join(word.text.split())
    if len(draft.errors) > before:
        return
    if path is None:
        what, why = f"an entry of {key.path} has no path", "it would mean nothing"
        do = 'write "- path: PATTERN"; a pattern that begins with { needs quotes'
        draft.refuse(nodes.line_of(mapping), "no-path", what, why, do)
    elif existing and not path.text.startswith(existing.text + "/"):
        what, why = (
            f'"{existing.text}" is no beginning of "{path.text}"',
            "`existing` names the folder that the path lies in",
        )
        do = 'write for instance {path: "{workspace}/**/.git/hooks", existing: "{workspace}/**/.git"}'
        draft.refuse(existing.line, "existing", what, why, do)
    else:
        _add_restriction(draft, key, path, exceptions, because, existing.text if existing else "")


def _add_restriction(
    draft: Draft, key: Key, path: Word, exceptions: tuple[str, ...], because: str, existing: str = ""
) -> None:
    words_of_rule = [key.name, path.text, *(["except", *exceptions] if exceptions else [])]
    origin = draft.origin(path.line, " ".join(words_of_rule))
    if key.type is Type.EXCEPTED:
        draft.exceptions.append(FileException(path.text, origin, because))
    elif key.type is Type.DENIED:
        draft.files.append(FileRule(Effect.DENY, _ALL, path.text, origin, exceptions, because))
    else:
        draft.files.append(FileRule(Effect.READONLY, Access.WRITE, path.text, origin, (), because, existing))


def _read_targets(draft: Draft, key: Key, node: yaml.Node) -> None:
    effect = Effect.DENY if key.name == "deny" else Effect.ALLOW
    direction = NetDirection.LISTEN if key.name == "listen" else NetDirection.CONNECT
    for word in words(draft, key, node):
        origin = draft.origin(word.line, f"{key.path.replace('.', ' ')} {word.text}")
        draft.network.append(NetRule(effect, direction, word.text, origin))


def _read_sockets(draft: Draft, key: Key, node: yaml.Node) -> None:
    for word in words(draft, key, node):
        origin = draft.origin(word.line, f"{key.path.replace('.', ' ')} {word.text}")
        own = key.name == "own"
        draft.sockets.append(SocketRule(Effect.ALLOW if own else Effect(key.name), word.text, origin, own))


def _read_variables(draft: Draft, key: Key, node: yaml.Node) -> None:
    for word in words(draft, key, node):
        if _VARIABLE.fullmatch(word.text):
            draft.variables[key.name].append(word.text)
            draft.origin(word.line, f"environment {key.name} {word.text}")
        else:
            what = f'"{word.text}" in {key.path} is not the name of a variable'
            why = "a name holds letters, digits and _, with * and ? as wildcards"
            draft.refuse(word.line, "variable", what, why, "write only the name, without = and value")


def _read_settings(draft: Draft, key: Key, node: yaml.Node) -> None:
    if not isinstance(node, yaml.MappingNode):
        wrong_type(draft, node, key.path, key.type.value)
        return
    for inner, value in node.value:
        name = str(inner.value) if isinstance(inner, yaml.ScalarNode) else ""
        if complaint := _no_setting(name, draft.settings):
            draft.refuse(nodes.line_of(inner), "variable", f'"{name}" in {key.path} {complaint[0]}', *complaint[1:])
        elif word := text(draft, value, f"{key.path} {name}"):
            unknown = next((place for place in _PLACE.findall(word.text) if place not in _PLACES), None)
            if unknown is not None:
                do = nodes.near(unknown, _PLACES) or "write the value as it is to be, or in another way"
                why = "values may hold {workspace}, {tmp} and {home}"
                draft.refuse(word.line, "variable", f'"{{{unknown}}}" in {key.path} {name} means nothing', why, do)
                continue
            draft.settings[name] = word.text
            draft.origin(nodes.line_of(inner), setting_text(name, word.text))


def _no_setting(name: str, known: Mapping[str, str]) -> tuple[str, str, str] | None:
    """What is wrong with the name of a variable to be set, why, and what to do."""
    if not _SETTING.fullmatch(name):
        return "is not the name of a variable", "a name holds letters, digits and _", "write NAME: value"
    if name in known:
        return "is set twice", "YAML would drop one of them", "remove one"
    if _NEVER_SET.fullmatch(name):
        why = "it decides which code runs before the first program of the agent does"
        return "can be set by no profile", why, "set it in the command itself, as in command: [env, NAME=value, agent]"
    return None


def _read_switch(draft: Draft, key: Key, node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode) and nodes.plain_kind(node) == "bool" and node.value in ("true", "false"):
        if key.section == "mcp":
            draft.gate = node.value == "true"
        else:
            draft.switches[key.name] = node.value == "true"
        draft.origin(nodes.line_of(node), f"{key.section} {key.name} {node.value}")
    else:
        shown = f'"{node.value}"' if isinstance(node, yaml.ScalarNode) and node.value else nodes.shape(node)
        draft.refuse(nodes.line_of(node), "type", f"{key.path} is {shown}", "it is a switch", "write true or false")


def _read_mode(draft: Draft, key: Key, node: yaml.Node) -> None:
    # A bare `off` is a word here, though YAML takes it for a switch.
    word = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
    if word in list(SniMode):
        draft.sni = SniMode(word)
        draft.origin(nodes.line_of(node), f"{key.path.replace('.', ' ')} {word}")
    else:
        shown = f'"{word}"' if word else nodes.shape(node)
        why = "it says what may be sent to an address that several names share"
        draft.refuse(nodes.line_of(node), "type", f"{key.path} is {shown}", why, f"write {key.type.value}")


def _read_tools(draft: Draft, key: Key, node: yaml.Node) -> None:
    """`mcp.allow`, `mcp.ask` and `mcp.deny`: a text, or a mapping that says more about it."""
    for item in items(draft, key, node):
        if isinstance(item, yaml.MappingNode):
            _read_tool_entry(draft, key, item)
        elif word := text(draft, item, key.path):
            draft.mcp.append(_mcp_rule(draft, key, word))


def _read_tool_entry(draft: Draft, key: Key, mapping: yaml.MappingNode) -> None:
    """After a complaint the whole entry is dropped: half of a rule is another rule."""
    before = len(draft.errors)
    word: Word | None = None
    where: tuple[Condition, ...] = ()
    because = ""
    for inner, value in keys(draft, mapping, ENTRY_KEYS[key.type], key.path):
        if inner.name == "where":
            where = tuple(_conditions(draft, key, value))
        elif inner.name == "tool":
            word = text(draft, value, f"{key.path} tool")
        elif found := text(draft, value, f"{key.path} because"):
            because = " ".join(found.text.split())
    if len(draft.errors) > before:
        return
    if word is None:
        what, why = f"an entry of {key.path} names no tool", "it would mean nothing or everything"
        draft.refuse(nodes.line_of(mapping), "no-tool", what, why, 'write "- tool: SERVER/TOOL"')
    else:
        draft.mcp.append(_mcp_rule(draft, key, word, where, because))


def _conditions(draft: Draft, key: Key, node: yaml.Node) -> Iterator[Condition]:
    """`where: {ARGUMENT: {TEST: value or values}}`."""
    if not isinstance(node, yaml.MappingNode) or not node.value:
        wrong_type(draft, node, f"{key.path} where", 'conditions: {path: {inside: "{workspace}"}}')
        return
    seen: set[str] = set()
    for argument, tests in node.value:
        name = text(draft, argument, f"{key.path} where")
        if name is None:
            continue
        if not isinstance(tests, yaml.MappingNode) or not tests.value:
            wrong_type(draft, tests, f"{key.path} where {name.text}", "a test and a value: {equals: value}")
            continue
        for test, values in tests.value:
            word = text(draft, test, f"{key.path} where {name.text}")
            if word is None:
                continue
            if word.text not in _TESTS or f"{name.text} {word.text}" in seen:
                what = f'"{word.text}" is no test' if word.text not in _TESTS else f'"{word.text}" stands twice'
                do = "use each of these at most once: " + ", ".join(_TESTS)
                draft.refuse(word.line, "test", what, "a mistyped condition would be a hole", do)
                continue
            seen.add(f"{name.text} {word.text}")
            many = values.value if isinstance(values, yaml.SequenceNode) else [values]
            found = [text(draft, one, f"{key.path} where {name.text} {word.text}") for one in many]
            if not found:
                wrong_type(draft, values, f"{key.path} where {name.text} {word.text}", "a value")
            yield Condition(name.text, Test(word.text), tuple(one.text for one in found if one))


def _mcp_rule(draft: Draft, key: Key, word: Word, where: tuple[Condition, ...] = (), because: str = "") -> McpRule:
    said = "".join(f" where {one.argument} {one.test} {' '.join(one.values)}" for one in where)
    origin = draft.origin(word.line, f"{key.path.replace('.', ' ')} {word.text}{said}")
    effect = _EFFECTS.get(key.name, Effect.ALLOW)
    return McpRule(effect, word.text, origin, where, because)


def _read_named_tools(draft: Draft, key: Key, node: yaml.Node) -> None:
    """Members of `mcp.classes`, and `mcp.flow.untrusted`."""
    for word in words(draft, key, node):
        rule = _mcp_rule(draft, key, word)
        if key.section == "mcp.classes":
            draft.classes.append((ToolClass(key.name), rule))
        else:
            draft.untrusted.append(rule)


def _read_word(draft: Draft, key: Key, node: yaml.Node) -> None:
    """`mcp.flow.then` and `mcp.clients`."""
    word = text(draft, node, key.path)
    if word is None:
        return
    if word.text not in (known := _WORDS[key.path]):
        what = f'"{word.text}" is not what {key.path} can be'
        draft.refuse(word.line, "word", what, "it is one of a few words", "write one of " + ", ".join(known))
        return
    origin = draft.origin(word.line, f"{key.path.replace('.', ' ')} {word.text}")
    if key.path == "mcp.clients":
        draft.all_clients = origin if word.text == Clients.ALL else None
    else:
        draft.after_taint, draft.flow = AfterTaint(word.text), origin


def _read_confined(draft: Draft, key: Key, node: yaml.Node) -> None:
    """`mcp.confine: {SERVER: PROFILE}`."""
    if not isinstance(node, yaml.MappingNode):
        wrong_type(draft, node, key.path, key.type.value)
        return
    for inner, value in node.value:
        server = text(draft, inner, key.path)
        profile = text(draft, value, key.path) if server else None
        if server is None or profile is None:
            continue
        if not _NAME.fullmatch(profile.text):
            why = "a server is confined by a profile of its own, in your folder or built in"
            draft.refuse(profile.line, "name", f'"{profile.text}" is no profile\'s name', why, "write SERVER: PROFILE")
            continue
        origin = draft.origin(server.line, f"{CONFINES} {server.text} {profile.text}")
        draft.confined.append(Confinement(server.text, profile.text, origin))


def _read_servers(draft: Draft, key: Key, node: yaml.Node) -> None:
    """`mcp.servers`; an empty list lets none start, which is why it has a place of its own."""
    path = key.path.replace(".", " ")
    found = [Starting(word.text, draft.origin(word.line, f"{path} {word.text}")) for word in words(draft, key, node)]
    if not found:
        draft.origin(nodes.line_of(node), NO_SERVERS)
    draft.servers = tuple(found)


_READERS: dict[Type, Callable[[Draft, Key, yaml.Node], None]] = {
    Type.TEXT: _read_text,
    Type.WORDS: _read_command,
    Type.NAMES: _read_names,
    Type.PATTERNS: _read_patterns,
    Type.PROTECTED: _read_restrictions,
    Type.DENIED: _read_restrictions,
    Type.EXCEPTED: _read_restrictions,
    Type.TARGETS: _read_targets,
    Type.SOCKETS: _read_sockets,
    Type.VARIABLES: _read_variables,
    Type.SETTINGS: _read_settings,
    Type.SWITCH: _read_switch,
    Type.MODE: _read_mode,
    Type.TOOLS: _read_tools,
    Type.NAMED_TOOLS: _read_named_tools,
    Type.WORD: _read_word,
    Type.CONFINED: _read_confined,
    Type.SERVERS: _read_servers,
}
