"""What a profile amounts to with its parents, rule by rule: for `show --resolved`, `diff` and `edit`. Pure."""

from __future__ import annotations

from typing import NamedTuple

from mcpguard.model.mcp import AfterTaint, Clients
from mcpguard.model.profile import Profile, SniMode
from mcpguard.model.rule import FileRule, Origin


class Line(NamedTuple):
    """One effective rule; `text` is the same wherever it was written."""

    text: str
    origin: Origin
    because: str


NO_SERVERS = "mcp servers []"
MADE = "made for a run where it is not there"


def effective(profile: Profile) -> list[Line]:
    """Every rule, kind by kind, sorted; the same rule in two files stands here twice, with both places."""
    groups = (
        _written(profile, command_text(profile.command)) if profile.command else [],
        [Line(_file_text(rule), rule.origin, _because(rule)) for rule in profile.files],
        [Line(f"file {one.origin.text}", one.origin, one.because) for one in profile.exceptions],
        [Line(rule.origin.text, rule.origin, "") for rule in profile.network],
        *(_written(profile, f"network sni {mode}") for mode in SniMode),
        [Line(rule.origin.text, rule.origin, "") for rule in profile.sockets],
        [Line(rule.origin.text, rule.origin, rule.because) for rule in profile.mcp.rules],
        [Line(rule.origin.text, rule.origin, "") for _class, rule in profile.mcp.classes],
        [Line(rule.origin.text, rule.origin, "") for rule in profile.mcp.untrusted],
        [Line(one.origin.text, one.origin, "") for one in profile.mcp.confined],
        [Line(one.origin.text, one.origin, "") for one in profile.mcp.servers or ()],
        _written(profile, NO_SERVERS) if profile.mcp.servers == () else [],
        *(_written(profile, f"mcp flow then {word}") for word in AfterTaint),
        *(_written(profile, f"mcp gate {word}") for word in ("true", "false")),
        *(_written(profile, f"mcp clients {word}") for word in Clients),
        *(_written(profile, f"environment remove {name}") for name in profile.environment_remove),
        *(_written(profile, f"environment keep {name}") for name in profile.environment_keep),
        *(_written(profile, setting_text(*setting)) for setting in profile.environment_set),
        _written(profile, "system user_namespaces true"),
        _written(profile, "system io_uring true"),
        _written(profile, "system memory_programs true"),
        _written(profile, "system debuggers true"),
    )
    return [line for group in groups for line in sorted(group, key=_order)]


def command_text(command: tuple[str, ...]) -> str:
    """The command of a profile as one line of it."""
    return f"command {' '.join(command)}"


def setting_text(name: str, value: str) -> str:
    """A variable that a profile sets, as one line of it."""
    return f"environment set {name}={value}"


def _file_text(rule: FileRule) -> str:
    return f"file {rule.origin.text}" + (f" existing {rule.existing}" if rule.existing else "")


def _because(rule: FileRule) -> str:
    return rule.because or (MADE if rule.may_make_folder else "")


def _written(profile: Profile, text: str) -> list[Line]:
    """What is no rule on an object, at every place where it is written."""
    return [Line(text, origin, "") for origin in profile.origins if origin.text == text]


def _order(line: Line) -> tuple[str, str, int]:
    return (line.text, line.origin.file, line.origin.line)


def difference(old: Profile, new: Profile) -> tuple[list[str], list[str]]:
    """(rules only in `old`, rules only in `new`), sorted. Reasons and places do not count."""
    before = {line.text for line in effective(old)}
    after = {line.text for line in effective(new)}
    return sorted(before - after), sorted(after - before)
