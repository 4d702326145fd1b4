"""What a request to a unix socket amounts to, where the kernel's table says less than the policy.

The kernel compares strings, so a glob inside a path and a symlink on the way are not in its table: a socket that such a
rule denies is hidden at launch instead. This module asks the policy again; it never turns a refusal into an allow.
"""

from __future__ import annotations

import os

from mcpguard.events import doors, permissions
from mcpguard.events.finding import NOT_STOPPED, QUIET, UNEXPLAINED, Finding
from mcpguard.events.hostpath import caller_of, resolve
from mcpguard.events.judge import Judge
from mcpguard.model.access import Access, Verdict
from mcpguard.model.event import Kind
from mcpguard.model.policy import Policy
from mcpguard.model.rule import Origin
from mcpguard.policy.decide import Answer, decide_unix
from mcpguard.wire.records import PathCallRecord, UnixRecord

HIDDEN = "hidden: the socket was there at launch, and the agent cannot see it"
NO_SUCH_SOCKET = f"{QUIET}: there is no such socket"


class SocketJudge:
    """Judges the unix socket records of one session."""

    def __init__(self, policy: Policy, judge: Judge, began_ns: int) -> None:
        """
        Args:
            began_ns: when the session began, in nanoseconds since the Unix epoch.
        """
        self._policy = policy
        self._judge = judge
        self._began_ns = began_ns

    def follow(self, policy: Policy, judge: Judge) -> None:
        """Judge by another policy from now on."""
        self._policy, self._judge = policy, judge

    def finding(self, record: UnixRecord) -> Finding:
        """The finding of a connect or a send."""
        path = record.path
        if record.verdict is Verdict.DENY:
            # The C library asks for nscd at every look-up of a user; without a sandbox it would get ENOENT.
            door = doors.of_socket(path) if record.rule == 0 else None
            detail = NO_SUCH_SOCKET if self._never_was(path) else door or record.detail or None
            return Finding(
                Kind.UNIX, record.op, Verdict.DENY, path=path, rule=self._policy.rules[record.rule], detail=detail
            )
        return self._denied_by_policy(record) or Finding(
            *(Kind.UNIX, record.op, record.verdict), path=path, rule=self._rule(record), detail=record.detail or None
        )

    def unreached(self, record: PathCallRecord) -> Finding | None:
        """The finding of a refused connect or send to a path; None: plain permissions refuse it.

        Where no program on the cgroup sees the request before the path is looked up (before Linux 6.7).
        """
        who = caller_of(record.head, record.base, record.path, record.cwd)
        path = resolve(record.base, record.path, who, follow=True)
        answer = self._answer(path)
        if answer.verdict is Verdict.DENY:
            door = doors.of_socket(path) if answer.rule == 0 else None
            detail = NO_SUCH_SOCKET if self._never_was(path) else door or HIDDEN
            rule = self._policy.rules[answer.rule]
            return Finding(Kind.UNIX, record.op, Verdict.DENY, path=path, rule=rule, detail=detail)
        if permissions.explain(record.op, record.access, path, record.result, self._policy.user):
            return None
        return Finding(Kind.UNIX, record.op, Verdict.DENY, path=path, detail=UNEXPLAINED)

    def _denied_by_policy(self, record: UnixRecord) -> Finding | None:
        """The kernel let the string through, and a rule denies the socket that it leads to."""
        path = record.path
        if not path.startswith("/") or path.startswith("/proc/") or "\0" in path:
            return None
        try:
            real = os.path.realpath(path)
        except (OSError, RecursionError):
            # A link through another process, which nobody may follow, or more links than the kernel follows.
            return None
        answer = self._answer(real)
        if answer.verdict is Verdict.ALLOW:
            return None
        verdict, detail = Verdict.AUDIT, NO_SUCH_SOCKET if self._never_was(real) else None
        if not self._policy.audit:
            verdict, detail = self._outcome(real)
        return Finding(Kind.UNIX, record.op, verdict, path=path, rule=self._policy.rules[answer.rule], detail=detail)

    def _answer(self, path: str) -> Answer:
        """What the policy says of a socket by what it is: one that was there before the session is none of its own."""
        answer = decide_unix(self._policy, path)
        if answer.verdict is Verdict.ALLOW and self._was_there(path):
            return decide_unix(self._policy, path, foreign=True)
        return answer

    def _outcome(self, path: str) -> tuple[Verdict, str]:
        """Whether it was there to be hidden; `path` has no symlinks."""
        if self._was_there(path):
            return Verdict.DENY, HIDDEN
        if self._never_was(path):
            return Verdict.DENY, NO_SUCH_SOCKET
        return Verdict.AUDIT, f"{NOT_STOPPED}: it did not exist at launch"

    def _was_there(self, path: str) -> bool:
        """It is older than the session; what was changed since does not count."""
        try:
            return os.stat(path).st_ctime_ns <= self._began_ns
        except OSError:
            return False

    def _rule(self, record: UnixRecord) -> Origin | None:
        """Number 0 of something allowed (a socket of the tree itself) stands for no rule."""
        return self._policy.rules[record.rule] if record.rule or record.verdict is not Verdict.ALLOW else None

    def _never_was(self, path: str) -> bool:
        """No socket is there, and the tree could not have taken one (or a link to one) away."""
        fixed = (
            path.startswith("/")
            and not path.startswith("/proc/")
            and Access.WRITE not in self._judge.decide(path).allowed
        )
        return fixed and _is_missing(path)


def _is_missing(path: str) -> bool:
    """Surely no file of the host; False when it cannot be told."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False
