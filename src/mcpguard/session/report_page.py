"""A report as one HTML page that needs nothing else: no script, no font, no picture from anywhere. Pure.

Every name in it was chosen by whoever is guarded, so everything is escaped, and the page forbids itself to load or run things.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape

from mcpguard.events.format import object_of, printable, shorten, size
from mcpguard.events.totals import Group
from mcpguard.session.process_tree import Process
from mcpguard.session.report import Report, Slice

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--ground:#ffffff;--text:#1a1a1a;--dim:#595959;
--deny:#b71c1c;--allow:#1b6323;--audit:#8a4b00}
@media(prefers-color-scheme:dark){
:root{--ground:#121212;--text:#e6e6e6;--dim:#a6a6a6;--deny:#ff7b72;--allow:#7ec87e;--audit:#ffb74d}}
body{background:var(--ground);color:var(--text)}
body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.15rem .8rem .15rem 0;
vertical-align:top;border-bottom:1px solid var(--line)}td.m{overflow-wrap:anywhere;min-width:9rem}th{font-weight:600}
code,td.m{font-family:ui-monospace,monospace;font-size:.9em}code{overflow-wrap:anywhere}
.deny{color:var(--deny);font-weight:600}.allow{color:var(--allow)}.audit{color:var(--audit);font-weight:600}.dim{color:var(--dim)}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;overflow-wrap:anywhere}
.facts ul{margin:0;padding-left:1.1rem}
.big span{display:inline-block;margin-right:2rem;font-size:1.2rem}summary{cursor:pointer}
ul.tree{list-style:none;padding-left:1.1rem;border-left:1px solid var(--line);margin:.1rem 0}
.warn{border-left:4px solid var(--audit);padding:.2rem .8rem}
svg{width:100%;height:80px;border-bottom:1px solid var(--line);display:block}
.axis{display:flex;justify-content:space-between;gap:1rem;flex-wrap:wrap;font-size:.85em}
@media(max-width:44rem){table,tbody,td{display:block}th,td:empty{display:none}tr:first-child:has(th){display:none}
tr{display:flex;flex-wrap:wrap;gap:0 .8rem;border-bottom:1px solid var(--line);padding:.35rem 0}td{border:0;padding:0}
td.m{flex-basis:100%}}
"""
# Rows of a table that are in sight at once.
_IN_SIGHT = 25


def page(report: Report, home: str) -> str:
    """The whole page.

    Args:
        home: shown as `~`.
    """
    parts = [
        _facts(report, home),
        _timeline(report.timeline),
        _approvals(report, home),
        _later(report, home),
        _groups("Refused", "deny", report.denials, report.left_out.get("denials", 0), home),
        _groups(
            "Against the policy and not stopped",
            "audit",
            report.not_stopped,
            report.left_out.get("not_stopped", 0),
            home,
        ),
        _groups(
            "Let through by --audit", "audit", report.would_be_denied, report.left_out.get("would_be_denied", 0), home
        ),
        _changes(report, home),
        _destinations(report),
        _spoken(report),
        _mismatches(report),
        _programs(report, home),
        f"<h2>Processes</h2><ul class=tree>{''.join(_process(report, pid) for pid in report.processes.roots)}</ul>",
    ]
    title = f"mcpguard: session {escape(report.session.id)}"
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _text(text: str) -> str:
    return escape(printable(text))


def _clock(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _facts(report: Report, home: str) -> str:
    session, summary = report.session, report.summary
    ended = "" if session.ended_ns is None else f", ended {_clock(session.ended_ns)}"
    code = "" if session.exit_code is None else f", exit {session.exit_code}"
    gaps = [f"{held.kind}: {gap}" for held in session.coverage for gap in held.gaps]
    rows = {
        "profile": session.profile,
        "command": " ".join(session.command),
        "workspace": shorten(session.workspace, home),
        "tier": session.tier,
        "time": f"{_clock(session.started_ns)}{ended}",
        "state": f"{session.state}{code}",
    }
    facts = "".join(f"<span class=dim>{name}</span><span>{_text(value)}</span>" for name, value in rows.items())
    listed = "".join(f"<li>{_text(gap)}</li>" for gap in gaps)
    facts += "<span class=dim>gaps</span>" + (
        f"<details><summary>{len(gaps)} things that this host could not hold</summary><ul>{listed}</ul></details>"
        if gaps
        else "<span>none</span>"
    )
    lost = "".join(
        f"<p class=warn>The record is not complete: {count} {_text(what)}</p>" for what, count in summary.losses
    )
    return (
        f"<h1>Session {escape(session.id)}</h1><div class=facts>{facts}</div>"
        f"<p class=big><span class={'deny' if summary.denied else 'dim'}>{summary.denied} refused</span>"
        f"<span>{len(report.changes)} paths changed</span><span>{summary.starts} programs started</span>"
        f"<span>{summary.connections} connections</span><span>{summary.opens} opens</span></p>{lost}"
    )


def _timeline(slices: Sequence[Slice]) -> str:
    if not slices:
        return ""
    high = max(max(one.allowed + one.denied for one in slices), 1)
    width = 1000 / len(slices)
    bars = []
    for at, one in enumerate(slices):
        allowed = 80 * one.allowed / high
        denied = max(80 * one.denied / high, 4) if one.denied else 0
        title = f"<title>{_clock(one.began_ns)}: {one.allowed} allowed, {one.denied} refused or audited</title>"
        bars.append(
            f'<g>{title}<rect x="{at * width:.1f}" y="{80 - allowed:.1f}" width="{width:.1f}" height="{allowed:.1f}" '
            f'fill="var(--allow)" opacity=".5"/><rect x="{at * width:.1f}" y="{80 - allowed - denied:.1f}" '
            f'width="{width:.1f}" height="{denied:.1f}" fill="var(--deny)"/></g>'
        )
    return (
        '<h2>Timeline</h2><svg viewBox="0 0 1000 80" preserveAspectRatio="none" role="img" '
        f'aria-label="events over time, refused ones on top">{"".join(bars)}</svg>'
        f"<div class='axis dim'><span>{_clock(slices[0].began_ns)}</span>"
        "<span>events in each piece of the time; refused or audited ones on top, in red</span>"
        f"<span>{_clock(slices[-1].began_ns)}</span></div>"
    )


def _approvals(report: Report, home: str) -> str:
    if not report.approvals:
        return ""
    rows = [
        f"<tr><td>{_clock(one.time_ns)}</td><td class=m>{_text(one.rule)}</td><td>{_text(one.how)}</td>"
        f"<td class=m>{_text(shorten(one.origin.place, home) if one.origin else one.call or one.why_later)}</td>"
        f"<td class=m>{_text(one.who)}</td></tr>"
        for one in report.approvals
    ]
    head = ("time", "rule", "reaches", "where it stands", "asked by")
    return f"<h2>Allowed while it ran</h2>{_table(head, rows)}{_more(report.left_out.get('approvals', 0))}"


def _later(report: Report, home: str) -> str:
    rows = [
        f"<tr><td class=m>{_text(shorten(one.path, home))}</td>"
        f"<td>{_text(one.why)}{'' if one.stopped else '; <span class=audit>against the policy, not stopped</span>'}</td>"
        f"<td class=m>{_text(one.now)}</td><td>{_text(', '.join(one.programs))}</td></tr>"
        for one in report.later
    ]
    warning = "<p class=warn>Look at these before you go on.</p>" if report.later else ""
    head = ("path", "why", "in it now", "by")
    return f"<h2>What could run later</h2>{warning}{_table(head, rows)}{_more(report.left_out.get('later', 0))}"


def _groups(title: str, style: str, groups: Sequence[Group], more: int, home: str) -> str:
    if not groups:
        return ""
    head = ("times", "what", "object", "by", "rule")
    return f"<h2>{title}</h2>{_table(head, [_group(group, style, home) for group in groups])}{_more(more)}"


def _group(group: Group, style: str, home: str) -> str:
    event = group.example
    rule = (
        "" if event.rule is None else f"{shorten(event.rule.place, home) if event.rule.line else ''} {event.rule.text}"
    )
    because = f" <span class=dim>({_text(group.because)})</span>" if group.because else ""
    what = object_of(event, home) or (event.detail or "")
    return (
        f"<tr><td>{group.count}</td><td class={style}>{_text(event.access or event.op)}</td><td class=m>{_text(what)}</td>"
        f"<td>{_text(event.comm or '?')}</td><td>{_text(rule.strip())}{because}</td></tr>"
    )


def _changes(report: Report, home: str) -> str:
    outside = {change.path for change in report.outside_workspace}
    rows = [
        f"<tr><td class=m>{_text(shorten(change.path, home))}</td><td>{', '.join(change.ways)}</td>"
        f"<td>{_text(', '.join(change.programs))}</td><td>{'outside the workspace' if change.path in outside else ''}</td></tr>"
        for change in report.changes
    ]
    return f"<h2>Changed</h2>{_table(('path', 'how', 'by', ''), rows)}{_more(report.left_out.get('changes', 0))}"


def _destinations(report: Report) -> str:
    rows = [
        f"<tr><td class={one.verdict.value}>{one.verdict.value}</td><td>{one.kind} {one.op}</td>"
        f"<td class=m>{_text((one.host or one.address) + (f':{one.port}' if one.port else ''))}</td>"
        f"<td class=m>{_text(one.address if one.host else '')}</td><td>{one.times or ''}</td>"
        f"<td>{size(one.bytes_sent)}</td><td>{size(one.bytes_received)}</td></tr>"
        for one in report.destinations
    ]
    head = ("verdict", "act", "destination", "address", "times", "sent", "received")
    return f"<h2>Destinations</h2>{_table(head, rows)}{_more(report.left_out.get('destinations', 0))}"


def _spoken(report: Report) -> str:
    rows = [
        f"<tr><td class=m>{_text(one.server)}</td><td>{one.transport}</td><td class=m>{_text(one.method)}</td>"
        f"<td class=m>{_text(one.tool)}</td><td>{one.sender}</td><td>{one.times}</td>"
        f"<td class={'deny' if one.denied else 'dim'}>{one.denied}</td><td>{one.failed}</td></tr>"
        for one in report.spoken
    ]
    head = ("server", "over", "method", "tool", "asked by", "times", "refused", "failed")
    return f"<h2>MCP</h2>{_table(head, rows)}{_more(report.left_out.get('mcp', 0))}" if rows else ""


def _mismatches(report: Report) -> str:
    rows = [
        f"<tr><td class=m>{_text(one.call)}</td><td class=m>{_text(one.server)}</td><td class=m>{_text(one.tool)}</td>"
        f"<td class=audit>{_text(one.words)}</td></tr>"
        for one in report.mismatches
    ]
    table = _table(("call", "server", "tool", "what it did"), rows) + _more(report.left_out.get("mismatches", 0))
    return f"<h2>Calls that did something else than they said</h2>{table}" if rows else ""


def _programs(report: Report, home: str) -> str:
    rows = [
        f"<tr><td class={one.verdict.value}>{one.verdict.value}</td><td class=m>{_text(shorten(one.path, home))}</td>"
        f"<td>{one.times}</td><td class=m>{_text(' '.join(one.argv)[:300])}</td></tr>"
        for one in report.programs
    ]
    head = ("verdict", "program", "times", "last command")
    return f"<h2>Programs</h2>{_table(head, rows)}{_more(report.left_out.get('programs', 0))}"


def _table(head: Iterable[str], rows: Sequence[str]) -> str:
    """A long one is folded after its first rows."""
    if not rows:
        return "<p class=dim>none</p>"
    top = f"<tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>"
    shown = f"<table>{top}{''.join(rows[:_IN_SIGHT])}</table>"
    rest = rows[_IN_SIGHT:]
    folded = (
        f"<details><summary>{len(rest)} more</summary><table>{top}{''.join(rest)}</table></details>" if rest else ""
    )
    return shown + folded


def _more(number: int) -> str:
    return f"<p class=dim>and {number} others: mcpguard log</p>" if number else ""


def _process(report: Report, pid: int, depth: int = 0) -> str:
    process = report.processes.get(pid)
    if process is None or depth > 60:
        return ""
    children = "".join(_process(report, child, depth + 1) for child in process.children)
    return f"<li>{_process_line(process)}{f'<ul class=tree>{children}</ul>' if children else ''}</li>"


def _process_line(process: Process) -> str:
    denied = f" <span class=deny>{process.denied} refused</span>" if process.denied else ""
    folded = f" <span class=dim>and {process.folded} that ended</span>" if process.folded else ""
    return f"<code>{_text(process.name[:160])}</code> <span class=dim>{process.pid}</span>{denied}{folded}"
