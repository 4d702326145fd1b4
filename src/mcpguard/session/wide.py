"""Rules that open far more than a person means: the whole home, or the folders that hold mcpguard's own.

Looks at the account and at symlinks, as the user.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mcpguard.errors import UsageError
from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import PathRule
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.patterns import expand, quote, split_literal
from mcpguard.profile import store

# A name that no sensible pattern names: what matches it in the home matches everything there.
_NOBODYS_NAME = "\x01"


def opened(pattern: str, place: str, home: str, workspace: str) -> str | None:
    """What a pattern opens that is too much: `home`, or the path of a folder of mcpguard's own; None: nothing of the kind.

    `{workspace}` and `{tmp}` are chosen elsewhere and checked there.

    Args:
        pattern: as written; `place` is where, for the error.

    Raises:
        PolicyError: the pattern cannot be read.
    """
    if pattern.startswith(("{workspace}", "{tmp}")):
        return None
    written = expand(pattern, place, {"home": home, "workspace": workspace, "tmp": "/tmp"})
    base, rest = split_literal(written)
    forms = {written, (quote(os.path.realpath(base)).rstrip("/") + rest) or "/"}
    rules = [PathRule(Effect.ALLOW, Access.READ, form, (), 1) for form in sorted(forms)]
    automaton = Automaton.build(rules)

    def matches(path: str) -> bool:
        return Access.READ in automaton.decision(automaton.walk(path)).allowed

    if matches(home) or matches(f"{home.rstrip('/')}/{_NOBODYS_NAME}"):
        return "home"
    ours = (os.path.realpath(folder) for folder in (store.config_directory(), store.state_directory()))
    return next((folder for folder in ours if matches(folder)), None)


def refuse_writes(patterns: Sequence[tuple[str, str]], home: str, workspace: str) -> None:
    """Refuse a `--write` for this run that opens too much.

    Args:
        patterns: (as typed, as a pattern).

    Raises:
        UsageError: one of them does.
    """
    for typed, pattern in patterns:
        found = opened(pattern, "command line", home, workspace)
        if found == "home":
            raise UsageError(
                f"--write {typed} opens the whole home",
                why=f"everything in {home} could be changed, and shell start-up files that do not exist yet could be made",
                do="name the folder that is needed, such as --write ~/notes; to work on the home itself, run with -w ~",
                code="usage.write-too-wide",
            )
        if found is not None:
            raise UsageError(
                f"--write {typed} opens a folder that holds mcpguard's own files",
                why=f"{found} lies in it, beside the settings and records of every other program",
                do="name the folder that is needed, such as --write ~/.config/TOOL",
                code="usage.write-too-wide",
            )


def read_notes(typed: Sequence[str]) -> list[str]:
    """What to say before a run whose `--read` opens the whole home: a person can mean it.

    Raises:
        PolicyError: a pattern cannot be read.
    """
    from mcpguard.session.policy import current_user, typed_pattern

    home = current_user().home
    return [
        f"--read {path} lets the agent read every file in {home} that no rule denies"
        for path in typed
        if opened(typed_pattern(path), "command line", home, home) == "home"
    ]
