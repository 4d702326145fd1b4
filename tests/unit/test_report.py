"""The report of a session: what is in it, and that its page holds nothing that could run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from events_help import OPEN_POLICY, make_policy
from typer.testing import CliRunner

from mcpguard.cli.commands import build
from mcpguard.events.format import clock
from mcpguard.events.mcp import Talk
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, McpMessage, Peer
from mcpguard.model.rule import Origin
from mcpguard.session import report as reports
from mcpguard.session.live import APPROVED
from mcpguard.session.report import Report, report
from mcpguard.session.report_page import page

BEGAN_NS = 1_760_000_000_000_000_000
ODD = "/ws/<script>alert(1)</script>\x1b[31m"


class Recorded:
    def __init__(self, path: Path) -> None:
        self.policy = make_policy(*OPEN_POLICY)
        self.store = Store.open(path)
        self.id = self.store.start_session(self.policy, command=("agent",), tier="t", coverage=(), now_ns=BEGAN_NS)
        self._now = BEGAN_NS

    def add(self, kind: Kind, op: str, verdict: Verdict = Verdict.ALLOW, **fields: Any) -> None:
        self._now += 1_000_000_000
        given = {"pid": 10, "ppid": 1, "comm": "tool", "exe": "/usr/bin/tool"} | fields
        self.store.add(self.id, [Event(self._now, self.id, kind, op, verdict, **given)])

    def wrote(self, op: str, path: str, target: str | None = None) -> None:
        self.add(Kind.FILE, op, access="write", path=path, target=target)

    def read(self) -> Report:
        return report(self.store, self.id)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    made = Recorded(tmp_path / "state/events.db")
    yield made
    made.store.close()


def test_changes_are_told_by_path_with_how_and_by_whom(recorded: Recorded) -> None:
    recorded.wrote("create", "/ws/new")
    recorded.wrote("rename", "/ws/new", "/ws/newer")
    recorded.wrote("unlink", "/elsewhere/old")
    recorded.wrote("open", "/dev/null")
    recorded.add(Kind.FILE, "open", access="read", path="/ws/read")
    recorded.add(Kind.FILE, "open", Verdict.DENY, access="write", path="/ws/refused")
    found = recorded.read()
    assert [(one.path, one.ways) for one in found.changes] == [
        ("/elsewhere/old", ("removed",)),
        ("/ws/new", ("created", "renamed away")),
        ("/ws/newer", ("renamed to",)),
    ]
    assert found.changes[0].programs == ("tool",)
    assert found.outside_workspace == (found.changes[0],)


def test_a_repositorys_own_files_are_one_line_and_a_new_one_could_run_later(recorded: Recorded) -> None:
    for name in ("HEAD", "config", "objects/ab"):
        recorded.wrote("create", f"/ws/sub/.git/{name}")
    found = recorded.read()
    assert [(one.path, one.ways) for one in found.changes] == [("/ws/sub/.git", ("inside",))]
    assert [(one.path, one.kind) for one in found.later] == [("/ws/sub", "repository")]


def test_lists_are_bounded_and_say_what_they_leave_out(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MOST", 2)
    for number in range(5):
        recorded.wrote("create", f"/ws/f{number}")
        recorded.add(Kind.FILE, "open", Verdict.DENY, access="read", path=f"/ws/secret/{number}")
    found = recorded.read()
    assert (len(found.changes), len(found.denials)) == (2, 2)
    assert found.left_out == {"changes": 3, "denials": 3}
    assert "and 3 others" in page(found, "/home/u")


def test_the_timeline_holds_every_event_once(recorded: Recorded) -> None:
    for number in range(300):
        recorded.wrote("create", f"/ws/f{number}")
    recorded.add(Kind.FILE, "open", Verdict.DENY, access="read", path="/ws/secret/x", count=7)
    pieces = recorded.read().timeline
    assert len(pieces) <= reports.SLICES
    assert (sum(one.allowed for one in pieces), sum(one.denied for one in pieces)) == (300, 7)


def test_calls_that_did_something_else_than_they_said_are_told(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk(recorded.id, "files", "stdio", Peer(9, "/usr/bin/agent"), Peer(10, "/usr/bin/server"))
    read = talk.request(
        BEGAN_NS, "client", "tools/call", {"name": "<read>", "arguments": {"path": "/ws/a"}}, id=1, call="c1"
    )
    recorded.store.add(recorded.id, [read])
    for path in ("/ws/a", "/ws/b", "/ws/b"):
        recorded.add(Kind.FILE, "open", access="read", path=path)
    found = recorded.read()
    words = "open /ws/b: the call does not name it"
    assert [one._asdict() for one in found.mismatches] == [
        {"call": "c1", "server": "files", "tool": "<read>", "words": words}
    ]
    assert f"&lt;read&gt;</td><td class=audit>{words}" in page(found, "/home/u")
    monkeypatch.setattr(reports, "_MOST_READ", 1)
    assert recorded.read().mismatches == () and "something else" not in page(recorded.read(), "/home/u")


class Page(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_names_become_text_and_the_page_may_load_nothing(recorded: Recorded) -> None:
    recorded.wrote("create", ODD)
    recorded.wrote("create", f"{ODD}/.mcp.json")
    recorded.add(Kind.PROCESS, "fork", pid=77, ppid=10, exe="/usr/bin/x", comm="<i>", argv=("<object>", "</ul>"))
    recorded.add(Kind.FILE, "open", Verdict.DENY, access="read", path=ODD, comm="<b>")
    recorded.add(Kind.EXEC, "exec", access="execute", path=ODD, argv=("<img src=x onerror=y>",))
    recorded.add(Kind.NET, "connect", host='"><svg onload=x>', address="192.0.2.1", port=1, protocol="tcp")
    text = page(recorded.read(), "/home/u")
    seen = Page()
    seen.feed(text)
    assert not seen.tags & {"script", "img", "iframe", "link", "object", "b", "i", "a", "form", "base"}
    assert text.count("http-equiv") == 1 and "url(" not in text and "@import" not in text
    assert not {name for name in seen.attributes if name.startswith("on")} | (seen.attributes & {"src", "href"})
    assert "default-src 'none'" in text and "\x1b" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_every_colour_of_the_page_stands_out_from_its_ground(recorded: Recorded) -> None:
    """By 4.5 to 1, as the web's accessibility guidelines ask of text."""

    def light(code: str) -> float:
        parts = [int(code[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05

    themes = re.findall(r":root\{([^}]*--ground[^}]*)\}", page(recorded.read(), "/home/u"))
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--(\w+):#(\w{6})\b", theme))
        assert set(colours) == {"ground", "text", "dim", "deny", "allow", "audit"}
        ground = light(colours.pop("ground"))
        for name, code in colours.items():
            assert max(light(code), ground) / min(light(code), ground) >= 4.5, name


def test_what_was_allowed_while_it_ran_is_told_with_when_and_how_far(recorded: Recorded) -> None:
    profile = Origin("p", "/home/u/p.yaml", 3, "read /srv/a")
    watch = Origin(APPROVED, APPROVED, 0, "network allow 10.0.0.1:443")
    recorded.add(Kind.PROCESS, "approve", rule=watch, detail="once, by watch, in the profile, by x[7]")
    recorded.add(Kind.PROCESS, "approve", rule=profile, detail="in the profile, by watch[8]")
    recorded.add(Kind.PROCESS, "approve", detail="read /srv/b: not now, for tier 3; for the session, by watch[9]")
    recorded.add(Kind.PROCESS, "approve", detail="read /srv/c: not now, for tier 3; in the profile, by watch[9]")
    recorded.add(Kind.PROCESS, "approve", Verdict.DENY, pid=5, detail="asked this session for more rules")
    found = recorded.read()
    assert [(one.rule, one.scope, one.how, one.who) for one in found.approvals] == [
        ("network allow 10.0.0.1:443", "once", "once", "watch, in the profile, by x[7]"),
        ("read /srv/a", "profile", "in the profile", "watch[8]"),
        ("read /srv/b", "session", "not in this session, nor written for the next run", "watch[9]"),
        ("read /srv/c", "profile", "the next run has it", "watch[9]"),
    ]
    assert found.summary.approved == tuple(f"{one.rule} ({one.how})" for one in found.approvals)
    text = page(found, "/home/u")
    assert "Allowed while it ran" in text and "~/p.yaml:3" in text and "tier 3" in text
    printed = CliRunner().invoke(build(), ["report", recorded.id]).output
    assert f"  approved {clock(BEGAN_NS + 1_000_000_000)}  network allow 10.0.0.1:443  (once)" in printed
    told = json.loads(CliRunner().invoke(build(), ["report", recorded.id, "--format", "json"]).output)["approvals"]
    assert told[1]["file"] == "/home/u/p.yaml" and told[1]["line"] == 3 and told[1]["scope"] == "profile"
    assert told[2]["next_run_because"] == "tier 3" and "file" not in told[2]


def test_calls_that_a_person_let_go_on_stand_beside_the_rules(recorded: Recorded) -> None:
    asked = Origin("p", "/home/u/p.yaml", 3, "mcp ask s/*")
    message = McpMessage("s", "stdio", "client", call="c1", method="tools/call", tool="<send>")
    other = McpMessage("s", "stdio", "client", call="c2", method="tools/call", tool="read")
    recorded.add(Kind.MCP, "request", mcp=message, rule=asked, detail="allowed once in watch, by watch[7]")
    recorded.add(Kind.MCP, "request", mcp=other, detail="allowed for the session in watch, by watch[7]")
    recorded.add(Kind.MCP, "request", Verdict.DENY, mcp=other, detail="refused in watch, by watch[7]")
    recorded.add(Kind.MCP, "request", mcp=other, detail="its answer counts as written by strangers")
    found = recorded.read()
    assert [(one.rule, one.how, one.who, one.call) for one in found.approvals] == [
        ("mcp call s/<send>", "once", "watch[7]", "c1"),
        ("mcp call s/read", "for the session", "watch[7]", "c2"),
    ]
    text = page(found, "/home/u")
    assert "mcp call s/&lt;send&gt;" in text and "~/p.yaml:3" in text and ">c2<" in text
    assert "mcp call s/read  (for the session)" in CliRunner().invoke(build(), ["report", recorded.id]).output
    told = json.loads(CliRunner().invoke(build(), ["report", recorded.id, "--format", "json"]).output)["approvals"]
    assert [(one["call"], one["scope"], one.get("line")) for one in told] == [
        ("c1", "once", 3),
        ("c2", "session", None),
    ]


def test_a_long_table_is_folded_and_loses_nothing(recorded: Recorded) -> None:
    for number in range(40):
        recorded.wrote("create", f"/ws/f{number}")
    text = page(recorded.read(), "/home/u")
    assert "<summary>15 more</summary>" in text
    assert all(text.count(f"/ws/f{number}<") == 1 for number in range(40))


def test_an_empty_session_has_a_report(recorded: Recorded) -> None:
    found = recorded.read()
    assert (found.timeline, found.changes) == ((), ())
    assert "<h1>" in page(found, "/home/u")


@pytest.mark.parametrize("format", ["text", "json", "html"])
def test_the_command_prints_each_form(format: str, recorded: Recorded) -> None:
    recorded.wrote("create", "/ws/new")
    recorded.wrote("create", "/ws/sub/.git/config")
    recorded.add(Kind.FILE, "open", Verdict.DENY, access="read", path="/ws/secret/key", rule=recorded.policy.rules[2])
    recorded.add(Kind.EXEC, "exec", Verdict.ALLOW, access="execute", path="/usr/bin/made", argv=("made",))
    done = CliRunner().invoke(build(), ["report", recorded.id[:18], "--format", format])
    assert done.exit_code == 0, done.output
    if format == "json":
        told = json.loads(done.stdout)
        assert told["changes"][0] == {"path": "/ws/new", "ways": ["created"], "programs": ["tool"]}
        assert told["denials"][0]["example"]["path"] == "/ws/secret/key"
        assert told["later"][0]["what"] == "/ws/sub"
    else:
        assert all(word in done.stdout for word in ("/ws/new", "/ws/secret/key", "/ws/sub", "/usr/bin/made"))


def test_what_was_asked_of_mcp_servers_is_in_every_form(recorded: Recorded) -> None:
    talk = Talk(recorded.id, ODD, "stdio", Peer(10, "/usr/bin/tool"), Peer(11, "/usr/bin/node"))
    asked = talk.request(BEGAN_NS, "client", "tools/call", {"name": "read", "arguments": {}}, id=1, call="a")
    refused = talk.request(BEGAN_NS, "client", "tools/call", {"name": "kill"}, id=2, call="b", verdict=Verdict.DENY)
    events = [asked, talk.response(BEGAN_NS + 1_000_000, asked, error=(None, "no")), refused]
    recorded.store.add(recorded.id, events)
    told = recorded.read()
    assert [(one.tool, one.times, one.denied, one.answered, one.failed, one.took_ns) for one in told.spoken] == [
        ("read", 1, 0, 1, 1, 1_000_000),
        ("kill", 1, 1, 0, 0, 0),
    ]
    text = page(told, "/home/u")
    assert "<h2>MCP</h2>" in text and "<script>" not in text
