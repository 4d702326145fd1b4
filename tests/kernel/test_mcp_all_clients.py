"""With `mcp.clients: all` no server around the gate answers any program of the session; else agents alone get no answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import SYSTEM_PYTHON, Finished, Json, assert_names_rule, mcpguard_command, need_root, sandbox
from matrix import static_acts
from mcp_box import STRICT, Box
from test_mcp_around import CLIENT, COUNTS, DONE, MANY, OTHERS, REFUSED, WAITS

import mcpguard
from mcpguard.session.gate import SHIM

pytestmark = pytest.mark.kernel

LINE = STRICT.splitlines().index("  clients: all") + 1
CALL = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x", "arguments": {}}})
# An agent that has its shell run a command, and goes on.
AGENT = """
import json, subprocess, sys
subprocess.run(["/bin/sh", "-c", '"$@"; :', "sh", *json.loads(sys.argv[1])])
print(json.dumps({"goes": "on"}))
"""
# Clients in a shell: `$@` is the server.
SHELL = {
    "fifos": r"""
mkfifo asked answers
"$@" <asked >answers &
exec 3>asked 4<answers
echo "$CALL" >&3
if read -r line <&4; then echo '{"answered": true}'; else echo '{"answered": false}'; fi
""",
    "a process for each question": r"""
mkfifo asked answers
"$@" <asked >answers &
exec 3>asked 4<answers
/usr/bin/env printf '%s\n' "$CALL" >&3
if read -r line <&4; then echo '{"answered": true}'; else echo '{"answered": false}'; fi
""",
    "a pipeline": r"""
{ echo "$CALL"; sleep 2; } | "$@" >out
if [ -s out ]; then echo '{"answered": true}'; else echo '{"answered": false}'; fi
""",
    "a pipeline that ends at once": r"""
echo "$CALL" | "$@" >out
if [ -s out ]; then echo '{"answered": true}'; else echo '{"answered": false}'; fi
""",
}
# Who reads questions of MCP as data: what somebody prints that it has started, and text tools of a pipeline.
DATA = r"""
echo "$CALL" | cat >copied && cat copied
{ echo "$CALL"; sleep 2; } | tee also | cat
cat <<END
$CALL
END
cat copied | grep -c tools/call
"""
READS = """
import os, subprocess, sys
print(subprocess.run([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE).stdout.decode(), end="")
"""
PRINTS = f"import time; print({CALL!r}, flush=True); time.sleep(2)"
LSP = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}


@pytest.fixture
def box() -> Iterator[Box]:
    """With an agent, a client that is none, and a server whose answer is ready."""
    need_root()
    with sandbox() as inside:
        project = inside.world.project
        made = Box(inside)
        inside.write_profile("strict", STRICT)
        inside.variables["CALL"] = CALL
        agent = project / "opencode"
        agent.write_text(f"#!{SYSTEM_PYTHON}\n{AGENT}")
        agent.chmod(0o755)
        made.client.write_text(CLIENT)
        shutil.copy(static_acts("at_once"), project / "server")
        yield made


def under(box: Box, profile: str, words: list[str]) -> Finished:
    """An agent has its shell run this, and goes on."""
    box.inside.profile = profile
    finished = box.inside.run([str(box.inside.world.project / "opencode"), json.dumps(words)], options=box.options)
    assert finished.code == 0 and finished.json_lines()[-1] == {"goes": "on"}, finished
    return finished


def ended(box: Box) -> list[Json]:
    found = [event for event in box.inside.denials() if event["op"] == "end"]
    for event in found:
        assert "around the gate" in event["detail"] and "which is no agent" in event["detail"]
        assert_names_rule(event, "mcp clients all")
        assert event["rule"]["file"].endswith("/strict.yaml") and event["rule"]["line"] == LINE
        assert f"strict.yaml:{LINE}" in event["detail"]
    return found


def refuse(box: Box, words: list[str], answered: object, refused: object) -> Finished:
    """A client that is no agent has its answer outside, and without the switch; and not with it."""
    assert box.inside.control(words).json_lines() == [answered]
    assert under(box, "gated", words).json_lines()[:-1] == [answered]
    assert not [event for event in box.inside.denials() if event["op"] == "end"]
    finished = under(box, "strict", words)
    assert finished.json_lines()[:-1] == [refused], finished
    assert ended(box)
    return finished


@pytest.mark.parametrize("ends", ["pipes", "sockets"])
@pytest.mark.parametrize("way", ["read", "elsewhere", "tiny", "thread", "splice-now"])
def test_a_first_call_of_a_program_is_not_answered(way: str, ends: str, box: Box) -> None:
    if (ends, way) == ("sockets", "elsewhere"):
        way = "recv"
    server = [str(box.inside.world.project / "server"), way]
    finished = refuse(box, [SYSTEM_PYTHON, str(box.client), json.dumps(server), ends], DONE, REFUSED)
    assert [line.split()[0] for line in finished.err.splitlines()[-4:]] == ["mcpguard:", "why", "do", "code"]
    assert "mcpguard mcp shim NAME" in finished.err and "or take `clients: all` away" in finished.err


@pytest.mark.parametrize("kind", SHELL)
def test_nor_is_one_of_a_shell(kind: str, box: Box) -> None:
    words = ["/bin/sh", "-c", f"rm -f asked answers out\n{SHELL[kind]}", "sh", str(box.inside.world.project / "server")]
    refuse(box, words, {"answered": True}, {"answered": False})


@pytest.mark.parametrize("wrapper", ["nice /bin/sh -c '{}; :'; :", "cat | {}", "env {} | cat"])
def test_nor_is_one_by_a_server_behind_others(wrapper: str, box: Box) -> None:
    server = ["/bin/sh", "-c", wrapper.format(box.inside.world.project / "server")]
    asks = f"print(json.dumps({{'answered': call({server!r}, 'pipes')['answered']}}))"
    refuse(
        box,
        [SYSTEM_PYTHON, "-c", f"{CLIENT.partition('if __name__')[0]}\n{asks}"],
        {"answered": True},
        {"answered": False},
    )


@pytest.mark.parametrize(
    ("ends", "way"),
    [
        *(("pipes", way) for way in ("poisoned", "blind", "blind-moved", "given", "helped", "blank")),
        ("sockets", "blind"),
        *(("slow pipes", f"blind-away{how}-moved") for how in ("", "-hidden", "-forked")),
    ],
)
def test_nor_is_a_call_by_a_server_that_is_not_seen_to_read_or_asks_itself(ends: str, way: str, box: Box) -> None:
    server, client = box.inside.world.project / "counts.py", box.inside.world.project / "waits.py"
    server.write_text(COUNTS)
    client.write_text(WAITS)
    words = [SYSTEM_PYTHON, str(client), json.dumps([SYSTEM_PYTHON, str(server), way]), ends]
    refuse(box, words, {"calls": 2}, {"calls": 0})


def test_nor_is_one_where_the_program_is_the_first_process(box: Box) -> None:
    words = [SYSTEM_PYTHON, str(box.client), json.dumps([str(box.inside.world.project / "server")]), "pipes"]
    finished = box.inside.run(words, options=box.options)
    assert finished.json_lines() == [REFUSED] and "that it starts by itself are ended" in finished.err, finished
    assert len(ended(box)) == 1


@pytest.mark.parametrize("ends", ["pipes", "sockets"])
def test_other_protocols_go_on(ends: str, box: Box) -> None:
    """Language servers with `Content-Length` and `initialize` among them, however they are read."""
    project = box.inside.world.project
    ways = ("read", "tiny", "splice-now", "vmsplice" if ends == "pipes" else "peekmsg")
    asked = [([str(project / "server"), way], ends, form) for form in OTHERS for way in ways]
    many = project / "many.py"
    many.write_text(MANY)
    framed = f'FORMS["dated"] = [FRAMED({json.dumps(json.dumps(LSP))})]'
    box.client.write_text(CLIENT.replace("\ndef call", f"\n{framed}\n\ndef call", 1))
    asked += [([str(project / "server"), way], ends, "dated") for way in ways]
    finished = under(box, "strict", [SYSTEM_PYTHON, str(many), json.dumps(asked)])
    assert finished.json_lines()[:-1] == [DONE] * len(asked), finished
    assert not ended(box)


def test_who_reads_questions_as_data_goes_on(box: Box) -> None:
    shell = ["/bin/sh", "-c", DATA]
    inside = under(box, "strict", shell)
    assert inside.out.splitlines()[:-1] == [CALL, CALL, CALL, "1"], inside
    prints = [SYSTEM_PYTHON, "-c", READS, PRINTS]
    assert under(box, "strict", prints).out.splitlines()[:-1] == [CALL]
    assert not ended(box)


@pytest.mark.parametrize("ends", ["pipes", "sockets"])
@pytest.mark.parametrize("how", ["command", "shim", "wrapped"])
def test_a_program_talks_to_an_approved_server_by_way_of_the_gate(how: str, ends: str, box: Box) -> None:
    server = [str(box.inside.world.project / "server")]
    python = mcpguard_command()[0]
    starts = {
        "command": [*mcpguard_command(), "mcp", "shim", "s", "--", *server],
        "shim": ["/bin/sh", "-c", f'exec {python} -I -S -B {SHIM} "$MCPGUARD_GATE" s -- {server[0]}'],
        "wrapped": ["/bin/sh", "-c", f'sleep 2; {python} -I -S -B {SHIM} "$MCPGUARD_GATE" s -- {server[0]}; :'],
    }[how]
    words = [SYSTEM_PYTHON, str(box.client), json.dumps(starts), ends]
    box.options += (
        "--read",
        str(Path(mcpguard.__path__[0]).parent),
    )  # a checkout: of what is installed more may be read
    unknown = under(box, "strict", words).json_lines()[0]
    assert not unknown["answered"] and not ended(box), "nobody approved it"
    box.approve("s", server)
    finished = under(box, "strict", words)
    assert finished.json_lines()[:-1] == [DONE], finished
    assert not ended(box)
