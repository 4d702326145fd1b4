"""Other agents with MCP servers: each is told of the gate its own way, and reaches local and remote servers no other way."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from agent_run import Agent, far
from harness import REPOSITORY, SYSTEM_PYTHON, Finished, Json, Sandbox, need_root
from real_agent import CACHE, PLATFORMS, AgentUnavailableError, npm_install
from test_mcp_claude import SERVER, approve, calls
from world import World

pytestmark = [pytest.mark.kernel, pytest.mark.agent]
BUILD = PLATFORMS.get(platform.machine(), "of no known machine")
PROFILE = """\
name: gated
extends: [{profile}]
mcp:
  gate: true
  allow: ["*"]
  deny:
    - tool: "*/forbidden"
    - tool: "*/echo"
      where: {{text: {{equals: secret}}}}
environment:
  keep: {keep}
"""
# In a network of its own, so that what an agent looks for at its start leads nowhere.
ALONE = ("unshare", "--net", "sh", "-ec", 'ip link set lo up && exec "$@"', "sh")
Server = dict[str, Json]


@dataclass(frozen=True)
class Kind:
    """One agent, and how it is asked.

    Attributes:
        package: in npm's registry.
        program: of the package, below `node_modules`; a pattern.
        command: what comes before the prompt.
        tool: its name for a tool of a server.
        shell: its own tool for commands, and what says the command, with the rest of what that tool needs.
        declare: writes its settings: which model is asked, at which URL, that nobody is asked about the tools, the user's
            servers and the repository's; gives the file of the user's.
        url: what it calls the address of a remote server.
        variables: besides, with the URL for `{}`.
        split: its command line takes a prompt in words, and changes one that is quoted.
        around: words that have it start a server called `around` by itself, without any settings that are read.
        folder: where it is kept, if not by the name of its package.
    """

    package: str
    program: str
    command: tuple[str, ...]
    tool: str
    shell: tuple[str, str, Json]
    declare: Callable[[World, str, Server, Server], Path]
    url: str
    variables: dict[str, str] = field(default_factory=dict)
    split: bool = False
    around: Callable[[Json], tuple[str, ...]] | None = None
    folder: str = ""

    def words(self, prompt: str, *more: str) -> list[str]:
        return [*self.command, *more, *(prompt.split(" ") if self.split else [prompt])]


def written(path: Path, content: str | Json) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def qwen(world: World, _url: str, mine: Server, others: Server) -> Path:
    written(world.project / ".mcp.json", {"mcpServers": others})
    settings = {
        "security": {"auth": {"selectedType": "anthropic"}},
        "model": {"name": "claude-x"},
        "general": {"enableAutoUpdate": False},
        "privacy": {"usageStatisticsEnabled": False},
        "mcpServers": mine,
    }
    return written(world.home / ".qwen/settings.json", settings)


def gemini(world: World, _url: str, mine: Server, others: Server) -> Path:
    written(world.project / ".gemini/settings.json", {"mcpServers": others})
    settings = {
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "general": {"enableAutoUpdate": False},
        "privacy": {"usageStatisticsEnabled": False},
        "mcpServers": mine,
    }
    return written(world.home / ".gemini/settings.json", settings)


def codex(world: World, url: str, mine: Server, others: Server) -> Path:
    def value_of(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {json.dumps(one)}" for key, one in value.items()) + "}"
        return json.dumps(value)

    def tables(servers: Server) -> str:
        lines = {
            name: "".join(f"{key} = {value_of(value)}\n" for key, value in one.items()) for name, one in servers.items()
        }
        return "".join(f"[mcp_servers.{name}]\n{text}" for name, text in lines.items())

    written(world.project / ".codex/config.toml", tables(others))
    model = f'[model_providers.fake]\nname = "fake"\nbase_url = "{url}/v1"\nwire_api = "responses"\n'
    trusted = f'[projects."{world.project}"]\ntrust_level = "trusted"\n'
    chosen = 'model = "fake"\nmodel_provider = "fake"\n'
    return written(world.home / ".codex/config.toml", chosen + model + trusted + tables(mine))


def opencode(world: World, url: str, mine: Server, others: Server) -> Path:
    def declared(servers: Server) -> Json:
        return {
            name: {"type": "remote", **one}
            if "url" in one
            else {
                "type": "local",
                "command": [one["command"], *one["args"]],
                "environment": one.get("env", {}),
                "timeout": 60_000,  # milliseconds until it has started
            }
            for name, one in servers.items()
        }

    written(world.project / "opencode.json", {"mcp": declared(others)})
    service = {"npm": "@ai-sdk/openai-compatible", "options": {"baseURL": f"{url}/v1", "apiKey": "x"}}
    provider = {"fake": {**service, "models": {"fake": {"name": "fake"}}}}
    settings = {"model": "fake/fake", "autoupdate": False, "provider": provider, "mcp": declared(mine)}
    return written(world.home / ".config/opencode/opencode.json", settings)


KINDS = {
    "qwen-code": Kind(
        "@qwen-code/qwen-code@0.24.4",
        "@qwen-code/qwen-code/cli-entry.js",
        ("qwen", "--approval-mode", "yolo", "-p"),
        "mcp__{}__{}",
        ("run_shell_command", "command", {"is_background": False}),
        qwen,
        "httpUrl",
        {
            "ANTHROPIC_API_KEY": "x",
            "ANTHROPIC_BASE_URL": "{}",
            "ANTHROPIC_MODEL": "claude-x",
            "QWEN_CODE_SUPPRESS_YOLO_WARNING": "1",
        },
    ),
    "gemini-cli": Kind(
        "@google/gemini-cli@0.61.0",
        "@google/gemini-cli/bundle/gemini.js",
        ("gemini", "-m", "gemini-2.5-pro", "-y", "-p"),
        "mcp_{}_{}",
        ("run_shell_command", "command", {}),
        gemini,
        "httpUrl",
        {"GEMINI_API_KEY": "x", "GOOGLE_GEMINI_BASE_URL": "{}", "GEMINI_CLI_TRUST_WORKSPACE": "true"},
    ),
    # A script for Node, which starts the program of another package.
    "codex": Kind(
        "@openai/codex@0.171.0",
        "@openai/codex/bin/codex.js",
        ("codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
        "mcp__{}__{}",
        ("exec_command", "cmd", {}),
        codex,
        "url",
        around=lambda one: ("-c", f"mcp_servers.around={{{','.join(f'{key}={json.dumps(one[key])}' for key in one)}}}"),
    ),
    "opencode": Kind(
        f"opencode-{BUILD}@1.18.33",
        f"opencode-{BUILD}/bin/opencode",
        ("opencode", "run"),
        "{}_{}",
        ("bash", "command", {"description": "x"}),
        opencode,
        "url",
        {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1"},
        split=True,
    ),
}


def installed(kind: Kind) -> Path:
    """Its `node_modules`."""
    folder = CACHE / (kind.folder or kind.package.rpartition("/")[2].replace("@", "-"))
    if not folder.exists():
        try:
            npm_install(folder, kind.package)
        except AgentUnavailableError as missing:
            pytest.fail(f"the real agent is needed for this test: {missing}")
    return folder / "node_modules"


def linked(source: str, target: str) -> None:
    """A second name for a file of hundreds of megabytes; a copy where there can be none."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def started(kind: Kind, *, obedient: bool = False) -> Iterator[Agent]:
    """In the home of a new world, with a model that does what the prompt says.

    Args:
        obedient: it does what results of tools ask for as well.
    """
    need_root()
    with World.create() as world:
        programs = world.home / ".local"
        modules = programs / "lib/node_modules"
        shutil.copytree(installed(kind), modules, symlinks=True, copy_function=linked)
        (programs / "bin").mkdir(parents=True, exist_ok=True)
        (program,) = modules.glob(kind.program)
        (programs / "bin" / kind.command[0]).symlink_to(program)
        requests = world.root / "requests.jsonl"
        command = [*ALONE, sys.executable, str(REPOSITORY / "demo/fake_model.py"), "--log", str(requests)]
        command += ["--obedient"] if obedient else []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as model:
            assert model.stdout is not None
            port = int(model.stdout.readline())
            variables = {name: value.format(f"http://127.0.0.1:{port}") for name, value in kind.variables.items()}
            inside = ("nsenter", f"--net=/proc/{model.pid}/ns/net", "--")
            try:
                yield Agent(Sandbox(world, "gated", variables, inside), port, requests)
            finally:
                model.terminate()


def results_of(finished: Finished) -> list[str]:
    """What each call gave, without how long that took."""
    told = {line for line in finished.out.splitlines() if line.startswith("DONE ")}
    assert len(told) == 1, finished
    results = json.loads(told.pop().removeprefix("DONE "))
    return [re.sub(r"[\d.]+ seconds", "", result["text"]) for result in results]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", KINDS)
def test_its_servers_start_by_way_of_the_gate_and_no_other(name: str) -> None:
    kind = KINDS[name]
    with started(kind) as driven, far(driven.world.root / "heard-far", *driven.sandbox.prefix) as address:
        world = driven.world
        server = written(world.root / "server.py", SERVER)
        names = ("good", "stranger", "around")
        words = {one: {"command": SYSTEM_PYTHON, "args": [str(server), one]} for one in names}
        # opencode keeps versions of the files: what a server heard would pass a pipe again, as messages do.
        with (world.project / ".gitignore").open("a") as ignored:
            ignored.write("heard-*\n")
        url = f"http://127.0.0.1:{driven.model_port}"
        mine: Server = {"good": words["good"], "far": {kind.url: address}}
        settings = kind.declare(world, url, mine, {"stranger": words["stranger"]})
        shell, said, more = kind.shell
        wanted: list[tuple[str, Json]] = [
            (kind.tool.format("good", "echo"), {"text": "hello \u00e9"}),
            (kind.tool.format("good", "echo"), {"text": "secret"}),
            (kind.tool.format("good", "forbidden"), {}),
            (kind.tool.format("far", "echo"), {"text": "hello"}),
            (kind.tool.format("far", "echo"), {"text": "secret"}),
            (kind.tool.format("far", "forbidden"), {}),
            (kind.tool.format("stranger", "echo"), {"text": "x"}),
            (shell, {said: "echo still here", **more}),
        ]
        more_words = kind.around(words["around"]) if kind.around else ()
        if kind.around:
            wanted.append((kind.tool.format("around", "echo"), {"text": "x"}))
        prompt = " ".join(f"<<call {tool} {json.dumps(arguments)}>>" for tool, arguments in wanted)
        free = driven.sandbox.control(kind.words(prompt, *more_words))
        direct = results_of(free)
        assert ["echo {" in text for text in direct] == [*[True] * 7, False, *[True] * bool(kind.around)], free
        heard = {one: world.project / f"heard-{one}" for one in words} | {"far": world.root / "heard-far"}
        unguarded = {one: calls(heard[one].read_bytes()) for one in mine}
        for path in heard.values():
            path.unlink(missing_ok=True)
        before = settings.read_bytes()  # some bring them up to date when they first see them
        driven.sandbox.write_profile("gated", PROFILE.format(profile=name, keep=json.dumps([*kind.variables])))
        for one in mine:
            approve(driven, one)
        options = ["-w", str(world.project), "--net", f"127.0.0.1:{driven.model_port}", "--read", str(server)]
        finished = driven.sandbox.mcpguard("run", "-p", "gated", *options, "--", *kind.words(prompt, *more_words))
        assert finished.code == 0, finished
        results = results_of(finished)
        assert len(results) == len(wanted), (free, finished)
        assert ["echo {" in text for text in results] == [True, False, False] * 2 + [False] * (len(results) - 6), (
            results
        )
        assert (results[0], results[3]) == (direct[0], direct[3]) and "still here" in results[7]
        for one in mine:
            assert calls(heard[one].read_bytes()) == unguarded[one][:1] and len(unguarded[one]) == 3
        assert not heard["stranger"].exists() and "nobody approved" in finished.err
        ended = [event["detail"] for event in driven.sandbox.denials() if event["op"] == "end"]
        assert bool(ended) is bool(kind.around) and all("around the gate" in detail for detail in ended)
        if heard["around"].exists():
            assert calls(heard["around"].read_bytes()) == [], "it was ended before it heard of one"
        events = driven.sandbox.events(None, "--kind", "mcp")
        calls_made = (event for event in events if event["mcp"].get("method") == "tools/call")
        made = sorted(
            calls_made, key=lambda event: event["time"]
        )  # local and remote ones come to the record by two ways
        shown = [(e["mcp"]["server"], e["mcp"]["tool"], e["op"], e["verdict"]) for e in made]
        acts = (("request", "allow"), ("response", "allow"), ("request", "deny"))
        assert shown == [(one, "echo", *act) for one in mine for act in acts], "\n".join(map(str, events))
        for at in (0, 3):
            first, answer, denied = (event["mcp"]["call"] for event in made[at : at + 3])
            assert first == answer != denied and denied in results[at + 1] and "blocked by policy" in results[at + 1]
        assert settings.read_bytes() == before
