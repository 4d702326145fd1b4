"""MCP servers that are kept to a profile: of the network they reach what both their agent and that profile allow."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import RUN_SECONDS, SYSTEM_PYTHON, Json, Sandbox, mcpguard_command, need_root, sandbox
from mcp_box import PROFILE, Box, text_of, tool
from puppet import Puppet
from test_names_run import EVIL, OK, PORT, Town, town  # noqa: F401 - a fixture

from mcpguard.kernel import bpf, cgroup, pins
from mcpguard.model.plan import KEPT_CANARY
from mcpguard.session.gate import SHIM
from mcpguard.session.recording import CUT_OFF
from mcpguard.wire import _abi

pytestmark = pytest.mark.kernel

V4, V6 = "127.0.0.1", "::1"
# A server that does what it is told, in a child of its own.
SERVER = """
import json, os, sys
for line in sys.stdin.buffer:
    message = json.loads(line)
    if "id" not in message:
        continue
    reader, writer = os.pipe()
    if os.fork() == 0:
        names = {"own": message["params"]["name"]}
        try:
            exec(message["params"]["arguments"]["code"], names)
            said = json.dumps(names.get("result"))
        except BaseException as error:
            said = json.dumps(repr(error))
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    answer = {"jsonrpc": "2.0", "id": message["id"], "result": {"content": [{"type": "text", "text": text}]}}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\\n")
    sys.stdout.buffer.flush()
"""
# What the agent and its server can do in the same words.
ACTS = """
import errno, json, os, socket, time

def reach(host, port, kind=socket.SOCK_STREAM):
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as sock:
            sock.settimeout(20)
            sock.connect((host, port))
            sock.send(b"x")
        return ""
    except OSError as refused:
        return errno.errorcode.get(refused.errno, str(refused))

def look_up(name):
    try:
        return socket.getaddrinfo(name, 8080, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError:
        return ""

def await_file(path):
    while not os.path.exists(path):
        time.sleep(0.01)

def tell(path, what):
    with open(path + ".new", "w") as file:
        json.dump(what, file)
    os.rename(path + ".new", path)
"""


@pytest.fixture
def box() -> Iterator[Box]:
    need_root()
    with sandbox() as inside:
        yield kept_box(inside)


def kept_box(inside: Sandbox) -> Box:
    made = Box(inside)
    made.server.write_text(SERVER)
    made.approve("s", made.command)
    made.approve("other", made.command)
    return made


def keep(box: Box, allow: list[str], more: str = "", rules: str = "{s: kept}") -> None:
    """Have the server `s` kept to a profile that allows these destinations."""
    files = f'files:\n  read: [{box.server}]\n  write: ["{{workspace}}"]\n'
    box.inside.write_profile("kept", f"name: kept\n{files}network:\n  allow: {json.dumps(allow)}\n{more}")
    box.inside.write_profile("gated", f"{PROFILE}  confine: {rules}\n")


def do(code: str, id: int = 1) -> str:
    return tool("do", id, code=ACTS + code)


def answers(box: Box, *codes: str, name: str = "s") -> list[Json]:
    lines = [do(code, number) for number, code in enumerate(codes, 1)]
    finished = box.talk(name, *lines)
    found = finished.json_lines()[:-1]
    assert len(found) == len(lines), finished
    return [json.loads(text_of(one)) for one in found]


@contextlib.contextmanager
def listeners(*names: str) -> Iterator[dict[str, int]]:
    """Ports with a stream and a datagram socket on every address of both families."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name in names:
            server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
            stack.enter_context(server)
            found[name] = server.getsockname()[1]
            datagrams = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            datagrams.bind(("::", found[name]))
        yield found


WAYS = [(host, kind) for host in (V4, V6) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]


def test_it_reaches_what_its_agent_and_its_own_profile_allow(box: Box) -> None:
    """The control is the same server under the same agent without the one line."""
    with listeners("both", "ours", "theirs", "denied") as ports:
        ours = [ports[name] for name in ("both", "ours", "denied")]
        box.options = (*box.options, *(word for port in ours for word in ("--net", f"localhost:{port}")))
        tries = {f"{name} {host} {int(kind)}": (host, ports[name], int(kind)) for name in ports for host, kind in WAYS}
        code = f"result = {{name: reach(*one) for name, one in {tries!r}.items()}}"
        # What it becomes, and what it says of where it lives.
        deep = f"""
def orphan():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            while os.getppid() == child:
                time.sleep(0.001)
            os.write(writer, reach({V4!r}, {ports["ours"]}).encode() + b".")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return pipe.read()
def enter(path):
    try:
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        return ""
    except OSError as refused:
        return errno.errorcode[refused.errno]
place = open("/proc/self/cgroup").read().strip().removeprefix("0::")
up = [enter(mount + place.rpartition("/")[0] + "/cgroup.procs") for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")]
result = [orphan(), all(up), place.count("/")]
"""
        control, (was, _up, depth) = answers(box, code, deep)
        assert {name for name, how in control.items() if how} == {name for name in tries if name.startswith("theirs")}
        assert was == "."
        keep(
            box,
            [f"localhost:{ports[name]}" for name in ("both", "theirs")],
            f'  deny: ["localhost:{ports["denied"]}"]\n',
        )
        found, (was, closed, deeper) = answers(box, code, deep)
        assert found == {name: "" if name.startswith("both") else "EPERM" for name in tries}
        assert (was, closed, deeper) == ("EPERM.", True, depth + 1)
        assert set(answers(box, code, name="other")[0].items()) == set(control.items()), "another server is not kept"
    _other, kept = box.inside.mcpguard("sessions", "--format", "json").out.splitlines()[:2]
    told = list(box.inside.events(json.loads(kept)["id"], "--verdict", "deny", "--kind", "net"))
    rules = {name: {one["rule"]["text"] for one in told if one["port"] == ports[name]} for name in ports}
    assert rules == {
        "both": set(),
        "ours": {"mcp confine s kept"},
        "theirs": {"no rule allows it"},
        "denied": {f"network deny localhost:{ports['denied']}"},
    }
    assert all(one["rule"]["file"].endswith("gated.yaml") for one in told if one["port"] == ports["ours"])
    assert all(one["exe"].startswith("/") for one in told)


def test_its_agents_rules_hold_there_as_everywhere(box: Box) -> None:
    """Its own profile allows both files, so nothing of its own refuses them. The control is the server in nobody's tree."""
    secret, hook = box.inside.world.home / ".ssh/id_kept", box.inside.world.project / ".git/hooks/kept"
    for path in (secret, hook):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before")
    code = f"""
def tried(act):
    try:
        act()
        return ""
    except OSError as refused:
        return errno.errorcode[refused.errno]
server = os.getppid()
agent = int(open(f"/proc/{{server}}/stat").read().rpartition(")")[2].split()[1])
result = [
    tried(lambda: open({str(secret)!r}).read()),
    tried(lambda: open({str(hook)!r}, "a").close()),
    tried(lambda: os.kill(agent, 28)),  # SIGWINCH: nobody minds
    tried(lambda: os.kill(server, 28)),
]
"""
    alone = box.talk("s", do(code), command=box.command, guarded=False).json_lines()[0]
    assert json.loads(text_of(alone)) == ["", "", "", ""]
    files = f'files:\n  read: [{box.server}, ~/.ssh]\n  write: ["{{workspace}}"]\n'
    box.inside.write_profile("kept", f"name: kept\n{files}network:\n  allow: [localhost:1]\n")
    box.inside.write_profile("gated", f"{PROFILE}  confine: {{s: kept}}\n")
    read, write, to_agent, to_itself = answers(box, code)[0]
    assert read in ("EACCES", "EPERM") and write in ("EACCES", "EPERM", "EROFS"), (read, write)
    assert (to_agent, to_itself) == ("EPERM", ""), "the agent could connect for it"
    denied = box.inside.denials()
    assert {str(secret), str(hook)} <= {one.get("path") for one in denied}
    (signal,) = [one for one in denied if one["op"] == "signal"]
    assert (
        signal["rule"]["text"].startswith("system: a server that is kept") and "SIGWINCH to process" in signal["detail"]
    )
    assert signal["kind"] == "process" and signal["exe"].startswith("/")


def test_nothing_of_a_server_runs_where_what_keeps_it_does_not_hold(box: Box) -> None:
    """As root its tables are taken from its leaf; the control is the same start with them."""
    keep(box, ["localhost:1"])
    project = box.inside.world.project
    mark = f"open({str(project / 'ran')!r}, 'w')"
    box.server.write_text(f"{mark}\n{SERVER}")
    box.approve("s", box.command)
    waits = 'echo $$ > new; mv new session; while [ ! -e go ]; do sleep 0.01; done; exec "$@"'
    shim = [mcpguard_command()[0], SHIM]
    words = [SYSTEM_PYTHON, str(box.client), *shim, "s", json.dumps(box.command), json.dumps([do("result = 1")])]
    for holds in (True, False):
        for name in ("session", "go", "ran"):
            (project / name).unlink(missing_ok=True)
        changed: list[bytes] = []

        def outside(take: bool = not holds, changed: list[bytes] = changed) -> None:
            agent = _told(project / "session")
            if take:
                changed += _let_go(agent)
            (project / "go").touch()

        meanwhile = threading.Thread(target=outside)
        meanwhile.start()
        finished = box.inside.run(["sh", "-c", waits, "sh", *words], options=box.options)
        meanwhile.join(RUN_SECONDS)
        canary = [one for one in box.inside.denials() if (one.get("address"), one.get("port")) == KEPT_CANARY]
        if holds:
            assert text_of(finished.json_lines()[0]) == "1" and (project / "ran").exists(), finished
            assert [one["rule"]["text"] for one in canary] == ["mcp confine s kept"]
            assert all(one["detail"].startswith("quiet") and one["protocol"] == "udp" for one in canary)
        else:
            assert changed and "mcp.not-kept" in finished.err and not (project / "ran").exists(), finished
            (refused,) = [one for one in box.mcp_events() if one["op"] == "refuse"]
            assert refused["mcp"]["server"] == "s" and canary == []


def _let_go(agent: int) -> list[bytes]:
    """Have the leaves below that of a process be like its own."""
    found = []
    session = Path(f"{cgroup.unified_mount()}{cgroup.place_of(agent)}")
    leaves = [one for one in session.iterdir() if one.is_dir()]
    for folder in pins.folders():
        sessions = bpf.Map("mg_sessions", bpf.pinned(f"{folder}/maps/mg_sessions"))
        for key in (cgroup.cgroup_id(str(one)).to_bytes(8, "little") for one in leaves):
            if value := sessions.get(key, _abi.MG_SESSION.size):
                sessions.set(key, value[:-4] + bytes(4))
                found.append(key)
        sessions.close()
    return found


# What the agent itself does meanwhile: the same as its server, at the same steps, and not kept to anything.
AGENT = """
import json, os, subprocess, sys
words, code, daemon, steps = json.loads(sys.argv[1])
exec(code)
server = subprocess.Popen([*words[:5], os.environ["MCPGUARD_GATE"], *words[5:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def say(line):
    server.stdin.write(line.encode() + b"\\n")
    server.stdin.flush()
    return server.stdout.readline().decode()
print(say(daemon), flush=True)
tell("session", os.environ["MCPGUARD_SESSION"])
for step, tried in steps:
    await_file(f"go-{step}")
    tell(f"agent-{step}", [reach(*one) for one in tried])
await_file("over")
"""


def test_it_stays_kept_when_it_is_alone_and_when_rules_come(box: Box) -> None:
    """What it has made of itself goes on: when the server is killed, and the gate, and when the agent gets more rules.

    Such a rule opens nothing that the server's own profile does not allow, and what that allows comes with it.
    """
    project = box.inside.world.project
    with listeners("both", "ours", "theirs") as ports:
        box.options = (*box.options, "--net", f"localhost:{ports['both']}")
        keep(box, [f"localhost:{ports[name]}" for name in ("both", "theirs")])
        tried = [(V4, ports[name]) for name in ("both", "ours", "theirs")]
        steps = [(step, tried) for step in ("alone", "killed", "more")]
        daemon = f"""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(3, 100):
            try:
                os.close(number)
            except OSError:
                pass
        for number in (0, 1, 2):
            os.dup2(os.open("/dev/null", os.O_RDWR), number)
        tell("daemon", os.getpid())
        for step, tried in {steps!r}:
            await_file("agent-" + step)
            tell("daemon-" + step, [reach(*one) for one in tried])
    os._exit(0)
await_file("daemon")
"""
        shim = [mcpguard_command()[0], "-I", "-S", "-B", SHIM]
        given = [[*shim, "s", "--", *box.command], ACTS, do(daemon), steps]
        project.joinpath("agent.py").write_text(AGENT)
        found: dict[str, Json] = {}

        def step(name: str) -> None:
            project.joinpath(f"go-{name}").touch()
            found[name] = [_told(project / f"{who}-{name}") for who in ("agent", "daemon")]

        def outside() -> None:
            session = _told(project / "session")
            _kill(box, "server.py", "agent.py", _told(project / "daemon"))
            step("alone")
            _kill(box, "gate/__main__.py")
            step("killed")
            held = Puppet(box.inside, subprocess.Popen(["true"], text=True), session, 0)
            held.approve(*(("network", "allow", f"localhost:{ports[name]}") for name in ("ours", "theirs")))
            step("more")
            project.joinpath("over").touch()

        meanwhile = threading.Thread(target=outside)
        meanwhile.start()
        finished = box.inside.run([SYSTEM_PYTHON, "agent.py", json.dumps(given)], options=box.options)
        meanwhile.join(RUN_SECONDS)
    before = [["", "EPERM", "EPERM"], ["", "EPERM", "EPERM"]]
    assert found == {"alone": before, "killed": before, "more": [["", "", ""], ["", "EPERM", ""]]}, finished
    told = {(event["port"], event["rule"]["text"]) for event in box.inside.denials() if event["kind"] == "net"}
    assert {(ports["ours"], "no rule allows it"), (ports["theirs"], "no rule allows it")} <= told


def _told(path: Path) -> Json:
    deadline = time.monotonic() + RUN_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)
    return json.loads(path.read_text())


def _kill(box: Box, word: str, but: str = "\0", but_pid: int = 0) -> None:
    """Processes of this session that have the word in their command line, from outside."""
    home = f"MCPGUARD_HOME={box.inside.world.state}".encode()
    inside = str(box.server).encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if word.encode() not in words or but.encode() in words.replace(b"\0", b" ") or int(process.name) == but_pid:
                continue
            if inside in words or home in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


# An agent that starts its server again and again, and asks what nobody may and where the server gets to. Of the last but one
# start it waits for the gate's end; the last one is left alone.
AGAIN = """
import json, os, subprocess, sys
words, lines, rounds = map(json.loads, sys.argv[1:])
def tell(name, what):
    with open(name + ".new", "w") as file:
        json.dump(what, file)
    os.rename(name + ".new", name)
tell("agent", os.getpid())
for number in range(rounds):
    command = [*words[:5], os.environ["MCPGUARD_GATE"], *words[5:]]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    said = []
    tell(f"begun-{number}", 0)
    try:
        for line in lines:
            server.stdin.write(line.encode() + b"\\n")
            server.stdin.flush()
        if number >= rounds - 2:
            said += [server.stdout.readline().decode() for _ in lines]
            tell(f"answered-{number}", 0)
        if number != rounds - 2:
            server.stdin.close()
    except BrokenPipeError:
        pass
    said += server.stdout.read().decode().splitlines()
    print(json.dumps({"said": [json.loads(one) for one in said if one], "ended": server.wait(60) is not None}), flush=True)
"""


def test_a_gate_that_is_killed_while_the_broker_keeps_a_server_leaves_nothing_open(box: Box) -> None:
    """At any moment of the start and of the life of a kept server. The agent sees an end, and no call passes unjudged then or
    by the next gate, which keeps it as the one before. After the run nothing of it is left."""
    project, rounds = box.inside.world.project, 7
    (project / "again.py").write_text(AGAIN)
    with listeners("both", "ours") as ports:
        box.options = (*box.options, *(word for port in ports.values() for word in ("--net", f"localhost:{port}")))
        keep(box, [f"localhost:{ports['both']}"])
        tried = [(V4, ports["both"]), (V4, ports["ours"])]
        lines = [tool("forbidden", 1), do(f"result = [reach(*one) for one in {tried!r}]", 2)]
        words = [mcpguard_command()[0], "-I", "-S", "-B", SHIM, "s", "--", *box.command]
        left: list[tuple[Path, int]] = []
        killed: list[int] = []

        def outside() -> None:
            agent = _told(project / "agent")
            session = Path(f"{cgroup.unified_mount()}{cgroup.place_of(agent)}")
            leaves = [session, *(one for one in session.iterdir() if one.is_dir())]
            left.extend((one, cgroup.cgroup_id(str(one))) for one in leaves)
            for number in range(rounds - 1):
                _told(project / f"{'answered' if number == rounds - 2 else 'begun'}-{number}")
                time.sleep(0.02 * number)  # another moment of the start each time
                killed.extend(box.gates())
                box.kill_the_gate()

        meanwhile = threading.Thread(target=outside)
        meanwhile.start()
        given = [json.dumps(one) for one in (words, lines, rounds)]
        finished = box.inside.run([SYSTEM_PYTHON, "again.py", *given], options=box.options)
        meanwhile.join(RUN_SECONDS)
    told = finished.json_lines()
    assert len(told) == rounds and all(one["ended"] for one in told) and len(killed) >= 1, finished
    for one in told:
        by_id = {answer["id"]: answer for answer in one["said"]}
        assert "blocked by policy" in by_id[1]["error"]["message"] if 1 in by_id else True, one
        assert json.loads(text_of(by_id[2])) == ["", "EPERM"] if 2 in by_id else True, one
    for one in told[-2:]:
        assert {answer["id"] for answer in one["said"]} == {1, 2}, "the controls: by the last two gates all is answered"
    assert CUT_OFF in [e["detail"] for e in box.inside.events(None, "--kind", "loss")]
    refused = [e for e in box.mcp_events() if e["op"] == "request" and e["mcp"].get("tool") == "forbidden"]
    # What an agent says to a shim whose gate is gone reaches no server: it is on record as seen, and has no answer.
    unheard = [e["mcp"]["call"] for e in refused if e["verdict"] != "deny"]
    assert len(refused) > len(unheard) and not any(e["mcp"].get("peer") for e in refused if e["verdict"] != "deny")
    assert not [e for e in box.mcp_events() if e["op"] == "response" and e["mcp"]["call"] in unheard]
    assert len(left) == 2 and not any(path.exists() for path, _ in left)
    assert not box.gates() and not _living_of(box)
    for folder in pins.folders():
        sessions = bpf.Map("mg_sessions", bpf.pinned(f"{folder}/maps/mg_sessions"))
        with contextlib.closing(sessions):
            assert not any(sessions.get(key.to_bytes(8, "little"), _abi.MG_SESSION.size) for _, key in left)


def _living_of(box: Box) -> list[int]:
    """Processes that run this world's server or agent."""
    inside, found = str(box.inside.world.home).encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if inside in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def test_nothing_is_gained_by_asking_for_it(box: Box) -> None:
    """A process of the tree that says it is another server only loses: what is kept is not moved to where more is left."""
    with listeners("one", "two") as ports:
        box.options = (*box.options, *(word for port in ports.values() for word in ("--net", f"localhost:{port}")))
        files = f'files:\n  read: [/, {box.server}]\n  write: ["{{workspace}}"]\n'
        for name in ports:
            box.inside.write_profile(name, f'name: {name}\n{files}network:\n  allow: ["localhost:{ports[name]}"]\n')
        box.inside.write_profile("gated", f"{PROFILE}  confine: {{s: one, other: two}}\n")
        reach = f"result = [reach({V4!r}, {ports['one']}), reach({V4!r}, {ports['two']})]"
        shim = [mcpguard_command()[0], "-I", "-S", "-B", SHIM]
        line = do(reach) + "\n"
        ask = f"""
import subprocess
words = {shim!r}
def server(name):
    command = [*words, socket_of_gate, name, "--", *{box.command!r}]
    done = subprocess.run(command, input={line!r}, text=True, capture_output=True)
    return done.stdout, done.stderr
socket_of_gate = json.loads(open("gate.json").read())
result = [server("other"), server("s")]
"""
        agent = f"""
import json, os, subprocess, sys
open("gate.json", "w").write(json.dumps(os.environ["MCPGUARD_GATE"]))
for name, line in json.loads(sys.argv[1]):
    words = [*{shim!r}, os.environ["MCPGUARD_GATE"], name, "--", *{box.command!r}]
    done = subprocess.run(words, input=line + "\\n", text=True, capture_output=True)
    print(done.stdout.strip(), flush=True)
"""
        box.inside.world.project.joinpath("agent.py").write_text(agent)
        lines = [("s", do(reach)), ("other", do(reach)), ("s", do(ask))]
        finished = box.inside.run([SYSTEM_PYTHON, "agent.py", json.dumps(lines)], options=box.options)
        first, second, third = [json.loads(text_of(one)) for one in finished.json_lines()]
    assert (first, second) == (["", "EPERM"], ["EPERM", ""])
    (moved, why), (same, _none) = third
    assert moved == "" and "mcp.kept-already" in why, third
    assert json.loads(text_of(json.loads(same))) == ["", "EPERM"], third
    told = [(event["port"], event["rule"]["text"]) for event in box.inside.denials() if event["kind"] == "net"]
    assert {(ports["two"], "mcp confine s one"), (ports["one"], "mcp confine other two")} <= set(told)


def test_a_server_that_two_networks_keep_does_not_start(box: Box) -> None:
    keep(box, ["localhost:1"])
    box.inside.write_profile("also", 'name: also\nnetwork:\n  allow: ["localhost:2"]\n')
    box.inside.write_profile("gated", f'{PROFILE}  confine: {{s: kept, "s*": also}}\n')
    finished = box.talk("s", do("result = 1"))
    assert "mcp.kept-twice" in finished.err, finished


def test_no_network_holds_for_what_a_forged_shim_starts(box: Box) -> None:
    """The filter is put on by the shim; an agent that leaves it out has a server without a network all the same."""
    with listeners("ours") as ports:
        box.options = (*box.options, "--net", f"localhost:{ports['ours']}")
        box.inside.write_profile("kept", f'name: kept\nfiles:\n  read: [{box.server}]\n  write: ["{{workspace}}"]\n')
        box.inside.write_profile("gated", f"{PROFILE}  confine: {{s: kept}}\n")
        reach = f"result = reach({V4!r}, {ports['ours']})"
        shim = Path(SHIM).read_text().replace('if order["grants"] or order["filter"]:', "if False:")
        assert "if False:" in shim
        # As the agent would run it, from a place of its own.
        forged = box.inside.world.project / "gate" / "shim.py"
        forged.parent.mkdir()
        forged.write_text(shim.replace('__file__.rpartition("/gate/")[0]', repr(str(Path(SHIM).parents[1]))))
        agent = f"""
import json, os, subprocess
def server(shim):
    words = [{mcpguard_command()[0]!r}, "-I", "-S", "-B", shim, os.environ["MCPGUARD_GATE"], "s", "--", *{box.command!r}]
    done = subprocess.run(words, input={(do(reach) + chr(10))!r}, text=True, capture_output=True)
    print(done.stdout.strip(), flush=True)
server({SHIM!r})
server({str(forged)!r})
{ACTS}
print(json.dumps(reach({V4!r}, {ports["ours"]})))
"""
        box.inside.world.project.joinpath("agent.py").write_text(agent)
        finished = box.inside.run([SYSTEM_PYTHON, "agent.py"], options=box.options)
        lines = finished.out.splitlines()
    assert [json.loads(text_of(json.loads(one))) for one in lines[:2]] == ["EACCES", "EPERM"], finished
    assert json.loads(lines[2]) == "", "the control: the agent itself"
    assert "mcp confine s kept" in {one["rule"]["text"] for one in box.inside.denials() if one["kind"] == "net"}


@pytest.fixture
def abroad(town: Town) -> Iterator[Box]:  # noqa: F811
    with sandbox() as inside:
        inside.prefix = town.prefix
        yield kept_box(inside)


def test_names_are_answered_by_both(abroad: Box, town: Town) -> None:  # noqa: F811
    """A name that the agent looked up and its server may not stays closed to the server, and so does its address."""
    box = abroad
    names = [f"{name}:{PORT}" for name in ("ok.test", "a.wild.test")]
    box.options = (*box.options, *(word for name in names for word in ("--net", name)))
    look = f"result = [look_up('ok.test'), reach({OK!r}, {PORT}), look_up('a.wild.test'), look_up('evil.test')]"
    keep(box, [f"a.wild.test:{PORT}", f"evil.test:{PORT}"])
    line = do(f"{look}\nresult += [reach({OK!r}, {PORT}), reach({EVIL!r}, {PORT})]") + "\n"
    agent = f"""
import json, os, subprocess
{ACTS}
def server():
    words = [{mcpguard_command()[0]!r}, "-I", "-S", "-B", {SHIM!r}, os.environ["MCPGUARD_GATE"], "s", "--", *{box.command!r}]
    done = subprocess.run(words, input={line!r}, text=True, capture_output=True)
    print(done.stdout.strip(), flush=True)
{look}
result.append(reach({OK!r}, {PORT}))
print(json.dumps(result), flush=True)
server()
"""
    box.inside.world.project.joinpath("agent.py").write_text(agent)
    town.server.asked.clear()
    finished = box.inside.run([SYSTEM_PYTHON, "agent.py"], options=box.options)
    agents, servers = finished.out.splitlines()
    assert json.loads(agents) == [OK, "", OK, "", ""], finished
    # Its address was open for the agent; for the server it opens with the name that is its own.
    assert json.loads(text_of(json.loads(servers))) == ["", "EPERM", OK, "", "", "EPERM"], finished
    assert "evil.test" not in town.server.names()
    told = [one for one in box.inside.denials() if one["kind"] == "dns"]
    assert {(one["host"], one["rule"]["text"]) for one in told} >= {
        ("ok.test", "mcp confine s kept"),
        ("evil.test", "no rule allows it"),
    }
