"""Ctrl-C on a terminal whose program is stopped, and what that program finds when it goes on."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Leads a session on its terminal, with a job in front that takes keys as they come. Says what it was told, line by line.
LEADER = """
import os, signal, subprocess, sys, termios, tty
from mcpguard.kernel.keys import Keys

in_front, claims = sys.argv[1] == "job in front", sys.argv[2] == "claims"
def told(number, _frame):
    print("told", number, flush=True)
signal.signal(signal.SIGINT, told)
signal.signal(signal.SIGTTOU, lambda *_: print("stopped from behind", flush=True))
tty.setraw(0)
modes = termios.tcgetattr(0)
job = subprocess.Popen(["sleep", "1000"], process_group=0)
other = subprocess.Popen(["sleep", "1000"], process_group=0)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
os.tcsetpgrp(0, job.pid if in_front else os.getpgrp())
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})
print("ready", flush=True)
if not in_front:
    print("byte", os.read(0, 1)[0], flush=True)
try:
    keys = Keys([job.pid if claims else other.pid])
    print("taken", flush=True)
    os.read(int(sys.argv[3]), 1)
    keys.give_back()
except ProcessLookupError:
    print("somebody else's", flush=True)
print("as before", termios.tcgetattr(0) == modes, os.tcgetpgrp(0) == (job.pid if in_front else os.getpgrp()), flush=True)
job.kill()
other.kill()
"""


@contextmanager
def leader(front: str, claims: str) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """It, the other end of its terminal, and what it waits for a byte from."""
    master, slave = pty.openpty()
    waits, go = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", LEADER, front, claims, str(waits)],
        stdin=slave,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        pass_fds=[waits],
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
    )
    os.close(slave)
    os.close(waits)
    try:
        yield process, master, go
    finally:
        process.kill()
        process.communicate()
        os.close(master)
        os.close(go)


@pytest.mark.parametrize("front", ["leader in front", "job in front"])
def test_ctrl_c_is_a_signal_until_the_keys_are_given_back(front: str) -> None:
    with leader(front, "claims") as (process, master, go):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if front == "leader in front":  # the control: it takes keys as they come
            os.write(master, b"\x03")
            assert process.stdout.readline() == "byte 3\n"
        assert process.stdout.readline() == "taken\n"
        os.write(master, b"\x03")
        assert process.stdout.readline() == "told 2\n"
        os.write(go, b"g")
        assert process.stdout.read() == "as before True True\n"


def test_a_terminal_that_others_have_is_left_alone() -> None:
    with leader("job in front", "does not") as (process, _master, _go):
        assert process.stdout is not None
        assert process.stdout.read() == "ready\nsomebody else's\nas before True True\n"
