"""The command line of `run` where it is written the plain way: everybody waits for the parser of all others.

What it understands means the same to `run_words`, which is asked for everything else and has all the errors.
"""

from __future__ import annotations

from mcpguard.session.options import RunOptions

_SWITCHES = {"--audit": "audit", "--ask": "ask", "--best-effort": "best_effort", "-q": "quiet", "--quiet": "quiet"}
_VALUES = {
    "-p": "profile",
    "--profile": "profile",
    "-w": "workspace",
    "--workspace": "workspace",
    "--tier": "tier",
    "--read": "read",
    "--write": "write",
    "--net": "net",
}
_MANY = ("read", "write", "net")
_TIERS = (None, "1", "2", "3")


def parse(arguments: list[str]) -> RunOptions | None:
    """None: it is not so plain, or wrong."""
    on: set[str] = set()
    values: dict[str, str | None] = {"profile": None, "workspace": None, "tier": None}
    lists: dict[str, list[str]] = {name: [] for name in _MANY}
    head = arguments[: arguments.index("--")] if "--" in arguments else arguments
    at = 0
    while at < len(head) and head[at].startswith("-"):
        word = head[at]
        if word in _SWITCHES:
            on.add(_SWITCHES[word])
            at += 1
            continue
        if word not in _VALUES or at + 1 == len(head) or head[at + 1].startswith("-"):
            return None
        name, value = _VALUES[word], head[at + 1]
        if name in _MANY:
            lists[name].append(value)
        else:
            values[name] = value
        at += 2
    # A `--` after AGENT is the agent's own.
    separator = at == len(head) < len(arguments)
    command = tuple(arguments[at + separator :])
    if not command or values["tier"] not in _TIERS or {"ask", "audit"} <= on:
        return None
    return RunOptions(
        ask="ask" in on,
        profile=values["profile"],
        workspace=values["workspace"],
        audit="audit" in on,
        best_effort="best_effort" in on,
        tier=values["tier"],
        read=tuple(lists["read"]),
        write=tuple(lists["write"]),
        net=tuple(lists["net"]),
        quiet="quiet" in on,
        command=command,
        after_separator=separator,
    )
