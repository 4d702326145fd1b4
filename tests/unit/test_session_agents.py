"""How agents are told of their servers: by their own words, without a change of the user's files."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mcpguard.catalogue.server import Server
from mcpguard.errors import UsageError
from mcpguard.session.agents import Told, tell
from mcpguard.session.gate import SHIM

LOCAL = {"command": "npx", "args": ["-y", "server@1.0.0", 'a "b"'], "env": {"TOKEN": "secret"}}


@dataclass
class Kept:
    """A gate that keeps files."""

    folder: Path
    address: str = "/state/gate/session/socket"
    token: str = "t0ken"

    def remote(self, server: Server) -> str:
        return f"http://127.0.0.1:4000/{server.name}"

    def file(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return str(self.folder / name)


def told(home: Path, command: list[str], **environment: str) -> Told:
    project = home / "project"
    project.mkdir(exist_ok=True)
    return tell(command, {"HOME": str(home), **environment}, str(project), Kept(home))


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def assert_is_shim(words: list[str], name: str = "fs") -> None:
    assert words[1:7] == ["-I", "-S", "-B", SHIM, "/state/gate/session/socket", name]
    assert words[7:] == ["--", LOCAL["command"], *LOCAL["args"]]


def test_claude_gets_its_servers_by_its_flags_and_reads_no_others(tmp_path: Path) -> None:
    write(tmp_path / ".claude.json", {"mcpServers": {"fs": LOCAL, "off": {**LOCAL, "disabled": True}}})
    write(
        tmp_path / "project/.mcp.json",
        {"mcpServers": {"fs": {"command": "weaker-than-local"}, "web": {"url": "https://x/mcp"}}},
    )
    found = told(tmp_path, ["claude", "-p", "--", "--mcp-config"])
    program, option, text, strict, *rest = found.command
    assert (program, option, strict, rest) == (
        "claude",
        "--mcp-config",
        "--strict-mcp-config",
        ["-p", "--", "--mcp-config"],
    )
    declared = json.loads(text)["mcpServers"]
    assert set(declared) == {"fs", "web"} and declared["web"]["url"] == "http://127.0.0.1:4000/web"
    assert declared["fs"]["args"][:4] == ["-I", "-S", "-B", SHIM]
    assert {one.name for one in found.servers} == {"fs", "web"}
    assert "secret" not in text


REMOTE = {"type": "http", "url": "https://x/mcp", "headers": {"Authorization": "Bearer secret"}}


@pytest.mark.parametrize("old", [False, True])
def test_every_agent_reaches_a_remote_server_by_the_gate_and_holds_no_key_of_it(tmp_path: Path, old: bool) -> None:
    remote = {**REMOTE, "type": "sse"} if old else REMOTE
    write(tmp_path / ".claude.json", {"mcpServers": {"web": remote}})
    gemini = {"url" if old else "httpUrl": REMOTE["url"], "headers": REMOTE["headers"]}
    write(tmp_path / ".gemini/settings.json", {"mcpServers": {"web": gemini}})
    opencode = {"mcp": {"web": {"type": "remote", "url": REMOTE["url"], "headers": REMOTE["headers"]}}}
    write(tmp_path / ".config/opencode/opencode.json", opencode)
    write(tmp_path / ".codex/config.toml", '[mcp_servers.web]\nurl="https://x/mcp"\n')
    way = "http://127.0.0.1:4000/web"
    claude = told(tmp_path, ["claude"])
    declared = json.loads(claude.command[2])["mcpServers"]["web"]
    assert (declared["type"], declared["url"]) == ("sse" if old else "http", way)
    assert declared["headers"] == {"Authorization": "Bearer ${MCPGUARD_GATE_TOKEN}"}
    codex = told(tmp_path, ["codex"])
    server = tomllib.loads(codex.command[4])["mcp_servers"]["web"]
    assert server == {"url": way, "bearer_token_env_var": "MCPGUARD_GATE_TOKEN"}
    settings = told(tmp_path, ["gemini"])
    written = Path(settings.environment["GEMINI_CLI_SYSTEM_SETTINGS_PATH"]).read_text()
    assert json.loads(written)["mcpServers"]["web"]["url" if old else "httpUrl"] == way
    content = told(tmp_path, ["opencode"])
    assert json.loads(content.environment["OPENCODE_CONFIG_CONTENT"])["mcp"]["web"]["url"] == way
    for one in (claude, codex, settings, content):
        assert one.environment["MCPGUARD_GATE_TOKEN"] == "t0ken"
        assert "secret" not in f"{one.command} {one.environment} {written}"
        assert [server.old for server in one.servers] == [old if one is not codex and one is not content else False]


@pytest.mark.parametrize("form", ["text", "file", "equals"])
def test_servers_on_claudes_command_line_are_guarded_too(form: str, tmp_path: Path) -> None:
    value = json.dumps({"mcpServers": {"fs": LOCAL}})
    write(tmp_path / "more.json", value)
    words = {
        "text": ["--mcp-config", value],
        "file": ["--mcp-config", str(tmp_path / "more.json")],
        "equals": [f"--mcp-config={value}"],
    }
    found = told(tmp_path, ["claude", *words[form], "--strict-mcp-config", "-p", "hello"])
    assert found.command[3:] == ("--strict-mcp-config", "-p", "hello")
    declared = json.loads(found.command[2])["mcpServers"]
    assert_is_shim([declared["fs"]["command"], *declared["fs"]["args"]])


def test_what_cannot_be_read_there_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--mcp-config"):
        told(tmp_path, ["claude", "--mcp-config", str(tmp_path / "none.json"), "-p"])


def test_many_servers_go_into_a_file(tmp_path: Path) -> None:
    servers = {f"s{n}": {"command": "x" * 1000} for n in range(200)}
    write(tmp_path / ".claude.json", {"mcpServers": servers})
    found = told(tmp_path, ["claude"])
    assert len(json.loads(Path(found.command[2]).read_text())["mcpServers"]) == 200


def test_codex_uses_no_server_of_its_account(tmp_path: Path) -> None:
    assert told(tmp_path, ["codex", "exec", "x"]).command == ("codex", "-c", "features.apps=false", "exec", "x")


def test_codex_gets_an_option_for_each(tmp_path: Path) -> None:
    write(
        tmp_path / ".codex/config.toml", '[mcp_servers.fs]\ncommand="npx"\nargs=["-y", "server@1.0.0", "a \\"b\\""]\n'
    )
    found = told(tmp_path, ["codex", "exec", "x"])
    assert found.command[:4] == ("codex", "-c", "features.apps=false", "-c") and found.command[5:] == ("exec", "x")
    server = tomllib.loads(found.command[4])["mcp_servers"]["fs"]
    assert_is_shim([server["command"], *server["args"]])


@pytest.mark.parametrize(
    ("program", "folder", "variable"),
    [("gemini", ".gemini", "GEMINI_CLI_SYSTEM_SETTINGS_PATH"), ("qwen", ".qwen", "QWEN_CODE_SYSTEM_SETTINGS_PATH")],
)
def test_gemini_and_qwen_get_settings_of_the_system(program: str, folder: str, variable: str, tmp_path: Path) -> None:
    write(tmp_path / folder / "settings.json", {"mcpServers": {"fs": LOCAL}})
    write(tmp_path / "system.json", '{"theme": "dark", // mine\n}')
    found = told(tmp_path, [program, "-y"], **{variable: str(tmp_path / "system.json")})
    settings = json.loads(Path(found.environment[variable]).read_text())
    assert settings["theme"] == "dark" and settings["mcp"]["allowed"] == ["fs"]
    assert_is_shim([settings["mcpServers"]["fs"]["command"], *settings["mcpServers"]["fs"]["args"]])
    assert found.command == (program, "-y")


@pytest.mark.parametrize("form", ["--mcp-config VALUE", "--mcp-config=VALUE"])
def test_servers_on_qwens_command_line_and_in_the_projects_file_are_guarded_too(form: str, tmp_path: Path) -> None:
    """What the command line names would win over the settings of the system."""
    write(tmp_path / "project/.mcp.json", {"mcpServers": {"here": LOCAL}})
    write(tmp_path / ".mcp.json", {"mcpServers": {"above": LOCAL}})
    value = json.dumps({"mcpServers": {"fs": LOCAL}})
    words = [word.replace("VALUE", value) for word in form.split()]
    found = told(tmp_path, ["qwen", *words, "a prompt"])
    assert found.command == ("qwen", "a prompt")
    settings = json.loads(Path(found.environment["QWEN_CODE_SYSTEM_SETTINGS_PATH"]).read_text())
    assert settings["mcp"]["allowed"] == ["fs", "here"]
    for name in ("fs", "here"):
        assert_is_shim([settings["mcpServers"][name]["command"], *settings["mcpServers"][name]["args"]], name)


def test_opencode_gets_a_variable(tmp_path: Path) -> None:
    write(
        tmp_path / ".config/opencode/opencode.json",
        {"mcp": {"fs": {"type": "local", "command": ["npx", *LOCAL["args"]]}}},
    )
    found = told(tmp_path, ["opencode", "run"], OPENCODE_CONFIG_CONTENT='{"theme": "x"}')
    content = json.loads(found.environment["OPENCODE_CONFIG_CONTENT"])
    assert content["theme"] == "x"
    assert_is_shim(content["mcp"]["fs"]["command"])


def test_what_is_no_known_agent_stays_as_it_is(tmp_path: Path) -> None:
    assert told(tmp_path, ["python3", "x.py"]) == Told(("python3", "x.py"), {"HOME": str(tmp_path)}, known=False)
