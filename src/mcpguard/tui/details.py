"""Everything about one event, for a person: its fields, its rule with file and line, and who started whom. Pure."""

from __future__ import annotations

from rich.text import Text

from mcpguard.events.format import as_json, object_of, printable, shorten
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.policy.compile import DEFAULT
from mcpguard.session.process_tree import Process
from mcpguard.tui.colours import VERDICTS

# Told in words above; the rest is listed as it is.
_TOLD = frozenset(
    ("time", "session", "kind", "op", "verdict", "access", "path", "rule", "pid", "ppid", "exe", "comm", "argv")
)


def what_happened(event: Event | None, home: str) -> Text:
    """Verdict, act and object, whole; a line of its own."""
    text = Text()
    if event is None:
        return text.append("no event chosen: up and down choose one", style="dim")
    word = "LOSS" if event.kind is Kind.LOSS else event.verdict.value.upper()
    text.append(word, style=VERDICTS[word])
    text.append(f"  {event.kind} {event.op} {event.access or ''}  ")
    return text.append(printable(object_of(event, home)) + "\n", style="bold")


def describe(event: Event | None, chain: list[Process], because: str, home: str) -> Text:
    """What there is to say besides.

    Args:
        chain: the process and its parents, the nearest first; may be empty.
        because: the profile's reason for the rule.
    """
    text = Text()
    if event is None:
        return text
    fields = as_json(event)
    if event.rule is not None:
        place = f"{shorten(event.rule.place, home)}  " if event.rule.line else ""
        text.append("rule     ", style="dim").append(printable(f"{place}{event.rule.text}"))
        text.append(f"  ({printable(because)})" if because else "", "dim")
        if event.rule != DEFAULT:
            text.append(f"  profile {printable(event.rule.profile)}", "dim")
        elif event.verdict is Verdict.DENY:
            text.append(" (default deny)", "dim")
        text.append("\n")
    if event.pid is not None:
        text.append("process  ", style="dim").append(printable(f"{event.exe or event.comm or '?'} [{event.pid}]"))
        parents = [f"{printable(process.name)[:40]} [{process.pid}]" for process in chain[1:]]
        text.append(
            "".join(f"  < {parent}" for parent in parents) or ("" if event.ppid is None else f"  < [{event.ppid}]"),
            style="dim",
        ).append("\n")
    if event.argv:
        text.append("command  ", style="dim").append(printable(" ".join(event.argv)) + "\n")
    others = [f"{key} {printable(_plain(value))}" for key, value in fields.items() if key not in _TOLD]
    text.append("event    ", style="dim").append(f"{fields['time']}  " + "  ".join(others))
    return text


def _plain(value: object) -> str:
    """A value of an event's JSON in words: what has parts, part by part."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return str(value)
