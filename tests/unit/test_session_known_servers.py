"""Which approved servers are kept to a profile of ours without a rule of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mcpguard.catalogue.approved import Catalogue, Entry
from mcpguard.errors import UsageError
from mcpguard.kernel import cgroup, landlock
from mcpguard.mcp.policy import AS_AGENT, Kept, McpPolicy
from mcpguard.model.access import Access, Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.rule import Origin
from mcpguard.profile.parse import parse
from mcpguard.session import servers
from mcpguard.session.known_servers import kept, kept_to
from mcpguard.session.offers import offer
from mcpguard.session.policy import compile_for

TIME = {"command": "uvx mcp-server-time", "package": "uvx mcp-server-time 2026.1.26", "installed": "2026.1.26"}
FILES = "@modelcontextprotocol/server-filesystem"


def files(*words: str) -> dict[str, str]:
    command = " ".join(("npx", "-y", FILES, *words))
    return {"command": command, "package": f"npx {FILES} unpinned", "installed": "2026.1.14"}


def found(
    *approved: tuple[str, Mapping[str, str]], rules: tuple[Kept, ...] = (), names: set[str] | None = None
) -> list[str]:
    catalogue = Catalogue(tuple(Entry(name, "x", name, facts, (), "now") for name, facts in approved))
    return [f"{one.server} {one.profile}" for one in kept(McpPolicy(confined=rules), catalogue, names, "/srv/project")]


def test_what_is_known_is_kept_by_the_name_that_it_was_approved_under() -> None:
    assert found(("clock", TIME), ("files", files("/srv/project"))) == [
        "clock mcp-server",
        "files mcp-server-workspace",
    ]
    (one,) = kept(McpPolicy(), Catalogue((Entry("my clock", "x", "d", TIME, (), "now"),)), None, "/srv/project")
    assert one.server == "my_clock" and one.origin.place == "builtin" and "a known server" in one.origin.text


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"command": "uvx thing", "package": "uvx thing 1", "installed": "1"},
        {**TIME, "package": "docker mcp-server-time 1"},
        {name: text for name, text in TIME.items() if name != "installed"},
        {"command": "/srv/bin/mcp-server-time"},
    ],
)
def test_what_is_not_known_or_runs_in_another_way_is_not(facts: dict[str, str]) -> None:
    assert found(("clock", facts)) == []


def test_a_rule_of_the_users_wins() -> None:
    def rule(server: str, profile: str) -> Kept:
        return Kept(server, profile, Origin("mine", "mine.yaml", 1, "mcp confine"))

    assert found(("clock", TIME), rules=(rule("clock", AS_AGENT),)) == []
    assert found(("clock", TIME), ("files", files()), rules=(rule("*", AS_AGENT),)) == []
    assert found(("clock", TIME), rules=(rule("cl*", "own"),)) == []
    assert found(("clock", TIME), rules=(rule("files", "own"),)) == ["clock mcp-server"]


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ([], True),
        (["/srv/project"], True),
        (["."], True),
        (["/srv/project/docs", "./src"], True),
        (["--root=/srv/project"], True),
        (["/srv/other"], False),
        (["/srv/project", "/srv"], False),
        (["/srv/project/../other"], False),
        (["../other"], False),
        (["~/notes"], False),
        (["--root=/srv"], False),
        (["/srv/project-other"], False),
        (["$HOME/notes"], False),
        (["--root=${HOME}/notes"], False),
        (["/srv/my", "project"], False),
        (["/srv/project", "other"], False),
        (["/srv/project/a", "b", "c"], True),
        (["/srv/project/a", "b/../../../x"], False),
        (["--root=/srv/project", "other"], False),
        (["/srv/project", "--verbose", "other"], True),
    ],
)
def test_one_whose_words_name_places_outside_of_the_workspace_is_not(words: list[str], fits: bool) -> None:
    assert bool(found(("files", files(*words)))) is fits


def test_a_link_in_the_workspace_is_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/out").symlink_to(tmp_path)
    project = str(tmp_path / "project")
    assert kept_to(files(project), project) == "mcp-server-workspace"
    for word in (f"{project}/out", "out", "./out", "out/.."):
        assert kept_to(files(word), project) is None
    assert kept_to({**files("."), "folder": "/srv"}, project) is None


def test_one_name_for_different_servers_is_left_alone() -> None:
    """Rules go by names: so is one that would cover another server."""
    assert found(("clock", TIME), ("clock", {"command": "/srv/clock"})) == []
    assert found(("my clock", TIME), ("my_clock", {"command": "/srv/clock"})) == []
    assert found(("clock", TIME), ("clock", {**TIME, "command": "uvx mcp-server-time --local-timezone UTC"})) != []


def test_only_servers_that_the_agent_was_told_of_take_a_place() -> None:
    assert found(("clock", TIME), ("other", TIME), names={"clock"}) == ["clock mcp-server"]
    assert found(*((f"clock-{number}", TIME) for number in range(20)), names=None)[8:] == []


def test_a_host_that_cannot_take_files_away_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    assert found(("clock", TIME)) == []


def test_a_profile_of_the_users_in_the_place_of_ours_that_does_not_fit_is_told_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    policy = compile_for(parse("name: x\nfiles: {read: [/usr]}\n", "x.yaml", name="x").profile, str(tmp_path))
    rule = Kept("clock", "mcp-server", Origin("mcpguard", "builtin", 0, "mcp confine clock mcp-server"))
    _, (one,), failed = servers._known(policy, [rule])
    assert one.server == "clock" and not failed
    own = tmp_path / "config/profiles/mcp-server.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("name: mcp-server\nextends: [mcp-server]\nfiles: {deny: [/usr/secret]}\n")
    _, kept_anyway, (told,) = servers._known(policy, [rule])
    assert kept_anyway == [] and "clock has what its agent has" in told and "/usr/secret" in told


def test_what_is_refused_to_a_kept_server_is_opened_by_no_rule_for_its_agent(tmp_path: Path) -> None:
    rule = Origin("mcpguard", "builtin", 0, "mcp confine clock mcp-server: a known server")
    event = Event(1, "s", Kind.FILE, "open", Verdict.DENY, Access.READ, "/srv/thing", rule=rule)
    with pytest.raises(UsageError) as refused:
        offer(event, str(tmp_path))
    assert refused.value.code == "allow.kept" and "as-agent" in refused.value.do


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("/mcpguard/20260101-000000-aaaa/17", 17),
        ("/mcpguard/20260101-000000-aaaa", None),
        ("/mcpguard/20260101-000000-aaaa/x", None),
        ("/user.slice/20260101-000000-aaaa/17", None),
        ("", None),
    ],
)
def test_the_place_where_a_process_lives_names_the_rule_that_keeps_it(
    place: str, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "place_of", lambda _pid: place)
    assert cgroup.kept_by(1) == number
