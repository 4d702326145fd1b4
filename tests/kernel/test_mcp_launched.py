"""Agents that something stands before, or that go by another name: servers that they start around the gate are ended, too."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from harness import SYSTEM_PYTHON, Finished, need_root, sandbox
from mcp_box import Box, write_launched_agent

pytestmark = [pytest.mark.kernel]

# A client that starts a server by itself. It asks who that is, and calls it: at once, or when it is over or taken not to be.
CLIENT = """
import json, subprocess, sys

def answered(command, patience, before=""):
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    def ask(id, method, **params):
        try:
            server.stdin.write(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode() + b"\\n")
            server.stdin.flush()
        except BrokenPipeError:
            return False
        return bool(server.stdout.readline())
    before and ask(0, before)
    first = ask(1, "initialize", protocolVersion="2025-11-25", capabilities={})
    try:
        patience and server.wait(patience)
    except subprocess.TimeoutExpired:
        pass
    second = ask(2, "tools/call", name="echo", arguments={})
    server.kill()
    return {"first": first, "called": second}

if __name__ == "__main__":
    print(json.dumps({sys.argv[3]: answered(json.loads(sys.argv[1]), float(sys.argv[2]))}), flush=True)
"""
# The agent itself, which starts others like it in ways of its own. Its own server comes last: the kernel knows it by then.
AGENT = """
import json, os, shutil, subprocess, sys
sys.path.insert(0, os.getcwd())
import client

own, (command, patience) = sys.executable, sys.argv[-2:]  # before these stands what mcpguard tells an agent of this name
def words(program, way):
    return [program, "client.py", command, patience, way]
subprocess.run(["/bin/sh", "-c", '"$@"; :', "sh", *words(own, "by a shell")])
shutil.copy(own, "other")
subprocess.run(words("./other", "copied"))
memory = os.memfd_create("x", 0)
os.write(memory, open(own, "rb").read())
subprocess.run(words(f"/proc/self/fd/{memory}", "in memory"), pass_fds=[memory])
read, write = os.pipe()
os.set_inheritable(write, True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(own, words(own, "double fork"))
    os._exit(0)
os.close(write)
os.wait()
os.read(read, 1)
if os.fork() == 0:
    print(json.dumps({"not executed": client.answered(json.loads(command), float(patience))}), flush=True)
    os._exit(0)
os.wait()
begun = client.answered(json.loads(command), float(patience), "roots/list")
print(json.dumps({"begins as servers do": begun}), flush=True)
print(json.dumps({"itself": client.answered(json.loads(command), 0)}), flush=True)
"""
WAYS = ("by a shell", "copied", "in memory", "double fork", "not executed", "begins as servers do", "itself")


@pytest.fixture
def box() -> Iterator[Box]:
    """With an agent as npm lays it out: a launcher by the agent's name, which is no program of its own, and that."""
    need_root()
    with sandbox() as inside:
        project = inside.world.project
        (project / "client.py").write_text(CLIENT)
        write_launched_agent(project, AGENT)
        made = Box(inside)
        made.client.write_text(CLIENT)
        yield made


def called(finished: Finished) -> dict[str, bool]:
    """Whether the call of each was answered. Whether the first question was, before the server was ended, is chance."""
    return {way: answered["called"] for line in finished.json_lines() for way, answered in line.items()}


def test_an_agent_behind_a_launcher_and_those_that_it_starts_are_agents(box: Box) -> None:
    words = [str(box.inside.world.project / "codex"), json.dumps(box.command)]
    assert called(box.inside.control([*words, "0"])) == dict.fromkeys(WAYS, True)
    finished = box.inside.run([*words, "60"], options=box.options)
    assert called(finished) == dict.fromkeys(WAYS, False), finished
    ended = [event for event in box.inside.denials() if event["op"] == "end"]
    assert len(ended) == len(WAYS) and all("around the gate" in event["detail"] for event in ended), ended


def test_an_agent_that_a_command_starts_has_no_servers_and_the_command_has_its_own(box: Box) -> None:
    native = box.inside.world.project / "node_modules/@openai/codex-linux-x64/vendor/bin/codex"
    by = f"client.py '{json.dumps(box.command)}'"
    words = ["/bin/sh", "-c", f"{native} {by} $0 agent; {SYSTEM_PYTHON} {by} 0.2 tests; exit"]
    assert called(box.inside.control([*words, "0"])) == {"agent": True, "tests": True}
    finished = box.inside.run([*words, "60"], options=box.options)
    assert called(finished) == {"agent": False, "tests": True}, finished
    (ended,) = [event for event in box.inside.denials() if event["op"] == "end"]
    assert "around the gate" in ended["detail"]
