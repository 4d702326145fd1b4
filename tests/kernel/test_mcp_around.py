"""The first call of a server around the gate is not answered, whoever of the agents asks, and however it is read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import SYSTEM_PYTHON, Json, execute, mcpguard_command, need_root, sandbox
from matrix import static_acts
from mcp_box import STRICT, Box, stands, wait_until, write_launched_agent

from mcpguard.kernel import cgroup
from mcpguard.session.gate import SHIM

pytestmark = pytest.mark.kernel

# How the server (tests/actors/at_once.c) reads its question.
WAYS = (
    *("read", "elsewhere", "reopened", "bytes", "readv", "preadv2", "splice", "tee"),
    *("tiny", "pieces", "thread", "vmsplice", "splice-now", "tee-now", "file"),
)
SOCKET_WAYS = (
    *("read", "recv", "peek", "recvmsg", "recvmmsg", "splice"),
    *("tiny", "pieces", "thread", "splice-now", "offset", "peekmsg"),
)
# What an agent says first, in one call or more, and how its server reads it.
FORMS = {
    "notification": "until",
    "notification-apart": "until",
    "answer": "until",
    "batch": "read",
    "batch-second": "read",
    "long-id": "read",
    "params-first": "read",
    "long-id-spliced": "splice-now",
    "notification-pieces": "pieces",
}
# What is no question of MCP, and whoever reads it in whatever way is no server.
OTHERS = ("json", "records", "logs", "lsp", "dap", "acp", "answers", "text")

# A client: its first words are a call. `start` is what begins the server.
CLIENT = r"""
import json, os, socket, subprocess, sys

CALL = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x", "arguments": {}}})
TOLD = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"})
LONG = "x" * 3000
FRAMED = lambda text: f"Content-Length: {len(text)}\r\n\r\n{text}\n"
ACP = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": 1, "more": LONG}}
FORMS = {
    "call": [CALL],
    "notification": [TOLD + "\n" + CALL],
    "notification-apart": [TOLD, CALL],
    "notification-pieces": [TOLD, TOLD, CALL],
    "answer": [json.dumps({"jsonrpc": "2.0", "id": 7, "result": {}}) + "\n" + CALL],
    "batch": [f"[{CALL}]"],
    "batch-second": [f"[{TOLD}, {CALL}]"],
    "long-id": [json.dumps({"jsonrpc": "2.0", "id": LONG} | json.loads(CALL) | {"id": LONG})],
    "params-first": [json.dumps({"params": {"name": LONG}, "jsonrpc": "2.0", "id": 1, "method": "tools/call"})],
    "json": [json.dumps({"name": "a", "text": LONG, "method": "tools/call"})],
    "records": [json.dumps({"id": n, "method": "GET", "path": LONG}) for n in range(3)],
    "logs": [json.dumps({"id": LONG, "level": "info", "message": CALL}) + "\n" + json.dumps({"id": 2, "level": "info"})],
    "lsp": [FRAMED(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"rootUri": LONG}}))],
    "dap": [FRAMED(json.dumps({"seq": 1, "type": "request", "command": "initialize", "arguments": {"x": LONG}}))],
    "acp": [json.dumps(ACP)],
    "answers": [json.dumps({"id": LONG, "jsonrpc": "2.0", "result": {"method": "tools/call"}})],
    "text": ["some words"],
}

def call(words, ends, form="call"):
    one, other = socket.socketpair()
    its = (subprocess.PIPE, subprocess.PIPE) if ends == "pipes" else (other, other)
    server = subprocess.Popen(words, stdin=its[0], stdout=its[1])
    other.close()
    more = b" " * 4096 if words[-1] in ("splice", "tee") else b""
    texts = [text.encode() + b"\n" for text in FORMS[form.replace("-spliced", "")]]
    answer = b""
    try:
        if ends == "pipes":
            for text in texts:
                os.write(server.stdin.fileno(), text)
            more and os.write(server.stdin.fileno(), more)
            answer = server.stdout.readline()
            server.stdin.close()
        else:
            for text in texts:
                one.sendall(text)
            more and one.sendall(more)
            answer = one.makefile("rb").readline()
            one.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        pass
    code = server.wait()
    return {"answered": bool(answer), "killed": code in (-9, 137)}

if __name__ == "__main__":
    print(json.dumps(call(json.loads(sys.argv[1]), *sys.argv[2:])), flush=True)
"""
# A server of many processes: of two that take the next question one reads it, and the other sees that in the memory of both
# and answers. None of them answers twice.
TEAM = r"""
import ctypes, json, mmap, os, signal, sys, time

way, SIZE, SECONDS, SET_DUMPABLE = sys.argv[1], 1 << 14, 8, 4
shared = mmap.mmap(-1, 32 * SIZE)  # whose turn it is, then room for each question
reads, writes = os.dup(0), os.dup(1)
nothing = os.open("/dev/null", os.O_RDWR)
for number in (2,) if way == "input" else (0, 1, 2):
    os.dup2(nothing, number)

def another():
    if os.fork():
        return False
    if way in ("apart", "hidden"):
        os.setsid()
        if os.fork():
            os._exit(0)
    signal.alarm(SECONDS)
    way == "hidden" and ctypes.CDLL(None).prctl(SET_DUMPABLE, 0, 0, 0, 0)
    return True

signal.alarm(SECONDS)
for turn in range(6):
    room = memoryview(shared)[SIZE * (turn + 1) : SIZE * (turn + 2)]
    if another():
        way in ("closed", "woken") and os.close(writes)
        while shared[0] != turn:
            time.sleep(0.0002)
        os.readv(reads, [room])
        time.sleep(SECONDS)
    if another():
        way in ("closed", "woken") and os.close(reads)
        while shared[0] != turn or not room[0]:
            time.sleep(0.0002)
        time.sleep(0.001)
        asked = [json.loads(line) for line in bytes(room).partition(b"\0")[0].splitlines()]
        shared[0] = turn + 1
        for one in asked:
            if "id" in one:
                os.write(writes, json.dumps({"jsonrpc": "2.0", "id": one["id"], "result": {}}).encode() + b"\n")
        time.sleep(SECONDS)
time.sleep(SECONDS)
"""
# A client that says what agents say first, and has a model think before it calls a tool.
THINKS = r"""
import json, os, subprocess, sys, time

def say(text, **params):
    os.write(server.stdin.fileno(), json.dumps({"jsonrpc": "2.0", **json.loads(text), **params}).encode() + b"\n")

WAKES = '''
import os, signal, sys, time
until = time.monotonic() + 8
while time.monotonic() < until:
    os.killpg(int(sys.argv[1]), signal.SIGCONT)
    time.sleep(0.001)
'''

server = subprocess.Popen(json.loads(sys.argv[1]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
if sys.argv[2] == "woken":
    nobody = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.Popen([sys.executable, "-c", WAKES, str(server.pid)], **nobody)
answered = []
try:
    say('{"id": 0, "method": "initialize"}', params={"protocolVersion": "2025-11-25", "capabilities": {}})
    answered.append(server.stdout.readline())
    say('{"method": "notifications/initialized"}')
    say('{"id": 1, "method": "tools/list"}')
    answered.append(server.stdout.readline())
    for number in (2, 3):
        time.sleep(1)
        say(json.dumps({"id": number, "method": "tools/call"}), params={"name": "x", "arguments": {}})
        answered.append(server.stdout.readline())
except (BrokenPipeError, ConnectionResetError):
    pass
server.kill()
print(json.dumps({"calls": sum(b'"id": %d,' % number in line for line in answered for number in (2, 3))}), flush=True)
"""
# Another client, which waits until its server has begun and passes over what is no answer; a slow one has a model think.
WAITS = r"""
import json, os, socket, subprocess, sys, time

words, ends = json.loads(sys.argv[1]), sys.argv[2]
one, other = socket.socketpair()
heard, its_output = socket.socketpair() if "two" in ends else (one, other)
its = (subprocess.PIPE, subprocess.PIPE) if "pipes" in ends else (other, its_output)
server = subprocess.Popen(words, stdin=its[0], stdout=its[1])
open("asked-pid", "w").write(f"{server.pid} ")
other.close()
its_output.close()
said = server.stdin.fileno() if "pipes" in ends else one.fileno()
lines = server.stdout if "pipes" in ends else heard.makefile("rb")
answered = []
try:
    lines.readline()
    for number, method in enumerate(("initialize", "tools/call", "tools/call")):
        params = {"protocolVersion": "2025-11-25", "capabilities": {}} if number == 0 else {"name": "x"}
        time.sleep(1 if "slow" in ends and number else 0)
        asked = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        os.write(said, json.dumps(asked).encode() + b"\n")
        open(f"asked-{number}", "w").close()
        line = lines.readline()
        while line and b'"id"' not in line:
            line = lines.readline()
        answered += [number] if line else []
        if "slow" in ends and number == 0:
            os.write(said, b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
except (BrokenPipeError, ConnectionResetError):
    pass
server.kill()
print(json.dumps({"calls": sum(number > 0 for number in answered)}), flush=True)
"""
# Its server: has made sure that nobody looks at what it reads, or does not read and only counts, or its reading never ends; and
# what it answers is no message by itself, or is moved. It may have another number than 0 where it counts, and hide what it has.
COUNTS = r"""
import ctypes, fcntl, json, mmap, os, signal, socket, sys, termios, threading, time

way = sys.argv[1]
NOTE, FOREIGN, HALF = b'{"jsonrpc":"2.0","method":"notifications/x"}\n', b'{"id":1,"x":2}\n', b'{"jsonrpc":"2.0","x":"'
BLANK, READS = b" " * 1020, ("poisoned", "given", "helped", "blank")
signal.alarm(20)
text = mmap.mmap(-1, 1 << 16)
nothing, answers = b"nothing\n", os.memfd_create("answers")
asked_at, SET_DUMPABLE = 0, 4
if "helped" in way and os.fork() == 0:
    signal.alarm(20)
    own = os.open("/proc/self/fd/0", os.O_WRONLY)
    os.closerange(1, 3)
    before = 0
    while time.sleep(0.0002) is None:
        count = int.from_bytes(fcntl.ioctl(0, termios.FIONREAD, bytes(4)), sys.byteorder)
        if count > before:
            count += os.write(own, NOTE)
        before = count

def say_to_itself(*told):
    own = os.open("/proc/self/fd/0", os.O_WRONLY)
    for words in told:
        os.write(own, words)
        os.read(0, len(words))
    os.close(own)

for word, told in (("foreign", 5 * [FOREIGN]), ("half", [HALF]), ("given", 1000 * [NOTE]), ("blank", [BLANK])):
    word in way and say_to_itself(*told)
if "away" in way:
    asked_at = os.dup(0)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)

if "forked" in way and os.fork():
    for number in (1, asked_at):
        os.dup2(0, number)
    time.sleep(20)
"forked" in way and os.close(2)
signal.alarm(20)
one, other = socket.socketpair()
if "flight" in way:
    socket.send_fds(one, [b"x"], [asked_at])
    os.close(asked_at)

def waiting():
    if "flight" in way:
        (taken,) = socket.recv_fds(other, 1, 1)[1]
        count = fcntl.ioctl(taken, termios.FIONREAD, bytes(4))
        socket.send_fds(one, [b"x"], [taken])
        os.close(taken)
        return int.from_bytes(count, sys.byteorder)
    return int.from_bytes(fcntl.ioctl(asked_at, termios.FIONREAD, bytes(4)), sys.byteorder)

def read_all():
    socket.socket(fileno=os.dup(0)).recv_into(text, len(text), socket.MSG_WAITALL)

class Call(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64), ("key", ctypes.c_uint64), ("op", ctypes.c_uint16), ("more", ctypes.c_int16),
                ("fd", ctypes.c_uint32), ("at", ctypes.c_uint64), ("length", ctypes.c_uint64), ("rest", ctypes.c_int64 * 3)]

libc = ctypes.CDLL(None, use_errno=True)
"hidden" in way and libc.prctl(SET_DUMPABLE, 0, 0, 0, 0)
context = ctypes.c_ulong()
SETUP, SUBMIT, TAKE = (206, 209, 208) if os.uname().machine == "x86_64" else (0, 2, 4)

def asynchronous(op, fd, buffer, length):
    call, done = Call(op=op, fd=fd, at=ctypes.addressof(buffer), length=length), (ctypes.c_int64 * 4)()
    each = (ctypes.c_void_p * 1)(ctypes.addressof(call))
    if libc.syscall(SUBMIT, context, ctypes.c_long(1), each) != 1:
        sys.exit(1)
    libc.syscall(TAKE, context, ctypes.c_long(1), ctypes.c_long(1), done, None)
    return done[2]

if way == "poisoned":
    own = os.open("/proc/self/fd/0", os.O_WRONLY)
    for _ in range(70):
        os.write(own, nothing)
        os.read(0, len(nothing))
if way.startswith("whole"):
    threading.Thread(target=read_all, daemon=True).start()
if way == "asynchronous":
    libc.syscall(SETUP, ctypes.c_long(4), ctypes.byref(context))
buffer = ctypes.create_string_buffer(1 << 16)
os.write(1, nothing)
for number in range(3):
    if way in READS:
        while b'"id"' not in os.read(0, 4096):
            pass
        way == "blank" and say_to_itself(BLANK)
    elif way == "asynchronous":
        asynchronous(0, 0, buffer, len(buffer))
    elif way.startswith("whole"):
        while text[:].count(b"\n") <= number:
            time.sleep(0.001)
    else:
        before = 0 if number == 0 else before
        while waiting() < before + 65:  # a note is shorter
            time.sleep(0.001)
        before = waiting()
    answer = json.dumps({"jsonrpc": "2.0", "id": number, "result": {"content": []}}).encode() + b"\n"
    if way.endswith("moved"):
        os.pwrite(answers, answer, 0)
        os.sendfile(1, answers, 0, len(answer))
    elif way == "asynchronous":
        ctypes.memmove(buffer, answer, len(answer))
        asynchronous(1, 1, buffer, len(answer))
    else:
        os.write(1, answer if way in READS else nothing + answer)
time.sleep(5)
"""
# Says something and then copies what it is given, unread.
COPIES = r"""
import os, sys

os.write(1, b"copying\n")
while os.splice(0, 1, 1 << 16) if sys.argv[1] == "pipes" else os.write(1, os.read(0, 1 << 16)):
    pass
os.write(1, b"copied\n")
"""
GIVES = r"""
import json, socket, subprocess, sys

asked = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}}).encode() + b"\n"
words, ends = json.loads(sys.argv[1]), sys.argv[2]
given, its = socket.socketpair() if ends != "pipes" else (None, subprocess.PIPE)
program = subprocess.Popen(words, stdin=its, stdout=subprocess.PIPE)
if given:
    its.close()
    given.sendall(asked)
    given.shutdown(socket.SHUT_WR)
else:
    program.stdin.write(asked)
    program.stdin.close()
print(json.dumps({"whole": program.stdout.read() == b"copying\n" + asked + b"copied\n", "code": program.wait()}), flush=True)
"""
GIVES_MUCH = r"""
import json, subprocess

asked = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}}).encode() + b"\n"
found = subprocess.run(["/bin/sh", "-c", "sleep 2; cat"], input=asked * 2000, stdout=subprocess.PIPE)
print(json.dumps({"whole": found.stdout == asked * 2000, "code": found.returncode}), flush=True)
"""
REAPS = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
# Ends as by `kill -9` while it has the tree stand still.
KILLED_MEANWHILE = """
import os, signal, sys
from pathlib import Path
from mcpguard.cli.main import main
from mcpguard.session.recording import Recording

def look(self, around):
    with around._paused():
        print(Path(around._leaf, "cgroup.events").read_text(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

Recording.show_messages = look
sys.exit(main())
"""
MANY = """
import json, os, sys
sys.path.insert(0, os.getcwd())
import client
for one in json.loads(sys.argv[1]):
    print(json.dumps(client.call(*one)), flush=True)
"""
# Starts others of its kind, each of which calls a server of its own.
AGENT = r"""
import json, os, subprocess, sys
sys.path.insert(0, os.getcwd())
import client

own, (words, ends) = sys.executable, sys.argv[-2:]  # before these stands what mcpguard tells an agent of this name
again = [own, "client.py", words, ends]
subprocess.run(again)
subprocess.run(["/bin/sh", "-c", '"$@"; :', "sh", *again])
if os.fork() == 0:
    print(json.dumps(client.call(json.loads(words), ends)), flush=True)
    os._exit(0)
os.wait()
print(json.dumps(client.call(json.loads(words), ends)), flush=True)
"""
# What an agent does before the one above, and after it: has an approved server answer, and another one when the first has
# lost its gate. The third word starts it.
OUTLIVES = (
    r"""
import json, os, subprocess, sys, time

def begin():
    server = subprocess.Popen(json.loads(sys.argv[3]), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {}}}
    os.write(server.stdin.fileno(), json.dumps(asked).encode() + b"\n")
    return server

def is_answered(server):
    return b'"result"' in server.stdout.readline()

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.005)

open("agent", "w").write(f"{os.getpid()} ")
served = begin()
first = is_answered(served)
""",
    r"""
served.stdin.close()
served.wait()
second = is_answered(begin())
open("over", "w").close()
wait_for("seen")
print(json.dumps({"answered": [first, second]}), flush=True)
""",
)
# And one that starts the other when the gate stands still.
OUTWAITS = r"""
open("ready", "w").close()
wait_for("still")
waiting = begin()
open("asked", "w").close()
print(json.dumps({"waited": is_answered(waiting)}), flush=True)
"""
# What a user starts that is no agent. It reads what its own child says, which asks, and answers.
HARNESS = """
import json, os, socket, subprocess, sys
ours, its = socket.socketpair()
one = subprocess.PIPE if sys.argv[1] == "pipes" else its
child = subprocess.Popen(sys.argv[2:], stdin=one, stdout=one)
its.close()
reads, writes = (child.stdout, child.stdin) if sys.argv[1] == "pipes" else (ours.makefile("rb"), ours.makefile("wb"))
asked = json.loads(reads.readline())
writes.write(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": {}}).encode() + b"\\n")
writes.flush()
print(json.dumps({"asked": asked["method"], "told": json.loads(reads.readline()), "code": child.wait()}), flush=True)
"""
# That child, which has one of its own.
ASKS = f"""#!{SYSTEM_PYTHON}
import json, subprocess, sys
beside = subprocess.Popen(["/bin/sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(json.dumps({{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {{"name": "x"}}}}), flush=True)
answer = json.loads(sys.stdin.readline())
try:
    beside.wait(2)
except subprocess.TimeoutExpired:
    pass
print(json.dumps({{"heard": answer["id"], "alone": beside.poll() is not None}}), flush=True)
beside.kill()
"""
REFUSED = {"answered": False, "killed": True}
DONE = {"answered": True, "killed": False}


@pytest.fixture
def box() -> Iterator[Box]:
    """With an agent as npm lays it out: a launcher by the agent's name, and a program."""
    need_root()
    with sandbox() as inside:
        project = inside.world.project
        write_launched_agent(project, AGENT)
        one = project / "opencode"
        one.write_text(f"#!{SYSTEM_PYTHON}\n{CLIENT}")
        one.chmod(0o755)
        made = Box(inside)
        made.client.write_text(CLIENT)
        shutil.copy(static_acts("at_once"), project / "server")
        yield made


def ended(box: Box) -> list[Json]:
    found = [event for event in box.inside.denials() if event["op"] == "end"]
    assert all("around the gate" in event["detail"] for event in found)
    assert all(event["rule"]["text"].startswith("mcp gate") for event in found)
    return found


def refuse_both_calls(box: Box, client: str, server: Sequence[str], word: str, control: Sequence[str] = ()) -> None:
    """Two calls that an agent makes of a server are answered outside, by way of `control`, and not inside."""
    agent = box.inside.world.project / "opencode"
    agent.write_text(f"#!{SYSTEM_PYTHON}\n{client}")
    words = [str(agent), json.dumps(server), word]
    assert box.inside.control([*control, *words]).json_lines() == [{"calls": 2}]
    finished = box.inside.run(words, options=box.options)
    assert finished.json_lines() == [{"calls": 0}], finished


@pytest.mark.parametrize(
    ("ends", "way"), [*(("pipes", way) for way in WAYS), *(("sockets", way) for way in SOCKET_WAYS)]
)
def test_a_first_call_is_not_answered_however_it_is_read(ends: str, way: str, box: Box) -> None:
    project = box.inside.world.project
    server = [str(project / "server"), way]
    words = [str(project / "opencode"), json.dumps(server), ends]
    assert box.inside.control(words).json_lines() == [DONE]
    finished = box.inside.run(words, options=box.options)
    assert finished.json_lines() == [REFUSED], finished
    (told,) = ended(box)
    assert told["exe"] == server[0]
    assert [line.split()[0] for line in finished.err.splitlines()[-4:]] == ["mcpguard:", "why", "do", "code"]
    assert "the MCP server server around the gate" in finished.err and "mcp.around-gate" in finished.err


@pytest.mark.parametrize("ends", ["pipes", "sockets"])
@pytest.mark.parametrize("form", FORMS)
def test_nor_is_one_that_comes_in_another_form_or_behind_something_else(form: str, ends: str, box: Box) -> None:
    project = box.inside.world.project
    words = [str(project / "opencode"), json.dumps([str(project / "server"), FORMS[form]]), ends, form]
    assert box.inside.control(words).json_lines() == [DONE]
    finished = box.inside.run(words, options=box.options)
    assert finished.json_lines() == [REFUSED], finished
    assert len(ended(box)) == 1


# Each with a way to read that nobody can look at, and with a plain one.
@pytest.mark.parametrize("ends", ["pipes", "sockets"])
def test_who_reads_something_else_is_left_alone(ends: str, box: Box) -> None:
    """Data, records, logs, language servers, debug adapters, other protocols in JSON-RPC: they go on, and are answered."""
    project = box.inside.world.project
    agent = project / "opencode"
    ways = ("read", "tiny", "splice-now", "vmsplice" if ends == "pipes" else "peekmsg")
    asked = [([str(project / "server"), way], ends, form) for form in OTHERS for way in ways]
    agent.write_text(f"#!{SYSTEM_PYTHON}\n{MANY}")
    finished = box.inside.run([str(agent), json.dumps(asked)], options=box.options)
    assert finished.json_lines() == [DONE] * len(asked), finished
    assert not ended(box)


@pytest.mark.parametrize("ends", ["pipes", "sockets"])
def test_nor_is_that_of_any_agent_that_another_starts(ends: str, box: Box) -> None:
    project = box.inside.world.project
    words = [str(project / "codex"), json.dumps([str(project / "server")]), ends]
    free = box.inside.control(words)
    assert free.json_lines() == [DONE] * 4, free
    finished = box.inside.run(words, options=box.options)
    assert finished.json_lines() == [REFUSED] * 4, finished
    assert len(ended(box)) == 4


@pytest.mark.parametrize("way", ["input", "elsewhere", "apart", "closed", "hidden", "woken"])
def test_nor_is_a_call_by_a_server_of_many_processes(way: str, box: Box) -> None:
    """With the same standard input or none of it, away from their parents, without the end that others read, hidden, and while
    another process of the agent's has all of them go on."""
    server = box.inside.world.project / "team.py"
    server.write_text(TEAM)
    refuse_both_calls(box, THINKS, [SYSTEM_PYTHON, str(server), way], way)
    assert ended(box)


def test_nor_is_it_where_these_are_called_as_an_agent(box: Box) -> None:
    server = box.inside.world.project / "claude"
    server.write_text(f"#!{SYSTEM_PYTHON}\n{TEAM}")
    server.chmod(0o755)
    refuse_both_calls(box, THINKS, [str(server), "apart"], "apart")
    assert ended(box)


@pytest.mark.parametrize(
    ("ends", "way"),
    [
        *(("pipes", way) for way in ("poisoned", "blind", "blind-moved")),
        *(("sockets", way) for way in ("blind", "blind-moved", "whole", "whole-moved")),
    ],
)
def test_nor_is_a_call_that_is_not_seen_to_be_read_by_what_does_not_look_like_an_answer(
    ends: str, way: str, box: Box
) -> None:
    server = box.inside.world.project / "counts.py"
    server.write_text(COUNTS)
    refuse_both_calls(box, WAITS, [SYSTEM_PYTHON, str(server), way], ends)
    assert len(ended(box)) == 1


@pytest.mark.parametrize(
    "way", [f"blind-away{how}-moved" for how in ("", "-hidden", "-flight", "-forked", "-foreign", "-half")]
)
def test_nor_is_one_where_who_is_asked_has_moved_that_end_away(way: str, box: Box) -> None:
    """Nothing of what it does tells the kernel that it is asked: who has the end is looked for."""
    server = box.inside.world.project / "counts.py"
    server.write_text(COUNTS)
    refuse_both_calls(box, WAITS, [SYSTEM_PYTHON, str(server), way], "slow pipes")
    assert len(ended(box)) == (2 if "forked" in way else 1)


@pytest.mark.parametrize("ends", ["slow pipes", "slow two sockets"])
def test_nor_is_one_by_a_server_that_is_called_as_an_agent(ends: str, box: Box) -> None:
    server = box.inside.world.project / "claude"
    server.write_text(f"#!{SYSTEM_PYTHON}\n{COUNTS}")
    server.chmod(0o755)
    refuse_both_calls(box, WAITS, [str(server), "blind-away-hidden-moved"], ends)
    assert len(ended(box)) == 1


@pytest.mark.parametrize("way", ["given", "helped", "blank"])
def test_nor_is_one_where_the_server_itself_sends_there(way: str, box: Box) -> None:
    """Much before the question, as if it were data; something behind it, as if another asked; before each one blanks."""
    server = box.inside.world.project / "counts.py"
    server.write_text(COUNTS)
    refuse_both_calls(box, WAITS, [SYSTEM_PYTHON, str(server), way], "pipes")
    assert ended(box)


@pytest.mark.parametrize("ends", ["pipes", "sockets"])
def test_who_says_something_and_copies_a_question_that_it_was_given_is_left_alone(ends: str, box: Box) -> None:
    project = box.inside.world.project
    agent, program = project / "opencode", project / "copies.py"
    agent.write_text(f"#!{SYSTEM_PYTHON}\n{GIVES}")
    program.write_text(COPIES)
    words = [str(agent), json.dumps([SYSTEM_PYTHON, str(program), ends]), ends]
    assert box.inside.run(words, options=box.options).json_lines() == [{"whole": True, "code": 0}]
    assert not ended(box)


def test_who_is_slow_to_read_much_data_of_an_agent_gets_all_of_it(box: Box) -> None:
    """More than a pipe takes: the agent cannot close its end before that is read, and it is full of questions."""
    agent = box.inside.world.project / "opencode"
    agent.write_text(f"#!{SYSTEM_PYTHON}\n{GIVES_MUCH}")
    finished = box.inside.run([str(agent)], options=box.options)
    assert finished.json_lines() == [{"whole": True, "code": 0}], finished
    assert not ended(box)


@pytest.mark.parametrize("ends", ["pipes", "sockets"])
def test_nor_is_one_by_asynchronous_calls(ends: str, box: Box) -> None:
    """Which end before what they read or write is looked at: there are none."""
    server = box.inside.world.project / "counts.py"
    server.write_text(COUNTS)
    refuse_both_calls(box, WAITS, [SYSTEM_PYTHON, str(server), "asynchronous"], ends)
    (rule,) = {event["rule"]["text"] for event in box.inside.denials() if event["op"] == "io_uring"}
    assert rule == "system: io_uring: false"


@pytest.mark.parametrize("hoppers", ["1", "4"])
def test_nor_is_one_by_processes_that_each_start_the_next(hoppers: str, box: Box) -> None:
    """Whoever is looked for is another one when it is found, unless all of them stand still meanwhile."""
    server = box.inside.world.project / "hops"
    shutil.copy(static_acts("hops"), server)
    # Without us nobody takes thousands of ended ones away, nor ends the last one.
    reaping = [*("unshare", "--fork", "--pid", "--kill-child"), SYSTEM_PYTHON, "-c", REAPS]
    refuse_both_calls(box, THINKS, [str(server), hoppers], hoppers, reaping)
    assert ended(box)


def test_the_tree_goes_on_when_who_looked_at_it_is_killed_meanwhile(box: Box) -> None:
    project = box.inside.world.project
    agent = ["sh", "-c", "sleep 1; echo done >done"]
    run = ["run", "-p", "gated", "-w", str(project), *box.options, "--", *agent]
    finished = execute([sys.executable, "-P", "-c", KILLED_MEANWHILE, *run], project, box.inside._environment())
    assert finished.code == 128 + signal.SIGKILL and "frozen 1" in finished.out, finished
    deadline = time.monotonic() + 60
    while not (project / "done").exists():
        assert time.monotonic() < deadline, "the tree stands still"
        time.sleep(0.05)


@pytest.mark.parametrize("ends", ["pipes", "sockets"])
def test_the_same_by_way_of_the_gate_and_of_a_program_that_is_no_agent(ends: str, box: Box) -> None:
    project = box.inside.world.project
    server = [str(project / "server")]
    box.approve("s", server)
    shim = f'exec {mcpguard_command()[0]} -I -S -B {SHIM} "$MCPGUARD_GATE" s -- {server[0]}'
    finished = box.inside.run(
        [str(project / "opencode"), json.dumps(["/bin/sh", "-c", shim]), ends], options=box.options
    )
    assert finished.json_lines() == [DONE], finished
    script = project / "starts.sh"
    script.write_text(f"sleep 2\n{shim}\n")
    finished = box.inside.run(
        [str(project / "opencode"), json.dumps(["/bin/sh", str(script)]), ends], options=box.options
    )
    assert finished.json_lines() == [DONE], finished
    tests_of_a_server = [SYSTEM_PYTHON, "client.py", json.dumps(server), ends]
    assert box.inside.run(tests_of_a_server, options=box.options).json_lines() == [DONE]
    assert not ended(box)


@pytest.mark.parametrize("profile", ["gated", "strict"])
@pytest.mark.parametrize("ends", ["pipes", "sockets"])
@pytest.mark.parametrize("child", ["opencode", "asks.py"])
def test_the_first_process_that_reads_what_its_child_asks_goes_on(
    child: str, ends: str, profile: str, box: Box
) -> None:
    """It is what the user started, and nobody's server: also where an agent asks it. All of the run would stop with it."""
    project = box.inside.world.project
    box.inside.write_profile("strict", STRICT)
    for path, text in ((project / "harness.py", HARNESS), (project / child, ASKS)):
        path.write_text(text)
        path.chmod(0o755)
    words = [SYSTEM_PYTHON, str(project / "harness.py"), ends, str(project / child)]
    done = [{"asked": "tools/call", "told": {"heard": 1, "alone": False}, "code": 0}]
    assert box.inside.control(words).json_lines() == done
    box.inside.profile = profile
    finished = box.inside.run(words, options=box.options)
    assert finished.json_lines() == done, finished
    assert not ended(box)
    (call,) = [event for event in box.mcp_events() if event["op"] == "request"]
    assert call["mcp"]["method"] == "tools/call", "it is on record"


def test_who_reads_a_question_of_an_agent_beside_it_is_held_all_the_same(box: Box) -> None:
    """The first process starts an agent, which starts a server around the gate."""
    project = box.inside.world.project
    words = [
        "/bin/sh",
        "-c",
        '"$@"; :',
        "sh",
        str(project / "opencode"),
        json.dumps([str(project / "server")]),
        "pipes",
    ]
    assert box.inside.control(words).json_lines() == [DONE]
    assert box.inside.run(words, options=box.options).json_lines() == [REFUSED]
    assert len(ended(box)) == 1


def nobody_stands(box: Box) -> None:
    """Of a whole tree, whose agent has said which one it is."""
    place = cgroup.place_of(int((box.inside.world.project / "agent").read_text()))
    assert place, "it lives in its leaf"
    wait_until(lambda: not any(map(stands, cgroup.processes(f"{cgroup.unified_mount()}{place}"))))


def outlive(box: Box, code: str, words: Sequence[str], meanwhile: Callable[[], None]) -> list[Json]:
    """What an agent says that has an approved server before and after it does this, while the gate is killed from outside."""
    project = box.inside.world.project
    box.approve("s", box.command)
    (project / "opencode").write_text(f"#!{SYSTEM_PYTHON}\n{code.join(OUTLIVES)}")
    shim = [mcpguard_command()[0], "-I", "-S", "-B", SHIM]
    through = ["/bin/sh", "-c", f'exec {" ".join(shim)} "$MCPGUARD_GATE" s -- {" ".join(box.command)}']

    def outside() -> None:
        try:
            meanwhile()
            wait_until((project / "over").exists)
            nobody_stands(box)
        finally:
            for name in ("still", "seen"):
                (project / name).touch()

    with ThreadPoolExecutor(1) as thread:
        seen = thread.submit(outside)
        finished = box.inside.run([str(project / "opencode"), *words, json.dumps(through)], options=box.options)
        seen.result(60)
    return finished.json_lines()


@pytest.mark.parametrize("moment", ["asked", "stands"])
def test_who_is_looked_for_is_ended_though_the_gate_is_killed_meanwhile(moment: str, box: Box) -> None:
    """When it has been asked, and when it was found and stands still. The next shim gets the next gate."""
    project = box.inside.world.project
    server = project / "counts.py"
    server.write_text(COUNTS)
    words = [json.dumps([SYSTEM_PYTHON, str(server), "blind-away-hidden-moved"]), "slow pipes"]
    (project / "opencode").write_text(f"#!{SYSTEM_PYTHON}\n{WAITS}")
    assert box.inside.control([str(project / "opencode"), *words]).json_lines() == [{"calls": 2}]
    for name in ("asked-pid", "asked-0"):
        (project / name).unlink()
    killed: list[int] = []

    def kill_the_gate() -> None:
        wait_until((project / "asked-0").exists)
        if moment == "stands":
            wait_until(lambda: stands(int((project / "asked-pid").read_text())))
        killed.extend(box.gates())
        box.kill_the_gate()

    assert outlive(box, WAITS, words, kill_the_gate) == [{"calls": 0}, {"answered": [True, True]}]
    assert len(killed) == 1
    assert len(ended(box)) == 1


def test_who_waits_for_a_gate_that_is_killed_gets_the_next_one(box: Box) -> None:
    """Its agent has asked it already, and whoever has that end is looked for."""
    project = box.inside.world.project

    def kill_the_gate() -> None:
        wait_until((project / "ready").exists)
        (gate,) = box.gates()
        os.kill(gate, signal.SIGSTOP)
        wait_until(lambda: stands(gate))
        (project / "still").touch()
        wait_until((project / "asked").exists)
        time.sleep(2)  # the shim asks, and nobody hears it
        os.kill(gate, signal.SIGKILL)

    assert outlive(box, OUTWAITS, ["", ""], kill_the_gate) == [{"waited": True}, {"answered": [True, True]}]
    assert not ended(box)
