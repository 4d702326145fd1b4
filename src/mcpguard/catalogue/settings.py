"""Settings of clients by which tools are called, or servers started, without a question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mcpguard.catalogue.clients import File

# Client, way to the setting, and the value by which nobody is asked; None: any list that is not empty.
_SWITCHES: tuple[tuple[str, tuple[str, ...], Any], ...] = (
    ("claude-code", ("enableAllProjectMcpServers",), True),
    ("claude-code", ("permissions", "defaultMode"), "bypassPermissions"),
    ("gemini-cli", ("autoAccept",), True),
    ("gemini-cli", ("tools", "autoAccept"), True),
    ("gemini-cli", ("tools", "approvalMode"), "yolo"),
    ("gemini-cli", ("general", "defaultApprovalMode"), "yolo"),
    ("qwen-code", ("autoAccept",), True),
    ("qwen-code", ("tools", "autoAccept"), True),
    ("qwen-code", ("tools", "approvalMode"), "yolo"),
    ("vscode", ("chat.tools.autoApprove",), True),
    ("vscode", ("chat.tools.global.autoApprove",), True),
    ("amp", ("amp.dangerouslyAllowAll",), True),
    ("codex", ("approval_policy",), "never"),
    ("zed", ("agent", "always_allow_tool_actions"), True),
)
# The same, where somebody else than the user wrote them: a project that approves its own servers.
_IN_PROJECTS: tuple[tuple[str, tuple[str, ...], Any], ...] = (("claude-code", ("enabledMcpjsonServers",), None),)


def automatic(file: File) -> Iterator[str]:
    """Each such setting of a file as `name: value`."""
    value = file.document.value if file.document else None
    own = file.path.endswith("settings.local.json")  # the client writes the user's answers there
    switches = (*_SWITCHES, *(_IN_PROJECTS if file.project and not own else ()))
    for client, keys, wanted in switches:
        if client == file.place.client:
            found = _at(value, keys)
            if (
                (isinstance(found, list) and found)
                if wanted is None
                else (found == wanted and type(found) is type(wanted))
            ):
                yield f"{'.'.join(keys)}: {_text(found)}"
    yield from _permissions(file, value)


def _permissions(file: File, value: Any) -> Iterator[str]:
    """Rules that allow every tool of a server, which a project brought."""
    allowed = _at(value, ("permissions", "allow"))
    if not file.project or file.path.endswith("settings.local.json") or not isinstance(allowed, list):
        return
    for rule in allowed:
        if isinstance(rule, str) and rule.startswith(("mcp__", "Mcp(")):
            yield f"permissions.allow: {rule[:200]}"


def _at(value: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(one)[:50] for one in value[:10])
    return "true" if value is True else str(value)[:200]
