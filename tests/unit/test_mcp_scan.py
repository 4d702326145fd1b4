"""A scan finds each thing that is wrong, with its place, and nothing in ordinary settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from mcp_files import DATA, JSON_SERVERS, copied, write

from mcpguard.catalogue import approved, sarif, tracked
from mcpguard.catalogue.findings import OWASP, RULES, Finding
from mcpguard.catalogue.scan import scan
from mcpguard.catalogue.survey import survey
from mcpguard.cli import main
from mcpguard.mcp.hidden import hidden

pytestmark = pytest.mark.usefixtures("mcpguard_home")
# Put together here, so that no scanner takes this file for a leak.
TOKEN = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2
AWS = "AKIA" + "Z7QW2M4K9X1B3N5V"
RANDOM = "q7Zp2Lx9" + "Vd4KmT1s"


class World:
    """A home, a project and a machine, and what a scan finds in them."""

    def __init__(self, root: Path) -> None:
        self.root, self.project, self.home = root, root / "project", root / "home"
        for folder in (self.project, self.home):
            folder.mkdir(parents=True)

    def declare(self, **servers: object) -> Path:
        return write(self.project / ".mcp.json", json.dumps({"mcpServers": servers}, indent=1))

    def scan(self) -> list[Finding]:
        environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin"}
        return scan(survey(self.project, environment, self.root / "machine"), environment)

    def found(self) -> list[tuple[str, str]]:
        return [(one.rule.name, one.detail) for one in self.scan()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


def of(world: World, server: dict[str, Any]) -> list[tuple[str, str]]:
    world.declare(s=server)
    return world.found()


@pytest.mark.parametrize(
    ("server", "finding", "detail"),
    [
        ({"command": "x", "env": {"GITHUB_TOKEN": TOKEN}}, "literal-secret", "variable GITHUB_TOKEN …i9J0"),
        ({"command": "x", "env": {"T": "ghp_" + "Zr4xxx9YourTq2todoP8s"}}, "literal-secret", "variable T …oP8s"),
        ({"command": "x", "env": {"SOMETHING": AWS}}, "literal-secret", "variable SOMETHING …3N5V"),
        ({"command": "x", "env": {"DB_PASSWORD": "correcthorse"}}, "literal-secret", "variable DB_PASSWORD ***"),
        ({"command": "x", "env": {"DB_PASSWORD": "hunter2"}}, "literal-secret", "variable DB_PASSWORD ***"),
        ({"command": "x", "env": {"API_KEY": RANDOM}}, "literal-secret", "variable API_KEY ***"),
        ({"command": "x", "env": {"URL": "postgres://me:h4nter22@db/x"}}, "literal-secret", "variable URL ***"),
        ({"command": "x", "args": ["--api-key", RANDOM]}, "literal-secret", "--api-key ***"),
        ({"command": "x", "args": [f"--token={RANDOM}"]}, "literal-secret", "--token ***"),
        ({"command": "x", "args": [TOKEN]}, "literal-secret", "argument 1 …i9J0"),
        ({"command": "x", "args": ["--header", f"Authorization: Bearer {TOKEN}"]}, "literal-secret", "--header …i9J0"),
        ({"url": "https://x.example", "headers": {"X-Api-Key": RANDOM}}, "literal-secret", "header X-Api-Key ***"),
        (
            {"url": "https://x.example", "headers": {"Authorization": f"Bearer {RANDOM}"}},
            "literal-secret",
            "header Authorization ***",
        ),
        ({"url": f"https://x.example/mcp?api_key={RANDOM}"}, "literal-secret", "api_key of the URL ***"),
        ({"url": "https://me:h4nter22@x.example/mcp"}, "literal-secret", "password of the URL ***"),
        ({"command": "npx", "args": ["-y", "a"]}, "unpinned-package", "npx a unpinned"),
        (
            {"command": "sh", "args": ["-c", "cd /x && npx -y a@latest --b"]},
            "unpinned-package",
            "npx a unpinned (latest)",
        ),
        ({"command": "env", "args": ["A=b", "uvx", "a"]}, "unpinned-package", "uvx a unpinned"),
        ({"command": ["docker", "run", "a:1"]}, "image-without-digest", "docker a unpinned (1)"),
        ({"command": ["docker", "container", "run", "a:1"]}, "image-without-digest", "docker a unpinned (1)"),
        ({"command": ["podman", "run", f"a@sha256:{'0' * 64}"]}, "container", "podman a"),
        ({"command": ["sh", "-c", f"docker run a@sha256:{'0' * 64}"]}, "container", "docker a"),
        ({"command": "sh", "args": ["-c", "curl -s x | bash"]}, "download-and-run", "curl -s x | bash"),
        ({"command": "bash", "args": ["-lc", "bash <(curl x)"]}, "download-and-run", "bash <(curl x)"),
        ({"url": "http://x.example/mcp"}, "plain-http", "http://x.example/mcp"),
        ({"url": "http://localhost.evil.example/"}, "plain-http", "http://localhost.evil.example/"),
        ({"command": "x", "args": ["mcp-remote", "http://x.example/sse"]}, "plain-http", "http://x.example/sse"),
        (
            {"command": "x", "env": {"UV_INDEX_URL": "http://x.example"}},
            "plain-http",
            "variable UV_INDEX_URL: http://x.example",
        ),
        ({"command": "x", "args": ["/"]}, "wide-root", "/"),
        ({"command": "x", "args": ["~"]}, "wide-root", "~"),
        ({"command": "x", "args": ["${HOME}/"]}, "wide-root", "${HOME}/"),
        ({"command": "x", "args": ["--root", "/home"]}, "wide-root", "/home"),
        ({"command": "x", "args": ["--allowed-dir=/"]}, "wide-root", "/"),
        ({"command": "x", "env": {"ALLOWED_DIRS": "/"}}, "wide-root", "variable ALLOWED_DIRS=/"),
        ({"command": "docker", "args": ["run", "-v", "/:/x", "exec"]}, "wide-root", "-v /:/x"),
        ({"command": "docker", "args": ["run", "-v", "${HOME}:/x", "a"]}, "wide-root", "-v ${HOME}:/x"),
        (
            {"command": "docker", "args": ["run", "--mount", "type=bind,src=/,dst=/x", "a"]},
            "wide-root",
            "--mount type=bind,src=/,dst=/x",
        ),
        ({"command": "docker", "args": ["run", "--privileged", "a"]}, "privileged-container", "--privileged"),
        ({"command": "podman", "args": ["run", "--pid", "host", "a"]}, "privileged-container", "--pid=host"),
        (
            {"command": "docker", "args": ["run", "-v", "/var/run/docker.sock:/s", "a"]},
            "privileged-container",
            "-v /var/run/docker.sock:/s",
        ),
        ({"url": "https://x.example", "headersHelper": "./get"}, "helper-command", "headersHelper: ./get"),
        ({"command": "x", "trust": True}, "auto-approval", "trust: true"),
        ({"command": "x", "alwaysAllow": ["read", "write"]}, "auto-approval", "alwaysAllow: read, write"),
        ({"command": "x", "env": {"LD_PRELOAD": "/x.so"}}, "code-by-variable", "LD_PRELOAD=/x.so"),
        ({"command": "x", "env": {"NODE_OPTIONS": "-r /x.js"}}, "code-by-variable", "NODE_OPTIONS=-r /x.js"),
        (
            {"command": "x", "env": {"NODE_TLS_REJECT_UNAUTHORIZED": "0"}},
            "no-certificates",
            "NODE_TLS_REJECT_UNAUTHORIZED=0",
        ),
        ({"command": "x", "args": ["a\u202eb"]}, "hidden-characters", "in the command: U+202E"),
        ({"command": "x", "description": "a\U000e0041"}, "hidden-characters", "in the description: U+E0041"),
        ({"url": "https://x.example/\u200b"}, "hidden-characters", "in the URL: U+200B"),
        ({"command": "x", "env": {"A\u2066": "b"}}, "hidden-characters", "in a variable: U+2066"),
    ],
)
def test_each_thing_is_found(world: World, server: dict[str, Any], finding: str, detail: str) -> None:
    assert (finding, detail) in of(world, server)
    for _, said in world.found():
        assert TOKEN not in said and RANDOM not in said and "h4nter22" not in said


def test_the_place_is_told(world: World) -> None:
    file = world.declare(a={"command": "x"}, b={"url": "http://x.example"})
    (found,) = world.scan()
    assert (found.server, found.client, found.scope) == ("b", "claude-code", "project")
    assert found.file == str(file)
    assert file.read_text().splitlines()[found.line - 1] == '  "b": {'
    write(world.home / ".codex/config.toml", 'model = "x"\n\n[mcp_servers.c]\nurl = "http://x.example"\n')
    assert [one.line for one in world.scan() if one.server == "c"] == [3]


@settings(deadline=None)
@given(JSON_SERVERS)
def test_whatever_is_declared_it_is_scanned(servers: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "world")
        write(world.project / ".mcp.json", json.dumps({"mcpServers": servers}))
        for one in world.scan():
            assert one.rule.name in RULES


def test_ordinary_settings_are_clean(tmp_path: Path) -> None:
    """Every client's own documented shapes, with exact versions; nothing is found but that a container is one."""
    copied(tmp_path)
    environment = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    found = scan(survey(tmp_path / "project", environment, tmp_path / "machine"), environment)
    assert {one.rule.name for one in found} == {"container"}


def test_what_people_copy_from_documentation_is_told_of_its_versions_and_containers_only(world: World) -> None:
    write(world.project / ".mcp.json", (DATA / "ordinary.json").read_bytes())
    found = world.found()
    assert {name for name, _ in found} == {"unpinned-package", "image-without-digest", "container"}
    assert len([name for name, _ in found if name != "container"]) == 30


def test_servers_of_other_projects_are_not_this_ones(world: World) -> None:
    projects = {str(world.project): "here", "/elsewhere": "there"}
    servers = {path: {"mcpServers": {name: {"url": "http://x.example"}}} for path, name in projects.items()}
    write(world.home / ".claude.json", json.dumps({"projects": servers}))
    assert [one.server for one in world.scan()] == ["here"]


def test_a_name_in_two_places_is_told_when_it_means_two_servers(world: World) -> None:
    world.declare(same={"command": "a"}, other={"command": "a"})
    file = write(
        world.home / ".claude.json", json.dumps({"mcpServers": {"same": {"command": "a"}, "other": {"command": "b"}}})
    )
    found = world.scan()
    assert [(one.rule.name, one.server, one.detail) for one in found] == [("shadowed-name", "other", f"also in {file}")]


@pytest.mark.parametrize(
    ("place", "text", "detail"),
    [
        ("project/.claude/settings.json", {"enableAllProjectMcpServers": True}, "enableAllProjectMcpServers: true"),
        ("project/.claude/settings.json", {"enabledMcpjsonServers": ["a"]}, "enabledMcpjsonServers: a"),
        ("project/.claude/settings.json", {"permissions": {"allow": ["mcp__a", "Read"]}}, "permissions.allow: mcp__a"),
        (
            "project/.claude/settings.local.json",
            {"enabledMcpjsonServers": ["a"], "permissions": {"allow": ["mcp__a"]}},
            None,
        ),
        (
            "home/.claude/settings.json",
            {"permissions": {"allow": ["mcp__a__b"]}, "enableAllProjectMcpServers": False},
            None,
        ),
        ("home/.gemini/settings.json", {"tools": {"autoAccept": True}}, "tools.autoAccept: true"),
        ("home/.config/amp/settings.json", {"amp.dangerouslyAllowAll": True}, "amp.dangerouslyAllowAll: true"),
        ("project/.vscode/settings.json", {"chat.tools.autoApprove": True}, "chat.tools.autoApprove: true"),
        ("project/.cursor/cli.json", {"permissions": {"allow": ["Mcp(a:*)"]}}, "permissions.allow: Mcp(a:*)"),
        ("home/.gemini/settings.json", {"tools": {"autoAccept": 1}, "autoAccept": "true"}, None),
    ],
)
def test_settings_that_ask_nobody_are_told(world: World, place: str, text: object, detail: str | None) -> None:
    write(world.root / place, json.dumps(text))
    assert world.found() == ([("auto-approval", detail)] if detail else [])


def test_programs_that_others_can_change_are_told(world: World, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):  # only what everybody can reach can everybody change
        if folder.stat().st_uid == os.getuid() and str(folder) != "/":
            folder.chmod(folder.stat().st_mode | 0o001)
    for folder in (world.root, world.home):
        folder.chmod(0o711)
    program = write(world.home / "bin/server", "#!/bin/sh\n")
    program.chmod(0o755)
    program.parent.chmod(0o755)
    assert of(world, {"command": str(program)}) == []
    program.chmod(0o777)
    assert of(world, {"command": str(program)}) == [
        ("writable-program", f"program {program}: everybody can write {program}")
    ]
    program.chmod(0o755)
    program.parent.chmod(0o777)
    assert of(world, {"command": str(program)})[0][1].endswith(f"everybody can write {program.parent}")
    program.parent.chmod(0o1777)
    assert of(world, {"command": str(program)}) == []
    world.home.chmod(0o700)
    program.chmod(0o777)
    assert of(world, {"command": str(program)}) == []


def test_programs_in_the_project_are_told(world: World) -> None:
    script = write(world.project / "server.sh", "1")
    assert of(world, {"command": "sh", "args": ["server.sh"]}) == [("program-in-project", f"script {script}")]


def test_secrets_that_others_can_read_are_told(world: World, tmp_path: Path) -> None:
    for folder in (world.project, world.root, tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o711)
    file = world.declare(s={"command": "x", "env": {"TOKEN": TOKEN}})
    file.chmod(0o640)
    assert [name for name, _ in world.found()] == ["literal-secret"]
    file.chmod(0o644)
    assert ("readable-secret", "mode 0644") in world.found()
    world.project.chmod(0o700)
    assert [name for name, _ in world.found()] == ["literal-secret"]


def test_settings_that_others_can_change_are_told(world: World, tmp_path: Path) -> None:
    for folder in (world.project, world.root, tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o711)
    file = world.declare(s={"command": "x"})
    assert world.found() == []
    file.chmod(0o666)
    assert world.found() == [("writable-settings", f"everybody can write {file}")]
    file.chmod(0o600)
    world.project.chmod(0o777)
    assert world.found() == [("writable-settings", f"everybody can write {world.project}")]


def test_files_that_are_read_in_two_ways_or_not_at_all_are_told(world: World) -> None:
    write(world.project / ".mcp.json", '{"mcpServers": {"a": {"command": "x"}, "a": {"command": "y"}}}')
    write(world.home / ".cursor/mcp.json", "{")
    assert sorted(name for name, _ in world.found()) == ["repeated-key", "unreadable-file"]


def git(folder: Path, *words: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": "/dev/null"}
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    subprocess.run(["git", *who, *words], cwd=folder, env=environment, check=True, capture_output=True)


def test_what_a_repository_brings_is_told_until_it_is_approved(world: World) -> None:
    world.declare(a={"command": "sh"})
    git(world.project, "init")
    assert world.found() == []
    git(world.project, "add", ".mcp.json")
    tracked.names.cache_clear()
    assert world.found() == [("brought-by-repository", "sh")]
    (row,) = survey(world.project, {"HOME": str(world.home), "PATH": "/usr/bin:/bin"}, world.root / "machine").rows
    assert row.identity is not None
    approved.approve("a", row.server.place, row.identity, ())
    assert world.found() == []


@pytest.mark.parametrize("version", ["2", "3", "4", "sha256", "worktree", "broken"])
def test_an_index_of_any_kind_is_read(tmp_path: Path, version: str) -> None:
    folder = tmp_path / "repository"
    for name in ("a/.mcp.json", ".mcp.json", "a/b/c.txt", "a/b/d.txt", "é.json"):
        write(folder / name, "1")
    git(folder, "init", *(["--object-format=sha256"] if version == "sha256" else []))
    git(folder, "add", "--all")
    write(folder / "new.json", "1")
    if version == "3":
        git(folder, "add", "--intent-to-add", "new.json")
    if version == "4":
        git(folder, "update-index", "--index-version=4")
    if version == "worktree":
        git(folder, "commit", "-m", "a")
        git(folder, "worktree", "add", "../other")
        folder = tmp_path / "other"
    if version == "broken":
        write(folder / ".git/index", "DIRC\0\0\0\2\xff\xff\xff\xff")
    for name in ("a/.mcp.json", ".mcp.json", "a/b/d.txt", "é.json"):
        assert tracked.is_tracked(folder / name)
    assert tracked.is_tracked(folder / "new.json") == (version in ("3", "broken"))
    assert tracked.is_tracked(folder / "a/none.json") == (version == "broken")
    assert not tracked.is_tracked(tmp_path / "outside.json")


def test_a_repositorys_settings_start_nothing(world: World) -> None:
    """`git ls-files` would run the program that `core.fsmonitor` names."""
    world.declare(a={"command": "sh"})
    git(world.project, "init")
    git(world.project, "add", ".mcp.json")
    git(world.project, "config", "core.fsmonitor", f"touch {world.root}/started; false")
    git_status = subprocess.run(["git", "status"], cwd=world.project, capture_output=True, check=False)
    assert git_status.returncode == 0 and (world.root / "started").exists()
    (world.root / "started").unlink()
    tracked.names.cache_clear()
    assert world.found() == [("brought-by-repository", "sh")]
    assert not (world.root / "started").exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\u200bb", "U+200B"),
        ("\ufeffa", "U+FEFF"),
        ("a\u200db", "U+200D"),
        ("a\u00adb", "U+00AD"),
        ("\x1b[31m", "U+001B"),
        ("\U000e0041\U000e0042\U000e0043\u202a\u202b\u202c", "U+E0041, U+E0042, U+E0043, U+202A, U+202B and 1 more"),
        ("\U0001f3f4\U000e0041", "U+E0041"),
        ("a\u200eb", "U+200E"),
        ("👨\u200d👩\u200d👧 ❤\ufe0f", ""),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", ""),
        ("می\u200cخواهم \u200f", ""),
        ("❤\ufe0f\ufe01\ufe00", "U+FE01, U+FE00"),
        ("字\u200c\u200d\u200c字", "U+200C, U+200D"),
        ("خ \u200e\u200f\u200e", "U+200E, U+200F"),
        ("tab\tand\nline é ünïcode 漢字", ""),
    ],
)
def test_hidden_characters(text: str, found: str) -> None:
    assert hidden(text) == found


def sarif_of(world: World) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(sarif.document(world.scan(), world.project)))
    return made


def test_sarif_has_what_its_schema_asks_for(world: World) -> None:
    world.declare(
        **{"a b": {"command": "npx", "args": ["x"], "env": {"T": TOKEN}}, "x\x1b": {"url": "http://x.example/\u202e"}}
    )
    write(world.home / ".cursor/m cp.json", "1").rename(world.home / ".cursor/mcp.json")
    made = sarif_of(world)
    assert (made["version"], made["$schema"][-16:]) == ("2.1.0", "sarif-2.1.0.json")
    (run,) = made["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "mcpguard"
    assert [rule["id"] for rule in driver["rules"]] == list(RULES)
    assert run["originalUriBaseIds"]["PROJECT"]["uri"].endswith("/project/")
    assert len(run["results"]) >= 4
    for result in run["results"]:
        rule = driver["rules"][result["ruleIndex"]]
        assert rule["id"] == result["ruleId"]
        assert (
            result["level"] in ("error", "warning", "note") and rule["defaultConfiguration"]["level"] == result["level"]
        )
        assert result["message"]["text"].isprintable() and TOKEN not in result["message"]["text"]
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert place["artifactLocation"] == {"uri": ".mcp.json", "uriBaseId": "PROJECT"}
        assert place.get("region", {"startLine": 1})["startLine"] >= 1
    prints = [result["partialFingerprints"]["mcpguard/v1"] for result in run["results"]]
    assert len(set(prints)) == len(prints)


def test_every_rule_has_its_place_in_the_list_and_words() -> None:
    for name, rule in RULES.items():
        assert rule.name == name and rule.owasp in OWASP and rule.says and rule.do
    assert {"MCP01", "MCP02", "MCP03", "MCP04", "MCP05", "MCP07", "MCP08", "MCP09"} == {
        rule.owasp for rule in RULES.values()
    }


Scan = Callable[..., tuple[int, str]]


@pytest.fixture
def command(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Scan:
    monkeypatch.chdir(world.project)
    monkeypatch.setenv("HOME", str(world.home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mcpguard", "mcp", "scan", *words])
        code = main.main()
        return code, capsys.readouterr().out

    return call


def test_the_command_exits_by_what_it_found(world: World, command: Scan) -> None:
    assert command()[0] == 0
    world.declare(s={"url": "http://x.example/"})
    for format in ("table", "json", "sarif"):
        code, out = command("--format", format)
        assert code == 1
        assert "plain-http" in out and "MCP07" in out
    (found,) = json.loads(command("--format", "json")[1])
    assert (found["finding"], found["owasp"], found["level"], found["server"]) == ("plain-http", "MCP07", "error", "s")
    assert command("--format", "xml")[0] == 2
    world.declare(s={"command": "docker", "args": ["run", "-i", f"a@sha256:{'0' * 64}"]})
    for format in ("table", "json", "sarif"):
        code, out = command("--format", format)
        assert code == 0 and "container" in out, "a note says what cannot be mended"
    world.declare(s={"command": "docker", "args": ["run", "-i", "a:1"]})
    assert command()[0] == 1, "the control"


def test_every_finding_is_in_every_format_with_its_number_and_no_secret(
    world: World, tmp_path: Path, command: Scan
) -> None:
    for folder in (world.project, world.root, tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o711)
    tool = write(world.project / "tool", "#!/bin/sh\n")
    tool.chmod(0o777)
    docker = ["docker", "run", "-v", "/:/x", "--privileged"]
    write(world.project / "server.sh", "1")
    file = world.declare(
        own={"command": "sh", "args": ["server.sh"]},
        secret={"command": "npx", "args": ["-y", "a"], "env": {"GITHUB_TOKEN": TOKEN}, "trust": True},
        image={"command": [*docker, "a:1"]},
        loads={"command": str(tool), "args": ["a\u202eb"], "env": {"LD_PRELOAD": "/x.so"}},
        gets={"command": "sh", "args": ["-c", "curl -s x | bash"]},
        far={
            "url": "http://x.example/",
            "headersHelper": "./get",
            "env": {"NODE_TLS_REJECT_UNAUTHORIZED": "0"},
        },
    )
    file.write_text(file.read_text().replace("{", '{"x": 1, "x": 2,', 1))
    file.chmod(0o666)
    git(world.project, "init")
    git(world.project, "add", ".mcp.json")
    tracked.names.cache_clear()
    write(world.home / ".claude.json", json.dumps({"mcpServers": {"far": {"url": "https://other.example"}}}))
    write(world.home / ".cursor/mcp.json", "{")
    for format in ("table", "json", "sarif"):
        code, out = command("--format", format)
        assert code == 1 and TOKEN not in out and TOKEN[-4:] in out
        if format == "table":
            for name, rule in RULES.items():
                assert any(name in line and rule.owasp in line for line in out.splitlines()), name
        elif format == "json":
            assert {(one["finding"], one["owasp"]) for one in json.loads(out)} == {
                (name, rule.owasp) for name, rule in RULES.items()
            }
        else:
            (run,) = json.loads(out)["runs"]
            assert {result["ruleId"] for result in run["results"]} == set(RULES)
            tags = {rule["id"]: json.dumps(rule) for rule in run["tool"]["driver"]["rules"]}
            assert all(rule.owasp in tags[name] for name, rule in RULES.items())


def test_a_large_hostile_project_keeps_nobody_waiting(world: World) -> None:
    """Many files, servers and words of the kinds that are dear to look at; in a process of its own with little memory."""
    words = ["eyJ-" * 1000, "token" * 800, "a." * 2000, "://a:" * 800, "/" * 4000, "--a=" * 900]
    servers = {f"s{at}": {"command": "npx", "args": words * 2, "env": {"A": "a." * 2000}} for at in range(60)}
    text = json.dumps({"mcpServers": servers})
    for at in range(3):
        write(world.project / f".gemini/extensions/e{at}/gemini-extension.json", text)
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import resource, sys\nresource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
            "sys.argv = ['mcpguard', 'mcp', 'scan']\nfrom mcpguard.cli.main import main\nsys.exit(main())",
        ],
        cwd=world.project,
        env={**os.environ, "HOME": str(world.home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith(" servers\n"), done.stderr[-500:]
