"""One guarded run from the command line to the exit code: the only place where the order of things is written.

options -> policy -> plan -> broker (confined child, canary refused) -> events flow -> go -> wait -> summary
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping

from mcpguard.broker import client
from mcpguard.broker.protocol import LaunchRequest
from mcpguard.errors import HostError
from mcpguard.events.ids import new_id
from mcpguard.kernel.places import REFUSED_TIERS
from mcpguard.model import plain_json as json
from mcpguard.model.access import Verdict
from mcpguard.model.plan import FilesPlan
from mcpguard.model.policy import Policy
from mcpguard.policy.decide import automaton_of, decide_unix
from mcpguard.profile import places
from mcpguard.session import agent, coverage, network, seccomp, sockets
from mcpguard.session.environment import SESSION_VARIABLE, scrub
from mcpguard.session.files_plan import plan_files
from mcpguard.session.files_state import TerminalProgress
from mcpguard.session.options import RunOptions
from mcpguard.session.policy import own_hidden
from mcpguard.session.start import Start, tell
from mcpguard.wire import _abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mcpguard.session.confinement import Confined
    from mcpguard.session.edits import Edits
    from mcpguard.session.gate import Gate
    from mcpguard.session.hooks import Hooks
    from mcpguard.session.live import Live
    from mcpguard.session.recording import Recording
    from mcpguard.session.resolver import Resolver
    from mcpguard.session.servers import Servers
    from mcpguard.session.signals import SignalWatch

FAILED = 125
# Objects that a run makes between looks for garbage: its record is thousands of events at a time, of which none is.
GARBAGE_AFTER = 20_000
# What a run takes later, in this order.
_LATER = (
    *("mcpguard.session.recording", "mcpguard.events.recorder", "mcpguard.events.pump", "mcpguard.events.listener"),
    *("mcpguard.session.edits", "mcpguard.events.retention"),
)


def run(options: RunOptions, start: Start) -> int:
    """Run and return the exit code of the contract.

    Raises:
        McpguardError: nothing was started.
    """
    command, policy = agent.choose(options)
    if not policy.folders:
        return _guard(options, command, policy, start)
    from mcpguard.session.first_run import own_folders  # few profiles name some

    with own_folders(policy, quiet=options.quiet):
        return _guard(options, command, policy, start)


def _guard(options: RunOptions, command: tuple[str, ...], policy: Policy, start: Start) -> int:
    start.ask()
    watch = start.watch
    # Our own folders are protected like everything that exists; one that did not could be made inside.
    for ours in (places.profiles(), places.state(), places.control(), places.gate()):
        with contextlib.suppress(OSError):  # a home that nobody can write needs no protection there
            os.makedirs(ours, mode=0o700, exist_ok=True)
    # Best while the broker loads; where tier 1 may be had, which needs no plan, only when that is known.
    expected = _expected_plan(options.tier)
    planned = None if expected is None else _plan(policy, start, wide=expected)
    _import_while(start.silent)
    broker = start.broker()
    offer = coverage.Offer.from_broker(broker.offer())
    wide = offer.tier == 2 and not offer.files_fixed
    if offer.tier == 1:
        plan, later = FilesPlan((), ()), None
    else:
        plan, later = planned if planned and expected is wide else _plan(policy, start, wide=wide)
    hooks = _hooks(policy, offer, broker) if offer.tier < 3 else None
    holds = coverage.of_policy(policy, plan, offer)
    accepted = coverage.insist(holds, best_effort=options.best_effort)
    for gap in accepted:
        tell(gap)
    session = new_id(time.time_ns())
    fixed = network.fixed_names(policy)
    environment = scrub(os.environ, policy.environment_remove, policy.environment_keep) | dict(policy.environment_set)
    environment[SESSION_VARIABLE] = session
    guarded = _servers(policy, session, command, environment)
    notes = [
        *accepted,
        *plan.hidden,
        *_kept_back(policy, environment),
        *(_asking(session, offer, quiet=options.quiet) if options.ask else ()),
    ]
    if guarded:
        policy = guarded.policy
    if guarded and guarded.note:
        notes.append(guarded.note)
        if not options.quiet:
            tell(guarded.note)
    broker.request(
        LaunchRequest(
            session=session,
            user=policy.user,
            argv=guarded.command if guarded else command,
            environment=guarded.environment if guarded else environment,
            cwd=agent.working_directory(policy),
            umask=_umask(),
            files=plan,
            guard=hooks.plan if hooks else None,
            switches=_switches(policy),
            network=network.settings(policy, fixed, peers=offer.tier == 1),
            seccomp=seccomp.cached_filter(policy.system, places.state(), mounts=offer.tier == 1),
            kept=tuple(one.for_broker() for one in _kept(guarded)),
        ),
        guarded.gate.keeping.fileno() if guarded and guarded.gate.keeping else None,
    )
    # While the broker makes and confines the child, on another processor where there is one.
    from mcpguard.session.recording import Recording

    tier = coverage.TIER_NAMES[offer.tier]
    recording = Recording.begin(session, policy, command, tier, holds, notes, options.modes)
    edits = None
    try:
        facts = _start(broker, recording, start.resolver, fixed, guarded)
        recording.follow()
        kept = {slot: (one.rule, one.own) for slot, one in zip(facts["kept"], _kept(guarded), strict=True)}
        start.resolver.start(policy, broker.descriptors, kept, ask=options.ask)
        watch.agent_started(int(facts["pid"]))
        gc.freeze()  # or its first look goes through all of that, while the agent starts
        gc.set_threshold(GARBAGE_AFTER)
        gc.enable()
        if guarded:
            if guarded.gate.port is not None:
                recording.skip_port(guarded.gate.port)
            leaf = str(facts["cgroup"])
            guarded.gate.start(leaf, recording.skip_messages, recording.gate_cut_off, recording.tell, ask=options.ask)
            recording.show_messages(guarded.around(session, int(facts["pid"]), leaf, broker.paused))
        if later:
            later.start()
        if hooks:
            hooks.start()
        edits = _take_edits(
            session,
            start.resolver,
            guarded.gate if guarded else None,
            lambda: _live(policy, offer, plan, broker, start.resolver, recording, hooks, later),
        )
        _import_while(lambda: True)  # what is left: the agent starts meanwhile
        code, trouble = _wait_for_agent(broker, command, recording, guarded, watch)
    finally:
        watch.agent_ended()
        broker.hang_up()
        if edits:
            edits.close()
        start.resolver.close()
        if later:
            later.close()
        if hooks:
            hooks.close()
        if guarded:
            guarded.gate.close()
    recording.stop()
    start.free_terminal()
    if trouble is not None:
        sys.stderr.write("\n".join(trouble.lines()) + "\n")
    recording.end(code, quiet=options.quiet)
    return code


def _asking(session: str, offer: coverage.Offer, *, quiet: bool) -> tuple[str, ...]:
    """Let `watch` ask what no rule covers; what the person is told at the beginning and at the end.

    Raises:
        HostError: answers could not be kept.
    """
    from mcpguard.session import questions

    questions.begin(session)
    notes = (questions.NOTE.format(session), coverage.answers_for_files(offer))
    if not quiet:
        for note in notes:
            tell(note)
    return notes


def _kept_back(policy: Policy, environment: Mapping[str, str]) -> tuple[str, ...]:
    """What `profile learn` cannot see in an audited run: variables that a rule removed, which the agent may have wanted."""
    names = sorted(os.environ.keys() - environment.keys()) if policy.audit else []
    return (
        (f"variables that the agent did not get (environment.keep lets one in): {', '.join(names)}",) if names else ()
    )


def _expected_plan(asked: str | None) -> bool | None:
    """Whether the plan will be wide, by what brokers met since the last boot; None: it is not known whether one is needed at
    all. A hint: what the broker offers counts.
    """
    refused: Mapping[str, str] = {}
    narrow = False
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(REFUSED_TIERS, "rb") as told:
        kept = json.loads(told.read())
        refused, narrow = kept["refused"], kept["narrow"]
    if asked == "1" or not (asked or "1" in refused):
        return None
    return not narrow and (asked == "2" or (asked is None and "2" not in refused))


def _start(
    broker: client.Broker, recording: Recording, resolver: Resolver, fixed: network.FixedNames, guarded: Servers | None
) -> Mapping[str, Any]:
    """Have the agent started and put on record, once the child is confined; the broker's facts.

    Raises:
        HostError: nothing was started.
    """
    _import_while(broker.silent)
    try:
        facts = broker.confined()
        recording.attach(broker.descriptors, facts, resolver.feed, fixed.hosts)
        if guarded:
            recording.follow()  # who answers for a server is to be seen from its first word on
            every = guarded.all_clients is not None
            recording.guard_messages(int(facts["pid"]), is_agent=guarded.known, all_clients=every)
        broker.go()
    except BaseException:
        recording.not_started(FAILED)
        raise
    return facts


def _import_while(waiting: Callable[[], bool]) -> None:
    """Import what is needed later, for as long as somebody else is waited for anyway."""
    for name in _LATER:
        if not waiting():
            return
        __import__(name)


def _plan(policy: Policy, start: Start, *, wide: bool = False) -> tuple[FilesPlan, sockets.LaterSockets]:
    """What Landlock and mounts are to do. In tier 1 the hooks do it all, so no tree is walked and no socket looked for."""

    def may_connect(path: str) -> bool:
        return decide_unix(policy, path).verdict is not Verdict.DENY

    def may_connect_now(path: str) -> bool:
        """The session has made nothing yet."""
        return decide_unix(policy, path, foreign=True).verdict is not Verdict.DENY

    progress = TerminalProgress(lambda text: None if start.asking() else _progress_line(text))
    refused = sockets.refused(may_connect_now)
    # Without the hooks nothing but a cover keeps the session from a socket whose name it knows.
    hidden = (*refused, *own_hidden())
    plan = plan_files(policy, automaton_of(policy.tables), sockets=hidden, progress=progress, wide=wide)
    progress.clear()
    return plan, sockets.LaterSockets(may_connect, refused, lambda paths: start.broker().hide(paths))


def _servers(policy: Policy, session: str, command: tuple[str, ...], environment: dict[str, str]) -> Servers | None:
    """The gate of the session's MCP servers, and how the agent is told of it; None where the profile has none.

    Raises:
        McpguardError: it cannot be had.
    """
    if not policy.mcp or not json.loads(policy.mcp)["gate"]:
        return None
    from mcpguard.session import servers

    return servers.begin(policy, session, command, environment)


def _kept(guarded: Servers | None) -> tuple[Confined, ...]:
    return guarded.kept if guarded else ()


def _take_edits(session: str, resolver: Resolver, gate: Gate | None, live: Callable[[], Live]) -> Edits:
    """The agent runs: what is imported now, nobody waits for."""
    from mcpguard.session.edits import Edits

    edits = Edits(session, resolver, gate)
    edits.start(live)
    return edits


def _live(
    policy: Policy,
    offer: coverage.Offer,
    plan: FilesPlan,
    broker: client.Broker,
    resolver: Resolver,
    recording: Recording,
    hooks: Hooks | None,
    later: sockets.LaterSockets | None,
) -> Live:
    from mcpguard.session.live import Live

    return Live(policy, offer, plan, broker, resolver, recording, hooks, later)


def _hooks(policy: Policy, offer: coverage.Offer, broker: client.Broker) -> Hooks:
    from mcpguard.session.hooks import Hooks

    return Hooks(policy, offer, broker)


def _switches(policy: Policy) -> int:
    system = policy.system
    chosen = {
        _abi.MG_SESSION_NAMESPACES: system.user_namespaces,
        _abi.MG_SESSION_IO_URING: system.io_uring,
        _abi.MG_SESSION_MEMORY_PROGRAMS: system.memory_programs,
    }
    return sum(flag for flag, wanted in chosen.items() if wanted)


def _progress_line(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(text)
        sys.stderr.flush()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _wait_for_agent(
    broker: client.Broker, command: tuple[str, ...], recording: Recording, guarded: Servers | None, watch: SignalWatch
) -> tuple[int, HostError | None]:
    """The agent's exit code in the form of the contract, and what must be said about it."""
    trouble = None
    while True:
        received = broker.channel.receive()
        if received is None:
            broker.hang_up()
            return _without_broker(recording)
        message, _descriptors = received
        if "updated" in message:
            broker.answer(message)
        if "restored" in message:
            recording.covered_again(message["restored"])
        if "still" in message:
            watch.stands_still(bool(message["still"]))
            recording.stands_still(message["still"])
        if "exec_failed" in message:
            trouble = _not_started(command[0], int(message["exec_failed"]))
        if "ended" in message and not guarded:  # the gate has its last words before the record is finished
            recording.ended()
        if "exited" in message:
            broker.dismiss()  # it ends while the record is finished
            if guarded:
                guarded.gate.close()
            recording.take_final(message)
            return exit_code(int(message["exited"])), trouble


def _without_broker(recording: Recording) -> tuple[int, HostError]:
    """The broker was killed. What it attached holds on; the tree is confined until its last process ends."""
    recording.wait_for_end()
    return FAILED, HostError(
        "the broker ended while the agent was running",
        why="somebody killed it; the agent stayed confined, but its exit code is lost",
        do="look at `mcpguard log` for what happened",
        code="run.broker-died",
    )


def exit_code(status: int) -> int:
    """A wait status as a shell shows it: the code, or 128 plus the signal."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _not_started(program: str, number: int) -> HostError:
    if number in (errno.ENOENT, errno.ENOTDIR):
        seen = "what is not readable inside looks as if it were not there: `mcpguard why execute PATH`"
        do = f"install it, or correct the name or PATH; {seen}"
        return HostError(f"{program}: not found", why=os.strerror(number), do=do, code="run.not-found")
    do = (
        "begin the file with a #! line, or name its interpreter"
        if number == errno.ENOEXEC
        else f"chmod +x it, if that is missing; `mcpguard why execute {program}` tells whether a rule forbids it"
    )
    return HostError(f"{program}: cannot be executed", why=os.strerror(number), do=do, code="run.not-executable")
