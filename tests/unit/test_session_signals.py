"""Signals to the run's own process, while its agent goes on and while it is frozen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from mcpguard.kernel import proc
from mcpguard.session import signals

PROGRAM = r"""
import os, signal, subprocess, sys
from mcpguard.session.signals import SignalWatch

for one in ("SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP"):  # nohup's are ignored, and a shell cannot change that
    signal.signal(getattr(signal, one), signal.SIG_DFL)
watch = SignalWatch()
watch.start(0)
heeds = "trap 'echo heard' TERM INT HUP QUIT; echo ready; while :; do sleep 0.05; done"
agent = subprocess.Popen(["sh", "-c", heeds], stdout=subprocess.PIPE, text=True, restore_signals=True,
    preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()))
assert agent.stdout.readline() == "ready\n"
watch.agent_started(agent.pid)
number = getattr(signal, sys.argv[1])
os.kill(os.getpid(), number)
print(agent.stdout.readline().strip(), flush=True)
watch.stands_still(True)
os.kill(os.getpid(), number)
print(signal.Signals(-agent.wait(60)).name)
"""


def test_what_asks_an_agent_to_end_is_passed_on_and_kills_it_where_it_could_not_hear() -> None:
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.stdout.split() == ["heard", "SIGKILL"], (name, done)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_waits_for_an_agent_to_go_on_is_seen(number: signal.Signals) -> None:
    """One that came between the freeze and our hearing of it; a stopped process hears of nothing either."""
    with subprocess.Popen(["/bin/sleep", "60"]) as agent:
        os.kill(agent.pid, signal.SIGSTOP)
        while proc.stat_of(agent.pid)[proc.STATE] != "T":
            time.sleep(0.01)
        assert not signals._would_hear_later(agent.pid)
        os.kill(agent.pid, number)
        assert signals._would_hear_later(agent.pid)
        agent.kill()
