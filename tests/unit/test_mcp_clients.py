"""What clients declare is found wherever they keep it, and one bad file hides no other."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from mcp_files import JSON_SERVERS, copied, read, write

from mcpguard.catalogue.clients import CLIENTS, PLACES, VARIABLES, belongs, projects
from mcpguard.catalogue.server import of
from mcpguard.catalogue.starting import identify

# client, scope, name: one for each client and each scope that it has.
DECLARED = """
claude-code user claude-user
claude-code user claude-http
claude-code local claude-local
claude-code project claude-project
claude-code managed claude-managed
claude-code plugin claude-plugin
claude-desktop user desktop-user
codex user codex-user
codex user codex-remote
codex project codex-project
codex managed codex-managed
gemini-cli user gemini-user
gemini-cli user gemini-http
gemini-cli user gemini-sse
gemini-cli plugin gemini-extension
gemini-cli project gemini-project
gemini-cli managed gemini-managed
qwen-code user qwen-user
qwen-code project qwen-project
qwen-code managed qwen-managed
cursor user cursor-user
cursor user cursor-remote
cursor project cursor-project
vscode user code-user
vscode user code-old
vscode project code-project
copilot user copilot-user
windsurf user windsurf-user
windsurf project windsurf-project
windsurf managed windsurf-managed
opencode user opencode-user
opencode user opencode-remote
opencode project opencode-project
opencode managed opencode-managed
goose user developer
goose user goose-user
goose user goose-remote
zed user zed-user
zed user zed-old
zed project zed-project
amp user amp-user
amp project amp-project
amp managed amp-managed
kiro user kiro-user
kiro project kiro-project
antigravity user antigravity-user
amazon-q user amazonq-user
amazon-q user amazonq-agent
amazon-q project amazonq-project
openclaw user openclaw-user
"""


def test_every_server_of_every_client_and_scope_is_found(tmp_path: Path) -> None:
    found = read(copied(tmp_path))
    assert [f"{one.client} {one.scope} {one.name}" for one in found.servers] == DECLARED.strip().splitlines()
    assert not found.problems
    assert {place.client for place in PLACES} == {one.client for one in found.servers}


ONE = {"elsewhere": {"command": "x"}}
JSONC = '// by hand\n{"%s": {"elsewhere": {"command": "x"},},}\n'
TOML = '[mcp_servers.elsewhere]\ncommand = "x"\n'
# Other places of the same clients: client, scope, file, what it holds.
ELSEWHERE: tuple[tuple[str, str, str, object], ...] = (
    ("claude-code", "plugin", "home/.claude/plugins/repos/a/b/.mcp.json", {"mcpServers": ONE}),
    ("claude-code", "plugin", "home/.claude/plugins/repos/a/b/.mcp.json", ONE),
    ("claude-code", "plugin", "home/.claude/plugins/cache/a/b/1/.claude-plugin/plugin.json", {"mcpServers": ONE}),
    ("claude-code", "project", ".mcp.json", {"mcpServers": ONE}),
    ("claude-desktop", "user", "home/.var/app/a.b.C/config/Claude/claude_desktop_config.json", {"mcpServers": ONE}),
    ("codex", "plugin", "home/.codex/plugins/cache/a/.mcp.json", {"mcpServers": ONE}),
    ("codex", "plugin", "home/.codex/plugins/cache/a/.mcp.json", ONE),
    ("codex", "managed", "machine/etc/codex/requirements.toml", TOML),
    ("codex", "managed", "machine/etc/codex/managed_config.toml", TOML),
    ("gemini-cli", "plugin", "project/.gemini/extensions/a/gemini-extension.json", {"mcpServers": ONE}),
    ("gemini-cli", "managed", "machine/etc/gemini-cli/system-defaults.json", JSONC % "mcpServers"),
    ("qwen-code", "plugin", "home/.qwen/extensions/a/qwen-extension.json", {"mcpServers": ONE}),
    ("qwen-code", "plugin", "home/.qwen/extensions/a/gemini-extension.json", {"mcpServers": ONE}),
    ("qwen-code", "managed", "machine/etc/qwen-code/system-defaults.json", {"mcpServers": ONE}),
    ("cursor", "plugin", "home/.cursor/plugins/cache/a/mcp.json", {"mcpServers": ONE}),
    ("cursor", "plugin", "home/.cursor/plugins/local/a/.mcp.json", ONE),
    ("cursor", "user", "home/.config/cursor/cli-config.json", {"mcpServers": ONE}),
    ("cursor", "project", ".cursor/mcp.json", {"mcpServers": ONE}),
    ("vscode", "user", "home/.config/Code/User/profiles/1a/mcp.json", JSONC % "servers"),
    ("vscode", "user", "home/.config/Code - Insiders/User/mcp.json", {"servers": ONE}),
    ("vscode", "user", "home/.config/VSCodium/User/settings.json", JSONC % "mcp.servers"),
    ("vscode", "user", "home/.vscode-server/data/User/mcp.json", {"servers": ONE}),
    ("vscode", "project", "project/.vscode/settings.json", {"mcp": {"servers": ONE}}),
    ("opencode", "user", "home/.config/opencode/opencode.jsonc", JSONC % "mcp"),
    ("opencode", "user", "home/.opencode/opencode.json", {"mcp": ONE}),
    ("opencode", "project", "project/.opencode/opencode.jsonc", JSONC % "mcp"),
    ("opencode", "project", "project/opencode.jsonc", JSONC % "mcp"),
    ("opencode", "managed", "machine/etc/opencode/opencode.jsonc", JSONC % "mcp"),
    ("zed", "user", "home/.config/zed/settings.json", JSONC % "context_servers"),
    ("amp", "user", "home/.config/amp/settings.jsonc", JSONC % "amp.mcpServers"),
    ("amp", "project", "project/.amp/settings.jsonc", JSONC % "amp.mcpServers"),
    ("amazon-q", "user", "home/.aws/amazonq/agents/a.json", {"mcpServers": ONE}),
    ("openclaw", "user", "home/.openclaw/openclaw.json", {"mcp": {"servers": ONE}}),
)


@pytest.mark.parametrize(("client", "scope", "file", "content"), ELSEWHERE)
def test_a_client_has_more_places_than_one(client: str, scope: str, file: str, content: object, tmp_path: Path) -> None:
    assert read(tmp_path).servers == (), "the control"
    write(tmp_path / file, content if isinstance(content, str) else json.dumps(content))
    found = read(tmp_path)
    assert [(one.client, one.scope, one.name, one.words) for one in found.servers] == [
        (client, scope, "elsewhere", ("x",))
    ]
    assert not found.problems


def test_the_documentation_names_every_client_and_every_variable() -> None:
    text = (Path(__file__).parents[2] / "docs/mcp.md").read_text()
    variables = {name for place in PLACES for name in re.findall(r"\{([A-Z_]+):", place.path)}
    for word in {
        *CLIENTS,
        *(name.removeprefix("QWEN_CODE_SYSTEM").removeprefix("GEMINI_CLI_SYSTEM") for name in variables),
    }:
        assert word in text, word


def test_the_parts_of_a_server_are_read_whatever_its_client_calls_them(tmp_path: Path) -> None:
    found = {one.name: one for one in read(copied(tmp_path)).servers}
    assert found["opencode-user"].words == ("bun", "x", "opencode-mcp@1.2.0")
    assert found["opencode-user"].env == {"TOKEN": "{env:MY_TOKEN}"}
    assert not found["opencode-remote"].enabled
    assert found["zed-old"].words == ("uvx", "mcp-server-time==2025.9.25")
    assert found["goose-user"].words == ("uvx", "mcp-server-sqlite==2025.4.25")
    assert found["goose-remote"].url == "https://mcp.example.com/goose"
    assert found["developer"].kind == "built-in"
    assert found["codex-user"].env == {"LOG_LEVEL": "info"}
    token = {"Authorization": "Bearer ${FIGMA_OAUTH_TOKEN}"}
    assert found["codex-remote"].headers == {"X-Figma-Region": "us-east-1", **token}
    assert found["windsurf-user"].kind == "remote"
    assert found["gemini-http"].url == "https://api.example.com/mcp"
    assert found["gemini-user"].cwd == "./"
    assert found["claude-local"].project == "/srv/work/app"
    assert found["claude-local"].place.endswith(".claude.json#/srv/work/app")


def test_headers_that_codex_takes_from_variables_are_read(tmp_path: Path) -> None:
    text = '[mcp_servers.far]\nurl = "https://x/mcp"\nbearer_token_env_var = "KEY"\nenv_http_headers = {"X-Team" = "TEAM"}\n'
    write(tmp_path / "home/.codex/config.toml", text)
    (server,) = read(tmp_path).servers
    assert server.headers == {"Authorization": "Bearer ${KEY}", "X-Team": "${TEAM}"}


@pytest.mark.parametrize(
    ("variable", "file", "text"),
    [
        ("CLAUDE_CONFIG_DIR", ".claude.json", '{"mcpServers": {"moved": {"command": "x"}}}'),
        ("CODEX_HOME", "config.toml", '[mcp_servers.moved]\ncommand = "x"\n'),
        ("GEMINI_CLI_HOME", ".gemini/settings.json", '{"mcpServers": {"moved": {"command": "x"}}}'),
        ("COPILOT_HOME", "mcp-config.json", '{"mcpServers": {"moved": {"command": "x"}}}'),
        ("OPENCODE_CONFIG_DIR", "opencode.json", '{"mcp": {"moved": {"command": ["x"]}}}'),
        ("XDG_CONFIG_HOME", "goose/config.yaml", "extensions:\n  moved: {cmd: x}\n"),
        ("XDG_CONFIG_HOME", "zed/settings.json", '{"context_servers": {"moved": {"command": "x"}}}'),
        ("GEMINI_CLI_SYSTEM_SETTINGS_PATH", "", '{"mcpServers": {"moved": {"command": "x"}}}'),
        ("QWEN_CODE_SYSTEM_SETTINGS_PATH", "", '{"mcpServers": {"moved": {"command": "x"}}}'),
        ("OPENCODE_CONFIG", "", '{"mcp": {"moved": {"command": ["x"]}}}'),
    ],
)
def test_variables_move_what_they_move_for_the_client(tmp_path: Path, variable: str, file: str, text: str) -> None:
    elsewhere = tmp_path / "else*where"
    write(elsewhere / file if file else elsewhere, text)
    assert [one.name for one in read(tmp_path, **{variable: str(elsewhere)}).servers] == ["moved"]
    assert read(tmp_path, **{variable: "else*where"}).servers == ()


def test_a_configuration_in_a_variable_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, OPENCODE_CONFIG_CONTENT='{"mcp": {"inline": {"command": ["x"]}}}')
    assert [(one.name, one.scope, one.file) for one in found.servers] == [
        ("inline", "environment", "$OPENCODE_CONFIG_CONTENT")
    ]
    assert [place.path for place in VARIABLES] == ["OPENCODE_CONFIG_CONTENT"]
    assert read(tmp_path, OPENCODE_CONFIG_CONTENT="{").problems[0].path == "$OPENCODE_CONFIG_CONTENT"


def test_the_project_reaches_up_to_the_root_of_its_repository_and_no_further(tmp_path: Path) -> None:
    inner = tmp_path / "project" / "a" / "b"
    inner.mkdir(parents=True)
    assert projects(inner) == [inner]
    (tmp_path / "project" / ".git").mkdir()
    assert projects(inner) == [inner, inner.parent, tmp_path / "project"]


def test_claude_code_takes_servers_from_every_folder_above(tmp_path: Path) -> None:
    """Also with a repository between them, and without one."""
    (tmp_path / "project/.git").mkdir(parents=True)
    write(tmp_path / ".mcp.json", '{"mcpServers": {"above": {"command": "x"}}}')
    write(tmp_path / "project/.mcp.json", '{"mcpServers": {"own": {"command": "x"}}}')
    write(tmp_path / ".gemini/settings.json", '{"mcpServers": {"not for gemini": {"command": "x"}}}')
    assert [one.name for one in read(tmp_path).servers] == ["own", "above"]


def test_a_server_for_one_project_is_for_its_subfolders_and_worktrees(tmp_path: Path) -> None:
    (tmp_path / "project/.git/worktrees/other").mkdir(parents=True)
    (tmp_path / "project/sub").mkdir()
    write(tmp_path / "other/.git", f"gitdir: {tmp_path}/project/.git/worktrees/other\n")
    (tmp_path / "third").mkdir()
    server = of("x", {"command": "x"}, client="c", scope="local", file="/f", project=str(tmp_path / "project"))
    for folder, here in {"project": True, "project/sub": True, "other": True, "third": False, ".": False}.items():
        assert belongs(server, tmp_path / folder) == here
    assert belongs(of("x", {"command": "x"}, client="c", scope="user", file="/f"), tmp_path)


def test_servers_cannot_hide_behind_the_name_of_a_group(tmp_path: Path) -> None:
    servers = {"servers": {"command": ["a"], "environment": {"b": "c"}}, "other": {"command": ["d"]}}
    write(tmp_path / "project/opencode.json", json.dumps({"mcp": servers}))
    assert {"servers", "other"} <= {one.name for one in read(tmp_path).servers}


def test_bad_files_are_told_and_hide_no_other(tmp_path: Path) -> None:
    home, project = tmp_path / "home", tmp_path / "project"
    write(project / ".mcp.json", '{"mcpServers": {"good": {"command": "x"}}}')
    write(home / ".claude.json", "{")
    write(home / ".codex/config.toml", "a = [")
    write(home / ".config/goose/config.yaml", "extensions: &a {b: *a}")
    write(home / ".cursor/mcp.json", b"\xff\xfe")
    write(home / ".qwen/settings.json", " " * (5 << 20))
    write(home / ".gemini/settings.json", "[" * 100_000)
    (home / ".kiro/settings").mkdir(parents=True)
    os.mkfifo(home / ".kiro/settings/mcp.json")
    (home / ".aws/amazonq/mcp.json").mkdir(parents=True)
    (home / ".config/zed").mkdir()
    (home / ".config/zed/settings.json").symlink_to(home / ".config/zed/settings.json")
    (home / ".config/amp").symlink_to(home / ".config/amp")
    found = read(tmp_path)
    assert [one.name for one in found.servers] == ["good"]
    told = {file.path.removeprefix(f"{home}/"): file.problem for file in found.problems}
    assert told.pop(".gemini/settings.json") == "it is nested too deep"
    assert told.pop(".qwen/settings.json") == "it is larger than 2048 KiB"
    assert told.pop(".kiro/settings/mcp.json") == told.pop(".aws/amazonq/mcp.json") == "it is not a regular file"
    assert told.pop(".config/zed/settings.json").startswith("Too many levels")
    assert {path for path in told if ".config/amp" not in path} == {
        *(".claude.json", ".codex/config.toml", ".config/goose/config.yaml", ".cursor/mcp.json"),
    }


@pytest.mark.parametrize(
    "value", ["[]", "7", '"x"', '{"mcpServers": []}', '{"mcpServers": {"a": 1, "b": [], "c": null}}']
)
def test_other_shapes_than_expected_are_no_servers(tmp_path: Path, value: str) -> None:
    write(tmp_path / "project/.mcp.json", value)
    write(tmp_path / "home/.claude.json", value.replace("mcpServers", "projects"))
    found = read(tmp_path)
    assert (found.servers, found.problems) == ((), ())


def test_parts_of_unexpected_shapes_count_as_absent(tmp_path: Path) -> None:
    strange = {
        "command": {"path": 3},
        "args": "x",
        "env": [1, "A=b"],
        "headers": 1,
        "url": [],
        "cwd": 4,
        "trust": "yes",
    }
    write(tmp_path / "project/.mcp.json", json.dumps({"mcpServers": {"strange": strange, "": {"command": [[]]}}}))
    strange_one, empty = read(tmp_path).servers
    assert (strange_one.kind, strange_one.words, strange_one.env) == ("unclear", ("",), {"A": "b"})
    assert empty.kind == "unclear"


@settings(deadline=None)
@given(JSON_SERVERS)
def test_whatever_a_declaration_holds_it_is_a_server_with_an_identity_or_none(servers: dict[str, object]) -> None:
    for name, value in servers.items():
        if isinstance(value, dict):
            found = of(name, value, client="c", scope="user", file="/f")
            known = identify(found, {"PATH": "/usr/bin", "HOME": "/nowhere"}, Path("/nowhere"))
            assert known is None or (known.digest.startswith("sha256:") and known.facts())


def test_folders_of_plugins_without_end_are_left(tmp_path: Path) -> None:
    folder = tmp_path / "home/.claude/plugins"
    for name in ("a/b/c", "a/b/c/d/e/f/g/h/i"):
        write(folder / name / ".mcp.json", json.dumps({"mcpServers": {name[-1]: {"command": "x"}}}))
    (folder / "loop").symlink_to(folder)
    assert [one.name for one in read(tmp_path).servers] == ["c"]
