"""One guarded run from the command line to the exit code: the only place where the order of things is written.

options -> policy -> plan -> broker (confined child, canary refused) -> events flow -> go -> wait -> summary
"""

from __future__ import annotations

import os
import sys

from mcpguard.broker import client
from mcpguard.broker.protocol import LaunchRequest
from mcpguard.errors import HostError
from mcpguard.model.access import Verdict
from mcpguard.model.policy import Policy
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.decide import decide_unix
from mcpguard.profile.store import state_directory
from mcpguard.session import agent, coverage, network, seccomp, sockets
from mcpguard.session.environment import SESSION_VARIABLE, scrub
from mcpguard.session.files_plan import plan_files
from mcpguard.session.files_state import terminal_progress
from mcpguard.session.options import RunOptions
from mcpguard.session.recording import Recording
from mcpguard.session.start import Start

FAILED = 125


def run(options: RunOptions, start: Start) -> int:
    """Run and return the exit code of the contract.

    Raises:
        McpguardError: nothing was started.
    """
    coverage.check_tier(options.tier)
    command, policy = agent.choose(options)
    return _guard(options, command, network.with_resolvers(policy), start)


def _guard(options: RunOptions, command: tuple[str, ...], policy: Policy, start: Start) -> int:
    broker, watch = start.broker(), start.watch
    names = network.Names(policy)
    names.begin()
    automaton = Automaton.from_bytes(policy.tables)
    plan = plan_files(
        policy,
        automaton,
        sockets=sockets.refused(lambda path: decide_unix(policy, path).verdict is Verdict.ALLOW),
        progress=terminal_progress(_progress_line),
    )
    holds = coverage.of_plan(policy, plan)
    coverage.insist(holds, best_effort=options.best_effort)
    recording = Recording.begin(policy, command, coverage.TIER_NAME, holds)
    environment = scrub(os.environ, policy.environment_remove, policy.environment_keep)
    environment[SESSION_VARIABLE] = recording.session
    facts = broker.request(
        LaunchRequest(
            session=recording.session,
            user=policy.user,
            argv=command,
            environment=environment,
            cwd=agent.working_directory(policy),
            umask=_umask(),
            files=plan,
            network=network.settings(policy, names.rows(network.LAUNCH_WAIT_S)),
            seccomp=seccomp.cached_filter(policy.system, state_directory()),
        )
    )
    try:
        recording.attach(broker.descriptors, facts, names.host_of)
        broker.go()
        watch.agent_started(int(facts["pid"]))
        names.keep_fresh(broker.update_connect)
        code = _wait_for_agent(broker, command, recording)
    finally:
        watch.agent_ended()
        names.close()
    recording.end(code, quiet=options.quiet)
    return code


def _progress_line(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(text)
        sys.stderr.flush()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _wait_for_agent(broker: client.Broker, command: tuple[str, ...], recording: Recording) -> int:
    """The agent's exit code in the form of the contract."""
    while True:
        received = broker.channel.receive()
        if received is None:
            return _without_broker(recording)
        message, _descriptors = received
        if "exec_failed" in message:
            _say_not_started(command[0], int(message["exec_failed"]))
        if "exited" in message:
            recording.take_final(message)
            return exit_code(int(message["exited"]))


def _without_broker(recording: Recording) -> int:
    """The broker was killed. What it attached holds on; the tree is confined until its last process ends."""
    _say(
        "the broker ended while the agent was running",
        why="somebody killed it; the agent stays confined, but its exit code is lost",
        do="look at `mcpguard log` for what happened",
        code="run.broker-died",
    )
    recording.wait_for_end()
    return FAILED


def exit_code(status: int) -> int:
    """A wait status as a shell shows it: the code, or 128 plus the signal."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _say_not_started(program: str, number: int) -> None:
    missing = number in (2, 20)
    _say(
        f"{program}: {'not found' if missing else 'cannot be executed'}",
        why=os.strerror(number),
        do=f"`mcpguard why execute {program}` tells whether a rule forbids it"
        if not missing
        else "check the name and PATH",
        code="run.not-found" if missing else "run.not-executable",
    )


def _say(what: str, *, why: str, do: str, code: str) -> None:
    sys.stderr.write("\n".join(HostError(what, why=why, do=do, code=code).lines()) + "\n")
