"""What a guarded tree of root's tries to get out, to be judged by another name, or to run what it may not.

Each act of the attacker says what came of it. The same attacker does them unguarded first, without capabilities.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena import CAPLESS, Json, recorded_at
from asked import Lane

from mcpguard.kernel import pins

REPOSITORY = Path(__file__).parents[3]

pytestmark = pytest.mark.kernel

ATTACKER = r"""
import ctypes, errno, fcntl, json, mmap, os, socket, struct, subprocess, sys
place = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
seen = {}

def act(name, do):
    try:
        answer = do()
        seen[name] = "done" if answer is None else answer
    except OSError as error:
        seen[name] = errno.errorcode.get(error.errno, str(error))

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "a call")
    return result

def execute(path, *words):
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(path, [str(path), *words])
        except OSError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(abs(code), "execution")

def in_memory():
    fd = os.memfd_create("program", 0)
    with open("/bin/true", "rb") as program:
        os.write(fd, program.read())
    return fd

def leave():
    other = os.open("/sys/fs/cgroup", os.O_PATH)
    words = struct.pack("=11Q", 0x200000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, other)
    pid = libc.syscall(435, words, len(words))
    if pid == 0:
        with open("/proc/self/cgroup") as groups:
            os._exit("mcpguard" not in groups.read())
    if os.waitstatus_to_exitcode(os.waitpid(checked(pid), 0)[1]):
        return "left"

def map_as_code():
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    fd = os.open(place["program"], os.O_RDONLY)
    libc.personality(0x400000)
    address = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0)
    libc.personality(0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")

# What selects on a console, and pastes it as if the person had typed it; here it only asks for the keys that are held.
def on_a_console():
    pid = os.fork()
    if pid == 0:
        os.setsid()
        try:
            console = os.open("/dev/tty1", os.O_RDWR)
            fcntl.ioctl(console, 0x541C, bytearray([6]))
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "TIOCLINUX")

def request(op, fd, off=0, address=0, how=0, *, flags=0):
    facts = ctypes.create_string_buffer(120)
    ring = checked(libc.syscall(425, 8, facts))
    entries, completions = struct.unpack_from("=2I", facts.raw, 0)
    submission, completion = struct.unpack_from("=10I", facts.raw, 40), struct.unpack_from("=10I", facts.raw, 80)
    size = max(submission[6] + entries * 4, completion[5] + completions * 16)
    shared = mmap.mmap(ring, size)
    queue = mmap.mmap(ring, entries * 64, offset=0x10000000)
    queue[0:64] = struct.pack("=BBHiQQII", op, flags, 0, fd, off, address, 0, how) + bytes(32)
    struct.pack_into("=I", shared, submission[6], 0)
    struct.pack_into("=I", shared, submission[1], 1)
    checked(libc.syscall(426, ring, 1, 1, 1, None, 0))
    result = struct.unpack_from("=Qi", shared, completion[5])[1]
    if result < 0:
        raise OSError(-result, "a request")

def through_ring(family):
    request(45, family, socket.SOCK_STREAM)

def opened_by_ring(path, how=os.O_RDONLY, flags=0):
    name = ctypes.create_string_buffer(path.encode())
    request(18, -100, 0, ctypes.addressof(name), how, flags=flags)

def removed_by_ring(path):
    name = ctypes.create_string_buffer(path.encode())
    request(36, -100, 0, ctypes.addressof(name))

WORKER = 1 << 4
act("read.allowed", lambda: open(place["allowed"]).close())
act("read.fifth-name", lambda: open(place["fifth"]).close())
act("cgroup.clone3", leave)
act("cgroup.write", lambda: open("/sys/fs/cgroup/cgroup.procs", "a").close())
act("pins.write", lambda: os.mkdir("/sys/fs/bpf/mcpguard/made"))
act("execute.allowed", lambda: execute("/bin/true"))
act("execute.script", lambda: execute(place["script"]))
act("execute.program", lambda: execute(place["program"]))
act("execute.memory", lambda: execute(f"/proc/self/fd/{in_memory()}"))
act("map.personality", map_as_code)
act("console", on_a_console)
act("ring.inet", lambda: through_ring(socket.AF_INET))
act("ring.alg", lambda: through_ring(socket.AF_ALG))
act("ring.read", lambda: opened_by_ring(place["hidden"]))
act("ring.read-by-worker", lambda: opened_by_ring(place["hidden-too"], flags=WORKER))
act("ring.write", lambda: opened_by_ring(place["kept"], os.O_WRONLY))
act("ring.write-by-worker", lambda: opened_by_ring(place["kept-too"], os.O_WRONLY, WORKER))
act("ring.unlink", lambda: removed_by_ring(place["kept-three"]))
act("ring.allowed", lambda: opened_by_ring(place["open"], flags=WORKER))
act("ring.removed", lambda: removed_by_ring(place["spare"]))
print(json.dumps(seen))
"""

FILES = ("allowed", "open", "spare", "hidden", "hidden-too", "kept", "kept-too", "kept-three")
PROFILE = """
name: attacked
extends: [base]
files:
  read: [/]
  write: [/]
  execute: [{python}]
  readonly: ["{folder}/kept*"]
  deny: [{fifth}/secret, "{folder}/hidden*"]
system:
  user_namespaces: true
  io_uring: true
"""


@pytest.fixture(scope="module")
def scene(lane: Lane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A file system whose root has five names, with a rule on the fifth; a program and a script that may not be executed."""
    folder = tmp_path_factory.mktemp("attacks")
    names = [folder / f"name{number}" for number in range(1, 6)]
    for name in names:
        name.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "attacks", names[0]], check=True)
    for name in names[1:]:
        subprocess.run(["mount", "--bind", names[0], name], check=True)
    (names[0] / "secret").write_text("secret")
    tools = folder / "tools"
    tools.mkdir()
    (tools / "program").write_bytes(Path("/bin/true").read_bytes())
    (tools / "script").write_text("#!/bin/sh\nexit 0\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (folder / "workspace").mkdir()
    for name in FILES:
        (folder / name).write_text(name)
    yield {"folder": folder, "fifth": names[4], "through": names[0] / "secret", "tools": tools}
    for name in reversed(names):
        subprocess.run(["umount", name], check=False)


# The act, what a guarded attacker may be told, and what the record must name: an end of the path, or a part of the detail.
REFUSED = {
    "read.fifth-name": (("EACCES",), "/secret"),
    "cgroup.clone3": (("ENOSYS",), ""),
    "cgroup.write": (("EACCES", "EROFS"), "/cgroup.procs"),
    "pins.write": (("EACCES", "EROFS"), "/made"),
    "execute.script": (("EACCES",), "/script"),
    "execute.program": (("EACCES",), "/program"),
    "execute.memory": (("EACCES",), "a program that exists in memory only"),
    "map.personality": (("EACCES",), "mapped as code"),
    "console": (("EPERM",), ""),
    "ring.alg": (("EPERM",), ""),
    "ring.read": (("EACCES",), "/hidden"),
    "ring.read-by-worker": (("EACCES",), "/hidden-too"),
    "ring.write": (("EACCES", "EROFS"), "/kept"),
    "ring.write-by-worker": (("EACCES", "EROFS"), "/kept-too"),
    "ring.unlink": (("EACCES", "EROFS"), "/kept-three"),
}


@pytest.fixture(scope="module")
def attacker(scene: dict[str, Path]) -> list[str]:
    """The command that does it all."""
    place = {
        **{n: str(scene["folder"] / n) for n in FILES},
        "fifth": str(scene["through"]),
        "script": str(scene["tools"] / "script"),
        "program": str(scene["tools"] / "program"),
    }
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", ATTACKER, json.dumps(place)]


@pytest.fixture(scope="module")
def unguarded(attacker: list[str]) -> dict[str, str]:
    """What comes of each act where nobody guards."""
    os.makedirs(pins.ROOT, mode=0o700, exist_ok=True)
    done = subprocess.run([*CAPLESS, *attacker], capture_output=True, text=True, check=False, timeout=240)
    os.rmdir(f"{pins.ROOT}/made")
    assert done.stdout, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def acts(lane: Lane, tier: int, scene: dict[str, Path], attacker: list[str]) -> dict[str, str]:
    """What came of each act of one guarded attacker, in the tier of this lane's hooks."""
    folder = scene["folder"]
    profile = folder / "attacked.yaml"
    profile.write_text(PROFILE.format(python=sys.base_prefix, fifth=scene["fifth"], folder=folder))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mcpguard", "run", "--tier", str(tier), "-p", str(profile), "--", *attacker],
        cwd=folder / "workspace",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "MCPGUARD_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.stdout, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def events(acts: dict[str, str], scene: dict[str, Path]) -> list[Json]:
    """What of it is on record."""
    return recorded_at(scene["folder"] / "home")


@pytest.fixture(scope="module")
def denials(events: list[Json]) -> list[Json]:
    return [event for event in events if event["verdict"] == "deny"]


@pytest.mark.parametrize("act", ["read.allowed", "execute.allowed", "ring.inet", "ring.allowed", "ring.removed"])
def test_what_is_allowed_is_done(acts: dict[str, str], act: str) -> None:
    assert acts[act] == "done"


@pytest.mark.parametrize("act", REFUSED)
def test_what_would_lead_out_is_refused(acts: dict[str, str], unguarded: dict[str, str], act: str) -> None:
    """A kernel need not have AF_ALG; `guest/each_hook` has a ring that asks for another family."""
    assert unguarded[act] in ("done", "left") or (act, unguarded[act]) == ("ring.alg", "EAFNOSUPPORT")
    assert acts[act] in REFUSED[act][0]


@pytest.mark.parametrize("act", [act for act, (_answers, told) in REFUSED.items() if told])
def test_what_was_refused_is_on_record(denials: list[Json], act: str) -> None:
    told = REFUSED[act][1]
    assert [e for e in denials if e.get("path", "").endswith(told) or told in e.get("detail", "")], denials


def test_what_pastes_into_a_console_is_on_record(denials: list[Json]) -> None:
    (told,) = [event for event in denials if event["op"] == "ioctl"]
    assert "typing" in told["rule"]["text"]


@pytest.mark.parametrize(("op", "name"), [("open", "open"), ("unlink", "spare")])
def test_what_a_ring_does_is_on_record_as_well(op: str, name: str, events: list[Json], scene: dict[str, Path]) -> None:
    path = str(scene["folder"] / name)
    (event,) = [event for event in events if event.get("path") == path and event["op"] == op]
    assert (event["verdict"], event["count"]) == ("allow", 1)


@pytest.mark.parametrize("name", ["hidden", "hidden-too", "kept", "kept-too", "kept-three"])
def test_what_a_ring_is_refused_is_told(name: str, tier: int, denials: list[Json], scene: dict[str, Path]) -> None:
    """In tier 2 perhaps twice: by the hook that refused, and by the ring."""
    told = [event for event in denials if event.get("path") == str(scene["folder"] / name)]
    assert [event["count"] for event in told] == [1] * min(len(told), tier), told
