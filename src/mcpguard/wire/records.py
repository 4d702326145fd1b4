"""Ring-buffer records, decoded: what the BPF programs said, before anybody judged or named it.

Plain values; `wire.decode` makes them, `events` turns them into `Event`.
"""

from __future__ import annotations

from mcpguard.model.access import Access, Verdict
from mcpguard.model.values import dataclass


@dataclass(frozen=True, slots=True)
class Head:
    """First part of every record.

    Attributes:
        when_ns: CLOCK_MONOTONIC nanoseconds.
        pid: what people call the PID (the kernel's tgid); tid is the thread.
        ppid: tgid of the real parent at that moment.
        comm: thread name, at most 15 characters.
        lost_before: records of this ring dropped since the one before (all CPUs).
        said: another number than that of a record before: a message of MCP was sent meanwhile.
    """

    when_ns: int
    pid: int
    tid: int
    ppid: int
    comm: str
    lost_before: int
    said: int = 0


@dataclass(frozen=True, slots=True)
class ForkRecord:
    """A new process (not a thread). `head.pid` is the parent."""

    head: Head
    child: int


@dataclass(frozen=True, slots=True)
class ExecRecord:
    """A program was started. `exe` is the kernel's path of the executed file; argv is cut at a stated bound."""

    head: Head
    exe: str
    argv: tuple[str, ...]
    argv_cut: bool


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """A process ended (its last thread). `code` is the wait status as the kernel keeps it (`status << 8 | signal`)."""

    head: Head
    code: int


@dataclass(frozen=True, slots=True)
class OpenRecord:
    """A file was opened. `path` was built by the kernel from the opened file itself.

    `count` is how many such opens (process, file, access) this record stands for: the first is sent at once, later
    ones as sums, so adding up `count` over records never gives more than the opens seen; with the `SumRecord`s of
    the end it gives all of them. `series` is equal for all records of one aggregate; 0: not aggregated.
    `kind` is `file`, `directory`, `device`, `memfd`, or `other`. `fd` is the descriptor that the first of them gave.
    An open with O_PATH has no access; it is here because `/proc/PID/fd/N/...` cannot be understood without it.
    """

    head: Head
    path: str
    access: Access
    kind: str
    created: bool
    count: int
    cut: bool
    series: int = 0
    fd: int = -1


@dataclass(frozen=True, slots=True)
class PathCallRecord:
    """A system call on paths ended: a change that succeeded, or any path call that was refused.

    Attributes:
        op: open, create, exec, truncate, unlink, rmdir, mkdir, mknod, symlink, link, rename, exchange, chmod, chown,
            xattr, utimes.
        access: what the call needs on the object.
        result: 0, or a positive errno.
        base, path: directory that a relative `path` starts from (built by the kernel) and the string the program gave. An
            empty `path` means the object `base` itself: the file behind a descriptor. For an absolute `path`, `base` is what
            stands behind the first descriptor that it names (`/proc/self/fd/7`), and else empty.
        base2, path2: the same for the second path of rename and link; of symlink, `path2` is what is written into it; None
            otherwise.
        follow: whether the call follows a symlink in the last component.
        count, series: refusals that agree in process, call, paths and errno are aggregated as in OpenRecord; changes that
            succeeded are not.
        cwd: where the process stood, of a refusal and of what leads through /proc; empty: not told.
    """

    head: Head
    op: str
    access: Access
    result: int
    base: str
    path: str
    base2: str | None
    path2: str | None
    follow: bool
    count: int = 1
    series: int = 0
    cwd: str = ""


# The detail of a refusal that holds whatever the rules say.
OUTSIDER = "it belongs to a process outside the session"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A request on a file that the kernel's own hooks refused, with the object and the rule that they decided on.

    Attributes:
        op: as in PathCallRecord, and map, receive, watch, ioctl, connect, send.
        access: what was asked and is not allowed.
        device, name: the file system (the kernel's s_dev) and the name inside it, from its root on.
        device2, name2: the second object of rename and link; None otherwise.
        rule: index into `Policy.rules`; 0: the default, or `detail` tells.
        second: the rule is about the second object.
        cut: the names are only the ends of the real ones.
        detail: why, where no rule says it; one of the keys of `decode.FILE_DETAILS`.
        count, series: aggregated as in OpenRecord.
    """

    head: Head
    op: str
    access: Access
    device: int
    name: str
    device2: int | None
    name2: str | None
    rule: int
    second: bool
    cut: bool
    detail: str
    count: int = 1
    series: int = 0


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A refused system call without a path.

    Attributes:
        op: socket, ptrace, signal, process-memory, pidfd-getfd, bpf, perf, unshare, clone, setns, mount, keyctl, module,
            io-uring, ioctl, chroot.
        argument: its most telling argument (family for socket, target pid for signal and ptrace, flags for unshare and
            clone); argument2 is the argument after that one.
        count, series: identical refusals are aggregated as in OpenRecord.
    """

    head: Head
    op: str
    number: int
    argument: int
    argument2: int
    result: int
    count: int = 1
    series: int = 0


# Details of what a rule by name alone does not let go.
NO_HOST = "it names no host that can be read"
UNCLEAR = "its first bytes cannot be read for certain"


@dataclass(frozen=True, slots=True)
class NetRecord:
    """A network request and its verdict.

    Attributes:
        op: connect, sendmsg, bind, socket, packet (refused on its way out), hello (the first bytes named `host`), accept
            (somebody from outside asked to connect; `address` is theirs, `port` is the one they asked for).
        address: textual; IPv4-mapped addresses are shown as IPv4.
        protocol: tcp, udp, icmp, raw, mptcp, sctp or a number as text.
        rule: index into `Policy.rules`; 0: the default.
        detail: `narrowed` when a wildcard bind was narrowed to loopback; `own` when the destination is a listener of the
            tree itself; empty otherwise.
        count, series: aggregated per (process, op, destination, rule) as in OpenRecord.
        host: the host that the refused bytes named, as they were sent, in lower case; empty otherwise.
    """

    head: Head
    op: str
    verdict: Verdict
    address: str
    port: int
    protocol: str
    rule: int
    detail: str
    count: int
    series: int = 0
    host: str = ""


@dataclass(frozen=True, slots=True)
class UnixRecord:
    """A connect or send to a unix socket. `path` is the string the program gave, `@name` for an abstract socket.

    `detail`: `own` for an abstract socket of the tree itself; `not a plain path` for a refused relative path or one with
    `.`, `..`, or empty components. `count` and `series` as in OpenRecord.
    """

    head: Head
    op: str
    verdict: Verdict
    path: str
    rule: int
    detail: str
    count: int = 1
    series: int = 0


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """Bytes that a process sent on a connection on which JSON-RPC is spoken, or received there from outside of the session.

    Attributes:
        offset: of the first byte in the stream.
        own, far: the end that it was sent from and the one where it arrives, as (device, inode number); a pipe has one for
            both. `far` is None where it is not known, and for TCP.
        input: what the sender has as its standard input.
        lost: so many bytes were sent here, and none of them is told.
        ports: TCP: of the sender and of the receiver.
        channel: `pipe`, `unix` or `tcp`.
        ends_line: the last lost byte was a line feed.
        output: it was sent on what the sender has as its standard output.
        ended: the kernel has ended the sender for it, as a server that the agent started by itself.
        held: nobody has sent this. The process of `head` has read it at the end `own`, and is stopped until somebody says how
            it goes on; `data` is where it begins, and empty where it moved on what nobody has seen.
        heard: TCP: somebody outside of the session has sent this. The process of `head` has received it, or those that are
            lost, at the end `own`.
        unseen: it is held, but nobody saw what it has read: who sent that has to tell.
    """

    head: Head
    offset: int
    own: tuple[int, int]
    far: tuple[int, int] | None
    input: tuple[int, int]
    data: bytes
    lost: int
    ports: tuple[int, int]
    channel: str
    ends_line: bool
    output: bool
    ended: bool = False
    held: bool = False
    heard: bool = False
    unseen: bool = False


@dataclass(frozen=True, slots=True)
class LookupRecord:
    """A question for a name, and what became of it; told by the session's resolver, not by the kernel.

    Attributes:
        host: the name, lower case, without a trailing dot; what is no host name is escaped.
        asked: type of the question (`A`, `AAAA`, ...).
        rule: index into `Policy.rules`; 0: none.
        detail: why it was refused; empty otherwise.
        addresses: those in the answer that was given, textual.
    """

    head: Head
    host: str
    asked: str
    verdict: Verdict
    rule: int
    detail: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """What was exchanged with a destination since the record before.

    Attributes:
        when_ns: CLOCK_MONOTONIC nanoseconds of the look at it.
        address: textual; empty: all destinations for which the kernel had no room.
        port: of the destination; of our own where others came to us (`incoming`).
        protocol: as in NetRecord.
        sent, received: bytes of IP packets, headers included.
    """

    when_ns: int
    address: str
    port: int
    protocol: str
    incoming: bool
    sent: int
    received: int


@dataclass(frozen=True, slots=True)
class SumRecord:
    """What an aggregate had counted and not yet sent when it was read at the end: `count` more of `series`."""

    series: int
    count: int


Record = (
    ForkRecord
    | ExecRecord
    | ExitRecord
    | OpenRecord
    | PathCallRecord
    | CallRecord
    | NetRecord
    | UnixRecord
    | FileRecord
    | LookupRecord
)
