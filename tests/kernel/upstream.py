"""A name server of the tests' own, which remembers every byte that it was asked.

Names under `test.` answer as the tables say; whatever is not there does not exist.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

HOST = "127.77.0.53"
PORT = 53
CLONE_NEWNS, MS_PRIVATE, MS_REC, MS_BIND = 0x20000, 1 << 18, 1 << 14, 1 << 12
NAT64_NAME = "ipv4only.arpa"
Reply = Callable[[dns.message.Message, bool], dns.message.Message | bytes | None]


@dataclass
class Upstream:
    """A running server.

    Attributes:
        records: name -> lines such as `60 A 192.0.2.1`; a name that is not here does not exist.
        behaves: name -> what to do in place of that; the second argument tells a stream from a datagram.
        asked: (name, type, whether by a stream, source port, id), in the order of arrival; without the resolver's own question
            for gateways, which comes when it comes.
        raw: everything that came.
    """

    host: str = HOST
    records: dict[str, list[str]] = field(default_factory=dict)
    behaves: dict[str, Reply] = field(default_factory=dict)
    asked: list[tuple[str, str, bool, int, int]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    def names(self) -> list[str]:
        return [name for name, *_ in self.asked]

    def answer(self, wire: bytes, stream: bool, port: int) -> bytes | None:
        self.raw.append(wire)
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        if name != NAT64_NAME:
            self.asked.append((name.lower(), dns.rdatatype.to_text(question.rdtype), stream, port, query.id))
        behaves = self.behaves.get(name.lower())
        reply = behaves(query, stream) if behaves else self.found(query)
        if not isinstance(reply, dns.message.Message):
            return reply
        return reply.to_wire(max_size=65535 if stream else 1232, prefer_truncation=True)

    def found(self, query: dns.message.Message) -> dns.message.Message:
        reply = dns.message.make_response(query)
        name = query.question[0].name
        wanted = query.question[0].rdtype
        for _ in range(10):
            lines = self.records.get(name.to_text(omit_final_dot=True).lower())
            if lines is None:
                if not reply.answer:
                    reply.set_rcode(dns.rcode.NXDOMAIN)
                return reply
            alias = None
            by_type: dict[tuple[str, str], list[str]] = {}
            for line in lines:
                ttl, kind, data = line.split(None, 2)
                by_type.setdefault((ttl, kind), []).append(data)
            for (ttl, kind), data in by_type.items():
                rrset = dns.rrset.from_text_list(name, int(ttl), "IN", kind, data)
                if rrset.rdtype == wanted or kind == "CNAME":
                    reply.answer.append(rrset)
                    alias = rrset[0].target if kind == "CNAME" else None
            if alias is None or wanted == dns.rdatatype.CNAME:
                return reply
            name = alias
        return reply


@contextlib.contextmanager
def upstream(host: str = HOST) -> Iterator[Upstream]:
    """A server on port 53 of an address of this namespace."""
    server = Upstream(host)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.create_server((host, PORT), backlog=64) as streams,
    ):
        datagrams.bind((host, PORT))

        def receive() -> None:
            with contextlib.suppress(OSError):
                while True:
                    wire, sender = datagrams.recvfrom(4096)
                    if sender is None:
                        return
                    threading.Thread(target=answer, args=(wire, sender), daemon=True).start()

        def answer(wire: bytes, sender: tuple[str, int]) -> None:
            reply = server.answer(wire, False, sender[1])
            if reply is not None:
                with contextlib.suppress(OSError):
                    datagrams.sendto(reply, sender)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    stream, sender = streams.accept()
                    with stream:
                        stream.settimeout(5)
                        size = int.from_bytes(stream.recv(2), "big")
                        reply = server.answer(stream.recv(size), True, sender[1])
                        if reply is not None:
                            stream.sendall(len(reply).to_bytes(2, "big") + reply)

        for work in (receive, accept):
            threading.Thread(target=work, daemon=True).start()
        yield server
        for one in (datagrams, streams):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def failing(rcode: dns.rcode.Rcode) -> Reply:
    """Answers nothing but this code."""

    def reply(query: dns.message.Message, _stream: bool) -> dns.message.Message:
        made = dns.message.make_response(query)
        made.set_rcode(rcode)
        return made

    return reply


def truncated(server: Upstream) -> Reply:
    """Cuts every datagram, so that the question has to come by a stream."""

    def reply(query: dns.message.Message, stream: bool) -> dns.message.Message:
        made = server.found(query)
        if not stream:
            made.answer = []
            made.flags |= dns.flags.TC
        return made

    return reply


def late(server: Upstream, seconds: float) -> Reply:
    def reply(query: dns.message.Message, _stream: bool) -> dns.message.Message:
        time.sleep(seconds)
        return server.found(query)

    return reply


def in_own_mounts(files: dict[str, Path]) -> None:
    """From now on this thread, and what it starts, sees other files at these places; nobody else does."""
    libc = ctypes.CDLL(None, use_errno=True)
    steps = [(b"none", b"/", MS_PRIVATE | MS_REC)] + [
        (os.fsencode(source), target.encode(), MS_BIND) for target, source in files.items()
    ]
    if libc.unshare(CLONE_NEWNS) or any(
        libc.mount(source, target, None, flags, None) for source, target, flags in steps
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
