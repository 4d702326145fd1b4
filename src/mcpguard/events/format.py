"""Events as text: the JSON and CSV of the command contract, and the columns of a table for a person.

Pure. Names of files and programs are chosen by whoever is guarded: nothing unprintable reaches a terminal unescaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from mcpguard.events.schema import clean, mcp_fields
from mcpguard.model.event import Event, Kind, McpMessage
from mcpguard.model.paths import is_below

# The order of the contract; `rule` stands for its four parts in CSV.
KEYS = (
    *("time", "session", "seq", "kind", "op", "verdict", "access", "path", "target", "host", "address", "port"),
    *("protocol", "pid", "ppid", "exe", "comm", "argv", "rule", "count", "errno", "detail", "mcp"),
    *("bytes_sent", "bytes_received"),
)
RULE_KEYS = ("profile", "file", "line", "text")
CSV_HEADER = tuple(
    column for key in KEYS for column in ([f"rule_{part}" for part in RULE_KEYS] if key == "rule" else [key])
)


class Cells(NamedTuple):
    """An event in the columns of a table, printable, without colour."""

    time: str
    verdict: str
    process: str
    act: str
    object: str
    rule: str
    note: str


def as_json(event: Event) -> dict[str, object]:
    """The event's JSON object; keys without a meaning are absent."""
    values: dict[str, object] = {
        "time": rfc3339(event.time_ns),
        "kind": event.kind.value,
        "verdict": event.verdict.value,
        "argv": None if event.argv is None else [clean(word) for word in event.argv],
        "rule": None,
    }
    if event.rule is not None:
        values["rule"] = {
            "profile": event.rule.profile,
            "file": clean(event.rule.file),
            "line": event.rule.line,
            "text": clean(event.rule.text),
        }
    values["mcp"] = None if event.mcp is None else _mcp(event.mcp)
    found = {key: values[key] if key in values else getattr(event, key) for key in KEYS}
    return {key: clean(v) if isinstance(v, str) else v for key, v in found.items() if v is not None}


def _mcp(message: McpMessage) -> dict[str, object]:
    """Its keys as the contract has them: what was JSON is JSON again."""
    found: dict[str, object] = mcp_fields(message)
    for key in ("id", "arguments"):
        if key in found:
            found[key] = json.loads(str(found[key]))
    return found


def json_line(event: Event, **more: str) -> str:
    """The event as one line of JSON, without the line's end.

    Args:
        more: keys that are not of the event itself.
    """
    # Once more, for halves of characters in a message: as escapes they are JSON.
    return clean(json.dumps(as_json(event) | more, ensure_ascii=False, separators=(",", ":")))


def csv_row(event: Event) -> list[str]:
    """The event's values in the order of CSV_HEADER; argv and mcp as JSON, empty where a value has no meaning."""
    values = as_json(event)
    rule = values.get("rule")
    parts: Mapping[str, object] = rule if isinstance(rule, dict) else {}
    row: list[str] = []
    for key in KEYS:
        if key == "rule":
            row += [str(parts.get(part, "")) for part in RULE_KEYS]
        elif key in ("argv", "mcp"):
            row.append(clean(json.dumps(values[key], ensure_ascii=False)) if key in values else "")
        else:
            row.append(str(values.get(key, "")))
    return row


def cells(event: Event, home: str) -> Cells:
    """The event for a person; `home` is shown as `~`, times are local."""
    when = datetime.fromtimestamp(event.time_ns / 1e9).astimezone()
    who = f"{event.comm or '?'}[{event.pid}]" if event.pid is not None else ""
    act = event.op if event.access is None or event.access == event.op else f"{event.op} {event.access}"
    notes = [
        _exchanged(event),
        f"x{event.count}" if event.count > 1 else "",
        event.errno or "",
        _answer_of(event),
        event.detail or "",
    ]
    return Cells(
        time=when.strftime("%H:%M:%S"),
        verdict="LOSS" if event.kind is Kind.LOSS else event.verdict.value.upper(),
        process=printable(who),
        act="" if event.kind is Kind.LOSS else act,
        object=printable(object_of(event, home)),
        rule=printable(place_of(event)),
        note=printable("  ".join(note for note in notes if note)),
    )


def object_of(event: Event, home: str) -> str:
    """What the act was about, in one word or two."""
    if event.mcp is not None:
        message = event.mcp
        return " ".join(
            word for word in (message.server, message.method or "?", message.tool, message.arguments) if word
        )
    if event.kind is Kind.NET and event.address:
        address = f"[{event.address}]" if ":" in event.address else event.address
        port = f":{event.port}" if event.port is not None else ""
        name = f"{event.host}{port} ({address})" if event.host else f"{address}{port}"
        return f"{name}/{event.protocol}" if event.protocol else name
    if event.argv:
        return " ".join([shorten(event.path or "?", home), *event.argv[1:]])
    text = shorten(event.path or event.host or "", home)
    return f"{text} -> {shorten(event.target, home)}" if event.target is not None else text


def _exchanged(event: Event) -> str:
    if event.bytes_sent is None and event.bytes_received is None:
        return ""
    return f"{size(event.bytes_sent or 0)} sent  {size(event.bytes_received or 0)} received"


def _answer_of(event: Event) -> str:
    """Of a response: how long it took, how large it is, what went wrong."""
    if event.mcp is None or event.op != "response":
        return ""
    message = event.mcp
    took = None if message.duration_ns is None else f"{message.duration_ns / 1e6:.1f} ms"
    size = None if message.result_bytes is None else f"{message.result_bytes} B"
    return "  ".join(part for part in (took, size, message.error and f"error: {message.error}") if part)


def place_of(event: Event) -> str:
    """The rule's `file:line`, the folder left out; its text where there is no line."""
    if event.rule is None:
        return ""
    if not event.rule.line:
        return event.rule.text
    return event.rule.place.rsplit("/", 1)[-1]


def shorten(path: str, home: str) -> str:
    """`~` for the home directory."""
    if home not in ("", "/") and is_below(path, home):
        return "~" + path[len(home) :]
    return path


def size(number: int | None) -> str:
    """Bytes for a person, in at most 6 columns; empty where they are not known."""
    if number is None:
        return ""
    value, units = float(number), iter(("", "K", "M", "G", "T"))
    unit = next(units)
    while value >= 999.5 and unit != "T":
        value, unit = value / 1024, next(units)
    return f"{value:.0f}{unit}" if not unit or value >= 100 else f"{value:.3g}{unit}"


def clock(time_ns: int) -> str:
    """The person's own time of day, seconds and no more."""
    return datetime.fromtimestamp(time_ns / 1e9).astimezone().strftime("%H:%M:%S")


def rfc3339(time_ns: int) -> str:
    """RFC 3339 with microseconds, in UTC."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"


def printable(text: str) -> str:
    """Text that cannot move a cursor, change a colour or turn its direction."""
    text = clean(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
