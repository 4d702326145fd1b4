"""Is a refused path call our denial? And did a call succeed that the policy forbids?

The kernel says only `EACCES`. This module finds the object in the host's view, asks the policy, and leaves out what
plain file permissions refuse anyway. In doubt a refusal is reported: a denial is never lost (docs/events.md lists the
cases).
"""

from __future__ import annotations

import errno
import os
import re
from functools import lru_cache

from mcpguard.events import permissions
from mcpguard.events.finding import BELOW, LISTED, NOT_STOPPED, NOT_THERE, QUIET, UNEXPLAINED, Finding, system_rule
from mcpguard.events.habits import EVERY_PROCESS, habit, looks_at_all_processes
from mcpguard.events.hostpath import Caller, Folders, caller_of, resolve
from mcpguard.events.interpreter import interpreters
from mcpguard.events.judge import Judge, Refusal
from mcpguard.events.links import Links
from mcpguard.events.mounted import MountedPlaces
from mcpguard.events.processes import ProcessTable
from mcpguard.model.access import Access, Verdict
from mcpguard.model.event import Kind
from mcpguard.model.policy import Policy
from mcpguard.model.rule import Origin
from mcpguard.wire.records import OUTSIDER, FileRecord, OpenRecord, PathCallRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mcpguard.events.moves import Moves

# Errors that a sandbox makes; every other one is the file system's own answer.
OUR_ERRORS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV})
# These have everyday causes (another file system, a busy mount): ours only when the policy says so.
_EVERYDAY = frozenset({errno.EBUSY, errno.EXDEV})
# Landlock has no right for these; outside a read-only mount they reach files that existed at launch too.
_ATTRIBUTES = frozenset({"chmod", "chown", "utimes", "xattr"})
# What `/proc` shows of a process and the system refuses of those outside.
OUTSIDE = system_rule("no look into processes outside")
CHANGE_OUTSIDE = system_rule("no change of processes outside")
OTHER_TERMINALS = system_rule("no terminals of others")
# What the kernel calls the file of a program that lies in none, and the switch that permits such programs.
_MEMORY, _MEMORY_PROGRAMS = "/memfd:", system_rule("memory_programs: true")
_TERMINAL = r"/dev/pts/\d+"
PRIVATE = re.compile(
    r"/proc/(?P<pid>\d+)(?:/task/\d+)?/(?P<what>environ|auxv|mem|maps|smaps|smaps_rollup|numa_maps|map_files|pagemap|"
    r"clear_refs|stack|syscall|personality|timers|io|fd|fdinfo|ns|root|cwd|exe)(?:/.*)?"
)

_BEHIND = r"/proc/\d+(?:/task/\d+)?/(?:root|cwd|fd/\d+)/.+"


class Attributor:
    """Judges path calls and opens of one session.

    Attributes:
        moves: refusals of which it is not sure yet that they are; None: there was none.
    """

    def __init__(self, policy: Policy, judge: Judge, processes: ProcessTable) -> None:
        self._policy = policy
        self._judge = judge
        self._processes = processes
        self._links = Links()
        self._places = MountedPlaces()
        self._folders = Folders()
        self.moves: Moves | None = None

    def look_again(self) -> None:
        """What comes now was made later than all before: folders may have changed meanwhile."""
        self._folders.forget()

    def follow(self, policy: Policy, judge: Judge) -> None:
        """Judge by another policy from now on."""
        self._policy, self._judge = policy, judge

    def path_call(self, record: PathCallRecord) -> Finding | None:
        """The finding of a path call; None: it is not ours to report (plain permissions, a missing file, ...)."""
        if record.result == errno.ENOENT:
            return self._terminal(record)
        if record.result not in (0, *OUR_ERRORS):
            return None
        who = caller_of(record.head, record.base, record.path, record.cwd)
        foreign = self._foreign(record)
        if foreign is not None:
            return foreign
        path = self._folders.resolve(record.base, record.path, who, follow=record.follow)
        target = None
        if record.path2 is not None and record.op != "symlink":
            base = record.base2 or ("" if record.path2.startswith("/") else record.base)
            second = caller_of(record.head, base, record.path2, record.cwd)
            target = self._folders.resolve(base, record.path2, second, follow=False)
        refusal = self._judge.refusal(record.op, record.access, path, target)
        if record.result == 0:
            self._remember(record, path, target)
            return self._success(record, path, target, refusal)
        if refusal is None and record.follow:
            path, refusal = self._as_it_was(record, who, path)
        if refusal is None and record.op == "exec":
            path, refusal = self._interpreter(record, who, path)
        refusal = refusal or self._by_another_name(record, path)
        return self._refused(record, path, target, refusal)

    def _foreign(self, record: PathCallRecord) -> Finding | None:
        """A refused way through another process (`/proc/PID/root/...`): what lies behind it is not what was refused."""
        private = PRIVATE.fullmatch(record.path)
        if not private or record.result == 0 or private["what"] not in ("root", "cwd", "fd", "exe"):
            return None
        pid = int(private["pid"])
        if self._is_own(pid):
            return None
        return self._private(record, record.access, record.path, pid, self._everyday_look(record, private))

    def _remember(self, record: PathCallRecord, path: str, target: str | None) -> None:
        if self.moves is not None:
            self.moves.happened(record.op, path, target)
        if record.op == "symlink" and record.path2:
            self._links.made(path, record.path2)
        elif record.op in ("rename", "exchange") and target is not None:
            self._links.moved(path, target)

    def _as_it_was(self, record: PathCallRecord, who: Caller, path: str) -> tuple[str, Refusal | None]:
        """The same call through the links as they were when the tree made them; the first that explains it counts."""
        for was in self._links.readers():
            then = resolve(record.base, record.path, who, follow=True, was=was)
            refusal = self._judge.refusal(record.op, record.access, then, None)
            if refusal is not None:
                return then, refusal
        return path, None

    def _interpreter(self, record: PathCallRecord, who: Caller, path: str) -> tuple[str, Refusal | None]:
        """A script that may be executed, whose interpreter may not: that one is what was refused."""
        for found in interpreters(path, lambda name: resolve(who.cwd, name, who, follow=True)):
            refusal = self._judge.refusal(record.op, record.access, found)
            if refusal is not None:
                return found, refusal
        return path, None

    def _by_another_name(self, record: PathCallRecord, path: str) -> Refusal | None:
        """A cover lies on the file itself, so a rule that takes away counts under any of its names."""
        for other in self._places.other_names(path):
            refusal = self._judge.refusal(record.op, record.access, other)
            if refusal is not None and self._judge.takes_away(refusal.rule):
                return refusal
        return None

    def opened(self, record: OpenRecord) -> Finding | None:
        """The finding of an open that succeeded; None for O_PATH, which gives no access."""
        access = record.access
        if record.fd >= 0 and (record.kind == "directory" or not access):
            self._links.made(f"/proc/{record.head.pid}/fd/{record.fd}", record.path)
        if not access:
            return None
        if record.kind in ("memfd", "other") or not record.path.startswith("/"):
            return Finding(Kind.FILE, _op_of(record), Verdict.ALLOW, _word(access), record.path)
        refused, rule = self._judge.answer(record.path, access)
        op = _op_of(record)
        if not refused:
            return Finding(Kind.FILE, op, Verdict.ALLOW, _word(access), record.path, None, self._origin(rule))
        detail = None
        if not self._policy.audit:
            # A hidden folder shows a stand-in, and the kernel's path cannot tell it from the original.
            listing = record.kind == "directory" and access == Access.READ
            detail = LISTED if listing else _not_stopped(op, record.created)
        return Finding(Kind.FILE, op, Verdict.AUDIT, _word(refused), record.path, None, self._origin(rule), detail)

    def refused_by_hook(self, record: FileRecord) -> Finding:
        """The finding of a refusal by the kernel's own hooks: they tell the object and the rule, so nothing is guessed."""
        path = self._places.path(record.device, record.name, cut=record.cut)
        target = None
        if record.name2 is not None and record.device2 is not None:
            target = self._places.path(record.device2, record.name2, cut=record.cut)
        number: int | None = record.rule
        if record.detail and not record.rule:
            below = self._judge.refusal(record.op, record.access, path, target) if target is not None else None
            number = below.rule if below is not None and below.below else 0
        kind = {"exec": Kind.EXEC, "map": Kind.EXEC, "connect": Kind.UNIX, "send": Kind.UNIX}.get(record.op, Kind.FILE)
        access = record.access.word or None
        process = self._processes.get(record.head.pid)
        quiet = habit(self._policy, process, record.access, path) if not record.rule and not record.detail else None
        if record.op == "open" and (private := PRIVATE.fullmatch(path)):
            quiet = self._everyday_look(record, private) or quiet
        detail = _join(quiet, record.detail, f"decided by {target}" if record.second and target else None)
        rule = CHANGE_OUTSIDE if record.detail == OUTSIDER else self._origin(number)
        return Finding(kind, record.op, Verdict.DENY, access, path, target, rule, detail)

    def executed(self, path: str) -> Finding:
        """The finding of a program that was started."""
        if path.startswith(_MEMORY) and self._policy.system.memory_programs:
            return Finding(Kind.EXEC, "exec", Verdict.ALLOW, Access.EXECUTE.word, path, None, _MEMORY_PROGRAMS)
        refused = Access.EXECUTE & ~self._judge.decide(path).allowed if path.startswith("/") else Access.NONE
        rule = self._origin(self._judge.rule_for(path, Access.EXECUTE)) if path.startswith("/") else None
        detail = _not_stopped("exec", False) if refused and not self._policy.audit else None
        verdict = Verdict.AUDIT if refused else Verdict.ALLOW
        return Finding(Kind.EXEC, "exec", verdict, Access.EXECUTE.word, path, None, rule, detail)

    def _success(
        self, record: PathCallRecord, path: str, target: str | None, refusal: Refusal | None
    ) -> Finding | None:
        kind = Kind.EXEC if record.op == "exec" else Kind.FILE
        if not record.path and path.startswith(_MEMORY):  # by its descriptor: memory, of which no rule speaks
            return Finding(kind, record.op, Verdict.ALLOW, _word(record.access), path, target)
        if refusal is None:
            rule = self._origin(self._judge.rule_for(target or path, record.access))
            return Finding(kind, record.op, Verdict.ALLOW, _word(record.access), path, target, rule)
        detail = None if self._policy.audit else _not_stopped(record.op, True)
        rule = self._origin(refusal.rule)
        return Finding(kind, record.op, Verdict.AUDIT, refusal.access.word, path, target, rule, detail)

    def _refused(
        self, record: PathCallRecord, path: str, target: str | None, refusal: Refusal | None
    ) -> Finding | None:
        access = record.access
        private = PRIVATE.fullmatch(path)
        kind = Kind.EXEC if record.op == "exec" else Kind.FILE
        quiet = self._everyday_look(record, private) if private else None
        if refusal is not None:
            if refusal.rule is not None and target is None:
                ruled = self._origin(refusal.rule or None)
                process = self._processes.get(record.head.pid)
                quiet = quiet or habit(self._policy, process, refusal.access, path, ruled)
            detail = _join(quiet, _which_end(refusal, path))
            rule = self._origin(refusal.rule)
            copied = refusal.below and record.op == "rename" and record.result == errno.EXDEV
            unsure = self._way(record, path) if copied else ()
            return Finding(kind, record.op, Verdict.DENY, refusal.access.word, path, target, rule, detail, unsure)
        if private:
            return self._private(record, access, path, int(private["pid"]), quiet)
        if record.result in _EVERYDAY or self._plain(record, access, path, target):
            return None
        if self._could_not_be_made(record, path):
            rule = self._origin(self._judge.rule_for(path, Access.WRITE))
            return Finding(kind, record.op, Verdict.DENY, access.word, path, target, rule, f"{NOT_THERE}: {path}")
        return Finding(kind, record.op, Verdict.DENY, access.word, path, target, None, UNEXPLAINED)

    def _way(self, record: PathCallRecord, path: str) -> tuple[str, ...]:
        """Of what was to move to another mount, see `moves`. That is seldom, and a launch does not wait for it."""
        from mcpguard.events.moves import Moves, way

        self.moves = self.moves or Moves()
        return way(record.base, record.path, path)

    def _terminal(self, record: PathCallRecord) -> Finding | None:
        """A terminal that is not there in the session. Where there is one outside that the user could open, that was meant."""
        path = os.path.normpath(record.path)
        if not re.fullmatch(_TERMINAL, path) or not os.path.lexists(path):
            return None
        if permissions.explain(record.op, record.access, path, errno.EACCES, self._policy.user):
            return None
        return Finding(Kind.FILE, record.op, Verdict.DENY, record.access.word or None, path, None, OTHER_TERMINALS)

    def _could_not_be_made(self, record: PathCallRecord, path: str) -> bool:
        """A rule lets the agent write it, but it did not exist at launch, and this tier grants what exists."""
        makes = record.op in permissions.MAKES_NAME or (record.op == "open" and Access.WRITE in record.access)
        if not makes or os.path.lexists(path) or Access.WRITE not in self._judge.decide(path).allowed:
            return False
        # Where the tree may write, it could have taken a link away that explains the refusal: that is never quiet.
        return Access.WRITE not in self._judge.decide(os.path.dirname(path)).allowed

    def _private(
        self, record: PathCallRecord, access: Access, path: str, pid: int, quiet: str | None
    ) -> Finding | None:
        """Memory, environment and descriptors of a process: the kernel refuses foreign ones to a Landlock domain."""
        if self._is_own(pid):
            # Where a descriptor led cannot be read any more once it is closed; the refusal stays a refusal.
            behind = re.fullmatch(_BEHIND, path) is not None
            return (
                Finding(Kind.FILE, record.op, Verdict.DENY, access.word, path, None, None, UNEXPLAINED)
                if behind
                else None
            )
        if self._is_other_user(pid):
            return None
        return Finding(Kind.FILE, record.op, Verdict.DENY, access.word, path, None, OUTSIDE, quiet)

    def _everyday_look(self, record: PathCallRecord | FileRecord, private: re.Match[str]) -> str | None:
        """The word on a refused look into a process: one of a row (environments, or what `lsof` and the like look at), or a
        debugger's on what it may trace, which it does without."""
        if self._is_own(int(private["pid"])):
            debugs = private["what"] == "mem" and self._policy.system.debuggers
            return f"{QUIET}: debuggers change memory by ptrace as well" if debugs else None
        process = self._processes.get(record.head.pid)
        sweeps = private["what"] == "environ" or (process is not None and looks_at_all_processes(process.exe))
        return EVERY_PROCESS if sweeps and record.access == Access.READ else None

    def _plain(self, record: PathCallRecord, access: Access, path: str, target: str | None) -> bool:
        user = self._policy.user
        if record.op == "link" and target is not None:
            explained = permissions.explain_link_source(path, user)
            return explained or permissions.explain("link", Access.WRITE, target, record.result, user)
        if permissions.explain(record.op, access, path, record.result, user):
            return True
        return target is not None and permissions.explain(
            _second(record.op, target), access, target, record.result, user
        )

    def _is_own(self, pid: int) -> bool:
        return pid in self._processes

    def _is_other_user(self, pid: int) -> bool:
        """False too when it has ended: then it cannot be told, and the refusal is reported."""
        try:
            return os.stat(f"/proc/{pid}").st_uid != self._policy.user.uid
        except OSError:
            return False

    def _origin(self, rule: int | None) -> Origin | None:
        return None if rule is None else self._policy.rules[rule]


def _op_of(record: OpenRecord) -> str:
    return "create" if record.created else "open"


@lru_cache(maxsize=8)
def _word(access: Access) -> str | None:
    return access.word or None


def _second(op: str, target: str) -> str:
    """The new name of a rename is made when it is free, and replaced when it is not."""
    return op if os.path.lexists(target) else "create"


def _which_end(refusal: Refusal, path: str) -> str | None:
    if refusal.widens:
        return "the new name would open the file wider"
    if refusal.below:
        return BELOW
    return f"decided by {refusal.path}" if refusal.path != path else None


def _not_stopped(op: str, new: bool) -> str:
    if op in _ATTRIBUTES:
        return f"{NOT_STOPPED}: this tier does not control {op} everywhere"
    return f"{NOT_STOPPED}: it did not exist at launch" if new else NOT_STOPPED


def _join(*parts: str | None) -> str | None:
    return ": ".join(part for part in parts if part) or None
