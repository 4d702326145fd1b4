"""What a remote server wants that answers 401: a login, which nobody inside can make by way of the gate.

A login in a browser leads the agent to other addresses than its server's. So a person makes a token outside of the session, and
says where it is in the server's declaration.
"""

from __future__ import annotations

from collections.abc import Mapping

from mcpguard.errors import HostError
from mcpguard.events.told_errors import WANTS
from mcpguard.gate.remote import Remote

_LONGEST_SCHEME = 20
# How clients write a header with a variable in it.
_DECLARED = {
    "codex": 'bearer_token_env_var = "NAME"',
    "gemini-cli": '"headers": {"Authorization": "Bearer $NAME"}',
    "qwen-code": '"headers": {"Authorization": "Bearer $NAME"}',
    "opencode": '"headers": {"Authorization": "Bearer {env:NAME}"}',
}
_DECLARED_ELSEWHERE = '"headers": {"Authorization": "Bearer ${NAME}"}'


def wants_login(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an answer of these asks for one."""
    return status == 401 or (status == 403 and "WWW-Authenticate" in headers)


def login_wanted(name: str, remote: Remote, status: int, headers: Mapping[str, str]) -> HostError:
    """For a person. What the server says of it is for no model to read: only its scheme is passed.

    Args:
        name: of the server, as it is declared.
        status, headers: of its answer.
    """
    scheme = headers.get("WWW-Authenticate", "").partition(" ")[0]
    way = f" ({scheme})" if scheme.isascii() and scheme.isalnum() and len(scheme) <= _LONGEST_SCHEME else ""
    keys = [value for header, value in remote.headers.items() if header.lower() == "authorization" or "$" in value]
    given = "the key in its headers" if keys else "a request without a key"
    if any("${" in value for value in keys):
        given = "a header whose variable is not set where mcpguard was started"
    declared = _DECLARED.get(remote.client, _DECLARED_ELSEWHERE)
    where = f" in {remote.file}" if remote.file else ""
    return HostError(
        f"the MCP server {name} {WANTS}",
        why=f"it answered {status}{way} to {given}; a login in the agent's browser does not lead through the gate",
        do="sign in outside of the session and make a token there; export NAME=TOKEN where you type mcpguard run; "
        f"declare {declared} for this server{where}; start the session again",
        code="mcp.login",  # `events.told_errors` finds it by that
    )
