"""Signals to the run's own process, while its agent goes on and while it is frozen."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = r"""
import os, signal, subprocess, sys, time
from mcpguard.session.signals import SignalWatch

for one in ("SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP"):  # nohup's are ignored, and a shell cannot change that
    signal.signal(getattr(signal, one), signal.SIG_DFL)
def told():
    return dict(line.split(":", 1) for line in open(f"/proc/{agent.pid}/status"))

def until(fact):
    deadline = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)

broker = subprocess.Popen(["/bin/sleep", "60"])
watch = SignalWatch()
watch.start(broker.pid)
# No shell: each blocks all signals for moments, and one that is stopped in such a moment would not hear of any.
heeds = r'''
import os, signal, time
for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(one, lambda *_: os.write(1, b"heard\n"))
signal.pthread_sigmask(signal.SIG_SETMASK, ())
os.write(1, b"ready\n")
while True:
    time.sleep(60)
'''
agent = subprocess.Popen([sys.executable, "-I", "-S", "-c", heeds], stdout=subprocess.PIPE, text=True)
assert agent.stdout.readline() == "ready\n"
watch.agent_started(agent.pid)
number = getattr(signal, sys.argv[1])
os.kill(os.getpid(), number)
print(agent.stdout.readline().strip(), flush=True)
if sys.argv[2] == "before":
    os.kill(agent.pid, signal.SIGSTOP)  # as frozen, it hears of nothing
    until(lambda: told()["State"].split()[0] == "T")  # else it may hear of the other one first
    os.kill(os.getpid(), number)
    until(lambda: int(told()["ShdPnd"], 16) >> number - 1 & 1)
watch.stands_still(True)
if sys.argv[2] == "after":
    os.kill(os.getpid(), number)
if sys.argv[2] == "not":
    print("lives" if agent.poll() is None else "gone", flush=True)
    agent.kill()
print(signal.Signals(-agent.wait(60)).name)
broker.kill()
"""


def said(name: str, when: str) -> list[str]:
    words = [sys.executable, "-c", PROGRAM, name, when]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done
    return done.stdout.split()


@pytest.mark.parametrize("when", ["after", "before"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
def test_what_asks_an_agent_to_end_is_passed_on_and_kills_it_where_it_could_not_hear(name: str, when: str) -> None:
    """After it was told that it stands still, and before."""
    assert said(name, when) == ["heard", "SIGKILL"]


def test_who_heard_of_it_in_time_goes_on_later() -> None:
    assert said("SIGTERM", "not") == ["heard", "lives", "SIGKILL"]
