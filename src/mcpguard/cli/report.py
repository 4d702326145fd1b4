"""`mcpguard report`: what a session did, as text, JSON, or one HTML page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from mcpguard.cli import render
from mcpguard.cli.sessions import as_json as session_json
from mcpguard.events.activity import Reached
from mcpguard.events.format import as_json as event_json
from mcpguard.events.format import clock, printable, rfc3339, shorten, size
from mcpguard.events.store import Store
from mcpguard.events.totals import Group
from mcpguard.model.values import replace
from mcpguard.session.approvals import Approval
from mcpguard.session.report import Report
from mcpguard.session.report import report as read
from mcpguard.session.report_page import page
from mcpguard.session.run_later import Later
from mcpguard.session.summary import render as summary_lines

_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    session: Annotated[
        str | None, typer.Argument(help="Session id or its beginning; the latest when left out.", show_default=False)
    ] = None,
    format: Annotated[Literal["text", "json", "html"], typer.Option("--format", help="How to print it.")] = "text",
) -> None:
    """Tell what a session did: files changed, programs, destinations, refusals, and what could run later.

    The page of --format html needs nothing else: mcpguard report --format html > report.html
    """
    home = str(Path.home())
    with Store.open(create=False) as store:
        found = read(store, store.session(session).id)
    if format == "json":
        render.as_json(_json(found, home))
    elif format == "html":
        sys.stdout.write(page(found, home))
    else:
        _print(found, home)


def _print(found: Report, home: str) -> None:
    # Told here with their times.
    for line in summary_lines(replace(found.summary, approved=()), home):
        render.line(line)
    for approval in found.approvals[:_SHOWN]:
        render.line(f"  approved {clock(approval.time_ns)}  {printable(approval.rule)}  ({approval.how})")
    _rest(len(found.approvals) + found.left_out.get("approvals", 0) - len(found.approvals[:_SHOWN]))
    outside = found.outside_workspace
    render.line(f"  changed  {len(found.changes)} paths, {len(outside)} of them outside the workspace")
    first = [*outside, *(change for change in found.changes if change not in outside)][:_SHOWN]
    for change in first:
        render.line(
            f"           {shorten(change.path, home)}  {', '.join(change.ways)}  by {', '.join(change.programs)}"
        )
    _rest(len(found.changes) + found.left_out.get("changes", 0) - len(first))
    _print_started(found, home)
    reached = found.destinations
    render.line(f"  reached  {len(reached)} destinations and sockets")
    for one in reached[:_SHOWN]:
        name = (one.host or one.address) + (f":{one.port}" if one.port else "")
        exchanged = f", {size(one.bytes_sent or 0)} sent, {size(one.bytes_received or 0)} received"
        known = one.bytes_sent is not None or one.bytes_received is not None
        render.line(
            f"           {one.verdict.value:<5} {one.op} {printable(name)}  {one.times}x{exchanged if known else ''}"
        )
    _rest(len(reached) - _SHOWN)
    _print_spoken(found)
    later = found.later
    render.line("  later    " + ("nothing was found that runs by itself" if not later else "these could run later:"))
    for point in later[:_SHOWN]:
        why = point.why if point.stopped else f"{point.why}; against the policy, not stopped"
        render.line(f"           {printable(shorten(point.path, home))}  ({printable(why)})")
        if point.now:
            render.line(f"             now: {point.now}")
    _rest(len(later) + found.left_out.get("later", 0) - len(later[:_SHOWN]))


def _print_started(found: Report, home: str) -> None:
    """Programs: refused ones first, then the most frequent."""
    started, left_out = found.programs, found.left_out.get("programs", 0)
    render.line(f"  started  {len(started) + left_out} programs")
    for one in started[:_SHOWN]:
        render.line(f"           {one.verdict.value:<5} {printable(shorten(one.path, home))}  {one.times}x")
    _rest(len(started) + left_out - len(started[:_SHOWN]))


def _print_spoken(found: Report) -> None:
    """Tools and what else was asked of MCP servers; nothing where none was."""
    if not found.spoken:
        return
    servers = {one.server for one in found.spoken}
    render.line(f"  mcp      {sum(one.times for one in found.spoken)} messages with {len(servers)} servers")
    ordered = sorted(found.spoken, key=lambda one: (not one.denied, not one.tool, -one.times))
    for one in ordered[:_SHOWN]:
        asked = one.method if one.sender == "client" else f"asks {one.method}"
        notes = [f"{one.times}x", one.denied and f"{one.denied} refused", one.failed and f"{one.failed} failed"]
        words = ", ".join(note for note in notes if note)
        render.line(f"           {printable(one.server)}  {printable(f'{asked} {one.tool}'.rstrip())}  {words}")
    _rest(len(ordered) + found.left_out.get("mcp", 0) - len(ordered[:_SHOWN]))
    for unlike in found.mismatches[:_SHOWN]:
        what = printable(f"{unlike.server} {unlike.tool}: {unlike.words}")
        render.line(f"           mismatch in call {unlike.call}: {what}")
    _rest(len(found.mismatches) + found.left_out.get("mismatches", 0) - len(found.mismatches[:_SHOWN]))


def _rest(number: int) -> None:
    if number > 0:
        render.line(f"           and {number} more: --format json has up to 500, mcpguard log all")


def _json(found: Report, home: str) -> dict[str, object]:
    summary = found.summary
    return {
        "session": session_json(found.session, summary.denied, complete=not summary.losses),
        "opens": summary.opens,
        "starts": summary.starts,
        "connections": summary.connections,
        "losses": dict(summary.losses),
        "changes": [
            {"path": change.path, "ways": list(change.ways), "programs": list(change.programs)}
            for change in found.changes
        ],
        "programs": [
            {"path": one.path, "verdict": one.verdict.value, "times": one.times, "argv": list(one.argv)}
            for one in found.programs
        ],
        "destinations": [_destination(one) for one in found.destinations],
        "denials": [_group(group) for group in found.denials],
        "not_stopped": [_group(group) for group in found.not_stopped],
        "would_be_denied": [_group(group) for group in found.would_be_denied],
        "mcp": [one._asdict() for one in found.spoken],
        "mismatches": [one._asdict() for one in found.mismatches],
        "approvals": [_approval(one) for one in found.approvals],
        "later": [_later(one) for one in found.later],
        "left_out": found.left_out,
    }


def _destination(one: Reached) -> dict[str, object]:
    """Bytes where they are known."""
    return {key: value for key, value in one._asdict().items() if value is not None}


def _approval(one: Approval) -> dict[str, object]:
    values = {
        "time": rfc3339(one.time_ns),
        "rule": one.rule,
        "scope": one.scope,
        "asked_by": one.who,
        "profile": one.origin.profile if one.origin else None,
        "file": one.origin.file if one.origin else None,
        "line": one.origin.line if one.origin else None,
        "next_run_because": one.why_later or None,
        "call": one.call or None,
    }
    return {key: value for key, value in values.items() if value is not None}


def _later(one: Later) -> dict[str, object]:
    return {
        "what": one.path,
        "why": one.why,
        "kind": one.kind,
        "unasked": one.unasked,
        "stopped": one.stopped,
        "ways": list(one.ways),
        "programs": list(one.programs),
        "times": one.times,
        "now": one.now,
    }


def _group(group: Group) -> dict[str, object]:
    return {"count": group.count, "because": group.because, "example": event_json(group.example)}
