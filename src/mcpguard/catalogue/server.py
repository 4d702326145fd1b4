"""One declared server, whatever its client calls the parts of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mcpguard.model.values import dataclass, field

STDIO, REMOTE, BUILT_IN, UNCLEAR = "stdio", "remote", "built-in", "unclear"
_COMMANDS = ("command", "cmd")
_ENVIRONMENTS = ("env", "environment", "envs")
_URLS = ("httpUrl", "url", "serverUrl", "uri", "endpoint", "baseUrl")
_HEADERS = ("headers", "http_headers", "requestInit")
# What has a client call tools without asking: a truth, or a list that is not empty.
_AUTOMATIC = ("trust", "alwaysAllow", "autoApprove", "auto_approve", "alwaysApprove", "autoAllow")
# Commands that a client runs for a server besides it, such as for its headers.
_HELPERS = ("headersHelper", "headers_helper", "authCommand", "auth_command", "credentialHelper")
_TEXTS = ("description", "instructions", "title", "prompt")


@dataclass(frozen=True, slots=True)
class Server:
    """What a client would start or call.

    Attributes:
        scope: `user`, `local` (the user's, for one project), `project`, `managed`, `plugin` or `environment`.
        file: where it is declared: a path, or the name of a variable.
        project: of a local one, the folder that it is declared for; else empty.
        kind: `stdio`, `remote`, `built-in` (part of the client) or `unclear` (neither a command nor a URL).
        command, args, env, cwd: of a local server, as written, interpolations unexpanded. `cwd` empty: the client's own folder.
        url, headers: of a remote server, as written.
        transport: of a remote server `http` or `sse`, where the declaration says it.
        enabled: whether the client starts it.
        automatic: settings of this server by which tools are called without a question.
        helpers: other commands that its client runs for it.
        texts: other words of it that a model or a person reads.
    """

    name: str
    client: str
    scope: str
    file: str
    kind: str
    project: str = ""
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    url: str = ""
    transport: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    enabled: bool = True
    automatic: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where it is declared, as one text that no other declaration of this name has."""
        return f"{self.file}#{self.project}" if self.project else self.file

    @property
    def old(self) -> bool:
        """Whether it is a remote server that speaks HTTP+SSE of 2024-11-05, as far as a declaration tells."""
        return self.transport == "sse" or (not self.transport and self.url.rstrip("/").endswith("/sse"))

    @property
    def words(self) -> tuple[str, ...]:
        """Command and arguments."""
        return (self.command, *self.args)


def of(name: str, value: Mapping[str, Any], **where: Any) -> Server:
    """A server from the object that declares it; what has an unexpected shape counts as absent.

    Args:
        where: client, scope, file and project.
    """
    command, args = _command(value)
    url = next((str(value[key]) for key in _URLS if isinstance(value.get(key), str) and value[key]), "")
    kind = STDIO if command else REMOTE if url else UNCLEAR
    if kind == UNCLEAR and value.get("type") in ("builtin", "platform", "frontend"):
        kind = BUILT_IN
    return Server(
        name,
        **where,
        kind=kind,
        command=command,
        args=args,
        env=_texts_of(value, _ENVIRONMENTS),
        cwd=str(value["cwd"]) if isinstance(value.get("cwd"), str) else "",
        url="" if command else url,
        transport=_transport(value, url, str(where.get("client"))),
        headers=_texts_of(value, _HEADERS) | _headers_by_variables(value),
        enabled=value.get("enabled") is not False and value.get("disabled") is not True,
        automatic=tuple(_automatic(value)),
        helpers=tuple(f"{key}: {_text(value[key])}" for key in _HELPERS if value.get(key)),
        texts=tuple(_texts(value)),
    )


def _transport(value: Mapping[str, Any], url: str, client: str) -> str:
    """Gemini and Qwen call the newer kind `httpUrl`; where they say `url` they mean the older one, as others do by `type`."""
    if url and client in ("gemini-cli", "qwen-code") and not value.get("type"):
        return "http" if url == value.get("httpUrl") else "sse"
    said = value.get("type") or value.get("transport")
    return "sse" if said == "sse" else "http" if said in ("http", "streamable-http", "streamable_http") else ""


def _command(value: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """`command` is a text with `args`, one list of both (OpenCode), or an object with `path` (Zed, formerly)."""
    command = next((value[key] for key in _COMMANDS if value.get(key)), "")
    args = value.get("args")
    if isinstance(command, dict):
        command, args = command.get("path", ""), command.get("args")
    if isinstance(command, list):
        command, args = (command[0] if command else ""), [*command[1:], *(args if isinstance(args, list) else [])]
    if not isinstance(command, str):
        return "", ()
    return command, tuple(_text(arg) for arg in args) if isinstance(args, list) else ()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _texts_of(value: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in keys:
        part = value.get(key)
        if isinstance(part, dict):
            part = part.get("headers", part) if key == "requestInit" else part
            found |= {str(name): _text(text) for name, text in part.items()} if isinstance(part, dict) else {}
        elif isinstance(part, list):  # NAME=value, as Docker writes them
            pairs = (text.partition("=") for text in part if isinstance(text, str))
            found |= {name: text for name, _, text in pairs}
    return found


def _headers_by_variables(value: Mapping[str, Any]) -> dict[str, str]:
    """Codex names variables for a bearer token, and for headers."""
    named = value.get("env_http_headers")
    found = {str(name): f"${{{_text(of)}}}" for name, of in named.items()} if isinstance(named, dict) else {}
    token = value.get("bearer_token_env_var")
    return found | ({"Authorization": f"Bearer ${{{token}}}"} if isinstance(token, str) and token else {})


def _automatic(value: Mapping[str, Any]) -> Iterator[str]:
    for key in _AUTOMATIC:
        given = value.get(key)
        if given is True or (isinstance(given, list) and given):
            yield f"{key}: {'true' if given is True else ', '.join(map(_text, given))}"
    if value.get("default_tools_approval_mode") == "approve":
        yield "default_tools_approval_mode: approve"


def _texts(value: Mapping[str, Any]) -> Iterator[str]:
    for key in _TEXTS:
        if isinstance(value.get(key), str):
            yield value[key]
