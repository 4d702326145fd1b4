"""Servers that are declared as most of the world declares them: a runner of packages stands before what really runs."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import SYSTEM_PYTHON, Json, need_root, sandbox
from mcp_box import PROFILE, Box
from real_agent import CACHE
from test_mcp_gate import CALLING
from test_mcp_servers import EVERYTHING, NPM, PYPI, answers, by_npx, everything_by_npx, fetched, names, new_era, old_era

pytestmark = [pytest.mark.kernel, pytest.mark.agent, pytest.mark.timeout(400)]

UV = "uv==0.13.9"
VARIABLES = {"UV_CACHE_DIR": str(CACHE / "uv-cache"), "UV_PYTHON": SYSTEM_PYTHON}
LINES = old_era(("echo", {"message": 'h\u00e9llo \\ " \n'}), ("get-env", {}), ("get-sum", {"a": 1, "b": 2}))


@pytest.fixture
def box() -> Iterator[Box]:
    need_root()
    with sandbox() as inside:
        yield Box(inside)


def with_npx(box: Box) -> list[str]:
    box.inside.variables["npm_config_offline"] = "true"
    box.inside.write_profile("gated", PROFILE.replace("*/forbidden", "*/get-env"))
    return everything_by_npx(box.inside.world.home)


def modules_of(box: Box) -> Path:
    return box.inside.world.home / ".npm/_npx" / hashlib.sha512(EVERYTHING.encode()).hexdigest()[:16] / "node_modules"


def test_an_unvetted_server_of_npx_answers_no_call(box: Box) -> None:
    """npx, the shell that it starts, and the node of the server: neither by the gate nor around it."""
    command = with_npx(box)
    agent = box.inside.world.project / "opencode"
    agent.write_text(f"#!{SYSTEM_PYTHON}\n{CALLING}")
    agent.chmod(0o755)
    words = [str(agent), json.dumps(command), "pipes", "0"]
    assert box.inside.control(words).json_lines() == [{"answered": True, "killed": False}]
    finished = box.inside.run(words, options=box.options)
    assert finished.json_lines() == [{"answered": False, "killed": True}], finished
    ended = [event for event in box.inside.denials() if event["op"] == "end"]
    assert ended and all("around the gate" in event["detail"] for event in ended)
    refused = box.talk("s", LINES[0], command=command)
    assert "mcp.not-approved" in refused.err and refused.json_lines()[-1]["code"] == 126, refused


# Each way to have the server be another one: its modules, and a place where Node looks for those that it does not find there.
TAMPERING = """
import json, os, sys
modules = sys.argv[1]
script = modules + "/@modelcontextprotocol/server-everything/dist/index.js"
cache = os.path.dirname(os.path.dirname(modules))
def tried(act):
    try:
        act()
    except OSError as error:
        return error.errno
    return 0
def renamed(path):
    os.rename(path, path + ".was")
    os.rename(path + ".was", path)
def planted(path):
    os.makedirs(path)
    os.rmdir(path)
print(json.dumps({
    "write": tried(lambda: open(script, "a").close()),
    "create": tried(lambda: open(modules + "/new", "w").close()) or tried(lambda: os.unlink(modules + "/new")),
    "unlink": tried(lambda: os.unlink(modules + "/.package-lock.json")),
    "modules": tried(lambda: renamed(modules)),
    "folder": tried(lambda: renamed(os.path.dirname(modules))),
    "above": tried(lambda: planted(cache + "/node_modules")),
    "others": tried(lambda: planted(cache + "/other")),
}))
"""


def test_an_approved_server_of_npx_is_what_was_approved(box: Box) -> None:
    command = with_npx(box)
    inside, modules = box.inside, modules_of(box)
    free = answers(box.talk("s", *LINES, command=command, guarded=False).out)
    # As its user goes about it.
    declared = {"mcpServers": {"s": {"command": command[0], "args": command[1:]}}}
    (inside.world.home / ".claude.json").write_text(json.dumps(declared))
    kept = modules.with_name("kept")
    modules.rename(kept)
    told = inside.mcpguard("mcp", "approve", "--yes", "s")
    assert told.code == 1 and f"-p {EVERYTHING} true" in told.err, told
    kept.rename(modules)
    assert inside.mcpguard("mcp", "approve", "--yes", "s").code == 0
    through = answers(box.talk("s", *LINES, command=command).out)
    assert set(through) == set(free) and through[1] == free[1] and through[3] == free[3], (free, through)
    assert "result" in json.loads(free[2]) and "blocked by policy" in through[2]
    assert "get-env" in names(free["list"]) and "get-env" not in names(through["list"])
    asked = [event for event in box.mcp_events() if event["op"] == "request"]
    assert [event["mcp"].get("tool") for event in asked][-3:] == ["echo", "get-env", "get-sum"]
    # The same, as others write it.
    for at, other in enumerate(
        (["/bin/sh", "-c", " ".join(command)], [command[0][:-1] + "m", "exec", "--yes", "--", EVERYTHING])
    ):
        box.approve(f"other{at}", other)
        assert answers(box.talk(f"other{at}", *LINES, command=other).out)[1] == free[1]
        (started,) = [event for event in box.mcp_events() if event["op"] == "start"]
        node, script, *_ = started["detail"].split()
        assert node.endswith("/node") and script.startswith(f"{modules}/"), started
    # Nobody of the session changes it; without a gate somebody can, and then it does not start.
    (inside.world.project / "acts.py").write_text(TAMPERING)
    acts = [SYSTEM_PYTHON, "acts.py", str(modules)]
    lock = (modules / ".package-lock.json").read_bytes()
    assert set(inside.control(acts).json_lines()[0].values()) == {0}
    (modules / ".package-lock.json").write_bytes(lock)
    done = inside.run(acts, options=box.options).json_lines()[0]
    assert done.pop("others") == 0 and 0 not in done.values(), done
    (modules / "zod/planted.js").write_text("1")
    changed = box.talk("s", LINES[0], command=command)
    assert "mcp.changed" in changed.err and "modules sha256" in changed.err, changed
    (modules / "zod/planted.js").unlink()
    assert answers(box.talk("s", *LINES[:1], command=command).out)


def test_what_a_server_of_npx_does_is_known_by_its_package_and_not_by_the_path_of_its_script(box: Box) -> None:
    command = with_npx(box)
    allowed = 'allow: ["*/@read"]\n  deny: ["*/@open"]\n'
    box.inside.write_profile("gated", PROFILE.partition("  allow:")[0] + f"  {allowed}")
    lines = old_era(("echo", {"message": "x"}), ("gzip-file-as-resource", {"name": "x"}))
    (program,) = modules_of(box).glob("@modelcontextprotocol/server-everything/dist/index.js")
    script = [shutil.which("node") or str(CACHE / "npm/bin/node"), str(program), "stdio"]
    free = answers(box.talk("s", *lines, command=command, guarded=False).out)
    assert {"echo", "gzip-file-as-resource"} <= set(names(free["list"])) and "result" in json.loads(free[1])
    for name, words in (("s", command), ("path", script)):
        box.approve(name, words)
        through = answers(box.talk(name, *lines, command=words).out)
        assert "blocked by policy" in through[2], through
        if name == "s":
            assert through[1] == free[1] and "get-sum" in names(through["list"])
            assert set(names(free["list"])) - set(names(through["list"])) >= {"gzip-file-as-resource"}
        else:
            assert "blocked by policy" in through[1] and names(through["list"]) == []


def uv_installs(box: Box, words: list[str]) -> None:
    """As the user does it; from a cache of the tests where that holds it."""
    environment = {**os.environ, **box.inside.world.environment(), **VARIABLES}
    for more in (["--offline"], []):
        done = subprocess.run(
            [*words, *more], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode == 0:
            return
    pytest.fail(f"the real package is needed for this test: {done.stderr[-500:]}")


def with_uv(box: Box) -> None:
    """uv, where the user has it."""
    home = box.inside.world.home
    pip = ["FOLDER/venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV]
    folder = fetched("uv-" + UV.rpartition("=")[2], [sys.executable, "-m", "venv", "FOLDER/venv"], pip)
    (home / ".local/bin").mkdir(parents=True, exist_ok=True)
    for name in ("uv", "uvx"):
        shutil.copy(folder / "venv/bin" / name, home / ".local/bin" / name)


def test_an_approved_server_of_uvx_is_what_uv_installed(box: Box) -> None:
    home, version = box.inside.world.home, PYPI["mcp-server-time"]
    with_uv(box)
    command = ["uvx", f"mcp-server-time=={version}", "--local-timezone", "UTC"]
    (home / ".claude.json").write_text(json.dumps({"mcpServers": {"s": {"command": "uvx", "args": command[1:]}}}))
    told = box.inside.mcpguard("mcp", "approve", "--yes", "s")
    install = [
        "uv",
        "tool",
        "install",
        "--reinstall",
        "--link-mode",
        "copy",
        "--compile-bytecode",
        f"mcp-server-time=={version}",
    ]
    assert told.code == 1 and f"First: {' '.join(install)}" in told.err, told
    uv_installs(box, install)
    assert box.inside.mcpguard("mcp", "approve", "--yes", "s").code == 0
    box.inside.variables |= {**VARIABLES, "UV_OFFLINE": "1"}
    box.inside.write_profile("gated", PROFILE.replace("*/forbidden", "*/get_current_time"))
    calls: list[tuple[str, Json]] = [
        ("convert_time", {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}),
        ("get_current_time", {"timezone": "UTC"}),
    ]
    direct = box.talk("s", *new_era(*calls), command=command, guarded=False)
    free = answers(direct.out)
    assert free, direct
    through = answers(box.talk("s", *new_era(*calls), command=command).out)
    assert set(through) == set(free) and through[1] == free[1], (free, through)
    assert "result" in json.loads(free[2]) and "blocked by policy" in through[2]
    (started,) = [event for event in box.mcp_events() if event["op"] == "start"]
    # It needs no more than the profile for servers that only look.
    box.inside.write_profile("gated", PROFILE + "  confine: {s: mcp-server}\n")
    kept = box.talk("s", *new_era(*calls), command=command)
    assert answers(kept.out)[1] == free[1], kept
    # What Python would take in place of an unchanged module counts, too: a session without a gate may have put it there.
    (source,) = home.glob(".local/share/uv/tools/mcp-server-time/lib/python3*/site-packages/mcp_server_time/server.py")
    (cached,) = source.parent.glob("__pycache__/server.*.pyc")
    as_compiled = cached.read_bytes()
    poison = box.inside.world.project / "poison.py"
    poison.write_text(source.read_text() + "\nimport sys\nsys.stderr.write('POISONED')\n")
    make = "import marshal, sys; sys.stdout.buffer.write(marshal.dumps(compile(open(sys.argv[1]).read(), sys.argv[1], 'exec')))"
    done = subprocess.run([SYSTEM_PYTHON, "-c", make, str(poison)], capture_output=True, check=True)
    cached.write_bytes(as_compiled[:16] + done.stdout)
    script = [f"{home}/.local/share/uv/tools/mcp-server-time/bin/mcp-server-time"]
    assert "POISONED" in box.talk("s", *new_era(*calls), command=script, guarded=False).err, "the control"
    poisoned = box.talk("s", *new_era(*calls), command=command)
    assert "mcp.changed" in poisoned.err and "POISONED" not in poisoned.err, poisoned
    cached.write_bytes(as_compiled)
    assert answers(box.talk("s", *new_era(*calls), command=command).out), (
        "what was run elsewhere meanwhile is no change"
    )
    assert f"{home}/.local/share/uv/tools/mcp-server-time/bin/mcp-server-time" in started["detail"]


TRIES = """
def tried():
    import socket, sys
    try:
        open("{}").close()
        sys.stderr.write("SECRET read\\n")
    except OSError:
        sys.stderr.write("SECRET not read\\n")
    try:
        socket.socket().close()
    except OSError:
        sys.stderr.write("NO NETWORK\\n")
tried()
"""
TRIES_IN_NODE = """
import { readFileSync } from "node:fs";
try {
  readFileSync("{}");
  console.error("SECRET read");
} catch {
  console.error("SECRET not read");
}
"""
UTC_TO_TOKYO = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}


@pytest.mark.parametrize("name", ["time", "filesystem", "git"])
def test_a_known_server_is_kept_to_what_it_needs(name: str, box: Box) -> None:
    """All of its tools work as without that, and what it does not need is closed. The control has the word that leaves it."""
    project, home = box.inside.world.project, box.inside.world.home
    made = project / "made"
    if name == "git":
        (project / "app.py").write_text("first = 1\n")
        (home / ".gitconfig").write_text("[user]\n\tname = someone\n\temail = someone@example.com\n")
    calls: list[tuple[str, Json]] = {
        "time": [("convert_time", UTC_TO_TOKYO), ("get_current_time", {"timezone": "UTC"})],
        "filesystem": [
            *((f"read_{kind}", {"path": str(project / "app.py")}) for kind in ("text_file", "media_file")),
            *(("read_multiple_files", {"paths": [str(project / "app.py")]}), ("list_allowed_directories", {})),
            *(
                (kind, {"path": str(project)})
                for kind in ("list_directory", "list_directory_with_sizes", "get_file_info")
            ),
            *(("directory_tree", {"path": str(project)}), ("search_files", {"path": str(project), "pattern": "*.py"})),
            *(("create_directory", {"path": str(made)}), ("write_file", {"path": str(made / "a"), "content": "x"})),
            ("edit_file", {"path": str(made / "a"), "edits": [{"oldText": "x", "newText": "y"}]}),
            ("move_file", {"source": str(made / "a"), "destination": str(made / "b")}),
        ],
        "git": [
            (tool, {"repo_path": str(project), **arguments})
            for tool, arguments in (
                *(("git_diff_unstaged", {}), ("git_add", {"files": ["app.py"]}), ("git_diff_staged", {})),
                *(("git_commit", {"message": "one"}), ("git_create_branch", {"branch_name": "other"})),
                *(("git_checkout", {"branch_name": "other"}), ("git_checkout", {"branch_name": "main"})),
                *(("git_diff", {"target": "HEAD~1"}), ("git_log", {}), ("git_show", {"revision": "HEAD"})),
                *(("git_branch", {"branch_type": "local"}), ("git_status", {}), ("git_reset", {})),
            )
        ],
    }[name]
    if name == "filesystem":
        command = [*by_npx(f"@modelcontextprotocol/server-filesystem@{NPM[name]}", home), str(project)]
        box.inside.variables["npm_config_offline"] = "true"
        (code,) = home.glob(".npm/_npx/*/node_modules/@modelcontextprotocol/server-filesystem/dist/index.js")
        tries = TRIES_IN_NODE
    else:
        with_uv(box)
        package = f"mcp-server-{name}=={PYPI[f'mcp-server-{name}']}"
        uv_installs(box, ["uv", "tool", "install", "--link-mode", "copy", "--compile-bytecode", package])
        command = ["uvx", package]
        box.inside.variables |= {**VARIABLES, "UV_OFFLINE": "1"}
        (code,) = home.glob(
            f".local/share/uv/tools/mcp-server-{name}/lib/python3*/site-packages/mcp_server_{name}/__init__.py"
        )
        tries = TRIES
    # What it would do if it were another one, as it was when it was approved.
    secret = home / ".config/thing/settings"
    secret.parent.mkdir(parents=True)
    secret.write_text("mine")
    code.write_text(code.read_text() + "\n" + tries.replace("{}", str(secret)) + "\n")
    declared = {"command": command[0], "args": command[1:]}
    (home / ".claude.json").write_text(json.dumps({"mcpServers": {"s": declared}}))
    told = box.inside.mcpguard("mcp", "approve", "--yes", "s")
    assert told.code == 0 and "kept to" in told.out and "confine: {s: as-agent}" in told.out, told
    listed = box.inside.mcpguard("mcp", "list", "--format", "json")
    (kept_to,) = (row["kept_to"] for row in json.loads(listed.out) if row["name"] == "s")
    assert f"{kept_to} where no rule" in box.inside.mcpguard("mcp", "list").err
    options = ("--read", str(secret))
    box.inside.write_profile("gated", PROFILE + "  confine: {s: as-agent}\n")
    box.options = (*box.options, *options)
    free = box.talk("s", *old_era(*calls), command=command)
    assert "SECRET read" in free.err and not failed(free.out), free
    if name == "git":
        (project / "app.py").write_text("second = 2\n")
        subprocess.run(["git", "-C", str(project), "branch", "-D", "other"], check=True, capture_output=True)
    shutil.rmtree(made, ignore_errors=True)
    box.inside.write_profile("gated", PROFILE)
    kept = box.talk("s", *old_era(*calls), command=command)
    assert "SECRET not read" in kept.err and not failed(kept.out), kept
    assert len(answers(kept.out)) == len(answers(free.out)) > len(calls)
    assert ("NO NETWORK" in free.err, "NO NETWORK" in kept.err) == (False, name != "filesystem")
    denied = box.inside.denials()
    (read,) = [one for one in denied if one.get("path") == str(secret)]
    sockets = [one for one in denied if one["op"] == "socket"]
    assert bool(sockets) is (name != "filesystem")
    for one in (read, *sockets):
        assert one["rule"]["text"].startswith("mcp confine s mcp-server"), one


def failed(out: str) -> bool:
    return any(
        "error" in (found := json.loads(line)) or found["result"].get("isError") for line in answers(out).values()
    )


ONE_OF_OURS = """
import asyncio, os, sys
from mcp_server_time.server import serve
sys.stderr.write("started by " + os.environ["VIRTUAL_ENV"])
asyncio.run(serve("UTC"))
"""


@pytest.mark.parametrize("words", [["mcp-server-time", "--local-timezone", "UTC"], ["server.py"], ["-m", "ours.main"]])
def test_an_approved_server_of_a_project_is_what_uv_would_execute(box: Box, words: list[str]) -> None:
    """uv itself is not started: neither its lock nor the project's manifest has a say in a session."""
    home, version = box.inside.world.home, PYPI["mcp-server-time"]
    with_uv(box)
    project = home / "srv"
    (project / "ours").mkdir(parents=True)
    manifest = project / "pyproject.toml"
    manifest.write_text(
        '[project]\nname = "srv"\nversion = "0"\nrequires-python = ">=3.11"\n'
        f'dependencies = ["mcp-server-time=={version}"]\n'
    )
    for name in ("server.py", "ours/main.py"):
        (project / name).write_text(ONE_OF_OURS)
    command = ["uv", "--directory", str(project), "run", *words]
    (home / ".claude.json").write_text(json.dumps({"mcpServers": {"s": {"command": "uv", "args": command[1:]}}}))
    told = box.inside.mcpguard("mcp", "approve", "--yes", "s")
    makes = ["uv", "sync", "--project", str(project), "--reinstall", "--link-mode", "copy", "--compile-bytecode"]
    assert told.code == 1 and shlex.join(makes) in told.err, told
    uv_installs(box, makes)
    approved = box.inside.mcpguard("mcp", "approve", "--yes", "s")
    assert approved.code == 0 and str(project / ".venv/lib") in approved.out, approved
    box.inside.variables |= {**VARIABLES, "UV_OFFLINE": "1"}
    box.options = ("--read", str(home))
    rules = PROFILE.replace("*/forbidden", "*/get_current_time")
    box.inside.write_profile("gated", rules.replace("files:\n", "files:\n  execute: [~/srv]\n"))
    calls: list[tuple[str, Json]] = [
        ("convert_time", {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}),
        ("get_current_time", {"timezone": "UTC"}),
    ]
    free = answers(box.talk("s", *new_era(*calls), command=command, guarded=False).out)
    assert "result" in json.loads(free[2]), free
    manifest.write_text(manifest.read_text() + '[project.scripts]\nmcp-server-time = "evil:main"\n')
    (project / "uv.lock").write_text("evil")
    guarded = box.talk("s", *new_era(*calls), command=command)
    through = answers(guarded.out)
    assert set(through) == set(free) and through[1] == free[1] and "blocked by policy" in through[2], guarded
    (started,) = [event for event in box.mcp_events() if event["op"] == "start"]
    assert started["detail"].startswith(f"{project}/.venv/bin/"), started
    if words == ["server.py"]:
        assert f"started by {project}/.venv" in guarded.err
    # Nobody of a session with a gate changes it; and whoever does it elsewhere makes another server of it.
    (source,) = project.glob(".venv/lib/python3*/site-packages/mcp_server_time/server.py")
    places = [source, project / ".venv/pyvenv.cfg", project / ".venv/bin/activate"]
    acts = [SYSTEM_PYTHON, "-c", WRITING, *map(str, places)]
    assert box.inside.control(acts).json_lines() == [dict.fromkeys(map(str, places), 0)]
    write = ("--write", str(project))
    (refused,) = box.inside.run(acts, options=(*box.options, *write)).json_lines()
    assert 0 not in refused.values() and {event["path"] for event in box.inside.denials()} >= set(map(str, places))
    for path in (source, project / ".venv/pyvenv.cfg"):
        before = path.read_bytes()
        path.write_bytes(before + b"\n# more\n")
        changed = box.talk("s", *new_era(*calls), command=command)
        assert "mcp.changed" in changed.err, changed
        path.write_bytes(before)
    assert answers(box.talk("s", *new_era(*calls), command=command).out)[1] == free[1]


WRITING = """
import json, sys
def tried(path):
    try:
        open(path, "a").close()
    except OSError as error:
        return error.errno
    return 0
print(json.dumps({path: tried(path) for path in sys.argv[1:]}))
"""
