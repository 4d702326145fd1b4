"""Questions of a session that was started with `--ask`: which refusals are one, and what a person answered.

What the kernel refuses is refused at once, and an answer holds for the next attempt; a look-up of a name is held by the
resolver while somebody watches. Answers are lines of a file in the user's state directory, which no guarded process may
write; a line is appended in one piece, so several screens can answer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mcpguard.errors import HostError
from mcpguard.events.finding import is_quiet, is_unnamed
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.profile.store import state_directory

# The answer that is no scope: it stays refused, and is not asked again in this session.
LEFT = "refused"
NOTE = "what no rule covers is refused, and a question in: mcpguard watch {}"
_KEPT = 100
_ACTS = ("connect", "sendmsg", "send", "bind", "listen")


def file_of(session: str) -> Path:
    """Where a session's answers are; it exists when the session asks."""
    return state_directory() / "questions" / f"{session}.jsonl"


def begin(session: str) -> None:
    """Let a session ask. The oldest sessions' answers go.

    Raises:
        HostError: the file cannot be written.
    """
    path = file_of(session)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(path.parent.glob("*.jsonl"))[: -_KEPT + 1]:
            old.unlink(missing_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _not_written(path, error) from None


def answers(session: str) -> dict[str, str] | None:
    """The key of each answered question -> `once`, `session`, `profile` or `refused`; None: this session does not ask."""
    try:
        lines = file_of(session).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found: dict[str, str] = {}
    for line in lines:
        try:
            key, answer = json.loads(line)
        except (ValueError, TypeError):  # half of a line, from a full disk
            continue
        found[str(key)] = str(answer)
    return found


def remember(session: str, key: str, answer: str) -> None:
    """Note an answer; where the session does not ask, nothing.

    Raises:
        HostError: the file cannot be written.
    """
    path = file_of(session)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(descriptor, (json.dumps([key, answer]) + "\n").encode())
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _not_written(path, error) from None


def key_of(event: Event) -> str | None:
    """What makes two refusals the same question: the object and what was asked of it; None: it is no question.

    Only what merely no rule allows is one. What a rule refuses on purpose is never asked about.
    """
    if event.mcp is not None:  # of a call that is held; each is a question of its own
        return json.dumps(["call", event.mcp.call]) if event.mcp.call else None
    if event.verdict is not Verdict.DENY or event.rule is None or event.rule.file != "default" or is_quiet(event):
        return None
    if event.kind is Kind.NET and event.address and event.op in _ACTS:
        asked = "listen" if event.op in ("bind", "listen") else "connect"
        return json.dumps([asked, event.host or event.address, event.port, event.protocol])
    if is_unnamed(event):
        return json.dumps(["name", event.host])
    if event.kind is Kind.UNIX and event.path and event.op in _ACTS:
        return json.dumps(["unix", event.path])
    if event.kind in (Kind.FILE, Kind.EXEC) and event.access and (event.path or "").startswith("/"):
        return json.dumps([event.access, event.path, event.target])
    return None


def _not_written(path: Path, error: OSError) -> HostError:
    return HostError(
        f"{path} cannot be written",
        why=error.strerror or str(error),
        do="look at the folder's owner and mode, and the space on its disk",
        code="ask.not-written",
    )
