"""How each agent is told of its MCP servers for one session: by its own flags, variables or an overlay.

The user's files stay as they are. What an agent's configuration declares at launch is read here, outside of the tree, and is
what counts: a shim that names a server gets that one. Local servers are started through the shim; remote ones stay as they are,
for the rules of the network to judge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mcpguard.catalogue import clients, reading
from mcpguard.catalogue import server as servers
from mcpguard.catalogue.server import REMOTE, STDIO, Server
from mcpguard.errors import UsageError
from mcpguard.model.values import dataclass
from mcpguard.session.gate import SHIM_WORDS

# Whose declaration of a name an agent takes, the strongest first.
_STRONGEST = ("command line", "managed", "local", "project", "environment", "user", "plugin")
_MCP_CONFIG, _STRICT = "--mcp-config", "--strict-mcp-config"
_TOKEN_VARIABLE = "MCPGUARD_GATE_TOKEN"
_LARGEST_ARGUMENT = 120_000
_LARGEST_FILE = 1 << 20


class Keeps(Protocol):
    """A gate, as far as agents are told of it."""

    @property
    def address(self) -> str:
        """Of its socket."""
        ...

    @property
    def token(self) -> str:
        """What has to be shown where `remote` leads."""
        ...

    def remote(self, server: Server) -> str:
        """The address by which the agent reaches a remote server."""
        ...

    def file(self, name: str, content: bytes) -> str:
        """Keep a file that the tree may read and not change; its path."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """What an agent is started with.

    Attributes:
        servers: the local ones that it was told of, each name once.
        known: it is an agent that can be told.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    servers: tuple[Server, ...] = ()
    known: bool = True


def tell(command: Sequence[str], environment: Mapping[str, str], workspace: str, gate: Keeps) -> Told:
    """Have an agent start its local servers through the shim; a command that is no known agent stays as it is.

    Args:
        environment: what it will be started with.

    Raises:
        UsageError: a configuration that the command line names cannot be read.
    """
    name = Path(command[0]).name
    if name not in _AGENTS:
        return Told(tuple(command), dict(environment), known=False)
    client, change = _AGENTS[name]
    everything = clients.inventory(Path(workspace), environment).servers
    found = [one for one in everything if one.enabled and (one.client == client or _is_shared(one, client, workspace))]
    found = [one for one in found if clients.belongs(one, Path(workspace))]
    return change(tuple(command), dict(environment), _each_once(found), gate)


def _is_shared(one: Server, client: str, workspace: str) -> bool:
    """Qwen Code reads the project's own `.mcp.json`, which is listed for claude-code."""
    return client == "qwen-code" and one.file == str(Path(workspace) / ".mcp.json")


def _each_once(found: Iterable[Server]) -> list[Server]:
    chosen: dict[str, Server] = {}
    for one in sorted(found, key=lambda one: _STRONGEST.index(one.scope) if one.scope in _STRONGEST else 0):
        chosen.setdefault(one.name, one)
    return list(chosen.values())


def _shim(one: Server, gate: Keeps) -> list[str]:
    """What an agent starts instead of a server. The words behind `--` are for whoever looks at processes."""
    return [*SHIM_WORDS, gate.address, one.name, "--", *one.words]


def _reached(found: Iterable[Server]) -> tuple[Server, ...]:
    """Those that the gate stands before: local ones, and remote ones."""
    return tuple(one for one in found if one.kind in (STDIO, REMOTE))


def _claude(command: tuple[str, ...], environment: dict[str, str], found: list[Server], gate: Keeps) -> Told:
    """`--strict-mcp-config` has it read nothing else; remote servers are reached by way of the gate."""
    program, words = command[0], list(command[1:])
    named, strict = _taken_out(words, "claude-code")
    found = _each_once([*named, *(() if strict else found)])
    declared: dict[str, Any] = {}
    for one in found:
        if one.kind == STDIO:
            first, *rest = _shim(one, gate)
            declared[one.name] = {"type": "stdio", "command": first, "args": rest, "env": {}}
        elif one.kind == REMOTE:
            headers = {"Authorization": f"Bearer ${{{_TOKEN_VARIABLE}}}"}
            declared[one.name] = {"type": "sse" if one.old else "http", "url": gate.remote(one), "headers": headers}
    environment[_TOKEN_VARIABLE] = gate.token
    text = json.dumps({"mcpServers": declared})
    if len(text) > _LARGEST_ARGUMENT:
        text = gate.file("claude.json", text.encode())
    return Told((program, _MCP_CONFIG, text, _STRICT, *words), environment, _reached(found))


def _taken_out(words: list[str], client: str, *, many: bool = True) -> tuple[list[Server], bool]:
    """The servers that the person named on the command line, and whether there are to be no others; these words go.

    Args:
        many: the option takes every word up to the next option, and not only one.
    """
    named: list[Server] = []
    strict = False
    at = 0
    while at < len(words) and words[at] != "--":
        word = words[at]
        if word == _STRICT:
            strict = True
            del words[at]
        elif word == _MCP_CONFIG:
            del words[at]
            taken = 0
            while at < len(words) and not words[at].startswith("-") and (many or not taken):
                named += _from_argument(words.pop(at), client)
                taken += 1
        elif word.startswith(_MCP_CONFIG + "="):
            named += _from_argument(words.pop(at).partition("=")[2], client)
        else:
            at += 1
    return named, strict


def _from_argument(text: str, client: str) -> list[Server]:
    try:
        if text.lstrip().startswith("{"):
            value, _repeated = reading.parse(text.encode(errors="surrogateescape"), "json")
        else:
            value = reading.read(Path(text), "json", _LARGEST_FILE).value
        group = value["mcpServers"]
        return [
            servers.of(str(name), one, client=client, scope="command line", file=_MCP_CONFIG, project="")
            for name, one in group.items()
            if isinstance(one, dict)
        ]
    except (OSError, reading.UnreadableError, KeyError, TypeError, AttributeError) as bad:
        raise UsageError(
            f"{_MCP_CONFIG} {text[:60]} cannot be read, so its servers could not be guarded",
            why=str(bad)[:200] or type(bad).__name__,
            do='name a file, or JSON, with {"mcpServers": {...}}',
            code="usage.mcp-config",
        ) from None


def _codex(command: tuple[str, ...], environment: dict[str, str], found: list[Server], gate: Keeps) -> Told:
    """`-c` has precedence over its files; JSON's strings and lists are TOML's as well. What it calls apps is an MCP server that
    its account brings, at an address of the model's: nobody approved that, and no network rule could tell it."""
    options = ["-c", "features.apps=false"]
    for one in _reached(found):
        if one.kind == STDIO:
            first, *rest = _shim(one, gate)
            value = f"{{command={_toml(first)},args={_toml(rest)},env={{}}}}"
        else:
            value = f"{{url={_toml(gate.remote(one))},bearer_token_env_var={_toml(_TOKEN_VARIABLE)}}}"
        options += ["-c", f"mcp_servers.{_key(one.name)}={value}"]
    environment[_TOKEN_VARIABLE] = gate.token
    return Told((command[0], *options, *command[1:]), environment, _reached(found))


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else _toml(name)


def _gemini(variable: str, system: str) -> Callable[..., Told]:
    def change(command: tuple[str, ...], environment: dict[str, str], found: list[Server], gate: Keeps) -> Told:
        """The settings of the system count before all others; those that the host has are kept."""
        path = Path(environment.get(variable) or system)
        try:
            settings = reading.read(path, "json", _LARGEST_FILE).value
        except (OSError, reading.UnreadableError):
            settings = {}
        declared = {one.name: _gemini_entry(one, gate) for one in _reached(found)}
        merged = {
            **settings,
            "mcpServers": {**settings.get("mcpServers", {}), **declared},
            "mcp": {**settings.get("mcp", {}), "allowed": [*declared]},
        }
        environment[variable] = gate.file("settings.json", json.dumps(merged).encode())
        environment[_TOKEN_VARIABLE] = gate.token
        return Told(command, environment, _reached(found))

    return change


def _qwen(command: tuple[str, ...], environment: dict[str, str], found: list[Server], gate: Keeps) -> Told:
    """As gemini-cli, of which it is a fork, with an option for servers whose names would win over the system's settings."""
    words = list(command[1:])
    named, _strict = _taken_out(words, "qwen-code", many=False)
    system = _gemini("QWEN_CODE_SYSTEM_SETTINGS_PATH", "/etc/qwen-code/settings.json")
    return system((command[0], *words), environment, _each_once([*named, *found]), gate)


def _gemini_entry(one: Server, gate: Keeps) -> dict[str, Any]:
    if one.kind == REMOTE:
        headers = {"Authorization": f"Bearer ${_TOKEN_VARIABLE}"}
        return {"url" if one.old else "httpUrl": gate.remote(one), "headers": headers}
    first, *rest = _shim(one, gate)
    return {"command": first, "args": rest, "env": {}}


def _opencode(command: tuple[str, ...], environment: dict[str, str], found: list[Server], gate: Keeps) -> Told:
    """What this variable says is merged over all files."""
    name = "OPENCODE_CONFIG_CONTENT"
    try:
        given, _repeated = reading.parse(environment.get(name, "{}").encode(errors="surrogateescape"), "json")
    except reading.UnreadableError:
        given = {}
    declared: dict[str, Any] = {}
    for one in _reached(found):
        if one.kind == STDIO:
            declared[one.name] = {"type": "local", "command": _shim(one, gate), "enabled": True}
        else:
            headers = {"Authorization": f"Bearer {{env:{_TOKEN_VARIABLE}}}"}
            declared[one.name] = {"type": "remote", "url": gate.remote(one), "headers": headers, "enabled": True}
    environment[_TOKEN_VARIABLE] = gate.token
    environment[name] = json.dumps({**given, "mcp": {**given.get("mcp", {}), **declared}})
    return Told(command, environment, _reached(found))


_Change = Callable[[tuple[str, ...], dict[str, str], list[Server], Keeps], Told]
_AGENTS: dict[str, tuple[str, _Change]] = {
    "claude": ("claude-code", _claude),
    "codex": ("codex", _codex),
    "gemini": ("gemini-cli", _gemini("GEMINI_CLI_SYSTEM_SETTINGS_PATH", "/etc/gemini-cli/settings.json")),
    "qwen": ("qwen-code", _qwen),
    "opencode": ("opencode", _opencode),
}
