"""Bytes of the rings as records. Pure: no clock, no file, no judgement.

Strings of programs are bytes in any encoding; what is not UTF-8 is kept by surrogate escapes, as Python does for file names.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache

from mcpguard.model.access import Access, Verdict
from mcpguard.wire import _abi
from mcpguard.wire.records import (
    NO_HOST,
    OUTSIDER,
    UNCLEAR,
    CallRecord,
    ExecRecord,
    ExitRecord,
    FileRecord,
    FlowRecord,
    ForkRecord,
    Head,
    MessageRecord,
    NetRecord,
    OpenRecord,
    PathCallRecord,
    Record,
    UnixRecord,
)

_VERDICTS = {_abi.MG_ALLOW: Verdict.ALLOW, _abi.MG_DENY: Verdict.DENY, _abi.MG_AUDIT: Verdict.AUDIT}
_ACCESSES = {bits: Access(bits) for bits in range(8)}
_FILE_KINDS = {
    _abi.MG_REGULAR: "file",
    _abi.MG_DIRECTORY: "directory",
    _abi.MG_DEVICE: "device",
    _abi.MG_MEMFD: "memfd",
    _abi.MG_OTHER: "other",
}
_NET_OPS = {
    _abi.MG_NET_CONNECT: "connect",
    _abi.MG_NET_SENDMSG: "sendmsg",
    _abi.MG_NET_BIND: "bind",
    _abi.MG_NET_SOCKET: "socket",
    _abi.MG_NET_PACKET: "packet",
    _abi.MG_NET_ACCEPT: "accept",
}
_DETAILS = {
    _abi.MG_DETAIL_NONE: "",
    _abi.MG_DETAIL_NARROWED: "narrowed",
    _abi.MG_DETAIL_OWN: "own",
    _abi.MG_DETAIL_NOT_PLAIN: "not a plain path",
    _abi.MG_DETAIL_EXPIRED: "looked up too long ago",
    _abi.MG_DETAIL_RESOLVER: "it answers names of another session",
    _abi.MG_DETAIL_HOST: "another host at the address of an allowed one",
    _abi.MG_DETAIL_NO_HOST: NO_HOST,
    _abi.MG_DETAIL_UNCLEAR: UNCLEAR,
}
_PATH_OPS = {
    _abi.MG_OP_OPEN: "open",
    _abi.MG_OP_CREATE: "create",
    _abi.MG_OP_EXEC: "exec",
    _abi.MG_OP_TRUNCATE: "truncate",
    _abi.MG_OP_UNLINK: "unlink",
    _abi.MG_OP_RMDIR: "rmdir",
    _abi.MG_OP_MKDIR: "mkdir",
    _abi.MG_OP_MKNOD: "mknod",
    _abi.MG_OP_SYMLINK: "symlink",
    _abi.MG_OP_LINK: "link",
    _abi.MG_OP_RENAME: "rename",
    _abi.MG_OP_EXCHANGE: "exchange",
    _abi.MG_OP_CHMOD: "chmod",
    _abi.MG_OP_CHOWN: "chown",
    _abi.MG_OP_XATTR: "xattr",
    _abi.MG_OP_UTIMES: "utimes",
    _abi.MG_OP_STAT: "stat",
    _abi.MG_OP_READLINK: "readlink",
    _abi.MG_OP_CHDIR: "chdir",
    _abi.MG_OP_MAP: "map",
    _abi.MG_OP_RECEIVE: "receive",
    _abi.MG_OP_WATCH: "watch",
    _abi.MG_OP_IOCTL: "ioctl",
    _abi.MG_OP_CONNECT: "connect",
    _abi.MG_OP_SEND: "send",
}
# What is told of a refusal that no rule explains, or not alone.
FILE_DETAILS = {
    _abi.MG_DETAIL_NONE: "",
    _abi.MG_DETAIL_BELOW: "a protected path lies below it",
    _abi.MG_DETAIL_WIDENS: "the new name would open the file wider",
    _abi.MG_DETAIL_UNKNOWN: "its file system was not mounted when the session began",
    _abi.MG_DETAIL_DETACHED: "its name leads to no mounted place",
    _abi.MG_DETAIL_DEEP: "it lies deeper than names can be followed",
    _abi.MG_DETAIL_UNSTABLE: "directories kept moving while its name was read",
    _abi.MG_DETAIL_NO_POLICY: "the session has no rules yet",
    _abi.MG_DETAIL_MEMORY: "a program that exists in memory only",
    _abi.MG_DETAIL_RECEIVED: "a descriptor that another process sent",
    _abi.MG_DETAIL_MAPPED: "mapped as code",
    _abi.MG_DETAIL_NAMES: "it is mounted in more places than can be judged",
    _abi.MG_DETAIL_OUTSIDER: OUTSIDER,
}
_CALL_OPS = {
    _abi.MG_CALL_SOCKET: "socket",
    _abi.MG_CALL_PTRACE: "ptrace",
    _abi.MG_CALL_SIGNAL: "signal",
    _abi.MG_CALL_PROCESS_MEMORY: "process-memory",
    _abi.MG_CALL_PIDFD_GETFD: "pidfd-getfd",
    _abi.MG_CALL_BPF: "bpf",
    _abi.MG_CALL_PERF: "perf",
    _abi.MG_CALL_UNSHARE: "unshare",
    _abi.MG_CALL_CLONE: "clone",
    _abi.MG_CALL_SETNS: "setns",
    _abi.MG_CALL_MOUNT: "mount",
    _abi.MG_CALL_KEYCTL: "keyctl",
    _abi.MG_CALL_MODULE: "module",
    _abi.MG_CALL_IO_URING: "io-uring",
    _abi.MG_CALL_IOCTL: "ioctl",
    _abi.MG_CALL_CHROOT: "chroot",
    _abi.MG_CALL_HANDLE: "handle",
    _abi.MG_CALL_IDENTITY: "identity",
    _abi.MG_CALL_PROCESS: "process",
    _abi.MG_CALL_HOST: "host",
}
_PROTOCOLS = {
    1: "icmp",
    6: "tcp",
    17: "udp",
    58: "icmpv6",
    132: "sctp",
    136: "udplite",
    255: "raw",
    262: "mptcp",
}


def record(sample: bytes) -> Record:
    """One sample of a ring as a record.

    Raises:
        ValueError: the sample does not follow the contract; the rings and this package do not belong together.
    """
    try:
        head = _abi.MG_HEAD.unpack_from(sample)
        return _DECODERS[head[1]](sample, _head(head))
    except (KeyError, ValueError, struct.error) as error:
        raise ValueError(f"not a record of this version: {error!r}") from None


def _head(fields: tuple[int, int, int, int, int, int, int, bytes]) -> Head:
    when, _kind, lost, pid, tid, ppid, said, comm = fields
    return Head(when, pid, tid, ppid, _comm(comm), lost, said)


# Few programs make many records.
@lru_cache(maxsize=256)
def _comm(value: bytes) -> str:
    return _text(value.partition(b"\0")[0])


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


class _Tail:
    """The strings behind the fixed part of a record, taken in order."""

    def __init__(self, sample: bytes, start: int) -> None:
        self._sample = sample
        self._at = start

    def take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._sample):
            raise ValueError(f"a string ends at {end} of {len(self._sample)} bytes")
        taken = self._sample[self._at : end]
        self._at = end
        return taken

    def text(self, length: int) -> str:
        return _text(self.take(length))


def _fork(sample: bytes, head: Head) -> ForkRecord:
    _, child, _ = _abi.MG_FORK.unpack_from(sample)
    return ForkRecord(head, child)


def _exit(sample: bytes, head: Head) -> ExitRecord:
    _, code, _ = _abi.MG_EXIT.unpack_from(sample)
    return ExitRecord(head, code)


def _exec(sample: bytes, head: Head) -> ExecRecord:
    _, exe_length, argv_length, argv_cut, _exe_cut = _abi.MG_EXEC.unpack_from(sample)
    tail = _Tail(sample, _abi.MG_EXEC.size)
    exe = tail.text(exe_length)
    words = tail.take(argv_length).split(b"\0")
    if words[-1] == b"":
        words.pop()
    return ExecRecord(head, exe, tuple(map(_text, words)), bool(argv_cut))


def _open(sample: bytes, head: Head) -> OpenRecord:
    _, series, count, fd, _, length, access, kind, created, cut = _abi.MG_OPEN.unpack_from(sample)
    path = _Tail(sample, _abi.MG_OPEN.size).text(length)
    return OpenRecord(head, path, _ACCESSES[access], _FILE_KINDS[kind], bool(created), count, bool(cut), series, fd)


def _path_call(sample: bytes, head: Head) -> PathCallRecord:
    _, series, count, result, base, path, base2, path2, op, access, follow, paths, _cut, stands, cwd, _ = (
        _abi.MG_PATH_CALL.unpack_from(sample)
    )
    tail = _Tail(sample, _abi.MG_PATH_CALL.size)
    first, first_path = tail.text(base), tail.text(path)
    second, second_path = (tail.text(base2), tail.text(path2)) if paths == 2 else (None, None)
    stood = first if stands else tail.text(cwd)
    return PathCallRecord(
        head,
        _PATH_OPS[op],
        Access(access),
        result,
        first,
        first_path,
        second,
        second_path,
        follow=bool(follow),
        count=count,
        series=series,
        cwd=stood,
    )


def _call(sample: bytes, head: Head) -> CallRecord:
    _, series, count, argument, argument2, number, result, op, _ = _abi.MG_CALL.unpack_from(sample)
    return CallRecord(head, _CALL_OPS[op], number, argument, argument2, result, count, series)


def _net(sample: bytes, head: Head) -> NetRecord:
    _, series, count, address, rule, port, protocol, op, verdict, detail, _ = _abi.MG_NET.unpack_from(sample)
    return NetRecord(
        head,
        _NET_OPS[op],
        _VERDICTS[verdict],
        address_text(address),
        port,
        _PROTOCOLS.get(protocol, str(protocol)),
        rule,
        _DETAILS[detail],
        count,
        series,
    )


def _host(sample: bytes, head: Head) -> NetRecord:
    _, series, count, target = _abi.MG_HOST.unpack_from(sample)
    address, _pid, rule, port, verdict, detail, length, _, name = _abi.MG_HOST_TARGET.unpack(target)
    return NetRecord(
        head,
        "hello" if detail == _abi.MG_DETAIL_HOST else "packet",
        _VERDICTS[verdict],
        address_text(address),
        port,
        "tcp",
        rule,
        _DETAILS[detail],
        count,
        series,
        _host_text(name[:length]) if detail == _abi.MG_DETAIL_HOST else "",
    )


def _host_text(name: bytes) -> str:
    """What a program sent as a host name; whatever no name can hold is escaped."""
    return name.decode("latin-1").encode("unicode_escape").decode("ascii")


def flow(key: bytes, when_ns: int, sent: int, received: int) -> FlowRecord:
    """A key of the map of bytes, with how much there is new."""
    address, port, protocol, op, _ = _abi.MG_FLOW_KEY.unpack(key)
    known = any(key)
    return FlowRecord(
        when_ns,
        address_text(address) if known else "",
        port,
        _PROTOCOLS.get(protocol, str(protocol)) if known else "",
        op == _abi.MG_NET_ACCEPT,
        sent,
        received,
    )


def _unix(sample: bytes, head: Head) -> UnixRecord:
    _, series, count, rule, op, verdict, detail, length, path, _ = _abi.MG_UNIX.unpack_from(sample)
    name = path[:length]
    # A file `@x` in the current folder is no abstract socket.
    file = _text(b"./" + name if name.startswith(b"@") else name)
    text = "@" + _text(name[1:]) if name.startswith(b"\0") else file
    return UnixRecord(head, _NET_OPS[op], _VERDICTS[verdict], text, rule, _DETAILS[detail], count, series)


def _file(sample: bytes, head: Head) -> FileRecord:
    _, series, count, rule, device, device2, length, length2, op, access, _verdict, detail, cut, second, _ = (
        _abi.MG_FILE.unpack_from(sample)
    )
    tail = _Tail(sample, _abi.MG_FILE.size)
    name = tail.text(length)
    both = length2 > 0
    return FileRecord(
        head,
        _PATH_OPS[op],
        Access(access),
        device,
        name,
        device2 if both else None,
        tail.text(length2) if both else None,
        rule,
        bool(second),
        bool(cut),
        FILE_DETAILS[detail],
        count,
        series,
    )


_CHANNELS = {_abi.MG_PIPE: "pipe", _abi.MG_UNIX_STREAM: "unix", _abi.MG_LOOPBACK: "tcp"}


def message(sample: bytes) -> MessageRecord:
    """One sample of the ring of messages.

    Raises:
        ValueError: the sample does not follow the contract.
    """
    try:
        head = _head(_abi.MG_HEAD.unpack_from(sample))
        (
            _,
            offset,
            own,
            far,
            input,
            device,
            input_device,
            length,
            lost,
            port,
            far_port,
            channel,
            ends_line,
            output,
            fate,
        ) = _abi.MG_MESSAGE.unpack_from(sample)
        return MessageRecord(
            *(head, offset, (device, own), (device, far) if far else None, (input_device, input)),
            *(_Tail(sample, _abi.MG_MESSAGE.size).take(length), lost, (port, far_port), _CHANNELS[channel]),
            *(bool(ends_line), bool(output), fate == _abi.MG_ENDED, fate in (_abi.MG_HELD, _abi.MG_HELD_UNSEEN)),
            *(fate == _abi.MG_HEARD, fate == _abi.MG_HELD_UNSEEN),
        )
    except (KeyError, struct.error) as error:
        raise ValueError(f"not a message of this version: {error!r}") from None


def address_text(address: bytes) -> str:
    """Sixteen bytes in network order as text; IPv4-mapped ones as IPv4."""
    import ipaddress  # not for a launch to wait for

    parsed = ipaddress.IPv6Address(address)
    return str(parsed.ipv4_mapped or parsed)


_DECODERS: dict[int, Callable[[bytes, Head], Record]] = {
    _abi.MG_RECORD_FORK: _fork,
    _abi.MG_RECORD_EXIT: _exit,
    _abi.MG_RECORD_EXEC: _exec,
    _abi.MG_RECORD_OPEN: _open,
    _abi.MG_RECORD_PATH_CALL: _path_call,
    _abi.MG_RECORD_CALL: _call,
    _abi.MG_RECORD_NET: _net,
    _abi.MG_RECORD_UNIX: _unix,
    _abi.MG_RECORD_FILE: _file,
    _abi.MG_RECORD_HOST: _host,
}
