"""What an approved MCP server executes cannot be exchanged by the session that it is started in, whoever is quicker."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from harness import SYSTEM_PYTHON, mcpguard_command, need_root, sandbox
from mcp_box import SERVER, Box, text_of, tool

from mcpguard.session.gate import SHIM

pytestmark = pytest.mark.kernel

EVIL = SERVER.replace("json.dumps(arguments))()", "'EVIL')()")
# Starts a server again and again while a second process exchanges its script: by writing, by renaming the file, and by renaming
# its folder; and always puts it back. Prints what servers said, and whether anything could be exchanged.
SWAPPER = """
import json, os, subprocess, sys, time
CALL = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {"a": 1}}}\\n'
folder, script, evil, tries = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
words = [os.environ.get("MCPGUARD_GATE") if word == "GATE" else word for word in sys.argv[5:]]
good, bad = open(script).read(), open(evil).read()
def write():
    open(script, "w").write(bad)
    yield
    open(script, "w").write(good)
def rename():
    os.rename(script, script + ".was")
    open(script, "w").write(bad)
    yield
    os.rename(script + ".was", script)
def rename_folder():
    os.rename(folder, folder + ".was")
    os.mkdir(folder)
    open(script, "w").write(bad)
    yield
    os.unlink(script)
    os.rmdir(folder)
    os.rename(folder + ".was", folder)
def swap():
    while True:
        for way in (write, rename, rename_folder):
            try:
                for _ in way():
                    open("swapped", "a").write(way.__name__ + " ")
                    time.sleep(0.004)
            except OSError:
                time.sleep(0.001)
swapper = os.fork()
if not swapper:
    swap()
said = set()
for _ in range(tries):
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        server.stdin.write(CALL)
        server.stdin.close()
    except OSError:
        pass
    said.add(server.stdout.read().decode())
    server.wait()
os.kill(swapper, 9)
print(json.dumps({"evil": any("EVIL" in one for one in said), "good": any('\\\\"a\\\\": 1' in one for one in said),
    "swapped": sorted(set(open("swapped").read().split())) if os.path.exists("swapped") else []}))
"""


@pytest.fixture
def box() -> Iterator[Box]:
    need_root()
    with sandbox() as inside:
        yield Box(inside)


def shim(command: list[str]) -> list[str]:
    return [mcpguard_command()[0], "-I", "-S", "-B", SHIM, "GATE", "s", "--", *command]


def test_an_approved_script_in_the_workspace_is_not_exchanged_between_the_look_and_the_start(box: Box) -> None:
    """Also by its folder. The control is the same program unguarded, which exchanges it in every way."""
    project = box.inside.world.project
    own = project / "server"
    own.mkdir()
    script, evil = own / "server.py", project / "evil.py"
    script.write_text(SERVER)
    evil.write_text(EVIL)
    project.joinpath("swapper.py").write_text(SWAPPER)
    command = [SYSTEM_PYTHON, str(script)]
    box.approve("s", command)

    words = [SYSTEM_PYTHON, "swapper.py", str(own), str(script), str(evil)]
    free = box.inside.control([*words, "40", *command]).json_lines()[-1]
    assert free["evil"] and free["swapped"] == ["rename", "rename_folder", "write"], free
    for left in (own, own.with_name("server.was")):  # whatever it was at when it was ended
        shutil.rmtree(left, ignore_errors=True)
    own.mkdir()
    script.write_text(SERVER)
    project.joinpath("swapped").unlink()
    ended = box.inside.run([*words, "12", *shim(command)], options=box.options)
    seen = ended.json_lines()[-1]
    assert not seen["evil"] and seen["good"] and "write" not in seen["swapped"], ended
    refused = [event for event in box.inside.denials() if str(script) in (event.get("path") or "")]
    assert any("readonly" in event["rule"]["text"] for event in refused), refused[:3]


def test_a_script_that_was_approved_later_waits_for_the_next_session(box: Box) -> None:
    """In this one the session may write it, so nobody knows what would be executed."""
    script = box.inside.world.project / "server.py"
    script.write_text(SERVER)
    command = [SYSTEM_PYTHON, str(script)]
    go, ready = (box.inside.world.project / name for name in ("go", "ready"))
    words = [
        SYSTEM_PYTHON,
        "client.py",
        mcpguard_command()[0],
        SHIM,
        "s",
        json.dumps(command),
        json.dumps([tool("echo", a=1)]),
    ]
    wait = f"touch {ready}; while ! test -e {go}; do sleep 0.05; done; exec {shlex.join(words)}"

    def approve() -> None:
        while not ready.exists():
            time.sleep(0.05)
        box.approve("s", command)
        go.touch()

    outside = threading.Thread(target=approve)
    outside.start()
    finished = box.inside.run(["/bin/sh", "-c", wait], options=box.options)
    outside.join(60)
    assert "mcp.writable" in finished.err and finished.json_lines()[-1]["code"] == 126, finished
    assert text_of(box.talk("s", tool("echo", a=1), command=command).json_lines()[0]) == '{"a": 1}'


def test_a_module_in_the_folder_that_it_starts_in_takes_no_ones_place(box: Box) -> None:
    """Neither that of the server's module nor of one that it imports."""
    command = [SYSTEM_PYTHON, "-m", "json.tool", "--no-ensure-ascii"]
    planted = box.inside.world.project / "argparse.py"
    planted.write_text("import os; os.write(2, b'PLANTED'); os._exit(0)")
    box.approve("s", command)
    assert "PLANTED" in box.talk("s", command=command, guarded=False).err
    finished = box.talk("s", command=command)
    assert "PLANTED" not in finished.err, finished
    start = [event for event in box.mcp_events() if event["op"] == "start"]
    assert start and " -P -m json.tool" in start[0]["detail"], finished


def test_what_has_to_be_looked_for_where_the_session_writes_does_not_start(box: Box) -> None:
    box.inside.world.project.joinpath("mine.py").write_text(SERVER)
    words = [SYSTEM_PYTHON, "-m", "mine"]
    box.approve("s", words)
    assert box.talk("s", tool("echo"), command=words, guarded=False).json_lines()[-1]["code"] == 0
    finished = box.talk("s", tool("echo"), command=words)
    assert "mcp.writable" in finished.err and "first, and this session may write there" in finished.err, finished


def test_what_only_a_runner_of_packages_knows_does_not_start(box: Box) -> None:
    """Not though its words were approved: they do not say what it would run."""
    programs, ran = box.inside.world.home / ".local/bin", box.inside.world.project / "ran"
    programs.mkdir(parents=True)
    for name in ("bunx", "pipx", "npx"):
        programs.joinpath(name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        programs.joinpath(name).chmod(0o755)
    for name, command, instead in (
        ("bunx", [str(programs / "bunx"), "some-server@1.0.0"], "npx -y some-server@1.0.0"),
        ("pipx", [str(programs / "pipx"), "run", "some-server==1.0.0"], "pipx install some-server==1.0.0"),
        ("npx", ["/bin/sh", "-c", f"cd /usr && {programs}/npx -y some-server@1.0.0"], "npx -y some-server@1.0.0"),
        ("sh", ["/bin/sh", "-c", f'R={programs}/np; "$R"x -y some-server@1.0.0'], "its path, its words"),
    ):
        box.approve(name, command)
        box.talk(name, command=command, guarded=False)
        assert ran.exists(), "the control"
        ran.unlink()
        finished = box.talk(name, tool("echo"), command=command)
        assert "mcp.runner" in finished.err and instead in finished.err and not ran.exists(), finished
        (refused,) = [event for event in box.mcp_events() if event["op"] == "refuse"]
        assert refused["mcp"]["server"] == name and f"only {name} knows" in refused["detail"]


def test_the_socket_of_a_container_engine_is_closed_and_its_server_says_so(box: Box) -> None:
    world = box.inside.world
    engine = world.home / ".docker/run/docker.sock"
    engine.parent.mkdir(parents=True)
    docker = world.home / ".local/bin/docker"
    docker.parent.mkdir(parents=True, exist_ok=True)
    docker.write_text(
        f"#!{SYSTEM_PYTHON}\nimport socket\nsocket.socket(socket.AF_UNIX).connect({str(engine)!r})\n" + SERVER
    )
    docker.chmod(0o755)
    command = [str(docker), "run", "-i", "--rm", f"a@sha256:{'0' * 64}"]
    box.approve("s", command)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(engine))
        listener.listen()
        free = box.talk("s", tool("echo", a=1), command=command, guarded=False)
        assert text_of(free.json_lines()[0]) == '{"a": 1}'
        finished = box.talk("s", tool("echo", a=1), command=command)
    assert "mcp.container" in finished.err and finished.json_lines()[-1]["code"] == 126, finished
    assert str(engine) in box.mcp_events()[-1]["detail"]
