"""Acts on the network: every road that a byte can take to a listener, and the sockets that need no address."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable

from acts import act
from acts_file import checked, libc

IPPROTO_MPTCP = 262
MSG_FASTOPEN = 0x20000000
SYS_SENDMMSG = 307 if os.uname().machine == "x86_64" else 269
SEND_SECONDS = 5
WAIT_FOR_VISITOR_SECONDS = 20


def open_socket(family: int, kind: int, protocol: int = 0) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    made.settimeout(SEND_SECONDS)
    return made


def tcp(host: str, port: int, token: bytes, family: int = socket.AF_INET, protocol: int = 0) -> None:
    with open_socket(family, socket.SOCK_STREAM, protocol) as client:
        client.connect((host, port))
        client.sendall(token)


def tcp_fast_open(host: str, port: int, token: bytes, family: int = socket.AF_INET) -> None:
    """Connects by sending: no connect call is made."""
    with open_socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(None)
        client.sendto(token, MSG_FASTOPEN, (host, port))


def tcp_without_waiting(host: str, port: int, token: bytes) -> None:
    with open_socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        code = client.connect_ex((host, port))
        if code not in (0, 115):
            raise OSError(code, os.strerror(code))
        client.settimeout(SEND_SECONDS)
        client.sendall(token)


def udp(host: str, port: int, token: bytes, family: int = socket.AF_INET) -> None:
    with open_socket(family, socket.SOCK_DGRAM) as client:
        client.sendto(token, (host, port))


def udp_connected(host: str, port: int, token: bytes, family: int = socket.AF_INET) -> None:
    with open_socket(family, socket.SOCK_DGRAM) as client:
        client.connect((host, port))
        client.send(token)


def udp_sendmsg(host: str, port: int, token: bytes) -> None:
    with open_socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendmsg([token], [], 0, (host, port))


def udp_sendmmsg(host: str, port: int, token: bytes) -> None:
    address = plain_address(socket.AF_INET, host, port)
    text = ctypes.create_string_buffer(token, len(token))
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(text), len(token))
    head = ctypes.create_string_buffer(
        struct.pack("QIxxxxQQQQIxxxxIxxxx", ctypes.addressof(address), 16, ctypes.addressof(vector), 1, 0, 0, 0, 0), 64
    )
    with open_socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        checked(libc.syscall(SYS_SENDMMSG, client.fileno(), ctypes.byref(head), 1, 0), "sendmmsg")


def plain_address(family: int, host: str, port: int) -> ctypes.Array[ctypes.c_char]:
    """A sockaddr_in with any family written into it."""
    packed = struct.pack("H", family) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
    return ctypes.create_string_buffer(packed, 16)


def udp_unspec(host: str, port: int, token: bytes, family: int = socket.AF_INET) -> None:
    """An address that claims no family; the kernel sends it as IPv4."""
    address = plain_address(socket.AF_UNSPEC, host, port)
    with open_socket(family, socket.SOCK_DGRAM) as client:
        checked(libc.sendto(client.fileno(), token, len(token), 0, ctypes.byref(address), 16), "sendto")


def tcp_after_another(host: str, port: int, token: bytes, first: int) -> None:
    """Connects where it may, dissolves the connection, and connects the same socket again."""
    with open_socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.connect((host, first))
        nowhere = plain_address(socket.AF_UNSPEC, "0.0.0.0", 0)
        checked(libc.connect(client.fileno(), ctypes.byref(nowhere), 16), "connect")
        client.connect((host, port))
        client.sendall(token)


def udp_after_connecting_elsewhere(host: str, port: int, token: bytes, first: int) -> None:
    """Connected where it may, and sends to another address all the same."""
    with open_socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((host, first))
        client.sendto(token, (host, port))


def ping(host: str, port: int, token: bytes) -> None:
    with open_socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as client:
        client.sendto(struct.pack("!BBHHH", 8, 0, 0, 0, 1) + token, (host, 0))
        client.recv(256)


def raw(host: str, port: int, token: bytes) -> None:
    """A UDP packet made by hand."""
    with open_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as client:
        client.sendto(struct.pack("!HHHH", 40000, port, 8 + len(token), 0) + token, (host, 0))


def packet(host: str, port: int, token: bytes, source: str, device: str) -> None:
    """A frame put on a network device, below everything that knows addresses."""
    udp_part = struct.pack("!HHHH", 40000, port, 8 + len(token), 0) + token
    ends = socket.inet_aton(source) + socket.inet_aton(host)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp_part), 1, 0, 64, 17, 0) + ends
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    with open_socket(socket.AF_PACKET, socket.SOCK_RAW) as client:
        client.bind((device, 0x0800))
        client.send(b"\xff" * 6 + bytes(6) + b"\x08\x00" + head + udp_part)


SENDERS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        tcp,
        tcp_fast_open,
        tcp_without_waiting,
        udp,
        udp_connected,
        udp_sendmsg,
        udp_sendmmsg,
        udp_unspec,
        tcp_after_another,
        udp_after_connecting_elsewhere,
        ping,
        raw,
        packet,
    )
}


@act
def send(how: str, host: str, port: int, token: str, **more: int | str) -> None:
    """Get a token to a listener."""
    SENDERS[how](host, port, token.encode(), **more)


@act
def open_family(family: int, kind: int, protocol: int) -> None:
    """Make a socket of a kind, nothing more."""
    open_socket(family, kind, protocol).close()


@act
def listen(host: str, port: int, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> str:
    """Bind and listen; says the address that was bound."""
    with open_socket(family, kind) as server:
        server.bind((host, port))
        if kind == socket.SOCK_STREAM:
            server.listen()
        return str(server.getsockname()[0])


@act
def serve_itself(host: str, family: int = socket.AF_INET) -> str:
    """Listen on a free port and reach it, as a development server and its client do."""
    with open_socket(family, socket.SOCK_STREAM) as server:
        server.bind((host, 0))
        server.listen()
        port = server.getsockname()[1]
        client = threading.Thread(target=tcp, args=(host, port, b"hello", family))
        client.start()
        connection, _ = server.accept()
        with connection:
            connection.settimeout(SEND_SECONDS)
            text = connection.recv(16).decode()
        client.join()
        return text


@act
def be_reached(port_file: str) -> str:
    """Listen on every address, say on which port, and wait for somebody to come."""
    with open_socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.listen()
        with open(f"{port_file}.new", "w") as file:
            file.write(str(server.getsockname()[1]))
        os.rename(f"{port_file}.new", port_file)
        server.settimeout(WAIT_FOR_VISITOR_SECONDS)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(SEND_SECONDS)
            return connection.recv(16).decode()


@act
def unix_connect(path: str, kind: int = socket.SOCK_STREAM, token: str = "hello") -> None:
    """Get a token to a unix socket; a path that begins with @ is an abstract one."""
    with open_socket(socket.AF_UNIX, kind) as client:
        client.connect("\0" + path[1:] if path.startswith("@") else path)
        client.send(token.encode())


@act
def unix_send(path: str, token: str = "hello") -> None:
    """Send one datagram to a unix socket, without connecting to it."""
    with open_socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(token.encode(), "\0" + path[1:] if path.startswith("@") else path)


@act
def unix_connect_by_symlink(path: str, token: str = "hello") -> None:
    """The same through a link of the act's own making."""
    name = f"link-{os.getpid()}"
    os.symlink(path, name)
    try:
        unix_connect(name, token=token)
    finally:
        os.unlink(name)


@act
def unix_connect_in_held_folder(path: str, token: str = "hello") -> None:
    """The same below a descriptor of the socket's folder."""
    fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    unix_connect(f"/proc/self/fd/{fd}/{os.path.basename(path)}", token=token)


@act
def unix_connect_from_its_folder(path: str, token: str = "hello") -> None:
    """The same by a name without a folder."""
    os.chdir(os.path.dirname(path))
    unix_connect(os.path.basename(path), token=token)


@act
def unix_serve_itself(path: str) -> str:
    """Listen on a unix socket and reach it."""
    with open_socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind("\0" + path[1:] if path.startswith("@") else path)
        server.listen()
        client = threading.Thread(target=unix_connect, args=(path,))
        client.start()
        connection, _ = server.accept()
        with connection:
            connection.settimeout(SEND_SECONDS)
            text = connection.recv(16).decode()
        client.join()
        return text
