"""Signals of the supervising process while the agent has the terminal.

What the terminal sends (Ctrl-C, Ctrl-\\) reaches the agent by itself, as it stands in the same process group: the supervisor
lets it pass. What somebody sends to the supervisor is passed on. When the agent stops, the broker freezes its tree and stops,
and then the supervisor, so that the shell gets its terminal back. Stopped before them, it could be continued before they stop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading

_PASSED_ON = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
)
_WATCHED = frozenset({*_PASSED_ON, signal.SIGCHLD})
# What a frozen agent would never hear of; to it they mean the end.
_ENDING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


class SignalWatch:
    """Blocks the watched signals and handles them on a thread of its own, which alone can see who sent each."""

    def __init__(self) -> None:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        self._agent = 0
        self._broker = 0
        self._still = False
        self._passing = threading.Lock()
        self._early: list[int] = []
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)

    def start(self, broker_pid: int) -> None:
        self._broker = broker_pid
        self._thread.start()

    def agent_started(self, pid: int) -> None:
        """From now on there is somebody to pass signals on to; those that came before go first."""
        self._agent = pid
        for number in self._early:
            self._pass_on(number)

    def agent_ended(self) -> None:
        self._agent = 0

    def stands_still(self, still: bool) -> None:
        """The agent is frozen, or no longer: until then Ctrl-C and every signal that asks it to end kill it, also one that came
        before this was told."""
        with self._passing:
            self._still = still
            if still and self._agent and _would_hear_later(self._agent):
                self._pass_on(signal.SIGKILL)

    def _watch(self) -> None:
        while True:
            info = signal.sigwaitinfo(_WATCHED)
            if info.si_signo == signal.SIGCHLD:
                self._stop_with_broker()
                continue
            with self._passing:
                if self._still and info.si_signo in _ENDING:
                    self._pass_on(signal.SIGKILL)
                elif info.si_code <= 0 or info.si_signo == signal.SIGHUP:
                    # Sent by a process. Positive codes come from the kernel: the terminal told the whole group, but of its
                    # own end it tells the leader of the session only.
                    self._pass_on(info.si_signo)

    def _pass_on(self, number: int) -> None:
        if self._agent:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._agent, number)
        else:
            self._early.append(number)

    def _stop_with_broker(self) -> None:
        try:
            info = os.waitid(os.P_PID, self._broker, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return
        if info is not None and info.si_code == os.CLD_STOPPED:
            # To this very thread: a signal to the process can reach another one first, and this one would go on and wake
            # the agent.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            # Awake again. A shell wakes the whole group; whoever woke only us means the agent too.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._broker, signal.SIGCONT)


def _would_hear_later(pid: int) -> bool:
    """Whether a signal that asks a process to end waits for it to go on."""
    with contextlib.suppress(OSError, KeyError, ValueError), open(f"/proc/{pid}/status", encoding="utf-8") as file:
        told = dict(line.split(":", 1) for line in file)
        waits = int(told["ShdPnd"], 16) & ~int(told["SigBlk"], 16)
        return any(waits >> number - 1 & 1 for number in _ENDING)
    return False
