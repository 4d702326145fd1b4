"""Programs of the tree may trace one another where a profile says so, and get nothing by it that they had not before.

That nobody outside can be traced is tried in `test_escapes.py`, under a profile that permits debuggers.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Sandbox, need_root, sandbox

pytestmark = pytest.mark.kernel

PYTHON = "/usr/bin/python3"
CLOSED = """\
name: closed
extends: [base]
files:
  execute: [/usr]
"""
TOOLS = """\
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
TRACEME, SYSCALL, DETACH, GETREGSET, SETREGSET = 0, 24, 17, 0x4204, 0x4205
GENERAL, SYSTEM_CALL = 1, 0x404

def ptrace(request, pid, where=0, data=0):
    words = [ctypes.c_void_p(word) if isinstance(word, int) else word for word in (where, data)]
    if libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), *words) < 0:
        sys.exit("ptrace: " + os.strerror(ctypes.get_errno()))

def traced_child(work):
    pid = os.fork()
    if pid == 0:
        ptrace(TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        os._exit(0)
    stopped, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        sys.exit("the child could not be traced")
    return pid
"""
LOOK = (
    TOOLS
    + """
text = ctypes.create_string_buffer(b"seen in the child")
pid = traced_child(lambda: None)
mine = ctypes.create_string_buffer(17)
here, there = [(ctypes.c_uint64 * 2)(ctypes.addressof(one), 17) for one in (mine, text)]
if libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) != 17:
    sys.exit("process_vm_readv: " + os.strerror(ctypes.get_errno()))
ptrace(DETACH, pid)
os.waitpid(pid, 0)
print(mine.raw.decode())
"""
)
# The child asks for its parent's number; its tracer makes that a new name space, in which one can be root.
CHANGE = (
    TOOLS
    + """
NEW_NAMES = 0x04000000
X86 = os.uname().machine == "x86_64"
pid = traced_child(os.getppid)
size = 27 * 8 if X86 else 34 * 8
registers = (ctypes.c_uint64 * (size // 8))()
vector = (ctypes.c_uint64 * 2)(ctypes.addressof(registers), size)
NUMBER, FIRST, RESULT = (15, 14, 10) if X86 else (8, 0, 0)
PARENT, UNSHARE = (110, 272) if X86 else (173, 97)

def step():
    ptrace(SYSCALL, pid)
    _pid, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        sys.exit("the child ended")
    vector[1] = size
    ptrace(GETREGSET, pid, GENERAL, ctypes.byref(vector))

step()
while registers[NUMBER] != PARENT:
    step()
registers[FIRST] = NEW_NAMES
if X86:
    registers[NUMBER] = UNSHARE
else:
    number = ctypes.c_int(UNSHARE)
    ptrace(SETREGSET, pid, SYSTEM_CALL, ctypes.byref((ctypes.c_uint64 * 2)(ctypes.addressof(number), 4)))
ptrace(SETREGSET, pid, GENERAL, ctypes.byref(vector))
step()
result = ctypes.c_int64(registers[RESULT]).value
ptrace(DETACH, pid)
os.waitpid(pid, 0)
print("unshare:", os.strerror(-result))
"""
)
ASKS_ITS_PARENT = TOOLS + 'ptrace(TRACEME, 0); os.execv("/bin/sh", ["sh", "-c", "echo goes on; exit 7"])'
ASKS_FOR_A_THREAD = (
    TOOLS
    + """
import threading, time
asked = threading.Event()
threading.Thread(target=lambda: (ptrace(TRACEME, 0), asked.set(), time.sleep(60)), daemon=True).start()
asked.wait()
os._exit(3)
"""
)
# A background process takes the agent over and does not let go of it when it ends.
SEIZES_ITS_AGENT = (
    TOOLS
    + """
import time
agent = os.getpid()
if os.fork() == 0:
    ptrace(0x4206, agent)
    open("seized", "w").close()
    time.sleep(60)
    os._exit(0)
while not os.path.exists("seized"):
    time.sleep(0.01)
os._exit(4)
"""
)
# Its parent ends first; who is its parent then is asked, and told what it is to trace.
ORPHAN = (
    TOOLS
    + """
import time
if os.fork() == 0:
    middle = os.getpid()
    if os.fork() == 0:
        while os.getppid() == middle:
            time.sleep(0.01)
        with open("parent.new", "w") as told:
            told.write(f"{os.getppid()} {os.getpid()}")
        os.rename("parent.new", "parent")
        ptrace(TRACEME, 0)
        os.kill(os.getpid(), signal.SIGUSR1)
    os._exit(0)
os.wait()
while not os.path.exists("parent"):
    time.sleep(0.01)
parent, orphan = open("parent").read().split()
def state():
    try:
        return open(f"/proc/{orphan}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
while state() in "RSD":  # until it has ended, or is stopped for whoever traces it
    time.sleep(0.01)
print(os.getppid(), parent)
"""
)
LEAKS = "int main(void) { return 0; }"


@pytest.fixture
def box() -> Iterator[Sandbox]:
    need_root()
    with sandbox("dev-tools") as made:
        yield made


def test_a_program_looks_into_its_child_and_leaves_no_denial(box: Sandbox) -> None:
    assert box.control([PYTHON, "-c", LOOK]).out == "seen in the child\n"
    ran = box.run([PYTHON, "-c", LOOK])
    assert (ran.code, ran.out) == (0, "seen in the child\n"), ran.err
    assert box.denials() == []


def test_without_the_switch_it_is_refused(box: Sandbox) -> None:
    box.write_profile("closed", CLOSED)
    box.profile = "closed"
    assert box.control([PYTHON, "-c", LOOK]).code == 0
    ran = box.run([PYTHON, "-c", LOOK])
    assert ran.code != 0
    (denial,) = [event for event in box.denials() if event["op"] == "ptrace"]
    assert denial["rule"]["text"] == "system: no control of other processes"


def test_a_program_with_a_leak_checker_ends_well(box: Sandbox) -> None:
    source = box.world.project / "leaks.c"
    source.write_text(LEAKS)
    build = "cc -fsanitize=address -o leaks leaks.c && ./leaks"
    assert box.control(["sh", "-c", build]).code == 0
    ran = box.run(["sh", "-c", build])
    assert ran.code == 0, ran.err
    assert box.denials() == []


def test_a_call_that_a_tracer_changes_is_refused_like_any_other(box: Sandbox) -> None:
    assert box.control([PYTHON, "-c", CHANGE]).out == "unshare: Success\n"
    ran = box.run([PYTHON, "-c", CHANGE])
    assert ran.out == "unshare: Operation not permitted\n", ran.err
    assert [event["op"] for event in box.denials()] == ["unshare"]


def test_an_agent_that_makes_its_guard_its_tracer_does_not_stop(box: Sandbox) -> None:
    ran = box.run([PYTHON, "-c", ASKS_ITS_PARENT])
    assert (ran.code, ran.out) == (7, "goes on\n"), ran.err


def test_a_thread_that_makes_the_guard_its_tracer_does_not_hold_up_the_end(box: Sandbox) -> None:
    assert box.run([PYTHON, "-c", ASKS_FOR_A_THREAD]).code == 3


def test_whoever_seizes_the_agent_does_not_hold_up_the_end(box: Sandbox) -> None:
    assert box.run([PYTHON, "-c", SEIZES_ITS_AGENT]).code == 4


def test_an_orphan_has_no_parent_outside_that_it_could_make_its_tracer(box: Sandbox) -> None:
    ran = box.run([PYTHON, "-c", ORPHAN])
    assert ran.code == 0, ran.err
    agents, orphans = ran.out.split()
    assert agents == orphans, "the guard"
