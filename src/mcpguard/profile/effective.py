"""What a profile amounts to with its parents, rule by rule: for `show --resolved`, `diff` and `edit`. Pure."""

from __future__ import annotations

from typing import NamedTuple

from mcpguard.model.profile import Profile
from mcpguard.model.rule import Origin


class Line(NamedTuple):
    """One effective rule; `text` is the same wherever it was written, `origin` is None for what is no rule."""

    text: str
    origin: Origin | None
    because: str


def effective(profile: Profile) -> list[Line]:
    """Every rule, kind by kind, sorted; the same rule in two files stands here twice, with both places."""
    system = profile.system
    groups = (
        [Line(f"command {' '.join(profile.command)}", None, "")] if profile.command else [],
        [Line(f"file {rule.origin.text}", rule.origin, rule.because) for rule in profile.files],
        [Line(rule.origin.text, rule.origin, "") for rule in profile.network],
        [Line(rule.origin.text, rule.origin, "") for rule in profile.sockets],
        [Line(f"environment remove {name}", None, "") for name in profile.environment_remove],
        [Line(f"environment keep {name}", None, "") for name in profile.environment_keep],
        [Line("system user_namespaces true", None, "")] if system.user_namespaces else [],
        [Line("system io_uring true", None, "")] if system.io_uring else [],
    )
    return [line for group in groups for line in sorted(group, key=_order)]


def _order(line: Line) -> tuple[str, str, int]:
    return (line.text, line.origin.file if line.origin else "", line.origin.line if line.origin else 0)


def difference(old: Profile, new: Profile) -> tuple[list[str], list[str]]:
    """(rules only in `old`, rules only in `new`), sorted. Reasons and places do not count."""
    before = {line.text for line in effective(old)}
    after = {line.text for line in effective(new)}
    return sorted(before - after), sorted(after - before)
