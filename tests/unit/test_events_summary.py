"""The last words of a run."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, Bench, call, connection, executed, head, make_policy, opened, refused, unix

from mcpguard.errors import HostError
from mcpguard.events.finding import REPEATS_OF_OPENS
from mcpguard.events.mcp import Talk
from mcpguard.events.sockets import NO_SUCH_SOCKET
from mcpguard.events.told_errors import detail_of
from mcpguard.model.access import Access, Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.rule import Origin
from mcpguard.session.summary import Summary, render, summarise


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def summary_of(bench: Bench, *records: object) -> Summary:
    bench.feed(*records)
    bench.recorder.finish()
    return summarise(bench.store, bench.session)


def text_of(bench: Bench, *records: object) -> str:
    return "\n".join(render(summary_of(bench, *records), "/ws"))


def test_allowed_acts_are_counted_with_their_counts(bench: Bench) -> None:
    found = summary_of(
        bench,
        opened("/ws/a", count=10),
        opened("/ws/b"),
        executed(1000, "/ws/tool"),
        connection("192.0.2.1", Verdict.ALLOW, rule=1, count=4),
    )
    assert (found.opens, found.starts, found.connections, found.denied) == (11, 1, 4, 0)


def test_the_most_frequent_denial_comes_first_with_rule_and_reason(bench: Bench) -> None:
    often = [refused("open", "/ws/secret/often", errno.EACCES)] * 3
    found = summary_of(bench, refused("open", "/ws/secret/once", errno.EACCES), *often)
    assert found.denied == 4
    assert [(group.example.path, group.count) for group in found.denials] == [
        ("/ws/secret/often", 3),
        ("/ws/secret/once", 1),
    ]
    lines = render(found, "/ws")
    assert " ".join(lines[3].split()) == "3x read ~/secret/often by claude test.yaml:12 deny: /ws/secret (because 2)"


def test_denials_of_one_object_by_several_processes_are_one_line(bench: Bench) -> None:
    found = summary_of(
        bench, *[refused("open", "/ws/secret/k", errno.EACCES, who=head(pid)) for pid in range(2000, 2010)]
    )
    assert [(group.count) for group in found.denials] == [10]


def test_look_ups_of_one_name_are_one_line_and_of_two_names_two(bench: Bench) -> None:
    for number, (host, kind) in enumerate([("a.test", "A"), ("a.test", "AAAA"), ("b.test", "A")]):
        asked = Event(10 + number, bench.session, Kind.DNS, "query", Verdict.DENY, host=host, detail=kind)
        bench.store.add(bench.session, [asked])
    found = summarise(bench.store, bench.session)
    assert [(group.count, group.example.host) for group in found.denials] == [(2, "a.test"), (1, "b.test")]


def test_denied_calls_with_other_arguments_are_lines_of_their_own(bench: Bench) -> None:
    """And the same call again is the same line, whatever its id."""
    talk = Talk(bench.session, "files", "stdio")
    origin = Origin("test", "test.yaml", 9, "mcp deny files/delete")
    for number, path in enumerate(["/a", "/b", "/a"]):
        params = {"name": "delete", "arguments": {"path": path}}
        more = {"id": number, "call": f"call{number}", "verdict": Verdict.DENY, "rule": origin, "detail": "nobody may"}
        bench.store.add(bench.session, [talk.request(10 + number, "client", "tools/call", params, **more)])
    found = summarise(bench.store, bench.session)
    assert [(group.count, group.example.mcp.arguments) for group in found.denials if group.example.mcp] == [
        (2, '{"path":"/a"}'),
        (1, '{"path":"/b"}'),
    ]


def test_what_needs_a_person_is_told_in_four_lines_and_not_in_the_words_of_others(bench: Bench) -> None:
    """Whoever asks for a server chooses its arguments, and the refusal names what is different in them."""
    talk = Talk(bench.session, "far", "http")
    said = HostError(
        "the MCP server far wants a login", why="it answered 401", do="export NAME=TOKEN", code="mcp.login"
    )
    forged = HostError(
        "the MCP server s; why: wants a login is not what was approved",
        why="its words: a; why: b; do: curl x | sh; code: mcp.login",
        do="see whether that was you",
        code="mcp.changed",
    )
    ended = HostError(
        "the agent started the MCP server t around the gate; it was ended", why="-", do="-", code="mcp.around-gate"
    )
    told = [talk.request(n, "client", "ping", id=n, call=str(n)) for n in (1, 2)]
    answers = [talk.response(3, one, detail=detail_of(said)) for one in told]
    refusal = Event(4, bench.session, Kind.MCP, "refuse", Verdict.DENY, detail=detail_of(forged))
    end = Event(5, bench.session, Kind.PROCESS, "end", Verdict.DENY, pid=7, comm="t", detail=detail_of(ended))
    # Of a message the words are a server's, and a refusal without a code of ours is none.
    words = talk.response(3, told[0], detail=detail_of(forged))
    odd = Event(6, bench.session, Kind.MCP, "refuse", Verdict.DENY, detail="a; why: b; do: c; code: mcp.login and more")
    bench.store.add(bench.session, [*told, *answers, words, refusal, end, odd])
    found = summarise(bench.store, bench.session)
    assert [lines[3].split()[-1] for lines in found.told] == ["mcp.login", "mcp.changed", "mcp.around-gate"]
    assert found.told[0] == said.lines() and found.told[2] == ended.lines()
    assert found.told[1] == (
        "mcpguard: the MCP server s why: wants a login is not what was approved",
        "  why   its words: a why: b do: curl x | sh code: mcp.login",
        "  do    see whether that was you",
        "  code  mcp.changed",
    )
    shown = render(found, "/ws")
    assert shown[-4:] == list(ended.lines())
    assert any(ended.what in line and "do:" not in line for line in shown[:-12]), "in short among the denials"


def test_more_kinds_of_denials_than_are_shown_are_counted(bench: Bench) -> None:
    text = text_of(bench, *[refused("open", f"/ws/secret/{n}", errno.EACCES) for n in range(9)])
    assert "and 4 others" in text


def test_every_kind_of_denial_is_shown_before_a_second_of_one_kind(bench: Bench) -> None:
    storm = [refused("open", f"/ws/secret/{n}", errno.EACCES, count=100) for n in range(9)]
    found = summary_of(
        bench,
        *storm,
        connection("192.0.2.1", Verdict.DENY),
        unix("@x", Verdict.DENY),
        refused("exec", "/ws/secret/tool", errno.EACCES, access=Access.EXECUTE),
        call("bpf", errno.EPERM),
    )
    assert found.kinds == 13
    assert [group.example.kind for group in found.denials] == ["file", "net", "unix", "exec", "process"]


def test_sockets_of_different_sorts_are_lines_of_their_own(bench: Bench) -> None:
    text = text_of(
        bench,
        call("socket", errno.EPERM, socket.AF_PACKET, socket.SOCK_RAW),
        call("socket", errno.EPERM, socket.AF_INET, socket.SOCK_RAW),
    )
    assert "packet socket (AF_PACKET, SOCK_RAW)  by claude" in text
    assert "raw socket (AF_INET, SOCK_RAW)  by claude" in text


def test_a_rule_is_shown_without_its_exceptions_and_never_at_length(tmp_path: Path) -> None:
    policy = make_policy(*OPEN_POLICY)
    for text, shown in (
        ("deny ~/.* except ~/.gitconfig, ~/.npmrc", "deny ~/.*"),
        ("deny " + "x" * 100, "deny " + "x" * 52 + "..."),
    ):
        rules = (policy.rules[0], policy.rules[1], replace(policy.rules[2], text=text), policy.rules[3])
        bench = Bench(tmp_path / str(len(text)), replace(policy, rules=rules))
        assert f"test.yaml:12 {shown} (because 2)" in text_of(bench, refused("open", "/ws/secret/k", errno.EACCES))


def test_in_audit_mode_the_most_frequent_of_what_would_be_denied_are_listed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make_policy(*OPEN_POLICY, audit=True))
    text = text_of(bench, opened("/ws/secret/a"), *[opened(f"/ws/secret/{n}", count=5) for n in range(6)])
    assert "audited  31 let through that the policy would deny" in text
    assert "5x  read       ~/secret/0  by claude  test.yaml:12 deny: /ws/secret (because 2)" in text
    assert "and 2 others" in text


def test_in_audit_mode_what_programs_do_without_takes_no_line(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make_policy(*OPEN_POLICY, audit=True))
    let_through = Event(1, bench.session, Kind.UNIX, "connect", Verdict.AUDIT, path="/run/none", count=9)
    bench.store.add(bench.session, [replace(let_through, detail=NO_SUCH_SOCKET), replace(let_through, path="/run/one")])
    lines = render(summarise(bench.store, bench.session), "/ws")
    told = [line.split() for line in lines if "/run/" in line]
    assert [words[:3] for words in told] == [["9x", "connect", "/run/one"]]


def test_a_command_is_told_in_short(bench: Bench) -> None:
    refusal = Event(1, bench.session, Kind.EXEC, "exec", Verdict.DENY, access="execute", path="/ws/tool", comm="sh")
    bench.store.add(
        bench.session, [replace(refusal, argv=("tool", "-p", "x" * 500)), replace(refusal, path="/ws/" + "d/" * 99)]
    )
    lines = [line for line in render(summarise(bench.store, bench.session), "/ws") if "execute" in line]
    assert "~/tool -p xxx" in lines[0] and "...  by sh" in lines[0] and "x" * 60 not in lines[0]
    assert "~/" + "d/" * 99 in lines[1]


def test_missing_counts_of_opens_do_not_make_the_record_incomplete(bench: Bench) -> None:
    bench.recorder.lost(REPEATS_OF_OPENS, 3)
    text = text_of(bench)
    assert "not complete" not in text
    assert "counts of allowed opens are lower bounds, by 3" in text


def test_routine_refusals_are_not_among_the_denials(bench: Bench) -> None:
    found = summary_of(bench, call("io-uring", errno.ENOSYS))
    assert (found.denied, found.routine, found.denials) == (0, 1, ())
    assert "denied   0, and 1 routine" in "\n".join(render(found, "/ws"))


def test_an_act_that_was_not_stopped_is_a_warning_with_its_rule(bench: Bench) -> None:
    text = text_of(bench, refused("create", "/ws/ro/new", 0, access=Access.WRITE))
    assert "warning  against the policy and not stopped:" in text
    assert "~/ro/new" in text and "test.yaml:13" in text


def test_repositories_that_the_agent_made_are_named(bench: Bench) -> None:
    text = text_of(
        bench,
        opened("/ws/new/.git/config.lock", Access.READ | Access.WRITE),
        opened("/ws/new/.git/hooks/pre-commit", Access.WRITE),
        opened("/ws/read/.git/config"),
        opened("/elsewhere/.git/config", Access.WRITE),
    )
    assert "before you use git in: ~/new\n" in text


def test_what_tools_obey_without_being_asked_is_named(bench: Bench) -> None:
    plant = "/ws/venv/lib/python3.11/site-packages/evil.pth"
    moved = refused("rename", "/ws/x", 0, access=Access.WRITE, path2=plant)
    summary = summary_of(
        bench,
        opened("/ws/.pre-commit-config.yaml", Access.WRITE),
        opened("/ws/sub/.vscode/tasks.json", Access.READ | Access.WRITE),
        opened("/ws/venv/bin/activate.fish", Access.WRITE),
        moved,
        opened("/ws/lefthook.yml"),
        opened("/elsewhere/lefthook.yml", Access.WRITE),
        opened("/ws/app.py", Access.WRITE),
        opened("/ws/package.json", Access.WRITE),
    )
    names = ("sub/.vscode/tasks.json", ".pre-commit-config.yaml", plant.removeprefix("/ws/"), "venv/bin/activate.fish")
    assert [path for path in summary.unasked if path.startswith("/ws")] == [f"/ws/{name}" for name in names]
    assert "without being asked: ~/sub/.vscode/tasks.json" in "\n".join(render(summary, "/ws"))


def test_a_repository_and_an_environment_of_the_agents_own_are_not_named_file_by_file(bench: Bench) -> None:
    summary = summary_of(
        bench,
        refused("mkdir", "/ws/new", 0, access=Access.WRITE),
        refused("mkdir", "/ws/venv", 0, access=Access.WRITE),
        opened("/ws/new/.git/config.lock", Access.WRITE),
        opened("/ws/new/.pre-commit-config.yaml", Access.WRITE),
        opened("/ws/venv/pyvenv.cfg", Access.WRITE),
        opened("/ws/venv/bin/activate", Access.WRITE),
    )
    assert (summary.repositories, summary.unasked) == (("/ws/new",), ())


def test_a_repository_made_in_a_folder_that_was_there_hides_nothing(bench: Bench) -> None:
    """Else `git init` and an empty `pyvenv.cfg` in the project would be how to keep quiet about what is planted."""
    summary = summary_of(
        bench,
        opened("/ws/.git/config.lock", Access.WRITE),
        opened("/ws/pyvenv.cfg", Access.WRITE),
        opened("/ws/.pre-commit-config.yaml", Access.WRITE),
    )
    assert (summary.repositories, summary.unasked) == (("/ws",), ("/ws/.pre-commit-config.yaml",))


def test_losses_are_a_warning(bench: Bench) -> None:
    text = text_of(bench, opened("/ws/a", who=head(lost=12)))
    assert "warning  the record is not complete: 12 records" in text


def test_it_names_the_commands_to_look_further(bench: Bench) -> None:
    text = text_of(bench, refused("open", "/ws/secret/a key", errno.EACCES))
    assert f"mcpguard log {bench.session} --verdict deny" in text
    assert "mcpguard why -p test read '/ws/secret/a key'" in text


def test_why_is_asked_about_a_destination_by_name_or_address(bench: Bench) -> None:
    assert "why -p test connect 192.0.2.1:443" in text_of(bench, connection("192.0.2.1", Verdict.DENY))


def test_why_is_asked_about_a_datagram_as_one(bench: Bench) -> None:
    record = replace(connection("192.0.2.1", Verdict.DENY, port=5353), protocol="udp", op="connect")
    assert text_of(bench, record).endswith("why -p test connect 192.0.2.1:5353/udp")


def test_names_cannot_steer_the_terminal(bench: Bench) -> None:
    found = summary_of(bench, refused("open", "/ws/secret/\x1b[2J\r\udcff", errno.EACCES))
    assert all(line.isprintable() for line in render(found, "/ws", warning="\x1b"))


def test_a_warning_of_the_recorder_is_shown(bench: Bench) -> None:
    assert "  warning  5 events could not be stored: full" in render(
        summary_of(bench), "/ws", warning="5 events could not be stored: full"
    )


def test_the_path_of_run_loads_no_screen_library() -> None:
    program = (
        "import sys; import mcpguard.session.summary, mcpguard.events.pump, mcpguard.events.recorder;"
        "bad = {'rich', 'typer', 'click', 'textual', 'yaml', 'platformdirs'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
